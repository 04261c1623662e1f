//! Diagnostics: faults of a configuration, and what is worth knowing about it, each with
//! its place in the text.

use std::fmt::Write as _;
use std::ops::Range;

use edgekeep_core::foreign_text::cleaned;
use serde::Serialize;

/// The gravity of a diagnostic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing is applied while one of these is left.
    Error,
    /// The configuration applies; the reader should know this.
    Notice,
}

/// The kind of a fault or notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The text is not TOML.
    Syntax,
    /// No such key exists.
    UnknownKey,
    /// The key exists, in another table.
    MisplacedKey,
    /// The value has another type than the key takes.
    WrongType,
    /// A key that is needed is absent.
    Missing,
    /// The value is not one that the key takes.
    BadValue,
    /// The key contradicts another one.
    Conflict,
    /// The key is right, but this version cannot do what it asks for.
    NotSupported,
    /// The key is accepted and does nothing.
    NoEffect,
    /// The value is accepted but unusual.
    Unusual,
    /// There are more findings than are shown.
    More,
}

impl Code {
    /// The code as it is printed: `unknown-key`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::UnknownKey => "unknown-key",
            Self::MisplacedKey => "misplaced-key",
            Self::WrongType => "wrong-type",
            Self::Missing => "missing",
            Self::BadValue => "bad-value",
            Self::Conflict => "conflict",
            Self::NotSupported => "not-supported",
            Self::NoEffect => "no-effect",
            Self::Unusual => "unusual",
            Self::More => "more",
        }
    }
}

/// One finding about a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Gravity of the finding. An error keeps the file from being applied.
    pub severity: Severity,
    /// Kind of the finding.
    pub code: Code,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Path of the key that is meant, like `provisioning.attestation.method`; empty for
    /// the file as a whole.
    pub key: String,
    /// The fault or notice, in words. Holds no secret.
    pub message: String,
    /// The remedy, in words; `None` if the finding names none.
    pub remedy: Option<String>,
    /// The line it stands in, with secrets and comments blanked out; of a long line the
    /// part around `column`.
    pub source_line: String,
    /// Number of characters from `column` on that are meant and shown; at least 1.
    pub width: usize,
    /// Characters of `source_line` before those that are meant.
    #[serde(skip)]
    indent: usize,
}

/// Renders diagnostics like a compiler does, one after another, each with its line and a
/// caret. `file` is the name to show.
#[must_use]
pub fn render(diagnostics: &[Diagnostic], file: &str, colour: bool) -> String {
    let mut text = String::new();
    for diagnostic in diagnostics {
        diagnostic.render_to(&mut text, file, colour);
    }
    text
}

impl Diagnostic {
    fn render_to(&self, out: &mut String, file: &str, colour: bool) {
        let (word, hue) = match self.severity {
            Severity::Error => ("error", "\x1b[1;31m"),
            Severity::Notice => ("notice", "\x1b[1;36m"),
        };
        let (hue, bold, dim, plain) =
            if colour { (hue, "\x1b[1m", "\x1b[1;34m", "\x1b[0m") } else { ("", "", "", "") };
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(self.indent);
        let caret = "^".repeat(self.width.max(1));
        let _ = writeln!(
            out,
            "{hue}{word}[{}]{plain}{bold}: {}{plain}",
            self.code.as_str(),
            self.message
        );
        let _ = writeln!(out, "{margin}{dim}-->{plain} {file}:{}:{}", self.line, self.column);
        let _ = writeln!(out, "{margin} {dim}|{plain}");
        let _ = writeln!(out, "{dim}{number} |{plain} {}", self.source_line);
        let _ = writeln!(out, "{margin} {dim}|{plain} {indent}{hue}{caret}{plain}");
        if let Some(remedy) = &self.remedy {
            let _ = writeln!(out, "{margin} {dim}={plain} {bold}help{plain}: {remedy}");
        }
        out.push('\n');
    }
}

/// A finding whose place is still a range of bytes.
#[derive(Debug)]
struct Finding {
    severity: Severity,
    code: Code,
    span: Range<usize>,
    key: String,
    message: String,
    remedy: Option<String>,
}

/// Most errors that are told, and most notices: more than anybody corrects at once.
pub(crate) const SHOWN: usize = 50;
/// Longest path of a key, message and remedy, in characters. The longest message of ours
/// has some 250.
const TEXT_LIMIT: usize = 600;
/// Characters of a long line that are shown, and those of them before the place that is
/// meant.
const LINE_LIMIT: usize = 160;
const BEFORE: usize = 60;

/// Collects findings while a configuration is read, and the places that must not be
/// shown.
#[derive(Debug, Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
    /// Errors and notices beyond those that are told, and where the first of them stands.
    more: [usize; 2],
    first_more: Option<Range<usize>>,
    /// Errors, and notices, among the findings.
    told: [usize; 2],
    secrets: Vec<Range<usize>>,
    texts: Vec<Range<usize>>,
    meant: Vec<String>,
    unparsed: bool,
    /// True if unknown and misplaced keys are notices.
    lenient: bool,
}

impl Report {
    /// Makes an empty report. If it is `lenient`, unknown and misplaced keys are notices.
    pub(crate) fn new(lenient: bool) -> Self {
        Self { lenient, ..Self::default() }
    }

    /// Adds an error at `span`.
    pub(crate) fn error(
        &mut self,
        code: Code,
        span: &Range<usize>,
        key: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.add(Severity::Error, code, span, &key.into(), &message.into(), None);
    }

    /// Adds an error with what to do about it.
    pub(crate) fn error_with(
        &mut self,
        code: Code,
        span: &Range<usize>,
        key: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Error, code, span, &key.into(), &message.into(), Some(remedy.into()));
    }

    /// A key that `path` needs is absent. Said only if no misspelt or misplaced key was
    /// meant to be it.
    pub(crate) fn missing(&mut self, span: &Range<usize>, path: &str, remedy: impl Into<String>) {
        if !self.meant.iter().any(|meant| meant == path) {
            self.error_with(Code::Missing, span, path, format!("`{path}` is missing"), remedy);
        }
    }

    /// Some key that was reported as unknown or misplaced was probably meant to be
    /// `path`.
    pub(crate) fn meant(&mut self, path: String) {
        self.meant.push(path);
    }

    /// Adds a notice.
    pub(crate) fn notice(
        &mut self,
        code: Code,
        span: &Range<usize>,
        key: impl Into<String>,
        message: impl Into<String>,
        remedy: Option<&str>,
    ) {
        self.add(
            Severity::Notice,
            code,
            span,
            &key.into(),
            &message.into(),
            remedy.map(str::to_owned),
        );
    }

    fn add(
        &mut self,
        severity: Severity,
        code: Code,
        span: &Range<usize>,
        key: &str,
        message: &str,
        remedy: Option<String>,
    ) {
        let severity = match code {
            Code::UnknownKey | Code::MisplacedKey if self.lenient => Severity::Notice,
            _ => severity,
        };
        if self.told[severity as usize] >= SHOWN {
            self.count(severity, span);
            return;
        }
        self.told[severity as usize] += 1;
        let cut = |text: &str| cleaned(text, TEXT_LIMIT);
        let (key, message, remedy) = (cut(key), cut(message), remedy.map(|remedy| cut(&remedy)));
        self.findings.push(Finding { severity, code, span: span.clone(), key, message, remedy });
    }

    fn count(&mut self, severity: Severity, span: &Range<usize>) {
        self.more[severity as usize] += 1;
        self.first_more.get_or_insert_with(|| span.clone());
    }

    /// Returns true if further errors are only counted, so that work for their words is
    /// of no use.
    pub(crate) fn is_full(&self) -> bool {
        self.told[Severity::Error as usize] >= SHOWN
    }

    /// Counts an error of which no more is said.
    pub(crate) fn count_error(&mut self, span: &Range<usize>) {
        self.count(Severity::Error, span);
    }

    /// The text at `span` is never shown.
    pub(crate) fn hide(&mut self, span: &Range<usize>) {
        self.secrets.push(span.clone());
    }

    /// `span` is a string, so a `#` in it starts no comment.
    pub(crate) fn text_at(&mut self, span: &Range<usize>) {
        self.texts.push(span.clone());
    }

    /// Not all of the text could be parsed: where secrets stand is not known.
    pub(crate) fn set_unparsed(&mut self) {
        self.unparsed = true;
    }

    /// Returns true if anything found so far keeps the file from being applied.
    pub(crate) fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// All findings with line, column and the line itself, in the order of the text.
    pub(crate) fn finish(mut self, text: &str) -> Vec<Diagnostic> {
        self.findings.sort_by_key(|finding| (finding.span.start, finding.severity));
        let mut findings = std::mem::take(&mut self.findings);
        findings.extend(self.rest());
        findings.into_iter().map(|finding| self.place(finding, text)).collect()
    }

    /// The finding that tells how many others are not told.
    fn rest(&self) -> Option<Finding> {
        let span = self.first_more.clone()?;
        let counted = |count: usize, word: &str| match count {
            0 => None,
            1 => Some(format!("1 more {word}")),
            count => Some(format!("{count} more {word}s")),
        };
        let [errors, notices] = self.more;
        let said: Vec<String> =
            [counted(errors, "error"), counted(notices, "notice")].into_iter().flatten().collect();
        Some(Finding {
            severity: if errors > 0 { Severity::Error } else { Severity::Notice },
            code: Code::More,
            span,
            key: String::new(),
            message: format!("{} not shown; this is the place of the first", said.join(" and ")),
            remedy: Some("correct those that are shown, and check again".to_owned()),
        })
    }

    fn place(&self, finding: Finding, text: &str) -> Diagnostic {
        let start = floor_boundary(text, finding.span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let end = floor_boundary(text, finding.span.end).clamp(start, line_end);
        let column = text[line_start..start].chars().count();
        let line = &text[line_start..line_end];
        // A line that is too long is cut at both ends, and what is left begins before the
        // place that is meant.
        let skipped =
            if line.chars().nth(LINE_LIMIT).is_some() { column.saturating_sub(BEFORE) } else { 0 };
        let from = line_start + line.char_indices().nth(skipped).map_or(line.len(), |(at, _)| at);
        let window = &text[from..line_end];
        let to = from + window.char_indices().nth(LINE_LIMIT).map_or(window.len(), |(at, _)| at);
        let mut source_line = self.shown_line(text, line_start, from..to);
        let mut indent = column - skipped;
        if skipped > 0 {
            source_line.insert(0, '…');
            indent += 1;
        }
        if to < line_end {
            source_line.push('…');
        }
        Diagnostic {
            severity: finding.severity,
            code: finding.code,
            line: text[..line_start].matches('\n').count() + 1,
            column: column + 1,
            key: finding.key,
            message: finding.message,
            remedy: finding.remedy,
            source_line,
            width: text[start..end.min(to).max(start)].chars().count().max(1),
            indent,
        }
    }

    /// The part `shown` of the line that begins at `line_start`, with each secret
    /// character replaced by `*`, tabs and control characters by a blank, comments left
    /// out. The number of characters before any shown place stays the same.
    fn shown_line(&self, text: &str, line_start: usize, part: Range<usize>) -> String {
        // To the end of the text: where the line ends, what is looked for has been found.
        let line = text[line_start..].lines().next().unwrap_or_default();
        let unknown_from =
            if self.unparsed { unparsed_secret(line).map(|from| line_start + from) } else { None };
        // A comment may begin before the part that is shown.
        let near = |spans: &[Range<usize>], range: &Range<usize>| -> Vec<Range<usize>> {
            spans
                .iter()
                .filter(|span| span.start < range.end && range.start < span.end)
                .cloned()
                .collect()
        };
        let before = line_start..part.start;
        let texts = near(&self.texts, &before);
        let comment = text[before]
            .match_indices('#')
            .any(|(offset, _)| !texts.iter().any(|span| span.contains(&(line_start + offset))));
        let (texts, secrets) = (near(&self.texts, &part), near(&self.secrets, &part));
        let mut shown = String::new();
        for (offset, c) in text[part.clone()].char_indices().take_while(|_| !comment) {
            let at = part.start + offset;
            let within = |spans: &[Range<usize>]| spans.iter().any(|span| span.contains(&at));
            if c == '#' && !within(&texts) {
                break;
            }
            let secret = within(&secrets) || unknown_from.is_some_and(|from| at >= from);
            shown.push(match c {
                _ if c.is_control() => ' ',
                '"' | '\'' => c,
                _ if secret && !c.is_whitespace() => '*',
                _ => c,
            });
        }
        shown.truncate(shown.trim_end().len());
        shown
    }
}

/// In a line that could not be parsed: from where on it may hold a secret.
fn unparsed_secret(line: &str) -> Option<usize> {
    const HINTS: [&str; 9] =
        ["key", "pk", "connection", "password", "pin", "secret", "token", "value", "auth"];
    let equals = line.find('=')?;
    let folded = line.to_ascii_lowercase();
    let run = line[equals..]
        .split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')))
        .any(|run| run.len() >= 16);
    (run || HINTS.iter().any(|hint| folded.contains(hint))).then_some(equals + 1)
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_is_rendered_with_its_line_and_a_caret_under_the_place() {
        let text = "a = 1\nhäst = \"x\" # why\n";
        let mut report = Report::default();
        report.error_with(
            Code::UnknownKey,
            &(6..11),
            "häst",
            "unknown key `häst`",
            "did you mean `host`?",
        );
        let found = report.finish(text);
        assert_eq!((found[0].line, found[0].column, found[0].width), (2, 1, 5 - 1));
        assert_eq!(
            render(&found, "config.toml", false),
            "error[unknown-key]: unknown key `häst`\n --> config.toml:2:1\n  |\n2 | häst = \"x\"\n  | ^^^^\n  = help: did you mean `host`?\n\n"
        );
    }

    #[test]
    fn a_secret_in_the_shown_line_is_blanked_out_at_the_same_width() {
        let text = "k = \"geheim\"  # geheim";
        let mut report = Report::default();
        report.text_at(&(4..12));
        report.hide(&(4..12));
        report.error(Code::BadValue, &(4..12), "k", "not base64");
        let found = report.finish(text);
        assert_eq!(found[0].source_line, "k = \"******\"");
    }

    #[test]
    fn in_a_line_that_is_not_toml_nothing_after_the_equals_sign_of_a_key_is_shown() {
        let mut report = Report::default();
        report.set_unparsed();
        report.error(Code::Syntax, &(16..20), "", "expected a string");
        let found = report.finish("symmetric_key = geheim==");
        assert_eq!(found[0].source_line, "symmetric_key = ********");
    }

    #[test]
    fn a_span_beyond_the_text_is_placed_at_its_end() {
        let mut report = Report::default();
        report.error(Code::Syntax, &(90..95), "", "unexpected end");
        let found = report.finish("a\n");
        assert_eq!((found[0].line, found[0].column, found[0].width), (2, 1, 1));
    }
}
