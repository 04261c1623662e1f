//! Text that may come from elsewhere, made safe to show.

/// The text with at most `limit` characters, on one line, without what steers a terminal or turns the reading direction.
pub(super) fn cleaned(text: &str, limit: usize) -> String {
    let mut out = String::new();
    let mut length = 0;
    let mut blank = false;
    for c in text.chars() {
        if c.is_whitespace() {
            blank = length > 0;
            continue;
        }
        let c = if c.is_control() || is_invisible(c) { '\u{fffd}' } else { c };
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

/// Marks that are not seen and change how what is around them is seen: direction, joining, byte order, tags.
const fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_is_one_bounded_line_in_one_direction() {
        assert_eq!(cleaned("a\r\n\t b  ", 9), "a b");
        assert_eq!(cleaned("x\u{202e}y\x1b[31m", 99), "x\u{fffd}y\u{fffd}[31m");
        assert_eq!(cleaned("abcdef", 3), "ab…");
        assert_eq!(cleaned("abc", 3), "abc");
        assert_eq!(cleaned("abc   ", 3), "abc");
    }

    proptest! {
        #[test]
        fn whatever_comes_in_is_bounded_and_clean_and_cleaning_again_changes_nothing(text in any::<String>(), limit in 1_usize..40) {
            let once = cleaned(&text, limit);
            prop_assert!(once.chars().count() <= limit);
            prop_assert!(once.chars().all(|c| !c.is_control() && !is_invisible(c) && (c == ' ' || !c.is_whitespace())));
            prop_assert_eq!(cleaned(&once, limit), once);
        }
    }
}
