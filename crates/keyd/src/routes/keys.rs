//! The routes of the keys API (wire facts 5.3).
//!
//! Each goes through the same steps: read the request, ask the policy, take a place in
//! the audit log, do it, write down what came of it, answer. Refusals are written down as
//! well; what a request was refused for is in the log, not in the answer.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::keyd::{
    API_VERSIONS, Ciphertext, CreateDerivedKey, CreateKey, CreateKeyPair, Decrypt, Encrypt,
    EncryptMechanism, ExportedKey, HandleBody, MoveKeyPair, ParameterValue, Plaintext, Sign,
    SignMechanism, Signature,
};
use edgekeep_core::key_use::{Operation, Reason, Target};
use edgekeep_daemon::server::{HttpError, Request, Response, Router};
use edgekeep_hsm::{
    InputError, KeyBackend, KeyKind, PairAlgorithm, PublicParameter, PublicValue, RsaPadding,
    SecretBytes, SymmetricKey, Usage,
};
use http::{Method, StatusCode};

use super::steps::{
    Answer, issued, parse_id, refuse_input, written_down, wrong_handle_kind, wrong_mechanism,
    wrong_request,
};
use super::{audit, certificates, integrity};
use crate::Keyd;
use crate::record;

/// The keys API over `state`.
#[must_use]
pub fn router(state: Arc<Keyd>) -> Router<Keyd> {
    let since = API_VERSIONS[0];
    Router::new(state, API_VERSIONS)
        .named("keys")
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
        .route(Method::GET, "/certificate/{id}", API_VERSIONS[1], certificates::read)
        .route(Method::GET, "/audit/checkpoint", API_VERSIONS[1], audit::checkpoint)
        .route(Method::GET, "/audit/entries", API_VERSIONS[1], audit::entries)
        .route(Method::GET, "/assurance", API_VERSIONS[1], integrity::assurance)
        .route(Method::GET, "/integrity", API_VERSIONS[1], integrity::log)
        .route(Method::POST, "/integrity/measurements", API_VERSIONS[1], integrity::record)
        .on_sender_changed(|state, caller, _| {
            state.recorder.refused(
                record::connected(&caller),
                Operation::Connect,
                None,
                Reason::SenderChanged,
            );
            std::future::ready(())
        })
}

async fn create_key(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: CreateKey = request.json().await?;
    // Wiped from here on, also on the ways out below.
    let imported = body.key_bytes.map(|bytes| SecretBytes::from(bytes.into_inner()));
    let id = parse_id(&body.key_id)?;
    // To existing clients the usage is part of the body's type, so this is no 400.
    let usage: Usage = body.usage.parse().map_err(|error: InputError| {
        HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, format!("invalid request body: {error}"))
    })?;
    let given = imported.is_some();
    let what = if given { Operation::Import } else { Operation::Create };
    let doing = state.begin_named(&request, what, &id).await?;
    let made = id.clone();
    let make = move |backend: &dyn KeyBackend| match imported {
        Some(bytes) => backend.import_key(&made, bytes, usage),
        None => backend.create_key(&made, usage),
    };
    state.make(&request, doing, &id, given, make).await?;
    issued(state.handles.symmetric(&id, &state.binding(&request, &id)))
}

async fn load_key(state: Arc<Keyd>, request: Request) -> Answer {
    let id = parse_id(request.param(0))?;
    let doing = state.begin_named(&request, Operation::Load, &id).await?;
    doing.end(state.expect_kind(&request, &id, KeyKind::Symmetric).await)?;
    issued(state.handles.symmetric(&id, &state.binding(&request, &id)))
}

async fn delete_key(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: HandleBody = request.json().await?;
    let (target, doing) =
        state.begin_with_handle(&request, Operation::Delete, &body.key_handle).await?;
    let Target::Symmetric(id) = target else { return doing.end(Err(wrong_handle_kind())) };
    state.delete(&request, doing, id, KeyKind::Symmetric).await?;
    Ok(Response::no_content())
}

async fn create_key_pair(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: CreateKeyPair = request.json().await?;
    let id = parse_id(&body.key_id)?;
    let doing = state.begin_named(&request, Operation::Create, &id).await?;
    let preferred = PairAlgorithm::preferred(body.preferred_algorithms.as_deref());
    let created = id.clone();
    let make = move |backend: &dyn KeyBackend| backend.create_key_pair(&created, &preferred);
    state.make(&request, doing, &id, false, make).await?;
    issued(state.handles.pair(&id, &state.binding(&request, &id)))
}

async fn load_key_pair(state: Arc<Keyd>, request: Request) -> Answer {
    let id = parse_id(request.param(0))?;
    let doing = state.begin_named(&request, Operation::Load, &id).await?;
    doing.end(state.expect_kind(&request, &id, KeyKind::Pair).await)?;
    issued(state.handles.pair(&id, &state.binding(&request, &id)))
}

async fn move_key_pair(state: Arc<Keyd>, mut request: Request) -> Answer {
    let to = parse_id(request.param(0))?;
    let body: MoveKeyPair = request.json().await?;
    let from = parse_id(&body.from)?;
    if let Err((reason, id)) = state.policy.may_move(request.caller.uid(), &from, &to) {
        return Err(state.refuse_named(&request, Operation::Move, id, reason));
    }
    let mut key = state.key(&to);
    key.from = Some(from.clone());
    let doing = state.recorder.begin(state.who(&request)?, Operation::Move, Some(key)).await?;
    let (makers, kept) = (Arc::clone(&state.makers), Arc::clone(&state.kept));
    let moved = move |backend: &dyn KeyBackend| {
        if let Err(error) = kept.forget(&from) {
            return Ok(Err(error));
        }
        backend.move_key_pair(&from, &to)?;
        kept.note(&to);
        makers.renamed(&from, &to);
        Ok(Ok(()))
    };
    let moved = state.on_disk(&request, moved).await.and_then(written_down);
    doing.end(moved)?;
    Ok(Response::no_content())
}

async fn delete_key_pair(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: HandleBody = request.json().await?;
    let (target, doing) =
        state.begin_with_handle(&request, Operation::Delete, &body.key_handle).await?;
    let Target::Pair(id) = target else { return doing.end(Err(wrong_handle_kind())) };
    state.delete(&request, doing, id, KeyKind::Pair).await?;
    Ok(Response::no_content())
}

/// Not written down unless refused: what is public is no secret to use.
async fn public_parameter(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: HandleBody = request.json().await?;
    let parameter: PublicParameter = request.param(0).parse().map_err(refuse_input)?;
    let target = state.resolve(&request, Operation::Parameters, &body.key_handle)?;
    let Target::Pair(id) = target else { return Err(wrong_handle_kind()) };
    let value = match state
        .in_use(&request, move |backend| backend.public_parameter(&id, parameter))
        .await?
    {
        PublicValue::Word(word) => word.to_owned(),
        PublicValue::Bytes(bytes) => STANDARD.encode(bytes),
    };
    Ok(Response::ok(&ParameterValue { value }))
}

async fn create_derived_key(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: CreateDerivedKey = request.json().await?;
    let (target, doing) =
        state.begin_with_handle(&request, Operation::Derive, &body.base_key_handle).await?;
    let binding = state.binding(&request, target.key_id());
    let data = body.derivation_data.into_inner();
    doing.end(issued(state.handles.derived(&body.base_key_handle, data, &binding)))
}

async fn export_derived_key(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: HandleBody = request.json().await?;
    let (target, doing) =
        state.begin_with_handle(&request, Operation::Export, &body.key_handle).await?;
    let Target::Derived { base, data } = target else {
        return doing.end(Err(wrong_request("only derived keys can be exported")));
    };
    let key = doing
        .end(state.in_use(&request, move |backend| backend.export_derived(&base, &data)).await)?;
    Ok(Response::ok(&ExportedKey { key: key.into_exposed().into() }))
}

async fn sign(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: Sign = request.json().await?;
    let (target, doing) =
        state.begin_with_handle(&request, Operation::Sign, &body.key_handle).await?;
    let signature = match (body.mechanism, target) {
        (
            SignMechanism::HmacSha256 { message },
            target @ (Target::Symmetric(_) | Target::Derived { .. }),
        ) => {
            let hmac = move |backend: &dyn KeyBackend, key: SymmetricKey<'_>| {
                backend.hmac_sha256(key, message.as_slice()).map(|tag| tag.to_vec())
            };
            state.with_symmetric(&request, target, hmac).await
        }
        (SignMechanism::Ecdsa { digest }, Target::Pair(id)) => {
            state.in_use(&request, move |backend| backend.sign_ecdsa(&id, digest.as_slice())).await
        }
        (SignMechanism::HmacSha256 { .. }, Target::Pair(_))
        | (SignMechanism::Ecdsa { .. }, Target::Symmetric(_) | Target::Derived { .. }) => {
            Err(wrong_mechanism())
        }
    };
    Ok(Response::ok(&Signature { signature: doing.end(signature)?.into() }))
}

async fn encrypt(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: Encrypt = request.json().await?;
    let plaintext = SecretBytes::from(body.plaintext.into_inner());
    // The RSA private-key operation is what signatures are made of, whatever the route is
    // called.
    let what = match &body.mechanism {
        EncryptMechanism::Aead { .. } => Operation::Encrypt,
        EncryptMechanism::RsaPkcs1 | EncryptMechanism::RsaNoPadding => Operation::Sign,
    };
    let (target, doing) = state.begin_with_handle(&request, what, &body.key_handle).await?;
    let ciphertext = match (body.mechanism, target) {
        (
            EncryptMechanism::Aead { iv, aad },
            target @ (Target::Symmetric(_) | Target::Derived { .. }),
        ) => {
            let encrypt = move |backend: &dyn KeyBackend, key: SymmetricKey<'_>| {
                backend.encrypt(key, iv.as_slice(), aad.as_slice(), plaintext.expose())
            };
            state.with_symmetric(&request, target, encrypt).await
        }
        (EncryptMechanism::RsaPkcs1, Target::Pair(id)) => {
            state.rsa(&request, id, RsaPadding::Pkcs1, plaintext).await
        }
        (EncryptMechanism::RsaNoPadding, Target::Pair(id)) => {
            state.rsa(&request, id, RsaPadding::None, plaintext).await
        }
        (EncryptMechanism::Aead { .. }, Target::Pair(_))
        | (
            EncryptMechanism::RsaPkcs1 | EncryptMechanism::RsaNoPadding,
            Target::Symmetric(_) | Target::Derived { .. },
        ) => Err(wrong_mechanism()),
    };
    Ok(Response::ok(&Ciphertext { ciphertext: doing.end(ciphertext)?.into() }))
}

async fn decrypt(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: Decrypt = request.json().await?;
    let (target, doing) =
        state.begin_with_handle(&request, Operation::Decrypt, &body.key_handle).await?;
    let plaintext = match body.mechanism {
        EncryptMechanism::Aead { iv, aad } => {
            let ciphertext = body.ciphertext;
            let decrypt = move |backend: &dyn KeyBackend, key: SymmetricKey<'_>| {
                backend.decrypt(key, iv.as_slice(), aad.as_slice(), ciphertext.as_slice())
            };
            state.with_symmetric(&request, target, decrypt).await
        }
        EncryptMechanism::RsaPkcs1 | EncryptMechanism::RsaNoPadding => Err(wrong_mechanism()),
    };
    Ok(Response::ok(&Plaintext { plaintext: doing.end(plaintext)?.into_exposed().into() }))
}
