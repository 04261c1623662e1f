//! The sentences of the table, and the operators' guide, which holds them.

use std::collections::BTreeSet;
use std::path::Path;

use super::{DenyReason, Explanation};

/// The names of all variants, as serde says them when it meets an unknown one: nobody
/// keeps that list by hand.
fn named_by_serde() -> BTreeSet<String> {
    let error =
        serde_json::from_str::<DenyReason>("\"?\"").expect_err("no such reason").to_string();
    error.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_reason_is_in_the_list_once_and_is_written_as_it_is_shown() {
    let listed: BTreeSet<String> = DenyReason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(listed.len(), DenyReason::ALL.len());
    assert_eq!(listed, named_by_serde());
    for reason in DenyReason::ALL {
        assert_eq!(serde_json::to_value(reason).expect("a word"), reason.to_string());
    }
}

#[test]
fn every_reason_finds_its_own_check() {
    for (at, reason) in DenyReason::ALL.into_iter().enumerate() {
        assert_eq!((reason as usize, reason.check().reason), (at, reason));
    }
}

#[test]
fn every_reason_has_a_check_a_cause_and_a_remedy_of_its_own_in_whole_sentences() {
    let mut causes = BTreeSet::new();
    for reason in DenyReason::ALL {
        let Explanation { check, cause, remedy } = reason.explained();
        assert!(!check.is_empty() && !check.ends_with('.'), "{reason}");
        for text in [cause, remedy] {
            assert!(
                text.ends_with('.') && text.starts_with(char::is_uppercase) && text.len() > 20,
                "{reason}: {text}"
            );
            assert!(
                !text.contains("  ") && !text.contains('|') && text.len() < 260,
                "{reason}: {text}"
            );
        }
        assert!(causes.insert(cause), "{reason}");
    }
}

const BEGIN: &str = "<!-- reasons: written by a test of edgekeep-core -->\n";
const END: &str = "<!-- end of reasons -->";

fn table() -> String {
    let mut text = "| reason | what is so | what to do |\n|---|---|---|\n".to_owned();
    for reason in DenyReason::ALL {
        let Explanation { cause, remedy, .. } = reason.explained();
        text.push_str(&format!("| `{reason}` | {cause} | {remedy} |\n"));
    }
    text
}

/// `EDGEKEEP_BLESS=1` writes it.
#[test]
fn the_operators_guide_has_every_reason_as_the_program_tells_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let guide = std::fs::read_to_string(&path).expect("docs/operations.md");
    let (before, rest) = guide.split_once(BEGIN).expect("the begin of the table");
    let (shown, after) = rest.split_once(END).expect("the end of the table");
    if std::env::var_os("EDGEKEEP_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table())).expect("written");
        return;
    }
    assert!(
        shown == table(),
        "docs/operations.md is behind the code: run this test with EDGEKEEP_BLESS=1"
    );
}
