//! Secrets encrypted to somebody's public key, in formats that other tools open: age for
//! `age1...` recipients (`age -d -i FILE`), CMS for PEM public keys
//! (`openssl cms -decrypt -inform DER -inkey FILE`).

mod age;
mod bech32;
mod cms;
mod der;

use std::str::FromStr;

use zeroize::Zeroizing;

use crate::SecretBytes;
use crate::material::pem_section;

/// Largest secret that is encrypted or decrypted, in bytes.
const SIZE_LIMIT: usize = 64 * 1024 * 1024;

/// Whom something is encrypted to.
#[derive(Debug, Clone)]
pub struct Recipient(To);

#[derive(Debug, Clone)]
enum To {
    Age(age::PublicKey),
    Cms(cms::PublicKey),
}

/// Private keys of the one who decrypts.
pub struct Identity(From);

enum From {
    Age(Vec<age::PrivateKey>),
    Cms(cms::PrivateKey),
}

/// The reason why an encryption or decryption failed. The message never repeats a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// No public key that can be used.
    #[error(
        "not a recipient: expected age1..., or a PEM public key (BEGIN PUBLIC KEY), RSA of 2048 to 8192 bits or EC P-256"
    )]
    Recipient,
    /// No private key that can be used.
    #[error(
        "not an identity: expected a file with AGE-SECRET-KEY-1..., or a PEM private key (BEGIN PRIVATE KEY), RSA of \
         2048 to 8192 bits or EC P-256"
    )]
    Identity,
    /// The other kind of identity is needed.
    #[error("this file is encrypted in the {found} format, which needs {needed} as identity")]
    OtherKind {
        /// Format of the file.
        found: &'static str,
        /// Kind of identity that opens the file.
        needed: &'static str,
    },
    /// The file is encrypted for another identity.
    #[error("the file is not encrypted to this identity")]
    NotForThis,
    /// The file is in neither format, or cut off, or changed.
    #[error("the file is damaged, or not in the age or CMS format")]
    Damaged,
    /// The file is larger than anything that is written here.
    #[error("larger than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// The library failed.
    #[error("the cryptographic library failed")]
    Library,
}

impl FromStr for Recipient {
    type Err = EnvelopeError;

    fn from_str(text: &str) -> Result<Self, EnvelopeError> {
        let text = text.trim();
        if text.starts_with("age1") {
            return age::PublicKey::parse(text).map(|key| Self(To::Age(key)));
        }
        let der = pem_section(text.as_bytes(), "PUBLIC KEY").ok_or(EnvelopeError::Recipient)?;
        cms::PublicKey::from_spki(&der).map(|key| Self(To::Cms(key)))
    }
}

impl Recipient {
    /// Encrypts to this recipient.
    ///
    /// # Errors
    /// If it is too large, or the library fails.
    pub fn encrypt(&self, secret: &SecretBytes) -> Result<Vec<u8>, EnvelopeError> {
        if secret.expose().len() > SIZE_LIMIT {
            return Err(EnvelopeError::TooLarge);
        }
        match &self.0 {
            To::Age(key) => age::encrypt(key, secret.expose()),
            To::Cms(key) => cms::encrypt(key, secret.expose()),
        }
    }
}

impl Identity {
    /// Reads an identity file.
    ///
    /// # Errors
    /// If there is no private key in it that can be used.
    pub fn from_file_content(content: &SecretBytes) -> Result<Self, EnvelopeError> {
        if let Some(der) = pem_section(content.expose(), "PRIVATE KEY") {
            return cms::PrivateKey::from_pkcs8(&der).map(|key| Self(From::Cms(key)));
        }
        let text = std::str::from_utf8(content.expose()).map_err(|_| EnvelopeError::Identity)?;
        let lines =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(age::PrivateKey::parse).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(EnvelopeError::Identity) } else { Ok(Self(From::Age(keys))) }
    }

    /// Decrypts what was encrypted to this identity.
    ///
    /// # Errors
    /// If it is for somebody else, or is not what was written.
    pub fn decrypt(&self, sealed: &[u8]) -> Result<SecretBytes, EnvelopeError> {
        if sealed.len() > SIZE_LIMIT * 2 {
            return Err(EnvelopeError::TooLarge);
        }
        match (&self.0, sealed.starts_with(age::MAGIC)) {
            (From::Age(keys), true) => age::decrypt(keys, sealed),
            (From::Cms(key), false) => {
                let der =
                    pem_section(sealed, "CMS").unwrap_or_else(|| Zeroizing::new(sealed.to_vec()));
                cms::decrypt(key, &der)
            }
            (From::Cms(_), true) => Err(EnvelopeError::OtherKind {
                found: "age",
                needed: "a file with AGE-SECRET-KEY-1...",
            }),
            (From::Age(_), false) if sealed.first() == Some(&der::SEQUENCE) => {
                Err(EnvelopeError::OtherKind { found: "CMS", needed: "a PEM private key" })
            }
            (From::Age(_), false) => Err(EnvelopeError::Damaged),
        }
    }
}

#[cfg(test)]
mod tests;
