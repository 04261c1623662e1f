//! Notices of the libraries that the programs hold: their licences ask that these go with
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use crate::{command, workspace};

/// Beginnings of the names of files that hold a licence or a notice.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// The list of the libraries, then each text once with the libraries that it is of.
pub(super) fn text(programs: &[&str]) -> anyhow::Result<String> {
    let folders = folders()?;
    let mut list = String::from(
        "edgekeep's programs hold these libraries, each under its licence. The texts of the licences and the\n\
         notices of copyright follow.\n\n",
    );
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (library, licence) in libraries(programs)? {
        list.push_str(&format!("{library}: {licence}\n"));
        let folder = folders.get(&library).with_context(|| format!("no sources of {library}"))?;
        for text in texts_in(folder)? {
            texts.entry(text).or_default().insert(library.clone());
        }
    }
    for (text, libraries) in texts {
        let libraries: Vec<String> = libraries.into_iter().collect();
        list.push_str(&format!("\n{}\n{}\n\n{text}\n", "-".repeat(72), libraries.join(", ")));
    }
    Ok(list)
}

/// The libraries that are linked into the programs, with their licences.
fn libraries(programs: &[&str]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut tree = workspace::cargo();
    tree.args(["tree", "--locked", "--edges", "normal", "--prefix", "none"]);
    tree.args(["--format", "{p}\t{l}"]);
    tree.args(programs.iter().flat_map(|name| ["--package", name]));
    let lines = command::output(tree)?;
    Ok(lines.lines().filter_map(library).collect())
}

/// Name, version and licence of one line; nothing for a crate of this repository, whose
/// folder stands behind its version.
fn library(line: &str) -> Option<(String, String)> {
    let (package, licence) = line.split_once('\t')?;
    let mut words = package.split(' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    let ours = words.next().is_some_and(|word| word.starts_with("(/"));
    (!ours).then(|| {
        let licence = licence.trim_end_matches(" (*)");
        (format!("{name} {version}"), licence.to_owned())
    })
}

/// The folder of each library's sources.
fn folders() -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut metadata = workspace::cargo();
    metadata.args(["metadata", "--locked", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&command::output(metadata)?)?;
    let packages = metadata["packages"].as_array().context("cargo tells no packages")?;
    let folder = |package: &Value| {
        let name = format!("{} {}", package["name"].as_str()?, package["version"].as_str()?);
        Some((name, Path::new(package["manifest_path"].as_str()?).parent()?.to_owned()))
    };
    Ok(packages.iter().filter_map(folder).collect())
}

fn texts_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut texts = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if NAMES.iter().any(|begin| name.starts_with(begin)) && entry.file_type()?.is_file() {
            let text = fs::read(entry.path())?;
            texts.push(String::from_utf8_lossy(&text).trim_end().replace('\r', ""));
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_listed_and_a_crate_of_this_repository_is_not() {
        assert_eq!(
            library("rustls v0.23.1\tApache-2.0 OR ISC OR MIT"),
            Some(("rustls 0.23.1".to_owned(), "Apache-2.0 OR ISC OR MIT".to_owned()))
        );
        assert_eq!(
            library("syn v2.0.1 (proc-macro)\tMIT (*)"),
            Some(("syn 2.0.1".to_owned(), "MIT".to_owned()))
        );
        assert_eq!(library("edgekeep v0.1.0 (/x/crates/cli)\tMIT"), None);
        assert_eq!(library(""), None);
    }
}
