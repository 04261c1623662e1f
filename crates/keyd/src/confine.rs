//! What keyd keeps of its rights once it serves: decided here from the settings, and then given up in two steps.
//!
//! 1. [`Confinement::enter`], while there is one thread: capabilities and, by Landlock, all files but those below. Only then are the
//!    store, the audit log with its thread, and a token's library opened.
//! 2. [`Entered::seal`], last: all system calls but those in `keyd.syscalls`, for all threads.
//!
//! What a kernel cannot do, or refuses to, is logged and shown by `GET /sandbox`; keyd goes on, since a device without its keys is
//! lost to its operator, and the other layers hold alone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use edgekeep_api::keyd::{Layer, SandboxReport};
use edgekeep_core::hardware::SandboxSettings;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_hsm::tpm::Tcti;
use edgekeep_sandbox::{Level, Reach, Rights, SyscallList, privileges};
use rustix::thread::CapabilitySet;

use crate::libraries::{self, Surroundings};
use crate::start::chain;

/// The calls that are made while serving.
const SYSCALLS: &str = include_str!("../keyd.syscalls");

/// Where libraries and what they load are, and what the loader and their cryptography look into.
const FOR_LIBRARIES: &[&str] = &[
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf",
    "/etc/crypto-policies",
    "/usr/share/crypto-policies",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/urandom",
    "/dev/random",
    "/sys/devices/system/cpu",
];
/// Where names of hosts are looked up.
const FOR_NAMES: &[&str] = &[
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/etc/gai.conf",
];

/// Files that the settings name, and what else they say that counts here.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Key files, PIN files, files with auth values.
    pub(crate) read: BTreeSet<PathBuf>,
    /// Libraries of tokens.
    pub(crate) libraries: BTreeSet<PathBuf>,
    /// The TPM.
    pub(crate) tcti: Option<Tcti>,
}

/// What is to be kept, and why more than usual.
#[derive(Debug)]
pub struct Confinement {
    enabled: bool,
    reach: Reach,
    sections: Vec<&'static str>,
    /// What is kept because of hardware, for people.
    widened: Vec<String>,
    keep: CapabilitySet,
}

impl Confinement {
    /// Decides what is kept.
    pub(crate) fn new(
        root: &Root,
        settings: &SandboxSettings,
        named: &Named,
        is_root: bool,
        around: &Surroundings<'_>,
    ) -> Self {
        let mut confinement = Self {
            enabled: settings.enabled,
            reach: Reach::none()
                .grant(root.state_folder(Daemon::Keyd), Rights::Write)
                .grant(root.key_import_folder(), Rights::Take)
                .grant_all(&named.read, Rights::Read),
            sections: Vec::new(),
            widened: Vec::new(),
            // Without it root can do less than the owners of the files, which need not be root.
            keep: if is_root { CapabilitySet::DAC_OVERRIDE } else { CapabilitySet::empty() },
        };
        if let Some(folder) =
            (around.variable)("CREDENTIALS_DIRECTORY").map(PathBuf::from).filter(|path| path.is_absolute())
        {
            confinement.reach = confinement.reach.grant(folder, Rights::Read);
        }
        if let Some(tcti) = &named.tcti {
            confinement.tpm(tcti, around);
        }
        for library in &named.libraries {
            confinement.library(library, around);
        }
        if !settings.paths.is_empty() {
            confinement.section("devices");
            for path in &settings.paths {
                confinement.reach = confinement.reach.grant(path, Rights::Write).grant(path, Rights::Device);
                confinement.widened.push(format!("sandbox_paths: {}", path.display()));
            }
        }
        if settings.network {
            confinement.section("network");
            confinement.reach = confinement.reach.any_port().grant_all(FOR_NAMES, Rights::Read);
            confinement.widened.push("sandbox_network: any host".to_owned());
        }
        confinement
    }

    fn section(&mut self, name: &'static str) {
        if !self.sections.contains(&name) {
            self.sections.push(name);
        }
    }

    fn tpm(&mut self, tcti: &Tcti, around: &Surroundings<'_>) {
        let reach = std::mem::take(&mut self.reach);
        self.reach = match tcti {
            // A node that comes later is another file: only its folder can be granted.
            Tcti::Device(path) if !(around.exists)(path) && path.starts_with("/dev") => {
                self.widened.push(format!("{} is not there yet: all device nodes", path.display()));
                reach.grant("/dev", Rights::Device)
            }
            Tcti::Device(path) => reach.grant(path, Rights::Device),
            Tcti::SwtpmTcp { host, port } => {
                self.section("tcp");
                self.widened.push(format!("{tcti}: connections to TCP port {port}"));
                let by_name = host.parse::<IpAddr>().is_err();
                reach.connect(*port).grant_all(FOR_NAMES.iter().filter(|_| by_name), Rights::Read)
            }
            Tcti::SwtpmUnix(_) => {
                self.section("unix");
                self.widened.push(format!("{tcti}: connections to Unix sockets"));
                reach
            }
        };
    }

    fn library(&mut self, library: &Path, around: &Surroundings<'_>) {
        let needs = libraries::needs(library, around);
        self.section("pkcs11");
        self.reach = std::mem::take(&mut self.reach)
            .grant_all(FOR_LIBRARIES, Rights::Read)
            .grant("/dev/null", Rights::Device)
            .grant_all(&needs.read, Rights::Read)
            .grant_all(&needs.write, Rights::Write);
        let folders: Vec<_> = needs.write.iter().map(|path| path.display().to_string()).collect();
        let more = if folders.is_empty() { "no folder of its own is known".to_owned() } else { folders.join(", ") };
        self.widened.push(format!("{}: code from files, connections to Unix sockets; {more}", library.display()));
        if let Some(tcti) = &needs.tpm {
            self.tpm(tcti, around);
            // That library also speaks to the simulator's control port, the next one.
            if let Tcti::SwtpmTcp { port, .. } = tcti
                && let Some(control) = port.checked_add(1)
            {
                self.reach = std::mem::take(&mut self.reach).connect(control);
                self.widened.push(format!("{tcti}: connections to its control port {control}"));
            }
        }
    }

    /// Gives up, for good: privileges, and all files but those that are needed. To be called before there
    /// are other threads.
    #[must_use]
    pub fn enter(self) -> Entered {
        if !self.enabled {
            tracing::warn!(
                "no sandbox: [aziot_keys] sandbox = false; whoever takes keyd over has all rights of its user"
            );
            return Entered { confinement: self, layers: Vec::new() };
        }
        for widened in &self.widened {
            tracing::info!("the sandbox leaves within reach: {widened}");
        }
        let privileges = privileges::give_up(self.keep).map_or_else(|error| absent(&error), |()| Level::Full);
        let reach = match self.reach.restrict() {
            Ok(reached) => {
                for path in &reached.missing {
                    tracing::debug!(path = %path.display(), "not there, and out of reach until the next start");
                }
                reached.level
            }
            Err(error) => absent(&error),
        };
        Entered { confinement: self, layers: vec![("privileges", privileges), ("files", reach)] }
    }
}

fn absent(error: &dyn std::error::Error) -> Level {
    Level::Absent { reason: chain(error) }
}

/// A process that has given up its files, and not yet its system calls.
pub struct Entered {
    confinement: Confinement,
    layers: Vec<(&'static str, Level)>,
}

impl Entered {
    /// Gives up, for good and for all threads, the system calls that serving does not need. To be called when everything is
    /// open.
    #[must_use]
    pub fn seal(mut self) -> SandboxReport {
        if self.confinement.enabled {
            let applied = SyscallList::parse(SYSCALLS)
                .map_err(|error| absent(&error))
                .and_then(|list| list.compile(&self.confinement.sections).map_err(|error| absent(&error)))
                .and_then(|filter| filter.restrict_process().map_err(|error| absent(&error)));
            self.layers.push(("system calls", applied.unwrap_or_else(|level| level)));
        }
        for (name, level) in self.layers.iter().filter(|(_, level)| !level.is_full()) {
            tracing::warn!("the sandbox is weaker than it should be: {name}: {level}");
        }
        let layers = self.layers.into_iter().map(|(name, level)| Layer {
            name: name.to_owned(),
            full: level.is_full(),
            level: level.to_string(),
        });
        let widened = if self.confinement.enabled { self.confinement.widened } else { Vec::new() };
        SandboxReport { enabled: self.confinement.enabled, layers: layers.collect(), widened }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn planned(settings: &SandboxSettings, named: &Named) -> Confinement {
        let around = Surroundings { variable: &|_| None, text: &|_| None, exists: &|_| true, real: &Path::to_owned };
        Confinement::new(&Root::new("/r"), settings, named, false, &around)
    }

    fn granted(confinement: &Confinement, path: &str) -> Vec<Rights> {
        let grants = confinement.reach.grants().iter();
        grants.filter(|grant| Path::new(path).starts_with(&grant.path)).map(|grant| grant.rights).collect()
    }

    #[test]
    fn every_combination_of_sections_makes_a_filter() {
        let list = SyscallList::parse(SYSCALLS).unwrap();
        let sections = ["unix", "tcp", "pkcs11", "network", "devices"];
        for bits in 0..1 << sections.len() {
            let chosen: Vec<_> =
                sections.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1).map(|(_, name)| *name).collect();
            list.compile(&chosen).unwrap();
        }
    }

    #[test]
    fn no_section_has_what_no_keyd_needs() {
        let list = SyscallList::parse(SYSCALLS).unwrap();
        for call in [
            "execve",
            "execveat",
            "fork",
            "vfork",
            "kill",
            "tkill",
            "pidfd_send_signal",
            "pidfd_getfd",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "mount",
            "umount2",
            "bpf",
            "io_uring_setup",
            "perf_event_open",
            "unshare",
            "setns",
            "setuid",
            "setresuid",
            "setgid",
            "memfd_create",
            "init_module",
            "finit_module",
            "keyctl",
            "add_key",
            "personality",
            "userfaultfd",
            "seccomp",
            "listen",
            "symlink",
            "symlinkat",
            "mknod",
            "mknodat",
            "chroot",
            "pivot_root",
            "open_by_handle_at",
            "name_to_handle_at",
            "kexec_load",
            "pkey_mprotect",
            "shmat",
            "capset",
            "quotactl",
        ] {
            assert!(!list.names(call), "{call}");
        }
    }

    #[test]
    fn without_hardware_there_are_only_its_folder_and_the_import_folder() {
        let confinement = planned(&SandboxSettings::default(), &Named::default());
        let paths: Vec<_> = confinement.reach.grants().iter().map(|grant| grant.path.display().to_string()).collect();
        assert_eq!(paths, ["/r/var/lib/edgekeep/keyd", &Root::new("/r").key_import_folder().display().to_string()]);
        assert!(confinement.sections.is_empty() && confinement.widened.is_empty());
    }

    #[test]
    fn a_simulated_tpm_brings_its_port_and_a_device_only_its_node() {
        let tcp = Named { tcti: Some("swtpm:host=::1,port=99".parse().unwrap()), ..Named::default() };
        let tcp = planned(&SandboxSettings::default(), &tcp);
        assert_eq!(tcp.sections, ["tcp"]);
        assert!(tcp.widened[0].contains("port 99"));
        assert!(granted(&tcp, "/etc/resolv.conf").is_empty());
        let device = Named { tcti: Some("device".parse().unwrap()), ..Named::default() };
        let device = planned(&SandboxSettings::default(), &device);
        assert_eq!(granted(&device, "/dev/tpmrm0"), [Rights::Device]);
        assert!(device.sections.is_empty() && granted(&device, "/dev/sda").is_empty());
    }

    proptest! {
        /// Whatever the settings name, nothing of the other daemons comes within reach, and whatever comes with hardware is
        /// said.
        #[test]
        fn widening_is_said_and_never_reaches_the_other_daemons(
            tcti in prop::option::of(prop::sample::select(vec!["device", "swtpm:port=1", "swtpm:path=/s", "device:/dev/tpm0"])),
            library in prop::option::of(prop::sample::select(vec!["/usr/lib/softhsm/libsofthsm2.so", "/opt/v/x.so"])),
            network: bool,
            paths in prop::collection::vec(prop::sample::select(vec!["/opt/a", "/dev/hsm0"]), 0..2),
        ) {
            let settings = SandboxSettings { enabled: true, network, paths: paths.iter().map(PathBuf::from).collect() };
            let named = Named {
                read: ["/etc/keys/a.pem".into()].into(),
                libraries: library.map(PathBuf::from).into_iter().collect(),
                tcti: tcti.map(|tcti| tcti.parse().unwrap()),
            };
            let confinement = planned(&settings, &named);
            let root = Root::new("/r");
            for daemon in [Daemon::Identityd, Daemon::Moduled] {
                for path in [root.settings_file(daemon), root.state_folder(daemon)] {
                    prop_assert!(granted(&confinement, path.to_str().unwrap()).is_empty());
                }
            }
            prop_assert!(granted(&confinement, "/etc/passwd").is_empty());
            prop_assert!(granted(&confinement, "/r/run/aziot/identityd.sock").is_empty());
            prop_assert_eq!(granted(&confinement, "/etc/keys/a.pem"), [Rights::Read]);
            prop_assert!(confinement.widened.len() >= confinement.sections.len());
            let list = SyscallList::parse(SYSCALLS).unwrap();
            list.compile(&confinement.sections).unwrap();
        }
    }
}
