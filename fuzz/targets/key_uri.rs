//! URIs of keys in tokens (RFC 7512) and of simulated TPMs.
#![no_main]

use edgekeep_hsm::uri::KeyUri;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(uri) = text.parse::<KeyUri>() {
        let _ = format!("{uri:?}");
    }
    let _ = text.parse::<edgekeep_tpm::Tcti>();
});
