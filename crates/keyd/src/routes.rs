//! The routes of the keys API (wire facts 5.3).
//!
//! Who may do what: naming a key by its id needs a grant of that id. Using a key needs a handle only, since handles are made
//! to be passed on: identityd hands them to moduled, moduled to identityd's certificates API. Deleting a key and taking a
//! derived key out of keyd need both; every known client that does so has the grant, because it got the key by its id.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::keyd::{
    API_VERSIONS, Ciphertext, CreateDerivedKey, CreateKey, CreateKeyPair, Decrypt, Encrypt, EncryptMechanism,
    ExportedKey, HandleBody, KeyHandle, MoveKeyPair, ParameterValue, Plaintext, Sign, SignMechanism, Signature,
};
use edgekeep_core::id::KeyId;
use edgekeep_daemon::audit::Entry;
use edgekeep_daemon::server::{HttpError, Request, Response, Router};
use edgekeep_hsm::{
    InputError, KeyBackend, KeyError, KeyKind, PairAlgorithm, PublicParameter, PublicValue, RsaPadding, SecretBytes,
    SymmetricKey, Usage,
};
use http::{Method, StatusCode};

use crate::Keyd;
use crate::handle::{IssueError, Target};

/// The keys API over `state`.
#[must_use]
pub fn router(state: Arc<Keyd>) -> Router<Keyd> {
    let since = API_VERSIONS[0];
    Router::new(state, API_VERSIONS)
        .route(Method::POST, "/key", since, create_key)
        .route(Method::DELETE, "/key", since, delete_key)
        .route(Method::GET, "/key/{id}", since, load_key)
        .route(Method::POST, "/keypair", since, create_key_pair)
        .route(Method::DELETE, "/keypair", since, delete_key_pair)
        .route(Method::GET, "/keypair/{id}", since, load_key_pair)
        .route(Method::POST, "/keypair/{id}", since, move_key_pair)
        .route(Method::POST, "/parameters/{name}", since, public_parameter)
        .route(Method::POST, "/derivedkey", since, create_derived_key)
        .route(Method::POST, "/derivedkey/export", since, export_derived_key)
        .route(Method::POST, "/sign", since, sign)
        .route(Method::POST, "/encrypt", since, encrypt)
        .route(Method::POST, "/decrypt", since, decrypt)
        .on_sender_changed(|state, caller, what| {
            let (uid, pid) = (caller.uid(), caller.pid().unwrap_or(0));
            let reason = "bytes of another process than the one that connected";
            state.audit.refused(&Entry { uid, pid, action: what, object: "", reason });
        })
}

type Answer = Result<Response, HttpError>;

async fn create_key(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: CreateKey = request.json().await?;
    // Wiped from here on, also on the ways out below.
    let imported = body.key_bytes.map(|bytes| SecretBytes::from(bytes.into_inner()));
    let id = parse_id(&body.key_id)?;
    // To existing clients the usage is part of the body's type, so this is no 400.
    let usage: Usage = body.usage.parse().map_err(|error: InputError| {
        HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, format!("invalid request body: {error}"))
    })?;
    state.expect_grant(&request, &id)?;
    let created = id.clone();
    state
        .on_disk(move |backend| match imported {
            Some(bytes) => backend.import_key(&created, bytes, usage),
            None => backend.create_key(&created, usage),
        })
        .await?;
    issued(state.handles.symmetric(&id))
}

async fn load_key(state: Arc<Keyd>, request: Request) -> Answer {
    let id = parse_id(request.param(0))?;
    state.expect_grant(&request, &id)?;
    state.expect_kind(&id, KeyKind::Symmetric)?;
    issued(state.handles.symmetric(&id))
}

async fn delete_key(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: HandleBody = request.json().await?;
    let Target::Symmetric(id) = state.resolve(&request, &body.key_handle)? else { return Err(wrong_handle_kind()) };
    state.expect_grant(&request, &id)?;
    state.on_disk(move |backend| backend.delete(&id, KeyKind::Symmetric)).await?;
    Ok(Response::no_content())
}

async fn create_key_pair(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: CreateKeyPair = request.json().await?;
    let id = parse_id(&body.key_id)?;
    state.expect_grant(&request, &id)?;
    let preferred = PairAlgorithm::preferred(body.preferred_algorithms.as_deref());
    let created = id.clone();
    state.on_disk(move |backend| backend.create_key_pair(&created, &preferred)).await?;
    issued(state.handles.pair(&id))
}

async fn load_key_pair(state: Arc<Keyd>, request: Request) -> Answer {
    let id = parse_id(request.param(0))?;
    state.expect_grant(&request, &id)?;
    state.expect_kind(&id, KeyKind::Pair)?;
    issued(state.handles.pair(&id))
}

async fn move_key_pair(state: Arc<Keyd>, mut request: Request) -> Answer {
    let to = parse_id(request.param(0))?;
    let body: MoveKeyPair = request.json().await?;
    let from = parse_id(&body.from)?;
    state.expect_grant(&request, &to)?;
    state.expect_grant(&request, &from)?;
    state.on_disk(move |backend| backend.move_key_pair(&from, &to)).await?;
    Ok(Response::no_content())
}

async fn delete_key_pair(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: HandleBody = request.json().await?;
    let Target::Pair(id) = state.resolve(&request, &body.key_handle)? else { return Err(wrong_handle_kind()) };
    state.expect_grant(&request, &id)?;
    state.on_disk(move |backend| backend.delete(&id, KeyKind::Pair)).await?;
    Ok(Response::no_content())
}

async fn public_parameter(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: HandleBody = request.json().await?;
    let parameter: PublicParameter = request.param(0).parse().map_err(refuse_input)?;
    let Target::Pair(id) = state.resolve(&request, &body.key_handle)? else { return Err(wrong_handle_kind()) };
    let value = match state.backend.public_parameter(&id, parameter).map_err(refuse)? {
        PublicValue::Word(word) => word.to_owned(),
        PublicValue::Bytes(bytes) => STANDARD.encode(bytes),
    };
    Ok(Response::ok(&ParameterValue { value }))
}

async fn create_derived_key(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: CreateDerivedKey = request.json().await?;
    // For the audit trail; making the handle below opens it again.
    state.resolve(&request, &body.base_key_handle)?;
    issued(state.handles.derived(&body.base_key_handle, body.derivation_data.into_inner()))
}

async fn export_derived_key(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: HandleBody = request.json().await?;
    let Target::Derived { base, data } = state.resolve(&request, &body.key_handle)? else {
        return Err(HttpError::bad_request("only derived keys can be exported"));
    };
    state.expect_grant(&request, &base)?;
    let key = state.backend.export_derived(&base, &data).map_err(refuse)?;
    Ok(Response::ok(&ExportedKey { key: key.into_exposed().into() }))
}

async fn sign(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: Sign = request.json().await?;
    let target = state.resolve(&request, &body.key_handle)?;
    let signature = match (&body.mechanism, &target) {
        (SignMechanism::HmacSha256 { message }, Target::Symmetric(_) | Target::Derived { .. }) => {
            state.backend.hmac_sha256(symmetric(&target)?, message.as_slice()).map(|tag| tag.to_vec())
        }
        (SignMechanism::Ecdsa { digest }, Target::Pair(id)) => state.backend.sign_ecdsa(id, digest.as_slice()),
        (SignMechanism::HmacSha256 { .. }, Target::Pair(_))
        | (SignMechanism::Ecdsa { .. }, Target::Symmetric(_) | Target::Derived { .. }) => return Err(wrong_mechanism()),
    };
    Ok(Response::ok(&Signature { signature: signature.map_err(refuse)?.into() }))
}

async fn encrypt(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: Encrypt = request.json().await?;
    let plaintext = SecretBytes::from(body.plaintext.into_inner());
    let target = state.resolve(&request, &body.key_handle)?;
    let ciphertext = match (body.mechanism, target) {
        (EncryptMechanism::Aead { iv, aad }, target @ (Target::Symmetric(_) | Target::Derived { .. })) => {
            let key = symmetric(&target)?;
            state.backend.encrypt(key, iv.as_slice(), aad.as_slice(), plaintext.expose()).map_err(refuse)?
        }
        (EncryptMechanism::RsaPkcs1, Target::Pair(id)) => state.rsa(id, RsaPadding::Pkcs1, plaintext).await?,
        (EncryptMechanism::RsaNoPadding, Target::Pair(id)) => state.rsa(id, RsaPadding::None, plaintext).await?,
        (EncryptMechanism::Aead { .. }, Target::Pair(_))
        | (
            EncryptMechanism::RsaPkcs1 | EncryptMechanism::RsaNoPadding,
            Target::Symmetric(_) | Target::Derived { .. },
        ) => return Err(wrong_mechanism()),
    };
    Ok(Response::ok(&Ciphertext { ciphertext: ciphertext.into() }))
}

async fn decrypt(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: Decrypt = request.json().await?;
    let target = state.resolve(&request, &body.key_handle)?;
    let EncryptMechanism::Aead { iv, aad } = body.mechanism else { return Err(wrong_mechanism()) };
    let key = symmetric(&target)?;
    let plaintext =
        state.backend.decrypt(key, iv.as_slice(), aad.as_slice(), body.ciphertext.as_slice()).map_err(refuse)?;
    Ok(Response::ok(&Plaintext { plaintext: plaintext.into_exposed().into() }))
}

impl Keyd {
    /// The key that a handle names. A handle that is not ours is a refusal for the audit trail: somebody may be guessing.
    fn resolve(&self, request: &Request, handle: &KeyHandle) -> Result<Target, HttpError> {
        self.handles.open(handle).map_err(|invalid| {
            self.audit(request, "", "handle that this keyd did not make");
            HttpError::bad_request(invalid.to_string())
        })
    }

    /// 401 unless the caller may name this key.
    fn expect_grant(&self, request: &Request, id: &KeyId) -> Result<(), HttpError> {
        if self.grants.allows(request.caller.uid(), id.as_str()) {
            return Ok(());
        }
        let reserved = self.grants.is_reserved(id.as_str());
        self.audit(request, id.as_str(), if reserved { "reserved key id" } else { "no grant of this key id" });
        Err(HttpError::unauthorized())
    }

    fn audit(&self, request: &Request, object: &str, reason: &str) {
        let (uid, pid) = (request.caller.uid(), request.caller.pid().unwrap_or(0));
        let action = format!("{} {}", request.method(), request.route);
        self.audit.refused(&Entry { uid, pid, action: &action, object, reason });
    }

    /// 400 unless there is a key of this kind under this id.
    fn expect_kind(&self, id: &KeyId, expected: KeyKind) -> Result<(), HttpError> {
        match self.backend.kind(id).map_err(refuse)? {
            Some(found) if found == expected => Ok(()),
            Some(found) => Err(refuse(KeyError::WrongKind { id: id.clone(), found, expected })),
            None => Err(refuse(KeyError::NotFound { id: id.clone() })),
        }
    }

    /// Runs what waits for the disk, or computes for long, off the thread that answers requests.
    async fn on_disk<T: Send + 'static>(
        &self,
        run: impl FnOnce(&dyn KeyBackend) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, HttpError> {
        let backend = Arc::clone(&self.backend);
        match tokio::task::spawn_blocking(move || run(&*backend)).await {
            Ok(done) => done.map_err(refuse),
            Err(failed) => Err(HttpError::hidden(&failed)),
        }
    }

    /// The RSA private-key operation takes milliseconds.
    async fn rsa(&self, id: KeyId, padding: RsaPadding, block: SecretBytes) -> Result<Vec<u8>, HttpError> {
        self.on_disk(move |backend| backend.rsa_private_operation(&id, padding, block.expose())).await
    }
}

fn parse_id(text: &str) -> Result<KeyId, HttpError> {
    text.parse()
        .map_err(|error| HttpError::bad_request(format!("parameter \"id\" has an invalid value\ncaused by: {error}")))
}

fn symmetric(target: &Target) -> Result<SymmetricKey<'_>, HttpError> {
    match target {
        Target::Symmetric(id) => Ok(SymmetricKey::Stored(id)),
        Target::Derived { base, data } => Ok(SymmetricKey::Derived { base, data }),
        Target::Pair(_) => Err(wrong_mechanism()),
    }
}

fn issued(handle: Result<KeyHandle, IssueError>) -> Answer {
    match handle {
        Ok(key_handle) => Ok(Response::ok(&HandleBody { key_handle })),
        Err(error @ IssueError::Random) => Err(HttpError::hidden(&error)),
        Err(error @ (IssueError::Base(_) | IssueError::BaseKind | IssueError::LongData)) => {
            Err(HttpError::bad_request(error.to_string()))
        }
    }
}

/// 400 with the reason, if the request was wrong; else 500, with the reason in the log only.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refuse(error: KeyError) -> HttpError {
    if !error.is_callers_fault() {
        return HttpError::hidden(&error);
    }
    let text = error.to_string();
    match error {
        KeyError::NotFound { .. } | KeyError::WrongKind { .. } | KeyError::Preloaded { .. } => {
            HttpError::bad_request(format!("parameter \"id\" has an invalid value\ncaused by: {text}"))
        }
        _ => HttpError::bad_request(text),
    }
}

fn refuse_input(error: InputError) -> HttpError {
    HttpError::bad_request(error.to_string())
}

fn wrong_handle_kind() -> HttpError {
    HttpError::bad_request("the handle is for another kind of key")
}

fn wrong_mechanism() -> HttpError {
    HttpError::bad_request("the algorithm cannot be used with this kind of key")
}
