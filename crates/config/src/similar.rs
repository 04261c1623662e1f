//! Search for the known word that a misspelt one was meant to be.

/// The candidate nearest to `word`, if it is near enough to be what was meant. Case and
/// `-` for `_` count as equal.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let folded = fold(word);
    // One slip in a short word, two in a middling one, three in a long one.
    let allowed = match folded.len() {
        0..=2 => return None,
        3..=7 => 1,
        8..=11 => 2,
        _ => 3,
    };
    candidates
        .into_iter()
        // Each character more is a slip: most words need no look at their letters.
        .filter(|candidate| candidate.chars().count().abs_diff(folded.len()) <= allowed)
        .map(|candidate| (distance(&folded, &fold(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn fold(word: &str) -> Vec<char> {
    word.chars().take(64).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours between two words.
fn distance(a: &[char], b: &[char]) -> usize {
    let width = b.len() + 1;
    let mut cost = vec![0; (a.len() + 1) * width];
    for (i, first) in cost.iter_mut().step_by(width).enumerate() {
        *first = i;
    }
    for (j, first) in cost.iter_mut().take(width).enumerate() {
        *first = j;
    }
    for i in 1..=a.len() {
        for j in 1..width {
            let replace = cost[(i - 1) * width + j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best =
                replace.min(cost[(i - 1) * width + j] + 1).min(cost[i * width + j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(cost[(i - 2) * width + j - 2] + 1);
            }
            cost[i * width + j] = best;
        }
    }
    cost[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_that_was_meant() {
        let keys = ["symmetric_key", "registration_id", "method"];
        for (typed, meant) in [
            ("symetric_key", "symmetric_key"),
            ("symmetric-key", "symmetric_key"),
            ("registartion_id", "registration_id"),
            ("Method", "method"),
        ] {
            assert_eq!(nearest(typed, keys), Some(meant), "{typed}");
        }
    }

    #[test]
    fn a_word_that_is_like_none_finds_none() {
        assert_eq!(nearest("colour", ["symmetric_key", "method"]), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest("", ["y"]), None);
    }
}
