//! Attestation of callers. Evidence is gathered once for each connection, is looked at
//! again on further requests, and is judged by [`edgekeep_core::attestation::verdict`]. A
//! process that does not call and is only looked at goes the same way.

use std::cell::Cell;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use edgekeep_api::attestation::Seen;
use edgekeep_core::attestation::{
    Asked, DenyReason, Door, Evidence, Holding, PeerHandle, Policy, ProcessInstance, Registration,
    RunningFacts, Snapshot, Workload, may_be_orphan, needs_measurement, verdict,
};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_daemon::peer::{Caller, PeerSocket};
use edgekeep_runtime::evidence::{
    Collector, EvidenceError, Held, ImageLayers, ProcDir, StartedFrom,
};

/// Facts about a caller as it was when it connected, or about a process as it was when it
/// was looked at.
#[derive(Debug)]
struct Known {
    process: Arc<ProcDir>,
    /// Gains the measurement when a policy first asks for it.
    evidence: RwLock<Evidence>,
    /// Looked at when the caller connects, where its policy is known to ask for it; else
    /// when a policy first does.
    held: OnceLock<Held>,
    /// True once the process is kept for its next connection.
    kept: AtomicBool,
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
    pidfd: Option<OwnedFd>,
    known: Result<Known, DenyReason>,
}

/// The caller or the process that is judged.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Who<'a> {
    /// A caller, with its connection.
    Caller(&'a Caller),
    /// A process without one.
    Process(&'a Examined),
}

impl Who<'_> {
    fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Caller(caller) => caller.pidfd().map(|(pidfd, _)| pidfd),
            Self::Process(examined) => examined.pidfd.as_ref().map(|pidfd| pidfd.as_fd()),
        }
    }
}

/// Gathers evidence and judges.
#[derive(Debug)]
pub(crate) struct Attestor {
    collector: Collector,
}

impl Attestor {
    /// An attestor with this collector of evidence.
    #[must_use]
    pub(crate) fn new(collector: Collector) -> Self {
        Self { collector }
    }

    /// Says what keeps executables from being known by their content on this machine, if
    /// anything does.
    #[must_use]
    pub(crate) fn weakness(&self) -> Option<&'static str> {
        (!self.collector.kernel_denies_writers()).then_some(
            "this kernel lets programs be rewritten while they run, so callers are not known by their executables, host modules \
             excepted; update the kernel (Linux 6.11 does so)",
        )
    }

    /// Looks at a caller right after it connected, so that what it executes later cannot
    /// pass for what connected.
    ///
    /// `registration` and `init` are those of the module that the socket is for, if it
    /// is for one: its first process ends the search for ancestors early, and its policy
    /// says what is looked at.
    pub(crate) fn connected(
        &self,
        caller: &Caller,
        registration: Option<&Registration>,
        init: Option<&ProcessInstance>,
    ) {
        // A failure is kept as well, and is the answer to every request of this caller.
        let learned = caller.attached(|| self.learn(caller, init));
        if let Some(Ok(known)) = learned
            && registration.is_some_and(needs_measurement)
        {
            self.look_at_connection(caller, known);
        }
    }

    /// Returns how the caller holds its connection, as it was when first looked at.
    fn look_at_connection(&self, caller: &Caller, known: &Known) -> Holding {
        let look = || match caller.socket() {
            PeerSocket::Inode(inode) => {
                let evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner);
                let program = evidence.snapshot.executable;
                drop(evidence);
                self.collector.holding(&known.process, inode, &program)
            }
            PeerSocket::Gone => Held::told(Holding::NotHeld),
            PeerSocket::Untold => Held::told(Holding::Untold),
        };
        known.held.get_or_init(look).holding()
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
    ) -> Result<(), DenyReason> {
        let init = match (door, &subject.facts) {
            // Through the shared one the same caller may ask for another module next.
            (Door::LegacySocket, _) => None,
            (_, RunningFacts::Running(running)) => Some(&running.init),
            _ => None,
        };
        let (known, is_new) = self.known_or_met(who, init)?;
        let mut evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner).clone();
        // One look serves a request that was sent before it.
        if !is_new {
            let now = self.collector.recheck(&known.process, &evidence.snapshot);
            evidence.snapshot = now.ok_or_else(|| gone_or_changed(who))?;
        }
        let strict = subject.registration.as_ref().is_some_and(needs_measurement);
        if strict && let Who::Caller(caller) = who {
            evidence.holding = self.look_at_connection(caller, known);
        }
        if strict && evidence.measurement.is_none() {
            // Judged without the measurement first: whoever fails for another reason does
            // not get a file hashed.
            match verdict(door, asked, subject.registration.as_ref(), &subject.facts, &evidence) {
                Err(DenyReason::ExecutableUnmeasured) => {}
                other => return other,
            }
            evidence = self
                .collector
                .measure(
                    &known.process,
                    evidence,
                    StartedFrom::from(&subject.facts),
                    subject.layers.as_ref(),
                )
                .await
                .map_err(|error| reason(&error))?;
            *known.evidence.write().unwrap_or_else(PoisonError::into_inner) = evidence.clone();
        }
        verdict(door, asked, subject.registration.as_ref(), &subject.facts, &evidence)?;
        if !known.kept.swap(true, Ordering::AcqRel) {
            self.collector.keep(&known.process);
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
        let known = match &pidfd {
            Some(pidfd) => self.look(pid, pidfd.as_fd(), PeerHandle::PidfdOpen, None),
            None => Err(DenyReason::CallerGone),
        };
        Examined { pidfd, known }
    }

    /// Returns what is known of a caller or a process that was judged; `None` if nothing
    /// is.
    #[must_use]
    pub(crate) fn seen(&self, who: Who<'_>) -> Option<Seen> {
        let known = self.known(who).ok()?;
        let path = known
            .process
            .executable_path()
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        let evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner).clone();
        Some(seen(evidence, path, known.held.get().map(Held::holding)))
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
        self.known(who).is_ok_and(|known| {
            known.evidence.read().unwrap_or_else(PoisonError::into_inner).container.as_ref()
                == Some(container)
        })
    }

    /// Returns the digest of what a caller executes, if a policy has asked for that to be
    /// measured.
    #[must_use]
    pub(crate) fn executable(&self, caller: &Caller) -> Option<Sha256Digest> {
        let known = self.known(Who::Caller(caller)).ok()?;
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
        let known = self.known(who).ok()?;
        let evidence = known.evidence.read().unwrap_or_else(PoisonError::into_inner);
        may_be_orphan(&evidence, running)
    }

    fn known<'a>(&self, who: Who<'a>) -> Result<&'a Known, DenyReason> {
        Ok(self.known_or_met(who, None)?.0)
    }

    /// Returns the facts about a caller or a process, and true if they were learned just
    /// now.
    fn known_or_met<'a>(
        &self,
        who: Who<'a>,
        init: Option<&ProcessInstance>,
    ) -> Result<(&'a Known, bool), DenyReason> {
        let is_new = Cell::new(false);
        let meet = |caller| {
            is_new.set(true);
            self.learn(caller, init)
        };
        let learned = match who {
            Who::Caller(caller) => caller.attached(|| meet(caller)),
            Who::Process(examined) => Some(&examined.known),
        };
        match learned {
            Some(Ok(known)) => Ok((known, is_new.get())),
            Some(Err(reason)) => Err(*reason),
            None => Err(DenyReason::CallerGone),
        }
    }

    fn learn(&self, caller: &Caller, init: Option<&ProcessInstance>) -> Result<Known, DenyReason> {
        let pid = caller.pid().ok_or(DenyReason::PidNotVisible)?;
        let (pidfd, handle) = caller.pidfd().ok_or(DenyReason::CallerGone)?;
        self.look(pid, pidfd, handle, init)
    }

    fn look(
        &self,
        pid: u32,
        pidfd: BorrowedFd<'_>,
        handle: PeerHandle,
        init: Option<&ProcessInstance>,
    ) -> Result<Known, DenyReason> {
        let (process, evidence) =
            self.collector.meet(handle, pid, pidfd, init).map_err(|error| reason(&error))?;
        Ok(Known {
            process,
            evidence: RwLock::new(evidence),
            held: OnceLock::new(),
            kept: AtomicBool::new(false),
        })
    }
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

fn reason(error: &EvidenceError) -> DenyReason {
    // The cause (for example a missing capability) is the operator's to know, not the
    // caller's.
    tracing::debug!(%error, "no evidence");
    error.reason()
}

/// A process that ended is no change of program: the trail should say which it was.
fn gone_or_changed(who: Who<'_>) -> DenyReason {
    let alive = who.pidfd().is_some_and(|pidfd| {
        // A pidfd is readable once its process has ended.
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(0))
    });
    if alive { DenyReason::CallerChanged } else { DenyReason::CallerGone }
}
