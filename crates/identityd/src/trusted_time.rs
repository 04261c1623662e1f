//! The last good time: the `Date` of the latest answer that the hub or the provisioning
//! service gave over TLS.
//!
//! A device without a battery for its clock begins in 1970. That is noticed by the time
//! that is kept here. Nothing refuses to work because of it: a service that errs is
//! corrected by its next answer, and a file that cannot be read is begun anew.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edgekeep_base::lock::lock;
use edgekeep_cloud::Transport;
use edgekeep_core::clock::{self, Moment};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::renewal;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::clock::{BootClock, reading, wall};
use edgekeep_daemon::store::StateFile;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::watch;

/// Time between two looks at the answers and at the clock.
const LOOK: Duration = Duration::from_secs(5);
/// The file is written when it is off by this many seconds: flash wears out.
const SAVE_EVERY: i64 = 3600;
/// Seconds by which a service's clock may be off what was to be expected: less is how
/// exactly it is told and looked at.
const EXACT: u64 = 10;
/// In place of a time that is not known.
const UNKNOWN: i64 = i64::MIN;

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Seconds since 1970.
    last_good: i64,
}

/// The last good time, over restarts.
#[derive(Debug)]
pub(crate) struct TrustedTime {
    file: StateFile<Kept>,
    last_good: AtomicI64,
    saved: AtomicI64,
    /// The latest answer since the start, and the moment at which it came.
    told: Mutex<Option<(i64, Moment)>>,
    boot: BootClock,
    /// Changes when a service tells another time than was to be expected.
    told_anew: watch::Sender<()>,
}

impl TrustedTime {
    pub(crate) fn open(folder: &Path) -> Self {
        let file = StateFile::new(folder.join("clock.json"), "clock", 1);
        let kept: Option<Kept> = file.load().unwrap_or_else(|error| {
            tracing::warn!(%error, "the last good time is not known");
            None
        });
        let known = kept.map_or(UNKNOWN, |kept| kept.last_good);
        Self {
            file,
            last_good: AtomicI64::new(known),
            saved: AtomicI64::new(known),
            told: Mutex::new(None),
            boot: BootClock::read(),
            told_anew: watch::Sender::new(()),
        }
    }

    /// Returns the last good time, in seconds since 1970.
    pub(crate) fn last_good(&self) -> Option<i64> {
        Some(self.last_good.load(Ordering::Relaxed)).filter(|known| *known != UNKNOWN)
    }

    /// Returns the earliest moment that the present can be, whatever the clock shows.
    pub(crate) fn earliest(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(clock::earliest(self.last_good()))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// Judges the wall clock by what the services told.
    fn judge(&self, wall: i64) -> clock::Plausibility {
        clock::judge(wall, self.last_good(), self.told())
    }

    /// Returns the present by the latest answer since the start.
    fn told(&self) -> Option<i64> {
        lock(&self.told).map(|(date, at)| {
            date.saturating_add_unsigned(self.boot.now().seconds.saturating_sub(at.seconds))
        })
    }

    /// Returns a receiver that is told when the clock may be judged otherwise though
    /// nobody set it: a service told another time than was to be expected.
    pub(crate) fn told_anew(&self) -> watch::Receiver<()> {
        self.told_anew.subscribe()
    }

    /// Returns the present, as plans for renewals take it.
    pub(crate) fn now(&self) -> renewal::Now {
        let reading = reading();
        renewal::Now {
            reading,
            earliest: clock::earliest(self.last_good()),
            plausible: self.judge(reading.wall) == clock::Plausibility::Plausible,
        }
    }

    /// Takes in the services' answers and judges the clock by them, for ever.
    pub(crate) async fn follow(self: Arc<Self>, transports: Vec<Arc<Transport>>, board: Board) {
        loop {
            if let Some(date) =
                transports.iter().filter_map(|transport| transport.take_date()).max()
            {
                let expected = self.told().is_some_and(|told| told.abs_diff(date) <= EXACT);
                *lock(&self.told) = Some((date, self.boot.now()));
                self.learn(date);
                if !expected {
                    self.told_anew.send_replace(());
                }
            }
            match self.judge(wall()).words() {
                Some(wrong) => board.raise(Code::ClockImplausible, &Subject::device(), wrong),
                None => board.clear_all(Code::ClockImplausible),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes in a time, also one that is earlier than the last: its answer is newer.
    fn learn(&self, told: i64) {
        self.last_good.store(told, Ordering::Relaxed);
        if self.saved.load(Ordering::Relaxed).abs_diff(told) < SAVE_EVERY.unsigned_abs() {
            return;
        }
        // Once an hour, and short.
        match self.file.save(&Kept { last_good: told }) {
            Ok(()) => self.saved.store(told, Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "the last good time is not kept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_answer_counts_also_if_it_tells_an_earlier_time_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let time = TrustedTime::open(folder.path());
        assert_eq!(time.last_good(), None);
        assert_eq!(time.earliest().unix_timestamp(), clock::BUILT);
        time.learn(clock::BUILT + 400 * 86_400);
        assert_eq!(TrustedTime::open(folder.path()).last_good(), Some(clock::BUILT + 400 * 86_400));
        time.learn(clock::BUILT + 5);
        let again = TrustedTime::open(folder.path());
        assert_eq!(again.earliest().unix_timestamp(), clock::BUILT + 5);
    }

    #[test]
    fn whatever_the_file_says_the_daemon_starts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("clock.json"), "nonsense").unwrap();
        assert_eq!(TrustedTime::open(folder.path()).last_good(), None);
        for far in [i64::MAX, i64::MIN, 0] {
            let time = TrustedTime::open(folder.path());
            time.learn(far);
            assert_eq!(
                TrustedTime::open(folder.path()).earliest().unix_timestamp(),
                clock::BUILT,
                "{far}"
            );
        }
    }
}
