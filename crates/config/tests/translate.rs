//! Translations of configurations: accepted forms, refused forms with their line, and
//! results that can never happen.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edgekeep_config::{
    Code, Diagnostic, Environment, Severity, Translated, Users, referenced_files, render, translate,
};
use edgekeep_core::attestation::Policy;
use edgekeep_core::create_options::{OwnState, PublishedPorts};
use edgekeep_core::hardware::{AuthSource, KeyPlace, PassOn, Seal, SecretText};
use edgekeep_core::host::{Enforcement, Limits, RestartPolicy, ScopeUse, SeccompPreset, UnitName};
use edgekeep_core::key_use::Purpose;
use edgekeep_core::layout::Daemon;
use edgekeep_core::renewal::Policy as RenewalPolicy;
use edgekeep_core::settings::{
    DeviceCredential, EdgeCaRenewal, Issuance, IssuanceMethod, ModuleEncryption, ModuleKeys,
    PreloadedCert, Provisioning, ReprovisioningMode,
};
use proptest::prelude::*;

fn device() -> Environment {
    Environment {
        users: Users { keyd: 11, identityd: 12, moduled: 13 },
        hostname: "press-04".to_owned(),
        uids: BTreeMap::from([("siem".to_owned(), 990), ("auditor".to_owned(), 991)]),
        ..Environment::default()
    }
}

#[track_caller]
fn accepted(text: &str) -> Translated {
    translate(text, &device())
        .unwrap_or_else(|found| panic!("refused:\n{}", render(&found, "config.toml", false)))
}

#[track_caller]
fn refused(text: &str) -> Vec<Diagnostic> {
    let found = translate(text, &device()).expect_err("was accepted");
    found.into_iter().filter(|diagnostic| diagnostic.severity == Severity::Error).collect()
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// Without it there is a notice that modules may have everything.
const CLOSED: &str = "allow_elevated_docker_permissions = false\n";

const MANUAL: &str = "[provisioning]\nsource = \"manual\"\n\
    connection_string = \"HostName=h.example;DeviceId=d;SharedAccessKey=a2V5MQ==\"\n";

#[test]
fn every_example_in_the_config_folder_translates_without_a_notice() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let translated = accepted(&std::fs::read_to_string(&path).unwrap());
        assert_eq!(translated.notices, [], "{}", path.display());
        count += 1;
    }
    assert!(count >= 3);
}

fn by_key() -> DeviceCredential {
    DeviceCredential::SymmetricKey { key: "device-id".parse().unwrap() }
}

#[test]
fn a_connection_string_becomes_manual_provisioning_with_the_key_apart() {
    let translated = accepted(&fixture("2a.toml"));
    let Provisioning::Manual { hub, device_id, credential } = &translated.identityd.provisioning
    else {
        panic!()
    };
    assert_eq!(
        (hub.as_str(), device_id.as_str(), credential),
        ("plant7.azure-devices.net", "press-04", &by_key())
    );
    assert_eq!(translated.imported_keys.len(), 1);
    assert_eq!(translated.imported_keys[0].0.as_str(), "device-id");
    assert_eq!(translated.imported_keys[0].1.expose(), b"test-key-not-a-secret");
    let settings = serde_json::to_string(&translated.identityd).unwrap();
    assert!(!settings.contains("dGVzd"), "{settings}");
}

#[test]
fn a_key_in_a_file_is_left_there_for_keyd() {
    let translated = accepted(&fixture("2b.toml"));
    assert!(translated.imported_keys.is_empty());
    let keys: Vec<_> = translated
        .keyd
        .preloaded_keys
        .iter()
        .map(|(id, uri)| (id.as_str(), uri.expose()))
        .collect();
    assert_eq!(keys, [("device-id", "file:///var/secrets/press-04.key")]);
}

#[test]
fn a_provisioning_service_with_a_symmetric_key_is_translated() {
    let translated = accepted(&fixture("2d.toml"));
    let Provisioning::Dps { endpoint, scope_id, registration_id, payload, .. } =
        &translated.identityd.provisioning
    else {
        panic!()
    };
    assert_eq!(endpoint, "https://global.azure-devices-provisioning.net");
    assert_eq!((scope_id.as_str(), registration_id.as_deref()), ("0ne00000000", Some("press-04")));
    assert_eq!(*payload, None);
    assert_eq!(translated.identityd.reprovisioning, ReprovisioningMode::Dynamic);
    assert_eq!(translated.imported_keys.len(), 1);
}

#[test]
fn local_identities_alone_need_no_device_key() {
    let translated = accepted(&fixture("2i.toml"));
    assert_eq!(translated.identityd.provisioning, Provisioning::None);
    assert_eq!(translated.identityd.localid_domain.as_deref(), Some("plant7.example"));
    assert!(!translated.keyd.principals[0].keys.iter().any(|key| key == "device-id"));
}

#[test]
fn an_edge_ca_from_files_is_translated_and_nobody_renews_it() {
    let translated = accepted(&fixture("2h.toml"));
    assert_eq!(translated.moduled.edge_ca.renewal, EdgeCaRenewal::Files);
    let file = PreloadedCert::File("file:///var/secrets/cell-2-ca.pem".to_owned());
    let edge_ca: edgekeep_core::id::CertId = "aziot-edged-ca".parse().unwrap();
    assert_eq!(translated.identityd.preloaded_certs.get(&edge_ca), Some(&file));
    assert!(!translated.identityd.cert_issuance.contains_key(&edge_ca));
    let key = translated.keyd.preloaded_keys.iter().find(|(id, _)| id.as_str() == "aziot-edged-ca");
    assert_eq!(key.map(|(_, uri)| uri.expose()), Some("file:///var/secrets/cell-2-ca.key.pem"));
    for (lines, part) in [
        ("cert = \"file:///c.pem\"", "edge_ca.pk"),
        ("pk = \"file:///k.pem\"", "edge_ca.cert"),
        (
            "cert = \"file:///c.pem\"\npk = \"file:///k.pem\"\nauto_renew = { enabled = true }",
            "edge_ca.auto_renew",
        ),
    ] {
        let found = refused(&format!("{MANUAL}\n[edge_ca]\n{lines}\n"));
        assert!(found.iter().any(|it| it.key == part), "{lines}: {found:?}");
    }
}

#[test]
fn a_certificate_of_the_device_is_translated_from_files_a_token_or_est() {
    let by_certificate = DeviceCredential::X509 {
        cert: "device-id".parse().unwrap(),
        key: "device-id".parse().unwrap(),
    };
    for (name, place) in [
        ("2c.toml", "file:///var/secrets/press-04.key.pem"),
        ("2e.toml", "pkcs11:token=edge;object=press-04?pin-value=0000"),
    ] {
        let translated = accepted(&fixture(name));
        let (Provisioning::Manual { credential, .. } | Provisioning::Dps { credential, .. }) =
            &translated.identityd.provisioning
        else {
            panic!("{name}")
        };
        assert_eq!(*credential, by_certificate, "{name}");
        let cert = translated.identityd.preloaded_certs.get("device-id");
        let file = PreloadedCert::File("file:///var/secrets/press-04.pem".to_owned());
        assert_eq!(cert, Some(&file), "{name}");
        let key = translated.keyd.preloaded_keys.get("device-id");
        assert_eq!(key.map(SecretText::expose), Some(place), "{name}");
    }
    let translated = accepted(&fixture("2f.toml"));
    let issued = &translated.identityd.cert_issuance["device-id"];
    assert_eq!(issued.method, IssuanceMethod::Est);
    assert_eq!(issued.common_name.as_deref(), Some("press-04"));
    assert!(issued.renewal.is_some_and(|renewal| renewal.enabled && renewal.rotate_key));
    let identityd = &translated.keyd.principals[0].keys;
    for id in ["device-id", "device-id-temp"] {
        assert!(identityd.iter().any(|key| key == id), "{id}: {identityd:?}");
    }
}

#[test]
fn a_device_is_known_by_its_tpm_if_it_has_one() {
    let text = fixture("2g.toml");
    let translated = accepted(&text);
    let Provisioning::Dps { registration_id, credential, .. } = &translated.identityd.provisioning
    else {
        panic!()
    };
    assert_eq!(
        (registration_id.as_deref(), credential),
        (Some("press-04"), &DeviceCredential::Tpm)
    );
    let found = refused(text.split("[tpm]").next().unwrap());
    assert!(found[0].message.contains("needs a TPM"), "{found:?}");
    let found =
        refused(&text.replace("method = \"tpm\"", "method = \"tpm\", identity_pk = \"file:///k\""));
    assert_eq!(found[0].key, "provisioning.attestation.identity_pk");
}

#[test]
fn a_certificate_of_the_device_has_a_key_and_a_name_and_no_second_source() {
    let attestation = |text: &str| {
        format!(
            "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"https://dps.test\"\nid_scope = \"s\"\n\
             attestation = {{ method = \"x509\", {text} }}\n"
        )
    };
    let est = "identity_cert = { method = \"est\", url = \"https://est.test\" }";
    let local = "registration_id = \"r\", identity_cert = { method = \"local_ca\" }";
    for (text, key) in [
        ("registration_id = \"r\"", "provisioning.attestation.identity_cert"),
        ("identity_cert = \"file:///c\"", "provisioning.attestation.identity_pk"),
        (est, "provisioning.attestation.identity_cert.common_name"),
        (local, "provisioning.attestation.identity_cert.method"),
        (
            &format!("registration_id = \"r\", identity_pk = \"file:///k\", {est}"),
            "provisioning.attestation.identity_pk",
        ),
        (
            "identity_cert = \"file:///c\", identity_pk = \"file:///k\", symmetric_key = { value = \"a2V5\" }",
            "provisioning.attestation.symmetric_key",
        ),
    ] {
        let found = refused(&attestation(text));
        assert!(found.iter().any(|diagnostic| diagnostic.key == key), "{text}: {found:?}");
    }
    let name = format!("registration_id = \"r\", {est}");
    let translated = accepted(&attestation(&name));
    let issued = &translated.identityd.cert_issuance["device-id"];
    assert_eq!(issued.common_name.as_deref(), Some("r"), "the registration's name");
}

#[test]
fn what_modules_data_is_encrypted_under_can_be_said_and_the_old_way_is_warned_of() {
    assert_eq!(accepted(MANUAL).moduled.module_encryption, ModuleEncryption::ModuleKey);
    for (word, encryption, notices) in [
        ("module-key", ModuleEncryption::ModuleKey, 0),
        ("module-key-only", ModuleEncryption::ModuleKeyOnly, 0),
        ("device-key", ModuleEncryption::DeviceKey, 1),
    ] {
        let translated = accepted(&format!("module_encryption = \"{word}\"\n{MANUAL}"));
        assert_eq!(translated.moduled.module_encryption, encryption);
        let found =
            translated.notices.iter().filter(|notice| notice.key == "module_encryption").count();
        assert_eq!(found, notices, "{word}");
    }
    let found =
        translate(&format!("module_encryption = \"device\"\n{MANUAL}"), &device()).unwrap_err();
    assert!(
        found.iter().any(|it| (it.key.as_str(), it.line) == ("module_encryption", 1)),
        "{found:?}"
    );
}

#[test]
fn each_daemon_may_use_its_own_keys_and_no_others() {
    let translated = accepted(MANUAL);
    let keys = |uid| {
        let of = translated.keyd.principals.iter().filter(|principal| principal.uid == uid);
        of.flat_map(|principal| principal.keys.iter().map(String::as_str)).collect::<Vec<_>>()
    };
    assert_eq!(keys(11), Vec::<&str>::new());
    assert_eq!(
        keys(12),
        ["aziot_identityd_master_id", "device-id", "aziot-edged-ca", "aziot-edged-ca-temp"]
    );
    assert_eq!(
        keys(13),
        [
            "aziot-edged-ca",
            "iotedge_master_encryption_id",
            "edgekeep-module-data",
            "aziot-edged-ca-temp"
        ]
    );
    let [identityd, moduled] = &translated.keyd.principals[..] else {
        panic!("{:?}", translated.keyd)
    };
    assert_eq!(identityd.use_only, ["aziot-edged-ca", "aziot-edged-ca-temp"]);
    assert_eq!(identityd.export, ["aziot_identityd_master_id"]);
    assert_eq!(moduled.use_derived, ["aziot_identityd_master_id"]);
    assert!(
        moduled.use_only.is_empty()
            && moduled.export.is_empty()
            && identityd.use_derived.is_empty()
    );
    assert!(identityd.certificates && moduled.certificates);
    let certs = &translated.identityd.cert_principals[0];
    assert_eq!(
        (certs.uid, certs.certs.join(" ")),
        (13, "aziot-edged-ca aziot-edged/module/* aziot-edged-ca-temp".into())
    );
    let principal = &translated.identityd.principals[0];
    assert_eq!(
        (principal.uid, principal.name.as_str(), principal.kinds.len()),
        (13, "aziot-edge", 0)
    );
}

#[test]
fn without_an_edge_ca_table_the_device_signs_its_own_for_90_days() {
    let translated = accepted(MANUAL);
    let issuance = &translated.identityd.cert_issuance["aziot-edged-ca"];
    assert_eq!((issuance.method, issuance.expiry_days), (IssuanceMethod::SelfSigned, Some(90)));
    let bundle = &translated.identityd.preloaded_certs["aziot-edged-trust-bundle"];
    let expected = PreloadedCert::List(vec![
        "aziot-edged-ca".parse().unwrap(),
        "trust-bundle-user".parse().unwrap(),
    ]);
    assert_eq!(*bundle, expected);
}

#[test]
fn the_edge_ca_is_issued_alike_under_the_id_by_which_the_compatible_runtime_renews_it() {
    let local_ca = "[cert_issuance.local_ca]\ncert = \"file:///ca.pem\"\npk = \"file:///ca.key\"\n";
    for tables in [
        String::new(),
        "[edge_ca]\nauto_generated_edge_ca_expiry_days = 7\n".to_owned(),
        "[edge_ca]\nmethod = \"self_signed\"\nexpiry_days = 5\n".to_owned(),
        format!("{local_ca}[edge_ca]\nmethod = \"local_ca\"\n"),
        "[edge_ca.auto_renew]\nrotate_key = false\nthreshold = \"80%\"\nretry = \"4%\"\n"
            .to_owned(),
    ] {
        let translated = accepted(&format!("{CLOSED}{MANUAL}{tables}"));
        let issuance = &translated.identityd.cert_issuance;
        let ca = &issuance["aziot-edged-ca"];
        assert!(ca.renewal.is_some(), "{tables}");
        let unrenewed = Issuance { renewal: None, ..ca.clone() };
        assert_eq!(issuance["aziot-edged-ca-temp"], unrenewed, "{tables}");
        let granted = &translated.identityd.cert_principals[0].certs;
        assert!(granted.iter().any(|id| id == "aziot-edged-ca-temp"), "{tables}");
    }
}

#[test]
fn an_edge_ca_is_renewed_by_its_table_and_without_one_keeps_its_key() {
    let renewal = |table: &str| {
        let translated = accepted(&format!("{CLOSED}{MANUAL}{table}"));
        assert_eq!(translated.notices, [], "{table}");
        let by = translated.moduled.edge_ca.renewal;
        (translated.identityd.cert_issuance["aziot-edged-ca"].renewal.unwrap(), by)
    };
    assert_eq!(renewal(""), (RenewalPolicy::default(), EdgeCaRenewal::Service));
    assert!(!RenewalPolicy::default().rotate_key);
    let (policy, by) = renewal(
        "[edge_ca.auto_renew]\nrotate_key = true\nthreshold = \"10day\"\nretry = \"30min\"\n\
         window = \"02:00-04:00\"\n",
    );
    assert!(policy.enabled && policy.rotate_key && by == EdgeCaRenewal::Service);
    assert_eq!(policy.threshold.to_string(), "10day");
    assert_eq!(policy.retry.to_string(), "30min");
    assert_eq!(policy.window.unwrap().to_string(), "02:00-04:00");
    let (policy, by) = renewal("[edge_ca.auto_renew]\nenabled = false\n");
    assert!(!policy.enabled && by == EdgeCaRenewal::Off);
    for (line, part) in [
        ("threshold = \"0%\"", "expected \"80%\""),
        ("retry = \"1h\"", "expected \"80%\""),
        ("window = \"2-4\"", "different times of the day in UTC"),
    ] {
        let found = refused(&format!("{CLOSED}{MANUAL}[edge_ca.auto_renew]\n{line}\n"));
        assert!(found[0].message.contains(part), "{line}: {found:?}");
    }
}

#[test]
fn keys_of_renewals_that_rotate_are_granted_to_identityd() {
    let local_ca = "[cert_issuance.local_ca]\ncert = \"file:///ca.pem\"\npk = \"file:///ca.key\"\n";
    for (rotates, granted) in [("true", true), ("false", false)] {
        let translated = accepted(&format!(
            "{CLOSED}{MANUAL}{local_ca}[edge_ca]\nmethod = \"local_ca\"\nauto_renew = {{ rotate_key = {rotates} }}\n"
        ));
        let keys = &translated.keyd.principals[0].keys;
        for key in ["aziot-edged-ca", "aziot-edged-ca-temp"] {
            assert_eq!(keys.iter().any(|it| it == key), granted, "{rotates}: {keys:?}");
        }
    }
}

#[test]
fn an_est_server_issues_the_edge_ca_and_the_identity_that_it_is_shown() {
    const EST: &str = "[cert_issuance.est]\ntrusted_certs = [\"file:///est-root.pem\"]\n\
        [cert_issuance.est.auth]\nusername = \"press\"\npassword = \"press's own\"\n\
        bootstrap_identity_cert = \"file:///factory.pem\"\nbootstrap_identity_pk = \"file:///factory.key\"\n";
    const EDGE: &str = "[edge_ca]\nmethod = \"est\"\ncommon_name = \"press-04 edge ca\"\n";
    let urls = "[cert_issuance.est.urls]\ndefault = \"https://est.example/.well-known/est\"\n";
    let translated = accepted(&format!("{MANUAL}{EST}{urls}{EDGE}"));
    let est = translated.identityd.est.as_ref().unwrap();
    assert_eq!(est.trusted_certs, ["/est-root.pem"]);
    assert_eq!(est.urls["default"], "https://est.example/.well-known/est");
    assert_eq!(est.basic.as_ref().unwrap().password.expose(), "press's own");
    assert!(!format!("{:?}", translated.identityd).contains("press's own"));
    let issuance = &translated.identityd.cert_issuance;
    for (id, name) in [("est-id", Some("press-04")), ("aziot-edged-ca", None)] {
        assert_eq!(issuance[id].method, IssuanceMethod::Est);
        assert_eq!(issuance[id].common_name.as_deref(), name);
        assert!(issuance[id].renewal.is_some());
    }
    assert!(translated.identityd.preloaded_certs.contains_key("est-bootstrap-id"));
    let keys = &translated.keyd.principals[0].keys;
    for key in ["est-id", "est-id-temp", "est-bootstrap-id"] {
        assert!(keys.iter().any(|granted| granted == key), "{key}: {keys:?}");
    }

    let found = refused(&format!("{MANUAL}[edge_ca]\nmethod = \"est\"\n"));
    assert_eq!(found[0].code, Code::Missing, "{found:?}");
    let own = "url = \"https://other.example:8443/est\"\n";
    let translated = accepted(&format!("{MANUAL}{EDGE}{own}"));
    assert!(translated.identityd.est.unwrap().urls["aziot-edged-ca"].contains(":8443"));
    for (lines, code) in [
        (format!("{EDGE}url = \"http://other.example/est\"\n"), Code::BadValue),
        (format!("{EDGE}{own}username = \"x\"\n"), Code::NotSupported),
        (format!("{EST}{EDGE}{own}"), Code::Missing),
        ("[cert_issuance.est.auth]\nusername = \"x\"\n".to_owned(), Code::Missing),
    ] {
        let found = refused(&format!("{MANUAL}{lines}"));
        assert_eq!(found[0].code, code, "{lines}: {found:?}");
    }
}

#[test]
fn a_local_ca_from_files_signs_the_edge_ca() {
    let translated = accepted(&format!(
        "{MANUAL}[cert_issuance.local_ca]\ncert = \"file:///ca.pem\"\npk = \"file:///ca.key\"\n\
         [edge_ca]\nmethod = \"local_ca\"\nexpiry_days = 7\ncommon_name = \"edge\"\nmodule_keys = \"rsa-2048\"\n"
    ));
    assert_eq!(translated.identityd.local_ca.unwrap().key.as_str(), "local-ca");
    assert_eq!(translated.keyd.preloaded_keys["local-ca"].expose(), "file:///ca.key");
    assert_eq!(
        translated.identityd.preloaded_certs["local-ca"],
        PreloadedCert::File("file:///ca.pem".into())
    );
    let issuance = &translated.identityd.cert_issuance["aziot-edged-ca"];
    assert_eq!((issuance.method, issuance.expiry_days), (IssuanceMethod::LocalCa, Some(7)));
    assert_eq!(translated.moduled.edge_ca.common_name.as_deref(), Some("edge"));
    assert_eq!(translated.moduled.edge_ca.module_keys, ModuleKeys::Rsa2048);
}

#[test]
fn host_modules_need_no_engine_and_the_agent_must_be_one_of_them() {
    let text = |image: &str| {
        format!(
            "{MANUAL}[agent]\ntype = \"process\"\nconfig = {{ image = \"{image}\" }}\n\
             [host_modules.\"edgekeep-agent\"]\nexecutable = \"/bin/true\"\nsha256 = \"sha256:{}\"\n\
             [module_policies]\n\"$edgeAgent\" = \"executable\"\n",
            "ab".repeat(32)
        )
    };
    let translated = accepted(&text("edgekeep-agent"));
    assert_eq!(translated.moduled.engine, None);
    assert_eq!(translated.moduled.agent.kind, "process");
    assert_eq!(translated.moduled.host_modules["edgekeep-agent"].executable, "/bin/true");
    assert_eq!(translated.moduled.policies["$edgeAgent"], Policy::Executable);
    let found = refused(&text("edgekeep-agnet"));
    assert_eq!((found[0].code, found[0].line), (Code::BadValue, 6));
    assert_eq!(found[0].remedy.as_deref(), Some("did you mean \"edgekeep-agent\"?"));
}

/// A host module with these further lines.
fn with_host_module(lines: &str) -> String {
    format!(
        "{MANUAL}[host_modules.updater]\nexecutable = \"/opt/updater\"\nsha256 = \"{}\"\n{lines}",
        "ab".repeat(32)
    )
}

#[test]
fn what_a_host_module_is_granted_reaches_moduled() {
    let translated = accepted(&with_host_module(
        "user = \"updater\"\ngroup = 995\ncapabilities = [\"CAP_NET_ADMIN\", \"kill\"]\nworking_dir = \"/var/lib/updater\"\n\
         read = [\"/etc/ssl\"]\nwrite = []\nseccomp = \"strict\"\nmemory_max = \"64M\"\ncpu_quota = \"50%\"\npids_max = 16\n\
         nofile = 64\nlimits = \"best-effort\"\nrestart = \"on-failure\"\napproves = [\"updater\", \"collector\"]\n\
         env = { MODE = \"fast\" }\n[host_services.collector]\nunit = \"collector.service\"\nexecutable = \"/opt/c\"\n\
         sha256 = \"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd\"\n",
    ));
    assert!(translated.moduled.allow_root_host_modules);
    assert_eq!(translated.moduled.host_module_scopes, ScopeUse::Auto);
    let scopes = accepted(&format!("host_module_scopes = \"required\"\n{}", with_host_module("")));
    assert_eq!(scopes.moduled.host_module_scopes, ScopeUse::Required);
    let module = &translated.moduled.host_modules["updater"];
    assert_eq!((module.user.as_deref(), module.group.as_deref()), (Some("updater"), Some("995")));
    assert_eq!(module.capabilities.bits(), 1 << 12 | 1 << 5);
    assert_eq!(
        (module.read.as_deref(), module.write.as_deref()),
        (Some(&["/etc/ssl".to_owned()][..]), Some(&[][..]))
    );
    assert_eq!((module.seccomp, module.restart), (SeccompPreset::Strict, RestartPolicy::OnFailure));
    let expected = Limits {
        memory_max: Some(64 << 20),
        cpu_quota: Some(50),
        pids_max: Some(16),
        nofile: Some(64),
        enforcement: Enforcement::BestEffort,
    };
    assert_eq!(module.limits, expected);
    assert_eq!(module.env["MODE"], "fast");
    let service = &translated.moduled.host_services["collector"];
    assert_eq!(service.unit.as_ref().map(UnitName::as_str), Some("collector.service"));
    // Without the keys, nothing is granted and nothing is confined by folder.
    let module = &accepted(&with_host_module("")).moduled.host_modules["updater"];
    assert!(module.capabilities.is_empty() && module.read.is_none() && module.approves.is_empty());
    assert_eq!(module.seccomp, SeccompPreset::Default);
}

/// A host module and what else it is given.
fn module_of(name: &str, lines: &str) -> String {
    format!(
        "[host_modules.{name}]\nexecutable = \"/opt/m\"\nsha256 = \"{}\"\n{lines}",
        "ab".repeat(32)
    )
}

#[test]
fn each_host_module_has_a_user_of_its_own_unless_all_daemons_are_one_user() {
    let text = |top: &str, modules: &[(&str, &str)]| {
        let modules: String = modules.iter().map(|(name, lines)| module_of(name, lines)).collect();
        format!("{top}{MANUAL}{modules}")
    };
    let ids =
        |translated: Translated| translated.moduled.host_module_ids.map(|range| range.to_string());
    let two = [("a", ""), ("b", "")];
    assert_eq!(ids(accepted(&text("", &two))).as_deref(), Some("1879048192-1879052287"));
    let top = "host_module_ids = \"61184-65519\"\n";
    assert_eq!(ids(accepted(&text(top, &two))).as_deref(), Some("61184-65519"));
    let apart = [
        ("a", "user = 1000\n"),
        ("b", "user = \"siem\"\n"),
        ("c", ""),
        ("d", "user = 0\n"),
        ("e", "user = 0\n"),
    ];
    let _ = accepted(&text("", &apart));
    let single = Environment { users: Users::all(0), ..device() };
    let shared = text("", &[("a", "user = 1000\n"), ("b", "user = 1000\n"), ("c", "")]);
    assert_eq!(ids(translate(&shared, &single).expect("one user for all")), None);
    assert_eq!(
        ids(translate(&text(top, &two), &single).expect("asked for")).as_deref(),
        Some("61184-65519")
    );

    let service = format!("[host_services.s]\nuser = 1000\nsha256 = \"{}\"\n", "ab".repeat(32));
    for (top, modules, more, part) in [
        (
            "",
            &[("a", "user = 1000\n"), ("b", "user = 1000\n")][..],
            "",
            "`b` and `a` would be one user, 1000",
        ),
        (
            "",
            &[("a", "user = 990\n"), ("b", "user = \"siem\"\n")],
            "",
            "`b` and `a` would be one user, 990",
        ),
        ("", &[("a", "user = 1000\n")], &*service, "`s` and `a` would be one user, 1000"),
        ("", &[("a", "user = 11\n")], "", "`a` and `edgekeep-keyd` would be one user"),
        ("", &[("a", "user = 13\n")], "", "`a` and `edgekeep-moduled` would be one user"),
        ("", &[("a", "user = 1879048200\n")], "", "one of host_module_ids"),
        ("host_module_ids = \"off\"\n", &[("a", "")], "", "would run as edgekeep-moduled"),
        ("host_module_ids = \"1-5000\"\n", &[], "", "ids below 1000"),
        ("host_module_ids = \"many\"\n", &[], "", "two numbers like"),
    ] {
        let found = refused(&format!("{}{more}", text(top, modules)));
        let shown = render(&found, "config.toml", false);
        assert!(shown.contains(part) && found.len() == 1, "{part}: {shown}");
    }
    let own = Environment { uids: BTreeMap::from([("eve".to_owned(), 61_190)]), ..device() };
    let found = translate(&text(top, &[]), &own).expect_err("taken");
    assert!(render(&found, "config.toml", false).contains("user `eve` has the id 61190"));
}

#[test]
fn a_grant_that_is_not_understood_is_refused_on_its_line() {
    for (line, part) in [
        ("capabilities = [\"net_amdin\"]", "did you mean \"net_admin\"?"),
        ("capabilities = \"kill\"", "a list of strings"),
        ("group = \"g\"", "takes a `user`"),
        ("user = true", "an integer or a string"),
        ("read = [\"etc\"]", "absolute path"),
        ("write = [\"/a/../b\"]", "absolute path"),
        ("working_dir = \"\"", "absolute path"),
        ("seccomp = \"stric\"", "did you mean \"strict\"?"),
        ("memory_max = \"64MB\"", "expected bytes"),
        ("memory_max = 1000", "at least 1M"),
        ("cpu_quota = \"0%\"", "per cent"),
        ("pids_max = 0", "expected 1 to"),
        ("nofile = \"many\"", "takes an integer"),
        ("limits = \"maybe\"", "is one of"),
        ("restart = \"never\"", "is one of"),
        ("approves = [\"nobody\"]", "no such name"),
        ("env = { LD_PRELOAD = \"/x\" }", "change what a measured executable runs"),
        ("env = { IOTEDGE_MODULEID = \"x\" }", "set by the daemon"),
        ("privileged = true", "`privileged` does not belong in [host_modules."),
        ("privilegd = true", "unknown key"),
    ] {
        let text = with_host_module(&format!("{line}\n"));
        let found = refused(&text);
        let shown = render(&found, "config.toml", false);
        assert!(shown.contains(part), "{line}: {shown}");
        assert_eq!(found[0].line, text.lines().count(), "{line}: {shown}");
    }
}

#[test]
fn a_service_is_known_by_unit_or_by_user_and_digest() {
    let digest = "ab".repeat(32);
    let text = |name: &str, lines: &str| format!("{MANUAL}[host_services.{name}]\n{lines}");
    let _ = accepted(&text("a", "unit = \"a.service\"\n"));
    let translated = accepted(&text("a", &format!("user = 990\nsha256 = \"{digest}\"\n")));
    assert_eq!(translated.moduled.host_services["a"].user.as_deref(), Some("990"));
    for (name, lines, part) in [
        ("a", "user = 990\n", "`unit`, or by its `user`"),
        ("a", &*format!("sha256 = \"{digest}\"\n"), "`unit`, or by its `user`"),
        ("a", "unit = \"a\"\n", "systemd service"),
        ("a", "unit = \"session-1.scope\"\n", "whoever logs in next"),
        (
            "a",
            "unit = \"user@1000.service/a.service\"\nuser = 1000\n",
            "name that this user gives it",
        ),
        ("a", "unit = \"../a.service\"\n", "systemd service"),
        ("edgeAgent", "unit = \"a.service\"\n", "system module"),
        ("\"$edgeHub\"", "unit = \"a.service\"\n", "system module"),
        ("\"a b\"", "unit = \"a.service\"\n", "letters, digits"),
        ("a", "unit = \"a.service\"\napproves = [\"a\"]\n", "`executable` and a `sha256`"),
    ] {
        let shown = render(&refused(&text(name, lines)), "config.toml", false);
        assert!(shown.contains(part), "{name} {lines}: {shown}");
    }
    let both = with_host_module("[host_services.updater]\nunit = \"a.service\"\n");
    assert_eq!(refused(&both)[0].code, Code::Conflict);
}

#[test]
fn engine_and_agent_options_reach_moduled_as_the_engine_takes_them() {
    let translated = accepted(&format!(
        "parent_hostname = \"dmz.example\"\n{MANUAL}[agent]\nname = \"edgeAgent\"\ntype = \"docker\"\nimagePullPolicy = \"Never\"\n\
         [agent.env]\nRuntimeLogLevel = \"debug\"\n\
         [agent.config]\nimage = \"$upstream:443/agent:1.6\"\ncreateOptions = {{ HostConfig = {{ Binds = [\"/a:/a\"], Memory = 5 }} }}\n\
         auth = {{ username = \"u\", password = \"p\", serveraddress = \"$upstream:443\" }}\n\
         [moby_runtime]\nuri = \"unix:///run/podman/podman.sock\"\n[moby_runtime.network]\nname = \"n\"\nipv6 = true\n\
         ipam = {{ config = [{{ subnet = \"10.0.0.0/8\", ip_range = \"10.1.0.0/16\" }}] }}\n[watchdog]\nmax_retries = 3\n"
    ));
    let agent = &translated.moduled.agent;
    assert_eq!(
        (agent.image.as_str(), agent.image_pull_policy.as_str()),
        ("dmz.example:443/agent:1.6", "never")
    );
    assert_eq!(
        agent.create_options,
        serde_json::json!({"HostConfig": {"Binds": ["/a:/a"], "Memory": 5}})
    );
    assert_eq!(agent.auth.as_ref().unwrap()["serveraddress"], "dmz.example:443");
    assert_eq!(agent.env["RuntimeLogLevel"], "debug");
    let engine = translated.moduled.engine.unwrap();
    assert_eq!(
        (engine.uri.as_str(), engine.network.as_str()),
        ("unix:///run/podman/podman.sock", "n")
    );
    assert_eq!(
        serde_json::Value::Object(engine.network_options),
        serde_json::json!({"EnableIPv6": true, "IPAM": {"Config": [{"Subnet": "10.0.0.0/8", "IPRange": "10.1.0.0/16"}]}})
    );
    assert_eq!(translated.moduled.watchdog_max_retries, Some(3));
}

#[test]
fn files_that_the_text_names_come_in_through_the_environment() {
    let text = "additional_info = \"file:///info.toml\"\nimported_master_encryption_key = \"/old.key\"\n\
        [provisioning]\nsource = \"dps\"\nglobal_endpoint = \"https://dps.example\"\nid_scope = \"s\"\n\
        payload = { uri = \"file:///payload.json\" }\n\
        attestation = { method = \"symmetric_key\", registration_id = \"r\", symmetric_key = { value = \"a2V5\" } }\n";
    let files: Vec<PathBuf> =
        ["/info.toml", "/payload.json", "/old.key"].map(PathBuf::from).to_vec();
    assert_eq!(referenced_files(text), files);
    let mut environment = device();
    let contents: [&[u8]; 3] = [b"site = \"7\"", b"{\"model\": 3}", b"old"];
    environment.files =
        files.into_iter().zip(contents.map(|content| Ok(content.to_vec()))).collect();
    let translated = translate(text, &environment).unwrap();
    assert_eq!(translated.moduled.additional_info["site"], "7");
    let Provisioning::Dps { payload, .. } = translated.identityd.provisioning else { panic!() };
    assert_eq!(payload, Some(serde_json::json!({"model": 3})));
    assert_eq!(translated.imported_keys[1].0.as_str(), "iotedge_master_encryption_id");

    environment.files.insert("/payload.json".into(), Err("no such file".into()));
    environment.files.insert("/info.toml".into(), Ok(b"a = 1".to_vec()));
    let found = translate(text, &environment).unwrap_err();
    assert_eq!(found.iter().map(|diagnostic| diagnostic.line).collect::<Vec<_>>(), [1, 7]);
}

#[test]
fn a_misspelt_key_is_named_with_what_was_meant_and_nothing_is_called_missing_besides() {
    let text = "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"https://dps.example\"\nid_scope = \"s\"\n\n\
        [provisioning.attestation]\nmethod = \"symmetric_key\"\nregistration_id = \"r\"\nsymetric_key = { value = \"Z2VoZWlt\" }\n";
    let found = refused(text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].code, found[0].line, found[0].column), (Code::UnknownKey, 9, 1));
    assert_eq!(found[0].key, "provisioning.attestation.symetric_key");
    assert_eq!(found[0].remedy.as_deref(), Some("did you mean `symmetric_key`?"));
    assert_eq!(
        render(&found, "config.toml", false),
        "error[unknown-key]: unknown key `symetric_key` in [provisioning.attestation]\n\
         \x20--> config.toml:9:1\n\
         \x20 |\n\
         9 | symetric_key = { value = \"********\" }\n\
         \x20 | ^^^^^^^^^^^^\n\
         \x20 = help: did you mean `symmetric_key`?\n\n"
    );
}

#[test]
fn a_top_level_key_below_a_table_is_told_where_it_belongs() {
    let found = refused(
        "# plant\n[provisioning]\nsource = \"none\"\nauto_reprovisioning_mode = \"Dynamic\"\n",
    );
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].code, found[0].line), (Code::MisplacedKey, 4));
    let remedy = "`auto_reprovisioning_mode` belongs at the top level, before [provisioning]";
    assert_eq!(found[0].remedy.as_deref(), Some(remedy));
}

#[test]
fn a_key_of_another_table_is_told_which() {
    let found = refused("[provisioning]\nsource = \"none\"\nregistration_id = \"r\"\n");
    assert_eq!(
        found[0].remedy.as_deref(),
        Some("`registration_id` belongs in [provisioning.attestation]")
    );
}

#[test]
fn all_errors_are_reported_in_the_order_of_the_text() {
    let found = refused(
        "cloud_timeout_sec = 0\ncloud_retries = \"2\"\nauto_reprovisioning_mode = \"dynamic\"\nwatch = 1\n\
         [provisioning]\nsource = \"manual\"\niothub_hostname = \"https://h.example\"\n\
         [moby_runtime]\nuri = \"http://localhost:2375\"\n[module_policies]\n\"a/b\" = \"image\"\n",
    );
    let lines: Vec<_> = found.iter().map(|diagnostic| (diagnostic.line, diagnostic.code)).collect();
    use Code::{BadValue, Missing, UnknownKey, WrongType};
    let expected = [
        (1, BadValue),
        (2, WrongType),
        (3, BadValue),
        (4, UnknownKey),
        (5, Missing),
        (5, Missing),
        (7, BadValue),
        (9, BadValue),
        (11, BadValue),
    ];
    assert_eq!(lines, expected, "{}", render(&found, "config.toml", false));
    assert_eq!(found[2].remedy.as_deref(), Some("did you mean \"Dynamic\"?"));
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    for (text, line, part) in [
        (
            "[provisioning]\nsource = \"none\"\nid_scope = \"s\"\n",
            3,
            "does not go with source = \"none\"",
        ),
        (&format!("{MANUAL}device_id = \"d\"\n"), 4, "does not go with `connection_string`"),
        (
            &format!("parent_hostname = \"p\"\n{}", fixture("2d.toml")),
            1,
            "cannot use the provisioning service",
        ),
        (&format!("{MANUAL}[preloaded_keys]\ndevice-id = \"file:///k\"\n"), 5, "set by other keys"),
        (
            &format!("{MANUAL}[preloaded_certs]\naziot-edged-trust-bundle = [\"x\"]\n"),
            5,
            "set by other keys",
        ),
        (
            &format!("{MANUAL}[edge_ca]\nmethod = \"local_ca\"\n"),
            5,
            "needs [cert_issuance.local_ca]",
        ),
        (
            &format!("{MANUAL}[agent.config]\nimage = \"$upstream/a\"\n"),
            5,
            "stands for the parent device",
        ),
        (
            &format!(
                "hostname = \"a\"\nparent_hostname = \"b\"\nlocal_gateway_hostname = \"c\"\n{MANUAL}"
            ),
            3,
            "the same key",
        ),
    ] {
        let found = refused(text);
        assert!(
            found.iter().any(|one| one.line == line && one.message.contains(part)),
            "{text}\n{found:?}"
        );
    }
}

#[test]
fn grants_and_image_rules_are_translated_and_an_open_default_is_told() {
    assert_eq!(accepted(MANUAL).notices[0].key, "allow_elevated_docker_permissions");
    let text = format!(
        "{CLOSED}{MANUAL}[modules.camera.grant]\nbinds = [\"/srv/models:ro\"]\nnamespaces = [\"network\"]\n\
         [image_policy]\nsignatures = \"/etc/edgekeep/signatures\"\nunmatched = \"refuse\"\n\
         [image_policy.images.\"docker.io/plant/*\"]\nkeys = [\"file:///vendor.pem\"]\n\
         [image_policy.images.\"localhost/*\"]\nsigned = false\n"
    );
    assert_eq!(referenced_files(&text), [PathBuf::from("/vendor.pem")]);
    let mut environment = device();
    let lines = [
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt",
        "6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==",
    ];
    let key =
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
    let copied = format!("\u{feff}{}", key.replace('\n', "\r\n  "));
    environment.files.insert("/vendor.pem".into(), Ok(copied.into()));
    let moduled = translate(&text, &environment).unwrap().moduled;
    assert_eq!(moduled.image_policy.as_ref().unwrap().rules[0].keys, [key]);
    for (content, part) in
        [("hello", "nothing in the file is PEM or DER"), ("", "the file is empty")]
    {
        let mut environment = device();
        environment.files.insert("/vendor.pem".into(), Ok(content.into()));
        let found = translate(&text, &environment).unwrap_err();
        assert!(found.iter().any(|found| found.message.contains(part)), "{found:?}");
    }
    let grant = moduled.grants.values().next().unwrap();
    assert_eq!(
        (grant.binds.as_slice(), grant.namespaces.len()),
        (["/srv/models:ro".to_owned()].as_slice(), 1)
    );
    let policy = moduled.image_policy.unwrap();
    assert!(policy.refuse_unmatched);
    assert_eq!(policy.rules.iter().map(|rule| rule.keys.len()).collect::<Vec<_>>(), [1, 0]);
    for (line, message) in [
        ("[modules.a.grant]\nbinds = [\"etc\"]", "expected an absolute path"),
        ("[modules.a.grant]\nnamespaces = [\"mount\"]", "expected one of network"),
        ("[image_policy.images.x]\nkeys = []", "signatures"),
        ("[image_policy.images.x]", "keys"),
        (
            "[image_policy]\nsignatures = \"/s\"\n[image_policy.images.x]\nkeys = [\"file:///none\"]",
            "cannot read",
        ),
    ] {
        let found = refused(&format!("{MANUAL}{line}\n"));
        let texts =
            found.iter().map(|found| format!("{} {} {:?}", found.key, found.message, found.remedy));
        assert!(
            texts.clone().any(|text| text.contains(message)),
            "{:?}",
            texts.collect::<Vec<_>>()
        );
    }
}

#[test]
fn what_modules_may_ask_for_is_read_and_slips_are_named() {
    let text = format!(
        "{CLOSED}published_ports = \"granted\"\nown_state_in_mounts = \"refuse\"\n{MANUAL}[modules.camera.grant]\n\
         ports = [\"443\", \"127.0.0.1:9000-9010/udp\"]\nulimits = [\"rtprio\"]\nvolumes = [\"plant-share\"]\n\
         capabilities = [\"CAP_NET_ADMIN\"]\noptions = [\"HostConfig.DeviceRequests\", \"HostConfig.OfTheFuture\"]\n"
    );
    let translated = accepted(&text);
    assert!(translated.notices.is_empty(), "{:?}", translated.notices);
    let moduled = translated.moduled;
    assert_eq!(moduled.published_ports, PublishedPorts::Granted);
    assert_eq!(moduled.own_state_in_mounts, OwnState::Refuse);
    let grant = moduled.grants.values().next().unwrap();
    assert_eq!(
        (grant.ports.len(), grant.ulimits.len(), grant.volumes.len(), grant.options.len()),
        (2, 1, 1, 2)
    );
    for (line, message) in [
        ("ports = [\"https\"]", "expected [ADDRESS:]PORT[-PORT][/PROTOCOL]"),
        ("ports = [\"443/icmp\"]", "expected the protocol tcp, udp or sctp"),
        ("ports = [443]", "takes a string"),
        ("ulimits = [\"rtpiro\"]", "did you mean \"rtprio\"?"),
        ("namespaces = [\"netwrok\"]", "did you mean \"network\"?"),
        ("capabilities = [\"net_amdin\"]", "did you mean \"net_admin\"?"),
        ("volumes = [\"/etc\"]", "expected the name of a volume"),
        ("options = [\"HostConfig.SecurityOpts\"]", "did you mean \"HostConfig.SecurityOpt\"?"),
        ("port = [\"1\"]", "did you mean `ports`?"),
    ] {
        let text = format!("{CLOSED}{MANUAL}[modules.a.grant]\n{line}\n");
        let found = refused(&text);
        let shown = render(&found, "config.toml", false);
        assert!(shown.contains(message), "{line}: {shown}");
        assert_eq!(found[0].line, text.lines().count(), "{line}: {shown}");
    }
    for (line, message) in [
        ("published_ports = \"grantd\"", "did you mean \"granted\"?"),
        (
            "own_state_in_mounts = \"hidden\"",
            "`own_state_in_mounts` is one of \"hide\", \"refuse\", \"show\"",
        ),
    ] {
        let shown = render(&refused(&format!("{line}\n{CLOSED}{MANUAL}")), "config.toml", false);
        assert!(shown.contains(message), "{line}: {shown}");
    }
    // What has no effect, or opens what is closed by default, is said.
    for (open, code) in [
        ("published_ports = \"granted\"", Code::NoEffect),
        ("own_state_in_mounts = \"show\"", Code::Unusual),
    ] {
        let text = format!("allow_elevated_docker_permissions = true\n{open}\n{MANUAL}");
        let notices = accepted(&text).notices;
        assert!(
            notices.iter().any(|notice| (notice.line, notice.code) == (2, code)),
            "{notices:?}"
        );
    }
}

#[test]
fn keys_without_effect_are_accepted_with_a_notice() {
    let translated = accepted(&format!(
        "{CLOSED}prefer_module_identity_cache = true\nmanifest_trust_bundle_cert = \"file:///x\"\ncloud_timeout_sec = 10\n{MANUAL}\
         [image_garbage_collection]\nenabled = true\n[endpoints]\naziot_keyd = \"x\"\n[tpm]\ntcti = \"device\"\n"
    ));
    let notices: Vec<_> =
        translated.notices.iter().map(|notice| (notice.line, notice.code)).collect();
    use Code::{NoEffect, Unusual};
    assert_eq!(notices, [(2, NoEffect), (3, NoEffect), (4, Unusual), (10, NoEffect)]);
    assert_eq!(translated.identityd.cloud.timeout_sec, 10);
}

#[test]
fn image_collection_is_read_and_its_marks_must_make_sense() {
    let default = accepted(MANUAL).moduled.image_collection;
    assert!(default.enabled);
    assert_eq!(
        (default.recurrence_sec, default.unused_sec, default.at_minute),
        (86_400, 604_800, 0)
    );
    let table = "[image_garbage_collection]\nenabled = false\ncleanup_recurrence = \"2d\"\ncleanup_time = \"03:30\"\n\
         image_age_cleanup_threshold = \"30d\"\ndisk_high_percent = 90\ndisk_low_percent = 60\n";
    let read = accepted(&format!("{MANUAL}{table}")).moduled.image_collection;
    assert!(!read.enabled);
    assert_eq!((read.recurrence_sec, read.unused_sec, read.at_minute), (172_800, 2_592_000, 210));
    assert_eq!((read.high_percent, read.low_percent), (90, 60));
    for (line, part) in [
        ("disk_low_percent = 85", "is below"),
        ("disk_high_percent = 101", "expected 1 to 100"),
        ("cleanup_recurrence = \"0d\"", "above zero"),
        ("cleanup_time = \"25:00\"", "time of day"),
    ] {
        let found = refused(&format!("{MANUAL}[image_garbage_collection]\n{line}\n"));
        assert!(found.iter().any(|one| one.message.contains(part)), "{line}: {found:?}");
    }
}

#[test]
fn an_accepted_second_spelling_is_the_same_key() {
    let translated = accepted(&format!("local_gateway_hostname = \"dmz.example\"\n{MANUAL}"));
    assert_eq!(translated.moduled.parent_hostname.as_deref(), Some("dmz.example"));
}

#[test]
fn an_unquoted_word_is_told_to_be_quoted() {
    let found = refused("auto_reprovisioning_mode = Dynamic\n[provisioning]\nsource = \"none\"\n");
    assert_eq!((found[0].code, found[0].line, found[0].column), (Code::Syntax, 1, 28));
    assert_eq!(found[0].remedy.as_deref(), Some("write text in double quotes"));
}

#[test]
fn tokens_and_tpm_are_translated() {
    let translated = accepted(&format!(
        "{CLOSED}{MANUAL}[aziot_keys]\npkcs11_lib_path = \"/lib/t.so\"\npkcs11_base_slot = \"pkcs11:token=edge?pin-value=0000\"\n\
         places = [\"token\", \"tpm\", \"files\"]\npass_on = \"everything\"\nseal = \"tpm\"\n\
         sandbox_paths = [\"/opt/token\"]\nsandbox_network = true\n\
         [preloaded_keys]\nours = \"pkcs11:object=ours\"\ntheirs = \"tpm:handle=0x81000002\"\n\
         [tpm]\ntcti = \"\"\nauth_key_index = 0x200\n\
         [tpm.hierarchy_authorization]\nendorsement = \"secret\"\nowner = {{ credential = \"tpm-owner\" }}\n\
         [aziot_max_requests]\ntpmd = 3\n"
    ));
    assert!(translated.notices.is_empty(), "{:?}", translated.notices);
    let sandbox = &translated.keyd.sandbox;
    assert!(sandbox.enabled && sandbox.network && sandbox.paths == [Path::new("/opt/token")]);
    assert!(!accepted(&format!("{MANUAL}[aziot_keys]\nsandbox = false\n")).keyd.sandbox.enabled);
    assert!(accepted(MANUAL).identityd.sandbox);
    assert!(!accepted(&format!("{MANUAL}[identityd]\nsandbox = false\n")).identityd.sandbox);
    assert!(accepted(MANUAL).moduled.sandbox);
    assert!(!accepted(&format!("{MANUAL}[moduled]\nsandbox = false\n")).moduled.sandbox);
    let pkcs11 = translated.keyd.pkcs11.unwrap();
    assert_eq!(pkcs11.library.as_deref(), Some(Path::new("/lib/t.so")));
    assert_eq!(pkcs11.base_slot.unwrap().expose(), "pkcs11:token=edge?pin-value=0000");
    assert_eq!(translated.keyd.places, [KeyPlace::Token, KeyPlace::Tpm, KeyPlace::Files]);
    assert_eq!(
        (translated.keyd.pass_on, translated.keyd.seal),
        (PassOn::Everything, Some(Seal::Tpm))
    );
    assert_eq!(translated.keyd.preloaded_keys["ours"].expose(), "pkcs11:object=ours");
    assert_eq!(translated.keyd.preloaded_keys["theirs"].expose(), "tpm:handle=0x81000002");
    assert_eq!(
        translated.keyd.assigned["device-id"],
        KeyPlace::Files,
        "it came with the configuration"
    );
    let tpm = translated.keyd.tpm.unwrap();
    assert_eq!(
        (tpm.tcti.as_str(), tpm.auth_key_index, tpm.connections_per_uid),
        ("device", 0x200, Some(3))
    );
    assert_eq!(tpm.endorsement, Some(AuthSource::Value("secret".into())));
    assert_eq!(tpm.owner, Some(AuthSource::Credential("tpm-owner".into())));
}

#[test]
fn what_keys_are_for_and_who_may_see_the_log_is_translated() {
    let translated = accepted(&format!(
        "{CLOSED}{MANUAL}[aziot_keys]\nauditors = [\"siem\", 1234]\nhandle_lifetime = \"1h 30m\"\nkeys_per_uid = 50\n\
         [aziot_keys.audit_log]\nsize_mib = 16\nsync_ms = 1000\ncheckpoint_sec = 60\nentries_per_uid_hour = 600\n\
         [[aziot_keys.purpose]]\nkeys = \"backup-*\"\npurpose = \"seal\"\n\
         [[aziot_keys.purpose]]\nkeys = \"*-ca\"\npurpose = \"ca\"\n\
         [tpm]\naudit_counter_index = 0x0180_0001\naudit_counter_interval_sec = 900\n"
    ));
    assert!(translated.notices.is_empty(), "{:?}", translated.notices);
    let keyd = translated.keyd;
    assert_eq!(
        (keyd.auditors, keyd.handle_lifetime_sec, keyd.handles_any_uid),
        (vec![990, 1234], Some(5400), false)
    );
    let log = keyd.audit_log;
    assert_eq!((log.size_mib, log.sync_ms, log.checkpoint_sec), (Some(16), Some(1000), Some(60)));
    assert_eq!((keyd.keys_per_uid, log.entries_per_uid_hour), (Some(50), Some(600)));
    let rules: Vec<(&str, Purpose)> =
        keyd.purposes.iter().map(|rule| (rule.keys.as_str(), rule.purpose)).collect();
    assert_eq!(rules, [("backup-*", Purpose::Seal), ("*-ca", Purpose::Ca)]);
    let counter = keyd.tpm.unwrap().audit_counter;
    assert_eq!((counter.enabled, counter.index, counter.interval_sec), (true, 0x0180_0001, 900));
    // Only moduled measures whom it asks for; identityd passes on what it says.
    let attestors: Vec<u32> =
        keyd.principals.iter().filter(|one| one.attestor).map(|one| one.uid).collect();
    assert_eq!(attestors, [12, 13]);
    let daemons: Vec<_> = keyd.principals.iter().map(|one| (one.uid, &one.daemons[..])).collect();
    assert_eq!(daemons, [(12, &[Daemon::Identityd][..]), (13, &[Daemon::Moduled])]);
    let certs = &translated.identityd.cert_principals;
    assert!(certs.iter().all(|one| one.uid == 13 && one.attestor), "{certs:?}");
    // Without a word about it there is a counter wherever there is a TPM.
    assert!(accepted(&format!("{MANUAL}[tpm]\n")).keyd.tpm.unwrap().audit_counter.enabled);
    let measure = accepted(&format!("{MANUAL}[tpm]\n")).keyd.tpm.unwrap().measure;
    assert_eq!((measure.pcr, measure.index), (Some(13), Some(0x0180_ed01)));
    let other = format!("{MANUAL}[tpm]\nmeasure_pcr = 14\nmeasure_index = 0x0180_0007\n");
    let measure = accepted(&other).keyd.tpm.unwrap().measure;
    assert_eq!((measure.pcr, measure.index), (Some(14), Some(0x0180_0007)));
    let off = accepted(&format!("{MANUAL}[tpm]\nmeasure = false\n")).keyd.tpm.unwrap().measure;
    assert_eq!((off.pcr, off.index), (None, None));
    let weaker = accepted(&format!(
        "{CLOSED}{MANUAL}[aziot_keys]\ncompat = \"handles-any-uid\"\n[tpm]\naudit_counter = false\naudit_counter_index = 0x1800001\n"
    ));
    assert!(weaker.keyd.handles_any_uid && !weaker.keyd.tpm.unwrap().audit_counter.enabled);
    let keys: Vec<&str> = weaker.notices.iter().map(|notice| notice.key.as_str()).collect();
    assert_eq!(keys, ["aziot_keys.compat", "tpm.audit_counter_index"]);
}

#[test]
fn a_library_that_the_sandbox_does_not_know_is_noticed_with_what_to_add() {
    let notices = |keys: &str| accepted(&format!("{CLOSED}{MANUAL}[aziot_keys]\n{keys}")).notices;
    let found = notices("pkcs11_lib_path = \"/opt/vendor/libhsm.so\"\n");
    assert_eq!(
        (found.len(), found[0].key.as_str()),
        (1, "aziot_keys.pkcs11_lib_path"),
        "{found:?}"
    );
    assert!(
        found[0].remedy.as_deref().is_some_and(|fix| fix.contains("sandbox_paths = [")),
        "{found:?}"
    );
    let found = notices("pkcs11_base_slot = \"pkcs11:token=t?module-path=/opt/v.so\"\n");
    assert_eq!(
        (found.len(), found[0].key.as_str()),
        (1, "aziot_keys.pkcs11_base_slot"),
        "{found:?}"
    );
    for known in [
        "pkcs11_lib_path = \"/usr/lib/softhsm/libsofthsm2.so\"\n",
        "pkcs11_lib_path = \"/opt/v.so\"\nsandbox_paths = [\"/opt/vendor\"]\n",
        "pkcs11_lib_path = \"/opt/v.so\"\nsandbox = false\n",
    ] {
        assert!(notices(known).is_empty(), "{known}");
    }
}

#[test]
fn rules_about_keys_that_cannot_be_are_refused_with_their_place_and_what_was_meant() {
    let remedy = |found: &[Diagnostic]| found[0].remedy.clone().unwrap_or_default();
    for (text, line, column, part, meant) in [
        ("[aziot_keys]\nauditors = [\"seim\"]\n", 5, 13, "no such user", "did you mean \"siem\"?"),
        ("[aziot_keys]\nauditors = [-1]\n", 5, 13, "a user id", ""),
        ("[aziot_keys]\nauditors = \"siem\"\n", 5, 12, "a list of names", "square brackets"),
        ("[aziot_keys]\nauditors = [true]\n", 5, 13, "an integer or a string", ""),
        (
            "[aziot_keys]\ncompat = \"handles-any-uids\"\n",
            5,
            10,
            "is one of",
            "did you mean \"handles-any-uid\"?",
        ),
        ("[aziot_keys]\nhandle_lifetime = \"10\"\n", 5, 19, "a duration", ""),
        ("[aziot_keys]\nhandle_lifetime = \"10s\"\n", 5, 19, "1 minute to 366 days", ""),
        ("[aziot_keys]\nhandle_lifetime = 10\n", 5, 19, "a string", "in double quotes"),
        ("[aziot_keys]\nauditor = [1]\n", 5, 1, "unknown key", "did you mean `auditors`?"),
        ("[aziot_keys.audit_log]\nsize_mib = 0\n", 5, 12, "expected 1 to 4096", ""),
        ("[aziot_keys.audit_log]\nsize = 1\n", 5, 1, "unknown key", ""),
        (
            "[[aziot_keys.purpose]]\nkeys = \"a\"\npurpose = \"seals\"\n",
            6,
            11,
            "is one of",
            "did you mean \"seal\"?",
        ),
        (
            "[[aziot_keys.purpose]]\npurpose = \"seal\"\n",
            4,
            1,
            "`aziot_keys.purpose.keys` is missing",
            "",
        ),
        ("[[aziot_keys.purpose]]\nkeys = \"\"\npurpose = \"ca\"\n", 5, 8, "a pattern of ids", ""),
        ("[tpm]\naudit_counter_index = 0x81000001\n", 5, 23, "0x01800000 to 0x01bfffff", ""),
        ("[tpm]\nmeasure_pcr = 23\n", 5, 15, "expected 8 to 15", ""),
        ("[tpm]\nmeasure_index = 1\n", 5, 17, "0x01800000 to 0x01bfffff", ""),
        ("[tpm]\nmeasure_index = 0x0180_ed00\n", 5, 1, "need one each", ""),
        ("[tpm]\naudit_counter_interval_sec = 1\n", 5, 30, "expected 10 to 86400", ""),
        ("[tpm]\naudit_counter = \"off\"\n", 5, 17, "true or false", "without quotes"),
    ] {
        let found = refused(&format!("{MANUAL}{text}"));
        assert_eq!((found[0].line, found[0].column), (line, column), "{text}\n{found:?}");
        assert!(
            found[0].message.contains(part) && remedy(&found).contains(meant),
            "{text}\n{found:?}"
        );
    }
}

#[test]
fn hardware_that_cannot_be_is_refused_with_its_line() {
    let keys = "[aziot_keys]\n";
    for (text, line, part) in [
        (format!("{keys}pkcs11_base_slot = \"pkcs11:token=t\"\n"), 5, "which library"),
        (format!("{keys}pkcs11_lib_path = \"t.so\"\n"), 5, "absolute path"),
        (
            format!("{keys}pkcs11_lib_path = \"/t.so\"\npkcs11_base_slot = \"pkcs11:object=t\"\n"),
            6,
            "names no token",
        ),
        (format!("{keys}places = [\"token\"]\n"), 5, "cannot be a place"),
        (format!("{keys}places = [\"files\", \"files\"]\n"), 5, "cannot be a place"),
        (format!("{keys}places = [\"tpm\"]\n"), 5, "cannot be a place"),
        (format!("{keys}seal = \"tpm\"\n"), 5, "no TPM is configured"),
        (format!("{keys}pass_on = \"all\"\n"), 5, "is one of"),
        (format!("{keys}sandbox = \"no\"\n"), 5, "true or false"),
        (format!("{keys}sandbox_paths = [\"token\"]\n"), 5, "absolute path"),
        (format!("{keys}sandbox_paths = [\"/opt/../etc/edgekeep\"]\n"), 5, "without \"..\""),
        (format!("{keys}sandbox_paths = [\"/etc/edgekeep/\"]\n"), 5, "too much"),
        (format!("{keys}sandbox_paths = [\"/\"]\n"), 5, "too much"),
        ("[preloaded_keys]\na = \"pkcs11:token=t\"\n".into(), 5, "names no key"),
        ("[preloaded_keys]\na = \"pkcs11:object=t\"\n".into(), 5, "names no token"),
        ("[preloaded_keys]\na = \"tpm:handle=0x81000001\"\n".into(), 5, "no TPM is configured"),
        ("[preloaded_certs]\na = \"pkcs11:token=t\"\n".into(), 5, "names no certificate"),
        ("[preloaded_certs]\na = \"pkcs11:object=t\"\n".into(), 5, "names no token"),
        ("[preloaded_certs]\na = \"pkcs11:token=t;object=a\"\n".into(), 5, "which library"),
        ("[preloaded_certs]\na = \"pkcs11:object=t;type=private\"\n".into(), 5, "no certificate"),
        ("[preloaded_certs]\na = \"tpm:handle=0x81000001\"\n".into(), 5, "or pkcs11:object=NAME"),
        ("[cloud]\ntrusted_certs = [\"pkcs11:object=a\"]\n".into(), 5, "file:///path/to/file"),
        ("[tpm]\ntcti = \"tabrmd\"\n".into(), 5, "is not supported"),
        ("[tpm]\nauth_key_index = 0x800000\n".into(), 5, "expected 0 to 8388607"),
        ("[tpm]\nauth_key_index = \"0x100\"\n".into(), 5, "an integer"),
        ("[tpm.hierarchy_authorization]\nowner = { }\n".into(), 5, "needs one source"),
    ] {
        let found = refused(&format!("{MANUAL}{text}"));
        assert!(
            found.iter().any(|one| one.line == line && one.message.contains(part)),
            "{text}\n{found:?}"
        );
    }
}

#[test]
fn no_diagnostic_shows_a_secret() {
    const SECRET: &str = "Z2VoZWltZ2VoZWlt";
    for text in [
        format!(
            "[provisioning]\nsource = \"manual\"\nconnection_string = \"HostName=h;SharedAccessKey={SECRET}\"\n"
        ),
        format!(
            "[provisioning]\nsource = \"manual\"\nconection_string = \"HostName=h;SharedAccessKey={SECRET}\"\n"
        ),
        format!(
            "provisioning = {{ source = \"dps\", attestation = {{ method = \"symmetric_key\", symmetric_key = {{ value = \"{SECRET}!\" }} }} }}\n"
        ),
        format!(
            "provisioning = {{ source = \"dps\", symmetric_key = {{ value = \"{SECRET}\" }} }}\n"
        ),
        format!("symmetric_key = {SECRET}\n"),
        format!("x = \"{SECRET}\n"),
        format!("colour = 1 # {SECRET}\n"),
        format!("[agent.env]\nX = \"{SECRET}\"\n[agent]\ncolor = {{ a = [\"{SECRET}\"] }}\n"),
        format!("[preloaded_keys]\na = \"pkcs11:token=t?pin-value={SECRET}\"\n"),
        format!("[preloaded_certs]\na = \"pkcs11:token=t?pin-value={SECRET}\"\n"),
        format!("trust_bundle_cert = \"pkcs11:token=t?pin-value={SECRET}\"\n"),
        format!("[aziot_keys]\npkcs11_base_slot = \"pkcs11:token=t?pin={SECRET}\"\n"),
        format!("[tpm.hierarchy_authorization]\nowner = \"{SECRET}{SECRET}{SECRET}\"\n"),
        format!(
            "[cert_issuance.local_ca]\ncert = \"file:///c\"\npk = \"pkcs11:token=t;objekt=t?pin-value={SECRET}\"\n"
        ),
        format!("[agent.config]\nauth = {{ password = \"{SECRET}\", port = 1979-05-27 }}\n"),
    ] {
        let found = translate(&text, &device()).expect_err(&text);
        let shown = format!("{}{found:?}", render(&found, "config.toml", true));
        assert!(!shown.contains(SECRET), "{text}\n{shown}");
    }
}

#[test]
fn certificates_on_a_token_are_keyds_to_read_and_identityd_gets_no_pin() {
    let translated = accepted(&format!(
        "trust_bundle_cert = \"pkcs11:object=plant\"\n{MANUAL}\
         [aziot_keys]\npkcs11_lib_path = \"/lib/t.so\"\n\
         pkcs11_base_slot = \"pkcs11:token=edge?pin-value=0000\"\n\
         [preloaded_certs]\nours = \"pkcs11:token=other;id=%01;type=cert?pin-value=1111\"\n\
         [edge_ca]\ncert = \"pkcs11:object=ca\"\npk = \"pkcs11:object=ca\"\n"
    ));
    for (id, uri, shown) in [
        ("trust-bundle-user", "pkcs11:object=plant", "pkcs11:object=plant"),
        (
            "ours",
            "pkcs11:token=other;id=%01;type=cert?pin-value=1111",
            "pkcs11:token=other;id=%01;type=cert",
        ),
        ("aziot-edged-ca", "pkcs11:object=ca", "pkcs11:object=ca"),
    ] {
        assert_eq!(translated.keyd.preloaded_certs[id].expose(), uri);
        let token = PreloadedCert::Token { token: shown.to_owned() };
        assert_eq!(translated.identityd.preloaded_certs[id], token);
    }
    assert_eq!(translated.moduled.edge_ca.renewal, EdgeCaRenewal::Files);
    let identityd = serde_json::to_string(&translated.identityd).unwrap();
    assert!(!identityd.contains("1111") && !identityd.contains("0000"), "{identityd}");
    assert_eq!(
        serde_json::from_str::<edgekeep_core::settings::IdentitydSettings>(&identityd).unwrap(),
        translated.identityd
    );
}

/// All lines of the fixtures and examples that hold `key = `, with the document they
/// stand in.
fn documents() -> Vec<String> {
    let mut documents: Vec<String> =
        ["2a", "2b", "2d", "2i"].iter().map(|name| fixture(&format!("{name}.toml"))).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
    for entry in std::fs::read_dir(folder).unwrap() {
        documents.push(std::fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    documents
}

/// Tables whose keys are free: a slip in them cannot be seen.
fn is_free(document: &str, line: usize) -> bool {
    let header =
        document.lines().take(line).filter(|line| line.starts_with('[')).last().unwrap_or_default();
    ["[module_policies]", "[agent.env]"].contains(&header)
}

proptest! {
    #[test]
    fn translation_never_panics_on_any_text(text in "\\PC{0,200}") {
        let _ = translate(&text, &device());
        let _ = referenced_files(&text);
    }

    #[test]
    fn translation_never_panics_on_keys_and_values_of_the_schema_in_any_arrangement(
        lines in prop::collection::vec((
            prop::sample::select(vec!["hostname", "provisioning", "source", "attestation", "symmetric_key", "value", "uri",
                "edge_ca", "cert", "auto_renew", "agent", "config", "createOptions", "moby_runtime", "network", "ipam",
                "host_modules", "preloaded_certs", "module_policies", "cloud", "trusted_certs", "x", "\"é\\u0000\"", "subject"]),
            prop::sample::select(vec!["\"dps\"", "\"manual\"", "1", "-9223372036854775808", "9999999999999999999", "1.5", "nan",
                "true", "[]", "[[1]]", "{}", "{ a = { value = \"é\" } }", "1979-05-27", "\"file:///\"", "\"\\u0000\"", "x", "\"",
                "[{ config = \"\" }]", "'''\n'''", "{ method = \"est\" }"]),
            any::<bool>(),
        ), 0..12),
    ) {
        let text: String = lines.iter().map(|(key, value, header)| {
            if *header { format!("[{key}]\n") } else { format!("{key} = {value}\n") }
        }).collect();
        if let Err(found) = translate(&text, &device()) {
            let count = text.lines().count();
            for diagnostic in &found {
                prop_assert!(diagnostic.line >= 1 && diagnostic.line <= count + 1, "{diagnostic:?}");
            }
            let _ = render(&found, "config.toml", true);
        }
    }

    #[test]
    fn one_misspelt_key_is_always_reported_on_its_line(
        document in prop::sample::select(documents()),
        pick in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        slip in prop::sample::select(vec!["q", "zz", ""]),
    ) {
        let lines: Vec<&str> = document.lines().collect();
        let candidates: Vec<usize> = (0..lines.len())
            .filter(|&n| lines[n].starts_with(|c: char| c.is_ascii_lowercase()) && lines[n].contains(" = ") && !is_free(&document, n))
            .collect();
        prop_assume!(!candidates.is_empty());
        let number = candidates[pick.index(candidates.len())];
        let (key, rest) = lines[number].split_once(" = ").unwrap();
        let position = at.index(key.len());
        // An insertion, or the loss of a letter.
        let misspelt = if slip.is_empty() {
            format!("{}{}", &key[..position], &key[position + 1..])
        } else {
            format!("{}{slip}{}", &key[..position], &key[position..])
        };
        prop_assume!(misspelt != key && !misspelt.is_empty());
        let mut changed: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        changed[number] = format!("{misspelt} = {rest}");
        let found = translate(&changed.join("\n"), &device()).expect_err("a misspelt key was accepted");
        prop_assert!(
            found.iter().any(|diagnostic| diagnostic.line == number + 1 && diagnostic.severity == Severity::Error),
            "{misspelt} in line {}: {found:?}", number + 1
        );
    }
}

const BY_DPS: &str = "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"https://dps.example\"\n\
    id_scope = \"0ne0\"\n[provisioning.attestation]\nmethod = \"symmetric_key\"\n\
    registration_id = \"press-04\"\nsymmetric_key = { value = \"dGVzdC1rZXktbm90LWEtc2VjcmV0\" }\n";

#[test]
fn a_certificate_that_comes_with_the_registration_is_asked_for_and_renewed_with_a_new_key() {
    let table = "[provisioning.operational_certificate]\nmethod = \"dps\"\n";
    let translated = accepted(&format!("{BY_DPS}{table}"));
    let operational = translated.identityd.provisioning.operational().unwrap();
    assert_eq!(operational.api_version, "2026-11-01");
    let issuance = &translated.identityd.cert_issuance["device-operational"];
    assert_eq!(issuance.method, IssuanceMethod::Dps);
    let renewal = issuance.renewal.unwrap();
    assert!(renewal.enabled && renewal.rotate_key);
    let identityd = &translated.keyd.principals[0].keys;
    for id in ["device-id", "device-operational", "device-operational-temp"] {
        assert!(identityd.iter().any(|key| key == id), "{id}: {identityd:?}");
    }
    let lines = "api_version = \"2025-07-01-preview\"\nauto_renew = { rotate_key = false, threshold = \"10day\" }";
    let translated = accepted(&format!("{BY_DPS}{table}{lines}\n"));
    let operational = translated.identityd.provisioning.operational().unwrap();
    assert_eq!(operational.api_version, "2025-07-01-preview");
    let renewal = translated.identityd.cert_issuance["device-operational"].renewal.unwrap();
    assert_eq!((renewal.rotate_key, renewal.threshold.to_string()), (false, "10day".to_owned()));
    assert!(accepted(BY_DPS).identityd.provisioning.operational().is_none());
}

#[test]
fn a_certificate_that_the_service_cannot_issue_is_refused_where_it_is_configured() {
    let with = |lines: &str| format!("{BY_DPS}[provisioning.operational_certificate]\n{lines}\n");
    for (text, key, words) in [
        (with(""), "method", "method"),
        (with("method = \"est\""), "method", "dps"),
        (
            with("method = \"dps\"\napi_version = \"2021-10-01\""),
            "api_version",
            "knows certificate requests",
        ),
        (with("method = \"dps\"\napi_version = \"latest\""), "api_version", "expected a date"),
        (
            with("method = \"dps\"").replace("press-04", &"x".repeat(65)),
            "operational_certificate",
            "more than 64 characters",
        ),
        (
            format!("{MANUAL}\n[provisioning.operational_certificate]\nmethod = \"dps\"\n"),
            "operational_certificate",
            "does not go with",
        ),
    ] {
        let found = refused(&text);
        let named = |it: &&Diagnostic| it.key.ends_with(key);
        let it = found.iter().find(named).unwrap_or_else(|| panic!("{text}: {found:?}"));
        let said = format!("{} {:?}", it.message, it.remedy);
        assert!(said.contains(words), "{said}");
    }
}
