//! A look at a certificate: what of it is news for the plan, and who makes the first one.

use super::{Event, Policy, Span};

/// A certificate that a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Begin and end; `None` if they cannot be read.
    pub span: Option<Span>,
    /// True if the certificate's issuer is on the device and is another one now.
    pub former_issuer: bool,
}

/// Returns the news for the plan. `None` is none: there is no certificate, and the first
/// one is made by somebody else, who knows its name.
///
/// A certificate of a former issuer counts as missing, unless renewal is turned off. Its
/// successor has its name, whoever made the first one.
#[must_use]
pub fn news(seen: Option<Seen>, policy: &Policy, first_is_made_here: bool) -> Option<Event> {
    match seen {
        None if first_is_made_here => Some(Event::Found(None)),
        None => None,
        Some(seen) => {
            let counts_as_missing = seen.former_issuer && policy.enabled;
            Some(Event::Found(seen.span.filter(|_| !counts_as_missing)))
        }
    }
}

/// Role of a certificate on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The device's own CA, which signs others.
    LocalCa,
    /// The CA of module certificates, for which the module runtime asks.
    EdgeCa,
    /// The certificate by which the device proves who it is to the cloud.
    DeviceIdentity,
    /// The certificate that comes with a registration.
    Operational,
    /// Any other.
    Other,
}

/// Returns true if the service that renews a certificate makes the first one unasked.
/// `by_est`: an EST server issues it. `named`: the configuration names its subject.
#[must_use]
pub fn makes_first(role: Role, by_est: bool, named: bool) -> bool {
    match role {
        Role::LocalCa | Role::Operational => true,
        Role::EdgeCa => false,
        Role::DeviceIdentity => named,
        Role::Other => by_est && named,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { begin: 1000, end: 2000 };

    fn policy(enabled: bool) -> Policy {
        Policy { enabled, ..Policy::default() }
    }

    #[test]
    fn a_certificate_of_a_former_issuer_counts_as_missing_unless_renewal_is_off() {
        for first_is_made_here in [false, true] {
            for (former_issuer, enabled, found) in [
                (false, true, Some(SPAN)),
                (false, false, Some(SPAN)),
                (true, true, None),
                (true, false, Some(SPAN)),
            ] {
                let seen = Seen { span: Some(SPAN), former_issuer };
                let news = news(Some(seen), &policy(enabled), first_is_made_here);
                assert_eq!(news, Some(Event::Found(found)), "{former_issuer} {enabled}");
            }
        }
    }

    #[test]
    fn one_that_cannot_be_read_is_made_anew_and_the_first_by_who_knows_its_name() {
        let unreadable = Seen { span: None, former_issuer: false };
        for first_is_made_here in [false, true] {
            let news = news(Some(unreadable), &policy(true), first_is_made_here);
            assert_eq!(news, Some(Event::Found(None)));
        }
        assert_eq!(news(None, &policy(true), false), None);
        assert_eq!(news(None, &policy(true), true), Some(Event::Found(None)));
    }

    #[test]
    fn the_edge_ca_is_asked_for_and_others_need_a_name() {
        for by_est in [false, true] {
            for named in [false, true] {
                assert!(makes_first(Role::LocalCa, by_est, named));
                assert!(makes_first(Role::Operational, by_est, named));
                assert!(!makes_first(Role::EdgeCa, by_est, named));
                assert_eq!(makes_first(Role::DeviceIdentity, by_est, named), named);
                assert_eq!(makes_first(Role::Other, by_est, named), by_est && named);
            }
        }
    }
}
