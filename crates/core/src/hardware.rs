//! Settings of what keys are kept in: a token, a TPM, files. Values only; nothing is
//! opened here.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroize as _;

/// Text that is a secret, or may have one in it, as a key URI may have a PIN. Not
/// printed, and wiped when dropped.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

thread_local! {
    /// True while settings are written for their digest.
    static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

/// Has `write` write settings without their secrets: a digest of them may be shown to
/// anybody, and a PIN could be guessed from it. Of the URI of a key only the PIN is left
/// out.
pub fn without_secrets<T>(write: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            LEFT_OUT.set(self.0);
        }
    }
    let _restore = Restore(LEFT_OUT.replace(true));
    write()
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if LEFT_OUT.get() {
            serializer.serialize_str(&self.shown())
        } else {
            serializer.serialize_str(&self.0)
        }
    }
}

impl SecretText {
    /// The text, for whoever needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The place of a key, without a PIN; of everything else nothing.
    fn shown(&self) -> String {
        match self.0.split_once(':') {
            Some(("file", _)) => self.0.clone(),
            Some(("pkcs11", rest)) => {
                let parts = rest.split_inclusive([';', '?', '&']);
                let shown = parts.map(|part| {
                    if part.trim_start().to_ascii_lowercase().starts_with("pin-value") {
                        "pin-value;"
                    } else {
                        part
                    }
                });
                format!("pkcs11:{}", shown.collect::<String>())
            }
            _ => "left out".to_owned(),
        }
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Tokens behind a PKCS#11 library.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenSettings {
    /// Absolute path of the library, for every URI that names none.
    pub library: Option<PathBuf>,
    /// `pkcs11:` URI of the token in which keys are looked for and made.
    pub base_slot: Option<SecretText>,
}

/// The TPM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmSettings {
    /// The address of the TPM: `device:/dev/tpmrm0`, `swtpm:host=HOST,port=PORT`.
    pub tcti: String,
    /// The place of the authentication key, as offset from the first persistent handle:
    /// at most `0x7f_ffff`.
    pub auth_key_index: u32,
    /// Auth value of the endorsement hierarchy; absent: none.
    #[serde(default)]
    pub endorsement: Option<AuthSource>,
    /// Auth value of the owner hierarchy; absent: none.
    #[serde(default)]
    pub owner: Option<AuthSource>,
    /// Open connections one uid may hold on the TPM API's socket.
    #[serde(default)]
    pub connections_per_uid: Option<u32>,
    /// The counter against which the audit log compares itself.
    #[serde(default)]
    pub audit_counter: AuditCounter,
    /// The registers that measurements are extended into.
    #[serde(default)]
    pub measure: MeasureInto,
}

/// The registers of the TPM that measurements are extended into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureInto {
    /// The PCR, of the SHA-256 bank; absent: none.
    pub pcr: Option<u8>,
    /// The NV index, in the owner's range; absent: none.
    pub index: Option<u32>,
}

impl MeasureInto {
    /// The PCR if the configuration names none: one that nobody can reset, that is seldom
    /// sealed to, and that nothing but a boot stub extends.
    pub const PCR: u8 = 13;
    /// The NV index if the configuration names none.
    pub const INDEX: u32 = 0x0180_ed01;
}

impl Default for MeasureInto {
    fn default() -> Self {
        Self { pcr: Some(Self::PCR), index: Some(Self::INDEX) }
    }
}

/// A counter in the TPM that shows the loss of the audit log's newest part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditCounter {
    /// True if the counter is used.
    pub enabled: bool,
    /// Its NV index, in the owner's range.
    pub index: u32,
    /// Shortest time between two steps, in seconds. Each step wears the TPM.
    pub interval_sec: u32,
}

impl AuditCounter {
    /// First and last index of the owner's range.
    pub const RANGE: (u32, u32) = (0x0180_0000, 0x01bf_ffff);
}

impl Default for AuditCounter {
    fn default() -> Self {
        Self { enabled: true, index: 0x0180_ed00, interval_sec: 300 }
    }
}

impl TpmSettings {
    /// Offset of the authentication key unless the configuration says otherwise.
    pub const AUTH_KEY_INDEX: u32 = 0x100;
    /// Largest offset: above it are handles that are not the owner's.
    pub const AUTH_KEY_INDEX_LIMIT: u32 = 0x7f_ffff;
}

impl Default for TpmSettings {
    fn default() -> Self {
        Self {
            tcti: "device".to_owned(),
            auth_key_index: Self::AUTH_KEY_INDEX,
            endorsement: None,
            owner: None,
            connections_per_uid: None,
            audit_counter: AuditCounter::default(),
            measure: MeasureInto::default(),
        }
    }
}

/// A PKCS#11 library of which it is known which files it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownLibrary {
    /// `libsofthsm2.so`.
    SoftHsm,
    /// `libtpm2_pkcs11.so`.
    Tpm2Pkcs11,
    /// `opensc-pkcs11.so`, `onepin-opensc-pkcs11.so`.
    OpenSc,
}

impl KnownLibrary {
    /// By the library's file name.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let begins = |with: &str| name.starts_with(with);
        match () {
            () if begins("libsofthsm") => Some(Self::SoftHsm),
            () if begins("libtpm2_pkcs11") => Some(Self::Tpm2Pkcs11),
            () if begins("opensc-pkcs11") || begins("onepin-opensc") => Some(Self::OpenSc),
            () => None,
        }
    }
}

impl SandboxSettings {
    /// Returns what must be added to `[aziot_keys]` before the library at `path` can be
    /// relied on to work inside keyd's sandbox. `None` if the library's needs are known
    /// or configured.
    #[must_use]
    pub fn missing_for(&self, path: &Path) -> Option<&'static str> {
        (self.enabled && self.paths.is_empty() && KnownLibrary::of(path).is_none()).then_some(
            "name its configuration, data folders and device nodes in [aziot_keys], as in \
             sandbox_paths = [\"/etc/vendor\", \"/var/lib/vendor\"], and add sandbox_network = true if it speaks to a \
             network; if it needs none beside its own folder, sandbox_paths = [\"/dev/null\"]",
        )
    }
}

/// The source of an auth value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthSource {
    /// It is this.
    Value(SecretText),
    /// From the first line of a file, by its absolute path.
    File(PathBuf),
    /// From a systemd credential of this name.
    Credential(String),
}

/// A place for keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPlace {
    /// The token of `base_slot`.
    Token,
    /// The TPM.
    Tpm,
    /// Files, encrypted under the store key.
    Files,
}

/// The new keys that are made in the next place if one place cannot make them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassOn {
    /// None.
    Nothing,
    /// Symmetric keys, as existing services do.
    #[default]
    SymmetricKeys,
    /// All.
    Everything,
}

/// The protection of the store key. Keys in files are encrypted under the store key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seal {
    /// The rights on its file.
    File,
    /// The TPM: no other device can use a copy.
    Tpm,
    /// A key on the token of `base_slot` that does not leave it.
    Pkcs11,
}

/// The rights that a daemon that holds keys keeps once it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxSettings {
    /// True if the daemon gives up the rights that it does not need.
    pub enabled: bool,
    /// Files and folders, absolute, that a token's library needs besides what is known of
    /// it: to read and write, devices too.
    pub paths: Vec<PathBuf>,
    /// True if a token's library reaches its token through a network.
    pub network: bool,
}

impl Default for SandboxSettings {
    fn default() -> Self {
        Self { enabled: true, paths: Vec::new(), network: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::KeydSettings;

    #[test]
    fn what_is_secret_is_written_to_the_settings_file_and_never_printed() {
        let settings = KeydSettings {
            preloaded_keys: [("a".parse().unwrap(), "pkcs11:object=a?pin-value=geheim".into())]
                .into(),
            pkcs11: Some(TokenSettings {
                library: None,
                base_slot: Some("pkcs11:token=t?pin-value=geheim".into()),
            }),
            tpm: Some(TpmSettings {
                owner: Some(AuthSource::Value("geheim".into())),
                ..TpmSettings::default()
            }),
            places: vec![KeyPlace::Token, KeyPlace::Tpm, KeyPlace::Files],
            seal: Some(Seal::Tpm),
            ..KeydSettings::default()
        };
        assert!(!format!("{settings:?}").contains("geheim"));
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(text.matches("geheim").count(), 3);
        assert_eq!(serde_json::from_str::<KeydSettings>(&text).unwrap(), settings);
    }

    #[test]
    fn settings_are_written_for_their_digest_without_what_could_be_guessed_from_it() {
        let shown = |text: &str| {
            let text = SecretText::from(text);
            without_secrets(|| serde_json::to_string(&text)).unwrap()
        };
        assert_eq!(shown("geheim"), "\"left out\"");
        assert_eq!(shown("file:///etc/key.pem"), "\"file:///etc/key.pem\"");
        for pin in [
            "pkcs11:token=t;object=a?pin-value=1234",
            "pkcs11:pin-value=1234;token=t",
            "pkcs11:?PIN-VALUE=1234&x=y",
        ] {
            let text = shown(pin);
            assert!(!text.contains("1234") && text.starts_with("\"pkcs11:"), "{text}");
        }
        assert_ne!(shown("pkcs11:token=t?pin-value=1"), shown("pkcs11:token=u?pin-value=1"));
        assert_eq!(serde_json::to_string(&SecretText::from("geheim")).unwrap(), "\"geheim\"");
    }

    #[test]
    fn settings_without_any_of_it_mean_files() {
        let settings: KeydSettings = serde_json::from_str("{}").unwrap();
        assert_eq!((settings.pkcs11, settings.tpm, settings.seal), (None, None, None));
        assert_eq!(settings.pass_on, PassOn::SymmetricKeys);
    }
}
