//! Secrets taken out of texts that leave the device: by their value where it is known, by
//! the name before them, and by their form.
//!
//! A text that holds a secret under no name and in no known form cannot be told from any
//! other text.

use serde_json::Value;
use zeroize::Zeroizing;

/// Stands in place of a secret.
pub const MASK: &str = "***";

/// Shortest secret that is looked for by its value: shorter ones are parts of words.
const SHORTEST: usize = 6;

/// Names of secrets, in small letters without `-`, `_`, `.` and blanks.
const NAMES: [&str; 12] = [
    "value",
    "pin",
    "pinvalue",
    "sig",
    "signature",
    "auth",
    "authorization",
    "proxyauthorization",
    "xregistryauth",
    "cookie",
    "setcookie",
    "devicepk",
];
/// Ends of such names.
const ENDS: [&str; 17] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "sastoken",
    "connectionstring",
    "sharedaccesskey",
    "accountkey",
    "accesskey",
    "apikey",
    "symmetrickey",
    "primarykey",
    "secondarykey",
    "privatekey",
    "credential",
    "devicepkvalue",
];
/// Tables all of whose texts are secrets: variables of programs, and of a TPM what its
/// hierarchies are opened with.
const TABLES: [&str; 3] = ["env", "environment", "hierarchyauthorization"];
/// Names whose value goes on to the end of the line.
const LINES: [&str; 4] = ["authorization", "proxyauthorization", "cookie", "setcookie"];
/// Words before a credential, parted from it by a blank.
const SCHEMES: [&str; 3] = ["bearer", "basic", "sharedaccesssignature"];
/// Names that are too common in running text to be taken for a secret's there.
const IN_VALUES_ONLY: [&str; 3] = ["value", "auth", "signature"];

fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

fn is_secret(name: &str) -> bool {
    let name = plain(name);
    NAMES.contains(&name.as_str()) || ENDS.iter().any(|end| name.ends_with(end))
}

/// Takes secrets out of texts and values.
#[derive(Default)]
pub struct Redactor {
    known: Vec<Zeroizing<String>>,
}

impl Redactor {
    /// A redactor that knows these secrets by their value.
    #[must_use]
    pub fn new(known: impl IntoIterator<Item = Zeroizing<String>>) -> Self {
        let mut known: Vec<_> = known.into_iter().filter(|one| one.len() >= SHORTEST).collect();
        // Longer ones first: one may be a part of another.
        known.sort_by(|one, other| other.len().cmp(&one.len()).then(one.cmp(other)));
        known.dedup();
        Self { known }
    }

    /// The value without the secrets in it: what stands under a secret's name, and
    /// secrets within texts.
    pub fn redact(&self, value: &mut Value) {
        self.walk(value, false);
    }

    fn walk(&self, value: &mut Value, hide: bool) {
        match value {
            Value::String(text) if hide => MASK.clone_into(text),
            Value::String(text) => *text = self.text(text),
            Value::Number(_) if hide => *value = MASK.into(),
            Value::Array(items) => items.iter_mut().for_each(|item| self.walk(item, hide)),
            Value::Object(members) => {
                for (name, member) in members.iter_mut() {
                    let is_table = TABLES.contains(&plain(name).as_str());
                    match member {
                        Value::Array(items) if is_table => {
                            items.iter_mut().for_each(|item| self.variable(item));
                        }
                        Value::Object(_) if is_table => self.walk(member, true),
                        // A table under such a name says where the secret is.
                        Value::Object(_) => self.walk(member, hide),
                        _ => self.walk(member, hide || is_secret(name)),
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Masks the value in a `NAME=value` of a list of variables.
    fn variable(&self, item: &mut Value) {
        match item {
            Value::String(text) => {
                let name = text.split_once('=').map_or("", |(name, _)| name);
                *text = format!("{name}={MASK}");
            }
            other => self.walk(other, true),
        }
    }

    /// The text without the secrets in it.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for secret in &self.known {
            if out.contains(secret.as_str()) {
                out = out.replace(secret.as_str(), MASK);
            }
        }
        let out = without_private_keys(&out);
        let out = without_user_info(&out);
        without_named(&out)
    }
}

/// The secrets that stand in a configuration or in settings, by their names.
#[must_use]
pub fn secrets_in(value: &Value) -> Vec<Zeroizing<String>> {
    let mut found = Vec::new();
    collect(value, false, &mut found);
    found
}

fn collect(value: &Value, secret: bool, found: &mut Vec<Zeroizing<String>>) {
    match value {
        Value::String(text) => {
            if secret {
                found.push(Zeroizing::new(text.clone()));
            }
            // A connection string, or a URI with a PIN.
            for part in text.split([';', '&', '?']) {
                if let Some((name, rest)) = part.split_once('=')
                    && is_secret(name)
                {
                    found.push(Zeroizing::new(rest.to_owned()));
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::String(text) if secret => {
                        let value = text.split_once('=').map_or(text.as_str(), |(_, value)| value);
                        found.push(Zeroizing::new(value.to_owned()));
                    }
                    other => collect(other, secret, found),
                }
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                let is_table = TABLES.contains(&plain(name).as_str());
                let secret = match member {
                    Value::Object(_) => secret || is_table,
                    _ => secret || is_table || is_secret(name),
                };
                collect(member, secret, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// PEM blocks of private keys, and age's private keys.
fn without_private_keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(at);
        let label = block[BEGIN.len()..].split("-----").next().unwrap_or_default();
        out.push_str(before);
        if !label.ends_with("PRIVATE KEY") {
            out.push_str(BEGIN);
            rest = &block[BEGIN.len()..];
            continue;
        }
        out.push_str(MASK);
        let end = format!("-----END {label}-----");
        // A block that is cut off is one to the end.
        rest = block.find(&end).map_or("", |at| &block[at + end.len()..]);
    }
    out.push_str(rest);
    replaced_words(&out, "AGE-SECRET-KEY-", |c| c.is_ascii_alphanumeric() || c == '-')
}

/// Words that begin in a given way, as far as they go.
fn replaced_words(text: &str, begin: &str, part: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(begin) {
        out.push_str(&rest[..at]);
        out.push_str(MASK);
        let word = &rest[at..];
        rest = &word[word.find(|c| !part(c)).unwrap_or(word.len())..];
    }
    out.push_str(rest);
    out
}

/// Passwords in URLs: `scheme://user:password@host`.
fn without_user_info(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // A password may have a slash in it that nobody encoded.
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '\\');
        let end = after.find(ends).unwrap_or(after.len());
        let host = after.find('/').unwrap_or(end).min(end);
        let user = after[..end].rfind('@').unwrap_or(0);
        let has_password = after[..user].contains(':') && !after[..user].contains("://");
        let end = if has_password {
            after[user..end].find('/').map_or(end, |at| user + at)
        } else {
            host
        };
        let authority = &after[..end];
        match authority.rsplit_once('@').map(|(user, host)| (user.split_once(':'), host)) {
            Some((Some((user, _)), host)) => {
                out.push_str(&format!("{user}:{MASK}@{host}"));
            }
            _ => out.push_str(authority),
        }
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

/// Values that follow a secret's name, and credentials that follow a scheme.
fn without_named(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let begin = rest.find(is_part).unwrap_or(rest.len());
        let (before, word) = rest.split_at(begin);
        out.push_str(before);
        let end = word.find(|c| !is_part(c)).unwrap_or(word.len());
        let (name, after) = word.split_at(end);
        if is_web_token(name) {
            out.push_str(MASK);
            rest = after;
            continue;
        }
        out.push_str(name);
        let secret = value_after(name, after);
        match secret {
            Some((lead, length)) if length > 0 => {
                out.push_str(&after[..lead]);
                out.push_str(MASK);
                rest = &after[lead + length..];
            }
            _ => rest = after,
        }
    }
    out
}

/// A JSON web token: three parts, the first one an object.
fn is_web_token(word: &str) -> bool {
    word.starts_with("eyJ") && word.len() >= 30 && word.matches('.').count() == 2
}

/// The place and length of the secret that follows a word, if one does.
fn value_after(name: &str, after: &str) -> Option<(usize, usize)> {
    let plain = plain(name);
    // The last part of a dotted name counts.
    let last = name.rsplit('.').next().unwrap_or(name);
    let named = is_secret(last) && !IN_VALUES_ONLY.contains(&plain.as_str());
    let scheme = SCHEMES.contains(&plain.as_str());
    if scheme && after.starts_with(' ') {
        let value = after[1..].split([' ', '"', '\'', '\n', '\r', ',', '\\']).next()?;
        if value.len() >= 8 {
            return Some((1, value.len()));
        }
    }
    if !named {
        return None;
    }
    let mut lead = 0;
    let mut quote = None;
    let mut is_separated = false;
    for c in after.chars() {
        match c {
            ' ' | '\t' | '\\' => {}
            '"' | '\'' if is_separated && quote.is_none() => quote = Some(c),
            '"' | '\'' if !is_separated => {}
            '=' | ':' if !is_separated => is_separated = true,
            _ => break,
        }
        lead += c.len_utf8();
        if lead > 64 {
            return None;
        }
    }
    if !is_separated {
        return None;
    }
    let value = &after[lead..];
    let is_line = LINES.contains(&plain.as_str());
    let mut escaped = false;
    let end = value.find(|c: char| {
        let ends = match (quote, is_line) {
            (Some(quote), _) => (c == quote && !escaped) || c == '\n',
            (None, true) => matches!(c, '\n' | '\r'),
            (None, false) => {
                c.is_whitespace() || matches!(c, '&' | ';' | ',' | '"' | '\'' | '}' | ']' | ')')
            }
        };
        escaped = c == '\\' && !escaped;
        ends
    });
    // A quote within a quoted text has a backslash before it, which is no part of the
    // value; leaving it out of the text harms nothing.
    Some((lead, end.unwrap_or(value.len())))
}

#[cfg(test)]
mod tests;
