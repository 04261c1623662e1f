use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::settings::CredentialKind;

fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let mut array = [0; 32];
    array.copy_from_slice(digest.as_ref());
    Sha256Digest::new(array).hex()
}

fn file_name(id: &str) -> String {
    let readable: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{readable}-{}", sha256(id))
}

fn key(id: &str) -> Found {
    let path = format!("var/lib/aziot/keyd/keys/{}.key", file_name(id));
    Found { path, content: Content::Usable }
}

fn certificate(id: &str) -> Found {
    let path = format!("var/lib/aziot/certd/certs/{}.cer", file_name(id));
    Found { path, content: Content::Usable }
}

fn unread(path: &str) -> Found {
    Found { path: path.to_owned(), content: Content::Unread }
}

fn identity() -> DeviceIdentity {
    DeviceIdentity {
        hub: "plant7.azure-devices.net".into(),
        device_id: "press-04".parse().unwrap(),
    }
}

fn info() -> Found {
    let path = "var/lib/aziot/identityd/device_info".to_owned();
    Found { path, content: Content::Identity(Some(identity())) }
}

fn module(id: &str, generation: &str) -> Found {
    let folder = format!("{}-{}", sha256(&identity().hub), sha256("press-04"));
    let path = format!("var/lib/aziot/identityd/modules/{folder}/{}", file_name(id));
    let record = json!({ "moduleId": id, "deviceId": "press-04", "generationId": generation,
        "managedBy": "IotEdge" });
    Found { path, content: Content::Json(record) }
}

fn dps() -> Source {
    Source::Dps {
        endpoint: "https://global.azure-devices-provisioning.net".into(),
        scope_id: "0ne00000000".into(),
        registration_id: Some("press-04".into()),
        credential: CredentialKind::SymmetricKey,
        operational: false,
    }
}

fn device(files: Vec<Found>) -> Device {
    let mut files = files;
    files.push(unread(CONFIGURATION));
    Device {
        files,
        containers: Vec::new(),
        ids: BTreeSet::new(),
        source: dps(),
        certificate: None,
        policies: BTreeMap::new(),
        now: 1_800_000_000,
    }
}

fn planned(device: &Device) -> Plan {
    plan(device, sha256).unwrap()
}

fn why(plan: &Plan, part: &str) -> (String, bool) {
    let found = plan.left.iter().find(|left| left.name.contains(part)).unwrap();
    (found.why.clone(), found.attention)
}

#[test]
fn each_place_of_the_existing_packages_has_its_role() {
    let name = file_name("device-id");
    for (path, expected) in [
        (CONFIGURATION.to_owned(), "Configuration"),
        ("etc/aziot/config.toml.edge.template".to_owned(), "NotNeeded"),
        ("etc/aziot/keyd/config.toml.default".to_owned(), "NotNeeded"),
        ("etc/aziot/keyd/config.d/00-super.toml".to_owned(), "NotNeeded"),
        ("etc/aziot/identityd/config.d/10-watcher.toml".to_owned(), "DropIn"),
        (format!("var/lib/aziot/keyd/keys/{name}.key"), "Key"),
        (format!("var/lib/aziot/keyd/keys/{name}.key.bak"), "Unknown"),
        (format!("var/lib/aziot/keyd/keys/{}.key", name.to_uppercase()), "Unknown"),
        ("var/lib/aziot/keyd/keys/x-12.key".to_owned(), "Unknown"),
        (format!("var/lib/aziot/certd/certs/{name}.cer"), "Certificate"),
        ("var/lib/aziot/identityd/device_info".to_owned(), "DeviceInfo"),
        ("var/lib/aziot/identityd/prev_state".to_owned(), "NotNeeded"),
        ("var/lib/aziot/identityd/modules/a-b/m-c".to_owned(), "Module"),
        ("var/lib/aziot/edged/cache/provisioning_state".to_owned(), "NotNeeded"),
        ("var/lib/aziot/edged/gc/image_use".to_owned(), "NotNeeded"),
        ("var/lib/aziot/edged/mnt/edgeAgent.sock".to_owned(), "NotNeeded"),
        ("var/secrets/aziot/keyd/device-id".to_owned(), "NotNeeded"),
        ("var/secrets/aziot/keyd/other".to_owned(), "Unknown"),
        ("var/lib/aziot/tpmd/odd".to_owned(), "Unknown"),
    ] {
        let role = format!("{:?}", role(&path));
        assert!(role.starts_with(expected), "{path}: {role}");
    }
}

#[test]
fn keys_go_under_their_ids_and_what_has_none_is_named() {
    let mut given = device(vec![
        key("aziot_identityd_master_id"),
        key("iotedge_master_encryption_id"),
        key("my-own-key"),
        key("someone-elses"),
        key("handle-validation-key"),
        key("aziot-edged-ca-temp"),
    ]);
    given.ids.insert("my-own-key".to_owned());
    let plan = planned(&given);
    let ids: Vec<&str> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Key { id, .. } => Some(id.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(ids, ["aziot_identityd_master_id", "iotedge_master_encryption_id", "my-own-key"]);
    let (text, attention) = why(&plan, "someoneelses");
    assert!(attention && text.contains("--key-id"), "{text}");
    assert!(!why(&plan, "handlevalidationkey").1);
    assert!(why(&plan, "aziotedgedcatemp").0.contains("cut off"));
}

#[test]
fn a_key_file_under_another_ids_letters_is_left() {
    let hash = sha256("device-id");
    let path = format!("var/lib/aziot/keyd/keys/other-{hash}.key");
    let plan = planned(&device(vec![Found { path, content: Content::Usable }]));
    assert_eq!(
        why(&plan, "other-"),
        ("the file's name is not that of key \"device-id\"".into(), true)
    );
}

#[test]
fn a_certificate_keeps_its_name_but_for_what_ours_are_cut_to() {
    let long = format!("aziot-edged/module/{}:1:server", "m".repeat(100));
    let plan = planned(&device(vec![certificate("aziot-edged-ca"), certificate(&long)]));
    let files: Vec<&String> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Certificate { file, .. } => Some(file),
            _ => None,
        })
        .collect();
    assert_eq!(*files[0], format!("aziotedgedca-{}.cer", sha256("aziot-edged-ca")));
    let readable: String =
        long.chars().filter(char::is_ascii_alphanumeric).take(READABLE_PART).collect();
    assert_eq!(*files[1], format!("{readable}-{}.cer", sha256(&long)));
}

#[test]
fn the_assigned_identity_and_its_modules_stay() {
    let mut given = device(vec![info(), module("$edgeAgent", "638"), module("thermometer", "639")]);
    given.certificate = Some("ab".repeat(32));
    let plan = planned(&given);
    let Some(Step::Identity(stored)) = plan.steps.first() else { panic!("{plan:?}") };
    assert_eq!((&stored.identity, &stored.source), (&identity(), &dps()));
    assert_eq!(stored.certificate, given.certificate);
    let modules = plan.steps.iter().find_map(|step| match step {
        Step::Modules(modules) => Some(modules),
        _ => None,
    });
    let modules = modules.unwrap();
    let generations: Vec<(&str, &str)> = modules
        .modules
        .iter()
        .map(|(id, module)| (id.as_str(), module.generation.as_str()))
        .collect();
    assert_eq!(generations, [("$edgeAgent", "638"), ("thermometer", "639")]);
}

#[test]
fn a_device_does_not_become_another_one() {
    let mut given = device(vec![info()]);
    let other = DeviceIdentity { device_id: "press-05".parse().unwrap(), ..identity() };
    given.source = Source::Manual { identity: other };
    let error = plan(&given, sha256).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the configuration names device press-05 at plant7.azure-devices.net and the device is press-04 at \
         plant7.azure-devices.net now; correct etc/aziot/config.toml, so that the identity stays"
    );
    let hub = identity().hub.to_uppercase();
    given.source = Source::Manual { identity: DeviceIdentity { hub, ..identity() } };
    assert!(plan(&given, sha256).is_ok(), "the case of a host name does not matter");
}

#[test]
fn an_identity_that_cannot_be_read_stops_it_and_modules_of_another_device_are_left() {
    let mut broken = info();
    broken.content = Content::Unusable("names no hub_name and device_id".into());
    let error = plan(&device(vec![broken]), sha256).unwrap_err();
    assert!(matches!(error, MigrationError::Unusable { .. }), "{error}");

    let mut foreign = module("m", "1");
    foreign.path = format!("var/lib/aziot/identityd/modules/0-0/{}", file_name("m"));
    let plan = planned(&device(vec![info(), foreign]));
    assert!(why(&plan, "modules/0-0").0.contains("another device"));
}

#[test]
fn containers_are_registered_as_they_are() {
    let container = |name: &str, runs| Container {
        name: name.to_owned(),
        id: "a".repeat(64).parse().unwrap(),
        image: Sha256Digest::new([7; 32]),
        options: None,
        runs,
    };
    let mut given = device(vec![info(), module("$edgeAgent", "638"), module("m", "1")]);
    given.containers =
        vec![container("edgeAgent", false), container("m", true), container("not a module", true)];
    given.policies.insert("m".parse().unwrap(), Policy::Process);
    let plan = planned(&given);
    let known = plan.steps.iter().find_map(|step| match step {
        Step::Registrations(known) => Some(known),
        _ => None,
    });
    let known = known.unwrap();
    let agent = &known["edgeAgent"];
    assert_eq!(
        (agent.policy, agent.generation.as_ref().unwrap().as_str()),
        (Policy::Executable, "638")
    );
    assert_eq!(known["m"].policy, Policy::Process);
    assert_eq!(known.len(), 2);
    assert!(why(&plan, "not a module").1);
    assert_eq!(plan.restart, ["m".parse().unwrap()]);
}

#[test]
fn without_a_configuration_there_is_nothing_to_go_by() {
    let mut given = device(vec![info()]);
    given.files.pop();
    assert_eq!(plan(&given, sha256), Err(MigrationError::NoConfiguration));
}

fn some_file() -> impl Strategy<Value = Found> {
    let places = prop_oneof![
        Just("var/lib/aziot/keyd/keys"),
        Just("var/lib/aziot/certd/certs"),
        Just("var/lib/aziot/identityd/modules/x-y"),
        Just("var/lib/aziot/edged/mnt"),
        Just("etc/aziot/keyd/config.d"),
        Just("var/secrets/aziot/keyd"),
    ];
    let names = prop_oneof![
        "[a-z-]{1,12}".prop_map(|id| format!("{}.key", file_name(&id))),
        Just(format!("{}.key", file_name("device-id"))),
        Just(format!("{}.cer", file_name("device-id"))),
        "[a-z.]{1,12}",
    ];
    let contents = prop_oneof![
        Just(Content::Usable),
        Just(Content::Unread),
        Just(Content::Json(json!({}))),
        Just(Content::Unusable("is odd".into())),
    ];
    (places, names, contents)
        .prop_map(|(place, name, content)| Found { path: format!("{place}/{name}"), content })
}

proptest! {
    #[test]
    fn every_file_is_taken_over_or_named(files in prop::collection::vec(some_file(), 0..20)) {
        let mut files = files;
        files.sort_by(|one, other| one.path.cmp(&other.path));
        files.dedup_by(|one, other| one.path == other.path);
        let mut given = device(files);
        given.files.push(info());
        let plan = planned(&given);
        prop_assert_eq!(plan.steps.last(), Some(&Step::Configuration));
        let mut seen: Vec<&str> = plan.left.iter().map(|left| left.name.as_str()).collect();
        let mut to = BTreeSet::new();
        for step in &plan.steps {
            match step {
                Step::Key { from, id } => {
                    seen.push(from);
                    let is_new = to.insert(format!("key {id}"));
                    prop_assert!(is_new);
                }
                Step::Certificate { from, file } => {
                    seen.push(from);
                    prop_assert!(to.insert(file.clone()));
                }
                _ => {}
            }
        }
        seen.sort_unstable();
        let expected = given.files.iter().map(|found| found.path.as_str());
        let mut expected: Vec<&str> =
            expected.filter(|path| !matches!(role(path), Role::Configuration | Role::DeviceInfo)).collect();
        expected.sort_unstable();
        prop_assert_eq!(seen, expected);
    }
}
