//! Identity of the device: carries out what [`edgekeep_core::provisioning`] decides.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use edgekeep_api::tpmd::AuthKeySlot;
use edgekeep_base::lock::{read, write};
use edgekeep_cloud::{CloudError, Dps, Progress, Registration, Transport};
use edgekeep_core::authority::Authority;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::provisioning::{
    Action, Activity, DeviceIdentity, Event, Failure, Now, Provisioned, Requester, Stand, State,
    step,
};
use edgekeep_core::settings::CredentialKind;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::clock::{self, Steps};
use edgekeep_daemon::store::StateFile;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::keys::DeviceKeys;
use crate::operational::Operational;
use crate::prover::Prover;
use crate::tpm;

/// Wishes that wait at most; more of them would not say more.
const WISHES: usize = 8;
/// Most failures that are remembered.
const FAILURES: usize = 8;

/// Problems that end with an identity.
const PROVISIONING: [Code; 5] = [
    Code::NoIdentity,
    Code::ProvisioningRefused,
    Code::ProvisioningFault,
    Code::ProvisioningUnreachable,
    Code::ProvisioningNotAsked,
];

/// Time between two looks at a certificate that an operator may replace.
const LOOK: Duration = Duration::from_secs(5);

/// A wish of the cloud to be left alone for longer is told to the operator.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// The problem that a failed call to the provisioning service is.
const fn problem(error: &CloudError) -> Code {
    match error {
        CloudError::NetworkDown { .. }
        | CloudError::Timeout { .. }
        | CloudError::Untrusted { .. } => Code::ProvisioningUnreachable,
        CloudError::Service { .. } | CloudError::Throttled { .. } | CloudError::Answer { .. } => {
            Code::ProvisioningFault
        }
        CloudError::Signer(_) | CloudError::Roots { .. } | CloudError::Request { .. } => {
            Code::ProvisioningNotAsked
        }
        _ => Code::ProvisioningRefused,
    }
}

/// The end of an attempt to get a certificate for the hub: the reason of a failure in
/// words, and the time until the next attempt, where it is known.
pub(crate) type CertificateOutcome = Result<(), (String, Option<Duration>)>;

/// A wish that others have about the device's provisioning.
#[derive(Debug)]
pub(crate) enum Wish {
    /// A new certificate for the hub; who wishes is told of the end.
    Certificate(oneshot::Sender<CertificateOutcome>),
    /// A new registration.
    Reprovision(Requester),
    /// To be told that the hub answers the device as one that it knows.
    HubAccepted,
    /// To be told that the hub does not accept the device.
    HubRefused,
}

/// State of the device that everybody may know.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The identity that counts now.
    pub(crate) identity: Option<Arc<DeviceIdentity>>,
    /// Reason why there is no identity, or no newer identity; `None` if no attempt has
    /// failed since the last identity.
    pub(crate) remark: Option<String>,
    /// Stand of the provisioning.
    pub(crate) stand: Option<Stand>,
    /// Moment of the next call to the provisioning service.
    pub(crate) next: Option<Instant>,
    /// Time at which the identity was obtained, in seconds since the epoch.
    pub(crate) obtained_at: Option<i64>,
    /// The last failures, the newest first: seconds since the epoch, and the reason.
    pub(crate) errors: VecDeque<(i64, String)>,
}

/// The device's identity, for reading, and the way to ask for another one.
#[derive(Debug)]
pub(crate) struct Device {
    view: RwLock<View>,
    wishes: mpsc::Sender<Wish>,
    /// True if the hub's acceptance of the identity that is served was told.
    is_accepted: AtomicBool,
    /// Counts the identities that were served; others watch it.
    served: watch::Sender<u64>,
}

impl Device {
    /// A device without an identity, and where its wishes arrive.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Wish>) {
        let (wishes, receiver) = mpsc::channel(WISHES);
        let served = watch::Sender::new(0);
        let is_accepted = AtomicBool::new(false);
        (Self { view: RwLock::default(), wishes, is_accepted, served }, receiver)
    }

    pub(crate) fn view(&self) -> View {
        read(&self.view).clone()
    }

    /// Changes with every identity that is served.
    pub(crate) fn served(&self) -> watch::Receiver<u64> {
        self.served.subscribe()
    }

    /// Never waits: if the queue is full, such wishes are on their way already.
    pub(crate) fn wish(&self, wish: Wish) {
        let _ = self.wishes.try_send(wish);
    }

    /// Has a certificate for the hub renewed by a new registration.
    ///
    /// # Errors
    /// The reason in words if no new certificate is in place.
    pub(crate) async fn renew_certificate(&self) -> CertificateOutcome {
        let (told, outcome) = oneshot::channel();
        self.wish(Wish::Certificate(told));
        let busy = || Err(("the device's provisioning has too much to do".to_owned(), None));
        outcome.await.unwrap_or_else(|_| busy())
    }

    /// Tells that the hub answers the device as one that it knows.
    pub(crate) fn accepted(&self) {
        if !self.is_accepted.swap(true, Ordering::Relaxed) {
            self.wish(Wish::HubAccepted);
        }
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut write(&self.view));
    }
}

/// The one who carries out.
pub(crate) struct Provisioner {
    pub(crate) device: Arc<Device>,
    pub(crate) wishes: mpsc::Receiver<Wish>,
    pub(crate) file: StateFile<Provisioned>,
    /// Registration to make; `None` unless the provisioning service is the source.
    pub(crate) registration: Option<Registration>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) keys: Arc<DeviceKeys>,
    pub(crate) prover: Arc<Prover>,
    /// Changes with every certificate that comes or goes.
    pub(crate) certificates: watch::Receiver<u64>,
    pub(crate) board: Board,
    /// The kind of problem that the last failed call was.
    pub(crate) last: Code,
    /// Key of the registration under way, as only the TPM can read it.
    pub(crate) wrapped_key: Option<Vec<u8>>,
    /// Certificates for the hub that come with a registration.
    pub(crate) operational: Operational,
}

impl Provisioner {
    /// Serves what is there and gets what is missing, for ever.
    ///
    /// The first identity, where one is stored or configured, is served before this waits
    /// for anything.
    pub(crate) async fn run(mut self, mut state: State) {
        let start = Instant::now();
        let mut wake: Option<Instant> = None;
        let mut events = VecDeque::from([Event::Started]);
        let mut steps = Steps::watch();
        let by_certificate = self.prover.kind() == Some(CredentialKind::X509);
        let mut changes = self.certificates.clone();
        let mut certificate = state.certificate().map(str::to_owned);
        loop {
            while let Some(event) = events.pop_front() {
                let (next, actions) = step(state, event, now(start));
                state = next;
                for action in actions {
                    match action {
                        Action::Register => events.push_back(self.ask(None).await),
                        Action::Poll { operation } => {
                            events.push_back(self.ask(Some(&operation)).await);
                        }
                        Action::Prove { identity } => events.push_back(self.prove(&identity).await),
                        Action::Store(replacement) => {
                            events.push_back(self.store(&replacement).await);
                        }
                        Action::WakeAt(until) => wake = Some(start + until),
                        Action::Serve { identity, replaced } => self.serve(identity, replaced),
                        Action::Report(failure) => self.report(&failure, state.failures()),
                    }
                }
            }
            self.device.change(|view| {
                let stand = state.stand();
                view.next = stand.next.map(|at| start + at);
                view.stand = Some(stand);
                view.obtained_at = state.provisioned().map(|it| it.obtained_at);
            });
            if self.registration.is_some() && self.device.view().identity.is_none() {
                self.no_identity();
            }
            self.answer_wishes(&state, now(start));
            let pause = wake.filter(|_| !matches!(state.activity(), Activity::Idle));
            tokio::select! {
                wish = self.wishes.recv() => match wish {
                    Some(Wish::Reprovision(by)) => {
                        tracing::info!(?by, "a new provisioning of the device was asked for");
                        events.push_back(Event::ReprovisionRequested(by));
                    }
                    Some(Wish::HubAccepted) => events.push_back(Event::HubAcceptedDevice),
                    Some(Wish::HubRefused) => events.push_back(Event::HubRefusedDevice),
                    Some(Wish::Certificate(told)) => {
                        self.operational.wishes.push(told);
                        events.push_back(Event::CertificateDue);
                    }
                    None => return,
                },
                () = tokio::time::sleep_until(pause.unwrap_or_else(Instant::now)), if pause.is_some() => {
                    wake = None;
                    events.push_back(Event::Woken);
                }
                () = certificate_may_change(&mut changes), if by_certificate => {
                    let found = self.prover.thumbprint();
                    if found != certificate {
                        certificate.clone_from(&found);
                        events.push_back(Event::CertificateChanged(found));
                    }
                }
                // Looked for only where there is something that it may change.
                _ = steps.next(), if matches!(state.activity(), Activity::Pausing { .. }) => {
                    tracing::info!("the clock was put to another time; the device's provisioning is tried again");
                    events.push_back(Event::ClockStepped);
                }
            }
        }
    }

    fn no_identity(&self) {
        let remark = self.device.view().remark;
        let detail = remark.as_deref().unwrap_or("provisioning is under way");
        self.board.raise(Code::NoIdentity, &Subject::device(), detail);
    }

    /// Tells of a wish to be left alone for long.
    fn note_wait(&self, retry_after: Option<Duration>) {
        let subject = self.subject();
        match retry_after.filter(|asked| *asked > LONG) {
            Some(asked) => {
                let detail = format!("it asks for a pause of {} s", asked.as_secs());
                self.board.raise(Code::CloudAsksToWait, &subject, detail);
            }
            None => self.board.clear(Code::CloudAsksToWait, &subject),
        }
    }

    fn subject(&self) -> Subject {
        let endpoint =
            self.registration.as_ref().map(|registration| registration.endpoint.as_str());
        Subject::cloud(endpoint.unwrap_or("none"))
    }

    async fn ask(&mut self, operation: Option<&str>) -> Event {
        self.last = Code::ProvisioningNotAsked;
        let Some(mut registration) = self.registration.clone() else {
            return failed("no provisioning service is configured".to_owned());
        };
        self.keys.wait_for_keyd().await;
        let credential = match self.prover.to_service().await {
            Ok(credential) => credential,
            Err(error) => return self.judged(&error),
        };
        if registration.registration_id.is_empty() {
            let Some(name) = self.prover.common_name() else {
                return failed(
                    "the device's certificate has no common name, and no registration_id is \
                     configured"
                        .to_owned(),
                );
            };
            registration.registration_id = name;
        }
        if self.prover.is_operational()
            && operation.is_none()
            && let Err(failure) = self.operational.want(&mut registration).await
        {
            return Event::Failed(failure);
        }
        let dps = match Dps::new(Arc::clone(&self.transport), registration, credential) {
            Ok(dps) => dps,
            Err(error) => {
                return failed(format!("the provisioning endpoint is not usable: {error}"));
            }
        };
        if let (Some(tpm), None) = (self.prover.tpm(), operation) {
            match tpm::attest(tpm, &dps).await {
                Ok(key) => self.wrapped_key = Some(key),
                Err(error) => return self.judged(&error),
            }
        }
        let answer = match operation {
            None => dps.register().await,
            Some(operation) => dps.poll(operation).await,
        };
        match answer {
            Ok(Progress::Assigning { operation, retry_after }) => {
                self.note_wait(retry_after);
                Event::Assigning { operation, retry_after }
            }
            Ok(Progress::Assigned { hub, device_id, tpm_key, issued }) => {
                self.operational.issued = issued;
                // Without a key for the hub the registration's is the hub's, too.
                if !self.prover.is_operational()
                    && let (Some(tpm), Some(key)) =
                        (self.prover.tpm(), tpm_key.or_else(|| self.wrapped_key.take()))
                    && let Err(error) = tpm::import(tpm, &key, AuthKeySlot::Hub).await
                {
                    return self.judged(&error);
                }
                Event::Assigned(DeviceIdentity { hub, device_id })
            }
            Ok(Progress::Failed { reason }) => {
                self.last = Code::ProvisioningRefused;
                let reason =
                    format!("the provisioning service decided against this device: {reason}");
                Event::Failed(Failure { refused: true, reason, retry_after: None })
            }
            Err(error) => self.judged(&error),
        }
    }

    fn judged(&mut self, error: &CloudError) -> Event {
        self.last = problem(error);
        self.note_wait(error.retry_after());
        let was_asked = self.last != Code::ProvisioningNotAsked;
        Event::Failed(Failure {
            refused: was_asked && !error.is_network_down(),
            reason: error.chain(),
            retry_after: error.retry_after(),
        })
    }

    /// Tries the certificate that came with an assignment.
    async fn prove(&mut self, identity: &DeviceIdentity) -> Event {
        self.last = Code::ProvisioningRefused;
        match self.operational.prove(&self.transport, identity).await {
            Ok(certificate) => Event::Proven { certificate },
            Err(failure) => Event::Failed(failure),
        }
    }

    /// Tells those who wished for a certificate what came of it, as soon as nothing is
    /// under way.
    fn answer_wishes(&mut self, state: &State, now: Now) {
        let outcome = match state.activity() {
            Activity::Idle if state.last_failure().is_none() => Ok(()),
            Activity::Idle | Activity::Pausing { .. } => {
                let reason = state.last_failure().map(|failure| failure.reason.clone());
                let reason = reason.unwrap_or_else(|| "there were too many calls".to_owned());
                let next = state.stand().next.map(|at| at.saturating_sub(now.monotonic));
                Err((reason, next))
            }
            _ => return,
        };
        for told in self.operational.wishes.drain(..) {
            // Who asked may be gone.
            let _ = told.send(outcome.clone());
        }
    }

    /// Rare, and short against what it protects: done here and now.
    async fn store(&mut self, replacement: &Provisioned) -> Event {
        if let Err(reason) = self.operational.take().await {
            return Event::StoreFailed { reason };
        }
        match self.file.save(replacement) {
            Ok(()) => Event::Stored,
            Err(error) => Event::StoreFailed { reason: error.to_string() },
        }
    }

    fn serve(&self, identity: DeviceIdentity, replaced: bool) {
        tracing::info!(hub = %identity.hub, device = %identity.device_id, replaced, "the device has an identity");
        self.device.change(|view| {
            view.identity = Some(Arc::new(identity));
            view.remark = None;
        });
        for code in PROVISIONING {
            self.board.clear_all(code);
        }
        self.note_wait(None);
        self.device.is_accepted.store(false, Ordering::Relaxed);
        self.device.served.send_modify(|count| *count += 1);
    }

    fn report(&self, failure: &Failure, failures: u32) {
        tracing::warn!(reason = %failure.reason, failures, "the device could not be provisioned; trying again later");
        let others = [Code::NoIdentity, self.last];
        for other in PROVISIONING.into_iter().filter(|other| !others.contains(other)) {
            self.board.clear_all(other);
        }
        self.board.raise(self.last, &self.subject(), &failure.reason);
        self.device.change(|view| {
            view.remark = Some(failure.reason.clone());
            view.errors.truncate(FAILURES - 1);
            view.errors.push_front((clock::wall(), failure.reason.clone()));
        });
    }
}

/// Waits until it is time to look at the device's certificate again.
async fn certificate_may_change(changes: &mut watch::Receiver<u64>) {
    // The last one who could tell is gone: the process ends.
    if let Ok(Err(_)) = tokio::time::timeout(LOOK, changes.changed()).await {
        std::future::pending::<()>().await;
    }
}

fn failed(reason: String) -> Event {
    Event::Failed(Failure { refused: true, reason, retry_after: None })
}

/// Returns true if a configured hub name is the name of a host. The answer is needed at
/// the start, so that a wrong name is reported then and not at the first call.
pub(crate) fn is_host(name: &str) -> bool {
    name.parse::<Authority>().is_ok()
}

fn now(start: Instant) -> Now {
    Now { monotonic: start.elapsed(), wall: clock::wall(), random: random() }
}

/// A random number; 0 if the system has none, which costs jitter and nothing else.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}
