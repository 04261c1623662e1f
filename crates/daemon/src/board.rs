//! The board: the problems that a daemon knows of, for whoever asks at its operations
//! socket.
//!
//! Any part of a daemon keeps a clone and tells of what it sees;
//! [`edgekeep_core::health`] says how a kind of problem is added. Telling again what is
//! there costs a lookup and changes nothing but the words. Moments are kept on the
//! monotonic clock: however the wall clock steps, `since` is right by the clock as it is
//! when somebody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use edgekeep_base::lock::lock;
use edgekeep_core::health::{Code, Health, Problem, Subject};
use time::OffsetDateTime;

/// Problems of one kind that are kept. Beyond, one about the device as a whole says that
/// there are more.
pub const PER_CODE: usize = 256;

/// The problems that a daemon knows of. A clone is the same board.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<BTreeMap<Code, Kept>>>);

/// Problems of one kind.
#[derive(Debug, Default)]
struct Kept {
    by_subject: BTreeMap<Subject, Entry>,
    /// Since when there are more than are kept. Over only when none of those that are
    /// kept is left: which ones were left out is not known.
    more: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    detail: String,
    since: Instant,
    /// End of what is no state but an event.
    lapses: Option<Instant>,
}

impl Board {
    /// An empty board.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells of a problem that stays until it is cleared. The words of an earlier telling
    /// are replaced.
    pub fn raise(&self, code: Code, subject: &Subject, detail: impl AsRef<str>) {
        self.put(code, subject, detail.as_ref(), None, Instant::now());
    }

    /// Tells of an event that is a problem for `lasting` from now, longer if it is told
    /// of again.
    pub fn note(&self, code: Code, subject: &Subject, detail: impl AsRef<str>, lasting: Duration) {
        let now = Instant::now();
        self.put(code, subject, detail.as_ref(), now.checked_add(lasting), now);
    }

    /// Tells that a problem is over. There need not be one.
    pub fn clear(&self, code: Code, subject: &Subject) {
        let mut board = self.lock();
        let Some(kept) = board.get_mut(&code) else { return };
        if kept.by_subject.remove(subject).is_some() {
            tracing::info!(problem = %code, %subject, "over");
        }
        kept.tidy();
    }

    /// Tells that no problem of this kind is there.
    pub fn clear_all(&self, code: Code) {
        if self.lock().remove(&code).is_some_and(|kept| !kept.by_subject.is_empty()) {
            tracing::info!(problem = %code, "over");
        }
    }

    /// Tells all problems of this kind that a look around found: what is not among them
    /// is over.
    pub fn replace<D: AsRef<str>>(
        &self,
        code: Code,
        found: impl IntoIterator<Item = (Subject, D)>,
    ) {
        let mut seen = BTreeSet::new();
        for (subject, detail) in found {
            // Beyond the bound it is enough to say once that there are more.
            if seen.len() <= PER_CODE {
                self.raise(code, &subject, detail);
                seen.insert(subject);
            }
        }
        let before: Vec<Subject> = self
            .lock()
            .get(&code)
            .map(|kept| kept.by_subject.keys().cloned().collect())
            .unwrap_or_default();
        for subject in before.iter().filter(|subject| !seen.contains(subject)) {
            self.clear(code, subject);
        }
        if seen.len() <= PER_CODE
            && let Some(kept) = self.lock().get_mut(&code)
        {
            kept.more = None;
        }
    }

    /// All problems that are there now, and what they mean for the health of what this
    /// daemon knows.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health_at(Instant::now(), OffsetDateTime::now_utc())
    }

    fn health_at(&self, now: Instant, wall: OffsetDateTime) -> Health {
        let mut board = self.lock();
        for kept in board.values_mut() {
            kept.by_subject.retain(|_, entry| entry.lapses.is_none_or(|end| end > now));
            kept.tidy();
        }
        let begun = |since: Instant| {
            wall.saturating_sub(now.saturating_duration_since(since).try_into().unwrap_or_default())
        };
        let problems = board.iter().flat_map(|(code, kept)| {
            let known = kept
                .by_subject
                .iter()
                .map(|(subject, entry)| (subject.clone(), entry.detail.as_str(), entry.since));
            let more =
                kept.more.map(|since| (Subject::device(), "there are more than are listed", since));
            known
                .chain(more)
                .map(|(subject, detail, since)| Problem::new(*code, subject, detail, begun(since)))
        });
        Health::of(problems)
    }

    fn put(
        &self,
        code: Code,
        subject: &Subject,
        detail: &str,
        lapses: Option<Instant>,
        now: Instant,
    ) {
        // Bounded before it is kept.
        let told = Problem::new(code, subject.clone(), detail, OffsetDateTime::UNIX_EPOCH);
        let detail = told.detail().to_owned();
        let mut board = self.lock();
        let kept = board.entry(code).or_default();
        if let Some(known) = kept.by_subject.get_mut(subject) {
            if known.lapses.is_some_and(|end| end <= now) {
                known.since = now;
            }
            known.detail = detail;
            // What is told as a state stays one.
            known.lapses = known.lapses.and(lapses);
            return;
        }
        kept.by_subject.retain(|_, entry| entry.lapses.is_none_or(|end| end > now));
        if kept.by_subject.len() >= PER_CODE {
            kept.more.get_or_insert(now);
            return;
        }
        kept.by_subject
            .insert(subject.clone(), Entry { detail: detail.clone(), since: now, lapses });
        drop(board);
        tracing::warn!(problem = %code, %subject, severity = %code.severity(), detail, "problem");
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Code, Kept>> {
        lock(&self.0)
    }
}

impl Kept {
    fn tidy(&mut self) {
        if self.by_subject.is_empty() {
            self.more = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_core::health::Verdict;
    use time::macros::datetime;

    use super::*;

    const WALL: OffsetDateTime = datetime!(2026-07-01 12:00 UTC);
    const SECOND: Duration = Duration::from_secs(1);

    fn key(number: usize) -> Subject {
        Subject::key(&format!("k{number}"))
    }

    #[test]
    fn a_problem_is_there_from_its_first_telling_until_it_is_cleared_and_has_the_latest_words() {
        let board = Board::new();
        let begin = Instant::now();
        board.put(Code::KeyUnusable, &key(1), "first", None, begin);
        board.clone().put(Code::KeyUnusable, &key(1), "second", None, begin + 9 * SECOND);
        let health = board.health_at(begin + 10 * SECOND, WALL);
        assert_eq!((health.verdict(), health.problems().len()), (Verdict::Unhealthy, 1));
        let problem = &health.problems()[0];
        assert_eq!((problem.detail(), problem.since()), ("second", WALL - 10 * SECOND));
        board.clear(Code::KeyUnusable, &key(2));
        board.clear(Code::DiskFull, &key(1));
        assert_eq!(board.health().verdict(), Verdict::Unhealthy);
        board.clear(Code::KeyUnusable, &key(1));
        assert_eq!(board.health().verdict(), Verdict::Healthy);
    }

    #[test]
    fn a_step_of_the_wall_clock_moves_the_begin_with_it() {
        let board = Board::new();
        let begin = Instant::now();
        board.put(Code::DiskFull, &Subject::device(), "", None, begin);
        for wall in [OffsetDateTime::UNIX_EPOCH, WALL, datetime!(9999-01-01 0:00 UTC)] {
            let health = board.health_at(begin + 60 * SECOND, wall);
            assert_eq!(health.problems()[0].since(), wall - 60 * SECOND);
        }
    }

    #[test]
    fn an_event_lapses_unless_it_is_told_of_again_and_then_begins_anew() {
        let board = Board::new();
        let (begin, lasting) = (Instant::now(), 300 * SECOND);
        let tell =
            |at: Instant| board.put(Code::ModuleCallFailed, &key(1), "x", Some(at + lasting), at);
        let since = |at: Instant| {
            board.health_at(at, WALL).problems().first().map(|problem| WALL - problem.since())
        };
        tell(begin);
        tell(begin + 200 * SECOND);
        assert_eq!(since(begin + 499 * SECOND), Some(time::Duration::seconds(499)));
        assert_eq!(since(begin + 500 * SECOND), None);
        tell(begin + 600 * SECOND);
        tell(begin + 901 * SECOND);
        assert_eq!(
            since(begin + 902 * SECOND),
            Some(time::Duration::seconds(1)),
            "the first had lapsed, unread"
        );
    }

    #[test]
    fn a_look_around_replaces_what_the_last_one_found() {
        let board = Board::new();
        board.replace(Code::KeyUnusable, [(key(1), "a"), (key(2), "b")]);
        board.raise(Code::DiskFull, &Subject::device(), "");
        board.replace(Code::KeyUnusable, [(key(2), "c"), (key(3), "d")]);
        let health = board.health();
        let told: Vec<(String, &str)> =
            health.problems().iter().map(|it| (it.subject().to_string(), it.detail())).collect();
        assert_eq!(told, [("key k2".into(), "c"), ("key k3".into(), "d"), ("device".into(), "")]);
        board.clear_all(Code::DiskFull);
        board.replace(Code::KeyUnusable, [] as [(Subject, &str); 0]);
        assert_eq!(board.health().verdict(), Verdict::Healthy);
    }

    #[test]
    fn however_many_are_told_of_the_board_is_bounded_and_never_says_that_all_is_well_too_soon() {
        let board = Board::new();
        for number in 0..10 * PER_CODE {
            board.raise(Code::KeyUnusable, &key(number), "x".repeat(100_000));
        }
        let health = board.health();
        assert_eq!(health.problems().len(), PER_CODE + 1);
        assert!(health.problems().iter().all(|problem| problem.detail().len() < 1000));
        let kept: Vec<Subject> =
            health.problems().iter().map(|problem| problem.subject().clone()).collect();
        let (last, others) = kept.split_last().expect("some");
        for subject in others {
            board.clear(Code::KeyUnusable, subject);
        }
        assert_eq!(
            board.health().verdict(),
            Verdict::Unhealthy,
            "those left out may be there still"
        );
        board.clear(Code::KeyUnusable, last);
        assert_eq!(board.health().verdict(), Verdict::Healthy);
        board.replace(Code::KeyUnusable, (0..10 * PER_CODE).map(|number| (key(number), "")));
        assert_eq!(board.health().problems().len(), PER_CODE + 1);
        board.replace(Code::KeyUnusable, [(key(0), "")]);
        assert_eq!(board.health().problems().len(), 1);
    }
}
