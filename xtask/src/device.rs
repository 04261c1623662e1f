//! A simulated device, run as a developer would: `edgekeep dev --json`, its events, its
//! sockets.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::engine::dies_with_this_task;
use crate::http::{self, Body};
use crate::interrupt;

/// Longest time that the device may take to stop its modules and daemons.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Lines of its log that are kept to explain a failure.
const KEPT_LINES: usize = 60;

/// Things that a device is made of: programs, folder, manifest, engine.
pub(crate) struct Setup<'a> {
    /// The folder of the programs.
    pub(crate) programs: &'a Path,
    /// The device's root folder.
    pub(crate) root: &'a Path,
    pub(crate) manifest: &'a Path,
    /// Host programs that a manifest may name, from the folder of the programs.
    pub(crate) host_modules: &'a [&'a str],
    /// The container engine's socket.
    pub(crate) engine: Option<&'a Path>,
    /// Most modules that the simulated hub allows; the real one's number if there is
    /// none.
    pub(crate) module_limit: Option<usize>,
    /// The agent's image; without one the agent is a host program.
    pub(crate) agent_image: Option<&'a str>,
}

/// A running device. It is stopped when this is dropped.
pub(crate) struct Device {
    root: PathBuf,
    command: PathBuf,
    child: Child,
    lines: Receiver<String>,
    /// Events that nobody has asked for yet.
    events: Vec<Value>,
    log: VecDeque<String>,
}

impl Device {
    /// Starts a device; it comes up while its events are read.
    pub(crate) fn start(setup: &Setup<'_>) -> anyhow::Result<Self> {
        let command = setup.programs.join("edgekeep");
        let mut dev = dies_with_this_task(&command);
        dev.arg("--json")
            .arg("--root")
            .arg(setup.root)
            .arg("dev")
            .arg("--manifest")
            .arg(setup.manifest);
        for name in setup.host_modules {
            dev.arg("--host-module").arg(format!("{name}={}", setup.programs.join(name).display()));
        }
        if let Some(limit) = setup.module_limit {
            dev.arg("--module-limit").arg(limit.to_string());
        }
        if let Some(engine) = setup.engine {
            dev.arg("--docker").arg(engine);
        }
        if let Some(image) = setup.agent_image {
            dev.args(["--agent-image", image, "--no-pull"]);
        }
        dev.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C reaches it through this task.
        std::os::unix::process::CommandExt::process_group(&mut dev, 0);
        let mut child = interrupt::spawn(&mut dev)
            .with_context(|| format!("cannot start {}", command.display()))?;
        let (sender, lines) = channel();
        let out: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        for pipe in out.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Ok(Self {
            root: setup.root.to_owned(),
            command,
            child,
            lines,
            events: Vec::new(),
            log: VecDeque::with_capacity(KEPT_LINES),
        })
    }

    /// The first event that fits; later ones are kept.
    pub(crate) fn event(
        &mut self,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let end = Instant::now() + limit;
        loop {
            if let Some(index) = self.events.iter().position(&fits) {
                return Ok(self.events.remove(index));
            }
            interrupt::check()?;
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => self.take(line),
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                Err(RecvTimeoutError::Timeout) => bail!("{what}: not within {} s", limit.as_secs()),
                Err(RecvTimeoutError::Disconnected) => bail!("{what}: edgekeep dev ended"),
            }
        }
    }

    fn take(&mut self, line: String) {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        let line = match event["event"].as_str() {
            Some("log") => {
                format!(
                    "{:<10}| {}",
                    event["name"].as_str().unwrap_or_default(),
                    event["line"].as_str().unwrap_or_default()
                )
            }
            Some(_) => {
                self.events.push(event);
                return;
            }
            None => line,
        };
        while self.log.len() >= KEPT_LINES {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    /// The last lines that the device's processes wrote, and the problems it told.
    pub(crate) fn explanation(&mut self) -> String {
        while let Ok(line) = self.lines.try_recv() {
            self.take(line);
        }
        let problems = self.events.iter().filter_map(|event| event["message"].as_str());
        let problems = problems.map(|problem| format!("problem   | {problem}"));
        problems.chain(self.log.iter().cloned()).collect::<Vec<_>>().join("\n")
    }

    /// Something that takes its time: tried until there is a value, as long as the device
    /// runs.
    pub(crate) fn poll<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut attempt: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let value = interrupt::poll(limit, || {
            while let Ok(line) = self.lines.try_recv() {
                self.take(line);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{what}: edgekeep dev ended ({status})");
            }
            attempt()
        })?;
        value.with_context(|| format!("{what}: not within {} s", limit.as_secs()))
    }

    /// The command `edgekeep` for this device.
    pub(crate) fn edgekeep(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.command);
        command.arg("--root").arg(&self.root).args(words);
        command
    }

    /// Returns the device's root folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Stops the device. Its folder stays.
    pub(crate) fn stop(&mut self) {
        interrupt::end(&mut self.child, STOP_LIMIT);
    }

    /// Returns the socket of the management API.
    pub(crate) fn management_socket(&self) -> PathBuf {
        self.root.join("run/iotedge/mgmt.sock")
    }

    /// The folder of the modules' workload sockets.
    pub(crate) fn module_sockets(&self) -> PathBuf {
        self.root.join("var/lib/edgekeep/moduled/mnt")
    }

    /// The shared workload socket of earlier versions.
    pub(crate) fn legacy_socket(&self) -> PathBuf {
        self.root.join("run/iotedge/workload.sock")
    }

    /// The refusals in moduled's audit trail, oldest first.
    pub(crate) fn refusals(&self) -> Vec<Value> {
        let trail = std::fs::read_to_string(self.root.join("var/lib/edgekeep/moduled/audit.jsonl"))
            .unwrap_or_default();
        trail.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An answer of a management API.
pub(crate) fn management(socket: &Path, target: &str) -> anyhow::Result<Value> {
    http::json(socket, "GET", &format!("{target}?api-version=2022-08-03"), Body::Empty)
}

/// Returns the number of modules that run, and the number of all modules.
pub(crate) fn count_modules(socket: &Path) -> anyhow::Result<(usize, usize)> {
    let modules = management(socket, "/modules")?;
    let modules = modules["modules"].as_array().map_or(&[][..], Vec::as_slice);
    let running = modules
        .iter()
        .filter(|module| module["status"]["runtimeStatus"]["status"] == "running")
        .count();
    Ok((running, modules.len()))
}
