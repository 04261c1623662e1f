//! `edgekeep-sim`: the simulated cloud as a program. It keeps nothing on disk unless
//! `--state-file` is given.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Parser;
use edgekeep_base::durable::{self, Until};
use edgekeep_sim::token::Key;
use edgekeep_sim::{
    Authority, Enrolment, EstOptions, MqttOptions, PresetDevice, ServerCertificate, Simulator,
    SimulatorOptions, Snapshot,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

/// Largest state file that is read, in bytes.
const STATE_LIMIT: u64 = 64 * 1024 * 1024;

/// A simulated cloud for one machine: provisioning service, hub and EST server. For
/// development and tests only.
#[derive(Debug, Parser)]
#[command(name = "edgekeep-sim", version)]
struct Arguments {
    /// Address to listen on. With another than a loopback address, whoever reaches it can
    /// use the cloud routes.
    #[arg(long, default_value = "127.0.0.1")]
    address: std::net::IpAddr,
    /// HTTPS port; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Host name under which devices reach this program; part of the hub's name.
    #[arg(long, default_value = "localhost")]
    host_name: String,
    /// Id scope of the provisioning service.
    #[arg(long, default_value = "0ne00000001")]
    scope_id: String,
    /// Lets a device register: its registration id and its symmetric key in base64. May
    /// be repeated.
    #[arg(long, value_name = "ID=KEY")]
    enrol: Vec<String>,
    /// A device that the hub knows from the start: its id and its symmetric key in
    /// base64. May be repeated.
    #[arg(long, value_name = "ID=KEY")]
    device: Vec<String>,
    /// Writes the CA certificate that devices must trust to this file, as PEM.
    #[arg(long, value_name = "FILE")]
    ca_out: Option<PathBuf>,
    /// Reads CA, enrolments, devices and modules from this file if it exists, and keeps
    /// them there, keys included.
    #[arg(long, value_name = "FILE")]
    state_file: Option<PathBuf>,
    /// Most modules of one device. The real hub's number unless given.
    #[arg(long, value_name = "NUMBER", default_value_t = edgekeep_sim::MODULE_LIMIT)]
    module_limit: usize,
    /// Also listens for MQTT over TLS here, for example 127.0.0.1:8883.
    #[arg(long, value_name = "ADDRESS:PORT")]
    mqtt: Option<SocketAddr>,
    /// Certificate chain (PEM) for the MQTT listener in place of the simulator's own.
    #[arg(long, value_name = "FILE", requires = "mqtt", requires = "mqtt_key")]
    mqtt_certificate: Option<PathBuf>,
    /// Private key (PEM) of that certificate.
    #[arg(long, value_name = "FILE", requires = "mqtt_certificate")]
    mqtt_key: Option<PathBuf>,
    /// Name and password, NAME:PASSWORD, that the EST server takes.
    #[arg(long, value_name = "NAME:PASSWORD")]
    est_user: Option<String>,
    /// Roots (PEM) of certificates that the EST server takes beside its own: those of
    /// manufacturers.
    #[arg(long, value_name = "FILE")]
    est_clients: Option<PathBuf>,
    /// Label of another CA of the EST server. May be repeated.
    #[arg(long, value_name = "LABEL")]
    est_label: Vec<String>,
    /// Writes the root of the EST server's CA to this file, as PEM.
    #[arg(long, value_name = "FILE")]
    est_ca_out: Option<PathBuf>,
    /// Prints one line of JSON, {dps, hub, est, ca, admin, scopeId, mqtt}, instead of a
    /// sentence.
    #[arg(long)]
    json: bool,
}

/// Parsed here and not by clap, whose errors repeat the text.
fn id_and_key(text: &str) -> anyhow::Result<(String, Key)> {
    let (id, key) = text.split_once('=').context("--enrol and --device expect ID=KEY")?;
    let key = Key::from_base64(key).with_context(|| format!("cannot use the key of \"{id}\""))?;
    Ok((id.to_owned(), key))
}

/// Content of the file of `--state-file`.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u32,
    authority: Authority,
    snapshot: Snapshot,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let presets = |texts: &[String]| {
        texts.iter().map(|text| id_and_key(text)).collect::<anyhow::Result<Vec<_>>>()
    };
    let enrolments =
        presets(&arguments.enrol)?.into_iter().map(|(id, key)| Enrolment::new(id, key)).collect();
    let devices = presets(&arguments.device)?
        .into_iter()
        .map(|(id, key)| PresetDevice::new(id, key))
        .collect();
    let kept = arguments.state_file.as_deref().map(read_state).transpose()?.flatten();
    let (authority, snapshot) =
        kept.map_or((None, Snapshot::default()), |kept| (Some(kept.authority), kept.snapshot));
    let mqtt = match arguments.mqtt {
        None => None,
        Some(listen) => Some(MqttOptions {
            listen,
            certificate: match (&arguments.mqtt_certificate, &arguments.mqtt_key) {
                (Some(chain), Some(key)) => Some(ServerCertificate {
                    chain_pem: read(chain)?,
                    key_pem: Zeroizing::new(read(key)?),
                }),
                _ => None,
            },
        }),
    };
    let simulator = Simulator::start(SimulatorOptions {
        listen: SocketAddr::from((arguments.address, arguments.port)),
        host_name: arguments.host_name,
        scope_id: arguments.scope_id,
        enrolments,
        devices,
        authority,
        snapshot,
        module_limit: arguments.module_limit,
        mqtt,
        est: EstOptions {
            basic: arguments
                .est_user
                .map(|pair| {
                    let pair = Zeroizing::new(pair);
                    let (name, password) =
                        pair.split_once(':').context("--est-user expects NAME:PASSWORD")?;
                    Ok::<_, anyhow::Error>((name.to_owned(), Zeroizing::new(password.to_owned())))
                })
                .transpose()?,
            clients_pem: arguments
                .est_clients
                .as_deref()
                .map(read)
                .transpose()?
                .unwrap_or_default(),
            labels: arguments.est_label,
        },
    })
    .await?;
    if let (Some(path), Some(root)) = (&arguments.est_ca_out, simulator.est_root_pem(None)) {
        std::fs::write(path, root).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &arguments.ca_out {
        std::fs::write(path, simulator.ca_pem())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    announce(&simulator, arguments.ca_out.as_deref(), arguments.json)?;

    let mut changes = simulator.changes();
    let mut written = Zeroizing::new(Vec::new());
    loop {
        changes.borrow_and_update();
        if let Some(path) = &arguments.state_file {
            write_state(path, &simulator, &mut written)?;
        }
        tokio::select! {
            changed = changes.changed() => changed?,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    if let Some(path) = &arguments.state_file {
        write_state(path, &simulator, &mut written)?;
    }
    simulator.stop().await;
    Ok(())
}

/// Says where it is, once it can be reached.
fn announce(simulator: &Simulator, ca: Option<&Path>, as_json: bool) -> anyhow::Result<()> {
    let (dps, hub, state) = (simulator.dps_endpoint(), simulator.hub_host(), simulator.state());
    let admin = format!("{dps}/admin");
    let mqtt = simulator.mqtt_address().map(|address| address.to_string());
    let line = if as_json {
        json!({ "dps": dps, "hub": hub, "est": simulator.est_url(), "ca": ca, "admin": admin, "scopeId": state.scope_id, "mqtt": mqtt }).to_string()
    } else {
        let ca = ca.map_or_else(
            || "not written, see --ca-out".to_owned(),
            |path| path.display().to_string(),
        );
        let mqtt = mqtt.map(|address| format!(", MQTT {address}")).unwrap_or_default();
        format!(
            "simulated cloud ready: provisioning {dps} (scope {}), hub {hub}, admin {admin}{mqtt}, CA {ca}",
            state.scope_id
        )
    };
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write to standard output")
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_state(path: &Path) -> anyhow::Result<Option<Kept>> {
    let length = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.with_context(|| format!("cannot read {}", path.display()))?.len(),
    };
    if length > STATE_LIMIT {
        bail!("{} is larger than any state of this program; move it away", path.display());
    }
    let kept: Kept = serde_json::from_str(&read(path)?).with_context(|| {
        format!("{} is not a state file of this program; move it away", path.display())
    })?;
    if kept.version != 1 {
        bail!(
            "{} has version {}, this program reads 1; move it away",
            path.display(),
            kept.version
        );
    }
    Ok(Some(kept))
}

/// Replaces the file as a whole, readable only by its owner; does nothing if it would be
/// the same as `written`.
fn write_state(
    path: &Path,
    simulator: &Simulator,
    written: &mut Zeroizing<Vec<u8>>,
) -> anyhow::Result<()> {
    let kept = Kept {
        version: 1,
        authority: simulator.authority().clone(),
        snapshot: simulator.snapshot(),
    };
    let text = Zeroizing::new(serde_json::to_vec(&kept)?);
    if *text == **written {
        return Ok(());
    }
    durable::replace(path, &text, 0o600, Until::OnDisk, |_| Ok(()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    *written = text;
    Ok(())
}
