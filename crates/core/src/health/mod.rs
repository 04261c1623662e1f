//! The health of a device: the one list of problems, and the one decision made of it.
//!
//! Each daemon keeps a board of problems (`edgekeep_daemon::board`). A problem is a
//! [`Code`] of the one table, a [`Subject`], and a detail in words. [`Health::of`]
//! decides over all that are known; status, exit code, metrics, support bundle and the
//! agent's report show that decision and make none of their own.
//!
//! **To add a kind of problem:** add a line to the table in `code.rs` (name, word,
//! severity, cause, remedy: whole sentences; the place in the table is the place in the
//! list), run the tests of this crate with `EDGEKEEP_BLESS=1` so that
//! `docs/operations.md` has the line too, and call
//! `board.raise(Code::…, &Subject::…, detail)` where the problem is seen and
//! `board.clear(Code::…, &Subject::…)` where it is seen to be over. What is an event and
//! no state (a refused call) is told by `board.note(…, duration)` and lapses by itself.
//! What is found out by looking from time to time is set whole by
//! `board.replace(code, found)`. A kind has one severity: something that is first a
//! warning and then more is two kinds.

pub mod calls;
pub mod certificates;
mod code;
pub mod disk;
pub mod modules;
mod subject;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::foreign_text::cleaned;

pub use code::{Code, Explained};
pub use subject::{Kind, NAME_LIMIT, Subject};

/// Longest detail, in characters.
pub const DETAIL_LIMIT: usize = 512;

/// The part of the health that a problem takes. Ordered: the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work that the operator wants to work.
    Unhealthy,
    /// Everything works; something is survived, or will not go on like this.
    Warning,
}

impl Severity {
    /// Its word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unhealthy => "unhealthy",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Received")]
pub struct Problem {
    severity: Severity,
    code: Code,
    subject: Subject,
    detail: String,
    #[serde(serialize_with = "write_time")]
    since: OffsetDateTime,
}

impl Problem {
    /// A problem that is there since `since` (wall clock). The detail is bounded and
    /// cleaned; never a secret.
    #[must_use]
    pub fn new(code: Code, subject: Subject, detail: &str, since: OffsetDateTime) -> Self {
        Self {
            severity: code.severity(),
            code,
            subject,
            detail: cleaned(detail, DETAIL_LIMIT),
            since,
        }
    }

    /// Its kind.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The part of the health that it takes.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        self.severity
    }

    /// The thing that it is about.
    #[must_use]
    pub const fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Returns what is known of this problem beyond its kind. May be empty.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The whole of it in one line, for people: cause, subject and detail.
    #[must_use]
    pub fn sentence(&self) -> String {
        let cause = self.code.explained().cause;
        let cause = cause.strip_suffix('.').unwrap_or(cause);
        match (self.subject.kind(), self.detail.as_str()) {
            (Kind::Device, "") => cause.to_owned(),
            (Kind::Device, detail) => format!("{cause}: {detail}"),
            (_, "") => format!("{cause} ({})", self.subject),
            (_, detail) => format!("{cause} ({}): {detail}", self.subject),
        }
    }

    /// Begin, by the wall clock as it is now.
    #[must_use]
    pub const fn since(&self) -> OffsetDateTime {
        self.since
    }
}

impl fmt::Display for Problem {
    /// Code, subject and detail in one line, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.code, self.subject)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// The health in one word. Ordered: the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing is known against it.
    Healthy,
    /// Everything works; the warnings say what does not go on like this.
    HealthyWithWarnings,
    /// Something does not work that should.
    Unhealthy,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::HealthyWithWarnings => "healthy, with warnings",
            Self::Unhealthy => "not healthy",
        })
    }
}

/// The health of a device, and its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    verdict: Verdict,
    problems: Vec<Problem>,
}

impl Health {
    /// Decides over all problems that are known, whoever knows them. Two of the same kind
    /// about the same subject are one, with the longer history and the later words.
    #[must_use]
    pub fn of(problems: impl IntoIterator<Item = Problem>) -> Self {
        let mut ordered: BTreeMap<(Severity, Code, Subject), Problem> = BTreeMap::new();
        for problem in problems {
            let key = (problem.severity, problem.code, problem.subject.clone());
            match ordered.entry(key) {
                std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(problem)),
                std::collections::btree_map::Entry::Occupied(mut known) => {
                    let since = known.get().since.min(problem.since);
                    if problem.since >= known.get().since {
                        known.insert(problem);
                    }
                    known.get_mut().since = since;
                }
            }
        }
        let problems: Vec<Problem> = ordered.into_values().collect();
        let verdict = match problems.first().map(Problem::severity) {
            None => Verdict::Healthy,
            Some(Severity::Warning) => Verdict::HealthyWithWarnings,
            Some(Severity::Unhealthy) => Verdict::Unhealthy,
        };
        Self { verdict, problems }
    }

    /// The health in one word.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The reasons, the worst first, in an order that does not change by itself.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// A problem as another process wrote it: its texts are bounded and cleaned again, and
/// its severity counts, since a newer version may have kinds that have no line in this
/// one's table.
#[derive(Deserialize)]
struct Received {
    code: Code,
    subject: Subject,
    severity: Severity,
    #[serde(default)]
    detail: String,
    #[serde(deserialize_with = "read_time")]
    since: OffsetDateTime,
}

impl From<Received> for Problem {
    fn from(received: Received) -> Self {
        let Received { code, subject, severity, detail, since } = received;
        let subject = Subject::new(subject.kind(), subject.name());
        Self { severity, ..Self::new(code, subject, &detail, since) }
    }
}

fn write_time<S: serde::Serializer>(
    time: &OffsetDateTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    // Whole seconds: nobody needs more, and it reads well.
    let whole = time.replace_nanosecond(0).unwrap_or(*time);
    let text = whole
        .format(&time::format_description::well_known::Rfc3339)
        .map_err(<S::Error as serde::ser::Error>::custom)?;
    serializer.serialize_str(&text)
}

fn read_time<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<OffsetDateTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339)
        .map_err(<D::Error as serde::de::Error>::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-07-01 12:00 UTC);

    fn any_problem() -> impl Strategy<Value = Problem> {
        (prop::sample::select(Code::ALL), 0_u8..4, any::<String>(), 0_i64..100).prop_map(
            |(code, name, detail, ago)| {
                Problem::new(
                    code,
                    Subject::key(&format!("k{name}")),
                    &detail,
                    NOW - time::Duration::seconds(ago),
                )
            },
        )
    }

    proptest! {
        #[test]
        fn a_device_is_exactly_as_well_as_its_worst_problem_and_each_problem_is_shown_once(
            problems in prop::collection::vec(any_problem(), 0..40)
        ) {
            let health = Health::of(problems.clone());
            let worst = problems.iter().map(Problem::severity).min();
            prop_assert_eq!(health.verdict(), match worst {
                None => Verdict::Healthy,
                Some(Severity::Warning) => Verdict::HealthyWithWarnings,
                Some(Severity::Unhealthy) => Verdict::Unhealthy,
            });
            for problem in &problems {
                let same = |other: &&Problem| other.code == problem.code && other.subject == problem.subject;
                let shown: Vec<&Problem> = health.problems().iter().filter(same).collect();
                prop_assert_eq!(shown.len(), 1);
                let earliest = problems.iter().filter(same).map(Problem::since).min();
                prop_assert_eq!(Some(shown[0].since), earliest);
            }
            prop_assert!(health.problems().windows(2).all(|pair| pair[0].severity <= pair[1].severity));
            let mut backwards = problems.clone();
            backwards.reverse();
            let again: Vec<(Code, Subject)> = Health::of(backwards).problems.iter().map(|it| (it.code, it.subject.clone())).collect();
            let first: Vec<(Code, Subject)> = health.problems.iter().map(|it| (it.code, it.subject.clone())).collect();
            prop_assert_eq!(again, first);
        }

        #[test]
        fn a_problem_passes_through_json_unchanged(problem in any_problem()) {
            let text = serde_json::to_string(&problem).unwrap();
            prop_assert_eq!(serde_json::from_str::<Problem>(&text).unwrap(), problem);
        }
    }

    #[test]
    fn what_another_process_writes_is_bounded_and_cleaned_and_keeps_its_severity() {
        let text = serde_json::json!({
            "code": "from-the-future", "severity": "warning", "since": "2026-07-01T12:00:00Z",
            "subject": {"kind": "satellite", "name": "x\u{202e}".repeat(1000)}, "detail": "a\n".repeat(100_000),
        });
        let problem: Problem = serde_json::from_value(text).unwrap();
        assert_eq!(
            (problem.code, problem.severity, problem.subject.kind()),
            (Code::Unknown, Severity::Warning, Kind::Other)
        );
        assert!(
            problem.subject.name().chars().count() <= NAME_LIMIT
                && !problem.subject.name().contains('\u{202e}')
        );
        assert!(
            problem.detail().chars().count() <= DETAIL_LIMIT && !problem.detail().contains('\n')
        );
    }
}
