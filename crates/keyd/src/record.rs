//! Writing down what is asked for, before and after it is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edgekeep_api::keyd::{ON_BEHALF_OF, OnBehalfOf, OnBehalfOfError};
use edgekeep_audit::entry::{Entry, Event, Key, Operation, Outcome, Reason, Statement, Who};
use edgekeep_audit::{Busy, Log, Options, Permit};
use edgekeep_core::health::calls::SHOWN_FOR;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::settings::KeydSettings;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::peer::Caller;
use edgekeep_daemon::server::{HttpError, Request};
use edgekeep_hsm::KeyBackend;
use time::OffsetDateTime;

use crate::metrics;
use crate::policy::Policy;
use crate::share::{Counted, Shares, Told, Used};

/// How long a request waits for a place in the audit log before it is refused.
const PATIENCE: Duration = Duration::from_secs(2);

/// Refusals of one uid that are written down at once, and the time after which one more
/// is. The rest is counted: who is refused must not be able to push what others did out
/// of a log of bounded size.
const REFUSALS: u32 = 100;
const REFUSAL_EVERY: Duration = Duration::from_secs(1);
/// Uids that are told apart for that.
const UIDS: usize = 256;

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

/// How many refusals of each uid may still be written down. Grows with time, up to
/// [`REFUSALS`].
#[derive(Default)]
struct Throttle(HashMap<u32, (u32, Instant)>);

impl Throttle {
    /// Whether one more of this uid is written down.
    fn admit(&mut self, uid: u32, now: Instant) -> bool {
        if self.0.len() >= UIDS && !self.0.contains_key(&uid) {
            // Whoever has not been refused for long enough has all of its share again.
            let full = REFUSAL_EVERY * REFUSALS;
            self.0.retain(|_, (_, since)| now.duration_since(*since) < full);
            if self.0.len() >= UIDS {
                return false;
            }
        }
        let (left, since) = self.0.entry(uid).or_insert((REFUSALS, now));
        let gained = now.duration_since(*since).as_secs() / REFUSAL_EVERY.as_secs();
        if gained > 0 {
            *left = left.saturating_add(u32::try_from(gained).unwrap_or(REFUSALS)).min(REFUSALS);
            *since = now;
        }
        let admitted = *left > 0;
        *left = left.saturating_sub(1);
        admitted
    }
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
        if !self
            .throttle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(who.uid, Instant::now())
        {
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
                lock(&self.shares).take(used, permit, Instant::now(), OffsetDateTime::now_utc());
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
    fn write_counted_at(&self, until: Instant) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let shares = Arc::downgrade(&self.shares);
        runtime.spawn(async move {
            tokio::time::sleep_until(until.into()).await;
            if let Some(shares) = shares.upgrade() {
                append_all(lock(&shares).due(Instant::now()));
            }
        });
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        self.close(Outcome::Interrupted);
    }
}

fn lock(shares: &Mutex<Shares<Permit>>) -> MutexGuard<'_, Shares<Permit>> {
    shares.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes down uses that were counted together.
fn append_all(counted: Vec<Counted<Permit>>) {
    for Counted { who, what, key, outcome, count, since, place } in counted {
        let event = Event::Counted { who, what, key, outcome, count, since };
        place.append(Entry { time: OffsetDateTime::now_utc(), event });
    }
}

/// Who asks, as the kernel says; and on whose behalf, as the caller says, if it may say
/// so.
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

/// Who is connected, as the kernel says.
pub(crate) fn connected(caller: &Caller) -> Who {
    Who { uid: caller.uid(), pid: caller.pid(), says: None }
}

fn entry(who: Who, what: Operation, key: Option<Key>, outcome: Outcome) -> Entry {
    Entry { time: OffsetDateTime::now_utc(), event: Event::Asked { who, what, key, outcome } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_of_one_uid_is_counted_and_leaves_others_their_share() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        let admitted = (0..10_000).filter(|_| throttle.admit(7, start)).count();
        assert_eq!(admitted, 100);
        assert!(throttle.admit(8, start));
        let later = start + Duration::from_secs(3);
        assert_eq!((0..10).filter(|_| throttle.admit(7, later)).count(), 3);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..10_000).filter(|_| throttle.admit(7, much_later)).count(), 100);
    }

    #[test]
    fn many_uids_take_bounded_memory_and_come_to_their_share_again() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        let admitted = (0..10_000).filter(|uid| throttle.admit(*uid, start)).count();
        assert_eq!((admitted, throttle.0.len()), (UIDS, UIDS));
        assert!(throttle.admit(20_000, start + Duration::from_secs(3600)));
    }
}
