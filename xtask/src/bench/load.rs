//! The load generator, wherever it runs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::engine::dies_with_this_task;
use crate::interrupt;

/// A load generator and a bare echo beside this task, for sockets that need no module to
/// call them.
pub(super) struct Load {
    folder: PathBuf,
    children: [Child; 2],
}

impl Load {
    /// Starts both; their sockets are in `folder`.
    pub(super) fn start(programs: &Path, folder: &Path) -> anyhow::Result<Self> {
        let start = |program: &str, socket: &str| {
            let mut command = dies_with_this_task(programs.join(program));
            command.arg(folder.join(socket)).stdin(Stdio::null()).stdout(Stdio::null());
            interrupt::spawn(&mut command).with_context(|| format!("cannot start {program}"))
        };
        let children = [start("edgekeep-load", "load.sock")?, start("edgekeep-echo", "echo.sock")?];
        let load = Self { folder: folder.to_owned(), children };
        let ready = || {
            Ok(["load.sock", "echo.sock"]
                .iter()
                .all(|name| folder.join(name).exists())
                .then_some(()))
        };
        interrupt::poll(Duration::from_secs(10), ready)?
            .context("the load generator did not start")?;
        Ok(load)
    }

    /// The socket of the echo.
    pub(super) fn echo(&self) -> PathBuf {
        self.folder.join("echo.sock")
    }

    /// Runs one case, all of whose requests have to succeed.
    pub(super) fn perform(&self, case: &Value) -> anyhow::Result<Value> {
        let result = perform(&self.folder.join("load.sock"), case)?;
        if result["error"].is_string() || result["ok"] != case["requests"] {
            bail!("{case}: {result}");
        }
        Ok(result)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.children {
            interrupt::end(child, Duration::from_secs(5));
        }
    }
}

/// Has the load generator behind `control` run one case.
pub(super) fn perform(control: &Path, case: &Value) -> anyhow::Result<Value> {
    interrupt::check()?;
    let mut stream = UnixStream::connect(control).context("cannot reach the load generator")?;
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    writeln!(stream, "{case}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the load generator gave no result")?;
    serde_json::from_str(&line).context("the load generator gave no result")
}
