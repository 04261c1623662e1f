//! Metrics that are looked up when they are asked for: modules by state, the engine, the
//! Edge CA's time. What is counted as it happens is counted where it happens.

use std::sync::{Arc, Weak};

use edgekeep_daemon::metrics::{Family, Gauge};
use edgekeep_daemon::operations::Refresh;
use time::OffsetDateTime;

use crate::report::Report;
use crate::report::health;

/// Modules.
pub(crate) static MODULES: Family<Gauge, 2> =
    Family::new("edgekeep_modules", "Modules by runtime and state.", ["runtime", "state"]);
/// The engine.
pub(crate) static ENGINE: Family<Gauge, 0> = Family::new(
    "edgekeep_engine_reachable",
    "1 while the container engine's events are followed, else 0.",
    [],
);
/// Time of certificates.
pub(crate) static DAYS_LEFT: Family<Gauge, 1> = Family::new(
    "edgekeep_certificate_days_left",
    "Days until a certificate ends; less than nothing when it has.",
    ["certificate"],
);

/// Looks around when metrics are asked for; asks nobody, least of all the engine.
#[must_use]
pub(crate) fn refresh(report: &Arc<Report>) -> Refresh {
    let report = Arc::downgrade(report);
    Box::new(move || {
        let report = Weak::upgrade(&report);
        Box::pin(async move {
            if let Some(report) = report {
                look(&report).await;
            }
        })
    })
}

#[expect(clippy::cast_precision_loss, reason = "numbers of modules")]
async fn look(report: &Report) {
    health::look(report);
    MODULES.clear();
    if let Some(containers) = &report.modules.containers {
        let counts = containers.watch.counts();
        ENGINE.with([]).set(if counts.is_some() { 1.0 } else { 0.0 });
        for (state, count) in
            ["running", "stopped", "unknown"].into_iter().zip(counts.into_iter().flatten())
        {
            MODULES.with(["container", state]).set(count as f64);
        }
    }
    for state in report.modules.processes.list().await {
        MODULES.with(["process", state.state.as_str()]).add(1.0);
    }
    DAYS_LEFT.clear();
    if let Some(end) = *report.credentials.edge_ca.borrow() {
        let left = end - OffsetDateTime::now_utc();
        DAYS_LEFT.with(["aziot-edged-ca"]).set(left.as_seconds_f64() / 86_400.0);
    }
}
