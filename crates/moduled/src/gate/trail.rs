//! Records of refusals: in the audit trail, in the metrics, and, with the evidence and
//! each check, in memory, within the bounds of [`edgekeep_core::refusals`].

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use edgekeep_api::attestation::{
    Attestation, Check, Explanation, Facts, PastRefusal, RefusedCaller,
};
use edgekeep_api::management::Refusal;
use edgekeep_core::attestation::{DenyReason, RunningFacts};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ModuleId;
use edgekeep_core::refusals::{Kind, Refusals, Refused, Remembered};
use edgekeep_daemon::audit::{self, Audit, Entry};
use edgekeep_daemon::metrics::{Counter, Family};
use edgekeep_daemon::peer::Caller;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Callers that were judged.
pub(crate) static VERDICTS: Family<Counter, 2> = Family::new(
    "edgekeep_verdicts",
    "Callers that were judged, and why they were refused.",
    ["verdict", "reason"],
);

/// Refusals that `GET /status` shows.
const SHOWN: usize = 20;

/// Verdicts, written down and counted.
#[derive(Debug)]
pub(crate) struct VerdictTrail {
    audit: Audit,
    refusals: Mutex<Refusals<Told>>,
    refusal_count: AtomicU64,
    allowed: Arc<Counter>,
    denied: Mutex<HashMap<DenyReason, Arc<Counter>>>,
}

/// Details of one refusal that are told on request.
#[derive(Debug)]
struct Told {
    time: String,
    caller: RefusedCaller,
    /// None for an earlier run's.
    attestation: Option<Attestation>,
    /// True if the refusal was in this run of the daemon.
    now: bool,
}

/// A refusal to be written down.
#[derive(Debug)]
pub(crate) struct ToRefuse<'a> {
    /// Caller that is refused.
    pub(crate) caller: &'a Caller,
    /// The module that was asked for; empty if it did not come to that.
    pub(crate) module: &'a str,
    /// True if a module of that name is registered.
    pub(crate) registered: bool,
    /// Method and route.
    pub(crate) route: &'a str,
    /// Reason for the refusal.
    pub(crate) reason: DenyReason,
    /// The module that the caller is a process of.
    pub(crate) of_module: Option<String>,
    /// Evidence and checks.
    pub(crate) attestation: Attestation,
}

impl VerdictTrail {
    /// A trail in `state_folder`, with what it holds of earlier runs.
    #[must_use]
    pub(crate) fn open(state_folder: &Path, is_registered: impl Fn(&str) -> bool) -> Self {
        let mut refusals = Refusals::default();
        for earlier in audit::read(state_folder) {
            // Approvals are in the trail too; their reason is none of these words.
            let Ok(reason) = serde_json::from_value::<DenyReason>(earlier.reason.into()) else {
                continue;
            };
            let caller = RefusedCaller {
                pid: earlier.pid,
                uid: earlier.uid,
                executable: None,
                container: None,
                module: None,
            };
            let registered = is_registered(&earlier.object);
            let kind = Kind {
                module: earlier.object,
                route: earlier.action,
                reason,
                refused: Refused::User(earlier.uid),
                program: None,
            };
            let time = earlier.time.clone();
            let told = Told { time: earlier.time, caller, attestation: None, now: false };
            refusals.add(kind, registered, &time, told);
        }
        Self {
            audit: Audit::new(state_folder),
            refusals: Mutex::new(refusals),
            refusal_count: AtomicU64::new(0),
            allowed: VERDICTS.with(["allow", "none"]),
            denied: Mutex::default(),
        }
    }

    /// Writes a refusal down.
    pub(crate) fn refused(&self, refused: ToRefuse<'_>) {
        let ToRefuse { caller, module, registered, route, reason, of_module, attestation } =
            refused;
        let (pid, text) = (caller.pid().unwrap_or(0), reason.to_string());
        self.audit.refused(&Entry {
            uid: caller.uid(),
            pid,
            action: route,
            object: module,
            reason: &text,
        });
        self.refusal_count.fetch_add(1, Ordering::Relaxed);
        self.count_denied(reason, &text);
        let seen = attestation.evidence.as_ref();
        let container = seen.and_then(|seen| seen.container.clone());
        let kind = Kind {
            module: module.to_owned(),
            route: route.to_owned(),
            reason,
            refused: container.clone().map_or(Refused::User(caller.uid()), Refused::Container),
            program: seen.map(|seen| seen.executable),
        };
        let caller = RefusedCaller {
            pid,
            uid: caller.uid(),
            executable: seen.map(|seen| seen.path.clone()).filter(|path| !path.is_empty()),
            container,
            module: of_module,
        };
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let told = Told { time: time.clone(), caller, attestation: Some(attestation), now: true };
        self.lock().add(kind, registered, &time, told);
    }

    /// Writes an approval down.
    pub(crate) fn approved(&self, caller: &Caller, by: &str, name: &str, sha256: &Sha256Digest) {
        let reason = format!("{by} approved {sha256}");
        let action = "PUT /approved-digests/{name}";
        let pid = caller.pid().unwrap_or(0);
        self.audit.granted(&Entry {
            uid: caller.uid(),
            pid,
            action,
            object: name,
            reason: &reason,
        });
    }

    /// Counts a caller that was let in.
    pub(crate) fn allowed(&self) {
        self.allowed.increment();
    }

    /// A reason's word becomes a label, and so has to last: once for each of the reasons
    /// that there are.
    fn count_denied(&self, reason: DenyReason, text: &str) {
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        let counter =
            denied.entry(reason).or_insert_with(|| VERDICTS.with(["deny", text.to_owned().leak()]));
        counter.increment();
    }

    /// The latest refusals since start, newest first, and how many there were.
    #[must_use]
    pub(crate) fn latest(&self) -> (Vec<Refusal>, u64) {
        let refusals = self.lock();
        let now = refusals.latest().into_iter().filter(|one| one.latest.now);
        (now.take(SHOWN).map(short).collect(), self.refusal_count.load(Ordering::Relaxed))
    }

    /// Returns the remembered refusals of one module's callers, or of all callers; the
    /// latest first, and at most `last` of them.
    #[must_use]
    pub(crate) fn past(&self, module: Option<&ModuleId>, last: usize) -> Vec<PastRefusal> {
        let refusals = self.lock();
        let is_asked =
            |name: &str| module.is_none_or(|module| name.trim_start_matches('$') == module.name());
        let asked = refusals.latest().into_iter().filter(|one| is_asked(&one.kind.module));
        asked.take(last).map(long).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Refusals<Told>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn short(one: &Remembered<Told>) -> Refusal {
    Refusal {
        time: one.latest.time.clone(),
        count: one.count,
        module: one.kind.module.clone(),
        route: one.kind.route.clone(),
        reason: one.kind.reason,
        explanation: Explanation::from(one.kind.reason),
        pid: one.latest.caller.pid,
        uid: one.latest.caller.uid,
    }
}

fn long(one: &Remembered<Told>) -> PastRefusal {
    PastRefusal {
        module: one.kind.module.clone(),
        route: one.kind.route.clone(),
        reason: one.kind.reason,
        explanation: Explanation::from(one.kind.reason),
        count: one.count,
        first_time: one.since.clone(),
        time: one.latest.time.clone(),
        caller: one.latest.caller.clone(),
        attestation: one.latest.attestation.clone(),
    }
}

/// A refusal that is about no module.
#[must_use]
pub(crate) fn without_evidence(module: &str, pid: u32, reason: DenyReason) -> Attestation {
    Attestation {
        module: module.to_owned(),
        pid,
        allowed: false,
        registration: None,
        facts: Facts::from(&RunningFacts::Unknown),
        evidence: None,
        checks: Check::list(None, Err(reason), true),
        explanation: Some(Explanation::from(reason)),
    }
}
