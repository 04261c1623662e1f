//! Keeps what is known of the modules in step with the hub, in the background: at the
//! start, from time to time, when somebody misses a module, and after errors with growing
//! pauses. One round at a time, and no caller waits for one for long.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edgekeep_base::error;
use edgekeep_base::lock::lock;
use edgekeep_cloud::{CloudError, EnsureError, Hub, ModuleRecord, Transport};
use edgekeep_core::foreign_text::{CHAIN_LIMIT, cleaned};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::ModuleId;
use edgekeep_core::module_list::{KnownModule, Listing};
use edgekeep_core::module_refresh::{Event, Limits, State, step};
use edgekeep_core::provisioning::DeviceIdentity;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::clock::Steps;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::device::{Device, LONG, Wish, random};
use crate::keys::{DeviceKeys, KeysError};
use crate::modules::{Modules, of_listed};
use crate::prover::Prover;
use crate::tpm::DeviceSigner;

/// Most modules that one log line names.
const TOLD: usize = 10;
/// Most repairs that wait.
const REPAIRS: usize = 100;

/// Problems that end when the hub answers as it should.
const HUB: [Code; 3] = [Code::CloudRefuses, Code::CloudFault, Code::CloudUnreachable];

/// The problem of the device that an error of a call to the hub is, if it is one.
const fn problem(error: &CloudError) -> Option<Code> {
    match error {
        CloudError::DeviceRefused { .. } | CloudError::CertificateRefused { .. } => {
            Some(Code::CloudRefuses)
        }
        CloudError::Service { .. } | CloudError::Throttled { .. } | CloudError::Answer { .. } => {
            Some(Code::CloudFault)
        }
        CloudError::NetworkDown { .. }
        | CloudError::Timeout { .. }
        | CloudError::Untrusted { .. } => Some(Code::CloudUnreachable),
        _ => None,
    }
}

/// Failure to look up or change a module at the hub.
pub(crate) type HubError = EnsureError<KeysError>;

/// The hub of a device, as this daemon uses it.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    pub(crate) transport: Arc<Transport>,
    pub(crate) keys: Arc<DeviceKeys>,
    pub(crate) prover: Arc<Prover>,
    pub(crate) parent: Option<String>,
    pub(crate) modules: Arc<Modules>,
    pub(crate) device: Arc<Device>,
    pub(crate) refresh: Arc<Refresh>,
    pub(crate) board: Board,
}

impl Registry {
    async fn hub(&self, identity: &DeviceIdentity) -> Result<Hub<DeviceSigner>, CloudError> {
        Hub::new(
            Arc::clone(&self.transport),
            identity,
            self.parent.as_deref(),
            self.prover.to_hub().await?,
        )
        .map_err(|error| CloudError::Request {
            what: format!("the hub's or the parent's name is {error}"),
        })
    }

    /// Makes sure of a module and its keys, and remembers it.
    pub(crate) async fn ensure(
        &self,
        identity: &DeviceIdentity,
        module: &ModuleId,
        create: bool,
    ) -> Result<ModuleRecord, HubError> {
        let hub = self.hub(identity).await?;
        let keys = |generation| async move { self.keys.export(module, &generation).await };
        // The runtime's own modules are made by the hub; where it did not, they are made
        // here, by whoever updates them.
        let create_missing = create || module.as_str().starts_with('$');
        let result = match hub.ensure(module, create, keys).await {
            Err(EnsureError::Cloud(CloudError::NotFound { .. })) if create_missing && !create => {
                hub.ensure(module, true, keys).await
            }
            other => other,
        };
        match &result {
            Ok(record) => {
                self.modules.set(identity, record);
                self.note_success();
                self.save().await;
            }
            Err(EnsureError::Cloud(error)) => {
                self.note(error);
                if matches!(error, CloudError::NotFound { .. }) {
                    self.modules.remove(identity, module);
                    self.save().await;
                }
            }
            Err(EnsureError::Keys(_)) => {}
        }
        result
    }

    /// Deletes a module and forgets it. One that the hub does not have is forgotten as
    /// well, and reported.
    pub(crate) async fn delete(
        &self,
        identity: &DeviceIdentity,
        module: &ModuleId,
    ) -> Result<(), CloudError> {
        let result = self.hub(identity).await?.delete(module).await;
        match &result {
            Ok(()) | Err(CloudError::NotFound { .. }) => {
                self.modules.remove(identity, module);
                self.note_success();
                self.save().await;
            }
            Err(error) => self.note(error),
        }
        result
    }

    /// The hub's list, taken over.
    async fn list(&self, identity: &DeviceIdentity) -> Result<(), CloudError> {
        let mark = self.modules.mark();
        let listing =
            self.hub(identity).await?.list().await.inspect_err(|error| self.note(error))?;
        let listing = listing.map(of_listed);
        let left_out = self.modules.replace(identity, mark, &listing);
        self.tell_of(&listing, left_out);
        self.note_success();
        self.save().await;
        Ok(())
    }

    /// Tells of what in a list was not taken over.
    fn tell_of(&self, listing: &Listing<KnownModule>, left_out: usize) {
        let unreadable: Vec<&str> =
            listing.unreadable().iter().map(ModuleId::as_str).take(TOLD).collect();
        let mut found = Vec::new();
        if !unreadable.is_empty() || listing.nameless() > 0 {
            found.push(format!(
                "{} modules without a usable generation ({}) and {} entries without a module's id",
                listing.unreadable().len(),
                unreadable.join(" "),
                listing.nameless()
            ));
        }
        if left_out > 0 {
            found.push(format!("{left_out} modules more than are remembered"));
        }
        let problem = (!found.is_empty()).then(|| (Subject::device(), found.join("; ")));
        self.board.replace(Code::ModuleListUnusable, problem);
    }

    /// Takes down that the hub did what it was asked for.
    fn note_success(&self) {
        self.refresh.note(Event::Reached);
        self.device.accepted();
        self.tell(None);
    }

    /// Has the board say what is the matter with the hub, in place of what was.
    fn tell(&self, error: Option<(Code, &CloudError)>) {
        let hub = self.device.view().identity.map(|identity| Subject::cloud(&identity.hub));
        let hub = hub.unwrap_or_else(Subject::device);
        for other in HUB.into_iter().filter(|other| error.is_none_or(|(code, _)| *other != code)) {
            self.board.clear_all(other);
        }
        match error.and_then(|(_, error)| error.retry_after()).filter(|asked| *asked > LONG) {
            Some(asked) => {
                let detail = format!("it asks for a pause of {} s", asked.as_secs());
                self.board.raise(Code::CloudAsksToWait, &hub, detail);
            }
            None => self.board.clear(Code::CloudAsksToWait, &hub),
        }
        if let Some((code, error)) = error {
            self.board.replace(code, [(hub, error.chain())]);
        }
    }

    /// Draws the conclusions from an error, whoever met it.
    fn note(&self, error: &CloudError) {
        match (problem(error), error) {
            (Some(code), _) => self.tell(Some((code, error))),
            // It was not even asked.
            (
                None,
                CloudError::Signer(_) | CloudError::Roots { .. } | CloudError::Request { .. },
            ) => {}
            // What it says is right, and against what was asked.
            (None, _) => self.tell(None),
        }
        self.refresh.note(match error.is_network_down() {
            true => Event::Unreached { retry_after: error.retry_after() },
            false => Event::Reached,
        });
        if error.refuses_device() {
            self.device.wish(Wish::HubRefused);
        }
    }

    /// A failure to write costs the next start some knowledge and this one nothing.
    pub(crate) async fn save(&self) {
        if let Err(error) = self.modules.save().await {
            tracing::error!(%error, "the list of modules could not be saved");
        }
    }
}

/// The rounds' outcomes, and the way to wish for one.
#[derive(Debug)]
pub(crate) struct Refresh {
    wake: Notify,
    rounds: watch::Sender<u64>,
    /// The moment from which the times of the state count.
    start: Instant,
    state: Mutex<State>,
    /// Modules whose keys are to be checked at the hub when it can be reached, and
    /// whether to create them.
    repairs: Mutex<BTreeSet<ModuleId>>,
}

impl Refresh {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            wake: Notify::new(),
            rounds: watch::Sender::new(0),
            start: Instant::now(),
            state: Mutex::new(State::new(*limits)),
            repairs: Mutex::new(BTreeSet::new()),
        }
    }

    /// Wishes for a round and waits for the end of one, at most for `patience`.
    pub(crate) async fn wait_for_round(&self, patience: Duration) {
        let mut rounds = self.rounds.subscribe();
        self.wake.notify_one();
        // Whether a round ended in time makes no difference: the caller looks again.
        let _ = tokio::time::timeout(patience, rounds.changed()).await;
    }

    /// Has the module's keys checked at the hub when it can be reached.
    pub(crate) fn repair_later(&self, module: &ModuleId) {
        let mut repairs = lock(&self.repairs);
        if repairs.len() < REPAIRS {
            repairs.insert(module.clone());
        }
        drop(repairs);
        self.wake.notify_one();
    }

    /// True if the hub could not be reached a moment ago, or asked to be left alone until
    /// later than now.
    pub(crate) fn is_offline(&self) -> bool {
        lock(&self.state).is_offline(self.start.elapsed())
    }

    /// True if the hub's list was taken over so shortly ago that it is not worth asking
    /// again.
    pub(crate) fn is_fresh(&self) -> bool {
        lock(&self.state).is_fresh(self.start.elapsed())
    }

    /// Takes in an event; returns the state before and after it.
    fn note(&self, event: Event) -> (State, State) {
        let mut state = lock(&self.state);
        let before = *state;
        *state = step(before, event, self.start.elapsed(), random());
        (before, *state)
    }

    /// Waits for the time of the next round, which may move meanwhile.
    async fn due(&self) {
        let due = lock(&self.state).due();
        tokio::time::sleep_until(self.start + due).await;
    }
}

/// The one who asks.
pub(crate) struct Refresher {
    pub(crate) registry: Registry,
    /// Module identities of this device's own principals.
    pub(crate) principals: BTreeSet<ModuleId>,
}

impl Refresher {
    /// Asks, for ever.
    pub(crate) async fn run(self) {
        let refresh = Arc::clone(&self.registry.refresh);
        let mut served = self.registry.device.served();
        let mut steps = Steps::watch();
        loop {
            served.mark_unchanged();
            let Some(identity) = self.registry.device.view().identity else {
                if served.changed().await.is_err() {
                    return;
                }
                continue;
            };
            self.registry.modules.belong_to(&identity);
            let outcome = self.round(&identity).await;
            let (before, after) = refresh.note(match &outcome {
                Ok(()) => Event::Succeeded,
                Err(error) => Event::Failed { retry_after: error.retry_after() },
            });
            match &outcome {
                Ok(()) if before.failures() > 0 => {
                    tracing::info!(hub = %identity.hub, "the hub answers again");
                }
                Ok(()) => {}
                Err(error) if before.failures() == 0 => {
                    tracing::warn!(error = %error.chain(), "the modules cannot be refreshed; serving what is known");
                }
                Err(error) => {
                    let failures = after.failures();
                    tracing::debug!(error = %error.chain(), failures, "the modules cannot be refreshed");
                }
            }
            refresh.rounds.send_modify(|round| *round += 1);
            loop {
                let event = tokio::select! {
                    () = refresh.due() => break,
                    changed = served.changed() => match changed {
                        Ok(()) => Event::Served,
                        Err(_) => return,
                    },
                    _ = steps.next() => Event::ClockSet,
                    () = refresh.wake.notified() => Event::Wished,
                };
                refresh.note(event);
            }
        }
    }

    async fn round(&self, identity: &DeviceIdentity) -> Result<(), CloudError> {
        self.registry.keys.wait_for_keyd().await;
        self.registry.list(identity).await?;
        self.reconcile_principals(identity).await?;
        let repairs = std::mem::take(&mut *lock(&self.registry.refresh.repairs));
        for module in repairs {
            self.ensure(identity, &module, false).await?;
        }
        Ok(())
    }

    /// Creates the modules of principals that are configured, deletes those of principals
    /// that are not any more.
    async fn reconcile_principals(&self, identity: &DeviceIdentity) -> Result<(), CloudError> {
        let modules = &self.registry.modules;
        let mut own = modules.own();
        for module in &self.principals {
            if modules.get(identity, module).is_none() || !own.contains(module) {
                self.ensure(identity, module, true).await?;
                own.insert(module.clone());
                modules.set_own(own.clone());
            }
        }
        for module in own.clone().difference(&self.principals) {
            match self.registry.delete(identity, module).await {
                Ok(()) | Err(CloudError::NotFound { .. }) => {
                    own.remove(module);
                    modules.set_own(own.clone());
                }
                Err(error) => return Err(error),
            }
        }
        self.registry.save().await;
        Ok(())
    }

    /// Makes sure of a module and its keys at the hub. An error that concerns this module
    /// alone is reported and does not stop the others.
    async fn ensure(
        &self,
        identity: &DeviceIdentity,
        module: &ModuleId,
        create: bool,
    ) -> Result<(), CloudError> {
        match self.registry.ensure(identity, module, create).await {
            Ok(_) => Ok(()),
            Err(EnsureError::Cloud(error)) if error.is_network_down() || error.refuses_device() => {
                Err(error)
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%module, %error, "the module's keys could not be registered");
                Ok(())
            }
        }
    }
}

/// An error and its causes in one line, within bounds: a cause may repeat what a peer
/// sent.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    cleaned(&error::chain(error), CHAIN_LIMIT)
}
