//! The certificate that signs.

use der::asn1::{Any, AnyRef, BitStringRef, OctetString};
use der::oid::AssociatedOid as _;
use der::{Decode as _, Encode as _, Sequence};
use edgekeep_core::issuance::{Base, IssuerValidity, Subtrees};
use time::OffsetDateTime;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::constraints::name::GeneralSubtrees;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, NameConstraints, SubjectKeyIdentifier};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::Validity;

use super::IssueError;
use super::public_key::PublicKey;

/// A certificate that signs, as far as that matters for those below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Issuer {
    /// Its subject, in its own bytes: readers compare them with those in the certificates
    /// below.
    pub(super) subject: Any,
    pub(super) key: PublicKey,
    pub(super) key_id: Option<OctetString>,
    pub(super) validity: IssuerValidity,
    pub(super) path_len: Option<u8>,
    /// Name constraints of the certificate and of those above it.
    pub(super) subtrees: Vec<Subtrees>,
}

/// A certificate (RFC 5280, section 4.1), of which only what matters here is looked into.
#[derive(Sequence)]
pub(super) struct Certificate<'a> {
    pub(super) tbs: Tbs,
    algorithm: Any,
    signature: BitStringRef<'a>,
}

#[derive(Sequence)]
pub(super) struct Tbs {
    #[asn1(context_specific = "0", default = "first_version")]
    version: u8,
    serial: Any,
    signature: Any,
    issuer: Any,
    pub(super) validity: Validity,
    pub(super) subject: Any,
    pub(super) key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    issuer_unique_id: Option<der::asn1::BitString>,
    #[asn1(context_specific = "2", tag_mode = "IMPLICIT", optional = "true")]
    subject_unique_id: Option<der::asn1::BitString>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) extensions: Option<Vec<Extension>>,
}

/// Returns the name constraints of a certificate. What cannot be read of them is a
/// constraint that is not understood.
pub(super) fn subtrees(der: &[u8]) -> Option<Subtrees> {
    let extensions = Certificate::from_der(der).ok()?.tbs.extensions?;
    let extension = extensions.iter().find(|it| it.extn_id == NameConstraints::OID)?;
    let Ok(read) = NameConstraints::from_der(extension.extn_value.as_bytes()) else {
        return Some(Subtrees { permitted: vec![Base::Other], excluded: Vec::new() });
    };
    let bases = |subtrees: Option<GeneralSubtrees>| {
        subtrees.unwrap_or_default().iter().map(|subtree| base(&subtree.base)).collect()
    };
    let (permitted, excluded) = (bases(read.permitted_subtrees), bases(read.excluded_subtrees));
    Some(Subtrees { permitted, excluded })
}

fn base(name: &GeneralName) -> Base {
    match name {
        GeneralName::DnsName(name) => Base::Host(name.as_str().to_owned()),
        GeneralName::IpAddress(bytes) => Base::of_address(bytes.as_bytes()),
        GeneralName::UniformResourceIdentifier(host) => Base::UriHost(host.as_str().to_owned()),
        _ => Base::Other,
    }
}

/// A certificate whose signed part is in its bytes.
#[derive(Sequence)]
struct Signed<'a> {
    tbs: AnyRef<'a>,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitStringRef<'a>,
}

/// Returns whether the key of one certificate has signed another; both DER.
pub(super) fn has_signed(issuer: &[u8], certificate: &[u8]) -> bool {
    let check = || {
        let key = PublicKey::read(&Certificate::from_der(issuer).ok()?.tbs.key).ok()?;
        let signed = Signed::from_der(certificate).ok()?;
        let signature = signed.signature.as_bytes()?;
        Some(key.verifies(signed.algorithm.oid, &signed.tbs.to_der().ok()?, signature))
    };
    check().unwrap_or(false)
}

fn first_version() -> u8 {
    0
}

impl Issuer {
    /// Reads a certificate that should sign at `now`.
    pub(super) fn read(der: &[u8], now: OffsetDateTime) -> Result<Self, IssueError> {
        let bad = |what: &str| IssueError::Issuer { what: what.to_owned() };
        let certificate =
            Certificate::from_der(der).map_err(|_| bad("its certificate cannot be read"))?;
        let tbs = certificate.tbs;
        let extensions = tbs.extensions.unwrap_or_default();
        let find = |oid| extensions.iter().find(|extension| extension.extn_id == oid);
        let constraints = find(BasicConstraints::OID)
            .map(|it| BasicConstraints::from_der(it.extn_value.as_bytes()))
            .transpose()
            .map_err(|_| bad("its basic constraints cannot be read"))?;
        let Some(constraints) = constraints.filter(|it| it.ca) else {
            return Err(bad("it is not a CA"));
        };
        let usage = find(KeyUsage::OID)
            .map(|it| KeyUsage::from_der(it.extn_value.as_bytes()))
            .transpose()
            .map_err(|_| bad("its key usage cannot be read"))?;
        if usage.is_some_and(|usage| !usage.key_cert_sign()) {
            return Err(bad("its key usage does not allow signing certificates"));
        }
        let key_id = find(SubjectKeyIdentifier::OID)
            .map(|it| SubjectKeyIdentifier::from_der(it.extn_value.as_bytes()))
            .transpose()
            .map_err(|_| bad("its key identifier cannot be read"))?;
        let moment = |time: x509_cert::time::Time| {
            i64::try_from(time.to_unix_duration().as_secs())
                .ok()
                .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
                .ok_or_else(|| bad("its validity cannot be read"))
        };
        let (not_before, not_after) =
            (moment(tbs.validity.not_before)?, moment(tbs.validity.not_after)?);
        if now < not_before {
            return Err(bad("it is not valid yet; check the device's clock"));
        }
        if now >= not_after {
            return Err(bad("it has expired; renew it"));
        }
        Ok(Self {
            subject: tbs.subject,
            key: PublicKey::read(&tbs.key).map_err(bad)?,
            key_id: key_id.map(|id| id.0),
            validity: IssuerValidity { not_before, not_after },
            path_len: constraints.path_len_constraint,
            subtrees: subtrees(der).into_iter().collect(),
        })
    }
}
