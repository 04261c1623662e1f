//! `status`: how the device is, from what the daemons' public APIs say.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use edgekeep_api::client::{Client, ClientError};
use edgekeep_api::identityd::{Identity, IdentityClient, ProvisioningInfo};
use edgekeep_api::management::{ManagementClient, ModuleDetails, Status};
use edgekeep_api::operations::{OperationsClient, SandboxReport};
use edgekeep_core::attestation::PeerHandle;
use edgekeep_core::layout::{Daemon, Root};
use http::Method;
use serde::Serialize;
use time::OffsetDateTime;

use crate::arguments::Context;
use crate::failure;
use crate::list;
use crate::output::{self, Columns, Hue, Style, age, moment, printable};

/// How long one daemon may take to answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// A certificate that ends sooner is worth a warning.
const FEW_DAYS: i64 = 14;
/// Refusals shown in the text form.
const SHOWN_REFUSALS: usize = 5;

pub(crate) async fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let facts = Box::pin(gather(context)).await;
    let health = judge(facts, OffsetDateTime::now_utc());
    if context.json {
        output::print_json(&health)?;
    } else {
        output::print(&render(&health, Style::stdout(), OffsetDateTime::now_utc()))?;
    }
    Ok(if health.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was seen.
struct Facts {
    daemons: Vec<Seen>,
    provisioning: Option<ProvisioningInfo>,
    device: Result<Identity, Unknown>,
    status: Option<Status>,
    modules: Option<Vec<ModuleDetails>>,
    /// What keyd has given up; an older one does not say.
    /// Of the daemons that tell.
    sandboxes: Vec<(Daemon, SandboxReport)>,
    configured: bool,
    installed: bool,
}

/// Why the device's identity is not known.
enum Unknown {
    /// The caller may not ask.
    NotAllowed,
    /// It could not be asked.
    Down,
    /// There is none.
    None(String),
}

/// One daemon's socket.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    name: &'static str,
    socket: PathBuf,
    answers: bool,
    /// The user it runs as, if that can be seen.
    uid: Option<u32>,
    error: Option<String>,
    remedy: Option<String>,
}

/// How the device is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    healthy: bool,
    /// What keeps it from being healthy.
    problems: Vec<String>,
    /// What is worth knowing.
    warnings: Vec<String>,
    daemons: Vec<Seen>,
    provisioning: Option<ProvisioningInfo>,
    device: Option<Device>,
    modules: Option<Vec<list::Line>>,
    edge_ca_expiration: Option<String>,
    edge_ca_days_left: Option<i64>,
    moduled: Option<Status>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    hub: String,
    device_id: String,
}

async fn gather(context: &Context) -> Facts {
    let root = &context.root;
    let identity = IdentityClient::new(root.identityd_socket());
    let management = ManagementClient::new(&context.management);
    let sandbox = |daemon| {
        let socket = OperationsClient::new(root.metrics_socket(daemon));
        async move { Some((daemon, within(socket.sandbox()).await?.ok()?)) }
    };
    let sandboxes = async { tokio::join!(sandbox(Daemon::Keyd), sandbox(Daemon::Identityd)) };
    let (keyd, identityd, moduled, provisioning, device, status, modules, sandboxes) = tokio::join!(
        see(Daemon::Keyd, root.keyd_socket(), root, "/?api-version=2021-05-01"),
        see(Daemon::Identityd, root.identityd_socket(), root, "/identities/provisioning?api-version=2022-08-01"),
        see(Daemon::Moduled, context.management.clone(), root, "/modules?api-version=2022-08-03"),
        within(identity.provisioning()),
        within(identity.device()),
        within(management.status()),
        within(management.list_modules()),
        sandboxes,
    );
    let device = match device {
        Some(Ok(identity)) => Ok(identity),
        Some(Err(ClientError::Status { status, message, .. })) => {
            Err(if matches!(status.as_u16(), 401 | 403) { Unknown::NotAllowed } else { Unknown::None(message) })
        }
        _ => Err(Unknown::Down),
    };
    Facts {
        daemons: vec![keyd, identityd, moduled],
        provisioning: provisioning.and_then(Result::ok),
        device,
        status: status.and_then(Result::ok),
        modules: modules.and_then(Result::ok),
        sandboxes: [sandboxes.0, sandboxes.1].into_iter().flatten().collect(),
        configured: root.settings_file(Daemon::Moduled).exists(),
        installed: root.path() == Path::new("/"),
    }
}

async fn within<T>(call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(TIME_LIMIT, call).await.ok()
}

/// Whether something that speaks HTTP answers at a socket: any status will do.
async fn see(daemon: Daemon, socket: PathBuf, root: &Root, path: &str) -> Seen {
    let uid = peer(&socket).await;
    let client = Client::new(&socket).with_timeout(TIME_LIMIT);
    let error = match client.call_empty(Method::GET, path, None::<&()>).await {
        Ok(()) | Err(ClientError::Status { .. }) => None,
        Err(error) => Some(error),
    };
    let (error, remedy) = match error {
        None => (None, None),
        Some(error) => {
            let (what, remedy) = explain(daemon, &error, root);
            (Some(what), Some(remedy))
        }
    };
    Seen { name: daemon.name(), socket, answers: error.is_none(), uid, error, remedy }
}

/// The user of the process that made the socket, unless that is the service manager: then nothing is known.
async fn peer(socket: &Path) -> Option<u32> {
    let credentials = tokio::net::UnixStream::connect(socket).await.ok()?.peer_cred().ok()?;
    (credentials.pid() != Some(1)).then(|| credentials.uid())
}

fn explain(daemon: Daemon, error: &ClientError, root: &Root) -> (String, String) {
    use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    let name = daemon.name();
    let start = if root.path() == Path::new("/") {
        format!("start it: systemctl start edgekeep-{name}")
    } else {
        format!("start it: EDGEKEEP_ROOT={} edgekeep-{name}", root.path().display())
    };
    let journal = || format!("look into its log: journalctl -u edgekeep-{name}");
    let log = || failure::remedy(error).unwrap_or_else(journal);
    match error {
        ClientError::Connect { source, .. } => match source.kind() {
            NotFound => ("not started: there is no socket".to_owned(), start),
            ConnectionRefused => ("down: nothing listens at its socket".to_owned(), start),
            PermissionDenied => ("not reachable for this user".to_owned(), log()),
            _ => (source.to_string(), start),
        },
        ClientError::Timeout { .. } => ("does not answer in time".to_owned(), journal()),
        other => (other.to_string(), log()),
    }
}

fn judge(facts: Facts, now: OffsetDateTime) -> Health {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    if !facts.configured && facts.daemons.iter().any(|daemon| !daemon.answers) {
        problems.push("the device is not configured: write config.toml and run `edgekeep config apply`".to_owned());
    }
    for daemon in facts.daemons.iter().filter(|daemon| !daemon.answers) {
        let (error, remedy) =
            (daemon.error.as_deref().unwrap_or_default(), daemon.remedy.as_deref().unwrap_or_default());
        problems.push(format!("{} {error}; {remedy}", daemon.name));
    }
    let uids: Vec<u32> = facts.daemons.iter().filter_map(|daemon| daemon.uid).collect();
    let shared = uids.iter().enumerate().any(|(at, uid)| uids[..at].contains(uid));
    if shared {
        let hint = if facts.installed { ": install them with a user each" } else { "" };
        warnings.push(format!("daemons share one Unix user, so they are not isolated from each other{hint}"));
    }

    for (daemon, sandbox) in &facts.sandboxes {
        let name = daemon.name();
        if !sandbox.enabled {
            let table = if *daemon == Daemon::Keyd { "aziot_keys" } else { name };
            warnings.push(format!("{name} runs without sandbox: remove sandbox = false from [{table}]"));
        }
        for layer in sandbox.layers.iter().filter(|layer| !layer.full) {
            warnings.push(format!("{name}'s sandbox: {}: {}", printable(&layer.name), printable(&layer.level)));
        }
    }

    let local_only = matches!(facts.provisioning, Some(ProvisioningInfo::None));
    let device = match facts.device {
        Ok(Identity::Aziot(identity)) => Some(Device { hub: identity.hub_name, device_id: identity.device_id }),
        Ok(Identity::Local(_)) | Err(Unknown::Down) => None,
        Err(Unknown::NotAllowed) => {
            warnings.push("the device's identity is shown to root and the daemons only".to_owned());
            None
        }
        Err(Unknown::None(why)) => {
            if !local_only {
                problems.push(format!("the device has no identity: {}", printable(&why)));
            }
            None
        }
    };

    let mut days_left = None;
    let mut expiration = None;
    if let Some(status) = &facts.status {
        problems.extend(status.problems.iter().map(|problem| printable(problem)));
        if status.peer_handle != PeerHandle::PeerPidfd {
            warnings.push(
                "this kernel has no pidfd of a socket's peer (Linux 6.5): callers are identified by a weaker handle"
                    .to_owned(),
            );
        }
        if let Some(end) = status.edge_ca_expiration.as_deref().and_then(moment) {
            let days = (end - now).whole_days();
            days_left = Some(days);
            if end <= now {
                problems.push("the edge CA certificate has expired".to_owned());
            } else if days < FEW_DAYS {
                warnings.push(format!("the edge CA certificate ends in {days} days"));
            }
        }
        expiration.clone_from(&status.edge_ca_expiration);
    } else if facts.daemons.iter().any(|daemon| daemon.name == "moduled" && daemon.answers) {
        warnings.push(
            "problems that the module runtime knows of are not shown: it does not tell them (a compatible module runtime \
             does not), or not in time"
                .to_owned(),
        );
    }

    let modules = facts.modules.map(|modules| list::lines(&modules, now));
    if let Some(modules) = &modules {
        let agent = modules.iter().find(|module| module.name == "edgeAgent");
        if agent.is_none_or(|agent| agent.status != "running") && !local_only {
            problems
                .push("the agent does not run, so no deployment is applied: see `edgekeep logs edgeAgent`".to_owned());
        }
        warnings.extend(list::advice(modules));
    } else if facts.daemons.iter().any(|daemon| daemon.name == "moduled" && daemon.answers) {
        warnings.push("which modules there are is not known now: `edgekeep list` says why".to_owned());
    }
    Health {
        healthy: problems.is_empty(),
        problems,
        warnings,
        daemons: facts.daemons,
        provisioning: facts.provisioning,
        device,
        modules,
        edge_ca_expiration: expiration,
        edge_ca_days_left: days_left,
        moduled: facts.status,
    }
}

fn render(health: &Health, style: Style, now: OffsetDateTime) -> String {
    let mut text = String::new();
    let (hue, word) = if health.healthy { (Hue::Good, "healthy") } else { (Hue::Bad, "not healthy") };
    text.push_str(&format!("{} {}\n", style.paint(Hue::Head, "device:"), style.paint(hue, word)));
    for (hue, sign, lines) in [(Hue::Bad, "problem", &health.problems), (Hue::Warning, "warning", &health.warnings)] {
        for line in lines {
            text.push_str(&format!("  {} {line}\n", style.paint(hue, &format!("{sign}:"))));
        }
    }

    let mut daemons = Columns::with_head(&["DAEMON", "STATE", "USER", "SOCKET"]);
    for daemon in &health.daemons {
        let state =
            if daemon.answers { (Hue::Good, "answers") } else { (Hue::Bad, daemon.error.as_deref().unwrap_or("down")) };
        daemons.row(vec![
            (Hue::Plain, daemon.name.to_owned()),
            (state.0, state.1.to_owned()),
            (Hue::Plain, daemon.uid.map_or_else(|| "-".to_owned(), |uid| uid.to_string())),
            (Hue::Plain, daemon.socket.display().to_string()),
        ]);
    }
    text.push('\n');
    text.push_str(&daemons.render(style, ""));

    text.push('\n');
    let source = match &health.provisioning {
        None => "unknown".to_owned(),
        Some(ProvisioningInfo::Dps { auth, endpoint, registration_id, .. }) => {
            format!("dps ({auth}) at {endpoint} as {registration_id}")
        }
        Some(ProvisioningInfo::Manual { auth }) => format!("manual ({auth})"),
        Some(ProvisioningInfo::None) => "none (local identities only)".to_owned(),
    };
    text.push_str(&format!("provisioning  {}\n", printable(&source)));
    if let Some(device) = &health.device {
        text.push_str(&format!("identity      {} at {}\n", printable(&device.device_id), printable(&device.hub)));
    }
    if let (Some(end), Some(days)) = (&health.edge_ca_expiration, health.edge_ca_days_left) {
        text.push_str(&format!("edge CA       {days} days left (until {})\n", printable(end)));
    }
    if let Some(engine) = health.moduled.as_ref().and_then(|status| status.engine.as_ref()) {
        let state = match engine.silent_for_seconds {
            _ if engine.reachable => "reachable".to_owned(),
            Some(seconds) => format!("not reachable; what is known of it is {seconds} s old"),
            None => "not reachable; nothing is known of it yet".to_owned(),
        };
        text.push_str(&format!("engine        {} ({state})\n", printable(&engine.uri)));
    }

    if let Some(modules) = &health.modules {
        text.push('\n');
        if modules.is_empty() {
            text.push_str("no modules\n");
        } else {
            text.push_str(&list::table(modules, style, ""));
        }
    }

    if let Some(status) = health.moduled.as_ref().filter(|status| status.refusal_count > 0) {
        text.push_str(&refusals(status, style, now));
    }
    text
}

/// The latest refusals, and what to do about each reason among them.
fn refusals(status: &Status, style: Style, now: OffsetDateTime) -> String {
    let mut text = format!("\n{} calls refused since start; the latest:\n", status.refusal_count);
    let mut refusals = Columns::with_head(&["WHEN", "TIMES", "MODULE", "REASON", "CALLER"]);
    for refusal in status.refusals.iter().take(SHOWN_REFUSALS) {
        let when = moment(&refusal.time).map_or_else(|| refusal.time.clone(), |time| format!("{} ago", age(time, now)));
        refusals.row(vec![
            (Hue::Plain, when),
            (Hue::Plain, refusal.count.to_string()),
            (Hue::Plain, if refusal.module.is_empty() { "-".to_owned() } else { refusal.module.clone() }),
            (Hue::Bad, refusal.reason.to_string()),
            (Hue::Plain, format!("pid {} uid {} {}", refusal.pid, refusal.uid, refusal.route)),
        ]);
    }
    text.push_str(&refusals.render(style, ""));
    let mut told = Vec::new();
    for refusal in status.refusals.iter().take(SHOWN_REFUSALS) {
        if !told.contains(&refusal.reason) {
            told.push(refusal.reason);
            let (cause, remedy) = (printable(&refusal.explanation.cause), printable(&refusal.explanation.remedy));
            text.push_str(&format!("{}: {cause} {remedy}\n", refusal.reason));
        }
    }
    text.push_str("each with its checks: edgekeep attest --refusals\n");
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use edgekeep_api::operations::Layer;
    use edgekeep_core::attestation::DenyReason;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-07-01 12:00 UTC);

    fn seen(name: &'static str, uid: u32) -> Seen {
        let socket = PathBuf::from(format!("/run/{name}.sock"));
        Seen { name, socket, answers: true, uid: Some(uid), error: None, remedy: None }
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
            configured: true,
            installed: true,
        }
    }

    #[test]
    fn a_sandbox_that_is_off_or_weak_is_said() {
        let layer = |full, level: &str| Layer { name: "files".into(), full, level: level.into() };
        for (sandbox, said) in [
            (SandboxReport { enabled: false, layers: Vec::new(), widened: Vec::new() }, "without sandbox"),
            (
                SandboxReport { enabled: true, layers: vec![layer(false, "absent: no Landlock")], widened: Vec::new() },
                "keyd's sandbox: files: absent: no Landlock",
            ),
        ] {
            let health = judge(Facts { sandboxes: vec![(Daemon::Keyd, sandbox)], ..well() }, NOW);
            assert!(health.healthy && health.warnings.len() == 1, "{health:?}");
            assert!(health.warnings[0].contains(said), "{health:?}");
        }
        let full = SandboxReport { enabled: true, layers: vec![layer(true, "full")], widened: vec!["x".into()] };
        assert!(judge(Facts { sandboxes: vec![(Daemon::Identityd, full)], ..well() }, NOW).warnings.is_empty());
        assert!(judge(Facts { sandboxes: Vec::new(), ..well() }, NOW).warnings.is_empty());
        let off = SandboxReport { enabled: false, layers: Vec::new(), widened: Vec::new() };
        let health = judge(Facts { sandboxes: vec![(Daemon::Identityd, off)], ..well() }, NOW);
        assert!(health.warnings[0].contains("sandbox = false from [identityd]"), "{health:?}");
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
        let expected = "identityd not started: there is no socket; start it: systemctl start edgekeep-identityd";
        assert_eq!(health.problems, [expected]);
        assert!(render(&health, Style::plain(), NOW).contains(&format!("problem: {expected}\n")));
    }

    #[test]
    fn what_weakens_isolation_is_a_warning() {
        let mut facts = well();
        facts.daemons = vec![seen("keyd", 0), seen("identityd", 0), seen("moduled", 0)];
        facts.status.as_mut().unwrap().peer_handle = PeerHandle::PidfdOpen;
        let health = judge(facts, NOW);
        assert!(health.healthy);
        assert!(health.warnings[0].contains("not isolated from each other"), "{health:?}");
        assert!(health.warnings[1].contains("weaker handle"), "{health:?}");
    }

    #[test]
    fn what_keeps_modules_from_working_is_a_problem() {
        for (change, part) in [
            ((|facts| facts.modules = Some(Vec::new())) as fn(&mut Facts), "agent does not run"),
            (|facts| facts.device = Err(Unknown::None("not provisioned".into())), "no identity: not provisioned"),
            (|facts| facts.status.as_mut().unwrap().problems.push("no engine".into()), "no engine"),
            (
                |facts| facts.status.as_mut().unwrap().edge_ca_expiration = Some("2026-06-30T00:00:00Z".into()),
                "has expired",
            ),
        ] {
            let mut facts = well();
            change(&mut facts);
            let health = judge(facts, NOW);
            assert!(!health.healthy && health.problems.iter().any(|one| one.contains(part)), "{part}: {health:?}");
        }
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
        assert!(text.contains("1 minute ago  7      thermometer  not-in-module  pid 77 uid 1000 POST /sign"), "{text}");
        assert!(text.contains(&format!("not-in-module: {}", DenyReason::NotInModule.explained().cause)), "{text}");
    }
}
