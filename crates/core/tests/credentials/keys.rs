use edgekeep_core::credentials::{
    Fault, Finding, KeyFile, KeyForm, Purpose, read_key, read_public_key,
};
use edgekeep_test_plant::Plant;

use crate::{LIMITS, certificate};

fn form(content: &[u8]) -> Result<Option<KeyForm>, Fault> {
    match read_key(content, LIMITS) {
        Ok(KeyFile::Symmetric { .. }) => Ok(None),
        Ok(KeyFile::Private(key)) => Ok(Some(key.form)),
        Err(Finding { fault, .. }) => Err(fault),
    }
}

#[test]
fn private_keys_are_found_in_every_form_that_people_have() {
    let plant = Plant::new();
    plant.openssl("genrsa -out rsa.key 2048");
    plant.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out p384.key");
    let pkcs8 = plant.text("root.key");
    let certificate = plant.text("root.pem");
    let bag = "Bag Attributes\n    localKeyID: 01\nKey Attributes: <No Attributes>\n";
    let utf16: Vec<u8> = pkcs8.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let with_parameters =
        [plant.openssl("ecparam -name prime256v1"), plant.openssl("ec -in root.key")].concat();
    let (ec, rsa) = (KeyForm::Sec1, KeyForm::Pkcs1);
    for (content, expected) in [
        (pkcs8.clone().into(), KeyForm::Pkcs8),
        (plant.openssl("pkcs8 -topk8 -nocrypt -in root.key -outform DER"), KeyForm::Pkcs8),
        (plant.file("p384.key"), KeyForm::Pkcs8),
        (plant.file("rsa.key"), KeyForm::Pkcs8),
        (plant.openssl("ec -in root.key"), ec),
        (plant.openssl("ec -in root.key -outform DER"), ec),
        (with_parameters, ec),
        (plant.openssl("rsa -in rsa.key -traditional"), rsa),
        (plant.openssl("rsa -in rsa.key -traditional -outform DER"), rsa),
        (format!("{bag}{pkcs8}").into(), KeyForm::Pkcs8),
        (format!("{certificate}{pkcs8}").into(), KeyForm::Pkcs8),
        (format!("{}{certificate}", pkcs8.trim_end()).into(), KeyForm::Pkcs8),
        (format!("\u{feff}{pkcs8}").into(), KeyForm::Pkcs8),
        ([&[0xfe, 0xff][..], &utf16].concat(), KeyForm::Pkcs8),
        (pkcs8.replace('\n', "\r\n").into(), KeyForm::Pkcs8),
        (
            pkcs8.lines().map(|line| format!("  {line}\n")).collect::<String>().into(),
            KeyForm::Pkcs8,
        ),
        (
            pkcs8.lines().filter(|line| !line.starts_with('-')).collect::<String>().into(),
            KeyForm::Pkcs8,
        ),
        (pkcs8.replace("PRIVATE KEY", "RSA PRIVATE KEY").into(), KeyForm::Pkcs8),
    ] {
        assert_eq!(form(&content), Ok(Some(expected)), "{}", String::from_utf8_lossy(&content));
    }
}

#[test]
fn no_form_of_a_key_is_taken_for_a_symmetric_key() {
    let plant = Plant::new();
    plant.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp521r1 -out p521.key");
    let pkcs8 = plant.openssl("pkcs8 -topk8 -nocrypt -in root.key -outform DER");
    let sec1 = plant.openssl("ec -in root.key -outform DER");
    let ssh = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n";
    let tss = "-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n";
    for (content, fault) in [
        (Vec::new(), Fault::Empty),
        (plant.openssl("pkcs8 -topk8 -in root.key -passout pass:x"), Fault::Encrypted),
        (plant.openssl("pkcs8 -topk8 -in root.key -passout pass:x -outform DER"), Fault::Encrypted),
        (
            plant.openssl(
                "pkcs8 -topk8 -v1 PBE-SHA1-3DES -in root.key -passout pass:x -outform DER",
            ),
            Fault::Encrypted,
        ),
        (plant.openssl("ec -in root.key -aes128 -passout pass:x"), Fault::Encrypted),
        (
            plant.openssl("pkcs12 -export -inkey root.key -in root.pem -passout pass:x"),
            Fault::Pkcs12,
        ),
        (plant.file("p521.key"), Fault::OtherKey),
        (plant.openssl("ec -in p521.key -outform DER"), Fault::OtherKey),
        (plant.openssl("genpkey -algorithm ed25519 -outform DER"), Fault::OtherKey),
        (plant.file("root.pem"), Fault::Certificate),
        (plant.openssl("x509 -in root.pem -outform DER"), Fault::Certificate),
        (plant.openssl("pkey -in root.key -pubout"), Fault::PublicKey),
        (plant.openssl("pkey -in root.key -pubout -outform DER"), Fault::PublicKey),
        (plant.file("ca.csr"), Fault::Request),
        ([plant.file("root.key"), plant.file("ca.key")].concat(), Fault::SecondKey),
        (pkcs8[..pkcs8.len() - 1].to_vec(), Fault::CutOff),
        (sec1[..sec1.len() - 1].to_vec(), Fault::CutOff),
        ([&pkcs8[..], &pkcs8[..20]].concat(), Fault::CutOff),
        ([&sec1[..], b"x"].concat(), Fault::Trailing),
        (plant.file("root.key")[..100].to_vec(), Fault::Unfinished),
        (ssh.into(), Fault::OpenSsh),
        (tss.into(), Fault::TpmKey),
        (b"{\"kty\": \"EC\"}".to_vec(), Fault::Jwk),
    ] {
        assert_eq!(form(&content), Err(fault), "{}", String::from_utf8_lossy(&content));
        assert!(!fault.remedy(Purpose::Key).is_empty());
    }
}

#[test]
fn bytes_of_no_known_form_are_a_symmetric_key_and_text_is_told() {
    let told = |content: &[u8]| match read_key(content, LIMITS) {
        Ok(KeyFile::Symmetric { is_text }) => is_text,
        other => panic!("{other:?}"),
    };
    assert!(!told(&[7; 32]) && !told(b"secret") && !told(&[0x30, 0x1e, 2, 1, 0]));
    assert!(told(b"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0") && told(b"correct horse battery staple\n"));
}

#[test]
fn a_key_does_not_print_itself() {
    let plant = Plant::new();
    let Ok(file) = read_key(&plant.file("root.key"), LIMITS) else { panic!("no key") };
    assert_eq!(format!("{file:?}"), "Private(PrivateKey(Pkcs8, ..))");
}

#[test]
fn a_public_key_is_read_from_either_form_and_nothing_else_is() {
    let plant = Plant::new();
    let der = plant.openssl("pkey -in root.key -pubout -outform DER");
    assert_eq!(certificate(&plant, "root").public_key(), der);
    let pem = plant.openssl("pkey -in root.key -pubout");
    assert_eq!(read_public_key(&pem, LIMITS).as_ref(), Ok(&der));
    assert_eq!(read_public_key(&der, LIMITS).as_ref(), Ok(&der));
    for (content, fault) in [
        (plant.file("root.key"), Fault::Key),
        (plant.file("root.pem"), Fault::Certificate),
        (pem.repeat(2), Fault::SecondKey),
        (b"hello".to_vec(), Fault::Nothing),
    ] {
        assert_eq!(read_public_key(&content, LIMITS).unwrap_err().fault, fault);
    }
}
