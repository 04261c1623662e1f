//! References from comments and documents to documents: each one must lead somewhere
//! inside this repository.
//!
//! Two kinds are looked at: sections of the wire facts ("wire facts 5.3", "wire facts,
//! W1"), which are the headings and marked points of `docs/wire/`, and relative links in
//! Markdown files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::workspace;

/// Folders that are searched for references.
const SEARCHED: &[&str] =
    &["benches", "config", "crates", "docs", "examples", "packaging", "tests", "xtask"];
/// Endings of files that may hold references.
const ENDINGS: &[&str] = &["md", "rs", "service", "socket", "toml", "yaml"];
/// The words that introduce a section of `docs/wire/`.
const CITED: &str = "wire facts";

/// Fails with one line for each reference that leads nowhere.
pub(crate) fn check() -> anyhow::Result<()> {
    let top = workspace::folder();
    let files = searched_files()?;
    let wire = top.join("docs/wire");
    let mut sections = BTreeSet::new();
    for file in files.iter().filter(|file| file.starts_with(&wire)) {
        sections.extend(sections_of(&read(file)?));
    }
    ensure!(!sections.is_empty(), "{} has no sections", wire.display());

    let mut broken = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with("xtask/src/references.rs")) {
        let text = read(file)?;
        let name = file.strip_prefix(top).unwrap_or(file).display();
        let missing = citations(&text).into_iter().filter(|cited| !sections.contains(cited));
        broken
            .extend(missing.map(|cited| format!("{name}: the wire facts have no section {cited}")));
        if file.extension().is_some_and(|ending| ending == "md") {
            let folder = file.parent().unwrap_or(top);
            let missing = links(&text).into_iter().filter(|link| !folder.join(link).exists());
            broken.extend(missing.map(|link| format!("{name}: {link} does not exist")));
        }
    }
    ensure!(broken.is_empty(), "references lead nowhere:\n{}", broken.join("\n"));
    Ok(())
}

/// Every Rust file of the repository, by its path in it.
pub(crate) fn rust_files() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let top = workspace::folder();
    let files = searched_files()?.into_iter();
    let files = files.filter(|file| file.extension().is_some_and(|ending| ending == "rs"));
    files.map(|file| Ok((file.strip_prefix(top)?.to_owned(), read(&file)?))).collect()
}

/// The files of the searched folders, and those at the top.
fn searched_files() -> anyhow::Result<Vec<PathBuf>> {
    let top = workspace::folder();
    let mut files: Vec<PathBuf> = SEARCHED.iter().map(|folder| top.join(folder)).collect();
    for entry in fs::read_dir(top)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    all_files(files)
}

/// The files that may hold references, below these folders and among these files.
fn all_files(mut open: Vec<PathBuf>) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries =
                fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
            for entry in entries {
                open.push(entry?.path());
            }
        } else if path
            .extension()
            .is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The sections of one page: the numbers of its headings, and its points that begin with
/// `**W`.
fn sections_of(page: &str) -> Vec<String> {
    let section = |line: &str| {
        let heading = line.trim_start_matches('#');
        let named = if heading.len() < line.len() {
            heading.strip_prefix(' ')
        } else {
            line.strip_prefix("- **")
        };
        named.map(leading_section).filter(|section| !section.is_empty())
    };
    page.lines().filter_map(section).collect()
}

/// The sections of the wire facts that a text cites, also where a line ends within the
/// citation.
fn citations(text: &str) -> Vec<String> {
    let words: Vec<&str> = text
        .split_whitespace()
        .filter(|word| !matches!(*word, "//" | "///" | "//!" | "#"))
        .collect();
    let text = words.join(" ");
    let mut found = Vec::new();
    for (at, _) in text.match_indices(CITED) {
        let mut rest = &text[at + CITED.len()..];
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            rest = ["sections ", "section ", "and "]
                .iter()
                .find_map(|word| rest.strip_prefix(word))
                .unwrap_or(rest);
            let section = leading_section(rest);
            if section.is_empty() {
                break;
            }
            rest = &rest[section.len()..];
            found.push(section);
        }
    }
    found
}

/// The section number at the beginning of a text: `5`, `5.3` or `W11`; empty if there is
/// none.
fn leading_section(text: &str) -> String {
    let weak_spot = text.strip_prefix('W').map_or(0, |_| 1);
    let number =
        text[weak_spot..].bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    text[..weak_spot + number].trim_end_matches('.').trim_end_matches('W').to_owned()
}

/// The relative targets of a Markdown page's links, without their anchors.
fn links(page: &str) -> Vec<String> {
    let targets =
        page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let relative =
        targets.filter(|target| !target.contains("://") && !target.starts_with(['#', '/']));
    let files =
        relative.filter_map(|target| target.split('#').next()).filter(|file| !file.is_empty());
    files.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_citation_is_found_in_each_of_its_forms_and_across_lines() {
        for (text, cited) in [
            ("//! Routes (wire facts 5.3).", vec!["5.3"]),
            ("/// As wire facts, section 2.10 has it", vec!["2.10"]),
            ("//! the guard of wire\n//! facts, section 10, W1.", vec!["10", "W1"]),
            ("(wire facts, W1 and W2)", vec!["W1", "W2"]),
            ("the wire facts say nothing", vec![]),
            ("wire facts 3.2; 14 others", vec!["3.2"]),
        ] {
            assert_eq!(citations(text), cited, "{text}");
        }
    }

    #[test]
    fn sections_are_headings_and_marked_points() {
        let page = "# 5 Keys\n\ntext 9.9\n## 5.3 Routes\n- **W4** Handles\n- 7 things\n#hash 8\n";
        assert_eq!(sections_of(page), ["5", "5.3", "W4"]);
    }

    #[test]
    fn links_are_relative_and_without_anchors() {
        let page = "[a](b.md) [c](../d/e.md#f) [g](https://h) [i](#j) (k)";
        assert_eq!(links(page), ["b.md", "../d/e.md"]);
    }

    #[test]
    fn every_reference_of_this_repository_leads_somewhere() {
        check().unwrap();
    }
}
