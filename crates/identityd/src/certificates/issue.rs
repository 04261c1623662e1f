//! The certificate: a function of the request, the issuer, the rules for this
//! certificate, the time and a random serial number. Signing happens elsewhere, with a
//! key that this process never has.
//!
//! Each of its parts is written from values that were parsed, none is copied from the
//! request.

use aws_lc_rs::digest;
use der::asn1::{Any, BitString, Ia5String, OctetString};
use der::oid::{AssociatedOid, ObjectIdentifier};
use der::{Encode, Sequence};
use edgekeep_core::issuance::{
    AlternativeName, Constraints, Granted, KeyUsage, OutsideSubtrees, Purpose, Rights, Term, grant,
    validity,
};
use edgekeep_core::settings::Issuance;
use time::OffsetDateTime;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage as KeyUsageExtension,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use super::IssueError;
use super::issuer::Issuer;
use super::public_key::{KeyKind, PublicKey};
use super::request::{Request, refused};
use super::subject;

/// DER of a `DigestInfo` for SHA-256 up to the digest itself (RFC 8017, section 9.2, note
/// 1).
const DIGEST_INFO_SHA256: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];

/// A certificate before its signature, and the key that the signature is checked with.
#[derive(Debug)]
pub(super) struct Unsigned {
    tbs: Vec<u8>,
    algorithm: AlgorithmIdentifierOwned,
    signer: PublicKey,
    pub(super) not_after: OffsetDateTime,
}

/// The circumstances of one issuance.
pub(super) struct Circumstances<'a> {
    /// Configuration for this certificate id; `None` if there is none.
    pub(super) issuance: Option<&'a Issuance>,
    /// Most rights that a certificate of this id may have.
    pub(super) rights: Rights,
    /// Latest end that the caller wants; `None` if the caller wants none.
    pub(super) wanted_end: Option<OffsetDateTime>,
    pub(super) now: OffsetDateTime,
    /// Earliest moment that the present can be, whatever the clock shows.
    pub(super) earliest: OffsetDateTime,
    pub(super) serial: [u8; 16],
}

/// The signed part of a certificate (RFC 5280, section 4.1).
#[derive(Sequence)]
struct Tbs {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    serial: SerialNumber,
    signature: AlgorithmIdentifierOwned,
    issuer: Any,
    validity: Validity,
    subject: Any,
    key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

/// A certificate.
#[derive(Sequence)]
struct Certificate {
    tbs: Any,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

/// Returns what is to be signed. Without `issuer` the certificate is signed by its own
/// key.
pub(super) fn prepare(
    request: &Request,
    issuer: Option<&Issuer>,
    circumstances: &Circumstances<'_>,
) -> Result<Unsigned, IssueError> {
    let Circumstances { issuance, rights, wanted_end, now, earliest, serial } = *circumstances;
    let common_name = issuance.and_then(|issuance| issuance.common_name.as_deref());
    let subject = match common_name {
        Some(name) => subject::of_common_name(name)?,
        None => request.subject.clone(),
    };
    let path_len = issuer.and_then(|issuer| issuer.path_len);
    let granted =
        grant(&request.asked, rights, path_len, !subject.is_empty()).map_err(|it| refused(&it))?;
    for subtrees in issuer.iter().flat_map(|issuer| &issuer.subtrees) {
        let outside = |it: OutsideSubtrees| IssueError::Issuer { what: it.to_string() };
        subtrees.check(&granted.names).map_err(outside)?;
    }
    let days = issuance.and_then(|issuance| issuance.expiry_days);
    // A CA that is made while the clock is far behind is still good when that is set.
    // Those below are not stretched.
    let earliest = if granted.constraints.is_some_and(|it| it.ca) { earliest } else { now };
    let term = validity(now, days, earliest, wanted_end, issuer.map(|issuer| issuer.validity));
    let signer = issuer.map_or(&request.key, |issuer| &issuer.key);
    let subject = Any::encode_from(&subject)?;
    let tbs = Tbs {
        version: 2,
        serial: positive(serial)?,
        signature: signer.signature_algorithm(),
        issuer: issuer.map_or(&subject, |issuer| &issuer.subject).clone(),
        validity: written_term(&term)?,
        key: request.key.info()?,
        extensions: extensions(
            &granted,
            common_name.is_none() && request.subject.is_empty(),
            request,
            issuer,
        )?,
        subject,
    };
    Ok(Unsigned {
        tbs: tbs.to_der()?,
        algorithm: tbs.signature,
        signer: signer.clone(),
        not_after: term.not_after,
    })
}

/// Returns a serial number that is positive, never zero, and always 16 bytes long.
fn positive(mut serial: [u8; 16]) -> der::Result<SerialNumber> {
    serial[0] = (serial[0] & 0x7f) | 0x40;
    SerialNumber::new(&serial)
}

fn written_term(term: &Term) -> der::Result<Validity> {
    let time = |moment: OffsetDateTime| {
        let seconds = u64::try_from(moment.unix_timestamp()).unwrap_or_default();
        // The form with four digits of the year is made into the shorter one, where that
        // is the rule, on writing.
        der::asn1::GeneralizedTime::from_unix_duration(std::time::Duration::from_secs(seconds))
            .map(Time::from)
    };
    Ok(Validity::new(time(term.not_before)?, time(term.not_after)?))
}

fn extensions(
    granted: &Granted,
    is_nameless: bool,
    request: &Request,
    issuer: Option<&Issuer>,
) -> der::Result<Vec<Extension>> {
    let mut extensions = Vec::new();
    if let Some(Constraints { ca, path_len }) = granted.constraints {
        let value = BasicConstraints { ca, path_len_constraint: path_len };
        extensions.push(extension(true, &value)?);
    }
    if let Some(KeyUsage(bits)) = granted.usage {
        let value = KeyUsageExtension(der::flagset::FlagSet::new_truncated(bits));
        extensions.push(extension(true, &value)?);
    }
    if let Some((purposes, critical)) = &granted.purposes {
        let oids = purposes.iter().map(|purpose: &Purpose| ObjectIdentifier::new(purpose.oid()));
        let oids = oids.collect::<Result<_, _>>()?;
        extensions.push(extension(*critical, &ExtendedKeyUsage(oids))?);
    }
    if !granted.names.is_empty() {
        let names = granted.names.iter().map(written_name).collect::<Result<_, _>>()?;
        // Readers that go by the subject must not pass over a certificate without one.
        extensions.push(extension(is_nameless, &SubjectAltName(names))?);
    }
    let key_id = request.key_id.clone().unwrap_or_else(|| request.key.id());
    extensions.push(extension(false, &SubjectKeyIdentifier(OctetString::new(key_id)?))?);
    if let Some(key_id) = issuer.and_then(|issuer| issuer.key_id.clone()) {
        let value = AuthorityKeyIdentifier {
            key_identifier: Some(key_id),
            ..AuthorityKeyIdentifier::default()
        };
        extensions.push(extension(false, &value)?);
    }
    Ok(extensions)
}

fn extension<T: AssociatedOid + Encode>(critical: bool, value: &T) -> der::Result<Extension> {
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

fn written_name(name: &AlternativeName) -> der::Result<GeneralName> {
    Ok(match name {
        AlternativeName::Host(name) => GeneralName::DnsName(Ia5String::new(name.as_str())?),
        AlternativeName::Address(address) => GeneralName::from(*address),
        AlternativeName::Uri(uri) => {
            GeneralName::UniformResourceIdentifier(Ia5String::new(uri.as_str())?)
        }
    })
}

impl Unsigned {
    pub(super) fn key_kind(&self) -> KeyKind {
        self.signer.kind
    }

    /// Returns the SHA-256 of what is to be signed.
    pub(super) fn digest(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, &self.tbs).as_ref().to_vec()
    }

    /// Returns what the private-key operation of an RSA key with PKCS#1 padding is to be
    /// applied to.
    pub(super) fn digest_info(&self) -> Vec<u8> {
        [&DIGEST_INFO_SHA256[..], &self.digest()].concat()
    }

    /// Returns the certificate, if `signature` is the signer's.
    pub(super) fn finish(&self, signature: &[u8]) -> Result<Vec<u8>, IssueError> {
        if !self.signer.verifies(self.algorithm.oid, &self.tbs, signature) {
            return Err(IssueError::WrongKey);
        }
        let tbs = der::Decode::from_der(&self.tbs)?;
        let algorithm = self.algorithm.clone();
        let certificate =
            Certificate { tbs, algorithm, signature: BitString::from_bytes(signature)? };
        Ok(certificate.to_der()?)
    }
}

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod tests;
