use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn manifest(modules: &Value) -> Value {
    json!({
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {}},
        "systemModules": {"edgeAgent": {"type": "docker", "settings": {"image": "agent:1"}}},
        "modules": modules,
    })
}

fn one(change: impl FnOnce(&mut Map<String, Value>)) -> Result<Module, DeploymentError> {
    let mut module = json!({"type": "docker", "status": "running", "settings": {"image": "a/b:1"}});
    change(module.as_object_mut().unwrap());
    let deployment = Deployment::from_value(&manifest(&json!({"m": module})), None)?;
    Ok(deployment.modules["m"].clone())
}

fn refusal(value: &Value) -> (u16, String) {
    let error = Deployment::from_value(value, None).expect_err("refused");
    (error.code(), error.to_string())
}

fn shipped(name: &str) -> Option<String> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/deployments").join(name);
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        println!("skipped: {} is not here", path.display());
    }
    text
}

const SHIPPED: [&str; 4] = [
    "metrics-collector.json",
    "module-to-module.json",
    "nested-top-layer.json",
    "quickstart.template.json",
];

fn filled_in(text: &str) -> String {
    text.replace("<Container_Registry>", "registry.example.com")
        .replace("<Build.BuildNumber>", "20250101.1")
        .replace("<Architecture>", "amd64")
}

#[test]
fn real_manifests_are_read_once_their_placeholders_are_filled_in() {
    for name in SHIPPED {
        let Some(text) = shipped(name) else { continue };
        let deployment = Deployment::parse(&filled_in(&text), None)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(deployment.edge_agent.is_some(), "{name}");
        let hub = &deployment.modules[EDGE_HUB];
        assert_eq!(hub.restart_policy, RestartPolicy::Always, "{name}");
        assert!(hub.create_options["HostConfig"]["PortBindings"]["8883/tcp"].is_array(), "{name}");
        assert!(deployment.modules.len() > 1, "{name}");
    }
}

#[test]
fn the_nested_manifest_keeps_its_startup_order_and_numbers_in_env() {
    let Some(text) = shipped("nested-top-layer.json") else { return };
    let deployment = Deployment::parse(&filled_in(&text), None).unwrap();
    assert_eq!(deployment.modules["IoTEdgeAPIProxy"].startup_order, 3);
    assert_eq!(deployment.modules[EDGE_HUB].startup_order, DEFAULT_STARTUP_ORDER);
    assert_eq!(deployment.modules[EDGE_HUB].env["DeviceScopeCacheRefreshDelaySecs"], "0");
    let credential =
        deployment.runtime.credential_for("registry.example.com/microsoft/x:1").unwrap();
    assert_eq!(credential.username, "<CR.Username>");
    assert!(!format!("{deployment:?}").contains("CR.Password"));
}

#[test]
fn a_template_is_refused_with_the_placeholder_and_its_place() {
    for name in SHIPPED {
        let Some(text) = shipped(name) else { continue };
        if !text.contains("<Container_Registry>") {
            continue;
        }
        let error = Deployment::parse(&text, None).expect_err(name);
        assert_eq!(error.code(), 400);
        assert_eq!(
            error.to_string(),
            "modulesContent.$edgeAgent[\"properties.desired\"].runtime.settings.registryCredentials.buildcr.address: \
             holds the placeholder <Container_Registry>: this is a template; fill it in first"
        );
    }
    let error =
        one(|module| module["settings"] = json!({"image": "<registry>/x"})).expect_err("template");
    assert!(
        error.to_string().starts_with("modules.m.settings.image: holds the placeholder <registry>"),
        "{error}"
    );
}

#[test]
fn all_outer_forms_give_the_same_deployment() {
    let bare = manifest(
        &json!({"m": {"type": "docker", "status": "stopped", "settings": {"image": "x"}}}),
    );
    let parse = |value: &Value| Deployment::from_value(value, None).unwrap();
    let expected = parse(&bare);
    assert_eq!(
        parse(&json!({"modulesContent": {"$edgeAgent": {"properties.desired": bare}}})),
        expected
    );
    assert_eq!(
        parse(
            &json!({"content": {"modulesContent": {"$edgeAgent": {"properties.desired": bare}}}})
        ),
        expected
    );
    assert_eq!(
        parse(&json!({"modulesContent": {"$edgeAgent": {"properties": {"desired": bare}}}})),
        expected
    );
    let local = parse(&json!({"version": 7, "deploymentConfig": bare}));
    assert_eq!(local.version, Some(7));
    assert_eq!(Deployment { version: None, ..local }, expected);
    let mut versioned = bare;
    versioned["$version"] = json!(12);
    assert_eq!(parse(&versioned).version, Some(12));
}

#[test]
fn schema_versions_up_to_1_1_0_are_taken_and_all_others_refused_with_412() {
    for (version, good) in [
        (json!("1.0"), true),
        (json!("1.0.99"), true),
        (json!("1.1"), true),
        (json!("1.1.0"), true),
        (json!(1.1), true),
        (json!("1"), false),
        (json!("1.1.1"), false),
        (json!("1.1.0.0"), false),
        (json!("1.2"), false),
        (json!("2.0"), false),
        (json!("1.+1"), false),
        (json!("1."), false),
        (json!(""), false),
    ] {
        let mut value = manifest(&json!({}));
        value["schemaVersion"] = version.clone();
        match Deployment::from_value(&value, None) {
            Ok(_) => assert!(good, "{version} was accepted"),
            Err(error) => assert!(!good && error.code() == 412, "{version}: {error}"),
        }
    }
}

#[test]
fn nothing_at_all_is_417_and_a_missing_member_is_400_with_its_place() {
    for value in [json!({}), json!({"$version": 3}), json!({"$version": 3, "$metadata": {}})] {
        assert_eq!(refusal(&value).0, 417, "{value}");
    }
    let wrapped = json!({"modulesContent": {"$edgeAgent": {"properties.desired": {}}}});
    assert_eq!(refusal(&wrapped).0, 417);
    assert_eq!(Deployment::parse(" \n", None).expect_err("blank").code(), 417);

    for name in ["schemaVersion", "runtime", "systemModules"] {
        let mut value = manifest(&json!({}));
        value.as_object_mut().unwrap().remove(name);
        assert_eq!(refusal(&value), (400, format!("{name}: is required and missing")));
    }
    let error = one(|module| drop(module.remove("status"))).expect_err("no status");
    assert_eq!(error.to_string(), "modules.m.status: is required and missing");
    let error = Deployment::parse("{\"a\": ", None).expect_err("broken");
    assert_eq!(error.code(), 400);
    assert!(matches!(error, DeploymentError::NotJson(_)));
}

#[test]
fn a_layered_deployment_is_refused_as_such() {
    let value = json!({"modulesContent": {"$edgeAgent": {"properties.desired.modules.x": {}}}});
    let (code, text) = refusal(&value);
    assert_eq!(code, 400);
    assert!(text.contains("layered deployment"), "{text}");
}

#[test]
fn member_names_ignore_case_but_two_of_one_name_are_refused() {
    let text = manifest(
        &json!({"m": {"TYPE": "docker", "Status": "Running", "SETTINGS": {"Image": "x"}}}),
    )
    .to_string();
    let text =
        text.replace("schemaVersion", "SchemaVersion").replace("systemModules", "systemmodules");
    let deployment = Deployment::parse(&text, None).unwrap();
    assert_eq!(deployment.modules["m"].image, "x:latest");
    let error =
        one(|module| drop(module.insert("Status".into(), json!("stopped")))).expect_err("two");
    assert!(matches!(error, DeploymentError::Format { reason: Reason::Twice, .. }), "{error}");
}

#[test]
fn the_type_counts_in_lower_case_only() {
    for kind in ["Docker", "kubernetes", ""] {
        let error = one(|module| module["type"] = json!(kind)).expect_err(kind);
        assert_eq!(error.to_string(), "modules.m.type: must be \"docker\" or \"process\"");
    }
}

#[test]
fn a_host_module_names_a_registered_program_and_never_a_path() {
    let process = |image: &str| {
        one(|module| {
            module["type"] = json!("process");
            module["settings"] = json!({"image": image});
        })
    };
    let module = process("thermometer").unwrap();
    assert_eq!((module.kind, module.image.as_str()), (ModuleType::Process, "thermometer"));
    for image in ["/bin/sh", "../x", "$edgeAgent", "a b", ""] {
        assert_eq!(process(image).expect_err(image).code(), 400);
    }
}

#[test]
fn defaults_are_those_of_the_field() {
    let module = one(|_| ()).unwrap();
    assert_eq!(module.restart_policy, RestartPolicy::OnUnhealthy);
    assert_eq!(module.image_pull_policy, ImagePullPolicy::OnCreate);
    assert_eq!((module.startup_order, module.version.as_str()), (u32::MAX, ""));
    assert!(module.env.is_empty() && module.create_options.is_empty());
}

#[test]
fn words_and_numbers_outside_their_sets_are_refused_where_they_stand() {
    for (name, value) in [
        ("status", json!("failed")),
        ("status", json!(3)),
        ("restartPolicy", json!("sometimes")),
        ("restartPolicy", Value::Null),
        ("startupOrder", Value::Null),
        ("startupOrder", json!(-1)),
        ("startupOrder", json!(4_294_967_296_u64)),
        ("startupOrder", json!("1")),
        ("imagePullPolicy", json!("always")),
    ] {
        let error = one(|module| drop(module.insert(name.into(), value.clone()))).expect_err(name);
        assert_eq!(error.code(), 400);
        assert!(error.to_string().starts_with(&format!("modules.m.{name}: ")), "{error}");
    }
    let module =
        one(|module| drop(module.insert("startupOrder".into(), json!(4_294_967_295_u32)))).unwrap();
    assert_eq!(module.startup_order, u32::MAX);
}

#[test]
fn env_values_become_text_and_dates_stay_as_they_are() {
    let env = json!({"S": {"value": "2024-01-02T03:04:05.678Z"}, "N": {"value": 7}, "F": {"value": 1.5},
        "B": {"value": true}, "Z": {"value": null}, "E": {}});
    let module = one(|module| drop(module.insert("env".into(), env))).unwrap();
    let pairs: Vec<_> =
        module.env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let expected = [
        ("B", "true"),
        ("E", ""),
        ("F", "1.5"),
        ("N", "7"),
        ("S", "2024-01-02T03:04:05.678Z"),
        ("Z", ""),
    ];
    assert_eq!(pairs, expected);
    for env in [
        json!({"K": {"value": {}}}),
        json!({"K": {"value": []}}),
        json!({"K": "v"}),
        json!({"A=B": {}}),
    ] {
        let error = one(|module| drop(module.insert("env".into(), env.clone()))).expect_err("env");
        assert!(error.to_string().starts_with("modules.m.env"), "{error}");
    }
}

#[test]
fn images_get_a_tag_and_bad_ones_are_refused() {
    let image = |text: &str| {
        one(|module| module["settings"] = json!({"image": text})).map(|module| module.image)
    };
    for (text, expected) in [
        ("x", "x:latest"),
        (" registry:5000/a/x ", "registry:5000/a/x:latest"),
        ("a/x:1", "a/x:1"),
        ("a/x@sha256:ab", "a/x@sha256:ab"),
        ("a/x:1@sha256:ab", "a/x:1@sha256:ab"),
    ] {
        assert_eq!(image(text).unwrap(), expected);
    }
    for text in
        ["", "  ", "a/", "x:1:2", "x:", "a b", "x\n", ":1", "x@sha256", "$x", "$upstream:abc/x"]
    {
        let result = image(text);
        if text == "x\n" {
            assert_eq!(result.unwrap(), "x:latest");
        } else {
            assert_eq!(result.expect_err(text).code(), 400);
        }
    }
}

#[test]
fn upstream_is_the_parent_and_an_error_without_one() {
    let value = manifest(&json!({"m": {"type": "docker", "status": "running",
        "settings": {"image": "$upstream:443/x:1"}}}));
    assert_eq!(
        Deployment::from_value(&value, Some("parent")).unwrap().modules["m"].image,
        "parent:443/x:1"
    );
    assert!(refusal(&value).1.contains("this device has no parent"));
}

#[test]
fn registry_credentials_go_by_the_first_part_of_the_image() {
    let mut value = manifest(&json!({}));
    let entry = |address: &str| json!({"address": address, "username": address, "password": "p"});
    value["runtime"]["settings"]["registryCredentials"] = json!({"b": entry("Registry.example.com"), "a": entry("registry.example.com"),
            "hub": entry("https://index.docker.io/v1/")});
    let runtime = Deployment::from_value(&value, None).unwrap().runtime;
    let label =
        |image: &str| runtime.credential_for(image).map(|credential| credential.label.as_str());
    assert_eq!(label("registry.example.com/x:1"), Some("b"));
    assert_eq!(label("folder/x:1"), Some("hub"));
    assert_eq!(label("x:1"), None);
    assert_eq!(label("other:5000/x:1"), None);
    value["runtime"]["settings"]["registryCredentials"]["b"]["password"] = json!(" ");
    assert!(refusal(&value).1.starts_with("runtime.settings.registryCredentials.b.password: "));
}

#[test]
fn create_options_may_be_text_object_or_pieces() {
    let options = |settings: Value| {
        one(|module| module["settings"] = settings).map(|module| module.create_options)
    };
    let expected = options(json!({"image": "x", "createOptions": {"Cmd": ["a"]}})).unwrap();
    assert_eq!(
        options(json!({"image": "x", "createOptions": "{\"Cmd\": [\"a\"]}"})).unwrap(),
        expected
    );
    let pieces = json!({"image": "x", "createOptions02": "]}", "createOptions": "{\"Cmd\":", "createOptions01": "[\"a\""});
    assert_eq!(options(pieces).unwrap(), expected);
    for empty in [json!(""), json!("  "), json!("NULL"), Value::Null] {
        assert!(options(json!({"image": "x", "createOptions": empty})).unwrap().is_empty());
    }
    for (settings, start) in [
        (
            json!({"image": "x", "createOptions": "{", "createOptions02": "}"}),
            "modules.m.settings.createOptions02",
        ),
        (
            json!({"image": "x", "createOptions01": "{}"}),
            "modules.m.settings.createOptions01: has a gap",
        ),
        (
            json!({"image": "x", "createOptions": "{", "createOptions1": "", "createOptions01": "}"}),
            "modules.m",
        ),
        (
            json!({"image": "x", "createOptions": "[]"}),
            "modules.m.settings.createOptions: must be a JSON object",
        ),
        (
            json!({"image": "x", "createOptions": "{"}),
            "modules.m.settings.createOptions: must be a JSON object",
        ),
        (
            json!({"image": "x", "createOptions": {}, "createOptions01": ""}),
            "modules.m.settings.createOptions: must",
        ),
    ] {
        let error = options(settings.clone()).expect_err("refused");
        assert!(error.to_string().starts_with(start), "{settings}: {error}");
    }
}

#[test]
fn names_that_could_steer_a_path_and_names_of_system_modules_are_refused() {
    let module = json!({"type": "docker", "status": "running", "settings": {"image": "x"}});
    for name in ["../x", "a/b", "", "a b"] {
        let (code, text) = refusal(&manifest(&json!({name: module})));
        assert_eq!(code, 400);
        assert!(text.contains("is not a module name: module id "), "{text}");
    }
    for name in ["edgeAgent", "edgeHub", "$edgeHub", "$x"] {
        assert!(
            refusal(&manifest(&json!({name: module}))).1.contains("is the name of a system module")
        );
    }
}

#[test]
fn an_absent_agent_is_left_alone_and_an_absent_hub_is_not_in_the_deployment() {
    let mut value = manifest(&json!({}));
    value["systemModules"] = json!({});
    let deployment = Deployment::from_value(&value, None).unwrap();
    assert!(deployment.edge_agent.is_none() && deployment.modules.is_empty());
}

#[test]
fn the_canonical_form_ignores_order_and_policies_and_sees_everything_else() {
    let spec = |change: &dyn Fn(&mut Map<String, Value>)| one(change).unwrap().canonical_spec();
    let settings = |text: &str| json!({"image": "a/b:1", "createOptions": text});
    let base = spec(&|module| {
        module["settings"] = settings("{\"A\": 1, \"B\": {\"x\": 1, \"y\": [2, 1]}}");
    });
    let same = spec(&|module| {
        module["settings"] = settings(" {\"B\":{\"y\":[2,1],\"x\":1},\"A\":1}");
        module.insert("restartPolicy".into(), json!("never"));
        module["status"] = json!("stopped");
    });
    assert_eq!(base, same);
    for (name, value) in [
        ("settings", settings("{\"A\": 1, \"B\": {\"x\": 1, \"y\": [1, 2]}}")),
        ("settings", json!({"image": "a/b:1", "digest": "d"})),
        ("env", json!({"K": {"value": "v"}})),
        ("version", json!("2")),
    ] {
        assert_ne!(base, spec(&|module| drop(module.insert(name.into(), value.clone()))), "{name}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("modulesContent"),
        Just("$edgeAgent"),
        Just("properties.desired"),
        Just("deploymentConfig"),
        Just("schemaVersion"),
        Just("runtime"),
        Just("systemModules"),
        Just("modules"),
        Just("edgeHub"),
        Just("type"),
        Just("settings"),
        Just("createOptions"),
        Just("createOptions01"),
        Just("env"),
        Just("image"),
        Just("docker"),
        Just("1.1"),
        Just("registryCredentials"),
        Just("value"),
    ];
    let text = prop_oneof![word.prop_map(str::to_owned), "\\PC{0,12}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((text.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_makes_the_parser_panic_and_every_refusal_has_a_known_code(value in any_json()) {
        if let Err(error) = Deployment::from_value(&value, Some("parent")) {
            prop_assert!([400, 412, 417].contains(&error.code()));
            prop_assert!(error.to_string().len() < 4096);
        }
    }

    #[test]
    fn no_json_in_place_of_a_module_makes_the_parser_panic(module in any_json(), settings in any_json()) {
        let _ = Deployment::from_value(&manifest(&json!({"m": module})), None);
        let _ = one(|module| module["settings"] = settings);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = Deployment::parse(&text, None);
    }

    #[test]
    fn create_options_that_were_split_read_back_the_same(
        members in proptest::collection::vec(("\\PC{0,20}", "\\PC{0,400}"), 0..20)
    ) {
        let options: Map<String, Value> = members.into_iter().map(|(key, value)| (key, value.into())).collect();
        let pieces = split_create_options(&Value::Object(options.clone()).to_string()).expect("fits");
        prop_assert!(pieces.iter().all(|(_, piece)| piece.chars().count() <= CHUNK_CHARACTERS));
        let module = one(|module| {
            let settings = module["settings"].as_object_mut().expect("object");
            // The order of members must not count.
            for (name, piece) in pieces.into_iter().rev() {
                settings.insert(name, piece.into());
            }
        });
        prop_assert_eq!(module.expect("read").create_options, options);
    }
}
