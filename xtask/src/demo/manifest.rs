//! The example manifest, with what only this machine knows.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

/// Fills the example in: where the modules report and whom they trust; as containers if
/// asked to. With `intruder` the intruder runs with these arguments and may see every
/// workload socket of the device.
pub(super) fn for_demo(
    mut manifest: Value,
    folder: &Path,
    containers: bool,
    intruder: Option<&[String]>,
) -> Value {
    let modules = &mut manifest["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"];
    let path = |name: &str| folder.join(name).display().to_string();
    let (report, authority) = (path("report"), path("sim-ca.pem"));
    let thermometer = &mut modules["thermometer"];
    thermometer["env"]["EDGEKEEP_DEMO_REPORT"] =
        json!({ "value": format!("{report}/thermometer.jsonl") });
    thermometer["env"]["EDGEKEEP_DEMO_HUB_CA"] = json!({ "value": authority });

    let command = intruder.unwrap_or(&[]);
    let mut options = [json!({}), json!({ "Cmd": ["--serve"] })];
    if intruder.is_some() {
        options[1] = json!({ "Cmd": command });
    }
    if containers {
        // The hub is on this machine, so the thermometer takes the host's network; the
        // folders have the same paths inside.
        options[0]["HostConfig"] = json!({ "NetworkMode": "host", "Binds": [format!("{report}:{report}"), format!("{authority}:{authority}:ro")] });
        if intruder.is_some() {
            let binds = ["run/iotedge", "var/lib/edgekeep/moduled/mnt"]
                .map(|name| format!("{0}:{0}", path(name)));
            options[1]["HostConfig"] = json!({ "Binds": binds });
        }
    }
    for (name, options) in ["thermometer", "intruder"].into_iter().zip(options) {
        if containers {
            modules[name]["type"] = "docker".into();
            modules[name]["settings"]["image"] = format!("edgekeep-demo/{name}:1").into();
            modules[name]["imagePullPolicy"] = "never".into();
        }
        modules[name]["settings"]["createOptions"] = options.to_string().into();
    }
    manifest
}

/// Writes the manifest in place: an agent in a container was given this very file. One
/// that reads half of it keeps what it has and reads again.
pub(super) fn write(path: &Path, manifest: &Value) -> anyhow::Result<()> {
    std::fs::write(path, format!("{manifest:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_options_are_escaped_text_as_in_every_manifest() {
        let example = json!({ "modulesContent": { "$edgeAgent": { "properties.desired": { "modules": {
            "thermometer": { "type": "process", "settings": {}, "env": {} },
            "intruder": { "type": "process", "settings": {} },
        } } } } });
        let manifest = for_demo(example, Path::new("/d"), true, Some(&["--json".to_owned()]));
        let modules = &manifest["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"];
        let options = modules["intruder"]["settings"]["createOptions"].as_str().unwrap();
        let options: Value = serde_json::from_str(options).unwrap();
        assert_eq!(options["Cmd"], json!(["--json"]));
        assert_eq!(options["HostConfig"]["Binds"][0], "/d/run/iotedge:/d/run/iotedge");
        assert_eq!(modules["thermometer"]["settings"]["image"], "edgekeep-demo/thermometer:1");
    }
}
