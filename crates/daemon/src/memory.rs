//! Giving memory back: what a burst of requests took is not what a daemon of a small
//! device may keep.
//!
//! The C library keeps freed memory in up to eight pools a core, and in each of them all
//! but its end. So one pool is used, and free pages inside it go back to the system at
//! intervals. Calls to the C library that no safe crate offers; nothing happens with
//! another C library than GNU's.
#![allow(unsafe_code, reason = "mallopt and malloc_trim are plain C calls without a safe binding")]

use std::time::Duration;

/// Time between two rounds that give free pages back. Rounds are not more frequent, since
/// a round holds the allocator's lock.
const PERIOD: Duration = Duration::from_secs(10);

/// Makes all threads share one pool of memory. First in `main`: pools that exist already
/// stay.
pub fn one_pool() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers and changes the allocator's settings under its own lock.
    let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    #[cfg(target_env = "gnu")]
    if set == 0 {
        tracing::debug!("the number of memory pools stays");
    }
}

/// Gives free pages back at intervals, for as long as it is polled.
pub async fn give_back() {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        trim();
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number; touches only free memory, under the allocator's own lock.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("proc");
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    #[test]
    fn memory_freed_below_memory_in_use_is_given_back() {
        one_pool();
        // Below the size that gets a mapping of its own, so what is freed lies under what
        // stays.
        let mut pieces: Vec<Box<[u8]>> =
            (0..2048).map(|_| vec![1; 32 * 1024].into_boxed_slice()).collect();
        let last = pieces.pop();
        drop(pieces);
        let kept = resident_kib();
        trim();
        let left = resident_kib();
        assert!(left + 32 * 1024 < kept, "{kept} KiB before, {left} KiB after");
        drop(last);
    }
}
