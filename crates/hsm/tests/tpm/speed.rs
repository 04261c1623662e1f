//! Times of the uses of a key, next to the bare command on the same swtpm. Run alone, and
//! with `--release` for numbers:
//! `cargo test --release -p edgekeep-hsm --test tpm -- --ignored --nocapture speed`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use edgekeep_core::id::KeyId;
use edgekeep_hsm::tpm::TpmBackend;
use edgekeep_hsm::{KeyBackend as _, PairAlgorithm, SymmetricKey, Usage};
use edgekeep_tpm::Tcti;

use crate::swtpm::Swtpm;

/// Sends bytes and reads the answer, which has to be a success.
fn exchange(stream: &mut TcpStream, command: &[u8]) -> Vec<u8> {
    stream.write_all(command).unwrap();
    let mut answer = vec![0; 10];
    stream.read_exact(&mut answer).unwrap();
    let len = u32::from_be_bytes(answer[2..6].try_into().unwrap());
    answer.resize(usize::try_from(len).unwrap(), 0);
    stream.read_exact(&mut answer[10..]).unwrap();
    assert_eq!(answer[6..10], [0; 4]);
    answer
}

/// TPM2_Sign or TPM2_HMAC with the first transient object and an empty password.
fn bare(code: u32, parameters: &[u8]) -> Vec<u8> {
    let password = [0x40, 0, 0, 9, 0, 0, 1, 0, 0];
    let len = u32::try_from(10 + 4 + 4 + password.len() + parameters.len()).unwrap();
    let area = u32::try_from(password.len()).unwrap().to_be_bytes();
    let head = [
        &[0x80, 2][..],
        &len.to_be_bytes(),
        &code.to_be_bytes(),
        &[0x80, 0, 0, 0],
        &area,
        &password,
    ];
    [&head.concat(), parameters].concat()
}

fn median_of(runs: usize, mut operation: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            operation();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[runs / 2]
}

#[test]
#[ignore = "measures; run alone"]
fn speed_of_keys_next_to_the_bare_commands() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    let Tcti::SwtpmTcp { port, .. } = swtpm.tcti() else { panic!("not TCP") };
    let mut sign = vec![0, 32];
    sign.extend_from_slice(&[7; 32]);
    sign.extend_from_slice(&[0, 0x18, 0, 0x0b, 0x80, 0x24, 0x40, 0, 0, 7, 0, 0]);
    let mut mac = vec![0, 32];
    mac.extend_from_slice(&[7; 32]);
    mac.extend_from_slice(&[0, 0x0b]);
    let attributes = "sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda";
    let mut raw = Vec::new();
    for (algorithm, code, parameters) in [("ecc", 0x15d, &sign), ("hmac", 0x155, &mac)] {
        let create = ["-C", "o", "-G", algorithm, "-a", attributes, "-c", "key.ctx"];
        if algorithm == "ecc" {
            swtpm.tool_ok(&folder, "tpm2_createprimary", &create);
        } else {
            swtpm.tool_ok(
                &folder,
                "tpm2_createprimary",
                &["-C", "o", "-G", "ecc", "-c", "parent.ctx"],
            );
            let create = [
                "-C",
                "parent.ctx",
                "-G",
                algorithm,
                "-a",
                attributes,
                "-u",
                "k.pub",
                "-r",
                "k.priv",
            ];
            swtpm.tool_ok(&folder, "tpm2_create", &create);
            swtpm.tool_ok(&folder, "tpm2_flushcontext", &["-t"]);
            swtpm.tool_ok(
                &folder,
                "tpm2_load",
                &["-C", "parent.ctx", "-u", "k.pub", "-r", "k.priv", "-c", "key.ctx"],
            );
            swtpm.tool_ok(&folder, "tpm2_flushcontext", &["-t"]);
            // Loaded alone, so that it has the first handle.
            swtpm.tool_ok(
                &folder,
                "tpm2_hmac",
                &["-c", "key.ctx", "-g", "sha256", "-o", "mac", "k.pub"],
            );
        }
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let command = bare(code, parameters);
        raw.push(median_of(2000, || drop(exchange(&mut stream, &command))));
        drop(stream);
        swtpm.tool_ok(&folder, "tpm2_flushcontext", &["-t"]);
    }

    let (pair, key): (KeyId, KeyId) = ("p".parse().unwrap(), "k".parse().unwrap());
    let backend = TpmBackend::open(swtpm.open(), &swtpm.folder("keys")).unwrap();
    let first = Instant::now();
    backend.create_key_pair(&pair, &[PairAlgorithm::EcP256]).unwrap();
    let first = first.elapsed();
    backend.create_key(&key, Usage { derive_or_sign: true, encrypt: false }).unwrap();
    drop(backend);
    let start = Instant::now();
    let backend = TpmBackend::open(swtpm.open(), &swtpm.folder("keys")).unwrap();
    backend.sign_ecdsa(&pair, &[7; 32]).unwrap();
    let start = start.elapsed();
    let ecdsa = median_of(2000, || drop(backend.sign_ecdsa(&pair, &[7; 32]).unwrap()));
    let hmac = median_of(2000, || {
        backend.hmac_sha256(SymmetricKey::Stored(&key), &[7; 32]).unwrap();
    });
    let switch = median_of(200, || {
        backend.sign_ecdsa(&pair, &[7; 32]).unwrap();
        backend.hmac_sha256(SymmetricKey::Stored(&key), &[7; 32]).unwrap();
    });
    let seal = median_of(100, || drop(backend.with_tpm(|tpm| tpm.random(32)).unwrap()));
    println!("first use, storage root and key pair made: {first:?}");
    println!("start with persistent storage root to first signature: {start:?}");
    println!(
        "ECDSA P-256: {ecdsa:?}, bare TPM2_Sign {:?}, ratio {:.2}",
        raw[0],
        ecdsa.as_secs_f64() / raw[0].as_secs_f64()
    );
    println!(
        "HMAC-SHA256: {hmac:?}, bare TPM2_HMAC {:?}, ratio {:.2}",
        raw[1],
        hmac.as_secs_f64() / raw[1].as_secs_f64()
    );
    println!("one ECDSA and one HMAC with another key each time loaded: {switch:?}");
    println!("32 random bytes: {seal:?}");
}
