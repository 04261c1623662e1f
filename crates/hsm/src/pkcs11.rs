//! The PKCS#11 backend: keys on a token (HSM, smart card, TPM behind PKCS#11), used
//! through the token's own library.
//!
//! Keys that are made here never leave the token. What the token cannot do is answered
//! with [`KeyError::NotSupported`], after it was tried where only trying tells: a
//! symmetric key is kept only if the token works with it to the letter. Derived keys are
//! made by the token and used in this process, as clients of the API get them exported
//! anyway.
//!
//! The library runs in this process. It is loaded once per process and never unloaded. A
//! token may go away and come back: the next operation finds it again. A PIN that a token
//! refused is not tried again in this process.

mod backend;
mod certificates;
pub mod doctor;
mod encoding;
mod error;
mod library;
mod making;
mod objects;
mod pin;
mod token;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

pub use certificates::CertificateError;
use cryptoki::object::{Attribute, ObjectHandle};
use edgekeep_base::lock::lock;
use edgekeep_core::id::KeyId;
pub use error::TokenError;
use zeroize::Zeroizing;

use self::error::{
    Connection, Failed, call_error, connection_after, is_missing_capability, is_stale_handle,
};
use self::library::Library;
use self::making::{hmac, make, pair_templates};
use self::objects::{Details, Found, KeyObject, Mark};
use self::token::{Lent, Token};
use crate::backend::{KeyBackend as _, KeyError, KeyKind, Operation, PairAlgorithm};
use crate::uri::{ObjectAttributes, Pkcs11Uri};

/// Sessions that are open at a time unless the settings say otherwise.
pub const DEFAULT_SESSIONS: usize = 8;
/// Keys whose handles are remembered. Looking one up again costs a search on the token.
const REMEMBERED_LIMIT: usize = 128;

/// A token, and the settings for its use.
#[derive(Debug, Clone)]
pub struct Pkcs11Settings {
    /// Absolute path of the library, unless the URI has it.
    pub library: Option<PathBuf>,
    /// URI of the token. Its object attributes are not used.
    pub uri: Pkcs11Uri,
    /// Most sessions that are open at a time.
    pub sessions: usize,
    /// Keys that are on the token under another name than their id.
    pub preloaded: BTreeMap<KeyId, ObjectAttributes>,
}

impl Pkcs11Settings {
    /// The token of this URI, with its library unless that is named elsewhere.
    #[must_use]
    pub fn new(uri: Pkcs11Uri) -> Self {
        Self { library: None, uri, sessions: DEFAULT_SESSIONS, preloaded: BTreeMap::new() }
    }
}

/// Keys on a token.
pub struct Pkcs11Backend {
    token: Token,
    preloaded: BTreeMap<KeyId, ObjectAttributes>,
    remembered: Mutex<Remembered>,
    /// Held while objects are made, renamed and deleted.
    changing: Mutex<()>,
}

/// Keys that were found, while the connection stands.
#[derive(Default)]
struct Remembered {
    /// The connection that the handles belong to.
    epoch: u64,
    /// Counts changes, so that what was found before one is not remembered after it.
    changes: u64,
    keys: HashMap<KeyId, Arc<Key>>,
}

/// A key on the token, ready for use.
struct Key {
    object: KeyObject,
    details: Details,
}

impl Pkcs11Backend {
    /// Loads the library. The token is looked for with the first operation, so that it
    /// may be plugged in later.
    ///
    /// # Errors
    /// If no library is named or it cannot be loaded.
    pub fn open(settings: Pkcs11Settings) -> Result<Self, TokenError> {
        let path = settings
            .uri
            .module_path
            .as_ref()
            .or(settings.library.as_ref())
            .ok_or(TokenError::NoLibrary)?;
        let library = Library::load(path)?;
        let token = Token::new(library, &settings.uri, settings.sessions);
        Ok(Self {
            token,
            preloaded: settings.preloaded,
            remembered: Mutex::default(),
            changing: Mutex::new(()),
        })
    }

    /// Finds the token and logs in, or says why not.
    ///
    /// # Errors
    /// If the token is not there, its PIN is missing or was refused, or its library
    /// fails.
    pub fn connect(&self) -> Result<(), KeyError> {
        // Lending a session is finding the token and logging in.
        let done = self.token.run(|_| Ok(()));
        done.map_err(|failed| self.token_failed(failed))
    }

    /// Returns the token's name in errors and reports.
    #[must_use]
    pub fn token_name(&self) -> &str {
        self.token.name()
    }

    /// Returns the attributes by which a key is looked up on the token.
    fn wanted(&self, id: &KeyId) -> ObjectAttributes {
        let by_label = || ObjectAttributes {
            label: Some(id.as_str().to_owned()),
            ..ObjectAttributes::default()
        };
        self.preloaded.get(id).cloned().unwrap_or_else(by_label)
    }

    fn refuse_preloaded(&self, id: &KeyId) -> Result<(), KeyError> {
        match self.preloaded.get(id) {
            None => Ok(()),
            Some(object) => {
                let uri = Pkcs11Uri { object: object.clone(), ..Pkcs11Uri::default() };
                Err(KeyError::Preloaded { id: id.clone(), path: uri.to_string().into() })
            }
        }
    }

    /// The label under which a key is made.
    fn label(&self, id: &KeyId) -> Result<Vec<u8>, KeyError> {
        match self.wanted(id).label {
            Some(label) => Ok(label.into_bytes()),
            None => self.refuse_preloaded(id).map(|()| id.as_str().as_bytes().to_vec()),
        }
    }

    fn lock_for_change(&self) -> MutexGuard<'_, ()> {
        lock(&self.changing)
    }

    /// All objects of a key. If there is none, makes sure that it is not the login that
    /// is missing.
    fn find(&self, session: &Lent<'_>, id: &KeyId) -> Result<Found, Failed> {
        let found = objects::find(session, &self.wanted(id))?;
        if found.keys.is_empty() {
            session.check_login()?;
        }
        Ok(found)
    }

    /// The key, ready for use.
    fn load(&self, session: &Lent<'_>, id: &KeyId) -> Result<Option<Arc<Key>>, Failed> {
        let changes = {
            let remembered = lock(&self.remembered);
            if remembered.epoch == session.epoch()
                && let Some(key) = remembered.keys.get(id)
            {
                return Ok(Some(Arc::clone(key)));
            }
            remembered.changes
        };
        let found = self.find(session, id)?;
        let Some(object) = found.latest(self.token.name())?.cloned() else { return Ok(None) };
        let details = Details::read(session, &object, &found, self.token.name())?;
        let key = Arc::new(Key { object, details });
        let mut remembered = lock(&self.remembered);
        if remembered.epoch != session.epoch() || remembered.keys.len() >= REMEMBERED_LIMIT {
            remembered.epoch = session.epoch();
            remembered.keys.clear();
        }
        if remembered.changes == changes {
            remembered.keys.insert(id.clone(), Arc::clone(&key));
        }
        Ok(Some(key))
    }

    fn forget(&self, id: &KeyId) {
        let mut remembered = lock(&self.remembered);
        remembered.changes += 1;
        remembered.keys.remove(id);
    }

    /// Runs an operation with a key. If the key was deleted or replaced behind our back,
    /// it is looked up again.
    fn with_key<T>(
        &self,
        operation: Operation,
        id: &KeyId,
        run: impl Fn(&Lent<'_>, &Key) -> Result<T, Failed>,
    ) -> Result<T, KeyError> {
        let missing = || KeyError::NotFound { id: id.clone() };
        let done = self.token.run(|session| {
            let key = self.load(session, id)?.ok_or_else(missing)?;
            match run(session, &key) {
                Err(Failed::Ck(error)) if is_stale_handle(&error) => {
                    self.forget(id);
                    run(session, &*self.load(session, id)?.ok_or_else(missing)?)
                }
                done => done,
            }
        });
        self.settle(operation, done)
    }

    /// Runs a change. Whatever it ends with, nothing of before is remembered.
    fn change<T>(
        &self,
        operation: Operation,
        ids: &[&KeyId],
        run: impl Fn(&Lent<'_>) -> Result<T, Failed>,
    ) -> Result<T, KeyError> {
        let _changing = self.lock_for_change();
        let done = self.token.run(run);
        for id in ids {
            self.forget(id);
        }
        self.settle(operation, done)
    }

    fn settle<T>(&self, operation: Operation, done: Result<T, Failed>) -> Result<T, KeyError> {
        done.map_err(|failed| match failed {
            Failed::Ck(error) if is_missing_capability(&error) => self.not_supported(operation),
            failed => self.token_failed(failed),
        })
    }

    fn token_failed(&self, failed: Failed) -> KeyError {
        match failed {
            Failed::Ck(error) => call_error(&error, self.token.name()).into(),
            Failed::Key(error) => error,
        }
    }

    /// Keeps a key that was just made if `trial` finds that the token works with it; else
    /// it goes again.
    fn keep_if(
        &self,
        session: &Lent<'_>,
        key: ObjectHandle,
        operation: Operation,
        trial: Result<bool, Failed>,
    ) -> Result<(), Failed> {
        let unfit = || Failed::Key(self.not_supported(operation));
        let why = match trial {
            Ok(true) => return Ok(()),
            Ok(false) => unfit(),
            Err(Failed::Ck(error)) => match connection_after(&error) {
                Connection::Stands => unfit(),
                // Some libraries say no more than this about what they do not have.
                Connection::Unclear if session.generate_random_vec(8).is_ok() => unfit(),
                Connection::Unclear | Connection::Lost => Failed::Ck(error),
            },
            Err(failed) => failed,
        };
        session.destroy_object(key)?;
        Err(why)
    }

    /// Deletes keys, the earliest first: whenever this is cut off, no earlier one has
    /// come back. Private halves go first, because a public half alone is no key.
    fn destroy(session: &Lent<'_>, keys: &[KeyObject], found: &Found) -> Result<(), Failed> {
        let mut halves = Vec::new();
        for key in keys.iter().filter(|key| key.kind == KeyKind::Pair) {
            halves.extend(objects::public_halves(session, key, &found.public)?);
        }
        for object in keys.iter().chain(&halves) {
            match session.destroy_object(object.handle) {
                Err(error) if !is_stale_handle(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn mac(
        &self,
        session: &Lent<'_>,
        id: &KeyId,
        key: &Key,
        message: &[u8],
    ) -> Result<[u8; 32], Failed> {
        match key.details {
            Details::Hmac { allowed: true } => hmac(session, key.object.handle, message)?
                .ok_or(Failed::Key(self.not_supported(Operation::HmacSha256))),
            _ => Err(wrong_use(id, key, KeyKind::Symmetric, "derive,sign").into()),
        }
    }

    /// The key derived from a kept one. It is in this process from here on.
    fn derive(
        &self,
        base: &KeyId,
        data: &[u8],
        operation: Operation,
    ) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        self.with_key(operation, base, |session, key| {
            self.mac(session, base, key, data).map(Zeroizing::new)
        })
    }

    fn create_pair(&self, id: &KeyId, algorithm: PairAlgorithm) -> Result<(), KeyError> {
        let label = self.label(id)?;
        let (mechanism, public, private) = pair_templates(algorithm);
        self.change(Operation::CreateKeyPair, &[id], |session| {
            let found = self.find(session, id)?;
            if let Some(existing) = found.latest(self.token.name())? {
                return Ok(expect_kind(id, existing.kind, KeyKind::Pair)?);
            }
            // What a deletion or a creation that was cut off has left.
            for half in found.public.iter().filter(|half| half.is_marked()) {
                session.destroy_object(half.handle)?;
            }
            let mark = Mark::after(&found.keys)?.encode();
            let named = |template: &[Attribute]| {
                let mut template = template.to_vec();
                template.extend([Attribute::Label(label.clone()), Attribute::Id(mark.clone())]);
                template
            };
            make(|| session.generate_key_pair(&mechanism, &named(&public), &named(&private)))?;
            Ok(())
        })
    }
}

fn expect_kind(id: &KeyId, found: KeyKind, expected: KeyKind) -> Result<(), KeyError> {
    if found == expected {
        Ok(())
    } else {
        Err(KeyError::WrongKind { id: id.clone(), found, expected })
    }
}

/// Returns the error for a key that does not suit an operation. The operation needs a key
/// of kind `expected` with the usage `needed`.
fn wrong_use(id: &KeyId, key: &Key, expected: KeyKind, needed: &'static str) -> KeyError {
    match expect_kind(id, key.object.kind, expected) {
        Err(error) => error,
        Ok(()) => KeyError::UsageNotAllowed { id: id.clone(), needed },
    }
}
