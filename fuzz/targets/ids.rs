//! Names out of paths, headers and settings: what is read is written back and read again
//! as the same, and a cleaned text is one line within its limit.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use edgekeep_core::authority::Authority;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::foreign_text;
use edgekeep_core::host::{Capability, UnitName};
use edgekeep_core::id::{CertId, ContainerId, KeyId, ModuleId};
use libfuzzer_sys::fuzz_target;

fn reads_back<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok().as_ref(), Some(&value), "{text:?}");
    }
}

fuzz_target!(|text: &str| {
    reads_back::<ModuleId>(text);
    reads_back::<KeyId>(text);
    reads_back::<CertId>(text);
    reads_back::<ContainerId>(text);
    reads_back::<Sha256Digest>(text);
    reads_back::<Authority>(text);
    reads_back::<UnitName>(text);
    reads_back::<Capability>(text);
    let line = foreign_text::cleaned(text, 80);
    assert!(line.chars().count() <= 80 && !line.chars().any(char::is_control), "{line:?}");
});
