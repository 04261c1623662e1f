//! Metrics: counters, gauges and histograms in static families, written as OpenMetrics
//! 1.0 text.
//!
//! An own registry of some three hundred lines rather than a crate: keyd has the fewest
//! dependencies of all, and what is needed is little. A label's value is a
//! `&'static str`, so nothing that a caller sends can become one: the number of series is
//! bounded by the program's text. A series is looked up once, when the daemon starts;
//! counting is then one or two atomic additions.

mod text;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edgekeep_base::lock::lock;

pub use text::{CONTENT_TYPE, exposition};

/// Most series of one family. The program's own labels stay far below; it is a bound
/// against mistakes.
const SERIES: usize = 512;

/// Something that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number that was counted so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Adds to it; less than nothing takes away.
    pub fn add(&self, change: f64) {
        let added = |bits| Some((f64::from_bits(bits) + change).to_bits());
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added);
    }

    /// Returns the present value.
    #[must_use]
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Something that is so, and says it by its labels.
#[derive(Debug, Default)]
pub struct Info;

/// Upper bounds of a histogram's buckets, in nanoseconds; one more bucket is for all
/// above.
pub(crate) const BOUNDS: [u64; 15] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
    30_000_000_000,
];

/// A distribution of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Number of durations in each bucket, not counting those in the buckets below.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Something took so long.
    pub fn observe(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().take_while(|bound| took > **bound).count();
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
    }

    /// Returns the number of durations that were observed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

/// One kind of metric, for [`Family`].
pub trait Metric: Default + Send + Sync + 'static {
    /// The word in the text form.
    const KIND: &'static str;

    /// Returns true if nothing was ever counted.
    fn is_untouched(&self) -> bool;

    /// Appends its samples. `labels` is what stands between braces, without them.
    fn write(&self, out: &mut String, name: &str, labels: &str);
}

/// All metrics of one name, told apart by `N` labels. Declared as a `static`.
#[derive(Debug)]
pub struct Family<M, const N: usize> {
    name: &'static str,
    help: &'static str,
    labels: [&'static str; N],
    /// True if a series is shown only after something was counted.
    sparse: bool,
    series: Mutex<Vec<Series<M, N>>>,
}

/// One metric with its labels' values.
type Series<M, const N: usize> = ([&'static str; N], Arc<M>);

impl<M: Metric, const N: usize> Family<M, N> {
    /// A family without series. `name` is without the endings that the text form adds
    /// (`_total`).
    #[must_use]
    pub const fn new(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        Self { name, help, labels, sparse: false, series: Mutex::new(Vec::new()) }
    }

    /// The same, showing only series in which something was counted: for families of
    /// many.
    #[must_use]
    pub const fn sparse(mut self) -> Self {
        self.sparse = true;
        self
    }

    /// The series with these values, made if there is none. Keep it where it is used
    /// often.
    #[must_use]
    pub fn with(&self, values: [&'static str; N]) -> Arc<M> {
        let mut series = lock(&self.series);
        if let Some((_, metric)) = series.iter().find(|(known, _)| *known == values) {
            return Arc::clone(metric);
        }
        let metric = Arc::new(M::default());
        // Beyond the bound it is counted by whoever holds it, and not shown.
        if series.len() < SERIES {
            series.push((values, Arc::clone(&metric)));
        }
        metric
    }

    /// Forgets all series: for what is found out anew each time that metrics are asked
    /// for.
    pub fn clear(&self) {
        lock(&self.series).clear();
    }
}

/// A family, whatever its kind.
pub trait Expose: Send + Sync {
    /// Appends its text form: nothing if it has no series to show.
    fn expose(&self, out: &mut String);
}

/// The metrics that a daemon shows, as families.
pub type Families = &'static [&'static dyn Expose];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_found_again_by_its_values() {
        static CALLS: Family<Counter, 2> = Family::new("calls", "Calls.", ["to", "result"]);
        CALLS.with(["hub", "ok"]).increment();
        CALLS.with(["hub", "ok"]).increment();
        CALLS.with(["hub", "failed"]).increment();
        assert_eq!(CALLS.with(["hub", "ok"]).value(), 2);
        CALLS.clear();
        assert_eq!(CALLS.with(["hub", "ok"]).value(), 0);
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        static MANY: Family<Counter, 1> = Family::new("many", "Many.", ["n"]);
        for number in 0..2 * SERIES {
            MANY.with([number.to_string().leak()]).increment();
        }
        let mut text = String::new();
        MANY.expose(&mut text);
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), SERIES);
    }

    #[test]
    fn a_bucket_takes_what_is_at_its_bound_and_the_last_takes_everything_else() {
        let histogram = Histogram::default();
        for nanoseconds in [0, BOUNDS[0], BOUNDS[0] + 1, BOUNDS[14], BOUNDS[14] + 1] {
            histogram.observe(Duration::from_nanos(nanoseconds));
        }
        histogram.observe(Duration::MAX);
        let counts: Vec<u64> =
            histogram.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!((counts[0], counts[1], counts[14], counts[15]), (2, 1, 1, 2));
        assert_eq!(histogram.count(), 6);
    }

    /// Not a benchmark: it fails only if an observation became as slow as a system call.
    #[test]
    fn an_observation_costs_nanoseconds() {
        let (counter, histogram) = (Counter::default(), Histogram::default());
        const ROUNDS: u32 = 200_000;
        let begun = std::time::Instant::now();
        for round in 0..ROUNDS {
            counter.increment();
            histogram.observe(Duration::from_nanos(u64::from(round) * 7));
        }
        let each = begun.elapsed() / ROUNDS;
        eprintln!("{each:?} for a counter and a histogram");
        assert!(each < Duration::from_micros(2), "{each:?}");
    }
}
