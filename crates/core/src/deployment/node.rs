//! A JSON value together with its place in the manifest, so that every error can say
//! where.

use serde_json::{Map, Value};

use super::{DeploymentError, Reason};

/// Characters of a member's name that an error repeats.
const SHOWN_NAME: usize = 64;

pub(super) struct Node<'a> {
    pub(super) value: &'a Value,
    pub(super) path: String,
}

impl<'a> Node<'a> {
    pub(super) const fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// The node `name` under this one.
    pub(super) fn child(&self, name: &str, value: &'a Value) -> Self {
        let mut path = self.path.clone();
        let plain = !name.is_empty() && name.len() <= SHOWN_NAME;
        if plain
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'$' | b'_' | b'-'))
        {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        } else {
            let shown: String = name.chars().take(SHOWN_NAME).collect();
            path.push_str(&format!("[{shown:?}]"));
        }
        Self { value, path }
    }

    pub(super) fn error(&self, reason: Reason) -> DeploymentError {
        let path = if self.path.is_empty() { "the manifest".to_owned() } else { self.path.clone() };
        DeploymentError::Format { path, reason }
    }

    pub(super) fn object(&self) -> Result<&'a Map<String, Value>, DeploymentError> {
        self.value.as_object().ok_or_else(|| self.error(Reason::Expected("an object")))
    }

    /// A member whose name ignores case, `null` or not.
    pub(super) fn present(&self, name: &str) -> Result<Option<Self>, DeploymentError> {
        let mut found = self.object()?.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let Some((key, value)) = found.next() else { return Ok(None) };
        let node = self.child(key, value);
        if found.next().is_some() { Err(node.error(Reason::Twice)) } else { Ok(Some(node)) }
    }

    /// A member whose name ignores case; `null` counts as absent.
    pub(super) fn optional(&self, name: &str) -> Result<Option<Self>, DeploymentError> {
        Ok(self.present(name)?.filter(|node| !node.value.is_null()))
    }

    /// A member whose name ignores case and that must be there.
    pub(super) fn required(&self, name: &str) -> Result<Self, DeploymentError> {
        self.optional(name)?.ok_or_else(|| self.child(name, &Value::Null).error(Reason::Missing))
    }

    /// A map's entry: its name counts as written.
    pub(super) fn entry(&self, name: &str) -> Result<Self, DeploymentError> {
        match self.object()?.get(name) {
            Some(value) => Ok(self.child(name, value)),
            None => Err(self.child(name, &Value::Null).error(Reason::Missing)),
        }
    }

    pub(super) fn text(&self) -> Result<&'a str, DeploymentError> {
        self.value.as_str().ok_or_else(|| self.error(Reason::Expected("a string")))
    }

    /// A string that is not blank.
    pub(super) fn filled(&self) -> Result<&'a str, DeploymentError> {
        let text = self.text()?;
        if text.trim().is_empty() {
            Err(self.error(Reason::Expected("a string that is not blank")))
        } else {
            Ok(text)
        }
    }

    pub(super) fn text_or_number(&self) -> Result<String, DeploymentError> {
        match self.value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(self.error(Reason::Expected("a string"))),
        }
    }

    pub(super) fn integer(&self) -> Result<i64, DeploymentError> {
        self.value.as_i64().ok_or_else(|| self.error(Reason::Expected("a whole number")))
    }

    /// The value of the word that stands here, ignoring case.
    pub(super) fn one_of<T: Copy>(
        &self,
        words: &[(&str, T)],
        expected: &'static str,
    ) -> Result<T, DeploymentError> {
        let text = self.value.as_str();
        let found =
            words.iter().find(|(word, _)| text.is_some_and(|text| text.eq_ignore_ascii_case(word)));
        found.map(|(_, value)| *value).ok_or_else(|| self.error(Reason::Expected(expected)))
    }
}
