//! The disk that holds the state.

use super::Code;

/// The space that is kept free for the state of a device whatever else is on the disk, in
/// bytes.
const LITTLE: u64 = 64 << 20;
/// With less no state file can be relied on to be written, in bytes.
const NOTHING: u64 = 1 << 20;

/// Space on a disk, in bytes, as those see it who are not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// The whole.
    pub size: u64,
    /// The space that is left.
    pub free: u64,
}

/// Judges a disk: nearly full is less than 64 MiB and less than a twentieth of the whole.
#[must_use]
pub fn judge(space: Space) -> Option<(Code, String)> {
    let words = format!("{} MiB of {} MiB are left", space.free >> 20, space.size >> 20);
    if space.free < NOTHING {
        Some((Code::DiskFull, words))
    } else if space.free < LITTLE.min(space.size / 20) {
        Some((Code::DiskNearlyFull, words))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_judged_by_what_is_left_for_the_state() {
        const MIB: u64 = 1 << 20;
        let judged = |size: u64, free: u64| judge(Space { size, free }).map(|it| it.0);
        assert_eq!(judged(64 << 30, 64 * MIB), None);
        assert_eq!(judged(64 << 30, 63 * MIB), Some(Code::DiskNearlyFull));
        assert_eq!(judged(100 * MIB, 6 * MIB), None, "small devices have small disks");
        assert_eq!(judged(100 * MIB, 4 * MIB), Some(Code::DiskNearlyFull));
        assert_eq!(judged(64 << 30, MIB - 1), Some(Code::DiskFull));
        assert_eq!(
            judge(Space { size: 100 * MIB, free: 2 * MIB }).unwrap().1,
            "2 MiB of 100 MiB are left"
        );
    }
}
