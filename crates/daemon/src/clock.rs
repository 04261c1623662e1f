//! The machine's clocks, read; and a watch for steps of the wall clock.
//!
//! Nothing is decided here: what a step or a moment means is in [`edgekeep_core::clock`].

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use edgekeep_core::clock::{BootId, Moment, Reading, step};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's name for this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Time between two comparisons of the clocks. The kernel tells of a step at once. The
/// comparison finds a time asleep, and clocks that are moved without the kernel, as a
/// test does.
const LOOK: Duration = Duration::from_secs(1);

/// The clock that counts from this boot.
#[derive(Debug, Clone, Copy)]
pub struct BootClock {
    boot: BootId,
}

impl BootClock {
    /// Reads the name of this boot. Without such a name, a deadline by this clock lasts
    /// no longer than this process.
    #[must_use]
    pub fn read() -> Self {
        let named = std::fs::read_to_string(BOOT_ID).ok().and_then(|text| BootId::parse(&text));
        let boot = named.unwrap_or_else(|| {
            let mut bytes = [0; 16];
            // Without random numbers no handle is made either.
            let _ = rand::fill(&mut bytes);
            BootId::from_bytes(bytes)
        });
        Self { boot }
    }

    /// Returns the present moment. Time asleep counts.
    #[must_use]
    pub fn now(&self) -> Moment {
        let seconds = u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0);
        Moment { boot: self.boot, seconds }
    }
}

/// Reads the wall clock, in seconds since 1970.
#[must_use]
pub fn wall() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

/// Reads the two clocks.
#[must_use]
pub fn reading() -> Reading {
    static START: OnceLock<Instant> = OnceLock::new();
    Reading { monotonic: START.get_or_init(Instant::now).elapsed(), wall: wall() }
}

/// A watch for steps of the wall clock.
#[derive(Debug)]
pub struct Steps {
    timer: Option<AsyncFd<OwnedFd>>,
    last: Reading,
}

impl Steps {
    /// Begins to watch. Without a timer of the kernel the clocks are compared from time
    /// to time, and nothing else.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn watch() -> Self {
        let timer = timer().and_then(watched);
        let timer = timer
            .inspect_err(
                |error| tracing::debug!(%error, "steps of the clock are looked for, not told"),
            )
            .ok();
        Self { timer, last: reading() }
    }

    /// Waits for a step, and returns by how many seconds the clock was put forward, or
    /// back if that is negative.
    ///
    /// A step that happens while nobody waits is returned by the next call. May be
    /// dropped and called again at any time.
    pub async fn next(&mut self) -> i64 {
        loop {
            let now = reading();
            let moved = step(self.last, now);
            self.last = now;
            if let Some(moved) = moved {
                return moved;
            }
            match &self.timer {
                Some(timer) => tokio::select! {
                    told = told(timer) => if told.is_err() { self.timer = None },
                    () = tokio::time::sleep(LOOK) => {}
                },
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

/// Makes a timer that never ends but by a step of the clock.
fn timer() -> Result<OwnedFd, Errno> {
    let timer =
        timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    arm(&timer)?;
    Ok(timer)
}

fn watched(timer: OwnedFd) -> Result<AsyncFd<OwnedFd>, Errno> {
    #[expect(
        deprecated,
        reason = "deprecated for types whose descriptor can change; an `OwnedFd` keeps one, and this module has no unsafe"
    )]
    AsyncFd::with_interest(timer, Interest::READABLE).map_err(|_| Errno::INVAL)
}

fn arm(timer: &OwnedFd) -> Result<(), Errno> {
    let never = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
    let value = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    match timerfd_settime(timer, flags, &value) {
        // The clock was set between two calls: the timer is armed all the same
        // (timerfd_create(2)).
        Ok(_) | Err(Errno::CANCELED) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits until the kernel says that the clock was set.
async fn told(timer: &AsyncFd<OwnedFd>) -> Result<(), Errno> {
    loop {
        let mut ready = timer.readable().await.map_err(|_| Errno::INVAL)?;
        match rustix::io::read(timer.get_ref(), &mut [0; 8]) {
            Err(Errno::CANCELED) => return arm(timer.get_ref()),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            // The end of time has come, or something else that this cannot go on from.
            Ok(_) => return Err(Errno::TIMEDOUT),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_boot_has_a_name_that_two_readings_agree_on_and_its_clock_goes_on() {
        let (one, other) = (BootClock::read(), BootClock::read());
        let (begin, end) = (one.now(), other.now());
        assert_eq!(begin.boot, end.boot);
        assert!(begin.seconds <= end.seconds);
        let up: f64 = std::fs::read_to_string("/proc/uptime")
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        #[expect(clippy::cast_precision_loss, reason = "seconds since a boot are few")]
        let difference = (up - end.seconds as f64).abs();
        assert!(difference < 60.0, "{difference}");
    }

    #[tokio::test]
    async fn a_clock_that_goes_on_is_no_step() {
        let mut steps = Steps::watch();
        assert!(steps.timer.is_some(), "the kernel has such timers");
        let waited = tokio::time::timeout(Duration::from_millis(50), steps.next()).await;
        assert!(waited.is_err(), "{waited:?}");
    }

    /// Sets the machine's clock to what it shows: for the kernel a set clock, for
    /// everybody else a few microseconds.
    #[tokio::test]
    async fn the_kernel_tells_when_the_clock_is_set() {
        let timer = watched(timer().unwrap()).unwrap();
        let now = clock_gettime(ClockId::Realtime);
        if let Err(error) = rustix::time::clock_settime(ClockId::Realtime, now) {
            eprintln!("skipped: this process may not set the clock ({error})");
            return;
        }
        for round in 0..2 {
            tokio::time::timeout(Duration::from_secs(10), told(&timer))
                .await
                .expect("told")
                .unwrap();
            // Armed anew: told of the next one too.
            if round == 0 {
                rustix::time::clock_settime(ClockId::Realtime, clock_gettime(ClockId::Realtime))
                    .unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_step_that_happened_while_nobody_waited_is_told() {
        let mut steps = Steps::watch();
        steps.last.wall -= 3600;
        assert_eq!(steps.next().await, 3600);
        steps.last.wall += 86_400;
        assert_eq!(steps.next().await, -86_400);
    }
}
