//! One caller before the checks: what it asks, what is registered and runs, and what the
//! kernel says of it.

use super::{
    Ancestor, Asked, Door, Evidence, ProcessInstance, Registration, Running, RunningFacts, Workload,
};
use crate::host::UnitName;
use crate::id::ContainerId;

/// Everything that a check may look at.
pub(super) struct Case<'a> {
    pub(super) door: &'a Door,
    pub(super) asked: &'a Asked<'a>,
    pub(super) registration: Option<&'a Registration>,
    pub(super) facts: &'a RunningFacts,
    pub(super) evidence: &'a Evidence,
}

/// Whatever is not known does not hold.
impl<'a> Case<'a> {
    fn workload(&self) -> Option<&'a Workload> {
        self.registration.map(|registration| &registration.workload)
    }

    fn running(&self) -> Option<&'a Running> {
        match self.facts {
            RunningFacts::Running(running) => Some(running),
            _ => None,
        }
    }

    /// The shared socket and the management socket are everybody's.
    pub(super) fn is_at_own_door(&self) -> bool {
        match self.door {
            Door::ModuleSocket(owner) => owner.name() == self.asked.module.name(),
            Door::LegacySocket | Door::ManagementSocket => true,
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.facts, RunningFacts::Stopped)
    }

    /// Not by name: `x` and `$x` share a container name and are two identities.
    pub(super) fn is_registered(&self) -> bool {
        self.registration.is_some_and(|it| it.module.hub_id() == self.asked.module.hub_id())
    }

    /// Facts of another kind than the registration are none.
    pub(super) fn facts_fit(&self) -> bool {
        let Some(workload) = self.workload() else { return false };
        let is_service = matches!(workload, Workload::Service { .. });
        match self.facts {
            RunningFacts::Unknown => false,
            RunningFacts::Stopped => true,
            RunningFacts::Running(_) => !is_service,
            RunningFacts::Host(_) => is_service,
        }
    }

    pub(super) fn runs_registered_container(&self) -> bool {
        let now = self.running().and_then(|running| running.container.as_ref());
        matches!(
            (self.workload(), now),
            (Some(Workload::Container { container, .. }), Some(now)) if now.container == *container
        )
    }

    /// A container has users and programs of the same number and content.
    pub(super) fn is_on_host(&self) -> bool {
        let snapshot = &self.evidence.snapshot;
        matches!(
            self.facts,
            RunningFacts::Host(host)
                if snapshot.pid_namespace == host.pid_namespace
                    && snapshot.user_namespace == host.user_namespace
                    && self.evidence.container.is_none()
        )
    }

    pub(super) fn is_in_unit(&self) -> bool {
        let Some(Workload::Service { unit, uid, executable }) = self.workload() else {
            return false;
        };
        if unit.as_ref().is_some_and(|unit| !unit.holds(&self.evidence.snapshot.cgroup)) {
            return false;
        }
        // By user and executable, or by nothing at all. What is in a user's own systemd
        // has the name that this user gives it.
        !unit.as_ref().is_none_or(UnitName::is_a_users) || (uid.is_some() && executable.is_some())
    }

    pub(super) fn has_user(&self) -> bool {
        let uid = self.evidence.snapshot.uid;
        match self.workload() {
            Some(Workload::Process { uid: registered, .. }) => *registered == uid,
            Some(Workload::Service { uid: registered, .. }) => *registered == Some(uid),
            _ => false,
        }
    }

    pub(super) fn is_in_module(&self) -> bool {
        let Some(running) = self.running() else { return false };
        match self.workload() {
            // Both directions: the id in the caller's cgroup path is this container's,
            // and the path lies under the cgroup of the container's own first process. A
            // forged group name elsewhere fails the second.
            Some(Workload::Container { container, .. }) => {
                self.evidence.container.as_ref() == Some(container)
                    && inside(&self.evidence.snapshot.cgroup, running)
            }
            // Without a cgroup of its own a host module is its process tree and nothing
            // else.
            Some(Workload::Process { .. }) => match running.cgroup {
                Some(_) => inside(&self.evidence.snapshot.cgroup, running),
                None => self.is_descendant(),
            },
            _ => false,
        }
    }

    pub(super) fn is_descendant(&self) -> bool {
        self.running().is_some_and(|running| {
            self.evidence.snapshot.process == running.init
                || below_init(self.evidence, running).is_some()
        })
    }

    /// True if the caller may stem from an engine `exec` that detached: the kernel makes
    /// an orphan a child of the container's first process, as if that had started it.
    ///
    /// A process that the engine brings in has a session of its own. So every process in
    /// the session of the container's first process is the module's.
    pub(super) fn is_after_exec(&self) -> bool {
        let Some(running) = self.running() else { return true };
        let Some(since) = running.exec_since else { return false };
        may_be_orphan(self.evidence, running).is_some_and(|orphan| orphan.start_time >= since)
    }

    pub(super) fn has_image(&self) -> bool {
        let now = self.running().and_then(|running| running.container.as_ref());
        matches!(
            (self.workload(), now),
            (Some(Workload::Container { image, .. }), Some(now)) if now.image == *image
        )
    }

    pub(super) fn has_options(&self) -> bool {
        let now = self.running().and_then(|running| running.container.as_ref());
        matches!(
            (self.workload(), now),
            (Some(Workload::Container { options, .. }), Some(now)) if now.options == *options
        )
    }

    /// True if the executable is the registered one; `None` if it was not measured or
    /// could not be compared.
    pub(super) fn executable_fits(&self) -> Option<bool> {
        let measurement = self.evidence.measurement?;
        match self.workload()? {
            Workload::Container { .. } => measurement.unmodified_from_image,
            Workload::Process { executable, .. }
            | Workload::Service { executable: Some(executable), .. } => {
                Some(measurement.digest == *executable)
            }
            Workload::Service { executable: None, .. } => None,
        }
    }

    pub(super) fn shares_user_namespace(&self) -> bool {
        let own = self.evidence.snapshot.user_namespace;
        self.running().is_some_and(|running| running.user_namespace == own)
    }

    pub(super) fn may_name_executable(&self) -> bool {
        let container = self.running().and_then(|running| running.container.as_ref());
        container.is_none_or(|container| container.names_executable)
    }

    /// True if the answers to the caller's system calls may not be the kernel's.
    pub(super) fn has_foreign_filter(&self) -> bool {
        let Some(running) = self.running() else { return true };
        match (self.evidence.snapshot.filters, running.filters) {
            (Some(now), Some(started_with)) => now > started_with,
            _ => false,
        }
    }

    pub(super) fn names_generation(&self) -> bool {
        let registered = self.registration.and_then(|it| it.generation.as_ref());
        match (self.asked.generation, registered) {
            (Some(asked), Some(registered)) => asked == registered.as_str(),
            _ => true,
        }
    }
}

/// True for a cgroup that is the module's, or below it.
fn inside(cgroup: &str, running: &Running) -> bool {
    running.cgroup.as_deref().is_some_and(|own| {
        // The root group holds everything, so it proves nothing.
        own != "/"
            && cgroup.strip_prefix(own).is_some_and(|rest| {
                // Another container below, put there by a `cgroup-parent` option, is not
                // the module.
                (rest.is_empty() || rest.starts_with('/'))
                    && !rest.split('/').any(names_a_container)
            })
            && !cgroup.split('/').any(|part| part == "..")
    })
}

/// True for a component of a cgroup path that has the form that engines give their
/// containers: `ID`, `NAME-ID`, `NAME-ID.scope`.
fn names_a_container(component: &str) -> bool {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let id = name.rsplit('-').next().unwrap_or(name);
    id.parse::<ContainerId>().is_ok()
}

/// The ancestor below the module's first process, and that process; one and the same if
/// the caller is it.
fn below_init<'a>(
    evidence: &'a Evidence,
    running: &Running,
) -> Option<(&'a Ancestor, &'a Ancestor)> {
    let at = evidence.ancestry.iter().position(|ancestor| ancestor.process == running.init)?;
    Some((&evidence.ancestry[at.saturating_sub(1)], &evidence.ancestry[at]))
}

/// The child of the module's first process from which the caller stems, if it could be an
/// orphan from outside the module's own tree for all that its session says.
#[must_use]
pub fn may_be_orphan(evidence: &Evidence, running: &Running) -> Option<ProcessInstance> {
    let (below, init) = below_init(evidence, running)?;
    (below.session != init.session).then_some(below.process)
}
