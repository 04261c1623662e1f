//! What moduled counts: verdicts by reason, modules by state, the Edge CA's time, the
//! watchdog's errors, images removed.

use std::sync::{Arc, Weak};

use edgekeep_daemon::metrics::{Counter, Families, Family, Gauge};
use edgekeep_daemon::operations::Refresh;
use time::OffsetDateTime;

use crate::report::health;
use crate::service::Moduled;

/// Callers that were judged.
pub(crate) static VERDICTS: Family<Counter, 2> = Family::new(
    "edgekeep_verdicts",
    "Callers that were judged, and why they were refused.",
    ["verdict", "reason"],
);
/// What modules had decrypted, by what it was encrypted under.
pub(crate) static DECRYPTIONS: Family<Counter, 1> = Family::new(
    "edgekeep_decryptions",
    "Ciphertexts of modules that were to be decrypted: under the module's own key, or the device's one key.",
    ["key"],
);
/// Failed tries of the watchdog.
pub(crate) static WATCHDOG_ERRORS: Family<Counter, 0> = Family::new(
    "edgekeep_watchdog_errors",
    "Rounds of the watchdog in which edgeAgent could not be kept running.",
    [],
);
/// Those since the agent was last seen running.
pub(crate) static WATCHDOG_ERRORS_IN_A_ROW: Family<Gauge, 0> = Family::new(
    "edgekeep_watchdog_errors_in_a_row",
    "The same since edgeAgent was last seen running.",
    [],
);
/// Images that were removed, or could not be.
pub(crate) static IMAGES: Family<Counter, 2> = Family::new(
    "edgekeep_image_removals",
    "Images that were removed or could not be, and why they should go.",
    ["result", "reason"],
);
static MODULES: Family<Gauge, 2> =
    Family::new("edgekeep_modules", "Modules by runtime and state.", ["runtime", "state"]);
static ENGINE: Family<Gauge, 0> = Family::new(
    "edgekeep_engine_reachable",
    "1 while the container engine's events are followed, else 0.",
    [],
);
static DAYS_LEFT: Family<Gauge, 1> = Family::new(
    "edgekeep_certificate_days_left",
    "Days until a certificate ends; less than nothing when it has.",
    ["certificate"],
);

/// What this daemon counts beyond what all do.
pub(crate) static FAMILIES: Families = &[
    &VERDICTS,
    &DECRYPTIONS,
    &WATCHDOG_ERRORS,
    &WATCHDOG_ERRORS_IN_A_ROW,
    &IMAGES,
    &MODULES,
    &ENGINE,
    &DAYS_LEFT,
];

/// Looks around when metrics are asked for; asks nobody, least of all the engine.
#[must_use]
pub(crate) fn refresh(service: &Arc<Moduled>) -> Refresh {
    let service = Arc::downgrade(service);
    Box::new(move || {
        let service = Weak::upgrade(&service);
        Box::pin(async move {
            if let Some(service) = service {
                look(&service).await;
            }
        })
    })
}

#[expect(clippy::cast_precision_loss, reason = "numbers of modules")]
async fn look(service: &Moduled) {
    health::look(service);
    MODULES.clear();
    if let Some(containers) = &service.modules.containers {
        let counts = containers.watch.counts();
        ENGINE.with([]).set(if counts.is_some() { 1.0 } else { 0.0 });
        for (state, count) in
            ["running", "stopped", "unknown"].into_iter().zip(counts.into_iter().flatten())
        {
            MODULES.with(["container", state]).set(count as f64);
        }
    }
    for state in service.modules.processes.list().await {
        MODULES.with(["process", state.state.as_str()]).add(1.0);
    }
    DAYS_LEFT.clear();
    if let Some(end) = *service.edge_ca.borrow() {
        let left = end - OffsetDateTime::now_utc();
        DAYS_LEFT.with(["aziot-edged-ca"]).set(left.as_seconds_f64() / 86_400.0);
    }
}
