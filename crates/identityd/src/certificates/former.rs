//! Former CAs: those that issued certificates which are still in use, before they got
//! another key or name. They stay in the trust bundle for that time.
//!
//! Beside each CA of a trust bundle lies a PEM file with those that issued there, each
//! with the end of its use on a line before it. A chain without such a line is trusted
//! until its first certificate ends.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use edgekeep_base::file::{self, Rules};
use edgekeep_base::lock::lock;
use edgekeep_core::credentials::{Certificate, Limits, pem_of, read_certificates};
use edgekeep_core::issuers::{Issuer, Issuers};
use edgekeep_daemon::store::{self, StoreError};

use super::span_of;

/// Begin of the line with the end of a CA's use, in seconds since 1970.
const UNTIL: &str = "in-use-until: ";

/// The former CAs, as they were read or written last.
#[derive(Debug, Default)]
pub(super) struct FormerCas(Mutex<BTreeMap<PathBuf, Issuers>>);

impl FormerCas {
    /// Returns the former certificates beside this file that verify what is in use, but
    /// for those in whose place `current` does, if that is not over.
    pub(super) fn read(
        &self,
        certificate: &Path,
        current: &[Certificate],
        now: i64,
    ) -> Vec<Certificate> {
        let path = beside(certificate);
        let is_over = current.first().and_then(span_of).is_none_or(|span| span.end <= now);
        let current = if is_over { &[] } else { current };
        let mut known = lock(&self.0);
        known.entry(path.clone()).or_insert_with(|| load(&path)).former(current, now)
    }

    /// Remembers that a chain has issued a certificate that ends at `until`, before that
    /// is handed out.
    pub(super) fn note(
        &self,
        certificate: &Path,
        chain: &[Certificate],
        until: i64,
        now: i64,
    ) -> Result<(), StoreError> {
        let Some(span) = chain.first().and_then(span_of) else { return Ok(()) };
        let path = beside(certificate);
        let mut known = lock(&self.0);
        let kept = known.entry(path.clone()).or_insert_with(|| load(&path));
        let mut issuers = kept.clone();
        if issuers.note(chain, until, span.end, now) {
            store::write_atomic(&path, text_of(&issuers).as_bytes(), 0o600)?;
            *kept = issuers;
        }
        Ok(())
    }

    /// Remembers the chain that is about to be replaced by `new` until it ends, if what
    /// it issued cannot be verified with the new one.
    pub(super) fn replace(
        &self,
        certificate: &Path,
        old: &[Certificate],
        new: &[Certificate],
        now: i64,
    ) -> Result<(), StoreError> {
        let (Some(before), Some(after)) = (old.first(), new.first()) else { return Ok(()) };
        let same = before.public_key() == after.public_key() && before.subject() == after.subject();
        match span_of(before) {
            Some(span) if !same => self.note(certificate, old, span.end, now),
            _ => Ok(()),
        }
    }
}

/// Returns the file beside a certificate's own.
fn beside(certificate: &Path) -> PathBuf {
    certificate.with_extension("former")
}

fn load(path: &Path) -> Issuers {
    match file::read(path, Rules::own(Limits::FILE.bytes as u64)) {
        Ok(content) => read(&String::from_utf8_lossy(&content)),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "former CAs are not in the trust bundle");
            }
            Issuers::default()
        }
    }
}

fn text_of(issuers: &Issuers) -> String {
    let section = |issuer: &Issuer| format!("{UNTIL}{}\n{}", issuer.until, pem_of(&issuer.chain));
    issuers.list().iter().map(section).collect()
}

fn read(text: &str) -> Issuers {
    let mut sections = text.split(UNTIL);
    // An earlier version wrote the certificates alone, one CA and its chain after the
    // other.
    let alone = certificates(sections.next().unwrap_or_default()).into_iter();
    let alone = alone.map(|certificate| (i64::MAX, vec![certificate]));
    let with_end = sections.filter_map(|section| {
        let (until, pem) = section.split_once('\n')?;
        Some((until.trim().parse().ok()?, certificates(pem)))
    });
    let issuers = with_end.chain(alone).filter_map(|(until, chain)| {
        let end = span_of(chain.first()?)?.end;
        Some(Issuer { chain, until: end.min(until) })
    });
    Issuers::new(issuers.collect())
}

fn certificates(text: &str) -> Vec<Certificate> {
    read_certificates(text.as_bytes(), &Limits::FILE).certificates
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;

    const DAY: i64 = 86_400;

    fn ca(name: &str) -> Certificate {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = OffsetDateTime::UNIX_EPOCH;
        params.not_after = OffsetDateTime::UNIX_EPOCH + Duration::days(100);
        let key = rcgen::KeyPair::generate().unwrap();
        Certificate::from_der(params.self_signed(&key).unwrap().der()).unwrap()
    }

    #[test]
    fn former_cas_outlast_a_restart_with_the_end_of_their_use() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.cer");
        let (first, second, third) = (vec![ca("1"), ca("root")], vec![ca("2")], vec![ca("3")]);
        let former = FormerCas::default();
        former.note(&file, &first, 10 * DAY, 0).unwrap();
        former.replace(&file, &second, &third, 0).unwrap();
        former.replace(&file, &third, &third, 0).unwrap();
        let anew = FormerCas::default();
        for former in [former, anew] {
            let both: Vec<_> = second.iter().chain(&first).cloned().collect();
            assert_eq!(former.read(&file, &third, 10 * DAY - 1), both);
            assert_eq!(former.read(&file, &third, 10 * DAY), second);
            assert_eq!(former.read(&file, &first, 0), second);
            assert!(former.read(&file, &third, 100 * DAY).is_empty());
            assert_eq!(former.read(&file, &second, 0), first);
        }
    }

    #[test]
    fn a_file_of_an_earlier_version_and_a_damaged_one_are_read_as_far_as_they_go() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.cer");
        let (a, b) = (ca("a"), ca("b"));
        std::fs::write(beside(&file), pem_of([&a, &b])).unwrap();
        assert_eq!(FormerCas::default().read(&file, &[], 99 * DAY), [a.clone(), b.clone()]);
        assert!(FormerCas::default().read(&file, &[], 100 * DAY).is_empty());
        let odd = format!("{UNTIL}never\n{}{UNTIL}{}\n{}{UNTIL}", a.to_pem(), 5 * DAY, b.to_pem());
        std::fs::write(beside(&file), odd).unwrap();
        assert_eq!(FormerCas::default().read(&file, &[], 0), [b]);
        std::fs::write(beside(&file), [0, 159, 146, 150]).unwrap();
        assert!(FormerCas::default().read(&file, &[], 0).is_empty());
    }

    #[test]
    fn a_ca_that_cannot_be_written_down_issues_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gone/ca.cer");
        let former = FormerCas::default();
        assert!(former.note(&file, &[ca("1")], DAY, 0).is_err());
        assert!(former.read(&file, &[], 0).is_empty(), "nothing is half remembered");
    }
}
