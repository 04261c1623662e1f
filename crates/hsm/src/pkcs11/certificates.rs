//! Certificates as objects on a token (`CKO_CERTIFICATE`).
//!
//! A certificate is read and never written: whoever makes the token ready puts it there.
//! Its bytes come as the token has them; whoever asked for them has to judge them.

use cryptoki::object::{Attribute, AttributeInfo, AttributeType, CertificateType, ObjectClass};

use super::Pkcs11Backend;
use super::error::Failed;
use super::token::Lent;
use crate::backend::KeyError;
use crate::uri::{ObjectAttributes, Pkcs11Uri};

/// Longest certificate that is read, in bytes.
const LENGTH: usize = 64 * 1024;
/// More objects than this that match one URI are not counted.
const OBJECTS: usize = 64;

/// The reason why a certificate could not be read from its token. Each message says what
/// to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The token has none that matches.
    #[error(
        "token {token:?} has no certificate {wanted}: write it to the token, or correct the uri (pkcs11-tool --list-objects \
         --type cert shows what there is)"
    )]
    Absent {
        /// The token.
        token: String,
        /// The attributes that were looked for.
        wanted: String,
    },
    /// More than one matches.
    #[error(
        "token {token:?} has {count} certificates {wanted}: add id= or object= to the uri, or delete the others"
    )]
    Several {
        /// The token.
        token: String,
        /// The attributes that were looked for.
        wanted: String,
        /// Number of certificates that match.
        count: usize,
    },
    /// The object has no value, or one that no certificate has.
    #[error(
        "certificate {wanted} on token {token:?} has {length} bytes, and a certificate 1 to {LENGTH}: write it to the token anew"
    )]
    Length {
        /// The token.
        token: String,
        /// The attributes that were looked for.
        wanted: String,
        /// Length of the value in bytes.
        length: usize,
    },
    /// The token could not be asked.
    #[error(transparent)]
    Token(#[from] KeyError),
}

impl CertificateError {
    /// Returns true if the token has answered, so that asking again changes nothing.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        !matches!(self, Self::Token(_))
    }
}

impl Pkcs11Backend {
    /// Reads the value of the one certificate that these attributes name.
    ///
    /// # Errors
    /// If there is none or more than one, or if the token cannot be asked.
    pub fn certificate(&self, wanted: &ObjectAttributes) -> Result<Vec<u8>, CertificateError> {
        let read = self.token.run(|session| read(session, wanted));
        let found = read.map_err(|failed| self.token_failed(failed))?;
        let token = self.token.name().to_owned();
        let named = Pkcs11Uri { object: wanted.clone(), ..Pkcs11Uri::default() };
        let wanted = named.to_string();
        match found {
            Found::Value(value) if (1..=LENGTH).contains(&value.len()) => Ok(value),
            Found::Value(value) => {
                Err(CertificateError::Length { token, wanted, length: value.len() })
            }
            Found::Long(length) => Err(CertificateError::Length { token, wanted, length }),
            Found::Count(0) => Err(CertificateError::Absent { token, wanted }),
            Found::Count(count) => Err(CertificateError::Several { token, wanted, count }),
        }
    }
}

/// Result of a look at the token.
enum Found {
    /// A number of certificates other than one.
    Count(usize),
    /// A certificate that is not read, since it is too long.
    Long(usize),
    Value(Vec<u8>),
}

fn read(session: &Lent<'_>, wanted: &ObjectAttributes) -> Result<Found, Failed> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::CertificateType(CertificateType::X_509),
    ];
    template.extend(wanted.label.as_ref().map(|it| Attribute::Label(it.as_bytes().to_vec())));
    template.extend(wanted.id.clone().map(Attribute::Id));
    let mut objects = Vec::new();
    for object in session.iter_objects(&template)?.take(OBJECTS) {
        objects.push(object?);
    }
    let [object] = objects[..] else {
        if objects.is_empty() {
            // A private object is not refused to whoever is not logged in, but invisible.
            session.check_login()?;
        }
        return Ok(Found::Count(objects.len()));
    };
    // The length comes from the token, and memory is taken by it.
    for info in session.get_attribute_info(object, &[AttributeType::Value])? {
        if let AttributeInfo::Available(length) = info
            && length > LENGTH
        {
            return Ok(Found::Long(length));
        }
    }
    let mut value = Vec::new();
    for attribute in session.get_attributes(object, &[AttributeType::Value])? {
        if let Attribute::Value(found) = attribute {
            value = found;
        }
    }
    Ok(Found::Value(value))
}
