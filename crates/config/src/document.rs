//! The text as a tree of values that know where they stand.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Code, Report};

/// Longest configuration that is read, in bytes.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Range<usize>,
    pub(crate) value: Value,
}

/// A TOML value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    List(Vec<Node>),
    Table(Table),
    /// A date, or a number that does not fit: no key takes these.
    Other(&'static str),
}

impl Value {
    /// The value's type, in words, with an article.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

/// A table's entries in the order of the text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
}

/// One key and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The key's name; after checking, the name that the schema gives it, if it was
    /// written with another.
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) node: Node,
}

/// Parses the text as far as it goes; what is not TOML is reported.
pub(crate) fn parse(text: &str, report: &mut Report) -> Table {
    if text.len() > MAX_BYTES {
        report.set_unparsed();
        report.error(
            Code::Syntax,
            &(0..0),
            "",
            format!("the file is longer than {MAX_BYTES} bytes"),
        );
        return Table::default();
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        report.set_unparsed();
    }
    for error in &errors {
        if report.is_full() {
            report.count_error(&error.span().unwrap_or(0..0));
            continue;
        }
        let span = error.span().unwrap_or(0..0);
        let remedy = syntax_remedy(text, &span);
        let message = format!("not valid TOML: {}", error.message());
        match remedy {
            Some(remedy) => report.error_with(Code::Syntax, &span, "", message, remedy),
            None => report.error(Code::Syntax, &span, "", message),
        }
    }
    table(root.into_inner())
}

/// The slip that is behind most syntax errors: a word without quotes.
fn syntax_remedy(text: &str, span: &Range<usize>) -> Option<&'static str> {
    let at = text.get(span.start..)?;
    let bare = at.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let before = text.get(..span.start)?.trim_end_matches([' ', '\t']);
    (bare && before.ends_with('=')).then_some("write text in double quotes")
}

fn table(map: DeTable<'_>) -> Table {
    let mut entries: Vec<Entry> = map
        .into_iter()
        .map(|(key, value)| Entry {
            key_span: key.span(),
            key: key.into_inner().into_owned(),
            node: node(value),
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_span.start);
    Table { entries }
}

fn node(value: Spanned<DeValue<'_>>) -> Node {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("an integer that is too large"), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or(Value::Other("a number that is too large"), Value::Float)
        }
        DeValue::Boolean(truth) => Value::Boolean(truth),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::List(items.into_iter().map(node).collect()),
        DeValue::Table(map) => Value::Table(table(map)),
    };
    Node { span, value }
}

/// A table and its path, for reading keys by the names of the schema. Keys of a wrong
/// type read as absent: the schema check has reported them.
#[derive(Debug, Clone)]
pub(crate) struct View<'a> {
    pub(crate) table: &'a Table,
    /// Place to point at when something is missing in the table.
    pub(crate) span: Range<usize>,
    pub(crate) path: String,
}

/// A text value with its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    pub(crate) text: &'a str,
    pub(crate) span: &'a Range<usize>,
}

impl<'a> View<'a> {
    /// The whole document.
    pub(crate) fn root(table: &'a Table) -> Self {
        Self { table, span: 0..0, path: String::new() }
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.table.entries.iter().find(|entry| entry.key == key)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// The path of a key in this table.
    pub(crate) fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    pub(crate) fn text(&self, key: &str) -> Option<Text<'a>> {
        match &self.entry(key)?.node {
            Node { value: Value::Text(text), span } => Some(Text { text, span }),
            _ => None,
        }
    }

    pub(crate) fn integer(&self, key: &str) -> Option<(i64, &'a Range<usize>)> {
        match &self.entry(key)?.node {
            Node { value: Value::Integer(number), span } => Some((*number, span)),
            _ => None,
        }
    }

    pub(crate) fn boolean(&self, key: &str) -> Option<bool> {
        match &self.entry(key)?.node.value {
            Value::Boolean(truth) => Some(*truth),
            _ => None,
        }
    }

    pub(crate) fn list(&self, key: &str) -> Option<&'a [Node]> {
        match &self.entry(key)?.node.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The texts of a list; items of another type are left out.
    pub(crate) fn texts(&self, key: &str) -> impl Iterator<Item = Text<'a>> + use<'a> {
        self.list(key).unwrap_or_default().iter().filter_map(|node| match &node.value {
            Value::Text(text) => Some(Text { text, span: &node.span }),
            _ => None,
        })
    }

    pub(crate) fn table(&self, key: &str) -> Option<View<'a>> {
        self.table_of(self.entry(key)?)
    }

    /// The table that an entry of this one is, without looking for the entry again.
    pub(crate) fn table_of(&self, entry: &'a Entry) -> Option<View<'a>> {
        match &entry.node.value {
            Value::Table(table) => {
                Some(View { table, span: entry.key_span.clone(), path: self.key(&entry.key) })
            }
            _ => None,
        }
    }
}

/// `a.b`, with quotes where a key needs them.
pub(crate) fn join(path: &str, key: &str) -> String {
    let bare =
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_syntax_error_is_reported_not_only_the_first() {
        let text = "a = Dynamic\nb = 1\nc = /tmp/x\n";
        let mut report = Report::default();
        let root = parse(text, &mut report);
        let found = report.finish(text);
        let lines: Vec<_> = found.iter().map(|diagnostic| diagnostic.line).collect();
        assert!(lines.contains(&1) && lines.contains(&3), "{found:?}");
        assert_eq!(View::root(&root).integer("b").map(|(number, _)| number), Some(1));
        assert_eq!(found[0].remedy.as_deref(), Some("write text in double quotes"));
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_without_parsing() {
        let mut report = Report::default();
        parse(&"#".repeat(MAX_BYTES + 1), &mut report);
        assert!(report.has_errors());
    }
}
