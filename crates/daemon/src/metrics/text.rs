//! The text form, as OpenMetrics 1.0 has it.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use edgekeep_base::lock::lock;

use super::{BOUNDS, Counter, Expose, Families, Family, Gauge, Histogram, Info, Metric};

/// Media type of the text form.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All families as one exposition, with its end mark.
#[must_use]
pub fn exposition(groups: &[Families]) -> String {
    let mut out = String::with_capacity(16 << 10);
    for family in groups.iter().flat_map(|group| group.iter()) {
        family.expose(&mut out);
    }
    out.push_str("# EOF\n");
    out
}

impl<M: Metric, const N: usize> Expose for Family<M, N> {
    fn expose(&self, out: &mut String) {
        let series = lock(&self.series);
        let mut shown =
            series.iter().filter(|(_, metric)| !self.sparse || !metric.is_untouched()).peekable();
        if shown.peek().is_none() {
            return;
        }
        let _ = writeln!(out, "# TYPE {} {}", self.name, M::KIND);
        if self.name.ends_with("_seconds") {
            let _ = writeln!(out, "# UNIT {} seconds", self.name);
        } else if self.name.ends_with("_bytes") {
            let _ = writeln!(out, "# UNIT {} bytes", self.name);
        }
        let _ = writeln!(out, "# HELP {} {}", self.name, escaped(self.help));
        for (values, metric) in shown {
            let pairs: Vec<String> = self
                .labels
                .iter()
                .zip(values)
                .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
                .collect();
            metric.write(out, self.name, &pairs.join(","));
        }
    }
}

impl Metric for Counter {
    const KIND: &'static str = "counter";

    fn is_untouched(&self) -> bool {
        self.value() == 0
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let _ = writeln!(out, "{name}_total{} {}", braced(labels), self.value());
    }
}

impl Metric for Gauge {
    const KIND: &'static str = "gauge";

    fn is_untouched(&self) -> bool {
        self.value() == 0.0
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let _ = writeln!(out, "{name}{} {}", braced(labels), self.value());
    }
}

impl Metric for Info {
    const KIND: &'static str = "info";

    fn is_untouched(&self) -> bool {
        false
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let _ = writeln!(out, "{name}_info{} 1", braced(labels));
    }
}

impl Metric for Histogram {
    const KIND: &'static str = "histogram";

    fn is_untouched(&self) -> bool {
        self.count() == 0
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        // Each bucket is read once, so that the last one and the count agree whatever is
        // observed meanwhile.
        let mut below = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            below += bucket.load(Ordering::Relaxed);
            let bound = BOUNDS
                .get(index)
                .map_or_else(|| "+Inf".to_owned(), |bound| format!("{:?}", seconds(*bound)));
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_count{} {below}", braced(labels));
        let _ = writeln!(
            out,
            "{name}_sum{} {}",
            braced(labels),
            seconds(self.nanoseconds.load(Ordering::Relaxed))
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "a sum of years keeps its microseconds")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn braced(labels: &str) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{labels}}}") }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    static REQUESTS: Family<Counter, 2> =
        Family::new("x_requests", "Requests.", ["route", "status"]);
    static TOOK: Family<Histogram, 1> = Family::new("x_took_seconds", "Time.", ["route"]);
    static OPEN: Family<Gauge, 0> = Family::new("x_open", "Open \"now\".", []);
    static NEVER: Family<Counter, 1> = Family::new("x_never", "Never.", ["why"]).sparse();

    #[test]
    fn the_text_form_is_what_the_format_asks_for() {
        REQUESTS.with(["/sign", "2xx"]).increment();
        TOOK.with(["/sign"]).observe(Duration::from_micros(200));
        TOOK.with(["/sign"]).observe(Duration::from_secs(60));
        OPEN.with([]).set(1.5);
        let _ = NEVER.with(["x"]);
        static ALL: Families = &[&REQUESTS, &TOOK, &OPEN, &NEVER];
        let text = exposition(&[ALL]);
        let expected_head = "# TYPE x_requests counter\n# HELP x_requests Requests.\n\
            x_requests_total{route=\"/sign\",status=\"2xx\"} 1\n# TYPE x_took_seconds histogram\n\
            # UNIT x_took_seconds seconds\n# HELP x_took_seconds Time.\n\
            x_took_seconds_bucket{route=\"/sign\",le=\"0.0001\"} 0\n\
            x_took_seconds_bucket{route=\"/sign\",le=\"0.00025\"} 1\n";
        assert!(text.starts_with(expected_head), "{text}");
        let expected_tail = "x_took_seconds_bucket{route=\"/sign\",le=\"30.0\"} 1\n\
            x_took_seconds_bucket{route=\"/sign\",le=\"+Inf\"} 2\nx_took_seconds_count{route=\"/sign\"} 2\n\
            x_took_seconds_sum{route=\"/sign\"} 60.0002\n# TYPE x_open gauge\n# HELP x_open Open \\\"now\\\".\n\
            x_open 1.5\n# EOF\n";
        assert!(text.ends_with(expected_tail), "{text}");
    }
}
