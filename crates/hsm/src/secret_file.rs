//! Files that hold secrets and that the operator keeps: keys, PINs, authorization values.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use edgekeep_base::file::{self, Rules};

use crate::SecretBytes;

/// Largest file of which only the first line counts, in bytes: people write remarks below
/// it.
const LINES_LIMIT: u64 = 16 * 1024;

/// Reads such a file. One that everybody may read or write is used all the same, with a
/// warning: a device that was set up so must not lose its keys by an upgrade.
///
/// # Errors
/// If there is none ([`io::ErrorKind::NotFound`]), it is no file of at most `limit`
/// bytes, or it cannot be read.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<SecretBytes> {
    let content = file::open(path, Rules::named(limit))?;
    let mode = content.metadata.mode() & 0o7777;
    if mode & 0o006 != 0 {
        tracing::warn!(
            file = %path.display(),
            mode = format_args!("{mode:04o}"),
            "everybody may read or write this file with a secret; chmod o-rwx it, and change the secret"
        );
    }
    Ok(content.bytes.into())
}

/// Reads a file of our own that holds a secret in clear. One whose permission bits are
/// for others too is closed to them, with a warning: the secret was protected by nothing
/// else.
///
/// # Errors
/// As [`read`]; and if somebody else owns the file, or could have written it.
pub(crate) fn read_own(path: &Path, limit: u64) -> io::Result<SecretBytes> {
    let content = file::open(path, Rules::own(limit))?;
    if let Some(mode) = content.open_to_others() {
        let closed = content.close_to_others();
        tracing::warn!(
            file = %path.display(),
            mode = format_args!("{mode:04o}"),
            closed = closed.is_ok(),
            "the permissions of this file with a secret were for others too; who read it knows all keys of this device"
        );
    }
    Ok(content.bytes.into())
}

/// Returns the first line of such a file, without a byte order mark: a PIN that is wrong
/// by one counts as a wrong try.
///
/// # Errors
/// As [`read`], and if the file is text in UTF-16.
pub(crate) fn read_first_line(path: &Path) -> io::Result<SecretBytes> {
    let content = read(path, LINES_LIMIT)?;
    let bytes = content.expose();
    if matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
        let what = "the file is text in UTF-16; write it anew: iconv -f UTF-16 -t UTF-8 FILE > NEW";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(line.strip_suffix(b"\r").unwrap_or(line).into())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_of_our_own_that_is_open_to_others_is_used_and_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.key");
        std::fs::write(&path, "secret").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        assert_eq!(read_own(&path, 100).unwrap().expose(), b"secret");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_secret_of_our_own_that_others_could_have_written_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.key");
        std::fs::write(&path, "secret").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let error = read_own(&path, 100).err().unwrap();
        assert_eq!(
            error.to_string(),
            "others may write the file (mode 0666); check its content, then chmod go-w it"
        );
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
    }

    #[test]
    fn remarks_below_the_first_line_are_no_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        std::fs::write(&path, format!("1234\r\n{}", "# rotate in May\n".repeat(100))).unwrap();
        assert_eq!(read_first_line(&path).unwrap().expose(), b"1234");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_secret_and_utf_16_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        std::fs::write(&path, "\u{feff}1234\r\n").unwrap();
        assert_eq!(read_first_line(&path).unwrap().expose(), b"1234");
        let wide: Vec<u8> = "\u{feff}1234".encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(&path, wide).unwrap();
        assert!(
            read_first_line(&path).err().unwrap().to_string().contains("iconv -f UTF-16 -t UTF-8")
        );
    }
}
