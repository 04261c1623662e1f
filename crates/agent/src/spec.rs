//! From a module of the manifest to the body of the management API's calls (wire facts
//! 2.3, 2.11). Pure.

use std::collections::BTreeMap;

use edgekeep_api::management::{EnvVar, ModuleConfig, ModuleSpec};
use edgekeep_core::deployment::{ImagePullPolicy, Module, ModuleType, RegistryCredential};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ModuleId;
use edgekeep_core::names::EDGE_HUB;
use edgekeep_daemon::store::sha256;
use serde_json::{Map, Value, json};

use crate::settings::Device;

/// Container label with the fingerprint of what the container was made from: it survives
/// the loss of the agent's state. It shows no more than the daemon's own label with the
/// digest of the create options does.
pub const FINGERPRINT_LABEL: &str = "edgekeep.fingerprint";

/// Container label with the generation of the identity that the container was made for.
/// Beside the fingerprint, not in it: who compares fingerprints need not know the
/// identity.
pub const GENERATION_LABEL: &str = "edgekeep.generation";

/// Failure to make a spec: the create options cannot take what must be added.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("create option {member} must be {expected}")]
pub struct SpecError {
    /// The member of the create options.
    pub member: &'static str,
    /// The type that the member must have.
    pub expected: &'static str,
}

/// Digest of everything a module's container is made from, except what changes with each
/// identity.
#[must_use]
pub fn fingerprint(id: &ModuleId, module: &Module, device: &Device) -> Sha256Digest {
    let environment: Map<String, Value> = injected(id, module.kind, device, "")
        .into_iter()
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    // A newer version of the daemon alone is no reason to make all containers anew.
    let environment: Map<String, Value> =
        environment.into_iter().filter(|(key, _)| key != "IOTEDGE_APIVERSION").collect();
    let text = json!({
        "spec": module.canonical_spec(),
        "environment": environment,
        "defaults": [device.log_level, device.upstream_protocol],
        "binds": [device.module_sockets, device.workload_path],
        "network": device.network,
    });
    sha256(text.to_string().as_bytes())
}

/// The body of create and update.
///
/// # Errors
/// If the create options have another shape than the engine's.
pub fn module_spec(
    id: &ModuleId,
    module: &Module,
    device: &Device,
    generation: &str,
    credential: Option<&RegistryCredential>,
) -> Result<ModuleSpec, SpecError> {
    let mut options = module.create_options.clone();
    if module.kind == ModuleType::Docker {
        add_marks(&mut options, &fingerprint(id, module, device), generation)?;
        add_bind(&mut options, id, device)?;
        if let Some(network) = &device.network {
            add_network(&mut options, id, device, network)?;
        }
    }
    let mut env = module.env.clone();
    for (key, value) in
        [("RuntimeLogLevel", &device.log_level), ("UpstreamProtocol", &device.upstream_protocol)]
    {
        if let Some(value) = value {
            env.entry(key.to_owned()).or_insert_with(|| value.clone());
        }
    }
    // What the device says about itself is not for the manifest to change; a key given
    // twice would be refused.
    env.extend(
        injected(id, module.kind, device, generation)
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value)),
    );

    let mut settings = Map::new();
    settings.insert("image".into(), module.image.as_str().into());
    settings.insert("createOptions".into(), options.into());
    if let Some(digest) = &module.digest {
        settings.insert("digest".into(), digest.as_str().into());
    }
    if let Some(credential) = credential.filter(|_| module.kind == ModuleType::Docker) {
        let auth = json!({
            "username": credential.username,
            "password": credential.password.expose_secret(),
            "serveraddress": credential.address,
        });
        settings.insert("auth".into(), auth);
    }
    let pull = match module.image_pull_policy {
        ImagePullPolicy::OnCreate => "On-Create",
        ImagePullPolicy::Never => "Never",
    };
    Ok(ModuleSpec {
        name: id.name().to_owned(),
        kind: module.kind.as_str().to_owned(),
        image_pull_policy: Some(pull.to_owned()),
        config: ModuleConfig {
            settings: settings.into(),
            env: Some(env.into_iter().map(|(key, value)| EnvVar { key, value }).collect()),
        },
    })
}

/// The variables that tell a module who and where it is.
fn injected(
    id: &ModuleId,
    kind: ModuleType,
    device: &Device,
    generation: &str,
) -> BTreeMap<&'static str, String> {
    let workload = match kind {
        ModuleType::Docker => device.workload_uri.clone(),
        ModuleType::Process => format!("unix://{}", socket_on_host(id, device)),
    };
    let mut env = BTreeMap::from([
        ("IOTEDGE_WORKLOADURI", workload),
        ("IOTEDGE_AUTHSCHEME", device.auth_scheme.clone()),
        ("IOTEDGE_MODULEGENERATIONID", generation.to_owned()),
        ("IOTEDGE_IOTHUBHOSTNAME", device.hub.clone()),
        ("IOTEDGE_DEVICEID", device.device_id.clone()),
        ("IOTEDGE_MODULEID", id.hub_id().as_str().to_owned()),
        ("IOTEDGE_APIVERSION", device.api_version.clone()),
    ]);
    if id.name() == EDGE_HUB {
        env.insert("EdgeDeviceHostName", device.hostname.clone());
        if let Some(parent) = &device.parent {
            env.insert("IOTEDGE_GATEWAYHOSTNAME", parent.clone());
        }
    } else {
        env.insert("IOTEDGE_GATEWAYHOSTNAME", device.hostname.clone());
        if let Some(parent) = &device.parent {
            env.insert("IOTEDGE_PARENTHOSTNAME", parent.clone());
        }
    }
    env
}

fn socket_on_host(id: &ModuleId, device: &Device) -> String {
    device.module_sockets.join(format!("{}.sock", id.name())).display().to_string()
}

fn add_marks(
    options: &mut Map<String, Value>,
    fingerprint: &Sha256Digest,
    generation: &str,
) -> Result<(), SpecError> {
    let labels = object(options, "Labels", "Labels")?;
    labels.insert(FINGERPRINT_LABEL.into(), fingerprint.to_string().into());
    labels.insert(GENERATION_LABEL.into(), generation.into());
    Ok(())
}

fn add_bind(
    options: &mut Map<String, Value>,
    id: &ModuleId,
    device: &Device,
) -> Result<(), SpecError> {
    let bind = format!("{}:{}", socket_on_host(id, device), device.workload_path.display());
    let host = object(options, "HostConfig", "HostConfig")?;
    let binds = host.entry("Binds").or_insert(Value::Null);
    if binds.is_null() {
        *binds = json!([]);
    }
    let error = SpecError { member: "HostConfig.Binds", expected: "a list" };
    let binds = binds.as_array_mut().ok_or(error)?;
    if !binds.iter().any(|present| present.as_str() == Some(&bind)) {
        binds.push(bind.into());
    }
    Ok(())
}

fn add_network(
    options: &mut Map<String, Value>,
    id: &ModuleId,
    device: &Device,
    network: &str,
) -> Result<(), SpecError> {
    // A network chosen by mode (`host`, `none`, `container:...`) excludes endpoints.
    let mode =
        options.get("HostConfig").and_then(|host| host["NetworkMode"].as_str()).unwrap_or_default();
    if !matches!(mode, "" | "default") {
        return Ok(());
    }
    let config = object(options, "NetworkingConfig", "NetworkingConfig")?;
    let endpoints = object(config, "EndpointsConfig", "NetworkingConfig.EndpointsConfig")?;
    if endpoints.is_empty() {
        let endpoint =
            if id.name() == EDGE_HUB { json!({"Aliases": [device.hostname]}) } else { json!({}) };
        endpoints.insert(network.to_owned(), endpoint);
    }
    Ok(())
}

/// The member as an object, made if it is absent or null.
fn object<'a>(
    options: &'a mut Map<String, Value>,
    name: &str,
    member: &'static str,
) -> Result<&'a mut Map<String, Value>, SpecError> {
    let value = options.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or(SpecError { member, expected: "an object" })
}

#[cfg(test)]
mod tests {
    use edgekeep_core::deployment::Deployment;

    use super::*;

    fn device() -> Device {
        Device {
            device_id: "dev".into(),
            hub: "hub.example".into(),
            hostname: "edge".into(),
            parent: None,
            workload_uri: "unix:///var/run/iotedge/workload.sock".into(),
            workload_path: "/var/run/iotedge/workload.sock".into(),
            module_sockets: "/var/lib/edge/mnt".into(),
            network: Some("azure-iot-edge".into()),
            api_version: "2022-08-03".into(),
            auth_scheme: "sasToken".into(),
            log_level: Some("debug".into()),
            upstream_protocol: None,
        }
    }

    fn deployment(module: &Value, hub: &Value) -> Deployment {
        let value = json!({
            "schemaVersion": "1.1",
            "runtime": {"type": "docker", "settings": {"registryCredentials":
                {"r": {"address": "registry.example", "username": "u", "password": "p"}}}},
            "systemModules": {"edgeHub": hub},
            "modules": {"m": module},
        });
        Deployment::from_value(&value, None).unwrap()
    }

    fn spec(name: &str, module: &Value, device: &Device) -> Result<ModuleSpec, SpecError> {
        let deployment = deployment(module, module);
        let id: ModuleId = name.parse().unwrap();
        let module = &deployment.modules[&id];
        module_spec(&id, module, device, "gen1", deployment.runtime.credential_for(&module.image))
    }

    fn env(spec: &ModuleSpec) -> BTreeMap<&str, &str> {
        spec.config
            .env
            .as_ref()
            .unwrap()
            .iter()
            .map(|var| (var.key.as_str(), var.value.as_str()))
            .collect()
    }

    #[test]
    fn a_container_gets_its_environment_its_socket_and_its_network() {
        let module = json!({"type": "docker", "status": "running", "env": {"A": {"value": 1}},
            "settings": {"image": "registry.example/x:1", "createOptions": {"HostConfig": {"Binds": ["/a:/b"]}}}});
        let spec = spec("m", &module, &device()).unwrap();
        let expected = BTreeMap::from([
            ("A", "1"),
            ("IOTEDGE_APIVERSION", "2022-08-03"),
            ("IOTEDGE_AUTHSCHEME", "sasToken"),
            ("IOTEDGE_DEVICEID", "dev"),
            ("IOTEDGE_GATEWAYHOSTNAME", "edge"),
            ("IOTEDGE_IOTHUBHOSTNAME", "hub.example"),
            ("IOTEDGE_MODULEGENERATIONID", "gen1"),
            ("IOTEDGE_MODULEID", "m"),
            ("IOTEDGE_WORKLOADURI", "unix:///var/run/iotedge/workload.sock"),
            ("RuntimeLogLevel", "debug"),
        ]);
        assert_eq!(env(&spec), expected);
        let settings = &spec.config.settings;
        let binds = json!(["/a:/b", "/var/lib/edge/mnt/m.sock:/var/run/iotedge/workload.sock"]);
        assert_eq!(settings["createOptions"]["HostConfig"]["Binds"], binds);
        assert_eq!(
            settings["createOptions"]["NetworkingConfig"],
            json!({"EndpointsConfig": {"azure-iot-edge": {}}})
        );
        assert_eq!(settings["createOptions"]["Labels"][GENERATION_LABEL], "gen1");
        assert_eq!(
            settings["auth"],
            json!({"username": "u", "password": "p", "serveraddress": "registry.example"})
        );
        assert_eq!(spec.image_pull_policy.as_deref(), Some("On-Create"));
    }

    #[test]
    fn the_hub_module_is_known_by_the_devices_name() {
        let module = json!({"type": "docker", "status": "running", "settings": {"image": "x"}});
        let nested = Device { parent: Some("parent".into()), ..device() };
        let hub = spec("edgeHub", &module, &nested).unwrap();
        assert_eq!(hub.name, "edgeHub");
        assert_eq!(env(&hub)["IOTEDGE_MODULEID"], "$edgeHub");
        assert_eq!(env(&hub)["EdgeDeviceHostName"], "edge");
        assert_eq!(env(&hub)["IOTEDGE_GATEWAYHOSTNAME"], "parent");
        let endpoints =
            &hub.config.settings["createOptions"]["NetworkingConfig"]["EndpointsConfig"];
        assert_eq!(endpoints["azure-iot-edge"]["Aliases"], json!(["edge"]));
        let other = spec("m", &module, &nested).unwrap();
        assert_eq!(env(&other)["IOTEDGE_GATEWAYHOSTNAME"], "edge");
        assert_eq!(env(&other)["IOTEDGE_PARENTHOSTNAME"], "parent");
    }

    #[test]
    fn a_host_module_gets_the_path_of_its_socket_and_no_container_options() {
        let module = json!({"type": "process", "status": "running",
            "settings": {"image": "thermometer", "createOptions": {"Cmd": ["-v"]}}});
        let spec = spec("m", &module, &device()).unwrap();
        assert_eq!(env(&spec)["IOTEDGE_WORKLOADURI"], "unix:///var/lib/edge/mnt/m.sock");
        assert_eq!(spec.kind, "process");
        let settings = json!({"image": "thermometer", "createOptions": {"Cmd": ["-v"]}});
        assert_eq!(spec.config.settings, settings);
    }

    #[test]
    fn a_module_cannot_change_who_it_is_and_no_key_is_given_twice() {
        let module = json!({"type": "docker", "status": "running", "settings": {"image": "x"},
            "env": {"IOTEDGE_MODULEID": {"value": "other"}, "RuntimeLogLevel": {"value": "info"}}});
        let spec = spec("m", &module, &device()).unwrap();
        assert_eq!(env(&spec)["IOTEDGE_MODULEID"], "m");
        assert_eq!(env(&spec)["RuntimeLogLevel"], "info");
        assert_eq!(env(&spec).len(), spec.config.env.as_ref().unwrap().len());
    }

    #[test]
    fn a_network_of_its_own_is_left_alone_and_a_wrong_shape_is_named() {
        let with = |options: Value| {
            let module = json!({"type": "docker", "status": "running",
                "settings": {"image": "x", "createOptions": options}});
            spec("m", &module, &device()).map(|spec| spec.config.settings["createOptions"].clone())
        };
        let host = with(json!({"HostConfig": {"NetworkMode": "host"}})).unwrap();
        assert!(host.get("NetworkingConfig").is_none());
        let own = json!({"EndpointsConfig": {"mine": {}}});
        assert_eq!(with(json!({"NetworkingConfig": own})).unwrap()["NetworkingConfig"], own);
        let error = with(json!({"HostConfig": {"Binds": "x"}})).expect_err("shape");
        assert_eq!(error.to_string(), "create option HostConfig.Binds must be a list");
    }

    #[test]
    fn the_fingerprint_follows_the_device_but_not_the_generation_or_the_api_version() {
        let module = json!({"type": "docker", "status": "running", "settings": {"image": "x"}});
        let id: ModuleId = "m".parse().unwrap();
        let module = deployment(&module, &module).modules[&id].clone();
        let print = |device: &Device| fingerprint(&id, &module, device);
        assert_eq!(
            print(&device()),
            print(&Device { api_version: "2030-01-01".into(), ..device() })
        );
        assert_ne!(print(&device()), print(&Device { hostname: "other".into(), ..device() }));
        assert_ne!(print(&device()), print(&Device { hub: "other".into(), ..device() }));
        assert_ne!(print(&device()), print(&Device { network: None, ..device() }));
    }
}
