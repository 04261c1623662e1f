//! identityd from within.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::path::Path;

use edgekeep_api::operations::SandboxReport;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::IdentitydSettings;
use edgekeep_identityd::{Identityd, Options};
use serde_json::json;

use crate::Test;
use crate::attack::{attack, check, device};

pub(crate) const TESTS: &[Test] = &[
    ("identityd_is_refused_every_forbidden_thing_in_every_thread", everything),
    ("identityd_reaches_the_ports_that_are_named_and_listens_on_none", ports),
    ("without_sandbox_identityd_is_refused_nothing_and_says_so", without),
];

/// Attempts that are identityd's own work: to connect.
const ITS_WORK: [&str; 4] =
    ["socket AF_INET stream", "socket AF_INET datagram", "socket AF_INET6", "socket AF_UNIX"];

/// Settings of a device that belongs to a hub.
pub(crate) fn settings(hub: &str) -> IdentitydSettings {
    let provisioning = json!({ "source": "manual", "hub": hub, "device_id": "d", "key": "k" });
    serde_json::from_value(json!({ "hostname": "h", "provisioning": provisioning })).unwrap()
}

/// identityd, in this process.
pub(crate) fn start(
    folder: &Path,
    settings: IdentitydSettings,
) -> ((tokio::runtime::Runtime, Identityd), SandboxReport) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = Options::new(Root::new(folder), settings);
    let daemon = runtime.block_on(Identityd::start_confined(options)).unwrap();
    let report = daemon.sandbox();
    ((runtime, daemon), report)
}

fn everything(folder: &Path) {
    check(&attack(folder, Daemon::Identityd, || start(folder, settings("hub.example"))), &ITS_WORK);
}

fn ports(folder: &Path) {
    device(folder, Daemon::Identityd);
    let (hub, other) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let (_started, report) = start(folder, settings(&format!("localhost:{}", port(&hub))));
    assert!(report.layers.iter().all(|layer| layer.full), "{report:?}");
    let number = |done: io::Result<()>| done.map_err(|error| error.raw_os_error());
    assert_eq!(number(TcpStream::connect(("localhost", port(&hub))).map(drop)), Ok(()));
    assert_eq!(
        number(TcpStream::connect(("localhost", port(&other))).map(drop)),
        Err(Some(libc::EACCES))
    );
    assert_eq!(number(TcpListener::bind("127.0.0.1:0").map(drop)), Err(Some(libc::EPERM)));
    assert_eq!(number(UdpSocket::bind("127.0.0.1:0").map(drop)), Err(Some(libc::EPERM)));
    // Looked up from within, and in a thread, as it is done.
    let found = std::thread::spawn(|| ("localhost", 1).to_socket_addrs().map(Iterator::count))
        .join()
        .unwrap();
    assert!(found.unwrap() > 0);
}

fn without(folder: &Path) {
    device(folder, Daemon::Identityd);
    let (_started, report) =
        start(folder, IdentitydSettings { sandbox: false, ..settings("hub.example") });
    assert!(!report.enabled && report.layers.is_empty());
    fs::read("/etc/shadow")
        .map(drop)
        .or_else(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied
                && !rustix::process::geteuid().is_root()
            {
                Ok(())
            } else {
                Err(error)
            }
        })
        .unwrap();
    TcpListener::bind("127.0.0.1:0").unwrap();
}
