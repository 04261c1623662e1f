//! The containers that the compatible module runtime has made, as the engine shows them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_api::client::Client;
use edgekeep_core::migration::{Container, OWNER_LABEL};
use http::Method;
use serde_json::{Value, json};

/// Longest time for one question.
const LIMIT: Duration = Duration::from_secs(8);
/// Version of the engine's API that is asked; every engine that is supported has it.
const VERSION: &str = "/v1.41";
/// Most containers that are taken over. A hub has 50 modules for a device.
const CONTAINERS: usize = 1000;
/// Label with the digest of the create options.
const OPTIONS_LABEL: &str = "edgekeep.options";

/// Asks the engine behind `uri` for the modules' containers.
///
/// # Errors
/// If it does not answer, or a container cannot be understood.
pub(super) async fn containers(uri: &str) -> anyhow::Result<Vec<Container>> {
    let socket = PathBuf::from(uri.strip_prefix("unix://").unwrap_or(uri));
    let client = Client::new(&socket).with_timeout(LIMIT);
    let ask = async |path: String| -> anyhow::Result<Value> {
        client.call::<(), Value>(Method::GET, &path, None).await.with_context(|| {
            format!(
                "the container engine at {} does not answer, and its containers are to be taken over; start it: \
                 systemctl start docker",
                socket.display()
            )
        })
    };
    let filters = encoded(&json!({ "label": [OWNER_LABEL] }).to_string());
    let listed = ask(format!("{VERSION}/containers/json?all=true&filters={filters}")).await?;
    let listed = listed.as_array().context("the container engine's list is no list")?;
    anyhow::ensure!(listed.len() <= CONTAINERS, "more than {CONTAINERS} containers of modules");
    let mut containers = Vec::new();
    for one in listed {
        let id = one["Id"].as_str().unwrap_or_default();
        anyhow::ensure!(
            !id.is_empty() && id.bytes().all(|c| c.is_ascii_hexdigit()),
            "the container engine lists a container without an id"
        );
        let shown = ask(format!("{VERSION}/containers/{id}/json")).await?;
        let container = container(&shown).with_context(|| {
            format!("the container engine's answer about {id} is not understood")
        })?;
        containers.push(container);
    }
    Ok(containers)
}

fn container(shown: &Value) -> Option<Container> {
    let name = shown["Name"].as_str()?;
    Some(Container {
        name: name.strip_prefix('/').unwrap_or(name).to_owned(),
        id: shown["Id"].as_str()?.parse().ok()?,
        image: shown["Image"].as_str()?.parse().ok()?,
        options: shown["Config"]["Labels"][OPTIONS_LABEL].as_str().and_then(|it| it.parse().ok()),
        runs: shown["State"]["Running"].as_bool()?,
    })
}

/// A text as it stands in a query.
fn encoded(text: &str) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~".contains(&c);
    let one = |c: u8| if plain(c) { char::from(c).to_string() } else { format!("%{c:02X}") };
    text.bytes().map(one).collect()
}
