//! The words of `config check` about files of certificates and keys, in every form,
//! wherever the configuration names one.

use std::path::Path;

use edgekeep_config::{
    Diagnostic, Environment, Severity, environment, referenced_credentials, translate,
};
use edgekeep_test_plant::{Plant, Says};

const HEAD: &str = "hostname = \"press\"\n[provisioning]\nsource = \"none\"\n";

/// Returns the findings about a configuration whose files are really there.
fn found(text: &str) -> Vec<Diagnostic> {
    match translate(text, &environment(text)) {
        Ok(translated) => translated.notices,
        Err(found) => found,
    }
}

/// The findings about files.
fn about_files(text: &str, folder: &Path) -> Vec<Diagnostic> {
    let folder = folder.display().to_string();
    found(text).into_iter().filter(|found| found.message.contains(&folder)).collect()
}

#[track_caller]
fn expect(form: &str, place: &str, says: Says, found: &[Diagnostic]) {
    match says {
        Says::Nothing => assert!(found.is_empty(), "{form} as {place}: {found:?}"),
        Says::Error(part) => {
            let [one] = found else { panic!("{form} as {place}: {found:?}") };
            let text = format!("{} {:?}", one.message, one.remedy);
            assert!(
                one.severity == Severity::Error && text.contains(part),
                "{form} as {place}: {text}"
            );
            assert!(one.remedy.is_some(), "{form} as {place}: {text}");
        }
    }
}

#[test]
fn a_file_of_certificates_is_judged_in_every_form_wherever_it_is_named() {
    let plant = Plant::new();
    let file = plant.folder().join("certificates");
    let uri = format!("file://{}", file.display());
    let places = [
        ("trust bundle", format!("trust_bundle_cert = \"{uri}\"\n{HEAD}")),
        ("preloaded certificate", format!("{HEAD}[preloaded_certs]\nours = \"{uri}\"\n")),
        ("roots of the cloud", format!("{HEAD}[cloud]\ntrusted_certs = [\"{uri}\"]\n")),
        (
            "CA pair",
            format!("{HEAD}[cert_issuance.local_ca]\ncert = \"{uri}\"\npk = \"file:///nowhere\"\n"),
        ),
    ];
    for form in plant.certificate_forms() {
        std::fs::write(&file, &form.content).unwrap();
        for (place, text) in &places {
            expect(form.name, place, form.says, &about_files(text, plant.folder()));
        }
    }
}

#[test]
fn a_file_of_a_key_is_judged_in_every_form_wherever_it_is_named() {
    let plant = Plant::new();
    let file = plant.folder().join("preloaded");
    let uri = format!("file://{}", file.display());
    let preloaded = format!("{HEAD}[preloaded_keys]\nours = \"{uri}\"\n");
    let ca = plant.folder().join("root.pem");
    let pair = format!(
        "{HEAD}[cert_issuance.local_ca]\ncert = \"file://{}\"\npk = \"{uri}\"\n",
        ca.display()
    );
    let device = format!(
        "hostname = \"press\"\n[provisioning]\nsource = \"manual\"\niothub_hostname = \"h.example\"\n\
         device_id = \"d\"\nauthentication = {{ method = \"sas\", device_id_pk = {{ uri = \"{uri}\" }} }}\n"
    );
    for form in plant.key_forms() {
        std::fs::write(&file, &form.content).unwrap();
        for (place, text) in [("preloaded key", &preloaded), ("CA pair", &pair)] {
            expect(form.name, place, form.says, &about_files(text, plant.folder()));
        }
        // The device's key is a symmetric one: a private key is none, in whatever form.
        let says = if form.says == Says::Nothing {
            Says::Error("a symmetric key is asked for")
        } else {
            form.says
        };
        expect(form.name, "device identity", says, &about_files(&device, plant.folder()));
    }
    std::fs::write(&file, [7; 32]).unwrap();
    expect("raw bytes", "device identity", Says::Nothing, &about_files(&device, plant.folder()));
    expect("raw bytes", "preloaded key", Says::Nothing, &about_files(&preloaded, plant.folder()));
    let no_key = Says::Error("a private key in PKCS#8, SEC1 or PKCS#1");
    expect("raw bytes", "CA pair", no_key, &about_files(&pair, plant.folder()));
    std::fs::write(&file, "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0\n").unwrap();
    let [notice] = about_files(&device, plant.folder()).try_into().unwrap();
    assert!(
        notice.severity == Severity::Notice && notice.remedy.unwrap().contains("base64 -d"),
        "{}",
        notice.message
    );
}

#[test]
fn the_key_of_a_ca_belongs_to_its_certificate() {
    let plant = Plant::new();
    plant.openssl("genrsa -out rsa.key 2048");
    plant.openssl("req -x509 -key rsa.key -out rsa.pem -subj /CN=rsa -days 3");
    let chain = [plant.text("root.pem"), plant.text("ca.pem")].concat();
    std::fs::write(plant.folder().join("chain.pem"), chain).unwrap();
    for (certificate, key, part) in [
        ("root.pem", "root.key", None),
        ("rsa.pem", "rsa.key", None),
        ("chain.pem", "ca.key", None),
        ("chain.pem", "root.key", Some("belongs to another certificate of the file")),
        ("root.pem", "other.key", Some("does not belong to the certificate")),
        ("root.pem", "rsa.key", Some("does not belong to the certificate")),
        ("server.pem", "server.key", Some("not a CA's")),
    ] {
        let uri = |name| format!("file://{}", plant.folder().join(name).display());
        let (cert, pk) = (uri(certificate), uri(key));
        let text = format!("{HEAD}[cert_issuance.local_ca]\ncert = \"{cert}\"\npk = \"{pk}\"\n");
        let errors: Vec<_> =
            found(&text).into_iter().filter(|one| one.severity == Severity::Error).collect();
        match part {
            None => assert!(errors.is_empty(), "{certificate} {key}: {errors:?}"),
            Some(part) => {
                assert!(
                    errors.iter().any(|one| one.message.contains(part)),
                    "{certificate} {key}: {errors:?}"
                );
            }
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_told_and_one_that_cannot_be_a_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let severity = |name: &str| {
        let uri = format!("file://{}", folder.path().join(name).display());
        let text =
            format!("trust_bundle_cert = \"{uri}\"\n{HEAD}[preloaded_keys]\nours = \"{uri}\"\n");
        about_files(&text, folder.path())
            .into_iter()
            .map(|found| found.severity)
            .collect::<Vec<_>>()
    };
    assert_eq!(severity("none"), [Severity::Notice; 2]);
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    assert_eq!(severity("folder"), [Severity::Error; 2]);
    std::fs::write(folder.path().join("long"), vec![b'\n'; (1 << 20) + 1]).unwrap();
    assert_eq!(severity("long"), [Severity::Error; 2]);
}

#[test]
fn no_byte_of_a_key_is_in_what_is_said_or_printed() {
    let plant = Plant::new();
    let uri = format!("file://{}", plant.folder().join("root.key").display());
    let text = format!("trust_bundle_cert = \"{uri}\"\n{HEAD}[preloaded_keys]\nours = \"{uri}\"\n");
    assert_eq!(referenced_credentials(&text), [plant.folder().join("root.key")]);
    let environment: Environment = environment(&text);
    let said = format!("{:?} {:?}", found(&text), environment);
    assert!(said.contains("line 1, block 1: it is a private key"), "{said}");
    for line in plant.text("root.key").lines().filter(|line| !line.starts_with('-')) {
        assert!(!said.contains(line));
    }
}

#[test]
fn a_device_key_that_is_given_inline_is_not_taken_for_a_private_key() {
    let plant = Plant::new();
    let key: String =
        plant.text("root.key").lines().filter(|line| !line.starts_with('-')).collect();
    let text = format!(
        "hostname = \"press\"\n[provisioning]\nsource = \"manual\"\niothub_hostname = \"h.example\"\n\
         device_id = \"d\"\nauthentication = {{ method = \"sas\", device_id_pk = {{ value = \"{key}\" }} }}\n"
    );
    let found = found(&text);
    assert!(
        found.iter().any(|one| one.message.contains("a symmetric key is asked for")),
        "{found:?}"
    );
    assert!(found.iter().all(|one| !one.source_line.contains(&key[..16])), "{found:?}");
}
