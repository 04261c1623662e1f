//! The audit log on a full disk, and beside the TPM's counter.

use super::*;

#[test]
fn keys_are_used_on_a_full_disk_as_long_as_the_log_can_make_room() {
    let mut device = Device::new(&json!({}));
    let state = device.root.state_folder(Daemon::Keyd);
    fs::create_dir_all(&state).unwrap();
    let script = r#"mount -t tmpfs -o size=8m none "$0" && exec "$@""#;
    device.wrapper = ["unshare", "--mount", "sh", "-c", script, state.to_str().unwrap()]
        .map(str::to_owned)
        .into();
    let possible = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, state.to_str().unwrap(), "true"])
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "skipped: no mount namespace can be made here (run as root, with unshare installed)"
        );
        return;
    }
    device.start();
    let inside = format!("/proc/{}/root{}", device.child.as_ref().unwrap().id(), state.display());
    run(async {
        let keys = device.keys();
        let key = keys.create_key("key", "sign").await.unwrap();
        for _ in 0..100 {
            hmac(&keys, &key).await.unwrap();
        }
        let mut filler = File::create(format!("{inside}/filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
        // Nothing new can be kept, and what is there is used, for far longer than the
        // memory alone would carry it.
        assert_eq!(refusal(keys.create_key("new", "sign").await).0, 500);
        for _ in 0..6000 {
            hmac(&keys, &key).await.unwrap();
        }
        let log = device.log();
        assert!(
            log.contains("the disk is full: the audit log uses the room that it keeps"),
            "{log}"
        );
        drop(filler);
        fs::remove_file(format!("{inside}/filler")).unwrap();
        keys.create_key("new", "sign").await.unwrap();
    });
    device.stop();
}

fn copy_folder(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn a_log_that_is_put_back_to_an_earlier_state_is_behind_the_tpms_counter() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let mut device = device_that_counts(&swtpm);
    let audit = device.root.state_folder(Daemon::Keyd).join("audit");
    use_keys(&mut device, &["a", "b"]);
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact() && report.gaps.is_empty(), "{report:?}");
    let (earlier, at) = (device.path("earlier"), counter(&swtpm));
    copy_folder(&audit, &earlier);
    use_keys(&mut device, &["c"]);
    // The TPM loses its power, and the counter stays.
    swtpm.kill();
    swtpm.start_again();
    use_keys(&mut device, &["d"]);
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact() && report.gaps.is_empty(), "{report:?}");
    assert!(counter(&swtpm) > at);
    // The whole folder is put back. By itself it is consistent.
    copy_folder(&earlier, &audit);
    let report = check_log(&device, &swtpm);
    assert!(
        matches!(report.faults[..], [Fault { kind: FaultKind::Counter(Some(_), _), .. }]),
        "{report:?}"
    );
    // keyd says so when it starts, goes on, and what it writes tells of it for ever.
    use_keys(&mut device, &["e"]);
    assert!(
        device.log().contains("the audit log is behind its counter: its newest part is missing")
    );
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact(), "{report:?}");
    let [Gap::BehindCounter(behind)] = report.gaps[..] else { panic!("{report:?}") };
    assert_eq!(report.alarms(&[]).count(), 1);
    assert_eq!(report.alarms(&[behind]).count(), 0);
}

#[test]
fn a_loss_of_the_newest_segments_and_a_log_that_was_thrown_away_show_by_the_counter() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let mut device = device_that_counts(&swtpm);
    let audit = device.root.state_folder(Daemon::Keyd).join("audit");
    use_keys(&mut device, &["a"]);
    let older = fs::read(audit.join("checkpoint")).unwrap();
    let segment = audit.join(format!("{:020}.log", 0));
    let shorter = fs::metadata(&segment).unwrap().len();
    use_keys(&mut device, &["b"]);
    // Cut off together with the checkpoint that tells of it, so that all signatures fit.
    File::options().write(true).open(&segment).unwrap().set_len(shorter).unwrap();
    fs::write(audit.join("checkpoint"), older).unwrap();
    let report = check_log(&device, &swtpm);
    assert!(
        matches!(report.faults[..], [Fault { kind: FaultKind::Counter(Some(_), _), .. }]),
        "{report:?}"
    );
    // Or without a trace.
    fs::remove_dir_all(&audit).unwrap();
    use_keys(&mut device, &["c"]);
    let report = check_log(&device, &swtpm);
    assert_eq!(report.gaps, [Gap::Replaces(0, None), Gap::BehindCounter(1)], "{report:?}");
}

#[test]
fn a_counter_that_is_removed_made_by_somebody_else_or_switched_off_is_said_in_the_log() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    let mut device = device_that_counts(&swtpm);
    use_keys(&mut device, &["a"]);
    swtpm.tool_ok(&tools, "tpm2_nvundefine", &["-C", "o", COUNTER]);
    use_keys(&mut device, &["b"]);
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact(), "{report:?}");
    assert!(matches!(report.gaps[..], [Gap::NotCounting(_, NotCounting::Replaced)]), "{report:?}");
    assert_eq!(report.alarms(&[]).count(), 1);
    // Made anew by somebody who does not know keyd's auth value, and so cannot be asked.
    swtpm.tool_ok(&tools, "tpm2_nvundefine", &["-C", "o", COUNTER]);
    let attributes = "nt=counter|ownerread|authread|authwrite|no_da";
    swtpm.tool_ok(
        &tools,
        "tpm2_nvdefine",
        &["-C", "o", "-s", "8", "-p", "mine", "-a", attributes, COUNTER],
    );
    swtpm.tool_ok(&tools, "tpm2_nvincrement", &["-P", "mine", COUNTER]);
    device.start();
    run(async {
        device.keys().create_key("c", "sign").await.unwrap();
        let answer = device.keys().audit_checkpoint().await.unwrap();
        let hardware = answer.counter.unwrap();
        assert_eq!((hardware.index, hardware.value), (0x0180_ed00, None));
        assert!(hardware.error.unwrap().contains("tpm2_nvundefine -C o INDEX"));
    });
    device.stop();
    assert!(
        device.log().contains("a loss of the log's newest part will not show"),
        "{}",
        device.log()
    );
    assert!(words(&device).contains(&"log-counter-unreachable".to_owned()), "{:?}", words(&device));
    let mut settings = tpm_settings(&swtpm);
    settings["audit_counter"] = json!({"enabled": false});
    device.set(&json!({"tpm": settings}));
    use_keys(&mut device, &["d"]);
    assert!(words(&device).contains(&"log-counter-off".to_owned()), "{:?}", words(&device));
    assert!(device.log().contains("audit_counter is switched off"), "{}", device.log());
}

#[test]
fn a_tpm_that_is_absent_is_said_in_the_log_and_counted_with_again_when_it_is_back() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let mut device = device_that_counts(&swtpm);
    use_keys(&mut device, &["a"]);
    swtpm.kill();
    device.start();
    run(async {
        let keys = device.keys();
        keys.create_key("b", "sign").await.unwrap();
        let away = keys.audit_checkpoint().await.unwrap();
        assert!(away.counter.unwrap().error.unwrap().contains("cannot be reached"));
        swtpm.start_again();
        let back = keys.audit_checkpoint().await.unwrap();
        let key: VerifierKey = back.verifier_key.parse().unwrap();
        let head = Checkpoint::open(&back.checkpoint, &key).unwrap();
        assert_eq!(head.counter, back.counter.unwrap().value);
    });
    device.stop();
    let expected = [
        "log-counter-made",
        "create done",
        "log-opened",
        "log-counter-unreachable",
        "create done",
        "log-counter-back",
    ];
    assert_eq!(words(&device), expected);
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact(), "{report:?}");
    assert!(
        matches!(report.gaps[..], [Gap::NotCounting(3, NotCounting::Unreachable)]),
        "{report:?}"
    );
    assert_eq!(report.alarms(&[]).count(), 0);
}
