//! Logging to standard error: one line an event, quiet by default, its level changed
//! while the daemon runs.
//!
//! Info has state changes, refusals and errors; nothing is logged per request. What one
//! place of the program logs is limited, so that neither a caller nor a fault that
//! repeats fills the disk: what was left out is counted, on the next line of that place
//! and in the metrics.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use edgekeep_base::lock::lock;

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FmtSpan, Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt as subscriber, reload};

use crate::metrics::{Counter, Families, Family};

/// Lines that one place of the program may log at once.
const BURST: u32 = 60;
/// Time after which it may log one more: 14,400 a day at most.
const LINE_EVERY: Duration = Duration::from_secs(6);

static LEFT_OUT: Family<Counter, 1> = Family::new(
    "edgekeep_log_lines_left_out",
    "Log lines left out because their place logged too many.",
    ["level"],
);

/// Metrics of logging.
pub static FAMILIES: Families = &[&LEFT_OUT];

static CONTROL: OnceLock<Control> = OnceLock::new();

struct Control {
    level: reload::Handle<LevelFilter, Registry>,
    at_start: LevelFilter,
}

/// Starts logging. The level comes from `EDGEKEEP_LOG`, else `AZIOT_LOG` (a bare level:
/// `error` … `trace`), else it is `info`.
///
/// Colours are used only on a terminal and never when `NO_COLOR` is set.
pub fn init() {
    let at_start = ["EDGEKEEP_LOG", "AZIOT_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok()?.trim().parse::<LevelFilter>().ok())
        .unwrap_or(LevelFilter::INFO);
    let colour = std::env::var_os("NO_COLOR").is_none()
        && std::io::IsTerminal::is_terminal(&std::io::stderr());
    for level in ["error", "warn", "info"] {
        let _ = LEFT_OUT.with([level]);
    }
    let (filter, level) = reload::Layer::new(at_start);
    let lines = subscriber::layer()
        .with_span_events(FmtSpan::NONE)
        .with_ansi(colour)
        .with_writer(std::io::stderr)
        .event_format(Limited {
            format: Format::default().with_target(false),
            places: Mutex::default(),
        });
    // A second call (tests in one process) keeps the first subscriber.
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = CONTROL.set(Control { level, at_start });
    }
}

/// The level now, and the one that the daemon was started with; `None` if logging was not
/// started.
#[must_use]
pub fn levels() -> Option<(LevelFilter, LevelFilter)> {
    let control = CONTROL.get()?;
    Some((control.level.clone_current()?, control.at_start))
}

/// Changes the level until the daemon ends; `false` if logging was not started.
pub fn set_level(level: LevelFilter) -> bool {
    CONTROL.get().is_some_and(|control| control.level.reload(level).is_ok())
}

/// The budget of one place in the code: the lines that the place may still log.
#[derive(Debug, Clone, Copy)]
struct Budget {
    left: u32,
    since: Instant,
    left_out: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { left: BURST, since: now, left_out: 0 }
    }

    /// Takes one line from the budget. Returns the number of lines that were left out
    /// before this line, or `None` if this line is left out too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let gained = now.saturating_duration_since(self.since).as_secs() / LINE_EVERY.as_secs();
        if gained > 0 {
            self.left = self.left.saturating_add(u32::try_from(gained).unwrap_or(BURST)).min(BURST);
            self.since = now;
        }
        if self.left == 0 {
            self.left_out += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// The usual format, of which each place of the program gets no more than its budget.
/// Debug and trace are not limited: who asks for them wants them.
struct Limited {
    format: Format<Full>,
    /// As many entries as there are places in the program's text.
    places: Mutex<HashMap<Identifier, Budget>>,
}

impl<S, N> FormatEvent<S, N> for Limited
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if level <= Level::INFO {
            let now = Instant::now();
            let mut places = lock(&self.places);
            let taken = places
                .entry(event.metadata().callsite())
                .or_insert_with(|| Budget::new(now))
                .take(now);
            drop(places);
            match taken {
                Some(0) => {}
                Some(left_out) => {
                    writeln!(writer, "({left_out} lines like the next were left out)")?;
                }
                None => {
                    let level = if level == Level::ERROR {
                        "error"
                    } else if level == Level::WARN {
                        "warn"
                    } else {
                        "info"
                    };
                    LEFT_OUT.with([level]).increment();
                    return Ok(());
                }
            }
        }
        self.format.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_logs_a_burst_and_then_a_little_and_says_what_was_left_out() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let logged = (0..1000).filter(|_| budget.take(start).is_some()).count();
        assert_eq!(logged, 60);
        assert_eq!(budget.take(start + LINE_EVERY - Duration::from_millis(1)), None);
        assert_eq!(budget.take(start + LINE_EVERY), Some(941));
        assert_eq!(budget.take(start + LINE_EVERY), None);
        let much_later = start + Duration::from_secs(86_400);
        assert_eq!(budget.take(much_later), Some(1));
        assert_eq!((0..1000).filter(|_| budget.take(much_later).is_some()).count(), 59);
    }
}
