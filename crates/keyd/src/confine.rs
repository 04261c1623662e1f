//! Rights that keyd keeps once it serves: decided here from the settings.
//!
//! [`Confinement::enter`] comes while there is one thread; only then are the store, the
//! audit log with its thread, and a token's library opened. Sealing comes last, with the
//! calls of `keyd.syscalls`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use edgekeep_core::hardware::SandboxSettings;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_daemon::confinement::{Confinement, FOR_NAMES};
use edgekeep_sandbox::Rights;
use edgekeep_tpm::Tcti;
use rustix::thread::CapabilitySet;

use crate::libraries::{self, Surroundings};

/// The calls that are made while serving.
const SYSCALLS: &str = include_str!("../keyd.syscalls");

/// Places of libraries and of what they load, and of what the loader and the libraries'
/// cryptography look into.
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

/// Decides what is kept.
pub(crate) fn confinement(
    root: &Root,
    settings: &SandboxSettings,
    named: &Named,
    is_root: bool,
    around: &Surroundings<'_>,
) -> Confinement {
    let mut kept = Confinement::new("[aziot_keys] sandbox", settings.enabled, SYSCALLS);
    kept.grant(root.state_folder(Daemon::Keyd), Rights::Write);
    kept.grant(root.key_import_folder(), Rights::Take);
    kept.grant_all(&named.read, Rights::Read);
    if is_root {
        // Without it root can do less than the owners of the files, which need not be
        // root.
        kept.keep = CapabilitySet::DAC_OVERRIDE;
    }
    if let Some(folder) = (around.variable)("CREDENTIALS_DIRECTORY")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
    {
        kept.grant(folder, Rights::Read);
    }
    if let Some(at) = &named.tcti {
        tpm(&mut kept, at, around);
    }
    for path in &named.libraries {
        library(&mut kept, path, around);
    }
    if !settings.paths.is_empty() {
        kept.section("devices");
        for path in &settings.paths {
            kept.grant(path, Rights::Write);
            kept.grant(path, Rights::Device);
            kept.widened.push(format!("sandbox_paths: {}", path.display()));
        }
    }
    if settings.network {
        kept.section("network");
        kept.reach = std::mem::take(&mut kept.reach).any_port();
        names(&mut kept);
        kept.widened.push("sandbox_network: any host".to_owned());
    }
    kept
}

/// Grants the places where names of hosts are looked up.
fn names(kept: &mut Confinement) {
    kept.grant_all(FOR_NAMES, Rights::Read);
    kept.grant_all(["/etc/resolv.conf", "/run/systemd/resolve"], Rights::Read);
}

fn tpm(kept: &mut Confinement, at: &Tcti, around: &Surroundings<'_>) {
    match at {
        // A node that comes later is another file: only its folder can be granted.
        Tcti::Device(path) if !(around.exists)(path) && path.starts_with("/dev") => {
            kept.widened.push(format!("{} is not there yet: all device nodes", path.display()));
            kept.grant("/dev", Rights::Device);
        }
        Tcti::Device(path) => kept.grant(path, Rights::Device),
        Tcti::SwtpmTcp { host, port } => {
            kept.section("tcp");
            kept.widened.push(format!("{at}: connections to TCP port {port}"));
            kept.reach = std::mem::take(&mut kept.reach).connect(*port);
            if host.parse::<IpAddr>().is_err() {
                names(kept);
            }
        }
        Tcti::SwtpmUnix(_) => {
            kept.section("unix");
            kept.widened.push(format!("{at}: connections to Unix sockets"));
        }
    }
}

fn library(kept: &mut Confinement, library: &Path, around: &Surroundings<'_>) {
    let needs = libraries::needs(library, around);
    kept.section("pkcs11");
    kept.grant_all(FOR_LIBRARIES, Rights::Read);
    kept.grant("/dev/null", Rights::Device);
    kept.grant_all(&needs.read, Rights::Read);
    kept.grant_all(&needs.write, Rights::Write);
    let folders: Vec<_> = needs.write.iter().map(|path| path.display().to_string()).collect();
    let more = if folders.is_empty() {
        "no folder of its own is known".to_owned()
    } else {
        folders.join(", ")
    };
    kept.widened.push(format!(
        "{}: code from files, connections to Unix sockets; {more}",
        library.display()
    ));
    if let Some(at) = &needs.tpm {
        tpm(kept, at, around);
        // That library also speaks to the simulator's control port, the next one.
        if let Tcti::SwtpmTcp { port, .. } = at
            && let Some(control) = port.checked_add(1)
        {
            kept.reach = std::mem::take(&mut kept.reach).connect(control);
            kept.widened.push(format!("{at}: connections to its control port {control}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_sandbox::SyscallList;
    use proptest::prelude::*;

    use super::*;

    fn planned(settings: &SandboxSettings, named: &Named) -> Confinement {
        let around = Surroundings {
            variable: &|_| None,
            text: &|_| None,
            exists: &|_| true,
            real: &Path::to_owned,
        };
        confinement(&Root::new("/r"), settings, named, false, &around)
    }

    fn granted(kept: &Confinement, path: &str) -> Vec<Rights> {
        let grants = kept.reach.grants().iter();
        grants
            .filter(|grant| Path::new(path).starts_with(&grant.path))
            .map(|grant| grant.rights)
            .collect()
    }

    #[test]
    fn every_combination_of_sections_makes_a_filter() {
        let list = SyscallList::parse(SYSCALLS).unwrap();
        let sections = ["unix", "tcp", "pkcs11", "network", "devices"];
        for bits in 0..1 << sections.len() {
            let chosen: Vec<_> = sections
                .iter()
                .enumerate()
                .filter(|(at, _)| bits >> at & 1 == 1)
                .map(|(_, name)| *name)
                .collect();
            list.compile(&chosen).unwrap();
        }
    }

    #[test]
    fn no_section_has_what_no_keyd_needs() {
        let list = SyscallList::parse(SYSCALLS).unwrap();
        let own = [
            "kill",
            "tkill",
            "pidfd_send_signal",
            "memfd_create",
            "listen",
            "symlink",
            "symlinkat",
        ];
        for call in edgekeep_sandbox::syscalls::FOR_NO_DAEMON.iter().chain(&own) {
            assert!(!list.names(call), "{call}");
        }
    }

    #[test]
    fn without_hardware_there_are_only_its_folder_and_the_import_folder() {
        let kept = planned(&SandboxSettings::default(), &Named::default());
        let paths: Vec<_> =
            kept.reach.grants().iter().map(|grant| grant.path.display().to_string()).collect();
        assert_eq!(
            paths,
            [
                "/r/var/lib/edgekeep/keyd",
                &Root::new("/r").key_import_folder().display().to_string()
            ]
        );
        assert!(kept.sections.is_empty() && kept.widened.is_empty());
    }

    #[test]
    fn a_simulated_tpm_brings_its_port_and_a_device_only_its_node() {
        let tcp =
            Named { tcti: Some("swtpm:host=::1,port=99".parse().unwrap()), ..Named::default() };
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
        /// Whatever the settings name, nothing of the other daemons comes within reach,
        /// and whatever comes with hardware is said.
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
            let kept = planned(&settings, &named);
            let root = Root::new("/r");
            for daemon in [Daemon::Identityd, Daemon::Moduled] {
                for path in [root.settings_file(daemon), root.state_folder(daemon)] {
                    prop_assert!(granted(&kept, path.to_str().unwrap()).is_empty());
                }
            }
            prop_assert!(granted(&kept, "/etc/passwd").is_empty());
            prop_assert!(granted(&kept, "/r/run/aziot/identityd.sock").is_empty());
            prop_assert_eq!(granted(&kept, "/etc/keys/a.pem"), [Rights::Read]);
            prop_assert!(kept.widened.len() >= kept.sections.len());
            let list = SyscallList::parse(SYSCALLS).unwrap();
            list.compile(&kept.sections).unwrap();
        }
    }
}
