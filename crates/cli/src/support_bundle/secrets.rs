//! The device's configuration without its secrets, and the secrets themselves, so that
//! they are found wherever else they stand.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_base::file::{self, Rules};
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::redaction::{Redactor, secrets_in};
use serde_json::Value;
use zeroize::Zeroizing;

use super::step::Made;

/// Longest file that is read, in bytes.
const LIMIT: u64 = 16 << 20;
/// Longest key that waits for keyd, in bytes.
const KEY: u64 = 64 << 10;

/// Variables of this process whose values are secrets, or have one in them.
const VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// A redactor that knows what stands in the configuration, in the settings, and in keys
/// that keyd has not taken yet.
pub(super) fn redactor(root: &Root) -> Redactor {
    let mut known = Vec::new();
    let mut values = vec![toml_of(&root.config_file())];
    values.push(toml_of(&root.config_file().with_file_name("applied/current.toml")));
    values.push(toml_of(&root.config_file().with_file_name("applied/previous.toml")));
    values.push(toml_of(&root.path().join(edgekeep_core::migration::CONFIGURATION)));
    values.extend(Daemon::ALL.map(|daemon| json_of(&root.settings_file(daemon))));
    for value in values.into_iter().flatten() {
        known.extend(secrets_in(&value));
    }
    for entry in std::fs::read_dir(root.key_import_folder()).into_iter().flatten().flatten() {
        if let Ok(key) = file::read(&entry.path(), Rules::named(KEY)).map(Zeroizing::new) {
            known.push(Zeroizing::new(STANDARD.encode(&*key)));
            if let Ok(text) = std::str::from_utf8(&key) {
                known.push(Zeroizing::new(text.trim().to_owned()));
            }
        }
    }
    for name in VARIABLES {
        let password = std::env::var(name).ok().and_then(|url| {
            let authority = url.split_once("://")?.1.rsplit_once('@')?.0.to_owned();
            authority.split_once(':').map(|(_, password)| password.to_owned())
        });
        known.extend(password.map(Zeroizing::new));
    }
    Redactor::new(known)
}

/// The configuration and the daemons' settings, without secrets. A file that cannot be
/// understood is left out: its secrets could not be told from the rest.
pub(super) fn configuration(root: &Root, redactor: &Redactor) -> Vec<(String, Made)> {
    let mut parts = Vec::new();
    let config = root.config_file();
    let made = match toml_of(&config) {
        Ok(mut value) => {
            redactor.redact(&mut value);
            Made::whole(toml::to_string_pretty(&value).unwrap_or_default())
        }
        Err(why) => Made::nothing(format!("{}: {why}", config.display())),
    };
    parts.push(("config/config.toml".to_owned(), made));
    for daemon in Daemon::ALL {
        let path = root.settings_file(daemon);
        let made = match json_of(&path) {
            Ok(mut value) => {
                redactor.redact(&mut value);
                Made::whole(serde_json::to_vec_pretty(&value).unwrap_or_default())
            }
            Err(why) => Made::nothing(format!("{}: {why}", path.display())),
        };
        parts.push((format!("config/{}.json", daemon.name()), made));
    }
    parts
}

fn text_of(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = file::read_text(path, Rules::named(LIMIT)).map_err(|error| error.to_string())?;
    Ok(Zeroizing::new(text))
}

fn toml_of(path: &Path) -> Result<Value, String> {
    let text = text_of(path)?;
    // The error's own text repeats a part of the file.
    toml::from_str(&text).map_err(|_| "it is no TOML, and was left out".to_owned())
}

fn json_of(path: &Path) -> Result<Value, String> {
    let text = text_of(path)?;
    serde_json::from_str(&text).map_err(|_| "it is no JSON, and was left out".to_owned())
}
