//! The tree against the schema: every key must be known where it stands, and have the
//! type it takes there.

use std::ops::Range;

use crate::diagnostic::{Code, Report};
use crate::document::{Entry, Node, Table, Value, join};
use crate::schema::{self, Key, Kind, State};
use crate::similar::nearest;

/// Checks the document and gives keys that were written with another accepted name the
/// name that the schema uses.
pub(crate) fn check(text: &str, root: &mut Table, report: &mut Report) {
    let mut check = Check { text, report };
    check.table(root, schema::ROOT, "", false);
}

struct Check<'a> {
    text: &'a str,
    report: &'a mut Report,
}

impl Check<'_> {
    fn table(&mut self, table: &mut Table, keys: &'static [Key], path: &str, secret: bool) {
        for index in 0..table.entries.len() {
            let Some(key) = keys.iter().find(|key| key.is_called(&table.entries[index].key)) else {
                let entry = &table.entries[index];
                if self.report.is_full() {
                    self.report.count_error(&entry.key_span);
                    self.note_texts(&entry.node, true);
                    continue;
                }
                self.unknown(entry, keys, path);
                // What a misplaced key holds may be shown if it may where the key
                // belongs.
                let harmless = !secret
                    && !matches!(entry.node.value, Value::Table(_))
                    && harmless_elsewhere(&entry.key);
                self.note_texts(&entry.node, !harmless);
                continue;
            };
            if table.entries[index].key != key.name {
                let message =
                    format!("`{}` and `{}` are the same key", table.entries[index].key, key.name);
                table.entries[index].key = key.name.to_owned();
                if table.entries.iter().filter(|entry| entry.key == key.name).count() > 1 {
                    let span = table.entries[index].key_span.clone();
                    self.report.error_with(
                        Code::Conflict,
                        &span,
                        join(path, key.name),
                        message,
                        "keep one of them",
                    );
                }
            }
            let entry = &mut table.entries[index];
            let path = join(path, key.name);
            match key.state {
                State::Used => {}
                State::NotYet(what) => self.report.error_with(
                    Code::NotSupported,
                    &entry.key_span,
                    &path,
                    format!("`{path}` is not supported yet: this version has no {what}"),
                    format!("leave `{path}` out"),
                ),
                State::NoEffect(why) => {
                    self.report.notice(
                        Code::NoEffect,
                        &entry.key_span,
                        &path,
                        format!("`{path}` has no effect: {why}"),
                        None,
                    );
                }
            }
            self.value(&mut entry.node, key.kind, &path, secret || key.secret);
        }
    }

    fn value(&mut self, node: &mut Node, kind: Kind, path: &str, secret: bool) {
        match (kind, &mut node.value) {
            (Kind::Table(keys) | Kind::TextOrTable(keys), Value::Table(table)) => {
                self.table(table, keys, path, secret);
            }
            (Kind::Tables(keys), Value::List(items)) => {
                for item in items {
                    self.value(item, Kind::Table(keys), path, secret);
                }
            }
            (Kind::MapOf(kind), Value::Table(table)) => {
                for entry in &mut table.entries {
                    let path = join(path, &entry.key);
                    self.value(&mut entry.node, *kind, &path, secret);
                }
            }
            (Kind::Texts | Kind::TextOrTexts, Value::List(items)) => {
                for item in items {
                    self.value(item, Kind::Text, path, secret);
                }
            }
            (Kind::TextsOrIntegers, Value::List(items)) => {
                for item in items {
                    self.value(item, Kind::IntegerOrText, path, secret);
                }
            }
            (
                Kind::Text | Kind::TextOrTexts | Kind::TextOrTable(_) | Kind::IntegerOrText,
                Value::Text(_),
            )
            | (Kind::Integer | Kind::IntegerOrText, Value::Integer(_))
            | (Kind::Boolean, Value::Boolean(_))
            | (Kind::Free, Value::Table(_)) => self.note_texts(node, secret),
            (kind, value) => {
                let remedy = match (kind, &*value) {
                    (Kind::Text, Value::Integer(_) | Value::Boolean(_) | Value::Float(_)) => {
                        Some("write it in double quotes")
                    }
                    (Kind::Integer | Kind::Boolean, Value::Text(_)) => {
                        Some("write it without quotes")
                    }
                    (Kind::Texts | Kind::TextsOrIntegers, Value::Text(_)) => {
                        Some("write it in square brackets")
                    }
                    _ => None,
                };
                let message = format!("`{path}` takes {}, not {}", kind.words(), value.kind());
                match remedy {
                    Some(remedy) => {
                        self.report.error_with(Code::WrongType, &node.span, path, message, remedy);
                    }
                    None => self.report.error(Code::WrongType, &node.span, path, message),
                }
                self.note_texts(node, true);
            }
        }
    }

    /// Remembers where strings stand, so that comments are told from `#` in a string, and
    /// which of them are secret. Some strings carry a secret wherever they stand.
    fn note_texts(&mut self, node: &Node, secret: bool) {
        match &node.value {
            Value::Text(text) => {
                self.report.text_at(&node.span);
                if secret || text.contains("pin-value") || text.contains("SharedAccessKey") {
                    self.report.hide(&node.span);
                }
            }
            Value::List(items) => items.iter().for_each(|item| self.note_texts(item, secret)),
            Value::Table(table) => {
                table.entries.iter().for_each(|entry| self.note_texts(&entry.node, secret));
            }
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Other(_) => {
                if secret {
                    self.report.hide(&node.span);
                }
            }
        }
    }

    fn unknown(&mut self, entry: &Entry, keys: &'static [Key], path: &str) {
        let written = &entry.key;
        let here = table_name(path);
        let places: Vec<&str> = schema::tables()
            .iter()
            .filter(|(_, keys)| keys.iter().any(|key| key.is_called(written)))
            .map(|(path, _)| path.as_str())
            .collect();
        let key_path = join(path, written);
        for place in &places {
            self.report.meant(join_path(place, written));
        }
        if let Some(first) = places.first() {
            let remedy = if first.is_empty() {
                self.top_level(written)
            } else {
                let places: Vec<String> =
                    places.iter().take(3).map(|path| format!("[{path}]")).collect();
                format!("`{written}` belongs in {}", places.join(" or "))
            };
            let message = format!("`{written}` does not belong {here}");
            self.report.error_with(Code::MisplacedKey, &entry.key_span, key_path, message, remedy);
            return;
        }
        let message = format!("unknown key `{}` {here}", printable(written));
        let near = |keys: &'static [Key]| nearest(written, keys.iter().map(|key| key.name));
        let meant = near(keys)
            .map(|key| (join_path(path, key), format!("did you mean `{key}`?")))
            .or_else(|| {
                schema::tables().iter().find_map(|(path, keys)| {
                    let key = near(keys)?;
                    Some((
                        join_path(path, key),
                        format!("did you mean `{key}` {}?", table_name(path)),
                    ))
                })
            });
        match meant {
            Some((meant, remedy)) => {
                self.report.meant(meant);
                self.report.error_with(
                    Code::UnknownKey,
                    &entry.key_span,
                    key_path,
                    message,
                    remedy,
                );
            }
            None => {
                let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
                let remedy = if known.len() > 12 {
                    "remove it; no key is like it".to_owned()
                } else {
                    format!("known keys {here}: {}", known.join(", "))
                };
                self.report.error_with(
                    Code::UnknownKey,
                    &entry.key_span,
                    key_path,
                    message,
                    remedy,
                );
            }
        }
    }

    fn top_level(&self, key: &str) -> String {
        match first_header(self.text) {
            Some(range) => {
                format!(
                    "`{key}` belongs at the top level, before {}",
                    printable(self.text[range].trim())
                )
            }
            None => format!("`{key}` belongs at the top level"),
        }
    }
}

/// Returns true if the schema knows the key, and nowhere as a secret.
fn harmless_elsewhere(key: &str) -> bool {
    let tables = schema::tables();
    let mut places = tables
        .iter()
        .flat_map(|(_, keys)| keys.iter())
        .filter(|known| known.is_called(key))
        .peekable();
    places.peek().is_some() && places.all(|known| !known.secret)
}

/// The first `[table]` header of the text.
fn first_header(text: &str) -> Option<Range<usize>> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        if trimmed.starts_with('[') {
            let header = start + (line.len() - trimmed.len());
            let end = text[header..].find(']').map(|end| header + end + 1)?;
            return Some(header..end);
        }
        start += line.len();
    }
    None
}

fn join_path(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn table_name(path: &str) -> String {
    if path.is_empty() { "at the top level".to_owned() } else { format!("in [{path}]") }
}

/// A key as it may be shown: short and without control characters.
fn printable(key: &str) -> String {
    key.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}
