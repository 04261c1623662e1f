//! The identities that modules act under, as identityd answers them; kept here so that a
//! signature costs no look-up.
//!
//! An entry older than a minute is still served, and asked for again in the background: a
//! slow or absent identityd delays no module that was known once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use edgekeep_api::client::ClientError;
use edgekeep_api::identityd::{AziotIdentity, Identity, IdentityClient};
use edgekeep_api::keyd::KeyHandle;
use edgekeep_api::{Recipient, says_absent};
use edgekeep_core::id::ModuleId;
use http::StatusCode;
use tokio::sync::watch;

const FRESH: Duration = Duration::from_secs(60);
/// Longest that the identity service may take. A compatible one asks the hub for each
/// answer, twice for 70 s if the hub is away, and answers one request at a time.
const SERVICE_LIMIT: Duration = Duration::from_secs(300);
/// Longest that a caller is kept waiting for it: existing clients give up after 60 s.
const CALLER_LIMIT: Duration = Duration::from_secs(45);
/// More modules than a device has; a bound all the same.
const LIMIT: usize = 4096;

/// A module's identity, with what is needed to use it.
#[derive(Debug)]
pub(crate) struct ModuleIdentity {
    /// Host name of the hub.
    pub(crate) hub: String,
    /// The device.
    pub(crate) device: String,
    /// Its generation.
    pub(crate) generation: String,
    /// Its signing key in keyd.
    pub(crate) key: KeyHandle,
    since: Instant,
    refreshing: AtomicBool,
}

/// Failure to get a usable identity of a module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// identityd refused or cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The identity is not one with a key and a generation.
    #[error("the identity of module {module} has no {missing}")]
    Incomplete {
        /// The module.
        module: ModuleId,
        /// Name of what is missing, for the error's text.
        missing: &'static str,
    },
    /// identityd has not answered yet.
    #[error(
        "identityd has not told the identity of module {module} within {} s; it goes on being asked: try again",
        CALLER_LIMIT.as_secs()
    )]
    Slow {
        /// The module.
        module: ModuleId,
    },
}

type Outcome = Result<Arc<ModuleIdentity>, Arc<IdentityError>>;

/// Identities by module.
#[derive(Debug)]
pub(crate) struct IdentityCache {
    client: IdentityClient,
    known: RwLock<HashMap<ModuleId, Arc<ModuleIdentity>>>,
    /// Questions under way, one a module.
    asked: Mutex<HashMap<ModuleId, watch::Receiver<Option<Outcome>>>>,
}

impl IdentityCache {
    /// An empty cache in front of `client`.
    #[must_use]
    pub(crate) fn new(client: IdentityClient) -> Self {
        Self { client, known: RwLock::default(), asked: Mutex::default() }
    }

    /// A client that waits as long as the service may take for what needs the hub.
    #[must_use]
    pub(crate) fn client(&self) -> IdentityClient {
        self.client.with_timeout(SERVICE_LIMIT)
    }

    /// A client for what the service knows by itself.
    #[must_use]
    pub(crate) fn quick_client(&self) -> &IdentityClient {
        &self.client
    }

    /// The identity of a module.
    ///
    /// # Errors
    /// If it is not known here and identityd cannot tell, or not in time.
    pub(crate) async fn module(self: &Arc<Self>, module: &ModuleId) -> Outcome {
        if let Some(identity) = self.cached(module) {
            if identity.since.elapsed() > FRESH && !identity.refreshing.swap(true, Ordering::AcqRel)
            {
                let this = Arc::clone(self);
                let module = module.clone();
                tokio::spawn(async move { this.refresh(&module).await });
            }
            return Ok(identity);
        }
        let slow = || Arc::new(IdentityError::Slow { module: module.clone() });
        let mut asked = self.ask(module);
        let outcome = tokio::time::timeout(CALLER_LIMIT, asked.wait_for(Option::is_some)).await;
        match outcome.map(|told| told.map(|outcome| outcome.clone())) {
            Ok(Ok(Some(outcome))) => outcome,
            _ => Err(slow()),
        }
    }

    /// Asks identityd, once for all callers that wait for the same module. Goes on when
    /// they have given up, so that the next one finds the answer.
    fn ask(self: &Arc<Self>, module: &ModuleId) -> watch::Receiver<Option<Outcome>> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = asked.get(module) {
            return running.clone();
        }
        let (tell, told) = watch::channel(None);
        asked.insert(module.clone(), told.clone());
        let (this, module) = (Arc::clone(self), module.clone());
        tokio::spawn(async move {
            let outcome = this.load(&module).await.map_err(Arc::new);
            this.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&module);
            tell.send_replace(Some(outcome));
        });
        told
    }

    /// Forgets a module's identity: it was changed, deleted, or its key handle is no
    /// longer good.
    pub(crate) fn forget(&self, module: &ModuleId) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(module);
    }

    fn cached(&self, module: &ModuleId) -> Option<Arc<ModuleIdentity>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(module).cloned()
    }

    async fn refresh(&self, module: &ModuleId) {
        match self.load(module).await {
            Ok(_) => {}
            Err(IdentityError::Client(error)) if ends_identity(&error) => self.forget(module),
            Err(error) => {
                tracing::debug!(%error, %module, "identity not refreshed");
                if let Some(identity) = self.cached(module) {
                    identity.refreshing.store(false, Ordering::Release);
                }
            }
        }
    }

    async fn load(&self, module: &ModuleId) -> Result<Arc<ModuleIdentity>, IdentityError> {
        let incomplete = |missing| IdentityError::Incomplete { module: module.clone(), missing };
        let Identity::Aziot(AziotIdentity { hub_name, device_id, gen_id, auth, .. }) =
            self.client().module(module.as_str()).await?
        else {
            return Err(incomplete("identity at the hub"));
        };
        let identity = Arc::new(ModuleIdentity {
            hub: hub_name,
            device: device_id,
            generation: gen_id.ok_or_else(|| incomplete("generation id"))?,
            key: auth.and_then(|auth| auth.key_handle).ok_or_else(|| incomplete("key"))?,
            since: Instant::now(),
            refreshing: AtomicBool::new(false),
        });
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= LIMIT {
            known.clear();
        }
        known.insert(module.clone(), Arc::clone(&identity));
        Ok(identity)
    }
}

/// Decides whether an answer ends an identity that is known. That it cannot be told now
/// (the hub or the keys service is away, for which both kinds of identity services answer
/// 404) does not.
fn ends_identity(error: &ClientError) -> bool {
    error.status() == Some(StatusCode::UNAUTHORIZED) || says_absent(error, Recipient::Identities)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use edgekeep_api::ErrorCode;
    use edgekeep_daemon::listen;
    use edgekeep_daemon::server::{Limits, Response, Router, serve};
    use http::Method;
    use serde_json::json;
    use tokio::sync::Notify;

    use super::*;

    /// An identity service that answers when it is told to.
    #[derive(Debug, Default)]
    struct Slow {
        asked: AtomicUsize,
        answers: Notify,
    }

    #[tokio::test]
    async fn all_callers_of_a_module_wait_for_one_question_and_one_that_gives_up_does_not_end_it() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("identityd.sock");
        let slow = Arc::new(Slow::default());
        let router = Router::new(Arc::clone(&slow), edgekeep_api::identityd::API_VERSIONS);
        let router =
            router.route(Method::GET, "/identities/modules/{id}", "2020-09-01", |slow: Arc<Slow>, _| async move {
                slow.asked.fetch_add(1, Ordering::SeqCst);
                slow.answers.notified().await;
                let auth = json!({ "type": "sas", "keyHandle": "h" });
                let spec =
                    json!({ "hubName": "hub", "gatewayHost": "hub", "deviceId": "d", "genId": "1", "auth": auth });
                Ok(Response::ok(&json!({ "type": "aziot", "spec": spec })))
            });
        let listener = listen::bind(&socket, 0o600).unwrap();
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(serve(listener, Arc::new(router), Limits::default(), stopped));

        let cache = Arc::new(IdentityCache::new(IdentityClient::new(&socket)));
        let module: ModuleId = "m1".parse().unwrap();
        // Polled once, then given up.
        let gone = tokio::time::timeout(Duration::ZERO, cache.module(&module)).await;
        assert!(gone.is_err());
        let answer = async {
            while slow.asked.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            slow.answers.notify_one();
        };
        let (first, second, ()) =
            tokio::join!(cache.module(&module), cache.module(&module), answer);
        assert_eq!(first.unwrap().generation, "1");
        assert!(Arc::ptr_eq(&second.unwrap(), &cache.module(&module).await.unwrap()));
        assert_eq!(slow.asked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_identity_ends_when_it_is_gone_or_no_longer_ours_and_not_when_nothing_can_be_told() {
        let error =
            |status, code| ClientError::Status { status, message: "not found".to_owned(), code };
        assert!(ends_identity(&error(StatusCode::NOT_FOUND, Some(ErrorCode::Absent))));
        assert!(ends_identity(&error(StatusCode::UNAUTHORIZED, None)));
        for status in
            [StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST, StatusCode::INTERNAL_SERVER_ERROR]
        {
            assert!(!ends_identity(&error(status, None)), "{status}");
        }
    }
}
