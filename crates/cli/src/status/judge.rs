//! The device's health: what the daemons know, and what only who looks from outside can
//! see.

use edgekeep_api::identityd::{Identity, ProvisioningInfo};
use edgekeep_api::operations::ShownProblem;
use edgekeep_core::attestation::PeerHandle;
use edgekeep_core::health::{Code, Health as Decision, Kind, Problem, Severity, Subject, Verdict};
use edgekeep_core::layout::Daemon;
use time::OffsetDateTime;

use super::{Device, Facts, Health, Seen, Unknown};
use crate::list;
use crate::output::moment;

/// Returns the remedy of a problem. For a daemon that is away, the remedy that was found
/// from outside is more exact than that of the problem's kind.
fn remedy(problem: &Problem, daemons: &[Seen]) -> String {
    let away = daemons.iter().find(|daemon| {
        problem.code() == Code::DaemonAway && problem.subject().name() == daemon.name
    });
    let own = away.and_then(|daemon| daemon.remedy.clone());
    own.unwrap_or_else(|| problem.code().explained().remedy.to_owned())
}

pub(super) fn judge(facts: Facts, now: OffsetDateTime) -> Health {
    let mut found = facts.told;
    let mut find =
        |code, subject: Subject, detail: &str| found.push(Problem::new(code, subject, detail, now));
    let named = |name: &str| Subject::new(Kind::Daemon, name);
    if !facts.configured && facts.daemons.iter().any(|daemon| !daemon.answers) {
        find(Code::NotConfigured, Subject::device(), "");
    }
    for daemon in facts.daemons.iter().filter(|daemon| !daemon.answers) {
        find(Code::DaemonAway, named(daemon.name), daemon.error.as_deref().unwrap_or_default());
    }
    let uids: Vec<u32> = facts.daemons.iter().filter_map(|daemon| daemon.uid).collect();
    if uids.iter().enumerate().any(|(at, uid)| uids[..at].contains(uid)) {
        let hint = if facts.installed { ": install them with a user each" } else { "" };
        let detail = format!(
            "daemons share one Unix user, so they and host modules without a user are not isolated from each other{hint}"
        );
        find(Code::WeakIsolation, Subject::device(), &detail);
    }
    for (daemon, sandbox) in &facts.sandboxes {
        let weak: Vec<String> = if sandbox.enabled {
            let weak = sandbox.layers.iter().filter(|layer| !layer.full);
            weak.map(|layer| format!("its sandbox: {}: {}", layer.name, layer.level)).collect()
        } else {
            let table = if *daemon == Daemon::Keyd { "aziot_keys" } else { daemon.name() };
            vec![format!("it runs without sandbox: remove sandbox = false from [{table}]")]
        };
        if !weak.is_empty() {
            find(Code::WeakIsolation, Subject::daemon(*daemon), &weak.join("; "));
        }
    }

    let local_only = matches!(facts.provisioning, Some(ProvisioningInfo::None));
    let device = match facts.device {
        Ok(Identity::Aziot(identity)) => {
            Some(Device { hub: identity.hub_name, device_id: identity.device_id })
        }
        Ok(Identity::Local(_)) | Err(Unknown::Down) => None,
        Err(Unknown::NotAllowed) => {
            let detail = "the device's identity is shown to root and the daemons only";
            find(Code::NotShown, Subject::device(), detail);
            None
        }
        Err(Unknown::None(why)) => {
            if !local_only {
                find(Code::NoIdentity, Subject::device(), &why);
            }
            None
        }
    };

    let mut days_left = None;
    let mut expiration = None;
    if let Some(status) = &facts.status {
        if status.peer_handle != PeerHandle::PeerPidfd {
            let detail = "this kernel has no pidfd of a socket's peer (Linux 6.5): callers are identified by a weaker handle";
            find(Code::WeakIsolation, Subject::daemon(Daemon::Moduled), detail);
        }
        days_left = status
            .edge_ca_expiration
            .as_deref()
            .and_then(moment)
            .map(|end| (end - now).whole_days());
        expiration.clone_from(&status.edge_ca_expiration);
    }
    let modules = facts.modules.map(|modules| list::lines(&modules, now));
    if let (Some(modules), None) = (&modules, &facts.status) {
        // A compatible module runtime, which tells no problems: what its list says has to
        // do.
        let runs =
            modules.iter().any(|module| module.name == "edgeAgent" && module.status == "running");
        if !runs && !local_only {
            find(Code::AgentNotRunning, Subject::new(Kind::Module, "edgeAgent"), "");
        }
    }
    if modules.is_none()
        && facts.daemons.iter().any(|daemon| daemon.name == "moduled" && daemon.answers)
    {
        let detail = "which modules there are is not known now: `edgekeep list` says why";
        find(Code::NotShown, Subject::daemon(Daemon::Moduled), detail);
    }

    // Of a daemon that is away it need not be said besides that its problems are not
    // shown.
    let away: Vec<Subject> = found
        .iter()
        .filter(|problem| problem.code() == Code::DaemonAway)
        .map(|problem| problem.subject().clone())
        .collect();
    found.retain(|problem| problem.code() != Code::NotShown || !away.contains(problem.subject()));
    let decision = Decision::of(found);
    let shown = |severity| -> Vec<ShownProblem> {
        let all = decision.problems().iter().filter(|problem| problem.severity() == severity);
        all.map(|problem| ShownProblem {
            remedy: remedy(problem, &facts.daemons),
            ..ShownProblem::from(problem)
        })
        .collect()
    };
    Health {
        health: decision.verdict(),
        healthy: decision.verdict() != Verdict::Unhealthy,
        problems: shown(Severity::Unhealthy),
        warnings: shown(Severity::Warning),
        daemons: facts.daemons.clone(),
        provisioning: facts.provisioning,
        device,
        advice: modules.as_deref().map(list::advice).unwrap_or_default(),
        modules,
        edge_ca_expiration: expiration,
        edge_ca_days_left: days_left,
        moduled: facts.status,
        assurance: facts.assurance,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;
    use time::macros::datetime;

    use edgekeep_api::operations::{Layer, SandboxReport};
    use edgekeep_core::attestation::DenyReason;

    use super::super::render;
    use super::*;
    use crate::output::Style;

    const NOW: OffsetDateTime = datetime!(2026-07-01 12:00 UTC);

    fn seen(name: &'static str, uid: u32) -> Seen {
        let socket = PathBuf::from(format!("/run/{name}.sock"));
        Seen { name, socket, answers: true, uid: Some(uid), error: None, remedy: None }
    }

    fn sentences(problems: &[ShownProblem]) -> Vec<String> {
        problems.iter().map(|shown| shown.problem.sentence()).collect()
    }

    fn well() -> Facts {
        let modules = json!([
            { "id": "id", "name": "edgeAgent", "type": "process", "config": { "settings": { "image": "edgekeep-agent" }, "env": [] },
              "status": { "startTime": "2026-07-01T11:00:00Z", "runtimeStatus": { "status": "running" } } },
        ]);
        let status = json!({
            "version": "0.1.0", "uid": 3, "peerHandle": PeerHandle::PeerPidfd, "processCgroups": true,
            "edgeCaExpiration": "2026-09-01T12:00:00Z", "problems": [], "refusals": [], "refusalCount": 0,
        });
        Facts {
            daemons: vec![seen("keyd", 1), seen("identityd", 2), seen("moduled", 3)],
            provisioning: Some(ProvisioningInfo::Manual { auth: "sas".into() }),
            device: Ok(serde_json::from_value(json!({
                "type": "aziot", "spec": { "hubName": "hub.example", "gatewayHost": "hub.example", "deviceId": "press-04" }
            }))
            .unwrap()),
            status: Some(serde_json::from_value(status).unwrap()),
            modules: Some(serde_json::from_value(modules).unwrap()),
            sandboxes: vec![(
                Daemon::Keyd,
                SandboxReport { enabled: true, layers: Vec::new(), widened: Vec::new() },
            )],
            assurance: None,
            told: Vec::new(),
            configured: true,
            installed: true,
        }
    }

    #[test]
    fn a_sandbox_that_is_off_or_weak_is_said() {
        let layer = |full, level: &str| Layer {
            name: "files".into(),
            full,
            in_force: true,
            level: level.into(),
        };
        for (sandbox, said) in [
            (
                SandboxReport { enabled: false, layers: Vec::new(), widened: Vec::new() },
                "without sandbox",
            ),
            (
                SandboxReport {
                    enabled: true,
                    layers: vec![layer(false, "absent: no Landlock")],
                    widened: Vec::new(),
                },
                "(keyd): its sandbox: files: absent: no Landlock",
            ),
        ] {
            let health = judge(Facts { sandboxes: vec![(Daemon::Keyd, sandbox)], ..well() }, NOW);
            assert!(health.healthy && health.warnings.len() == 1, "{health:?}");
            assert!(sentences(&health.warnings)[0].contains(said), "{health:?}");
        }
        let full = SandboxReport {
            enabled: true,
            layers: vec![layer(true, "full")],
            widened: vec!["x".into()],
        };
        assert!(
            judge(Facts { sandboxes: vec![(Daemon::Identityd, full)], ..well() }, NOW)
                .warnings
                .is_empty()
        );
        assert!(judge(Facts { sandboxes: Vec::new(), ..well() }, NOW).warnings.is_empty());
        let off = SandboxReport { enabled: false, layers: Vec::new(), widened: Vec::new() };
        let health = judge(Facts { sandboxes: vec![(Daemon::Identityd, off)], ..well() }, NOW);
        assert!(
            sentences(&health.warnings)[0].contains("sandbox = false from [identityd]"),
            "{health:?}"
        );
    }

    #[test]
    fn a_device_without_fault_is_healthy() {
        let health = judge(well(), NOW);
        assert!(health.healthy, "{health:?}");
        assert_eq!((health.problems.len(), health.warnings.len()), (0, 0), "{health:?}");
        assert_eq!(
            render(&health, Style::plain(), NOW),
            "\
device: healthy

DAEMON     STATE    USER  SOCKET
keyd       answers  1     /run/keyd.sock
identityd  answers  2     /run/identityd.sock
moduled    answers  3     /run/moduled.sock

provisioning  manual (sas)
identity      press-04 at hub.example
edge CA       62 days left (until 2026-09-01T12:00:00Z)

NAME       STATUS   DESCRIPTION  CONFIG
edgeAgent  running  Up 1 hour    edgekeep-agent
"
        );
    }

    #[test]
    fn a_daemon_that_is_down_is_named_with_what_to_do() {
        let mut facts = well();
        facts.daemons[1].answers = false;
        facts.daemons[1].error = Some("not started: there is no socket".into());
        facts.daemons[1].remedy = Some("start it: systemctl start edgekeep-identityd".into());
        facts.provisioning = None;
        facts.device = Err(Unknown::Down);
        let health = judge(facts, NOW);
        assert!(!health.healthy);
        let expected =
            "A daemon does not answer at its socket (identityd): not started: there is no socket";
        assert_eq!(sentences(&health.problems), [expected]);
        let shown = format!(
            "  problem: {expected}\n           start it: systemctl start edgekeep-identityd\n"
        );
        assert!(render(&health, Style::plain(), NOW).contains(&shown), "{health:?}");
    }

    #[test]
    fn what_weakens_isolation_is_a_warning() {
        let mut facts = well();
        facts.daemons = vec![seen("keyd", 0), seen("identityd", 0), seen("moduled", 0)];
        facts.status.as_mut().unwrap().peer_handle = PeerHandle::PidfdOpen;
        let health = judge(facts, NOW);
        assert!(health.healthy);
        assert!(
            sentences(&health.warnings)[0].contains("not isolated from each other"),
            "{health:?}"
        );
        assert!(sentences(&health.warnings)[1].contains("weaker handle"), "{health:?}");
    }

    #[test]
    fn what_keeps_modules_from_working_is_a_problem() {
        let told = |code, detail: &str| vec![Problem::new(code, Subject::device(), detail, NOW)];
        for (change, part) in [
            (
                (|facts, _| facts.device = Err(Unknown::None("not provisioned".into())))
                    as fn(&mut Facts, Vec<Problem>),
                "no identity",
            ),
            (|facts, told| facts.told = told, "the manifest is not JSON"),
        ] {
            let mut facts = well();
            change(&mut facts, told(Code::DeploymentNotMade, "the manifest is not JSON"));
            let health = judge(facts, NOW);
            assert!(
                !health.healthy && sentences(&health.problems).iter().any(|one| one.contains(part)),
                "{part}: {health:?}"
            );
        }
    }

    #[test]
    fn what_a_daemon_tells_is_shown_with_reason_remedy_and_since_when() {
        let since = NOW - time::Duration::minutes(5);
        let told = vec![Problem::new(
            Code::CloudFault,
            Subject::cloud("hub.example"),
            "status 500\u{1b}[2J",
            since,
        )];
        let health = judge(Facts { told, ..well() }, NOW);
        assert!(health.healthy && health.health == Verdict::HealthyWithWarnings);
        let expected = "device: healthy, with warnings\n  warning: The hub answers with a fault of its own, or with something \
             that is no answer (service hub.example): status 500\u{fffd}[2J (for 5 minutes, since 2026-07-01 11:55:00 UTC)\n           \
             Nothing on the device: it is tried again by itself, and what is known is used meanwhile.\n";
        let text = render(&health, Style::plain(), NOW);
        assert!(text.starts_with(expected), "{text}");
        let json = serde_json::to_value(&health).unwrap();
        assert_eq!(json["health"], "healthy-with-warnings");
        assert_eq!(json["warnings"][0]["code"], "cloud-fault");
        assert_eq!(json["warnings"][0]["since"], "2026-07-01T11:55:00Z");
    }

    #[test]
    fn a_daemon_that_is_away_is_said_once() {
        let mut facts = well();
        facts.daemons[1].answers = false;
        let subject = || Subject::daemon(Daemon::Identityd);
        facts.told = vec![
            Problem::new(Code::NotShown, subject(), "", NOW),
            Problem::new(Code::DaemonAway, subject(), "", NOW),
        ];
        let health = judge(facts, NOW);
        assert_eq!((health.problems.len(), health.warnings.len()), (1, 0), "{health:?}");
    }

    #[test]
    fn refusals_are_shown_with_their_reason() {
        let mut facts = well();
        let status = facts.status.as_mut().unwrap();
        status.refusal_count = 7;
        status.refusals = vec![edgekeep_api::management::Refusal {
            time: "2026-07-01T11:59:00Z".into(),
            count: 7,
            module: "thermometer".into(),
            route: "POST /sign".into(),
            reason: DenyReason::NotInModule,
            explanation: DenyReason::NotInModule.into(),
            pid: 77,
            uid: 1000,
        }];
        let text = render(&judge(facts, NOW), Style::plain(), NOW);
        assert!(text.contains("7 calls refused since start"), "{text}");
        assert!(
            text.contains(
                "1 minute ago  7      thermometer  not-in-module  pid 77 uid 1000 POST /sign"
            ),
            "{text}"
        );
        assert!(
            text.contains(&format!("not-in-module: {}", DenyReason::NotInModule.explained().cause)),
            "{text}"
        );
    }
}
