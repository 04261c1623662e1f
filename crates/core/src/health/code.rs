//! The table of problems: each kind once, with its word, its severity, its cause and its
//! remedy.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Severity;

/// Declares [`Code`] from the one table, so that no kind lacks a word, a severity or a
/// remedy.
macro_rules! codes {
    ($($name:ident = $word:literal, $severity:ident, $cause:literal, $remedy:literal;)*) => {
        /// A kind of problem. Its order is that of the table: what comes first is shown
        /// first.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $cause] $name,)*
        }

        impl Code {
            /// All of them, as the table has them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its short name, in lower case with hyphens.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The part of the health that it takes.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }

            /// The kind in sentences.
            #[must_use]
            pub const fn explained(self) -> Explained {
                match self { $(Self::$name => Explained { cause: $cause, remedy: $remedy },)* }
            }
        }
    };
}

/// A kind of problem in sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explained {
    /// The cause of the problem.
    pub cause: &'static str,
    /// The remedy against the cause.
    pub remedy: &'static str,
}

codes! {
    NotConfigured = "not-configured", Unhealthy,
        "The device is not configured.",
        "Write config.toml and run `edgekeep config apply`.";
    DaemonAway = "daemon-away", Unhealthy,
        "A daemon does not answer at its socket.",
        "Start the daemon (systemctl start edgekeep-NAME); its log says why it ended (journalctl -u edgekeep-NAME).";
    NoIdentity = "no-identity", Unhealthy,
        "The device has no identity, so no module gets one.",
        "The detail says why. Correct [provisioning] in config.toml and run `edgekeep config apply`, or wait until the \
         provisioning service can be reached.";
    AgentNotRunning = "agent-not-running", Unhealthy,
        "The agent does not run, so no deployment is applied.",
        "It is started again by itself; `edgekeep logs edgeAgent` says why it ends.";
    AgentNotStarted = "agent-not-started", Unhealthy,
        "The agent cannot be started, so no deployment is applied.",
        "Correct what the detail says; it is tried again by itself.";
    DeploymentNotMade = "deployment-not-made", Unhealthy,
        "The agent cannot apply the deployment as a whole: the manifest is missing or not understood.",
        "Correct the manifest as the detail says. The last good deployment stays in force until then.";
    ModuleNotApplied = "module-not-applied", Unhealthy,
        "The agent cannot bring a module into the state that the deployment wants.",
        "The detail says which step failed and why; the agent tries again by itself.";
    ModuleNotRunning = "module-not-running", Unhealthy,
        "A module that should run has not run for a minute or more.",
        "`edgekeep logs MODULE` says why it ended; `edgekeep restart MODULE` starts it again.";
    ModulePaused = "module-paused", Unhealthy,
        "A module is paused: something else than edgekeep told the engine to freeze it.",
        "The agent has it go on after some seconds, and so does `edgekeep restart MODULE`. If it is paused again, `docker events` \
         says when.";
    ContainerGone = "container-gone", Unhealthy,
        "Something else than edgekeep removed a module's container.",
        "The agent makes it anew if the deployment names the module; without an agent remove the module.";
    ContainerNotRestored = "container-not-restored", Unhealthy,
        "Something else than edgekeep changed a module's container or its network, which cannot be put right by itself.",
        "The detail says what is in the way and how to remove that. What is left then happens by itself.";
    ModuleEnded = "module-ended", Warning,
        "A module ended by itself with success and was not started again.",
        "Nothing if it is a job that is done. If it should run on, see its restart policy and `edgekeep logs MODULE`.";
    ModuleCallFailed = "module-call-failed", Unhealthy,
        "A call of a module failed for a reason on this device, not in the module.",
        "The detail names the call and the reason; if that is another daemon, see its own problems and its log. Shown until no \
         such call was made for five minutes.";
    ModuleCallRefused = "module-call-refused", Unhealthy,
        "A call of a module was refused because it could not be measured.",
        "`edgekeep attest --refusals MODULE` says what was known and which check failed. Shown until no such call was made for \
         five minutes.";
    SocketFlooded = "socket-flooded", Warning,
        "A user of this machine flooded a socket that others need, with connections that came to nothing, and is kept out for a while.",
        "The detail names the user: `ps -u UID` lists its programs. Stop the one that connects without end. Shown for five minutes.";
    ServiceNotRegistered = "service-not-registered", Unhealthy,
        "A service of the host could not be registered, so all its calls are refused.",
        "Correct its entry in [host_services] as the detail says, run `edgekeep config apply` and restart moduled.";
    SharedUser = "shared-user", Warning,
        "A host module runs as the user of another module or of a daemon: each can change the other's memory and files.",
        "Leave `user` out of [host_modules], so that each module has one for itself, or name another user for each.";
    ChildFailed = "child-failed", Warning,
        "A process that moduled keeps for work with rights of its own ended or did not answer, and was started anew.",
        "Nothing if it stays alone; calls that needed it were answered with 503. If it comes back, the detail and moduled's log \
         say why. Shown for five minutes.";
    EngineSilent = "engine-silent", Unhealthy,
        "The container engine does not answer: no container is started, stopped or made until it does.",
        "Start it (for Docker: systemctl start docker).";
    NoEdgeCa = "no-edge-ca", Unhealthy,
        "There is no edge CA certificate, so modules get no server certificates.",
        "The detail says which step failed; it is tried again by itself. A refusal by an issuer is settled in [edge_ca] and \
         [cert_issuance].";
    CertificateExpired = "certificate-expired", Unhealthy,
        "A certificate has ended.",
        "See that the device's clock is right and that the issuer can be reached; a preloaded certificate has to be replaced.";
    CertificateEndsSoon = "certificate-ends-soon", Warning,
        "A certificate ends soon and was not renewed yet.",
        "See that the issuer can be reached; a preloaded certificate has to be replaced before its end.";
    RenewalFails = "renewal-fails", Warning,
        "A certificate is due for renewal, and the last attempt failed. The old certificate is in use.",
        "Mend what the details name, or wait: attempts go on, more often towards the end. `edgekeep certs renew ID` tries at once.";
    EdgeCaNewKey = "edge-ca-new-key", Warning,
        "The Edge CA has a new key, which modules that read the trust bundle at their start alone do not know.",
        "Restart these modules: `edgekeep restart MODULE`.";
    RenewalOnHold = "renewal-on-hold", Warning,
        "No renewal of a certificate is planned, since the clock cannot be right.",
        "Set the clock, or let a time server set it.";
    CertificateFile = "certificate-file", Warning,
        "A file of certificates that the configuration names cannot be used, or not all of it. The rest is used.",
        "The detail names file, line, block and remedy. Correct the file; a private key in it reaches nobody, and should be \
         removed from it.";
    CertificateOnToken = "certificate-on-token", Warning,
        "A certificate that the configuration names on a token cannot be read.",
        "Do what the detail says. While the token does not answer, the certificate that was read before is in use, and keyd's log \
         names the cause.";
    ClockImplausible = "clock-implausible", Warning,
        "The device's clock shows a time that cannot be right.",
        "Set the clock (timedatectl set-ntp true, or date --set), and see to its battery. Modules go on meanwhile; the cloud cannot be \
         reached while its certificates seem to be of another time.";
    KeyUnusable = "key-unusable", Unhealthy,
        "A key that the device needs is missing or cannot be used.",
        "Bring it back where the settings say (file, token or TPM), or take it out of the settings and run `edgekeep config \
         apply`.";
    KeyLost = "key-lost", Unhealthy,
        "A key that this device had is gone. It is not made anew: what was made with it would be void.",
        "Restore it (`edgekeep keys restore`, keyd stopped). Or accept the loss with `edgekeep keys accept-loss KEY` and restart \
         keyd: module identities or data that came from it are made anew.";
    OwnKeyRemade = "own-key-remade", Warning,
        "A key that keyd keeps for itself was gone and was made anew.",
        "Find out who removed it from keyd's state folder. The detail says what became void; nothing else has to be done. Shown \
         for a day.";
    DiskFull = "disk-full", Unhealthy,
        "The disk that holds the state is full, so that no state can be written.",
        "Make room there. What was not written is written again by itself.";
    DiskNearlyFull = "disk-nearly-full", Warning,
        "The disk that holds the state is nearly full.",
        "Make room there, before state can no more be written.";
    AuditIncomplete = "audit-incomplete", Unhealthy,
        "The audit log cannot be written, or tells of a loss.",
        "`edgekeep audit verify` says what is lost; make room on the disk, or accept a known loss by name (`--accept`).";
    MeasurementsDiffer = "measurements-differ", Unhealthy,
        "The log of measurements and the TPM do not agree, or the log cannot be written.",
        "The detail says what is known; `edgekeep integrity replay` compares them. If nobody of yours changed the TPM, take the \
         device for one that was tampered with. It is over with the next start of the machine.";
    AssuranceLowered = "assurance-lowered", Unhealthy,
        "The device's assurance fell while keyd ran.",
        "The detail says why. If nobody of yours touched the TPM, take the device for one that was tampered with; docs/assurance.md \
         says what each level means.";
    NotMeasured = "not-measured", Warning,
        "Something that was started is not in the log of measurements, or no TPM binds that log.",
        "The detail says why. If a daemon may not speak for itself, run `edgekeep config apply` and restart keyd; if the TPM \
         cannot be used, see keyd's log.";
    CloudRefuses = "cloud-refuses", Warning,
        "The hub does not accept this device, or does not know it.",
        "See that the device is there and enabled at the hub, and that its key and clock are right. The last good identity stays \
         in use.";
    CloudFault = "cloud-fault", Warning,
        "The hub answers with a fault of its own, or with something that is no answer.",
        "Nothing on the device: it is tried again by itself, and what is known is used meanwhile.";
    CloudUnreachable = "cloud-unreachable", Warning,
        "The hub cannot be reached.",
        "See to network, name resolution, firewall and clock. What is known is used meanwhile.";
    ProvisioningRefused = "provisioning-refused", Warning,
        "The provisioning service refuses this device, or assigns it what cannot be used.",
        "See the device's enrolment at the service, and registration id, scope and key in [provisioning]. The last good identity, \
         if there is one, stays in use.";
    ProvisioningFault = "provisioning-fault", Warning,
        "The provisioning service answers with a fault of its own, or with something that is no answer.",
        "Nothing on the device: it is tried again by itself. The last good identity, if there is one, stays in use.";
    ProvisioningUnreachable = "provisioning-unreachable", Warning,
        "The provisioning service cannot be reached.",
        "See to network, name resolution, firewall and clock. The last good identity, if there is one, stays in use.";
    ModuleListUnusable = "module-list-unusable", Warning,
        "The hub lists modules of this device that cannot be taken over.",
        "What is known of such modules stays in use, and those that this device needs come first. See the device's modules at the \
         hub: delete what is not used, and make anew what has no usable generation.";
    ProvisioningNotAsked = "provisioning-not-asked", Warning,
        "The provisioning service cannot be asked, for a reason on this device.",
        "Correct what the detail says: the device's key, the roots in trusted_certs, or the endpoint in [provisioning]. The last \
         good identity, if there is one, stays in use.";
    CloudAsksToWait = "cloud-asks-to-wait", Warning,
        "The cloud asks to be left alone for long.",
        "Nothing on the device: the wish is followed within bounds, and what is known is used meanwhile.";
    WeakIsolation = "weak-isolation", Warning,
        "Something that keeps the daemons or their callers apart is not in force.",
        "The detail says what, and what would bring it into force.";
    NotShown = "not-shown", Warning,
        "Something about the device is not known to who asks, so that nothing is said about it.",
        "Ask as root (sudo), or as the user that the daemons run as.";
    Unknown = "unknown", Unhealthy,
        "A daemon tells of a problem that this program has no words for: it is of another version.",
        "Bring all daemons and tools to the same version; the detail says what it is about.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl<'de> Deserialize<'de> for Code {
    /// A word that is not in the table is [`Code::Unknown`]: a newer daemon's problem
    /// must not hide the others.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        Ok(Self::ALL.iter().copied().find(|code| code.word() == word).unwrap_or(Self::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_kind_has_a_word_of_its_own_and_a_cause_and_a_remedy_in_whole_sentences() {
        let (mut words, mut causes) = (BTreeSet::new(), BTreeSet::new());
        for code in Code::ALL {
            let word = code.word();
            assert!(word.split('-').all(|piece| !piece.is_empty() && piece.bytes().all(|c| c.is_ascii_lowercase())));
            assert!(word.len() <= 40 && words.insert(word), "{word}");
            assert_eq!(serde_json::to_value(code).unwrap(), word);
            assert_eq!(serde_json::from_value::<Code>(word.into()).unwrap(), *code);
            let Explained { cause, remedy } = code.explained();
            for text in [cause, remedy] {
                let sentence =
                    text.ends_with('.') && text.starts_with(|c: char| c.is_uppercase() || c == '`');
                assert!(sentence && text.len() > 20 && text.len() < 260, "{word}: {text}");
                assert!(!text.contains("  ") && !text.contains('|'), "{word}: {text}");
            }
            assert!(causes.insert(cause), "{word}");
        }
    }

    #[test]
    fn a_word_of_a_newer_version_is_taken_as_unknown_and_that_is_not_healthy() {
        let code: Code = serde_json::from_str("\"from-the-future\"").unwrap();
        assert_eq!((code, code.severity()), (Code::Unknown, Severity::Unhealthy));
    }

    const BEGIN: &str = "<!-- problems: written by a test of edgekeep-core -->\n";
    const END: &str = "<!-- end of problems -->";

    fn table() -> String {
        let mut text =
            "| problem | severity | what is so | what to do |\n|---|---|---|---|\n".to_owned();
        for code in Code::ALL {
            let Explained { cause, remedy } = code.explained();
            text.push_str(&format!("| `{code}` | {} | {cause} | {remedy} |\n", code.severity()));
        }
        text
    }

    /// `EDGEKEEP_BLESS=1` writes it.
    #[test]
    fn the_operators_guide_has_every_problem_as_the_program_tells_it() {
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
