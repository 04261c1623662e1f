//! `seal` in `config.toml` and in keyd's settings, changed without touching anything else
//! in them.

use std::path::Path;

use edgekeep_core::hardware::Seal;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::KeydSettings;

use crate::apply::{ApplyError, Ownership, write_atomic};
use crate::hardware::SEALS;

/// The configuration with another `seal` in `[aziot_keys]`; comments and order stay.
///
/// # Errors
/// If the text is no TOML, or `aziot_keys` is no table.
pub fn with_seal(text: &str, seal: Seal) -> Result<String, SealError> {
    let mut document: toml_edit::DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| {
            // The error's own text repeats a part of the file, which has secrets.
            let line = error
                .span()
                .map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            SealError::Syntax { line }
        })?;
    let word = SEALS.iter().find(|(_, known)| *known == seal).map_or("file", |(word, _)| word);
    let keys = document.entry("aziot_keys").or_insert_with(toml_edit::table).as_table_like_mut();
    let keys = keys.ok_or(SealError::NoTable)?;
    match keys.get_mut("seal").and_then(toml_edit::Item::as_value_mut) {
        Some(value) => {
            let decor = value.decor().clone();
            *value = word.into();
            *value.decor_mut() = decor;
        }
        None => drop(keys.insert("seal", toml_edit::value(word))),
    }
    Ok(document.to_string())
}

/// The reason why a configuration cannot be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It is no TOML.
    #[error("the configuration is no TOML (line {line}): run `edgekeep config check`")]
    Syntax {
        /// Line at which the fault shows, from 1.
        line: usize,
    },
    /// `aziot_keys` is something else.
    #[error("aziot_keys is no table in the configuration: run `edgekeep config check`")]
    NoTable,
}

/// Replaces a file by this content as a whole. Owner, and a group that may read it, stay;
/// nobody else can read it.
///
/// # Errors
/// If it is not there, or cannot be written.
pub fn replace_config(path: &Path, content: &str) -> Result<(), ApplyError> {
    write_atomic(path, content.as_bytes(), Ownership::of(path)?)
}

/// Replaces keyd's settings, in the form in which `config apply` writes them.
///
/// # Errors
/// As [`replace_config`].
pub fn replace_keyd_settings(root: &Root, settings: &KeydSettings) -> Result<(), ApplyError> {
    let path = root.settings_file(Daemon::Keyd);
    let mut content = serde_json::to_string_pretty(settings).unwrap_or_default();
    content.push('\n');
    replace_config(&path, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_seal_changes_and_comments_stay() {
        let text = "# mine\nhostname = \"x\"\n\n[aziot_keys] # keys\nseal = \"file\" # for now\npass_on = \"nothing\"\n";
        assert_eq!(with_seal(text, Seal::Tpm).unwrap(), text.replace("\"file\"", "\"tpm\""));
        let text = "hostname = \"x\" # mine\n\n[aziot_keys]\n# a comment\npass_on = \"nothing\"\n\n[tpm]\n";
        let changed = with_seal(text, Seal::Pkcs11).unwrap();
        assert_eq!(changed, text.replace("\"nothing\"\n", "\"nothing\"\nseal = \"pkcs11\"\n"));
        assert_eq!(with_seal(&changed, Seal::Pkcs11).unwrap(), changed);
        assert_eq!(
            with_seal("a = 1\n", Seal::File).unwrap(),
            "a = 1\n\n[aziot_keys]\nseal = \"file\"\n"
        );
    }

    #[test]
    fn what_is_no_configuration_is_refused_without_being_repeated() {
        let error = with_seal("a = 1\nsecret geheim\n", Seal::File).unwrap_err();
        assert_eq!(error, SealError::Syntax { line: 2 });
        assert_eq!(with_seal("aziot_keys = 1\n", Seal::File), Err(SealError::NoTable));
    }
}
