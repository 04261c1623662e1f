//! Measures the use of a key through a backend next to the bare call of the same token or
//! TPM, for `cargo xtask bench keys`.
//!
//! `edgekeep-bench-keys pkcs11 LIBRARY URI` uses one token for both;
//! `edgekeep-bench-keys tpm BARE BACKEND FOLDER` two TPMs (TCTI strings, equal but for
//! the address: a simulated TPM serves one connection at a time). For each line on the
//! standard input it measures one round, the two sides in turn, and prints one line of
//! JSON: `[{"operation", "bareUs", "backendUs", "waitedUs"}]`, medians in microseconds,
//! the last one of the backend's time of waiting for a TPM. It leaves two keys,
//! `bench-key` and `bench-pair`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is what it is for")]

mod pkcs11;
mod tpm;

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use edgekeep_core::id::KeyId;
use edgekeep_daemon::arguments::Synopsis;
use edgekeep_hsm::{KeyBackend, PairAlgorithm, SymmetricKey, Usage};
use serde_json::{Value, json};

/// Time for which a side of an operation is measured at once, and the number of such
/// spells in a round.
const SPELL: Duration = Duration::from_millis(120);
const SPELLS: usize = 4;
/// Inputs that are signed.
const DIGEST: [u8; 32] = [7; 32];
const MESSAGE: [u8; 64] = [7; 64];

/// One operation, both ways.
pub(crate) struct Pair<'a> {
    operation: &'static str,
    bare: Box<dyn FnMut() -> anyhow::Result<()> + 'a>,
    backend: Box<dyn FnMut() -> anyhow::Result<()> + 'a>,
    /// Time that the backend has waited for its hardware; absent where that cannot be
    /// told.
    waited: Option<Box<dyn Fn() -> Duration + 'a>>,
}

const SYNOPSIS: Synopsis = Synopsis {
    name: "edgekeep-bench-keys",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Measures the use of a key through a backend next to the bare call.",
    usage: "pkcs11 LIBRARY URI | tpm BARE-TCTI BACKEND-TCTI FOLDER",
    flags: &[],
    variables: &[],
};

fn main() -> ExitCode {
    let given = match SYNOPSIS.given(3..=4) {
        Ok(given) => given,
        Err(code) => return code,
    };
    let words: Vec<&str> = given.operands.iter().filter_map(|word| word.to_str()).collect();
    let done = match words[..] {
        ["pkcs11", library, uri] => pkcs11::measure(Path::new(library), uri),
        ["tpm", bare, backend, folder] => measure_tpm(bare, backend, Path::new(folder)),
        _ => return SYNOPSIS.refuse("arguments that do not fit together"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgekeep-bench-keys: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure_tpm(bare: &str, backend: &str, folder: &Path) -> anyhow::Result<()> {
    tpm::measure(&bare.parse()?, backend.parse()?, folder)
}

/// The ids of the keys that are used, made if they are not there. No symmetric one where
/// the backend keeps none.
pub(crate) fn keys(backend: &dyn KeyBackend) -> anyhow::Result<(Option<KeyId>, KeyId)> {
    let (key, pair): (KeyId, KeyId) = ("bench-key".parse()?, "bench-pair".parse()?);
    backend.create_key_pair(&pair, &[PairAlgorithm::EcP256])?;
    let made = backend.create_key(&key, Usage { derive_or_sign: true, encrypt: false });
    Ok((made.is_ok().then_some(key), pair))
}

pub(crate) fn hmac(backend: &dyn KeyBackend, key: &KeyId) -> anyhow::Result<()> {
    backend.hmac_sha256(SymmetricKey::Stored(key), &MESSAGE)?;
    Ok(())
}

pub(crate) fn ecdsa(backend: &dyn KeyBackend, pair: &KeyId) -> anyhow::Result<()> {
    backend.sign_ecdsa(pair, &DIGEST)?;
    Ok(())
}

/// A round for each line of input.
pub(crate) fn serve(pairs: &mut [Pair<'_>]) -> anyhow::Result<()> {
    let no_clock = || Duration::ZERO;
    for pair in &mut *pairs {
        spell(&mut pair.bare, &no_clock)?;
        spell(&mut pair.backend, &no_clock)?;
    }
    for line in std::io::stdin().lock().lines() {
        line?;
        let mut results = Vec::new();
        for pair in &mut *pairs {
            let (mut bare, mut backend, mut waited) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..SPELLS {
                bare.push(spell(&mut pair.bare, &no_clock)?.0);
                let (time, wait) =
                    spell(&mut pair.backend, pair.waited.as_deref().unwrap_or(&no_clock))?;
                backend.push(time);
                waited.push(wait);
            }
            // The best spells: what else the machine does only ever adds.
            let best = |times: Vec<f64>| times.into_iter().fold(f64::INFINITY, f64::min);
            let waited = pair.waited.is_some().then(|| best(waited));
            results.push(json!({
                "operation": pair.operation, "bareUs": best(bare), "backendUs": best(backend), "waitedUs": waited,
            }));
        }
        println!("{}", Value::from(results));
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// The median time of what is done for a while, and that by another clock, in
/// microseconds.
fn spell(
    run: &mut dyn FnMut() -> anyhow::Result<()>,
    clock: &dyn Fn() -> Duration,
) -> anyhow::Result<(f64, f64)> {
    let (start, mut times, mut others) = (Instant::now(), Vec::new(), Vec::new());
    while start.elapsed() < SPELL {
        let before = clock();
        let begin = Instant::now();
        run()?;
        times.push(begin.elapsed());
        others.push(clock() - before);
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    };
    Ok((median(times), median(others)))
}
