//! The table of checks. Each reason to refuse stands here once: with its word, its
//! sentences for people, the registrations it applies to, and the check itself. The
//! verdict, the list of checks, the explanation and the operators' guide come from it.
//!
//! The order is that of the checks: from the cheapest and most telling to the finest.

use serde::{Deserialize, Serialize};

use super::case::Case;
use super::{Holding, Policy, Registration, Workload, needs_measurement};

/// The point at which a check is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The look at the caller, before anything is compared.
    Caller,
    /// The comparison of the caller with a registration.
    Compared,
    /// The request, once the caller is known.
    Request,
    /// The route, whatever module is meant.
    Route,
}

use Stage::{Caller, Compared, Request, Route};

/// One check.
pub(super) struct Check {
    /// The reason for which it refuses.
    pub(super) reason: DenyReason,
    /// The point at which it is made.
    pub(super) stage: Stage,
    /// True for registrations that it is made for.
    pub(super) applies: fn(Option<&Registration>) -> bool,
    /// True if it refuses.
    pub(super) fails: fn(&Case<'_>) -> bool,
    /// The check in words.
    pub(super) explanation: Explanation,
}

/// A refusal in sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// The condition that holds when the check passes.
    pub check: &'static str,
    /// The cause of the refusal, if the check fails.
    pub cause: &'static str,
    /// The remedy against the cause.
    pub remedy: &'static str,
}

macro_rules! checks {
    ($(
        $(#[$doc:meta])*
        $reason:ident = $word:literal {
            check: $check:literal,
            cause: $cause:literal,
            remedy: $remedy:literal,
            stage: $stage:expr, applies: $applies:expr, fails: $fails:expr,
        }
    )*) => {
        /// Reasons to refuse a caller. One each; the text is stable, tests and audit
        /// readers rely on it.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error,
        )]
        #[non_exhaustive]
        pub enum DenyReason {
            $(
                $(#[$doc])*
                #[serde(rename = $word)]
                #[error($word)]
                $reason,
            )*
        }

        impl DenyReason {
            /// Every reason, in the order of the checks.
            pub const ALL: [Self; CHECKS.len()] = [$(Self::$reason),*];
        }

        /// Every check, in order.
        pub(super) static CHECKS: [Check; [$($word),*].len()] = [$(
            Check {
                reason: DenyReason::$reason,
                stage: $stage,
                applies: $applies,
                fails: $fails,
                explanation: Explanation { check: $check, cause: $cause, remedy: $remedy },
            }
        ),*];
    };
}

checks! {
    /// The socket belongs to another module.
    SocketOfAnotherModule = "socket-of-another-module" {
        check: "it asks on its own socket",
        cause: "It asked for a module on a socket that was made for another one.",
        remedy: "Do not mount another module's socket folder; use the address in \
                 IOTEDGE_WORKLOADURI, and ask with the module's own id (IOTEDGE_MODULEID).",
        stage: Compared, applies: always, fails: |case| !case.is_at_own_door(),
    }

    /// No module of that name is registered.
    NotRegistered = "not-registered" {
        check: "the module is registered",
        cause: "This daemon has no registration of that module: it was not created through the \
                management API, or its registration was removed.",
        remedy: "Have the deployment create the module. A container with the module's name that \
                 something else made has to be removed first.",
        stage: Compared, applies: always, fails: |case| !case.is_registered(),
    }

    /// The container engine has not been heard since it or the daemon started.
    FactsUnknown = "facts-unknown" {
        check: "it is known what runs",
        cause: "It is not known what runs: the container engine has not been heard since it or \
                this daemon started, or since the module's container was started.",
        remedy: "Look at the line `engine` in `edgekeep status`, and start the container engine. \
                 The module is served as soon as the engine is heard.",
        stage: Compared, applies: registered, fails: |case| !case.facts_fit(),
    }

    /// The module does not run.
    NotRunning = "not-running" {
        check: "the module runs",
        cause: "The module is known not to run, so nobody can be it.",
        remedy: "Start it: `edgekeep restart MODULE`. If it ends again, `edgekeep logs MODULE` \
                 says why.",
        stage: Compared, applies: registered, fails: |case| case.is_stopped(),
    }

    /// A debugger is attached to the process.
    Traced = "traced" {
        check: "no debugger is attached",
        cause: "A debugger or tracer (gdb, strace) is attached to the process; what it asks may \
                be the tracer's wish.",
        remedy: "Detach it. The number of the tracer's process is in the line `tracer`.",
        stage: Compared, applies: registered, fails: |case| case.evidence.snapshot.tracer != 0,
    }

    /// The container that runs is not the one that was registered.
    ContainerChanged = "container-changed" {
        check: "the registered container runs",
        cause: "Another container than the registered one has the module's name: it was made \
                behind the daemon's back.",
        remedy: "Remove that container with the engine's own tool; the agent creates the module \
                 anew.",
        stage: Compared, applies: container, fails: |case| !case.runs_registered_container(),
    }

    /// The process is in a container or another namespace than the host's.
    NotOnHost = "not-on-host" {
        check: "it runs on the host itself, in no container or namespace of its own",
        cause: "The module is registered as a service of the host, and the process is in a \
                container or in namespaces of its own.",
        remedy: "Run the service on the host without PrivateUsers and the like, or make it a \
                 container module.",
        stage: Compared, applies: service, fails: |case| !case.is_on_host(),
    }

    /// The process is not in the cgroup of the registered systemd unit.
    NotInUnit = "not-in-unit" {
        check: "it is in the registered unit's control group",
        cause: "The process is not in the control group of the systemd unit, or the service is \
                registered with too little to know it by.",
        remedy: "Start the program by its unit, and see that [host_services] names that unit, or \
                 both a user and an executable.",
        stage: Compared, applies: by_unit, fails: |case| !case.is_in_unit(),
    }

    /// The process runs as another user than the module.
    OtherUser = "other-user" {
        check: "it runs as the module's user",
        cause: "The process runs as another user than the registered one.",
        remedy: "Run the program as the user in its entry of [host_modules] or [host_services], \
                 or correct that entry.",
        stage: Compared, applies: by_user, fails: |case| !case.has_user(),
    }

    /// The process is not in the module's container or cgroup.
    NotInModule = "not-in-module" {
        check: "it is in the module's container or group",
        cause: "The process is outside the module's container, or outside the host module's \
                process group or tree.",
        remedy: "Ask from inside the module. If the caller is another module, it uses the wrong \
                 module id or a socket that is not its own.",
        stage: Compared, applies: started, fails: |case| !case.is_in_module(),
    }

    /// The process is in the container, but was not started by the module's first process
    /// (engine `exec`).
    NotADescendant = "not-a-descendant" {
        check: "it stems from the module's first process",
        cause: "The process is in the container, but something else than the module started it, \
                as the engine's exec does.",
        remedy: "Have the module start the program itself. For debugging only, set this module's \
                 policy to \"process\" in [module_policies] and create the module anew.",
        stage: Compared, applies: by_descent, fails: |case| !case.is_descendant(),
    }

    /// The process comes, in a session of its own, from a child of the module's first
    /// process that is younger than an engine `exec` into the container: whether the
    /// module or the `exec` started it cannot be told.
    AfterExec = "after-exec" {
        check: "the engine's exec did not leave it behind",
        cause: "After an exec of the engine into the container (health checks of the engine too) \
                this process was started in a session of its own: whether the module or the exec \
                started it cannot be told.",
        remedy: "Restart the module: `edgekeep restart MODULE`. For health checks, let the \
                 module check itself, or keep its programs in the first process's session (no \
                 setsid).",
        stage: Compared, applies: by_image, fails: |case| case.is_after_exec(),
    }

    /// The container runs another image than the registered one.
    ImageChanged = "image-changed" {
        check: "it runs the registered image",
        cause: "The container runs another image than the one that was measured when the module \
                was created.",
        remedy: "Remove the container with the engine's own tool; the agent creates the module \
                 anew from the right image.",
        stage: Compared, applies: by_image, fails: |case| !case.has_image(),
    }

    /// The container was created with other options than the registered ones.
    OptionsChanged = "options-changed" {
        check: "it was created with the registered options",
        cause: "The container was created with other options than the registered ones.",
        remedy: "Remove the container with the engine's own tool; the agent creates the module \
                 anew with its own options.",
        stage: Compared, applies: by_image, fails: |case| !case.has_options(),
    }

    /// The executable has no name in any folder, and is not the daemon's own copy:
    /// memory, or a file that was removed.
    ExecutableNameless = "executable-nameless" {
        check: "its executable has a name, or is the daemon's own copy",
        cause: "It executes memory, or a file that was removed since: such a file can be \
                rewritten while it runs.",
        remedy: "Start the program from its file. After an update of that file restart what \
                 runs: the module, or the service's unit.",
        stage: Compared, applies: measured, fails: elsewhere,
    }

    /// The executable is where its content may change while it runs.
    ExecutableNotFinal = "executable-not-final" {
        check: "its executable cannot be changed while it runs",
        cause: "Its executable is on FUSE, on a network file system or on layers that others may \
                write to, or this kernel lets running programs be rewritten, as Linux 6.11 does.",
        remedy: "Put the program on the machine's own disk, owned by root, or set the policy \
                 \"image\" in [module_policies]. For the kernel: `edgekeep status` warns if it \
                 is that; update it.",
        stage: Compared, applies: measured, fails: elsewhere,
    }

    /// The executable could not be read or compared.
    ExecutableUnmeasured = "executable-unmeasured" {
        check: "its executable can be measured",
        cause: "The policy asks for the executable to be measured, and it could not be read or \
                compared.",
        remedy: "The policy \"executable\" needs an engine that keeps images in overlay folders, \
                 and an executable below 1 GiB; else set the policy \"image\" in \
                 [module_policies].",
        stage: Compared, applies: measured, fails: |case| case.executable_fits().is_none(),
    }

    /// The executable is not the registered one, or not an unmodified file of the image.
    ExecutableChanged = "executable-changed" {
        check: "its executable is the registered one",
        cause: "The program is not the registered one, or not an unmodified file of the image.",
        remedy: "Build the program into the image. On the host, write its new digest (sha256sum) \
                 into [host_modules] or [host_services], run `edgekeep config apply` and restart \
                 moduled, unless nobody should have changed it.",
        stage: Compared, applies: measured, fails: |case| case.executable_fits() == Some(false),
    }

    /// The caller is in another user namespace than its module: there it has capabilities
    /// with which a process names another file than the one it executes. A process that
    /// shares memory with one in such a namespace, and is in none itself, is not seen by
    /// this: that call has to be refused to it (see `measured.rs` of the crate `sandbox`,
    /// and `docs/threat-model.md`).
    OtherUserNamespace = "other-user-namespace" {
        check: "it is in the module's user namespace",
        cause: "The process made a user namespace of its own, in which it could pass for another \
                program.",
        remedy: "Run the program without a user namespace of its own, or set the policy \
                 \"image\" in [module_policies].",
        stage: Compared, applies: measured_start, fails: |case| !case.shares_user_namespace(),
    }

    /// The container's options let a process name another file than the one it executes.
    ExecutableOfItsChoice = "executable-of-its-choice" {
        check: "its container cannot name another file as its executable",
        cause: "The container is privileged or unconfined, or has a capability with which a \
                process names another file than the one it executes (sys_admin, sys_resource, \
                checkpoint_restore).",
        remedy: "Create the module without it, or set the policy \"image\" in [module_policies].",
        stage: Compared, applies: measured_container, fails: |case| case.may_name_executable(),
    }

    /// The process has more filters of system calls than its module was started with:
    /// another program may answer its calls.
    ForeignFilter = "foreign-filter" {
        check: "no filter of system calls was put on it since its module started",
        cause: "A filter of system calls was put on the process after its container was started. \
                If another program did, that one may answer the calls of this one.",
        remedy: "Have the program put no filter on itself, or set the policy \"image\" in \
                 [module_policies].",
        stage: Compared, applies: measured_container, fails: |case| case.has_foreign_filter(),
    }

    /// The caller holds its connection in a descriptor that survives exec: another
    /// program may have connected.
    ConnectionInheritable = "connection-inheritable" {
        check: "it holds its connection in a descriptor that is closed on exec",
        cause: "The connection is in a descriptor that survives exec, so another program may \
                have made it.",
        remedy: "Open the socket with SOCK_CLOEXEC, as common HTTP libraries do, or set the \
                 policy \"image\" in [module_policies].",
        stage: Compared, applies: measured, fails: |case| case.evidence.holding == Holding::Inheritable,
    }

    /// The process that connected does not hold the connection any more: another one
    /// reads the answers.
    ConnectionNotHeld = "connection-not-held" {
        check: "it still holds its connection",
        cause: "The process that connected does not have the connection any more: it was passed \
                to another one, or closed.",
        remedy: "Let each process make its own connection, and wait for the answer before \
                 closing it.",
        stage: Compared, applies: measured, fails: |case| case.evidence.holding == Holding::NotHeld,
    }

    /// The request names another generation than the registered one.
    GenerationMismatch = "generation-mismatch" {
        check: "it names the identity's own generation",
        cause: "The request names another generation than the identity has: the identity was \
                made anew, or the program keeps an old address.",
        remedy: "Restart the module, so that it reads IOTEDGE_MODULEGENERATIONID again. If that \
                 is old, let the agent create the module anew.",
        stage: Request, applies: registered, fails: |case| !case.names_generation(),
    }

    /// A certificate was asked for a name that is another module's.
    NameOfAnotherModule = "name-of-another-module" {
        check: "the name in the certificate is its own",
        cause: "It asked for a certificate with the name of another module.",
        remedy: "Ask for the module's own name or the device's host name.",
        stage: Request, applies: never, fails: elsewhere,
    }

    /// The caller is who it says, and the configuration does not let it do this.
    NotGranted = "not-granted" {
        check: "the configuration lets it do this",
        cause: "The caller is who it says it is, and its entry in the configuration does not let \
                it do this.",
        remedy: "If it should, add the name to `approves` in its entry of [host_modules] or \
                 [host_services], run `edgekeep config apply` and restart moduled.",
        stage: Request, applies: never, fails: elsewhere,
    }

    /// The route is for operators (root, the daemon's own user), and the caller is none.
    NotAnOperator = "not-an-operator" {
        check: "an operator asks",
        cause: "The route is for operators, and the caller is neither root nor the daemon's own \
                user.",
        remedy: "Run the command as root (sudo), or as the user that moduled runs as.",
        stage: Route, applies: never, fails: elsewhere,
    }

    /// The peer's process id is not visible in the daemon's pid namespace.
    PidNotVisible = "pid-not-visible" {
        check: "the process is visible",
        cause: "The caller's process cannot be seen from the daemon's pid namespace.",
        remedy: "Run moduled in the host's pid namespace, not in a container.",
        stage: Caller, applies: never, fails: elsewhere,
    }

    /// The process that connected has ended.
    CallerGone = "caller-gone" {
        check: "the process lives",
        cause: "The process that connected has ended before it could be looked at.",
        remedy: "Let the process that connects wait for the answer itself. A short-lived child \
                 that asks is refused once it has ended.",
        stage: Caller, applies: never, fails: elsewhere,
    }

    /// The process changed its program, user or cgroup while it was measured or since it
    /// connected.
    CallerChanged = "caller-changed" {
        check: "it did not change while it was looked at",
        cause: "The process changed its program, user or control group after it connected.",
        remedy: "Connect after exec and after a change of user, and try again.",
        stage: Caller, applies: never, fails: elsewhere,
    }

    /// Bytes came from another process than the one that connected (inherited or passed
    /// socket).
    SenderChanged = "sender-changed" {
        check: "who sends is who connected",
        cause: "Bytes came from another process than the one that connected: the connection was \
                inherited or passed on.",
        remedy: "Let each process make its own connection; a server that forks must not share \
                 one with its children.",
        stage: Caller, applies: never, fails: elsewhere,
    }
}

impl DenyReason {
    /// The check that refuses for this reason.
    pub(super) fn check(self) -> &'static Check {
        // In the table's order, which a test checks.
        &CHECKS[self as usize]
    }

    /// The reason in sentences.
    #[must_use]
    pub fn explained(self) -> Explanation {
        self.check().explanation
    }
}

type Registered<'a> = Option<&'a Registration>;

fn always(_: Registered<'_>) -> bool {
    true
}

/// Returns false for every registration. Such a check is asked for by some requests only,
/// and other places in the daemon make it.
fn never(_: Registered<'_>) -> bool {
    false
}

/// The check is made where the evidence is gathered, or by the route: nothing fails here.
fn elsewhere(_: &Case<'_>) -> bool {
    false
}

fn registered(registration: Registered<'_>) -> bool {
    registration.is_some()
}

fn container(registration: Registered<'_>) -> bool {
    matches!(registration, Some(Registration { workload: Workload::Container { .. }, .. }))
}

fn service(registration: Registered<'_>) -> bool {
    matches!(registration, Some(Registration { workload: Workload::Service { .. }, .. }))
}

/// A module that moduled or its engine started.
fn started(registration: Registered<'_>) -> bool {
    registered(registration) && !service(registration)
}

/// A service that is known by a unit, or by too little.
fn by_unit(registration: Registered<'_>) -> bool {
    matches!(
        registration.map(|it| &it.workload),
        Some(Workload::Service { unit, uid, executable })
            if unit.is_some() || uid.is_none() || executable.is_none()
    )
}

fn by_user(registration: Registered<'_>) -> bool {
    matches!(
        registration.map(|it| &it.workload),
        Some(Workload::Process { .. } | Workload::Service { uid: Some(_), .. })
    )
}

fn by_descent(registration: Registered<'_>) -> bool {
    started(registration) && registration.is_some_and(|it| it.policy >= Policy::Image)
}

fn by_image(registration: Registered<'_>) -> bool {
    container(registration) && by_descent(registration)
}

fn measured(registration: Registered<'_>) -> bool {
    registration.is_some_and(needs_measurement)
}

/// Returns true for a module that is measured and that moduled or its engine started. For
/// a service this check is part of another: the service must be on the host, and so in
/// the host's own user namespace.
fn measured_start(registration: Registered<'_>) -> bool {
    measured(registration) && started(registration)
}

fn measured_container(registration: Registered<'_>) -> bool {
    measured(registration) && container(registration)
}
