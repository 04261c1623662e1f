//! Certificates on disk, one PEM file each, beside those that the operator keeps
//! elsewhere.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use edgekeep_base::file::{self, Rules};
use edgekeep_core::credentials::{
    Certificate, CertificateFile, Finding, Findings, Limits, Purpose, each_once, read_certificates,
};
use edgekeep_core::id::CertId;
use edgekeep_core::settings::PreloadedCert;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::store::{self, StoreError};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::former::FormerCas;
use super::left_out::LeftOut;
use super::on_token::OnToken;

/// Letters and digits of the id that stand in the file name, for people; the hash behind
/// them is what counts.
const READABLE_PART: usize = 64;

/// Failure to read or write a certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertStoreError {
    /// There is none.
    #[error("certificate \"{id}\" not found")]
    NotFound {
        /// Id of the certificate.
        id: CertId,
    },
    /// The id belongs to a file or an object on a token of the operator's.
    #[error("certificate \"{id}\" is preloaded: change its file, or the object on its token")]
    Preloaded {
        /// Id of the certificate.
        id: CertId,
    },
    /// The file is there and cannot be used.
    #[error("cannot read {}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The file is there and holds no certificate.
    #[error("certificate \"{id}\" cannot be read from {}: {finding}; {}", path.display(), finding.fault.remedy(Purpose::Certificates))]
    Unusable {
        /// Id of the certificate.
        id: CertId,
        /// Its file.
        path: PathBuf,
        /// Fault that was found in the file.
        finding: Finding,
    },
    /// The certificate is on a token and cannot be used.
    #[error("certificate \"{id}\" cannot be read from its token: {why}")]
    OnToken {
        /// Id of the certificate.
        id: CertId,
        /// The reason, in words.
        why: String,
    },
    /// The file could not be replaced or removed.
    #[error("the certificate cannot be stored")]
    Write(#[from] StoreError),
}

/// The file that a preloaded certificate's URI names.
pub(crate) fn preloaded_file(uri: &str) -> PathBuf {
    let path = uri.strip_prefix("file://").unwrap_or(uri);
    PathBuf::from(OsString::from_vec(percent_encoding::percent_decode_str(path).collect()))
}

/// The certificates of this device.
#[derive(Debug)]
pub(super) struct CertStore {
    folder: PathBuf,
    preloaded: BTreeMap<CertId, PreloadedCert>,
    left_out: LeftOut,
    former: FormerCas,
    on_token: OnToken,
}

impl CertStore {
    /// The store in `folder`, which is made if absent. Anything in preloaded files that
    /// cannot be used is reported to `board`.
    pub(super) fn open(
        folder: PathBuf,
        preloaded: BTreeMap<CertId, PreloadedCert>,
        board: Board,
    ) -> Result<Self, StoreError> {
        store::private_folder(&folder)?;
        store::sweep_temporary(&folder);
        let on_token = preloaded.iter().filter_map(|(id, certificate)| match certificate {
            PreloadedCert::Token { .. } => Some(id.clone()),
            PreloadedCert::File(_) | PreloadedCert::List(_) => None,
        });
        Ok(Self {
            folder,
            on_token: OnToken::new(on_token, board.clone()),
            preloaded,
            left_out: LeftOut(board),
            former: FormerCas::default(),
        })
    }

    /// Returns the certificates on tokens.
    pub(super) fn on_token(&self) -> &OnToken {
        &self.on_token
    }

    /// Reads each preloaded file once, so that what is wrong with one is known before
    /// somebody asks for it.
    pub(super) fn look(&self) {
        for (id, certificate) in &self.preloaded {
            if matches!(certificate, PreloadedCert::File(_)) {
                let _ = self.read_one(id);
            }
        }
    }

    /// A certificate and its chain from the leaf up, or the members of a list one after
    /// the other, each certificate once. What cannot be used of a list is reported and
    /// takes nothing else down.
    pub(super) fn read(&self, id: &CertId) -> Result<Vec<Certificate>, CertStoreError> {
        let Some(PreloadedCert::List(members)) = self.preloaded.get(id) else {
            return self.read_one(id);
        };
        // A member may come later: the CA is issued after the first start.
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let with_former = members.iter().flat_map(|member| {
            let current = self.read_one(member).unwrap_or_default();
            let former = self.former.read(&self.path(member), &current, now);
            [current, former]
        });
        let bundle = each_once(with_former);
        if bundle.is_empty() {
            Err(CertStoreError::NotFound { id: id.clone() })
        } else {
            Ok(bundle)
        }
    }

    fn read_one(&self, id: &CertId) -> Result<Vec<Certificate>, CertStoreError> {
        let limit = Limits::FILE.bytes as u64;
        let (path, rules, is_own) = match self.preloaded.get(id) {
            None => (self.path(id), Rules::own(limit), true),
            Some(PreloadedCert::File(uri)) => (preloaded_file(uri), Rules::named(limit), false),
            Some(PreloadedCert::Token { .. }) => return self.on_token.read(id),
            // Lists do not nest.
            Some(PreloadedCert::List(_)) => {
                return Err(CertStoreError::NotFound { id: id.clone() });
            }
        };
        let file = match file::read(&path, rules) {
            // Wiped in the end: somebody may have put a key into the file.
            Ok(content) => read_certificates(&Zeroizing::new(content), &Limits::FILE),
            Err(error) => {
                let is_absent = error.kind() == io::ErrorKind::NotFound;
                if is_own && is_absent {
                    self.left_out.found(id, &path, &Findings::default());
                } else {
                    self.left_out.unreadable(id, &path, &error);
                }
                return Err(match is_absent {
                    true => CertStoreError::NotFound { id: id.clone() },
                    false => CertStoreError::Read { path, source: error },
                });
            }
        };
        self.left_out.found(id, &path, &file.findings);
        let CertificateFile { certificates, findings } = file;
        match findings.gravest() {
            // One of our own is made or brought anew, which needs no old one.
            Some(_) if certificates.is_empty() && is_own => {
                Err(CertStoreError::NotFound { id: id.clone() })
            }
            Some(finding) if certificates.is_empty() => {
                Err(CertStoreError::Unusable { id: id.clone(), path, finding })
            }
            _ => Ok(certificates),
        }
    }

    /// Stores a chain. With `durable` it survives a power cut from the moment this
    /// returns.
    pub(super) fn write(
        &self,
        id: &CertId,
        pem: &str,
        durable: bool,
    ) -> Result<(), CertStoreError> {
        self.refuse_preloaded(id)?;
        if self.is_in_bundle(id)
            && let Ok(old) = self.read_one(id)
        {
            let new = read_certificates(pem.as_bytes(), &Limits::FILE).certificates;
            let now = OffsetDateTime::now_utc().unix_timestamp();
            self.former.replace(&self.path(id), &old, &new, now)?;
        }
        let write = if durable { store::write_atomic } else { store::write_replaceable };
        write(&self.path(id), pem.as_bytes(), 0o600)?;
        Ok(())
    }

    /// Remembers that a CA has issued a certificate that ends at `until`, if peers find
    /// the CA in a trust bundle: there it stays for that time, whoever replaces it.
    pub(super) fn note_issuer(
        &self,
        id: &CertId,
        chain: &[Certificate],
        until: OffsetDateTime,
    ) -> Result<(), CertStoreError> {
        if self.is_in_bundle(id) {
            let now = OffsetDateTime::now_utc().unix_timestamp();
            self.former.note(&self.path(id), chain, until.unix_timestamp(), now)?;
        }
        Ok(())
    }

    fn is_in_bundle(&self, id: &CertId) -> bool {
        let lists = |cert: &PreloadedCert| matches!(cert, PreloadedCert::List(members) if members.contains(id));
        self.preloaded.values().any(lists)
    }

    /// Removes a chain; one that is absent counts as removed.
    pub(super) fn remove(&self, id: &CertId) -> Result<(), CertStoreError> {
        self.refuse_preloaded(id)?;
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io { step: "remove", path, source }.into())
            }
            _ => Ok(()),
        }
    }

    fn refuse_preloaded(&self, id: &CertId) -> Result<(), CertStoreError> {
        if self.preloaded.contains_key(id) {
            Err(CertStoreError::Preloaded { id: id.clone() })
        } else {
            Ok(())
        }
    }

    fn path(&self, id: &CertId) -> PathBuf {
        let readable: String =
            id.as_str().chars().filter(char::is_ascii_alphanumeric).take(READABLE_PART).collect();
        let digest = store::sha256(id.as_str().as_bytes());
        self.folder.join(format!("{readable}-{}.cer", digest.hex()))
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_core::credentials::{Fault, pem_of};

    use super::*;

    fn id(text: &str) -> CertId {
        text.parse().unwrap()
    }

    fn certificate(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn ids_that_look_alike_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let store =
            CertStore::open(folder.path().join("certs"), BTreeMap::new(), Board::new()).unwrap();
        let made = ["a/b", "a.b", "ab", "../../ab", &"a".repeat(500)]
            .map(|name| (id(name), certificate("x").0));
        for (id, pem) in &made {
            store.write(id, pem, false).unwrap();
        }
        for (id, pem) in &made {
            assert_eq!(pem_of(&store.read(id).unwrap()), *pem);
        }
        assert_eq!(std::fs::read_dir(folder.path().join("certs")).unwrap().count(), made.len());
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing outside the folder"
        );
    }

    #[test]
    fn a_list_is_its_members_in_order_each_certificate_once_without_what_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let file = |name: &str| {
            PreloadedCert::File(format!(
                "file://{}",
                at(name).display().to_string().replace(' ', "%20")
            ))
        };
        let ((ca, _), (user, key)) = (certificate("ca"), certificate("user"));
        std::fs::write(at("the user's.pem"), format!("{key}{user}{ca}")).unwrap();
        std::fs::write(at("nothing.pem"), "nothing").unwrap();
        let status = std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap();
        assert!(status.success());
        let members =
            ["ca", "missing", "nothing", "fifo", "folder", "user", "lost"].map(id).to_vec();
        let preloaded = BTreeMap::from([
            (id("bundle"), PreloadedCert::List(members)),
            (id("user"), file("the user's.pem")),
            (id("nothing"), file("nothing.pem")),
            (id("fifo"), file("fifo")),
            (id("folder"), PreloadedCert::File(format!("file://{}", folder.path().display()))),
            (id("lost"), file("lost.pem")),
            (id("empty"), PreloadedCert::List(vec![id("missing")])),
        ]);
        let board = Board::new();
        let store = CertStore::open(at("certs"), preloaded, board.clone()).unwrap();
        assert_eq!(pem_of(&store.read(&id("bundle")).unwrap()), format!("{user}{ca}"));
        store.write(&id("ca"), &ca, true).unwrap();
        assert_eq!(pem_of(&store.read(&id("bundle")).unwrap()), format!("{ca}{user}"));
        assert!(matches!(store.read(&id("empty")), Err(CertStoreError::NotFound { .. })));
        let error = store.read(&id("nothing")).unwrap_err();
        assert!(
            matches!(error, CertStoreError::Unusable { finding, .. } if finding.fault == Fault::Nothing),
            "{error}"
        );

        let told = || -> Vec<(String, String)> {
            let health = board.health();
            health
                .problems()
                .iter()
                .map(|one| (one.subject().to_string(), one.detail().to_owned()))
                .collect()
        };
        let problems = told();
        for (id, part) in [
            ("fifo", "in place of a file"),
            ("folder", "in place of a file"),
            ("lost", "cannot be read"),
            ("nothing", "nothing in the file is PEM or DER"),
            ("user", "the user's.pem: line 1, block 1: it is a private key"),
        ] {
            let has = |(subject, detail): &(String, String)| {
                subject.contains(id) && detail.contains(part)
            };
            assert!(problems.iter().any(has), "{id}: {problems:?}");
        }
        assert_eq!(problems.len(), 5, "{problems:?}");
        std::fs::write(at("the user's.pem"), &user).unwrap();
        store.look();
        assert_eq!(told().len(), 4, "what was put right is no longer told");
    }

    #[test]
    fn a_former_ca_is_in_the_bundle_until_it_ends_and_one_of_the_same_key_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let preloaded = BTreeMap::from([(id("bundle"), PreloadedCert::List(vec![id("ca")]))]);
        let certs = folder.path().join("certs");
        let store = CertStore::open(certs, preloaded, Board::new()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let made = |key: &rcgen::KeyPair, days: i64| {
            let mut params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
            params.not_before = OffsetDateTime::now_utc() - time::Duration::days(9);
            params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days);
            params.self_signed(key).unwrap().pem()
        };
        let other = rcgen::KeyPair::generate().unwrap();
        let (first, renewed) = (made(&key, 5), made(&key, 90));
        let (rotated, over) = (made(&other, 90), made(&key, -1));
        let bundle = || pem_of(&store.read(&id("bundle")).unwrap());
        store.write(&id("ca"), &first, true).unwrap();
        store.write(&id("ca"), &renewed, true).unwrap();
        assert_eq!(bundle(), renewed, "the same key verifies what both issued");
        store.write(&id("ca"), &rotated, true).unwrap();
        assert_eq!(bundle(), format!("{rotated}{renewed}"));
        assert_eq!(pem_of(&store.read(&id("ca")).unwrap()), rotated);
        store.write(&id("ca"), &over, true).unwrap();
        assert_eq!(bundle(), format!("{over}{rotated}{renewed}"));
        store.write(&id("ca"), &rotated, true).unwrap();
        assert_eq!(bundle(), format!("{rotated}{renewed}"), "what is over has gone");
        // Replaced without end, it stays within bounds.
        for _ in 0..20 {
            let pair = rcgen::KeyPair::generate().unwrap();
            store.write(&id("ca"), &made(&pair, 90), true).unwrap();
        }
        assert_eq!(store.read(&id("bundle")).unwrap().len(), 9);
    }

    #[test]
    fn what_the_operator_keeps_elsewhere_is_not_written_through_the_api() {
        let folder = tempfile::tempdir().unwrap();
        let preloaded =
            BTreeMap::from([(id("user"), PreloadedCert::File("file:///nowhere".to_owned()))]);
        let store = CertStore::open(folder.path().join("certs"), preloaded, Board::new()).unwrap();
        assert!(matches!(
            store.write(&id("user"), "x", true),
            Err(CertStoreError::Preloaded { .. })
        ));
        assert!(matches!(store.remove(&id("user")), Err(CertStoreError::Preloaded { .. })));
    }
}
