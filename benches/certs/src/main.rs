//! Measures bare key generation, for `cargo xtask bench certs`: the library and the calls
//! by which moduled makes the keys of module certificates, and nothing else.
//!
//! `edgekeep-bench-certs ALGORITHM THREADS KEYS` makes so many keys on so many threads
//! (`ec-p256` or `rsa-2048`) and prints one line of JSON: `{"made", "seconds"}`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is what it is for")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail};
use edgekeep_daemon::arguments::Synopsis;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::json;

/// Most threads that one run may take.
const THREADS: u64 = 256;

const SYNOPSIS: Synopsis = Synopsis {
    name: "edgekeep-bench-certs",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Measures bare key generation.",
    usage: "ec-p256|rsa-2048 THREADS KEYS",
    flags: &[],
    variables: &[],
};

type Generate = fn() -> Result<KeyPair, rcgen::Error>;

fn main() -> ExitCode {
    let given = match SYNOPSIS.given(3..=3) {
        Ok(given) => given,
        Err(code) => return code,
    };
    let words: Vec<&str> = given.operands.iter().filter_map(|word| word.to_str()).collect();
    let generate: Generate = match words[..] {
        ["ec-p256", ..] => || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        ["rsa-2048", ..] => || KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        _ => return SYNOPSIS.refuse("the first argument is ec-p256 or rsa-2048"),
    };
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let (Some(threads @ 1..=THREADS), Some(keys)) = (number(1), number(2)) else {
        return SYNOPSIS.refuse("THREADS and KEYS are numbers, of threads at most 256");
    };
    match measure(generate, threads, keys) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgekeep-bench-certs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(generate: Generate, threads: u64, keys: u64) -> anyhow::Result<()> {
    let left = AtomicU64::new(keys);
    let take =
        || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    let one_thread = || {
        let mut made = 0_u64;
        while take().is_ok() {
            generate().context("cannot make a key")?;
            made += 1;
        }
        anyhow::Ok(made)
    };
    let begin = Instant::now();
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one_thread)).collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(made) => made,
                Err(_) => bail!("a thread panicked"),
            })
            .sum::<anyhow::Result<u64>>()
    })?;
    println!("{}", json!({ "made": made, "seconds": begin.elapsed().as_secs_f64() }));
    Ok(())
}
