//! The looks that checks take at the device. Each decides only whether it applies.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgekeep_api::certd::CertificatesClient;
use edgekeep_api::client::{Client, ClientError};
use edgekeep_api::operations;
use edgekeep_config::{Environment, Severity, environment, mode_of, translate};
use edgekeep_core::health::{Problem, Severity as Gravity};
use edgekeep_core::layout::Daemon;
use http::Method;
use serde_json::Value;

use super::configured::Configured;
use super::judge::{self, Upstream};
use super::outcome::Outcome;
use crate::failure;

const LIMIT: Duration = Duration::from_secs(2);
/// Version of the engine's API that is asked; every engine that is supported has it.
const ENGINE_VERSION: &str = "/v1.41";

pub(super) async fn run(id: &str, configured: &Configured) -> Outcome {
    let looked = match id {
        "config-well-formed" => Ok(config(configured)),
        "configs-up-to-date" => Ok(up_to_date(configured)),
        "hostname" => name(configured),
        "parent_hostname" => parent(configured).await,
        "container-engine-uri" => engine(configured).await,
        "container-engine-logrotate" => logrotate(configured),
        "container-engine-hardening" => hardening(configured).await,
        "edge-agent-storage-mounted-from-host" => storage(configured, "edgeAgent").await,
        "edge-hub-storage-mounted-from-host" => storage(configured, "edgeHub").await,
        "connect-management-uri" => Ok(socket(&configured.management).await),
        "connect-workload-uri" => Ok(socket(&configured.root.legacy_workload_socket()).await),
        "keyd-running" => Ok(socket(&configured.root.keyd_socket()).await),
        "certd-running" => Ok(socket(&configured.root.certd_socket()).await),
        "identityd-running" => Ok(socket(&configured.root.identityd_socket()).await),
        "tpmd-running" => tpm(configured).await,
        "host-connect-dps-endpoint" => dps(configured).await,
        "host-connect-iothub-https" => hub(configured, Upstream::Https).await,
        "host-connect-iothub-mqtt" => hub(configured, Upstream::Mqtt).await,
        "host-connect-iothub-amqp" => hub(configured, Upstream::Amqp).await,
        "identity-certificate-expiry" => certificates(configured).await,
        "host-local-time" => Ok(clock(configured).await),
        "key-store-protection" => protection(configured),
        "disk-space" => disk(configured),
        "problems" => Ok(problems(configured).await),
        _ => Err("this version does not have it".to_owned()),
    };
    looked.unwrap_or_else(Outcome::Skipped)
}

type Looked = Result<Outcome, String>;

/// The configuration file and the device as `config check` sees them.
fn written(configured: &Configured) -> Result<(PathBuf, String, Environment), String> {
    let path = configured.root.config_file();
    let text = edgekeep_config::read_config(&path)
        .map_err(|error| format!("{} cannot be read ({error})", path.display()))?;
    let environment = Environment { mode: mode_of(&path), ..environment(&text) };
    Ok((path, text, environment))
}

fn config(configured: &Configured) -> Outcome {
    const WHY: &str = "the daemons go on with what was applied last";
    const FIX: &str = "edgekeep config check shows each place and its remedy";
    let (_, text, environment) = match written(configured) {
        Ok(written) => written,
        Err(why) => return Outcome::error(why, WHY, "write it, or run as root"),
    };
    let found = match translate(&text, &environment) {
        Ok(translated) => translated.notices,
        Err(found) => found,
    };
    let first = |severity| found.iter().find(|one| one.severity == severity);
    let line = |one: &edgekeep_config::Diagnostic| format!("line {}: {}", one.line, one.message);
    match (first(Severity::Error), first(Severity::Notice)) {
        (Some(error), _) => Outcome::error(line(error), WHY, FIX),
        (None, Some(notice)) => Outcome::warning(
            line(notice),
            "the device may not do what the configuration means",
            FIX,
        ),
        (None, None) => Outcome::Ok,
    }
}

fn up_to_date(configured: &Configured) -> Outcome {
    let Ok((path, text, environment)) = written(configured) else {
        return Outcome::skipped("there is no configuration that can be read");
    };
    let mode = edgekeep_config::ApplyMode::DryRun;
    match edgekeep_config::apply(&configured.root, &text, &environment, mode) {
        Ok(applied) if applied.changes.is_empty() => Outcome::Ok,
        Ok(applied) => Outcome::warning(
            format!(
                "{} has changes that are not applied: {}",
                path.display(),
                applied.changes[0].what
            ),
            "the device does not do what the configuration says",
            "edgekeep config apply --dry-run, then edgekeep config apply",
        ),
        Err(_) => Outcome::skipped("the configuration has errors, or the settings cannot be read"),
    }
}

fn name(configured: &Configured) -> Looked {
    Ok(judge::hostname(configured.identityd()?["hostname"].as_str().unwrap_or_default()))
}

async fn parent(configured: &Configured) -> Looked {
    let parent = configured.identityd()?["parent_hostname"].as_str();
    let parent = parent.ok_or("the device has no parent")?;
    Ok(match tokio::net::lookup_host((parent, 443)).await {
        Ok(_) => judge::hostname(parent),
        Err(error) => Outcome::error(
            format!("{parent} cannot be looked up: {error}"),
            "the device reaches the hub through its parent",
            "add the parent to the name service or to /etc/hosts, or correct `parent_hostname`",
        ),
    })
}

/// The engine's socket, if an engine is used.
fn engine_socket(configured: &Configured) -> Result<PathBuf, String> {
    let uri = configured.moduled()?["engine"]["uri"].as_str();
    let uri = uri.ok_or("no container engine is used")?;
    Ok(PathBuf::from(uri.strip_prefix("unix://").unwrap_or(uri)))
}

async fn ask_engine(
    configured: &Configured,
    path: &str,
) -> Result<Result<Value, ClientError>, String> {
    let client = Client::new(engine_socket(configured)?).with_timeout(LIMIT);
    let path = format!("{ENGINE_VERSION}{path}");
    Ok(client.call::<(), Value>(Method::GET, &path, None).await)
}

async fn engine(configured: &Configured) -> Looked {
    const WHY: &str = "no container is started or watched";
    let socket = engine_socket(configured)?;
    if socket.is_dir() {
        return Ok(Outcome::error(
            format!("{} is a folder", socket.display()),
            WHY,
            "remove the folder, and restart the engine: engines make one where a socket to be mounted is not there",
        ));
    }
    Ok(match ask_engine(configured, "/version").await? {
        Ok(_) => Outcome::Ok,
        Err(error) => Outcome::error(
            format!("the engine does not answer: {error}"),
            WHY,
            "systemctl status docker (or podman); the socket is [moby_runtime] uri; run as root if it is closed to you",
        ),
    })
}

fn logrotate(configured: &Configured) -> Looked {
    let socket = engine_socket(configured)?;
    if !socket.file_name().is_some_and(|name| name.to_string_lossy().contains("docker")) {
        return Err("the engine is not Docker".to_owned());
    }
    let text = std::fs::read("/etc/docker/daemon.json").unwrap_or_else(|_| b"{}".to_vec());
    let settings =
        serde_json::from_slice(&text).map_err(|_| "/etc/docker/daemon.json is no JSON")?;
    Ok(judge::logrotate(&settings))
}

async fn hardening(configured: &Configured) -> Looked {
    let info = ask_engine(configured, "/info").await?;
    Ok(judge::hardening(&info.map_err(|_| "the engine does not answer")?))
}

async fn storage(configured: &Configured, module: &str) -> Looked {
    let answer = ask_engine(configured, &format!("/containers/{module}/json")).await?;
    Ok(judge::storage(&answer.map_err(|_| format!("there is no container {module}"))?))
}

/// A socket at which something answers.
async fn socket(path: &Path) -> Outcome {
    const WHY: &str = "modules and daemons get no identity, key or certificate from it";
    let shown = path.display();
    let kind = std::fs::metadata(path).map(|metadata| metadata.file_type());
    if kind.as_ref().is_ok_and(|kind| !kind.is_socket()) {
        return Outcome::error(
            format!("{shown} is no socket"),
            WHY,
            format!(
                "remove it, and systemctl restart {}: engines make a folder where a socket to be mounted is not there",
                failure::daemon_of(path)
            ),
        );
    }
    let client = Client::new(path).with_timeout(LIMIT);
    match client.call_empty(Method::GET, "/", None::<&()>).await {
        Ok(()) | Err(ClientError::Status { .. }) => Outcome::Ok,
        Err(error) => {
            let remedy = failure::remedy(&error);
            Outcome::error(error.to_string(), WHY, remedy.unwrap_or_default())
        }
    }
}

async fn tpm(configured: &Configured) -> Looked {
    if configured.keyd()?["tpm"].is_null() {
        return Err("no TPM is configured".to_owned());
    }
    Ok(socket(&configured.root.tpmd_socket()).await)
}

/// Host and port of a URL.
fn authority(url: &str) -> Option<(String, u16)> {
    let uri: http::Uri = url.parse().ok()?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    Some((uri.host()?.to_owned(), port))
}

/// The proxy that identityd goes through, as this command's environment has it.
fn proxy() -> Option<(String, u16)> {
    let value = std::env::var("https_proxy").or_else(|_| std::env::var("HTTPS_PROXY")).ok()?;
    authority(&value)
}

async fn reach(host: &str, port: u16, what: &str) -> Outcome {
    const WHY: &str = "the device works with what it knows, and gets nothing new from the cloud";
    let connected = tokio::time::timeout(LIMIT, tokio::net::TcpStream::connect((host, port))).await;
    let error = match connected {
        Ok(Ok(_)) => return Outcome::Ok,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    };
    Outcome::error(
        format!("{what} {host}:{port} cannot be reached: {error}"),
        WHY,
        format!("open port {port} in the firewall, or correct name service or proxy (https_proxy)"),
    )
}

async fn dps(configured: &Configured) -> Looked {
    let provisioning = &configured.identityd()?["provisioning"];
    let endpoint = provisioning["endpoint"].as_str().or(provisioning["Dps"]["endpoint"].as_str());
    let endpoint = endpoint.ok_or("no provisioning service is used")?;
    let (host, port) = authority(endpoint).ok_or("its address is no URL")?;
    match proxy() {
        Some((host, port)) => Ok(reach(&host, port, "the proxy").await),
        None => Ok(reach(&host, port, "the provisioning service").await),
    }
}

async fn hub(configured: &Configured, upstream: Upstream) -> Looked {
    let hub = configured.hub.as_deref().ok_or("no hub is known")?;
    let moduled = configured.moduled()?;
    let kind = moduled["agent"]["kind"].as_str().or(moduled["agent"]["type"].as_str());
    let protocol = moduled["agent"]["env"]["UpstreamProtocol"].as_str();
    let used = judge::upstream(kind.unwrap_or("docker"), protocol);
    if upstream != Upstream::Https && used != Some(upstream) {
        return Err("no module is known to use this protocol".to_owned());
    }
    let (host, port) = match hub.rsplit_once(':') {
        // The simulated hub has a port of its own, for everything.
        Some((host, port)) if !host.contains(':') => (host, port.parse().unwrap_or(443)),
        _ => (hub, upstream.port()),
    };
    match proxy() {
        Some((host, port)) if upstream == Upstream::Https => {
            Ok(reach(&host, port, "the proxy").await)
        }
        _ => Ok(reach(host, port, "the hub").await),
    }
}

async fn certificates(configured: &Configured) -> Looked {
    let client = CertificatesClient::new(configured.root.certd_socket());
    let list = client.list().await.map_err(|_| "the certificates API tells no certificates")?;
    let lines: Vec<_> = list
        .certificates
        .into_iter()
        .map(|line| (line.id, line.days_left, line.last_error))
        .collect();
    Ok(judge::certificates(&lines))
}

/// Problems of which the daemons keep lists.
async fn told(configured: &Configured) -> Vec<Problem> {
    operations::problems_of(&configured.root, &Daemon::ALL, LIMIT).await
}

async fn clock(configured: &Configured) -> Outcome {
    let found = told(configured).await;
    let found = found.iter().find(|problem| problem.code().word().contains("clock"));
    found.map_or(Outcome::Ok, of_problem)
}

fn of_problem(problem: &Problem) -> Outcome {
    let explained = problem.code().explained();
    let details = format!("{}: {}", problem.code().word(), problem.detail());
    if problem.severity() == Gravity::Unhealthy {
        Outcome::error(details, explained.cause, explained.remedy)
    } else {
        Outcome::warning(details, explained.cause, explained.remedy)
    }
}

fn protection(configured: &Configured) -> Looked {
    let keyd = configured.keyd()?;
    match keyd["seal"].as_str() {
        Some("tpm" | "pkcs11" | "Tpm" | "Pkcs11") => Ok(Outcome::Ok),
        _ if keyd["tpm"].is_null() && keyd["pkcs11"].is_null() => Err(
            "the device has neither TPM nor token configured: the key store's own key is a file"
                .to_owned(),
        ),
        _ => Ok(Outcome::warning(
            "the key store's own key is a file, although the device has hardware for it",
            "whoever copies the disk has the device's keys",
            "edgekeep keys migrate --to tpm (or pkcs11), while keyd is stopped",
        )),
    }
}

fn disk(configured: &Configured) -> Looked {
    let state = configured.root.path().join("var/lib/edgekeep");
    let stat = rustix::fs::statvfs(&state)
        .map_err(|error| format!("{} cannot be looked at: {error}", state.display()))?;
    Ok(judge::disk(
        stat.f_bavail.saturating_mul(stat.f_frsize),
        stat.f_blocks.saturating_mul(stat.f_frsize),
    ))
}

async fn problems(configured: &Configured) -> Outcome {
    let found = told(configured).await;
    let worst = found.iter().max_by_key(|problem| problem.severity() == Gravity::Unhealthy);
    worst.map_or(Outcome::Ok, of_problem)
}
