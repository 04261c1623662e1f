//! Sign, encrypt, decrypt: with keys that stay in keyd.

use std::sync::Arc;

use aws_lc_rs::rand;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{EncryptMechanism, KeysClient, SignMechanism};
use edgekeep_api::workload::{Decrypt, Decrypted, Digest, Encrypt, Encrypted, Sign};
use edgekeep_api::{Recipient, is_worth_a_fresh_handle};
use edgekeep_core::settings::ModuleEncryption;
use edgekeep_daemon::metrics::{Counter, Family};
use edgekeep_daemon::server::{HttpError, Request, Response};
use http::StatusCode;

use super::WorkloadDoor;
use crate::http::refuse;
use crate::identity::keys::DataKey;
use crate::identity::layout::{self, Form, NONCE_LEN, PLAINTEXT_LIMIT};

/// Counters of the decryptions that modules asked for, by the kind of key that the
/// ciphertext was encrypted under.
pub(crate) static DECRYPTIONS: Family<Counter, 1> = Family::new(
    "edgekeep_decryptions",
    "Ciphertexts of modules that were to be decrypted: under the module's own key, or the device's one key.",
    ["key"],
);

pub(super) async fn sign(
    state: Arc<WorkloadDoor>,
    mut request: Request,
) -> Result<Response, HttpError> {
    let (module, identity) = state.admit_generation(&request).await?;
    let body: Sign = super::body(&mut request).await?;
    let (rooms, keys) = (&state.rooms, state.keys_for(&request, &module));
    let mechanism = SignMechanism::HmacSha256 { message: body.data };
    let digest = match keys.sign(&identity.key, mechanism.clone()).await {
        Err(error) if is_worth_a_fresh_handle(&error, Recipient::Keys) => {
            // The handle is no longer good, for example because keyd was given a new
            // store: ask for one and try once.
            rooms.credentials.identities.forget(&module);
            let identity = rooms
                .credentials
                .identities
                .module(&module)
                .await
                .map_err(|error| refuse::of_identity(&error))?;
            keys.sign(&identity.key, mechanism).await
        }
        other => other,
    };
    let digest = digest.map_err(|error| refuse::of_service(&error))?;
    Ok(Response::ok(&Digest { digest: digest.into() }))
}

pub(super) async fn encrypt(
    state: Arc<WorkloadDoor>,
    mut request: Request,
) -> Result<Response, HttpError> {
    let (module, _) = state.admit_generation(&request).await?;
    let body: Encrypt = super::body(&mut request).await?;
    let (iv, plaintext) = (body.initialization_vector, body.plaintext.into_inner());
    if iv.as_slice().len() + plaintext.len() > PLAINTEXT_LIMIT {
        let text = format!(
            "plaintext and initializationVector are longer than {PLAINTEXT_LIMIT} bytes together, so that no request could \
             decrypt them again: encrypt the data in parts, or encrypt a key of your own"
        );
        return Err(HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let (keys, generation) = (&state.keys_for(&request, &module), request.param(1));
    let ciphertext = if state.rooms.modules.settings.module_encryption
        == ModuleEncryption::DeviceKey
    {
        let aad = layout::device_additional_data(module.as_str(), generation);
        let mechanism = EncryptMechanism::Aead { iv, aad: aad.into() };
        seal(keys, DataKey::Device(&state.rooms.credentials.device_data_key), mechanism, plaintext)
            .await?
    } else {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|error| HttpError::hidden(&error))?;
        let base = state.rooms.credentials.module_data_keys.base(keys).await;
        let base = base.map_err(|error| refuse::of_data_key(&error))?;
        let aad = layout::additional_data(base, module.as_str(), generation, iv.as_slice());
        let mechanism = EncryptMechanism::Aead { iv: nonce.as_slice().into(), aad: aad.into() };
        let data = layout::derivation_data(module.as_str(), generation);
        let key = DataKey::Module(&state.rooms.credentials.module_data_keys, base, &data);
        layout::compose(base, &nonce, &seal(keys, key, mechanism, plaintext).await?)
    };
    Ok(Response::ok(&Encrypted { ciphertext: ciphertext.into() }))
}

pub(super) async fn decrypt(
    state: Arc<WorkloadDoor>,
    mut request: Request,
) -> Result<Response, HttpError> {
    let (module, _) = state.admit_generation(&request).await?;
    let body: Decrypt = super::body(&mut request).await?;
    let (keys, generation) = (&state.keys_for(&request, &module), request.param(1));
    let iv = body.initialization_vector;
    let plaintext = match layout::parse(body.ciphertext.as_slice()) {
        Ok(Form::ModuleKey { base, nonce, sealed }) => {
            DECRYPTIONS.with(["module-key"]).increment();
            let aad = layout::additional_data(base, module.as_str(), generation, iv.as_slice());
            let mechanism = EncryptMechanism::Aead { iv: nonce.as_slice().into(), aad: aad.into() };
            let data = layout::derivation_data(module.as_str(), generation);
            open(
                keys,
                DataKey::Module(&state.rooms.credentials.module_data_keys, base, &data),
                mechanism,
                sealed,
            )
            .await?
        }
        Ok(Form::DeviceKey { .. })
            if state.rooms.modules.settings.module_encryption
                == ModuleEncryption::ModuleKeyOnly =>
        {
            return Err(HttpError::internal(
                "the ciphertext is under the device's one key, which module_encryption = \"module-key-only\" refuses: \
                 \"module-key\" reads it",
            )
            .of_caller());
        }
        Ok(Form::DeviceKey { sealed }) => {
            DECRYPTIONS.with(["device-key"]).increment();
            let aad = layout::device_additional_data(module.as_str(), generation);
            let mechanism = EncryptMechanism::Aead { iv, aad: aad.into() };
            open(keys, DataKey::Device(&state.rooms.credentials.device_data_key), mechanism, sealed)
                .await?
        }
        Err(error) => return Err(HttpError::internal(error.to_string()).of_caller()),
    };
    Ok(Response::ok(&Decrypted { plaintext: plaintext.into() }))
}

async fn seal(
    keys: &KeysClient,
    key: DataKey<'_>,
    mechanism: EncryptMechanism,
    plaintext: Vec<u8>,
) -> Result<Vec<u8>, HttpError> {
    let handle = key.get(keys).await.map_err(|error| refuse::of_data_key(&error))?;
    let sealed = match keys.encrypt(&handle, mechanism.clone(), plaintext.clone()).await {
        Err(error) if is_worth_a_fresh_handle(&error, Recipient::Keys) => {
            let fresh = key.renew(keys, &handle).await;
            let fresh = fresh.map_err(|error| refuse::of_data_key(&error))?;
            keys.encrypt(&fresh, mechanism, plaintext).await
        }
        done => done,
    };
    sealed.map_err(|error| of_keyd(&error))
}

async fn open(
    keys: &KeysClient,
    key: DataKey<'_>,
    mechanism: EncryptMechanism,
    sealed: &[u8],
) -> Result<Vec<u8>, HttpError> {
    let handle = key.get(keys).await.map_err(|error| refuse::of_data_key(&error))?;
    let opened = match keys.decrypt(&handle, mechanism.clone(), sealed.to_vec()).await {
        Err(error) if is_worth_a_fresh_handle(&error, Recipient::Keys) => {
            let fresh = key.renew(keys, &handle).await;
            let fresh = fresh.map_err(|error| refuse::of_data_key(&error))?;
            keys.decrypt(&fresh, mechanism, sealed.to_vec()).await
        }
        done => done,
    };
    opened.map_err(|error| of_keyd(&error))
}

/// Whatever keyd objects to is an error of ours on this API (wire facts 3.3); yet a
/// ciphertext that it cannot open is the caller's.
fn of_keyd(error: &ClientError) -> HttpError {
    let answer = HttpError::internal(error.to_string());
    if error.status() == Some(StatusCode::BAD_REQUEST) && !refuse::is_about_a_handle(error) {
        answer.of_caller()
    } else {
        answer
    }
}
