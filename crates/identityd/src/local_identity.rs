//! Local identities: a key and a certificate that only this device vouches for (wire
//! facts 5.2).

use edgekeep_api::identityd::{LocalAuthentication, LocalIdentity};
use edgekeep_core::id::{CertId, IdError, ModuleId};
use edgekeep_core::settings::IdentitydSettings;
use rcgen::PublicKeyData as _;
use time::format_description::well_known::Rfc3339;

use crate::certificates::{CertificateError, Certificates};

/// Failure to make a local identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalIdentityError {
    /// The suffix of the names is not configured.
    #[error("local identities need [localid] domain in the configuration")]
    NoDomain,
    /// The name cannot be a certificate's id.
    #[error("the name cannot name a certificate")]
    Name(#[source] IdError),
    /// The key could not be made.
    #[error("no key could be made for the identity")]
    Key,
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Makes a key and has it certified. The key is handed to its owner and kept nowhere.
pub(crate) async fn issue(
    certificates: &Certificates,
    settings: &IdentitydSettings,
    module: &ModuleId,
    server: bool,
) -> Result<LocalIdentity, LocalIdentityError> {
    let domain = settings.localid_domain.as_ref().ok_or(LocalIdentityError::NoDomain)?;
    let name = format!("{module}.{}.{domain}", settings.hostname);
    let id: CertId = module.as_str().parse().map_err(LocalIdentityError::Name)?;
    // Takes a good part of a second.
    let key = tokio::task::spawn_blocking(|| {
        rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
    });
    let key =
        key.await.map_err(|_| LocalIdentityError::Key)?.map_err(|_| LocalIdentityError::Key)?;
    let issued =
        certificates.issue_local(&id, &name, &key.subject_public_key_info(), server).await?;
    let expiration = issued.not_after.format(&Rfc3339).unwrap_or_default().replace('Z', "+00:00");
    Ok(LocalIdentity {
        module_id: module.to_string(),
        auth: LocalAuthentication {
            private_key: key.serialize_pem(),
            certificate: issued.pem,
            expiration,
        },
    })
}
