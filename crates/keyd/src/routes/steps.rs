//! The steps that the routes of the keys API have in common: reading a handle, asking the
//! policy, taking a place in the audit log, waiting for what is slow, and refusing.

use std::sync::Arc;

use edgekeep_api::ErrorCode;
use edgekeep_api::keyd::{HandleBody, KeyHandle};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::{KeyId, ModuleId};
use edgekeep_core::key_use::{Binding, Key, Operation, Purpose, Reason, Target, Who};
use edgekeep_daemon::server::{HttpError, Request, Response};
use edgekeep_daemon::store::StoreError;
use edgekeep_hsm::{
    InputError, KeyBackend, KeyError, KeyKind, RsaPadding, SecretBytes, SymmetricKey,
};
use http::StatusCode;

use crate::Keyd;
use crate::handle::{InvalidHandle, IssueError};
use crate::kept::LostKey;
use crate::makers::MakeError;
use crate::record::{self, Doing};

/// The answer of a route.
pub(super) type Answer = Result<Response, HttpError>;

impl Keyd {
    /// 401 unless the caller may name this key.
    pub(super) fn expect_name(
        &self,
        request: &Request,
        what: Operation,
        id: &KeyId,
    ) -> Result<(), HttpError> {
        self.policy
            .may_name(request.caller.uid(), id)
            .map_err(|reason| self.refuse_named(request, what, id, reason))
    }

    /// Writes a refusal down; the answer is 401.
    pub(super) fn refuse_named(
        &self,
        request: &Request,
        what: Operation,
        id: &KeyId,
        reason: Reason,
    ) -> HttpError {
        self.recorder.refused(self.refused_who(request), what, Some(self.key(id)), reason);
        HttpError::unauthorized().with_code(ErrorCode::Grant)
    }

    pub(super) fn refused_who(&self, request: &Request) -> Who {
        record::refused_who(request, &self.policy)
    }

    pub(super) fn who(&self, request: &Request) -> Result<Who, HttpError> {
        record::who(request, &self.policy)
    }

    pub(super) async fn begin_named(
        &self,
        request: &Request,
        what: Operation,
        id: &KeyId,
    ) -> Result<Doing, HttpError> {
        self.expect_name(request, what, id)?;
        self.recorder.begin(self.who(request)?, what, Some(self.key(id))).await
    }

    /// The key that a handle names, if the caller may do this with it.
    pub(super) fn resolve(
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

    pub(super) async fn begin_with_handle(
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

    /// A key as the audit log names it.
    pub(super) fn key(&self, id: &KeyId) -> Key {
        let mut key = Key::new(id.clone());
        key.purpose = self.policy.purpose(id);
        key
    }

    pub(super) fn target_key(&self, target: &Target) -> Key {
        let mut key = self.key(target.key_id());
        if let Target::Derived { data, .. } = target {
            key.derived = true;
            let module =
                if key.purpose == Some(Purpose::Identity) { module_of(data) } else { None };
            key.module = module.map(Box::new);
        }
        key
    }

    pub(super) fn binding(&self, request: &Request, id: &KeyId) -> Binding {
        self.policy.binding(request.caller.uid(), id, self.boot.now())
    }

    /// 400 unless there is a key of this kind under this id.
    pub(super) async fn expect_kind(
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
    pub(super) async fn make(
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

    pub(super) async fn delete(
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
    pub(super) fn tell_lost(&self, lost: &LostKey) -> HttpError {
        self.board.raise(Code::KeyLost, &Subject::key(lost.id().as_str()), lost.to_string());
        HttpError::internal(lost.to_string())
    }

    /// Remembers a key that was found, if it is not remembered yet.
    pub(super) async fn remember(&self, request: &Request, id: &KeyId) -> Result<(), HttpError> {
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
    pub(super) async fn on_disk<T: Send + 'static>(
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
    pub(super) async fn in_use<T: Send + 'static>(
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
    pub(super) async fn with_symmetric<T: Send + 'static>(
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
    pub(super) async fn rsa(
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
pub(super) fn module_of(data: &[u8]) -> Option<ModuleId> {
    let mut parts = std::str::from_utf8(data).ok()?.rsplitn(3, ':');
    let which = parts.next()?;
    parts.next()?;
    let module = parts.next()?;
    if matches!(which, "primary" | "secondary") { module.parse().ok() } else { None }
}

pub(super) fn parse_id(text: &str) -> Result<KeyId, HttpError> {
    text.parse().map_err(|error| {
        wrong_request(format!("parameter \"id\" has an invalid value\ncaused by: {error}"))
    })
}

pub(super) fn issued(handle: Result<KeyHandle, IssueError>) -> Answer {
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
pub(super) fn refuse(error: KeyError) -> HttpError {
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
pub(super) fn written_down(done: Result<(), StoreError>) -> Result<(), HttpError> {
    done.map_err(|error| HttpError::hidden(&error))
}

pub(super) fn refuse_input(error: InputError) -> HttpError {
    wrong_request(error.to_string())
}

/// Returns a 400 whose cause is not the handle, so that no client asks for another one.
pub(super) fn wrong_request(text: impl Into<String>) -> HttpError {
    HttpError::bad_request(text).with_code(ErrorCode::Request)
}

pub(super) fn wrong_handle_kind() -> HttpError {
    wrong_request("the handle is for another kind of key")
}

pub(super) fn wrong_mechanism() -> HttpError {
    wrong_request("the algorithm cannot be used with this kind of key")
}
