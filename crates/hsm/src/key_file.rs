//! Key files that somebody else made, brought into the form that keys are stored in. What
//! a file holds is decided in `edgekeep_core::credentials`; here is what takes the
//! cryptographic library.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{EcdsaKeyPair, RsaKeyPair};
use edgekeep_core::credentials::{KeyFile, KeyForm, Limits, PrivateKey, read_key};
use zeroize::Zeroizing;

use crate::SecretBytes;
use crate::backend::{InputError, KeyFileFault, KeyKind};
use crate::material::{P256, P384, Pair, check_symmetric};

/// Longest key file, in bytes: a key with the chain of its certificate, several times
/// over.
pub const KEY_FILE_LIMIT: usize = 256 * 1024;

/// Bounds on a key file.
const LIMITS: Limits = Limits { bytes: KEY_FILE_LIMIT, ..Limits::FILE };

/// The content of a key file, without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inspected {
    /// A symmetric key, the bytes as they are.
    Symmetric {
        /// True if the bytes look like a text that was to be decoded first.
        is_text: bool,
    },
    /// A key pair; its public half as a SubjectPublicKeyInfo in DER.
    Pair(Vec<u8>),
}

/// Looks at a key file without keeping the key.
///
/// # Errors
/// If keyd could not use it.
pub fn inspect(content: &SecretBytes) -> Result<Inspected, InputError> {
    match read(content.expose())? {
        KeyFile::Symmetric { is_text } => Ok(Inspected::Symmetric { is_text }),
        KeyFile::Private(key) => {
            Ok(Inspected::Pair(Pair::from_pkcs8(&pkcs8(&key)?)?.public_key_info()))
        }
    }
}

/// Reads a key file: a private key of any form becomes PKCS#8, and bytes of no known form
/// are a symmetric key as they are.
pub(crate) fn read_key_file(content: &SecretBytes) -> Result<(KeyKind, SecretBytes), InputError> {
    match read(content.expose())? {
        KeyFile::Symmetric { .. } => Ok((KeyKind::Symmetric, content.clone())),
        KeyFile::Private(key) => {
            let pkcs8 = pkcs8(&key)?;
            Pair::from_pkcs8(&pkcs8)?;
            Ok((KeyKind::Pair, SecretBytes::from(pkcs8.as_slice())))
        }
    }
}

fn read(content: &[u8]) -> Result<KeyFile, InputError> {
    if content.is_empty() {
        return Err(InputError::EmptyKey);
    }
    let file =
        read_key(content, &LIMITS).map_err(|finding| InputError::KeyFile(KeyFileFault(finding)))?;
    if matches!(file, KeyFile::Symmetric { .. }) {
        check_symmetric(content)?;
    }
    Ok(file)
}

fn pkcs8(key: &PrivateKey) -> Result<Zeroizing<Vec<u8>>, InputError> {
    let unusable = InputError::PrivateKey;
    match key.form {
        KeyForm::Pkcs8 => Ok(key.der.clone()),
        KeyForm::Sec1 => {
            let read = |curve| EcdsaKeyPair::from_private_key_der(curve, &key.der).ok();
            let pair =
                [&P256, &P384].iter().find_map(|curve| read(curve.signing)).ok_or(unusable)?;
            let document = pair.to_pkcs8v1().map_err(|_| unusable)?;
            Ok(Zeroizing::new(document.as_ref().to_vec()))
        }
        KeyForm::Pkcs1 => {
            let pair = RsaKeyPair::from_der(&key.der).map_err(|_| unusable)?;
            let document = pair.as_der().map_err(|_| unusable)?;
            Ok(Zeroizing::new(document.as_ref().to_vec()))
        }
    }
}
