//! Logs, proofs and checkpoints that somebody hands to a verifier.
#![no_main]

use std::sync::LazyLock;

use edgekeep_audit::checkpoint::Checkpoint;
use edgekeep_audit::entry::Shown;
use edgekeep_audit::note::{self, VerifierKey};
use edgekeep_audit::{proof, tree};
use libfuzzer_sys::fuzz_target;

/// The key of RFC-like test vectors of signed notes.
static KEY: LazyLock<VerifierKey> = LazyLock::new(|| {
    "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
        .parse()
        .expect("a verifier's key")
});

fuzz_target!(|content: &[u8]| {
    let text = String::from_utf8_lossy(content);
    assert!(proof::check(&text, &KEY).is_err(), "nobody has this key");
    let _ = note::open(&text, &KEY);
    let _ = Checkpoint::parse(&text);
    let _ = text.parse::<VerifierKey>();
    let _ = serde_json::from_slice::<Shown>(content);
    let _ = tree::leaf_hash(content);
});
