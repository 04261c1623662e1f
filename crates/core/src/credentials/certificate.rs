//! X.509 certificates as values (RFC 5280, 4.1).

use std::fmt;

use super::der::{Element, Reader, is_text, is_well_formed, tag};
use super::pem;

/// Object identifiers of the extensions that are looked at, as DER content.
const SUBJECT_KEY_ID: &[u8] = &[0x55, 29, 14];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 29, 19];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 29, 35];

/// A certificate: DER of which every part that readers insist on has been looked at. Its
/// signature has not, and neither has what its extensions say beyond what the methods
/// return.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Certificate {
    der: Vec<u8>,
    issuer: Vec<u8>,
    subject: Vec<u8>,
    public_key: Vec<u8>,
    is_ca: bool,
    key_id: Option<Vec<u8>>,
    issuer_key_id: Option<Vec<u8>>,
}

impl Certificate {
    /// Reads a certificate that fills `der`.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Option<Self> {
        Self::first_of(der).filter(|(_, rest)| rest.is_empty()).map(|(certificate, _)| certificate)
    }

    /// Reads the certificate that `input` begins with, and returns what follows it.
    pub(super) fn first_of(input: &[u8]) -> Option<(Self, &[u8])> {
        let mut outer = Reader::new(input);
        let whole = outer.expect(tag::SEQUENCE)?;
        let mut certificate = Reader::new(whole.content);
        let tbs = certificate.expect(tag::SEQUENCE)?;
        algorithm(&mut certificate)?;
        certificate.bit_string()?;
        certificate.end()?;
        let fields = Fields::read(tbs.content)?;
        let certificate = Self {
            der: whole.whole.to_vec(),
            issuer: fields.issuer.whole.to_vec(),
            subject: fields.subject.whole.to_vec(),
            public_key: fields.public_key.whole.to_vec(),
            is_ca: fields.is_ca,
            key_id: fields.key_id.map(<[u8]>::to_vec),
            issuer_key_id: fields.issuer_key_id.map(<[u8]>::to_vec),
        };
        Some((certificate, outer.rest()))
    }

    /// The whole certificate.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The issuer's Name, DER.
    #[must_use]
    pub fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// The subject's Name, DER.
    #[must_use]
    pub fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// The SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Returns true if the basic constraints make it a CA's.
    #[must_use]
    pub const fn is_ca(&self) -> bool {
        self.is_ca
    }

    /// Returns true if it names itself as its issuer.
    #[must_use]
    pub fn is_self_issued(&self) -> bool {
        self.issuer() == self.subject()
    }

    /// Returns true if `self` names `issuer` as its issuer. The signature is not looked
    /// at.
    #[must_use]
    pub fn says_issued_by(&self, issuer: &Self) -> bool {
        self.issuer() == issuer.subject()
            && match (&self.issuer_key_id, &issuer.key_id) {
                (Some(asked), Some(is)) => asked == is,
                _ => true,
            }
    }

    /// The certificate as one PEM block.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} bytes)", self.der.len())
    }
}

struct Fields<'a> {
    issuer: Element<'a>,
    subject: Element<'a>,
    public_key: Element<'a>,
    is_ca: bool,
    key_id: Option<&'a [u8]>,
    issuer_key_id: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn read(tbs: &'a [u8]) -> Option<Self> {
        let mut tbs = Reader::new(tbs);
        if let Some(version) = tbs.optional(tag::explicit(0))? {
            let mut version = Reader::new(version.content);
            matches!(version.integer()?, [0..=2]).then_some(())?;
            version.end()?;
        }
        tbs.integer()?;
        algorithm(&mut tbs)?;
        let issuer = name(&mut tbs)?;
        let mut validity = tbs.inside(tag::SEQUENCE)?;
        for _ in 0..2 {
            let time = validity.any()?;
            matches!(time.tag, tag::UTC_TIME | tag::GENERALIZED_TIME).then_some(())?;
            time.content.is_ascii().then_some(())?;
        }
        validity.end()?;
        let subject = name(&mut tbs)?;
        let public_key = tbs.expect(tag::SEQUENCE)?;
        let mut key = Reader::new(public_key.content);
        algorithm(&mut key)?;
        key.bit_string()?;
        key.end()?;
        for unique_id in [1, 2] {
            if let Some(id) = tbs.optional(tag::implicit(unique_id))? {
                (!id.content.is_empty() && id.content[0] < 8).then_some(())?;
            }
        }
        let mut fields =
            Self { issuer, subject, public_key, is_ca: false, key_id: None, issuer_key_id: None };
        if let Some(extensions) = tbs.optional(tag::explicit(3))? {
            let mut outer = Reader::new(extensions.content);
            let mut list = outer.inside(tag::SEQUENCE)?;
            outer.end()?;
            while !list.is_empty() {
                fields.extension(list.inside(tag::SEQUENCE)?)?;
            }
        }
        tbs.end()?;
        Some(fields)
    }

    fn extension(&mut self, mut extension: Reader<'a>) -> Option<()> {
        let oid = extension.oid()?;
        if let Some(critical) = extension.optional(tag::BOOLEAN)? {
            matches!(critical.content, [0 | 0xff]).then_some(())?;
        }
        let value = extension.expect(tag::OCTET_STRING)?.content;
        extension.end()?;
        let mut value = Reader::new(value);
        // What cannot be read here says nothing: those who use the certificate judge it.
        match oid {
            BASIC_CONSTRAINTS => {
                let is_ca =
                    value.inside(tag::SEQUENCE).and_then(|mut inner| inner.expect(tag::BOOLEAN));
                self.is_ca = is_ca.is_some_and(|flag| flag.content == [0xff]);
            }
            SUBJECT_KEY_ID => self.key_id = value.expect(tag::OCTET_STRING).map(|id| id.content),
            AUTHORITY_KEY_ID => {
                let id = value
                    .inside(tag::SEQUENCE)
                    .and_then(|mut inner| inner.expect(tag::implicit(0)));
                self.issuer_key_id = id.map(|id| id.content);
            }
            _ => {}
        }
        Some(())
    }
}

/// An AlgorithmIdentifier.
fn algorithm(reader: &mut Reader<'_>) -> Option<()> {
    let mut inner = reader.inside(tag::SEQUENCE)?;
    inner.oid()?;
    if !inner.is_empty() {
        is_well_formed(inner.any()?).then_some(())?;
    }
    inner.end()
}

/// A Name.
fn name<'a>(reader: &mut Reader<'a>) -> Option<Element<'a>> {
    let name = reader.expect(tag::SEQUENCE)?;
    let mut sets = Reader::new(name.content);
    while !sets.is_empty() {
        let mut set = sets.inside(tag::SET)?;
        // An empty set names nothing; readers refuse it.
        set.peek()?;
        while !set.is_empty() {
            let mut pair = set.inside(tag::SEQUENCE)?;
            pair.oid()?;
            is_text(pair.any()?).then_some(())?;
            pair.end()?;
        }
    }
    Some(name)
}
