//! Grants of ids to Unix users: of keys in keyd, of certificates in identityd.
//!
//! A grant is a pair of a uid and a pattern. In a pattern `*` stands for any number of
//! characters (none too), `?` for exactly one, everything else for itself; letter case
//! counts. Several entries for one uid add up. uid 0 may do everything unless that is
//! switched off. A reserved id is granted to nobody, whatever the patterns say: it names
//! something that the daemon keeps for itself.

use crate::id::KeyId;
use crate::names::{self, WellKnown};
use std::collections::HashMap;

/// Ids in keyd's name space that no caller may name: earlier systems kept the key that
/// proves key handles among the ordinary keys, where a caller with a wide pattern could
/// load it and forge handles.
pub const RESERVED_KEY_IDS: &[WellKnown] = &[
    names::HANDLE_VALIDATION_KEY,
    names::STORE_KEY_AES,
    names::STORE_KEY_HMAC,
    names::STORE_KEY_RSA,
];

/// True for an id that no caller may name.
#[must_use]
pub fn is_reserved(id: &KeyId) -> bool {
    RESERVED_KEY_IDS.iter().any(|reserved| reserved.is_key(id))
}

/// The ids that each user may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    by_uid: HashMap<u32, Vec<Pattern>>,
    reserved: Vec<String>,
    root_is_unrestricted: bool,
}

impl Grants {
    /// Grants from settings: uids with the patterns of what they may use. A uid may occur
    /// several times.
    pub fn new<P: AsRef<str>>(
        entries: impl IntoIterator<Item = (u32, impl IntoIterator<Item = P>)>,
    ) -> Self {
        let mut by_uid: HashMap<u32, Vec<Pattern>> = HashMap::new();
        for (uid, patterns) in entries {
            by_uid
                .entry(uid)
                .or_default()
                .extend(patterns.into_iter().map(|text| Pattern::new(text.as_ref())));
        }
        Self { by_uid, reserved: Vec::new(), root_is_unrestricted: true }
    }

    /// The same grants, but `ids` are for nobody, not even for uid 0.
    #[must_use]
    pub fn reserving<I: Into<String>>(mut self, ids: impl IntoIterator<Item = I>) -> Self {
        self.reserved.extend(ids.into_iter().map(Into::into));
        self
    }

    /// The same grants, but uid 0 has only what its own entries give it.
    #[must_use]
    pub fn with_root_restricted(mut self) -> Self {
        self.root_is_unrestricted = false;
        self
    }

    /// Returns true if `uid` may use `id`.
    #[must_use]
    pub fn allows(&self, uid: u32, id: &str) -> bool {
        if self.is_reserved(id) {
            return false;
        }
        if uid == 0 && self.root_is_unrestricted {
            return true;
        }
        self.by_uid
            .get(&uid)
            .is_some_and(|patterns| patterns.iter().any(|pattern| pattern.matches(id)))
    }

    /// Returns true if `id` is reserved, so that nobody may use it.
    #[must_use]
    pub fn is_reserved(&self, id: &str) -> bool {
        self.reserved.iter().any(|reserved| reserved == id)
    }
}

/// A pattern with `*` and `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<char>);

impl Pattern {
    /// Every text is a pattern; one without `*` and `?` matches itself only.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut chars: Vec<char> = text.chars().collect();
        chars.dedup_by(|next, before| *next == '*' && *before == '*');
        Self(chars)
    }

    /// Returns true if the pattern matches the whole of `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.matches_in_steps(text).0
    }

    /// The answer, and how many comparisons it took.
    ///
    /// Only the newest `*` is ever returned to: if the rest cannot be matched from there,
    /// letting an earlier `*` take more cannot help either, since whatever it would pass
    /// over the newest could take too. So a comparison is made at most once for each pair
    /// of a character and a place in the pattern; nothing grows with the number of stars.
    fn matches_in_steps(&self, text: &str) -> (bool, usize) {
        let pattern = &self.0;
        let mut rest = text.chars();
        let mut at = 0;
        // Where to resume when a comparison fails: behind the newest star, with the text
        // that it has not yet taken.
        let mut resume: Option<(usize, std::str::Chars<'_>)> = None;
        let mut steps = 0;
        loop {
            steps += 1;
            if pattern.get(at) == Some(&'*') {
                at += 1;
                if at == pattern.len() {
                    return (true, steps);
                }
                resume = Some((at, rest.clone()));
                continue;
            }
            match (pattern.get(at), rest.next()) {
                (None, None) => return (true, steps),
                // The text is used up but not the pattern, and every other way leaves it
                // less text.
                (Some(_), None) => return (false, steps),
                (Some(&expected), Some(found)) if expected == '?' || expected == found => at += 1,
                _ => {
                    let Some((star_end, mut untaken)) = resume.take() else {
                        return (false, steps);
                    };
                    if untaken.next().is_none() {
                        return (false, steps);
                    }
                    at = star_end;
                    rest = untaken.clone();
                    resume = Some((star_end, untaken));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).matches(text)
    }

    #[test]
    fn stars_and_question_marks_match_as_in_a_shell() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "aziot-edged-ca"),
            ("aziot-edged-ca", "aziot-edged-ca"),
            ("aziot-edged/module/*", "aziot-edged/module/thermometer/server"),
            ("device-id*", "device-id"),
            ("device-id*", "device-id-temp"),
            ("?at", "cat"),
            ("a*b*c", "a-b-b-c"),
            ("*ab", "aab"),
            ("***a**", "xxa"),
            ("?", "é"),
        ] {
            assert!(matches(pattern, text), "{pattern:?} should match {text:?}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("?", ""),
            ("device-id", "device-id-temp"),
            ("device-id", "Device-id"),
            ("?at", "at"),
            ("a*b", "a-b-c"),
            ("a.c", "abc"),
            ("[a-z]", "b"),
        ] {
            assert!(!matches(pattern, text), "{pattern:?} should not match {text:?}");
        }
    }

    #[test]
    fn several_entries_for_one_uid_add_up_and_give_nothing_to_another() {
        let grants = Grants::new([(7, vec!["a"]), (8, vec!["b"]), (7, vec!["c*"])]);
        assert!(grants.allows(7, "a"));
        assert!(grants.allows(7, "c1"));
        assert!(!grants.allows(7, "b"));
        assert!(!grants.allows(8, "a"));
        assert!(!grants.allows(9, "a"));
    }

    #[test]
    fn uid_0_may_use_everything_until_it_is_restricted() {
        let grants = Grants::new([(0, vec!["a"])]);
        assert!(grants.allows(0, "b"));
        let restricted = grants.with_root_restricted();
        assert!(restricted.allows(0, "a"));
        assert!(!restricted.allows(0, "b"));
    }

    #[test]
    fn a_reserved_id_is_granted_to_nobody() {
        let grants =
            Grants::new([(7, vec!["*"])]).reserving(RESERVED_KEY_IDS.iter().map(|id| id.as_str()));
        assert!(!grants.allows(7, "handle-validation-key"));
        assert!(!grants.allows(0, "handle-validation-key"));
        assert!(grants.allows(7, "handle-validation-key2"));
    }

    #[test]
    fn many_stars_against_a_text_that_almost_matches_take_quadratic_time_at_most() {
        let pattern = Pattern::new(&"*a".repeat(200));
        let text = format!("{}b", "a".repeat(199));
        let (found, steps) = pattern.matches_in_steps(&text);
        assert!(!found);
        assert!(steps <= (pattern.0.len() + 1) * (text.len() + 1), "{steps} steps");
    }

    /// Returns true if the pattern matches the text, by a definition written down as
    /// plainly as can be. The function takes exponential time, so it is for short texts
    /// only.
    fn meaning(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=text.len()).any(|taken| meaning(rest, &text[taken..])),
            (['?', rest @ ..], [_, text @ ..]) => meaning(rest, text),
            ([expected, rest @ ..], [found, text @ ..]) => expected == found && meaning(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_matcher_agrees_with_the_meaning_of_patterns(pattern in "[ab*?]{0,8}", text in "[abc]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), meaning(&chars(&pattern), &chars(&text)));
        }

        #[test]
        fn a_text_without_wildcards_matches_itself_only(text in "[^*?]{0,40}", other in "[^*?]{0,40}") {
            prop_assert!(matches(&text, &text));
            prop_assert_eq!(matches(&text, &other), text == other);
        }

        #[test]
        fn the_number_of_comparisons_is_bounded_by_pattern_times_text(
            pattern in "[ab*?]{0,120}", text in "[ab]{0,200}",
        ) {
            let (_, steps) = Pattern::new(&pattern).matches_in_steps(&text);
            prop_assert!(steps <= (pattern.len() + 2) * (text.len() + 2), "{} steps", steps);
        }
    }
}
