//! `config explain`: one key or table of the schema, in words.

use crate::schema::{self, Key, Kind, State};
use crate::similar::nearest;
use crate::words;

/// A key as it is explained.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Explanation {
    /// Path of the key; `"<name>"` in it stands for a name that the operator chooses.
    pub key: String,
    /// Form of its value, in words.
    pub takes: &'static str,
    /// The key's meaning.
    pub meaning: &'static str,
    /// An example of a line, as it stands below its table's header.
    pub example: Option<String>,
    /// Other spellings that are accepted.
    pub aliases: &'static [&'static str],
    /// The reason why the key does nothing, or is not supported; none for most.
    pub remark: Option<String>,
    /// Keys of the table, if the key takes one.
    pub keys: Vec<&'static str>,
}

/// Explains the keys that `asked` names: a path, or the end of one, with or without
/// names that the operator chooses. Nothing asked for is the top level.
///
/// # Errors
/// If there is no such key: the path that was probably meant, if any is like it.
pub fn explain(asked: &str) -> Result<Vec<Explanation>, Option<String>> {
    let wanted = parts(asked);
    let all = every_key();
    let found: Vec<Explanation> = all
        .iter()
        .filter(|(path, key)| {
            let own = parts(path);
            let Some((last, before)) = wanted.split_last() else { return false };
            let Some(start) = own.len().checked_sub(wanted.len()) else { return false };
            own[start..own.len() - 1] == *before && key.is_called(last)
        })
        .map(|(path, key)| explanation(path, key))
        .collect();
    // A whole path is that key alone.
    if let Some(exact) = found.iter().position(|one| parts(&one.key) == wanted) {
        return Ok(found.into_iter().skip(exact).take(1).collect());
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let last = wanted.last().map_or("", String::as_str);
    let meant = nearest(last, all.iter().map(|(_, key)| key.name))
        .and_then(|name| all.iter().find(|(_, key)| key.name == name));
    Err(meant.map(|(path, _)| path.clone()))
}

/// The tables and keys of the top level.
#[must_use]
pub fn top_level() -> Vec<Explanation> {
    schema::ROOT.iter().map(|key| explanation(key.name, key)).collect()
}

fn explanation(path: &str, key: &Key) -> Explanation {
    let (meaning, example) = words::of(path).unwrap_or_default();
    let remark = match key.state {
        State::Used => None,
        State::NoEffect(why) => Some(format!("no effect: {why}")),
        State::NotYet(what) => Some(format!("not supported: this version has no {what}")),
    };
    let map = matches!(key.kind, Kind::MapOf(kind) if !matches!(kind, Kind::Table(_)));
    let line = if map {
        format!("{}.NAME = {example}", key.name)
    } else {
        format!("{} = {example}", key.name)
    };
    Explanation {
        key: path.to_owned(),
        takes: key.kind.words(),
        meaning,
        example: (!example.is_empty()).then_some(line),
        aliases: key.aliases,
        remark,
        keys: key.keys().unwrap_or_default().iter().map(|key| key.name).collect(),
    }
}

/// Every key of the schema with its path.
fn every_key() -> Vec<(String, &'static Key)> {
    let of_table = |(path, keys): &'static (String, &'static [Key])| {
        keys.iter().map(move |key| {
            let path =
                if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            (path, key)
        })
    };
    schema::tables().iter().flat_map(of_table).collect()
}

/// The names in a path that the schema chooses.
fn parts(path: &str) -> Vec<String> {
    let plain = path.trim_start_matches('[').trim_end_matches(']');
    let named = plain.split('.').map(|part| part.trim().trim_matches('"'));
    named.filter(|part| !part.is_empty() && *part != "<name>").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_meaning_and_every_key_with_a_value_an_example() {
        let all = every_key();
        let lacking: Vec<&str> = all
            .iter()
            .filter(|(path, key)| {
                let is_table =
                    key.keys().is_some() || matches!(key.kind, Kind::MapOf(_) | Kind::Free);
                !words::of(path).is_some_and(|(_, example)| is_table || !example.is_empty())
            })
            .map(|(path, _)| path.as_str())
            .collect();
        assert!(lacking.is_empty(), "add lines to words.rs for {lacking:?}");
    }

    #[test]
    fn a_path_its_end_and_a_chosen_name_lead_to_the_key() {
        for asked in ["tpm.tcti", "tcti", "[tpm.tcti]"] {
            let found = explain(asked).unwrap();
            assert_eq!(found.len(), 1, "{asked}");
            assert_eq!(found[0].key, "tpm.tcti");
            assert_eq!(found[0].example.as_deref(), Some("tcti = \"device:/dev/tpmrm0\""));
        }
        assert_eq!(
            explain("host_modules.sha256").unwrap()[0].key,
            "host_modules.\"<name>\".sha256"
        );
        assert_eq!(explain("local_gateway_hostname").unwrap()[0].key, "parent_hostname");
        assert!(explain("auto_renew.threshold").unwrap().len() > 1, "it stands in many tables");
        assert_eq!(explain("edge_ca.auto_renew.threshold").unwrap().len(), 1);
    }

    #[test]
    fn a_slip_leads_to_the_key_that_was_meant() {
        assert_eq!(explain("hostnme"), Err(Some("hostname".to_owned())));
        assert_eq!(explain("xyzzyxyzzy"), Err(None));
        assert_eq!(explain(""), Err(None));
    }
}
