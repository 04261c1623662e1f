//! The store key in the care of hardware, and in memory.

use super::*;

#[test]
fn a_store_key_that_the_tpm_sealed_is_of_no_use_without_it() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let mut device = Device::new(&json!({}));
    // A device that was without TPM so far.
    device.start();
    let (handle, mac) = run(async {
        let keys = device.keys();
        let key = keys.create_key("key", "sign").await.unwrap();
        let mac = hmac(&keys, &key).await.unwrap();
        (key, mac)
    });
    device.stop();
    let plain = device.root.state_folder(Daemon::Keyd).join("store.key");
    let key = fs::read(&plain).unwrap();
    device.set(&json!({"tpm": tpm_settings(&swtpm), "seal": "tpm"}));
    for _ in 0..2 {
        device.start();
        run(async { assert_eq!(hmac(&device.keys(), &handle).await.unwrap(), mac) });
        device.stop();
        assert!(!plain.exists());
    }
    for entry in fs::read_dir(plain.parent().unwrap())
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.path().is_file())
    {
        let content = fs::read(entry.path()).unwrap();
        assert!(!content.windows(32).any(|window| window == &key[8..40]), "{:?}", entry.path());
    }

    // Without TPM it does not start, and makes no other store key.
    swtpm.kill();
    assert!(device.gives_up().contains("does not give back the store key"), "{}", device.log());
    swtpm.start_again();
    let tools = swtpm.folder("tools");
    device.set(&json!({}));
    assert!(device.gives_up().contains("it needs a table [tpm]"), "{}", device.log());
    // Without a wish it stays sealed, and as asked it goes into a file and back.
    let sealed = plain.with_extension("key.tpm");
    for (seal, there) in [
        (Value::Null, &sealed),
        ("file".into(), &plain),
        (Value::Null, &plain),
        ("tpm".into(), &sealed),
    ] {
        device.set(&json!({"tpm": tpm_settings(&swtpm), "seal": seal}));
        device.start();
        run(async { assert_eq!(hmac(&device.keys(), &handle).await.unwrap(), mac) });
        device.stop();
        assert_eq!(
            [&plain, &sealed].map(|file| file.exists()),
            [&plain, &sealed].map(|file| file == there),
            "{seal}"
        );
    }
    // After a clear it is another TPM.
    device.set(&json!({"tpm": tpm_settings(&swtpm), "seal": "tpm"}));
    swtpm.tool_ok(&tools, "tpm2_clear", &["-c", "p"]);
    assert!(device.gives_up().contains("does not give back the store key"), "{}", device.log());
    assert!(!plain.exists());
}

#[test]
fn a_store_key_in_the_care_of_a_token_is_of_no_use_without_it() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let mut device = Device::with_token();
    let path = device.root.settings_file(Daemon::Keyd);
    let settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let set = |seal: &str| {
        let mut settings = settings.clone();
        settings["seal"] = seal.into();
        // Keys in files, so that the store key is needed for them.
        settings["places"] = json!(["files"]);
        fs::write(&path, settings.to_string()).unwrap();
    };
    let folder = device.root.state_folder(Daemon::Keyd);
    let mut first = None;
    for seal in ["pkcs11", "file", "pkcs11"] {
        set(seal);
        device.start();
        run(async {
            let key = device.keys().create_key("key", "sign").await.unwrap();
            let mac = hmac(&device.keys(), &key).await.unwrap();
            assert_eq!(*first.get_or_insert(mac.clone()), mac);
            // Nobody asks the token in keyd's name to open it.
            for id in [names::STORE_KEY_AES, names::STORE_KEY_HMAC, names::STORE_KEY_RSA] {
                let (code, _) = refusal(device.keys().create_key(id.as_str(), "encrypt").await);
                assert!((400..500).contains(&code), "{code}");
                assert!(device.keys().load_key(id.as_str()).await.is_err());
            }
        });
        device.stop();
        assert_eq!(folder.join("store.key.pkcs11").exists(), seal == "pkcs11");
        assert_eq!(folder.join("store.key").exists(), seal == "file");
    }
    fs::rename(device.path("softhsm/tokens"), device.path("softhsm/away")).unwrap();
    fs::create_dir(device.path("softhsm/tokens")).unwrap();
    assert!(
        device.gives_up().contains("a key on the token does not give back the store key"),
        "{}",
        device.log()
    );
}

/// Returns the areas of a process's writable memory that have these bytes, as far as the
/// memory can be read.
fn memory_with(child: &Child, wanted: &[u8]) -> Vec<String> {
    use std::os::unix::fs::FileExt as _;
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let memory = File::open(process.join("mem")).unwrap();
    let (mut read, mut found) = (0, Vec::new());
    for line in fs::read_to_string(process.join("maps"))
        .unwrap()
        .lines()
        .filter(|line| line.contains(" rw"))
    {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [from, to] = [from, to].map(|number| u64::from_str_radix(number, 16).unwrap());
        let mut content = vec![0; usize::try_from(to - from).unwrap()];
        // Page by page: what has never been touched may be refused.
        for (page, at) in content.chunks_mut(4096).zip((from..).step_by(4096)) {
            read += memory.read_at(page, at).unwrap_or(0);
        }
        let mut rest = content.as_slice();
        while let Some(at) = rest.iter().position(|byte| *byte == wanted[0]) {
            if rest[at..].starts_with(wanted) {
                found.push(line.to_owned());
                break;
            }
            rest = &rest[at + 1..];
        }
    }
    assert!(read > 100_000, "only {read} bytes could be read");
    found
}

#[test]
fn the_memory_of_a_running_keyd_does_not_show_its_store_key_or_keys_to_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipping: only root may read the memory of another process");
        return;
    }
    let mut device = Device::new(&json!({}));
    let known: Vec<u8> = (0..32).map(|number: u8| number.wrapping_mul(37) ^ 0xa5).collect();
    device.start();
    run(async {
        let key = device.keys().import_key("key", "encrypt", known.clone()).await.unwrap();
        for _ in 0..3 {
            let mechanism =
                EncryptMechanism::Aead { iv: b"iv".to_vec().into(), aad: Vec::new().into() };
            device.keys().encrypt(&key, mechanism, b"text".to_vec()).await.unwrap();
        }
    });
    let store_key = fs::read(device.root.state_folder(Daemon::Keyd).join("store.key")).unwrap();
    let child = device.child.as_ref().unwrap();
    // The way in works: what is no secret is there.
    assert!(!memory_with(child, device.folder.path().as_os_str().as_encoded_bytes()).is_empty());
    if device.log().contains("memory=Secret") {
        assert_eq!(
            memory_with(child, &store_key[8..40]),
            [""; 0],
            "the store key is in readable memory"
        );
        assert_eq!(
            memory_with(child, &known),
            [""; 0],
            "a key that is held ready is in readable memory"
        );
    } else {
        eprintln!("this kernel has no memfd_secret");
    }
    let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", child.id())).unwrap();
    let pss = smaps.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    println!("measured: keyd's PSS is {pss}");
    device.stop();
}

#[test]
fn without_the_right_to_lock_memory_keyd_says_so_once_and_works() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    if !rustix::process::geteuid().is_root() || parts::missing(&["prlimit", "setpriv"]) {
        return;
    }
    let mut device = Device::new(&json!({}));
    // Where another user can run it.
    let program = device.path("keyd");
    fs::copy(env!("CARGO_BIN_EXE_edgekeep-keyd"), &program).unwrap();
    for path in
        [device.path("."), device.path("etc/edgekeep"), device.root.settings_file(Daemon::Keyd)]
    {
        chown(path, Some(65534), None).unwrap();
    }
    let manager = UnixDatagram::bind(device.path("notify")).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    fs::set_permissions(device.path("notify"), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new("prlimit");
    command.args(["--memlock=0", "setpriv", "--reuid", "65534", "--clear-groups"]).arg(&program);
    command.env(ROOT_VARIABLE, device.folder.path()).env("NOTIFY_SOCKET", device.path("notify"));
    command.stderr(File::create(device.path("log")).unwrap()).env_remove("RUST_LOG");
    device.child = Some(command.spawn().unwrap());
    let mut message = [0; 64];
    let length =
        manager.recv(&mut message).unwrap_or_else(|error| panic!("{error}: {}", device.log()));
    assert_eq!(&message[..length], b"READY=1");
    run(async {
        for name in ["one", "two"] {
            device.keys().create_key(name, "sign").await.unwrap();
        }
    });
    device.stop();
    assert_eq!(device.log().matches("raise LimitMEMLOCK").count(), 1, "{}", device.log());
}

#[test]
fn a_new_device_that_seals_never_has_its_store_key_in_a_file() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let mut device = Device::new(&json!({"tpm": tpm_settings(&swtpm), "seal": "tpm"}));
    device.start();
    let folder = device.root.state_folder(Daemon::Keyd);
    assert!(folder.join("store.key.tpm").exists() && !folder.join("store.key").exists());
    assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    // The TPM serves its API as well.
    run(async { device.tpm().keys().await.unwrap() });
    device.stop();
}
