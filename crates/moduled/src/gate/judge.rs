//! The verdict on every caller, and what is written down of a refusal.

use std::sync::Arc;

use edgekeep_api::attestation::{Attestation, Check, Explanation, Facts, Registered, Seen};
use edgekeep_core::attestation::second_look::{Looked, Next, Signs, second_look};
use edgekeep_core::attestation::{
    Asked, DenyReason, Door, ProcessInstance, Running, RunningFacts, Workload,
};
use edgekeep_core::health::calls::{SHOWN_FOR, is_of_device};
use edgekeep_core::health::{self, Code};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::peer::Caller;
use edgekeep_runtime::gauge::GaugeError;

use crate::gate::attest::{Attestor, Subject, Unjudged, Who};
use crate::gate::trail::{ToRefuse, VerdictTrail, without_evidence};
use crate::modules::{Modules, edge_agent};

/// A request as it is judged and written down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Called<'a> {
    /// The process that asks.
    pub(crate) caller: &'a Caller,
    /// The method.
    pub(crate) method: &'a str,
    /// The route, with placeholders.
    pub(crate) route: &'static str,
}

impl Called<'_> {
    fn what(&self) -> String {
        format!("{} {}", self.method, self.route)
    }
}

/// The refusal of a caller.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The caller may not. The reason is in the trail and not in here: a caller is told
    /// none.
    Denied,
    /// Nobody could look at the caller, so there is no verdict.
    NoGauge(GaugeError),
}

/// The one gate in front of everything that needs an identity.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Evidence about callers.
    pub(crate) attestor: Attestor,
    /// The verdicts, written down.
    pub(crate) trail: VerdictTrail,
    modules: Arc<Modules>,
    board: Board,
    agent: ModuleId,
}

impl Gate {
    /// Returns a gate that judges by what is known of `modules`, with the trail of
    /// earlier runs.
    pub(crate) fn new(attestor: Attestor, modules: Arc<Modules>, board: Board) -> Self {
        let is_registered = |name: &str| {
            name.parse().is_ok_and(|module| modules.registrations.of(&module).is_some())
        };
        let trail = VerdictTrail::open(&modules.state_folder(), is_registered);
        Self { attestor, trail, modules, board, agent: edge_agent() }
    }

    /// Looks at a caller that just connected.
    pub(crate) async fn connected(&self, door: &Door, caller: &Caller) {
        let owner = match door {
            Door::ModuleSocket(module) => Some(module),
            Door::ManagementSocket => Some(&self.agent),
            Door::LegacySocket => None,
        };
        let registration = owner.and_then(|module| self.modules.registrations.of(module));
        let init =
            owner.and_then(|module| self.modules.first_process(module, registration.as_ref()));
        self.attestor.connected(caller, registration.as_ref(), init.as_ref()).await;
    }

    /// Lets a caller act as `module`, or refuses it with an entry in the audit trail.
    ///
    /// # Errors
    /// [`Refused`], whose reason is written down if there is a verdict.
    pub(crate) async fn admit(
        &self,
        called: &Called<'_>,
        door: &Door,
        module: &ModuleId,
        generation: Option<&str>,
    ) -> Result<(), Refused> {
        let asked = Asked { module, generation };
        let (subject, judged) =
            self.judge(Who::Caller(called.caller), door, &asked).await.map_err(Refused::NoGauge)?;
        match judged {
            Ok(()) => {
                self.trail.allowed();
                Ok(())
            }
            Err(reason) => Err(self.refuse_judged(called, module, &subject, reason)),
        }
    }

    /// The registration of a module and what runs for it, as they are known now.
    fn subject(&self, module: &ModuleId) -> Subject {
        let registration = self.modules.registrations.of(module);
        Subject {
            facts: self.modules.facts(module, registration.as_ref()),
            layers: self.modules.layers(module, registration.as_ref()),
            registration,
        }
    }

    /// The verdict on a caller or a process, and what it was judged against, with nothing
    /// written down. Where the engine's word on a start can be on its way it is waited
    /// for, as [`second_look`] says.
    ///
    /// # Errors
    /// There is no verdict, for there is no evidence.
    pub(crate) async fn judge(
        &self,
        who: Who<'_>,
        door: &Door,
        asked: &Asked<'_>,
    ) -> Result<(Subject, Result<(), DenyReason>), GaugeError> {
        let module = asked.module;
        let mut subject = self.subject(module);
        let mut looked = Looked::Known;
        loop {
            let verdict = match self.attestor.judge(who, door, asked, &subject).await {
                Ok(()) => Ok(()),
                Err(Unjudged::Denied(reason)) => Err(reason),
                Err(Unjudged::NoGauge(error)) => return Err(error),
            };
            let orphan = match verdict {
                Ok(()) if looked < Looked::Origin => self.attestor.may_be_orphan(who, &subject),
                _ => None,
            };
            let signs = Signs {
                behind: verdict.is_err() && self.modules.is_behind(module),
                in_container: verdict.is_err()
                    && self.attestor.is_in_container_of(who, subject.registration.as_ref()),
                may_be_orphan: orphan.is_some(),
            };
            match (second_look(looked, verdict, signs), orphan) {
                (Next::AwaitFacts, _) => {
                    subject.facts = self.modules.facts_soon(module).await;
                    subject.layers = self.modules.layers(module, subject.registration.as_ref());
                    looked = Looked::Facts;
                }
                (Next::TakeAsStopped, _) => {
                    subject.facts = RunningFacts::Stopped;
                    looked = Looked::Facts;
                }
                (Next::AskOrigin, Some(process)) => {
                    subject.facts = self.modules.facts_about(module, &process).await;
                    looked = Looked::Origin;
                }
                (Next::Stands | Next::AskOrigin, _) => return Ok((subject, verdict)),
            }
        }
    }

    /// The first process of a module as soon as that is known: for a container that was
    /// just started the engine's word may be on its way.
    ///
    /// # Errors
    /// The facts about what runs, if no first process is known.
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
        called: &Called<'_>,
        module: &ModuleId,
        reason: DenyReason,
    ) -> Refused {
        self.refuse_judged(called, module, &self.subject(module), reason)
    }

    fn refuse_judged(
        &self,
        called: &Called<'_>,
        module: &ModuleId,
        subject: &Subject,
        reason: DenyReason,
    ) -> Refused {
        let caller = called.caller;
        let attestation = self.attestation(
            Who::Caller(caller),
            caller.pid().unwrap_or(0),
            module,
            subject,
            Err(reason),
        );
        let route = called.what();
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
        Refused::Denied
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
            return self.modules.registrations.of_container(container);
        }
        let holds = |module: &ModuleId| match self.modules.processes.facts(module) {
            RunningFacts::Running(Running { cgroup: Some(cgroup), .. }) if cgroup != "/" => seen
                .cgroup
                .strip_prefix(&cgroup)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            _ => false,
        };
        self.modules.registrations.modules().into_iter().find(holds)
    }

    /// Lets only operators pass: root and this daemon's own user. Who may open the socket
    /// is not enough.
    ///
    /// # Errors
    /// [`Refused`], whose reason is written down.
    pub(crate) async fn admit_operator(&self, called: &Called<'_>) -> Result<(), Refused> {
        if is_operator(called.caller) {
            return Ok(());
        }
        let route = called.what();
        self.refuse_at_door(called.caller, &route, DenyReason::NotAnOperator).await;
        Err(Refused::Denied)
    }

    /// Lets operators and the agent pass.
    ///
    /// # Errors
    /// [`Refused`], whose reason is written down.
    pub(crate) async fn admit_operator_or_agent(&self, called: &Called<'_>) -> Result<(), Refused> {
        if is_operator(called.caller) || self.is_agent(called).await? {
            return Ok(());
        }
        self.admit_operator(called).await
    }

    /// Writes down a refusal that is about no module.
    async fn refuse_at_door(&self, caller: &Caller, what: &str, reason: DenyReason) {
        self.attestor.acquaint(caller).await;
        let mut attestation = without_evidence("", caller.pid().unwrap_or(0), reason);
        attestation.evidence = self.attestor.seen(Who::Caller(caller));
        self.write_refusal(caller, "", what, false, attestation, reason);
    }

    /// Lets only the agent pass, through the management socket.
    ///
    /// # Errors
    /// [`Refused`], whose reason is written down.
    pub(crate) async fn admit_agent(&self, called: &Called<'_>) -> Result<(), Refused> {
        self.admit(called, &Door::ManagementSocket, &self.agent, None).await
    }

    /// Returns true if the caller is the agent. Writes down no refusal if the caller is
    /// not the agent.
    ///
    /// # Errors
    /// [`Refused::NoGauge`].
    pub(crate) async fn is_agent(&self, called: &Called<'_>) -> Result<bool, Refused> {
        let asked = Asked { module: &self.agent, generation: None };
        let judged = self.judge(Who::Caller(called.caller), &Door::ManagementSocket, &asked).await;
        judged.map(|(_, verdict)| verdict.is_ok()).map_err(Refused::NoGauge)
    }

    /// Writes down that another process than the one that connected sent bytes.
    pub(crate) async fn refuse_sender(&self, caller: &Caller, what: &str) {
        self.refuse_at_door(caller, what, DenyReason::SenderChanged).await;
    }
}

fn is_operator(caller: &Caller) -> bool {
    caller.uid() == 0 || caller.uid() == rustix::process::geteuid().as_raw()
}
