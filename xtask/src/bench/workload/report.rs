//! The numbers, their bars, and the table.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::bench::figures::median;

/// The name of the case that all others are compared with.
pub(super) const ECHO: &str = "bare echo";
/// Factor by which a call may be slower with many modules before that counts as growth.
const GROWTH: f64 = 1.25;
/// Bars in MiB: of the daemons' memory together, and of one program.
const MEMORY_BAR: f64 = 20.0;
const SIZE_BAR: f64 = 8.0;

/// Limit that a case must keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::bench) enum Bar {
    None,
    MedianMillisecondsUpTo(f64),
    /// And no connection refused.
    PerSecondFrom(f64),
    /// The median of the same case with the fewest modules.
    AsWithFewest,
}

/// The medians of one case.
#[derive(Debug, Clone)]
pub(super) struct Row {
    name: &'static str,
    callers: u32,
    modules: usize,
    bar: Bar,
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
    /// Refused, closed without an answer, or answered with no success, in all runs.
    lost: u64,
    first_error: Option<String>,
}

impl Row {
    pub(super) fn new(
        name: &'static str,
        callers: u32,
        modules: usize,
        bar: Bar,
        results: &[Value],
    ) -> Self {
        let of = |field: &str| {
            median(results.iter().filter_map(|result| result[field].as_f64()).collect())
        };
        let count =
            |field: &str| results.iter().filter_map(|result| result[field].as_u64()).sum::<u64>();
        Self {
            name,
            callers,
            modules,
            bar,
            p50_ms: of("p50Us") / 1000.0,
            p99_ms: of("p99Us") / 1000.0,
            per_second: of("perSecond"),
            lost: count("refused") + count("failed"),
            first_error: results
                .iter()
                .find_map(|result| result["firstError"].as_str().map(str::to_owned)),
        }
    }
}

/// All numbers of a run.
pub(super) struct Report {
    containers: bool,
    rows: Vec<Row>,
    /// Absent where only root may look.
    memory_kib: Option<u64>,
    sizes: Vec<(String, u64)>,
}

impl Report {
    pub(super) fn new(containers: bool) -> Self {
        Self { containers, rows: Vec::new(), memory_kib: None, sizes: Vec::new() }
    }

    pub(super) fn calls(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(super) fn memory(&mut self, kib: Option<u64>) {
        self.memory_kib = kib;
    }

    pub(super) fn size(&mut self, program: &str, bytes: u64) {
        self.sizes.push((program.to_owned(), bytes));
    }

    /// Returns the ratio of a call's median to that of an echo, from as many callers and
    /// beside as many modules.
    fn times_echo(&self, row: &Row) -> Option<f64> {
        let same = |echo: &&Row| {
            echo.name == ECHO && (echo.callers, echo.modules) == (row.callers, row.modules)
        };
        let echo = self.rows.iter().find(same).filter(|_| row.name != ECHO)?;
        Some(row.p50_ms / echo.p50_ms)
    }

    /// Returns the bar in words, and true if the case keeps it.
    fn judge(&self, row: &Row) -> Option<(String, bool)> {
        let none_lost = row.lost == 0;
        match row.bar {
            Bar::None => None,
            Bar::MedianMillisecondsUpTo(limit) => {
                Some((format!("p50 ≤ {limit} ms"), row.p50_ms <= limit && none_lost))
            }
            Bar::PerSecondFrom(limit) => {
                Some((format!("≥ {limit}/s, none lost"), row.per_second >= limit && none_lost))
            }
            Bar::AsWithFewest => {
                let same = |one: &&Row| {
                    one.modules == super::FEWEST
                        && (one.name, one.callers) == (row.name, row.callers)
                };
                let one = self.rows.iter().find(same)?;
                Some((
                    format!("p50 ≤ {GROWTH} × {:.2} ms", one.p50_ms),
                    row.p50_ms <= GROWTH * one.p50_ms && none_lost,
                ))
            }
        }
    }

    /// Returns the number of bars that are missed.
    pub(super) fn missed(&self) -> usize {
        let memory = self.memory_kib.is_some_and(|kib| mebibytes(kib * 1024) > MEMORY_BAR);
        let sizes = self.sizes.iter().filter(|(_, bytes)| mebibytes(*bytes) > SIZE_BAR).count();
        let calls =
            self.rows.iter().filter_map(|row| self.judge(row)).filter(|(_, kept)| !kept).count();
        calls + sizes + usize::from(memory)
    }

    /// For a reader.
    pub(super) fn to_table(&self) -> String {
        let mut table = String::new();
        // Writing to a string does not fail.
        let _ = self.write_table(&mut table);
        table
    }

    fn write_table(&self, table: &mut String) -> std::fmt::Result {
        let place = if self.containers { "from inside a container" } else { "from a host module" };
        writeln!(
            table,
            "\n{place}, a new connection for each request; medians of {} runs; the agent is one of the modules\n",
            super::RUNS
        )?;
        writeln!(
            table,
            "{:<20}{:>8}{:>8}{:>10}{:>10}{:>10}{:>6}{:>9}  {:<24}",
            "CALL", "CALLERS", "MODULES", "P50 MS", "P99 MS", "PER S", "LOST", "× ECHO", "BAR"
        )?;
        for row in &self.rows {
            let times =
                self.times_echo(row).map_or_else(|| "-".to_owned(), |times| format!("{times:.1}"));
            let bar = self
                .judge(row)
                .map_or_else(String::new, |(bar, kept)| format!("{bar}: {}", word(kept)));
            writeln!(
                table,
                "{:<20}{:>8}{:>8}{:>10.3}{:>10.3}{:>10.0}{:>6}{:>9}  {bar}",
                row.name,
                row.callers,
                row.modules,
                row.p50_ms,
                row.p99_ms,
                row.per_second,
                row.lost,
                times
            )?;
            if let Some(error) = &row.first_error {
                writeln!(table, "    first loss: {}", error.lines().next().unwrap_or_default())?;
            }
        }
        let memory = "memory of the three daemons, idle (sum of PSS)";
        match self.memory_kib.map(|kib| mebibytes(kib * 1024)) {
            Some(size) => {
                writeln!(
                    table,
                    "\n{memory}  {size:>6.1} MiB  ≤ {MEMORY_BAR} MiB: {}",
                    word(size <= MEMORY_BAR)
                )?;
            }
            None => writeln!(table, "\n{memory}  only root may look")?,
        }
        for (program, bytes) in &self.sizes {
            let size = mebibytes(*bytes);
            writeln!(
                table,
                "size of {program:<39} {size:>6.1} MiB  ≤ {SIZE_BAR} MiB: {}",
                word(size <= SIZE_BAR)
            )?;
        }
        Ok(())
    }

    /// For a program.
    pub(super) fn to_json(&self) -> Value {
        let calls: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let judged = self.judge(row);
                json!({
                    "call": row.name, "callers": row.callers, "modules": row.modules,
                    "p50Ms": row.p50_ms, "p99Ms": row.p99_ms, "perSecond": row.per_second,
                    "lost": row.lost, "firstError": row.first_error, "timesEcho": self.times_echo(row),
                    "bar": judged.as_ref().map(|(bar, _)| bar), "kept": judged.as_ref().map(|(_, kept)| kept),
                })
            })
            .collect();
        let sizes: serde_json::Map<String, Value> =
            self.sizes.iter().map(|(program, bytes)| (program.clone(), (*bytes).into())).collect();
        json!({ "containers": self.containers, "calls": calls, "memoryKib": self.memory_kib, "sizes": sizes })
    }
}

fn word(kept: bool) -> &'static str {
    if kept { "kept" } else { "MISSED" }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of programs and memory")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, modules: usize, bar: Bar, p50_us: u32, refused: u32) -> Row {
        let result = json!({ "p50Us": p50_us, "p99Us": p50_us, "perSecond": 4000.0, "refused": refused, "failed": 0 });
        Row::new(name, 8, modules, bar, &[result])
    }

    #[test]
    fn a_bar_is_missed_by_a_slow_call_and_by_a_lost_one() {
        let report = Report::new(true);
        let judge = |bar, p50, refused| report.judge(&row("sign", 1, bar, p50, refused)).unwrap().1;
        assert!(judge(Bar::MedianMillisecondsUpTo(1.0), 1000, 0));
        assert!(!judge(Bar::MedianMillisecondsUpTo(1.0), 1001, 0));
        assert!(judge(Bar::PerSecondFrom(4000.0), 1, 0));
        assert!(!judge(Bar::PerSecondFrom(4001.0), 1, 0));
        assert!(!judge(Bar::PerSecondFrom(3000.0), 1, 1));
    }

    #[test]
    fn growth_and_ratio_are_against_the_same_case() {
        let mut report = Report::new(true);
        report.calls(row(ECHO, super::super::FEWEST, Bar::None, 100, 0));
        report.calls(row("sign", super::super::FEWEST, Bar::None, 1000, 0));
        let many = row("sign", 50, Bar::AsWithFewest, 1300, 0);
        assert_eq!(report.times_echo(&report.rows[1]), Some(10.0));
        assert_eq!(report.times_echo(&many), None);
        assert!(!report.judge(&many).unwrap().1);
        assert!(report.judge(&row("sign", 50, Bar::AsWithFewest, 1200, 0)).unwrap().1);
    }
}
