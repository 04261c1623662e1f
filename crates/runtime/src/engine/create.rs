//! The engine's create body for a module: the deployment's create options, and what
//! moduled adds (wire facts, section 2.5). Pure.

use std::collections::BTreeMap;

use edgekeep_core::digest::Sha256Digest;
use serde_json::{Map, Value, json};

use crate::evidence::sha256_of;

/// Label that marks a container as a module.
pub const OWNER_LABEL: &str = "net.azure-devices.edge.owner";
/// Value of [`OWNER_LABEL`].
pub const OWNER: &str = "Microsoft.Azure.Devices.Edge.Agent";
/// Label with the image's name as the deployment has it.
pub const ORIGINAL_IMAGE_LABEL: &str = "net.azure-devices.edge.original-image";
/// Label with the digest of the create options.
pub const OPTIONS_LABEL: &str = "edgekeep.options";
/// Label with the networks that the container is to be attached to, as JSON: by name the
/// settings of the endpoint. What somebody detaches is attached again by it.
pub const NETWORKS_LABEL: &str = "edgekeep.networks";

/// The specification that a container is made from. Not printable: environment and
/// options hold secrets.
#[derive(Clone, Default)]
pub struct ContainerSpec<'a> {
    /// Image name as the deployment has it.
    pub image: &'a str,
    /// The image itself, as it was measured; absent: what the name means when the
    /// container is made.
    pub image_id: Option<Sha256Digest>,
    /// `createOptions`: an engine create body in the engine's spelling of members.
    /// Unknown members are kept.
    pub options: Map<String, Value>,
    /// Environment; a variable that `options` sets too has the value from there.
    pub env: BTreeMap<String, String>,
    /// Network to join if `options` choose none.
    pub network: Option<&'a str>,
    /// `HOST:CONTAINER[:OPTIONS]` binds; one whose place in the container `options`
    /// already use is left out.
    pub binds: Vec<String>,
    /// Labels beside the owner's; they override those in `options`.
    pub labels: BTreeMap<String, String>,
}

/// A create body and the digest that its label carries.
#[derive(Clone, PartialEq)]
pub struct CreateBody {
    /// The body that is sent to the engine.
    pub body: Value,
    /// SHA-256 over the canonical form of everything in it but the image's id and the
    /// digest's own label.
    pub options: Sha256Digest,
}

/// The body holds the environment, and with it secrets.
impl std::fmt::Debug for CreateBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateBody").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A member for which create options are not usable, and the values that it may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("create options: {member} must be {expected}")]
pub struct CreateOptionsError {
    /// The member, as a path.
    pub member: &'static str,
    /// Description of the allowed values.
    pub expected: &'static str,
}

/// Makes the create body. With `image_id` the image is named by it, so that a tag moved
/// in between changes nothing.
///
/// # Errors
/// A member of the create options that must be changed or merged has another type than
/// the engine's API says.
pub fn create_body(
    spec: &ContainerSpec<'_>,
    image_id: Option<&Sha256Digest>,
) -> Result<CreateBody, CreateOptionsError> {
    let mut body = spec.options.clone();
    merge_env(&mut body, &spec.env)?;
    add_labels(&mut body, spec)?;
    add_binds(&mut body, &spec.binds)?;
    if let Some(network) = spec.network {
        join_network(&mut body, network)?;
    }
    body.insert("Image".into(), spec.image.into());

    let options = sha256_of(canonical(&Value::Object(body.clone())).as_bytes());
    let networks = Value::Object(wanted_networks(&body)).to_string();
    if let Some(Value::Object(labels)) = body.get_mut("Labels") {
        labels.insert(OPTIONS_LABEL.into(), options.to_string().into());
        labels.insert(NETWORKS_LABEL.into(), networks.into());
    }
    if let Some(id) = image_id {
        body.insert("Image".into(), id.to_string().into());
    }
    Ok(CreateBody { body: Value::Object(body), options })
}

/// The networks that a create body asks for, by name the settings of the endpoint. The
/// engine's own, and those of other containers, are none: they cannot be made or attached
/// to.
#[must_use]
pub fn wanted_networks(body: &Map<String, Value>) -> Map<String, Value> {
    let given = |endpoint: &Value| if endpoint.is_object() { endpoint.clone() } else { json!({}) };
    let endpoints = body
        .get("NetworkingConfig")
        .and_then(|networking| networking["EndpointsConfig"].as_object());
    let named =
        endpoints.into_iter().flatten().map(|(name, endpoint)| (name.clone(), given(endpoint)));
    let mut wanted: Map<String, Value> = named.filter(|(name, _)| is_network(name)).collect();
    let mode =
        body.get("HostConfig").and_then(|host| host["NetworkMode"].as_str()).unwrap_or_default();
    if is_network(mode) {
        wanted.entry(mode).or_insert_with(|| json!({}));
    }
    wanted
}

/// Returns true if a network mode is the name of a network that somebody made.
fn is_network(mode: &str) -> bool {
    !matches!(
        mode,
        "" | "default" | "bridge" | "host" | "none" | "nat" | "private" | "slirp4netns" | "pasta"
    ) && !mode.contains(':')
}

/// JSON with sorted members and no blanks, so that equal values have equal text.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut names: Vec<&String> = members.keys().collect();
            names.sort_unstable();
            let members: Vec<String> = names
                .iter()
                .map(|name| format!("{}:{}", json!(name), canonical(&members[name.as_str()])))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        scalar => scalar.to_string(),
    }
}

/// The member as an object, made if it is absent or null.
fn object<'a>(
    body: &'a mut Map<String, Value>,
    name: &str,
    member: &'static str,
) -> Result<&'a mut Map<String, Value>, CreateOptionsError> {
    let value = body.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().ok_or(CreateOptionsError { member, expected: "an object" })
}

/// The member as a list of strings; absent and null are empty.
fn strings(
    body: &Map<String, Value>,
    name: &str,
    member: &'static str,
) -> Result<Vec<String>, CreateOptionsError> {
    let error = CreateOptionsError { member, expected: "a list of strings" };
    match body.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or(error.clone())).collect()
        }
        Some(_) => Err(error),
    }
}

fn merge_env(
    body: &mut Map<String, Value>,
    env: &BTreeMap<String, String>,
) -> Result<(), CreateOptionsError> {
    let mut merged: BTreeMap<String, Option<String>> =
        env.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect();
    for entry in strings(body, "Env", "Env")? {
        match entry.split_once('=') {
            Some((name, value)) => merged.insert(name.to_owned(), Some(value.to_owned())),
            // Without `=` the engine removes the image's variable.
            None => merged.insert(entry, None),
        };
    }
    let list: Vec<Value> = merged
        .into_iter()
        .map(|(name, value)| value.map_or(name.clone(), |value| format!("{name}={value}")).into())
        .collect();
    body.insert("Env".into(), list.into());
    Ok(())
}

fn add_labels(
    body: &mut Map<String, Value>,
    spec: &ContainerSpec<'_>,
) -> Result<(), CreateOptionsError> {
    let labels = object(body, "Labels", "Labels")?;
    labels.remove(OPTIONS_LABEL);
    labels.remove(NETWORKS_LABEL);
    for (name, value) in &spec.labels {
        labels.insert(name.clone(), value.as_str().into());
    }
    labels.insert(OWNER_LABEL.into(), OWNER.into());
    labels.insert(ORIGINAL_IMAGE_LABEL.into(), spec.image.into());
    Ok(())
}

fn add_binds(body: &mut Map<String, Value>, binds: &[String]) -> Result<(), CreateOptionsError> {
    if binds.is_empty() {
        return Ok(());
    }
    let place = |bind: &str| bind.split(':').nth(1).map(str::to_owned);
    let host = object(body, "HostConfig", "HostConfig")?;
    let mut all = strings(host, "Binds", "HostConfig.Binds")?;
    for bind in binds {
        if !all.iter().any(|present| place(present) == place(bind)) {
            all.push(bind.clone());
        }
    }
    host.insert("Binds".into(), all.into());
    Ok(())
}

fn join_network(body: &mut Map<String, Value>, network: &str) -> Result<(), CreateOptionsError> {
    // A network chosen by mode (`host`, `none`, `container:...`) excludes endpoints.
    let mode =
        body.get("HostConfig").and_then(|host| host["NetworkMode"].as_str()).unwrap_or_default();
    if !matches!(mode, "" | "default") && mode != network {
        return Ok(());
    }
    let networking = object(body, "NetworkingConfig", "NetworkingConfig")?;
    let endpoints = object(networking, "EndpointsConfig", "NetworkingConfig.EndpointsConfig")?;
    if endpoints.is_empty() {
        endpoints.insert(network.to_owned(), json!({}));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            other => panic!("not an object: {other}"),
        }
    }

    fn spec(value: Value) -> ContainerSpec<'static> {
        ContainerSpec { image: "registry/app:1", options: options(value), ..Default::default() }
    }

    fn made(spec: &ContainerSpec<'_>) -> Value {
        create_body(spec, None).expect("usable").body
    }

    #[test]
    fn create_options_win_over_the_environment_and_the_result_is_sorted() {
        let mut spec = spec(json!({ "Env": ["B=options", "A=1=2", "UNSET"] }));
        spec.env = [("B", "env"), ("C", "3")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(made(&spec)["Env"], json!(["A=1=2", "B=options", "C=3", "UNSET"]));
    }

    #[test]
    fn unknown_members_stay_and_nulls_count_as_absent() {
        let body = made(&spec(
            json!({ "Env": null, "Labels": null, "Future": { "x": [1] }, "HostConfig": null }),
        ));
        assert_eq!(body["Future"], json!({ "x": [1] }));
        assert_eq!(body["Env"], json!([]));
        assert_eq!(body["HostConfig"], Value::Null);
        assert_eq!(body["Labels"][OWNER_LABEL], OWNER);
    }

    #[test]
    fn the_image_is_pinned_by_id_and_the_typed_name_kept_in_its_label() {
        let id = Sha256Digest::new([5; 32]);
        let spec = spec(
            json!({ "Labels": { OWNER_LABEL: "me", ORIGINAL_IMAGE_LABEL: "other", "mine": "kept" } }),
        );
        let body = create_body(&spec, Some(&id)).expect("usable").body;
        assert_eq!(body["Image"], id.to_string());
        assert_eq!(body["Labels"][ORIGINAL_IMAGE_LABEL], "registry/app:1");
        assert_eq!(body["Labels"][OWNER_LABEL], OWNER, "a deployment cannot disown its container");
        assert_eq!(body["Labels"]["mine"], "kept");
    }

    #[test]
    fn the_options_digest_stands_in_its_label_and_does_not_depend_on_order_or_image_id() {
        let one =
            create_body(&spec(json!({ "A": 1, "B": { "x": 1, "y": 2 } })), None).expect("usable");
        let other = create_body(
            &spec(
                json!({ "B": { "y": 2, "x": 1 }, "A": 1, "Labels": { OPTIONS_LABEL: "forged" } }),
            ),
            Some(&Sha256Digest::new([1; 32])),
        )
        .expect("usable");
        assert_eq!(one.options, other.options);
        assert_eq!(other.body["Labels"][OPTIONS_LABEL], one.options.to_string());
        let changed =
            create_body(&spec(json!({ "A": 2, "B": { "x": 1, "y": 2 } })), None).expect("usable");
        assert_ne!(one.options, changed.options);
    }

    #[test]
    fn binds_are_added_unless_their_place_is_taken() {
        let mut spec =
            spec(json!({ "HostConfig": { "Binds": ["/mine:/run/a.sock", "/x:/y:ro"] } }));
        spec.binds = vec!["/ours:/run/a.sock".into(), "/ours:/run/b.sock".into()];
        assert_eq!(
            made(&spec)["HostConfig"]["Binds"],
            json!(["/mine:/run/a.sock", "/x:/y:ro", "/ours:/run/b.sock"])
        );
    }

    #[test]
    fn the_network_is_joined_only_where_the_options_choose_none() {
        let joined = json!({ "EndpointsConfig": { "edge": {} } });
        let own = json!({ "EndpointsConfig": { "own": { "Aliases": ["a"] } } });
        for (options, expected) in [
            (json!({}), joined.clone()),
            (json!({ "HostConfig": { "NetworkMode": "default" } }), joined),
            (json!({ "HostConfig": { "NetworkMode": "host" } }), Value::Null),
            (json!({ "NetworkingConfig": own.clone() }), own),
        ] {
            let mut spec = spec(options.clone());
            spec.network = Some("edge");
            assert_eq!(made(&spec)["NetworkingConfig"], expected, "{options}");
        }
    }

    #[test]
    fn a_container_notes_the_networks_that_somebody_made() {
        let noted = |options: Value| {
            let mut spec = spec(options);
            spec.network = Some("edge");
            let text = made(&spec)["Labels"][NETWORKS_LABEL].as_str().expect("a label").to_owned();
            serde_json::from_str::<Value>(&text).expect("is JSON")
        };
        let own = json!({ "NetworkingConfig": { "EndpointsConfig": { "own": { "Aliases": ["a"] }, "other": null } } });
        assert_eq!(noted(json!({})), json!({ "edge": {} }));
        assert_eq!(noted(own), json!({ "own": { "Aliases": ["a"] }, "other": {} }));
        assert_eq!(
            noted(json!({ "HostConfig": { "NetworkMode": "plant" } })),
            json!({ "plant": {} })
        );
        for mode in ["host", "none", "container:other", "bridge", "slirp4netns:port_handler=x"] {
            assert_eq!(
                noted(json!({ "HostConfig": { "NetworkMode": mode } })),
                json!({}),
                "{mode}"
            );
        }
        assert_eq!(noted(json!({ "Labels": { NETWORKS_LABEL: "forged" } })), json!({ "edge": {} }));
    }

    #[test]
    fn a_member_of_the_wrong_type_is_named() {
        for (value, member) in [
            (json!({ "Env": "A=1" }), "Env"),
            (json!({ "Env": [1] }), "Env"),
            (json!({ "Labels": [] }), "Labels"),
            (json!({ "HostConfig": [] }), "HostConfig"),
        ] {
            let mut spec = spec(value);
            spec.binds = vec!["/a:/b".into()];
            assert_eq!(create_body(&spec, None).expect_err("wrong type").member, member);
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c\"\\\\]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]{1,2}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_canonical_text_reads_back_to_the_same_value(value in json_value()) {
            prop_assert_eq!(serde_json::from_str::<Value>(&canonical(&value)).expect("is JSON"), value);
        }

        #[test]
        fn the_owner_is_always_labelled(value in json_value()) {
            let body = made(&spec(json!({ "X": value, "Labels": { OWNER_LABEL: "me" } })));
            prop_assert_eq!(&body["Labels"][OWNER_LABEL], OWNER);
        }
    }
}
