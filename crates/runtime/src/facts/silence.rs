//! Facts that still count while the engine is not heard. Pure.
//!
//! Engines give a container its image and options when they make it, and never others; to
//! run anything else they start another first process. A container whose first process
//! lives is therefore what it was, whoever does what to the engine. What an engine can do
//! unheard is bring a process into it by `exec`: so all that was started in a session of
//! its own since the engine was heard last is in doubt, as after an `exec` that was
//! heard.

use edgekeep_core::attestation::{ProcessInstance, RunningFacts};

use super::execs::earlier;

/// Returns the facts that are left of `heard` when the engine has been silent since a
/// moment (a start time).
pub(super) fn kept(
    heard: RunningFacts,
    since: u64,
    lives: impl FnOnce(ProcessInstance) -> bool,
) -> RunningFacts {
    match heard {
        RunningFacts::Running(mut running) if lives(running.init) => {
            running.exec_since = earlier(running.exec_since, Some(since));
            RunningFacts::Running(running)
        }
        // One that stood still, or that nobody knew, may run by now. Engines do not tell
        // of programs of the host.
        RunningFacts::Running(_)
        | RunningFacts::Stopped
        | RunningFacts::Unknown
        | RunningFacts::Host(_) => RunningFacts::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_core::attestation::Running;
    use proptest::prelude::*;

    use super::*;

    fn any_facts() -> impl Strategy<Value = RunningFacts> {
        let running = (1_u32..9, 0_u64..9, proptest::option::of(0_u64..20)).prop_map(
            |(pid, start_time, exec_since)| {
                RunningFacts::Running(Running {
                    init: ProcessInstance { pid, start_time },
                    user_namespace: 1,
                    cgroup: None,
                    container: None,
                    exec_since,
                    own_copy: None,
                    filters: None,
                })
            },
        );
        prop_oneof![Just(RunningFacts::Stopped), Just(RunningFacts::Unknown), running]
    }

    proptest! {
        #[test]
        fn silence_adds_doubt_and_never_takes_any(heard in any_facts(), since in 0_u64..20, alive in any::<bool>()) {
            let kept = kept(heard.clone(), since, |_| alive);
            match (heard, kept) {
                (RunningFacts::Running(heard), RunningFacts::Running(kept)) => {
                    prop_assert!(alive);
                    let marked = kept.exec_since.expect("doubt since then");
                    prop_assert!(marked <= since && heard.exec_since.is_none_or(|before| marked <= before));
                    prop_assert_eq!(Running { exec_since: heard.exec_since, ..kept }, heard, "and nothing else differs");
                }
                (RunningFacts::Running(_), kept) => prop_assert!(!alive && kept == RunningFacts::Unknown),
                (_, kept) => prop_assert_eq!(kept, RunningFacts::Unknown),
            }
        }

        #[test]
        fn the_process_that_is_looked_for_is_the_one_that_was_heard_of(heard in any_facts(), since in 0_u64..20) {
            if let RunningFacts::Running(running) = &heard {
                let init = running.init;
                let other = kept(heard.clone(), since, |process| process != init);
                prop_assert_eq!(other, RunningFacts::Unknown);
            }
        }
    }
}
