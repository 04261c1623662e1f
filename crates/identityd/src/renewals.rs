//! The driver of renewals: one task a certificate, which does what
//! [`edgekeep_core::renewal`] decides, keeps the plans on disk, and tells the board of
//! problems.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aws_lc_rs::rand;
use edgekeep_api::certd::{CertificateLine, CertificateList};
use edgekeep_base::lock::lock;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::CertId;
use edgekeep_core::names::OPERATIONAL;
use edgekeep_core::renewal::{
    Event, Kept, LONGEST_SLEEP, Now, Policy, Seen, Span, Stand, State, news, step,
};
use edgekeep_core::settings::{IdentitydSettings, IssuanceMethod, PreloadedCert};
use edgekeep_daemon::board::Board;
use edgekeep_daemon::clock::Steps;
use edgekeep_daemon::store::StateFile;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificates::{CertificateError, Certificates, span_of};
use crate::device::Device;
use crate::metrics::shown_ids;
use crate::trusted_time::TrustedTime;

/// Time between two looks at files that an operator may replace.
const LOOK: Duration = Duration::from_secs(5);

/// Plans of all certificates, as they lie on the disk.
type KeptPlans = BTreeMap<CertId, Kept>;

/// A certificate's plan, and the last failure.
#[derive(Debug)]
struct Plan {
    state: State,
    stand: Stand,
    last_error: Option<String>,
}

/// The plans.
#[derive(Debug)]
pub(crate) struct Renewals {
    certificates: Arc<Certificates>,
    device: Arc<Device>,
    time: Arc<TrustedTime>,
    board: Board,
    plans: Mutex<BTreeMap<CertId, Plan>>,
    file: StateFile<KeptPlans>,
    /// Method of each certificate that is shown, and its place where that is elsewhere.
    shown: BTreeMap<CertId, (&'static str, Option<String>)>,
    /// One renewal of a certificate at a time, asked for or planned.
    attempts: BTreeMap<CertId, tokio::sync::Mutex<()>>,
}

impl Renewals {
    /// Reads the plans that were kept. A file that cannot be read is begun anew: the
    /// certificates themselves tell nearly all.
    pub(crate) fn open(
        folder: &Path,
        settings: &IdentitydSettings,
        certificates: Arc<Certificates>,
        device: Arc<Device>,
        time: Arc<TrustedTime>,
        board: Board,
    ) -> Self {
        let file = StateFile::new(folder.join("renewals.json"), "renewals", 1);
        let mut kept: KeptPlans = file
            .load()
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "the plans of renewals are made anew");
                None
            })
            .unwrap_or_default();
        let now = time.now();
        let managed: Vec<(CertId, Policy)> = settings
            .cert_issuance
            .iter()
            .filter_map(|(id, issuance)| Some((id.clone(), issuance.renewal?)))
            .filter(|(id, _)| !settings.preloaded_certs.contains_key(id))
            .collect();
        let plans = managed.iter().map(|(id, policy)| {
            let kept = kept.remove(id).unwrap_or_else(|| Kept { seed: seed(), ..Kept::default() });
            let state = State::new(*policy, kept, now);
            let state = match signs_itself(settings, id) {
                true => state.of_ca_that_signs_itself(),
                false => state,
            };
            (id.clone(), Plan { state, stand: Stand::UnderWay, last_error: None })
        });
        Self {
            plans: Mutex::new(plans.collect()),
            attempts: managed.iter().map(|(id, _)| (id.clone(), Default::default())).collect(),
            shown: shown_ids(settings)
                .into_iter()
                .map(|id| (id.clone(), (method(settings, &id), place(settings, &id))))
                .collect(),
            certificates,
            device,
            time,
            board,
            file,
        }
    }

    /// Returns the ids of the certificates that are renewed here.
    pub(crate) fn managed(&self) -> Vec<CertId> {
        self.plans().keys().cloned().collect()
    }

    /// Keeps a certificate valid, for ever.
    pub(crate) async fn keep(self: Arc<Self>, id: CertId) {
        let mut steps = Steps::watch();
        let mut changes = self.certificates.changes();
        let mut told_anew = self.time.told_anew();
        let mut issuer = self.certificates.issuer_of(&id);
        let mut leaf = self.certificates.leaf(&id);
        loop {
            let _ = changes.borrow_and_update();
            let leaf_now = self.certificates.leaf(&id);
            if leaf_now != leaf && leaf_now.is_some() {
                // Whoever else renewed it: what failed before is over.
                self.say(&id, None);
            }
            leaf = leaf_now;
            let issuer_now = self.certificates.issuer_of(&id);
            if issuer_now != issuer {
                issuer = issuer_now;
                self.take(&id, Event::IssuerChanged);
            }
            let recovered = self.certificates.recover(&id).await;
            if let Err(error) = &recovered {
                tracing::warn!(certificate = %id, error = %chain(error), "cannot look at the key");
            }
            let (attempt, wake) = match self.news(&id) {
                Some(news) => self.take(&id, news),
                None => (false, LONGEST_SLEEP),
            };
            if attempt {
                let _ = self.attempt(&id).await;
                continue;
            }
            tokio::select! {
                moved = steps.next() => tracing::info!(certificate = %id, seconds = moved, "the clock was put to another time; its renewal is planned anew"),
                changed = changes.changed() => if changed.is_err() { return },
                // What was on hold is planned as soon as a service says that it is right.
                changed = told_anew.changed() => if changed.is_err() { return },
                // keyd may still be starting: what was broken off does not wait long.
                () = tokio::time::sleep(wake.min(if recovered.is_err() { LOOK } else { self.look(&id) })) => {}
            }
        }
    }

    /// Renews a certificate now. The error is in words.
    pub(crate) async fn renew_now(&self, id: &CertId) -> Result<(), String> {
        if !self.attempts.contains_key(id) {
            return Err(format!(
                "certificate \"{id}\" is not renewed by this service: it has no method and no \
                 auto_renew in the configuration"
            ));
        }
        self.take(id, Event::Asked);
        self.attempt(id).await
    }

    async fn attempt(&self, id: &CertId) -> Result<(), String> {
        let Some(turn) = self.attempts.get(id) else { return Ok(()) };
        let _turn = turn.lock().await;
        match self.renewed(id).await {
            Ok(span) => {
                tracing::info!(certificate = %id, end = span.end, "certificate renewed");
                self.say(id, None);
                self.take(id, Event::Succeeded(span));
                Ok(())
            }
            Err((words, retry_after)) => {
                self.say(id, Some(words.clone()));
                self.take(id, Event::Failed { retry_after });
                Err(words)
            }
        }
    }

    /// Has a certificate renewed by whoever issues it. The error is in words, with the
    /// time for which the issuer asks to be left alone.
    async fn renewed(&self, id: &CertId) -> Result<Span, (String, Option<Duration>)> {
        if OPERATIONAL.is_cert(id) {
            self.device.renew_certificate().await?;
            let renewed = self.certificates.leaf(id).as_ref().and_then(span_of);
            return renewed.ok_or_else(|| ("the certificate is gone again".to_owned(), None));
        }
        let rotate = self.plans().get(id).is_some_and(|plan| plan.state.policy().rotate_key);
        self.certificates.renew(id, rotate).await.map_err(|error| {
            let retry_after = match &error {
                CertificateError::Est { source } => source.retry_after(),
                _ => None,
            };
            (chain(&error), retry_after)
        })
    }

    /// Looks at a certificate. `None`: there is no news for its plan.
    fn news(&self, id: &CertId) -> Option<Event> {
        let seen = self.certificates.leaf(id).map(|leaf| Seen {
            span: span_of(&leaf),
            former_issuer: self.certificates.is_of_another_issuer(id),
        });
        let policy = self.plans().get(id).map(|plan| *plan.state.policy())?;
        news(seen, &policy, self.certificates.makes_first(id))
    }

    /// Returns the time between two looks at the files that a certificate rests on: an
    /// operator replaces the local CA's without a word.
    fn look(&self, id: &CertId) -> Duration {
        match self.certificates.method(id) {
            Some(IssuanceMethod::LocalCa) => LOOK,
            _ => LONGEST_SLEEP,
        }
    }

    fn say(&self, id: &CertId, error: Option<String>) {
        let subject = Subject::certificate(id.as_str());
        match &error {
            Some(words) => self.board.raise(Code::RenewalFails, &subject, words),
            None => self.board.clear(Code::RenewalFails, &subject),
        }
        if let Some(plan) = self.plans().get_mut(id) {
            plan.last_error = error;
        }
    }

    /// Takes in an event. Returns whether an attempt is to be made, and the time to the
    /// next look.
    fn take(&self, id: &CertId, event: Event) -> (bool, Duration) {
        let now: Now = self.time.now();
        let mut plans = self.plans();
        let Some(plan) = plans.get_mut(id) else {
            return (false, LONGEST_SLEEP);
        };
        let (state, decision) = step(plan.state, event, now);
        (plan.state, plan.stand) = (state, decision.stand);
        let subject = Subject::certificate(id.as_str());
        if decision.stand == Stand::ClockImplausible {
            let words = "the renewal is planned once the clock is right";
            self.board.raise(Code::RenewalOnHold, &subject, words);
        } else {
            self.board.clear(Code::RenewalOnHold, &subject);
        }
        if decision.keep {
            let kept = plans.iter().map(|(id, plan)| (id.clone(), plan.state.kept())).collect();
            // Short, and seldom.
            if let Err(error) = self.file.save(&kept) {
                tracing::warn!(%error, "the plans of renewals are not kept");
            }
        }
        (decision.attempt, decision.wake)
    }

    fn plans(&self) -> MutexGuard<'_, BTreeMap<CertId, Plan>> {
        lock(&self.plans)
    }

    /// Returns the certificates that are shown, and what is planned for them.
    pub(crate) fn list(&self) -> CertificateList {
        let lines = self
            .shown
            .iter()
            .filter_map(|(id, (method, place))| self.line(id, method, place.as_ref()));
        CertificateList { certificates: lines.collect() }
    }

    fn line(&self, id: &CertId, method: &str, place: Option<&String>) -> Option<CertificateLine> {
        let leaf = self.certificates.leaf(id)?;
        let (_, certificate) = X509Certificate::from_der(leaf.der()).ok()?;
        let end = certificate.validity().not_after.to_datetime();
        let plans = self.plans();
        let plan = plans.get(id);
        let (renewal, next) = plan.map_or(("none", None), |plan| shown(plan.stand));
        Some(CertificateLine {
            id: id.to_string(),
            method: method.to_owned(),
            place: place.cloned(),
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            key: format!("keyd:{id}"),
            not_before: rfc3339(certificate.validity().not_before.to_datetime()),
            not_after: rfc3339(end),
            days_left: tenths_of_days(end - OffsetDateTime::now_utc()),
            renewal: renewal.to_owned(),
            next_renewal: next
                .and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok())
                .map(rfc3339),
            last_error: plan.and_then(|plan| plan.last_error.clone()),
        })
    }
}

/// True for the local CA if its own key signs its certificate. The Edge CA is asked for
/// by the module runtime, and a device's own identity may be known by its thumbprint.
fn signs_itself(settings: &IdentitydSettings, id: &CertId) -> bool {
    settings.local_ca.as_ref().is_some_and(|ca| ca.cert == *id)
        && settings.cert_issuance.get(id).is_some_and(|it| it.method == IssuanceMethod::SelfSigned)
}

fn shown(stand: Stand) -> (&'static str, Option<i64>) {
    match stand {
        Stand::Planned(at) => ("planned", Some(at)),
        Stand::Window(at) => ("window", Some(at)),
        Stand::Retry(at) => ("retry", Some(at)),
        Stand::ClockImplausible => ("clock-implausible", None),
        Stand::UnderWay => ("under-way", None),
        Stand::Off => ("off", None),
    }
}

/// Returns a time in days, in whole tenths. Rounded down: what is left is never less.
fn tenths_of_days(left: time::Duration) -> f64 {
    (left.as_seconds_f64() / 8_640.0).floor() / 10.0
}

fn rfc3339(moment: OffsetDateTime) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}

fn method(settings: &IdentitydSettings, id: &CertId) -> &'static str {
    match settings.preloaded_certs.get(id) {
        Some(PreloadedCert::File(_)) => return "file",
        Some(PreloadedCert::Token { .. }) => return "token",
        Some(PreloadedCert::List(_)) | None => {}
    }
    match settings.cert_issuance.get(id).map(|issuance| issuance.method) {
        Some(IssuanceMethod::SelfSigned) => "self_signed",
        Some(IssuanceMethod::LocalCa) => "local_ca",
        Some(IssuanceMethod::Est) => "est",
        Some(IssuanceMethod::Dps) => "dps",
        None => "api",
    }
}

/// Returns the URI of a certificate that is in a file or on a token.
fn place(settings: &IdentitydSettings, id: &CertId) -> Option<String> {
    match settings.preloaded_certs.get(id)? {
        PreloadedCert::File(uri) | PreloadedCert::Token { token: uri } => Some(uri.clone()),
        PreloadedCert::List(_) => None,
    }
}

/// Returns a random number for a plan. Without one the plan has no jitter, which is no
/// reason not to renew.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    let _ = rand::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

fn chain(error: &CertificateError) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    words
}
