//! Checks what a server issued: it is of our key, it is valid now, and it chains to the
//! roots that are believed (RFC 5280, section 6).
//!
//! A path is looked for here, for end entities and for CAs alike. That of an end entity
//! is then judged by webpki as well, which also looks at name constraints; webpki takes
//! no CA for a leaf.

use std::time::Duration;

use der::asn1::{Any, BitString};
use der::oid::{AssociatedOid as _, ObjectIdentifier};
use der::{Decode as _, Encode as _};
use edgekeep_core::credentials::Certificate;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_cert::Certificate as Parsed;
use x509_cert::ext::pkix::{
    BasicConstraints, CertificatePolicies, ExtendedKeyUsage, KeyUsage, NameConstraints,
    PolicyConstraints, SubjectAltName,
};

use crate::error::AnswerError;

/// Longest path, leaf and root included.
const DEPTH: usize = 8;
/// Most signatures that are looked at for one leaf.
const SIGNATURES: usize = 100;
/// A server's clock may be ahead of this device's by so much.
const SLACK: Duration = Duration::from_secs(300);

/// Extensions that may be critical in a certificate of a path to a CA.
const KNOWN: [ObjectIdentifier; 7] = [
    BasicConstraints::OID,
    KeyUsage::OID,
    ExtendedKeyUsage::OID,
    SubjectAltName::OID,
    NameConstraints::OID,
    CertificatePolicies::OID,
    PolicyConstraints::OID,
];

/// The certificates that a path may be made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pool<'a> {
    /// Certificates that the server sent.
    pub(crate) sent: &'a [Certificate],
    /// Roots that are believed.
    pub(crate) roots: &'a [Certificate],
    /// The name of these roots, for people.
    pub(crate) named: &'static str,
}

/// Returns the certificate of `key` out of `answer` and those above it, up to a root.
///
/// `key` is a SubjectPublicKeyInfo, DER.
///
/// # Errors
/// The first reason for not taking it.
pub(crate) fn checked(
    key: &[u8],
    answer: &[Certificate],
    pool: Pool<'_>,
    now: OffsetDateTime,
) -> Result<Vec<Certificate>, AnswerError> {
    let mut own = answer.iter().filter(|certificate| certificate.public_key() == key);
    let leaf = own.next().ok_or(AnswerError::OtherKey)?;
    if own.any(|other| other != leaf) {
        return Err(AnswerError::Ambiguous);
    }
    let failed = |why: String| AnswerError::Chain { roots: pool.named, why };
    let read = Read::new(leaf).map_err(|why| failed(format!("its certificate {why}")))?;
    let written = |moment: OffsetDateTime| moment.format(&Rfc3339).unwrap_or_default();
    if now >= read.not_after {
        return Err(AnswerError::Expired(written(read.not_after)));
    }
    if now + SLACK < read.not_before {
        return Err(AnswerError::NotYetValid(written(read.not_before)));
    }
    let at = now.max(read.not_before);
    let sent: Vec<_> = answer.iter().chain(pool.sent).filter(|it| *it != leaf).collect();
    let mut search = Search { sent, roots: pool.roots, at, left: SIGNATURES, why: None };
    let mut path = vec![leaf.clone()];
    if !search.reaches_a_root(&read, &mut path, 0) {
        let none = "no certificate that was sent leads to one of them".to_owned();
        return Err(failed(search.why.unwrap_or(none)));
    }
    if !leaf.is_ca() {
        by_webpki(&path, at).map_err(|error| failed(error.to_string()))?;
    }
    Ok(path)
}

/// A certificate with what matters for a path.
struct Read<'a> {
    certificate: &'a Certificate,
    inner: Parsed,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl<'a> Read<'a> {
    fn new(certificate: &'a Certificate) -> Result<Self, &'static str> {
        let inner = Parsed::from_der(certificate.der()).map_err(|_| "cannot be read")?;
        let moment = |time: x509_cert::time::Time| {
            i64::try_from(time.to_unix_duration().as_secs())
                .ok()
                .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
                .ok_or("has a validity that cannot be read")
        };
        let validity = inner.tbs_certificate().validity();
        let (not_before, not_after) = (moment(validity.not_before)?, moment(validity.not_after)?);
        Ok(Self { certificate, not_before, not_after, inner })
    }

    fn extension<T: for<'d> der::Decode<'d> + der::oid::AssociatedOid>(
        &self,
    ) -> Result<Option<T>, &'static str> {
        let extensions = self.inner.tbs_certificate().extensions();
        let found = extensions.and_then(|all| all.iter().find(|it| it.extn_id == T::OID));
        found
            .map(|it| T::from_der(it.extn_value.as_bytes()))
            .transpose()
            .map_err(|_| "has an extension that cannot be read")
    }

    /// Checks that a certificate may issue others at `at`, with `below` CAs between it
    /// and the leaf; a leaf that is a CA counts.
    fn may_issue(&self, below: usize, at: OffsetDateTime) -> Result<(), &'static str> {
        let extensions = self.inner.tbs_certificate().extensions();
        let unknown = |it: &&x509_cert::ext::Extension| it.critical && !KNOWN.contains(&it.extn_id);
        if extensions.and_then(|all| all.iter().find(unknown)).is_some() {
            return Err("has a critical extension that is not known here");
        }
        let constraints = self.extension::<BasicConstraints>()?;
        let Some(constraints) = constraints.filter(|it| it.ca) else { return Err("is not a CA") };
        if constraints.path_len_constraint.is_some_and(|limit| usize::from(limit) < below) {
            return Err("may not have so many CAs below it");
        }
        if self.extension::<KeyUsage>()?.is_some_and(|usage| !usage.key_cert_sign()) {
            return Err("may not sign certificates by its key usage");
        }
        if at < self.not_before {
            return Err("is not valid yet");
        }
        if at >= self.not_after {
            return Err("has expired");
        }
        Ok(())
    }

    /// Tells whether `issuer`'s key signed this certificate.
    fn is_signed_by(&self, issuer: &Self) -> bool {
        let verify = || {
            // In its own bytes: written anew it might differ.
            let parts = Vec::<Any>::from_der(self.certificate.der()).ok()?;
            let tbs = parts.first()?.to_der().ok()?;
            let info = issuer.inner.tbs_certificate().subject_public_key_info();
            let key = info.subject_public_key.as_bytes()?;
            let signature = BitString::as_bytes(self.inner.signature())?;
            let of_key = content(&info.algorithm.to_der().ok()?)?.to_vec();
            let of_signature = content(&self.inner.signature_algorithm().to_der().ok()?)?.to_vec();
            algorithms().into_iter().find_map(|algorithm| {
                let fits = *algorithm.public_key_alg_id() == *of_key
                    && *algorithm.signature_alg_id() == *of_signature;
                let verified = || algorithm.verify_signature(key, &tbs, signature).is_ok();
                (fits && verified()).then_some(())
            })
        };
        verify().is_some()
    }
}

/// Returns the content of a short DER element.
fn content(der: &[u8]) -> Option<&[u8]> {
    match der {
        [_, length, rest @ ..] if usize::from(*length) == rest.len() => Some(rest),
        _ => None,
    }
}

fn algorithms() -> Vec<&'static dyn SignatureVerificationAlgorithm> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.signature_verification_algorithms.all.to_vec()
}

struct Search<'a> {
    sent: Vec<&'a Certificate>,
    roots: &'a [Certificate],
    at: OffsetDateTime,
    /// Signatures that may still be looked at.
    left: usize,
    /// The first thing that stood in the way.
    why: Option<String>,
}

impl Search<'_> {
    /// Completes `path`, whose last certificate is `last`, up to a root.
    fn reaches_a_root(&mut self, last: &Read<'_>, path: &mut Vec<Certificate>, cas: usize) -> bool {
        let below = cas + usize::from(path.len() == 1 && last.certificate.is_ca());
        let (roots, sent) = (self.roots, self.sent.clone());
        let known = roots.iter().map(|root| (root, true));
        for (candidate, is_root) in known.chain(sent.into_iter().map(|it| (it, false))) {
            if !last.certificate.says_issued_by(candidate) || path.contains(candidate) {
                continue;
            }
            if self.left == 0 || path.len() + usize::from(!is_root) >= DEPTH {
                self.note("the path to one of them is too long");
                return false;
            }
            self.left -= 1;
            let Ok(issuer) = Read::new(candidate) else { continue };
            // A root is believed as it is: an old one has no extensions.
            let may = if is_root { Ok(()) } else { issuer.may_issue(below, self.at) };
            if let Err(why) = may {
                self.note(&format!("a certificate above it {why}"));
                continue;
            }
            if !last.is_signed_by(&issuer) {
                self.note("it is not signed by the one that it names as its issuer");
                continue;
            }
            path.push(candidate.clone());
            if is_root || self.reaches_a_root(&issuer, path, below + 1) {
                return true;
            }
            path.pop();
        }
        false
    }

    fn note(&mut self, why: &str) {
        self.why.get_or_insert_with(|| why.to_owned());
    }
}

/// Takes any purpose: which one is needed depends on what the certificate is for.
struct AnyPurpose;

impl webpki::ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _: webpki::KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// Judges a path from an end entity to a root.
fn by_webpki(path: &[Certificate], at: OffsetDateTime) -> Result<(), webpki::Error> {
    let ders: Vec<_> = path.iter().map(|it| CertificateDer::from(it.der())).collect();
    let [leaf, between @ .., root] = ders.as_slice() else {
        return Err(webpki::Error::UnknownIssuer);
    };
    let seconds = u64::try_from(at.unix_timestamp()).unwrap_or_default();
    webpki::EndEntityCert::try_from(leaf)?
        .verify_for_usage(
            &algorithms(),
            &[webpki::anchor_from_trusted_cert(root)?],
            between,
            UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
            AnyPurpose,
            None,
            None,
        )
        .map(drop)
}

#[cfg(test)]
mod tests;
