//! From settings to a keyd that can serve.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgekeep_audit::{Log, Options, SignError, SoftwareSigner};
use edgekeep_core::grants::RESERVED_KEY_IDS;
use edgekeep_core::id::KeyId;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::KeydSettings;
use edgekeep_hsm::software::{SoftwareBackend, StoreError};
use edgekeep_hsm::{KeyBackend as _, KeyError, SecretBytes};
use percent_encoding::percent_decode_str;

use crate::Keyd;
use crate::handle::Handles;
use crate::policy::Policy;
use crate::record::Recorder;

/// Name of the key that proves handles. It is outside the callers' name space, and reserved within it.
const HANDLE_VALIDATION_KEY: &str = "handle-validation-key";
/// Name of the key that signs the audit log's checkpoints, also outside the callers' name space.
const CHECKPOINT_KEY: &str = "audit-checkpoint-key";
/// Folder of the audit log in the state folder.
const AUDIT: &str = "audit";
/// Largest file in the import folder, in bytes.
const IMPORT_LIMIT: u64 = 64 * 1024;

/// Why keyd cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A preloaded key is not in a file.
    #[error(
        "preloaded key {id:?}: {uri:?} is not a file:///absolute/path URI, and this build has no other kind of key storage"
    )]
    PreloadedUri {
        /// The key.
        id: KeyId,
        /// What the settings say.
        uri: String,
    },
    /// The key store cannot be opened.
    #[error("cannot open the key store")]
    Store(#[from] StoreError),
    /// The key that proves handles cannot be loaded or made.
    #[error("cannot load the handle validation key")]
    HandleKey(#[source] KeyError),
    /// The key that signs the audit log cannot be loaded or made.
    #[error("cannot load the key of the audit log")]
    CheckpointKey(#[source] KeyError),
    /// That key is not one.
    #[error("the key of the audit log is unusable")]
    Signer(#[source] Option<SignError>),
    /// The audit log cannot be opened.
    #[error("cannot open the audit log; without it no key is used")]
    Audit(#[from] edgekeep_audit::OpenError),
}

impl StartError {
    /// Whether it is the settings that are wrong, so that starting again cannot help.
    #[must_use]
    pub fn is_settings(&self) -> bool {
        matches!(self, Self::PreloadedUri { .. })
    }
}

impl Keyd {
    /// Opens the key store under `root`, takes in the keys that wait in the import folder, and readies the handle
    /// validation key.
    ///
    /// # Errors
    /// If the settings name a key that cannot be, or the store cannot be opened. A key that cannot be imported is an error in
    /// the log only: the others are still needed.
    pub fn open(root: &Root, settings: &KeydSettings, policy: Policy) -> Result<Self, StartError> {
        let folder = root.state_folder(Daemon::Keyd);
        let mut preloaded = BTreeMap::new();
        for (id, uri) in &settings.preloaded_keys {
            let path = file_path(uri).ok_or_else(|| StartError::PreloadedUri { id: id.clone(), uri: uri.clone() })?;
            preloaded.insert(id.clone(), path);
        }
        let backend = SoftwareBackend::open(&folder, preloaded)?;
        import(&backend, &root.key_import_folder());
        for id in settings.preloaded_keys.keys() {
            match backend.kind(id) {
                Ok(Some(_)) => {}
                Ok(None) => tracing::warn!(key = id.as_str(), "the file of this preloaded key does not exist"),
                Err(error) => tracing::warn!(key = id.as_str(), error = chain(&error), "preloaded key"),
            }
        }
        let handle_key = backend.internal_key(&internal(HANDLE_VALIDATION_KEY)).map_err(StartError::HandleKey)?;
        let seed = backend.internal_key(&internal(CHECKPOINT_KEY)).map_err(StartError::CheckpointKey)?;
        let seed: &[u8; 32] = seed.expose().try_into().map_err(|_| StartError::Signer(None))?;
        let signer = SoftwareSigner::from_seed(seed).map_err(|error| StartError::Signer(Some(error)))?;
        let log = Log::open(&folder.join(AUDIT), Options::default(), Box::new(signer), None)?;
        tracing::info!(key = %log.key(), entries = log.opened().size, "audit log");
        Ok(Self {
            recorder: Recorder::new(log),
            backend: Arc::new(backend),
            handles: Handles::new(&handle_key),
            policy,
        })
    }
}

fn internal(name: &str) -> KeyId {
    let Ok(id) = name.parse() else { unreachable!("the built-in ids are valid") };
    id
}

/// The path of a `file:` URI on this host.
fn file_path(uri: &str) -> Option<PathBuf> {
    let rest = uri.strip_prefix("file://")?;
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    let path = percent_decode_str(path).decode_utf8().ok()?;
    (path.starts_with('/') && !path.contains('\0')).then(|| PathBuf::from(path.into_owned()))
}

/// Takes every key in `folder` into the store and removes its file. A crash in between is harmless: the same key is taken
/// in again.
fn import(backend: &SoftwareBackend, folder: &Path) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(error) => {
            tracing::error!(folder = %folder.display(), error = chain(&error), "cannot read the folder of keys to import");
            return;
        }
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                tracing::error!(folder = %folder.display(), error = chain(&error), "cannot read the folder of keys to import");
                return;
            }
        };
        match import_file(backend, &path) {
            Ok(id) => tracing::info!(key = id.as_str(), "imported a key"),
            Err(error) => {
                tracing::error!(file = %path.display(), error = chain(&error), "cannot import this key; the file is kept");
            }
        }
    }
}

/// Why one file was not imported.
#[derive(Debug, thiserror::Error)]
enum ImportError {
    #[error("the file's name is no key id: it is still being written, or was not put there by `config apply`")]
    Name,
    #[error("the key id is reserved")]
    Reserved,
    #[error("not a plain file of at most {IMPORT_LIMIT} bytes")]
    NoKeyFile,
    #[error("cannot read or remove the file")]
    Io(#[from] io::Error),
    #[error("cannot store the key")]
    Key(#[from] KeyError),
}

fn import_file(backend: &SoftwareBackend, path: &Path) -> Result<KeyId, ImportError> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.ends_with(".tmp"));
    let id: KeyId = name.and_then(|name| name.parse().ok()).ok_or(ImportError::Name)?;
    if RESERVED_KEY_IDS.contains(&id.as_str()) {
        return Err(ImportError::Reserved);
    }
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() || metadata.len() > IMPORT_LIMIT {
        return Err(ImportError::NoKeyFile);
    }
    let content = SecretBytes::from(fs::read(path)?);
    backend.import_file_content(&id, &content)?;
    // Only now that the store has it, and for good: a key in clear must not come back after a power cut.
    fs::remove_file(path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(id)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use edgekeep_audit::entry::Reason;
    use edgekeep_core::settings::KeyPrincipal;
    use edgekeep_hsm::{KeyKind, SymmetricKey};

    use super::*;

    fn open(root: &Root, settings: &KeydSettings) -> Result<Keyd, StartError> {
        Keyd::open(root, settings, Policy::new(settings))
    }

    fn id(text: &str) -> KeyId {
        text.parse().unwrap()
    }

    #[test]
    fn keys_in_the_import_folder_are_taken_in_and_their_files_removed() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let import = root.key_import_folder();
        fs::create_dir_all(&import).unwrap();
        fs::write(import.join("device-id"), b"secret").unwrap();
        let keyd = open(&root, &KeydSettings::default()).unwrap();
        assert_eq!(fs::read_dir(&import).unwrap().count(), 0);
        let mac = keyd.backend.hmac_sha256(SymmetricKey::Stored(&id("device-id")), b"m").unwrap();
        drop(keyd);
        let keyd = open(&root, &KeydSettings::default()).unwrap();
        assert_eq!(keyd.backend.hmac_sha256(SymmetricKey::Stored(&id("device-id")), b"m").unwrap(), mac);
        assert_eq!(keyd.backend.export_derived(&id("device-id"), b"m").unwrap().expose(), mac);
    }

    #[test]
    fn what_cannot_be_imported_is_kept_and_does_not_stop_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let import = root.key_import_folder();
        fs::create_dir_all(import.join("a-folder")).unwrap();
        for (name, content) in [
            ("empty", &b""[..]),
            ("with space", b"x"),
            ("half-written.tmp", b"x"),
            ("handle-validation-key", b"x"),
            ("bad-pem", b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----"),
            ("good", b"x"),
        ] {
            fs::write(import.join(name), content).unwrap();
        }
        std::os::unix::fs::symlink("/etc/hostname", import.join("a-link")).unwrap();
        let keyd = open(&root, &KeydSettings::default()).unwrap();
        assert_eq!(keyd.backend.kind(&id("good")).unwrap(), Some(KeyKind::Symmetric));
        assert!(!import.join("good").exists());
        for name in ["empty", "handle-validation-key", "bad-pem", "a-link"] {
            assert_eq!(keyd.backend.kind(&id(name)).unwrap(), None, "{name}");
            assert!(import.join(name).symlink_metadata().is_ok(), "{name}");
        }
        assert_eq!(fs::read_dir(&import).unwrap().count(), 7);
    }

    #[test]
    fn a_file_uri_names_an_absolute_path_on_this_host() {
        assert_eq!(file_path("file:///var/k%20y"), Some(PathBuf::from("/var/k y")));
        assert_eq!(file_path("file://localhost/var/key"), Some(PathBuf::from("/var/key")));
        for uri in ["/var/key", "file:var/key", "file://other/key", "pkcs11:token=t?pin-value=1", "file:///a%00b", ""] {
            assert_eq!(file_path(uri), None, "{uri}");
        }
    }

    #[test]
    fn a_preloaded_key_that_is_not_in_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let settings = KeydSettings {
            preloaded_keys: BTreeMap::from([(id("device-id"), "pkcs11:token=Key%20pairs".to_owned())]),
            ..KeydSettings::default()
        };
        let error = open(&Root::new(folder.path()), &settings).err().unwrap();
        assert!(error.is_settings());
        assert!(error.to_string().contains("\"device-id\""), "{error}");
    }

    #[test]
    fn grants_come_from_the_settings_and_never_cover_the_handle_validation_key() {
        let principals = vec![KeyPrincipal { uid: 7, keys: vec!["*".into()], ..KeyPrincipal::default() }];
        let policy = Policy::new(&KeydSettings { principals, ..KeydSettings::default() });
        assert_eq!(policy.may_name(7, &id("device-id")), Ok(()));
        assert_eq!(policy.may_name(8, &id("device-id")), Err(Reason::NoGrant));
        for uid in [7, 0] {
            assert_eq!(policy.may_name(uid, &id(HANDLE_VALIDATION_KEY)), Err(Reason::ReservedKey));
        }
    }
}
