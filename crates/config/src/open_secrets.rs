//! Secrets that stand in a configuration which others than its owner can read.

use crate::diagnostic::{Code, Report};
use crate::document::{Node, Table, Value, join};

/// Keys whose strings are secrets.
const KEYS: [&str; 3] = ["connection_string", "value", "password"];
/// Parts of strings that are secrets under any key.
const PARTS: [&str; 2] = ["pin-value=", "SharedAccessKey="];

/// Tells of the first secret if a file of these permission bits is open to others.
pub(crate) fn check(root: &Table, mode: Option<u32>, report: &mut Report) {
    let Some(mode) = mode.filter(|mode| mode & 0o044 != 0) else { return };
    let Some((key, node)) = first_secret(root, "") else { return };
    let who = if mode & 0o004 != 0 { "every user" } else { "the file's group" };
    let message = format!(
        "the file has the mode {:04o}: {who} of this device can read this secret",
        mode & 0o7777
    );
    let remedy = "chmod 600 the file, or put the secret into a file of its own";
    report.notice(Code::Unusual, &node.span, key, message, Some(remedy));
}

fn first_secret<'a>(table: &'a Table, path: &str) -> Option<(String, &'a Node)> {
    table.entries.iter().find_map(|entry| {
        let path = join(path, &entry.key);
        let named = KEYS.contains(&entry.key.as_str());
        in_node(&entry.node, named, &path)
    })
}

fn in_node<'a>(node: &'a Node, named: bool, path: &str) -> Option<(String, &'a Node)> {
    match &node.value {
        Value::Text(text) if named || PARTS.iter().any(|part| text.contains(part)) => {
            Some((path.to_owned(), node))
        }
        Value::Table(table) => first_secret(table, path),
        Value::List(items) => items.iter().find_map(|item| in_node(item, named, path)),
        _ => None,
    }
}
