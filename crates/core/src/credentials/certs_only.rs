//! Certificates without a signature around them: the SignedData in which servers hand out
//! chains (RFC 5652, section 5.1; RFC 8951, section 3).
//!
//! A structure that is signed is refused and not taken apart: who signed it, and which of
//! its certificates are then believed, is what such parsers get wrong.

use super::certificate::Certificate;
use super::der::{Reader, tag};

/// Content of the object identifiers of SignedData and of the content that it has not.
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 7, 2];
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 7, 1];

/// A structure that is no list of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertsOnlyError {
    /// No DER.
    #[error("it is not PKCS#7 in DER")]
    Der,
    /// BER with lengths that are not told.
    #[error("it is PKCS#7 in BER with indefinite lengths, where DER is asked for")]
    Ber,
    /// Another CMS structure.
    #[error("it is PKCS#7, but no SignedData")]
    OtherContent,
    /// Something is in it beside certificates.
    #[error("it carries content, where only certificates are expected")]
    Content,
    /// It is signed.
    #[error("it is signed, where only certificates are expected")]
    Signed,
    /// Nothing is in it.
    #[error("there is no certificate in it")]
    Empty,
    /// A member that is no certificate.
    #[error("its member {0} is no X.509 certificate that can be read")]
    Member(usize),
    /// More than are taken.
    #[error("it has more than {0} certificates")]
    Many(usize),
}

/// Reads a certs-only SignedData that fills `input`, of at most `limit` certificates, in
/// their order. No signature is looked at.
///
/// # Errors
/// If it is anything else, or a member cannot be read.
pub fn read_certs_only(input: &[u8], limit: usize) -> Result<Vec<Certificate>, CertsOnlyError> {
    if input.get(1) == Some(&0x80) {
        return Err(CertsOnlyError::Ber);
    }
    let certificates = members(input)?.ok_or(CertsOnlyError::Empty)?;
    let mut members = Reader::new(certificates);
    let mut read = Vec::new();
    while !members.is_empty() {
        if read.len() == limit {
            return Err(CertsOnlyError::Many(limit));
        }
        let member = members.any().ok_or(CertsOnlyError::Der)?;
        let certificate = Certificate::from_der(member.whole);
        read.push(certificate.ok_or(CertsOnlyError::Member(read.len() + 1))?);
    }
    if read.is_empty() { Err(CertsOnlyError::Empty) } else { Ok(read) }
}

/// Returns the content of the set of certificates, if there is one.
fn members(input: &[u8]) -> Result<Option<&[u8]>, CertsOnlyError> {
    let der = |found: Option<()>| found.ok_or(CertsOnlyError::Der);
    let mut outer = Reader::new(input);
    let mut info = outer.inside(tag::SEQUENCE).ok_or(CertsOnlyError::Der)?;
    der(outer.end())?;
    if info.oid().ok_or(CertsOnlyError::Der)? != SIGNED_DATA {
        return Err(CertsOnlyError::OtherContent);
    }
    let mut wrapped = info.inside(tag::explicit(0)).ok_or(CertsOnlyError::Der)?;
    der(info.end())?;
    let mut signed = wrapped.inside(tag::SEQUENCE).ok_or(CertsOnlyError::Der)?;
    der(wrapped.end())?;
    signed.integer().ok_or(CertsOnlyError::Der)?;
    signed.expect(tag::SET).ok_or(CertsOnlyError::Der)?;
    let mut content = signed.inside(tag::SEQUENCE).ok_or(CertsOnlyError::Der)?;
    let kind = content.oid().ok_or(CertsOnlyError::Der)?;
    if kind != DATA || !content.is_empty() {
        return Err(CertsOnlyError::Content);
    }
    let certificates = signed.optional(tag::explicit(0)).ok_or(CertsOnlyError::Der)?;
    signed.optional(tag::explicit(1)).ok_or(CertsOnlyError::Der)?;
    let signers = signed.expect(tag::SET).ok_or(CertsOnlyError::Der)?;
    der(signed.end())?;
    if !signers.content.is_empty() {
        return Err(CertsOnlyError::Signed);
    }
    Ok(certificates.map(|found| found.content))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let mut out = vec![tag];
        if length < 0x80 {
            out.push(u8::try_from(length).unwrap());
        } else {
            out.push(0x82);
            out.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        out.extend_from_slice(content);
        out
    }

    /// A SignedData with these members, content and signers.
    fn signed_data(members: &[u8], content: &[u8], signers: &[u8]) -> Vec<u8> {
        let content = element(0x30, &[element(6, DATA), content.to_vec()].concat());
        let inner = [
            vec![2, 1, 1],
            element(0x31, &[]),
            content,
            element(0xa0, members),
            element(0x31, signers),
        ];
        let inner = element(0xa0, &element(0x30, &inner.concat()));
        element(0x30, &[element(6, SIGNED_DATA), inner].concat())
    }

    #[test]
    fn what_is_no_bare_list_of_certificates_is_refused_with_its_reason() {
        let member = element(0x30, &[1, 1, 0xff]);
        for (input, reason) in [
            (signed_data(&[], &[], &[]), CertsOnlyError::Empty),
            (signed_data(&member, &[], &[]), CertsOnlyError::Member(1)),
            (signed_data(&member, &element(0xa0, &[4, 1, 0]), &[]), CertsOnlyError::Content),
            (signed_data(&member, &[], &element(0x30, &[])), CertsOnlyError::Signed),
            ([signed_data(&member, &[], &[]), vec![0]].concat(), CertsOnlyError::Der),
            (vec![0x30, 0x80, 6, 0], CertsOnlyError::Ber),
            (element(0x30, &element(6, DATA)), CertsOnlyError::OtherContent),
            (b"<html>".to_vec(), CertsOnlyError::Der),
            (Vec::new(), CertsOnlyError::Der),
        ] {
            assert_eq!(read_certs_only(&input, 10).unwrap_err(), reason, "{input:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_certs_only(&input, 10);
        }

        #[test]
        fn a_list_that_was_cut_or_changed_is_judged(
            at in 0usize..60, byte in any::<u8>(), cut in 0usize..60,
        ) {
            let mut input = signed_data(&element(0x30, &[1, 1, 0xff]), &[], &[]);
            if let Some(place) = input.get_mut(at) {
                *place = byte;
            }
            input.truncate(input.len().saturating_sub(cut));
            prop_assert!(read_certs_only(&input, 10).is_err());
        }
    }
}
