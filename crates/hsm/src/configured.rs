//! The hardware that keyd's settings name, for whoever needs it without keyd.

use std::io;
use std::path::{Path, PathBuf};

use edgekeep_core::hardware::{AuthSource, TpmSettings};
use edgekeep_core::settings::KeydSettings;

use crate::pkcs11::{Pkcs11Backend, Pkcs11Settings, TokenError};
use crate::software::{Sealer, Sealers, WrappingKey};
use crate::uri::{KeyUri, ObjectAttributes, Pkcs11Uri};
use crate::{KeyError, SecretBytes, secret_file};
use edgekeep_tpm::{AuthValue, RootAlgorithm, Tcti, Tpm, TpmError, TpmOptions};

/// Returns the options for opening the TPM.
///
/// # Errors
/// If an auth value cannot be read.
pub fn tpm_options(tcti: &Tcti, settings: &TpmSettings) -> Result<TpmOptions, KeyError> {
    let auth = |hierarchy: &str, source: Option<&AuthSource>| -> Result<AuthValue, TpmError> {
        let Some(source) = source else { return Ok(AuthValue::empty()) };
        let unreadable = |path: &Path, error: &io::Error| TpmError::Unreachable {
            tcti: tcti.to_string(),
            source: io::Error::other(format!(
                "the auth value of the {hierarchy} hierarchy cannot be read from {}: {error}",
                path.display()
            )),
        };
        let path = match source {
            AuthSource::Value(text) => return AuthValue::new(text.expose().as_bytes()),
            AuthSource::File(path) => path.clone(),
            AuthSource::Credential(name) => std::env::var_os("CREDENTIALS_DIRECTORY")
                .map_or_else(|| PathBuf::from("$CREDENTIALS_DIRECTORY"), PathBuf::from)
                .join(name),
        };
        secret_file::read_first_line(&path)
            .map_err(|error| unreadable(&path, &error))
            .and_then(|line| AuthValue::new(line.expose()))
    };
    let mut options = TpmOptions::new(tcti.clone());
    // What the TPM API shows to provisioning services, which expect it so.
    options.root_algorithm = RootAlgorithm::Rsa2048;
    options.owner = auth("owner", settings.owner.as_ref())?;
    options.endorsement = auth("endorsement", settings.endorsement.as_ref())?;
    Ok(options)
}

/// TPM and token of the base slot, not opened before they are used.
pub struct Hardware {
    tpm: Option<NamedTpm>,
    token: Option<NamedToken>,
}

struct NamedTpm {
    tcti: Tcti,
    settings: TpmSettings,
}

struct NamedToken(Pkcs11Settings);

impl Hardware {
    /// Finds the hardware that the settings name. A setting that cannot be understood
    /// counts as absent: keyd reports the fault.
    #[must_use]
    pub fn named(settings: &KeydSettings) -> Self {
        let tpm = settings
            .tpm
            .clone()
            .and_then(|settings| Some(NamedTpm { tcti: settings.tcti.parse().ok()?, settings }));
        Self { tpm, token: base_token(settings).map(NamedToken) }
    }

    /// Returns the hardware as protections of a store key.
    #[must_use]
    pub fn sealers(&self) -> Sealers<'_> {
        Sealers {
            tpm: self.tpm.as_ref().map(|tpm| tpm as &dyn Sealer),
            token: self.token.as_ref().map(|token| token as &dyn Sealer),
        }
    }
}

/// The token of the base slot.
fn base_token(settings: &KeydSettings) -> Option<Pkcs11Settings> {
    let pkcs11 = settings.pkcs11.as_ref()?;
    let Ok(KeyUri::Pkcs11(uri)) = pkcs11.base_slot.as_ref()?.expose().parse() else { return None };
    let mut token = Pkcs11Settings::new(Pkcs11Uri { object: ObjectAttributes::default(), ..*uri });
    token.library.clone_from(&pkcs11.library);
    Some(token)
}

impl Sealer for NamedTpm {
    fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, KeyError> {
        Sealer::seal(&Tpm::open(tpm_options(&self.tcti, &self.settings)?)?, secret)
    }

    fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, KeyError> {
        Sealer::unseal(&Tpm::open(tpm_options(&self.tcti, &self.settings)?)?, sealed)
    }
}

impl NamedToken {
    fn open(&self) -> Result<Pkcs11Backend, TokenError> {
        Pkcs11Backend::open(self.0.clone())
    }
}

impl Sealer for NamedToken {
    fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, KeyError> {
        WrappingKey(&self.open()?).seal(secret)
    }

    fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, KeyError> {
        WrappingKey(&self.open()?).unseal(sealed)
    }
}
