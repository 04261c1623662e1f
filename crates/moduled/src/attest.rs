//! Who calls: evidence gathered once a connection, looked at again on each request, judged by
//! [`edgekeep_core::attestation::verdict`]; each refusal with its reason in the audit trail, and none of it in the answer.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use edgekeep_api::attestation::Seen;
use edgekeep_api::management::Refusal;
use edgekeep_core::attestation::{
    Asked, DenyReason, Door, Evidence, Holding, PeerHandle, Policy, ProcessInstance, Registration, RunningFacts,
    Snapshot, Workload, may_be_orphan, needs_measurement, verdict,
};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::audit::{Audit, Entry};
use edgekeep_daemon::metrics::Counter;
use edgekeep_daemon::peer::{Caller, PeerSocket};
use edgekeep_runtime::evidence::{Collector, EvidenceError, ImageLayers, ProcDir};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::metrics::VERDICTS;

/// Refusals that `GET /status` shows.
const SHOWN_REFUSALS: usize = 20;

/// What a connection's caller was when it connected.
#[derive(Debug)]
struct Known {
    process: ProcDir,
    /// Gains the measurement when a policy first asks for it.
    evidence: RwLock<Evidence>,
    /// Looked at when the caller connects, where its policy is known to ask for it; else when a policy first does.
    holding: OnceLock<Holding>,
}

/// The registration and the facts a caller is judged against.
#[derive(Debug)]
pub struct Subject {
    /// The registration of the module that was asked for.
    pub registration: Option<Registration>,
    /// What runs for it.
    pub facts: RunningFacts,
    /// Its image's layers, where the engine keeps them as folders.
    pub layers: Option<ImageLayers>,
}

/// Gathers evidence, judges, and keeps the trail of refusals.
#[derive(Debug)]
pub struct Attestor {
    collector: Collector,
    audit: Audit,
    refusals: Mutex<VecDeque<Refusal>>,
    refusal_count: AtomicU64,
    allowed: Arc<Counter>,
    denied: Mutex<HashMap<DenyReason, Arc<Counter>>>,
}

impl Attestor {
    /// An attestor that writes its trail into `state_folder`.
    #[must_use]
    pub fn new(collector: Collector, state_folder: &Path) -> Self {
        Self {
            collector,
            audit: Audit::new(state_folder),
            refusals: Mutex::new(VecDeque::with_capacity(SHOWN_REFUSALS)),
            refusal_count: AtomicU64::new(0),
            allowed: VERDICTS.with(["allow", "none"]),
            denied: Mutex::default(),
        }
    }

    /// Looks at a caller right after it connected, so that what it executes later cannot pass for what connected.
    ///
    /// `registration` and `facts` are those of the module that the socket is for, if it is for one: its first process ends
    /// the search for ancestors early, and its policy says what is looked at.
    pub fn connected(&self, caller: &Caller, registration: Option<&Registration>, facts: &RunningFacts) {
        let init = match facts {
            RunningFacts::Running(running) => Some(&running.init),
            RunningFacts::Unknown | RunningFacts::Stopped | RunningFacts::Host(_) => None,
        };
        // A failure is kept as well, and is the answer to every request of this caller.
        let learned = caller.attached(|| self.learn(caller, init));
        if let Some(Ok(known)) = learned
            && registration.is_some_and(needs_measurement)
        {
            self.look_at_connection(caller, known);
        }
    }

    /// How the caller holds its connection, as it was when first looked at.
    fn look_at_connection(&self, caller: &Caller, known: &Known) -> Holding {
        *known.holding.get_or_init(|| match caller.socket() {
            PeerSocket::Inode(inode) => self.collector.holding(&known.process, inode),
            PeerSocket::Gone => Holding::NotHeld,
            PeerSocket::Untold => Holding::Untold,
        })
    }

    /// Judges the caller.
    ///
    /// # Errors
    /// The one reason for the refusal. It is not in the audit trail yet: see [`Self::refuse`].
    pub async fn judge(
        &self,
        caller: &Caller,
        door: &Door,
        asked: &Asked<'_>,
        subject: &Subject,
    ) -> Result<(), DenyReason> {
        let known = self.known(caller)?;
        let mut evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner).clone();
        if !self.collector.recheck(&known.process, &evidence.snapshot) {
            return Err(gone_or_changed(caller));
        }
        let strict = subject.registration.as_ref().is_some_and(needs_measurement);
        if strict {
            evidence.holding = self.look_at_connection(caller, known);
        }
        if strict && evidence.measurement.is_none() {
            // Judged without the measurement first: whoever fails for another reason does not get a file hashed.
            match verdict(door, asked, subject.registration.as_ref(), &subject.facts, &evidence) {
                Err(DenyReason::ExecutableUnmeasured) => {}
                other => return other,
            }
            evidence = self
                .collector
                .measure(&known.process, evidence, subject.layers.as_ref())
                .await
                .map_err(|error| reason(&error))?;
            *known.evidence.write().unwrap_or_else(PoisonError::into_inner) = evidence.clone();
        }
        verdict(door, asked, subject.registration.as_ref(), &subject.facts, &evidence)
    }

    /// Looks at any process as if it called over the module's own socket: what the kernel says, if it says anything, and
    /// the verdict. Nothing is written down.
    pub async fn examine(
        &self,
        pid: u32,
        module: &ModuleId,
        subject: &Subject,
    ) -> (Option<Seen>, Result<(), DenyReason>) {
        let door = Door::ModuleSocket(module.clone());
        let asked = Asked { module, generation: None };
        let judge =
            |evidence: &Evidence| verdict(&door, &asked, subject.registration.as_ref(), &subject.facts, evidence);
        let init = match &subject.facts {
            RunningFacts::Running(running) => Some(&running.init),
            RunningFacts::Unknown | RunningFacts::Stopped | RunningFacts::Host(_) => None,
        };
        let looked = || {
            let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or(DenyReason::CallerGone)?;
            let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
                .map_err(|_| DenyReason::CallerGone)?;
            let process = ProcDir::open(pid, pidfd.as_fd()).map_err(|error| reason(&error))?;
            let evidence =
                self.collector.identify(PeerHandle::PidfdOpen, &process, init).map_err(|error| reason(&error))?;
            Ok((process, evidence))
        };
        let (process, mut evidence) = match looked() {
            Ok(looked) => looked,
            Err(reason) => return (None, Err(reason)),
        };
        let mut judged = judge(&evidence);
        if judged == Err(DenyReason::ExecutableUnmeasured) {
            match self.collector.measure(&process, evidence.clone(), subject.layers.as_ref()).await {
                Ok(measured) => {
                    judged = judge(&measured);
                    evidence = measured;
                }
                Err(error) => judged = Err(reason(&error)),
            }
        }
        let path = process.executable_path().map(|path| path.display().to_string()).unwrap_or_default();
        (Some(seen(evidence, path)), judged)
    }

    /// Whether the caller's cgroup is that of the registered container, whatever else is known of it.
    #[must_use]
    pub fn is_in_container_of(&self, caller: &Caller, registration: Option<&Registration>) -> bool {
        let Some(Workload::Container { container, .. }) = registration.map(|registration| &registration.workload)
        else {
            return false;
        };
        self.known(caller).is_ok_and(|known| {
            known.evidence.read().unwrap_or_else(PoisonError::into_inner).container.as_ref() == Some(container)
        })
    }

    /// What a caller executes, if a policy has asked for that to be measured.
    #[must_use]
    pub fn executable(&self, caller: &Caller) -> Option<Sha256Digest> {
        let known = self.known(caller).ok()?;
        let evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner);
        evidence.measurement.map(|measurement| measurement.digest)
    }

    /// The child of a container's first process from which the caller stems, if the engine's `exec` may have left it
    /// behind and the module's policy minds.
    #[must_use]
    pub fn may_be_orphan(&self, caller: &Caller, subject: &Subject) -> Option<ProcessInstance> {
        let registration = subject.registration.as_ref()?;
        let minds = registration.policy >= Policy::Image && matches!(registration.workload, Workload::Container { .. });
        let (RunningFacts::Running(running), true) = (&subject.facts, minds) else { return None };
        let known = self.known(caller).ok()?;
        let evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner);
        may_be_orphan(&evidence, running)
    }

    /// Writes a refusal down.
    pub fn refuse(&self, caller: &Caller, module: &str, route: &str, reason: DenyReason) {
        let pid = caller.pid().unwrap_or(0);
        let text = reason.to_string();
        self.audit.refused(&Entry { uid: caller.uid(), pid, action: route, object: module, reason: &text });
        self.refusal_count.fetch_add(1, Ordering::Relaxed);
        self.count_denied(reason, &text);
        let refusal = Refusal {
            time: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            module: module.to_owned(),
            route: route.to_owned(),
            reason,
            pid,
            uid: caller.uid(),
        };
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.truncate(SHOWN_REFUSALS - 1);
        refusals.push_front(refusal);
    }

    /// Writes an approval down.
    pub fn approved(&self, caller: &Caller, by: &str, name: &str, sha256: &Sha256Digest) {
        let reason = format!("{by} approved {sha256}");
        let action = "PUT /approved-digests/{name}";
        let pid = caller.pid().unwrap_or(0);
        self.audit.granted(&Entry { uid: caller.uid(), pid, action, object: name, reason: &reason });
    }

    /// Counts a caller that was let in.
    pub fn allow(&self) {
        self.allowed.increment();
    }

    /// A reason's word becomes a label, and so has to last: once for each of the reasons that there are.
    fn count_denied(&self, reason: DenyReason, text: &str) {
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = denied.entry(reason).or_insert_with(|| VERDICTS.with(["deny", text.to_owned().leak()]));
        counter.increment();
    }

    /// The latest refusals, newest first, and how many there were since start.
    #[must_use]
    pub fn refusals(&self) -> (Vec<Refusal>, u64) {
        let latest = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        (latest, self.refusal_count.load(Ordering::Relaxed))
    }

    fn known<'a>(&self, caller: &'a Caller) -> Result<&'a Known, DenyReason> {
        let learned = caller.attached(|| self.learn(caller, None));
        match learned {
            Some(Ok(known)) => Ok(known),
            Some(Err(reason)) => Err(*reason),
            None => Err(DenyReason::CallerGone),
        }
    }

    fn learn(&self, caller: &Caller, init: Option<&ProcessInstance>) -> Result<Known, DenyReason> {
        let pid = caller.pid().ok_or(DenyReason::PidNotVisible)?;
        let (pidfd, handle) = caller.pidfd().ok_or(DenyReason::CallerGone)?;
        let process = ProcDir::open(pid, pidfd).map_err(|error| reason(&error))?;
        let evidence = self.collector.identify(handle, &process, init).map_err(|error| reason(&error))?;
        Ok(Known { process, evidence: RwLock::new(evidence), holding: OnceLock::new() })
    }
}

fn seen(evidence: Evidence, path: String) -> Seen {
    let Snapshot { process, uid, gid, executable, cgroup, pid_namespace, user_namespace, tracer } = evidence.snapshot;
    Seen {
        process,
        uid,
        gid,
        path,
        executable,
        measurement: evidence.measurement,
        cgroup,
        container: evidence.container,
        pid_namespace,
        user_namespace,
        tracer,
        ancestry: evidence.ancestry,
    }
}

fn reason(error: &EvidenceError) -> DenyReason {
    // The cause (for example a missing capability) is the operator's to know, not the caller's.
    tracing::debug!(%error, "no evidence");
    error.reason()
}

/// A process that ended is no change of program: the trail should say which it was.
fn gone_or_changed(caller: &Caller) -> DenyReason {
    let alive = caller.pidfd().is_some_and(|(pidfd, _)| {
        // A pidfd is readable once its process has ended.
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(0))
    });
    if alive { DenyReason::CallerChanged } else { DenyReason::CallerGone }
}
