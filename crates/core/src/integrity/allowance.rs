//! A bound on what callers may have recorded: a daemon that was taken over cannot push
//! the records of others out of the logs that are kept, nor keep the TPM busy.

use std::collections::BTreeMap;
use std::time::Duration;

/// Records that a caller may have written at once: those of a device with some hundred
/// modules that all start.
pub const AT_ONCE: u32 = 1024;
/// Time after which a caller may have one more written. At this pace a caller needs eight
/// days to fill all the logs that are kept.
pub const ONE_MORE_AFTER: Duration = Duration::from_secs(30);

/// The decision on one record of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The record is written.
    Written,
    /// The record is written, after another one with the number of records that were left
    /// out before.
    WrittenAfter {
        /// Records of this caller that were left out since that was told last.
        omitted: u64,
    },
    /// The record is left out, and counted.
    Omitted,
}

/// Records that each caller may still have written. Times are since any fixed moment of a
/// clock that is never set.
#[derive(Debug, Default)]
pub struct Allowances(BTreeMap<u32, Allowance>);

#[derive(Debug)]
struct Allowance {
    left: u32,
    /// Time of the last gain.
    since: Duration,
    /// Records that were left out, and of which no record tells yet.
    omitted: u64,
}

impl Allowances {
    /// Decides on one more record of the caller with this uid. There are no more entries
    /// than uids that may speak for a daemon: others are refused before.
    pub fn admit(&mut self, uid: u32, now: Duration) -> Admission {
        let new = Allowance { left: AT_ONCE, since: now, omitted: 0 };
        let allowance = self.0.entry(uid).or_insert(new);
        allowance.gain(now);
        // One for the record that tells of those that were left out.
        let needed = if allowance.omitted > 0 { 2 } else { 1 };
        if allowance.left < needed {
            allowance.omitted = allowance.omitted.saturating_add(1);
            return Admission::Omitted;
        }
        allowance.left -= needed;
        match std::mem::take(&mut allowance.omitted) {
            0 => Admission::Written,
            omitted => Admission::WrittenAfter { omitted },
        }
    }

    /// Takes the numbers of records that were left out, of all callers of whom that can
    /// be told now.
    pub fn untold(&mut self, now: Duration) -> Vec<(u32, u64)> {
        let mut untold = Vec::new();
        for (uid, allowance) in &mut self.0 {
            allowance.gain(now);
            if allowance.omitted > 0 && allowance.left > 0 {
                allowance.left -= 1;
                untold.push((*uid, std::mem::take(&mut allowance.omitted)));
            }
        }
        untold
    }
}

impl Allowance {
    fn gain(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.since).as_secs() / ONE_MORE_AFTER.as_secs();
        if passed > 0 {
            let gained = u32::try_from(passed).unwrap_or(AT_ONCE);
            self.left = self.left.saturating_add(gained).min(AT_ONCE);
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_storm_of_one_caller_is_counted_and_leaves_another_its_share() {
        let mut allowances = Allowances::default();
        let admit = |allowances: &mut Allowances, uid, secs| {
            allowances.admit(uid, Duration::from_secs(secs))
        };
        let written =
            (0..5000).filter(|_| admit(&mut allowances, 7, 0) == Admission::Written).count();
        assert_eq!(written, AT_ONCE as usize);
        assert_eq!(admit(&mut allowances, 8, 0), Admission::Written);
        // One more is not enough for the record and for what it has to say before.
        assert_eq!(admit(&mut allowances, 7, 30), Admission::Omitted);
        let omitted = 5000 - u64::from(AT_ONCE) + 1;
        assert_eq!(admit(&mut allowances, 7, 60), Admission::WrittenAfter { omitted });
        assert_eq!(admit(&mut allowances, 7, 60), Admission::Omitted);
        // It is told also if nothing more comes.
        assert_eq!(allowances.untold(Duration::from_secs(60)), []);
        assert_eq!(allowances.untold(Duration::from_secs(90)), [(7, 1)]);
        assert_eq!(allowances.untold(Duration::from_secs(3600)), []);
    }

    proptest! {
        #[test]
        fn each_record_is_written_or_told_of_and_the_pace_is_kept(
            asks in prop::collection::vec((0_u64..40, any::<bool>()), 1..3000),
        ) {
            let mut allowances = Allowances::default();
            let (mut now, mut asked, mut written, mut told) = (0, 0_u64, 0_u64, 0_u64);
            let mut lines = 0_u64;
            for (pause, look) in asks {
                now += pause / 20;
                let at = Duration::from_secs(now);
                asked += 1;
                match allowances.admit(7, at) {
                    Admission::Written => (written, lines) = (written + 1, lines + 1),
                    Admission::WrittenAfter { omitted } => {
                        (written, told, lines) = (written + 1, told + omitted, lines + 2);
                    }
                    Admission::Omitted => {}
                }
                if look {
                    for (_, omitted) in allowances.untold(at) {
                        (told, lines) = (told + omitted, lines + 1);
                    }
                }
                prop_assert!(lines <= u64::from(AT_ONCE) + now / ONE_MORE_AFTER.as_secs());
            }
            let rest = allowances.untold(Duration::from_secs(now + 3600));
            told += rest.iter().map(|(_, omitted)| omitted).sum::<u64>();
            prop_assert_eq!(asked, written + told);
        }
    }
}
