//! Keeper of the Edge CA's certificate: looks at the certificate from time to time, when
//! the clock is put to another time, and when a module's certificate cannot be signed.
//! [`edgekeep_core::edge_ca`] decides what follows from a look.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use edgekeep_api::identityd::Identity;
use edgekeep_core::clock::BUILT;
use edgekeep_core::edge_ca::{Attempts, Due, LEAST_GAP, due};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::issuance::Term;
use edgekeep_daemon::clock::reading;
use time::OffsetDateTime;

use crate::identity::Credentials;
use crate::identity::edge_ca;

/// Time between two looks at the certificate when nothing happens. The certificates
/// service renews it without a word.
const PERIOD: Duration = Duration::from_secs(10);
/// Longest wait of a caller who can do without the certificate.
const PATIENCE: Duration = Duration::from_secs(1);

/// Keeper of the certificate. However many callers miss a valid one, one look is made for
/// all of them.
#[derive(Debug, Default)]
pub(crate) struct EdgeCaKeeper {
    /// The certificate's validity, as the last look found or made it.
    known: Mutex<Option<Term>>,
    looks: tokio::sync::Mutex<Looks>,
}

#[derive(Debug, Default)]
struct Looks {
    attempts: Attempts,
    /// Begin and outcome of the last look.
    last: Option<(Instant, Result<(), String>)>,
}

impl EdgeCaKeeper {
    /// Returns the certificate's validity as the last look found or made it.
    pub(crate) fn known(&self) -> Option<Term> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the certificate valid now, as far as possible. Costs nothing where the
    /// certificate is known to be valid.
    pub(crate) async fn ready(&self, credentials: &Credentials) {
        let known = self.known();
        let now = OffsetDateTime::now_utc();
        if known.is_none_or(|validity| due(validity, now, earliest()) == Due::Now) {
            // What is wrong is said by who is asked for the signature.
            let _ = self.look(credentials, Instant::now()).await;
        }
    }

    /// As [`Self::ready`], for a caller who can do without a valid certificate and waits
    /// for a moment only.
    pub(crate) async fn ready_soon(&self, credentials: &Credentials) {
        let _ = tokio::time::timeout(PATIENCE, self.ready(credentials)).await;
    }

    /// Looks at the certificate and makes it anew if it is due, unless a look that began
    /// after `since` has just done so.
    ///
    /// # Errors
    ///
    /// The reason for which there is no valid certificate, also if found out too short a
    /// time ago to try again.
    pub(crate) async fn look(
        &self,
        credentials: &Credentials,
        since: Instant,
    ) -> Result<(), String> {
        let mut looks = self.looks.lock().await;
        if let Some((began, outcome)) = &looks.last
            && *began >= since
        {
            return outcome.clone();
        }
        let wait = looks.attempts.wait(reading());
        if wait > LEAST_GAP
            && let Some((_, Err(problem))) = &looks.last
        {
            return Err(problem.clone());
        }
        tokio::time::sleep(wait.min(LEAST_GAP)).await;
        looks.attempts.begin(reading());
        let began = Instant::now();
        let outcome = match ensure(credentials).await {
            Ok(validity) => {
                let before =
                    self.known.lock().unwrap_or_else(PoisonError::into_inner).replace(validity);
                if before != Some(validity) {
                    // It is part of the bundle.
                    credentials.trust_bundle.forget();
                }
                let _ = credentials.edge_ca.send_replace(Some(validity.not_after));
                credentials.board.clear_all(Code::NoEdgeCa);
                Ok(())
            }
            Err(problem) => {
                let _ = credentials.edge_ca.send_replace(None);
                let certificate = Subject::certificate(credentials.settings.edge_ca.cert.as_str());
                credentials.board.raise(Code::NoEdgeCa, &certificate, &problem);
                Err(problem)
            }
        };
        looks.attempts.end(outcome.is_ok());
        looks.last = Some((began, outcome.clone()));
        outcome
    }

    /// Returns the time until the next look is due.
    pub(crate) async fn pause(&self) -> Duration {
        let looks = self.looks.lock().await;
        match &looks.last {
            Some((_, Err(_))) => looks.attempts.wait(reading()),
            _ => PERIOD,
        }
    }
}

async fn ensure(credentials: &Credentials) -> Result<Term, String> {
    let device = match credentials.identities.client().device().await {
        Ok(Identity::Aziot(identity)) => identity.device_id,
        Ok(Identity::Local(_)) => credentials.settings.hostname.clone(),
        Err(error) => return Err(error.to_string()),
    };
    let now = OffsetDateTime::now_utc();
    let settings = &credentials.settings.edge_ca;
    let ensured = edge_ca::ensure(
        &credentials.keys,
        &credentials.certificates,
        settings,
        &device,
        now,
        earliest(),
    );
    ensured.await.map_err(|error| {
        let cause =
            std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    })
}

/// Returns the earliest moment that the present can be. The services' time is known to
/// identityd, which takes it into account when it issues.
fn earliest() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(BUILT).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
