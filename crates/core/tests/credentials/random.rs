//! Files put together at random, and files that were hit.

use std::sync::OnceLock;

use edgekeep_core::credentials::{
    Certificate, CertificateFile, Fault, KeyFile, KeyForm, pem_of, read_certificates, read_key,
    read_public_key,
};
use edgekeep_test_plant::Plant;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::{LIMITS, certificate, faults};

/// Forms of one certificate among [`Pieces::certificates`].
const FORMS: usize = 4;

struct Pieces {
    certificates: Vec<(Vec<u8>, Certificate)>,
    leftovers: Vec<Vec<u8>>,
    keys: Vec<Vec<u8>>,
    /// The secret numbers of these keys.
    secrets: Vec<Vec<u8>>,
}

fn pieces() -> &'static Pieces {
    static PIECES: OnceLock<Pieces> = OnceLock::new();
    PIECES.get_or_init(|| {
        let plant = Plant::new();
        let mut certificates = Vec::new();
        for name in ["root", "ca", "server", "other"] {
            let certificate = certificate(&plant, name);
            let pem = plant.text(&format!("{name}.pem"));
            let indented: String = pem.lines().map(|line| format!("   {line}\r\n")).collect();
            let trusted =
                plant.openssl(&format!("x509 -in {name}.pem -addtrust serverAuth -trustout"));
            for form in [pem.clone().into(), pem.trim_end().into(), indented.into(), trusted] {
                certificates.push((form, certificate.clone()));
            }
        }
        let leftovers = vec![
            plant.file("ca.csr"),
            plant.openssl("crl2pkcs7 -nocrl -certfile ca.pem"),
            plant.openssl("x509 -in ca.pem -noout -text"),
            b"-----BEGIN CERTIFICATE-----\n".to_vec(),
            b"-----BEGIN ".to_vec(),
            b"-----END CERTIFICATE-----\n".to_vec(),
            b"\xef\xbb\xbf".to_vec(),
            b"----".to_vec(),
            vec![0x30, 0x82],
        ];
        let keys = vec![
            plant.file("root.key"),
            plant.openssl("ec -in ca.key"),
            plant.openssl("pkey -in other.key -outform DER"),
            plant.file("server.key")[..120].to_vec(),
        ];
        let secret = |key: &[u8]| match read_key(key, LIMITS) {
            // Where the number stands in an EC key on P-256.
            Ok(KeyFile::Private(key)) if key.form == KeyForm::Pkcs8 => key.der[36..68].to_vec(),
            Ok(KeyFile::Private(key)) => key.der[7..39].to_vec(),
            other => panic!("{other:?}"),
        };
        let secrets = ["root", "ca", "other", "server"]
            .map(|name| secret(&plant.file(&format!("{name}.key"))))
            .to_vec();
        Pieces { certificates, leftovers, keys, secrets }
    })
}

/// Returns true if eight bytes of a key in a row are in what goes out.
fn holds_a_secret(file: &CertificateFile) -> bool {
    let all: Vec<u8> =
        file.certificates.iter().flat_map(|certificate| certificate.der().to_vec()).collect();
    pieces()
        .secrets
        .iter()
        .any(|secret| secret.windows(8).any(|part| all.windows(8).any(|window| window == part)))
}

#[derive(Debug, Clone)]
enum Piece {
    Certificate(Index),
    Leftover(Index),
    Key(Index),
    Garbage(Vec<u8>),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        4 => any::<Index>().prop_map(Piece::Certificate),
        2 => any::<Index>().prop_map(Piece::Leftover),
        2 => any::<Index>().prop_map(Piece::Key),
        2 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Piece::Garbage),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_whole_certificate_is_kept_once_and_no_key_goes_out(list in prop::collection::vec(piece(), 0..12)) {
        let pieces = pieces();
        let mut content = Vec::new();
        let mut expected: Vec<Certificate> = Vec::new();
        let mut keys = 0;
        for piece in &list {
            match piece {
                Piece::Certificate(index) => {
                    let (form, certificate) = index.get(&pieces.certificates);
                    content.extend_from_slice(form);
                    expected.push(certificate.clone());
                }
                Piece::Leftover(index) => content.extend(index.get(&pieces.leftovers)),
                Piece::Key(index) => {
                    let key = index.get(&pieces.keys);
                    content.extend_from_slice(key);
                    keys += usize::from(key.starts_with(b"-----BEGIN") && key.ends_with(b"\n"));
                }
                Piece::Garbage(bytes) => content.extend_from_slice(bytes),
            }
        }
        // UTF-16 is told by the first bytes, and then nothing here is a text.
        prop_assume!(!matches!(content.as_slice(), [0xff, 0xfe, ..] | [0xfe, 0xff, ..]));
        let file = read_certificates(&content, LIMITS);
        let mut found = file.certificates.clone();
        found.sort();
        expected.sort();
        expected.dedup();
        prop_assert_eq!(&found, &expected);
        prop_assert!(!holds_a_secret(&file));
        prop_assert!(keys == 0 || faults(&file).contains(&Fault::PrivateKey));
        // What goes out is read back as it is.
        let again = read_certificates(pem_of(&file.certificates).as_bytes(), LIMITS);
        prop_assert_eq!(&again.certificates, &file.certificates);
        prop_assert!(again.findings.is_empty() || file.certificates.is_empty());
    }

    #[test]
    fn a_file_that_is_cut_or_changed_loses_only_what_was_hit(at: Index, bit in 0u8..8, cut: bool) {
        let pieces = pieces();
        let chosen: Vec<_> = pieces.certificates.iter().step_by(FORMS).collect();
        let mut content: Vec<u8> = chosen.iter().flat_map(|(form, _)| form.clone()).collect();
        let at = at.index(content.len());
        if cut { content.truncate(at) } else { content[at] ^= 1 << bit }
        let mut end = 0;
        let whole = chosen.iter().filter(|(form, _)| {
            end += form.len();
            end <= at || !cut && end - form.len() > at
        });
        let file = read_certificates(&content, LIMITS);
        for (_, certificate) in whole {
            prop_assert!(file.certificates.contains(certificate));
        }
        let _ = read_key(&content, LIMITS);
        let _ = read_public_key(&content, LIMITS);
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let long = [&[0x30, 0x82, 1, 0][..], &bytes].concat();
        for content in [&bytes, &long] {
            let _ = read_certificates(content, LIMITS);
            let _ = read_key(content, LIMITS);
            let _ = read_public_key(content, LIMITS);
        }
    }
}
