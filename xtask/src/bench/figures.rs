//! Single numbers with bars, as a table and as JSON.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::{Value, json};

/// Limit that a number must keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bar {
    None,
    AtLeast(f64),
    AtMost(f64),
}

/// One number.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    pub(super) what: String,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    pub(super) bar: Bar,
    /// Remark beside the number; may be empty.
    pub(super) detail: String,
}

impl Figure {
    /// Returns the bar in words, and true if the number keeps it. NaN keeps no bar.
    fn judge(&self) -> Option<(String, bool)> {
        match self.bar {
            Bar::None => None,
            Bar::AtLeast(limit) => Some((format!("≥ {limit}"), self.value >= limit)),
            Bar::AtMost(limit) => Some((format!("≤ {limit}"), self.value <= limit)),
        }
    }
}

/// The numbers of a bench, in the order in which they were measured.
pub(super) struct Figures(Vec<Figure>);

impl Figures {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn add(
        &mut self,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        bar: Bar,
        detail: String,
    ) {
        self.0.push(Figure { what: what.into(), value, unit, bar, detail });
    }

    pub(super) fn missed(&self) -> usize {
        self.0.iter().filter_map(Figure::judge).filter(|(_, kept)| !kept).count()
    }

    pub(super) fn to_table(&self, title: &str) -> String {
        let mut table = format!("\n{title}\n\n");
        let width = self.0.iter().map(|figure| figure.what.chars().count()).max().unwrap_or(0);
        for figure in &self.0 {
            let number = if figure.value.abs() < 100.0 {
                format!("{:.2}", figure.value)
            } else {
                format!("{:.0}", figure.value)
            };
            let judged = figure
                .judge()
                .map(|(bar, kept)| format!("{bar}: {}", if kept { "kept" } else { "MISSED" }));
            let judged = judged.unwrap_or_default();
            // Writing to a string does not fail.
            let line = format!(
                "{:<width$}  {number:>9} {:<5} {judged:<18} {}",
                figure.what, figure.unit, figure.detail
            );
            let _ = writeln!(table, "{}", line.trim_end());
        }
        table
    }

    pub(super) fn to_json(&self) -> Value {
        let figures = self.0.iter().map(|figure| {
            let judged = figure.judge();
            json!({
                "what": figure.what, "value": figure.value, "unit": figure.unit, "detail": figure.detail,
                "bar": judged.as_ref().map(|(bar, _)| bar), "kept": judged.as_ref().map(|(_, kept)| kept),
            })
        });
        figures.collect()
    }
}

/// The middle one; of an even number the upper of both.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A process's memory in KiB, each page that several share counted in parts; `None` where
/// only root may look.
pub(super) fn memory_kib(process: u64) -> anyhow::Result<Option<u64>> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(None),
        text => text.with_context(|| format!("cannot read {path}"))?,
    };
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(Some(line.trim().trim_end_matches(" kB").parse().context("no number")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_kept_at_their_limit_and_missed_beyond_it() {
        let mut figures = Figures::new();
        for (value, bar) in [(2.0, Bar::AtLeast(2.0)), (2.0, Bar::AtMost(2.0)), (0.0, Bar::None)] {
            figures.add("x", value, "ms", bar, String::new());
        }
        assert_eq!(figures.missed(), 0);
        for (value, bar) in
            [(1.9, Bar::AtLeast(2.0)), (2.1, Bar::AtMost(2.0)), (f64::NAN, Bar::AtMost(2.0))]
        {
            figures.add("x", value, "ms", bar, String::new());
        }
        assert_eq!(figures.missed(), 3);
        assert_eq!(figures.to_table("t").matches("MISSED").count(), 3);
        assert_eq!(figures.to_json()[3]["kept"], false);
    }
}
