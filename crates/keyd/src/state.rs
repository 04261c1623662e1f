//! From settings to a keyd that can serve.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edgekeep_audit::{Log, MonotonicCounter, SignError, SoftwareSigner};
use edgekeep_base::durable::sync_folder_of;
use edgekeep_base::error::chain;
use edgekeep_base::file::{self, Rules};
use edgekeep_core::grants::is_reserved;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::KeyId;
use edgekeep_core::integrity::{Event, Source, Word};
use edgekeep_core::key_use::Policy;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::names::{self, WellKnown};
use edgekeep_core::settings::KeydSettings;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::clock::BootClock;
use edgekeep_daemon::confinement::Confinement;
use edgekeep_daemon::listen::ListenError;
use edgekeep_daemon::measured::Measured;
use edgekeep_hsm::software::{SoftwareBackend, StoreError};
use edgekeep_hsm::{KeyError, SecretBytes, secret_memory};
use edgekeep_tpm::{AuthValue, NvCounter, TpmError};

use crate::assurance::Assured;
use crate::confine;
use crate::counter::TpmCounter;
use crate::handle::Handles;
use crate::integrity::{Bound, Integrity};
use crate::kept::Kept;
use crate::libraries::Surroundings;
use crate::makers::{KEYS_PER_UID, Makers};
use crate::places::{Places, PlacesError, Plan, make_private};
use crate::record::{self, Recorder};
use crate::routes::tpm::Tpmd;
use crate::turns::Turns;
use crate::{Keyd, slow_threads};

/// Name of the key that proves handles. It is outside the callers' name space, and
/// reserved within it.
const HANDLE_VALIDATION_KEY: WellKnown = names::HANDLE_VALIDATION_KEY;
/// Name of the key that signs the audit log's checkpoints, also outside the callers' name
/// space.
const CHECKPOINT_KEY: WellKnown = names::CHECKPOINT_KEY;
/// Name of the key that lets this keyd, and nobody else, step the audit log's counter in
/// the TPM.
const COUNTER_KEY: WellKnown = names::COUNTER_KEY;
/// Name of the key that lets this keyd, and nobody else, extend the measurements' index
/// in the TPM.
const MEASURE_KEY: WellKnown = names::MEASURE_KEY;
/// Time for which it is shown that a key of keyd's own was made anew.
const REMADE_SHOWN: Duration = Duration::from_secs(86_400);
/// Folder of the audit log in the state folder.
const AUDIT: &str = "audit";
/// Folder of the logs of measurements in the state folder.
const INTEGRITY: &str = "integrity";
/// Entries that a uid may write into the audit log in an hour if the settings say nothing
/// else. With entries of some 250 bytes one uid alone needs a day to push everything out
/// of a log of the usual size.
const ENTRIES_PER_UID_HOUR: u32 = 10_000;
/// Largest file in the import folder, in bytes.
const IMPORT_LIMIT: u64 = 64 * 1024;

/// The reason why keyd cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings are wrong about where keys are.
    #[error("cannot use the settings of where keys are")]
    Places(#[from] PlacesError),
    /// The key store cannot be opened.
    #[error("cannot open the key store")]
    Store(#[from] StoreError),
    /// The key that proves handles cannot be loaded or made.
    #[error("cannot load the handle validation key")]
    HandleKey(#[source] KeyError),
    /// The key that signs the audit log cannot be loaded or made.
    #[error("cannot load the key of the audit log")]
    CheckpointKey(#[source] KeyError),
    /// The key that signs the audit log is unusable.
    #[error("the key of the audit log is unusable")]
    Signer(#[source] Option<SignError>),
    /// The audit log's counter cannot be where the settings say.
    #[error("cannot use the settings of the audit log's counter")]
    Counter(#[source] TpmError),
    /// A socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The record of who made which key cannot be read.
    #[error("cannot read who made which key")]
    Makers(#[source] edgekeep_daemon::store::StoreError),
    /// The record of the keys that there were cannot be read.
    #[error("cannot read which keys there were")]
    Kept(#[source] edgekeep_daemon::store::StoreError),
    /// The settings name no place for measurements.
    #[error("cannot use the settings of where measurements go")]
    Measure(#[source] TpmError),
    /// This process cannot be measured.
    #[error("cannot measure this process")]
    Measured(#[source] io::Error),
    /// The log of measurements cannot be opened.
    #[error("cannot open the log of measurements")]
    Integrity(#[source] edgekeep_daemon::store::StoreError),
    /// The audit log cannot be opened.
    #[error("cannot open the audit log; without it no key is used")]
    Audit(#[from] edgekeep_audit::OpenError),
}

impl StartError {
    /// Returns true if the settings are wrong, so that starting again cannot help.
    #[must_use]
    pub fn is_settings(&self) -> bool {
        matches!(self, Self::Places(_) | Self::Counter(_) | Self::Measure(_))
    }
}

/// Settings that were found to be right, with nothing opened yet.
pub struct Prepared<'a> {
    root: &'a Root,
    settings: &'a KeydSettings,
    plan: Plan,
    /// Read before the sandbox puts it out of reach.
    boot: BootClock,
    /// Taken before the sandbox puts the executable out of reach.
    measured: Measured,
}

impl<'a> Prepared<'a> {
    /// Checks where the settings say that keys are.
    ///
    /// # Errors
    /// If the settings name a key or a place that cannot be.
    pub fn new(root: &'a Root, settings: &'a KeydSettings) -> Result<Self, StartError> {
        let plan = Plan::new(settings)?;
        let measured = Measured::take(settings).map_err(StartError::Measured)?;
        Ok(Self { root, settings, plan, boot: BootClock::read(), measured })
    }

    /// Returns the confinement: what has to stay within reach to open the places and to
    /// serve. Makes the state folder, since what is not there cannot stay within reach.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn confinement(&self) -> Result<Confinement, StartError> {
        let folder = self.root.state_folder(Daemon::Keyd);
        make_private(&folder).map_err(|source| StoreError::Io {
            action: "make the folder",
            path: folder,
            source,
        })?;
        let around = Surroundings {
            variable: &|name| std::env::var_os(name),
            text: &|path| fs::read_to_string(path).ok(),
            exists: &Path::exists,
            real: &|path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
        };
        let is_root = rustix::process::geteuid().is_root();
        Ok(confine::confinement(
            self.root,
            &self.settings.sandbox,
            &self.plan.named(self.settings),
            is_root,
            &around,
        ))
    }

    /// Opens the key store, takes in the keys that wait in the import folder, and readies
    /// the handle validation key.
    ///
    /// # Errors
    /// If the store cannot be opened. A key that cannot be imported is an error in the
    /// log only: the others are still needed.
    pub fn open(self, policy: Policy, board: Board) -> Result<Keyd, StartError> {
        Keyd::open_planned(self, policy, board)
    }
}

impl Keyd {
    /// [`Prepared::new`] and [`Prepared::open`], in a process that keeps all of its
    /// rights. Opens the key store under `root`, takes in the keys that wait in the
    /// import folder, and readies the handle validation key.
    ///
    /// # Errors
    /// If the settings name a key that cannot be, or the store cannot be opened. A key
    /// that cannot be imported is an error in the log only: the others are still needed.
    pub fn open(root: &Root, settings: &KeydSettings, policy: Policy) -> Result<Self, StartError> {
        Prepared::new(root, settings)?.open(policy, Board::new())
    }

    fn open_planned(
        prepared: Prepared<'_>,
        policy: Policy,
        board: Board,
    ) -> Result<Self, StartError> {
        let Prepared { root, settings, plan, boot, measured } = prepared;
        let folder = root.state_folder(Daemon::Keyd);
        let tpm = plan.tpm(settings, &folder);
        let places = plan.open(settings, &folder, tpm)?;
        tracing::info!(memory = ?secret_memory(), "secrets");
        import(&places.files, &root.key_import_folder(), &board);
        for id in settings.preloaded_keys.keys() {
            match places.backend.kind(id) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    board.raise(
                        Code::KeyUnusable,
                        &Subject::key(id.as_str()),
                        "it is not where the settings say",
                    );
                }
                Err(error) => {
                    board.raise(Code::KeyUnusable, &Subject::key(id.as_str()), chain(&error));
                }
            }
        }
        let kept = Kept::open(&folder).map_err(StartError::Kept)?;
        kept.accept_losses(&folder, &*places.backend);
        // Tokens and the TPM may keep who asks them waiting: what is lost there is found
        // when it is wanted.
        if !settings.has_hardware() {
            for lost in kept.lost(&*places.backend) {
                board.raise(Code::KeyLost, &Subject::key(lost.id().as_str()), lost.to_string());
            }
        }
        let own = &places.files;
        remember_own(own, &kept, settings, &board)?;
        let handle_key =
            own.internal_key(&HANDLE_VALIDATION_KEY.key()).map_err(StartError::HandleKey)?;
        // The log's key is made with the log: where it is, the log has to be.
        let expected =
            own.has_internal_key(&CHECKPOINT_KEY.key()).map_err(StartError::CheckpointKey)?;
        let seed = own.internal_key(&CHECKPOINT_KEY.key()).map_err(StartError::CheckpointKey)?;
        let seed: &[u8; 32] = seed.expose().try_into().map_err(|_| StartError::Signer(None))?;
        let signer =
            SoftwareSigner::from_seed(seed).map_err(|error| StartError::Signer(Some(error)))?;
        let counter = counter(settings, &places)?;
        let integrity = integrity(&folder, settings, &places, boot, &board)?;
        record_start(&integrity, measured);
        let options = edgekeep_audit::Options { expected, ..record::options(settings) };
        let log = Log::open(&folder.join(AUDIT), options, Box::new(signer), counter)?;
        tracing::info!(key = %log.key(), entries = log.opened().size, "audit log");
        // Half of the threads for one uid: another one finds one free.
        let turns = Arc::new(Turns::new(slow_threads(settings.has_hardware()) / 2));
        let share = settings.audit_log.entries_per_uid_hour.unwrap_or(ENTRIES_PER_UID_HOUR);
        let recorder =
            Arc::new(Recorder::new(log, Arc::clone(&places.backend), share, board.clone()));
        let makers = Makers::open(&folder, settings.keys_per_uid.unwrap_or(KEYS_PER_UID))
            .map_err(StartError::Makers)?;
        let integrity = Arc::new(integrity);
        let assured = Assured::new(
            Arc::clone(&integrity),
            Arc::clone(&recorder),
            places.tpm.clone(),
            places.files.protection(),
            &policy,
            board.clone(),
        );
        let tpmd = places.tpm.zip(settings.tpm.as_ref()).map(|(tpm, tpm_is)| {
            Arc::new(Tpmd::new(
                tpm,
                tpm_is,
                (Arc::clone(&recorder), Arc::clone(&turns)),
                &policy,
                Arc::clone(&places.backend),
            ))
        });
        Ok(Self {
            board,
            recorder,
            integrity,
            assured,
            counter_index: settings.tpm.as_ref().map(|tpm| tpm.audit_counter.index),
            backend: places.backend,
            certificates: Arc::new(places.certificates),
            turns,
            makers: Arc::new(makers),
            kept: Arc::new(kept),
            tpmd,
            handles: Handles::new(&handle_key),
            boot,
            policy,
        })
    }
}

/// Remembers keyd's own keys, and tells of one that was there and is gone. It is made
/// anew all the same: no caller's key or data depends on it, and without it keyd would
/// serve nobody.
fn remember_own(
    own: &SoftwareBackend,
    kept: &Kept,
    settings: &KeydSettings,
    board: &Board,
) -> Result<(), StartError> {
    let counts = settings.tpm.as_ref().is_some_and(|tpm| tpm.audit_counter.enabled);
    let extends = settings.tpm.as_ref().is_some_and(|tpm| tpm.measure.index.is_some());
    let keys = [
        (
            HANDLE_VALIDATION_KEY,
            true,
            "handles that were given out are void; their holders ask for others",
        ),
        (
            CHECKPOINT_KEY,
            true,
            "the audit log begins anew; what is kept of the old one is set aside",
        ),
        (
            COUNTER_KEY,
            counts,
            "the audit log's counter cannot be stepped; name another index in audit_counter_index",
        ),
        (
            MEASURE_KEY,
            extends,
            "the index of the measurements cannot be extended; remove it, or name another one in measure_index",
        ),
    ];
    for (name, _, means) in keys.into_iter().filter(|(_, used, _)| *used) {
        let id = name.key();
        let there = own.has_internal_key(&id).map_err(StartError::CheckpointKey)?;
        if kept.had_own(&id) && !there {
            let detail = format!("keyd's own key was there and is gone, and is made anew: {means}");
            board.note(Code::OwnKeyRemade, &Subject::key(name.as_str()), detail, REMADE_SHOWN);
        }
    }
    Ok(())
}

/// The audit log's counter, if there is a TPM and it is wanted. Nothing is asked of the
/// TPM here.
fn counter(
    settings: &KeydSettings,
    places: &Places,
) -> Result<Option<Box<dyn MonotonicCounter>>, StartError> {
    let Some((tpm, wanted)) =
        places.tpm.as_ref().zip(settings.tpm.as_ref().map(|tpm| tpm.audit_counter))
    else {
        return Ok(None);
    };
    if !wanted.enabled {
        tracing::warn!(
            "audit_counter is switched off: a loss of the audit log's newest part will not show"
        );
        return Ok(None);
    }
    let auth = places.files.internal_key(&COUNTER_KEY.key()).map_err(StartError::CheckpointKey)?;
    let counter = AuthValue::new(auth.expose()).and_then(|auth| NvCounter::new(wanted.index, auth));
    let counter = counter.map_err(StartError::Counter)?;
    Ok(Some(Box::new(TpmCounter::new(Arc::clone(tpm), counter))))
}

/// The log of measurements, bound to the registers that the settings name. Nothing is
/// asked of the TPM here.
fn integrity(
    folder: &Path,
    settings: &KeydSettings,
    places: &Places,
    boot: BootClock,
    board: &Board,
) -> Result<Integrity, StartError> {
    let into = settings.tpm.as_ref().map(|tpm| tpm.measure);
    let into = into.filter(|into| into.pcr.is_some() || into.index.is_some());
    let bound = match places.tpm.as_ref().zip(into) {
        Some((tpm, into)) => {
            let key = MEASURE_KEY.key();
            let auth = places.files.internal_key(&key).map_err(StartError::CheckpointKey)?;
            let bound = AuthValue::new(auth.expose())
                .and_then(|auth| Bound::new(Arc::clone(tpm), into, auth));
            Some(bound.map_err(StartError::Measure)?)
        }
        None => None,
    };
    let boot_id = Word::cleaned(&boot.now().boot.hex());
    Integrity::open(&folder.join(INTEGRITY), boot_id, bound, board.clone())
        .map_err(StartError::Integrity)
}

/// Records that keyd is about to serve. A log that cannot be written stops no keyd: it is
/// on the board, and shows in every replay.
fn record_start(integrity: &Integrity, measured: Measured) {
    let Measured { executable, settings } = measured;
    let event = Event::DaemonStart {
        daemon: Word::cleaned(Daemon::Keyd.name()),
        executable,
        settings,
        version: Word::cleaned(env!("CARGO_PKG_VERSION")),
        source: Source::Keyd,
    };
    if let Err(error) = integrity.add(event) {
        tracing::error!(error = chain(&error), "cannot record the start");
    }
    tracing::info!(%executable, %settings, bound = integrity.is_bound(), "measured");
}

/// Takes every key in `folder` into the store and removes its file. A crash in between is
/// harmless: the same key is taken in again.
fn import(backend: &SoftwareBackend, folder: &Path, board: &Board) {
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
                let detail =
                    format!("the key cannot be taken in, and the file is kept: {}", chain(&error));
                board.raise(Code::KeyUnusable, &Subject::file(&path), detail);
            }
        }
    }
}

/// The reason why one file was not imported.
#[derive(Debug, thiserror::Error)]
enum ImportError {
    #[error(
        "the file's name is no key id: it is still being written, or was not put there by `config apply`"
    )]
    Name,
    #[error("the key id is reserved")]
    Reserved,
    #[error("cannot read or remove the file")]
    Io(#[from] io::Error),
    #[error("cannot store the key")]
    Key(#[from] KeyError),
}

fn import_file(backend: &SoftwareBackend, path: &Path) -> Result<KeyId, ImportError> {
    let name =
        path.file_name().and_then(|name| name.to_str()).filter(|name| !name.ends_with(".tmp"));
    let id: KeyId = name.and_then(|name| name.parse().ok()).ok_or(ImportError::Name)?;
    if is_reserved(&id) {
        return Err(ImportError::Reserved);
    }
    let content = SecretBytes::from(file::read(path, Rules::own(IMPORT_LIMIT).without_links())?);
    backend.import_file_content(&id, &content)?;
    // Only now that the store has it, and for good: a key in clear must not come back
    // after a power cut.
    fs::remove_file(path)?;
    sync_folder_of(path)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use edgekeep_core::key_use::Reason;
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
        assert_eq!(
            keyd.backend.hmac_sha256(SymmetricKey::Stored(&id("device-id")), b"m").unwrap(),
            mac
        );
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
    fn a_preloaded_key_without_a_place_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let settings = KeydSettings {
            preloaded_keys: BTreeMap::from([(id("device-id"), "pkcs11:token=Key%20pairs".into())]),
            ..KeydSettings::default()
        };
        let error = open(&Root::new(folder.path()), &settings).err().unwrap();
        assert!(error.is_settings());
        assert!(chain(&error).contains("\"device-id\""), "{error}");
    }

    #[test]
    fn grants_come_from_the_settings_and_never_cover_the_handle_validation_key() {
        let principals =
            vec![KeyPrincipal { uid: 7, keys: vec!["*".into()], ..KeyPrincipal::default() }];
        let policy = Policy::new(&KeydSettings { principals, ..KeydSettings::default() });
        assert_eq!(policy.may_name(7, &id("device-id")), Ok(()));
        assert_eq!(policy.may_name(8, &id("device-id")), Err(Reason::NoGrant));
        for uid in [7, 0] {
            assert_eq!(
                policy.may_name(uid, &HANDLE_VALIDATION_KEY.key()),
                Err(Reason::ReservedKey)
            );
        }
    }
}
