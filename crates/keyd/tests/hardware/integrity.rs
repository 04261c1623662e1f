//! The log of measurements beside a TPM: what strangers read there, and whoever tampers
//! with the log or with the registers.

use edgekeep_api::keyd::{IntegrityLog, Measurement};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::integrity::{
    AT_ONCE, Event, Finding, Logged, ONE_MORE_AFTER, Observed, Reason, Record, Seen, Verdict, judge,
};
use edgekeep_daemon::store::sha256;

use super::*;

const INDEX: &str = "0x0180ed01";

/// Replays a log as a stranger does, by the words of docs/integrity.md alone: prints the
/// values that PCR and index have to have.
const STRANGER: &str = r#"
import hashlib, json, sys
pcr = nv = None
for text in open(sys.argv[1], encoding="ascii").read().split("\x1e")[1:]:
    record = json.loads(text)
    content = json.dumps(record["content"], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(content.encode()).digest()
    assert [{"hashAlg": "sha256", "digest": digest.hex()}] == record["digests"]
    if record["recnum"] == 0:
        pcr, nv = (bytes.fromhex(record["content"][name].removeprefix("sha256:")) for name in ("pcr_base", "nv_base"))
    pcr, nv = (hashlib.sha256(value + digest).digest() for value in (pcr, nv))
print(pcr.hex(), nv.hex())
"#;

fn device(swtpm: &Swtpm) -> Device {
    let uid = rustix::process::geteuid().as_raw();
    let principal = json!({"uid": uid, "keys": ["*"], "daemons": ["moduled"]});
    Device::new(&json!({"tpm": tpm_settings(swtpm), "auditors": [uid], "principals": [principal]}))
}

fn integrity(device: &Device) -> IntegrityLog {
    run(async { device.keys().integrity(None).await.unwrap() })
}

fn log(read: &IntegrityLog) -> Logged {
    Logged::read(read.log.as_bytes(), sha256).unwrap()
}

fn verdict(read: &IntegrityLog) -> Verdict {
    let seen = |it: &Option<edgekeep_api::keyd::RegisterValue>| match it {
        Some(register) => register.value.map_or(Seen::Absent, Seen::Value),
        None => Seen::Unread,
    };
    judge(&log(read), &Observed { pcr: seen(&read.pcr), nv: seen(&read.nv) }, sha256)
}

fn start(device: &mut Device, module: u8) {
    let measurement = Measurement::ModuleStart {
        module: format!("m{module}").parse().unwrap(),
        image: Some(Sha256Digest::new([module; 32])),
        executable: None,
    };
    assert!(run(async { device.keys().measured(&measurement).await.unwrap() }).recorded);
}

fn file(device: &Device, number: u64) -> PathBuf {
    device.root.state_folder(Daemon::Keyd).join(format!("integrity/{number:010}.cel"))
}

/// The values in the TPM, by the TPM tools, as hexadecimal digits.
fn by_the_tools(swtpm: &Swtpm) -> String {
    let folder = swtpm.folder("tools");
    swtpm.tool_ok(&folder, "tpm2_pcrread", &["-o", "pcr", "sha256:13"]);
    swtpm.tool_ok(&folder, "tpm2_nvread", &["-C", "o", "-o", "nv", INDEX]);
    let hex = |name: &str| {
        let bytes: [u8; 32] = fs::read(folder.join(name)).unwrap().try_into().unwrap();
        Sha256Digest::new(bytes).hex()
    };
    format!("{} {}", hex("pcr"), hex("nv"))
}

fn by_a_stranger(path: &Path) -> Option<String> {
    let output = Command::new("python3").args(["-c", STRANGER]).arg(path).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn problems(device: &Device) -> String {
    let socket = device.root.metrics_socket(Daemon::Keyd);
    run(async { serde_json::to_string(&OperationsClient::new(socket).problems().await.unwrap()) })
        .unwrap()
}

#[test]
fn a_stranger_finds_the_replay_of_the_log_in_pcr_and_index() {
    if swtpm::skip() || parts::missing(&["python3"]) {
        return;
    }
    let mut swtpm = Swtpm::start();
    // Firmware was there before.
    let digest = format!("13:sha256={}", "ab".repeat(32));
    swtpm.tool_ok(&swtpm.folder("tools"), "tpm2_pcrextend", &[&digest]);
    let mut device = device(&swtpm);
    device.start();
    start(&mut device, 1);
    let read = integrity(&device);
    assert!(read.bound);
    assert!(verdict(&read).holds(), "{read:?}");
    let first = log(&read);
    assert_eq!(first.start().reason, Reason::First);
    let [_, keyd, _] = first.records() else { panic!("{first:?}") };
    let executable = sha256(&fs::read(env!("CARGO_BIN_EXE_edgekeep-keyd")).unwrap());
    assert!(
        matches!(&keyd.content.event, Event::DaemonStart { executable: found, .. } if *found == executable)
    );
    device.stop();
    assert_eq!(by_a_stranger(&file(&device, 1)).unwrap(), by_the_tools(&swtpm));
    let name = swtpm.tool_ok(&swtpm.folder("tools"), "tpm2_nvreadpublic", &[INDEX]);
    assert!(name.contains("0x2E060044"), "{name}");
    // Nothing else was started: nothing is added, and the registers stay.
    device.start();
    assert_eq!(integrity(&device).log, read.log);
    // Other settings are another measurement, in the same log.
    device.stop();
    device.set(&json!({"tpm": tpm_settings(&swtpm), "auditors": [rustix::process::geteuid().as_raw()], "keys_per_uid": 7}));
    device.start();
    assert_eq!(log(&integrity(&device)).records().len(), 4);
    device.stop();
    assert_eq!(by_a_stranger(&file(&device, 1)).unwrap(), by_the_tools(&swtpm));
    // The TPM loses its power. The kernel's boot is the same, so it was no start of the
    // machine.
    swtpm.kill();
    swtpm.start_again();
    device.start();
    let read = integrity(&device);
    assert_eq!((read.number, log(&read).start().reason), (2, Reason::TpmReset));
    assert_eq!(log(&read).start().previous, Some(sha256(&fs::read(file(&device, 1)).unwrap())));
    assert!(verdict(&read).holds());
    assert!(problems(&device).contains("the TPM was reset while the machine ran on"));
    device.stop();
    assert_eq!(by_a_stranger(&file(&device, 2)).unwrap(), by_the_tools(&swtpm));
}

/// Makes another log of a log's records.
type Tamper = Box<dyn FnOnce(Vec<Record>) -> Vec<u8>>;

/// Changes the log on the disk, and returns what the registers say of it, and why the
/// next keyd begins another one.
fn tampered(swtpm: &Swtpm, tamper: impl FnOnce(Vec<Record>) -> Vec<u8>) -> (String, Reason) {
    let mut device = device(swtpm);
    device.start();
    for module in 1..4 {
        start(&mut device, module);
    }
    let honest = integrity(&device);
    assert!(verdict(&honest).holds(), "{honest:?}");
    device.stop();
    fs::write(file(&device, honest.number), tamper(log(&honest).records().to_vec())).unwrap();
    let stranger = by_a_stranger(&file(&device, honest.number));
    assert_ne!(stranger, Some(by_the_tools(swtpm)));
    let registers = (honest.pcr.clone(), honest.nv.clone());
    let told = match Logged::read(&fs::read(file(&device, honest.number)).unwrap(), sha256) {
        Err(error) => error.to_string(),
        Ok(_) => {
            let log = fs::read_to_string(file(&device, honest.number)).unwrap();
            let read = IntegrityLog { log, pcr: registers.0, nv: registers.1, ..honest.clone() };
            assert_eq!((verdict(&read).pcr, verdict(&read).nv), (Finding::Unlike, Finding::Unlike));
            "unlike".to_owned()
        }
    };
    device.start();
    let read = integrity(&device);
    assert_eq!(read.number, honest.number + 1);
    assert!(verdict(&read).holds(), "{read:?}");
    assert!(problems(&device).contains("measurements-differ"));
    device.stop();
    (told, log(&read).start().reason)
}

fn written(records: &[Record]) -> Vec<u8> {
    records.iter().flat_map(Record::encode).collect()
}

fn numbered(mut records: Vec<Record>) -> Vec<u8> {
    for (at, record) in records.iter_mut().enumerate() {
        record.number = at as u64;
    }
    written(&records)
}

#[test]
fn a_line_that_is_removed_moved_added_or_foreign_is_found_with_its_reason() {
    if swtpm::skip() || parts::missing(&["python3"]) {
        return;
    }
    let swtpm = Swtpm::start();
    // A log of another device, with the same daemons and modules.
    let other = Swtpm::start();
    let mut there = device(&other);
    there.start();
    for module in 1..4 {
        start(&mut there, module);
    }
    let foreign = integrity(&there).log;
    there.stop();
    let number = |at| format!("record {at}: its number is not the next one");
    let cases: Vec<(&str, Tamper, String, Reason)> = vec![
        (
            "removed",
            Box::new(|mut it: Vec<Record>| {
                it.remove(3);
                written(&it)
            }),
            number(3),
            Reason::Damaged,
        ),
        (
            "removed, numbers put right",
            Box::new(|mut it: Vec<Record>| {
                it.remove(3);
                numbered(it)
            }),
            "unlike".into(),
            Reason::Unlike,
        ),
        (
            "moved",
            Box::new(|mut it: Vec<Record>| {
                it.swap(2, 3);
                written(&it)
            }),
            number(2),
            Reason::Damaged,
        ),
        (
            "moved, numbers put right",
            Box::new(|mut it: Vec<Record>| {
                it.swap(2, 3);
                numbered(it)
            }),
            "unlike".into(),
            Reason::Unlike,
        ),
        (
            "added",
            Box::new(|mut it: Vec<Record>| {
                it.insert(2, it[3].clone());
                numbered(it)
            }),
            "unlike".into(),
            Reason::Unlike,
        ),
        ("foreign", Box::new(move |_| foreign.into_bytes()), "unlike".into(), Reason::Unlike),
    ];
    for (name, tamper, expected, reason) in cases {
        // Each time another device, to which the index of the last one is a foreign one.
        let _ = swtpm.tool(&swtpm.folder("tools"), "tpm2_nvundefine", &["-C", "o", INDEX]);
        assert_eq!(tampered(&swtpm, tamper), (expected, reason), "{name}");
    }
}

#[test]
fn a_power_cut_within_a_line_loses_that_line_alone() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let mut device = device(&swtpm);
    device.start();
    start(&mut device, 1);
    let honest = integrity(&device);
    device.stop();
    // Half of the next line, and, in the second round, a whole one that was not extended.
    let log = log(&honest);
    let event = Event::ModuleStart {
        module: "m2".parse().unwrap(),
        image: None,
        executable: None,
        source: edgekeep_core::integrity::Source::Uid(7),
    };
    let next = log.next("2026-11-29T16:00:00Z".parse().unwrap(), event, sha256).unwrap().encode();
    for (bytes, records) in [(&next[..40], 3), (&next[..], 4)] {
        let mut file = File::options().append(true).open(file(&device, 1)).unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        device.start();
        let read = integrity(&device);
        assert_eq!((read.number, self::log(&read).records().len()), (1, records));
        assert!(verdict(&read).holds(), "{read:?}");
        device.stop();
    }
    assert_eq!(by_a_stranger(&file(&device, 1)).unwrap(), by_the_tools(&swtpm));
}

#[test]
fn an_index_that_is_removed_or_made_anew_by_somebody_else_is_found() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    let mut device = device(&swtpm);
    device.start();
    device.stop();
    swtpm.tool_ok(&tools, "tpm2_nvundefine", &["-C", "o", INDEX]);
    device.start();
    let read = integrity(&device);
    assert_eq!((read.number, log(&read).start().reason), (2, Reason::IndexGone));
    assert!(verdict(&read).holds(), "{read:?}");
    assert!(problems(&device).contains("the NV index was removed"));
    device.stop();
    // Somebody makes one with the same attributes, and without an auth value. keyd does
    // not use it and says so; the PCR still binds the log.
    swtpm.tool_ok(&tools, "tpm2_nvundefine", &["-C", "o", INDEX]);
    let attributes = "nt=extend|ownerread|authread|authwrite|no_da|orderly|clear_stclear";
    let define = ["-C", "o", "-g", "sha256", "-s", "32", "-a", attributes, INDEX];
    swtpm.tool_ok(&tools, "tpm2_nvdefine", &define);
    for _ in 0..2 {
        device.start();
        let read = integrity(&device);
        assert_eq!((read.number, log(&read).start().reason), (3, Reason::IndexRemade));
        let verdict = verdict(&read);
        assert_eq!((verdict.pcr, verdict.nv), (Finding::Equal, Finding::Unbound));
        let told = problems(&device);
        assert!(told.contains("the NV index was made anew"), "{told}");
        assert!(told.contains("tpm2_nvundefine -C o INDEX"), "{told}");
        device.stop();
    }
}

#[test]
fn without_a_tpm_the_same_log_says_that_only_software_keeps_it() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let mut device = device(&swtpm);
    swtpm.kill();
    device.start();
    start(&mut device, 1);
    let read = integrity(&device);
    assert!(!read.bound);
    assert!(!verdict(&read).holds());
    assert!(problems(&device).contains("no TPM binds the log of measurements"));
    // It comes back: the next record binds a new log to it, and the old one with it.
    swtpm.start_again();
    start(&mut device, 2);
    let read = integrity(&device);
    assert_eq!((read.number, log(&read).start().reason), (2, Reason::TpmCame));
    assert_eq!(log(&read).start().previous, Some(sha256(&fs::read(file(&device, 1)).unwrap())));
    assert!(verdict(&read).holds(), "{read:?}");
    assert!(read.bound);
    assert!(!problems(&device).contains("not-measured"));
    device.stop();
}

#[test]
fn only_a_daemon_speaks_for_itself_and_only_an_auditor_reads() {
    let mut device = Device::new(&json!({}));
    device.start();
    run(async {
        let keys = device.keys();
        let measurement = Measurement::DaemonStart {
            daemon: Daemon::Identityd,
            executable: Sha256Digest::new([1; 32]),
            settings: Sha256Digest::new([2; 32]),
            version: "1".parse().unwrap(),
        };
        // Root is no daemon either.
        assert_eq!(refusal(keys.measured(&measurement).await).0, 401);
    });
    device.stop();
    let uid = rustix::process::geteuid().as_raw();
    device.set(&json!({"principals": [{"uid": uid, "keys": [], "daemons": ["identityd"]}]}));
    device.start();
    run(async {
        let keys = device.keys();
        let start = |executable| Measurement::DaemonStart {
            daemon: Daemon::Identityd,
            executable: Sha256Digest::new([executable; 32]),
            settings: Sha256Digest::new([2; 32]),
            version: "1".parse().unwrap(),
        };
        assert!(keys.measured(&start(1)).await.unwrap().recorded);
        assert!(!keys.measured(&start(1)).await.unwrap().recorded);
        assert!(keys.measured(&start(2)).await.unwrap().recorded);
        let module = Measurement::ModuleCreate {
            module: "m".parse().unwrap(),
            image: None,
            options: Sha256Digest::new([3; 32]),
        };
        assert_eq!(refusal(keys.measured(&module).await).0, 401);
        if uid == 0 {
            let read = keys.integrity(None).await.unwrap();
            assert_eq!((read.bound, &read.pcr, &read.nv), (false, &None, &None));
            assert_eq!(refusal(keys.integrity(Some(9)).await).0, 400);
        } else {
            assert_eq!(refusal(keys.integrity(None).await).0, 401);
        }
    });
    device.stop();
}

#[test]
fn the_head_of_the_log_of_key_uses_is_recorded_once_it_is_signed_and_not_again_at_once() {
    let uid = rustix::process::geteuid().as_raw();
    let settings = json!({"auditors": [uid], "audit_log": {"checkpoint_sec": 1}});
    let mut device = Device::new(&settings);
    device.start();
    let head = |device: &Device| {
        let read = log(&integrity(device));
        let heads = read.records().iter().filter_map(|record| match &record.content.event {
            Event::AuditHead { size, root } => Some((size.to_string(), *root)),
            _ => None,
        });
        heads.collect::<Vec<_>>()
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while head(&device).is_empty() {
        assert!(std::time::Instant::now() < deadline, "no head");
        std::thread::yield_now();
    }
    let first = head(&device);
    device.stop();
    // What was recorded is a head of that log: its tree has this root at this size.
    let folder = device.root.state_folder(Daemon::Keyd).join("audit");
    let entries = edgekeep_audit::read(&folder, 0, 10_000, 64 << 20).unwrap();
    let size: usize = first[0].0.parse().unwrap();
    let mut tree = edgekeep_audit::tree::Frontier::default();
    for entry in &entries.entries[..size] {
        tree.append(edgekeep_audit::tree::leaf_hash(entry));
    }
    assert_eq!(Sha256Digest::new(*tree.root().as_bytes()), first[0].1);
    // Another start has new entries, which wait for their hour.
    device.start();
    assert_eq!(head(&device), first);
    device.stop();
}

#[test]
fn a_storm_of_starts_is_bounded_and_the_log_tells_how_many_are_left_out() {
    let uid = rustix::process::geteuid().as_raw();
    let principal = json!({"uid": uid, "keys": [], "daemons": ["moduled"]});
    let mut device = Device::new(&json!({"auditors": [uid], "principals": [principal]}));
    device.start();
    run(async {
        let keys = device.keys();
        let start = |number: u32| Measurement::ModuleStart {
            module: format!("m{number}").parse().unwrap(),
            image: None,
            executable: None,
        };
        let begun = std::time::Instant::now();
        let mut number = 0;
        let refused = loop {
            match keys.measured(&start(number)).await {
                Ok(it) => assert!(it.recorded),
                refused => break refusal(refused),
            }
            number += 1;
            // However slow this machine is, the storm is faster than the allowance grows.
            let gained = begun.elapsed().as_secs() / ONE_MORE_AFTER.as_secs();
            assert!(u64::from(number) <= u64::from(AT_ONCE) + gained + 1);
        };
        assert!(number >= AT_ONCE, "{number}");
        assert_eq!(refused.0, 429);
        assert!(refused.1.contains("too many"), "{}", refused.1);
        // What the log says already costs nothing.
        assert!(!keys.measured(&start(0)).await.unwrap().recorded);
    });
    assert!(problems(&device).contains("not-measured"));
    let read = log(&integrity(&device));
    let starts = |record: &&Record| matches!(record.content.event, Event::ModuleStart { .. });
    assert!(read.records().iter().filter(starts).count() >= AT_ONCE as usize);
    device.stop();
}
