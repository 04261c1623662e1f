//! `status`: how the device is, from what the daemons' public APIs say.

mod judge;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use edgekeep_api::client::{Client, ClientError};
use edgekeep_api::identityd::{Identity, IdentityClient, ProvisioningInfo};
use edgekeep_api::keyd::KeysClient;
use edgekeep_api::management::{ManagementClient, ModuleDetails, Status};
use edgekeep_api::operations::{self, OperationsClient, SandboxReport, ShownProblem};
use edgekeep_core::assurance::{Assurance, Lack};
use edgekeep_core::health::{Problem, Verdict};
use edgekeep_core::layout::{Daemon, Root};
use http::Method;
use serde::Serialize;
use time::OffsetDateTime;

use crate::arguments::Context;
use crate::failure;
use crate::list;
use crate::output::{self, Columns, Hue, Style, age, moment, printable};

/// Longest time that one daemon may take to answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Refusals shown in the text form.
const SHOWN_REFUSALS: usize = 5;

pub(crate) async fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let facts = Box::pin(gather(context)).await;
    let health = judge::judge(facts, OffsetDateTime::now_utc());
    if context.json {
        output::print_json(&health)?;
    } else {
        output::print(&render(&health, Style::stdout(), OffsetDateTime::now_utc()))?;
    }
    Ok(if health.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Facts that were gathered about the device.
struct Facts {
    daemons: Vec<Seen>,
    provisioning: Option<ProvisioningInfo>,
    device: Result<Identity, Unknown>,
    status: Option<Status>,
    modules: Option<Vec<ModuleDetails>>,
    /// Sandboxes of keyd and identityd; without those of older daemons, which do not
    /// tell.
    sandboxes: Vec<(Daemon, SandboxReport)>,
    /// The assurance that keyd tells; absent if keyd does not.
    assurance: Option<Assurance>,
    /// Problems that the daemons themselves know.
    told: Vec<Problem>,
    configured: bool,
    installed: bool,
}

/// Reason for not knowing the device's identity.
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

/// Health of the device, as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    /// `healthy`, `healthy-with-warnings` or `unhealthy`.
    health: Verdict,
    healthy: bool,
    /// Problems that keep the device from being healthy.
    problems: Vec<ShownProblem>,
    /// Problems that the device survives, or that will grow if nothing is done.
    warnings: Vec<ShownProblem>,
    daemons: Vec<Seen>,
    provisioning: Option<ProvisioningInfo>,
    device: Option<Device>,
    modules: Option<Vec<list::Line>>,
    /// Advice about modules that do not run as they should.
    advice: Vec<String>,
    edge_ca_expiration: Option<String>,
    edge_ca_days_left: Option<i64>,
    moduled: Option<Status>,
    /// The assurance of keys and measurements, and what the next level lacks.
    assurance: Option<Assurance>,
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
    let keys = KeysClient::new(root.keyd_socket());
    let sandbox = |daemon| {
        let socket = OperationsClient::new(root.metrics_socket(daemon));
        async move { Some((daemon, within(socket.sandbox()).await?.ok()?)) }
    };
    let sandboxes = async {
        let [keyd, identityd, moduled] = Daemon::ALL;
        tokio::join!(sandbox(keyd), sandbox(identityd), sandbox(moduled))
    };
    let (
        keyd,
        identityd,
        moduled,
        provisioning,
        device,
        status,
        modules,
        sandboxes,
        told,
        assurance,
    ) = tokio::join!(
        see(Daemon::Keyd, root.keyd_socket(), root, "/?api-version=2021-05-01"),
        see(
            Daemon::Identityd,
            root.identityd_socket(),
            root,
            "/identities/provisioning?api-version=2022-08-01"
        ),
        see(Daemon::Moduled, context.management.clone(), root, "/modules?api-version=2022-08-03"),
        within(identity.provisioning()),
        within(identity.device()),
        within(management.status()),
        within(management.list_modules()),
        sandboxes,
        operations::problems_of(root, &Daemon::ALL, TIME_LIMIT),
        within(keys.assurance()),
    );
    let device = match device {
        Some(Ok(identity)) => Ok(identity),
        Some(Err(ClientError::Status { status, message, .. })) => {
            Err(if matches!(status.as_u16(), 401 | 403) {
                Unknown::NotAllowed
            } else {
                Unknown::None(message)
            })
        }
        _ => Err(Unknown::Down),
    };
    Facts {
        daemons: vec![keyd, identityd, moduled],
        provisioning: provisioning.and_then(Result::ok),
        device,
        status: status.and_then(Result::ok),
        modules: modules.and_then(Result::ok),
        sandboxes: [sandboxes.0, sandboxes.1, sandboxes.2].into_iter().flatten().collect(),
        assurance: assurance.and_then(Result::ok),
        told,
        configured: root.settings_file(Daemon::Moduled).exists(),
        installed: root.path() == Path::new("/"),
    }
}

async fn within<T>(call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(TIME_LIMIT, call).await.ok()
}

/// Tells if something that speaks HTTP answers at a socket: any status will do.
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

/// The user of the process that made the socket, unless that is the service manager: then
/// nothing is known.
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

fn render(health: &Health, style: Style, now: OffsetDateTime) -> String {
    let mut text = String::new();
    let hue = match health.health {
        Verdict::Healthy => Hue::Good,
        Verdict::HealthyWithWarnings => Hue::Warning,
        Verdict::Unhealthy => Hue::Bad,
    };
    let word = health.health.to_string();
    text.push_str(&format!("{} {}\n", style.paint(Hue::Head, "device:"), style.paint(hue, &word)));
    for (hue, sign, problems) in
        [(Hue::Bad, "problem", &health.problems), (Hue::Warning, "warning", &health.warnings)]
    {
        for shown in problems {
            let (problem, remedy) = (&shown.problem, printable(&shown.remedy));
            let since = if now - problem.since() < time::Duration::SECOND {
                String::new()
            } else {
                let begin = problem.since().to_offset(time::UtcOffset::UTC);
                let format = time::macros::format_description!(
                    "[year]-[month]-[day] [hour]:[minute]:[second] UTC"
                );
                format!(
                    " (for {}, since {})",
                    age(begin, now),
                    begin.format(format).unwrap_or_default()
                )
            };
            let (sign, sentence) =
                (style.paint(hue, &format!("{sign}:")), printable(&problem.sentence()));
            text.push_str(&format!("  {sign} {sentence}{since}\n           {remedy}\n"));
        }
    }

    let mut daemons = Columns::with_head(&["DAEMON", "STATE", "USER", "SOCKET"]);
    for daemon in &health.daemons {
        let state = if daemon.answers {
            (Hue::Good, "answers")
        } else {
            (Hue::Bad, daemon.error.as_deref().unwrap_or("down"))
        };
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
        text.push_str(&format!(
            "identity      {} at {}\n",
            printable(&device.device_id),
            printable(&device.hub)
        ));
    }
    if let Some(assurance) = &health.assurance {
        text.push_str(&format!("assurance     {}\n", assurance.level));
        for lack in &assurance.lacks {
            text.push_str(&format!("              not higher: {}\n", Lack::words(*lack)));
        }
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
            for line in &health.advice {
                text.push_str(&format!("{} {line}\n", style.paint(Hue::Warning, "note:")));
            }
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
        let when = moment(&refusal.time)
            .map_or_else(|| refusal.time.clone(), |time| format!("{} ago", age(time, now)));
        refusals.row(vec![
            (Hue::Plain, when),
            (Hue::Plain, refusal.count.to_string()),
            (
                Hue::Plain,
                if refusal.module.is_empty() { "-".to_owned() } else { refusal.module.clone() },
            ),
            (Hue::Bad, refusal.reason.to_string()),
            (Hue::Plain, format!("pid {} uid {} {}", refusal.pid, refusal.uid, refusal.route)),
        ]);
    }
    text.push_str(&refusals.render(style, ""));
    let mut told = Vec::new();
    for refusal in status.refusals.iter().take(SHOWN_REFUSALS) {
        if !told.contains(&refusal.reason) {
            told.push(refusal.reason);
            let (cause, remedy) =
                (printable(&refusal.explanation.cause), printable(&refusal.explanation.remedy));
            text.push_str(&format!("{}: {cause} {remedy}\n", refusal.reason));
        }
    }
    text.push_str("each with its checks: edgekeep attest --refusals\n");
    text
}
