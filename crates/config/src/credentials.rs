//! The files of certificates and keys that the configuration names: judged when it is
//! checked and applied, as the daemons read them later. Their content does not become
//! part of the settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgekeep_core::credentials::{
    Certificate, Fault, Finding, KeyFile, Limits, Purpose, encode_pem, is_p256_public_key,
    read_certificates, read_key, read_public_key,
};
use edgekeep_hsm::InputError;
use edgekeep_hsm::backend::KeyFileFault;
use edgekeep_hsm::key_file::{Inspected, inspect};

use crate::diagnostic::Code;
use crate::document::Text;
use crate::secret::SecretBytes;
use crate::translate::{Draft, Environment, Users};
use crate::{document, value};

/// The reason for not judging a file of certificates or keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unjudged {
    /// There is no such file yet.
    Absent,
    /// Whoever checks may not read it; the daemon may.
    Forbidden,
    /// No daemon can use it: why.
    Unusable(String),
}

/// The kind that a key has to be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Either.
    Any,
    /// A symmetric key.
    Symmetric,
    /// A private key.
    Pair,
}

/// The files of certificates and keys that `text` names, for
/// [`Environment::credentials`].
#[must_use]
pub fn referenced_credentials(text: &str) -> Vec<PathBuf> {
    let nothing = Environment { users: Users::all(0), ..Environment::default() };
    let mut draft = Draft::new(&nothing, crate::diagnostic::Report::default());
    let mut table = document::parse(text, &mut draft.report);
    crate::check::check(text, &mut table, &mut draft.report);
    draft.read(&document::View::root(&table));
    draft.credentials.into_iter().collect()
}

impl Draft<'_> {
    /// Judges a file of certificates, and returns them.
    pub(crate) fn certificate_file(
        &mut self,
        key: &str,
        uri: &Text<'_>,
    ) -> Option<Vec<Certificate>> {
        let (path, content) = self.credential_content(key, uri)?;
        let file = read_certificates(content.expose(), &Limits::FILE);
        for finding in file.findings.list() {
            let (message, remedy) =
                (told(&path, *finding), finding.fault.remedy(Purpose::Certificates));
            if finding.fault.is_grave() {
                self.report.error_with(Code::BadValue, uri.span, key, message, remedy);
            } else {
                self.report.notice(Code::Unusual, uri.span, key, message, Some(remedy));
            }
        }
        if file.findings.more() > 0 {
            let message =
                format!("{}: {} more findings are not shown", path.display(), file.findings.more());
            self.report.notice(Code::Unusual, uri.span, key, message, None);
        }
        Some(file.certificates)
    }

    /// Judges the file of a key that keyd reads, and returns the public half of a private
    /// key.
    pub(crate) fn key_file(
        &mut self,
        key: &str,
        uri: &Text<'_>,
        wanted: Wanted,
    ) -> Option<Vec<u8>> {
        let (path, content) = self.credential_content(key, uri)?;
        match (inspect(&edgekeep_hsm::SecretBytes::from(content.expose())), wanted) {
            (Err(InputError::KeyFile(KeyFileFault(finding))), _) => {
                let remedy = finding.fault.remedy(Purpose::Key);
                self.report.error_with(Code::BadValue, uri.span, key, told(&path, finding), remedy);
                None
            }
            (Err(error), _) => {
                let message = format!("{}: {error}", path.display());
                self.report.error_with(
                    Code::BadValue,
                    uri.span,
                    key,
                    message,
                    "name the file of the right key",
                );
                None
            }
            (Ok(Inspected::Symmetric { .. }), Wanted::Pair) => {
                let finding = Finding { place: None, fault: Fault::Nothing };
                let remedy = finding.fault.remedy(Purpose::Key);
                self.report.error_with(Code::BadValue, uri.span, key, told(&path, finding), remedy);
                None
            }
            (Ok(Inspected::Symmetric { is_text: true }), _) => {
                let message = format!(
                    "{}: the file is a text, which is the key as it is, byte for byte and with a line end",
                    path.display()
                );
                let remedy = "if the text is base64 of the key: base64 -d FILE > KEY";
                self.report.notice(Code::Unusual, uri.span, key, message, Some(remedy));
                None
            }
            (Ok(Inspected::Pair(_)), Wanted::Symmetric) => {
                let message = format!(
                    "{}: it is a private key, and a symmetric key is asked for",
                    path.display()
                );
                let remedy = "name the file of the symmetric key, as raw bytes";
                self.report.error_with(Code::BadValue, uri.span, key, message, remedy);
                None
            }
            (Ok(Inspected::Pair(public)), _) => Some(public),
            (Ok(Inspected::Symmetric { .. }), _) => None,
        }
    }

    /// Judges bytes that have to be a symmetric key: keyd tells what is handed to it by
    /// its form.
    pub(crate) fn symmetric_key(&mut self, key: &str, text: &Text<'_>, bytes: &[u8]) -> Option<()> {
        let finding = match read_key(bytes, &Limits::FILE) {
            Ok(KeyFile::Symmetric { .. }) => return Some(()),
            Ok(KeyFile::Private(_)) => {
                let message = "it is a private key, and a symmetric key is asked for";
                self.report.error_with(
                    Code::BadValue,
                    text.span,
                    key,
                    message,
                    "give the symmetric key",
                );
                return None;
            }
            Err(finding) => finding,
        };
        let message = format!("it is no symmetric key: {finding}");
        self.report.error_with(Code::BadValue, text.span, key, message, "give the symmetric key");
        None
    }

    /// Judges a CA whose certificate and key are in files.
    pub(crate) fn ca_pair(
        &mut self,
        key: &str,
        uri: &Text<'_>,
        certificates: &[Certificate],
        public: Option<&[u8]>,
    ) {
        let Some(first) = certificates.first() else { return };
        if !first.is_ca() {
            let message = "the certificate is not a CA's: its basic constraints do not say so";
            let remedy = "name a CA's certificate, made with basicConstraints=critical,CA:true";
            self.report.error_with(Code::BadValue, uri.span, key, message, remedy);
        }
        self.matching_pair(key, uri, certificates, public);
    }

    /// The first certificate of a file, and the private key that should be its.
    pub(crate) fn matching_pair(
        &mut self,
        key: &str,
        uri: &Text<'_>,
        certificates: &[Certificate],
        public: Option<&[u8]>,
    ) {
        let Some(first) = certificates.first() else { return };
        let Some(public) = public.filter(|public| !same_key(first.public_key(), public)) else {
            return;
        };
        let at =
            certificates.iter().position(|certificate| same_key(certificate.public_key(), public));
        let (message, remedy) = match at {
            Some(_) => (
                "the private key belongs to another certificate of the file than the one that would sign",
                "leave only that certificate and those above it in the file",
            ),
            None => (
                "the private key does not belong to the certificate",
                "name the key that the certificate was made for; compare: openssl x509 -in CERT -noout -pubkey, and \
                 openssl pkey -in KEY -pubout",
            ),
        };
        self.report.error_with(Code::Conflict, uri.span, key, message, remedy);
    }

    /// The public key in a file's content, written anew as PEM, if it is one that
    /// signatures are checked with.
    pub(crate) fn public_key(
        &mut self,
        key: &str,
        path: &Path,
        uri: &Text<'_>,
        content: &[u8],
    ) -> Option<String> {
        match read_public_key(content, &Limits::FILE) {
            Ok(public) if is_p256_public_key(&public) => Some(encode_pem("PUBLIC KEY", &public)),
            Ok(_) => {
                let message = format!(
                    "{}: the key is not on the curve P-256, as those of cosign are",
                    path.display()
                );
                let remedy = "name the public key that the images are signed with";
                self.report.error_with(Code::BadValue, uri.span, key, message, remedy);
                None
            }
            Err(finding) => {
                let remedy = finding.fault.remedy(Purpose::PublicKey);
                self.report.error_with(Code::BadValue, uri.span, key, told(path, finding), remedy);
                None
            }
        }
    }

    /// The content of a file that a daemon will read, if it can be judged now.
    fn credential_content(
        &mut self,
        key: &str,
        uri: &Text<'_>,
    ) -> Option<(PathBuf, Arc<SecretBytes>)> {
        let path = PathBuf::from(value::file_uri(uri.text).ok()?);
        self.credentials.insert(path.clone());
        let shown = path.display();
        match self.environment.credentials.get(&path)? {
            Ok(content) => return Some((path, Arc::clone(content))),
            Err(Unjudged::Absent) => {
                let message = format!("{shown} is not there: until it is, the device does without");
                self.report.notice(
                    Code::Unusual,
                    uri.span,
                    key,
                    message,
                    Some("put the file there"),
                );
            }
            Err(Unjudged::Forbidden) => {
                let message = format!("{shown} cannot be read by this user, and was not looked at");
                self.report.notice(Code::Unusual, uri.span, key, message, Some("check as root"));
            }
            Err(Unjudged::Unusable(why)) => {
                let message = format!("cannot read {shown}: {why}");
                self.report.error_with(
                    Code::BadValue,
                    uri.span,
                    key,
                    message,
                    "name the file itself",
                );
            }
        }
        None
    }
}

fn told(path: &Path, finding: Finding) -> String {
    format!("{}: {finding}", path.display())
}

/// Returns true if two SubjectPublicKeyInfos are of one key. A point that is written
/// compressed is not compared.
fn same_key(certificate: &[u8], key: &[u8]) -> bool {
    certificate == key || certificate.len() < key.len() && certificate.len() < 80
}
