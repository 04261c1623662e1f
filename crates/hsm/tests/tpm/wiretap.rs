//! Somebody on the wire between this process and the TPM: reads along, and changes what
//! passes.

use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use edgekeep_core::id::KeyId;
use edgekeep_hsm::tpm::TpmBackend;
use edgekeep_hsm::{KeyBackend as _, SecretBytes, SymmetricKey, Usage};
use edgekeep_tpm::{AuthValue, PcrSelection, SealTo, Tcti, Tpm, TpmError, TpmOptions};

use crate::swtpm::{Swtpm, assert_no_leak};

/// Passes one connection on, keeping all that is said on it.
struct Tap {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
    /// Change a bit at the end of the parameters of each answer with a session.
    tamper: Arc<AtomicBool>,
    /// Cut the connection instead of passing on the answer to this command, once; 0 for
    /// none.
    cut: Arc<AtomicU32>,
}

fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut message = vec![0; 10];
    stream.read_exact(&mut message).ok()?;
    let len = u32::from_be_bytes(message[2..6].try_into().unwrap());
    message.resize(usize::try_from(len).unwrap(), 0);
    stream.read_exact(&mut message[10..]).ok()?;
    Some(message)
}

/// Passes messages on until one side closes; `None` then.
fn pass_on(
    mut client: TcpStream,
    mut tpm: TcpStream,
    heard: &Mutex<Vec<u8>>,
    tamper: &AtomicBool,
    cut: &AtomicU32,
) -> Option<()> {
    loop {
        let command = message(&mut client)?;
        heard.lock().unwrap().extend_from_slice(&command);
        tpm.write_all(&command).ok()?;
        let mut answer = message(&mut tpm)?;
        heard.lock().unwrap().extend_from_slice(&answer);
        let code = u32::from_be_bytes(command[6..10].try_into().unwrap());
        if cut.compare_exchange(code, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            return None;
        }
        if tamper.load(Ordering::SeqCst) && answer[..2] == [0x80, 2] {
            // Two commands answer with a handle in front: TPM2_CreatePrimary and
            // TPM2_Load.
            let at = if matches!(code, 0x131 | 0x157) { 14 } else { 10 };
            let len = u32::from_be_bytes(answer[at..at + 4].try_into().unwrap());
            answer[at + 3 + usize::try_from(len).unwrap()] ^= 1;
        }
        client.write_all(&answer).ok()?;
    }
}

impl Tap {
    fn on(swtpm: &Swtpm) -> Self {
        let Tcti::SwtpmTcp { host, port } = swtpm.tcti() else { panic!("not TCP") };
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port_here = listener.local_addr().unwrap().port();
        let tap = Self {
            port: port_here,
            heard: Arc::default(),
            tamper: Arc::default(),
            cut: Arc::default(),
        };
        let (heard, tamper, cut) =
            (Arc::clone(&tap.heard), Arc::clone(&tap.tamper), Arc::clone(&tap.cut));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let tpm = TcpStream::connect((host.as_str(), port)).unwrap();
                let _ = pass_on(client.unwrap(), tpm, &heard, &tamper, &cut);
            }
        });
        tap
    }

    fn tcti(&self) -> Tcti {
        Tcti::SwtpmTcp { host: "127.0.0.1".to_owned(), port: self.port }
    }

    fn open(&self) -> Tpm {
        // Everything is loaded anew each time, so that all of it can be heard.
        Tpm::open(TpmOptions { keep_loaded: 0, ..TpmOptions::new(self.tcti()) }).unwrap()
    }

    fn has_heard(&self, what: &[u8]) -> bool {
        self.heard.lock().unwrap().windows(what.len()).any(|window| window == what)
    }
}

#[test]
fn no_secret_crosses_the_wire_in_clear() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tap = Tap::on(&swtpm);
    let backend = TpmBackend::open(tap.open(), &swtpm.folder("keys")).unwrap();
    let secret: SecretBytes = b"a secret to seal".as_slice().into();
    let auth = AuthValue::new(b"an auth value").unwrap();
    let random = backend.with_tpm(|tpm| {
        for to in [
            SealTo::Tpm,
            SealTo::Auth(auth.clone()),
            SealTo::Pcrs(PcrSelection::new(&[7]).unwrap()),
        ] {
            let with =
                if matches!(to, SealTo::Auth(_)) { auth.clone() } else { AuthValue::empty() };
            let sealed = tpm.seal(&secret, &to).unwrap();
            assert_eq!(tpm.unseal(&sealed, &with).unwrap().expose(), secret.expose());
        }
        tpm.random(32).unwrap()
    });
    let id: KeyId = "k".parse().unwrap();
    let usage = Usage { derive_or_sign: true, encrypt: false };
    backend.import_key(&id, b"an imported key, long".as_slice().into(), usage).unwrap();
    let derived = backend.export_derived(&id, b"what it is derived for").unwrap();
    let long = [&b"the middle of a long message"[..], &[0; 3000]].concat();
    backend.hmac_sha256(SymmetricKey::Stored(&id), &long).unwrap();
    for (what, name) in [
        (secret.expose(), "sealed"),
        (b"an auth value", "auth"),
        (random.expose(), "random"),
        (b"an imported key", "imported"),
        (derived.expose(), "derived"),
        (b"what it is derived for", "data"),
        (b"the middle of a long message", "message"),
    ] {
        assert!(!tap.has_heard(what), "{name}");
    }
    assert!(tap.has_heard(&[0, 0, 1, 0x5e]), "the tap does hear, TPM2_Unseal for one");
}

#[test]
fn changed_answers_are_noticed_and_nothing_stays_loaded() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tap = Tap::on(&swtpm);
    let backend = TpmBackend::open(tap.open(), &swtpm.folder("keys")).unwrap();
    let id: KeyId = "k".parse().unwrap();
    let usage = Usage { derive_or_sign: true, encrypt: false };
    backend.create_key(&id, usage).unwrap();
    let sealed = backend.with_tpm(|tpm| tpm.seal(&b"s".as_slice().into(), &SealTo::Tpm).unwrap());
    tap.tamper.store(true, Ordering::SeqCst);
    let error = backend.hmac_sha256(SymmetricKey::Stored(&id), b"m").unwrap_err();
    assert!(matches!(error.cause(), Some(TpmError::NotAuthentic { .. })), "{error:?}");
    backend.with_tpm(|tpm| {
        let error = tpm.unseal(&sealed, &AuthValue::empty()).err().unwrap();
        assert!(matches!(error, TpmError::NotAuthentic { .. }), "{error}");
        assert!(matches!(tpm.random(32), Err(TpmError::NotAuthentic { .. })));
    });
    tap.tamper.store(false, Ordering::SeqCst);
    backend.with_tpm(|tpm| assert_no_leak(tpm, "changed answers"));
    backend.hmac_sha256(SymmetricKey::Stored(&id), b"m").unwrap();
}

#[test]
fn what_was_loaded_over_a_connection_that_broke_is_flushed_over_the_next() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tap = Tap::on(&swtpm);
    let tpm = Tpm::open(TpmOptions::new(tap.tcti())).unwrap();
    let backend = TpmBackend::open(tpm, &swtpm.folder("keys")).unwrap();
    let ids: [KeyId; 2] = ["a".parse().unwrap(), "b".parse().unwrap()];
    for id in &ids {
        backend.create_key(id, Usage { derive_or_sign: true, encrypt: false }).unwrap();
    }
    // The TPM keeps its power, so it also keeps what was loaded. What breaks: flushing
    // one key, loading the next and hearing of its handle, using it, starting a session.
    for (command, code) in [("flush", 0x165), ("load", 0x157), ("HMAC", 0x155), ("start", 0x176)] {
        backend.hmac_sha256(SymmetricKey::Stored(&ids[0]), b"m").unwrap();
        if command == "start" {
            backend.with_tpm(Tpm::release);
        }
        tap.cut.store(code, Ordering::SeqCst);
        backend.hmac_sha256(SymmetricKey::Stored(&ids[1]), b"m").unwrap();
        assert_eq!(tap.cut.load(Ordering::SeqCst), 0, "{command} was cut");
        backend.with_tpm(|tpm| assert_no_leak(tpm, command));
    }
}
