//! Deployment manifests, as a hub or a file says them: read, or refused with a text.
#![no_main]

use edgekeep_core::deployment::Deployment;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for parent in [None, Some("parent.example")] {
        if let Err(error) = Deployment::parse(text, parent) {
            assert!(!error.to_string().is_empty());
        }
    }
});
