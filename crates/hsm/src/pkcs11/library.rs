//! PKCS#11 libraries, each loaded once for the life of the process.
//!
//! Such a library runs in our process with all of our rights, keeps one login per token
//! for everybody in the process, and cannot be loaded twice. What is true of it is
//! therefore kept here, for all backends that use it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use edgekeep_base::lock::{lock, read, write};

use aws_lc_rs::digest::{SHA256, digest};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};

use super::error::{TokenError, call_error, code};

/// PINs that were refused, by token. More than this many in one process are not a mistake
/// any more.
const REFUSED_LIMIT: usize = 64;

/// Shortest time between two initializations that disturb others.
const PAUSE_BESIDE_OTHERS: Duration = Duration::from_secs(10);

static LOADED: Mutex<BTreeMap<PathBuf, Arc<Library>>> = Mutex::new(BTreeMap::new());

/// A loaded and initialized library.
pub(super) struct Library {
    path: PathBuf,
    /// Read while functions of the library are called. Written while it is initialized
    /// anew, when nobody may be in it.
    gate: RwLock<Initialized>,
    refused: Mutex<Vec<RefusedPin>>,
}

/// The library between two initializations.
pub(super) struct Initialized {
    pub(super) pkcs11: Pkcs11,
    /// Counts initializations. Handles of an earlier one are nobody's, or somebody
    /// else's.
    pub(super) generation: u64,
    /// Number of connected tokens. All of them have to connect anew after an
    /// initialization.
    pub(super) connected: AtomicUsize,
    since: Instant,
}

/// A PIN that a token refused, told by its digest.
#[derive(PartialEq, Eq)]
struct RefusedPin {
    token: String,
    digest: [u8; 32],
    /// The return value's name.
    code: String,
}

impl Library {
    /// The library at this absolute path, loaded if it is not yet.
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, TokenError> {
        let failed = |reason: String| TokenError::Load { library: path.to_owned(), reason };
        if !path.is_absolute() {
            return Err(failed("give its absolute path".to_owned()));
        }
        let real = fs::canonicalize(path)
            .map_err(|error| failed(format!("{error}; install it or correct the path")))?;
        let mut loaded = lock(&LOADED);
        if let Some(library) = loaded.get(&real) {
            return Ok(Arc::clone(library));
        }
        let pkcs11 = Pkcs11::new(&real).map_err(|error| failed(load_reason(&error)))?;
        initialize(&pkcs11).map_err(|error| failed(call_error(&error, "").to_string()))?;
        let gate = RwLock::new(Initialized {
            pkcs11,
            generation: 0,
            connected: AtomicUsize::new(0),
            since: Instant::now(),
        });
        let library = Arc::new(Self { path: path.to_owned(), gate, refused: Mutex::default() });
        loaded.insert(real, Arc::clone(&library));
        Ok(library)
    }

    /// Returns the path from which the library was loaded.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Enters the library: until the guard is dropped nobody initializes it anew. Not to
    /// be nested.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, Initialized> {
        read(&self.gate)
    }

    /// Initializes the library anew, unless somebody did since `seen`. Many see a token
    /// that was plugged in only then. While other tokens are connected this is done now
    /// and then only: a token that stays away must not keep them from working.
    pub(super) fn initialize_anew(&self, seen: u64) -> Result<(), TokenError> {
        let mut initialized = write(&self.gate);
        let used_by_others = initialized.connected.load(Ordering::Relaxed) > 0;
        if initialized.generation != seen
            || used_by_others && initialized.since.elapsed() < PAUSE_BESIDE_OTHERS
        {
            return Ok(());
        }
        initialized.connected.store(0, Ordering::Relaxed);
        initialized.since = Instant::now();
        // Also if finalizing or initializing fails: sessions are gone then all the more.
        initialized.generation += 1;
        let again = match initialized.pkcs11.clone().finalize() {
            Err(error) if code(&error) != Some(RvError::CryptokiNotInitialized) => Err(error),
            _ => initialize(&initialized.pkcs11),
        };
        again.map_err(|error| call_error(&error, ""))
    }

    /// The name of the return value that this PIN was refused with on this token, if it
    /// was.
    pub(super) fn refusal(&self, token: &str, pin: &[u8]) -> Option<String> {
        let digest = pin_digest(token, pin);
        lock(&self.refused)
            .iter()
            .find(|refused| refused.digest == digest)
            .map(|refused| refused.code.clone())
    }

    /// Remembers that this token refused this PIN.
    pub(super) fn remember_refusal(&self, token: &str, pin: &[u8], code: String) {
        let mut refused = lock(&self.refused);
        let pin = RefusedPin { token: token.to_owned(), digest: pin_digest(token, pin), code };
        if refused.len() < REFUSED_LIMIT && !refused.contains(&pin) {
            refused.push(pin);
        }
    }

    /// Returns true if the memory for refused PINs is full. No PIN is tried any more
    /// then.
    pub(super) fn is_refusal_memory_full(&self) -> bool {
        lock(&self.refused).len() >= REFUSED_LIMIT
    }
}

fn initialize(pkcs11: &Pkcs11) -> Result<(), Error> {
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        // By another user of the library in this process, who wanted the same.
        Err(error) if code(&error) == Some(RvError::CryptokiAlreadyInitialized) => Ok(()),
        done => done,
    }
}

fn load_reason(error: &Error) -> String {
    match error {
        Error::LibraryLoading(reason) => reason.to_string(),
        Error::MissingSymbol(_) => "it is a library, but not a PKCS#11 one".to_owned(),
        other => call_error(other, "").to_string(),
    }
}

fn pin_digest(token: &str, pin: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    let token = digest(&SHA256, token.as_bytes());
    let text = zeroize::Zeroizing::new([token.as_ref(), pin].concat());
    bytes.copy_from_slice(digest(&SHA256, &text).as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(path: &str) -> String {
        match Library::load(Path::new(path)) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{path} was loaded"),
        }
    }

    #[test]
    fn what_cannot_be_loaded_is_named_with_its_reason() {
        assert!(reason("libsofthsm2.so").contains("absolute path"));
        assert!(reason("/nowhere/lib.so").contains("install it or correct the path"));
        let not_one = std::env::current_exe().unwrap();
        assert!(
            reason(not_one.to_str().unwrap()).starts_with("could not load the PKCS#11 library")
        );
    }
}
