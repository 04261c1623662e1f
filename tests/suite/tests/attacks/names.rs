//! Hostile names: on every route that takes one, the status is what is documented, and no
//! file appears anywhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, VERSION, http, wait_for};
use serde_json::json;

use crate::wait_for_edge_ca;

/// As they stand in the path, percent-encoded or not. None is the id of a module.
fn hostile() -> Vec<String> {
    let mut names: Vec<String> = [
        "..",
        ".",
        "%2e%2e",
        "%2E",
        "%2e%2e%2f%2e%2e%2fek-evil",
        "..%2f..%2f..%2f..%2f..%2f..%2ftmp%2fek-evil",
        "a%2Fb",
        "a%2fek-evil",
        "%2Ftmp%2Fek-evil",
        "a%5Cb",
        "$",
        "%24",
        "$$m1",
        "%24%24edgeAgent",
        "$.x",
        "a$b",
        "m1%00",
        "m1%00.sock",
        "m1%0a",
        "m1%20",
        "+m1",
        "m1%3Fstart",
        "m1%23",
        "%C3%A9",
        "-m1",
        "_m1",
        ".m1",
        "m1;id",
        "m1%7Cid",
        "%2524edgeAgent",
        "m1*",
        "m1%22",
        "m1'",
        "m1%60id%60",
        "%F0%9F%98%80",
    ]
    .map(str::to_owned)
    .into();
    names.push("m".repeat(129));
    names.push("m".repeat(200));
    names.push(format!("${}", "m".repeat(200)));
    names.push("%2e%2e%2f".repeat(50));
    names
}

/// The files under a folder, without those that grow by themselves.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            // Logs, the trail of refusals and the log of key uses may grow into a second
            // file.
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "jsonl" && extension != "log") {
                found.insert(path);
            }
        }
    }
    found
}

/// The files of a device at rest. A daemon that runs writes files of its own at any
/// moment.
struct AtRest(BTreeSet<PathBuf>);

impl AtRest {
    /// Stops the daemons for as long as it takes to look.
    fn of(device: &mut Device) -> Self {
        settled(device);
        let files = stopped(device);
        device.start_daemons();
        settled(device);
        Self(files)
    }

    /// Stops the daemons and asserts that no file has come or gone.
    fn assert_unchanged(&self, device: &mut Device) {
        let after = stopped(device);
        let changed: Vec<_> = after.symmetric_difference(&self.0).collect();
        assert!(changed.is_empty(), "{changed:?}");
        assert_eq!(evil_outside(), Vec::<String>::new());
    }
}

/// Waits until a device has made the files that it makes by itself.
fn settled(device: &Device) {
    wait_for("the agent to get a signature", || {
        (device.agent().sign().status == 200).then_some(())
    });
    wait_for_edge_ca(device);
}

/// Stops all daemons in the order of their needs and returns the files that are left.
fn stopped(device: &mut Device) -> BTreeSet<PathBuf> {
    for daemon in [Daemon::Moduled, Daemon::Identityd, Daemon::Keyd] {
        device.stop(daemon);
    }
    files(device.root().path())
}

fn evil_outside() -> Vec<String> {
    let entries = ["/tmp", "/", "/run", "/var/lib"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok());
    let names = entries.flat_map(|entries| {
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned())
    });
    names.filter(|name| name.starts_with("ek-evil")).collect()
}

#[test]
fn every_management_route_refuses_every_hostile_name() {
    let mut device = Device::builder().start();
    let before = AtRest::of(&mut device);
    let spec = device.spec("m1", "calls", "g");
    let hub = device.cloud().state().devices;
    for name in hostile() {
        let routes = [
            ("GET", format!("/modules/{name}"), None),
            ("PUT", format!("/modules/{name}"), Some(spec.clone())),
            ("DELETE", format!("/modules/{name}"), None),
            ("POST", format!("/modules/{name}/prepareupdate"), Some(spec.clone())),
            ("POST", format!("/modules/{name}/start"), None),
            ("POST", format!("/modules/{name}/stop"), None),
            ("POST", format!("/modules/{name}/restart"), None),
            ("GET", format!("/modules/{name}/logs"), None),
            ("PUT", format!("/identities/{name}"), Some(json!({}))),
            ("DELETE", format!("/identities/{name}"), None),
        ];
        for (method, path, body) in routes {
            let answer = device.agent().manage(method, &format!("{path}?{VERSION}"), body.clone());
            assert_eq!(answer.status, 400, "{method} {path}: {}", answer.text());
            assert!(
                answer.message().starts_with("module id"),
                "{method} {path}: {}",
                answer.text()
            );
            // The text itself is not repeated: it may be meant for whoever reads the log.
            assert!(!answer.text().contains("evil"), "{}", answer.text());
        }
        // As an action, a name is no route.
        let action = device.agent().manage("POST", &format!("/modules/m1/{name}?{VERSION}"), None);
        assert_eq!(action.status, 404, "{name}: {}", action.text());
    }
    before.assert_unchanged(&mut device);
    assert_eq!(device.cloud().state().devices, hub);
    assert_eq!(device.cloud().state().calls.unknown, 0, "nothing odd went to the hub");
}

#[test]
fn hostile_names_in_bodies_are_refused() {
    let mut device = Device::builder().start();
    let before = AtRest::of(&mut device);
    let good = device.spec("m1", "calls", "g");
    let long = "m".repeat(200);
    for name in [
        "..",
        ".",
        "",
        " ",
        "/tmp/ek-evil",
        "../../ek-evil",
        "a/b",
        "$",
        "m1\u{0}",
        "m1\n",
        "é",
        "m1 ",
        &long,
    ] {
        let mut spec = good.clone();
        spec["name"] = json!(name);
        for (method, path) in
            [("POST", "/modules"), ("POST", "/modules/m1/prepareupdate"), ("PUT", "/modules/m1")]
        {
            let answer =
                device.agent().manage(method, &format!("{path}?{VERSION}"), Some(spec.clone()));
            assert_eq!(answer.status, 400, "{method} {path} {name:?}: {}", answer.text());
        }
        let answer = device.agent().manage(
            "POST",
            &format!("/identities?{VERSION}"),
            Some(json!({ "moduleId": name })),
        );
        assert_eq!(answer.status, 400, "{name:?}: {}", answer.text());
    }
    before.assert_unchanged(&mut device);
}

#[test]
fn every_workload_route_refuses_every_hostile_name() {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let before = AtRest::of(&mut device);
    let sockets = [device.module_socket("m1"), device.root().legacy_workload_socket()];
    for name in hostile() {
        for rest in [
            "genid/{g}/sign",
            "genid/{g}/encrypt",
            "genid/{g}/decrypt",
            "genid/{g}/certificate/server",
            "certificate/identity",
        ] {
            let target = format!("/modules/{name}/{rest}?{VERSION}");
            for socket in &sockets {
                let answer = m1.call_at(socket, "POST", &target, Some(json!({}))).unwrap();
                assert_eq!(answer.status, 400, "{target}: {}", answer.text());
            }
        }
        // In the generation's place it is another generation.
        let answer = m1.call(
            "POST",
            &format!("/modules/m1/genid/{name}/sign?{VERSION}"),
            Some(json!({"data": ""})),
        );
        assert_eq!(answer.status, 403, "{name}: {}", answer.text());
    }
    let _ = m1.sign().expect(200);
    before.assert_unchanged(&mut device);
}

#[test]
fn paths_that_only_look_like_a_route_are_none() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    for path in [
        "/modules/m1/genid/1/sign/",
        "/modules/m1//genid/1/sign",
        "/modules//genid/1/sign",
        "/./modules/m1/genid/1/sign",
        "/x/../modules/m1/genid/1/sign",
        "/modules%2Fm1/genid/1/sign",
        "/MODULES/m1/genid/1/sign",
        "/modules/m1/genid/1/Sign",
        "/modules/%ff/genid/1/sign",
        "//modules/m1/genid/1/sign",
    ] {
        let answer = m1.call("POST", &format!("{path}?{VERSION}"), Some(json!({"data": ""})));
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
    }
}

#[test]
fn the_inner_services_refuse_hostile_names_too() {
    let mut device = Device::builder().start();
    let before = AtRest::of(&mut device);
    for name in hostile() {
        for method in ["GET", "PUT", "DELETE"] {
            let body = (method == "PUT").then(|| json!({ "type": "aziot", "moduleId": "x" }));
            let target = format!("/identities/modules/{name}?api-version=2020-09-01&type=aziot");
            let answer =
                http::call(&device.root().identityd_socket(), method, &target, body.as_ref())
                    .unwrap();
            assert_eq!(answer.status, 400, "{method} {target}: {}", answer.text());
        }
    }
    for name in [
        "..%2f..%2f..%2fek-evil",
        "%2Ftmp%2Fek-evil",
        "a%00b",
        "a%20b",
        "%C3%A9",
        &"k".repeat(2000),
    ] {
        let target = format!("/certificates/{name}?api-version=2020-09-01");
        let certificates = device.root().certd_socket();
        for (method, body) in
            [("GET", None), ("DELETE", None), ("PUT", Some(json!({ "pem": "x" })))]
        {
            let answer = http::call(&certificates, method, &target, body.as_ref()).unwrap();
            assert!(
                (400..500).contains(&answer.status) || answer.status == 204,
                "{method} {target}: {}",
                answer.text()
            );
        }
        let target = format!("/key/{name}?api-version=2021-05-01");
        let answer = http::call(&device.root().keyd_socket(), "GET", &target, None).unwrap();
        assert!((400..500).contains(&answer.status), "{target}: {}", answer.text());
    }
    before.assert_unchanged(&mut device);
    for daemon in Daemon::ALL {
        assert!(!device.log(daemon).contains("panicked"), "{}", daemon.name());
    }
}

#[test]
fn a_name_that_leaves_no_room_for_a_socket_is_refused_with_what_to_do() {
    let mut device = Device::builder().start();
    let before = AtRest::of(&mut device);
    // A valid id, which the hub accepts; the path of its socket does not fit into an
    // address.
    let name = "m".repeat(128);
    let spec = device.spec(&name, "calls", "g");
    let answer = device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec));
    assert!((400..500).contains(&answer.status), "{}: {}", answer.status, answer.text());
    assert!(answer.message().contains("socket"), "{}", answer.text());
    before.assert_unchanged(&mut device);
}
