//! The PKCS#11 backend: keys on a token (HSM, smart card, TPM behind PKCS#11), used through the token's own library.
//!
//! Keys that are made here never leave the token. What the token cannot do is answered with
//! [`KeyError::NotSupported`], after it was tried where only trying tells: a symmetric key is kept only if the token works
//! with it to the letter. Derived keys are made by the token and used in this process, as clients of the API get them
//! exported anyway.
//!
//! The library runs in this process. It is loaded once per process and never unloaded. A token may go away and come back:
//! the next operation finds it again. A PIN that a token refused is not tried again in this process.

pub mod doctor;
mod encoding;
mod error;
mod library;
mod objects;
mod pin;
mod token;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use edgekeep_core::id::KeyId;
pub use error::TokenError;
use error::is_unexplained;
use zeroize::{Zeroize as _, Zeroizing};

use self::error::{Connection, Failed, call_error, connection_after, is_missing_capability, is_stale_handle};
use self::library::{Library, lock};
use self::objects::{Details, Found, KeyObject, Mark};
use self::token::{Lent, Token};
use crate::SecretBytes;
use crate::aws_lc::TAG_LEN;
use crate::backend::{
    InputError, KeyBackend, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter, PublicValue, RsaPadding,
    SymmetricKey, Usage,
};
use crate::gcm;
use crate::material::{self, P256};
use crate::uri::{ObjectAttributes, Pkcs11Uri};

/// Sessions that are open at a time unless the settings say otherwise.
pub const DEFAULT_SESSIONS: usize = 8;
/// Keys whose handles are remembered. Looking one up again costs a search on the token.
const REMEMBERED_LIMIT: usize = 128;
/// Tries to make one object.
const MAKE_TRIES: u32 = 4;
/// Length of generated symmetric keys, in bytes.
const GENERATED_LEN: u8 = 32;
/// Public exponent of RSA keys: 65537.
const RSA_EXPONENT: [u8; 3] = [1, 0, 1];
/// IVs that a token has to take to keep an AES key: the API lets callers choose any.
const TRIAL_IV_LENGTHS: [usize; 3] = [1, 12, 60];

/// Which token, and how to use it.
#[derive(Debug, Clone)]
pub struct Pkcs11Settings {
    /// Absolute path of the library, unless the URI has it.
    pub library: Option<PathBuf>,
    /// The token. What it says of objects is not used.
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
    /// Loads the library. The token is looked for with the first operation, so that it may be plugged in later.
    ///
    /// # Errors
    /// If no library is named or it cannot be loaded.
    pub fn open(settings: Pkcs11Settings) -> Result<Self, TokenError> {
        let path = settings.uri.module_path.as_ref().or(settings.library.as_ref()).ok_or(TokenError::NoLibrary)?;
        let library = Library::load(path)?;
        let token = Token::new(library, &settings.uri, settings.sessions);
        Ok(Self { token, preloaded: settings.preloaded, remembered: Mutex::default(), changing: Mutex::new(()) })
    }

    /// Finds the token and logs in, or says why not.
    ///
    /// # Errors
    /// If the token is not there, its PIN is missing or was refused, or its library fails.
    pub fn connect(&self) -> Result<(), KeyError> {
        // Lending a session is finding the token and logging in.
        let done = self.token.run(|_| Ok(()));
        done.map_err(|failed| self.token_failed(failed))
    }

    /// What the token is called in errors and reports.
    #[must_use]
    pub fn token_name(&self) -> &str {
        self.token.name()
    }

    /// What a key is called on the token.
    fn wanted(&self, id: &KeyId) -> ObjectAttributes {
        let by_label = || ObjectAttributes { label: Some(id.as_str().to_owned()), ..ObjectAttributes::default() };
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

    /// All objects of a key. If there is none, makes sure that it is not the login that is missing.
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

    /// Runs an operation with a key. If the key was deleted or replaced behind our back, it is looked up again.
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

    /// Keeps a key that was just made if `trial` finds that the token works with it; else it goes again.
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

    /// Deletes keys, the earliest first: whenever this is cut off, no earlier one has come back. Private halves go first,
    /// because a public half alone is no key.
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

    fn mac(&self, session: &Lent<'_>, id: &KeyId, key: &Key, message: &[u8]) -> Result<[u8; 32], Failed> {
        match key.details {
            Details::Hmac { allowed: true } => {
                hmac(session, key.object.handle, message)?.ok_or(Failed::Key(self.not_supported(Operation::HmacSha256)))
            }
            _ => Err(wrong_use(id, key, KeyKind::Symmetric, "derive,sign").into()),
        }
    }

    /// The key derived from a kept one. It is in this process from here on.
    fn derive(&self, base: &KeyId, data: &[u8], operation: Operation) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        self.with_key(operation, base, |session, key| self.mac(session, base, key, data).map(Zeroizing::new))
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

/// Tries to make an object, again if the token failed at it without a reason. By the standard a call that failed has made
/// nothing (PKCS#11 3.0, section 5.1).
fn make<T>(mut attempt: impl FnMut() -> Result<T, cryptoki::error::Error>) -> Result<T, cryptoki::error::Error> {
    for _ in 1..MAKE_TRIES {
        match attempt() {
            Err(error) if is_unexplained(&error) => {}
            other => return other,
        }
    }
    attempt()
}

impl KeyBackend for Pkcs11Backend {
    fn name(&self) -> &'static str {
        "pkcs11"
    }

    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
        let done = self.token.run(|session| Ok(self.find(session, id)?.latest(self.token.name())?.map(|key| key.kind)));
        done.map_err(|failed| self.token_failed(failed))
    }

    /// A key for HMAC or one for AES; there are none for both on tokens.
    fn create_key(&self, id: &KeyId, usage: Usage) -> Result<(), KeyError> {
        let label = self.label(id)?;
        self.change(Operation::CreateKey, &[id], |session| {
            let found = self.find(session, id)?;
            if let Some(existing) = found.latest(self.token.name())? {
                return Ok(expect_kind(id, existing.kind, KeyKind::Symmetric)?);
            }
            let purpose = Purpose::of(usage).ok_or_else(|| self.not_supported(Operation::CreateKey))?;
            let mut template = purpose.template(&label, &Mark::after(&found.keys)?);
            template.push(Attribute::ValueLen(u64::from(GENERATED_LEN).into()));
            let mechanism = match purpose {
                Purpose::Hmac => Mechanism::GenericSecretKeyGen,
                Purpose::Aes => Mechanism::AesKeyGen,
            };
            let key = make(|| session.generate_key(&mechanism, &template))?;
            let trial = match purpose {
                Purpose::Hmac => hmac(session, key, b"trial").map(|mac| mac.is_some()),
                Purpose::Aes => aes_trial(session, key, None),
            };
            self.keep_if(session, key, Operation::CreateKey, trial)
        })
    }

    fn import_key(&self, id: &KeyId, bytes: SecretBytes, usage: Usage) -> Result<(), KeyError> {
        material::check_symmetric(bytes.expose())?;
        self.refuse_preloaded(id)?;
        let unfit = || self.not_supported(Operation::ImportKey);
        let purpose = Purpose::of(usage).ok_or_else(unfit)?;
        let value = match purpose {
            Purpose::Hmac => hmac_equivalent(bytes.expose()),
            Purpose::Aes if bytes.expose().len() == 32 => Zeroizing::new(bytes.expose().to_vec()),
            Purpose::Aes => return Err(unfit()),
        };
        let label = self.label(id)?;
        self.change(Operation::ImportKey, &[id], |session| {
            let found = self.find(session, id)?;
            if let Some(existing) = found.latest(self.token.name())? {
                expect_kind(id, existing.kind, KeyKind::Symmetric)?;
            }
            let mut template = purpose.template(&label, &Mark::after(&found.keys)?);
            template.push(Attribute::Class(ObjectClass::SECRET_KEY));
            template.push(Attribute::Value(value.to_vec()));
            let made = make(|| session.create_object(&template));
            if let Some(Attribute::Value(value)) = template.last_mut() {
                value.zeroize();
            }
            let key = made?;
            let trial = match purpose {
                Purpose::Hmac => {
                    hmac(session, key, b"trial").map(|mac| mac == Some(material::hmac_sha256(bytes.expose(), b"trial")))
                }
                Purpose::Aes => aes_trial(session, key, Some(bytes.expose())),
            };
            self.keep_if(session, key, Operation::ImportKey, trial)?;
            Self::destroy(session, &found.keys, &found)
        })
    }

    fn create_key_pair(&self, id: &KeyId, preferred: &[PairAlgorithm]) -> Result<(), KeyError> {
        let mut last = InputError::PreferredAlgorithms.into();
        for algorithm in preferred {
            match self.create_pair(id, *algorithm) {
                Err(error @ KeyError::NotSupported { .. }) => last = error,
                done => return done,
            }
        }
        Err(last)
    }

    /// The private half is renamed first, and in the same call made the later one of those under its new id: from then on
    /// it is found there, whether or not what is left (renaming the public half, deleting what it replaces) is ever done.
    fn move_key_pair(&self, from: &KeyId, to: &KeyId) -> Result<(), KeyError> {
        if from == to {
            return Err(InputError::SameId.into());
        }
        self.refuse_preloaded(from)?;
        self.refuse_preloaded(to)?;
        let label = self.label(to)?;
        // The connection may be lost after renaming; the second run then finds nothing under the old id.
        let renamed = Cell::new(false);
        self.change(Operation::MoveKeyPair, &[from, to], |session| {
            let source = self.find(session, from)?;
            let target = self.find(session, to)?;
            let existing = target.latest(self.token.name())?;
            if let Some(existing) = existing {
                expect_kind(to, existing.kind, KeyKind::Pair)?;
            }
            let Some(key) = source.latest(self.token.name())? else {
                if renamed.get()
                    && let Some((_, earlier)) = target.keys.split_last()
                {
                    return Self::destroy(session, earlier, &target);
                }
                return Err(KeyError::NotFound { id: from.clone() }.into());
            };
            expect_kind(from, key.kind, KeyKind::Pair)?;
            let halves = objects::public_halves(session, key, &source.public)?;
            let mut change = vec![Attribute::Label(label.clone())];
            match key.id_after(&target.keys) {
                Some(id) => change.push(Attribute::Id(id)),
                None if existing.is_some() => change.push(Attribute::Id(Mark::after(&target.keys)?.encode())),
                // A key that others made and that replaces nothing keeps its own.
                None => {}
            }
            session.update_attributes(key.handle, &change)?;
            renamed.set(true);
            for half in &halves {
                session.update_attributes(half.handle, &change)?;
            }
            Self::destroy(session, &target.keys, &target)
        })
    }

    fn delete(&self, id: &KeyId, kind: KeyKind) -> Result<(), KeyError> {
        self.refuse_preloaded(id)?;
        self.change(Operation::Delete, &[id], |session| {
            let found = self.find(session, id)?;
            let latest = found.latest(self.token.name())?.ok_or_else(|| KeyError::NotFound { id: id.clone() })?;
            expect_kind(id, latest.kind, kind)?;
            Self::destroy(session, &found.keys, &found)
        })
    }

    fn public_parameter(&self, id: &KeyId, parameter: PublicParameter) -> Result<PublicValue, KeyError> {
        self.with_key(Operation::PublicParameter, id, |_, key| {
            if key.object.kind != KeyKind::Pair {
                return Err(wrong_use(id, key, KeyKind::Pair, "").into());
            }
            match key.details.public_parameter(parameter) {
                Some(value) => Ok(value?),
                None => Err(self.not_supported(Operation::PublicParameter).into()),
            }
        })
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.with_key(Operation::SignEcdsa, id, |session, key| {
            let field_len = match &key.details {
                Details::Ec { field_len, .. } => *field_len,
                _ if key.object.kind == KeyKind::Pair => return Err(self.not_supported(Operation::SignEcdsa).into()),
                _ => return Err(wrong_use(id, key, KeyKind::Pair, "").into()),
            };
            if !matches!(digest.len(), 20 | 28 | 32 | 48 | 64) {
                return Err(InputError::DigestLength { found: digest.len() }.into());
            }
            let digest = material::fit_digest(digest, field_len);
            let raw = session.sign(&Mechanism::Ecdsa, key.object.handle, &digest)?;
            encoding::ecdsa_der(&raw).ok_or_else(|| KeyError::Library { operation: Operation::SignEcdsa }.into())
        })
    }

    fn rsa_private_operation(&self, id: &KeyId, padding: RsaPadding, block: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.with_key(Operation::RsaPrivateOperation, id, |session, key| {
            let modulus = match &key.details {
                Details::Rsa { modulus, .. } => modulus,
                _ if key.object.kind == KeyKind::Pair => {
                    return Err(self.not_supported(Operation::RsaPrivateOperation).into());
                }
                _ => return Err(wrong_use(id, key, KeyKind::Pair, "").into()),
            };
            let limit = modulus.len().saturating_sub(11);
            let (fits, mechanism) = match padding {
                RsaPadding::Pkcs1 => (block.len() <= limit, Mechanism::RsaPkcs),
                RsaPadding::None => {
                    (block.len() == modulus.len() && encoding::is_below(block, modulus), Mechanism::RsaX509)
                }
            };
            if !fits {
                return Err(InputError::RsaBlock { limit }.into());
            }
            let raw = session.sign(&mechanism, key.object.handle, block)?;
            let missing = modulus.len().checked_sub(raw.len());
            let missing = missing.ok_or(KeyError::Library { operation: Operation::RsaPrivateOperation })?;
            Ok([vec![0; missing], raw].concat())
        })
    }

    fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        match key {
            SymmetricKey::Stored(id) => {
                self.with_key(Operation::HmacSha256, id, |session, key| self.mac(session, id, key, message))
            }
            SymmetricKey::Derived { base, data } => {
                let derived = self.derive(base, data, Operation::HmacSha256)?;
                Ok(material::hmac_sha256(&*derived, message))
            }
        }
    }

    fn encrypt(&self, key: SymmetricKey<'_>, iv: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, KeyError> {
        let id = match key {
            SymmetricKey::Stored(id) => id,
            SymmetricKey::Derived { base, data } => {
                return gcm::encrypt(&*self.derive(base, data, Operation::Encrypt)?, iv, aad, plaintext);
            }
        };
        self.with_key(Operation::Encrypt, id, |session, key| {
            let Details::Aes { allowed: true } = key.details else {
                return Err(wrong_use(id, key, KeyKind::Symmetric, "encrypt").into());
            };
            if iv.is_empty() {
                return Err(InputError::EmptyIv.into());
            }
            let sealed = aes_encrypt(session, key.object.handle, iv, aad, plaintext)?;
            if sealed.len() != plaintext.len() + TAG_LEN {
                return Err(KeyError::Library { operation: Operation::Encrypt }.into());
            }
            Ok([&[gcm::TAG_LAST], sealed.as_slice()].concat())
        })
    }

    fn decrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        let id = match key {
            SymmetricKey::Stored(id) => id,
            SymmetricKey::Derived { base, data } => {
                return gcm::decrypt(&*self.derive(base, data, Operation::Decrypt)?, iv, aad, ciphertext);
            }
        };
        self.with_key(Operation::Decrypt, id, |session, key| {
            let Details::Aes { allowed: true } = key.details else {
                return Err(wrong_use(id, key, KeyKind::Symmetric, "encrypt").into());
            };
            if iv.is_empty() {
                return Err(InputError::EmptyIv.into());
            }
            let (sealed, tag) = gcm::split(ciphertext)?;
            let sealed = [sealed, tag.as_slice()].concat();
            match aes_decrypt(session, key.object.handle, iv, aad, &sealed) {
                Ok(plaintext) => Ok(SecretBytes::from(plaintext)),
                // Libraries name this in many ways. What tells is that the token still works.
                Err(error) => match connection_after(&error) {
                    Connection::Lost => Err(error.into()),
                    _ if is_stale_handle(&error) => Err(error.into()),
                    Connection::Unclear if session.generate_random_vec(8).is_err() => Err(error.into()),
                    Connection::Unclear | Connection::Stands => Err(InputError::NotAuthentic.into()),
                },
            }
        })
    }

    fn export_derived(&self, base: &KeyId, derivation_data: &[u8]) -> Result<SecretBytes, KeyError> {
        let derived = self.derive(base, derivation_data, Operation::ExportDerived)?;
        Ok(derived.as_slice().into())
    }
}

/// What a symmetric key on a token is for.
#[derive(Clone, Copy)]
enum Purpose {
    Hmac,
    Aes,
}

impl Purpose {
    /// `None` for both and for neither.
    fn of(usage: Usage) -> Option<Self> {
        match usage {
            Usage { derive_or_sign: true, encrypt: false } => Some(Self::Hmac),
            Usage { derive_or_sign: false, encrypt: true } => Some(Self::Aes),
            _ => None,
        }
    }

    fn template(self, label: &[u8], mark: &Mark) -> Vec<Attribute> {
        let (key_type, uses) = match self {
            Self::Hmac => (KeyType::GENERIC_SECRET, [Attribute::Sign(true), Attribute::Verify(true)]),
            Self::Aes => (KeyType::AES, [Attribute::Encrypt(true), Attribute::Decrypt(true)]),
        };
        let mut template = vec![
            Attribute::KeyType(key_type),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Label(label.to_vec()),
            Attribute::Id(mark.encode()),
        ];
        template.extend(uses);
        template
    }
}

/// How a pair is made, and what its public and private objects are, but for their names.
fn pair_templates(algorithm: PairAlgorithm) -> (Mechanism<'static>, Vec<Attribute>, Vec<Attribute>) {
    let mut public = vec![Attribute::Token(true), Attribute::Private(false), Attribute::Verify(true)];
    let mut private = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ];
    let bits: u64 = match algorithm {
        PairAlgorithm::EcP256 => {
            public.push(Attribute::EcParams(P256.oid.to_vec()));
            return (Mechanism::EccKeyPairGen, public, private);
        }
        PairAlgorithm::Rsa2048 => 2048,
        PairAlgorithm::Rsa4096 => 4096,
    };
    public.extend([
        Attribute::ModulusBits(bits.into()),
        Attribute::PublicExponent(RSA_EXPONENT.to_vec()),
        Attribute::Encrypt(true),
    ]);
    // Tokens on TPMs do the operation without padding as a decryption.
    private.push(Attribute::Decrypt(true));
    (Mechanism::RsaPkcsKeyPairGen, public, private)
}

/// A key under which HMAC-SHA256 gives the same as under `key`, and which tokens take that want 32 bytes at least. HMAC
/// itself fills keys up with zeros to 64 bytes and hashes longer ones (RFC 2104).
fn hmac_equivalent(key: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut equivalent = Zeroizing::new(Vec::with_capacity(64));
    if key.len() > 64 {
        equivalent.extend_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key).as_ref());
    } else {
        equivalent.extend_from_slice(key);
        equivalent.resize(key.len().max(32), 0);
    }
    equivalent
}

fn hmac(session: &Lent<'_>, key: ObjectHandle, message: &[u8]) -> Result<Option<[u8; 32]>, Failed> {
    let mac = Zeroizing::new(session.sign(&Mechanism::Sha256Hmac, key, message)?);
    Ok(<[u8; 32]>::try_from(mac.as_slice()).ok())
}

fn aes_encrypt(
    session: &Lent<'_>,
    key: ObjectHandle,
    iv: &[u8],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, cryptoki::error::Error> {
    let mut iv = iv.to_vec();
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, aad, (8 * TAG_LEN as u64).into())?);
    session.encrypt(&mechanism, key, plaintext)
}

fn aes_decrypt(
    session: &Lent<'_>,
    key: ObjectHandle,
    iv: &[u8],
    aad: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, cryptoki::error::Error> {
    let mut iv = iv.to_vec();
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, aad, (8 * TAG_LEN as u64).into())?);
    session.decrypt(&mechanism, key, sealed)
}

/// Whether the token encrypts and decrypts with IVs of all lengths, and right where the key is known.
fn aes_trial(session: &Lent<'_>, key: ObjectHandle, known: Option<&[u8]>) -> Result<bool, Failed> {
    for iv_len in TRIAL_IV_LENGTHS {
        let iv = vec![7; iv_len];
        let sealed = aes_encrypt(session, key, &iv, b"aad", b"trial")?;
        let right = match known {
            Some(known) => gcm::encrypt(known, &iv, b"aad", b"trial")?[1..] == sealed,
            None => sealed.len() == b"trial".len() + TAG_LEN,
        };
        if !right || aes_decrypt(session, key, &iv, b"aad", &sealed)? != b"trial" {
            return Ok(false);
        }
    }
    Ok(true)
}

fn expect_kind(id: &KeyId, found: KeyKind, expected: KeyKind) -> Result<(), KeyError> {
    if found == expected { Ok(()) } else { Err(KeyError::WrongKind { id: id.clone(), found, expected }) }
}

/// Why a key is not one for an operation that needs `expected` with the usage `needed`.
fn wrong_use(id: &KeyId, key: &Key, expected: KeyKind, needed: &'static str) -> KeyError {
    match expect_kind(id, key.object.kind, expected) {
        Err(error) => error,
        Ok(()) => KeyError::UsageNotAllowed { id: id.clone(), needed },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_made_fit_for_tokens_gives_the_same_hmac(
            key in prop::collection::vec(any::<u8>(), 1..200), message in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let equivalent = hmac_equivalent(&key);
            prop_assert!((32..=64).contains(&equivalent.len()));
            prop_assert_eq!(material::hmac_sha256(&equivalent, &message), material::hmac_sha256(&key, &message));
        }
    }

    #[test]
    fn a_symmetric_key_on_a_token_is_for_one_thing() {
        assert!(matches!(Purpose::of("sign,derive".parse().unwrap()), Some(Purpose::Hmac)));
        assert!(matches!(Purpose::of("encrypt".parse().unwrap()), Some(Purpose::Aes)));
        assert!(Purpose::of(Usage::ALL).is_none());
    }
}
