//! Errors with what caused them.

use std::error::Error;
use std::iter;

/// An error and its causes, from the outermost on.
pub fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error| Error::source(*error))
}

/// An error and its causes in one line, with colons between. A cause whose words the line
/// ends with already is not repeated: some errors print their cause themselves.
///
/// The line is as long and as clean as the errors are: whatever repeats a peer's words is
/// bounded and cleaned by its caller.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    joined(error, ": ")
}

/// An error and its causes, with `separator` between; nothing is repeated, as in
/// [`chain`].
#[must_use]
pub fn joined(error: &dyn Error, separator: &str) -> String {
    let mut text = error.to_string();
    for cause in iter::successors(error.source(), |cause| Error::source(*cause)) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(separator);
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot open the store")]
        Plain(#[source] io::Error),
        #[error("cannot open the store: {0}")]
        Repeating(#[source] io::Error),
    }

    fn disk() -> io::Error {
        io::Error::other("disk gone")
    }

    #[test]
    fn causes_follow_in_one_line_and_none_is_told_twice() {
        assert_eq!(chain(&disk()), "disk gone");
        for error in [Outer::Plain(disk()), Outer::Repeating(disk())] {
            assert_eq!(chain(&error), "cannot open the store: disk gone");
        }
        assert_eq!(
            joined(&Outer::Plain(disk()), "\ncaused by: "),
            "cannot open the store\ncaused by: disk gone"
        );
    }

    #[test]
    fn a_cause_is_found_by_its_type_below_others() {
        let error = Outer::Plain(disk());
        assert!(causes(&error).any(<dyn Error>::is::<io::Error>));
        assert_eq!(causes(&error).count(), 2);
    }
}
