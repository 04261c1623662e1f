//! Telling keyd which modules are made and started, for its log of measurements.
//!
//! One task tells them, in the order in which they came. A start waits until keyd has
//! recorded it, but not for long: a module is made and started also while keyd is away,
//! and its callers are measured all the same. What is not recorded yet is on the board.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{KeysClient, Measurement};
use edgekeep_base::error::chain;
use edgekeep_base::lock::lock;
use edgekeep_core::attestation::Workload;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::ModuleId;
use edgekeep_core::integrity::Word;
use edgekeep_core::layout::Daemon;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::modules::Modules;

/// Measurements that wait for keyd; of what comes beyond that the number is told.
const WAITING: usize = 256;
/// Longest time that a start waits for its record.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two attempts to tell keyd the same.
const AGAIN: Duration = Duration::from_secs(5);
/// Time for which it is shown that a module is not in the log, and never will be.
const SHOWN: Duration = Duration::from_secs(3600);

/// A measurement on its way to keyd.
struct Told {
    module: ModuleId,
    measurement: Measurement,
    /// Dropped when it was told, or when that failed.
    done: oneshot::Sender<()>,
}

/// Measurements that keyd was not told yet.
#[derive(Debug)]
pub(crate) struct Measurements {
    sender: mpsc::Sender<Told>,
    receiver: Mutex<Option<mpsc::Receiver<Told>>>,
    /// Those for which there was no room, and of which keyd does not know yet.
    omitted: AtomicU64,
    /// False while the last attempt failed: then nothing waits.
    answers: AtomicBool,
}

impl Default for Measurements {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self {
            sender,
            receiver: Mutex::new(Some(receiver)),
            omitted: AtomicU64::new(0),
            answers: AtomicBool::new(true),
        }
    }
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.measurement.fmt(f)
    }
}

/// Has it recorded that a module was made.
pub(crate) async fn made(modules: &Modules, module: &ModuleId) {
    let Some(Workload::Container { image, options, .. }) = workload(modules, module) else {
        // What a host module is made of is its executable, which its start tells.
        return;
    };
    let measurement =
        Measurement::ModuleCreate { module: word(module), image: Some(image), options };
    tell(modules, module, measurement).await;
}

/// Has it recorded that a module is about to be started.
pub(crate) async fn starting(modules: &Modules, module: &ModuleId) {
    let (image, executable) = match workload(modules, module) {
        Some(Workload::Container { image, .. }) => (Some(image), None),
        Some(Workload::Process { executable, .. }) => (None, Some(executable)),
        Some(Workload::Service { .. }) | None => return,
    };
    let start = Measurement::ModuleStart { module: word(module), image, executable };
    tell(modules, module, start).await;
}

fn workload(modules: &Modules, module: &ModuleId) -> Option<Workload> {
    modules.registrations.of(module).map(|registration| registration.workload)
}

fn word(module: &ModuleId) -> Word {
    Word::cleaned(module.name())
}

async fn tell(modules: &Modules, module: &ModuleId, measurement: Measurement) {
    let measurements = &modules.measurements;
    let (done, told) = oneshot::channel();
    let item = Told { module: module.clone(), measurement, done };
    if measurements.sender.try_send(item).is_err() {
        measurements.omitted.fetch_add(1, Ordering::Relaxed);
        return;
    }
    if measurements.answers.load(Ordering::Relaxed) {
        // Either way it ends: the start is not held up.
        let _ = timeout(PATIENCE, told).await;
    }
}

/// Tells keyd one measurement after the other, until `stop`.
pub(crate) async fn keep(modules: std::sync::Arc<Modules>, mut stop: watch::Receiver<bool>) {
    let Some(mut receiver) = lock(&modules.measurements.receiver).take() else { return };
    let telling = async {
        while let Some(Told { module, measurement, done }) = receiver.recv().await {
            let omitted = modules.measurements.omitted.swap(0, Ordering::Relaxed);
            if omitted > 0 {
                let detail = format!("{omitted} starts are not recorded: keyd was away for long");
                modules.board.note(Code::NotMeasured, &Subject::device(), detail, SHOWN);
                let count = Measurement::Omitted { daemon: Daemon::Moduled, count: omitted };
                until_told(&modules, &Subject::device(), &count).await;
            }
            until_told(&modules, &Subject::module(&module), &measurement).await;
            drop(done);
        }
    };
    tokio::select! {
        () = telling => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Tells keyd until it has recorded the measurement, or refuses to.
async fn until_told(modules: &Modules, subject: &Subject, measurement: &Measurement) {
    let keys = KeysClient::new(modules.root.keyd_socket());
    let answers = &modules.measurements.answers;
    loop {
        let Err(error) = keys.measured(measurement).await else {
            answers.store(true, Ordering::Relaxed);
            if !matches!(measurement, Measurement::Omitted { .. }) {
                modules.board.clear(Code::NotMeasured, subject);
            }
            return;
        };
        let detail = format!("making or starting it is not recorded: {}", chain(&error));
        if refuses(&error) {
            modules.board.note(Code::NotMeasured, subject, detail, SHOWN);
            return;
        }
        answers.store(false, Ordering::Relaxed);
        modules.board.raise(Code::NotMeasured, subject, detail);
        sleep(AGAIN).await;
    }
}

/// True if the same once more is refused once more.
fn refuses(error: &ClientError) -> bool {
    error.status().is_some_and(|status| status.is_client_error())
}
