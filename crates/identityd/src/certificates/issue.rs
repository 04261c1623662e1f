//! What is certified: a function of the request, the issuer, the rules for this certificate, the time and a random serial
//! number. Signing happens elsewhere, with a key that this process never has.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{self, UnparsedPublicKey};
use edgekeep_core::settings::Issuance;
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{ParsedExtension, X509Extension};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::der::{bit_string, element, group, tag, time as der_time};

/// How far before now a certificate begins to be valid: peers' clocks differ a little.
const BACKDATE: Duration = Duration::minutes(5);
/// Days of validity where nothing is configured.
const DEFAULT_DAYS: u32 = 30;
/// Longest common name.
const COMMON_NAME_LIMIT: usize = 64;

// Object identifiers, as DER content.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const SUBJECT_KEY_ID: &[u8] = &[0x55, 29, 14];
const KEY_USAGE: &[u8] = &[0x55, 29, 15];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 29, 17];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 29, 19];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 29, 35];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 29, 37];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x2b, 0x81, 4, 0, 0x22];
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
const RSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12];
const RSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13];

/// What an RSA signature with PKCS#1 padding is made over, before the SHA-256 digest.
const DIGEST_INFO_SHA256: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];

/// Why a certificate was not issued or not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The request.
    #[error("the certificate request is not accepted: {what}")]
    Request {
        /// What is wrong with it.
        what: String,
    },
    /// The certificate that should sign.
    #[error("the issuer cannot sign this certificate: {what}")]
    Issuer {
        /// What is wrong with it.
        what: String,
    },
    /// A text that should be certificates.
    #[error("the text is not PEM certificates: {what}")]
    Pem {
        /// What is wrong with it.
        what: String,
    },
    /// The key's signature does not belong to the certificate that should sign.
    #[error("the issuer's key handle does not belong to the issuer's certificate")]
    WrongKey,
}

/// Kinds of keys that sign certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    P256,
    P384,
    Rsa,
}

/// A public key that has been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicKey {
    pub(super) kind: KeyKind,
    /// The whole SubjectPublicKeyInfo.
    spki: Vec<u8>,
    /// The key inside it.
    key: Vec<u8>,
}

/// An extension as it is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extension {
    oid: Vec<u8>,
    critical: bool,
    value: Vec<u8>,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// The Name, DER.
    pub(super) subject: Vec<u8>,
    pub(super) key: PublicKey,
    extensions: Vec<Extension>,
    /// Whether a CA's rights are asked for.
    wants_ca: bool,
}

/// What matters about the certificate that signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Issuer {
    subject: Vec<u8>,
    pub(super) key: PublicKey,
    key_id: Option<Vec<u8>>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    /// Whether CAs may stand below it.
    may_issue_ca: bool,
}

/// What is to be signed, and what the signature is checked with.
#[derive(Debug)]
pub(super) struct Unsigned {
    tbs: Vec<u8>,
    algorithm: Vec<u8>,
    signer: PublicKey,
    pub(super) not_after: OffsetDateTime,
}

/// The circumstances of one issuance.
pub(super) struct Circumstances<'a> {
    /// What is configured for this certificate id.
    pub(super) issuance: Option<&'a Issuance>,
    /// Whether the operator configured this id to be issued without the caller naming an issuer: only such may be CAs.
    pub(super) may_be_ca: bool,
    /// When the caller wants it to end at the latest. One that is not in the future is not a wish that can be met, and is
    /// passed over: a module whose clock is off still gets a certificate.
    pub(super) wanted_end: Option<OffsetDateTime>,
    pub(super) now: OffsetDateTime,
    pub(super) serial: [u8; 16],
}

fn refuse(what: impl Into<String>) -> IssueError {
    IssueError::Request { what: what.into() }
}

impl PublicKey {
    fn read(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, &'static str> {
        let curve = || info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        let kind = match info.algorithm.algorithm.as_bytes() {
            EC_PUBLIC_KEY => match curve().as_ref().map(x509_parser::asn1_rs::Oid::as_bytes) {
                Some(P256) => KeyKind::P256,
                Some(P384) => KeyKind::P384,
                _ => return Err("its key is on a curve other than P-256 and P-384"),
            },
            RSA_ENCRYPTION => KeyKind::Rsa,
            _ => return Err("its key is neither EC nor RSA"),
        };
        Ok(Self { kind, spki: info.raw.to_vec(), key: info.subject_public_key.data.to_vec() })
    }

    /// SHA-256 of the key, cut to 160 bits (RFC 7093, method 1).
    fn id(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, &self.key).as_ref()[..20].to_vec()
    }

    /// Whether `signature` is this key's over `message`, by the algorithm with this identifier.
    fn verifies(&self, algorithm: &[u8], message: &[u8], signature: &[u8]) -> bool {
        use signature::VerificationAlgorithm;
        let algorithm: &'static dyn VerificationAlgorithm = match (self.kind, algorithm) {
            (KeyKind::P256, ECDSA_SHA256) => &signature::ECDSA_P256_SHA256_ASN1,
            (KeyKind::P256, ECDSA_SHA384) => &signature::ECDSA_P256_SHA384_ASN1,
            (KeyKind::P384, ECDSA_SHA256) => &signature::ECDSA_P384_SHA256_ASN1,
            (KeyKind::P384, ECDSA_SHA384) => &signature::ECDSA_P384_SHA384_ASN1,
            (KeyKind::Rsa, RSA_SHA256) => &signature::RSA_PKCS1_2048_8192_SHA256,
            (KeyKind::Rsa, RSA_SHA384) => &signature::RSA_PKCS1_2048_8192_SHA384,
            (KeyKind::Rsa, RSA_SHA512) => &signature::RSA_PKCS1_2048_8192_SHA512,
            _ => return false,
        };
        UnparsedPublicKey::new(algorithm, &self.key).verify(message, signature).is_ok()
    }

    /// The AlgorithmIdentifier of signatures that we have made with this kind of key, and the identifier inside it.
    fn signature_algorithm(&self) -> (Vec<u8>, &'static [u8]) {
        match self.kind {
            KeyKind::P256 | KeyKind::P384 => (group(tag::SEQUENCE, &[&element(tag::OID, ECDSA_SHA256)]), ECDSA_SHA256),
            KeyKind::Rsa => {
                (group(tag::SEQUENCE, &[&element(tag::OID, RSA_SHA256), &element(tag::NULL, &[])]), RSA_SHA256)
            }
        }
    }
}

impl Request {
    /// Reads a PKCS#10 request, and checks that whoever made it has the key.
    pub(super) fn read(der: &[u8]) -> Result<Self, IssueError> {
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| refuse("it is not PKCS#10"))?;
        if !rest.is_empty() {
            return Err(refuse("there is something behind it"));
        }
        let info = &csr.certification_request_info;
        let key = PublicKey::read(&info.subject_pki).map_err(refuse)?;
        let algorithm = csr.signature_algorithm.algorithm.as_bytes();
        if !key.verifies(algorithm, info.raw, &csr.signature_value.data) {
            return Err(refuse("its signature does not verify with its own key"));
        }
        let mut extensions = Vec::new();
        let mut wants_ca = false;
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else { continue };
            for extension in &asked.extensions {
                wants_ca |= Self::take(extension, &mut extensions)?;
            }
        }
        Ok(Self { subject: info.subject.as_raw().to_vec(), key, extensions, wants_ca })
    }

    /// Keeps an extension that may be asked for and drops any other. Returns whether it asks for a CA's rights.
    fn take(extension: &X509Extension<'_>, kept: &mut Vec<Extension>) -> Result<bool, IssueError> {
        let wants_ca = match (extension.oid.as_bytes(), extension.parsed_extension()) {
            (SUBJECT_ALT_NAME, ParsedExtension::SubjectAlternativeName(_))
            | (EXTENDED_KEY_USAGE, ParsedExtension::ExtendedKeyUsage(_)) => false,
            (KEY_USAGE, ParsedExtension::KeyUsage(usage)) => usage.key_cert_sign() || usage.crl_sign(),
            (BASIC_CONSTRAINTS, ParsedExtension::BasicConstraints(constraints)) => constraints.ca,
            (SUBJECT_ALT_NAME | EXTENDED_KEY_USAGE | KEY_USAGE | BASIC_CONSTRAINTS, _) => {
                return Err(refuse("one of its extensions cannot be read"));
            }
            _ => return Ok(false),
        };
        let oid = extension.oid.as_bytes().to_vec();
        if kept.iter().any(|other| other.oid == oid) {
            return Err(refuse("one of its extensions is there twice"));
        }
        kept.push(Extension { oid, critical: extension.critical, value: extension.value.to_vec() });
        Ok(wants_ca)
    }

    /// A request of our own, for a key that we made: a plain end entity.
    pub(super) fn for_local_identity(common_name: &str, spki: &[u8], server: bool) -> Result<Self, IssueError> {
        let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| refuse("its key cannot be read"))?;
        let key = PublicKey::read(&info).map_err(refuse)?;
        // digitalSignature, nonRepudiation, keyEncipherment: the first three bits.
        let usage = element(tag::BIT_STRING, &[5, 0b1110_0000]);
        let purpose = |last| element(tag::OID, &[0x2b, 6, 1, 5, 5, 7, 3, last]);
        let purposes = if server { [purpose(2), purpose(1)].concat() } else { purpose(2) };
        let extension = |oid: &[u8], value| Extension { oid: oid.to_vec(), critical: true, value };
        let extensions = vec![
            extension(BASIC_CONSTRAINTS, element(tag::SEQUENCE, &[])),
            extension(KEY_USAGE, usage),
            extension(EXTENDED_KEY_USAGE, element(tag::SEQUENCE, &purposes)),
        ];
        Ok(Self { subject: name(common_name), key, extensions, wants_ca: false })
    }
}

impl Issuer {
    /// Reads a certificate that should sign; `now` is when.
    pub(super) fn read(der: &[u8], now: OffsetDateTime) -> Result<Self, IssueError> {
        let bad = |what: &str| IssueError::Issuer { what: what.to_owned() };
        let (_, certificate) =
            x509_parser::parse_x509_certificate(der).map_err(|_| bad("its certificate cannot be read"))?;
        let constraints = certificate.basic_constraints().map_err(|_| bad("its basic constraints cannot be read"))?;
        let Some(constraints) = constraints.filter(|it| it.value.ca) else { return Err(bad("it is not a CA")) };
        let usage = certificate.key_usage().map_err(|_| bad("its key usage cannot be read"))?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(bad("its key usage does not allow signing certificates"));
        }
        let key = PublicKey::read(certificate.public_key()).map_err(bad)?;
        let (not_before, not_after) =
            (certificate.validity().not_before.to_datetime(), certificate.validity().not_after.to_datetime());
        if now < not_before {
            return Err(bad("it is not valid yet; check the device's clock"));
        }
        if now >= not_after {
            return Err(bad("it has expired; renew it"));
        }
        let key_id = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let may_issue_ca = constraints.value.path_len_constraint.is_none_or(|length| length > 0);
        let subject = certificate.subject().as_raw().to_vec();
        Ok(Self { subject, key, key_id, not_before, not_after, may_issue_ca })
    }
}

/// A Name with nothing but a common name, which is cut where it is too long.
pub(super) fn name(common_name: &str) -> Vec<u8> {
    let text: String = common_name.chars().take(COMMON_NAME_LIMIT).collect();
    let pair = group(tag::SEQUENCE, &[&element(tag::OID, COMMON_NAME), &element(tag::UTF8_STRING, text.as_bytes())]);
    element(tag::SEQUENCE, &element(tag::SET, &pair))
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[tag::BOOLEAN, 1, 0xff] } else { &[] };
    group(tag::SEQUENCE, &[&element(tag::OID, oid), critical, &element(tag::OCTET_STRING, value)])
}

/// What is to be signed. Without `issuer` the certificate is signed by its own key.
pub(super) fn prepare(
    request: &Request,
    issuer: Option<&Issuer>,
    circumstances: &Circumstances<'_>,
) -> Result<Unsigned, IssueError> {
    let Circumstances { issuance, may_be_ca, wanted_end, now, serial } = *circumstances;
    if request.wants_ca && !may_be_ca {
        return Err(refuse("it asks for a CA's rights, which only ids with a configured issuance may have"));
    }
    if request.wants_ca && issuer.is_some_and(|issuer| !issuer.may_issue_ca) {
        return Err(IssueError::Issuer { what: "its path length does not allow CAs below it".to_owned() });
    }
    let now = now.replace_nanosecond(0).unwrap_or(now);
    let days = issuance.and_then(|issuance| issuance.expiry_days).unwrap_or(DEFAULT_DAYS).max(1);
    let mut not_before = now.saturating_sub(BACKDATE);
    let mut not_after = now.saturating_add(Duration::days(days.into()));
    if let Some(wanted) = wanted_end.and_then(|end| end.replace_nanosecond(0).ok()).filter(|end| *end > now) {
        not_after = not_after.min(wanted);
    }
    if let Some(issuer) = issuer {
        not_before = not_before.max(issuer.not_before);
        not_after = not_after.min(issuer.not_after);
    }
    let subject =
        issuance.and_then(|issuance| issuance.common_name.as_deref()).map_or_else(|| request.subject.clone(), name);
    let signer = issuer.map_or_else(|| request.key.clone(), |issuer| issuer.key.clone());
    let (algorithm, _) = signer.signature_algorithm();

    let mut extensions: Vec<u8> = Vec::new();
    for it in &request.extensions {
        extensions.extend(extension(&it.oid, it.critical, &it.value));
    }
    extensions.extend(extension(SUBJECT_KEY_ID, false, &element(tag::OCTET_STRING, &request.key.id())));
    if let Some(key_id) = issuer.and_then(|issuer| issuer.key_id.as_ref()) {
        let value = element(tag::SEQUENCE, &element(tag::implicit(0), key_id));
        extensions.extend(extension(AUTHORITY_KEY_ID, false, &value));
    }

    let mut serial = serial;
    // Positive, never zero, always 16 bytes long.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let tbs = group(
        tag::SEQUENCE,
        &[
            &element(tag::explicit(0), &element(tag::INTEGER, &[2])),
            &element(tag::INTEGER, &serial),
            &algorithm,
            issuer.map_or(&subject, |issuer| &issuer.subject),
            &group(tag::SEQUENCE, &[&der_time(not_before), &der_time(not_after)]),
            &subject,
            &request.key.spki,
            &element(tag::explicit(3), &element(tag::SEQUENCE, &extensions)),
        ],
    );
    Ok(Unsigned { tbs, algorithm, signer, not_after })
}

impl Unsigned {
    pub(super) fn key_kind(&self) -> KeyKind {
        self.signer.kind
    }

    /// SHA-256 of what is to be signed.
    pub(super) fn digest(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, &self.tbs).as_ref().to_vec()
    }

    /// What the private-key operation of an RSA key with PKCS#1 padding is to be applied to.
    pub(super) fn digest_info(&self) -> Vec<u8> {
        [&DIGEST_INFO_SHA256[..], &self.digest()].concat()
    }

    /// The certificate, if `signature` is the signer's.
    pub(super) fn finish(self, signature: &[u8]) -> Result<Vec<u8>, IssueError> {
        let (_, algorithm) = self.signer.signature_algorithm();
        if !self.signer.verifies(algorithm, &self.tbs, signature) {
            return Err(IssueError::WrongKey);
        }
        Ok(group(tag::SEQUENCE, &[&self.tbs, &self.algorithm, &bit_string(signature)]))
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
    use edgekeep_core::settings::IssuanceMethod;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    };
    use time::macros::datetime;

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
        params.is_ca = IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
        params.not_before = datetime!(2026-01-01 00:00:00 UTC);
        params.not_after = datetime!(2026-06-11 00:00:00 UTC);
        params
    }

    fn circumstances<'a>(issuance: Option<&'a Issuance>, may_be_ca: bool) -> Circumstances<'a> {
        Circumstances { issuance, may_be_ca, wanted_end: None, now: NOW, serial: [0xff; 16] }
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
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der()).unwrap();
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
        assert_eq!(leaf.validity().not_before.to_datetime(), NOW - BACKDATE);
        let ids: Vec<_> = leaf
            .iter_extensions()
            .filter_map(|it| match it.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
            .collect();
        assert!(ids.contains(issuer.key_id.as_ref().unwrap()) && ids.contains(&request.key.id()), "{ids:?}");
    }

    #[test]
    fn a_leaf_under_an_rsa_ca_verifies_too() {
        let ca_key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let ca = ca_params(None).self_signed(&ca_key).unwrap();
        let issuer = Issuer::read(ca.der(), NOW).unwrap();
        let unsigned =
            prepare(&request(&params("x"), &key()).unwrap(), Some(&issuer), &circumstances(None, false)).unwrap();
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
        let unsigned =
            prepare(&request(&params("x"), &key()).unwrap(), Some(&issuer), &circumstances(None, false)).unwrap();
        let signature = sign(&unsigned, &key());
        assert!(matches!(unsigned.finish(&signature), Err(IssueError::WrongKey)));
    }

    #[test]
    fn a_caller_who_names_an_issuer_never_obtains_a_ca() {
        let mut key_usage = params("x");
        key_usage.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        for mut params in [key_usage, {
            let mut params = params("x");
            params.custom_extensions =
                vec![CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff])];
            params
        }] {
            params.subject_alt_names.clear();
            let request = request(&params, &key()).unwrap();
            let error = prepare(&request, None, &circumstances(None, false)).unwrap_err();
            assert!(error.to_string().contains("asks for a CA's rights"), "{error}");
            assert!(prepare(&request, None, &circumstances(None, true)).is_ok());
        }
    }

    #[test]
    fn a_ca_below_a_ca_that_allows_none_is_refused() {
        let ca = ca_params(Some(0)).self_signed(&key()).unwrap();
        let issuer = Issuer::read(ca.der(), NOW).unwrap();
        let mut params = params("x");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let request = request(&params, &key()).unwrap();
        let error = prepare(&request, Some(&issuer), &circumstances(None, true)).unwrap_err();
        assert!(error.to_string().contains("path length"), "{error}");
    }

    #[test]
    fn extensions_that_nobody_may_ask_for_are_not_copied() {
        let mut params = params("x");
        params.custom_extensions = vec![
            // nameConstraints, empty, and one of nobody's.
            CustomExtension::from_oid_content(&[2, 5, 29, 30], vec![0x30, 0]),
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]),
        ];
        let request = request(&params, &key()).unwrap();
        let oids: Vec<_> = request.extensions.iter().map(|it| it.oid.as_slice()).collect();
        assert_eq!(oids.len(), 3, "{oids:?}");
        assert!(!oids.contains(&&[0x55, 29, 30][..]));
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
        for (wanted, days) in [(Duration::days(3), 3), (Duration::days(300), 30), (Duration::days(-1), 30)] {
            let mut circumstances = circumstances(None, false);
            circumstances.wanted_end = Some(NOW + wanted);
            let unsigned = prepare(&request(&params("x"), &key()).unwrap(), None, &circumstances).unwrap();
            assert_eq!(unsigned.not_after, NOW + Duration::days(days), "{wanted}");
        }
    }

    #[test]
    fn the_configured_name_and_days_count_and_a_self_signed_certificate_is_its_own_issuer() {
        let own = key();
        let issuance =
            Issuance { method: IssuanceMethod::SelfSigned, common_name: Some("c".repeat(70)), expiry_days: Some(90) };
        let request = request(&params("ignored"), &own).unwrap();
        let unsigned = prepare(&request, None, &circumstances(Some(&issuance), true)).unwrap();
        let signature = sign(&unsigned, &own);
        let der = unsigned.finish(&signature).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        certificate.verify_signature(None).unwrap();
        assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str().unwrap(), "c".repeat(64));
        assert_eq!(certificate.issuer().as_raw(), certificate.subject().as_raw());
        assert_eq!(certificate.validity().not_after.to_datetime(), NOW + Duration::days(90));
    }

    #[test]
    fn a_local_identity_is_an_end_entity_for_clients_and_if_asked_for_servers() {
        use rcgen::PublicKeyData as _;
        for server in [false, true] {
            let own = key();
            let request = Request::for_local_identity("m.host.domain", &own.subject_public_key_info(), server).unwrap();
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
}
