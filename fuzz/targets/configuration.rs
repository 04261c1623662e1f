//! Configuration files: translated, or refused with diagnostics that can be shown.
#![no_main]

use edgekeep_config::{
    Environment, Users, referenced_credentials, referenced_files, render, translate,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let environment = Environment {
        users: Users::all(1000),
        hostname: "device".to_owned(),
        ..Default::default()
    };
    let _ = referenced_files(text);
    let _ = referenced_credentials(text);
    match translate(text, &environment) {
        Ok(translated) => {
            let _ = render(&translated.notices, "config.toml", false);
        }
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty());
            let _ = render(&diagnostics, "config.toml", true);
        }
    }
});
