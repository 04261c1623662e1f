//! From settings to the places in which keys are: tokens, the TPM, files.
//!
//! Which place has what is decided here, before anything is opened. Hardware that is
//! absent stops nothing: its place answers with an error until it is there.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgekeep_base::error::chain;
use edgekeep_core::hardware::{AuthSource, KeyPlace, PassOn, Seal};
use edgekeep_core::id::{CertId, KeyId};
use edgekeep_core::key_use::{Policy, Purpose};
use edgekeep_core::settings::KeydSettings;
use edgekeep_hsm::configured::tpm_options;
use edgekeep_hsm::ordered::{self, Keyring, KeyringError, Place};
use edgekeep_hsm::pkcs11::{Pkcs11Backend, Pkcs11Settings};
use edgekeep_hsm::software::{
    Protection, Sealer, Sealers, SoftwareBackend, StoreError, WrappingKey,
};
use edgekeep_hsm::tpm::{TpmBackend, TpmPreloaded};
use edgekeep_hsm::uri::{KeyUri, ObjectAttributes, PinSource, Pkcs11Uri, TpmKey, UriError};
use edgekeep_hsm::{KeyBackend, KeyError, SecretBytes};
use edgekeep_tpm::{Tcti, TctiError, Tpm};

use crate::confine::Named;
use crate::recovering::Recovering;
use crate::state::StartError;
use crate::token_certificates::TokenCertificates;

/// Folder of the TPM's keys in the state folder.
const TPM_FOLDER: &str = "tpm";
/// Folder in which it is written down what moves from place to place.
const MOVES_FOLDER: &str = "moves";

/// The TPM, which may be absent.
pub(crate) type SharedTpm = Arc<Recovering<TpmBackend>>;

/// The places, opened as far as they can be.
pub(crate) struct Places {
    pub(crate) backend: Arc<dyn KeyBackend>,
    /// Place of the daemon's own keys, and of those that the configuration brought.
    pub(crate) files: Arc<SoftwareBackend>,
    pub(crate) tpm: Option<SharedTpm>,
    pub(crate) certificates: TokenCertificates,
}

/// Settings that are no places for keys.
#[derive(Debug, thiserror::Error)]
pub enum PlacesError {
    /// The URI of a key or certificate is none.
    #[error("{what}: {reason}")]
    PreloadedUri {
        /// The object.
        what: Preloaded,
        /// The fault of the URI.
        reason: UriError,
    },
    /// The URI names no object on the token.
    #[error("{what}: the pkcs11: uri names no {}: add object= or id=", what.kind())]
    NoObject {
        /// The object.
        what: Preloaded,
    },
    /// The URI names no token, and there is no token by default.
    #[error(
        "{what}: the pkcs11: uri names no token: add token=, or set pkcs11_base_slot in [aziot_keys]"
    )]
    NoToken {
        /// The object.
        what: Preloaded,
    },
    /// The certificate is not on a token.
    #[error("preloaded certificate {id:?}: expected a pkcs11: uri")]
    NoTokenUri {
        /// The certificate.
        id: CertId,
    },
    /// There are tokens, and no library.
    #[error(
        "{token}: no library is named: set pkcs11_lib_path in [aziot_keys], or module-path in the uri"
    )]
    NoLibrary {
        /// The token.
        token: String,
    },
    /// A key is in a TPM, and there is none.
    #[error("preloaded key {id:?} is in a TPM, and no TPM is configured: add [tpm]")]
    PreloadedTpm {
        /// The key.
        id: KeyId,
    },
    /// The base slot is no token.
    #[error("pkcs11_base_slot in [aziot_keys]: {reason}")]
    BaseSlot {
        /// The reason, in words.
        reason: String,
    },
    /// A place that is not configured, or twice.
    #[error("places in [aziot_keys]: {place:?} {reason}")]
    Place {
        /// The place.
        place: KeyPlace,
        /// The fault of the place, in words.
        reason: &'static str,
    },
    /// The TPM's address is none.
    #[error("tcti in [tpm]")]
    Tcti(#[from] TctiError),
    /// The store is to be sealed by a TPM that there is not.
    #[error("the key store is to be sealed by the TPM, and no TPM is configured: add [tpm]")]
    NoSealingTpm,
    /// The store is to be protected by a token that there is not.
    #[error(
        "the key store is to be protected by a token, and none is configured: set pkcs11_base_slot in [aziot_keys]"
    )]
    NoSealingToken,
    /// The places make no keyring.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

/// An object of the configuration's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preloaded {
    /// A key.
    Key(KeyId),
    /// A certificate.
    Certificate(CertId),
}

impl Preloaded {
    fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Certificate(_) => "certificate",
        }
    }
}

impl fmt::Display for Preloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => write!(f, "preloaded key {:?}", id.as_str()),
            Self::Certificate(id) => write!(f, "preloaded certificate {:?}", id.as_str()),
        }
    }
}

/// Keys and certificates on one token.
struct Token {
    uri: Pkcs11Uri,
    preloaded: BTreeMap<KeyId, ObjectAttributes>,
    certificates: BTreeMap<CertId, ObjectAttributes>,
}

impl Token {
    fn new(uri: Pkcs11Uri) -> Self {
        Self { uri, preloaded: BTreeMap::new(), certificates: BTreeMap::new() }
    }
}

/// The plan of the places: what the settings say, before anything is opened.
pub(crate) struct Plan {
    /// The base slot, if there is one, then others.
    tokens: Vec<Token>,
    has_base: bool,
    files: BTreeMap<KeyId, PathBuf>,
    in_tpm: BTreeMap<KeyId, TpmKey>,
    /// Places where keys are made.
    open: Vec<KeyPlace>,
    tcti: Option<Tcti>,
}

impl Sealer for Recovering<TpmBackend> {
    fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, KeyError> {
        self.get()?.with_tpm(|tpm| Sealer::seal(tpm, secret))
    }

    fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, KeyError> {
        self.get()?.with_tpm(|tpm| Sealer::unseal(tpm, sealed))
    }
}

impl Plan {
    /// # Errors
    /// If the settings are wrong. That hardware is absent is no error.
    pub(crate) fn new(settings: &KeydSettings) -> Result<Self, PlacesError> {
        let mut plan = Self {
            tokens: Vec::new(),
            has_base: false,
            files: BTreeMap::new(),
            in_tpm: BTreeMap::new(),
            open: Vec::new(),
            tcti: None,
        };
        if let Some(base) = settings.pkcs11.as_ref().and_then(|pkcs11| pkcs11.base_slot.as_ref()) {
            let uri = match base.expose().parse() {
                Ok(KeyUri::Pkcs11(uri)) if uri.token.is_empty() => {
                    return Err(PlacesError::BaseSlot {
                        reason: "the uri names no token: add token= or slot-id=".into(),
                    });
                }
                Ok(KeyUri::Pkcs11(uri)) => *uri,
                Ok(_) => {
                    return Err(PlacesError::BaseSlot { reason: "expected a pkcs11: uri".into() });
                }
                Err(error) => return Err(PlacesError::BaseSlot { reason: error.to_string() }),
            };
            plan.tokens.push(Token::new(uri));
            plan.has_base = true;
        }
        for (id, uri) in &settings.preloaded_keys {
            let uri = uri.expose().parse().map_err(|reason| PlacesError::PreloadedUri {
                what: Preloaded::Key(id.clone()),
                reason,
            })?;
            match uri {
                KeyUri::File(path) => drop(plan.files.insert(id.clone(), path)),
                KeyUri::Pkcs11(uri) => {
                    let object = uri.object.clone();
                    let token = plan.token_of(Preloaded::Key(id.clone()), *uri)?;
                    token.preloaded.insert(id.clone(), object);
                }
                KeyUri::Tpm(_) if settings.tpm.is_none() => {
                    return Err(PlacesError::PreloadedTpm { id: id.clone() });
                }
                KeyUri::Tpm(key) => drop(plan.in_tpm.insert(id.clone(), key)),
            }
        }
        for (id, uri) in &settings.preloaded_certs {
            let what = Preloaded::Certificate(id.clone());
            let uri = match uri.expose().parse() {
                Ok(KeyUri::Pkcs11(uri)) => *uri,
                Ok(_) => return Err(PlacesError::NoTokenUri { id: id.clone() }),
                Err(reason) => return Err(PlacesError::PreloadedUri { what, reason }),
            };
            let object = uri.object.clone();
            plan.token_of(what, uri)?.certificates.insert(id.clone(), object);
        }
        let library = settings.pkcs11.as_ref().and_then(|pkcs11| pkcs11.library.as_ref());
        for token in &mut plan.tokens {
            if token.uri.module_path.is_none() {
                let named = library
                    .cloned()
                    .ok_or_else(|| PlacesError::NoLibrary { token: token.uri.to_string() })?;
                token.uri.module_path = Some(named);
            }
        }
        plan.open.clone_from(&settings.places);
        if plan.open.is_empty() {
            plan.open.extend(plan.has_base.then_some(KeyPlace::Token));
            plan.open.push(KeyPlace::Files);
        }
        for (at, place) in plan.open.iter().enumerate() {
            let reason = match place {
                _ if plan.open[..at].contains(place) => "is there twice",
                KeyPlace::Token if !plan.has_base => "needs pkcs11_base_slot",
                KeyPlace::Tpm if settings.tpm.is_none() => "needs [tpm]",
                _ => continue,
            };
            return Err(PlacesError::Place { place: *place, reason });
        }
        match settings.seal {
            Some(Seal::Tpm) if settings.tpm.is_none() => return Err(PlacesError::NoSealingTpm),
            Some(Seal::Pkcs11) if !plan.has_base => return Err(PlacesError::NoSealingToken),
            _ => {}
        }
        plan.tcti = settings.tpm.as_ref().map(|tpm| tpm.tcti.parse()).transpose()?;
        Ok(plan)
    }

    /// Returns the token that an object is on.
    fn token_of(&mut self, what: Preloaded, uri: Pkcs11Uri) -> Result<&mut Token, PlacesError> {
        if uri.object.label.is_none() && uri.object.id.is_none() {
            return Err(PlacesError::NoObject { what });
        }
        let unnamed = uri.token.is_empty();
        let base = self.has_base.then_some(0);
        let same = |(_, token): &(usize, &Token)| {
            token.uri.token == uri.token
                && (uri.module_path.is_none() || uri.module_path == token.uri.module_path)
        };
        let found = if unnamed {
            base
        } else {
            self.tokens.iter().enumerate().find(same).map(|(at, _)| at)
        };
        let at = match found {
            Some(at) => at,
            None if unnamed => return Err(PlacesError::NoToken { what }),
            None => {
                let uri = Pkcs11Uri { object: ObjectAttributes::default(), ..uri.clone() };
                self.tokens.push(Token::new(uri));
                self.tokens.len() - 1
            }
        };
        let token = &mut self.tokens[at];
        token.uri.pin = token.uri.pin.take().or(uri.pin);
        Ok(token)
    }

    /// The files that opening and using the places takes, besides those in keyd's own
    /// folder.
    pub(crate) fn named(&self, settings: &KeydSettings) -> Named {
        let mut named = Named { tcti: self.tcti.clone(), ..Named::default() };
        named.read.extend(self.files.values().cloned());
        named.read.extend(self.in_tpm.values().filter_map(|key| match key {
            TpmKey::File(path) => Some(path.clone()),
            TpmKey::Handle(_) => None,
        }));
        for token in &self.tokens {
            named.libraries.extend(token.uri.module_path.clone());
            if let Some(PinSource::File(path)) = &token.uri.pin {
                named.read.insert(path.clone());
            }
        }
        let auth = settings.tpm.iter().flat_map(|tpm| [&tpm.owner, &tpm.endorsement]).flatten();
        named.read.extend(auth.filter_map(|source| match source {
            AuthSource::File(path) => Some(path.clone()),
            AuthSource::Value(_) | AuthSource::Credential(_) => None,
        }));
        named
    }

    /// The TPM, not opened yet.
    pub(crate) fn tpm(&self, settings: &KeydSettings, folder: &Path) -> Option<SharedTpm> {
        let tcti = self.tcti.clone()?;
        let settings = settings.tpm.clone()?;
        let folder = folder.join(TPM_FOLDER);
        Some(Arc::new(Recovering::new("tpm", move || {
            let tpm = Tpm::open(tpm_options(&tcti, &settings)?)?;
            Ok(TpmBackend::open(tpm, &folder)?)
        })))
    }

    /// Opens the places. What is absent now is said in the log.
    pub(crate) fn open(
        self,
        settings: &KeydSettings,
        folder: &Path,
        tpm: Option<SharedTpm>,
    ) -> Result<Places, StartError> {
        if settings.seal == Some(Seal::Tpm) {
            // The TPM's folder is made first, and would leave this one open to others.
            make_private(folder).map_err(|source| StoreError::Io {
                action: "make the folder",
                path: folder.to_owned(),
                source,
            })?;
        }
        let files = self.files(settings, folder, tpm.as_ref())?;
        let files = Arc::new(files);
        if let Some(tpm) = &tpm {
            match tpm.get() {
                Ok(_) => tracing::info!("TPM"),
                Err(error) => {
                    tracing::error!(
                        error = chain(&error),
                        "the TPM cannot be used now; each use tries again"
                    );
                }
            }
        }
        self.arrange(settings, folder, files, tpm)
    }

    /// Keys in files, under a store key that hardware may protect.
    fn files(
        &self,
        settings: &KeydSettings,
        folder: &Path,
        tpm: Option<&SharedTpm>,
    ) -> Result<SoftwareBackend, StartError> {
        let wanted = settings.seal.map(|seal| match seal {
            Seal::File => Protection::File,
            Seal::Tpm => Protection::Tpm,
            Seal::Pkcs11 => Protection::Token,
        });
        let token = self.tokens.first().filter(|_| self.has_base).map(|token| {
            let uri = token.uri.clone();
            Recovering::new("pkcs11", move || {
                Ok(Pkcs11Backend::open(Pkcs11Settings::new(uri.clone()))?)
            })
        });
        let token = token.as_ref().map(|token| WrappingKey(token));
        let sealers = Sealers {
            tpm: tpm.map(|tpm| tpm.as_ref() as &dyn Sealer),
            token: token.as_ref().map(|token| token as &dyn Sealer),
        };
        let files = SoftwareBackend::open_protected(folder, self.files.clone(), wanted, sealers)?;
        // What is derived from such a key encrypts, and is lost with it.
        let policy = Policy::new(settings);
        Ok(files.keeping_replaced(move |id| policy.purpose(id) == Some(Purpose::Seal)))
    }

    fn arrange(
        self,
        settings: &KeydSettings,
        folder: &Path,
        files: Arc<SoftwareBackend>,
        tpm: Option<SharedTpm>,
    ) -> Result<Places, StartError> {
        if self.tokens.is_empty() && self.in_tpm.is_empty() && !self.open.contains(&KeyPlace::Tpm) {
            let backend = Arc::clone(&files) as Arc<dyn KeyBackend>;
            let certificates = TokenCertificates::default();
            return Ok(Places { backend, files, tpm, certificates });
        }
        let mut certificates = TokenCertificates::default();
        let mut tokens: Vec<_> = self
            .tokens
            .into_iter()
            .map(|mut token| {
                let on_token = std::mem::take(&mut token.certificates);
                let (preloaded, opened) = (token.preloaded.clone(), backend(token));
                certificates.add(&opened, on_token);
                (preloaded, opened)
            })
            .collect();
        let base = self.has_base.then(|| tokens.remove(0));
        let mut places: Vec<Arc<dyn KeyBackend>> = Vec::new();
        let mut assigned = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        let mut order = self.open.clone();
        // What nothing is made in may have keys that were assigned to it.
        let reserved = [KeyPlace::Token, KeyPlace::Files]
            .into_iter()
            .filter(|place| !self.open.contains(place));
        order.extend(reserved.filter(|place| *place == KeyPlace::Files || base.is_some()));
        for place in &order {
            let backend: Arc<dyn KeyBackend> = match place {
                KeyPlace::Files => Arc::clone(&files) as _,
                KeyPlace::Token => match &base {
                    Some((_, token)) => Arc::clone(token) as _,
                    None => continue,
                },
                KeyPlace::Tpm => match &tpm {
                    Some(tpm) => Arc::clone(tpm) as _,
                    None => continue,
                },
            };
            numbers.insert(*place as u8, places.len());
            places.push(backend);
        }
        let number = |place: KeyPlace| numbers.get(&(place as u8)).copied();
        for (id, place) in &settings.assigned {
            let missing = PlacesError::Place {
                place: *place,
                reason: "has keys assigned to it, and is not configured",
            };
            assigned.insert(id.clone(), number(*place).ok_or(missing)?);
        }
        if let Some(files) = number(KeyPlace::Files) {
            assigned.extend(self.files.into_keys().map(|id| (id, files)));
        }
        if let (Some((preloaded, _)), Some(token)) = (base, number(KeyPlace::Token)) {
            assigned.extend(preloaded.into_keys().map(|id| (id, token)));
        }
        // One that has certificates alone is no place of keys.
        for (preloaded, token) in tokens.into_iter().filter(|(keys, _)| !keys.is_empty()) {
            assigned.extend(preloaded.into_keys().map(|id| (id, places.len())));
            places.push(token as _);
        }
        if let Some(tpm) = tpm.as_ref().filter(|_| !self.in_tpm.is_empty()) {
            assigned.extend(self.in_tpm.keys().map(|id| (id.clone(), places.len())));
            let (tpm, keys) = (Arc::clone(tpm), self.in_tpm);
            let open = move || Ok(TpmPreloaded::new(Arc::clone(tpm.get()?), keys.clone()));
            places.push(Arc::new(Recovering::new("tpm", open)));
        }
        let pass_on = match settings.pass_on {
            PassOn::Nothing => ordered::PassOn::Nothing,
            PassOn::SymmetricKeys => ordered::PassOn::SymmetricKeys,
            PassOn::Everything => ordered::PassOn::Everything,
        };
        let places = places.into_iter().map(|backend| Place { backend, pass_on }).collect();
        let keyring = Keyring::new(places, assigned)
            .map_err(PlacesError::from)?
            .reserve_from(self.open.len());
        let keyring = keyring.with_moves(&folder.join(MOVES_FOLDER))?;
        Ok(Places { backend: Arc::new(keyring), files, tpm, certificates })
    }
}

/// The backend of a token. That it cannot be used now is said in the log.
fn backend(token: Token) -> Arc<Recovering<Pkcs11Backend>> {
    let name = token.uri.to_string();
    let backend = Recovering::new("pkcs11", move || {
        let mut settings = Pkcs11Settings::new(token.uri.clone());
        settings.preloaded.clone_from(&token.preloaded);
        Ok(Pkcs11Backend::open(settings)?)
    });
    match backend.get().and_then(|token| token.connect()) {
        Ok(()) => tracing::info!(token = name, "token"),
        Err(error) => {
            tracing::error!(
                token = name,
                error = chain(&error),
                "the token cannot be used now; each use tries again"
            );
        }
    }
    Arc::new(backend)
}

/// Makes a folder for nobody else, if it is not there.
pub(crate) fn make_private(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_core::hardware::{SecretText, TokenSettings};

    use super::*;

    const PIN: &str = "geheim";

    fn settings(base: Option<&str>, preloaded: &[(&str, &str)]) -> KeydSettings {
        let library = Some(PathBuf::from("/lib/token.so"));
        KeydSettings {
            pkcs11: Some(TokenSettings { library, base_slot: base.map(SecretText::from) }),
            preloaded_keys: preloaded
                .iter()
                .map(|(id, uri)| (id.parse().unwrap(), (*uri).into()))
                .collect(),
            ..KeydSettings::default()
        }
    }

    #[test]
    fn preloaded_keys_are_on_the_base_slot_or_on_a_token_of_their_own() {
        let base = "pkcs11:token=base?pin-value=1";
        let keys = [
            ("a", "pkcs11:object=a"),
            ("b", "pkcs11:token=base;object=b?pin-value=2"),
            ("c", "pkcs11:token=other;object=c?pin-value=3"),
            ("d", "pkcs11:token=other;object=d"),
            ("e", "pkcs11:token=base;object=e?module-path=/lib/another.so"),
            ("f", "file:///etc/f.pem"),
        ];
        let plan = Plan::new(&settings(Some(base), &keys)).unwrap();
        let on: Vec<Vec<&str>> = plan
            .tokens
            .iter()
            .map(|token| token.preloaded.keys().map(KeyId::as_str).collect())
            .collect();
        assert_eq!(on, [vec!["a", "b"], vec!["c", "d"], vec!["e"]]);
        assert_eq!(plan.open, [KeyPlace::Token, KeyPlace::Files]);
        assert_eq!(plan.files.len(), 1);
        assert!(plan.tokens.iter().all(|token| token.uri.object == ObjectAttributes::default()));
    }

    #[test]
    fn certificates_are_on_the_token_of_their_uri_beside_keys_or_alone() {
        let mut settings = settings(
            Some("pkcs11:token=base?pin-value=1"),
            &[("k", "pkcs11:token=other;object=k?pin-value=3")],
        );
        let certs = [
            ("a", "pkcs11:object=a;type=cert"),
            ("b", "pkcs11:token=other;object=b"),
            ("c", "pkcs11:token=third;id=%01?pin-value=4"),
        ];
        settings.preloaded_certs =
            certs.iter().map(|(id, uri)| (id.parse().unwrap(), (*uri).into())).collect();
        let plan = Plan::new(&settings).unwrap();
        let on: Vec<Vec<&str>> = plan
            .tokens
            .iter()
            .map(|token| token.certificates.keys().map(CertId::as_str).collect())
            .collect();
        assert_eq!(on, [["a"], ["b"], ["c"]]);
        assert!(plan.tokens.iter().all(|token| token.uri.pin.is_some()));
        assert_eq!(plan.tokens[2].preloaded, BTreeMap::new());
        for (uri, why) in [
            (
                "pkcs11:token=t?pin-value=geheim",
                "certificate \"c\": the pkcs11: uri names no certificate",
            ),
            ("file:///etc/c.pem", "certificate \"c\": expected a pkcs11: uri"),
            ("pkcs11:objekt=o?pin-value=geheim", "certificate \"c\": the key uri has the unknown"),
        ] {
            settings.preloaded_certs = [("c".parse().unwrap(), uri.into())].into();
            let error = Plan::new(&settings).err().unwrap().to_string();
            assert!(error.contains(why) && !error.contains(PIN), "{error}");
        }
    }

    #[test]
    fn settings_that_make_no_places_are_refused_without_showing_a_pin() {
        let pin = |rest: &str| format!("pkcs11:{rest}?pin-value={PIN}");
        let with_places =
            |places: &[KeyPlace]| KeydSettings { places: places.to_vec(), ..settings(None, &[]) };
        let mut without_library = settings(Some(&pin("token=t")), &[]);
        without_library.pkcs11.as_mut().unwrap().library = None;
        for (settings, why) in [
            (settings(None, &[("k", &pin("token=t"))]), "\"k\": the pkcs11: uri names no key"),
            (settings(None, &[("k", &pin("object=o"))]), "\"k\": the pkcs11: uri names no token"),
            (settings(None, &[("k", &pin("objekt=o"))]), "unknown attribute"),
            (
                settings(None, &[("k", "tpm:handle=0x81000001")]),
                "\"k\" is in a TPM, and no TPM is configured",
            ),
            (
                settings(Some(&pin("")), &[]),
                "pkcs11_base_slot in [aziot_keys]: the uri names no token",
            ),
            (settings(Some("file:///x"), &[]), "expected a pkcs11: uri"),
            (without_library, "no library is named"),
            (with_places(&[KeyPlace::Files, KeyPlace::Files]), "is there twice"),
            (with_places(&[KeyPlace::Token]), "needs pkcs11_base_slot"),
            (with_places(&[KeyPlace::Tpm]), "needs [tpm]"),
        ] {
            let error = Plan::new(&settings).err().unwrap().to_string();
            assert!(error.contains(why) && !error.contains(PIN), "{error}");
        }
    }
}
