//! Rights that moduled itself keeps: decided here from the settings.
//!
//! Other processes look at callers and start host modules ([`crate::children`]). So
//! moduled needs its own folder, sockets of this machine, and a few facts about the
//! machine.

use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::confinement::Confinement;
use edgekeep_sandbox::Rights;
use rustix::thread::CapabilitySet;

/// The calls that are made once the settings are read.
const CALLS: &str = include_str!("../moduled.syscalls");

/// Places with facts about the machine, and about the module's processes as any user may
/// see them: the kernel tells what is another process's own only to those that may trace
/// it, and Landlock lets no confined process do that.
const FACTS: &[&str] = &["/proc", "/sys/fs/cgroup", "/sys/class/dmi/id", "/etc/os-release"];

/// Decides what is kept.
pub(crate) fn confinement(root: &Root, settings: &ModuledSettings, is_root: bool) -> Confinement {
    let mut kept = Confinement::new("[moduled] sandbox", settings.sandbox, CALLS);
    // A socket is made in one folder and put into another.
    kept.reach = std::mem::take(&mut kept.reach).moves_files();
    kept.grant(root.state_folder(Daemon::Moduled), Rights::Serve);
    kept.grant_all(FACTS, Rights::Read);
    // Without rules that ask for signatures there is no folder of them.
    if let Some(policy) = settings.image_policy.as_ref().filter(|it| !it.signatures.is_empty()) {
        kept.grant(&policy.signatures, Rights::Read);
    }
    if is_root {
        // Without it root can do less than the owners of the files, which need not be
        // root.
        kept.keep = CapabilitySet::DAC_OVERRIDE;
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use edgekeep_sandbox::SyscallList;

    use super::*;

    fn settings(more: &str) -> ModuledSettings {
        let json = format!(r#"{{ "hostname": "h" {more} }}"#);
        serde_json::from_str(&json).expect("settings")
    }

    fn granted(kept: &Confinement, path: &Path) -> Vec<Rights> {
        let grants = kept.reach.grants().iter().filter(|grant| path.starts_with(&grant.path));
        grants.map(|grant| grant.rights).collect()
    }

    #[test]
    fn nothing_of_the_other_daemons_is_kept_and_no_port() {
        let root = Root::new("/r");
        let policy = r#", "image_policy": { "signatures": "/etc/plant/signatures", "refuse_unmatched": true }"#;
        for (more, is_root) in [("", false), ("", true), (policy, false)] {
            let kept = confinement(&root, &settings(more), is_root);
            for daemon in [Daemon::Keyd, Daemon::Identityd] {
                for path in [root.settings_file(daemon), root.state_folder(daemon).join("x")] {
                    assert!(granted(&kept, &path).is_empty(), "{}", path.display());
                }
            }
            assert!(granted(&kept, Path::new("/etc/shadow")).is_empty());
            assert!(granted(&kept, &root.settings_file(Daemon::Moduled)).is_empty());
            assert!(kept.reach.ports().is_empty() && kept.enabled);
            let own = root.state_folder(Daemon::Moduled).join("registrations.json");
            assert_eq!(granted(&kept, &own), [Rights::Serve]);
            let writes = kept.reach.grants().iter().filter(|grant| grant.rights != Rights::Read);
            assert_eq!(writes.count(), 1, "only its own folder is written");
        }
        let kept = confinement(&root, &settings(policy), false);
        assert_eq!(granted(&kept, Path::new("/etc/plant/signatures/a.sig")), [Rights::Read]);
    }

    #[test]
    fn the_configuration_switches_it_off() {
        assert!(!confinement(&Root::new("/r"), &settings(r#", "sandbox": false"#), false).enabled);
    }

    #[test]
    fn the_list_has_what_no_daemon_needs_only_where_an_argument_bounds_it() {
        let list = SyscallList::parse(CALLS).expect("a list");
        list.compile(&[]).expect("a filter");
        // Pipes of host modules; the list has no other kind of file.
        let pipes = ["mknod", "mknodat"];
        let own = ["kill", "tkill", "pidfd_send_signal", "chown", "fchown", "lchown", "fchownat"];
        let none = edgekeep_sandbox::syscalls::FOR_NO_DAEMON.iter().chain(&own);
        for call in none.filter(|call| !pipes.contains(call)) {
            assert!(!list.names(call), "{call}");
        }
    }
}
