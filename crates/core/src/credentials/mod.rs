//! Certificates and keys as people have them, read into values.
//!
//! Files of certificates and keys come out of many tools and hands: PEM with text around
//! it, glued together, indented, with a byte order mark or in UTF-16, DER, keys of four
//! forms. What is in one is decided here, once, for all daemons and for `config check`: a
//! file becomes [`Certificate`] values, a [`PrivateKey`], and [`Finding`]s that say what
//! cannot be used, where it stands and what to do. What is handed out is written anew
//! from the values ([`pem_of`]), never copied out of a file.

mod certificate;
mod certs_only;
mod chain;
mod der;
mod fault;
mod pem;
mod scan;
mod structure;

use std::collections::HashSet;
use std::fmt;

use zeroize::Zeroizing;

pub use certificate::Certificate;
pub use certs_only::{CertsOnlyError, read_certs_only};
pub use chain::ordered;
pub use fault::{Fault, Finding, Findings, Place, Purpose};
pub use pem::encode as encode_pem;
use scan::{Thing, things};
pub use structure::KeyForm;

/// Bounds on what is looked at of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Its length, in bytes.
    pub bytes: usize,
    /// PEM blocks and DER values in it.
    pub blocks: usize,
    /// Certificates that are taken.
    pub certificates: usize,
    /// Findings that are kept; more are counted.
    pub findings: usize,
}

impl Limits {
    /// Those of a file: several times what a whole system's store of roots has.
    pub const FILE: Self = Self { bytes: 1 << 20, blocks: 1000, certificates: 500, findings: 16 };
}

/// A private key out of a file.
#[derive(Clone)]
pub struct PrivateKey {
    /// The form that it is written in.
    pub form: KeyForm,
    /// The key, DER.
    pub der: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({:?}, ..)", self.form)
    }
}

/// A file that should hold certificates and nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateFile {
    /// Every certificate in it, each once: chains from the leaf up, else in the order of
    /// the file.
    pub certificates: Vec<Certificate>,
    /// The things that are left out.
    pub findings: Findings,
}

/// A file that should hold one key.
#[derive(Debug, Clone)]
pub enum KeyFile {
    /// Bytes of no known form: a symmetric key as it is.
    Symmetric {
        /// True if it looks as if it was meant to be decoded first: base64 as text, or a
        /// line end behind it.
        is_text: bool,
    },
    /// The private half of a key pair.
    Private(PrivateKey),
}

/// Reads a file of certificates. What cannot be used takes nothing else down.
#[must_use]
pub fn read_certificates(content: &[u8], limits: &Limits) -> CertificateFile {
    let mut file = CertificateFile::default();
    let mut known = HashSet::new();
    let mut is_full = false;
    let found = things(content, limits, |place, thing| {
        let fault = match thing {
            Thing::Certificate { certificate, trailing } => {
                if !known.contains(certificate.der())
                    && file.certificates.len() < limits.certificates
                {
                    known.insert(certificate.der().to_vec());
                    file.certificates.push(certificate);
                } else if !known.contains(certificate.der())
                    && !std::mem::replace(&mut is_full, true)
                {
                    let fault = Fault::ManyCertificates { limit: limits.certificates };
                    file.findings.add(Finding { place: Some(place), fault }, limits.findings);
                }
                if !trailing {
                    return;
                }
                Fault::Trailing
            }
            // Also one that cannot be read: nobody should have put it there.
            Thing::Key(_) | Thing::Fault { of_key: true, .. } => Fault::PrivateKey,
            Thing::PublicKey(_) => Fault::PublicKey,
            Thing::Fault { fault, .. } => fault,
        };
        file.findings.add(Finding { place: Some(place), fault }, limits.findings);
    });
    if let Err(fault) = found {
        file.findings.add(Finding { place: None, fault }, limits.findings);
    }
    file.certificates = ordered(file.certificates);
    file
}

/// Reads a file with one key.
///
/// # Errors
/// If the file holds something whose form is known and which is no key that can be used.
/// Bytes of no known form are a symmetric key.
pub fn read_key(content: &[u8], limits: &Limits) -> Result<KeyFile, Finding> {
    let mut key = None;
    let mut second = None;
    let mut first_fault: Option<Finding> = None;
    let found = things(content, limits, |place, thing| {
        let fault = match thing {
            Thing::Key(found) if key.is_none() => {
                key = Some(found);
                return;
            }
            Thing::Key(_) => {
                second = second.or(Some(Finding { place: Some(place), fault: Fault::SecondKey }));
                return;
            }
            Thing::Certificate { .. } => Fault::Certificate,
            Thing::PublicKey(_) => Fault::PublicKey,
            Thing::Fault { fault, .. } => fault,
        };
        let finding = Finding { place: Some(place), fault };
        // A key that cannot be used says more than what stands beside it.
        if first_fault.is_none_or(|known| !known.fault.spoils_a_key() && fault.spoils_a_key()) {
            first_fault = Some(finding);
        }
    });
    match (found, second, key, first_fault) {
        (Err(Fault::Nothing), ..) => Ok(KeyFile::Symmetric { is_text: is_text(content) }),
        (Err(fault), ..) => Err(Finding { place: None, fault }),
        (Ok(()), Some(second), ..) => Err(second),
        // A key that is there twice in two forms, one of them unusable, is not guessed
        // about.
        (Ok(()), None, Some(_), Some(finding)) if finding.fault.spoils_a_key() => Err(finding),
        (Ok(()), None, Some(key), _) => Ok(KeyFile::Private(key)),
        (Ok(()), None, None, Some(finding)) => Err(finding),
        (Ok(()), None, None, None) => Err(Finding { place: None, fault: Fault::Nothing }),
    }
}

/// Reads a file with one public key, as a SubjectPublicKeyInfo in DER.
///
/// # Errors
/// If there is no public key in the file, or something else instead.
pub fn read_public_key(content: &[u8], limits: &Limits) -> Result<Vec<u8>, Finding> {
    let mut key = None;
    let mut first_fault = None;
    let found = things(content, limits, |place, thing| {
        let fault = match thing {
            Thing::PublicKey(found) if key.is_none() => {
                key = Some(found);
                return;
            }
            Thing::PublicKey(_) => Fault::SecondKey,
            Thing::Certificate { .. } => Fault::Certificate,
            Thing::Key(_) => Fault::Key,
            Thing::Fault { fault, .. } => fault,
        };
        if first_fault.is_none() || fault == Fault::SecondKey {
            first_fault = Some(Finding { place: Some(place), fault });
        }
    });
    found.map_err(|fault| Finding { place: None, fault })?;
    match (key, first_fault) {
        (Some(key), None) => Ok(key),
        (_, Some(finding)) => Err(finding),
        (None, None) => Err(Finding { place: None, fault: Fault::Nothing }),
    }
}

/// Returns true if a SubjectPublicKeyInfo is of a key on P-256, with its point
/// uncompressed.
#[must_use]
pub fn is_p256_public_key(info: &[u8]) -> bool {
    const HEAD: [u8; 27] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
    ];
    info.len() == 91 && info.starts_with(&HEAD)
}

/// Writes certificates as strict PEM, one after the other.
#[must_use]
pub fn pem_of<'a>(certificates: impl IntoIterator<Item = &'a Certificate>) -> String {
    certificates.into_iter().map(Certificate::to_pem).collect()
}

/// Joins the certificates of several files in one list, each once.
#[must_use]
pub fn each_once(files: impl IntoIterator<Item = Vec<Certificate>>) -> Vec<Certificate> {
    let mut known = HashSet::new();
    files
        .into_iter()
        .flatten()
        .filter(|certificate| known.insert(certificate.der().to_vec()))
        .collect()
}

/// Returns true if bytes look like a text that stands for a key.
fn is_text(content: &[u8]) -> bool {
    let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    if content.len() < 16 || !content.iter().all(printable) {
        return false;
    }
    content.ends_with(b"\n")
        || content.trim_ascii().len().is_multiple_of(4) && pem::base64(content).is_some()
}
