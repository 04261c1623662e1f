use std::time::{Duration, Instant};

/// Longest wait for anything that should happen soon, on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks until there is something, and gives it.
///
/// # Panics
/// Nothing came within [`PATIENCE`]; `what` says what was waited for.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::park_timeout(INTERVAL);
    }
}
