//! Metrics of identityd: calls to the cloud, and the days that certificates have left.

use std::sync::Arc;
use std::time::Duration;

use edgekeep_cloud::Observed;
use edgekeep_core::credentials::Certificate;
use edgekeep_core::health::certificates::judge;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::CertId;
use edgekeep_core::names::{DEVICE_KEY, EDGE_CA};
use edgekeep_core::settings::{IdentitydSettings, PreloadedCert};
use edgekeep_daemon::board::Board;
use edgekeep_daemon::metrics::{Counter, Families, Family, Gauge, Histogram};
use edgekeep_daemon::operations::Refresh;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificates::Certificates;

static CALLS: Family<Counter, 3> = Family::new(
    "edgekeep_cloud_calls",
    "Calls to hub and provisioning service.",
    ["service", "method", "result"],
);
static DURATION: Family<Histogram, 2> = Family::new(
    "edgekeep_cloud_call_duration_seconds",
    "Time of calls to hub and provisioning service, retries included.",
    ["service", "method"],
);
static DAYS_LEFT: Family<Gauge, 1> = Family::new(
    "edgekeep_certificate_days_left",
    "Days until a certificate ends, by its id; less than nothing when it has.",
    ["certificate"],
);

/// Metrics of this daemon beyond those that all daemons have.
pub(crate) static FAMILIES: Families = &[&CALLS, &DURATION, &DAYS_LEFT];

/// Ids that certificates have by default.
const USUAL: [&str; 2] = [DEVICE_KEY.as_str(), EDGE_CA.as_str()];
/// Between two looks at the certificates while nobody asks for metrics.
const LOOKS: Duration = Duration::from_secs(60);
/// Certificates of the configuration that are shown.
const CONFIGURED: usize = 64;

/// Counts one call.
pub(crate) fn called(call: Observed) {
    CALLS.with([call.service, call.method, call.result]).increment();
    DURATION.with([call.service, call.method]).observe(call.took);
}

/// Returns the ids of certificates that are looked at: the usual ones and those that the
/// operator named.
pub(crate) fn shown_ids(settings: &IdentitydSettings) -> Vec<CertId> {
    let usual = USUAL.iter().filter_map(|id| id.parse().ok());
    let single = |cert: &PreloadedCert| !matches!(cert, PreloadedCert::List(_));
    let preloaded = settings.preloaded_certs.iter().filter(|(_, cert)| single(cert));
    let named = settings.cert_issuance.keys().chain(preloaded.map(|(id, _)| id)).cloned();
    let ca = settings.local_ca.as_ref().map(|ca| ca.cert.clone());
    let mut ids: Vec<CertId> = usual.chain(named).chain(ca).collect();
    ids.sort();
    ids.dedup();
    ids.truncate(CONFIGURED);
    ids
}

/// Returns the ids as labels, which are made to last as long as the process, once.
fn ids(settings: &IdentitydSettings) -> Vec<(CertId, &'static str)> {
    shown_ids(settings)
        .into_iter()
        .map(|id| (id.clone(), &*id.as_str().to_owned().leak()))
        .collect()
}

/// Looks at the certificates when metrics are asked for.
pub(crate) fn refresh(
    certificates: Arc<Certificates>,
    settings: &IdentitydSettings,
    board: Board,
) -> Refresh {
    let ids = Arc::new(ids(settings));
    Box::new(move || {
        let (certificates, ids, board) =
            (Arc::clone(&certificates), Arc::clone(&ids), board.clone());
        Box::pin(async move {
            let look = move || {
                let now = OffsetDateTime::now_utc();
                let ends = ids
                    .iter()
                    .filter_map(|(id, label)| Some((*label, validity(&certificates.leaf(id)?)?)));
                let ends: Vec<_> = ends.collect();
                for code in [Code::CertificateExpired, Code::CertificateEndsSoon] {
                    let judged = ends.iter().filter_map(|(label, (begin, end))| {
                        let (found, detail) = judge(*begin, *end, now)?;
                        (found == code).then(|| (Subject::certificate(label), detail))
                    });
                    board.replace(code, judged);
                }
                let left = |end: OffsetDateTime| (end - now).as_seconds_f64() / 86_400.0;
                ends.into_iter().map(|(label, (_, end))| (label, left(end))).collect::<Vec<_>>()
            };
            let days = tokio::task::spawn_blocking(look).await.unwrap_or_default();
            DAYS_LEFT.clear();
            for (label, days) in days {
                DAYS_LEFT.with([label]).set(days);
            }
        })
    })
}

/// Looks at the certificates from time to time, for ever.
pub(crate) async fn keep_looking(look: Refresh) {
    loop {
        look().await;
        tokio::time::sleep(LOOKS).await;
    }
}

/// Returns the moments at which a certificate begins and ends.
fn validity(certificate: &Certificate) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let (_, certificate) = X509Certificate::from_der(certificate.der()).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}
