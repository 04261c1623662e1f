//! Widths of lines in Rust files.
//!
//! rustfmt keeps code within its `max_width`, but neither wraps comments nor looks into
//! the bodies of macros. A comment has at most [`COMMENT`] columns. A line of code that
//! rustfmt cannot lay out has at most [`CODE`] columns. A string literal is never broken.

use anyhow::ensure;

use crate::references::rust_files;

/// Columns of a comment line.
const COMMENT: usize = 90;
/// Columns of a line of code in a macro's body.
const CODE: usize = 150;

/// Fails with one line for each line that is too wide.
pub(crate) fn check() -> anyhow::Result<()> {
    let mut wide = Vec::new();
    for (name, text) in rust_files()? {
        let found = too_wide(&text).into_iter();
        let told = |(line, columns)| format!("{}:{line}: {columns} columns", name.display());
        wide.extend(found.map(told));
    }
    ensure!(wide.is_empty(), "lines are too wide:\n{}", wide.join("\n"));
    Ok(())
}

/// Numbers and widths of the lines that are too wide.
fn too_wide(text: &str) -> Vec<(usize, usize)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let widths = lines.map(|(number, line)| (number, line, line.chars().count()));
    let wide = widths.filter(|(_, line, columns)| match comment(line) {
        Some(words) => *columns > COMMENT && can_be_wrapped(words),
        None => *columns > CODE && !line.contains('"'),
    });
    wide.map(|(number, _, columns)| (number, columns)).collect()
}

/// The words of a line that is a comment and nothing else.
fn comment(line: &str) -> Option<&str> {
    Some(line.trim_start().strip_prefix("//")?.trim_start_matches(['/', '!']))
}

/// Tells prose from a row of a table, a column of a listing and a single long word.
fn can_be_wrapped(words: &str) -> bool {
    let words = words.trim();
    !words.starts_with('|') && !words.contains("   ") && words.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_comment_is_told_and_a_table_a_listing_and_a_long_word_are_not() {
        let prose = format!("    /// {}", "word ".repeat(20));
        let table = format!("//! | {}|", "cell | ".repeat(20));
        let listing = format!("//! name{}purpose", " ".repeat(90));
        let word = format!("// https://{}", "x".repeat(90));
        let text = [prose.trim_end(), &table, &listing, &word, "let short = 1;"].join("\n");
        assert_eq!(too_wide(&text), [(1, prose.trim_end().len())]);
    }

    #[test]
    fn no_line_of_this_repository_is_too_wide() {
        check().unwrap();
    }

    #[test]
    fn a_long_line_of_a_macro_is_told_and_one_with_a_text_is_not() {
        let code = format!("    x in {}", "0..1, ".repeat(30));
        let text = format!("    \"{}\"", "x".repeat(200));
        assert_eq!(too_wide(&format!("{code}\n{text}")), [(1, code.len())]);
    }
}
