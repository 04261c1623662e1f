//! The decision on how an update of a module is finished or taken back, wherever it was
//! cut off. Pure.
//!
//! A host module is updated in its place: what it was is kept beside what it becomes,
//! until that has started ([`settle_host`]). A container is replaced by another. The old
//! container is kept aside, stopped and under another name, until the new one is made,
//! registered and started. What was begun is written down before, so that after a crash
//! the same question has the same answer.

use serde::{Deserialize, Serialize};

use crate::attestation::{Registration, Workload};
use crate::id::{ContainerId, ModuleId};

/// An update that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// The module.
    pub module: ModuleId,
    /// The container that is replaced.
    pub old: ContainerId,
    /// Its registration, if it had one.
    pub registration: Option<Registration>,
    /// True if the old container ran.
    pub ran: bool,
    /// True if the new container is to be started.
    pub start: bool,
}

/// The way to settle an update that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The new container is whole: start it if that was asked for, remove the old one.
    Finish,
    /// Remove what there is of the new one, and put the old one back.
    TakeBack,
    /// Neither is there: forget it.
    Forget,
}

impl Replacement {
    /// The name of the old container while it is aside. It holds its id, so that no
    /// module's is like it by accident.
    #[must_use]
    pub fn aside_name(&self) -> String {
        format!("{}-replaced-{}", self.module.name(), &self.old.as_str()[..12])
    }

    /// Decides how to settle the update. The decision depends on the module's
    /// registration, on the container that has the module's name, and on whether the old
    /// container is still there.
    #[must_use]
    pub fn settle(
        &self,
        registration: Option<&Registration>,
        named: Option<&ContainerId>,
        old_is_there: bool,
    ) -> Settlement {
        let registered = registration.and_then(|registration| match &registration.workload {
            Workload::Container { container, .. } => Some(container),
            Workload::Process { .. } | Workload::Service { .. } => None,
        });
        match named {
            Some(named) if *named != self.old && registered == Some(named) => Settlement::Finish,
            _ if old_is_there => Settlement::TakeBack,
            _ => Settlement::Forget,
        }
    }
}

/// The process of a host module that runs after an update was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// The process that ran before the update.
    Old,
    /// One that was started since.
    New,
    /// None.
    Nothing,
}

/// Decides how to settle an update of a host module that was cut off. The new program is
/// registered after the old process was stopped and before the new one is started.
#[must_use]
pub fn settle_host(runs: Runs, new_is_registered: bool) -> Settlement {
    match runs {
        Runs::New | Runs::Nothing if new_is_registered => Settlement::Finish,
        Runs::Old | Runs::New | Runs::Nothing => Settlement::TakeBack,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attestation::Policy;
    use crate::digest::Sha256Digest;

    fn container(digit: char) -> ContainerId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn registered(container: ContainerId) -> Registration {
        let digest = Sha256Digest::new([0; 32]);
        Registration {
            module: "m1".parse().unwrap(),
            generation: None,
            policy: Policy::Image,
            workload: Workload::Container { container, image: digest, options: digest },
        }
    }

    fn begun() -> Replacement {
        let old = container('a');
        let registration = Some(registered(old.clone()));
        Replacement { module: "m1".parse().unwrap(), old, registration, ran: true, start: true }
    }

    /// The steps of an update, as what is seen after each: the registration, the module's
    /// name, the old container.
    fn steps() -> [(Registration, Option<ContainerId>, bool); 5] {
        let (old, new) = (container('a'), container('b'));
        [
            (registered(old.clone()), Some(old.clone()), true),
            (registered(old.clone()), None, true),
            (registered(old), Some(new.clone()), true),
            (registered(new.clone()), Some(new.clone()), true),
            (registered(new.clone()), Some(new), false),
        ]
    }

    #[test]
    fn an_update_that_was_cut_off_is_taken_back_until_the_new_container_is_registered() {
        let settled = steps().map(|(registration, named, there)| {
            begun().settle(Some(&registration), named.as_ref(), there)
        });
        use Settlement::{Finish, TakeBack};
        assert_eq!(settled, [TakeBack, TakeBack, TakeBack, Finish, Finish]);
        assert_eq!(begun().settle(None, None, false), Settlement::Forget);
        assert_eq!(begun().aside_name(), "m1-replaced-aaaaaaaaaaaa");
    }

    #[test]
    fn an_update_of_a_host_module_is_finished_only_with_what_is_registered_and_never_over_what_still_runs()
     {
        use Settlement::{Finish, TakeBack};
        // Its steps: begun, stopped, registered, started.
        let steps =
            [(Runs::Old, false), (Runs::Nothing, false), (Runs::Nothing, true), (Runs::New, true)];
        assert_eq!(
            steps.map(|(runs, registered)| settle_host(runs, registered)),
            [TakeBack, TakeBack, Finish, Finish]
        );
        // The new one may be registered as the old one was: same content, same user.
        assert_eq!(
            (settle_host(Runs::Old, true), settle_host(Runs::New, false)),
            (TakeBack, TakeBack)
        );
    }

    proptest! {
        #[test]
        fn the_old_container_is_never_given_up_without_a_registered_new_one(
            registration in prop::option::of("[a-c]"), named in prop::option::of("[a-c]"), there in any::<bool>(),
        ) {
            let id = |text: &String| container(text.chars().next().unwrap_or('a'));
            let registration = registration.as_ref().map(|text| registered(id(text)));
            let named = named.as_ref().map(id);
            if begun().settle(registration.as_ref(), named.as_ref(), there) == Settlement::Finish {
                prop_assert_ne!(named.as_ref(), Some(&begun().old));
                prop_assert_eq!(registration, named.map(registered));
            }
        }
    }
}
