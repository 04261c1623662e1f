//! Requests that try to get something into a certificate that nobody understood.

use der::asn1::AnyRef;
use der::{Decode, Encode};
use proptest::prelude::*;
use rcgen::{
    CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, KeyPair, SigningKey as _,
};
use time::macros::datetime;

use super::*;

/// `2.5.29.n`.
const ALTERNATIVE_NAMES: &[u64] = &[2, 5, 29, 17];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const PURPOSES: &[u64] = &[2, 5, 29, 37];

fn request_with(extensions: &[(&[u64], bool, &[u8])], key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "press-04");
    params.custom_extensions = extensions
        .iter()
        .map(|(oid, critical, value)| {
            let mut extension = CustomExtension::from_oid_content(oid, value.to_vec());
            extension.set_criticality(*critical);
            extension
        })
        .collect();
    params.serialize_request(key).unwrap().der().to_vec()
}

/// Issues as widely as any id may.
fn issue(request: &[u8], key: &KeyPair) -> Result<Vec<u8>, String> {
    let circumstances = Circumstances {
        issuance: None,
        rights: Rights { ca: true, module: false },
        wanted_end: None,
        now: datetime!(2026-06-01 12:00:00 UTC),
        earliest: datetime!(2026-06-01 12:00:00 UTC),
        serial: [1; 16],
    };
    let request = Request::read(request).map_err(|error| error.to_string())?;
    let unsigned = prepare(&request, None, &circumstances).map_err(|error| error.to_string())?;
    let signature = key.sign(&unsigned.tbs).unwrap();
    Ok(unsigned.finish(&signature).unwrap())
}

/// Asserts that each byte of a certificate is accounted for by a parser that knows what
/// it is.
#[track_caller]
fn assert_understood(certificate: &[u8]) {
    fn whole<T: for<'a> Decode<'a> + Encode>(value: &[u8]) {
        let Ok(parsed) = T::from_der(value) else {
            panic!("the value is not read to its end: {value:x?}")
        };
        assert_eq!(parsed.to_der().unwrap(), value, "the value is as a writer writes it");
    }
    let parsed = x509_cert::Certificate::from_der(certificate).unwrap();
    assert_eq!(parsed.to_der().unwrap(), certificate);
    let tbs = parsed.tbs_certificate();
    let mut seen = Vec::new();
    for extension in tbs.extensions().unwrap() {
        assert!(!seen.contains(&extension.extn_id));
        seen.push(extension.extn_id);
        let value = extension.extn_value.as_bytes();
        match extension.extn_id {
            BasicConstraints::OID => whole::<BasicConstraints>(value),
            KeyUsageExtension::OID => whole::<KeyUsageExtension>(value),
            ExtendedKeyUsage::OID => {
                whole::<ExtendedKeyUsage>(value);
                for oid in ExtendedKeyUsage::from_der(value).unwrap().0 {
                    assert!(Purpose::from_oid(&oid.to_string()).is_ok(), "{oid}");
                }
            }
            SubjectAltName::OID => {
                whole::<SubjectAltName>(value);
                for name in SubjectAltName::from_der(value).unwrap().0 {
                    let read = match &name {
                        GeneralName::DnsName(text) => {
                            AlternativeName::dns(text.as_str().as_bytes())
                        }
                        GeneralName::UniformResourceIdentifier(text) => {
                            AlternativeName::uri(text.as_str().as_bytes())
                        }
                        GeneralName::IpAddress(bytes) => AlternativeName::address(bytes.as_bytes()),
                        other => panic!("{other:?}"),
                    };
                    assert_eq!(written_name(&read.unwrap()), Ok(name));
                }
            }
            SubjectKeyIdentifier::OID => whole::<SubjectKeyIdentifier>(value),
            other => panic!("{other} was issued"),
        }
    }
    for pair in tbs.subject().iter() {
        let text = pair.value.value();
        assert!(!text.iter().any(u8::is_ascii_control), "{text:x?}");
    }
    // A second parser, of other authors.
    let (rest, _) = x509_parser::parse_x509_certificate(certificate).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn each_way_to_smuggle_something_in_is_refused_with_its_reason() {
    let key = KeyPair::generate().unwrap();
    let dns = |text: &[u8]| [&[0x30, text.len() as u8 + 2, 0x82, text.len() as u8], text].concat();
    let behind = |mut value: Vec<u8>, more: &[u8]| {
        value.extend_from_slice(more);
        value
    };
    let any_purpose = vec![0x30, 6, 6, 4, 0x55, 0x1d, 0x25, 0];
    let ocsp = vec![0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 9];
    for (oid, value, reason) in [
        (CONSTRAINTS, vec![0x30, 0, 0], "behind its value"),
        (CONSTRAINTS, behind(vec![0x30, 0], b"stray"), "behind its value"),
        (CONSTRAINTS, vec![0x30, 3, 1, 1, 0x7f], "cannot be read"),
        (CONSTRAINTS, vec![0x30, 6, 1, 1, 0xff, 2, 1, 0xff], "cannot be read"),
        (CONSTRAINTS, vec![0x30, 3, 2, 1, 0], "path length and is no CA"),
        (CONSTRAINTS, vec![], "cannot be read"),
        (ALTERNATIVE_NAMES, behind(dns(b"a.example"), &dns(b"bank.example")), "behind its value"),
        (ALTERNATIVE_NAMES, dns(b"press-04\0.evil.example"), "alternative name 1: not a host name"),
        (ALTERNATIVE_NAMES, dns(b"press 04"), "not a host name"),
        (ALTERNATIVE_NAMES, dns(b"../../etc"), "not a host name"),
        (ALTERNATIVE_NAMES, dns(b"a.b\xff"), "cannot be read"),
        (ALTERNATIVE_NAMES, dns(b""), "not a host name"),
        (ALTERNATIVE_NAMES, vec![0x30, 0], "alternative name extension is empty"),
        (ALTERNATIVE_NAMES, vec![0x30, 5, 0x87, 3, 1, 2, 3], "not an IP address"),
        (ALTERNATIVE_NAMES, vec![0x30, 4, 0x86, 2, b'a', b'/'], "not an absolute URI"),
        (ALTERNATIVE_NAMES, vec![0x30, 5, 0x81, 3, b'a', b'@', b'b'], "its kind is not issued"),
        (ALTERNATIVE_NAMES, vec![0x30, 4, 0x88, 2, 0x2a, 3], "its kind is not issued"),
        (ALTERNATIVE_NAMES, vec![0x30, 4, 0xa4, 2, 0x30, 0], "its kind is not issued"),
        (PURPOSES, any_purpose, "purpose 2.5.29.37.0 is not issued"),
        (PURPOSES, ocsp, "purpose 1.3.6.1.5.5.7.3.9 is not issued"),
        (PURPOSES, vec![0x30, 0], "extended key usage extension is empty"),
        (KEY_USAGE, vec![3, 2, 0, 0x80, 0], "behind its value"),
        (KEY_USAGE, vec![3, 3, 0, 0x80, 0x40], "a bit that is not defined"),
        (KEY_USAGE, vec![3, 1, 0], "key usage extension is empty"),
        (KEY_USAGE, vec![3, 2, 0, 0], "key usage extension is empty"),
        (KEY_USAGE, vec![3, 2, 1, 0x81], "cannot be read"),
    ] {
        let error = issue(&request_with(&[(oid, false, &value)], &key), &key).expect_err(reason);
        assert!(error.contains(reason), "{oid:?} {value:x?}: {error}, not {reason}");
    }
    let unknown: &[u64] = &[1, 3, 6, 1, 4, 1, 99999, 1];
    for (twice, critical) in [(CONSTRAINTS, false), (unknown, false)] {
        let extensions: [(&[u64], bool, &[u8]); 2] =
            [(twice, critical, &[0x30, 0]), (twice, critical, &[0x30, 0])];
        let error = issue(&request_with(&extensions, &key), &key).unwrap_err();
        assert!(error.contains("is there twice"), "{error}");
    }
}

/// A request over `info`, which may be anything.
fn signed(info: &[u8], key: &KeyPair) -> Vec<u8> {
    #[derive(Sequence)]
    struct Signed<'a> {
        info: AnyRef<'a>,
        algorithm: AlgorithmIdentifierOwned,
        signature: BitString,
    }
    let algorithm = AlgorithmIdentifierOwned {
        oid: ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"),
        parameters: None,
    };
    let signature = BitString::from_bytes(&key.sign(info).unwrap()).unwrap();
    let Ok(info) = AnyRef::from_der(info) else { return info.to_vec() };
    Signed { info, algorithm, signature }.to_der().unwrap()
}

fn valid_info(key: &KeyPair) -> Vec<u8> {
    let mut params =
        CertificateParams::new(vec!["press-04.example".to_owned(), "10.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "press-04");
    params.distinguished_name.push(DnType::OrganizationName, "plant");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
    let der = params.serialize_request(key).unwrap().der().to_vec();
    let outer = AnyRef::from_der(&der).unwrap();
    let mut rest = der::SliceReader::new(outer.value()).unwrap();
    AnyRef::decode(&mut rest).unwrap().to_der().unwrap()
}

#[test]
fn a_request_with_another_version_or_without_attributes_is_taken_as_what_it_means() {
    let key = KeyPair::generate().unwrap();
    let whole = valid_info(&key);
    let fields = AnyRef::from_der(&whole).unwrap().value().to_vec();
    // The version comes first, the attributes last: an element of context 0 with a length
    // of one or three bytes.
    assert_eq!(fields[..3], [2, 1, 0]);
    let mut counted = fields.clone();
    counted[2] = 2;
    let mut rest = der::SliceReader::new(&fields).unwrap();
    let parts: Vec<_> =
        (0..3).map(|_| AnyRef::decode(&mut rest).unwrap().to_der().unwrap()).collect();
    for (fields, extensions) in [(counted, 5), (parts.concat(), 1)] {
        let info = Any::new(der::Tag::Sequence, fields).unwrap().to_der().unwrap();
        let certificate = issue(&signed(&info, &key), &key).unwrap();
        assert_understood(&certificate);
        let parsed = x509_cert::Certificate::from_der(&certificate).unwrap();
        assert_eq!(parsed.tbs_certificate().extensions().unwrap().len(), extensions);
    }
}

#[test]
fn a_request_in_other_bytes_than_those_that_were_signed_is_refused() {
    let key = KeyPair::generate().unwrap();
    let whole = signed(&valid_info(&key), &key);
    assert_understood(&issue(&whole, &key).unwrap());
    for bit in 0..whole.len() * 8 {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(issue(&changed, &key).is_err(), "bit {bit}");
    }
    for length in 0..whole.len() {
        assert!(issue(&whole[..length], &key).is_err(), "{length} bytes");
    }
    assert!(issue(&[&whole[..], &[0]].concat(), &key).is_err());
}

proptest! {
    #[test]
    fn random_bytes_in_an_extension_are_understood_or_not_issued(
        oid in proptest::sample::select(vec![ALTERNATIVE_NAMES, KEY_USAGE, CONSTRAINTS, PURPOSES, &[2, 5, 29, 30]]),
        critical: bool,
        // Half of them begin like the value that belongs there.
        start in proptest::sample::select(vec![vec![], vec![0x30u8, 3, 1, 1, 0xff], vec![3, 2, 5, 0xa0],
            vec![0x30, 3, 0x82, 1, b'a'], vec![0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1]]),
        rest in proptest::collection::vec(any::<u8>(), 0..12),
    ) {
        let key = KeyPair::generate().unwrap();
        let value = [start, rest].concat();
        if let Ok(certificate) = issue(&request_with(&[(oid, critical, &value)], &key), &key) {
            assert_understood(&certificate);
        }
    }

    #[test]
    fn a_request_with_bytes_changed_before_it_was_signed_is_understood_or_not_issued(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let key = KeyPair::generate().unwrap();
        let mut info = valid_info(&key);
        for (at, byte) in changes {
            *at.get_mut(&mut info) = byte;
        }
        if let Ok(certificate) = issue(&signed(&info, &key), &key) {
            assert_understood(&certificate);
        }
    }
}
