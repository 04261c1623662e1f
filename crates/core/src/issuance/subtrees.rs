//! Name constraints of an issuer (RFC 5280, section 4.2.1.10): the names that
//! certificates below may have.
//!
//! A certificate whose names lie outside would be issued for nothing: every verifier
//! refuses it. A constraint of a kind that is not understood here is kept by refusing.

use std::net::IpAddr;

use super::AlternativeName;

/// Base of a subtree of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A host name and all below it; empty: all host names.
    Host(String),
    /// Addresses: address and mask, of 4 or 16 bytes each.
    Address(Vec<u8>, Vec<u8>),
    /// Host of a URI: itself, or all below it where there is a dot in front.
    UriHost(String),
    /// The whole subject, and names of kinds that are not issued.
    Other,
}

impl Base {
    /// Reads the bytes of an address's subtree.
    #[must_use]
    pub fn of_address(bytes: &[u8]) -> Self {
        match bytes.len() {
            8 | 32 => {
                let (address, mask) = bytes.split_at(bytes.len() / 2);
                Self::Address(address.to_vec(), mask.to_vec())
            }
            _ => Self::Other,
        }
    }

    /// Returns whether a name lies in the subtree; `None` if it is of another kind.
    fn has(&self, name: &AlternativeName) -> Option<bool> {
        match (self, name) {
            (Self::Host(base), AlternativeName::Host(name)) => {
                let name = name.as_str();
                Some(match base.strip_prefix('.') {
                    Some(parent) => name.len() > parent.len() + 1 && is_below(name, parent),
                    None => is_below(name, base),
                })
            }
            (Self::Address(base, mask), AlternativeName::Address(address)) => {
                let bytes = match address {
                    IpAddr::V4(four) => four.octets().to_vec(),
                    IpAddr::V6(six) => six.octets().to_vec(),
                };
                (bytes.len() == base.len()).then(|| {
                    let masked = bytes.iter().zip(mask).zip(base);
                    masked.into_iter().all(|((byte, mask), base)| byte & mask == base & mask)
                })
            }
            (Self::UriHost(base), AlternativeName::Uri(uri)) => {
                let host = host_of(uri.as_str());
                Some(match base.strip_prefix('.') {
                    Some(parent) => host.len() > parent.len() + 1 && is_below(host, parent),
                    None => host.eq_ignore_ascii_case(base),
                })
            }
            _ => None,
        }
    }

    /// Returns whether a wildcard stands for the base too. The name of a wildcard is not
    /// below such a base, so that some verifiers do not see it.
    fn is_met_by(&self, name: &AlternativeName) -> bool {
        let (Self::Host(base), AlternativeName::Host(name)) = (self, name) else { return false };
        let parent = name.as_str().strip_prefix("*.");
        parent.zip(base.split_once('.')).is_some_and(|(parent, (label, above))| {
            !label.is_empty() && parent.eq_ignore_ascii_case(above)
        })
    }
}

/// Name constraints of an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subtrees {
    /// Subtrees in one of which a name of their kind must lie.
    pub permitted: Vec<Base>,
    /// Subtrees in which no name may lie.
    pub excluded: Vec<Base>,
}

/// Reason why an issuer cannot certify a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutsideSubtrees {
    /// The name lies outside.
    #[error("its name constraints do not allow the name {0}")]
    Name(String),
    /// A kind of constraint that is not understood.
    #[error(
        "it has name constraints of a kind that is not checked here: host names, IP addresses \
         and URIs are"
    )]
    Kind,
}

impl Subtrees {
    /// Checks the names of a certificate below.
    ///
    /// # Errors
    /// If one lies outside, or a constraint is of a kind that is not understood.
    pub fn check(&self, names: &[AlternativeName]) -> Result<(), OutsideSubtrees> {
        if self.permitted.iter().chain(&self.excluded).any(|base| *base == Base::Other) {
            return Err(OutsideSubtrees::Kind);
        }
        for name in names {
            let outside = || OutsideSubtrees::Name(said(name));
            if self.excluded.iter().any(|base| base.has(name) == Some(true) || base.is_met_by(name))
            {
                return Err(outside());
            }
            let mut of_its_kind =
                self.permitted.iter().filter_map(|base| base.has(name)).peekable();
            if of_its_kind.peek().is_some() && !of_its_kind.any(|has| has) {
                return Err(outside());
            }
        }
        Ok(())
    }
}

fn said(name: &AlternativeName) -> String {
    match name {
        AlternativeName::Host(name) => name.as_str().to_owned(),
        AlternativeName::Address(address) => address.to_string(),
        AlternativeName::Uri(uri) => uri.as_str().to_owned(),
    }
}

/// Returns whether a host name is `base` or below it. A wildcard stands for names below
/// its parent.
fn is_below(name: &str, base: &str) -> bool {
    let (name, base) = (name.to_ascii_lowercase(), base.to_ascii_lowercase());
    base.is_empty()
        || name == base
        || name.strip_suffix(&base).is_some_and(|before| before.ends_with('.'))
}

/// Returns the host of a URI; empty where it has none.
fn host_of(uri: &str) -> &str {
    let Some((_, rest)) = uri.split_once("://") else { return "" };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') { host } else { host.split(':').next().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> AlternativeName {
        AlternativeName::dns(text.as_bytes()).unwrap()
    }

    fn uri(text: &str) -> AlternativeName {
        AlternativeName::uri(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_lie_in_a_permitted_subtree_of_their_kind_and_in_no_excluded_one() {
        let constraints = Subtrees {
            permitted: vec![
                Base::Host("plant7.example".to_owned()),
                Base::of_address(&[10, 0, 0, 0, 255, 0, 0, 0]),
                Base::UriHost(".hub.example".to_owned()),
            ],
            excluded: vec![Base::Host("office.plant7.example".to_owned())],
        };
        for allowed in [
            host("plant7.example"),
            host("press.PLANT7.example"),
            host("*.press.plant7.example"),
            host("*.b.office2.plant7.example"),
            AlternativeName::Address([10, 1, 2, 3].into()),
            uri("azureiot://a.hub.example/devices/x"),
        ] {
            assert_eq!(constraints.check(std::slice::from_ref(&allowed)), Ok(()), "{allowed:?}");
        }
        for refused in [
            host("notplant7.example"),
            host("example"),
            host("a.office.plant7.example"),
            // It stands for office.plant7.example as well.
            host("*.plant7.example"),
            AlternativeName::Address([11, 1, 2, 3].into()),
            uri("azureiot://hub.example/x"),
            uri("azureiot://a.hub.example.org/x"),
            uri("azureiot://a.hub.example@evil.example/x"),
        ] {
            let error = constraints.check(std::slice::from_ref(&refused)).unwrap_err();
            assert_eq!(error, OutsideSubtrees::Name(said(&refused)));
        }
        // No address of 16 bytes is spoken of.
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(constraints.check(&[AlternativeName::Address(six)]), Ok(()));
    }

    #[test]
    fn a_constraint_that_is_not_understood_is_kept_by_refusing() {
        for constraints in [
            Subtrees { permitted: vec![Base::Other], excluded: Vec::new() },
            Subtrees { permitted: Vec::new(), excluded: vec![Base::of_address(&[1, 2, 3])] },
        ] {
            assert_eq!(constraints.check(&[]), Err(OutsideSubtrees::Kind));
        }
        assert_eq!(Subtrees::default().check(&[host("anything")]), Ok(()));
    }

    proptest! {
        #[test]
        fn nothing_is_both_excluded_and_issued(name in "[a-z]{1,4}(\\.[a-z]{1,4}){0,3}") {
            let excluded = vec![Base::Host(name.clone())];
            let constraints = Subtrees { permitted: Vec::new(), excluded };
            prop_assert!(constraints.check(&[host(&name)]).is_err());
            let (below, beside) = (format!("below.{name}"), format!("x{name}"));
            prop_assert!(constraints.check(&[host(&below)]).is_err());
            prop_assert!(constraints.check(&[host(&beside)]).is_ok());
        }
    }
}
