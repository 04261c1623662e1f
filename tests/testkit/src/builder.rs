//! Builder of a device: all is decided before the device starts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use edgekeep_core::layout::Root;
use edgekeep_sim::token::Key;
use edgekeep_sim::{
    Enrolment, EnrolmentGroup, EstOptions, Faults, Proof, Simulator, SimulatorOptions,
};
use serde_json::Value;

use crate::caller::Caller;
use crate::device::Device;
use crate::engine::Engine;
use crate::programs::{program, sha256_of};

/// The device's id at the hub, which is also its registration id.
pub const DEVICE_ID: &str = "press-04";

/// A device before it starts: its agent, programs, configuration and surroundings.
#[derive(Debug)]
pub struct Builder {
    agent: Agent,
    programs: BTreeMap<String, PathBuf>,
    top: String,
    tables: String,
    provisioning: Option<String>,
    faults: Faults,
    est: Option<EstOptions>,
    variables: Vec<(String, String)>,
    engine: Option<Engine>,
    own_users: bool,
}

#[derive(Debug)]
enum Agent {
    /// The program `calls`, which a test speaks through.
    Calls,
    /// The reference agent with this manifest.
    Reference(Value),
    /// The program `calls` as a container of this image.
    Container(String),
    /// A configuration of the test's own.
    Own(String),
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            agent: Agent::Calls,
            programs: BTreeMap::new(),
            top: String::new(),
            tables: String::new(),
            provisioning: None,
            faults: Faults::default(),
            est: None,
            variables: Vec::new(),
            engine: None,
            own_users: false,
        }
    }

    /// The reference agent takes the place of the one that the test speaks through;
    /// `manifest` is its deployment.
    #[must_use]
    pub fn reference_agent(mut self, manifest: &Value) -> Self {
        self.agent = Agent::Reference(manifest.clone());
        self
    }

    /// `[agent]` and its tables, as they stand in the configuration.
    #[must_use]
    pub fn agent(mut self, toml: &str) -> Self {
        self.agent = Agent::Own(toml.to_owned());
        self
    }

    /// A container of `image`, which runs `calls`, takes the place of the host's program
    /// as the agent.
    #[must_use]
    pub fn container_agent(mut self, image: &str) -> Self {
        self.agent = Agent::Container(image.to_owned());
        self
    }

    /// The container engine behind `uri`. Containers and the network, which is the test's
    /// own, are removed with the device.
    #[must_use]
    pub fn engine(mut self, engine: &Engine, uri: &str) -> Self {
        self.engine = Some(engine.clone());
        self.tables(&format!("[moby_runtime]\nuri = \"{uri}\"\nnetwork = \"{}\"", engine.network()))
    }

    /// As [`Self::engine`] at the engine's own socket; `network` is what
    /// `[moby_runtime.network]` says beside the name.
    #[must_use]
    pub fn engine_with_network(mut self, engine: &Engine, network: &str) -> Self {
        self.engine = Some(engine.clone());
        self.tables(&format!(
            "[moby_runtime]\nuri = \"{}\"\n[moby_runtime.network]\nname = \"{}\"\n{network}",
            engine.uri(),
            engine.network()
        ))
    }

    /// A program of the host that modules may name as their image.
    #[must_use]
    pub fn host_module(mut self, image: &str, program: impl Into<PathBuf>) -> Self {
        self.programs.insert(image.to_owned(), program.into());
        self
    }

    /// Keys at the top of the configuration.
    #[must_use]
    pub fn top(mut self, toml: &str) -> Self {
        let _ = writeln!(self.top, "{toml}");
        self
    }

    /// Has the cloud issue certificates by EST too, and its provisioning service know
    /// devices by these. In the configuration `{est}` is the URL of the EST server, and
    /// `{root}/est-roots.pem` has the roots to trust there.
    #[must_use]
    pub fn est(mut self, options: EstOptions) -> Self {
        self.est = Some(options);
        self
    }

    /// Further tables of the configuration; `{root}` in them is the device's root folder.
    #[must_use]
    pub fn tables(mut self, toml: &str) -> Self {
        let _ = writeln!(self.tables, "{toml}");
        self
    }

    /// `[provisioning]` and its tables in place of the usual registration; `{dps}` and
    /// `{hub}` in them are the service's URL and the hub's name.
    #[must_use]
    pub fn provisioning(mut self, toml: &str) -> Self {
        self.provisioning = Some(toml.to_owned());
        self
    }

    /// Host modules without `user`, the agent among them, get users of their own out of
    /// these ids. Takes root.
    #[must_use]
    pub fn own_users(mut self, ids: &str) -> Self {
        self.own_users = true;
        self.top(&format!("host_module_ids = \"{ids}\""))
    }

    /// Sets the faults that the cloud has from the start.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// A variable in the daemons' environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the device and waits until its daemons answer. The agent may still be
    /// starting.
    ///
    /// # Panics
    /// A program is not built, the configuration is refused, or a daemon does not answer
    /// in time.
    #[must_use]
    pub fn start(self) -> Device {
        // Short: the path of a socket has at most 107 bytes.
        let folder =
            tempfile::Builder::new().prefix("ek-").tempdir_in("/tmp").expect("/tmp can be written");
        // Other users take part in some tests, and modules' sockets are for them as well.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))
            .expect("own folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be started");
        let key = Key::new(b"a key of the simulated device...".to_vec()).expect("32 bytes");
        let options = SimulatorOptions {
            enrolments: match self.est {
                Some(_) => Vec::new(),
                None => vec![Enrolment::new(DEVICE_ID, key.clone())],
            },
            est: self.est.clone().unwrap_or_default(),
            ..SimulatorOptions::default()
        };
        let cloud =
            runtime.block_on(Simulator::start(options)).expect("the simulated cloud starts");
        cloud.faults(self.faults.clone()).expect("faults within bounds");
        let ca = folder.path().join("cloud.pem");
        std::fs::write(&ca, cloud.ca_pem()).expect("own folder");
        if self.est.is_some() {
            let root = cloud.est_root_pem(None).expect("there is a default CA");
            let roots = [cloud.ca_pem(), &root].concat();
            std::fs::write(folder.path().join("est-roots.pem"), roots).expect("own folder");
            let (group_id, proof) = ("by-est".to_owned(), Proof::Authorities(root));
            cloud
                .enrol_group(EnrolmentGroup {
                    group_id,
                    proof,
                    hub: None,
                    certificate_policy_name: None,
                })
                .expect("an id");
        }

        let caller = matches!(self.agent, Agent::Calls | Agent::Container(_))
            .then(|| Caller::new(&folder.path().join("calls"), "$edgeAgent"));
        if let Some(caller) = caller.as_ref().filter(|_| self.own_users) {
            caller.open_to_all();
        }
        let config = self.config(&cloud, &ca, &key, caller.as_ref(), folder.path());
        let file = Root::new(folder.path()).config_file();
        std::fs::create_dir_all(file.parent().expect("in a folder")).expect("own folder");
        std::fs::write(file, config).expect("own folder");

        let est = self.est.unwrap_or_default();
        let mut device =
            Device::new(folder, runtime, (cloud, est), caller, self.engine, self.variables);
        if matches!(self.agent, Agent::Container(_)) {
            device.remember_container("edgeAgent");
        }
        device.apply();
        device.start_daemons();
        device
    }

    fn config(
        &self,
        cloud: &Simulator,
        ca: &Path,
        key: &Key,
        caller: Option<&Caller>,
        folder: &Path,
    ) -> String {
        let mut programs = self.programs.clone();
        programs.entry("calls".to_owned()).or_insert_with(|| program("calls"));
        let usual = || {
            format!(
                "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"{{dps}}\"\nid_scope = \"0ne00000001\"\n\
                 [provisioning.attestation]\nmethod = \"symmetric_key\"\nregistration_id = \"{DEVICE_ID}\"\n\
                 symmetric_key = {{ value = \"{}\" }}\n",
                key.expose_base64(),
            )
        };
        let provisioning = self.provisioning.clone().unwrap_or_else(usual);
        let provisioning = provisioning
            .replace("{dps}", &cloud.dps_endpoint())
            .replace("{hub}", &cloud.hub_host());
        let mut text = format!(
            "hostname = \"press-04.plant7\"\n{top}\n{provisioning}\n[cloud]\ntrusted_certs = [\"file://{ca}\"]\n",
            top = self.top,
            ca = ca.display(),
        );
        let mut process_agent = |image: &str, env: &[(String, String)]| {
            let _ = writeln!(
                text,
                "[agent]\ntype = \"process\"\n[agent.config]\nimage = \"{image}\"\n[agent.env]"
            );
            for (name, value) in env {
                let _ = writeln!(text, "{name} = {value:?}");
            }
        };
        match &self.agent {
            Agent::Calls => process_agent("calls", &caller.expect("made for it").environment()),
            Agent::Reference(manifest) => {
                let file = folder.join("deployment.json");
                std::fs::write(&file, manifest.to_string()).expect("own folder");
                programs.insert("edgekeep-agent".to_owned(), program("edgekeep-agent"));
                process_agent(
                    "edgekeep-agent",
                    &[
                        ("EDGEKEEP_MANIFEST".to_owned(), file.display().to_string()),
                        ("EDGEKEEP_AGENT_PERIOD".to_owned(), "1".to_owned()),
                    ],
                );
            }
            Agent::Container(image) => {
                let caller = caller.expect("made for it");
                let _ = writeln!(
                    text,
                    "[agent]\ntype = \"docker\"\nimagePullPolicy = \"never\"\n[agent.config]\nimage = \
                     \"{image}\"\n[agent.config.createOptions.HostConfig]\nBinds = [\"{}:/calls\"]\n[agent.env]",
                    caller.folder().display()
                );
                for (name, value) in caller.environment_at("/calls") {
                    let _ = writeln!(text, "{name} = {value:?}");
                }
            }
            Agent::Own(toml) => text.push_str(toml),
        }
        for (image, path) in &programs {
            let sha256 = sha256_of(path);
            let _ = writeln!(
                text,
                "[host_modules.{image:?}]\nexecutable = {path:?}\nsha256 = {sha256:?}"
            );
        }
        text.push_str(&self.tables.replace("{root}", &folder.display().to_string()));
        text.replace("{est}", &cloud.est_url())
    }
}
