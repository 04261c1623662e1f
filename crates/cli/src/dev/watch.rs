//! Watching a running device through its public APIs, and saying what changed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use edgekeep_api::client::ClientError;
use edgekeep_api::identityd::{Identity, IdentityClient};
use edgekeep_api::management::{ManagementClient, ModuleDetails, Refusal, Status};
use edgekeep_core::layout::Root;
use time::OffsetDateTime;

use crate::dev::event::{Event, Events, milliseconds};
use crate::list;

/// Pause between two looks until the device is ready, and after.
const EAGER: Duration = Duration::from_millis(50);
const CALM: Duration = Duration::from_secs(1);
/// A problem is told when it lasts this long: what is under way is none.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) struct Watch {
    identity: IdentityClient,
    management: ManagementClient,
    events: Events,
    begin: Instant,
    seen: Seen,
}

impl Watch {
    /// Watches the device below `root`; it is ready when the modules in `expected` run.
    pub(super) fn new(root: &Root, events: Events, expected: Vec<String>, begin: Instant) -> Self {
        Self {
            identity: IdentityClient::new(root.identityd_socket()),
            management: ManagementClient::new(root.management_socket()),
            events,
            begin,
            seen: Seen { expected, ..Seen::default() },
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            if !self.seen.provisioned {
                let device = self.identity.device().await;
                self.tell(|seen, elapsed| seen.device(device, elapsed));
            }
            // A daemon that is down is told by its end; here it is only waited for.
            if let Ok(modules) = self.management.list_modules().await {
                self.tell(|seen, elapsed| {
                    seen.modules(&modules, OffsetDateTime::now_utc(), elapsed)
                });
            }
            if let Ok(status) = self.management.status().await {
                self.tell(|seen, elapsed| seen.status(&status, elapsed));
            }
            tokio::time::sleep(if self.seen.ready { CALM } else { EAGER }).await;
        }
    }

    fn tell(&mut self, step: impl FnOnce(&mut Seen, Duration) -> Vec<Event>) {
        for event in step(&mut self.seen, self.begin.elapsed()) {
            self.events.emit(&event);
        }
    }
}

/// State that was seen last; decides which events are news.
#[derive(Default)]
struct Seen {
    expected: Vec<String>,
    provisioned: bool,
    ready: bool,
    modules: BTreeMap<String, String>,
    problems: Problems,
    identity_problem: Problems,
    refusals: Vec<Refusal>,
}

impl Seen {
    fn device(&mut self, device: Result<Identity, ClientError>, elapsed: Duration) -> Vec<Event> {
        match device {
            Ok(Identity::Aziot(identity)) => {
                self.provisioned = true;
                vec![Event::Provisioned { hub: identity.hub_name, device_id: identity.device_id }]
            }
            Err(ClientError::Status { message, .. }) => self
                .identity_problem
                .see([format!("the device has no identity yet: {message}")], elapsed),
            Ok(Identity::Local(_)) | Err(_) => Vec::new(),
        }
    }

    fn modules(
        &mut self,
        modules: &[ModuleDetails],
        now: OffsetDateTime,
        elapsed: Duration,
    ) -> Vec<Event> {
        let lines = list::lines(modules, now);
        let mut events = Vec::new();
        for line in &lines {
            let previous = self.modules.insert(line.name.clone(), line.status.clone());
            if previous.as_ref() != Some(&line.status) {
                let description =
                    if line.status == "running" { String::new() } else { line.description.clone() };
                events.push(Event::Module {
                    name: line.name.clone(),
                    status: line.status.clone(),
                    previous,
                    description,
                });
            }
        }
        let gone: Vec<String> = self
            .modules
            .keys()
            .filter(|name| !lines.iter().any(|line| line.name == **name))
            .cloned()
            .collect();
        for name in gone {
            let previous = self.modules.remove(&name);
            events.push(Event::Module {
                name,
                status: "removed".to_owned(),
                previous,
                description: String::new(),
            });
        }
        let runs = |name: &String| self.modules.get(name).is_some_and(|status| status == "running");
        if !self.ready && self.provisioned && self.expected.iter().all(runs) {
            self.ready = true;
            let modules = self.modules.keys().filter(|name| runs(name)).cloned().collect();
            events.push(Event::DeviceReady { ms: milliseconds(elapsed), modules });
        }
        events
    }

    fn status(&mut self, status: &Status, elapsed: Duration) -> Vec<Event> {
        let mut events = self.problems.see(status.problems.iter().cloned(), elapsed);
        // Newest first; one that was repeated has another time and count.
        let news = status.refusals.iter().filter(|refusal| !self.refusals.contains(refusal));
        let mut refused: Vec<Event> = news.map(refused).collect();
        refused.reverse();
        events.append(&mut refused);
        self.refusals.clone_from(&status.refusals);
        events
    }
}

/// Problems that are there now, since when, and whether they were told.
#[derive(Default)]
struct Problems(BTreeMap<String, (Duration, bool)>);

impl Problems {
    fn see(&mut self, present: impl IntoIterator<Item = String>, elapsed: Duration) -> Vec<Event> {
        let mut before = std::mem::take(&mut self.0);
        let mut events = Vec::new();
        for message in present {
            let (since, told) = before.remove(&message).unwrap_or((elapsed, false));
            let due = elapsed.saturating_sub(since) >= PATIENCE;
            if due && !told {
                events.push(Event::Problem { message: message.clone() });
            }
            self.0.insert(message, (since, told || due));
        }
        events
    }
}

fn refused(refusal: &Refusal) -> Event {
    Event::Refused {
        module: refusal.module.clone(),
        route: refusal.route.clone(),
        reason: refusal.reason,
        pid: refusal.pid,
        uid: refusal.uid,
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_core::attestation::{DenyReason, PeerHandle};
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-07-01 12:00 UTC);

    fn module(name: &str, status: &str) -> ModuleDetails {
        serde_json::from_value(json!({
            "id": "id", "name": name, "type": "process", "config": { "settings": {}, "env": [] },
            "status": { "runtimeStatus": { "status": status } },
        }))
        .unwrap()
    }

    fn look(seen: &mut Seen, modules: &[(&str, &str)]) -> Vec<String> {
        let modules: Vec<_> = modules.iter().map(|(name, status)| module(name, status)).collect();
        let events = seen.modules(&modules, NOW, Duration::from_millis(7));
        events
            .into_iter()
            .map(|event| match event {
                Event::Module { name, status, .. } => format!("{name} {status}"),
                Event::DeviceReady { ms, modules } => format!("ready {ms} {}", modules.join(",")),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn only_changes_are_told_and_readiness_once() {
        let mut seen = Seen {
            expected: vec!["edgeAgent".into(), "t".into()],
            provisioned: true,
            ..Seen::default()
        };
        assert_eq!(look(&mut seen, &[("edgeAgent", "running")]), ["edgeAgent running"]);
        assert_eq!(look(&mut seen, &[("edgeAgent", "running")]), Vec::<String>::new());
        let both = [("edgeAgent", "running"), ("t", "running")];
        assert_eq!(look(&mut seen, &both), ["t running", "ready 7 edgeAgent,t"]);
        assert_eq!(look(&mut seen, &[("edgeAgent", "failed")]), ["edgeAgent failed", "t removed"]);
        assert_eq!(look(&mut seen, &both), ["edgeAgent running", "t running"]);
    }

    #[test]
    fn a_device_without_identity_is_not_ready() {
        let mut seen = Seen { expected: vec!["edgeAgent".into()], ..Seen::default() };
        assert_eq!(look(&mut seen, &[("edgeAgent", "running")]), ["edgeAgent running"]);
        assert!(!seen.ready);
    }

    #[test]
    fn a_problem_is_told_once_and_only_if_it_lasts() {
        let mut problems = Problems::default();
        let mut told = |present: &[&str], seconds| {
            problems
                .see(present.iter().map(|text| (*text).to_owned()), Duration::from_secs(seconds))
                .len()
        };
        assert_eq!(
            [told(&["a"], 0), told(&["a", "b"], 2), told(&["a", "b"], 3), told(&["a", "b"], 5)],
            [0, 0, 1, 1]
        );
        // One that went away counts anew.
        assert_eq!(
            [told(&["b"], 6), told(&["a"], 7), told(&["a"], 9), told(&["a"], 10)],
            [0, 0, 0, 1]
        );
    }

    #[test]
    fn each_refusal_is_told_once_oldest_first() {
        let refusal = |pid| Refusal {
            time: "2026-07-01T12:00:00Z".into(),
            count: 1,
            module: "t".into(),
            route: "POST /sign".into(),
            reason: DenyReason::NotInModule,
            explanation: DenyReason::NotInModule.into(),
            pid,
            uid: 0,
        };
        let status = |pids: &[u32]| Status {
            version: "0".into(),
            uid: 0,
            peer_handle: PeerHandle::PeerPidfd,
            process_cgroups: true,
            engine: None,
            edge_ca_expiration: None,
            problems: Vec::new(),
            health: None,
            approvals: Vec::new(),
            refusals: pids.iter().map(|pid| refusal(*pid)).collect(),
            refusal_count: pids.len() as u64,
        };
        let mut seen = Seen::default();
        let mut told = |pids: &[u32]| -> Vec<u32> {
            let pid = |event| match event {
                Event::Refused { pid, .. } => pid,
                other => panic!("{other:?}"),
            };
            seen.status(&status(pids), Duration::ZERO).into_iter().map(pid).collect()
        };
        assert_eq!(told(&[2, 1]), [1, 2]);
        assert_eq!(told(&[2, 1]), Vec::<u32>::new());
        assert_eq!(told(&[4, 3, 2, 1]), [3, 4]);
    }
}
