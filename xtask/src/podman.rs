//! Podman's compatible service, as a second container engine for the tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::engine::{answers, clear, dies_with_this_task};
use crate::suite::Suite;
use crate::{command, interrupt, parts};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Podman's configuration. The limits that Podman sets by default may be more than this
/// process may have.
const CONFIGURATION: &str =
    "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";

/// A service with images, containers and sockets of its own. It ends when this is
/// dropped.
pub(crate) struct Podman {
    folder: tempfile::TempDir,
    child: Child,
}

impl Podman {
    /// Starts the machine's own, or a suite's.
    pub(crate) fn start(suite: Option<&Suite>) -> anyhow::Result<Self> {
        anyhow::ensure!(parts::is_root(), "only root can start a private podman");
        let own = [parts::DOCKER, parts::PODMAN, parts::RUNC];
        let missing = parts::provide(if suite.is_some() { &own[..1] } else { &own })?;
        anyhow::ensure!(missing.is_empty(), parts::remedy(&missing));
        let folder = tempfile::Builder::new()
            .prefix("ek-podman-")
            .tempdir_in("/tmp")
            .context("cannot write /tmp")?;
        let path = |name: &str| folder.path().join(name);
        fs::write(path("containers.conf"), CONFIGURATION)
            .context("cannot write podman's configuration")?;
        let log = path("log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut podman = match suite {
            Some(suite) => suite.program("podman", folder.path()),
            None => dies_with_this_task("podman"),
        };
        podman
            .env("CONTAINERS_CONF", path("containers.conf"))
            .env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        // It leaves there what it imports.
        fs::create_dir(path("tmp")).context("cannot make podman's temporary folder")?;
        podman.env("TMPDIR", path("tmp"));
        // Of the two usual runtimes the one that also runs where two cgroup versions are
        // mounted.
        podman.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        podman.arg("--root").arg(path("root")).arg("--runroot").arg(path("run"));
        podman
            .args(["system", "service", "--time", "0"])
            .arg(format!("unix://{}", path("podman.sock").display()));
        podman.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Ctrl-C reaches it through this task, after those who use it.
        std::os::unix::process::CommandExt::process_group(&mut podman, 0);
        let child = interrupt::spawn(&mut podman).context("cannot start podman")?;
        let mut service = Self { folder, child };
        let socket = service.socket();
        let ready = interrupt::poll(START_LIMIT, || {
            if let Some(status) = service.child.try_wait()? {
                bail!("podman ended ({status}):\n{}", command::tail(&log, 15));
            }
            Ok(answers(&socket).then_some(()))
        })?;
        ready.with_context(|| format!("podman does not answer:\n{}", command::tail(&log, 15)))?;
        Ok(service)
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("podman.sock")
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        interrupt::end(&mut self.child, STOP_LIMIT);
        // What is still mounted in it would keep the folder.
        clear(self.folder.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_podman_answers_and_leaves_nothing_behind() {
        if !parts::is_root() || parts::find("podman").is_none() {
            eprintln!("skipped: needs root and podman");
            return;
        }
        let podman = Podman::start(None).unwrap();
        let folder = podman.path().to_owned();
        assert!(answers(&podman.socket()));
        drop(podman);
        assert!(!folder.exists());
    }
}
