//! Kinds of DER values, told by their structure. Labels and file names are not asked:
//! both are often wrong.

use super::certificate::Certificate;
use super::der::{Reader, header, tag};

/// 1.2.840.113549.1.7: PKCS#7 content types.
const PKCS7: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7];
/// 1.2.840.113549.1: PKCS, under which the ways of encrypting keys are.
const PKCS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x2b, 0x81, 4, 0, 0x22];

/// The form that a private key is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyForm {
    /// PKCS#8 (RFC 5958).
    Pkcs8,
    /// An EC key by itself (RFC 5915).
    Sec1,
    /// An RSA key by itself (RFC 8017, A.1.2).
    Pkcs1,
}

/// The kind of a DER value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Structure {
    Certificate(Certificate),
    /// A private key that can be used, as far as its head tells.
    Key(KeyForm),
    /// A private key for another algorithm or curve.
    OtherKey,
    EncryptedKey,
    PublicKey,
    Request,
    RevocationList,
    Pkcs7,
    Pkcs12,
}

/// The DER value that `input` begins with, if it is one of those that are known, and what
/// follows it.
pub(super) fn first_of(input: &[u8]) -> Option<(Structure, &[u8])> {
    if let Some((certificate, rest)) = Certificate::first_of(input) {
        return Some((Structure::Certificate(certificate), rest));
    }
    if let Some(found) = indefinite(input) {
        return Some((found, &[]));
    }
    let mut outer = Reader::new(input);
    let content = outer.expect(tag::SEQUENCE)?.content;
    Some((of_sequence(content)?, outer.rest()))
}

/// Returns true if `input` begins like one of the values that are known, whatever its
/// length says.
pub(super) fn begins_like_one(input: &[u8]) -> bool {
    let Some((tag::SEQUENCE, head, _)) = header(input) else { return false };
    let Some(inner) = input.get(head..) else { return false };
    let version = |version: u8| {
        inner.starts_with(&[tag::INTEGER, 1, version]).then(|| inner.get(3).copied()).flatten()
    };
    // A length in one byte is a letter like any other, and then this would be too short a
    // mark.
    let nested = head > 2
        && header(inner).is_some_and(|(first, head, _)| {
            first == tag::SEQUENCE
                && inner
                    .get(head)
                    .is_some_and(|next| matches!(*next, 0xa0 | tag::INTEGER | tag::OID))
        });
    matches!(version(0), Some(tag::SEQUENCE | tag::INTEGER))
        || version(1) == Some(tag::OCTET_STRING)
        || version(3) == Some(tag::SEQUENCE)
        || nested
}

/// PKCS#7 and PKCS#12 of lengths that are told by their end, as some tools write them.
fn indefinite(input: &[u8]) -> Option<Structure> {
    let inner = input.strip_prefix(&[tag::SEQUENCE, 0x80])?;
    let is_pkcs7 =
        |input: &[u8]| input.strip_prefix(&[tag::OID, 9]).is_some_and(|oid| oid.starts_with(PKCS7));
    if is_pkcs7(inner) {
        return Some(Structure::Pkcs7);
    }
    let content = inner.strip_prefix(&[tag::INTEGER, 1, 3, tag::SEQUENCE])?;
    (content.starts_with(&[0x80]) && is_pkcs7(&content[1..]) || header(&inner[3..]).is_some())
        .then_some(Structure::Pkcs12)
}

fn of_sequence(content: &[u8]) -> Option<Structure> {
    let mut reader = Reader::new(content);
    match reader.peek()? {
        tag::INTEGER => after_version(reader.integer()?, reader),
        tag::OID => reader.oid()?.starts_with(PKCS7).then_some(Structure::Pkcs7),
        tag::SEQUENCE => after_sequence(reader),
        _ => None,
    }
}

/// PKCS#8, SEC1, PKCS#1, DSA, PKCS#12, or an RSA public key by itself.
fn after_version(version: &[u8], mut reader: Reader<'_>) -> Option<Structure> {
    match (version, reader.peek()?) {
        ([0 | 1], tag::SEQUENCE) => {
            let algorithm = reader.inside(tag::SEQUENCE)?;
            reader.expect(tag::OCTET_STRING)?;
            Some(if is_usable(algorithm)? {
                Structure::Key(KeyForm::Pkcs8)
            } else {
                Structure::OtherKey
            })
        }
        ([1], tag::OCTET_STRING) => {
            reader.expect(tag::OCTET_STRING)?;
            let Some(parameters) = reader.optional(tag::explicit(0))? else {
                return Some(Structure::Key(KeyForm::Sec1));
            };
            let named = Reader::new(parameters.content).oid();
            Some(if matches!(named, Some(P256 | P384)) {
                Structure::Key(KeyForm::Sec1)
            } else {
                Structure::OtherKey
            })
        }
        ([3], tag::SEQUENCE) => {
            let mut content = reader.inside(tag::SEQUENCE)?;
            content.oid()?.starts_with(PKCS7).then_some(Structure::Pkcs12)
        }
        (_, tag::INTEGER) => {
            let mut count = 0;
            while reader.peek() == Some(tag::INTEGER) {
                reader.integer()?;
                count += 1;
            }
            match (version, count) {
                ([0 | 1], 8..) => Some(Structure::Key(KeyForm::Pkcs1)),
                ([0], 5) => Some(Structure::OtherKey),
                ([_, _, ..], 1) if reader.is_empty() => Some(Structure::PublicKey),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Returns true if keys of this AlgorithmIdentifier are used here.
fn is_usable(mut algorithm: Reader<'_>) -> Option<bool> {
    Some(match algorithm.oid()? {
        EC_PUBLIC_KEY => matches!(algorithm.oid(), Some(P256 | P384)),
        RSA_ENCRYPTION => true,
        _ => false,
    })
}

/// An encrypted key, a public key, a request or a revocation list.
fn after_sequence(mut reader: Reader<'_>) -> Option<Structure> {
    let mut first = reader.inside(tag::SEQUENCE)?;
    match (first.peek()?, reader.peek()?) {
        (tag::OID, tag::OCTET_STRING) => {
            let scheme = first.oid()?;
            reader.expect(tag::OCTET_STRING)?;
            (reader.is_empty() && scheme.starts_with(PKCS)).then_some(Structure::EncryptedKey)
        }
        (tag::OID, tag::BIT_STRING) => {
            reader.bit_string()?;
            reader.is_empty().then_some(Structure::PublicKey)
        }
        (tag::INTEGER | tag::SEQUENCE, tag::SEQUENCE) => {
            reader.inside(tag::SEQUENCE)?.oid()?;
            reader.bit_string()?;
            reader.end()?;
            of_signed(first)
        }
        _ => None,
    }
}

/// Tells requests from revocation lists: a request has its key after one Name, a list a
/// time.
fn of_signed(mut fields: Reader<'_>) -> Option<Structure> {
    let mut tags = [0; 4];
    for tag in &mut tags {
        *tag = fields.any().map_or(0, |field| field.tag);
    }
    match tags {
        [tag::INTEGER, tag::SEQUENCE, tag::SEQUENCE, 0xa0] => Some(Structure::Request),
        [tag::INTEGER, tag::SEQUENCE, tag::SEQUENCE, time]
        | [tag::SEQUENCE, tag::SEQUENCE, time, _]
            if matches!(time, tag::UTC_TIME | tag::GENERALIZED_TIME) =>
        {
            Some(Structure::RevocationList)
        }
        _ => None,
    }
}
