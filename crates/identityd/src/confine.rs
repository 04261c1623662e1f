//! Rights that identityd keeps once it serves: the network, its own folder, and the files
//! that are needed to look up names and to check services. The rights are decided here
//! from the settings. Facts about the machine come in as [`Surroundings`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::{IdentitydSettings, PreloadedCert, Provisioning};
use edgekeep_daemon::confinement::{Confinement, FOR_NAMES};
use edgekeep_sandbox::Rights;
use edgekeep_tls::Proxy;

use crate::certificates::preloaded_file;

/// The calls that are made while serving.
const CALLS: &str = include_str!("../identityd.syscalls");

/// The port of every service that is named without one, and of name servers when an
/// answer is too long for a datagram.
const USUAL_PORTS: [u16; 2] = [443, 53];

/// Places where systems keep the roots that they trust.
const ROOTS: &[&str] = &[
    "/etc/ssl",
    "/etc/pki/tls",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
    "/etc/security/certificates",
    "/opt/etc/ssl/certs",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/pki/ca-trust-source",
    "/var/lib/ca-certificates",
];

/// Folders that hold too much to be granted for the sake of one file in them.
const WHOLE: &[&str] = &[
    "/", "/etc", "/usr", "/opt", "/srv", "/mnt", "/var", "/var/lib", "/var/tmp", "/tmp", "/home",
    "/root", "/run", "/proc", "/sys", "/dev",
];

/// Facts about the machine, as far as the rights depend on them.
pub(crate) struct Surroundings<'a> {
    /// A variable of the environment.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// Function that follows the links in a path, as far as they lead.
    pub(crate) real: &'a dyn Fn(&Path) -> PathBuf,
    /// Function that returns true if there is something at a path.
    pub(crate) exists: &'a dyn Fn(&Path) -> bool,
    /// True if the daemon's user may read everything.
    pub(crate) is_root: bool,
}

/// Returns the path that a path leads to if links are followed. The last link may lead to
/// something that does not exist yet.
pub(crate) fn real(path: &Path) -> PathBuf {
    let follow = |path: &Path| std::fs::canonicalize(path).ok();
    let led = || {
        let target = path.parent()?.join(std::fs::read_link(path).ok()?);
        follow(target.parent()?)
            .map(|folder| folder.join(target.file_name().unwrap_or_default()))
            .or(Some(target))
    };
    follow(path).or_else(led).unwrap_or_else(|| path.to_owned())
}

/// Decides what is kept. `hub` is the one that the device belongs to as far as that is
/// known.
pub(crate) fn confinement(
    root: &Root,
    settings: &IdentitydSettings,
    hub: Option<&str>,
    around: &Surroundings<'_>,
) -> Confinement {
    let mut kept = Confinement::new("[identityd] sandbox", settings.sandbox, CALLS);
    kept.grant(root.state_folder(Daemon::Identityd), Rights::Write);
    connections(&mut kept, settings, hub, around);
    kept.grant_all(FOR_NAMES, Rights::Read);
    name_servers(&mut kept, around);
    if cfg!(target_env = "musl") {
        kept.section("musl");
    }
    let of_est = settings.est.iter().flat_map(|est| &est.trusted_certs);
    let named = settings.cloud.trusted_certs.iter().chain(of_est).map(PathBuf::from);
    let preloaded = settings.preloaded_certs.values().filter_map(|certificate| match certificate {
        PreloadedCert::File(uri) => Some(preloaded_file(uri)),
        PreloadedCert::Token { .. } | PreloadedCert::List(_) => None,
    });
    for file in named.chain(preloaded) {
        let file = (around.real)(&file);
        kept.grant(if around.is_root { file } else { with_its_folder(root, &file) }, Rights::Read);
    }
    let est_of_system = settings.est.as_ref().is_some_and(|est| est.trusted_certs.is_empty());
    if settings.cloud.trusted_certs.is_empty() || est_of_system {
        kept.grant_all(ROOTS, Rights::Read);
        let variables = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(around.variable);
        for paths in variables {
            let paths = std::env::split_paths(&paths).filter(|path| path.is_absolute());
            kept.grant_all(paths.collect::<Vec<_>>(), Rights::Read);
        }
    }
    kept
}

/// Connections to the ports that the settings name; to all only where a service may
/// assign any.
fn connections(
    kept: &mut Confinement,
    settings: &IdentitydSettings,
    hub: Option<&str>,
    around: &Surroundings<'_>,
) {
    let hosts = [settings.parent_hostname.as_deref(), hub];
    let (host, assigns) = match &settings.provisioning {
        Provisioning::None => (None, false),
        Provisioning::Manual { hub, .. } => (Some(hub.as_str()), false),
        Provisioning::Dps { endpoint, .. } => (Some(authority(endpoint)), true),
    };
    let urls = settings.est.iter().flat_map(|est| est.urls.values());
    let urls = urls.map(|url| authority(url));
    let ports: Vec<u16> =
        hosts.into_iter().chain([host]).flatten().chain(urls).filter_map(port).collect();
    // A text that names no proxy ends the start before.
    let proxy = Proxy::from_environment(around.variable).ok().flatten();
    let proxy = proxy.map(|proxy| proxy.authority().port());
    kept.reach = USUAL_PORTS
        .into_iter()
        .chain(ports)
        .chain(proxy)
        .fold(std::mem::take(&mut kept.reach), edgekeep_sandbox::Reach::connect);
    if let Some(port) = host.filter(|_| assigns).and_then(port) {
        kept.reach = std::mem::take(&mut kept.reach).any_connection();
        kept.widened.push(format!(
            "a provisioning service at port {port} may assign a hub at another one: any TCP port"
        ));
    }
}

/// Host and port of an `https` URL.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// The port that is named behind a host.
fn port(host: &str) -> Option<u16> {
    host.rsplit_once(':')?.1.parse().ok()
}

/// `/etc/resolv.conf` is replaced whenever the network changes, so that its folder has to
/// be granted: the one that it leads to. A folder with much else in it is granted to a
/// user of identityd's own, who may not read what is secret in it; root may, and gets the
/// file.
fn name_servers(kept: &mut Confinement, around: &Surroundings<'_>) {
    let file = (around.real)(Path::new("/etc/resolv.conf"));
    // Whoever writes it may start later, and make the folder then.
    let folder = file
        .ancestors()
        .skip(1)
        .find(|folder| (around.exists)(folder))
        .unwrap_or(Path::new("/etc"));
    let whole = WHOLE.iter().any(|whole| folder == Path::new(whole));
    if whole && around.is_root {
        kept.grant(file, Rights::Read);
        return;
    }
    if whole {
        let why = "where /etc/resolv.conf is replaced when the network changes";
        kept.widened.push(format!("files in {} that its user may read, {why}", folder.display()));
    }
    kept.grant(folder, Rights::Read);
}

/// The folder of a file, so that the file can be replaced, if the folder has nothing that
/// is another daemon's; else the file. For a user of identityd's own, as above.
fn with_its_folder(root: &Root, file: &Path) -> PathBuf {
    let Some(folder) = file.parent() else { return file.to_owned() };
    let others = [Daemon::Keyd, Daemon::Moduled].into_iter();
    let mut others =
        others.flat_map(|daemon| [root.state_folder(daemon), root.settings_file(daemon)]);
    let whole = WHOLE.iter().any(|whole| folder == Path::new(whole));
    let has_others = others.any(|other| other.starts_with(folder) || folder.starts_with(&other));
    if whole || has_others { file.to_owned() } else { folder.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use edgekeep_core::settings::DeviceCredential;
    use edgekeep_sandbox::SyscallList;
    use proptest::prelude::*;

    use super::*;

    fn settings(provisioning: &Provisioning) -> IdentitydSettings {
        let json = serde_json::json!({ "hostname": "h", "provisioning": provisioning });
        serde_json::from_value(json).unwrap()
    }

    fn dps(endpoint: &str) -> Provisioning {
        Provisioning::Dps {
            endpoint: endpoint.to_owned(),
            scope_id: "s".to_owned(),
            registration_id: Some("r".to_owned()),
            credential: DeviceCredential::SymmetricKey { key: "k".parse().unwrap() },
            payload: None,
            operational: None,
        }
    }

    /// On a machine on which these paths are links.
    fn planned(
        settings: &IdentitydSettings,
        hub: Option<&str>,
        links: &[(&str, &str)],
        absent: &[&str],
    ) -> Confinement {
        let links: BTreeMap<_, _> =
            links.iter().map(|(from, to)| (PathBuf::from(from), PathBuf::from(to))).collect();
        let around = Surroundings {
            variable: &|name| (name == "SSL_CERT_FILE").then(|| "/srv/roots.pem".into()),
            real: &|path| links.get(path).cloned().unwrap_or_else(|| path.to_owned()),
            exists: &|path| !absent.iter().any(|absent| path.starts_with(absent)),
            is_root: settings.hostname == "of-root",
        };
        confinement(&Root::new("/r"), settings, hub, &around)
    }

    fn granted(kept: &Confinement, path: &str) -> Vec<Rights> {
        let grants = kept.reach.grants().iter();
        grants
            .filter(|grant| Path::new(path).starts_with(&grant.path))
            .map(|grant| grant.rights)
            .collect()
    }

    #[test]
    fn every_section_makes_a_filter_and_none_has_what_no_identityd_needs() {
        let list = SyscallList::parse(CALLS).unwrap();
        for sections in [&[][..], &["musl"]] {
            list.compile(sections).unwrap();
        }
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
    fn only_the_ports_that_are_named_are_connected_to() {
        let manual = Provisioning::Manual {
            hub: "hub.example:8443".to_owned(),
            device_id: "d".parse().unwrap(),
            credential: DeviceCredential::SymmetricKey { key: "k".parse().unwrap() },
        };
        let kept = planned(&settings(&manual), None, &[], &[]);
        assert_eq!(kept.reach.ports(), [443, 53, 8443]);
        let kept =
            planned(&settings(&dps("https://global.example")), Some("hub.example:444"), &[], &[]);
        assert_eq!(kept.reach.ports(), [443, 53, 444]);
        assert!(!kept.widened.iter().any(|line| line.contains("any TCP port")));
        let kept = planned(&settings(&dps("https://localhost:3000/a")), None, &[], &[]);
        assert!(
            kept.widened
                .iter()
                .any(|line| line.contains("port 3000") && line.contains("any TCP port"))
        );
    }

    #[test]
    fn the_folder_in_which_name_servers_are_written_down_is_granted_wherever_it_is() {
        let mut settings = settings(&Provisioning::None);
        let resolved = [("/etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf")];
        let kept = planned(&settings, None, &resolved, &[]);
        assert_eq!(granted(&kept, "/run/systemd/resolve/stub-resolv.conf"), [Rights::Read]);
        assert!(granted(&kept, "/etc/shadow").is_empty() && kept.widened.is_empty());
        let early = planned(&settings, None, &resolved, &["/run/systemd/resolve"]);
        assert_eq!(granted(&early, "/run/systemd/resolve/stub-resolv.conf"), [Rights::Read]);
        let plain = planned(&settings, None, &[], &[]);
        assert_eq!(granted(&plain, "/etc/resolv.conf"), [Rights::Read]);
        assert!(plain.widened[0].starts_with("files in /etc "), "{:?}", plain.widened);
        settings.hostname = "of-root".to_owned();
        let plain = planned(&settings, None, &[], &[]);
        assert_eq!(granted(&plain, "/etc/resolv.conf"), [Rights::Read]);
        assert!(granted(&plain, "/etc/shadow").is_empty() && plain.widened.is_empty());
    }

    #[test]
    fn the_system_s_roots_are_within_reach_unless_others_are_named() {
        let mut settings = settings(&Provisioning::None);
        let resolved = [("/etc/resolv.conf", "/run/resolvconf/resolv.conf")];
        let kept = planned(&settings, None, &resolved, &[]);
        assert_eq!(granted(&kept, "/etc/ssl/certs/ca-certificates.crt"), [Rights::Read]);
        assert_eq!(granted(&kept, "/srv/roots.pem"), [Rights::Read]);
        settings.cloud.trusted_certs = vec!["/opt/roots/a.pem".to_owned()];
        let kept = planned(&settings, None, &resolved, &[]);
        assert!(granted(&kept, "/etc/ssl/certs/ca-certificates.crt").is_empty());
        assert_eq!(granted(&kept, "/opt/roots/a.pem.new"), [Rights::Read]);
    }

    proptest! {
        /// Wherever the operator keeps certificates, nothing of the other daemons comes
        /// within reach with them.
        #[test]
        fn certificates_bring_no_file_of_another_daemon(
            folder in prop::sample::select(vec![
                "/r", "/r/etc", "/r/etc/edgekeep", "/r/etc/edgekeep/roots", "/r/var/lib/edgekeep", "/r/var/lib",
                "/r/var/lib/edgekeep/identityd", "/etc", "/", "/etc/edgekeep/x", "/opt/certs",
            ]),
            preloaded: bool,
        ) {
            let mut settings = settings(&Provisioning::None);
            let file = format!("{}/ca.pem", folder.trim_end_matches('/'));
            if preloaded {
                let uri = format!("file://{file}");
                settings.preloaded_certs.insert("c".parse().unwrap(), PreloadedCert::File(uri));
            } else {
                settings.cloud.trusted_certs.push(file.clone());
            }
            let kept = planned(&settings, None, &[("/etc/resolv.conf", "/run/systemd/resolve/r")], &[]);
            prop_assert!(!granted(&kept, &file).is_empty());
            let root = Root::new("/r");
            for daemon in [Daemon::Keyd, Daemon::Moduled] {
                for path in [root.settings_file(daemon), root.state_folder(daemon).join("x")] {
                    prop_assert!(granted(&kept, path.to_str().unwrap()).is_empty(), "{}", path.display());
                }
            }
            prop_assert!(granted(&kept, "/etc/shadow").is_empty());
            prop_assert_eq!(granted(&kept, "/r/var/lib/edgekeep/identityd/device.json")[0], Rights::Write);
        }
    }
}
