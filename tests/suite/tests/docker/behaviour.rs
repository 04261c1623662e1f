//! Behaviour of the engine that deployments and operators are used to, through the
//! daemon: logs, networks, graces, restarts.

use std::time::{Duration, Instant};

use edgekeep_core::attestation::DenyReason;
use edgekeep_testkit::{Device, Engine, VERSION, http, wait_for};
use serde_json::{Value, json};

use crate::{image, with_engine};

/// A module that runs a script in the image's shell.
fn scripted(device: &Device, name: &str, image: &str, script: &str) -> Value {
    let generation = device.create_identity(name);
    let mut spec = device.container_spec(name, image, &generation);
    let options = &mut spec["config"]["settings"]["createOptions"];
    options["Entrypoint"] = json!(["/bin/sh"]);
    options["Cmd"] = json!(["-c", script]);
    spec
}

fn inspected(engine: &Engine, name: &str, what: &str) -> String {
    engine.says(&["inspect", "-f", what, name])
}

#[test]
fn logs_are_the_engines_own_to_the_byte_whatever_part_is_asked_for() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("talker"));
    let device = with_engine(&engine).start();
    let script = "echo first; sleep 2.1; echo second >&2; printf '\\374 is no text\\n\\n'; sleep 0.5; echo third";
    device.create_and_start(scripted(&device, &name, image.name(), script));
    let ours = |query: &str| {
        let answer = device.ask("GET", &format!("/modules/{name}/logs?{VERSION}{query}"), None);
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        answer.body
    };
    let engines = |query: &str| {
        let target = format!("/containers/{name}/logs?stdout=true&stderr=true{query}");
        http::call(&engine.socket(), "GET", &target, None).unwrap().body
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Asked for while it runs: it ends with the container.
    let (followed, engines_own) = std::thread::scope(|scope| {
        let own = scope.spawn(|| engines("&follow=true"));
        (ours("&follow=true"), own.join().unwrap())
    });
    assert_eq!(text(&followed), text(&engines_own));
    assert_eq!(followed, engines(""));
    assert!(
        text(&followed).contains("first") && text(&followed).ends_with("third\n"),
        "{}",
        text(&followed)
    );

    // The first line's second, and the one after: the second line is later than both.
    let stamped = text(&ours("&timestamps=true&tail=all"));
    let stamp = &stamped[8..27];
    let seconds: i64 = date(&format!("{stamp}Z")).parse().unwrap();
    let (since, until) = (format!("&since={}", seconds + 1), format!("&until={}", seconds + 1));
    let mut seen = Vec::new();
    for query in [
        "",
        "&tail=all",
        "&tail=0",
        "&tail=1",
        "&tail=2",
        "&tail=100",
        "&timestamps=true",
        "&timestamps=true&tail=1",
        &since,
        &until,
        &format!("{since}&tail=1"),
        &format!("&since={seconds}&until={}", seconds + 60),
        &format!("{since}&until={}", seconds + 1),
        &format!("{since}&timestamps=true&follow=true"),
        "&follow=true&tail=1",
    ] {
        let answer = ours(query);
        // Podman's own answer is at times cut short.
        wait_for(&format!("the engine to say the same: {query}: {}", text(&answer)), || {
            (engines(query) == answer).then_some(())
        });
        seen.push(answer);
    }
    let has = |index: usize, word: &str| text(&seen[index]).contains(word);
    assert!(!has(8, "first") && has(8, "third"), "since");
    assert!(has(9, "first") && !has(9, "second"), "until");
    // Other ways to say the same moment.
    let same = format!("&since={}", date_text(seconds + 1));
    assert_eq!(ours(&same), seen[8]);
}

/// Seconds since the epoch of a time as logs have it.
fn date(text: &str) -> String {
    let output = std::process::Command::new("date").args(["-d", text, "+%s"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn date_text(seconds: i64) -> String {
    let at = format!("@{seconds}");
    let output = std::process::Command::new("date")
        .args(["-u", "-d", &at, "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_network_is_made_as_the_configuration_describes_it() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    // Not among the addresses that engines choose from, and this test's own.
    let (high, part) = (180 + std::process::id() / 250 % 60, std::process::id() % 250);
    let ipam = format!(
        "ipv6 = true\n[[moby_runtime.network.ipam.config]]\nsubnet = \"10.{high}.{part}.0/24\"\ngateway = \"10.{high}.{part}.9\"\n\
         ip_range = \"10.{high}.{part}.128/25\"\n\
         [[moby_runtime.network.ipam.config]]\nsubnet = \"fd5e:{part:x}::/64\"\n"
    );
    let device = Device::builder().engine_with_network(&engine, &ipam).start();
    let mut spec = scripted(&device, &name, image.name(), "exec sleep 1000");
    spec["config"]["settings"]["createOptions"].as_object_mut().unwrap().remove("HostConfig");
    device.create_and_start(spec);
    let network: Value = serde_json::from_str(&engine.says(&[
        "network",
        "inspect",
        "-f",
        "{{json .}}",
        &engine.network(),
    ]))
    .unwrap();
    assert_eq!(network["EnableIPv6"], true, "{network}");
    let configured = network["IPAM"]["Config"].as_array().unwrap();
    assert_eq!(configured.len(), 2, "{network}");
    let v4 = configured
        .iter()
        .find(|config| config["Subnet"] == format!("10.{high}.{part}.0/24"))
        .unwrap();
    assert_eq!(v4["Gateway"], format!("10.{high}.{part}.9"), "{network}");
    let addresses = inspected(
        &engine,
        &name,
        "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}",
    );
    let (v4, v6) = addresses.split_once(' ').unwrap();
    let last: u8 = v4.strip_prefix(&format!("10.{high}.{part}.")).unwrap().parse().unwrap();
    assert!(last >= 128, "{v4} is in the range");
    assert!(v6.starts_with(&format!("fd5e:{part:x}:")), "{v6}");
}

#[test]
fn a_module_that_ignores_the_signal_has_its_own_grace_and_no_more() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let device = with_engine(&engine).start();
    let mut spec =
        scripted(&device, &name, image.name(), "trap '' TERM; while true; do sleep 1000; done");
    spec["config"]["settings"]["createOptions"]["StopTimeout"] = json!(2);
    device.create_and_start(spec);
    let begun = Instant::now();
    let _ =
        device.agent().manage("POST", &format!("/modules/{name}/stop?{VERSION}"), None).expect(204);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2), "ended after {took:?}: before its grace was over");
    assert!(
        took < Duration::from_secs(9),
        "ended after {took:?}: the engine's grace is 10 s, its own 2 s"
    );
    assert_eq!(inspected(&engine, &name, "{{.State.ExitCode}}"), "137", "killed");
    let status = device.ask("GET", &format!("/modules/{name}?{VERSION}"), None).expect(200);
    assert_eq!(status["status"]["exitStatus"]["statusCode"], "137", "{status}");
}

#[test]
fn a_module_that_the_engine_starts_again_is_measured_anew() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let names = ["same", "other"].map(|name| engine.name(name));
    let tables = format!(
        "[module_policies]\n{:?} = \"executable\"\n{:?} = \"executable\"",
        names[0], names[1]
    );
    let device = with_engine(&engine).tables(&tables).start();
    for (name, change) in names.iter().zip(["", "echo >> /bin/calls"]) {
        let (caller, mut spec) = device.container_caller(name, image.name());
        let options = &mut spec["config"]["settings"]["createOptions"];
        options["HostConfig"]["RestartPolicy"] = json!({ "Name": "always" });
        options["Entrypoint"] = json!(["/bin/sh"]);
        // What its first run left in the writable layer is there in the second.
        let script =
            format!("if [ -e /tmp/again ]; then :; {change}\nfi; : > /tmp/again; exec /bin/calls");
        options["Cmd"] = json!(["-c", script]);
        device.create_and_start(spec);
        let _ = caller.sign().expect(200);
        let first = inspected(&engine, name, "{{.State.Pid}}");
        let pid = rustix::process::Pid::from_raw(first.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let second = wait_for("the engine to start it again", || {
            let pid = inspected(&engine, name, "{{.State.Running}} {{.State.Pid}}");
            pid.strip_prefix("true ").filter(|pid| *pid != first && *pid != "0").map(str::to_owned)
        });
        // Some engines take their time to tell of a restart; until then it is said that
        // the module does not run.
        wait_for("the second process to be known", || {
            let answer = caller.sign();
            if change.is_empty() {
                return (answer.status == 200).then_some(());
            }
            assert_eq!(answer.status, 403, "{}", answer.text());
            let newest = device.status().refusals.into_iter().next().expect("a refusal");
            assert_eq!(newest.module, *name);
            (newest.reason == DenyReason::ExecutableChanged).then_some(())
        });
        let shown = wait_for("the second process to be shown", || {
            let shown: Value =
                serde_json::from_slice(&device.edgekeep(&["attest", "--json", name]).stdout)
                    .ok()?;
            (shown["pid"].as_u64() == second.parse().ok()).then_some(shown)
        });
        assert_eq!(shown["allowed"], json!(change.is_empty()), "{shown}");
    }
}
