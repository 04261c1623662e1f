//! Cost of a module's call, beside the cost of a bare HTTP echo over the same kind of
//! socket in the same run; memory and sizes.

mod profile;
pub(super) mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::load::perform;
use super::{DAEMONS, OTHERS, Results, build, memory_kib};
use crate::device::{Device, Setup};
use crate::engine::{Engine, dies_with_this_task};
use crate::http::{self, Body};
use crate::{image, interrupt};
use report::{Bar, Report, Row};

const IMAGE: &str = "edgekeep-bench/load:1";
const AGENT_IMAGE: &str = "edgekeep-bench/agent:1";
/// Each case is run this often, interleaved with the others; the median counts.
const RUNS: usize = 3;
/// Modules of the device, the agent among them: as few as can be, and more, up to what a
/// hub allows.
pub(super) const FEWEST: usize = 2;
const MORE: [usize; 2] = [10, 50];
/// Most modules that run. The others are host modules that were created and not started.
pub(super) const RUNNING: usize = 50;
const SIGN: &str = "/modules/{m}/genid/{g}/sign?api-version=2020-07-07";
const CERTIFICATE: &str = "/modules/{m}/genid/{g}/certificate/server?api-version=2020-07-07";
const BUNDLE: &str = "/trust-bundle?api-version=2020-07-07";

/// Measures, with the load generator in a container or (`host`) as a host module.
/// With `profile` what a call takes of each daemon, in place of rates.
pub(super) fn run(host: bool, profile: bool) -> anyhow::Result<Results> {
    let packages: Vec<&str> =
        DAEMONS.iter().chain(&OTHERS).chain(&["edgekeep-load"]).copied().collect();
    let programs = build(&packages)?;
    let engine = if host { None } else { Some(Engine::answering_or_private()?) };
    let folder = tempfile::Builder::new()
        .prefix("edgekeep-bench-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let mut bench = Bench::start(programs, folder.path(), engine.as_ref(), None)?;
    let result = if profile { bench.profile() } else { bench.report(engine.is_some()) };
    if result.as_ref().is_err_and(|error| !error.is::<interrupt::Interrupted>()) {
        eprintln!("the device's last words:\n{}", bench.device.explanation());
    }
    result
}

/// A device with the load generator as a module of it.
pub(super) struct Bench {
    programs: PathBuf,
    /// Folder that load generator, echo and this task share.
    shared: PathBuf,
    manifest: PathBuf,
    containers: bool,
    pub(super) device: Device,
    module_limit: Option<usize>,
    engine: Option<PathBuf>,
    echo: Child,
    // After the device, which stops what this removes.
    _leftovers: Option<Leftovers>,
}

/// Stopped containers and images of ours that a device leaves in an engine that lives on.
/// They are removed when this is dropped.
struct Leftovers(PathBuf);

impl Leftovers {
    /// Removes what a bench that was killed has left, first.
    fn of(engine: &Path) -> Self {
        let leftovers = Self(engine.to_owned());
        leftovers.remove();
        leftovers
    }

    fn remove(&self) {
        for image in [IMAGE, AGENT_IMAGE] {
            // moduled's label: which image was asked for.
            let filter =
                json!({ "label": [format!("net.azure-devices.edge.original-image={image}")] })
                    .to_string();
            let filter: String = filter.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let list = format!("/containers/json?all=true&filters={filter}");
            let containers = http::json(&self.0, "GET", &list, Body::Empty).unwrap_or_default();
            let ids = containers
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|container| container["Id"].as_str());
            for id in ids {
                let _ = http::call(
                    &self.0,
                    "DELETE",
                    &format!("/containers/{id}?force=true"),
                    Body::Empty,
                );
            }
            let _ = http::call(&self.0, "DELETE", &format!("/images/{image}"), Body::Empty);
        }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        interrupt::end(&mut self.echo, Duration::from_secs(5));
    }
}

/// One kind of call.
pub(super) struct Call {
    name: &'static str,
    callers: u32,
    requests: u32,
    bar: Bar,
    request: Value,
}

impl Bench {
    /// Starts the device, at a hub that allows so many modules, or as many as the real
    /// one.
    pub(super) fn start(
        programs: PathBuf,
        root: &Path,
        engine: Option<&Engine>,
        module_limit: Option<usize>,
    ) -> anyhow::Result<Self> {
        let leftovers = engine.map(|engine| Leftovers::of(engine.socket()));
        let shared = root.join("bench");
        fs::create_dir(&shared)?;
        let manifest = root.join("deployment.json");
        let containers = engine.is_some();
        write_manifest(&manifest, &shared, containers, FEWEST)?;
        if let Some(engine) = engine {
            image::import(engine.socket(), AGENT_IMAGE, &[programs.join("edgekeep-agent")])?;
            image::import(engine.socket(), IMAGE, &[programs.join("edgekeep-load")])?;
        }
        let mut echo = dies_with_this_task(programs.join("edgekeep-echo"));
        echo.arg(shared.join("echo.sock")).stdin(Stdio::null()).stdout(Stdio::null());
        let echo = interrupt::spawn(&mut echo).context("cannot start edgekeep-echo")?;
        let engine = engine.map(|engine| engine.socket().to_owned());
        let setup = setup(&programs, root, &manifest, engine.as_deref(), module_limit);
        let device = Device::start(&setup)?;
        Ok(Self {
            programs,
            shared,
            manifest,
            containers,
            device,
            module_limit,
            engine,
            echo,
            _leftovers: leftovers,
        })
    }

    /// Stops the device and starts it with `tables` added to its configuration.
    pub(super) fn start_again_with(&mut self, tables: &str) -> anyhow::Result<()> {
        let root = self.device.root().to_owned();
        self.device.stop();
        let file = root.join("etc/edgekeep/config.toml");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        // Without its first line `edgekeep dev` takes it for somebody's own.
        let (_, own) = text.split_once('\n').context("an empty configuration")?;
        fs::write(&file, format!("{own}{tables}"))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let (engine, limit) = (self.engine.as_deref(), self.module_limit);
        let setup = setup(&self.programs, &root, &self.manifest, engine, limit);
        self.device = Device::start(&setup)?;
        Ok(())
    }

    /// Waits until the device works, and then until what ends after the start has ended.
    /// The daemons' process ids.
    pub(super) fn come_up(&mut self) -> anyhow::Result<Vec<u64>> {
        let limit = Duration::from_secs(120);
        let mut daemons = Vec::new();
        for program in DAEMONS {
            let name = program.trim_start_matches("edgekeep-");
            let started = self
                .device
                .event(name, limit, |event| event["event"] == "started" && event["name"] == name)?;
            daemons.push(started["pid"].as_u64().context("no process id")?);
        }
        self.device.event("the device", limit, |event| event["event"] == "device-ready")?;
        // The Edge CA may come after the first module.
        let one = self.sign(1, 1, Bar::None);
        self.until_it_works(&one)?;
        self.until_it_works(&certificate(1, 1, Bar::None))?;
        interrupt::pause(Duration::from_secs(3))?;
        Ok(daemons)
    }

    /// Has the agent see to so many modules, itself among them.
    pub(super) fn grow(&mut self, modules: usize) -> anyhow::Result<()> {
        write_manifest(&self.manifest, &self.shared, self.containers, modules)?;
        let target = self.device.management_socket();
        self.device.poll(&format!("{modules} modules"), Duration::from_secs(600), || {
            let (running, all) = crate::device::count_modules(&target)?;
            Ok((running >= modules.min(RUNNING) && all >= modules).then_some(()))
        })?;
        // Starting so many leaves the engine busy for a moment.
        interrupt::pause(Duration::from_secs(3))?;
        Ok(())
    }

    fn profile(&mut self) -> anyhow::Result<Results> {
        let daemons = self.come_up()?;
        let calls = [
            self.sign(1, 3000, Bar::None),
            self.sign(8, 8000, Bar::None),
            certificate(8, 1000, Bar::None),
            trust_bundle(8, 8000),
        ];
        profile::measure(self, &daemons, &calls)
    }

    fn report(&mut self, containers: bool) -> anyhow::Result<Results> {
        let mut report = Report::new(containers);
        self.measure(&mut report)?;
        Ok(Results {
            name: "workload",
            table: report.to_table(),
            json: report.to_json(),
            missed: report.missed(),
        })
    }

    fn measure(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let daemons = self.come_up()?;
        report.memory(memory(&daemons)?);
        for program in DAEMONS.iter().chain(["edgekeep", "edgekeep-agent"].iter()) {
            report.size(program, fs::metadata(self.programs.join(program))?.len());
        }

        let calls = [
            self.echo_call(1, 4000),
            self.echo_call(8, 16000),
            self.echo_call(32, 16000),
            self.sign(1, 3000, Bar::MedianMillisecondsUpTo(1.0)),
            self.sign(8, 8000, Bar::PerSecondFrom(3000.0)),
            self.sign(32, 8000, Bar::PerSecondFrom(3000.0)),
            certificate(8, 1000, Bar::PerSecondFrom(300.0)),
            trust_bundle(8, 8000),
        ];
        self.measure_calls(&calls, FEWEST, report)?;
        for modules in MORE {
            self.grow(modules)?;
            let calls = [self.echo_call(8, 16000), self.sign(8, 8000, Bar::AsWithFewest)];
            self.measure_calls(&calls, modules, report)?;
        }
        Ok(())
    }

    /// Runs the cases, each several times in turn, and adds the medians to the report.
    fn measure_calls(
        &self,
        calls: &[Call],
        modules: usize,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let mut results: Vec<Vec<Value>> = calls.iter().map(|_| Vec::new()).collect();
        for call in calls {
            self.perform(call, call.requests / 10)?;
        }
        for _ in 0..RUNS {
            for (call, results) in calls.iter().zip(&mut results) {
                results.push(self.perform(call, call.requests)?);
            }
        }
        for (call, results) in calls.iter().zip(results) {
            report.calls(Row::new(call.name, call.callers, modules, call.bar, &results));
        }
        Ok(())
    }

    fn until_it_works(&mut self, call: &Call) -> anyhow::Result<()> {
        let (control, request) = (self.shared.join("load.sock"), with_counts(call, 1));
        let mut last = Value::Null;
        let worked =
            self.device.poll(&format!("the first {}", call.name), Duration::from_secs(60), || {
                last = perform(&control, &request).unwrap_or_default();
                Ok((last["ok"] == 1).then_some(()))
            });
        worked.with_context(|| format!("the load generator says {last}"))
    }

    pub(super) fn perform(&self, call: &Call, requests: u32) -> anyhow::Result<Value> {
        let result = perform(&self.shared.join("load.sock"), &with_counts(call, requests))?;
        if let Some(error) = result["error"].as_str() {
            bail!("{}: {error}", call.name);
        }
        Ok(result)
    }

    pub(super) fn sign(&self, callers: u32, requests: u32, bar: Bar) -> Call {
        let body = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "aGVsbG8=" });
        Call {
            name: "sign",
            callers,
            requests,
            bar,
            request: json!({ "method": "POST", "path": SIGN, "body": body }),
        }
    }

    /// As [`Self::sign`], by one caller, without waiting for the connection, over the
    /// shared socket where the module has it.
    pub(super) fn shared_sign(&self, socket: &Path) -> Call {
        let mut call = self.sign(1, 0, Bar::None);
        call.request["nonBlocking"] = true.into();
        if !self.containers {
            call.request["socket"] = socket.display().to_string().into();
        }
        call
    }

    pub(super) fn echo_call(&self, callers: u32, requests: u32) -> Call {
        let mut call = self.sign(callers, requests, Bar::None);
        call.name = report::ECHO;
        call.request["socket"] = self.shared.join("echo.sock").display().to_string().into();
        call
    }
}

fn setup<'a>(
    programs: &'a Path,
    root: &'a Path,
    manifest: &'a Path,
    engine: Option<&'a Path>,
    module_limit: Option<usize>,
) -> Setup<'a> {
    Setup {
        programs,
        root,
        manifest,
        host_modules: &["edgekeep-load"],
        engine,
        module_limit,
        agent_image: engine.map(|_| AGENT_IMAGE),
    }
}

pub(super) fn trust_bundle(callers: u32, requests: u32) -> Call {
    let request = json!({ "method": "GET", "path": BUNDLE });
    Call { name: "trust bundle", callers, requests, bar: Bar::None, request }
}

pub(super) fn certificate(callers: u32, requests: u32, bar: Bar) -> Call {
    let body = json!({ "commonName": "localhost", "expiration": "2099-01-01T00:00:00Z" });
    let request = json!({ "method": "POST", "path": CERTIFICATE, "body": body });
    Call { name: "server certificate", callers, requests, bar, request }
}

fn with_counts(call: &Call, requests: u32) -> Value {
    let mut request = call.request.clone();
    request["callers"] = call.callers.into();
    request["requests"] = requests.max(1).into();
    request
}

/// A deployment of the load generator and of modules that do nothing: `modules` together
/// with the agent, of which [`RUNNING`] run.
fn write_manifest(
    path: &Path,
    shared: &Path,
    containers: bool,
    modules: usize,
) -> anyhow::Result<()> {
    let module = |command: &str, options: Value, runs: bool| {
        let mut options = options;
        options["Cmd"] = json!([command]);
        let (kind, image) =
            if containers && runs { ("docker", IMAGE) } else { ("process", "edgekeep-load") };
        let status = if runs { "running" } else { "stopped" };
        json!({
            "version": "1.0", "type": kind, "status": status, "restartPolicy": "always", "imagePullPolicy": "never",
            "settings": { "image": image, "createOptions": options.to_string() },
        })
    };
    let control = shared.join("load.sock").display().to_string();
    let bind = format!("{0}:{0}", shared.display());
    let options = if containers { json!({ "HostConfig": { "Binds": [bind] } }) } else { json!({}) };
    let mut all = json!({ "load": module(&control, options, true) });
    for number in FEWEST..modules {
        all[format!("idle{number:02}")] = module("idle", json!({}), number < RUNNING);
    }
    let desired = json!({
        "schemaVersion": "1.1", "runtime": { "type": "docker", "settings": {} }, "systemModules": {}, "modules": all,
    });
    let manifest = json!({ "modulesContent": { "$edgeAgent": { "properties.desired": desired } } });
    // In place: an agent in a container was given this very file.
    fs::write(path, manifest.to_string())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The memory of processes in KiB; `None` where only root may look.
fn memory(processes: &[u64]) -> anyhow::Result<Option<u64>> {
    let each: Vec<_> =
        processes.iter().map(|process| memory_kib(*process)).collect::<anyhow::Result<_>>()?;
    Ok(each.into_iter().sum())
}
