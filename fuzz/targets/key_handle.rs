//! Key handles: none that this daemon did not make is opened.
#![no_main]

use std::sync::LazyLock;

use edgekeep_api::keyd::KeyHandle;
use edgekeep_keyd::handle::Handles;
use libfuzzer_sys::fuzz_target;

static HANDLES: LazyLock<Handles> = LazyLock::new(|| Handles::new(&vec![7; 32].into()));

fuzz_target!(|text: &str| {
    assert!(HANDLES.open(&KeyHandle(text.to_owned())).is_err());
});
