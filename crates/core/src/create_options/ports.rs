//! Ports of the host that a module may publish, where the ports are granted one by one.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Judge, Refusal, Why, list, listed, members, object, shown};

/// The ports that modules without elevated permissions may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublishedPorts {
    /// Any, as with existing services.
    #[default]
    Any,
    /// Those of their grant.
    Granted,
}

/// Ports of the host: `[ADDRESS:]PORT[-PORT][/PROTOCOL]`. Port 0 is one that the engine
/// chooses, without an address it is every address, without a protocol it is TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortGrant {
    address: Option<IpAddr>,
    ports: RangeInclusive<u16>,
    protocol: String,
}

impl PortGrant {
    /// Reads a grant.
    ///
    /// # Errors
    /// The mistake in the grant, in words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if !matches!(protocol, "tcp" | "udp" | "sctp") {
            return Err("expected the protocol tcp, udp or sctp");
        }
        let (address, ports) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, ports)) => {
                let inner = address
                    .strip_prefix('[')
                    .and_then(|inner| inner.strip_suffix(']'))
                    .unwrap_or(address);
                let address =
                    inner.parse().map_err(|_| "expected an IP address before the port")?;
                (Some(address), ports)
            }
        };
        let ports = range(ports)
            .ok_or("expected [ADDRESS:]PORT[-PORT][/PROTOCOL] with ports from 0 to 65535")?;
        Ok(Self { address, ports, protocol: protocol.to_owned() })
    }

    /// Returns true if the grant covers these ports at this address.
    fn covers(&self, address: Option<IpAddr>, ports: &RangeInclusive<u16>, protocol: &str) -> bool {
        let everywhere =
            self.address.is_none() || self.address.is_some_and(|granted| granted.is_unspecified());
        let at = everywhere || (address.is_some() && address == self.address);
        // A range that begins with 0 covers no real port by it.
        at && self.protocol == protocol
            && self.ports.contains(ports.start())
            && self.ports.contains(ports.end())
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let port =
        |text: &str| text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (first, last) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((first, last)) => (port(first)?, port(last)?),
    };
    (first <= last && (first > 0 || last == 0)).then_some(first..=last)
}

impl Judge<'_> {
    /// `PortBindings`.
    pub(super) fn ports(&self, value: &Value, path: &str) -> Result<(), Refusal> {
        if self.ports == PublishedPorts::Any || self.grants_option(path) {
            return Ok(());
        }
        for (port, bindings) in object(value, path)? {
            let path = members::join(path, port);
            let protocol =
                port.split_once('/').map_or("tcp", |(_, protocol)| protocol).to_ascii_lowercase();
            for (index, binding) in list(bindings, &path)?.iter().enumerate() {
                self.port(binding, &protocol, &format!("{path}[{index}]"))?;
            }
        }
        Ok(())
    }

    fn port(&self, binding: &Value, protocol: &str, path: &str) -> Result<(), Refusal> {
        let expected = |expected| Refusal { option: path.to_owned(), why: Why::Expected(expected) };
        let text = |member: &str| match &binding[member] {
            Value::Null => Ok(""),
            Value::String(text) => Ok(text.as_str()),
            _ => Err(expected("an address and a port, each a text")),
        };
        let (address, ports) = (text("HostIp")?, text("HostPort")?);
        let written = if ports.is_empty() { "0" } else { ports };
        let ports =
            range(written).ok_or_else(|| expected("a port of the host, or a range of ports"))?;
        let at = match address {
            "" => None,
            address => {
                Some(address.parse::<IpAddr>().map_err(|_| expected("an IP address of the host"))?)
            }
        };
        let at = at.filter(|address| !address.is_unspecified());
        let mut granted = self.grant.ports.iter().filter_map(|grant| PortGrant::parse(grant).ok());
        if granted.any(|grant| grant.covers(at, &ports, protocol)) {
            return Ok(());
        }
        let front = match at {
            None => String::new(),
            Some(IpAddr::V6(address)) => format!("[{address}]:"),
            Some(IpAddr::V4(address)) => format!("{address}:"),
        };
        let what = match written {
            "0" => "it publishes a port of the host that the engine chooses".to_owned(),
            port => format!("it publishes the port {} of the host", shown(port)),
        };
        let protocol =
            if protocol == "tcp" { String::new() } else { format!("/{}", shown(protocol)) };
        Err(self.refusal(path, what, &listed("ports", &format!("{front}{written}{protocol}"))))
    }

    /// `PublishAllPorts`: of whatever protocol the image says.
    pub(super) fn all_ports(&self, value: &Value, path: &str) -> Result<(), Refusal> {
        let granted = |protocol: &str| {
            let mut granted =
                self.grant.ports.iter().filter_map(|grant| PortGrant::parse(grant).ok());
            granted.any(|grant| grant.covers(None, &(0..=0), protocol))
        };
        if self.ports == PublishedPorts::Any || ["tcp", "udp"].into_iter().all(granted) {
            return Ok(());
        }
        let what = "it publishes ports of the host that the engine chooses".to_owned();
        self.unless_granted_as(path, value, what, || "ports = [\"0\", \"0/udp\"]".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_grant_of_ports_reads_as_it_is_written() {
        for text in [
            "443",
            "8883/tcp",
            "5000-5010/udp",
            "127.0.0.1:80",
            "[::1]:80-90/sctp",
            "0",
            "0.0.0.0:1",
        ] {
            assert!(PortGrant::parse(text).is_ok(), "{text}");
        }
        for text in [
            "", "http", "70000", "-1", "+1", "9-8", "0-9", "1-", "443/icmp", "443/", "plant:80",
            ":80", "1:2:3",
        ] {
            assert!(PortGrant::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_grant_covers_what_lies_in_it_and_nothing_else(first in 1..=200u16, more in 0..50u16, from in 1..=250u16, width in 0..9u16) {
            let grant = PortGrant::parse(&format!("{first}-{}", first + more)).unwrap();
            let asked = from..=from + width;
            let inside = from >= first && from + width <= first + more;
            prop_assert_eq!(grant.covers(None, &asked, "tcp"), inside);
            prop_assert!(!grant.covers(None, &asked, "udp"));
            let local = PortGrant::parse(&format!("127.0.0.1:{first}-{}", first + more)).unwrap();
            prop_assert!(!local.covers(None, &asked, "tcp"), "not on every address");
            prop_assert_eq!(local.covers("127.0.0.1".parse().ok(), &asked, "tcp"), inside);
            prop_assert!(!local.covers("127.0.0.2".parse().ok(), &asked, "tcp"));
        }
    }
}
