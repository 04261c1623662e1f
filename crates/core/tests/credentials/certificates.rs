use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::credentials::{
    Certificate, Fault, Limits, Purpose, each_once, pem_of, read_certificates,
};
use edgekeep_test_plant::{Plant, Says, count_by_openssl, count_by_python, is_strict};

use crate::{LIMITS, certificate, certificates, faults};

#[test]
fn certificates_are_found_in_every_form_that_people_have() {
    let plant = Plant::new();
    let (root, other) = (plant.text("root.pem"), plant.text("other.pem"));
    let one = certificates(&plant, ["root"]);
    let two = certificates(&plant, ["root", "other"]);
    let der = plant.openssl("x509 -in root.pem -outform DER");
    let base64: String = root.lines().filter(|line| !line.starts_with('-')).collect();
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    let lines = |before: &str, after: &str| -> Vec<u8> {
        root.lines().map(|line| format!("{before}{line}{after}\n")).collect::<String>().into()
    };
    let forms: Vec<(&str, Vec<u8>, &[Certificate])> = vec![
        ("PEM", root.clone().into(), &one),
        ("DER", der.clone(), &one),
        (
            "two in DER",
            [der.clone(), plant.openssl("x509 -in other.pem -outform DER")].concat(),
            &two,
        ),
        ("DER, then PEM", [der.as_slice(), b"\n", other.as_bytes()].concat(), &two),
        (
            "PEM, then DER",
            [root.as_bytes(), &plant.openssl("x509 -in other.pem -outform DER")].concat(),
            &two,
        ),
        ("glued", format!("{}{other}", root.trim_end()).into(), &two),
        ("byte order mark", format!("\u{feff}{root}").into(), &one),
        ("two with byte order marks", format!("\u{feff}{root}\u{feff}{other}").into(), &two),
        ("UTF-16 with its mark", [&[0xff, 0xfe][..], &utf16(&root)].concat(), &one),
        ("UTF-16 without", utf16(&root), &one),
        ("CRLF", root.replace('\n', "\r\n").into(), &one),
        ("CR", root.replace('\n', "\r").into(), &one),
        ("indented", lines("    ", ""), &one),
        ("tabs", lines("\t", "\t"), &one),
        ("empty lines", lines("", "\n"), &one),
        ("one line", root.replace('\n', " ").into(), &one),
        ("line ends written out", root.replace('\n', "\\n").into(), &one),
        ("without its last line end", root.trim_end().into(), &one),
        ("text before", plant.openssl("x509 -in root.pem -text"), &one),
        ("text behind", format!("{root}# the plant's root\n").into(), &one),
        ("twice", format!("{root}{root}").into(), &one),
        ("trusted", plant.openssl("x509 -in root.pem -addtrust serverAuth -trustout"), &one),
        ("old label", root.replace("CERTIFICATE", "X509 CERTIFICATE").into(), &one),
        ("base64 alone", base64.into(), &one),
    ];
    for (form, content, expected) in forms {
        let file = read_certificates(&content, LIMITS);
        assert_eq!(file.certificates, expected, "{form}");
        assert_eq!(faults(&file), [], "{form}");
    }
}

#[test]
fn what_cannot_be_used_is_named_with_its_place_and_takes_nothing_else_down() {
    let plant = Plant::new();
    let (root, other) = (plant.text("root.pem"), plant.text("other.pem"));
    let two = certificates(&plant, ["root", "other"]);
    let lines = root.lines().count();
    let openssl = |line: &str| String::from_utf8(plant.openssl(line)).unwrap();
    let start = |name: &str, lines: usize| -> String {
        plant.text(name).lines().take(lines).map(|line| format!("{line}\n")).collect()
    };
    let mut damaged = plant.text("ca.pem");
    damaged.replace_range(60..64, "!!!!");
    for (what, between, fault) in [
        ("key", plant.text("root.key"), Fault::PrivateKey),
        ("SEC1 key", openssl("ec -in root.key"), Fault::PrivateKey),
        ("encrypted key", openssl("pkcs8 -topk8 -in root.key -passout pass:x"), Fault::PrivateKey),
        (
            "old encrypted key",
            openssl("ec -in root.key -aes128 -passout pass:x"),
            Fault::PrivateKey,
        ),
        ("cut key", start("root.key", 2), Fault::PrivateKey),
        (
            "key under another label",
            plant.text("root.key").replace("PRIVATE KEY", "CERTIFICATE"),
            Fault::PrivateKey,
        ),
        ("key of another kind", openssl("genpkey -algorithm ed25519"), Fault::PrivateKey),
        ("request", plant.text("ca.csr"), Fault::Request),
        ("public key", openssl("pkey -in root.key -pubout"), Fault::PublicKey),
        ("parameters", openssl("ecparam -name prime256v1"), Fault::Parameters),
        ("PKCS#7", openssl("crl2pkcs7 -nocrl -certfile ca.pem"), Fault::Pkcs7),
        ("rejected", openssl("x509 -in ca.pem -addreject serverAuth -trustout"), Fault::Rejected),
        ("unknown", "-----BEGIN THING-----\nAAAA\n-----END THING-----\n".to_owned(), Fault::Label),
        ("cut", start("ca.pem", 4), Fault::Unfinished),
        ("wrong end", plant.text("ca.pem").replace("END CERT", "END X509 CERT"), Fault::OtherEnd),
        ("not base64", damaged, Fault::Base64),
        (
            "no certificate",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            Fault::Damaged,
        ),
        ("begin line", "-----BEGIN CERTIFICATE----\nAAAA\n".to_owned(), Fault::BeginLine),
    ] {
        let file = read_certificates(format!("{root}{between}{other}").as_bytes(), LIMITS);
        assert_eq!(file.certificates, two, "{what}");
        assert_eq!(faults(&file), [fault], "{what}");
        let place = file.findings.list()[0].place.unwrap();
        assert_eq!(
            (place.line, place.block, place.offset),
            (Some(lines + 1), 2, root.len()),
            "{what}"
        );
        assert!(!fault.remedy(Purpose::Certificates).is_empty());
    }
}

#[test]
fn files_without_a_certificate_say_what_they_are() {
    let plant = Plant::new();
    let mut cut = plant.openssl("x509 -in root.pem -outform DER");
    cut.pop();
    for (content, fault) in [
        (Vec::new(), Fault::Empty),
        (b"\xef\xbb\xbf \r\n".to_vec(), Fault::Empty),
        (b"hello\n".to_vec(), Fault::Nothing),
        (
            plant.openssl("pkcs12 -export -inkey root.key -in root.pem -passout pass:x"),
            Fault::Pkcs12,
        ),
        (plant.openssl("crl2pkcs7 -nocrl -certfile ca.pem -outform DER"), Fault::Pkcs7),
        (plant.openssl("pkey -in root.key -outform DER"), Fault::PrivateKey),
        (
            plant.openssl("pkcs8 -topk8 -in root.key -passout pass:x -outform DER"),
            Fault::PrivateKey,
        ),
        (plant.openssl("req -in ca.csr -outform DER"), Fault::Request),
        (cut, Fault::CutOff),
        (vec![b'x'; LIMITS.bytes + 1], Fault::Long { limit: LIMITS.bytes }),
    ] {
        let file = read_certificates(&content, LIMITS);
        assert_eq!((file.certificates, file.findings.list()[0].fault), (vec![], fault));
    }
}

#[test]
fn a_certificate_that_is_cut_off_behind_a_whole_one_is_named() {
    let plant = Plant::new();
    let mut der = plant.openssl("x509 -in root.pem -outform DER");
    let length = der.len();
    der.extend_from_slice(&plant.openssl("x509 -in other.pem -outform DER")[..100]);
    let file = read_certificates(&der, LIMITS);
    assert_eq!(file.certificates, certificates(&plant, ["root"]));
    let finding = file.findings.list()[0];
    assert_eq!((finding.fault, finding.place.unwrap().offset), (Fault::CutOff, length));
    assert_eq!(finding.to_string(), format!("byte {length}, block 2: {}", Fault::CutOff));
}

#[test]
fn bytes_behind_a_certificate_inside_its_block_are_left_out() {
    let plant = Plant::new();
    let key = plant.openssl("pkey -in root.key -outform DER");
    let text = STANDARD.encode([plant.openssl("x509 -in root.pem -outform DER"), key].concat());
    for label in ["CERTIFICATE", "X509 CERTIFICATE", "THING"] {
        let block = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        let file = read_certificates(block.as_bytes(), LIMITS);
        assert_eq!(faults(&file), [Fault::Trailing]);
        assert_eq!(pem_of(&file.certificates), plant.text("root.pem"));
    }
}

#[test]
fn chains_go_out_from_the_leaf_up_and_single_roots_in_their_order() {
    let plant = Plant::new();
    for (given, expected) in [
        (["root", "ca", "server"], ["server", "ca", "root"]),
        (["ca", "server", "root"], ["server", "ca", "root"]),
        (["other", "root", "ca"], ["other", "ca", "root"]),
        (["other", "ca", "server"], ["server", "ca", "other"]),
    ] {
        let text: String = given.iter().map(|name| plant.text(&format!("{name}.pem"))).collect();
        let file = read_certificates(text.as_bytes(), LIMITS);
        assert_eq!(file.certificates, certificates(&plant, expected), "{given:?}");
    }
    let roots = format!("{}{}", plant.text("other.pem"), plant.text("root.pem"));
    assert_eq!(
        read_certificates(roots.as_bytes(), LIMITS).certificates,
        certificates(&plant, ["other", "root"])
    );
    let [server, ca, root] = ["server", "ca", "root"].map(|name| certificate(&plant, name));
    assert!(
        server.says_issued_by(&ca) && ca.says_issued_by(&root) && !server.says_issued_by(&root)
    );
    assert!(root.is_self_issued() && root.is_ca() && ca.is_ca() && !server.is_ca());
}

#[test]
fn what_is_written_is_what_openssl_writes() {
    let plant = Plant::new();
    for name in ["root", "ca", "server"] {
        assert_eq!(certificate(&plant, name).to_pem(), plant.text(&format!("{name}.pem")));
    }
    assert_eq!(
        each_once([certificates(&plant, ["root", "ca"]), certificates(&plant, ["root"])]).len(),
        2
    );
}

#[test]
fn counts_and_findings_are_bounded() {
    let plant = Plant::new();
    let limits = Limits { bytes: 1 << 20, blocks: 5, certificates: 2, findings: 3 };
    let all =
        ["root", "other", "ca", "server"].map(|name| plant.text(&format!("{name}.pem"))).concat();
    let file = read_certificates(all.as_bytes(), &limits);
    assert_eq!(
        (file.certificates.len(), faults(&file)),
        (2, vec![Fault::ManyCertificates { limit: 2 }])
    );
    let leftover = "-----BEGIN THING-----\nAAAA\n-----END THING-----\n";
    let text = format!("{}{}{}", leftover.repeat(4), plant.text("root.key"), leftover.repeat(100));
    let file = read_certificates(text.as_bytes(), &limits);
    let found = faults(&file);
    assert_eq!((found.len(), file.findings.more()), (3, 3), "{found:?}");
    assert!(
        found.contains(&Fault::ManyBlocks { limit: 5 }) && found.contains(&Fault::PrivateKey),
        "{found:?}"
    );
}

#[test]
fn what_goes_out_of_every_form_is_read_whole_by_openssl_and_python() {
    let plant = Plant::new();
    for form in plant.certificate_forms() {
        let file = read_certificates(&form.content, LIMITS);
        let out = pem_of(&file.certificates);
        assert_eq!(out, form.goes_out, "{}", form.name);
        assert!(is_strict(&out), "{}", form.name);
        if !out.is_empty() {
            let count = Ok(file.certificates.len());
            assert_eq!(
                (count_by_openssl(&out), count_by_python(&out)),
                (count.clone(), count),
                "{}",
                form.name
            );
        }
        let said = file
            .findings
            .gravest()
            .map(|found| format!("{found}; {}", found.fault.remedy(Purpose::Certificates)));
        match form.says {
            Says::Nothing => assert_eq!(said, None, "{}", form.name),
            Says::Error(part) => {
                assert!(
                    said.as_ref().is_some_and(|said| said.contains(part)),
                    "{}: {said:?}",
                    form.name
                );
            }
        }
    }
}

#[test]
fn every_root_that_the_system_trusts_is_a_certificate() {
    let Ok(system) = std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt") else { return };
    let file = read_certificates(system.as_bytes(), LIMITS);
    assert_eq!(faults(&file), []);
    assert_eq!(Ok(file.certificates.len()), count_by_python(&system));
    assert!(pem_of(&file.certificates) == system, "their order is kept");
}

/// Readers refuse a whole bundle for one certificate that they cannot read. So whatever
/// is taken here has to be one for them.
#[test]
fn what_is_taken_for_a_certificate_after_any_change_is_one_for_openssl_too() {
    let plant = Plant::new();
    let mut taken: Vec<Certificate> = Vec::new();
    for name in ["root", "server"] {
        let der = plant.der(name);
        for at in 0..der.len() {
            for change in [1, 0x20, 0x80, 0xff] {
                let mut changed = der.clone();
                changed[at] ^= change;
                taken.extend(Certificate::from_der(&changed));
            }
        }
    }
    assert!(taken.len() > 500, "only {} were taken", taken.len());
    for some in taken.chunks(400) {
        let pem = pem_of(some);
        assert_eq!(count_by_openssl(&pem), Ok(some.len()));
        assert_eq!(count_by_python(&pem), Ok(some.len()));
    }
}
