//! The device's configuration, as far as the checks need it.

use std::path::PathBuf;
use std::time::Duration;

use edgekeep_api::identityd::IdentityClient;
use edgekeep_base::file::{self, Rules};
use edgekeep_core::layout::{Daemon, Root};
use serde_json::{Value, json};

use crate::arguments::Context;

/// Longest settings that are read, in bytes.
const SETTINGS_LIMIT: u64 = 16 << 20;
const LIMIT: Duration = Duration::from_secs(1);

/// Facts that are gathered once for all checks.
#[derive(Debug, Clone)]
pub(super) struct Configured {
    pub(super) root: Root,
    pub(super) management: PathBuf,
    /// Settings of each daemon, or why they could not be read.
    keyd: Result<Value, String>,
    identityd: Result<Value, String>,
    moduled: Result<Value, String>,
    /// The hub, by the operator, the configuration, or the daemon that was assigned one.
    pub(super) hub: Option<String>,
}

impl Configured {
    pub(super) async fn read(context: &Context, hub: Option<String>) -> Self {
        let root = context.root.clone();
        let settings = |daemon| {
            let path = root.settings_file(daemon);
            let content = file::read(&path, Rules::named(SETTINGS_LIMIT));
            content
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => {
                        "no configuration was applied: edgekeep config apply".to_owned()
                    }
                    _ => format!("{} cannot be read ({error}): run as root", path.display()),
                })
                .and_then(|content| {
                    serde_json::from_slice(&content)
                        .map_err(|error| format!("{} is damaged: {error}", path.display()))
                })
        };
        let (keyd, identityd, moduled) =
            (settings(Daemon::Keyd), settings(Daemon::Identityd), settings(Daemon::Moduled));
        let configured = identityd.as_ref().ok().and_then(|settings: &Value| {
            let provisioning = &settings["provisioning"];
            let hub = provisioning["hub"].as_str().or(provisioning["Manual"]["hub"].as_str());
            hub.map(str::to_owned)
        });
        let parent = identityd
            .as_ref()
            .ok()
            .and_then(|settings: &Value| settings["parent_hostname"].as_str().map(str::to_owned));
        let hub = match hub.or(parent).or(configured) {
            Some(hub) => Some(hub),
            None => assigned(&root).await,
        };
        Self { root, management: context.management.clone(), keyd, identityd, moduled, hub }
    }

    pub(super) fn keyd(&self) -> Result<&Value, String> {
        self.keyd.as_ref().map_err(Clone::clone)
    }

    pub(super) fn identityd(&self) -> Result<&Value, String> {
        self.identityd.as_ref().map_err(Clone::clone)
    }

    pub(super) fn moduled(&self) -> Result<&Value, String> {
        self.moduled.as_ref().map_err(Clone::clone)
    }

    /// Facts for a reader of the JSON.
    pub(super) fn about(&self) -> Value {
        let system = rustix::system::uname();
        json!({
            "now": time::OffsetDateTime::now_utc()
                .format(&time::format_description::well_known::Rfc3339)
                .unwrap_or_default(),
            "edgekeep_version": env!("CARGO_PKG_VERSION"),
            "os": {
                "kernel": system.release().to_string_lossy(),
                "arch": system.machine().to_string_lossy(),
            },
            "iothub_hostname": self.hub,
        })
    }
}

/// The hub that the provisioning service assigned.
async fn assigned(root: &Root) -> Option<String> {
    let client = IdentityClient::new(root.identityd_socket()).with_timeout(LIMIT);
    let identity = serde_json::to_value(client.device().await.ok()?).ok()?;
    let spec = if identity["spec"].is_object() { &identity["spec"] } else { &identity };
    spec["hubName"].as_str().map(str::to_owned)
}
