//! Logging to standard error: one line an event, quiet by default.

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Starts logging. The level comes from `EDGEKEEP_LOG`, else `AZIOT_LOG` (a bare level: `error` … `trace`), else it is
/// `info`. Info has state changes, refusals and errors; nothing is logged per request.
///
/// Colours are used only on a terminal and never when `NO_COLOR` is set.
pub fn init() {
    let level = ["EDGEKEEP_LOG", "AZIOT_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok()?.trim().parse::<LevelFilter>().ok())
        .unwrap_or(LevelFilter::INFO);
    let colour = std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    // A second call (tests in one process) keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_span_events(FmtSpan::NONE)
        .with_target(false)
        .with_ansi(colour)
        .with_writer(std::io::stderr)
        .try_init();
}
