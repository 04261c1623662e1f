//! Attestation of callers. Evidence is gathered once for each connection, is looked at
//! again on further requests, and is judged by [`edgekeep_core::attestation::verdict`]. A
//! process that does not call and is only looked at goes the same way.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use edgekeep_api::attestation::Seen;
use edgekeep_core::attestation::{
    Asked, DenyReason, Door, Evidence, Holding, PeerHandle, Policy, ProcessInstance, Registration,
    RunningFacts, Snapshot, Workload, may_be_orphan, needs_measurement, verdict,
};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_daemon::peer::{Caller, PeerSocket};
use edgekeep_runtime::evidence::{ImageLayers, StartedFrom};
use edgekeep_runtime::gauge::{Compared, Gauge, GaugeError, Held, Whom};
use tokio::sync::OnceCell;

/// Facts about a caller as it was when it connected, or about a process as it was when it
/// was looked at.
#[derive(Debug)]
struct Known {
    /// Gains the measurement when a policy first asks for it.
    evidence: RwLock<Evidence>,
    /// Path of the executable.
    path: String,
    /// Looked at when the caller connects, where its policy is known to ask for it; else
    /// when a policy first does.
    held: OnceLock<Held>,
    /// True once the process is kept for its next connection.
    kept: AtomicBool,
}

/// The outcome of the first look at a caller or a process. Empty as long as there was
/// none, or the gauge did not answer.
type Learned = OnceCell<Result<Known, DenyReason>>;

/// The reason why nobody is let in.
#[derive(Debug)]
pub(crate) enum Unjudged {
    /// The verdict.
    Denied(DenyReason),
    /// There is no verdict, for there is no evidence.
    NoGauge(GaugeError),
}

impl From<DenyReason> for Unjudged {
    fn from(reason: DenyReason) -> Self {
        Self::Denied(reason)
    }
}

impl From<GaugeError> for Unjudged {
    fn from(error: GaugeError) -> Self {
        Self::NoGauge(error)
    }
}

/// The registration and the facts a caller is judged against.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The registration of the module that was asked for.
    pub(crate) registration: Option<Registration>,
    /// Facts about what runs for the module.
    pub(crate) facts: RunningFacts,
    /// Its image's layers, where the engine keeps them as folders.
    pub(crate) layers: Option<ImageLayers>,
}

/// A process that is looked at as if it called.
#[derive(Debug)]
pub(crate) struct Examined {
    pid: u32,
    pidfd: Option<OwnedFd>,
    learned: Learned,
}

/// The caller or the process that is judged.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Who<'a> {
    /// A caller, with its connection.
    Caller(&'a Caller),
    /// A process without one.
    Process(&'a Examined),
}

impl<'a> Who<'a> {
    fn pid(self) -> Option<u32> {
        match self {
            Self::Caller(caller) => caller.pid(),
            Self::Process(examined) => Some(examined.pid),
        }
    }

    fn pidfd(self) -> Option<(BorrowedFd<'a>, PeerHandle)> {
        match self {
            Self::Caller(caller) => caller.pidfd(),
            Self::Process(Examined { pidfd, .. }) => {
                pidfd.as_ref().map(|pidfd| (pidfd.as_fd(), PeerHandle::PidfdOpen))
            }
        }
    }

    fn learned(self) -> Option<&'a Learned> {
        match self {
            Self::Caller(caller) => caller.attached(Learned::new),
            Self::Process(examined) => Some(&examined.learned),
        }
    }

    fn known(self) -> Option<&'a Known> {
        self.learned()?.get()?.as_ref().ok()
    }
}

/// The things that a look is to find out beside the process itself.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    /// The way in which the connection is held.
    holding: bool,
    /// The measurement, if it was made before.
    measured: Option<Compared>,
}

/// Has evidence gathered, and judges.
#[derive(Debug)]
pub(crate) struct Attestor {
    gauge: Gauge,
}

impl Attestor {
    /// An attestor with this source of evidence.
    #[must_use]
    pub(crate) fn new(gauge: Gauge) -> Self {
        Self { gauge }
    }

    /// Says what keeps executables from being known by their content on this machine, if
    /// anything does.
    pub(crate) async fn weakness(&self) -> Option<String> {
        match self.gauge.kernel_denies_writers().await {
            Ok(true) => None,
            Ok(false) => Some(
                "this kernel lets programs be rewritten while they run, so callers are not known by their executables, host modules \
                 excepted; update the kernel (Linux 6.11 does so)"
                    .to_owned(),
            ),
            Err(error) => Some(format!("callers cannot be looked at: {error}")),
        }
    }

    /// Looks at a caller right after it connected, so that what it executes later cannot
    /// pass for what connected.
    ///
    /// `registration` and `init` are those of the module that the socket is for, if it
    /// is for one: its first process ends the search for ancestors early, and its policy
    /// says what is looked at.
    pub(crate) async fn connected(
        &self,
        caller: &Caller,
        registration: Option<&Registration>,
        init: Option<&ProcessInstance>,
    ) {
        let holding = registration.is_some_and(needs_measurement);
        let wanted = Wanted { holding, measured: None };
        // No verdict is kept as well, and is the answer to every request of this caller.
        // A gauge that does not answer is asked again with the request.
        if let Err(Unjudged::NoGauge(error)) = self.meet(Who::Caller(caller), init, wanted).await {
            tracing::warn!(%error, "a caller was not looked at when it connected");
        }
    }

    /// Judges a caller or a process.
    ///
    /// # Errors
    /// The one reason for the refusal. It is not written down here.
    pub(crate) async fn judge(
        &self,
        who: Who<'_>,
        door: &Door,
        asked: &Asked<'_>,
        subject: &Subject,
    ) -> Result<(), Unjudged> {
        let init = match (door, &subject.facts) {
            // Through the shared one the same caller may ask for another module next.
            (Door::LegacySocket, _) => None,
            (_, RunningFacts::Running(running)) => Some(&running.init),
            _ => None,
        };
        let strict = subject.registration.as_ref().is_some_and(needs_measurement);
        let compared = Compared {
            started_from: StartedFrom::from(&subject.facts),
            image: subject.layers.as_ref().map(|layers| *layers.image()),
        };
        let wanted = Wanted { holding: strict, measured: strict.then_some(compared) };
        let (known, is_new) = self.meet(who, init, wanted).await?;
        let mut evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner).clone();
        // One look serves a request that was sent before it.
        if !is_new {
            self.look_again(who, known, &mut evidence, wanted).await?;
        }
        if strict && let Who::Caller(caller) = who {
            evidence.holding = known.held.get_or_init(|| not_looked_for(caller)).holding();
        }
        let judge = |evidence: &Evidence| {
            verdict(door, asked, subject.registration.as_ref(), &subject.facts, evidence)
        };
        if strict && evidence.measurement.is_none() {
            // Judged without the measurement first: whoever fails for another reason does
            // not get a file hashed.
            match judge(&evidence) {
                Err(DenyReason::ExecutableUnmeasured) => {}
                other => return Ok(other?),
            }
            let (pidfd, _) = who.pidfd().ok_or(DenyReason::CallerGone)?;
            let layers = subject.layers.as_ref();
            let measurement =
                self.gauge.measure(pidfd, &evidence.snapshot, compared, layers).await??;
            evidence.measurement = Some(measurement);
            known.evidence.write().unwrap_or_else(PoisonError::into_inner).measurement =
                Some(measurement);
        }
        judge(&evidence)?;
        if !known.kept.swap(true, Ordering::AcqRel) {
            self.gauge.keep(evidence.snapshot.process.pid);
        }
        Ok(())
    }

    /// Opens any process, to be looked at as if it called.
    #[must_use]
    pub(crate) fn examine(&self, pid: u32) -> Examined {
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let pidfd = raw.and_then(|raw| {
            rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).ok()
        });
        Examined { pid, pidfd, learned: Learned::new() }
    }

    /// Looks at a caller that was not looked at yet, for the trail.
    pub(crate) async fn acquaint(&self, caller: &Caller) {
        let _ = self.meet(Who::Caller(caller), None, Wanted::default()).await;
    }

    /// Returns the facts about a caller or a process, and true if they were learned just
    /// now. What is wanted is only looked for then.
    async fn meet<'a>(
        &self,
        who: Who<'a>,
        init: Option<&ProcessInstance>,
        wanted: Wanted,
    ) -> Result<(&'a Known, bool), Unjudged> {
        let learned = who.learned().ok_or(DenyReason::CallerGone)?;
        let is_new = AtomicBool::new(false);
        let learn = || {
            is_new.store(true, Ordering::Relaxed);
            self.learn(who, init, wanted)
        };
        match learned.get_or_try_init(learn).await? {
            Ok(known) => Ok((known, is_new.load(Ordering::Relaxed))),
            Err(reason) => Err((*reason).into()),
        }
    }

    async fn learn(
        &self,
        who: Who<'_>,
        init: Option<&ProcessInstance>,
        wanted: Wanted,
    ) -> Result<Result<Known, DenyReason>, GaugeError> {
        let Some(pid) = who.pid() else { return Ok(Err(DenyReason::PidNotVisible)) };
        let Some((pidfd, handle)) = who.pidfd() else { return Ok(Err(DenyReason::CallerGone)) };
        let socket = if wanted.holding { socket_of(who) } else { None };
        let whom = Whom { pid, pidfd, socket, measured: wanted.measured };
        let (seen, held) = match self.gauge.look(whom, init.copied()).await? {
            Ok(seen) => seen,
            Err(reason) => return Ok(Err(reason)),
        };
        let evidence = Evidence {
            handle,
            snapshot: seen.snapshot,
            ancestry: seen.ancestry,
            holding: Holding::Untold,
            container: seen.container,
            measurement: seen.measurement,
        };
        Ok(Ok(Known {
            evidence: RwLock::new(evidence),
            path: seen.path.unwrap_or_default(),
            held: held.map(OnceLock::from).unwrap_or_default(),
            kept: AtomicBool::new(false),
        }))
    }

    /// Looks at whatever may have changed since the caller was met, and adds what is
    /// wanted and was not found out before.
    async fn look_again(
        &self,
        who: Who<'_>,
        known: &Known,
        evidence: &mut Evidence,
        wanted: Wanted,
    ) -> Result<(), Unjudged> {
        let (pidfd, _) = who.pidfd().ok_or(DenyReason::CallerGone)?;
        let holding = wanted.holding && known.held.get().is_none();
        let whom = Whom {
            pid: evidence.snapshot.process.pid,
            pidfd,
            socket: if holding { socket_of(who) } else { None },
            measured: wanted.measured.filter(|_| evidence.measurement.is_none()),
        };
        let seen = self.gauge.look_again(whom).await?;
        let (seen, held) = seen.map_err(|_| gone_or_changed(who))?;
        if !evidence.snapshot.is_of_same_caller(&seen.snapshot) {
            return Err(gone_or_changed(who).into());
        }
        evidence.snapshot = seen.snapshot;
        if let Some(held) = held {
            // A look of another request at the same time found the same.
            let _ = known.held.set(held);
        }
        if let Some(measurement) = seen.measurement {
            evidence.measurement = Some(measurement);
            known.evidence.write().unwrap_or_else(PoisonError::into_inner).measurement =
                Some(measurement);
        }
        Ok(())
    }

    /// Returns what is known of a caller or a process that was judged; `None` if nothing
    /// is.
    #[must_use]
    pub(crate) fn seen(&self, who: Who<'_>) -> Option<Seen> {
        let known = who.known()?;
        let evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner).clone();
        Some(seen(evidence, known.path.clone(), known.held.get().map(Held::holding)))
    }

    /// Returns true if the caller's cgroup is that of the registered container, whatever
    /// else is known of the caller.
    #[must_use]
    pub(crate) fn is_in_container_of(
        &self,
        who: Who<'_>,
        registration: Option<&Registration>,
    ) -> bool {
        let Some(Workload::Container { container, .. }) =
            registration.map(|registration| &registration.workload)
        else {
            return false;
        };
        who.known().is_some_and(|known| {
            known.evidence.read().unwrap_or_else(PoisonError::into_inner).container.as_ref()
                == Some(container)
        })
    }

    /// Returns the digest of what a caller executes, if a policy has asked for that to be
    /// measured.
    #[must_use]
    pub(crate) fn executable(&self, caller: &Caller) -> Option<Sha256Digest> {
        let known = Who::Caller(caller).known()?;
        let evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner);
        evidence.measurement.map(|measurement| measurement.digest)
    }

    /// The child of a container's first process from which the caller stems, if the
    /// engine's `exec` may have left it behind and the module's policy minds.
    #[must_use]
    pub(crate) fn may_be_orphan(&self, who: Who<'_>, subject: &Subject) -> Option<ProcessInstance> {
        let registration = subject.registration.as_ref()?;
        let minds = registration.policy >= Policy::Image
            && matches!(registration.workload, Workload::Container { .. });
        let (RunningFacts::Running(running), true) = (&subject.facts, minds) else { return None };
        let known = who.known()?;
        let evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner);
        may_be_orphan(&evidence, running)
    }
}

/// The socket to look for among the descriptors of a caller.
fn socket_of(who: Who<'_>) -> Option<u64> {
    match who {
        Who::Caller(caller) => match caller.socket() {
            PeerSocket::Inode(inode) => Some(inode),
            PeerSocket::Gone | PeerSocket::Untold => None,
        },
        Who::Process(_) => None,
    }
}

/// The holding of a connection that no look was for.
fn not_looked_for(caller: &Caller) -> Held {
    Held::told(match caller.socket() {
        PeerSocket::Untold => Holding::Untold,
        PeerSocket::Gone | PeerSocket::Inode(_) => Holding::NotHeld,
    })
}

fn seen(evidence: Evidence, path: String, connection: Option<Holding>) -> Seen {
    let Snapshot {
        process,
        uid,
        gid,
        executable,
        executable_mount: _,
        cgroup,
        pid_namespace,
        user_namespace,
        tracer,
        filters,
    } = evidence.snapshot;
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
        filters,
        ancestry: evidence.ancestry,
        connection,
    }
}

/// A process that ended is no change of program: the trail should say which it was.
fn gone_or_changed(who: Who<'_>) -> DenyReason {
    let alive = who.pidfd().is_some_and(|(pidfd, _)| {
        // A pidfd is readable once its process has ended.
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(0))
    });
    if alive { DenyReason::CallerChanged } else { DenyReason::CallerGone }
}
