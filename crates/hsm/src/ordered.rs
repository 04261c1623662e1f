//! Several backends in order: where a key is looked for, and where a new one is made.
//!
//! Existing configurations have two places: the token of `pkcs11_base_slot`, then the
//! files. A key is looked for in each place in turn and the first that has it is used. If
//! a place cannot be asked, the key is not taken from a later one: there may be another
//! key under the same id.

mod moves;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use edgekeep_base::lock::lock;
use edgekeep_core::id::KeyId;

use self::moves::{Move, Moves};
use crate::SecretBytes;
use crate::backend::{
    InputError, KeyBackend, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter,
    PublicValue, RsaPadding, SymmetricKey, Usage,
};
use crate::software::StoreError;

/// Keys of which it is remembered where they are.
const KNOWN_LIMIT: usize = 1024;

/// One of the places.
#[derive(Clone)]
pub struct Place {
    /// The backend that keeps the keys of this place.
    pub backend: Arc<dyn KeyBackend>,
    /// The kinds of key that are made in the next place if this place cannot make them.
    pub pass_on: PassOn,
}

/// The kinds of new key that go to the next place if a place cannot make them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassOn {
    /// None: what this place cannot do is refused.
    Nothing,
    /// Symmetric keys. The existing key service does this.
    SymmetricKeys,
    /// All keys.
    Everything,
}

impl PassOn {
    fn covers(self, kind: KeyKind) -> bool {
        match self {
            Self::Nothing => false,
            Self::SymmetricKeys => kind == KeyKind::Symmetric,
            Self::Everything => true,
        }
    }
}

/// The place in which a key was made or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Number of the place, from 0.
    pub place: usize,
    /// Name of the place's backend.
    pub backend: &'static str,
    /// True if the key existed before.
    pub existed: bool,
    /// Names of the backends that were asked first and could not make the key.
    pub passed_over: Vec<&'static str>,
}

/// Backends in order.
pub struct Keyring {
    places: Vec<Place>,
    /// Keys that are in one place by configuration, and looked for nowhere else.
    assigned: BTreeMap<KeyId, usize>,
    /// Number of places, from the first one on, that hold unassigned keys.
    open: usize,
    known: Mutex<HashMap<KeyId, usize>>,
    moves: Moves,
    /// Held while a pair is moved or a move is completed.
    moving: Mutex<()>,
}

/// The places do not make a keyring.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// There are no places.
    #[error("a keyring needs at least one place for keys")]
    NoPlaces,
    /// A key is assigned to a place that there is not.
    #[error("key {id:?} is assigned to place {place}, and there are {places}")]
    NoSuchPlace {
        /// The key.
        id: KeyId,
        /// The place.
        place: usize,
        /// Number of places.
        places: usize,
    },
}

impl Keyring {
    /// A keyring of these places, the first one first. Keys in `assigned` are in that
    /// place only.
    ///
    /// # Errors
    /// If there is no place, or a key is assigned to one that there is not.
    pub fn new(places: Vec<Place>, assigned: BTreeMap<KeyId, usize>) -> Result<Self, KeyringError> {
        if places.is_empty() {
            return Err(KeyringError::NoPlaces);
        }
        if let Some((id, place)) = assigned.iter().find(|(_, place)| **place >= places.len()) {
            return Err(KeyringError::NoSuchPlace {
                id: id.clone(),
                place: *place,
                places: places.len(),
            });
        }
        let open = places.len();
        let moves = Moves::unwritten();
        Ok(Self {
            places,
            assigned,
            open,
            known: Mutex::default(),
            moves,
            moving: Mutex::default(),
        })
    }

    /// The same keyring, which writes down in `folder` what moves from place to place,
    /// and completes what is there.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn with_moves(mut self, folder: &Path) -> Result<Self, StoreError> {
        self.moves = Moves::open(folder)?;
        Ok(self)
    }

    /// The same keyring, in which the places from number `first` on have assigned keys
    /// and no others.
    #[must_use]
    pub fn reserve_from(mut self, first: usize) -> Self {
        self.open = first;
        self
    }

    /// The backend that has the key; `None` if none has.
    ///
    /// # Errors
    /// If a place that comes first cannot be asked.
    pub fn whereabouts(&self, id: &KeyId) -> Result<Option<&'static str>, KeyError> {
        Ok(self.locate(id)?.map(|place| self.backend(place).name()))
    }

    /// [`KeyBackend::create_key`], and where.
    ///
    /// # Errors
    /// As that; also if a place that comes first cannot be asked.
    pub fn place_key(&self, id: &KeyId, usage: Usage) -> Result<Placement, KeyError> {
        self.place(id, KeyKind::Symmetric, |backend| backend.create_key(id, usage))
    }

    /// [`KeyBackend::import_key`], and where.
    ///
    /// # Errors
    /// As that; also if a place that comes first cannot be asked.
    pub fn place_import(
        &self,
        id: &KeyId,
        bytes: &SecretBytes,
        usage: Usage,
    ) -> Result<Placement, KeyError> {
        self.place(id, KeyKind::Symmetric, |backend| backend.import_key(id, bytes.clone(), usage))
    }

    /// [`KeyBackend::create_key_pair`], and where.
    ///
    /// # Errors
    /// As that; also if a place that comes first cannot be asked.
    pub fn place_key_pair(
        &self,
        id: &KeyId,
        preferred: &[PairAlgorithm],
    ) -> Result<Placement, KeyError> {
        self.place(id, KeyKind::Pair, |backend| backend.create_key_pair(id, preferred))
    }

    fn backend(&self, place: usize) -> &dyn KeyBackend {
        &*self.places[place].backend
    }

    /// Returns the name of a place. The name stays the same as long as the places do.
    fn place_name(&self, place: usize) -> String {
        format!("{place}:{}", self.backend(place).name())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<KeyId, usize>> {
        lock(&self.known)
    }

    fn remember(&self, id: &KeyId, place: usize) {
        let mut known = self.known();
        if known.len() >= KNOWN_LIMIT {
            known.clear();
        }
        known.insert(id.clone(), place);
    }

    fn forget(&self, id: &KeyId) {
        self.known().remove(id);
    }

    /// The places where a key may be.
    fn candidates(&self, id: &KeyId) -> std::ops::Range<usize> {
        match self.assigned.get(id) {
            Some(place) => *place..place + 1,
            None => 0..self.open,
        }
    }

    fn lock_moving(&self) -> MutexGuard<'_, ()> {
        lock(&self.moving)
    }

    /// Completes a move onto `id` that was cut off. If the pair never got there, nothing
    /// has happened.
    fn complete_move(&self, _moving: &MutexGuard<'_, ()>, id: &KeyId) -> Result<(), KeyError> {
        let Some(moved) = self.moves.onto(id) else { return Ok(()) };
        self.forget(id);
        let place = |name: &str| self.candidates(id).find(|place| self.place_name(*place) == name);
        let (Some(source), Some(target)) = (place(&moved.source), place(&moved.target)) else {
            tracing::warn!(key = %id, ?moved, "a move was cut off, and one of its places is not configured any more");
            return Ok(());
        };
        if moves::public_half(self.backend(source), id)? == Some(moved.public) {
            match self.backend(target).delete(id, KeyKind::Pair) {
                Err(KeyError::NotFound { .. }) => {}
                done => done?,
            }
        }
        Ok(self.moves.end(id)?)
    }

    /// The place that has the key, now that no move onto it is under way.
    fn locate(&self, id: &KeyId) -> Result<Option<usize>, KeyError> {
        if self.moves.onto(id).is_some() {
            self.complete_move(&self.lock_moving(), id)?;
        }
        self.search(id)
    }

    /// The place that has the key.
    fn search(&self, id: &KeyId) -> Result<Option<usize>, KeyError> {
        for place in self.candidates(id) {
            if self.backend(place).kind(id)?.is_some() {
                self.remember(id, place);
                return Ok(Some(place));
            }
        }
        self.forget(id);
        Ok(None)
    }

    /// Runs an operation where the key is.
    fn at<T>(
        &self,
        id: &KeyId,
        run: impl Fn(&dyn KeyBackend) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let known = self.known().get(id).copied();
        if let Some(place) = known {
            match run(self.backend(place)) {
                Err(KeyError::NotFound { .. }) => {}
                done => return done,
            }
        }
        match self.locate(id)? {
            Some(place) => run(self.backend(place)),
            None => Err(KeyError::NotFound { id: id.clone() }),
        }
    }

    fn place(
        &self,
        id: &KeyId,
        kind: KeyKind,
        make: impl Fn(&dyn KeyBackend) -> Result<(), KeyError>,
    ) -> Result<Placement, KeyError> {
        if let Some(place) = self.locate(id)? {
            make(self.backend(place))?;
            let backend = self.backend(place).name();
            return Ok(Placement { place, backend, existed: true, passed_over: Vec::new() });
        }
        let mut passed_over = Vec::new();
        let mut candidates = self.candidates(id).peekable();
        while let Some(place) = candidates.next() {
            let backend = self.backend(place).name();
            match make(self.backend(place)) {
                Ok(()) => {
                    self.remember(id, place);
                    if self.places.len() > 1 {
                        tracing::info!(key = %id, place = backend, passed_over = ?passed_over, "made a key");
                    }
                    return Ok(Placement { place, backend, existed: false, passed_over });
                }
                Err(KeyError::NotSupported { .. })
                    if candidates.peek().is_some() && self.places[place].pass_on.covers(kind) =>
                {
                    passed_over.push(backend);
                }
                Err(error) => return Err(error),
            }
        }
        Err(KeyError::NotFound { id: id.clone() })
    }
}

impl KeyBackend for Keyring {
    fn name(&self) -> &'static str {
        "keyring"
    }

    fn keeper(&self, id: &KeyId) -> Option<&'static str> {
        let known = self.known().get(id).copied();
        let only = self.candidates(id);
        known.or((only.len() == 1).then_some(only.start)).map(|place| self.backend(place).name())
    }

    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
        let known = self.known().get(id).copied();
        if let Some(place) = known
            && let Some(kind) = self.backend(place).kind(id)?
        {
            return Ok(Some(kind));
        }
        match self.locate(id)? {
            Some(place) => self.backend(place).kind(id),
            None => Ok(None),
        }
    }

    fn create_key(&self, id: &KeyId, usage: Usage) -> Result<(), KeyError> {
        self.place_key(id, usage).map(drop)
    }

    fn import_key(&self, id: &KeyId, bytes: SecretBytes, usage: Usage) -> Result<(), KeyError> {
        self.place_import(id, &bytes, usage).map(drop)
    }

    fn create_key_pair(&self, id: &KeyId, preferred: &[PairAlgorithm]) -> Result<(), KeyError> {
        self.place_key_pair(id, preferred).map(drop)
    }

    /// The pair stays in its place. One that it replaces in another place is deleted
    /// after that, and the move is written down before ([`Keyring::with_moves`]):
    /// whenever it is cut off, the id has the old or the new pair, and the next look-up
    /// of it completes what was begun.
    fn move_key_pair(&self, from: &KeyId, to: &KeyId) -> Result<(), KeyError> {
        if from == to {
            return Err(InputError::SameId.into());
        }
        let moving = self.lock_moving();
        for id in [from, to] {
            self.complete_move(&moving, id)?;
        }
        let Some(source) = self.search(from)? else {
            return Err(KeyError::NotFound { id: from.clone() });
        };
        if !self.candidates(to).contains(&source) {
            return Err(self.backend(source).not_supported(Operation::MoveKeyPair));
        }
        let Some(target) = self.search(to)?.filter(|target| *target != source) else {
            let moved = self.backend(source).move_key_pair(from, to);
            self.forget(from);
            self.forget(to);
            return moved;
        };
        for (id, place) in [(to, target), (from, source)] {
            match self.backend(place).kind(id)? {
                Some(found @ KeyKind::Symmetric) => {
                    return Err(KeyError::WrongKind {
                        id: id.clone(),
                        found,
                        expected: KeyKind::Pair,
                    });
                }
                Some(KeyKind::Pair) | None => {}
            }
        }
        let public = moves::public_half(self.backend(source), from)?;
        let public = public.ok_or_else(|| KeyError::NotFound { id: from.clone() })?;
        let (source_name, target_name) = (self.place_name(source), self.place_name(target));
        self.moves.begin(&Move {
            to: to.clone(),
            source: source_name,
            target: target_name,
            public,
        })?;
        let moved = self.backend(source).move_key_pair(from, to);
        self.forget(from);
        // Also after a failure: it may have come after the pair was moved.
        let completed = self.complete_move(&moving, to);
        moved.and(completed)
    }

    fn delete(&self, id: &KeyId, kind: KeyKind) -> Result<(), KeyError> {
        let deleted = self.at(id, |backend| backend.delete(id, kind));
        self.forget(id);
        deleted
    }

    fn public_parameter(
        &self,
        id: &KeyId,
        parameter: PublicParameter,
    ) -> Result<PublicValue, KeyError> {
        self.at(id, |backend| backend.public_parameter(id, parameter))
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.at(id, |backend| backend.sign_ecdsa(id, digest))
    }

    fn rsa_private_operation(
        &self,
        id: &KeyId,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.at(id, |backend| backend.rsa_private_operation(id, padding, block))
    }

    fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        self.at(kept(key), |backend| backend.hmac_sha256(key, message))
    }

    fn encrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.at(kept(key), |backend| backend.encrypt(key, iv, aad, plaintext))
    }

    fn decrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.at(kept(key), |backend| backend.decrypt(key, iv, aad, ciphertext))
    }

    fn export_derived(
        &self,
        base: &KeyId,
        derivation_data: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.at(base, |backend| backend.export_derived(base, derivation_data))
    }
}

/// The key of an operation that is kept somewhere.
fn kept(key: SymmetricKey<'_>) -> &KeyId {
    match key {
        SymmetricKey::Stored(id) | SymmetricKey::Derived { base: id, .. } => id,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::software::SoftwareBackend;

    /// A place that can do nothing, or cannot even be asked.
    struct Incapable {
        broken: bool,
    }

    impl KeyBackend for Incapable {
        fn name(&self) -> &'static str {
            "incapable"
        }

        fn kind(&self, _id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
            if self.broken {
                Err(KeyError::Library { operation: Operation::CreateKey })
            } else {
                Ok(None)
            }
        }
    }

    fn id(text: &str) -> KeyId {
        text.parse().unwrap()
    }

    fn software(folder: &Path) -> Arc<dyn KeyBackend> {
        Arc::new(SoftwareBackend::open(folder, BTreeMap::new()).unwrap())
    }

    fn incapable_then(pass_on: PassOn, broken: bool, folder: &Path) -> Keyring {
        let first = Place { backend: Arc::new(Incapable { broken }), pass_on };
        let second = Place { backend: software(folder), pass_on: PassOn::Nothing };
        Keyring::new(vec![first, second], BTreeMap::new()).unwrap()
    }

    #[test]
    fn a_key_goes_to_the_next_place_only_if_the_configuration_says_so() {
        let folder = tempfile::tempdir().unwrap();
        for (pass_on, symmetric, pair) in [
            (PassOn::Nothing, false, false),
            (PassOn::SymmetricKeys, true, false),
            (PassOn::Everything, true, true),
        ] {
            let keyring =
                incapable_then(pass_on, false, &folder.path().join(format!("{pass_on:?}")));
            let placed = keyring.place_key(&id("k"), Usage::ALL);
            assert_eq!(placed.is_ok(), symmetric, "{pass_on:?}");
            if let Ok(placed) = placed {
                assert_eq!((placed.place, placed.backend, placed.existed), (1, "software", false));
                assert_eq!(placed.passed_over, ["incapable"]);
                assert!(keyring.place_key(&id("k"), Usage::ALL).unwrap().existed);
                assert_eq!(keyring.whereabouts(&id("k")).unwrap(), Some("software"));
            }
            let placed = keyring.place_key_pair(&id("p"), &[PairAlgorithm::EcP256]);
            match placed {
                Ok(placed) => assert!(pair && placed.place == 1),
                Err(error) => assert!(
                    !pair && matches!(error, KeyError::NotSupported { backend: "incapable", .. })
                ),
            }
        }
    }

    #[test]
    fn a_place_that_cannot_be_asked_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = incapable_then(PassOn::Everything, false, folder.path());
        keyring.create_key(&id("k"), Usage::ALL).unwrap();
        drop(keyring);
        let keyring = incapable_then(PassOn::Everything, true, folder.path());
        let failed = |result: Result<(), KeyError>| matches!(result, Err(KeyError::Library { .. }));
        assert!(failed(keyring.hmac_sha256(SymmetricKey::Stored(&id("k")), b"").map(drop)));
        assert!(failed(keyring.create_key(&id("other"), Usage::ALL)));
        assert!(failed(keyring.kind(&id("k")).map(drop)));
    }

    #[test]
    fn the_first_place_that_has_a_key_is_used_and_an_assigned_key_is_in_its_place_only() {
        let folder = tempfile::tempdir().unwrap();
        let places: Vec<Place> = ["a", "b"]
            .map(|name| Place {
                backend: software(&folder.path().join(name)),
                pass_on: PassOn::Nothing,
            })
            .to_vec();
        places[0].backend.import_key(&id("k"), vec![1].into(), Usage::ALL).unwrap();
        places[1].backend.import_key(&id("k"), vec![2].into(), Usage::ALL).unwrap();
        let mac = |keyring: &dyn KeyBackend| {
            keyring.hmac_sha256(SymmetricKey::Stored(&id("k")), b"").unwrap()
        };
        let keyring = Keyring::new(places.clone(), BTreeMap::new()).unwrap();
        assert_eq!(mac(&keyring), mac(&*places[0].backend));
        let keyring = Keyring::new(places.clone(), BTreeMap::from([(id("k"), 1)])).unwrap();
        assert_eq!(mac(&keyring), mac(&*places[1].backend));
        assert!(matches!(
            Keyring::new(places, BTreeMap::from([(id("k"), 2)])),
            Err(KeyringError::NoSuchPlace { place: 2, places: 2, .. })
        ));
        assert!(matches!(Keyring::new(Vec::new(), BTreeMap::new()), Err(KeyringError::NoPlaces)));
    }

    #[test]
    fn a_pair_moved_onto_one_in_another_place_replaces_it() {
        let folder = tempfile::tempdir().unwrap();
        for (source, target) in [(0, 1), (1, 0)] {
            let places: Vec<Place> = ["a", "b"]
                .map(|name| Place {
                    backend: software(&folder.path().join(format!("{name}{source}"))),
                    pass_on: PassOn::Nothing,
                })
                .to_vec();
            let point = |backend: &dyn KeyBackend, key: &str| {
                backend.public_parameter(&id(key), PublicParameter::EcPoint).unwrap()
            };
            places[source].backend.create_key_pair(&id("new"), &[PairAlgorithm::EcP256]).unwrap();
            places[target].backend.create_key_pair(&id("ca"), &[PairAlgorithm::EcP256]).unwrap();
            let new = point(&*places[source].backend, "new");
            let keyring = Keyring::new(places.clone(), BTreeMap::new()).unwrap();
            let keyring =
                keyring.with_moves(&folder.path().join(format!("moves{source}"))).unwrap();
            assert_ne!(point(&keyring, "ca"), new);
            keyring.move_key_pair(&id("new"), &id("ca")).unwrap();
            assert_eq!(point(&keyring, "ca"), new);
            assert_eq!(places[target].backend.kind(&id("ca")).unwrap(), None);
            assert_eq!(keyring.kind(&id("new")).unwrap(), None);
        }
    }
}
