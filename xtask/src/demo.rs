//! `cargo xtask demo`: a simulated device, a real deployment, a module that gets what it
//! should and an intruder that does not. Each step is one line with its time.

mod intrusion;
mod manifest;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::Value;

use crate::device::{Device, Setup};
use crate::engine::Engine;
use crate::{command, image, interrupt, workspace};

/// Longest time of one step.
const LIMIT: Duration = Duration::from_secs(60);
/// Steps of the thermometer in a round, each with the text that is shown for it.
const ROUND: [(&str, &str); 5] = [
    ("trust-bundle", "thermometer gets the trust bundle"),
    ("certificate/server", "thermometer gets a server certificate"),
    ("verify chain", "it checks the certificate"),
    ("sign", "thermometer gets a SAS token"),
    ("hub", "the hub verifies its signature"),
];

#[derive(Args)]
pub(crate) struct Options {
    /// Use the Docker Engine and container modules; a private engine is started if none
    /// answers
    #[arg(long)]
    docker: bool,
    /// Keep the device's folder
    #[arg(long)]
    keep: bool,
}

/// Prints one line a step.
struct Show {
    begin: Instant,
}

impl Show {
    fn step(&self, what: &str, detail: &str) {
        println!("{:>8.2} s  {what:<44} {detail}", self.begin.elapsed().as_secs_f64());
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut build = workspace::cargo();
    build.args(["build", "--workspace", "--bins"]);
    command::run(build)?;
    println!("built in {:.1} s", begin.elapsed().as_secs_f64());

    let folder = tempfile::Builder::new()
        .prefix("edgekeep-demo-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let show = Show { begin: Instant::now() };
    let engine = if options.docker { Some(Engine::answering_or_private()?) } else { None };
    let kind = match &engine {
        Some(engine) => format!("container modules, {}", engine.describe()),
        None => "host modules, no container engine, no root needed".to_owned(),
    };
    show.step("a device", &format!("in {}: {kind}", folder.path().display()));

    let demo = Demo {
        show,
        programs: workspace::target().join("debug"),
        folder: folder.path().to_owned(),
    };
    let result = demo.run(engine.as_ref());
    let failed = result.as_ref().is_err_and(|error| !error.is::<interrupt::Interrupted>());
    if options.keep || failed {
        println!("kept: {}", folder.keep().display());
    }
    result
}

struct Demo {
    show: Show,
    programs: PathBuf,
    folder: PathBuf,
}

/// Place in which the demo runs its modules.
enum Place<'a> {
    Host,
    Engine(&'a Path),
}

impl Demo {
    fn run(&self, engine: Option<&Engine>) -> anyhow::Result<()> {
        let place = engine.map_or(Place::Host, |engine| Place::Engine(engine.socket()));
        let manifest = self.folder.join("deployment.json");
        std::fs::create_dir(self.folder.join("report"))?;
        manifest::write(&manifest, &self.manifest(&place, None)?)?;
        let setup = Setup {
            programs: &self.programs,
            root: &self.folder,
            manifest: &manifest,
            host_modules: if engine.is_none() { &["thermometer", "intruder"] } else { &[] },
            engine: engine.map(Engine::socket),
            module_limit: None,
            agent_image: engine.map(|_| "edgekeep-demo/agent:1"),
        };
        if let Some(engine) = engine {
            self.import(engine.socket())?;
        }
        let mut device = Device::start(&setup)?;
        let result = self.steps(&mut device, &place, &manifest);
        if result.as_ref().is_err_and(|error| !error.is::<interrupt::Interrupted>()) {
            println!("the device's last words:\n{}", device.explanation());
        }
        result?;
        drop(device);
        self.show.step("stopped", "every step succeeded");
        Ok(())
    }

    fn import(&self, engine: &Path) -> anyhow::Result<()> {
        let program = |name| self.programs.join(name);
        image::import(engine, "edgekeep-demo/agent:1", &[program("edgekeep-agent")])?;
        // The second program is there for the engine's exec: an image may hold more than
        // its module runs.
        image::import(
            engine,
            "edgekeep-demo/thermometer:1",
            &[program("thermometer"), program("intruder")],
        )?;
        image::import(engine, "edgekeep-demo/intruder:1", &[program("intruder")])?;
        self.show.step("images", "imported from our own programs; no registry");
        Ok(())
    }

    fn manifest(&self, place: &Place<'_>, intruder: Option<&[String]>) -> anyhow::Result<Value> {
        let path = workspace::folder().join("examples/thermometer.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let example = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        Ok(manifest::for_demo(example, &self.folder, matches!(place, Place::Engine(_)), intruder))
    }

    fn steps(&self, device: &mut Device, place: &Place<'_>, manifest: &Path) -> anyhow::Result<()> {
        let show = &self.show;
        let text = |event: &Value, name: &str| event[name].as_str().unwrap_or("?").to_owned();

        let cloud = device.event("simulated cloud", LIMIT, named("cloud"))?;
        show.step(
            "simulated provisioning and hub",
            &format!(
                "{} (scope {}), hub {}",
                text(&cloud, "dps"),
                text(&cloud, "scopeId"),
                text(&cloud, "hub")
            ),
        );
        let configured = device.event("config apply", LIMIT, named("configured"))?;
        show.step(
            "config.toml applied",
            &format!("{}: source = \"dps\", symmetric key", text(&configured, "file")),
        );
        for daemon in ["keyd", "identityd", "moduled"] {
            let of_daemon = |event: &Value| event["name"] == daemon;
            let started =
                device.event(daemon, LIMIT, |event| named("started")(event) && of_daemon(event))?;
            let ready =
                device.event(daemon, LIMIT, |event| named("ready")(event) && of_daemon(event))?;
            show.step(
                &format!("{daemon} answers"),
                &format!("process {}, after {} ms", started["pid"], ready["ms"]),
            );
        }
        let device_is = device.event("provisioning", LIMIT, named("provisioned"))?;
        show.step(
            "the device is assigned",
            &format!("{} at {}", text(&device_is, "deviceId"), text(&device_is, "hub")),
        );
        device.event("edgeAgent runs", LIMIT, runs("edgeAgent"))?;
        show.step("edgeAgent runs, measured", &self.measured(place)?);
        for module in ["thermometer", "intruder"] {
            device.event(&format!("{module} runs"), LIMIT, runs(module))?;
        }
        show.step(
            "the manifest is applied",
            "the agent made identities and modules: thermometer, intruder",
        );

        self.thermometer(device)?;
        intrusion::all(self, device, place, manifest)?;
        self.status(device)
    }

    /// Returns the measurement of the agent, in words.
    fn measured(&self, place: &Place<'_>) -> anyhow::Result<String> {
        match place {
            Place::Host => {
                let settings =
                    std::fs::read_to_string(self.folder.join("etc/edgekeep/moduled.json"))?;
                let settings: Value = serde_json::from_str(&settings)?;
                let digest = settings["host_modules"]["edgekeep-agent"]["sha256"]
                    .as_str()
                    .context("no digest")?;
                Ok(format!("started from the bytes with {}", short(digest)))
            }
            Place::Engine(engine) => {
                let container = crate::http::json(
                    engine,
                    "GET",
                    "/containers/edgeAgent/json",
                    crate::http::Body::Empty,
                )?;
                Ok(format!(
                    "its container runs the image {}",
                    short(container["Image"].as_str().context("no image")?)
                ))
            }
        }
    }

    /// Waits for a round in which every step worked.
    fn thermometer(&self, device: &mut Device) -> anyhow::Result<()> {
        let report = self.folder.join("report/thermometer.jsonl");
        let mut last = String::new();
        let outcome = device.poll("thermometer gets all it needs", LIMIT, || {
            let text = std::fs::read_to_string(&report).unwrap_or_default();
            let steps: Vec<Value> =
                text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            if let Some(step) = steps.iter().rfind(|step| step["ok"] == false) {
                last = format!("{}: {}", step["step"], step["detail"]);
            }
            let rounds = steps.chunk_by(|a, b| a["round"] == b["round"]);
            let good = |round: &&[Value]| {
                round.len() == ROUND.len()
                    && round
                        .iter()
                        .zip(ROUND)
                        .all(|(step, (name, _))| step["step"] == name && step["ok"] == true)
            };
            Ok(rounds.filter(good).map(<[Value]>::to_vec).next())
        });
        let steps = outcome.with_context(|| {
            if last.is_empty() { "it has not reported".to_owned() } else { last }
        })?;
        for (step, (_, what)) in steps.iter().zip(ROUND) {
            self.show.step(what, step["detail"].as_str().unwrap_or_default());
        }
        Ok(())
    }

    /// Shows `edgekeep status`, which must find the device healthy.
    fn status(&self, device: &Device) -> anyhow::Result<()> {
        let status = device.edgekeep(&["status"]).output().context("cannot start edgekeep")?;
        let text = String::from_utf8_lossy(&status.stdout);
        self.show.step(
            "edgekeep status",
            if status.status.success() { "healthy" } else { "not healthy" },
        );
        for line in text.lines() {
            println!("            {line}");
        }
        ensure!(status.status.success(), "edgekeep status says that the device is not healthy");
        Ok(())
    }
}

/// Events of this name.
fn named(name: &str) -> impl Fn(&Value) -> bool + '_ {
    move |event| event["event"] == name
}

/// The event that a module runs.
fn runs(module: &str) -> impl Fn(&Value) -> bool + '_ {
    move |event| {
        event["event"] == "module" && event["name"] == module && event["status"] == "running"
    }
}

/// The beginning of a digest.
fn short(digest: &str) -> String {
    let hex = digest.trim_start_matches("sha256:");
    format!("sha256:{}…", &hex[..hex.len().min(16)])
}
