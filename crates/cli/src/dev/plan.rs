//! Plan of a simulated device, decided before anything is started.

use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_base::file::{self, Rules};
use edgekeep_core::layout::Root;
use serde::{Deserialize, Serialize};

/// Largest file with what one run tells the next, in bytes.
const MEMORY_LIMIT: u64 = 64 * 1024;
/// First line of a configuration that `dev` may replace.
pub(super) const MARK: &str = "# Made by `edgekeep dev`; remove this line to keep your changes.";

/// The device's id, at the provisioning service and at the hub.
const DEVICE_ID: &str = "dev";

/// Longest path of a socket that every client and the kernel can use, in bytes.
const SOCKET_LIMIT: usize = 100;

/// A deployment without modules.
pub(super) const EMPTY_DEPLOYMENT: &str = r#"{
  "modulesContent": {
    "$edgeAgent": {
      "properties.desired": {
        "schemaVersion": "1.1",
        "runtime": { "type": "docker", "settings": {} },
        "systemModules": {},
        "modules": {}
      }
    }
  }
}
"#;

/// Refuses a root folder whose sockets would have too long paths.
pub(super) fn check_socket_paths(root: &Root) -> anyhow::Result<()> {
    let longest = root.module_socket_folder().join("edgeAgent.sock");
    let length = longest.as_os_str().as_bytes().len();
    ensure!(
        length < SOCKET_LIMIT,
        "{} has {length} bytes, and a socket's path must have less than {SOCKET_LIMIT}: name a shorter folder with --root, \
         like --root /tmp/device",
        longest.display()
    );
    Ok(())
}

/// Addresses of the simulated cloud, as it tells them itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cloud {
    pub(super) dps: String,
    pub(super) hub: String,
    pub(super) admin: String,
    pub(super) scope_id: String,
    /// The device's registration key, in base64.
    #[serde(skip)]
    pub(super) key: String,
}

/// Values that stay the same when the device is started again in the same folder.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    port: u16,
    pub(super) key: String,
}

impl Memory {
    fn file(root: &Root) -> PathBuf {
        root.path().join("dev.json")
    }

    pub(super) fn load_or_make(root: &Root) -> anyhow::Result<Self> {
        let path = Self::file(root);
        match file::read(&path, Rules::own(MEMORY_LIMIT)) {
            Ok(content) => serde_json::from_slice(&content).with_context(|| {
                format!(
                    "{} is not of this version; remove {} to begin anew",
                    path.display(),
                    root.path().display()
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; 32];
                aws_lc_rs::rand::fill(&mut key).context("cannot make a device key")?;
                Ok(Self { port: 0, key: STANDARD.encode(key) })
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The same, with the port that the cloud took.
    pub(super) fn with_port_of(mut self, cloud: &Cloud) -> anyhow::Result<Self> {
        let port = cloud.hub.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        self.port =
            port.context("edgekeep-sim is of another version: the hub's name has no port")?;
        Ok(self)
    }

    pub(super) fn save(&self, root: &Root) -> anyhow::Result<()> {
        let file = Self::file(root);
        let text = serde_json::to_string(self)?;
        super::write_secret(&file, &text)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    pub(super) fn ca_file(&self, root: &Root) -> PathBuf {
        root.path().join("sim-ca.pem")
    }

    pub(super) fn cloud_arguments(
        &self,
        root: &Root,
        module_limit: Option<usize>,
    ) -> Vec<std::ffi::OsString> {
        let mut arguments: Vec<std::ffi::OsString> =
            vec!["--json".into(), "--port".into(), self.port.to_string().into()];
        arguments.extend(["--ca-out".into(), self.ca_file(root).into()]);
        arguments.extend(["--state-file".into(), root.path().join("sim-state.json").into()]);
        arguments.extend(["--enrol".into(), format!("{DEVICE_ID}={}", self.key).into()]);
        if let Some(limit) = module_limit {
            arguments.extend(["--module-limit".into(), limit.to_string().into()]);
        }
        arguments
    }
}

/// Form in which the agent runs.
pub(super) enum Agent {
    /// As a host program.
    Host { executable: PathBuf, sha256: String },
    /// As a container.
    Image { image: String, pull: bool },
}

/// Values that the configuration is made of.
pub(super) struct Plan {
    pub(super) root: Root,
    pub(super) agent: Agent,
    /// The container engine's socket.
    pub(super) engine: Option<PathBuf>,
    pub(super) manifest: PathBuf,
    /// Name, executable and its digest.
    pub(super) host_modules: Vec<(String, PathBuf, String)>,
}

impl Plan {
    /// The `config.toml` of the device.
    pub(super) fn config(&self, cloud: &Cloud) -> String {
        let mut text = format!("{MARK}\n");
        // All that can fail here is a full memory.
        let _ = self.write_config(cloud, &mut text);
        text
    }

    fn write_config(&self, cloud: &Cloud, text: &mut String) -> std::fmt::Result {
        let ca = file_uri(&self.root.path().join("sim-ca.pem"));
        writeln!(text, "hostname = \"localhost\"")?;
        if self.engine.is_some() {
            // As on a device whose operator has not decided: what a deployment may do
            // there, it may do here.
            writeln!(text, "allow_elevated_docker_permissions = true")?;
        }
        writeln!(text)?;
        writeln!(text, "[provisioning]\nsource = \"dps\"")?;
        writeln!(
            text,
            "global_endpoint = {}\nid_scope = {}\n",
            quoted(&cloud.dps),
            quoted(&cloud.scope_id)
        )?;
        writeln!(
            text,
            "[provisioning.attestation]\nmethod = \"symmetric_key\"\nregistration_id = \"{DEVICE_ID}\""
        )?;
        writeln!(text, "symmetric_key = {{ value = {} }}\n", quoted(&cloud.key))?;
        writeln!(text, "[cloud]\ntrusted_certs = [{}]\n", quoted(&ca))?;

        let state = self.root.path().join("agent");
        match &self.agent {
            Agent::Host { executable, sha256 } => {
                writeln!(
                    text,
                    "[agent]\ntype = \"process\"\n\n[agent.config]\nimage = \"edgekeep-agent\"\n"
                )?;
                write_host_module(text, "edgekeep-agent", executable, sha256)?;
            }
            Agent::Image { image, pull } => {
                let policy = if *pull { "on-create" } else { "never" };
                writeln!(text, "[agent]\ntype = \"docker\"\nimagePullPolicy = \"{policy}\"\n")?;
                writeln!(text, "[agent.config]\nimage = {}\n", quoted(image))?;
                // The same paths in the container, so that one environment fits both
                // kinds of agent.
                let (manifest, state) = (self.manifest.display(), state.display());
                let binds = [format!("{manifest}:{manifest}:ro"), format!("{state}:{state}")]
                    .map(|bind| quoted(&bind));
                writeln!(
                    text,
                    "[agent.config.createOptions.HostConfig]\nBinds = [{}]\n",
                    binds.join(", ")
                )?;
            }
        }
        writeln!(text, "[agent.env]")?;
        writeln!(text, "EDGEKEEP_MANIFEST = {}", quoted(&self.manifest.display().to_string()))?;
        writeln!(text, "EDGEKEEP_AGENT_STATE = {}", quoted(&state.display().to_string()))?;
        writeln!(text, "EDGEKEEP_AGENT_PERIOD = \"1\"\n")?;
        for (name, executable, sha256) in &self.host_modules {
            write_host_module(text, name, executable, sha256)?;
        }
        if let Some(engine) = &self.engine {
            writeln!(
                text,
                "[moby_runtime]\nuri = {}",
                quoted(&format!("unix://{}", engine.display()))
            )?;
        }
        Ok(())
    }
}

fn write_host_module(
    text: &mut String,
    name: &str,
    executable: &Path,
    sha256: &str,
) -> std::fmt::Result {
    writeln!(text, "[host_modules.{}]", quoted(name))?;
    writeln!(
        text,
        "executable = {}\nsha256 = \"{sha256}\"\n",
        quoted(&executable.display().to_string())
    )
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A path as a `file:` URI.
fn file_uri(path: &Path) -> String {
    let mut uri = String::from("file://");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

#[cfg(test)]
mod tests {

    use edgekeep_config::{Environment, Users, translate};
    use edgekeep_core::deployment::Deployment;

    use super::*;

    fn plan(agent: Agent) -> (Plan, Cloud) {
        let plan = Plan {
            root: Root::new("/tmp/my \"device\""),
            agent,
            engine: Some("/run/docker.sock".into()),
            manifest: "/tmp/deployment.json".into(),
            host_modules: vec![("thermometer".into(), "/bin/thermo".into(), "ab".repeat(32))],
        };
        let said = r#"{"dps":"https://localhost:4431","hub":"localhost:4431","ca":null,"admin":"x","scopeId":"0ne1","mqtt":null}"#;
        let cloud: Cloud = serde_json::from_str(said).unwrap();
        (plan, Cloud { key: "a2V5MQ==".into(), ..cloud })
    }

    #[track_caller]
    fn translated(plan: &Plan, cloud: &Cloud) -> edgekeep_config::Translated {
        let environment =
            Environment { users: Users::all(5), hostname: "h".into(), ..Environment::default() };
        let text = plan.config(cloud);
        assert!(text.starts_with(MARK));
        translate(&text, &environment).unwrap_or_else(|found| {
            panic!("{}\n{text}", edgekeep_config::render(&found, "config.toml", false))
        })
    }

    #[test]
    fn the_configuration_of_a_host_agent_is_valid() {
        let (plan, cloud) =
            plan(Agent::Host { executable: "/bin/agent".into(), sha256: "cd".repeat(32) });
        let translated = translated(&plan, &cloud);
        assert_eq!(translated.notices, []);
        assert_eq!(translated.identityd.cloud.trusted_certs, ["/tmp/my \"device\"/sim-ca.pem"]);
        assert_eq!(translated.moduled.agent.kind, "process");
        assert_eq!(translated.moduled.agent.env["EDGEKEEP_MANIFEST"], "/tmp/deployment.json");
        assert_eq!(translated.moduled.host_modules["thermometer"].executable, "/bin/thermo");
        assert_eq!(translated.moduled.engine.unwrap().uri, "unix:///run/docker.sock");
    }

    #[test]
    fn the_configuration_of_an_agent_in_a_container_is_valid() {
        let (plan, cloud) = plan(Agent::Image { image: "agent:1".into(), pull: false });
        let translated = translated(&plan, &cloud);
        assert_eq!(translated.moduled.agent.image_pull_policy, "never");
        let binds = &translated.moduled.agent.create_options["HostConfig"]["Binds"];
        assert_eq!(binds[0], "/tmp/deployment.json:/tmp/deployment.json:ro");
    }

    #[test]
    fn the_deployment_without_modules_is_a_deployment() {
        assert!(Deployment::parse(EMPTY_DEPLOYMENT, None).unwrap().modules.is_empty());
    }

    #[test]
    fn a_root_folder_with_too_long_socket_paths_is_refused_with_what_to_do() {
        assert!(check_socket_paths(&Root::new("/home/user/.cache/edgekeep/dev-1234567")).is_ok());
        let error = check_socket_paths(&Root::new(format!("/{}", "d".repeat(60)))).unwrap_err();
        assert!(error.to_string().contains("name a shorter folder with --root"), "{error}");
    }

    #[test]
    fn the_cloud_keeps_its_port_and_the_device_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let (_, cloud) = plan(Agent::Image { image: "a".into(), pull: true });
        let first = Memory::load_or_make(&root).unwrap().with_port_of(&cloud).unwrap();
        first.save(&root).unwrap();
        let second = Memory::load_or_make(&root).unwrap();
        assert_eq!((second.port, &second.key), (4431, &first.key));
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Memory::load_or_make(&Root::new(other.path())).unwrap().key, first.key);
    }
}
