//! Writing down what is asked for, before and after it is done.

use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use edgekeep_api::keyd::{ON_BEHALF_OF, OnBehalfOf, OnBehalfOfError};
use edgekeep_audit::entry::{Entry, Event};
use edgekeep_audit::{Busy, Log, Options, Permit};
use edgekeep_base::lock::lock;
use edgekeep_core::health::calls::SHOWN_FOR;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::key_use::{
    Counted, Key, Operation, Outcome, Policy, Reason, Shares, Statement, Throttle, Told, Used, Who,
};
use edgekeep_core::settings::KeydSettings;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::peer::Caller;
use edgekeep_daemon::server::{HttpError, Request};
use edgekeep_hsm::KeyBackend;
use time::OffsetDateTime;

use crate::metrics;

/// Longest time that a request waits for a place in the audit log before it is refused.
const PATIENCE: Duration = Duration::from_secs(2);

/// The log's bounds as the settings have them.
pub(crate) fn options(settings: &KeydSettings) -> Options {
    let mut options = Options::default();
    let log = &settings.audit_log;
    if let Some(size) = log.size_mib {
        options.total_bytes = u64::from(size) << 20;
        // A segment and the whole one before it stay.
        options.segment_bytes = options.segment_bytes.min(options.total_bytes / 2);
    }
    if let Some(sync) = log.sync_ms {
        options.sync_after = Duration::from_millis(sync.into());
    }
    if let Some(checkpoint) = log.checkpoint_sec {
        options.sign_after = Duration::from_secs(checkpoint.into());
    }
    if let Some(tpm) = &settings.tpm {
        options.count_after = Duration::from_secs(tpm.audit_counter.interval_sec.into());
    }
    options
}

/// The audit log of this keyd.
pub(crate) struct Recorder {
    log: Arc<Log>,
    backend: Arc<dyn KeyBackend>,
    throttle: Mutex<Throttle>,
    shares: Arc<Mutex<Shares<Permit>>>,
    board: Board,
}

/// Something that is being done, with its place in the log. If it is dropped before its
/// end is known, it is written down as interrupted.
#[must_use]
pub(crate) struct Doing {
    /// Taken when the end is written.
    open: Option<(Permit, Who, Operation, Option<Key>)>,
    backend: Arc<dyn KeyBackend>,
    shares: Arc<Mutex<Shares<Permit>>>,
    board: Board,
}

impl Recorder {
    /// `entries_per_hour` is what each uid may write before its uses are counted
    /// together.
    pub(crate) fn new(
        log: Log,
        backend: Arc<dyn KeyBackend>,
        entries_per_hour: u32,
        board: Board,
    ) -> Self {
        let shares = Arc::new(Mutex::new(Shares::new(entries_per_hour)));
        Self { log: Arc::new(log), backend, throttle: Mutex::default(), shares, board }
    }

    /// Writes down what was counted so far.
    pub(crate) fn write_counted(&self) {
        append_all(lock(&self.shares).all());
    }

    /// Writes down something that nobody asked for. Returns false if there is no place
    /// for it now.
    pub(crate) fn tell(&self, event: Event) -> bool {
        let Ok(permit) = self.log.reserve() else { return false };
        permit.append(Entry { time: OffsetDateTime::now_utc(), event });
        true
    }

    pub(crate) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Takes a place in the log for something that is allowed and about to be done.
    pub(crate) async fn begin(
        &self,
        who: Who,
        what: Operation,
        key: Option<Key>,
    ) -> Result<Doing, HttpError> {
        let permit = match self.log.reserve() {
            Ok(permit) => permit,
            Err(Busy) => {
                let log = Arc::clone(&self.log);
                let waited =
                    tokio::task::spawn_blocking(move || log.reserve_within(PATIENCE)).await;
                match waited {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(busy)) => {
                        let busy = busy.to_string();
                        self.board.note(
                            Code::AuditIncomplete,
                            &Subject::file(self.log.folder()),
                            &busy,
                            SHOWN_FOR,
                        );
                        return Err(HttpError::internal(busy));
                    }
                    Err(failed) => return Err(HttpError::hidden(&failed)),
                }
            }
        };
        let (backend, shares) = (Arc::clone(&self.backend), Arc::clone(&self.shares));
        Ok(Doing {
            open: Some((permit, who, what, key)),
            backend,
            shares,
            board: self.board.clone(),
        })
    }

    /// Writes a refusal down, here and in the daemon's log; or counts it, if there are
    /// too many of this uid.
    pub(crate) fn refused(&self, who: Who, what: Operation, key: Option<Key>, reason: Reason) {
        metrics::refused(what, reason);
        if !lock(&self.throttle).admit(who.uid, since_start()) {
            self.log.count_refusal();
            return;
        }
        let id = key.as_ref().map_or("", |key| key.id.as_str());
        tracing::warn!(uid = who.uid, pid = who.pid, %what, key = id, %reason, "refused");
        self.log.refused(entry(who, what, key, Outcome::Refused(reason)));
    }
}

impl Drop for Recorder {
    /// While the log is still there.
    fn drop(&mut self) {
        append_all(lock(&self.shares).close());
    }
}

impl Doing {
    /// Writes down that it was refused after all.
    pub(crate) fn refused(mut self, reason: Reason) {
        self.close(Outcome::Refused(reason));
    }

    /// Writes the end down, and passes it on.
    pub(crate) fn end<T>(mut self, done: Result<T, HttpError>) -> Result<T, HttpError> {
        if let (Err(error), Some((_, _, what, Some(key)))) = (&done, &self.open)
            && error.is_of_device()
        {
            let detail = format!("{what}: {}", error.message());
            self.board.note(Code::KeyUnusable, &Subject::key(key.id.as_str()), detail, SHOWN_FOR);
        }
        self.close(if done.is_ok() { Outcome::Done } else { Outcome::Failed });
        done
    }

    fn close(&mut self, outcome: Outcome) {
        if let Some((permit, who, what, key)) = self.open.take() {
            let backend = key.as_ref().and_then(|key| self.backend.keeper(&key.id));
            metrics::ended(what, key.as_ref(), backend, outcome);
            let used = Used { who, what, key, outcome };
            let told =
                lock(&self.shares).take(used, permit, since_start(), OffsetDateTime::now_utc());
            match told {
                Told::Itself(Used { who, what, key, outcome }, permit) => {
                    permit.append(entry(who, what, key, outcome));
                }
                Told::Together { until: Some(until) } => self.write_counted_at(until),
                Told::Together { until: None } => {}
            }
        }
    }

    /// Without a runtime, which is without a server, it is written when the log is
    /// closed.
    fn write_counted_at(&self, until: Duration) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let shares = Arc::downgrade(&self.shares);
        runtime.spawn(async move {
            tokio::time::sleep(until.saturating_sub(since_start())).await;
            if let Some(shares) = shares.upgrade() {
                append_all(lock(&shares).due(since_start()));
            }
        });
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        self.close(Outcome::Interrupted);
    }
}

/// The time since the first use, on a clock that is never set.
fn since_start() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// Writes down uses that were counted together.
fn append_all(counted: Vec<Counted<Permit>>) {
    for Counted { who, what, key, outcome, count, since, place } in counted {
        let event = Event::Counted { who, what, key, outcome, count, since };
        place.append(Entry { time: OffsetDateTime::now_utc(), event });
    }
}

/// Returns the caller, as the kernel tells it, with the module on whose behalf the caller
/// asks, as the caller says, if the caller may say so.
///
/// # Errors
/// 400 if it says so in another form.
pub(crate) fn who(request: &Request, policy: &Policy) -> Result<Who, HttpError> {
    let mut who = connected(&request.caller);
    if let Some(text) = request.header(ON_BEHALF_OF)? {
        let says: OnBehalfOf = text
            .parse()
            .map_err(|error: OnBehalfOfError| HttpError::bad_request(error.to_string()))?;
        if policy.may_attest(who.uid) {
            who.says =
                Some(Box::new(Statement { module: says.module, executable: says.executable }));
        } else {
            tracing::debug!(
                uid = who.uid,
                "says on whose behalf it asks, and may not: not written down"
            );
        }
    }
    Ok(who)
}

/// The same of somebody who is refused anyway: a statement that cannot be read keeps no
/// refusal out of the log.
pub(crate) fn refused_who(request: &Request, policy: &Policy) -> Who {
    who(request, policy).unwrap_or_else(|_| connected(&request.caller))
}

/// Returns the connected caller, as the kernel tells it.
pub(crate) fn connected(caller: &Caller) -> Who {
    Who { uid: caller.uid(), pid: caller.pid(), says: None }
}

fn entry(who: Who, what: Operation, key: Option<Key>, outcome: Outcome) -> Entry {
    Entry { time: OffsetDateTime::now_utc(), event: Event::Asked { who, what, key, outcome } }
}
