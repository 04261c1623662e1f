//! Whose certificates are believed.

use std::path::{Path, PathBuf};

use edgekeep_base::file::{self, Rules};
use edgekeep_core::credentials::{self, Certificate, Finding, Purpose, read_certificates};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

/// Largest file with trusted roots, in bytes: several times what a distribution trusts.
const ROOTS_LIMIT: usize = credentials::Limits::FILE.bytes;

/// Whose certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The roots of the system's store.
    System,
    /// The certificates in these files, and no others.
    Files(Vec<PathBuf>),
    /// These certificates, and no others.
    Certificates(Vec<Certificate>),
}

/// Failure to load the roots that are believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the trusted roots{} cannot be loaded: {what}", path.as_ref().map(|path| format!(" in {}", path.display())).unwrap_or_default())]
pub struct RootsError {
    /// The file; `None` for the system's store.
    pub path: Option<PathBuf>,
    /// The reason.
    pub what: String,
}

impl Trust {
    /// Returns the certificates that are believed in place of the system's, read now;
    /// `None` for the system's store.
    ///
    /// # Errors
    /// A file that cannot be read or has no certificate that can be used.
    pub fn certificates(&self) -> Result<Option<Vec<Certificate>>, RootsError> {
        match self {
            Self::System => Ok(None),
            Self::Files(paths) => {
                let files = paths.iter().map(|path| certificates_in(path));
                Ok(Some(credentials::each_once(files.collect::<Result<Vec<_>, _>>()?)))
            }
            Self::Certificates(certificates) => Ok(Some(certificates.clone())),
        }
    }

    /// Returns the store of roots for a handshake.
    pub(crate) fn store(&self) -> Result<RootCertStore, RootsError> {
        let mut roots = RootCertStore::empty();
        let Some(certificates) = self.certificates()? else {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                let none = "none found; install the ca-certificates package or set trusted_certs";
                let what =
                    found.errors.first().map_or_else(|| none.to_owned(), ToString::to_string);
                return Err(RootsError { path: None, what });
            }
            return Ok(roots);
        };
        roots.add_parsable_certificates(
            certificates.iter().map(|certificate| CertificateDer::from(certificate.der())),
        );
        if roots.is_empty() {
            let what = "no certificate is given that can be used as a root".to_owned();
            return Err(RootsError { path: None, what });
        }
        Ok(roots)
    }
}

/// Reads the certificates of a file that can be used as roots. What cannot be used in it
/// is named and takes nothing else down.
fn certificates_in(path: &Path) -> Result<Vec<Certificate>, RootsError> {
    let bad = |what: String| RootsError { path: Some(path.to_owned()), what };
    let limits = credentials::Limits { bytes: ROOTS_LIMIT, ..credentials::Limits::FILE };
    let content = file::read(path, Rules::named(ROOTS_LIMIT as u64))
        .map_err(|error| bad(error.to_string()))?;
    let file = read_certificates(&content, &limits);
    let told =
        |finding: Finding| format!("{finding}; {}", finding.fault.remedy(Purpose::Certificates));
    let mut refused = None;
    let mut usable = Vec::new();
    for certificate in file.certificates {
        match RootCertStore::empty().add(CertificateDer::from(certificate.der())) {
            Ok(()) => usable.push(certificate),
            Err(error) => {
                refused = Some(format!("a certificate in it cannot be used as a root: {error}"));
            }
        }
    }
    match file.findings.gravest().map(told).or(refused) {
        Some(wrong) if usable.is_empty() => return Err(bad(wrong)),
        None if usable.is_empty() => return Err(bad("no certificate in it".to_owned())),
        Some(wrong) => {
            tracing::warn!(file = %path.display(), "left out of the roots: {wrong}");
        }
        None => {}
    }
    Ok(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_file_without_certificates_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.pem");
        std::fs::write(&path, "nothing here").unwrap();
        let error = Trust::Files(vec![path]).store().unwrap_err();
        assert!(
            error.to_string().contains("roots.pem") && error.to_string().contains("PEM or DER"),
            "{error}"
        );
    }

    #[test]
    fn no_certificate_at_all_trusts_nobody_and_not_the_system() {
        for trust in [Trust::Certificates(Vec::new()), Trust::Files(Vec::new())] {
            let error = trust.store().unwrap_err().to_string();
            assert!(error.contains("no certificate is given"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_used_of_a_root_file_takes_nothing_else_down() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.crt");
        let made = rcgen::generate_simple_self_signed(vec!["root".to_owned()]).unwrap();
        let cut = made.cert.pem()[..200].to_owned();
        std::fs::write(
            &path,
            format!("\u{feff}{}{cut}\n{}", made.signing_key.serialize_pem(), made.cert.pem()),
        )
        .unwrap();
        assert_eq!(Trust::Files(vec![path.clone()]).store().unwrap().len(), 1);
        std::fs::write(&path, made.cert.der()).unwrap();
        assert_eq!(Trust::Files(vec![path.clone(), path.clone()]).store().unwrap().len(), 1);
        std::fs::write(&path, cut).unwrap();
        let error = Trust::Files(vec![path]).store().unwrap_err();
        assert!(error.to_string().contains("line 1, block 1: the END line is missing"), "{error}");
    }
}
