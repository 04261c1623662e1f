//! Keys as objects on a token.
//!
//! A key's id is its `CKA_LABEL`, as the existing key service has it. Replacing a key
//! makes two with one label for a moment, so each key that we make also has a mark in its
//! `CKA_ID`: 3 bytes `EK1`, 13 random bytes that tie the halves of a pair together, and a
//! number that says which of two is the later one. Whatever moment the power fails at,
//! the later one is there, and it is the one that is found. Keys that others made have no
//! mark and count as the earliest.

use aws_lc_rs::rand;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::encoding;
use super::error::{Failed, TokenError};
use crate::backend::{InputError, KeyError, KeyKind, Operation, PublicParameter, PublicValue};
use crate::material::{P256, P384};
use crate::uri::ObjectAttributes;

const MARK: &[u8; 3] = b"EK1";
const TIE_LEN: usize = 13;
/// More objects than this under one label are a mistake.
const OBJECT_LIMIT: usize = 64;

/// The `CKA_ID` of a key that we made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    tie: [u8; TIE_LEN],
    number: u32,
}

impl Mark {
    /// A new mark, later than `others`.
    pub(super) fn after<'k>(
        others: impl IntoIterator<Item = &'k KeyObject>,
    ) -> Result<Self, KeyError> {
        let mut tie = [0; TIE_LEN];
        rand::fill(&mut tie).map_err(|_| KeyError::Library { operation: Operation::CreateKey })?;
        Ok(Self { tie, number: next(others) })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        [MARK.as_slice(), &self.tie, &self.number.to_be_bytes()].concat()
    }

    fn decode(id: &[u8]) -> Option<Self> {
        let rest = id.strip_prefix(MARK)?;
        let (tie, number) = rest.split_first_chunk::<TIE_LEN>()?;
        Some(Self { tie: *tie, number: u32::from_be_bytes(number.try_into().ok()?) })
    }
}

fn next<'k>(others: impl IntoIterator<Item = &'k KeyObject>) -> u32 {
    others.into_iter().map(KeyObject::number).max().unwrap_or(0).saturating_add(1)
}

/// A private or secret key, as far as it is seen without asking for more.
#[derive(Debug, Clone)]
pub(super) struct KeyObject {
    pub(super) handle: ObjectHandle,
    pub(super) kind: KeyKind,
    pub(super) key_type: KeyType,
    pub(super) label: Vec<u8>,
    pub(super) id: Vec<u8>,
}

impl KeyObject {
    fn number(&self) -> u32 {
        Mark::decode(&self.id).map_or(0, |mark| mark.number)
    }

    /// Returns true if this product made the key: its `CKA_ID` has our mark.
    pub(super) fn is_marked(&self) -> bool {
        Mark::decode(&self.id).is_some()
    }

    /// The `CKA_ID` that puts this key after `others`, tied as before if it is one of
    /// ours.
    pub(super) fn id_after(&self, others: &[Self]) -> Option<Vec<u8>> {
        let mark = Mark::decode(&self.id)?;
        Some(Mark { number: next(others).max(mark.number), ..mark }.encode())
    }
}

/// All objects of the classes that keys are under one label, or under what else the
/// configuration says.
pub(super) struct Found {
    /// Private and secret keys, the latest last.
    pub(super) keys: Vec<KeyObject>,
    /// Public halves.
    pub(super) public: Vec<KeyObject>,
}

impl Found {
    /// The key, if there is one.
    pub(super) fn latest(&self, token: &str) -> Result<Option<&KeyObject>, TokenError> {
        let Some(latest) = self.keys.last() else { return Ok(None) };
        let count = self.keys.iter().filter(|key| key.number() == latest.number()).count();
        if count > 1 {
            let label = String::from_utf8_lossy(&latest.label).into_owned();
            return Err(TokenError::SeveralKeys { token: token.to_owned(), label, count });
        }
        Ok(Some(latest))
    }
}

/// Looks for a key. Certificates and data under the same label are passed over.
pub(super) fn find(session: &Session, wanted: &ObjectAttributes) -> Result<Found, Failed> {
    let mut template = vec![Attribute::Token(true)];
    if let Some(label) = &wanted.label {
        template.push(Attribute::Label(label.as_bytes().to_vec()));
    }
    if let Some(id) = &wanted.id {
        template.push(Attribute::Id(id.clone()));
    }
    let mut handles = Vec::new();
    for handle in session.iter_objects(&template)?.take(OBJECT_LIMIT) {
        handles.push(handle?);
    }
    let mut found = Found { keys: Vec::new(), public: Vec::new() };
    for handle in handles {
        if let Some((class, key)) = describe(session, handle)? {
            match class {
                ObjectClass::PUBLIC_KEY => found.public.push(key),
                _ => found.keys.push(key),
            }
        }
    }
    found.keys.sort_by_key(KeyObject::number);
    Ok(found)
}

/// An object, if it is a key.
fn describe(
    session: &Session,
    handle: ObjectHandle,
) -> Result<Option<(ObjectClass, KeyObject)>, Failed> {
    let mut class = None;
    for attribute in session.get_attributes(handle, &[AttributeType::Class])? {
        if let Attribute::Class(found) = attribute {
            class = Some(found);
        }
    }
    let Some(
        class @ (ObjectClass::PUBLIC_KEY | ObjectClass::PRIVATE_KEY | ObjectClass::SECRET_KEY),
    ) = class
    else {
        return Ok(None);
    };
    let (mut key_type, mut label, mut id) = (None, Vec::new(), Vec::new());
    for attribute in session.get_attributes(
        handle,
        &[AttributeType::KeyType, AttributeType::Label, AttributeType::Id],
    )? {
        match attribute {
            Attribute::KeyType(found) => key_type = Some(found),
            Attribute::Label(found) => label = found,
            Attribute::Id(found) => id = found,
            _ => {}
        }
    }
    let Some(key_type) = key_type else { return Ok(None) };
    let kind = if class == ObjectClass::SECRET_KEY { KeyKind::Symmetric } else { KeyKind::Pair };
    Ok(Some((class, KeyObject { handle, kind, key_type, label, id })))
}

/// The public objects that belong to a private key: tied to it, or with its very id.
pub(super) fn public_halves(
    session: &Session,
    key: &KeyObject,
    same_label: &[KeyObject],
) -> Result<Vec<KeyObject>, Failed> {
    let tied = |other: &KeyObject| match (Mark::decode(&key.id), Mark::decode(&other.id)) {
        (Some(own), Some(other)) => own.tie == other.tie,
        _ => key.id == other.id,
    };
    let halves: Vec<KeyObject> = same_label.iter().filter(|other| tied(other)).cloned().collect();
    if !halves.is_empty() || Mark::decode(&key.id).is_none() {
        return Ok(halves);
    }
    // A rename that was cut off between the two objects left the public one under its old
    // label, and its old number.
    let template = [Attribute::Token(true), Attribute::Class(ObjectClass::PUBLIC_KEY)];
    let mut halves = Vec::new();
    for handle in session.find_objects(&template)? {
        if let Some((_, other)) = describe(session, handle)?.filter(|(_, other)| tied(other)) {
            halves.push(other);
        }
    }
    Ok(halves)
}

/// Properties of a key, with its allowed uses, read once.
#[derive(Debug)]
pub(super) enum Details {
    /// An HMAC key.
    Hmac { allowed: bool },
    /// An AES key.
    Aes { allowed: bool },
    /// An EC pair.
    Ec { curve_oid: Vec<u8>, field_len: usize, point: Vec<u8> },
    /// An RSA pair.
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    /// A key that nothing here can use.
    Other,
}

impl Details {
    /// Reads them.
    pub(super) fn read(
        session: &Session,
        key: &KeyObject,
        found: &Found,
        token: &str,
    ) -> Result<Self, Failed> {
        let flag = |attribute_type| -> Result<bool, Failed> {
            let attributes = session.get_attributes(key.handle, &[attribute_type])?;
            // A token that does not say lets the operation decide.
            Ok(!matches!(
                attributes.first(),
                Some(Attribute::Sign(false) | Attribute::Encrypt(false))
            ))
        };
        match (key.kind, key.key_type) {
            (KeyKind::Symmetric, KeyType::GENERIC_SECRET | KeyType::SHA256_HMAC) => {
                Ok(Self::Hmac { allowed: flag(AttributeType::Sign)? })
            }
            (KeyKind::Symmetric, KeyType::AES) => {
                Ok(Self::Aes { allowed: flag(AttributeType::Encrypt)? })
            }
            (KeyKind::Pair, KeyType::EC | KeyType::RSA) => {
                // Some tokens have the public values on the private key too.
                let mut objects = public_halves(session, key, &found.public)?;
                objects.push(key.clone());
                for object in &objects {
                    if let Some(details) = Self::read_public(session, object)? {
                        return Ok(details);
                    }
                }
                let label = String::from_utf8_lossy(&key.label).into_owned();
                Err(TokenError::NoPublicHalf { token: token.to_owned(), label }.into())
            }
            _ => Ok(Self::Other),
        }
    }

    fn read_public(session: &Session, object: &KeyObject) -> Result<Option<Self>, Failed> {
        if object.key_type == KeyType::RSA {
            let wanted = [AttributeType::Modulus, AttributeType::PublicExponent];
            let (mut modulus, mut exponent) = (Vec::new(), Vec::new());
            for attribute in session.get_attributes(object.handle, &wanted)? {
                match attribute {
                    Attribute::Modulus(number) => {
                        modulus = encoding::without_leading_zeros(&number);
                    }
                    Attribute::PublicExponent(number) => {
                        exponent = encoding::without_leading_zeros(&number);
                    }
                    _ => {}
                }
            }
            let complete = !modulus.is_empty() && !exponent.is_empty();
            return Ok(complete.then_some(Self::Rsa { modulus, exponent }));
        }
        let (mut oid, mut point) = (Vec::new(), Vec::new());
        for attribute in session
            .get_attributes(object.handle, &[AttributeType::EcParams, AttributeType::EcPoint])?
        {
            match attribute {
                Attribute::EcParams(found) => oid = found,
                Attribute::EcPoint(found) => point = found,
                _ => {}
            }
        }
        let Some(curve) = [&P256, &P384].into_iter().find(|curve| curve.oid == oid) else {
            return Ok((!oid.is_empty() && !point.is_empty()).then_some(Self::Other));
        };
        let point = encoding::ec_point(&point, curve.len);
        Ok(point.map(|point| Self::Ec { curve_oid: oid, field_len: curve.len, point }))
    }

    /// A parameter of the public half; `None` if the key is one that nothing here can
    /// use.
    pub(super) fn public_parameter(
        &self,
        parameter: PublicParameter,
    ) -> Option<Result<PublicValue, InputError>> {
        Some(Ok(match (self, parameter) {
            (Self::Ec { .. }, PublicParameter::Algorithm) => PublicValue::Word("ECDSA"),
            (Self::Rsa { .. }, PublicParameter::Algorithm) => PublicValue::Word("RSA"),
            (Self::Ec { curve_oid, .. }, PublicParameter::EcCurveOid) => {
                PublicValue::Bytes(curve_oid.clone())
            }
            (Self::Ec { point, field_len, .. }, PublicParameter::EcPoint) => {
                PublicValue::Bytes(crate::material::compress(point, *field_len)?)
            }
            (Self::Ec { point, .. }, PublicParameter::EcPointUncompressed) => {
                PublicValue::Bytes(point.clone())
            }
            (Self::Rsa { modulus, .. }, PublicParameter::RsaModulus) => {
                PublicValue::Bytes(modulus.clone())
            }
            (Self::Rsa { exponent, .. }, PublicParameter::RsaExponent) => {
                PublicValue::Bytes(exponent.clone())
            }
            (Self::Ec { .. } | Self::Rsa { .. }, _) => {
                return Some(Err(InputError::NoSuchParameter));
            }
            (Self::Hmac { .. } | Self::Aes { .. } | Self::Other, _) => return None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mark_reads_back_as_it_was_written(tie: [u8; TIE_LEN], number: u32) {
            let mark = Mark { tie, number };
            prop_assert_eq!(mark.encode().len(), 20);
            prop_assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        }

        #[test]
        fn ids_of_others_are_no_marks(id in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assume!(!id.starts_with(MARK));
            prop_assert_eq!(Mark::decode(&id), None);
        }
    }
}
