//! keyd from within.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use edgekeep_api::operations::SandboxReport;
use edgekeep_core::hardware::{SandboxSettings, SecretText, TokenSettings, TpmSettings};
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::KeydSettings;
use edgekeep_keyd::Ready;

use crate::Test;
use crate::attack::{attack, check, device};

pub(crate) const TESTS: &[Test] = &[
    ("with_software_keys_every_forbidden_thing_is_refused_in_every_thread", software),
    ("with_a_token_every_forbidden_thing_is_refused_but_code_from_files", token),
    ("with_a_simulated_tpm_only_its_port_is_reached", simulated_tpm),
    ("the_audit_log_is_rotated_inside", rotation),
    ("without_sandbox_keyd_is_refused_nothing_and_says_so", without),
];

/// keyd, in this process.
pub(crate) fn start(
    folder: &Path,
    settings: &KeydSettings,
) -> ((tokio::runtime::Runtime, Ready), SandboxReport) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ready = runtime.block_on(async { Ready::open(&Root::new(folder), settings).unwrap() });
    let report = ready.sandbox();
    ((runtime, ready), report)
}

fn software(folder: &Path) {
    check(&attack(folder, Daemon::Keyd, || start(folder, &KeydSettings::default())), &[]);
}

fn token(folder: &Path) {
    let library = Path::new("/usr/lib/softhsm/libsofthsm2.so");
    let settings = KeydSettings {
        pkcs11: Some(TokenSettings {
            library: Some(library.to_owned()),
            base_slot: Some(SecretText::from("pkcs11:token=none")),
        }),
        sandbox: SandboxSettings {
            paths: vec![folder.join("tokens")],
            ..SandboxSettings::default()
        },
        ..KeydSettings::default()
    };
    // What a library in this process needs: sockets to local services, code from files,
    // and the commands of its devices.
    let allowed = ["socket AF_UNIX", "code from a file", "a terminal's input"];
    check(&attack(folder, Daemon::Keyd, || start(folder, &settings)), &allowed);
}

fn simulated_tpm(folder: &Path) {
    // Nothing listens there by then, which is an answer as well.
    let vacated = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let (tpm, listening) = (port(&vacated), port(&other));
    drop(vacated);
    let tcti = format!("swtpm:host=127.0.0.1,port={tpm}");
    let settings = KeydSettings {
        tpm: Some(TpmSettings { tcti, ..TpmSettings::default() }),
        ..KeydSettings::default()
    };
    let allowed = ["socket AF_INET stream", "socket AF_INET6"];
    check(&attack(folder, Daemon::Keyd, || start(folder, &settings)), &allowed);
    let connect = |port| {
        std::net::TcpStream::connect(("127.0.0.1", port))
            .map(drop)
            .map_err(|error| error.raw_os_error())
    };
    assert_eq!(connect(listening), Err(Some(libc::EACCES)));
    assert_ne!(connect(tpm), Err(Some(libc::EACCES)));
    let listen = TcpListener::bind("127.0.0.1:0").map(drop).map_err(|error| error.raw_os_error());
    assert_eq!(listen, Err(Some(libc::EPERM)));
}

fn rotation(folder: &Path) {
    use edgekeep_audit::entry::{Entry, Event, Key, Operation, Outcome, Who};
    use edgekeep_audit::{Log, Options, SoftwareSigner};
    device(folder, Daemon::Keyd);
    let settings = KeydSettings::default();
    let _started = start(folder, &settings);
    let audit = Root::new(folder).state_folder(Daemon::Keyd).join("audit-small");
    for _ in 0..2 {
        let signer = SoftwareSigner::from_seed(&[7; 32]).unwrap();
        let options = Options {
            segment_bytes: 4096,
            total_bytes: 16 << 10,
            reserve_bytes: 4096,
            ..Options::default()
        };
        let log = Log::open(&audit, options, Box::new(signer), None).unwrap();
        for number in 0..500 {
            let event = Event::Asked {
                who: Who { uid: 1, pid: None, says: None },
                what: Operation::Sign,
                key: Some(Key::new("device-id".parse().unwrap())),
                outcome: Outcome::Done,
            };
            log.refused(Entry { time: time::OffsetDateTime::now_utc(), event });
            if number % 25 == 0 {
                log.checkpoint().unwrap();
            }
        }
        let sizes: Vec<u64> = fs::read_dir(&audit)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert!(sizes.len() > 2 && sizes.iter().sum::<u64>() < 32 << 10, "{sizes:?}");
    }
}

fn without(folder: &Path) {
    device(folder, Daemon::Keyd);
    let sandbox = SandboxSettings { enabled: false, ..SandboxSettings::default() };
    let settings = KeydSettings { sandbox, ..KeydSettings::default() };
    let (_started, report) = start(folder, &settings);
    assert!(!report.enabled && report.layers.is_empty());
    fs::read("/etc/passwd").unwrap();
}
