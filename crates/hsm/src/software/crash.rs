//! kill -9 at every step that reaches the disk, of everything that changes the store.
//!
//! Each scenario runs in a process of its own, which kills itself at one [`point`]; then
//! the store is opened and examined here. This goes on, one point further each time,
//! until a run gets by without reaching its point: so a step that is added to the code is
//! covered without being listed here.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use edgekeep_core::id::KeyId;

use super::protection::{Protection, Sealer, Sealers};
use super::{Backup, RestoreMode, SoftwareBackend, migrate, restore};
use crate::backend::{
    KeyBackend, KeyError, KeyKind, PairAlgorithm, PublicParameter, SymmetricKey, Usage,
};
use crate::ordered::{Keyring, PassOn, Place};
use crate::{InputError, SecretBytes};

const SCENARIO: &str = "EDGEKEEP_CRASH_SCENARIO";
/// No operation here has as many steps.
const POINT_LIMIT: u32 = 200;

/// Points until the process ends. Not counted before it is set.
static LEFT: AtomicU32 = AtomicU32::new(u32::MAX);

/// Ends the process, if it is this step's turn.
pub(crate) fn point() {
    let left = LEFT.load(Ordering::Relaxed);
    if left == 0 {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        unreachable!("a killed process goes no further");
    }
    if left != u32::MAX {
        LEFT.store(left - 1, Ordering::Relaxed);
    }
}

/// Gives back what it sealed, as one TPM or token does.
struct Device(u8);

impl Sealer for Device {
    fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, KeyError> {
        Ok([&[self.0], &*secret.expose().iter().map(|byte| byte ^ self.0).collect::<Vec<_>>()]
            .concat())
    }

    fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, KeyError> {
        match sealed.split_first() {
            Some((by, rest)) if *by == self.0 => {
                Ok(rest.iter().map(|byte| byte ^ self.0).collect::<Vec<_>>().into())
            }
            _ => Err(InputError::NotAuthentic.into()),
        }
    }
}

const SEALERS: Sealers<'static> = Sealers { tpm: Some(&Device(0x55)), token: Some(&Device(0x66)) };
const ENCRYPT: Usage = Usage { derive_or_sign: false, encrypt: true };

fn id(text: &str) -> KeyId {
    text.parse().unwrap()
}

fn open(folder: &Path, wanted: Option<Protection>) -> SoftwareBackend {
    SoftwareBackend::open_protected(folder, BTreeMap::new(), wanted, SEALERS)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn bytes(fill: u8) -> SecretBytes {
    vec![fill; 32].into()
}

fn encrypted_under(fill: u8) -> Vec<u8> {
    crate::gcm::encrypt(&[fill; 32], b"iv", b"", b"text").unwrap()
}

fn decrypts(backend: &SoftwareBackend, key: &str, fill: u8) -> bool {
    match backend.decrypt(SymmetricKey::Stored(&id(key)), b"iv", b"", &encrypted_under(fill)) {
        Ok(text) => text.expose() == b"text",
        Err(KeyError::Input(InputError::NotAuthentic | InputError::NoVersionFits { .. })) => false,
        Err(error) => panic!("{error}"),
    }
}

fn point_of(backend: &dyn KeyBackend, key: &str) -> Option<crate::PublicValue> {
    match backend.public_parameter(&id(key), PublicParameter::EcPoint) {
        Ok(point) => Some(point),
        Err(KeyError::NotFound { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Makes the keys that every store here has before the crash and must have after it.
fn prepare(folder: &Path) {
    let backend = open(folder, None);
    backend.import_key(&id("bystander"), bytes(1), ENCRYPT).unwrap();
    backend.import_key(&id("master"), bytes(2), ENCRYPT).unwrap();
    backend.import_key(&id("master"), bytes(3), ENCRYPT).unwrap();
    backend.internal_key(&id("own")).unwrap();
}

fn expect_the_rest(backend: &SoftwareBackend) {
    assert!(decrypts(backend, "bystander", 1));
    assert!(backend.store.read(super::NameSpace::Internal, &id("own")).unwrap().is_some());
}

/// One change, and what must be true however far it got.
struct Scenario {
    name: &'static str,
    prepare: fn(&Path),
    run: fn(&Path),
    /// Gets whether the change was completed.
    examine: fn(&Path, bool),
}

fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario {
            name: "a new store",
            prepare: |_| {},
            run: |folder| drop(open(folder, Some(Protection::Tpm))),
            examine: |folder, _| {
                assert!(!Protection::File.path(folder).exists(), "never in clear");
                open(folder, Some(Protection::Tpm)).create_key(&id("k"), ENCRYPT).unwrap();
            },
        },
        Scenario {
            name: "create",
            prepare,
            run: |folder| open(folder, None).create_key(&id("k"), ENCRYPT).unwrap(),
            examine: |folder, done| {
                let backend = open(folder, None);
                expect_the_rest(&backend);
                assert!(decrypts(&backend, "master", 2) && decrypts(&backend, "master", 3));
                let found = backend.kind(&id("k")).unwrap();
                assert!(found == Some(KeyKind::Symmetric) || found.is_none() && !done);
                backend.create_key(&id("k"), ENCRYPT).unwrap();
            },
        },
        Scenario {
            name: "import",
            prepare,
            run: |folder| open(folder, None).import_key(&id("master"), bytes(4), ENCRYPT).unwrap(),
            examine: |folder, done| {
                let backend = open(folder, None);
                expect_the_rest(&backend);
                assert!(decrypts(&backend, "master", 2) && decrypts(&backend, "master", 3));
                assert!(!done || decrypts(&backend, "master", 4));
                backend.import_key(&id("master"), bytes(4), ENCRYPT).unwrap();
                assert!((2..=4).all(|fill| decrypts(&backend, "master", fill)));
            },
        },
        Scenario {
            name: "delete",
            prepare,
            run: |folder| open(folder, None).delete(&id("master"), KeyKind::Symmetric).unwrap(),
            examine: |folder, done| {
                let backend = open(folder, None);
                expect_the_rest(&backend);
                assert!(!done || backend.kind(&id("master")).unwrap().is_none());
                backend.import_key(&id("master"), bytes(4), ENCRYPT).unwrap();
                assert!((2..=4).all(|fill| decrypts(&backend, "master", fill)));
            },
        },
        Scenario {
            name: "move",
            prepare: |folder| {
                prepare(folder);
                let backend = open(folder, None);
                for key in ["ca", "ca-temp"] {
                    backend.create_key_pair(&id(key), &[PairAlgorithm::EcP256]).unwrap();
                }
                let points = ["ca", "ca-temp"].map(|key| format!("{:?}", point_of(&backend, key)));
                fs::write(folder.with_extension("points"), points.join("\n")).unwrap();
            },
            run: |folder| open(folder, None).move_key_pair(&id("ca-temp"), &id("ca")).unwrap(),
            examine: |folder, done| {
                let backend = open(folder, None);
                expect_the_rest(&backend);
                let points = fs::read_to_string(folder.with_extension("points")).unwrap();
                let (old, new) = points.split_once('\n').unwrap();
                let (ca, temp) =
                    (format!("{:?}", point_of(&backend, "ca")), point_of(&backend, "ca-temp"));
                assert!(ca == new || ca == old && !done, "{ca}");
                assert!(temp.is_none() && ca == new || format!("{temp:?}") == new && !done);
            },
        },
    ];
    for name in ["move onto an earlier place", "move onto a later place"] {
        all.push(Scenario {
            name,
            prepare: prepare_places,
            run: |folder| two_places(folder).move_key_pair(&id("ca-temp"), &id("ca")).unwrap(),
            examine: examine_places,
        });
    }
    all.push(Scenario {
        name: "restore",
        prepare: |folder| {
            prepare(folder);
            let other = folder.with_extension("other");
            let backend = open(&other, None);
            for fill in [7, 8] {
                backend.import_key(&id("master"), bytes(fill), ENCRYPT).unwrap();
            }
            backend.create_key_pair(&id("pair"), &[PairAlgorithm::EcP256]).unwrap();
            drop(backend);
            let text = Backup::read(&other, SEALERS).unwrap().encode("now", &[]);
            fs::write(folder.with_extension("backup"), text.expose()).unwrap();
        },
        run: restore_backup,
        examine: |folder, done| {
            let backend = open(folder, None);
            expect_the_rest(&backend);
            assert!(decrypts(&backend, "master", 2) && decrypts(&backend, "master", 3));
            assert!(!done || decrypts(&backend, "master", 7) && decrypts(&backend, "master", 8));
            drop(backend);
            restore_backup(folder);
            let backend = open(folder, None);
            assert!([2, 3, 7, 8].into_iter().all(|fill| decrypts(&backend, "master", fill)));
            assert!(point_of(&backend, "pair").is_some());
        },
    });
    for name in [
        "file to tpm",
        "file to pkcs11",
        "tpm to file",
        "tpm to pkcs11",
        "pkcs11 to file",
        "pkcs11 to tpm",
    ] {
        all.push(Scenario {
            name,
            prepare: prepare_move,
            run: move_by_start,
            examine: examine_move,
        });
        all.push(Scenario {
            name,
            prepare: prepare_move,
            run: move_offline,
            examine: examine_move,
        });
    }
    all
}

/// The pair that moves is in the second place, or in the first.
fn is_second(folder: &Path) -> bool {
    fs::read_to_string(folder.with_extension("directions")).unwrap().ends_with("an earlier place")
}

fn places_of(folder: &Path) -> [SoftwareBackend; 2] {
    fs::create_dir_all(folder).unwrap();
    ["one", "two"].map(|name| open(&folder.join(name), None))
}

fn two_places(folder: &Path) -> Keyring {
    let [one, two] = places_of(folder);
    let place = |backend| Place { backend: Arc::new(backend), pass_on: PassOn::Nothing };
    let keyring = Keyring::new(vec![place(one), place(two)], BTreeMap::new()).unwrap();
    keyring.with_moves(&folder.join("moves")).unwrap()
}

fn prepare_places(folder: &Path) {
    let [one, two] = places_of(folder);
    let (source, target) = if is_second(folder) { (&two, &one) } else { (&one, &two) };
    source.create_key_pair(&id("ca-temp"), &[PairAlgorithm::EcP256]).unwrap();
    target.create_key_pair(&id("ca"), &[PairAlgorithm::EcP256]).unwrap();
    let points = [(target, "ca"), (source, "ca-temp")]
        .map(|(place, key)| format!("{:?}", point_of(place, key)));
    fs::write(folder.with_extension("points"), points.join("\n")).unwrap();
}

/// The id has the old or the new pair, and after a look at it or a second try one place
/// alone has it.
fn examine_places(folder: &Path, done: bool) {
    let points = fs::read_to_string(folder.with_extension("points")).unwrap();
    let (old, new) = points.split_once('\n').unwrap();
    let keyring = two_places(folder);
    let ca = format!("{:?}", point_of(&keyring, "ca"));
    assert!(ca == new || ca == old && !done, "{ca}");
    if ca == old {
        assert_eq!(format!("{:?}", point_of(&keyring, "ca-temp")), new, "nothing has happened");
        keyring.move_key_pair(&id("ca-temp"), &id("ca")).unwrap();
    }
    assert_eq!(format!("{:?}", point_of(&keyring, "ca")), new);
    drop(keyring);
    let there = places_of(folder).map(|place| point_of(&place, "ca").is_some());
    assert_eq!(there, if is_second(folder) { [false, true] } else { [true, false] });
    assert_eq!(fs::read_dir(folder.join("moves")).unwrap().count(), 0);
}

fn restore_backup(folder: &Path) {
    let backup =
        Backup::decode(&fs::read(folder.with_extension("backup")).unwrap().into()).unwrap();
    restore(folder, None, SEALERS, &backup, RestoreMode { force: true, dry_run: false }).unwrap();
}

fn directions(folder: &Path) -> (Protection, Protection) {
    let text = fs::read_to_string(folder.with_extension("directions")).unwrap();
    let of = |word: &str| match word {
        "file" => Protection::File,
        "tpm" => Protection::Tpm,
        _ => Protection::Token,
    };
    let (from, to) = text.split_once(" to ").unwrap();
    (of(from), of(to))
}

/// The settings of this device, which a move changes.
fn settings(folder: &Path) -> std::path::PathBuf {
    folder.with_extension("settings")
}

fn prepare_move(folder: &Path) {
    let (from, _) = directions(folder);
    prepare(folder);
    drop(open(folder, Some(from)));
    fs::write(settings(folder), from.word()).unwrap();
}

fn move_by_start(folder: &Path) {
    let (_, to) = directions(folder);
    fs::write(settings(folder), to.word()).unwrap();
    drop(open(folder, Some(to)));
}

fn move_offline(folder: &Path) {
    let (from, to) = directions(folder);
    let done = migrate(folder, to, SEALERS, || {
        super::durable::replace(&settings(folder), to.word().as_bytes())?;
        Ok(())
    });
    assert_eq!(done.unwrap().from, [from]);
}

/// Whatever the settings say, a start finds the key, under one protection, and later the
/// other too.
fn examine_move(folder: &Path, done: bool) {
    let (from, to) = directions(folder);
    let said = fs::read_to_string(settings(folder)).unwrap();
    let said = if said == to.word() { to } else { from };
    assert!(!done || said == to);
    // First what the settings say now, then the other, then what they said.
    for wanted in [said, if said == to { from } else { to }, said] {
        let backend = open(folder, Some(wanted));
        expect_the_rest(&backend);
        assert!(decrypts(&backend, "master", 2) && decrypts(&backend, "master", 3));
        let there: Vec<_> =
            Protection::ALL.into_iter().filter(|form| form.path(folder).exists()).collect();
        assert_eq!(there, [wanted]);
    }
}

/// Runs one scenario in a process that ends at one point; whether it got by without.
fn survived(folder: &Path, number: usize, point: u32) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "software::crash::the_process_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(SCENARIO, format!("{number} {point} {}", folder.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{status}");
    status.success()
}

#[test]
#[ignore = "run by the test that examines what it leaves"]
fn the_process_that_is_killed() {
    let Ok(told) = std::env::var(SCENARIO) else { return };
    let mut words = told.splitn(3, ' ');
    let mut word = || words.next().unwrap();
    let scenario = &scenarios()[word().parse::<usize>().unwrap()];
    let point = word().parse().unwrap();
    let folder = Path::new(word());
    LEFT.store(point, Ordering::Relaxed);
    (scenario.run)(folder);
}

#[test]
fn a_kill_at_any_step_loses_no_key_and_leaves_none_half_made() {
    // One after the other: between its start and its own program a process has the locks
    // that another thread holds.
    let killed: u32 = scenarios()
        .iter()
        .enumerate()
        .map(|(number, scenario)| kill_everywhere(number, scenario))
        .sum();
    assert!(killed > 150, "{killed}");
}

/// Kills one scenario at every step; at how many.
fn kill_everywhere(number: usize, scenario: &Scenario) -> u32 {
    // A killed process loses nothing that the kernel has, so no disk has to be waited
    // for.
    let memory = Path::new("/dev/shm");
    let memory = if memory.is_dir() { memory } else { Path::new("/tmp") };
    for point in 0..POINT_LIMIT {
        let folder = tempfile::tempdir_in(memory).unwrap();
        let folder = folder.path().join("store");
        fs::write(folder.with_extension("directions"), scenario.name).unwrap();
        (scenario.prepare)(&folder);
        let done = survived(&folder, number, point);
        let examined = std::panic::catch_unwind(|| (scenario.examine)(&folder, done));
        assert!(examined.is_ok(), "{} (scenario {number}), killed at step {point}", scenario.name);
        if done {
            assert!(point > 3, "{}: no step was reached", scenario.name);
            return point;
        }
    }
    panic!("{}: there is no end", scenario.name);
}
