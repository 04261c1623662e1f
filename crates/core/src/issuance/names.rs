//! Alternative names (RFC 5280, section 4.2.1.6).

use std::net::IpAddr;

/// Longest host name (RFC 1035, section 2.3.4), in bytes.
const HOST_NAME: usize = 253;
/// Longest label of a host name, in bytes.
const LABEL: usize = 63;
/// Longest URI, in bytes.
const URI: usize = 2048;

/// Text before a module's URI in the host names by which the compatible module runtime
/// names a module's identity.
const URI_AS_HOST_NAME: &[u8] = b"URI: ";
/// Scheme of these URIs.
const MODULE_SCHEME: &[u8] = b"azureiot://";

/// An alternative name. Made by its functions alone, so that each holds what its kind may
/// hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlternativeName {
    /// A host name: letters, digits, `-` and `_` in labels; the first label may be `*`.
    Host(HostName),
    /// An IP address.
    Address(IpAddr),
    /// An absolute URI of the characters that URIs have (RFC 3986).
    Uri(Uri),
}

/// A checked host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

/// A checked URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri(String);

impl HostName {
    /// The name, in ASCII.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Uri {
    /// The URI, in ASCII.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reason why bytes are no alternative name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a host name.
    #[error(
        "not a host name: labels of letters, digits, '-' and '_', 63 characters a label, 253 in all"
    )]
    HostName,
    /// Not an address.
    #[error("not an IP address of 4 or 16 bytes")]
    Address,
    /// Not a URI.
    #[error("not an absolute URI")]
    Uri,
    /// A kind that is not issued.
    #[error("its kind is not issued: host names, IP addresses and URIs are")]
    Kind,
    /// A wildcard.
    #[error("a module's certificate has no wildcards")]
    Wildcard,
}

impl AlternativeName {
    /// Reads a host name.
    ///
    /// The compatible module runtime puts a module's URI here, behind the word `URI:`. By
    /// what such a name means it is a URI, and is one from here on.
    ///
    /// # Errors
    /// If the bytes are no host name.
    pub fn dns(bytes: &[u8]) -> Result<Self, NameError> {
        let uri = bytes.strip_prefix(URI_AS_HOST_NAME);
        if let Some(uri) = uri.filter(|uri| uri.starts_with(MODULE_SCHEME)) {
            return Self::uri(uri);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| NameError::HostName)?;
        let labels = match text.split_once('.') {
            // A wildcard over a whole top level is nobody's.
            Some(("*", rest)) if rest.contains('.') => rest,
            _ => text,
        };
        let fits = text.len() <= HOST_NAME && labels.split('.').all(is_label);
        if fits { Ok(Self::Host(HostName(text.to_owned()))) } else { Err(NameError::HostName) }
    }

    /// Reads an address.
    ///
    /// # Errors
    /// If there are neither 4 nor 16 bytes.
    pub fn address(bytes: &[u8]) -> Result<Self, NameError> {
        let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
            .map(Self::Address)
            .map_err(|_| NameError::Address)
    }

    /// Reads a URI.
    ///
    /// # Errors
    /// If the bytes are no absolute URI.
    pub fn uri(bytes: &[u8]) -> Result<Self, NameError> {
        let text = std::str::from_utf8(bytes).map_err(|_| NameError::Uri)?;
        let (scheme, rest) = text.split_once(':').ok_or(NameError::Uri)?;
        let mut scheme_bytes = scheme.bytes();
        let scheme_fits = scheme_bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
            && scheme_bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let fits = scheme_fits
            && !rest.is_empty()
            && text.len() <= URI
            && has_uri_characters(rest.as_bytes());
        if fits { Ok(Self::Uri(Uri(text.to_owned()))) } else { Err(NameError::Uri) }
    }

    /// Tells whether the name stands for many.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Self::Host(name) if name.0.starts_with('*'))
    }
}

fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    !label.is_empty() && label.len() <= LABEL && label.bytes().all(inner)
}

/// Unreserved and reserved characters of RFC 3986, and whole percent triplets.
fn has_uri_characters(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        rest = match first {
            b'%' => match after {
                [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    after
                }
                _ => return false,
            },
            byte if byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(byte) => {
                after
            }
            _ => return false,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_names_are_names_of_hosts() {
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        for good in [
            "a",
            "press-04.plant_7.example",
            "xn--bcher-kva.example",
            "A.b",
            "10.0.0.1",
            "*.a.b",
            &long,
        ] {
            let name = AlternativeName::dns(good.as_bytes()).unwrap();
            assert!(
                matches!(&name, AlternativeName::Host(host) if host.as_str() == good),
                "{good}"
            );
            assert_eq!(name.is_wildcard(), good.starts_with('*'));
        }
        let longer = format!("{long}e");
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a\0b",
            "a.example\0.evil",
            "*",
            "*.a",
            "a.*.b.c",
            "**.a.b",
            "a*.b.c",
            "é.example",
            "a/b",
            "a\nb",
            "URI: http://a/",
            &"a".repeat(64),
            &longer,
        ] {
            assert!(AlternativeName::dns(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(AlternativeName::dns(&[b'a', 0xff]), Err(NameError::HostName));
    }

    #[test]
    fn the_identity_of_a_module_of_the_compatible_runtime_becomes_the_uri_that_it_means() {
        let uri = "azureiot://hub.example/devices/d/modules/$edgeHub";
        let name = AlternativeName::dns(format!("URI: {uri}").as_bytes()).unwrap();
        assert_eq!(name, AlternativeName::uri(uri.as_bytes()).unwrap());
        let bad = format!("URI: {uri}\0");
        assert_eq!(AlternativeName::dns(bad.as_bytes()), Err(NameError::Uri));
    }

    #[test]
    fn uris_are_absolute_and_of_their_characters() {
        for good in
            ["azureiot://hub/devices/a%23b", "urn:uuid:1", "https://[::1]/?q=1#f", "a+b-c.1:x"]
        {
            assert!(
                matches!(AlternativeName::uri(good.as_bytes()), Ok(AlternativeName::Uri(_))),
                "{good}"
            );
        }
        for bad in [
            "", "a", ":x", "1a:x", "a:", "a:b c", "a:%", "a:%g1", "a:%1", "a:\0", "a:é", "a:<b>",
            "a:\"", "a:\\",
        ] {
            assert_eq!(AlternativeName::uri(bad.as_bytes()), Err(NameError::Uri), "{bad:?}");
        }
        assert!(AlternativeName::uri(format!("a:{}", "b".repeat(URI)).as_bytes()).is_err());
    }

    #[test]
    fn addresses_have_four_or_sixteen_bytes() {
        assert_eq!(
            AlternativeName::address(&[10, 0, 0, 1]),
            Ok(AlternativeName::Address([10, 0, 0, 1].into()))
        );
        assert!(AlternativeName::address(&[0; 16]).is_ok());
        for length in [0, 3, 5, 8, 15, 17, 32] {
            assert_eq!(
                AlternativeName::address(&vec![0; length]),
                Err(NameError::Address),
                "{length}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_outside_the_set_are_ever_in_a_host_name(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(AlternativeName::Host(name)) = AlternativeName::dns(&bytes) {
                prop_assert_eq!(name.as_str().as_bytes(), &bytes[..]);
                prop_assert!(bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.*".contains(byte)));
            }
        }

        #[test]
        fn a_byte_put_into_a_host_name_is_refused_or_of_the_set(at in 0usize..16, byte: u8) {
            let mut bytes = b"press-04.example".to_vec();
            bytes.insert(at, byte);
            if AlternativeName::dns(&bytes).is_ok() {
                prop_assert!(byte.is_ascii_alphanumeric() || b"-_.".contains(&byte), "{byte}");
            }
        }
    }
}
