//! Text on the terminal: colour where wanted, aligned columns, ages in words.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    colour: bool,
}

/// Meaning of a piece of text, which decides its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hue {
    Plain,
    Head,
    Good,
    Warning,
    Bad,
}

impl Style {
    /// For standard output: coloured on a terminal, unless `NO_COLOR` is set.
    pub(crate) fn stdout() -> Self {
        Self { colour: wanted(io::stdout().is_terminal()) }
    }

    /// For standard error, by the same rule.
    pub(crate) fn stderr() -> Self {
        Self { colour: wanted(io::stderr().is_terminal()) }
    }

    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self { colour: false }
    }

    pub(crate) const fn is_coloured(self) -> bool {
        self.colour
    }

    pub(crate) fn paint(self, hue: Hue, text: &str) -> String {
        let code = match hue {
            Hue::Plain => return text.to_owned(),
            Hue::Head => "1",
            Hue::Good => "32",
            Hue::Warning => "33",
            Hue::Bad => "31",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn wanted(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns as wide as their widest cell, two blanks apart; the last one is not padded.
#[derive(Default)]
pub(crate) struct Columns {
    rows: Vec<Vec<(Hue, String)>>,
}

impl Columns {
    pub(crate) fn with_head(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|text| (Hue::Head, (*text).to_owned())).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<(Hue, String)>) {
        self.rows.push(cells.into_iter().map(|(hue, text)| (hue, printable(&text))).collect());
    }

    pub(crate) fn render(&self, style: Style, indent: &str) -> String {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|(_, text)| text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..count).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            out.push_str(indent);
            for (column, (hue, text)) in row.iter().enumerate() {
                out.push_str(&style.paint(*hue, text));
                if column + 1 < row.len() {
                    out.push_str(&" ".repeat(widths[column] - text.chars().count() + 2));
                }
            }
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
        }
        out
    }
}

/// Returns a foreign text with a replacement for each control character: these could
/// steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The time between two moments in words: exact up to 20 seconds, rough above.
pub(crate) fn age(from: OffsetDateTime, now: OffsetDateTime) -> String {
    let seconds = (now - from).whole_seconds().max(0);
    let (count, unit) = match seconds {
        0..=20 => (seconds, "second"),
        21..=59 => return "less than a minute".to_owned(),
        60..=3599 => (seconds / 60, "minute"),
        3600..=86_399 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// A moment that a daemon wrote.
pub(crate) fn moment(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes to standard error; there is nobody to tell if that fails.
pub(crate) fn print_error(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes a value as indented JSON.
pub(crate) fn print_json<T: Serialize>(value: &T) -> io::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_with_and_without_colour() {
        let mut columns = Columns::with_head(&["NAME", "STATUS"]);
        columns.row(vec![(Hue::Plain, "thermometer".into()), (Hue::Good, "running".into())]);
        columns.row(vec![(Hue::Plain, "ä\u{7}".into()), (Hue::Bad, "failed".into())]);
        let plain = columns.render(Style { colour: false }, "");
        assert_eq!(
            plain,
            "NAME         STATUS\nthermometer  running\nä\u{fffd}           failed\n"
        );
        let coloured = columns.render(Style { colour: true }, "");
        let mut stripped = coloured.clone();
        for code in ["\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[0m"] {
            stripped = stripped.replace(code, "");
        }
        assert_ne!(coloured, plain);
        assert_eq!(stripped, plain);
    }

    #[test]
    fn ages_are_exact_when_short_and_rough_when_long() {
        let now = datetime!(2026-07-01 12:00 UTC);
        for (seconds, words) in [
            (-5, "0 seconds"),
            (1, "1 second"),
            (20, "20 seconds"),
            (21, "less than a minute"),
            (60, "1 minute"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
        ] {
            assert_eq!(age(now - Duration::seconds(seconds), now), words);
        }
    }
}
