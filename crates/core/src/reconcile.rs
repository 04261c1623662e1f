//! Next steps for a device's modules, as a function of what is wanted, what is there and
//! what is remembered.
//!
//! Each module is decided for by itself: one that fails, or whose state nobody knows,
//! holds back no other. A deployment counts as applied module by module, and only once
//! its container was made. The agent itself (`edgeAgent`) is never in a plan: it belongs
//! to the daemon's watchdog.
//!
//! Choices where the field's agents differ from their documentation or do harm:
//! - A changed restart policy, startup order or pull policy takes effect without a new
//!   container.
//! - A module that ended with exit code 0 is started again under `on-failure` and
//!   `on-unhealthy`, as the field's agents do: an exit cannot be told from the stop at a
//!   reboot. Unlike there, such restarts are counted and backed off.
//! - Restarts and retries wait at most [`LONGEST_WAIT`] and never end for good.
//! - A module whose update fails keeps being supervised as it was, until the update
//!   succeeds.
//! - What was removed is removed before anything is made (ports and names get free).
//!   Identities are deleted last: a hub that is away must not delay what needs no hub.
//!   Such a deletion is remembered until it succeeds.
//! - A wanted module whose identity is gone gets a new one, and one that was made for
//!   another generation of its identity is made anew: it presents a generation that
//!   nobody takes any more. Where the identities cannot be listed, nothing is concluded
//!   from that.
//! - A module that something else paused goes on after [`SHORTEST_WAIT`], whatever its
//!   restart policy: it has not ended.
//! - Wall-clock ages that are negative (the clock was set back) count as long enough.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::deployment::{DesiredStatus, RestartPolicy};
use crate::digest::Sha256Digest;
use crate::id::ModuleId;

/// Wait before the first retry or restart, in milliseconds. It doubles from time to time.
pub const SHORTEST_WAIT: i64 = 10_000;

/// Longest wait before a retry or restart, in milliseconds.
pub const LONGEST_WAIT: i64 = 300_000;

/// Milliseconds a module must have been running for its restarts to be forgotten.
pub const INTENSIVE_CARE: i64 = 600_000;

/// A moment by the wall clock, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Milliseconds since `earlier`; negative if the clock was set back.
    const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The state that one module should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Digest of everything its container is made from.
    pub fingerprint: Sha256Digest,
    /// Running or stopped.
    pub status: DesiredStatus,
    /// The condition under which the module is started again after it ended.
    pub restart_policy: RestartPolicy,
    /// Lower starts earlier.
    pub startup_order: u32,
}

/// All that should be.
pub type Targets = BTreeMap<ModuleId, Target>;

/// The state of a module, by the management API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeState {
    /// It runs.
    Running,
    /// It was frozen by something else.
    Paused,
    /// It never ran, or ended with exit code 0.
    Stopped,
    /// It ended with another exit code.
    Failed,
    /// Its container is beyond starting.
    Dead,
    /// The runtime does not say, or says something new.
    Unknown,
}

impl RuntimeState {
    /// The state that a word of the API means; case does not count.
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        let states = [
            ("running", Self::Running),
            ("paused", Self::Paused),
            ("stopped", Self::Stopped),
            ("failed", Self::Failed),
            ("unhealthy", Self::Failed),
            ("dead", Self::Dead),
        ];
        let found = states.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
        found.map_or(Self::Unknown, |(_, state)| *state)
    }
}

/// One module as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The state that the module is in.
    pub state: RuntimeState,
    /// The fingerprint its container was marked with when it was made, if the runtime
    /// shows it.
    pub fingerprint: Option<Sha256Digest>,
    /// The generation of its identity that its container was marked with when it was
    /// made, if the runtime shows it.
    pub generation: Option<String>,
    /// The time of the last start.
    pub last_start: Option<Timestamp>,
    /// The time of the last end.
    pub last_exit: Option<Timestamp>,
}

/// All that is.
pub type Current = BTreeMap<ModuleId, Observed>;

/// The generations of the identities that exist. A plan gets `None` instead where they
/// could not be listed.
pub type Generations = BTreeMap<ModuleId, String>;

/// One call of the management API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Create the identity, or update it if it is there.
    EnsureIdentity,
    /// Fetch what create or update will need.
    PrepareUpdate,
    /// Make the container.
    Create,
    /// Replace the container.
    Update,
    /// Remove the container.
    Remove,
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Delete the identity, if it is there.
    DeleteIdentity,
}

/// The reason why a step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The module is new.
    Create,
    /// Its container is made from something else than is wanted.
    Update,
    /// Its container is made for another generation of its identity than there is.
    Renew,
    /// It has no identity.
    Identify,
    /// Its container is dead.
    Recreate,
    /// It should run and was not started yet.
    Start,
    /// It should not run.
    Stop,
    /// It ended and its restart policy starts it again.
    Restart,
    /// Something else froze it.
    Resume,
    /// It is not wanted any more.
    Remove,
    /// Nor is its identity.
    DropIdentity,
}

/// The concern of a module that failed. Failures of each concern are remembered and
/// retried by their own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Concern {
    Apply,
    Run,
    Remove,
    Identity,
}

impl Purpose {
    const fn concern(self) -> Concern {
        match self {
            Self::Create | Self::Update | Self::Renew | Self::Recreate => Concern::Apply,
            Self::Start | Self::Stop | Self::Restart | Self::Resume => Concern::Run,
            Self::Remove => Concern::Remove,
            Self::Identify | Self::DropIdentity => Concern::Identity,
        }
    }
}

/// Actions on one module, to be taken in order; the first that fails ends the step, and
/// no other step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The module that the actions are for.
    pub module: ModuleId,
    /// The reason for the step.
    pub purpose: Purpose,
    /// The state that the module should have; `None` if the module is not wanted.
    pub target: Option<Target>,
    /// The calls.
    pub actions: Vec<Action>,
}

/// The memory of modules from round to round, and over restarts of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Memory {
    modules: BTreeMap<ModuleId, ModuleMemory>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModuleMemory {
    /// The digest of everything that the module's container was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    applied: Option<Sha256Digest>,
    /// The generation of the identity that its container was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<String>,
    /// The number of times in a row that the container was made anew for another
    /// generation. The time of the last such renewal is in `last_renewal`.
    #[serde(default)]
    renewals: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_renewal: Option<Timestamp>,
    /// The status that was brought about last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<DesiredStatus>,
    #[serde(default)]
    restarts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_restart: Option<Timestamp>,
    /// The time since when the module has been seen frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused_since: Option<Timestamp>,
    /// True if there may be an identity that goes when the module goes.
    identity: bool,
    /// True if the container was made for an identity that was deleted since.
    #[serde(default)]
    orphaned: bool,
    #[serde(default)]
    failures: BTreeMap<Concern, Failure>,
}

impl Default for ModuleMemory {
    fn default() -> Self {
        Self {
            applied: None,
            generation: None,
            renewals: 0,
            last_renewal: None,
            status: None,
            restarts: 0,
            last_restart: None,
            paused_since: None,
            identity: true,
            orphaned: false,
            failures: BTreeMap::new(),
        }
    }
}

/// Attempts that failed in a row, all at the same target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failure {
    count: u32,
    at: Timestamp,
    #[serde(default)]
    subject: Option<(Sha256Digest, DesiredStatus)>,
}

/// Milliseconds to wait after `count` earlier waits: 10 s, 20 s, 40 s and so on, up to
/// [`LONGEST_WAIT`].
#[must_use]
pub const fn wait(count: u32) -> i64 {
    const WAITS: Backoff = Backoff::new(
        Duration::from_millis(SHORTEST_WAIT.unsigned_abs()),
        Duration::from_millis(LONGEST_WAIT.unsigned_abs()),
    );
    WAITS.whole(count).as_millis() as i64
}

const fn is_over(now: Timestamp, since: Timestamp, wait: i64) -> bool {
    let age = now.since(since);
    age < 0 || age >= wait
}

fn subject(target: Option<&Target>) -> Option<(Sha256Digest, DesiredStatus)> {
    target.map(|target| (target.fingerprint, target.status))
}

/// The steps that lead from what is to what should be, in the order in which to take
/// them.
///
/// `identities` is `None` where they could not be listed.
#[must_use]
pub fn plan(
    desired: &Targets,
    current: &Current,
    identities: Option<&Generations>,
    memory: &Memory,
    now: Timestamp,
) -> Vec<Step> {
    let unknown = ModuleMemory::default();
    let remembered = |module: &ModuleId| memory.modules.get(module).unwrap_or(&unknown);
    let mut steps = Vec::new();

    for (module, observed) in current {
        if !desired.contains_key(module) && remembered(module).may_try(Concern::Remove, None, now) {
            let stop = (observed.state == RuntimeState::Running).then_some(Action::Stop);
            let actions = stop.into_iter().chain([Action::Remove]).collect();
            steps.push(Step {
                module: module.clone(),
                purpose: Purpose::Remove,
                target: None,
                actions,
            });
        }
    }

    let mut wanted: Vec<_> = desired.iter().collect();
    wanted.sort_by_key(|(_, target)| target.startup_order);
    for (module, target) in wanted {
        let (observed, memory) = (current.get(module), remembered(module));
        let generation =
            identities.and_then(|identities| identities.get(module)).map(String::as_str);
        let next = next(target, observed, generation, memory, now);
        let ensured =
            next.as_ref().is_some_and(|(_, actions)| actions.contains(&Action::EnsureIdentity));
        let lost = observed.is_some() && is_missing(identities, module);
        if lost && !ensured && memory.may_try(Concern::Identity, Some(target), now) {
            // A step of its own: if it fails, the module is looked after nevertheless.
            let actions = vec![Action::EnsureIdentity];
            steps.push(Step {
                module: module.clone(),
                purpose: Purpose::Identify,
                target: Some(*target),
                actions,
            });
        }
        if let Some((purpose, actions)) = next {
            steps.push(Step { module: module.clone(), purpose, target: Some(*target), actions });
        }
    }

    let mut gone: Vec<_> = current
        .keys()
        .chain(memory.modules.keys())
        .filter(|id| !desired.contains_key(*id))
        .collect();
    gone.sort();
    gone.dedup();
    for module in gone {
        let memory = remembered(module);
        if memory.identity && memory.may_try(Concern::Identity, None, now) {
            let actions = vec![Action::DeleteIdentity];
            steps.push(Step {
                module: module.clone(),
                purpose: Purpose::DropIdentity,
                target: None,
                actions,
            });
        }
    }

    steps.retain(|step| !step.module.is_edge_agent());
    steps
}

/// Returns true if there certainly is no identity.
fn is_missing(identities: Option<&Generations>, module: &ModuleId) -> bool {
    identities.is_some_and(|identities| !identities.contains_key(module))
}

/// Returns what to do about a module that is wanted, and why. `generation` is that of the
/// module's identity, as far as it is known.
fn next(
    target: &Target,
    observed: Option<&Observed>,
    generation: Option<&str>,
    memory: &ModuleMemory,
    now: Timestamp,
) -> Option<(Purpose, Vec<Action>)> {
    let may_apply = memory.may_try(Concern::Apply, Some(target), now);
    let start = (target.status == DesiredStatus::Running).then_some(Action::Start);
    let make = |purpose, actions: &[Action]| {
        let first = [Action::EnsureIdentity, Action::PrepareUpdate];
        Some((purpose, first.iter().chain(actions).copied().chain(start).collect()))
    };
    let Some(observed) = observed else {
        return if may_apply { make(Purpose::Create, &[Action::Create]) } else { None };
    };
    let changed = memory.is_outdated(target, observed);
    let outdated =
        changed || (memory.is_of_another_generation(observed, generation) && memory.may_renew(now));
    let purpose = if changed { Purpose::Update } else { Purpose::Renew };
    match observed.state {
        RuntimeState::Dead if may_apply && (outdated || start.is_some()) => {
            return make(Purpose::Recreate, &[Action::Remove, Action::Create]);
        }
        RuntimeState::Running if may_apply && outdated => {
            return make(purpose, &[Action::Stop, Action::Update]);
        }
        _ if may_apply && outdated => return make(purpose, &[Action::Update]),
        _ => {}
    }

    // Nothing to make, or not yet: look after what is there.
    if !memory.may_try(Concern::Run, Some(target), now) {
        return None;
    }
    let ended = matches!(observed.state, RuntimeState::Stopped | RuntimeState::Failed);
    match target.status {
        DesiredStatus::Stopped => {
            let up = matches!(observed.state, RuntimeState::Running | RuntimeState::Paused);
            up.then(|| (Purpose::Stop, vec![Action::Stop]))
        }
        // Tools freeze a module for the moment in which they copy its data.
        DesiredStatus::Running if observed.state == RuntimeState::Paused => {
            let due = memory.paused_since.is_some_and(|since| is_over(now, since, SHORTEST_WAIT));
            due.then(|| (Purpose::Resume, vec![Action::Start]))
        }
        DesiredStatus::Running if ended => {
            let never_started =
                observed.state == RuntimeState::Stopped && observed.last_start.is_none();
            if never_started || memory.status == Some(DesiredStatus::Stopped) {
                return Some((Purpose::Start, vec![Action::Start]));
            }
            let since = observed.last_exit.max(memory.last_restart);
            let due = since.is_none_or(|since| is_over(now, since, wait(memory.restarts)));
            (due && target.restart_policy != RestartPolicy::Never)
                .then(|| (Purpose::Restart, vec![Action::Start]))
        }
        DesiredStatus::Running => None,
    }
}

impl ModuleMemory {
    /// Returns true if enough time has passed since the last failure. A target that was
    /// not tried yet need not wait.
    fn may_try(&self, concern: Concern, target: Option<&Target>, now: Timestamp) -> bool {
        self.failures.get(&concern).is_none_or(|failure| {
            failure.subject != subject(target)
                || is_over(now, failure.at, wait(failure.count.saturating_sub(1)))
        })
    }
}

impl ModuleMemory {
    /// Returns true if the container was made from something else than is wanted, or for
    /// an identity that is gone.
    fn is_outdated(&self, target: &Target, observed: &Observed) -> bool {
        observed.fingerprint.or(self.applied) != Some(target.fingerprint) || self.orphaned
    }

    /// Returns true if the container was made for another generation of the identity than
    /// `generation`, which there is.
    fn is_of_another_generation(&self, observed: &Observed, generation: Option<&str>) -> bool {
        let made_for = observed.generation.as_deref().or(self.generation.as_deref());
        matches!((made_for, generation), (Some(made_for), Some(generation)) if made_for != generation)
    }

    /// A list of identities that lags behind what was made must not make containers anew
    /// in each round.
    fn may_renew(&self, now: Timestamp) -> bool {
        self.last_renewal
            .is_none_or(|last| is_over(now, last, wait(self.renewals.saturating_sub(1))))
    }

    /// Forgets failures to bring about what is there by now, or is not wanted any more.
    /// `identity` is what is known of the identity: its generation, or that there is
    /// none.
    fn forget_moot_failures(
        &mut self,
        target: Option<&Target>,
        observed: Option<&Observed>,
        identity: Option<Option<&str>>,
    ) {
        let outdated = match (target, observed) {
            (Some(target), Some(observed)) => {
                let known = identity.is_some();
                let generation = identity.flatten();
                !known
                    || self.is_outdated(target, observed)
                    || self.is_of_another_generation(observed, generation)
            }
            _ => true,
        };
        let identity_is_there = identity.flatten().is_some();
        self.failures.retain(|concern, failure| match (concern, target) {
            (Concern::Remove, None) => observed.is_some(),
            (Concern::Identity, None) => true,
            (Concern::Apply, Some(target)) => {
                let dead = observed.is_some_and(|observed| observed.state == RuntimeState::Dead);
                let needed = outdated || (dead && target.status == DesiredStatus::Running);
                failure.subject == subject(Some(target)) && needed
            }
            (Concern::Run, Some(target)) => {
                let running =
                    observed.is_some_and(|observed| observed.state == RuntimeState::Running);
                failure.subject == subject(Some(target))
                    && running != (target.status == DesiredStatus::Running)
            }
            (Concern::Identity, Some(target)) => {
                failure.subject == subject(Some(target)) && !identity_is_there
            }
            _ => false,
        });
    }
}

impl Memory {
    /// Takes in what a round saw, before its plan is made: forgets restarts of modules
    /// that have recovered, failures that do not matter any more, and modules of which
    /// nothing is left. `identities` is as for [`plan`].
    pub fn observe(
        &mut self,
        desired: &Targets,
        current: &Current,
        identities: Option<&Generations>,
        now: Timestamp,
    ) {
        self.adopt_generations(desired, current, identities);
        for (module, target) in desired {
            let Some(observed) = current.get(module) else { continue };
            let paused = observed.state == RuntimeState::Paused;
            if paused {
                // Of one that this agent did not make nothing is remembered yet.
                self.modules.entry(module.clone()).or_default();
            }
            let Some(memory) = self.modules.get_mut(module) else { continue };
            memory.paused_since = paused.then(|| memory.paused_since.unwrap_or(now));
            let running = observed.state == RuntimeState::Running;
            let ended = matches!(observed.state, RuntimeState::Stopped | RuntimeState::Failed);
            match target.status {
                DesiredStatus::Running if running => memory.status = Some(DesiredStatus::Running),
                DesiredStatus::Stopped if ended => memory.status = Some(DesiredStatus::Stopped),
                _ => {}
            }
            let since = observed.last_start.max(memory.last_restart);
            if running && since.is_some_and(|since| now.since(since) > INTENSIVE_CARE) {
                memory.restarts = 0;
            }
            if memory.last_renewal.is_some_and(|last| is_over(now, last, INTENSIVE_CARE)) {
                (memory.renewals, memory.last_renewal) = (0, None);
            }
        }
        for (module, memory) in &mut self.modules {
            let identity = identities.map(|identities| identities.get(module).map(String::as_str));
            memory.forget_moot_failures(desired.get(module), current.get(module), identity);
        }
        self.modules.retain(|module, memory| {
            desired.contains_key(module) || current.contains_key(module) || memory.identity
        });
    }

    /// Containers of which nobody noted a generation when they were made count as made
    /// for the first one that is seen.
    fn adopt_generations(
        &mut self,
        desired: &Targets,
        current: &Current,
        identities: Option<&Generations>,
    ) {
        for (module, generation) in identities.into_iter().flatten() {
            let Some(observed) = current.get(module).filter(|_| desired.contains_key(module))
            else {
                continue;
            };
            let memory = self.modules.get(module);
            let noted = observed.generation.is_some()
                || memory.is_some_and(|memory| memory.generation.is_some());
            let ours = observed.fingerprint.is_some()
                || memory.is_some_and(|memory| memory.applied.is_some());
            if ours && !noted {
                self.modules.entry(module.clone()).or_default().generation =
                    Some(generation.clone());
            }
        }
    }

    /// Takes in how far a step got: its first `completed` actions succeeded, and the one
    /// after them failed if there is one. `generation` is that of the module's identity
    /// after the step, if there is an identity.
    pub fn record(
        &mut self,
        step: &Step,
        completed: usize,
        generation: Option<&str>,
        now: Timestamp,
    ) {
        let memory = self.modules.entry(step.module.clone()).or_default();
        let mut concern = step.purpose.concern();
        if step.actions.contains(&Action::EnsureIdentity) {
            // Even a failed call may have made one.
            memory.identity = true;
        }
        for action in step.actions.iter().take(completed) {
            match action {
                Action::Create | Action::Update => {
                    memory.failures.remove(&Concern::Apply);
                    // From here on only the start can fail, which needs no new container.
                    concern = Concern::Run;
                    memory.applied = step.target.map(|target| target.fingerprint);
                    memory.generation = generation.map(str::to_owned);
                    if step.purpose == Purpose::Renew {
                        memory.renewals = memory.renewals.saturating_add(1);
                        memory.last_renewal = Some(now);
                    }
                    memory.orphaned = false;
                    memory.status = Some(DesiredStatus::Stopped);
                    memory.restarts = 0;
                    memory.last_restart = None;
                }
                Action::Start => {
                    memory.status = Some(DesiredStatus::Running);
                    if step.purpose == Purpose::Restart {
                        memory.restarts = memory.restarts.saturating_add(1);
                        memory.last_restart = Some(now);
                    }
                }
                Action::Stop if step.purpose == Purpose::Stop => {
                    memory.status = Some(DesiredStatus::Stopped);
                    memory.restarts = 0;
                    memory.last_restart = None;
                }
                Action::DeleteIdentity => {
                    memory.identity = false;
                    memory.orphaned = true;
                }
                Action::EnsureIdentity | Action::PrepareUpdate | Action::Remove | Action::Stop => {}
            }
        }
        if completed >= step.actions.len() {
            memory.failures.remove(&concern);
            return;
        }
        let subject = subject(step.target.as_ref());
        let earlier = memory.failures.get(&concern).filter(|failure| failure.subject == subject);
        let count = earlier.map_or(0, |failure| failure.count).saturating_add(1);
        memory.failures.insert(concern, Failure { count, at: now, subject });
    }

    /// Lets everything that failed be tried at once, for instance because a new manifest
    /// came.
    pub fn forget_failures(&mut self) {
        for memory in self.modules.values_mut() {
            memory.failures.clear();
        }
    }

    /// Returns how often a module's restart policy has started it again, and when last.
    #[must_use]
    pub fn restarts(&self, module: &ModuleId) -> (u32, Option<Timestamp>) {
        self.modules.get(module).map_or((0, None), |memory| (memory.restarts, memory.last_restart))
    }

    /// Returns true if something about the module failed and was not put right since.
    #[must_use]
    pub fn is_failing(&self, module: &ModuleId) -> bool {
        self.modules.get(module).is_some_and(|memory| !memory.failures.is_empty())
    }
}

#[cfg(test)]
mod tests;
