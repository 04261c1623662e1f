//! The attributes that a server wants in requests (RFC 7030, section 4.5.2).

use der::asn1::{Any, SetOfVec};
use der::oid::ObjectIdentifier;
use der::{Decode as _, Tag, Tagged as _};

/// Most attributes of an answer.
const ATTRIBUTES: usize = 64;

const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";
const P256: &str = "1.2.840.10045.3.1.7";
const CHALLENGE_PASSWORD: &str = "1.2.840.113549.1.9.7";

/// The wishes of a server for requests. They are what it says, not what a request must
/// have: a server that insists refuses the request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CsrAttributes {
    /// Object identifiers, with the values of those that have some.
    entries: Vec<(ObjectIdentifier, Vec<Any>)>,
}

impl CsrAttributes {
    /// Reads the list. `None` if it is no such list.
    pub(crate) fn from_der(der: &[u8]) -> Option<Self> {
        let members = Vec::<Any>::from_der(der).ok().filter(|it| it.len() <= ATTRIBUTES)?;
        let entry = |member: &Any| match member.tag() {
            Tag::ObjectIdentifier => Some((member.decode_as().ok()?, Vec::new())),
            Tag::Sequence => {
                let attribute: x509_cert::attr::Attribute = member.decode_as().ok()?;
                let values: SetOfVec<Any> = attribute.values;
                Some((attribute.oid, values.iter().cloned().collect()))
            }
            _ => None,
        };
        Some(Self { entries: members.iter().map(entry).collect::<Option<_>>()? })
    }

    /// Returns true if the server asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the object identifiers of what it asks for, as dotted numbers.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.entries.iter().map(|(oid, _)| oid.to_string()).collect()
    }

    /// Returns the kind of key that it asks for, as the keys API names algorithms; `None`
    /// if it names none that the keys service makes.
    #[must_use]
    pub fn key_algorithm(&self) -> Option<&'static str> {
        self.entries.iter().find_map(|(oid, values)| match oid.to_string().as_str() {
            EC_PUBLIC_KEY => {
                let on_p256 = |it: &Any| {
                    it.decode_as::<ObjectIdentifier>().is_ok_and(|curve| curve.to_string() == P256)
                };
                (values.is_empty() || values.iter().any(on_p256)).then_some("ec-p256")
            }
            RSA_ENCRYPTION => {
                let bits = values.iter().find_map(|it| it.decode_as::<u32>().ok());
                match bits {
                    None | Some(..=2048) => Some("rsa-2048"),
                    Some(..=4096) => Some("rsa-4096"),
                    Some(_) => None,
                }
            }
            _ => None,
        })
    }

    /// Returns true if the server wants requests to be bound to the connection by a
    /// challenge password (RFC 7030, section 3.5), which this client does not do.
    #[must_use]
    pub fn asks_for_binding(&self) -> bool {
        self.entries.iter().any(|(oid, _)| oid.to_string() == CHALLENGE_PASSWORD)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of RFC 7030, section 4.5.2, in the spelling of RFC 8951.
    const EXAMPLE: &[u8] = &[
        0x30, 0x41, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x07, 0x30, 0x12,
        0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x31, 0x07, 0x06, 0x05, 0x2b, 0x81,
        0x04, 0x00, 0x22, 0x30, 0x16, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09,
        0x0e, 0x31, 0x09, 0x06, 0x07, 0x2b, 0x06, 0x01, 0x01, 0x01, 0x01, 0x16, 0x06, 0x08, 0x2a,
        0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03,
    ];

    #[test]
    fn the_example_of_the_standard_is_read() {
        let read = CsrAttributes::from_der(EXAMPLE).unwrap();
        let ids =
            [CHALLENGE_PASSWORD, EC_PUBLIC_KEY, "1.2.840.113549.1.9.14", "1.2.840.10045.4.3.3"];
        assert_eq!(read.ids(), ids);
        assert!(read.asks_for_binding());
        assert_eq!(read.key_algorithm(), None, "P-384, which the keys service does not make");
        assert!(CsrAttributes::from_der(&[0x30, 0]).unwrap().is_empty());
    }

    #[test]
    fn a_kind_of_key_is_named_as_the_keys_service_names_it() {
        let asked = |attribute: &[u8]| {
            let mut der = vec![0x30, u8::try_from(attribute.len()).unwrap()];
            der.extend_from_slice(attribute);
            CsrAttributes::from_der(&der).unwrap().key_algorithm()
        };
        let rsa = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1];
        assert_eq!(asked(&rsa), Some("rsa-2048"));
        let sized = [&[0x30, 17][..], &rsa, &[0x31, 4, 2, 2, 0x10, 0]].concat();
        assert_eq!(asked(&sized), Some("rsa-4096"));
        let ec = [0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
        assert_eq!(asked(&ec), Some("ec-p256"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = CsrAttributes::from_der(&bytes).map(|read| read.key_algorithm());
        }
    }
}
