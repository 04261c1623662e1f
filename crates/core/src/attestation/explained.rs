//! Each refusal for people: what is checked, what it means that the check fails, and what
//! to do then.

use super::DenyReason;

/// A refusal in sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// What holds when the check passes.
    pub check: &'static str,
    /// What is so if it fails.
    pub cause: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

impl DenyReason {
    /// All of them.
    pub const ALL: [Self; 31] = [
        Self::SocketOfAnotherModule,
        Self::NotRegistered,
        Self::FactsUnknown,
        Self::NotRunning,
        Self::Traced,
        Self::ContainerChanged,
        Self::NotInModule,
        Self::NotADescendant,
        Self::AfterExec,
        Self::ImageChanged,
        Self::OptionsChanged,
        Self::OtherUser,
        Self::NotOnHost,
        Self::NotInUnit,
        Self::ExecutableNameless,
        Self::ExecutableNotFinal,
        Self::ExecutableUnmeasured,
        Self::ExecutableChanged,
        Self::OtherUserNamespace,
        Self::ExecutableOfItsChoice,
        Self::ForeignFilter,
        Self::ConnectionInheritable,
        Self::ConnectionNotHeld,
        Self::GenerationMismatch,
        Self::NameOfAnotherModule,
        Self::NotGranted,
        Self::NotAnOperator,
        Self::PidNotVisible,
        Self::CallerGone,
        Self::CallerChanged,
        Self::SenderChanged,
    ];

    /// The reason in sentences.
    #[must_use]
    pub fn explained(self) -> Explanation {
        let (check, cause, remedy) = match self {
            Self::SocketOfAnotherModule => (
                "it asks on its own socket",
                "It asked for a module on a socket that was made for another one.",
                "Do not mount another module's socket folder; use the address in IOTEDGE_WORKLOADURI, and ask with the \
                 module's own id (IOTEDGE_MODULEID).",
            ),
            Self::NotRegistered => (
                "the module is registered",
                "This daemon has no registration of that module: it was not created through the management API, or its \
                 registration was removed.",
                "Have the deployment create the module. A container with the module's name that something else made has \
                 to be removed first.",
            ),
            Self::FactsUnknown => (
                "it is known what runs",
                "It is not known what runs: the container engine has not been heard since it or this daemon started, or \
                 since the module's container was started.",
                "Look at the line `engine` in `edgekeep status`, and start the container engine. The module is served as \
                 soon as the engine is heard.",
            ),
            Self::NotRunning => (
                "the module runs",
                "The module is known not to run, so nobody can be it.",
                "Start it: `edgekeep restart MODULE`. If it ends again, `edgekeep logs MODULE` says why.",
            ),
            Self::Traced => (
                "no debugger is attached",
                "A debugger or tracer (gdb, strace) is attached to the process; what it asks may be the tracer's wish.",
                "Detach it. The number of the tracer's process is in the line `tracer`.",
            ),
            Self::ContainerChanged => (
                "the registered container runs",
                "Another container than the registered one has the module's name: it was made behind the daemon's back.",
                "Remove that container with the engine's own tool; the agent creates the module anew.",
            ),
            Self::NotInModule => (
                "it is in the module's container or group",
                "The process is outside the module's container, or outside the host module's process group or tree.",
                "Ask from inside the module. If the caller is another module, it uses the wrong module id or a socket that \
                 is not its own.",
            ),
            Self::NotADescendant => (
                "it stems from the module's first process",
                "The process is in the container, but something else than the module started it, as the engine's exec does.",
                "Have the module start the program itself. For debugging only, set this module's policy to \"process\" in \
                 [module_policies] and create the module anew.",
            ),
            Self::AfterExec => (
                "the engine's exec did not leave it behind",
                "After an exec of the engine into the container (health checks of the engine too) this process was \
                 started in a session of its own: whether the module or the exec started it cannot be told.",
                "Restart the module: `edgekeep restart MODULE`. For health checks, let the module check itself, or keep its \
                 programs in the first process's session (no setsid).",
            ),
            Self::ImageChanged => (
                "it runs the registered image",
                "The container runs another image than the one that was measured when the module was created.",
                "Remove the container with the engine's own tool; the agent creates the module anew from the right image.",
            ),
            Self::OptionsChanged => (
                "it was created with the registered options",
                "The container was created with other options than the registered ones.",
                "Remove the container with the engine's own tool; the agent creates the module anew with its own options.",
            ),
            Self::OtherUser => (
                "it runs as the module's user",
                "The process runs as another user than the registered one.",
                "Run the program as the user in its entry of [host_modules] or [host_services], or correct that entry.",
            ),
            Self::NotOnHost => (
                "it runs on the host itself, in no container or namespace of its own",
                "The module is registered as a service of the host, and the process is in a container or in namespaces of \
                 its own.",
                "Run the service on the host without PrivateUsers and the like, or make it a container module.",
            ),
            Self::NotInUnit => (
                "it is in the registered unit's control group",
                "The process is not in the control group of the systemd unit, or the service is registered with too little \
                 to know it by.",
                "Start the program by its unit, and see that [host_services] names that unit, or both a user and an \
                 executable.",
            ),
            Self::ExecutableNameless => (
                "its executable has a name, or is the daemon's own copy",
                "It executes memory, or a file that was removed since: such a file can be rewritten while it runs.",
                "Start the program from its file. After an update of that file restart what runs: the module, or the \
                 service's unit.",
            ),
            Self::ExecutableNotFinal => (
                "its executable cannot be changed while it runs",
                "Its executable is on FUSE, on a network file system or on layers that others may write to, or this kernel \
                 lets running programs be rewritten, as Linux 6.11 does.",
                "Put the program on the machine's own disk, owned by root, or set the policy \"image\" in \
                 [module_policies]. For the kernel: `edgekeep status` warns if it is that; update it.",
            ),
            Self::ExecutableUnmeasured => (
                "its executable can be measured",
                "The policy asks for the executable to be measured, and it could not be read or compared.",
                "The policy \"executable\" needs an engine that keeps images in overlay folders, and an executable below 1 \
                 GiB; else set the policy \"image\" in [module_policies].",
            ),
            Self::ExecutableChanged => (
                "its executable is the registered one",
                "The program is not the registered one, or not an unmodified file of the image.",
                "Build the program into the image. On the host, write its new digest (sha256sum) into [host_modules] or \
                 [host_services], run `edgekeep config apply` and restart moduled, unless nobody should have changed it.",
            ),
            Self::OtherUserNamespace => (
                "it is in the module's user namespace",
                "The process made a user namespace of its own, in which it could pass for another program.",
                "Run the program without a user namespace of its own, or set the policy \"image\" in [module_policies].",
            ),
            Self::ExecutableOfItsChoice => (
                "its container cannot name another file as its executable",
                "The container is privileged or unconfined, or has a capability with which a process names another file than \
                 the one it executes (sys_admin, sys_resource, checkpoint_restore).",
                "Create the module without it, or set the policy \"image\" in [module_policies].",
            ),
            Self::ForeignFilter => (
                "no filter of system calls was put on it since its module started",
                "A filter of system calls was put on the process after its container was started. If another program did, \
                 that one may answer the calls of this one.",
                "Have the program put no filter on itself, or set the policy \"image\" in [module_policies].",
            ),
            Self::ConnectionInheritable => (
                "it holds its connection in a descriptor that is closed on exec",
                "The connection is in a descriptor that survives exec, so another program may have made it.",
                "Open the socket with SOCK_CLOEXEC, as common HTTP libraries do, or set the policy \"image\" in \
                 [module_policies].",
            ),
            Self::ConnectionNotHeld => (
                "it still holds its connection",
                "The process that connected does not have the connection any more: it was passed to another one, or closed.",
                "Let each process make its own connection, and wait for the answer before closing it.",
            ),
            Self::GenerationMismatch => (
                "it names the identity's own generation",
                "The request names another generation than the identity has: the identity was made anew, or the program \
                 keeps an old address.",
                "Restart the module, so that it reads IOTEDGE_MODULEGENERATIONID again. If that is old, let the agent \
                 create the module anew.",
            ),
            Self::NameOfAnotherModule => (
                "the name in the certificate is its own",
                "It asked for a certificate with the name of another module.",
                "Ask for the module's own name or the device's host name.",
            ),
            Self::NotGranted => (
                "the configuration lets it do this",
                "The caller is who it says it is, and its entry in the configuration does not let it do this.",
                "If it should, add the name to `approves` in its entry of [host_modules] or [host_services], run `edgekeep \
                 config apply` and restart moduled.",
            ),
            Self::NotAnOperator => (
                "an operator asks",
                "The route is for operators, and the caller is neither root nor the daemon's own user.",
                "Run the command as root (sudo), or as the user that moduled runs as.",
            ),
            Self::PidNotVisible => (
                "the process is visible",
                "The caller's process cannot be seen from the daemon's pid namespace.",
                "Run moduled in the host's pid namespace, not in a container.",
            ),
            Self::CallerGone => (
                "the process lives",
                "The process that connected has ended before it could be looked at.",
                "Let the process that connects wait for the answer itself. A short-lived child that asks is refused once it \
                 has ended.",
            ),
            Self::CallerChanged => (
                "it did not change while it was looked at",
                "The process changed its program, user or control group after it connected.",
                "Connect after exec and after a change of user, and try again.",
            ),
            Self::SenderChanged => (
                "who sends is who connected",
                "Bytes came from another process than the one that connected: the connection was inherited or passed on.",
                "Let each process make its own connection; a server that forks must not share one with its children.",
            ),
        };
        Explanation { check, cause, remedy }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The names of all variants, as serde says them when it meets an unknown one: nobody
    /// keeps that list by hand.
    fn named_by_serde() -> BTreeSet<String> {
        let error =
            serde_json::from_str::<DenyReason>("\"?\"").expect_err("no such reason").to_string();
        error.split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn every_reason_is_in_the_list_once_and_is_written_as_it_is_shown() {
        let listed: BTreeSet<String> = DenyReason::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(listed.len(), DenyReason::ALL.len());
        assert_eq!(listed, named_by_serde());
        for reason in DenyReason::ALL {
            assert_eq!(serde_json::to_value(reason).expect("a word"), reason.to_string());
        }
    }

    #[test]
    fn every_reason_has_a_check_a_cause_and_a_remedy_of_its_own_in_whole_sentences() {
        let mut causes = BTreeSet::new();
        for reason in DenyReason::ALL {
            let Explanation { check, cause, remedy } = reason.explained();
            assert!(!check.is_empty() && !check.ends_with('.'), "{reason}");
            for text in [cause, remedy] {
                assert!(
                    text.ends_with('.') && text.starts_with(char::is_uppercase) && text.len() > 20,
                    "{reason}: {text}"
                );
                assert!(
                    !text.contains("  ") && !text.contains('|') && text.len() < 260,
                    "{reason}: {text}"
                );
            }
            assert!(causes.insert(cause), "{reason}");
        }
    }

    const BEGIN: &str = "<!-- reasons: written by a test of edgekeep-core -->\n";
    const END: &str = "<!-- end of reasons -->";

    fn table() -> String {
        let mut text = "| reason | what is so | what to do |\n|---|---|---|\n".to_owned();
        for reason in DenyReason::ALL {
            let Explanation { cause, remedy, .. } = reason.explained();
            text.push_str(&format!("| `{reason}` | {cause} | {remedy} |\n"));
        }
        text
    }

    /// `EDGEKEEP_BLESS=1` writes it.
    #[test]
    fn the_operators_guide_has_every_reason_as_the_program_tells_it() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
        let guide = std::fs::read_to_string(&path).expect("docs/operations.md");
        let (before, rest) = guide.split_once(BEGIN).expect("the begin of the table");
        let (shown, after) = rest.split_once(END).expect("the end of the table");
        if std::env::var_os("EDGEKEEP_BLESS").is_some() {
            std::fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table()))
                .expect("written");
            return;
        }
        assert!(
            shown == table(),
            "docs/operations.md is behind the code: run this test with EDGEKEEP_BLESS=1"
        );
    }
}
