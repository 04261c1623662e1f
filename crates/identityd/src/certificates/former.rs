//! Former CAs: what a CA of a trust bundle was before it got another key or name. They
//! stay in the bundle until they end, since certificates that they issued are in use.

use std::io;
use std::path::{Path, PathBuf};

use edgekeep_base::file::{self, Rules};
use edgekeep_core::credentials::{Certificate, Limits, each_once, pem_of, read_certificates};
use edgekeep_daemon::store::{self, StoreError};

use super::span_of;

/// Most former certificates of one CA. A CA that is replaced more often within the life
/// of its certificates has no end of them.
const FORMER: usize = 8;

/// Returns the file beside a certificate's own.
fn beside(certificate: &Path) -> PathBuf {
    certificate.with_extension("former")
}

/// Returns the former certificates beside this file that are not over yet.
pub(super) fn read(certificate: &Path, now: i64) -> Vec<Certificate> {
    let path = beside(certificate);
    let content = match file::read(&path, Rules::own(Limits::FILE.bytes as u64)) {
        Ok(content) => content,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "former CAs are not in the trust bundle");
            }
            return Vec::new();
        }
    };
    let mut former = read_certificates(&content, &Limits::FILE).certificates;
    former.retain(|certificate| span_of(certificate).is_some_and(|span| now < span.end));
    former
}

/// Remembers the chain that is about to be replaced, if what it issued cannot be verified
/// with the new one.
pub(super) fn remember(
    path: &Path,
    old: &[Certificate],
    new: &[Certificate],
    now: i64,
) -> Result<(), StoreError> {
    let (Some(before), Some(after)) = (old.first(), new.first()) else { return Ok(()) };
    let same = before.public_key() == after.public_key() && before.subject() == after.subject();
    if same {
        return Ok(());
    }
    let mut former = each_once([old.to_vec(), read(path, now)]);
    former.retain(|certificate| !new.contains(certificate));
    former.truncate(FORMER);
    store::write_atomic(&beside(path), pem_of(&former).as_bytes(), 0o600)
}
