//! Subjects: read as texts, and written anew (RFC 5280, section 4.1.2.6).

use der::asn1::{
    Any, BmpString, Ia5StringRef, PrintableStringRef, SetOfVec, TeletexStringRef, Utf8StringRef,
};
use der::oid::ObjectIdentifier;
use der::{Tag, Tagged as _};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// Longest common name, in characters (RFC 5280, appendix A.1).
const COMMON_NAME_LIMIT: usize = 64;
/// Longest text of another attribute, in characters.
const TEXT_LIMIT: usize = 256;
/// Most attributes in a subject.
const ATTRIBUTES: usize = 32;

/// Returns a subject with nothing but a common name, which is cut where it is too long.
pub(super) fn of_common_name(common_name: &str) -> der::Result<RdnSequence> {
    let text: String = common_name.chars().take(COMMON_NAME_LIMIT).collect();
    let value = Any::encode_from(&Utf8StringRef::new(&text)?)?;
    let pair = AttributeTypeAndValue { oid: COMMON_NAME, value };
    Ok(RdnSequence::from(vec![RelativeDistinguishedName::from(SetOfVec::try_from([pair])?)]))
}

/// Returns the subject with each value read as a text and written again.
///
/// The kinds of strings that readers are to expect stay as they are, so that the subject
/// keeps its bytes; old kinds become UTF-8. Anything else has no place in a certificate.
pub(super) fn rebuilt(asked: &Name) -> Result<RdnSequence, &'static str> {
    if asked.iter().count() > ATTRIBUTES {
        return Err("its subject has more than 32 attributes");
    }
    let mut parts = Vec::new();
    for part in asked.iter_rdn() {
        let pairs: Result<Vec<_>, _> = part.iter().map(attribute).collect();
        let pairs = SetOfVec::try_from(pairs?)
            .map_err(|_| "its subject has an attribute twice in one place")?;
        if pairs.is_empty() {
            return Err("its subject has an empty part");
        }
        parts.push(RelativeDistinguishedName::from(pairs));
    }
    Ok(RdnSequence::from(parts))
}

fn attribute(pair: &AttributeTypeAndValue) -> Result<AttributeTypeAndValue, &'static str> {
    let unreadable = "its subject has a value that is no text";
    let value = &pair.value;
    let (text, written) = match value.tag() {
        Tag::Utf8String => {
            let text = value.decode_as::<Utf8StringRef<'_>>().map_err(|_| unreadable)?;
            (text.as_str().to_owned(), Any::encode_from(&text))
        }
        Tag::PrintableString => {
            let text = value.decode_as::<PrintableStringRef<'_>>().map_err(|_| unreadable)?;
            (text.as_str().to_owned(), Any::encode_from(&text))
        }
        Tag::Ia5String => {
            let text = value.decode_as::<Ia5StringRef<'_>>().map_err(|_| unreadable)?;
            (text.as_str().to_owned(), Any::encode_from(&text))
        }
        Tag::TeletexString => {
            let text = value
                .decode_as::<TeletexStringRef<'_>>()
                .map_err(|_| unreadable)?
                .as_str()
                .to_owned();
            let written = Utf8StringRef::new(&text).and_then(|text| Any::encode_from(&text));
            (text, written)
        }
        Tag::BmpString => {
            let text = value.decode_as::<BmpString>().map_err(|_| unreadable)?.to_string();
            let written = Utf8StringRef::new(&text).and_then(|text| Any::encode_from(&text));
            (text, written)
        }
        _ => return Err(unreadable),
    };
    let limit = if pair.oid == COMMON_NAME { COMMON_NAME_LIMIT } else { TEXT_LIMIT };
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err("its subject has a value that is empty or has control characters");
    }
    if text.chars().count() > limit {
        return Err(
            "its subject has a value that is too long: 64 characters for a common name, 256 for others",
        );
    }
    Ok(AttributeTypeAndValue { oid: pair.oid, value: written.map_err(|_| unreadable)? })
}
