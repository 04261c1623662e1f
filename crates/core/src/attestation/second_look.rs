//! The looks that follow a verdict before it stands.
//!
//! A caller can be quicker than the engine's word about its container: the module's own
//! process calls before the event of its start was heard, a restarted container is known
//! by its former first process, and what the engine's `exec` left behind is known only
//! when the engine has told of it. So a verdict that such a delay can explain is reached
//! once more on newer facts. A verdict never gets better by a look that was not made, and
//! each kind of look is made at most once.

use super::DenyReason;

/// The last kind of look that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Looked {
    /// None yet: the facts that were known when the caller asked.
    Known,
    /// The facts of the module, once more.
    Facts,
    /// The facts about the caller's own way into the container.
    Origin,
}

/// Signs that another look may end otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signs {
    /// The container was restarted, and the engine has not told of it yet.
    pub behind: bool,
    /// The caller is in the cgroup of the registered container.
    pub in_container: bool,
    /// The engine's `exec` may have left the caller behind.
    pub may_be_orphan: bool,
}

/// The step after a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The verdict stands.
    Stands,
    /// The engine's word is waited for, and the caller judged on it.
    AwaitFacts,
    /// The module is taken as one that does not run, for its first process is not known
    /// any more and the caller is in none of its containers.
    TakeAsStopped,
    /// The engine is asked how the caller came into the container.
    AskOrigin,
}

/// Returns what follows from `verdict`, which was reached after `looked`.
#[must_use]
pub fn second_look(looked: Looked, verdict: Result<(), DenyReason>, signs: Signs) -> Next {
    match (looked, verdict) {
        (Looked::Known, Err(DenyReason::NotADescendant | DenyReason::NotInModule))
            if signs.behind =>
        {
            if signs.in_container {
                Next::AwaitFacts
            } else {
                Next::TakeAsStopped
            }
        }
        (Looked::Known, Err(DenyReason::NotRunning | DenyReason::FactsUnknown))
            if signs.in_container =>
        {
            Next::AwaitFacts
        }
        (Looked::Known | Looked::Facts, Ok(())) if signs.may_be_orphan => Next::AskOrigin,
        _ => Next::Stands,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Signs = Signs { behind: true, in_container: true, may_be_orphan: true };

    #[test]
    fn a_verdict_that_the_engines_delay_can_explain_is_reached_again() {
        use DenyReason::{CallerChanged, FactsUnknown, NotADescendant, NotInModule, NotRunning};
        let signs = |behind, in_container| Signs { behind, in_container, may_be_orphan: false };
        let orphan = Signs { may_be_orphan: true, ..Signs::default() };
        let table = [
            // The module's own process was quicker than the event of its start.
            (Looked::Known, Err(NotRunning), signs(false, true), Next::AwaitFacts),
            (Looked::Known, Err(FactsUnknown), signs(false, true), Next::AwaitFacts),
            // A caller outside of the container gains nothing by a delay.
            (Looked::Known, Err(NotRunning), signs(false, false), Next::Stands),
            (Looked::Known, Err(FactsUnknown), signs(true, false), Next::Stands),
            // The container was restarted, and the former first process is no measure.
            (Looked::Known, Err(NotADescendant), signs(true, true), Next::AwaitFacts),
            (Looked::Known, Err(NotInModule), signs(true, true), Next::AwaitFacts),
            (Looked::Known, Err(NotADescendant), signs(true, false), Next::TakeAsStopped),
            (Looked::Known, Err(NotInModule), signs(true, false), Next::TakeAsStopped),
            // The facts are no older than the container.
            (Looked::Known, Err(NotADescendant), signs(false, true), Next::Stands),
            (Looked::Known, Err(NotInModule), signs(false, true), Next::Stands),
            // Another reason is none of the engine's delay.
            (Looked::Known, Err(CallerChanged), ALL, Next::Stands),
            // Nothing is known against the caller yet.
            (Looked::Known, Ok(()), orphan, Next::AskOrigin),
            (Looked::Facts, Ok(()), orphan, Next::AskOrigin),
            (Looked::Known, Ok(()), signs(true, true), Next::Stands),
            // Each look is made once.
            (Looked::Facts, Err(NotRunning), ALL, Next::Stands),
            (Looked::Facts, Err(NotADescendant), ALL, Next::Stands),
            (Looked::Origin, Ok(()), ALL, Next::Stands),
            (Looked::Origin, Err(NotADescendant), ALL, Next::Stands),
        ];
        for (looked, verdict, signs, expected) in table {
            let next = second_look(looked, verdict, signs);
            assert_eq!(next, expected, "{looked:?} {verdict:?} {signs:?}");
        }
    }

    #[test]
    fn no_refusal_is_looked_at_again_without_a_sign() {
        for verdict in [Ok(()), Err(DenyReason::NotRunning), Err(DenyReason::NotInModule)] {
            for looked in [Looked::Known, Looked::Facts, Looked::Origin] {
                assert_eq!(second_look(looked, verdict, Signs::default()), Next::Stands);
            }
        }
    }
}
