//! Daemons that accept and never answer: a stopped process, whose sockets the kernel goes
//! on accepting at.

use std::process::Output;
use std::time::{Duration, Instant};

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::Device;
use rustix::process::{Pid, Signal, kill_process};

/// A daemon that is stopped, until this goes.
struct Stopped(Pid);

impl Stopped {
    fn new(device: &Device, daemon: Daemon) -> Self {
        let pid = Pid::from_raw(i32::try_from(device.pid(daemon)).unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Runs all of them at once, and returns how each ended and how long it took.
fn all(device: &Device, verbs: &[&[&str]]) -> Vec<(Output, Duration)> {
    std::thread::scope(|threads| {
        let running: Vec<_> = verbs
            .iter()
            .map(|words| {
                threads.spawn(|| {
                    let begun = Instant::now();
                    (device.edgekeep(words), begun.elapsed())
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Each verb waits 8 s; the rest is for a machine that is busy.
const LONGEST: Duration = Duration::from_secs(25);

#[track_caller]
fn assert_given_up(device: &Device, unit: &str, verbs: &[&[&str]]) {
    for (words, (output, took)) in verbs.iter().zip(all(device, verbs)) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(took < LONGEST, "{words:?} took {took:?}");
        assert!(said.contains(unit) && said.contains("not answer"), "{words:?}: {said}");
        assert!(said.contains(&format!("systemctl restart {unit}")), "{words:?}: {said}");
    }
}

#[test]
fn every_verb_gives_a_silent_moduled_up_and_names_it_and_the_remedy() {
    let device = Device::builder().start();
    let _stopped = Stopped::new(&device, Daemon::Moduled);
    assert_given_up(
        &device,
        "edgekeep-moduled",
        &[
            &["list"],
            &["logs", "m"],
            &["logs", "m", "--follow"],
            &["restart", "m"],
            &["attest", "1"],
            &["attest", "--refusals"],
            &["images"],
            &["images", "--collect"],
            &["metrics"],
            &["metrics", "moduled"],
            &["log-level"],
            &["log-level", "moduled", "warn"],
        ],
    );
    // The others are told all the same.
    let output = device.edgekeep(&["log-level"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("keyd       info"));
}

#[test]
fn every_verb_gives_a_silent_keyd_or_identityd_up_and_names_it_and_the_remedy() {
    let device = Device::builder().start();
    let folder = device.root().path().join("copy").display().to_string();
    {
        let _stopped = Stopped::new(&device, Daemon::Keyd);
        assert_given_up(
            &device,
            "edgekeep-keyd",
            &[
                &["audit", "show"],
                &["audit", "verify"],
                &["audit", "prove", "0"],
                &["audit", "export", &folder],
                &["metrics", "keyd"],
                &["log-level", "keyd"],
            ],
        );
    }
    let _stopped = Stopped::new(&device, Daemon::Identityd);
    assert_given_up(
        &device,
        "edgekeep-identityd",
        &[
            &["certs", "list"],
            &["certs", "show", "aziot-edged-ca"],
            &["certs", "renew", "aziot-edged-ca"],
            &["certs", "export", "aziot-edged-ca"],
            &["metrics", "identityd"],
            &["log-level", "identityd"],
        ],
    );
}
