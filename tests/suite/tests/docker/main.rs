//! Devices whose modules are containers. `EDGEKEEP_TEST_ENGINE=unix:///path` names the
//! engine, which runs on this host; without it each test says that it is skipped.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod behaviour;
mod engine_away;
mod engine_faults;
mod gate;
mod image_collection;
mod images;
mod lifecycle;
mod options;
mod tls_peers;
mod touched;
mod updates;
mod volumes;

use std::path::PathBuf;

use edgekeep_testkit::{Builder, Device, Engine, Image, program, wait_for};

/// Returns the programs in the images of these tests. The images run the first program
/// unless they are told otherwise.
fn programs() -> Vec<PathBuf> {
    let mut programs: Vec<PathBuf> = ["calls", "intruder", "thermometer"].map(program).into();
    programs.extend(["/bin/sh", "/bin/cp", "/bin/sleep"].map(PathBuf::from));
    programs
}

/// A device with a container engine and a host program as its agent.
fn with_engine(engine: &Engine) -> Builder {
    Device::builder().engine(engine, engine.uri())
}

fn image(engine: &Engine) -> Image {
    engine.import(&programs(), "first")
}

/// Waits until the device has its Edge CA, which module certificates need.
fn wait_for_edge_ca(device: &Device) {
    wait_for("the Edge CA certificate", || device.status().edge_ca_expiration);
}
