//! moduled's state, and the one gate in front of everything that needs an identity.

use std::sync::Arc;

use edgekeep_api::attestation::{Attestation, Check, Explanation, Facts, Registered, Seen};
use edgekeep_api::certd::CertificatesClient;
use edgekeep_api::identityd::IdentityClient;
use edgekeep_api::keyd::KeysClient;
use edgekeep_api::management::{Approval, SystemInfo};
use edgekeep_core::attestation::{
    Asked, DenyReason, Door, ProcessInstance, Running, RunningFacts, Workload,
};
use edgekeep_core::health::calls::{SHOWN_FOR, is_of_device};
use edgekeep_core::health::{self, Code};
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::peer::Caller;
use edgekeep_daemon::server::{HttpError, Request};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};

use crate::gate::attest::{Attestor, Subject, Who};
use crate::gate::trail::{ToRefuse, VerdictTrail, without_evidence};
use crate::identity::identities::IdentityCache;
use crate::identity::keys::{KeptHandle, ModuleDataKeys, TrustBundleCache};
use crate::keepers::edge_ca::EdgeCaKeeper;
use crate::keepers::images::Images;
use crate::keepers::restarts::Restarts;
use crate::modules::Modules;
use crate::modules::approvals::Approvals;
use crate::modules::registrations::Registrations;
use crate::modules::replacements::Replacements;
use crate::modules::sockets::Sockets;
use crate::report::health::Orders;
use crate::report::systeminfo;

/// Everything that the routes share.
#[derive(Debug)]
pub(crate) struct Moduled {
    /// What the operator wants.
    pub(crate) settings: ModuledSettings,
    /// Where the device is.
    pub(crate) root: Root,
    /// Keys stay behind this.
    pub(crate) keys: KeysClient,
    /// Certificates are issued behind this.
    pub(crate) certificates: CertificatesClient,
    /// Module identities.
    pub(crate) identities: Arc<IdentityCache>,
    /// Who calls.
    pub(crate) attestor: Attestor,
    /// What was decided about them.
    pub(crate) trail: VerdictTrail,
    /// Who may.
    pub(crate) registrations: Registrations,
    /// Updates that can be taken back.
    pub(crate) replacements: Replacements,
    /// What runs.
    pub(crate) modules: Modules,
    /// Images of modules, and of former ones.
    pub(crate) images: Images,
    /// Where modules call.
    pub(crate) sockets: Sockets,
    /// Keys of single modules' data.
    pub(crate) module_data_keys: ModuleDataKeys,
    /// The device's one key for modules' data, for what was encrypted under it.
    pub(crate) device_data_key: KeptHandle,
    /// Handle of the Edge CA's key.
    pub(crate) edge_ca_key: KeptHandle,
    /// The trust bundle.
    pub(crate) trust_bundle: Arc<TrustBundleCache>,
    /// Held while a support bundle is made: one at a time, for it is made in memory.
    pub(crate) support_bundle: Semaphore,
    /// The machine.
    pub(crate) system_info: SystemInfo,
    /// The Edge CA certificate's end, while there is a usable one.
    pub(crate) edge_ca: watch::Sender<Option<OffsetDateTime>>,
    /// Keeps that certificate valid.
    pub(crate) edge_ca_keeper: EdgeCaKeeper,
    /// The agent's id.
    agent: ModuleId,
    /// What is wrong, for operators.
    pub(crate) board: Board,
    /// What is wanted of the modules.
    pub(crate) orders: Orders,
    /// Executables of the host that were approved since they were configured.
    pub(crate) approvals: Approvals,
    /// Host modules that are started again when they end.
    pub(crate) restarts: Restarts,
}

impl Moduled {
    /// The state of a daemon with these settings and runtimes. Calls nobody yet.
    #[must_use]
    pub(crate) fn new(
        root: Root,
        settings: ModuledSettings,
        attestor: Attestor,
        registrations: Registrations,
        replacements: Replacements,
        approvals: Approvals,
        modules: Modules,
    ) -> Arc<Self> {
        let identities = IdentityCache::new(IdentityClient::new(root.identityd_socket()));
        Arc::new(Self {
            keys: KeysClient::new(root.keyd_socket()),
            certificates: CertificatesClient::new(root.certd_socket()),
            identities: Arc::new(identities),
            attestor,
            trail: VerdictTrail::open(&root.state_folder(Daemon::Moduled), |name| {
                name.parse().is_ok_and(|module| registrations.of(&module).is_some())
            }),
            registrations,
            replacements,
            modules,
            images: Images::load(&root.state_folder(Daemon::Moduled)),
            sockets: Sockets::default(),
            module_data_keys: ModuleDataKeys::default(),
            device_data_key: KeptHandle::of_device_data_key(settings.module_encryption),
            edge_ca_key: KeptHandle::of_key_pair(settings.edge_ca.key.clone()),
            trust_bundle: Arc::default(),
            support_bundle: Semaphore::new(1),
            system_info: systeminfo::read(&settings.additional_info),
            edge_ca: watch::Sender::new(None),
            edge_ca_keeper: EdgeCaKeeper::default(),
            board: Board::new(),
            orders: Orders::default(),
            agent: edge_agent(),
            approvals,
            restarts: Restarts::default(),
            settings,
            root,
        })
    }

    /// This daemon's state folder.
    #[must_use]
    pub(crate) fn state_folder(&self) -> std::path::PathBuf {
        self.root.state_folder(Daemon::Moduled)
    }

    /// Looks at a caller that just connected.
    pub(crate) fn connected(&self, door: &Door, caller: &Caller) {
        let owner = match door {
            Door::ModuleSocket(module) => Some(module),
            Door::ManagementSocket => Some(&self.agent),
            Door::LegacySocket => None,
        };
        let registration = owner.and_then(|module| self.registrations.of(module));
        let init =
            owner.and_then(|module| self.modules.first_process(module, registration.as_ref()));
        self.attestor.connected(caller, registration.as_ref(), init.as_ref());
    }

    /// Lets a caller act as `module`, or refuses it with 403 and an entry in the audit
    /// trail.
    ///
    /// # Errors
    /// 403 without detail.
    pub(crate) async fn admit(
        &self,
        request: &Request,
        door: &Door,
        module: &ModuleId,
        generation: Option<&str>,
    ) -> Result<(), HttpError> {
        let (subject, judged) =
            self.judge(Who::Caller(&request.caller), door, &Asked { module, generation }).await;
        match judged {
            Ok(()) => {
                self.trail.allowed();
                Ok(())
            }
            Err(reason) => Err(self.refuse_judged(request, module, &subject, reason)),
        }
    }

    /// The registration of a module and what runs for it, as they are known now.
    fn subject(&self, module: &ModuleId) -> Subject {
        let registration = self.registrations.of(module);
        Subject {
            facts: self.modules.facts(module, registration.as_ref()),
            layers: self.modules.layers(module, registration.as_ref()),
            registration,
        }
    }

    /// The verdict on a caller or a process, and what it was judged against, with nothing
    /// written down. Where the engine's word on a start can be on its way it is waited
    /// for.
    pub(crate) async fn judge(
        &self,
        who: Who<'_>,
        door: &Door,
        asked: &Asked<'_>,
    ) -> (Subject, Result<(), DenyReason>) {
        let module = asked.module;
        let mut subject = self.subject(module);
        let mut judged = self.attestor.judge(who, door, asked, &subject).await;
        let behind = matches!(judged, Err(DenyReason::NotADescendant | DenyReason::NotInModule))
            && self.modules.is_behind(module);
        let early =
            behind || matches!(judged, Err(DenyReason::NotRunning | DenyReason::FactsUnknown));
        if early && self.attestor.is_in_container_of(who, subject.registration.as_ref()) {
            // The module's own process can be quicker than the engine's event about its
            // start.
            subject.facts = self.modules.facts_soon(module).await;
            subject.layers = self.modules.layers(module, subject.registration.as_ref());
            judged = self.attestor.judge(who, door, asked, &subject).await;
        } else if behind {
            subject.facts = RunningFacts::Stopped;
            judged = self.attestor.judge(who, door, asked, &subject).await;
        }
        if judged.is_ok()
            && let Some(process) = self.attestor.may_be_orphan(who, &subject)
        {
            // Nothing is known against it, but the engine's word about it may still be on
            // its way.
            subject.facts = self.modules.facts_about(module, &process).await;
            judged = self.attestor.judge(who, door, asked, &subject).await;
        }
        (subject, judged)
    }

    /// The first process of a module as soon as that is known: for a container that was
    /// just started the engine's word may be on its way.
    ///
    /// # Errors
    /// What is known instead.
    pub(crate) async fn first_process(
        &self,
        module: &ModuleId,
    ) -> Result<ProcessInstance, RunningFacts> {
        let Subject { registration, mut facts, .. } = self.subject(module);
        let of_container = matches!(
            registration.map(|registration| registration.workload),
            Some(Workload::Container { .. })
        );
        if of_container
            && (!matches!(facts, RunningFacts::Running(_)) || self.modules.is_behind(module))
        {
            facts = self.modules.facts_soon(module).await;
        }
        match facts {
            RunningFacts::Running(_) if self.modules.is_behind(module) => {
                Err(RunningFacts::Stopped)
            }
            RunningFacts::Running(running) => Ok(running.init),
            other => Err(other),
        }
    }

    /// Evidence and verdict, for people.
    pub(crate) fn attestation(
        &self,
        who: Who<'_>,
        pid: u32,
        module: &ModuleId,
        subject: &Subject,
        verdict: Result<(), DenyReason>,
    ) -> Attestation {
        let registration = subject.registration.as_ref();
        Attestation {
            module: module.to_string(),
            pid,
            allowed: verdict.is_ok(),
            registration: registration.map(Registered::from),
            facts: Facts::from(&subject.facts),
            evidence: self.attestor.seen(who),
            checks: Check::list(registration, verdict, matches!(who, Who::Caller(_))),
            explanation: verdict.err().map(Explanation::from),
        }
    }

    /// Refuses a caller of `module`, with an entry in the audit trail and all that is
    /// known of it.
    pub(crate) fn refuse(
        &self,
        request: &Request,
        module: &ModuleId,
        reason: DenyReason,
    ) -> HttpError {
        self.refuse_judged(request, module, &self.subject(module), reason)
    }

    fn refuse_judged(
        &self,
        request: &Request,
        module: &ModuleId,
        subject: &Subject,
        reason: DenyReason,
    ) -> HttpError {
        let caller = &request.caller;
        let attestation = self.attestation(
            Who::Caller(caller),
            caller.pid().unwrap_or(0),
            module,
            subject,
            Err(reason),
        );
        let route = format!("{} {}", request.method(), request.route);
        if subject.registration.is_some() && is_of_device(reason) {
            let detail = format!("{route}: {reason}: {}", reason.explained().cause);
            self.board.note(
                Code::ModuleCallRefused,
                &health::Subject::module(module),
                detail,
                SHOWN_FOR,
            );
        }
        self.write_refusal(
            caller,
            module.as_str(),
            &route,
            subject.registration.is_some(),
            attestation,
            reason,
        );
        HttpError::forbidden()
    }

    fn write_refusal(
        &self,
        caller: &Caller,
        module: &str,
        route: &str,
        registered: bool,
        attestation: Attestation,
        reason: DenyReason,
    ) {
        let of_module = attestation.evidence.as_ref().and_then(|seen| self.module_of(seen));
        self.trail.refused(ToRefuse {
            caller,
            module,
            registered,
            route,
            reason,
            of_module: of_module.map(|module| module.to_string()),
            attestation,
        });
    }

    /// The module that a process belongs to, by its container or its control group.
    fn module_of(&self, seen: &Seen) -> Option<ModuleId> {
        if let Some(container) = &seen.container {
            return self.registrations.of_container(container);
        }
        let holds = |module: &ModuleId| match self.modules.processes.facts(module) {
            RunningFacts::Running(Running { cgroup: Some(cgroup), .. }) if cgroup != "/" => seen
                .cgroup
                .strip_prefix(&cgroup)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            _ => false,
        };
        self.registrations.modules().into_iter().find(holds)
    }

    /// Lets only operators pass: root and this daemon's own user. Who may open the socket
    /// is not enough.
    ///
    /// # Errors
    /// 403 without detail.
    pub(crate) fn admit_operator(&self, request: &Request) -> Result<(), HttpError> {
        if is_operator(&request.caller) {
            return Ok(());
        }
        let route = format!("{} {}", request.method(), request.route);
        self.refuse_at_door(&request.caller, &route, DenyReason::NotAnOperator);
        Err(HttpError::forbidden())
    }

    /// Lets operators and the agent pass.
    ///
    /// # Errors
    /// 403 without detail.
    pub(crate) async fn admit_operator_or_agent(&self, request: &Request) -> Result<(), HttpError> {
        if is_operator(&request.caller) || self.is_agent(request).await {
            return Ok(());
        }
        self.admit_operator(request)
    }

    /// Writes down a refusal that is about no module.
    fn refuse_at_door(&self, caller: &Caller, what: &str, reason: DenyReason) {
        let mut attestation = without_evidence("", caller.pid().unwrap_or(0), reason);
        attestation.evidence = self.attestor.seen(Who::Caller(caller));
        self.write_refusal(caller, "", what, false, attestation, reason);
    }

    /// Lets only the agent pass, through the management socket.
    ///
    /// # Errors
    /// 403 without detail.
    pub(crate) async fn admit_agent(&self, request: &Request) -> Result<(), HttpError> {
        self.admit(request, &Door::ManagementSocket, &self.agent, None).await
    }

    /// Whether the caller is the agent. Nothing is written down if it is not.
    pub(crate) async fn is_agent(&self, request: &Request) -> bool {
        let asked = Asked { module: &self.agent, generation: None };
        self.judge(Who::Caller(&request.caller), &Door::ManagementSocket, &asked).await.1.is_ok()
    }

    /// The approvals in force.
    #[must_use]
    pub(crate) fn approvals_in_force(&self) -> Vec<Approval> {
        self.approvals.list(|name| {
            let module = self.settings.host_modules.get(name).map(|module| module.sha256);
            let service = || {
                name.parse()
                    .ok()
                    .and_then(|id: ModuleId| self.settings.host_services.get(&id)?.sha256)
            };
            module.or_else(service)
        })
    }

    /// Writes down that another process than the one that connected sent bytes.
    pub(crate) fn refuse_sender(&self, caller: &Caller, what: &str) {
        self.refuse_at_door(caller, what, DenyReason::SenderChanged);
    }
}

fn is_operator(caller: &Caller) -> bool {
    caller.uid() == 0 || caller.uid() == rustix::process::geteuid().as_raw()
}

/// The agent's module id.
#[must_use]
pub(crate) fn edge_agent() -> ModuleId {
    match "$edgeAgent".parse() {
        Ok(id) => id,
        Err(error) => unreachable!("the agent's id is valid: {error}"),
    }
}
