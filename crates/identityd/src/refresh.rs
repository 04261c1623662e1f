//! Keeps what is known of the modules in step with the hub, in the background: at the
//! start, from time to time, when somebody misses a module, and after errors with growing
//! pauses. One round at a time, and no caller waits for one for long.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edgekeep_cloud::{CloudError, EnsureError, Hub, ModuleRecord, Transport};
use edgekeep_core::foreign_text::{CHAIN_LIMIT, cleaned};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::ModuleId;
use edgekeep_core::module_list::Listing;
use edgekeep_core::provisioning::{DeviceIdentity, pause_after};
use edgekeep_daemon::board::Board;
use edgekeep_daemon::clock::Steps;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::device::{Device, LONG, Wish, random};
use crate::keys::{DeviceKeys, KeysError};
use crate::modules::{KnownModule, Modules};

/// How long a failure to reach the hub is taken as a sign that the next call would fail,
/// too.
const OFFLINE_MEMORY: Duration = Duration::from_secs(60);
/// Longest time for which the hub is left alone because it asked for that.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Most modules that one log line names.
const TOLD: usize = 10;
/// Most repairs that wait.
const REPAIRS: usize = 100;

/// Problems that end when the hub answers as it should.
const HUB: [Code; 3] = [Code::CloudRefuses, Code::CloudFault, Code::CloudUnreachable];

/// The problem of the device that an error of a call to the hub is, if it is one.
const fn problem(error: &CloudError) -> Option<Code> {
    match error {
        CloudError::DeviceRefused { .. } => Some(Code::CloudRefuses),
        CloudError::Service { .. } | CloudError::Throttled { .. } | CloudError::Answer { .. } => {
            Some(Code::CloudFault)
        }
        CloudError::NetworkDown { .. }
        | CloudError::Timeout { .. }
        | CloudError::Untrusted { .. } => Some(Code::CloudUnreachable),
        _ => None,
    }
}

/// When the hub is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshLimits {
    /// Between rounds when all is well; up to a half of it is taken off at random.
    pub period: Duration,
    /// Least time between two rounds, whoever wishes for one. A list that is younger
    /// counts as the truth.
    pub least_gap: Duration,
    /// Pause after the first failed round; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause after failures.
    pub longest_pause: Duration,
}

impl Default for RefreshLimits {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(3600),
            least_gap: Duration::from_secs(30),
            first_pause: Duration::from_secs(5),
            longest_pause: Duration::from_secs(600),
        }
    }
}

/// Why a module could not be looked up or changed at the hub.
pub(crate) type HubError = EnsureError<KeysError>;

/// The hub of a device, as this daemon uses it.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    pub(crate) transport: Arc<Transport>,
    pub(crate) keys: Arc<DeviceKeys>,
    pub(crate) parent: Option<String>,
    pub(crate) modules: Arc<Modules>,
    pub(crate) device: Arc<Device>,
    pub(crate) refresh: Arc<Refresh>,
    pub(crate) board: Board,
}

impl Registry {
    fn hub(&self, identity: &DeviceIdentity) -> Result<Hub<Arc<DeviceKeys>>, CloudError> {
        Hub::new(
            Arc::clone(&self.transport),
            identity,
            self.parent.as_deref(),
            Arc::clone(&self.keys),
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
        let hub = self.hub(identity)?;
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
        let result = self.hub(identity)?.delete(module).await;
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
        let listing = self.hub(identity)?.list().await.inspect_err(|error| self.note(error))?;
        let listing = listing.map(|listed| KnownModule::from(listed));
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
        self.refresh.note_reached();
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
        if error.is_network_down() {
            self.refresh.note_offline(error.retry_after());
        } else {
            self.refresh.note_reached();
        }
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
    offline_until: Mutex<Option<Instant>>,
    last_success: Mutex<Option<Instant>>,
    least_gap: Duration,
    /// Modules whose keys are to be checked at the hub when it can be reached, and
    /// whether to create them.
    repairs: Mutex<BTreeSet<ModuleId>>,
}

impl Refresh {
    pub(crate) fn new(limits: &RefreshLimits) -> Self {
        Self {
            wake: Notify::new(),
            rounds: watch::Sender::new(0),
            offline_until: Mutex::new(None),
            last_success: Mutex::new(None),
            least_gap: limits.least_gap,
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

    /// Whether the hub could not be reached a moment ago, or asked to be left alone until
    /// later than now.
    pub(crate) fn is_offline(&self) -> bool {
        lock(&self.offline_until).is_some_and(|until| Instant::now() < until)
    }

    /// Whether the hub's list was taken over so shortly ago that it is not worth asking
    /// again.
    pub(crate) fn is_fresh(&self) -> bool {
        lock(&self.last_success).is_some_and(|last| last.elapsed() < self.least_gap)
    }

    fn note_offline(&self, retry_after: Option<Duration>) {
        let pause = retry_after.unwrap_or_default().clamp(OFFLINE_MEMORY, LONGEST_RETRY_AFTER);
        *lock(&self.offline_until) = Some(Instant::now() + pause);
    }

    fn note_reached(&self) {
        *lock(&self.offline_until) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one who asks.
pub(crate) struct Refresher {
    pub(crate) registry: Registry,
    pub(crate) limits: RefreshLimits,
    /// Module identities of this device's own principals.
    pub(crate) principals: BTreeSet<ModuleId>,
}

impl Refresher {
    /// Asks, for ever.
    pub(crate) async fn run(self) {
        let refresh = Arc::clone(&self.registry.refresh);
        let mut served = self.registry.device.served();
        let mut failures = 0;
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
            let (pause, least) = match &outcome {
                Ok(()) => {
                    if failures > 0 {
                        tracing::info!(hub = %identity.hub, "the hub answers again");
                    }
                    failures = 0;
                    *lock(&refresh.last_success) = Some(Instant::now());
                    (
                        pause_after(0, self.limits.period, self.limits.period, random()),
                        self.limits.least_gap,
                    )
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(error = %error.chain(), "the modules cannot be refreshed; serving what is known");
                    } else {
                        tracing::debug!(error = %error.chain(), failures, "the modules cannot be refreshed");
                    }
                    let pause = pause_after(
                        failures,
                        self.limits.first_pause,
                        self.limits.longest_pause,
                        random(),
                    );
                    failures += 1;
                    let asked = error.retry_after().unwrap_or_default().min(LONGEST_RETRY_AFTER);
                    (pause.max(asked), self.limits.first_pause.max(asked))
                }
            };
            refresh.rounds.send_modify(|round| *round += 1);
            let ended = Instant::now();
            tokio::select! {
                changed = served.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(ended + pause) => {}
                // What failed by another time may succeed by this one, above all the
                // check of the hub's certificate.
                _ = steps.next(), if failures > 0 => {
                    refresh.note_reached();
                    failures = 0;
                    tokio::time::sleep_until(ended + least).await;
                }
                () = refresh.wake.notified() => {
                    // However many wish for it, not more often than this.
                    tokio::select! {
                        () = tokio::time::sleep_until(ended + least) => {}
                        changed = served.changed() => if changed.is_err() { return },
                    }
                }
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

    /// What concerns one module only is reported and does not stop the others.
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

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    cleaned(&text, CHAIN_LIMIT)
}
