//! The intruder's tries, each of which must be refused with a reason in the audit trail.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Demo, LIMIT, Place, manifest};
use crate::device::{self, Device};
use crate::http::{self, Body};

/// Calls that carry identity in one try.
const CALLS: usize = 4;

/// Every way in.
pub(super) fn all(
    demo: &Demo,
    device: &Device,
    place: &Place<'_>,
    manifest: &Path,
) -> anyhow::Result<()> {
    let generation = generation(device)?;
    let arguments = |socket: &Path| {
        let socket = socket.display().to_string();
        ["--json", "--module", "thermometer", "--genid", &generation, "--socket", &socket]
            .map(str::to_owned)
    };
    let own = device.module_sockets().join("thermometer.sock");
    let legacy = device.legacy_socket();

    for (what, socket) in
        [("a program, thermometer's socket", &own), ("a program, the shared socket", &legacy)]
    {
        refused(demo, device, what, |_| {
            let mut intruder = Command::new(demo.programs.join("intruder"));
            let output =
                intruder.args(arguments(socket)).output().context("cannot start the intruder")?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })?;
    }
    // As a module in its own right: running, measured, with an identity, but not this
    // one.
    refused(demo, device, "another module, the shared socket", |device| {
        let changed = demo.manifest(place, Some(&arguments(&legacy)))?;
        manifest::write(manifest, &changed)?;
        let log = || {
            let output = device.edgekeep(&["logs", "intruder"]).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let finished = |log: String| (verdicts(&log).len() == CALLS).then_some(log);
        crate::interrupt::poll(LIMIT, || log().map(finished))?
            .context("the intruder has not finished")
    })?;
    if let Place::Engine(engine) = place {
        refused(demo, device, "engine exec into thermometer", |_| {
            // The container knows its socket by another path.
            let container = http::json(engine, "GET", "/containers/thermometer/json", Body::Empty)?;
            let variables = container["Config"]["Env"].as_array().cloned().unwrap_or_default();
            let uri = variables
                .iter()
                .filter_map(Value::as_str)
                .find_map(|text| text.strip_prefix("IOTEDGE_WORKLOADURI="));
            let socket = uri
                .and_then(|uri| uri.strip_prefix("unix://"))
                .context("the container has no workload socket")?;
            exec(engine, "thermometer", &arguments(Path::new(socket)))
        })?;
    }
    Ok(())
}

/// The generation of thermometer's identity, which anybody who reaches the management
/// socket may know.
fn generation(device: &Device) -> anyhow::Result<String> {
    let identities = device::management(&device.management_socket(), "/identities/")?;
    let identities = identities["identities"].as_array().cloned().unwrap_or_default();
    let own = identities
        .iter()
        .find(|identity| identity["moduleId"] == "thermometer")
        .context("no identity")?;
    Ok(own["generationId"].as_str().context("no generation")?.to_owned())
}

/// Makes one try and shows that all of it was refused, and why.
fn refused(
    demo: &Demo,
    device: &Device,
    what: &str,
    attempt: impl FnOnce(&Device) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let before = device.refusals().len();
    let output = attempt(device).with_context(|| format!("the try by {what} was not made"))?;
    let verdicts = verdicts(&output);
    ensure!(verdicts.len() == CALLS, "the intruder ({what}) did not finish: {output}");
    for verdict in &verdicts {
        ensure!(verdict["verdict"] == "refused", "{what}: {verdict} was not refused");
    }
    // Each is written before its answer is sent.
    let entries = device.refusals().split_off(before);
    ensure!(
        entries.len() >= CALLS,
        "{what}: only {} of {CALLS} refusals are in the audit trail",
        entries.len()
    );
    let reasons: BTreeSet<&str> =
        entries.iter().filter_map(|entry| entry["reason"].as_str()).collect();
    let reasons = reasons.into_iter().collect::<Vec<_>>().join(", ");
    demo.show.step(
        &format!("refused: {what}"),
        &format!("{CALLS} of {CALLS} calls; audit trail: {reasons}"),
    );
    Ok(())
}

/// Reads the intruder's verdict on each call that carries identity.
fn verdicts(output: &str) -> Vec<Value> {
    let lines = output
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.get(line.find('{')?..)?).ok());
    // The trust bundle is public.
    lines.filter(|line| line["verdict"].is_string() && line["try"] != "trust-bundle").collect()
}

/// Runs a program in a container by the engine's exec, and returns what it prints.
fn exec(engine: &Path, container: &str, arguments: &[String]) -> anyhow::Result<String> {
    let mut words = vec!["/bin/intruder".to_owned()];
    words.extend_from_slice(arguments);
    // With a terminal the output comes as it is, in no frames.
    let body = json!({ "AttachStdout": true, "AttachStderr": true, "Tty": true, "Cmd": words });
    let made =
        http::json(engine, "POST", &format!("/containers/{container}/exec"), Body::Json(&body))?;
    let id = made["Id"].as_str().context("the engine made no exec")?;
    let body = json!({ "Detach": false, "Tty": true });
    let (status, output) =
        http::call(engine, "POST", &format!("/exec/{id}/start"), Body::Json(&body))?;
    ensure!(status == 200 || status == 101, "exec: HTTP {status}");
    Ok(String::from_utf8_lossy(&output).into_owned())
}
