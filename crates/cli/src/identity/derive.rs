//! The key of one device, derived of its enrolment group's: on the operator's machine, so
//! that the group's key gets onto no device.

use std::io::Read as _;

use anyhow::Context as _;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Longest text of a group's key, in bytes.
const LIMIT: u64 = 1024;

/// Reads a group's key in base64 from standard input, and returns the key of the device
/// that registers under this id, in base64.
pub(super) fn from_standard_input(registration_id: &str) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().lock().take(LIMIT).read_to_string(&mut text);
    read.context("cannot read the group's key from standard input")?;
    derived(text.trim(), registration_id)
}

/// HMAC-SHA256 of the registration id in lower case under the group's key.
fn derived(group: &str, registration_id: &str) -> anyhow::Result<Zeroizing<String>> {
    let key = STANDARD.decode(group).map(Zeroizing::new);
    let key = key.ok().filter(|key| !key.is_empty());
    let key = key.context("standard input is not the group's key in base64")?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let derived = hmac::sign(&key, registration_id.to_lowercase().as_bytes());
    Ok(Zeroizing::new(STANDARD.encode(derived.as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_one_that_openssl_derives() {
        let group = STANDARD.encode([7; 64]);
        let openssl = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!(
                "printf press-04 | openssl dgst -sha256 -mac HMAC -macopt hexkey:{} -binary | base64",
                "07".repeat(64)
            ))
            .output()
            .unwrap();
        let expected = String::from_utf8(openssl.stdout).unwrap();
        assert_eq!(*derived(&group, "Press-04").unwrap(), expected.trim());
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        for text in ["", "geheim!", "????"] {
            let error = derived(text, "press-04").unwrap_err().to_string();
            assert_eq!(error, "standard input is not the group's key in base64");
        }
    }
}
