//! Key pairs in keyd that certificates of this device are of.

use der::Decode as _;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{KeyHandle, KeysClient};
use edgekeep_api::{Recipient, says_absent};
use edgekeep_tls::{RemoteKey, RemoteKeyError};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::public_key::PublicKey;

/// A key pair in keyd, as far as keyd shows it to this user.
#[derive(Debug)]
pub(super) enum KeydKey {
    /// It is there.
    Pair(KeyHandle, PublicKey),
    /// It is not there.
    Absent,
    /// It may be there; keyd does not show it to this user, or it is of a kind that has
    /// no certificates.
    Hidden,
}

impl KeydKey {
    /// Looks up a key pair. The error is that keyd cannot say.
    pub(super) async fn look_up(keys: &KeysClient, name: &str) -> Result<Self, ClientError> {
        let found = match keys.load_key_pair(name).await {
            Ok(handle) => RemoteKey::load(keys.clone(), name).await.map(|key| (handle, key)),
            Err(source) => Err(RemoteKeyError::Service { step: "hand out the key", source }),
        };
        match found {
            Ok((handle, key)) => {
                let info = SubjectPublicKeyInfoOwned::from_der(key.public().info());
                let public = info.ok().and_then(|info| PublicKey::read(&info).ok());
                Ok(public.map_or(Self::Hidden, |public| Self::Pair(handle, public)))
            }
            Err(RemoteKeyError::Service { source, .. }) => {
                if says_absent(&source, Recipient::Keys) {
                    Ok(Self::Absent)
                } else if source.status().is_some_and(|status| status.is_client_error()) {
                    Ok(Self::Hidden)
                } else {
                    Err(source)
                }
            }
            Err(_) => Ok(Self::Hidden),
        }
    }

    /// Returns the public half, where it is known.
    pub(super) fn public(&self) -> Option<&PublicKey> {
        match self {
            Self::Pair(_, public) => Some(public),
            Self::Absent | Self::Hidden => None,
        }
    }
}
