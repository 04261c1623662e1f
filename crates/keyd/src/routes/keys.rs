//! The routes of the keys API (wire facts 5.3), and two of our own to read the audit log.
//!
//! Each goes through the same steps: read the request, ask the policy, take a place in
//! the audit log, do it, write down what came of it, answer. Refusals are written down as
//! well; what a request was refused for is in the log, not in the answer.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::ErrorCode;
use edgekeep_api::keyd::{
    API_VERSIONS, AuditCheckpoint, AuditCounter, AuditEntries, Ciphertext, CreateDerivedKey,
    CreateKey, CreateKeyPair, Decrypt, Encrypt, EncryptMechanism, ExportedKey, HandleBody,
    KeyHandle, MoveKeyPair, ParameterValue, Plaintext, Sign, SignMechanism, Signature,
};
use edgekeep_audit::CounterState;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::{KeyId, ModuleId};
use edgekeep_core::key_use::{Binding, Key, Operation, Purpose, Reason, Target, Who};
use edgekeep_daemon::server::{HttpError, Request, Response, Router};
use edgekeep_daemon::store::StoreError;
use edgekeep_hsm::{
    InputError, KeyBackend, KeyError, KeyKind, PairAlgorithm, PublicParameter, PublicValue,
    RsaPadding, SecretBytes, SymmetricKey, Usage,
};
use http::{Method, StatusCode};

use crate::Keyd;
use crate::handle::{InvalidHandle, IssueError};
use crate::kept::LostKey;
use crate::makers::MakeError;
use crate::record::{self, Doing};

/// Most entries, and most bytes of them, in one answer.
const AUDIT_ENTRIES: usize = 1000;
const AUDIT_BYTES: usize = 1 << 20;

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
        .route(Method::GET, "/audit/checkpoint", API_VERSIONS[1], audit_checkpoint)
        .route(Method::GET, "/audit/entries", API_VERSIONS[1], audit_entries)
        .on_sender_changed(|state, caller, _| {
            state.recorder.refused(
                record::connected(caller),
                Operation::Connect,
                None,
                Reason::SenderChanged,
            );
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

async fn audit_checkpoint(state: Arc<Keyd>, request: Request) -> Answer {
    state.expect_auditor(&request)?;
    state.recorder.write_counted();
    let log = Arc::clone(state.recorder.log());
    let verifier_key = log.key().to_string();
    match tokio::task::spawn_blocking(move || log.checkpoint_and_counter()).await {
        Ok(Ok((checkpoint, counter))) => {
            let index = state.counter_index.unwrap_or_default();
            let counter = match counter {
                CounterState::Off => None,
                CounterState::Value(value) => {
                    Some(AuditCounter { index, value: Some(value), error: None })
                }
                CounterState::Unreachable(why) => {
                    Some(AuditCounter { index, value: None, error: Some(why) })
                }
            };
            Ok(Response::ok(&AuditCheckpoint { checkpoint, verifier_key, counter }))
        }
        Ok(Err(closed)) => Err(HttpError::internal(closed.to_string())),
        Err(failed) => Err(HttpError::hidden(&failed)),
    }
}

async fn audit_entries(state: Arc<Keyd>, request: Request) -> Answer {
    state.expect_auditor(&request)?;
    let number = |name: &str, default: u64| match request.query(name) {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|_| wrong_request(format!("parameter {name:?} has an invalid value"))),
    };
    let from: u64 = number("from", 0)?;
    let limit = usize::try_from(number("limit", AUDIT_ENTRIES as u64)?)
        .unwrap_or(AUDIT_ENTRIES)
        .min(AUDIT_ENTRIES);
    let log = Arc::clone(state.recorder.log());
    let read = move || edgekeep_audit::read(log.folder(), from, limit, AUDIT_BYTES);
    let excerpt = match tokio::task::spawn_blocking(read).await {
        Ok(read) => read.map_err(|error| HttpError::hidden(&error))?,
        Err(failed) => return Err(HttpError::hidden(&failed)),
    };
    Ok(Response::ok(&AuditEntries {
        first: excerpt.edge.size(),
        edge: excerpt.edge.nodes().iter().map(ToString::to_string).collect(),
        base: excerpt.base,
        from: excerpt.from,
        entries: excerpt
            .entries
            .into_iter()
            .map(|entry| String::from_utf8_lossy(&entry).into_owned())
            .collect(),
    }))
}

impl Keyd {
    /// 401 unless the caller may name this key.
    fn expect_name(&self, request: &Request, what: Operation, id: &KeyId) -> Result<(), HttpError> {
        self.policy
            .may_name(request.caller.uid(), id)
            .map_err(|reason| self.refuse_named(request, what, id, reason))
    }

    /// Writes a refusal down; the answer is 401.
    fn refuse_named(
        &self,
        request: &Request,
        what: Operation,
        id: &KeyId,
        reason: Reason,
    ) -> HttpError {
        self.recorder.refused(self.refused_who(request), what, Some(self.key(id)), reason);
        HttpError::unauthorized().with_code(ErrorCode::Grant)
    }

    fn refused_who(&self, request: &Request) -> Who {
        record::refused_who(request, &self.policy)
    }

    fn who(&self, request: &Request) -> Result<Who, HttpError> {
        record::who(request, &self.policy)
    }

    async fn begin_named(
        &self,
        request: &Request,
        what: Operation,
        id: &KeyId,
    ) -> Result<Doing, HttpError> {
        self.expect_name(request, what, id)?;
        self.recorder.begin(self.who(request)?, what, Some(self.key(id))).await
    }

    /// The key that a handle names, if the caller may do this with it.
    fn resolve(
        &self,
        request: &Request,
        what: Operation,
        handle: &KeyHandle,
    ) -> Result<Target, HttpError> {
        let uid = request.caller.uid();
        let named = match self.handles.open(handle) {
            Ok(named) => named,
            Err(invalid) => {
                // Somebody may be guessing.
                self.recorder.refused(self.refused_who(request), what, None, Reason::ForeignHandle);
                return Err(
                    HttpError::bad_request(invalid.to_string()).with_code(ErrorCode::KeyHandle)
                );
            }
        };
        let allowed = self.policy.may_use(uid, &named, what, self.boot.now());
        // What destroys a key needs more than a handle.
        let allowed = allowed.and_then(|()| match what {
            Operation::Delete => self.policy.may_name(uid, named.target.key_id()),
            _ => Ok(()),
        });
        match allowed {
            Ok(()) => Ok(named.target),
            Err(reason) => {
                self.recorder.refused(
                    self.refused_who(request),
                    what,
                    Some(self.target_key(&named.target)),
                    reason,
                );
                // To who holds it an old handle is like a wrong one: clients then ask for
                // another.
                Err(match reason {
                    Reason::ExpiredHandle => HttpError::bad_request(InvalidHandle.to_string())
                        .with_code(ErrorCode::KeyHandle),
                    _ => HttpError::unauthorized().with_code(ErrorCode::Grant),
                })
            }
        }
    }

    async fn begin_with_handle(
        &self,
        request: &Request,
        what: Operation,
        handle: &KeyHandle,
    ) -> Result<(Target, Doing), HttpError> {
        let target = self.resolve(request, what, handle)?;
        let key = Some(self.target_key(&target));
        let doing = self.recorder.begin(self.who(request)?, what, key).await?;
        Ok((target, doing))
    }

    fn expect_auditor(&self, request: &Request) -> Result<(), HttpError> {
        let Err(reason) = self.policy.may_audit(request.caller.uid()) else { return Ok(()) };
        self.recorder.refused(self.refused_who(request), Operation::ReadAudit, None, reason);
        Err(HttpError::unauthorized().with_code(ErrorCode::Grant))
    }

    /// A key as the audit log names it.
    fn key(&self, id: &KeyId) -> Key {
        let mut key = Key::new(id.clone());
        key.purpose = self.policy.purpose(id);
        key
    }

    fn target_key(&self, target: &Target) -> Key {
        let mut key = self.key(target.key_id());
        if let Target::Derived { data, .. } = target {
            key.derived = true;
            let module =
                if key.purpose == Some(Purpose::Identity) { module_of(data) } else { None };
            key.module = module.map(Box::new);
        }
        key
    }

    fn binding(&self, request: &Request, id: &KeyId) -> Binding {
        self.policy.binding(request.caller.uid(), id, self.boot.now())
    }

    /// 400 unless there is a key of this kind under this id.
    async fn expect_kind(
        &self,
        request: &Request,
        id: &KeyId,
        expected: KeyKind,
    ) -> Result<(), HttpError> {
        let wanted = id.clone();
        match self.in_use(request, move |backend| backend.kind(&wanted)).await? {
            Some(found) if found == expected => self.remember(request, id).await,
            Some(found) => Err(refuse(KeyError::WrongKind { id: id.clone(), found, expected })),
            None => Err(refuse(KeyError::NotFound { id: id.clone() })),
        }
    }

    /// Makes a key, if the caller may have one more. One that was there and is gone is
    /// only made from what is `given`.
    async fn make(
        &self,
        request: &Request,
        doing: Doing,
        id: &KeyId,
        given: bool,
        make: impl FnOnce(&dyn KeyBackend) -> Result<(), KeyError> + Send + 'static,
    ) -> Result<(), HttpError> {
        let uid = request.caller.uid();
        let (makers, kept, id) = (Arc::clone(&self.makers), Arc::clone(&self.kept), id.clone());
        let subject = Subject::key(id.as_str());
        let bound = (!self.policy.is_unrestricted(uid)).then_some(uid);
        let made = self.on_disk(request, move |backend| {
            match kept
                .make(&id, given, backend, || makers.make(bound, &id, backend, || make(backend)))
            {
                Err(MakeError::Key(error)) => Err(error),
                made => Ok(made),
            }
        });
        let refusal = match made.await {
            Ok(Err(MakeError::TooMany(too_many))) => too_many,
            Ok(Err(MakeError::Lost(lost))) => return doing.end(Err(self.tell_lost(&lost))),
            Ok(Ok(())) => {
                self.board.clear(Code::KeyLost, &subject);
                return doing.end(Ok(()));
            }
            Ok(made) => return doing.end(made.map_err(|error| HttpError::hidden(&error))),
            Err(error) => return doing.end(Err(error)),
        };
        doing.refused(Reason::TooManyKeys);
        Err(HttpError::new(StatusCode::FORBIDDEN, refusal.to_string()))
    }

    async fn delete(
        &self,
        request: &Request,
        doing: Doing,
        id: KeyId,
        kind: KeyKind,
    ) -> Result<(), HttpError> {
        let (makers, kept) = (Arc::clone(&self.makers), Arc::clone(&self.kept));
        let deleted = move |backend: &dyn KeyBackend| {
            if let Err(error) = kept.forget(&id) {
                return Ok(Err(error));
            }
            backend.delete(&id, kind)?;
            makers.forget(&id);
            Ok(Ok(()))
        };
        doing.end(self.on_disk(request, deleted).await.and_then(written_down))
    }

    /// Tells operators of a key that is gone; the answer to who wanted it made is 500
    /// with the remedy.
    fn tell_lost(&self, lost: &LostKey) -> HttpError {
        self.board.raise(Code::KeyLost, &Subject::key(lost.id().as_str()), lost.to_string());
        HttpError::internal(lost.to_string())
    }

    /// Remembers a key that was found, if it is not remembered yet.
    async fn remember(&self, request: &Request, id: &KeyId) -> Result<(), HttpError> {
        if self.kept.is_noted(id) {
            return Ok(());
        }
        let (kept, id) = (Arc::clone(&self.kept), id.clone());
        self.on_disk(request, move |_| {
            kept.note(&id);
            Ok(())
        })
        .await
    }

    /// Runs what waits for the disk, or computes for long, off the thread that answers
    /// requests.
    async fn on_disk<T: Send + 'static>(
        &self,
        request: &Request,
        run: impl FnOnce(&dyn KeyBackend) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, HttpError> {
        let turn = self.turns.take(request.caller.uid()).await;
        let backend = Arc::clone(&self.backend);
        let run = move || {
            // Until it is done, also if nobody waits for it any more.
            let _turn = turn;
            run(&*backend)
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(done) => done.map_err(refuse),
            Err(failed) => Err(HttpError::hidden(&failed)),
        }
    }

    /// Uses a key: here, if that is a matter of microseconds, and off the thread that
    /// answers, if it is one of waiting for a disk, a token or a TPM.
    async fn in_use<T: Send + 'static>(
        &self,
        request: &Request,
        run: impl Fn(&dyn KeyBackend) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, HttpError> {
        match self.backend.without_waiting().map(|backend| run(&*backend)) {
            None | Some(Err(KeyError::WouldWait)) => self.on_disk(request, run).await,
            Some(done) => done.map_err(refuse),
        }
    }

    /// The same with a symmetric or derived key.
    async fn with_symmetric<T: Send + 'static>(
        &self,
        request: &Request,
        target: Target,
        run: impl Fn(&dyn KeyBackend, SymmetricKey<'_>) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, HttpError> {
        match target {
            Target::Symmetric(id) => {
                self.in_use(request, move |backend| run(backend, SymmetricKey::Stored(&id))).await
            }
            Target::Derived { base, data } => {
                self.in_use(request, move |backend| {
                    run(backend, SymmetricKey::Derived { base: &base, data: &data })
                })
                .await
            }
            Target::Pair(_) => Err(wrong_mechanism()),
        }
    }

    /// The RSA private-key operation takes milliseconds.
    async fn rsa(
        &self,
        request: &Request,
        id: KeyId,
        padding: RsaPadding,
        block: SecretBytes,
    ) -> Result<Vec<u8>, HttpError> {
        self.on_disk(request, move |backend| {
            backend.rsa_private_operation(&id, padding, block.expose())
        })
        .await
    }
}

/// The module whose key is derived with this data: `<module>:<generation>:primary`, or
/// `secondary` (wire facts 3.2).
fn module_of(data: &[u8]) -> Option<ModuleId> {
    let mut parts = std::str::from_utf8(data).ok()?.rsplitn(3, ':');
    let which = parts.next()?;
    parts.next()?;
    let module = parts.next()?;
    if matches!(which, "primary" | "secondary") { module.parse().ok() } else { None }
}

fn parse_id(text: &str) -> Result<KeyId, HttpError> {
    text.parse().map_err(|error| {
        wrong_request(format!("parameter \"id\" has an invalid value\ncaused by: {error}"))
    })
}

fn issued(handle: Result<KeyHandle, IssueError>) -> Answer {
    match handle {
        Ok(key_handle) => Ok(Response::ok(&HandleBody { key_handle })),
        Err(error @ IssueError::Random) => Err(HttpError::hidden(&error)),
        Err(error @ IssueError::Base(_)) => {
            Err(HttpError::bad_request(error.to_string()).with_code(ErrorCode::KeyHandle))
        }
        Err(error @ (IssueError::BaseKind | IssueError::LongData)) => {
            Err(wrong_request(error.to_string()))
        }
    }
}

/// 400 with the reason, if the request was wrong; else 500, with the reason in the log
/// only.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refuse(error: KeyError) -> HttpError {
    if !error.is_callers_fault() {
        return HttpError::hidden(&error);
    }
    let text = error.to_string();
    match error {
        KeyError::NotFound { .. } => {
            let text = format!("parameter \"id\" has an invalid value\ncaused by: {text}");
            HttpError::bad_request(text).with_code(ErrorCode::Absent)
        }
        KeyError::WrongKind { .. }
        | KeyError::Preloaded { .. }
        | KeyError::PreloadedUnusable { .. } => {
            wrong_request(format!("parameter \"id\" has an invalid value\ncaused by: {text}"))
        }
        _ => wrong_request(text),
    }
}

/// 500 if what is about to be done could not be written down first.
fn written_down(done: Result<(), StoreError>) -> Result<(), HttpError> {
    done.map_err(|error| HttpError::hidden(&error))
}

fn refuse_input(error: InputError) -> HttpError {
    wrong_request(error.to_string())
}

/// Returns a 400 whose cause is not the handle, so that no client asks for another one.
fn wrong_request(text: impl Into<String>) -> HttpError {
    HttpError::bad_request(text).with_code(ErrorCode::Request)
}

fn wrong_handle_kind() -> HttpError {
    wrong_request("the handle is for another kind of key")
}

fn wrong_mechanism() -> HttpError {
    wrong_request("the algorithm cannot be used with this kind of key")
}
