//! A container engine: the one that answers, or a private one that lives as long as the
//! task.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;

use crate::http::{self, Body};
use crate::suite::Suite;
use crate::{command, interrupt, parts, workspace};

/// Private engines that may run side by side in one checkout.
const SLOTS: u8 = 8;
/// Longest path of a private engine's folder: the kernel takes 107 bytes for a socket,
/// containerd's needs 35 of them.
const FOLDER_LIMIT: usize = 70;
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// An engine that answers. A private one ends when this is dropped.
pub(crate) struct Engine {
    socket: PathBuf,
    private: Option<Private>,
}

impl Engine {
    /// The engine that answers at `DOCKER_HOST` or at the usual place; else a private
    /// one.
    pub(crate) fn answering_or_private() -> anyhow::Result<Self> {
        if let Some(socket) = answering() {
            return Ok(Self { socket, private: None });
        }
        anyhow::ensure!(
            parts::is_root(),
            "no container engine answers, and only root can start a private one: sudo apt-get install docker.io, and add \
             yourself to the group docker"
        );
        let missing = parts::provide(&[parts::DOCKERD, parts::IP])?;
        anyhow::ensure!(missing.is_empty(), parts::remedy(&missing));
        // Installing may have started the system's own.
        if let Some(socket) = answering() {
            return Ok(Self { socket, private: None });
        }
        Self::private(None, false)
    }

    /// A private one, the machine's own or a suite's. With `containerd` its images are in
    /// containerd's store.
    pub(crate) fn private(suite: Option<&Suite>, containerd: bool) -> anyhow::Result<Self> {
        anyhow::ensure!(parts::is_root(), "only root can start a private engine");
        let own = [parts::DOCKER, parts::IP, parts::DOCKERD];
        let missing = parts::provide(if suite.is_some() { &own[..2] } else { &own })?;
        anyhow::ensure!(missing.is_empty(), parts::remedy(&missing));
        let private = Private::start(suite, containerd)?;
        Ok(Self { socket: private.folder.join("docker.sock"), private: Some(private) })
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Describes the engine in words.
    pub(crate) fn describe(&self) -> String {
        let version = version(&self.socket);
        match &self.private {
            Some(private) => {
                format!(
                    "private dockerd {version}, ready after {:.1} s",
                    private.start_time.as_secs_f64()
                )
            }
            None => format!("engine {version} at {}", self.socket.display()),
        }
    }
}

/// The version of the engine at a socket.
pub(crate) fn version(socket: &Path) -> String {
    let answer = http::json(socket, "GET", "/version", Body::Empty).ok();
    let version = answer.and_then(|answer| answer["Version"].as_str().map(str::to_owned));
    version.unwrap_or_else(|| "of unknown version".to_owned())
}

fn answering() -> Option<PathBuf> {
    let named = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let socket = match &named {
        Some(host) => PathBuf::from(host.strip_prefix("unix://")?),
        None => PathBuf::from("/var/run/docker.sock"),
    };
    answers(&socket).then_some(socket)
}

/// Returns true if an engine answers at a socket.
pub(crate) fn answers(socket: &Path) -> bool {
    http::call(socket, "GET", "/_ping", Body::Empty).is_ok_and(|(status, _)| status == 200)
}

/// A `dockerd` with everything of its own: folder, socket, bridge.
struct Private {
    folder: PathBuf,
    bridge: String,
    child: Child,
    start_time: Duration,
    /// Held while the slot is in use.
    _lock: File,
}

impl Private {
    fn start(suite: Option<&Suite>, containerd: bool) -> anyhow::Result<Self> {
        let (slot, folder, lock) = take_slot(&workspace::target().join("engine"))?;
        anyhow::ensure!(
            folder.as_os_str().len() < FOLDER_LIMIT,
            "{} is too long for the sockets in it: set CARGO_TARGET_DIR to a shorter folder",
            folder.display()
        );
        // What a killed run may have left.
        clear(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let settings = json!({ "features": { "containerd-snapshotter": containerd } });
        fs::write(
            folder.join("daemon.json"),
            if containerd { settings.to_string() } else { "{}".to_owned() },
        )
        .context("cannot write the engine's configuration")?;
        let bridge = format!("edgekeep{slot}");
        make_bridge(&bridge, slot)?;

        let begin = Instant::now();
        let log = folder.join("dockerd.log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut dockerd = match suite {
            Some(suite) => suite.program("dockerd", &folder),
            None => dies_with_this_task("dockerd"),
        };
        dockerd.arg("--config-file").arg(folder.join("daemon.json"));
        dockerd.arg("--data-root").arg(folder.join("data"));
        dockerd.arg("--exec-root").arg(folder.join("exec"));
        dockerd.arg("--pidfile").arg(folder.join("pid"));
        dockerd.arg("--host").arg(format!("unix://{}", folder.join("docker.sock").display()));
        dockerd.args(["--bridge", &bridge, "--log-level", "warn"]);
        dockerd.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Ctrl-C reaches it through this task, after those who use it.
        std::os::unix::process::CommandExt::process_group(&mut dockerd, 0);
        let child = interrupt::spawn(&mut dockerd).context("cannot start dockerd")?;
        let mut private = Self { folder, bridge, child, start_time: Duration::ZERO, _lock: lock };

        let socket = private.folder.join("docker.sock");
        let ready = interrupt::poll(START_LIMIT, || {
            if let Some(status) = private.child.try_wait()? {
                bail!("dockerd ended ({status}):\n{}", command::tail(&log, 15));
            }
            Ok(answers(&socket).then_some(()))
        })?;
        ready.with_context(|| format!("dockerd does not answer:\n{}", command::tail(&log, 15)))?;
        private.start_time = begin.elapsed();
        Ok(private)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Without this dockerd gives each container ten seconds.
        let socket = self.folder.join("docker.sock");
        let containers = http::json(&socket, "GET", "/containers/json?all=true", Body::Empty)
            .unwrap_or_default();
        for id in containers
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| container["Id"].as_str())
        {
            let _ =
                http::call(&socket, "DELETE", &format!("/containers/{id}?force=true"), Body::Empty);
        }
        interrupt::end(&mut self.child, STOP_LIMIT);
        remove_bridge(&self.bridge);
        clear(&self.folder);
    }
}

/// A command that the kernel ends when this task dies, however that happens.
pub(crate) fn dies_with_this_task(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let program = program.as_ref();
    let found = program
        .to_str()
        .and_then(parts::find)
        .map_or_else(|| program.to_owned(), PathBuf::into_os_string);
    match parts::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "TERM", "--"]).arg(found);
            command
        }
        None => Command::new(found),
    }
}

/// The first folder that no other task uses.
fn take_slot(folder: &Path) -> anyhow::Result<(u8, PathBuf, File)> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for slot in 0..SLOTS {
        let path = folder.join(format!("{slot}.lock"));
        let lock =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if lock.try_lock().is_ok() {
            return Ok((slot, folder.join(slot.to_string()), lock));
        }
    }
    bail!("{SLOTS} private engines run in {} already", folder.display())
}

fn make_bridge(name: &str, slot: u8) -> anyhow::Result<()> {
    remove_bridge(name);
    let ip = |words: &[&str]| {
        let mut command = Command::new(parts::find("ip").unwrap_or_else(|| "ip".into()));
        command.args(words);
        command::output(command)
    };
    ip(&["link", "add", "name", name, "type", "bridge"])?;
    ip(&["address", "add", &format!("10.231.{slot}.1/24"), "dev", name])?;
    Ok(())
}

fn remove_bridge(name: &str) {
    let mut command = Command::new(parts::find("ip").unwrap_or_else(|| "ip".into()));
    command
        .args(["link", "delete", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _ = command.status();
}

/// Removes an engine's folder, with what is still mounted in it.
pub(crate) fn clear(folder: &Path) {
    if !folder.exists() {
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let inside = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| Path::new(path).starts_with(folder));
    for path in inside.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").args(["--lazy", path]).stderr(Stdio::null()).status();
    }
    let _ = fs::remove_dir_all(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_in_use_is_passed_over_and_a_free_one_is_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = take_slot(folder.path()).unwrap();
        let second = take_slot(folder.path()).unwrap();
        assert_eq!((first.0, second.0), (0, 1));
        drop(first);
        assert_eq!(take_slot(folder.path()).unwrap().0, 0);
    }
}
