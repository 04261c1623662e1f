//! Names of hosts to connect to, as the operator or a service gives them.
//!
//! What a service names is a DNS name and nothing else (RFC 1123, section 2.1): no
//! address, in whichever way the resolver would take one. `1`, `127.1` and `0x7f000001`
//! are addresses to it, so a name does not end in a number. Only the operator may name an
//! address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Port of HTTPS, which is not written.
const HTTPS: u16 = 443;

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// A DNS name, or an address as the system prints it, without brackets.
    host: String,
    port: u16,
}

/// The reason why a text names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The part before the port is no DNS name.
    #[error(
        "it is not a host name: expected letters, digits and '-' in labels of 1 to 63 characters, separated by '.', at most \
         253 in all, for example plant7.example.net"
    )]
    Name,
    /// The text is an address, in one of the forms that a resolver takes.
    #[error("it is an address, not a host name")]
    Address,
    /// The part behind the colon is no port.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

impl Authority {
    /// Reads what a service assigned: a DNS name, with a port where it is not 443.
    ///
    /// # Errors
    /// If it is anything else, an address among it.
    pub fn assigned(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = split(text)?;
        check_name(host)?;
        Ok(Self { host: host.to_owned(), port })
    }

    /// The host: a DNS name or an address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Reads what the operator configured: a DNS name, or an address in its usual form (IPv6
/// in brackets), with a port where it is not 443.
impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self { host: address.to_string(), port: HTTPS });
        }
        let (host, port) = split(text)?;
        if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = inner.parse().map_err(|_| AuthorityError::Name)?;
            return Ok(Self { host: address.to_string(), port });
        }
        match host.parse::<IpAddr>() {
            Ok(address) => Ok(Self { host: address.to_string(), port }),
            Err(_) => check_name(host).map(|()| Self { host: host.to_owned(), port }),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brackets = self.host.contains(':');
        let (open, close) = if brackets { ("[", "]") } else { ("", "") };
        match self.port {
            HTTPS => write!(f, "{open}{}{close}", self.host),
            port => write!(f, "{open}{}{close}:{port}", self.host),
        }
    }
}

/// Checks that a text is a DNS name that no resolver takes for an address.
///
/// # Errors
/// If it is none.
pub fn check_name(text: &str) -> Result<(), AuthorityError> {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        // Underscores are in names that people use; a hyphen at the end is refused by
        // resolvers, one at the front by RFC 1123.
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return Err(AuthorityError::Name);
    }
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_hex = last.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"))
        && last.bytes().skip(2).all(|c| c.is_ascii_hexdigit());
    if is_hex || last.bytes().all(|c| c.is_ascii_digit()) {
        return Err(AuthorityError::Address);
    }
    Ok(())
}

fn split(text: &str) -> Result<(&str, u16), AuthorityError> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            let digits = !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
            let port = port
                .parse()
                .ok()
                .filter(|port| digits && *port != 0)
                .ok_or(AuthorityError::Port)?;
            Ok((host, port))
        }
        _ => Ok((text, HTTPS)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_may_have_a_port_and_nothing_else() {
        for (text, host, port) in [
            ("plant7.example.net", "plant7.example.net", 443),
            ("localhost:8443", "localhost", 8443),
            ("hub", "hub", 443),
            ("a_b.example:1", "a_b.example", 1),
            ("7up.example", "7up.example", 443),
            ("1.2.3.4.example", "1.2.3.4.example", 443),
            ("0xcafe.example", "0xcafe.example", 443),
        ] {
            for read in [Authority::assigned(text), text.parse()] {
                let read = read.unwrap();
                assert_eq!(
                    (read.host(), read.port(), read.to_string().as_str()),
                    (host, port, text)
                );
            }
        }
        for text in [
            "",
            ".",
            "a..b",
            "a.",
            "host/path",
            "user@host",
            "a b",
            "-a",
            "a-",
            "h?x",
            "x.test/y?z",
            "h\u{202e}x",
            "hü.test",
            "h\0",
            "h\n",
            "[hub]",
            "a:b:1",
        ] {
            assert_eq!(Authority::assigned(text), Err(AuthorityError::Name), "{text:?}");
            assert_eq!(text.parse::<Authority>(), Err(AuthorityError::Name), "{text:?}");
        }
        for text in ["host:", "host:0", "host:99999", "host:+1", "host:x"] {
            assert_eq!(Authority::assigned(text), Err(AuthorityError::Port), "{text:?}");
        }
    }

    #[test]
    fn a_service_names_no_address_in_any_form_that_a_resolver_takes_for_one() {
        for text in [
            "1",
            "127.1",
            "127.0.0.1",
            "127.0.0.1:22",
            "0.0.0.0:1",
            "0x7f000001",
            "0X7F.1",
            "0x7f.0x1",
            "017700000001",
            "0x",
            "hub.1",
            "256.256.256.256",
            "2130706433",
        ] {
            assert_eq!(Authority::assigned(text), Err(AuthorityError::Address), "{text}");
        }
        for text in ["::1", "[::1]", "[::1]:443", "fe80::1%eth0"] {
            assert!(Authority::assigned(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_operator_may_name_an_address_in_its_usual_form() {
        for (text, shown) in [
            ("127.0.0.1", "127.0.0.1"),
            ("10.1.2.3:8443", "10.1.2.3:8443"),
            ("::1", "[::1]"),
            ("[::1]:8443", "[::1]:8443"),
            ("[2001:db8::0:1]", "[2001:db8::1]"),
        ] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), shown, "{text}");
        }
        for text in ["1", "127.1", "0x7f000001", "017700000001", "300.1.1.1"] {
            assert_eq!(text.parse::<Authority>(), Err(AuthorityError::Address), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_read_again_as_the_same(text in "[a-z0-9.:\\[\\]x_-]{0,12}") {
            if let Ok(read) = text.parse::<Authority>() {
                prop_assert_eq!(read.to_string().parse(), Ok(read.clone()));
            }
            if let Ok(read) = Authority::assigned(&text) {
                prop_assert_eq!(Authority::assigned(&read.to_string()), Ok(read.clone()));
                prop_assert_eq!(text.parse(), Ok(read));
            }
        }
    }
}
