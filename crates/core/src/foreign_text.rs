//! Text that somebody else wrote, for people to read: error messages of services, names
//! that they give.
//!
//! Cleaned once, where the text comes in. What is left fits on one line, has no character
//! that moves the cursor, turns the direction of what stands around it or cannot be seen,
//! and no more characters than its limit.

/// Most characters of a message of a service.
pub const MESSAGE_LIMIT: usize = 300;
/// Most characters of an error with its causes.
pub const CHAIN_LIMIT: usize = 1000;

/// Stands for each character that is not shown.
const PLACEHOLDER: char = '\u{fffd}';

/// The text as it may be shown: at most `limit` characters, and an ellipsis where some
/// were cut off. Blanks, tabs and line breaks in a row become one blank; those at both
/// ends go.
#[must_use]
pub fn cleaned(text: &str, limit: usize) -> String {
    let mut out = String::new();
    let mut length = 0;
    let mut blank = false;
    for c in text.chars() {
        if c.is_whitespace() {
            blank = length > 0;
            continue;
        }
        let c = if c.is_control() || is_invisible(c) { PLACEHOLDER } else { c };
        for c in blank.then_some(' ').into_iter().chain([c]) {
            if length == limit {
                out.pop();
                out.push('…');
                return out;
            }
            out.push(c);
            length += 1;
        }
        blank = false;
    }
    out
}

/// Returns true if a character shows nothing and changes how others are shown: Unicode's
/// format characters (category Cf), variation selectors and fillers.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{00ad}' | '\u{034f}' | '\u{0600}'..='\u{0605}' | '\u{061c}' | '\u{06dd}' | '\u{070f}'
        | '\u{0890}'..='\u{0891}' | '\u{08e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_text_of_any_language_stays() {
        for text in ["device not found", "Gerät gesperrt", "設備未找到", "не найдено", "لا يوجد"]
        {
            assert_eq!(cleaned(text, 100), text);
        }
    }

    #[test]
    fn what_moves_turns_or_hides_text_is_shown_as_a_mark() {
        assert_eq!(cleaned("not \u{202e}dnuof", 100), "not \u{fffd}dnuof");
        assert_eq!(cleaned("a\x1b[2Jb\u{200b}c\u{2066}d", 100), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
        assert_eq!(cleaned(" line\nline\r\n\tline\n", 100), "line line line");
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        assert_eq!(cleaned(&"x".repeat(100_000), 5), "xxxx…");
        assert_eq!(cleaned("xxxxx", 5), "xxxxx");
        assert_eq!(cleaned("xxx   ", 3), "xxx");
    }

    proptest! {
        #[test]
        fn whatever_comes_in_one_clean_line_within_the_limit_comes_out(text in any::<String>(), limit in 1_usize..80) {
            let shown = cleaned(&text, limit);
            prop_assert!(shown.chars().count() <= limit);
            prop_assert!(shown.chars().all(|c| !c.is_control() && !is_invisible(c) && (c == ' ' || !c.is_whitespace())));
            prop_assert_eq!(cleaned(&shown, limit), shown);
        }
    }
}
