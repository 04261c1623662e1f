//! CAs that have issued certificates of this device, for as long as those are in use.
//!
//! A CA that was replaced stays in the trust bundle while certificates that it issued are
//! valid. Only a CA by which something was signed is remembered: a wrong file that lay in
//! its place for a moment never becomes trusted.

use crate::credentials::{Certificate, each_once};

/// Most CAs that are remembered under one id. A CA that is replaced more often within the
/// life of its certificates has no end of them.
pub const REMEMBERED: usize = 8;
/// Most certificates of one chain that are remembered.
const CHAIN: usize = 16;
/// Seconds to whose whole multiples the end of use is rounded up, so that it is written
/// down once a day and not with each certificate.
const STEP: i64 = 86_400;

/// A CA, with the chain above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// The CA's certificate, then those above it.
    pub chain: Vec<Certificate>,
    /// End of the CA's use, in seconds since 1970.
    pub until: i64,
}

impl Issuer {
    /// Returns true if what one of both issued can be verified with the other.
    fn verifies_as(&self, chain: &[Certificate]) -> bool {
        let (Some(own), Some(other)) = (self.chain.first(), chain.first()) else { return false };
        own.public_key() == other.public_key() && own.subject() == other.subject()
    }
}

/// The CAs that are remembered under one id, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Issuers(Vec<Issuer>);

impl Issuers {
    /// Takes in what was written down. Of too many the first are taken.
    #[must_use]
    pub fn new(mut issuers: Vec<Issuer>) -> Self {
        issuers.retain(|issuer| !issuer.chain.is_empty());
        issuers.truncate(REMEMBERED);
        Self(issuers)
    }

    /// Returns the CAs, to be written down.
    #[must_use]
    pub fn list(&self) -> &[Issuer] {
        &self.0
    }

    /// Remembers that `chain` is used until `until`, while its first certificate ends at
    /// `end`; seconds since 1970. Returns true if that is news, which has to be written
    /// down.
    #[must_use]
    pub fn note(&mut self, chain: &[Certificate], until: i64, end: i64, now: i64) -> bool {
        let until = until.saturating_add(STEP - 1).div_euclid(STEP).saturating_mul(STEP).min(end);
        if chain.is_empty() || until <= now {
            return false;
        }
        let chain = &chain[..chain.len().min(CHAIN)];
        let known = self.0.iter().position(|issuer| issuer.verifies_as(chain));
        let latest = match known {
            Some(at) if self.0[at].chain == chain && self.0[at].until >= until => return false,
            Some(at) => {
                let known = self.0.remove(at);
                Issuer { chain: chain.to_vec(), until: known.until.max(until) }
            }
            None => Issuer { chain: chain.to_vec(), until },
        };
        self.0.retain(|issuer| now < issuer.until);
        self.0.insert(0, latest);
        self.0.truncate(REMEMBERED);
        true
    }

    /// Returns the certificates that verify what is still in use, beside those of the CA
    /// that is used now.
    #[must_use]
    pub fn former(&self, current: &[Certificate], now: i64) -> Vec<Certificate> {
        let former = |issuer: &&Issuer| now < issuer.until && !issuer.verifies_as(current);
        each_once(self.0.iter().filter(former).map(|issuer| issuer.chain.clone()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400;
    const END: i64 = 3650 * DAY;

    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u8::try_from(content.len()).unwrap();
        let head = if length < 128 { vec![tag, length] } else { vec![tag, 0x81, length] };
        [head, content].concat()
    }

    /// A certificate with this serial number, whose key is `key` and whose subject has
    /// that name.
    fn made(serial: u8, key: u8) -> Certificate {
        const SEQUENCE: u8 = 0x30;
        let algorithm = der(SEQUENCE, &[&[0x06, 1, 42]]);
        let pair = der(SEQUENCE, &[&[0x06, 3, 0x55, 4, 3], &[0x0c, 1, b'a' + key]]);
        let name = der(SEQUENCE, &[&der(0x31, &[&pair])]);
        let time = der(0x17, &[b"260101000000Z"]);
        let public = der(SEQUENCE, &[&algorithm, &[0x03, 2, 0, key]]);
        let validity = der(SEQUENCE, &[&time, &time]);
        let serial = [0x02, 1, serial];
        let tbs = der(SEQUENCE, &[&serial, &algorithm, &name, &validity, &name, &public]);
        Certificate::from_der(&der(SEQUENCE, &[&tbs, &algorithm, &[0x03, 2, 0, 1]])).unwrap()
    }

    /// CAs with keys of their own, but for the second, which has the key and the name of
    /// the first.
    fn cas() -> &'static [Certificate] {
        static CAS: std::sync::OnceLock<Vec<Certificate>> = std::sync::OnceLock::new();
        CAS.get_or_init(|| (0..14).map(|at| made(at, if at == 1 { 0 } else { at })).collect())
    }

    fn one(at: usize) -> Vec<Certificate> {
        vec![cas()[at].clone()]
    }

    #[test]
    fn a_replaced_ca_is_former_until_the_last_certificate_that_it_issued_has_ended() {
        let mut issuers = Issuers::default();
        assert!(issuers.note(&one(0), 30 * DAY, END, DAY));
        assert_eq!(issuers.former(&one(0), DAY), [], "it is the one in use");
        assert_eq!(issuers.former(&one(2), DAY), one(0));
        assert_eq!(issuers.former(&[], DAY), one(0), "the file of the new one is not there yet");
        assert_eq!(issuers.former(&one(2), 30 * DAY - 1), one(0));
        assert_eq!(issuers.former(&one(2), 30 * DAY), []);
    }

    #[test]
    fn news_comes_once_a_day_and_never_reaches_behind_the_end_of_the_ca() {
        let mut issuers = Issuers::default();
        assert!(issuers.note(&one(2), 30 * DAY + 1, END, 0));
        assert!(!issuers.note(&one(2), 31 * DAY, END, DAY - 1));
        assert!(!issuers.note(&one(2), 5 * DAY, END, DAY - 1), "a short one changes nothing");
        assert!(issuers.note(&one(2), 31 * DAY + 1, END, DAY));
        assert!(issuers.note(&one(2), END + DAY, END, DAY));
        assert_eq!(issuers.list()[0].until, END);
        assert!(!issuers.note(&one(3), DAY, END, DAY), "that is over");
        assert!(!issuers.note(&[], 9 * DAY, END, DAY));
    }

    #[test]
    fn another_certificate_of_the_same_key_and_name_takes_the_place_of_the_first() {
        let mut issuers = Issuers::default();
        assert!(issuers.note(&one(0), 30 * DAY, END, 0));
        assert!(issuers.note(&one(1), 10 * DAY, END, 0));
        assert_eq!(issuers.list(), [Issuer { chain: one(1), until: 30 * DAY }]);
        assert_eq!(issuers.former(&one(0), 0), []);
    }

    proptest! {
        #[test]
        fn whoever_issued_what_is_valid_is_in_the_bundle(
            steps in prop::collection::vec((0_usize..5, 1_i64..40, 0_i64..3), 1..60)
        ) {
            let mut issuers = Issuers::default();
            let (mut now, mut leaves) = (0, Vec::new());
            for (ca, days, pause) in steps {
                now += pause * DAY / 2;
                let end = now + days * DAY / 3;
                let _ = issuers.note(&one(ca), end, END, now);
                leaves.push((ca, end));
                // As after a restart.
                issuers = Issuers::new(issuers.list().to_vec());
                prop_assert!(issuers.list().len() <= REMEMBERED);
                let current = one(ca);
                let former = issuers.former(&current, now);
                for (by, end) in &leaves {
                    let mut bundle = former.iter().chain(&current);
                    let same = |it: &Certificate| it.public_key() == cas()[*by].public_key();
                    prop_assert!(now >= *end || bundle.any(same), "{by} {end} {now}");
                }
                let used = |it: &Certificate| leaves.iter().any(|(by, end)| {
                    it.public_key() == cas()[*by].public_key() && now < end + DAY
                });
                prop_assert!(former.iter().all(used), "what issued nothing is not trusted");
            }
        }

        #[test]
        fn there_is_a_bound(cas in prop::collection::vec(0_usize..14, 0..60)) {
            let mut issuers = Issuers::default();
            for ca in cas {
                let _ = issuers.note(&one(ca), 30 * DAY, END, 0);
            }
            prop_assert!(issuers.list().len() <= REMEMBERED);
        }
    }
}
