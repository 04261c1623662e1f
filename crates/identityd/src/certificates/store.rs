//! Certificates on disk, one PEM file each, beside those that the operator keeps elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use edgekeep_base::file::{self, Rules};
use edgekeep_core::id::CertId;
use edgekeep_core::settings::PreloadedCert;
use edgekeep_daemon::store::{self, StoreError};

/// Largest file that is read.
const FILE_LIMIT: u64 = 1 << 20;
/// Letters and digits of the id that stand in the file name, for people; the hash behind them is what counts.
const READABLE_PART: usize = 64;

/// Why a certificate could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertStoreError {
    /// There is none.
    #[error("certificate \"{id}\" not found")]
    NotFound {
        /// Which.
        id: CertId,
    },
    /// The id belongs to a file of the operator's.
    #[error("certificate \"{id}\" is preloaded: change its file instead")]
    Preloaded {
        /// Which.
        id: CertId,
    },
    /// The file is there and cannot be used.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file could not be replaced or removed.
    #[error("the certificate cannot be stored")]
    Write(#[from] StoreError),
}

/// The file that a preloaded certificate's URI names.
pub(crate) fn preloaded_file(uri: &str) -> PathBuf {
    PathBuf::from(uri.strip_prefix("file://").unwrap_or(uri))
}

/// The certificates of this device.
#[derive(Debug)]
pub(super) struct CertStore {
    folder: PathBuf,
    preloaded: BTreeMap<CertId, PreloadedCert>,
}

impl CertStore {
    /// The store in `folder`, which is made if absent.
    pub(super) fn open(folder: PathBuf, preloaded: BTreeMap<CertId, PreloadedCert>) -> Result<Self, StoreError> {
        store::private_folder(&folder)?;
        store::sweep_temporary(&folder);
        Ok(Self { folder, preloaded })
    }

    /// A certificate's PEM chain; a list's members one after the other.
    pub(super) fn read(&self, id: &CertId) -> Result<String, CertStoreError> {
        let Some(PreloadedCert::List(members)) = self.preloaded.get(id) else { return self.read_one(id) };
        let mut bundle = String::new();
        for member in members {
            match self.read_one(member) {
                Ok(pem) => {
                    bundle.push_str(&pem);
                    if !bundle.ends_with('\n') {
                        bundle.push('\n');
                    }
                }
                // A member may come later: the CA is issued after the first start.
                Err(CertStoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if bundle.is_empty() { Err(CertStoreError::NotFound { id: id.clone() }) } else { Ok(bundle) }
    }

    fn read_one(&self, id: &CertId) -> Result<String, CertStoreError> {
        let (path, rules) = match self.preloaded.get(id) {
            None => (self.path(id), Rules::own(FILE_LIMIT)),
            Some(PreloadedCert::File(uri)) => (preloaded_file(uri), Rules::named(FILE_LIMIT)),
            // Lists do not nest.
            Some(PreloadedCert::List(_)) => return Err(CertStoreError::NotFound { id: id.clone() }),
        };
        match file::read_text(&path, rules) {
            Ok(pem) => Ok(pem),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CertStoreError::NotFound { id: id.clone() }),
            Err(source) => Err(CertStoreError::Read { path, source }),
        }
    }

    /// Stores a chain. With `durable` it survives a power cut from the moment this returns.
    pub(super) fn write(&self, id: &CertId, pem: &str, durable: bool) -> Result<(), CertStoreError> {
        self.refuse_preloaded(id)?;
        let write = if durable { store::write_atomic } else { store::write_replaceable };
        write(&self.path(id), pem.as_bytes(), 0o600)?;
        Ok(())
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
        if self.preloaded.contains_key(id) { Err(CertStoreError::Preloaded { id: id.clone() }) } else { Ok(()) }
    }

    fn path(&self, id: &CertId) -> PathBuf {
        let readable: String = id.as_str().chars().filter(char::is_ascii_alphanumeric).take(READABLE_PART).collect();
        let digest = store::sha256(id.as_str().as_bytes());
        self.folder.join(format!("{readable}-{}.cer", digest.hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> CertId {
        text.parse().unwrap()
    }

    #[test]
    fn ids_that_look_alike_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let store = CertStore::open(folder.path().join("certs"), BTreeMap::new()).unwrap();
        let ids = ["a/b", "a.b", "ab", "../../ab", &"a".repeat(500)].map(id);
        for it in &ids {
            store.write(it, it.as_str(), false).unwrap();
        }
        for it in &ids {
            assert_eq!(store.read(it).unwrap(), it.as_str());
        }
        assert_eq!(std::fs::read_dir(folder.path().join("certs")).unwrap().count(), ids.len());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing outside the folder");
    }

    #[test]
    fn a_list_is_its_members_in_order_without_those_that_are_missing() {
        let folder = tempfile::tempdir().unwrap();
        let user = folder.path().join("user.pem");
        std::fs::write(&user, "user").unwrap();
        let preloaded = BTreeMap::from([
            (id("bundle"), PreloadedCert::List(vec![id("ca"), id("missing"), id("user")])),
            (id("user"), PreloadedCert::File(format!("file://{}", user.display()))),
            (id("empty"), PreloadedCert::List(vec![id("missing")])),
        ]);
        let store = CertStore::open(folder.path().join("certs"), preloaded).unwrap();
        assert_eq!(store.read(&id("bundle")).unwrap(), "user\n");
        store.write(&id("ca"), "ca", true).unwrap();
        assert_eq!(store.read(&id("bundle")).unwrap(), "ca\nuser\n");
        assert!(matches!(store.read(&id("empty")), Err(CertStoreError::NotFound { .. })));
    }

    #[test]
    fn what_the_operator_keeps_elsewhere_is_not_written_through_the_api() {
        let folder = tempfile::tempdir().unwrap();
        let preloaded = BTreeMap::from([(id("user"), PreloadedCert::File("file:///nowhere".to_owned()))]);
        let store = CertStore::open(folder.path().join("certs"), preloaded).unwrap();
        assert!(matches!(store.write(&id("user"), "x", true), Err(CertStoreError::Preloaded { .. })));
        assert!(matches!(store.remove(&id("user")), Err(CertStoreError::Preloaded { .. })));
    }
}
