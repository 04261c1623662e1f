//! Suites that run one after the other: one that fails keeps none of the others from
//! running, and the end names all that failed.

use std::time::{Duration, Instant};

use crate::command::Failed;
use crate::interrupt::{self, Interrupted};

/// The outcomes of the suites so far, in the order in which they ran.
#[derive(Default)]
pub(crate) struct Outcomes {
    suites: Vec<Suite>,
}

struct Suite {
    name: String,
    took: Duration,
    result: anyhow::Result<()>,
}

impl Outcomes {
    /// Runs one suite and keeps its outcome.
    ///
    /// # Errors
    /// The task was told to stop; a suite that fails is no error here.
    pub(crate) fn run(
        &mut self,
        name: &str,
        suite: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let begin = Instant::now();
        let result = interrupt::check().map_err(Into::into).and_then(|()| suite());
        if let Err(error) = &result {
            if error.is::<Interrupted>() {
                return result;
            }
            // More suites may follow for a long time: the reader learns of the failure
            // now.
            eprintln!("--- {name}: {error:#}");
        }
        self.suites.push(Suite { name: name.to_owned(), took: begin.elapsed(), result });
        Ok(())
    }

    /// Prints one line a suite if there are several, and fails if one of them did.
    pub(crate) fn close(mut self) -> anyhow::Result<()> {
        if self.suites.len() <= 1 {
            return self.suites.pop().map_or(Ok(()), |suite| suite.result);
        }
        eprint!("{}", self.table());
        let failed = self.suites.iter().filter(|suite| suite.result.is_err());
        let names: Vec<&str> = failed.map(|suite| suite.name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let (count, all) = (names.len(), self.suites.len());
        Err(Failed::new(format!("{count} of {all} suites ({})", names.join(", "))).into())
    }

    fn table(&self) -> String {
        let line = |suite: &Suite| {
            let (word, why) = match &suite.result {
                Err(error) => ("failed", format!(": {}", first_line(error))),
                Ok(()) => ("ok", String::new()),
            };
            format!("{word:<7} {:>6.1} s  {}{why}\n", suite.took.as_secs_f64(), suite.name)
        };
        self.suites.iter().map(line).collect()
    }
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_that_fails_keeps_no_other_from_running_and_is_named_at_the_end() {
        let mut outcomes = Outcomes::default();
        let mut ran = Vec::new();
        for (name, fails) in [("one", false), ("two", true), ("three", false), ("four", true)] {
            let suite = || {
                ran.push(name);
                anyhow::ensure!(!fails, "{name} is broken\nin detail");
                Ok(())
            };
            outcomes.run(name, suite).unwrap();
        }
        assert_eq!(ran, ["one", "two", "three", "four"]);
        let table = outcomes.table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("ok ") && lines[0].ends_with(" one"), "{table}");
        assert!(
            lines[1].starts_with("failed ") && lines[1].ends_with(" two: two is broken"),
            "{table}"
        );
        assert_eq!(outcomes.close().unwrap_err().to_string(), "2 of 4 suites (two, four) failed");
    }

    #[test]
    fn suites_that_all_pass_are_no_failure() {
        let mut outcomes = Outcomes::default();
        outcomes.run("one", || Ok(())).unwrap();
        outcomes.run("two", || Ok(())).unwrap();
        outcomes.close().unwrap();
    }

    #[test]
    fn an_interrupt_ends_all_of_them() {
        let mut outcomes = Outcomes::default();
        let error = outcomes.run("one", || Err(Interrupted.into())).unwrap_err();
        assert!(error.is::<Interrupted>());
    }
}
