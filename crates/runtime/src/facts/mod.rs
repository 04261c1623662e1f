//! Facts about running modules, by the engine's event stream. A verdict takes the facts
//! that it needs without a call to the engine on the request path.
//!
//! The stream is opened first and everything is inspected then, so nothing that happens
//! in between is lost. From the moment the stream breaks until the next inspection is
//! complete the engine is silent, and all that counts is what no engine could change
//! unheard: a container's image and options are given to it once, so as long as its first
//! process lives, it is what it was ([`silence`]). Everything else is unknown, and nobody
//! else is let in.
//!
//! The stream also tells when the engine's `exec` brings a process into a container. What
//! such a process leaves behind becomes a child of the container's first process, like
//! what that started itself; so from then on there is doubt.

mod execs;
mod silence;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use edgekeep_core::attestation::{ContainerFacts, ProcessInstance, Running, RunningFacts};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::{ContainerId, ModuleId};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::engine::{Container, Engine, EngineError, Event, Listed};
use crate::evidence::{ImageLayers, ProcDir, container_group, may_mount, may_name_executable};
use crate::gauge::{First, Gauge};
use crate::status::{ModuleState, ModuleStatus};

/// Everything is inspected again so often, in case the engine dropped an event or has
/// stopped answering.
const REVIEW: Duration = Duration::from_secs(60);

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Follows one engine. Dropping it ends the following.
#[derive(Debug)]
pub struct EngineWatch {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    gauge: Gauge,
    /// `None` until everything was inspected once.
    known: RwLock<Option<Known>>,
    /// Moment at which the engine was heard last, on the clock of start times, less the
    /// time by which its word may be late.
    heard: AtomicU64,
    changes: watch::Sender<u64>,
    networks: watch::Sender<u64>,
}

/// The state that was heard.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Entries by container name.
    entries: HashMap<String, Entry>,
    /// Start time from which on an `exec` would not have been heard; `None` while the
    /// engine is heard.
    silent_since: Option<u64>,
}

#[derive(Debug, Clone)]
struct Entry {
    container: ContainerId,
    layers: Option<ImageLayers>,
    facts: RunningFacts,
    /// Result of the last inspection; `None` if something has happened to the container
    /// since.
    inspected: Option<Inspected>,
}

/// A container's state, and the engine's word for it.
#[derive(Debug, Clone)]
struct Inspected {
    status: ModuleStatus,
    phase: String,
}

impl EngineWatch {
    /// Starts to follow `engine`, on the current tokio runtime. `gauge` looks at the
    /// first processes of containers, as it looks at callers.
    #[must_use]
    pub fn start(engine: Engine, gauge: Gauge) -> Self {
        let (known, heard, changes) = (RwLock::new(None), AtomicU64::new(0), watch::Sender::new(0));
        let networks = watch::Sender::new(0);
        let shared = Arc::new(Shared { engine, gauge, known, heard, changes, networks });
        let task = tokio::spawn(run(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Returns the facts about the module now.
    #[must_use]
    pub fn facts(&self, module: &ModuleId) -> RunningFacts {
        self.shared.facts(module.name())
    }

    /// Returns the facts about the module, and waits up to `limit` for the module to be
    /// running.
    ///
    /// For a caller whose cgroup already is the registered container's: the caller can be
    /// quicker than the engine's event about the start.
    pub async fn facts_within(&self, module: &ModuleId, limit: Duration) -> RunningFacts {
        let mut changes = self.shared.changes.subscribe();
        let running = async {
            loop {
                let facts = self.facts(module);
                let runs = matches!(&facts, RunningFacts::Running(running) if lives(running.init));
                if runs || changes.changed().await.is_err() {
                    return facts;
                }
            }
        };
        timeout(limit, running).await.unwrap_or_else(|_| self.facts(module))
    }

    /// Returns the facts about the module, with every `exec` that may have made
    /// `process`, a child of the module's first process. The facts are unknown if the
    /// engine does not answer.
    ///
    /// For a process so young that the engine's word about its making may still be on its
    /// way: keeps it waiting until it is two seconds old, and asks the engine.
    pub async fn facts_about(&self, module: &ModuleId, process: &ProcessInstance) -> RunningFacts {
        let age = execs::Now::read().age(process.start_time);
        if age >= execs::HEARD_AFTER {
            return self.facts(module);
        }
        sleep(execs::TOLD_AFTER.saturating_sub(age)).await;
        let Some(container) =
            self.shared.read(|known| Some(known?.entries.get(module.name())?.container.clone()))
        else {
            return self.facts(module);
        };
        let since = execs::Now::read().seconds_ago(execs::HEARD_AFTER * 2);
        match timeout(execs::HEARD_AFTER, self.shared.earliest_exec(&container, since)).await {
            Ok(Ok(exec)) => {
                self.shared.mark_exec(&container, exec);
                self.facts(module)
            }
            Ok(Err(error)) => {
                tracing::warn!(%module, reason = %error, "the engine does not tell what it brought into a container");
                RunningFacts::Unknown
            }
            Err(_) => RunningFacts::Unknown,
        }
    }

    /// Returns true if the facts about a module name a first process that has ended. The
    /// engine's word about a restart has then not come yet; some engines take their time.
    #[must_use]
    pub fn is_behind(&self, module: &ModuleId) -> bool {
        matches!(self.facts(module), RunningFacts::Running(running) if !lives(running.init))
    }

    /// The layers of the image that a module's container was made from, where the engine
    /// keeps them as folders.
    #[must_use]
    pub fn image_layers(&self, module: &ModuleId) -> Option<ImageLayers> {
        self.shared.read(|known| known?.entries.get(module.name())?.layers.clone())
    }

    /// All modules' containers, in any state. One that is removed meanwhile is left out.
    ///
    /// The engine is asked each time which there are and in what phase of their lives.
    /// What was last inspected serves for those to which nothing has happened by that, by
    /// the event stream, and by the kernel (their first process is the same); the others
    /// are inspected. So what is behind is at most how a container ended that was started
    /// and ended again while its events were on their way.
    ///
    /// # Errors
    /// The engine is away or answers in an unknown form.
    pub async fn list(&self) -> Result<Vec<ModuleStatus>, EngineError> {
        let version = *self.shared.changes.borrow();
        let listed = self.shared.engine.module_containers().await?;
        let mut modules = Vec::with_capacity(listed.len());
        let mut doubtful = Vec::new();
        self.shared.read(|known| {
            // While the stream is cut, what has happened is not known: every container is
            // inspected.
            let by_id: HashMap<&str, &Entry> = known
                .filter(|known| known.silent_since.is_none())
                .into_iter()
                .flat_map(|known| known.entries.values())
                .map(|entry| (entry.container.as_str(), entry))
                .collect();
            for one in listed {
                match by_id.get(one.id.as_str()).and_then(|entry| entry.still(&one)) {
                    Some(status) => modules.push(status.clone()),
                    None => doubtful.push(one.id),
                }
            }
        });
        for id in doubtful {
            let id = id.parse().map_err(|_| EngineError::NotJson)?;
            let Some(container) = self.shared.engine.container(&id).await? else { continue };
            modules.push(container.status());
            self.shared.keep(&container, version);
        }
        Ok(modules)
    }

    /// Returns true if the engine is heard and everything has been inspected.
    #[must_use]
    pub fn is_reconciled(&self) -> bool {
        self.shared.read(|known| known.is_some_and(|known| known.silent_since.is_none()))
    }

    /// Returns the time for which the engine has been silent; `None` if the engine is
    /// heard, or never was.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        self.shared.read(|known| Some(execs::Now::read().since_told(known?.silent_since?)))
    }

    /// Counts the modules' containers: those that run, those that do not run, and those
    /// of which neither is known. `None` while the engine is silent.
    #[must_use]
    pub fn counts(&self) -> Option<[usize; 3]> {
        self.shared.read(|known| {
            let mut counts = [0; 3];
            for entry in known.filter(|known| known.silent_since.is_none())?.entries.values() {
                counts[match entry.facts {
                    RunningFacts::Running(_) => 0,
                    RunningFacts::Stopped => 1,
                    RunningFacts::Unknown | RunningFacts::Host(_) => 2,
                }] += 1;
            }
            Some(counts)
        })
    }

    /// A receiver that is notified after every change of any fact.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// A receiver that is notified after every event about a network, those of a
    /// container's start and end among them.
    #[must_use]
    pub fn network_changes(&self) -> watch::Receiver<u64> {
        self.shared.networks.subscribe()
    }
}

impl Drop for EngineWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inspected {
    fn new(container: &Container) -> Self {
        Self { status: container.status(), phase: container.phase.clone() }
    }
}

impl Entry {
    /// Returns the status from the last inspection, if by the engine's list and the
    /// kernel nothing has happened since.
    fn still(&self, listed: &Listed) -> Option<&ModuleStatus> {
        let Inspected { status, phase } = self.inspected.as_ref()?;
        let same_process = match &self.facts {
            RunningFacts::Running(running) => lives(running.init),
            RunningFacts::Stopped => status.state != ModuleState::Running,
            RunningFacts::Unknown | RunningFacts::Host(_) => false,
        };
        (same_process && listed.agrees_with(&status.name, phase)).then_some(status)
    }
}

async fn run(shared: Arc<Shared>) {
    let mut retry = FIRST_RETRY;
    loop {
        let ended = shared.follow(&mut retry).await;
        if shared.fell_silent() {
            tracing::warn!(
                reason = reason(&ended),
                "container engine lost; until it is back only containers that ran before are served"
            );
        } else {
            tracing::debug!(reason = reason(&ended), "container engine not there yet");
        }
        sleep(retry).await;
        retry = (retry * 2).min(LONGEST_RETRY);
    }
}

fn reason(ended: &Result<(), EngineError>) -> String {
    ended
        .as_ref()
        .err()
        .map_or_else(|| "the engine closed its event stream".to_owned(), ToString::to_string)
}

impl Shared {
    fn facts(&self, name: &str) -> RunningFacts {
        self.read(|known| match known {
            None => RunningFacts::Unknown,
            Some(known) => {
                let heard = known
                    .entries
                    .get(name)
                    .map_or(RunningFacts::Stopped, |entry| entry.facts.clone());
                match known.silent_since {
                    None => heard,
                    Some(since) => silence::kept(heard, since, lives),
                }
            }
        })
    }

    fn read<T>(&self, look: impl FnOnce(Option<&Known>) -> T) -> T {
        look(self.known.read().unwrap_or_else(PoisonError::into_inner).as_ref())
    }

    fn change(&self, change: impl FnOnce(&mut Option<Known>)) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut known);
        // Before anybody else can write: see `keep`.
        self.changes.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Keeps an inspection, if no event has been heard since `version`: that would be the
    /// newer word. No fact changes.
    fn keep(&self, container: &Container, version: u64) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if *self.changes.borrow() != version {
            return;
        }
        let entries = known.iter_mut().flat_map(|known| known.entries.values_mut());
        for entry in entries.filter(|entry| entry.container == container.id) {
            entry.inspected = Some(Inspected::new(container));
        }
    }

    /// Marks the engine as silent. Returns true if the engine was heard until now.
    fn fell_silent(&self) -> bool {
        let mut news = false;
        let heard = self.heard.load(Ordering::Relaxed);
        self.change(|known| {
            let since = known.as_mut().map(|known| &mut known.silent_since);
            if let Some(since @ None) = since {
                *since = Some(heard);
                news = true;
            }
        });
        news
    }

    fn was_heard(&self) {
        self.heard.store(execs::Now::read().earliest_start(None), Ordering::Relaxed);
    }

    /// Follows the engine until its stream ends or it fails.
    async fn follow(&self, retry: &mut Duration) -> Result<(), EngineError> {
        let mut events = self.engine.events().await?;
        self.reconcile().await?;
        *retry = FIRST_RETRY;
        tracing::debug!("container engine reconciled");
        let mut review = interval_at(Instant::now() + REVIEW, REVIEW);
        review.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => match event? {
                    Some(event) => {
                        self.apply(&event).await?;
                        self.was_heard();
                    }
                    None => return Ok(()),
                },
                _ = review.tick() => self.reconcile().await?,
            }
        }
    }

    async fn reconcile(&self) -> Result<(), EngineError> {
        let begin = execs::Now::read().earliest_start(None);
        let mut entries = HashMap::new();
        for listed in self.engine.module_containers().await? {
            let id = listed.id.parse().map_err(|_| EngineError::NotJson)?;
            if let Some((name, mut entry)) = self.look_at(&id).await? {
                self.add_past_execs(&name, &mut entry).await;
                entries.insert(name, entry);
            }
        }
        self.change(|known| *known = Some(Known { entries, silent_since: None }));
        self.heard.store(begin, Ordering::Relaxed);
        Ok(())
    }

    /// Adds the earlier `exec`s of this run of a container. A mark that is already there
    /// stays. For a container that is new here, and for each container after a silence,
    /// the engine is asked what it remembers (Docker: the last 256 events). An `exec`
    /// that the engine has forgotten is not known.
    async fn add_past_execs(&self, name: &str, entry: &mut Entry) {
        let RunningFacts::Running(running) = &mut entry.facts else { return };
        let before = self.read(|known| {
            let known = known?;
            match &known.entries.get(name)?.facts {
                RunningFacts::Running(before) if before.init == running.init => {
                    Some((before.exec_since, known.silent_since))
                }
                _ => None,
            }
        });
        let (marked, silent_since) = before.unwrap_or_default();
        running.exec_since = marked;
        if before.is_some() && silent_since.is_none() {
            return;
        }
        let now = execs::Now::read();
        let since = now.seconds_ago(now.age(running.init.start_time) + Duration::from_secs(1));
        match timeout(execs::HEARD_AFTER, self.earliest_exec(&entry.container, since)).await {
            Ok(Ok(exec)) => running.exec_since = execs::earlier(marked, exec),
            _ => {
                tracing::warn!(
                    module = name,
                    "the engine does not tell what it brought into a container before"
                );
                running.exec_since = execs::earlier(marked, silent_since);
            }
        }
    }

    /// The earliest start of a process that the engine says it brought into a container
    /// since a moment (seconds since the epoch), on the clock of start times.
    async fn earliest_exec(
        &self,
        container: &ContainerId,
        since: i64,
    ) -> Result<Option<u64>, EngineError> {
        let now = execs::Now::read();
        let mut earliest = None;
        let look = |event: &Event| earliest = execs::earlier(earliest, exec_start(&now, event));
        self.engine.past_events(container, since, look).await?;
        Ok(earliest)
    }

    /// Notes that a process may have been brought into a container since then.
    fn mark_exec(&self, container: &ContainerId, since: Option<u64>) {
        let Some(since) = since else { return };
        self.change(|known| {
            let entries = known.iter_mut().flat_map(|known| known.entries.values_mut());
            for entry in entries.filter(|entry| entry.container == *container) {
                if let RunningFacts::Running(running) = &mut entry.facts {
                    running.exec_since = execs::earlier(running.exec_since, Some(since));
                }
            }
        });
    }

    async fn apply(&self, event: &Event) -> Result<(), EngineError> {
        let Some(id) = &event.container else {
            self.networks.send_modify(|version| *version = version.wrapping_add(1));
            return Ok(());
        };
        match event.action.as_str() {
            action if execs::is_exec(action) => {
                self.mark_exec(id, exec_start(&execs::Now::read(), event));
            }
            "die" => {
                self.change(|known| {
                    let entries = known.iter_mut().flat_map(|known| known.entries.values_mut());
                    for entry in entries.filter(|entry| entry.container == *id) {
                        entry.facts = RunningFacts::Stopped;
                        entry.inspected = None;
                    }
                });
            }
            // Podman says `remove`, Docker `destroy`.
            "create" | "start" | "rename" | "update" | "destroy" | "remove" | "pause"
            | "unpause" => {
                let mut now = self.look_at(id).await?;
                if let Some((name, entry)) = &mut now {
                    self.add_past_execs(name, entry).await;
                }
                self.change(|known| {
                    let Some(known) = known else { return };
                    known.entries.retain(|_, entry| entry.container != *id);
                    known.entries.extend(now);
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Inspects one container; `None` if it is gone or no module.
    async fn look_at(&self, id: &ContainerId) -> Result<Option<(String, Entry)>, EngineError> {
        let answer = match self.engine.inspect_id(id).await {
            Ok(answer) => answer,
            Err(error) if error.status() == Some(404) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(container) = Container::from_inspect(&answer) else {
            tracing::warn!(container = %id, "the engine describes a container in an unknown form; it counts as absent");
            return Ok(None);
        };
        if !container.is_module() {
            return Ok(None);
        }
        let first = match container.init_pid {
            Some(pid) => Some(self.gauge.first_process(pid).await?),
            None => None,
        };
        let facts = running_facts(&container, may_name_executable(&answer), first);
        let layers = match self.layers(&container.image).await? {
            None => self.mounted_layers(&container.image, &answer, &facts).await?,
            told => told,
        };
        let inspected = Some(Inspected::new(&container));
        let entry = Entry { container: container.id, layers, facts, inspected };
        Ok(Some((container.name, entry)))
    }

    /// An image's layers never change: what one container's entry holds serves the next.
    async fn layers(&self, image: &Sha256Digest) -> Result<Option<ImageLayers>, EngineError> {
        let known = self.read(|known| {
            let layers = known?.entries.values().filter_map(|entry| entry.layers.as_ref());
            layers
                .filter(|layers| layers.is_of_image())
                .find(|layers| layers.image() == image)
                .cloned()
        });
        if known.is_some() {
            return Ok(known);
        }
        match self.engine.image_layers(image).await {
            // A container outlives its image where that was removed by force.
            Err(error) if error.status().is_some() => Ok(None),
            other => other,
        }
    }

    /// Finds the layers that a container's first process has mounted, for an engine that
    /// does not tell where an image's layers are.
    ///
    /// These layers are what the engine mounted only where nothing in the container may
    /// mount: not by the container's options, and not in a user namespace that its first
    /// process may have made for itself.
    async fn mounted_layers(
        &self,
        image: &Sha256Digest,
        inspection: &Value,
        facts: &RunningFacts,
    ) -> Result<Option<ImageLayers>, EngineError> {
        let RunningFacts::Running(running) = facts else { return Ok(None) };
        if may_mount(inspection) {
            return Ok(None);
        }
        let folders = self.gauge.root_layers(running.init).await?;
        Ok(folders.map(|folders| ImageLayers::from_root_mount(*image, folders)))
    }
}

/// The earliest start of the process that an event is about, if it is about an `exec`.
fn exec_start(now: &execs::Now, event: &Event) -> Option<u64> {
    execs::is_exec(&event.action).then(|| now.earliest_start(event.time))
}

fn lives(process: ProcessInstance) -> bool {
    let stat = ProcDir::open_unproved(process.pid).and_then(|process| process.stat());
    stat.is_ok_and(|stat| stat.start_time == process.start_time)
}

/// The facts about a container, by what its first process is: `None` if it has none,
/// `Some(None)` if that is not there.
fn running_facts(
    container: &Container,
    names_executable: bool,
    first: Option<Option<First>>,
) -> RunningFacts {
    let Some(first) = first else { return RunningFacts::Stopped };
    let of_container = |first: First| {
        // The group's name proves that the pid still is this container's: a process that
        // got the number meanwhile is somewhere else.
        let cgroup = container_group(&first.cgroup, &container.id)?.to_owned();
        Some(Running {
            init: first.process,
            user_namespace: first.user_namespace,
            cgroup: Some(cgroup),
            container: Some(ContainerFacts {
                container: container.id.clone(),
                image: container.image,
                // A container without the label was not made by moduled: no registration
                // has this digest.
                options: container.options().unwrap_or(Sha256Digest::new([0; 32])),
                names_executable,
            }),
            exec_since: None,
            own_copy: None,
            filters: first.filters,
        })
    };
    first.and_then(of_container).map_or(RunningFacts::Unknown, RunningFacts::Running)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::{CgroupHierarchy, Collector, ContainerCgroups};

    fn module(name: &str) -> ModuleId {
        name.parse().expect("valid id")
    }

    #[tokio::test]
    async fn without_an_engine_nothing_is_known() {
        let folder = tempfile::tempdir().expect("temp folder");
        let watch = EngineWatch::start(
            Engine::new(folder.path().join("none.sock")),
            Gauge::here(Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default())),
        );
        let mut changes = watch.changes();
        changes.changed().await.expect("the first attempt fails");
        assert_eq!(watch.facts(&module("thermometer")), RunningFacts::Unknown);
        assert!(!watch.is_reconciled());
    }

    #[test]
    fn a_pid_that_is_not_in_the_containers_group_is_not_its_first_process() {
        let container = Container {
            id: "a".repeat(64).parse().expect("valid id"),
            name: "thermometer".into(),
            image: Sha256Digest::new([1; 32]),
            init_pid: Some(std::process::id()),
            state: ModuleState::Running,
            phase: "running".into(),
            started: None,
            exit: None,
            labels: Vec::new(),
        };
        let first = First {
            process: ProcessInstance { pid: std::process::id(), start_time: 1 },
            cgroup: format!("/docker/{}", "b".repeat(64)),
            user_namespace: 1,
            filters: None,
        };
        let facts = |first| running_facts(&container, false, first);
        assert_eq!(facts(Some(Some(first.clone()))), RunningFacts::Unknown);
        assert_eq!(facts(Some(None)), RunningFacts::Unknown);
        assert_eq!(facts(None), RunningFacts::Stopped);
        let first = First { cgroup: format!("/docker/{}", "a".repeat(64)), ..first };
        assert!(matches!(facts(Some(Some(first))), RunningFacts::Running(_)));
    }
}
