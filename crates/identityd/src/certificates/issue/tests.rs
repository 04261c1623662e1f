//! Tests of the certificates that are issued for requests by rcgen. Tests of requests by
//! openssl, and of hostile requests, are in `attacks`.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use edgekeep_core::settings::IssuanceMethod;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose,
};
use time::Duration;
use time::macros::datetime;
use x509_parser::extensions::ParsedExtension;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-06-01 12:00:00 UTC);

fn key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate().unwrap()
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["press-04.test".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn request(params: &CertificateParams, key: &rcgen::KeyPair) -> Result<Request, IssueError> {
    Request::read(params.serialize_request(key).unwrap().der())
}

fn ca_params(path_length: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "test CA");
    params.is_ca = IsCa::Ca(
        path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained),
    );
    params.not_before = datetime!(2026-01-01 00:00:00 UTC);
    params.not_after = datetime!(2026-06-11 00:00:00 UTC);
    params
}

fn circumstances<'a>(issuance: Option<&'a Issuance>, may_be_ca: bool) -> Circumstances<'a> {
    let rights = Rights { ca: may_be_ca, module: false };
    Circumstances {
        issuance,
        rights,
        wanted_end: None,
        now: NOW,
        earliest: NOW,
        serial: [0xff; 16],
    }
}

fn sign(unsigned: &Unsigned, key: &rcgen::KeyPair) -> Vec<u8> {
    let random = SystemRandom::new();
    match unsigned.key_kind() {
        KeyKind::Rsa => {
            let key = RsaKeyPair::from_pkcs8(&key.serialize_der()).unwrap();
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(&RSA_PKCS1_SHA256, &random, &unsigned.tbs, &mut signature).unwrap();
            signature
        }
        _ => {
            let key =
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der())
                    .unwrap();
            key.sign(&random, &unsigned.tbs).unwrap().as_ref().to_vec()
        }
    }
}

#[test]
fn a_leaf_has_what_was_asked_for_and_what_every_certificate_needs() {
    let (ca_key, leaf_key) = (key(), key());
    let ca = ca_params(Some(0)).self_signed(&ca_key).unwrap();
    let issuer = Issuer::read(ca.der(), NOW).unwrap();
    let request = request(&params("press-04"), &leaf_key).unwrap();
    let unsigned = prepare(&request, Some(&issuer), &circumstances(None, false)).unwrap();
    let signature = sign(&unsigned, &ca_key);
    let der = unsigned.finish(&signature).unwrap();

    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    let (_, ca) = x509_parser::parse_x509_certificate(ca.der()).unwrap();
    leaf.verify_signature(Some(ca.public_key())).unwrap();
    assert_eq!(leaf.issuer().as_raw(), ca.subject().as_raw());
    assert_eq!(leaf.subject().iter_common_name().next().unwrap().as_str().unwrap(), "press-04");
    assert_eq!(leaf.raw_serial().len(), 16);
    assert!(leaf.raw_serial()[0] & 0x80 == 0 && leaf.raw_serial()[0] != 0);
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1);
    assert!(leaf.extended_key_usage().unwrap().unwrap().value.server_auth);
    // The CA ends before 30 days are over.
    assert_eq!(leaf.validity().not_after.to_datetime(), datetime!(2026-06-11 00:00:00 UTC));
    assert_eq!(leaf.validity().not_before.to_datetime(), NOW - edgekeep_core::issuance::SLACK);
    let ids: Vec<_> = leaf
        .iter_extensions()
        .filter_map(|it| match it.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
        .collect();
    assert!(
        ids.contains(&issuer.key_id.as_ref().unwrap().as_bytes().to_vec())
            && ids.contains(&request.key.id()),
        "{ids:?}"
    );
}

#[test]
fn a_leaf_under_an_rsa_ca_verifies_too() {
    let ca_key =
        rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
            .unwrap();
    let ca = ca_params(None).self_signed(&ca_key).unwrap();
    let issuer = Issuer::read(ca.der(), NOW).unwrap();
    let unsigned = prepare(
        &request(&params("x"), &key()).unwrap(),
        Some(&issuer),
        &circumstances(None, false),
    )
    .unwrap();
    assert_eq!(unsigned.digest_info().len(), 51);
    let signature = sign(&unsigned, &ca_key);
    let der = unsigned.finish(&signature).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    let (_, ca) = x509_parser::parse_x509_certificate(ca.der()).unwrap();
    leaf.verify_signature(Some(ca.public_key())).unwrap();
}

#[test]
fn a_signature_of_another_key_makes_no_certificate() {
    let ca = ca_params(None).self_signed(&key()).unwrap();
    let issuer = Issuer::read(ca.der(), NOW).unwrap();
    let unsigned = prepare(
        &request(&params("x"), &key()).unwrap(),
        Some(&issuer),
        &circumstances(None, false),
    )
    .unwrap();
    let signature = sign(&unsigned, &key());
    assert!(matches!(unsigned.finish(&signature), Err(IssueError::WrongKey)));
}

#[test]
fn a_caller_who_names_an_issuer_never_obtains_a_ca() {
    let mut key_usage = params("x");
    key_usage.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let mut ca = params("x");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    for (params, otherwise) in [(key_usage, Some("without being a CA")), (ca, None)] {
        let request = request(&params, &key()).unwrap();
        let error = prepare(&request, None, &circumstances(None, false)).unwrap_err();
        assert!(error.to_string().contains("asks for a CA's rights"), "{error}");
        let configured =
            prepare(&request, None, &circumstances(None, true)).map_err(|error| error.to_string());
        assert_eq!(configured.is_err(), otherwise.is_some());
        assert!(
            configured
                .err()
                .is_none_or(|error| otherwise.is_some_and(|reason| error.contains(reason)))
        );
    }
}

#[test]
fn a_ca_below_a_ca_that_allows_none_is_refused() {
    let ca = ca_params(Some(0)).self_signed(&key()).unwrap();
    let issuer = Issuer::read(ca.der(), NOW).unwrap();
    let mut params = params("x");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let request = request(&params, &key()).unwrap();
    let error = prepare(&request, Some(&issuer), &circumstances(None, true)).unwrap_err();
    assert!(error.to_string().contains("path length"), "{error}");
}

#[test]
fn an_extension_that_is_not_known_is_left_out_unless_the_request_insists_on_it() {
    // An empty nameConstraints, and one of nobody's.
    for oid in [&[2, 5, 29, 30][..], &[1, 3, 6, 1, 4, 1, 99999, 1]] {
        for critical in [false, true] {
            let mut params = params("x");
            let mut unknown = CustomExtension::from_oid_content(oid, vec![0x30, 0]);
            unknown.set_criticality(critical);
            params.custom_extensions = vec![unknown];
            let (own, found) = (key(), request(&params, &key()));
            if critical {
                let error = found.unwrap_err().to_string();
                assert!(error.contains("insists on extension"), "{error}");
                continue;
            }
            let request = request(&params, &own).unwrap();
            let unsigned = prepare(&request, None, &circumstances(None, false)).unwrap();
            let signature = sign(&unsigned, &own);
            let der = unsigned.finish(&signature).unwrap();
            let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
            let issued: Vec<_> = leaf.iter_extensions().map(|it| it.oid.to_string()).collect();
            assert_eq!(issued, ["2.5.29.15", "2.5.29.37", "2.5.29.17", "2.5.29.14"]);
        }
    }
}

#[test]
fn a_request_that_was_changed_after_signing_is_refused() {
    let mut der = params("press-04").serialize_request(&key()).unwrap().der().to_vec();
    let at = der.windows(8).position(|it| it == b"press-04").unwrap();
    der[at] = b'P';
    let error = Request::read(&der).unwrap_err();
    assert!(error.to_string().contains("signature does not verify"), "{error}");
}

#[test]
fn an_issuer_that_is_no_ca_or_not_valid_now_cannot_sign() {
    let leaf = params("leaf").self_signed(&key()).unwrap();
    let ca = ca_params(None).self_signed(&key()).unwrap();
    for (der, now, fault) in [
        (leaf.der(), NOW, "not a CA"),
        (ca.der(), datetime!(2026-07-01 00:00:00 UTC), "expired"),
        (ca.der(), datetime!(1970-01-01 00:00:00 UTC), "not valid yet"),
    ] {
        let error = Issuer::read(der, now).unwrap_err();
        assert!(error.to_string().contains(fault), "{error}");
    }
}

#[test]
fn a_wanted_end_shortens_a_certificate_and_never_lengthens_it() {
    for (wanted, days) in
        [(Duration::days(3), 3), (Duration::days(300), 30), (Duration::days(-1), 30)]
    {
        let mut circumstances = circumstances(None, false);
        circumstances.wanted_end = Some(NOW + wanted);
        let unsigned =
            prepare(&request(&params("x"), &key()).unwrap(), None, &circumstances).unwrap();
        assert_eq!(unsigned.not_after, NOW + Duration::days(days), "{wanted}");
    }
}

#[test]
fn only_a_ca_is_stretched_from_a_clock_that_is_behind_to_the_time_that_it_must_be() {
    let clock_of_1970 =
        Circumstances { now: OffsetDateTime::UNIX_EPOCH, ..circumstances(None, true) };
    let mut ca = params("x");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.subject_alt_names.clear();
    ca.extended_key_usages.clear();
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    for (params, end) in [(ca, NOW), (params("x"), OffsetDateTime::UNIX_EPOCH)] {
        let own = key();
        let unsigned = prepare(&request(&params, &own).unwrap(), None, &clock_of_1970).unwrap();
        let signature = sign(&unsigned, &own);
        let der = unsigned.finish(&signature).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        let validity = certificate.validity();
        assert_eq!(validity.not_before.to_datetime(), OffsetDateTime::UNIX_EPOCH);
        assert_eq!(validity.not_after.to_datetime(), end + Duration::days(30));
    }
}

#[test]
fn the_configured_name_and_days_count_and_a_self_signed_certificate_is_its_own_issuer() {
    let own = key();
    let issuance = Issuance {
        method: IssuanceMethod::SelfSigned,
        common_name: Some("c".repeat(70)),
        expiry_days: Some(90),
        renewal: None,
    };
    let request = request(&params("ignored"), &own).unwrap();
    let unsigned = prepare(&request, None, &circumstances(Some(&issuance), true)).unwrap();
    let signature = sign(&unsigned, &own);
    let der = unsigned.finish(&signature).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    certificate.verify_signature(None).unwrap();
    assert_eq!(
        certificate.subject().iter_common_name().next().unwrap().as_str().unwrap(),
        "c".repeat(64)
    );
    assert_eq!(certificate.issuer().as_raw(), certificate.subject().as_raw());
    assert_eq!(certificate.validity().not_after.to_datetime(), NOW + Duration::days(90));
}

#[test]
fn a_local_identity_is_an_end_entity_for_clients_and_if_asked_for_servers() {
    use rcgen::PublicKeyData as _;
    for server in [false, true] {
        let own = key();
        let request =
            Request::for_local_identity("m.host.domain", &own.subject_public_key_info(), server)
                .unwrap();
        let unsigned = prepare(&request, None, &circumstances(None, false)).unwrap();
        let signature = sign(&unsigned, &own);
        let der = unsigned.finish(&signature).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!certificate.is_ca());
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.non_repudiation());
        assert!(usage.value.key_encipherment() && !usage.value.key_cert_sign());
        let purposes = certificate.extended_key_usage().unwrap().unwrap();
        assert!(purposes.critical && purposes.value.client_auth);
        assert_eq!(purposes.value.server_auth, server);
    }
}
