//! `[agent]`, `[moby_runtime]`, `[module_policies]` and what else moduled is told.

use std::collections::BTreeMap;
use std::path::Path;

use edgekeep_core::attestation::Policy;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::settings::{EngineSettings, ImageCollectionSettings};
use serde_json::{Map, Value as Json};

use crate::diagnostic::Code;
use crate::document::{Node, Table, Text, Value, View};
use crate::places::Expected;
use crate::similar::nearest;
use crate::translate::Draft;
use crate::value;

const DEFAULT_ENGINE: &str = "unix:///var/run/docker.sock";
const DEFAULT_NETWORK: &str = "azure-iot-edge";

impl Draft<'_> {
    /// Reads what moduled is told.
    pub(crate) fn modules(&mut self, root: &View<'_>) {
        if let Some(allow) = root.boolean("allow_elevated_docker_permissions") {
            self.moduled.allow_elevated_permissions = allow;
        }
        self.host(root);
        self.agent(root);
        self.engine(root);
        self.policies(root);
        self.grants(root);
        self.image_policy(root);
        self.sockets(root);
        self.watchdog(root);
        self.image_garbage_collection(root);
    }

    fn agent(&mut self, root: &View<'_>) {
        let Some(view) = root.table("agent") else { return };
        if let Some(name) = view.text("name")
            && name.text != "edgeAgent"
        {
            let message = "the agent is always called \"edgeAgent\"";
            self.report.error_with(
                Code::BadValue,
                name.span,
                "agent.name",
                message,
                "leave `agent.name` out",
            );
        }
        if let Some(kind) = view.text("type") {
            let kinds = [("docker", "docker"), ("process", "process")];
            if let Some(kind) = self.choice("agent.type", &kind, &kinds) {
                kind.clone_into(&mut self.moduled.agent.kind);
            }
        }
        if let Some(policy) = view.text("imagePullPolicy") {
            let chosen = ["on-create", "never"]
                .into_iter()
                .find(|known| known.eq_ignore_ascii_case(policy.text));
            let chosen = chosen
                .ok_or_else(|| "`agent.imagePullPolicy` is \"on-create\" or \"never\"".to_owned());
            if let Some(chosen) = self.checked("agent.imagePullPolicy", &policy, chosen) {
                chosen.clone_into(&mut self.moduled.agent.image_pull_policy);
            }
        }
        if let Some(env) = view.table("env") {
            for entry in &env.table.entries {
                if entry.key.is_empty() || entry.key.contains(['=', '\0']) {
                    let message = "the name of an environment variable is not empty and has no `=`";
                    self.report.error(Code::BadValue, &entry.key_span, "agent.env", message);
                }
            }
            self.moduled.agent.env = Self::strings(&env);
        }
        match view.table("config") {
            Some(config) => self.agent_config(&config),
            None => {
                if self.moduled.agent.kind == "process" {
                    let _: Option<()> = self.absent(
                        &view,
                        "config",
                        "config = { image = \"<name in [host_modules]>\" }",
                    );
                }
            }
        }
    }

    fn agent_config(&mut self, config: &View<'_>) {
        match config.text("image") {
            Some(image) => self.agent_image(&image),
            None => {
                let _: Option<()> = self.absent(
                    config,
                    "image",
                    "the agent's image, or its name in [host_modules]",
                );
            }
        }
        for (key, pin) in [("imageHash", 0), ("digest", 1)] {
            let Some(text) = config.text(key) else { continue };
            let digest = text.text.parse::<Sha256Digest>().map_err(|why| why.to_string());
            if let Some(digest) = self.checked(&config.key(key), &text, digest) {
                let agent = &mut self.moduled.agent;
                *[&mut agent.image_hash, &mut agent.digest][pin] = Some(digest);
            }
        }
        if let Some(options) = config.table("createOptions") {
            let options = self.json_object(options.table, &options.path);
            self.moduled.agent.create_options = Json::Object(options);
        }
        if let Some(auth) = config.table("auth") {
            let mut auth_json = self.json_object(auth.table, &auth.path);
            if let Some(Json::String(server)) = auth_json.get_mut("serveraddress")
                && let Some(address) = auth.text("serveraddress")
                && let Some(resolved) = self.upstream(&address, &auth.key("serveraddress"))
            {
                *server = resolved;
            }
            self.moduled.agent.auth = Some(Json::Object(auth_json));
        }
        if config.boolean("allowElevatedDockerPermissions") == Some(false)
            && self.moduled.allow_elevated_permissions
            && let Some(entry) = config.entry("allowElevatedDockerPermissions")
        {
            let message = "elevated permissions cannot be taken from the agent alone";
            let remedy = "set allow_elevated_docker_permissions = false at the top level";
            let path = "agent.config.allowElevatedDockerPermissions";
            self.report.error_with(Code::NotSupported, &entry.key_span, path, message, remedy);
        }
    }

    fn agent_image(&mut self, image: &Text<'_>) {
        const PATH: &str = "agent.config.image";
        if image.text.trim().is_empty()
            || image.text.chars().any(|c| c.is_whitespace() || c.is_control())
        {
            self.report.error(
                Code::BadValue,
                image.span,
                PATH,
                "the image name is empty or has blanks",
            );
            return;
        }
        if self.moduled.agent.kind == "process"
            && !self.moduled.host_modules.contains_key(image.text)
        {
            let message = format!("`{PATH}` names no program of [host_modules]");
            let remedy = nearest(image.text, self.moduled.host_modules.keys().map(String::as_str))
                .map_or_else(
                    || "add [host_modules.\"<name>\"] with executable and sha256".to_owned(),
                    |known| format!("did you mean \"{known}\"?"),
                );
            self.report.error_with(Code::BadValue, image.span, PATH, message, remedy);
            return;
        }
        if let Some(image) = self.upstream(image, PATH) {
            self.moduled.agent.image = image;
        }
    }

    /// `$upstream` at the start stands for the parent device.
    fn upstream(&mut self, text: &Text<'_>, path: &str) -> Option<String> {
        let Some(rest) = text.text.strip_prefix("$upstream") else {
            return Some(text.text.to_owned());
        };
        match &self.moduled.parent_hostname {
            Some(parent) => Some(format!("{parent}{rest}")),
            None => {
                let message = "`$upstream` stands for the parent device, and there is none";
                self.report.error_with(
                    Code::Conflict,
                    text.span,
                    path,
                    message,
                    "set `parent_hostname` at the top level",
                );
                None
            }
        }
    }

    fn engine(&mut self, root: &View<'_>) {
        let view = root.table("moby_runtime");
        if view.is_none() && self.moduled.agent.kind == "process" {
            // Host modules alone need no container engine.
            return;
        }
        let mut engine = EngineSettings {
            uri: DEFAULT_ENGINE.to_owned(),
            network: DEFAULT_NETWORK.to_owned(),
            network_options: Map::new(),
        };
        if let Some(view) = view {
            if let Some(uri) = view.text("uri") {
                let socket = uri.text.strip_prefix("unix://").filter(|path| path.starts_with('/'));
                let checked = match socket {
                    Some(_) => Ok(uri.text.to_owned()),
                    None => {
                        Err("expected unix:///path/to/socket: moduled has no network of its own"
                            .to_owned())
                    }
                };
                if let Some(path) = socket {
                    self.place("moby_runtime.uri", &uri, Path::new(path), Expected::EngineSocket);
                }
                if let Some(uri) = self.checked("moby_runtime.uri", &uri, checked) {
                    engine.uri = uri;
                }
            }
            if let Some(name) = view.text("network") {
                name.text.clone_into(&mut engine.network);
                self.network_name(&name);
            } else if let Some(network) = view.table("network") {
                if let Some(name) = network.text("name") {
                    name.text.clone_into(&mut engine.network);
                    self.network_name(&name);
                }
                if let Some(ipv6) = network.boolean("ipv6") {
                    engine.network_options.insert("EnableIPv6".to_owned(), Json::Bool(ipv6));
                }
                if let Some(ipam) = network.table("ipam") {
                    let configs = address_ranges(&ipam);
                    engine
                        .network_options
                        .insert("IPAM".to_owned(), serde_json::json!({ "Config": configs }));
                }
            }
        }
        self.moduled.engine = Some(engine);
    }

    fn network_name(&mut self, name: &Text<'_>) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if name.text.is_empty() || name.text.len() > 128 || !name.text.chars().all(allowed) {
            let message = "a network's name has 1 to 128 letters, digits, '_', '.', '-'";
            self.report.error(Code::BadValue, name.span, "moby_runtime.network", message);
        }
    }

    fn policies(&mut self, root: &View<'_>) {
        let Some(policies) = root.table("module_policies") else { return };
        for entry in &policies.table.entries {
            let Some(text) = policies.text(&entry.key) else { continue };
            let id = self.module_id(&policies, &entry.key, &entry.key_span);
            let choices = [
                ("process", Policy::Process),
                ("image", Policy::Image),
                ("executable", Policy::Executable),
            ];
            let policy = self.choice(&policies.key(&entry.key), &text, &choices);
            if let (Some(id), Some(policy)) = (id, policy) {
                self.moduled.policies.insert(id, policy);
            }
        }
    }

    /// Sockets stand where existing clients have them built in; only that is accepted.
    fn sockets(&mut self, root: &View<'_>) {
        for table in ["connect", "listen"] {
            let Some(view) = root.table(table) else { continue };
            for (key, name) in [("workload_uri", "workload"), ("management_uri", "mgmt")] {
                let Some(uri) = view.text(key) else { continue };
                let usual = [
                    format!("unix:///var/run/iotedge/{name}.sock"),
                    format!("unix:///run/iotedge/{name}.sock"),
                    format!("fd://aziot-edged.{name}.socket"),
                ];
                if !usual.iter().any(|usual| usual == uri.text) {
                    let path = view.key(key);
                    let message = format!(
                        "`{path}` is not supported: the socket has a fixed place under the root folder"
                    );
                    let remedy = format!("leave it out; clients find it at {}", usual[0]);
                    self.report.error_with(Code::NotSupported, uri.span, path, message, remedy);
                }
            }
        }
    }

    fn watchdog(&mut self, root: &View<'_>) {
        let Some(view) = root.table("watchdog") else { return };
        if let Some(text) = view.text("max_retries") {
            if !text.text.eq_ignore_ascii_case("infinite") {
                let message = "`watchdog.max_retries` is an integer or \"infinite\"";
                self.report.error(Code::BadValue, text.span, "watchdog.max_retries", message);
            }
        } else {
            self.moduled.watchdog_max_retries = self.count(&view, "max_retries", 1, u32::MAX);
        }
    }

    fn image_garbage_collection(&mut self, root: &View<'_>) {
        let Some(view) = root.table("image_garbage_collection") else { return };
        let mut settings = ImageCollectionSettings::default();
        if let Some(enabled) = view.boolean("enabled") {
            settings.enabled = enabled;
        }
        for (key, setting) in [
            ("cleanup_recurrence", &mut settings.recurrence_sec),
            ("image_age_cleanup_threshold", &mut settings.unused_sec),
        ] {
            if let Some(text) = view.text(key) {
                let positive = value::duration(text.text).and_then(|seconds| match seconds {
                    0 => Err("expected a duration above zero".to_owned()),
                    seconds => Ok(seconds),
                });
                *setting = self.checked(&view.key(key), &text, positive).unwrap_or(*setting);
            }
        }
        if let Some(text) = view.text("cleanup_time") {
            let minute =
                self.checked(&view.key("cleanup_time"), &text, value::time_of_day(text.text));
            settings.at_minute = minute.unwrap_or(settings.at_minute);
        }
        for (key, setting) in [
            ("disk_high_percent", &mut settings.high_percent),
            ("disk_low_percent", &mut settings.low_percent),
        ] {
            let percent =
                self.count(&view, key, 1, 100).and_then(|percent| u8::try_from(percent).ok());
            *setting = percent.unwrap_or(*setting);
        }
        if settings.low_percent >= settings.high_percent {
            let message = format!(
                "`disk_low_percent` ({}) is below `disk_high_percent` ({})",
                settings.low_percent, settings.high_percent
            );
            let entry = view.table.entries.iter().find(|entry| entry.key.starts_with("disk_"));
            if let Some(entry) = entry {
                self.report.error(Code::BadValue, &entry.key_span, &view.path, message);
            }
        }
        self.moduled.image_collection = settings;
    }

    fn json_object(&mut self, table: &Table, path: &str) -> Map<String, Json> {
        let entries = table
            .entries
            .iter()
            .filter_map(|entry| Some((entry.key.clone(), self.json(&entry.node, path)?)));
        entries.collect()
    }

    fn json(&mut self, node: &Node, path: &str) -> Option<Json> {
        Some(match &node.value {
            Value::Text(text) => Json::String(text.clone()),
            Value::Integer(number) => Json::from(*number),
            Value::Boolean(truth) => Json::Bool(*truth),
            Value::List(items) => {
                Json::Array(items.iter().filter_map(|item| self.json(item, path)).collect())
            }
            Value::Table(table) => Json::Object(self.json_object(table, path)),
            Value::Float(number) if number.is_finite() => Json::from(*number),
            other => {
                let message = format!("`{path}` cannot hold {}", other.kind());
                self.report.error(Code::BadValue, &node.span, path, message);
                return None;
            }
        })
    }
}

fn address_ranges(ipam: &View<'_>) -> Vec<BTreeMap<&'static str, String>> {
    let names = [("gateway", "Gateway"), ("subnet", "Subnet"), ("ip_range", "IPRange")];
    let range = |node: &Node| {
        let Value::Table(table) = &node.value else { return BTreeMap::new() };
        let view = View::root(table);
        names
            .iter()
            .filter_map(|(key, name)| Some((*name, view.text(key)?.text.to_owned())))
            .collect()
    };
    ipam.list("config").unwrap_or_default().iter().map(range).collect()
}
