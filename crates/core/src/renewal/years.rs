//! Ten years of a device's renewals, simulated.
//!
//! The true time, in minutes, is known to the simulation alone. The device sees its own
//! clocks. Power fails also in the middle of a renewal, the wall clock is set wrongly and
//! rightly, the service is away for weeks.

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;

const MINUTE: i64 = 60;
const DAY: i64 = 86_400;
const YEAR: i64 = 365 * DAY;
const START: i64 = 1_800_000_000;
/// Longest time without a valid certificate while one can be had: the longest pause, and
/// the longest that a service may ask for.
const REACTION: i64 = LONGEST_OUTAGE_PAUSE + 2 * MINUTE;

/// Random numbers of the world (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: i64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        i64::try_from(self.0 % below.unsigned_abs().max(1)).unwrap()
    }
}

/// Something that changes in the world.
#[derive(Debug, Clone, Copy)]
enum Change {
    Service(bool),
    Power(bool),
    /// The clock is put off by so many seconds from the true time.
    Clock(i64),
}

/// The changes of ten years, in order, with their true times.
fn history(dice: &mut Dice) -> Vec<(i64, Change)> {
    let mut changes = Vec::new();
    let mut at = START;
    while at < START + 10 * YEAR {
        at += dice.roll(60 * DAY) + MINUTE;
        let (change, undone, lasts) = match dice.roll(10) {
            0..4 => (Change::Service(false), Change::Service(true), dice.roll(50 * DAY)),
            4..7 => (Change::Power(false), Change::Power(true), dice.roll(5 * DAY)),
            7 => (Change::Power(false), Change::Power(true), dice.roll(2 * YEAR)),
            8 => (Change::Clock(-dice.roll(60 * YEAR)), Change::Clock(0), dice.roll(3 * DAY)),
            _ => (Change::Clock(dice.roll(2 * YEAR)), Change::Clock(0), dice.roll(3 * DAY)),
        };
        changes.extend([(at, change), (at + lasts, undone)]);
        // Some follow one another without a pause, and overlap.
        at += if dice.roll(3) == 0 { 0 } else { lasts };
    }
    changes.sort_by_key(|(at, _)| *at);
    changes
}

/// A certificate with its keys, as it lies on the disk.
#[derive(Debug, Clone, Copy, Default)]
struct Disk {
    certificate: Option<(Span, u64)>,
    key: Option<u64>,
    next: Option<u64>,
    kept: Kept,
}

impl Disk {
    fn pair(&self) -> Pair {
        pair(self.certificate.map(|it| it.1).as_ref(), self.key.as_ref(), self.next.as_ref())
    }

    /// Renews until the power fails, after so many steps. Returns the new certificate's
    /// span if it came to the end.
    fn renew(&mut self, span: Span, rotate: bool, new_key: u64, mut steps: i64) -> Option<Span> {
        let mut step = || {
            steps -= 1;
            (steps >= 0).then_some(())
        };
        let key = match self.key {
            Some(key) if !rotate => key,
            Some(_) => {
                step()?;
                self.next = None;
                step()?;
                self.next = Some(new_key);
                new_key
            }
            None => {
                step()?;
                self.key = Some(new_key);
                new_key
            }
        };
        step()?;
        self.certificate = Some((span, key));
        if self.next == Some(key) {
            step()?;
            (self.key, self.next) = (self.next, None);
        }
        Some(span)
    }

    fn recover(&mut self) {
        match self.pair() {
            Pair::TakeOver => (self.key, self.next) = (self.next, None),
            Pair::KeyLost => self.certificate = None,
            Pair::Whole | Pair::NoCertificate => {}
        }
    }
}

/// Renewals, and minutes without a valid certificate, of one certificate.
#[derive(Debug, Default)]
struct Outcome {
    renewals: u32,
    attempts: u32,
    interrupted: u32,
}

/// Runs one certificate through the years.
fn live(dice: &mut Dice, life: i64, policy: Policy, history: &[(i64, Change)]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut disk = Disk { kept: Kept { seed: dice.0, ..Kept::default() }, ..Disk::default() };
    let (mut service, mut power, mut off_by) = (true, true, 0);
    let (mut outages, mut power_cuts) = (0, 0);
    // Since when everything that a renewal needs was there, if it is.
    let mut able_since = Some(START);
    let mut true_now = START;
    let mut boot = START;
    let mut last_good = START;
    let mut state: Option<State> = None;
    let mut wake = START;
    let mut keys = 0;
    let mut changes = history.iter().copied().peekable();
    while true_now < START + 10 * YEAR {
        let next_change = changes.peek().map_or(i64::MAX, |(at, _)| *at);
        let next_wake = if power { wake } else { i64::MAX };
        // A certificate that is over is no failure of a time at which none can be had.
        let end = disk.certificate.map_or(START, |it| it.0.end);
        if let Some(since) = able_since.filter(|_| power) {
            let until = next_change.min(next_wake).min(START + 10 * YEAR);
            let without = until - since.max(end);
            assert!(
                without <= REACTION,
                "no valid certificate for {without} s until {until}: {disk:?} {state:?}"
            );
        }
        if next_change <= next_wake {
            let Some((at, change)) = changes.next() else { break };
            true_now = at;
            match change {
                // They overlap: it is back when the last outage is over.
                Change::Service(back) => {
                    outages += if back { -1 } else { 1 };
                    service = outages == 0;
                }
                Change::Power(back) => {
                    power_cuts += if back { -1 } else { 1 };
                    let was = std::mem::replace(&mut power, power_cuts == 0);
                    if power && !was {
                        (boot, wake, state) = (true_now, true_now, None);
                    }
                }
                Change::Clock(by) => {
                    off_by = by;
                    wake = true_now;
                }
            }
            let able = service && power && off_by == 0;
            able_since = able.then(|| able_since.unwrap_or(true_now));
            continue;
        }
        true_now = next_wake;
        if off_by == 0 && service {
            last_good = true_now;
        }
        let wall = true_now + off_by;
        // A clock that is ahead by less than decades looks right, until a service tells.
        let plausible = wall >= last_good - 300 && !(off_by > 0 && service);
        let reading = Reading { monotonic: seconds(true_now - boot), wall };
        let now = Now { reading, earliest: last_good, plausible };
        let mut current = match state {
            Some(state) => state,
            None => {
                disk.recover();
                assert!(matches!(disk.pair(), Pair::Whole | Pair::NoCertificate));
                let state = State::new(policy, disk.kept, now);
                step(state, Event::Found(disk.certificate.map(|it| it.0)), now).0
            }
        };
        let decision;
        (current, decision) = step(current, Event::Look, now);
        let attempt = decision.attempt || (current.working && state.is_none());
        let mut decision = decision;
        if attempt {
            outcome.attempts += 1;
            keys += 1;
            // The service goes by the true time.
            let span = Span { begin: true_now - DAY, end: true_now + life };
            let cut = if dice.roll(50) == 0 { dice.roll(5) } else { i64::MAX };
            let before = disk.certificate.map(|it| it.0.end);
            let ended = service.then(|| disk.renew(span, policy.rotate_key, keys, cut));
            assert!(
                !matches!(disk.pair(), Pair::KeyLost),
                "a certificate without its key: {disk:?}"
            );
            if ended == Some(None) {
                outcome.interrupted += 1;
                (state, wake, boot) = (None, true_now + MINUTE, true_now + MINUTE);
                continue;
            }
            let event =
                ended.flatten().map_or(Event::Failed { retry_after: None }, Event::Succeeded);
            if matches!(event, Event::Succeeded(_)) {
                outcome.renewals += 1;
                assert!(before.is_none_or(|before| span.end > before), "renewed for nothing");
            }
            (current, decision) = step(current, event, now);
            assert!(!decision.attempt, "no pause after {event:?}");
        }
        disk.kept = current.kept();
        state = Some(current);
        wake = true_now + i64::try_from(decision.wake.as_secs()).unwrap().max(1);
    }
    outcome
}

fn policies(dice: &mut Dice) -> Policy {
    let threshold = ["80%", "50%", "95%", "3day", "90min"][usize::try_from(dice.roll(5)).unwrap()];
    let retry = ["4%", "1day", "30min"][usize::try_from(dice.roll(3)).unwrap()];
    Policy {
        enabled: true,
        threshold: threshold.parse().unwrap(),
        retry: retry.parse().unwrap(),
        rotate_key: dice.roll(2) == 0,
        window: (dice.roll(3) == 0).then(|| "02:00-04:00".parse().unwrap()),
    }
}

proptest! {
    #![proptest_config(Config { cases: 1, ..Config::default() })]
    #[test]
    fn in_ten_years_no_certificate_is_over_while_a_valid_one_can_be_had(seed in 1_u64..) {
        let mut dice = Dice(seed);
        let mut total = Outcome::default();
        for _ in 0..100 {
            let history = history(&mut dice);
            let life = [7, 30, 90, 365, 730][usize::try_from(dice.roll(5)).unwrap()] * DAY;
            let policy = policies(&mut dice);
            let outcome = live(&mut dice, life, policy, &history);
            total.renewals += outcome.renewals;
            total.attempts += outcome.attempts;
            total.interrupted += outcome.interrupted;
        }
        // The world is not one in which nothing happens.
        prop_assert!(total.renewals > 2_000, "{total:?}");
        prop_assert!(total.interrupted > 10, "{total:?}");
        prop_assert!(total.attempts > total.renewals * 2, "{total:?}");
        // The service is away for much of the time.
        prop_assert!(total.attempts < 100 * 3650 * 20, "no hammer: {total:?}");
    }
}
