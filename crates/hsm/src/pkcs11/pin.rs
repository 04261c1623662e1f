//! Reading of the user PIN.

use std::io;
use std::path::{Path, PathBuf};

use cryptoki::types::RawAuthPin;

use super::error::TokenError;
use crate::uri::PinSource;
use crate::{SecretBytes, secret_file};

/// Longest PIN that is read from a file, in bytes.
const PIN_LIMIT: usize = 1024;
/// The environment variable in which systemd names the folder of a unit's credentials.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The file that a PIN is in, if it is in one.
pub(super) fn path(source: &PinSource) -> Option<PathBuf> {
    match source {
        PinSource::Value(_) => None,
        PinSource::File(path) => Some(path.clone()),
        // Without the variable there are no credentials; the name then tells what is
        // missing.
        PinSource::Credential(name) => Some(
            std::env::var_os(CREDENTIALS)
                .map_or_else(|| PathBuf::from(format!("${CREDENTIALS}")), PathBuf::from)
                .join(name),
        ),
    }
}

/// Reads the PIN. It is read anew at each login, so that a corrected file is taken
/// without a restart.
pub(super) fn read(source: &PinSource, token: &str) -> Result<SecretBytes, TokenError> {
    match (source, path(source)) {
        (PinSource::Value(pin), _) => Ok(pin.clone()),
        (_, Some(path)) => read_file(&path).map_err(|source| TokenError::PinUnreadable {
            token: token.to_owned(),
            path,
            source,
        }),
        (_, None) => Err(TokenError::PinMissing { token: token.to_owned() }),
    }
}

/// The first line of a file.
fn read_file(path: &Path) -> io::Result<SecretBytes> {
    let line = secret_file::read_first_line(path)?;
    if line.expose().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first line is empty"));
    }
    if line.expose().len() > PIN_LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the first line is too long for a PIN",
        ));
    }
    Ok(line)
}

/// The PIN in the form that the binding takes.
pub(super) fn for_login(pin: &SecretBytes) -> RawAuthPin {
    RawAuthPin::new(Box::new(pin.expose().to_vec()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn in_file(content: &[u8]) -> Result<Vec<u8>, TokenError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        read(&PinSource::File(file.path().to_owned()), "edge").map(SecretBytes::into_exposed)
    }

    #[test]
    fn a_pin_is_the_first_line_of_its_file() {
        for content in [&b"1234"[..], b"1234\n", b"1234\r\n", b"1234\n# the pin of the token\n"] {
            assert_eq!(in_file(content).unwrap(), b"1234");
        }
        assert_eq!(in_file(b" 12 34 \n").unwrap(), b" 12 34 ");
        for content in [&b""[..], b"\n1234", &[b'1'; 2000]] {
            assert!(matches!(in_file(content), Err(TokenError::PinUnreadable { .. })));
        }
    }

    #[test]
    fn a_missing_pin_file_is_named() {
        let error = read(&PinSource::File("/nowhere/pin".into()), "edge").err().unwrap();
        assert!(error.to_string().contains("/nowhere/pin"), "{error}");
        let error = read(&PinSource::Credential("token-pin".into()), "edge").err().unwrap();
        assert!(error.to_string().contains("$CREDENTIALS_DIRECTORY/token-pin"), "{error}");
    }
}
