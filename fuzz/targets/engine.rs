//! Answers of a container engine.
#![no_main]

use edgekeep_core::image_policy::Image;
use edgekeep_runtime::engine::{Container, wanted_networks};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|content: &[u8]| {
    let Ok(answer) = serde_json::from_slice::<Value>(content) else { return };
    if let Some(container) = Container::from_inspect(&answer) {
        let _ = (container.status(), container.options(), container.is_module());
    }
    let _ = Image::from_inspect(&answer);
    if let Some(body) = answer.as_object() {
        let _ = wanted_networks(body);
    }
});
