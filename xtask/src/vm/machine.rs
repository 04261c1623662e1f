//! One run of the machine: a TPM, the emulator, what it tells.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::root::Root;
use crate::engine::dies_with_this_task;
use crate::{command, interrupt};

/// Longest time that the simulated TPM may take to start, and that a child may take to
/// end.
const SHORT: Duration = Duration::from_secs(20);
/// The port of the checks' lines.
const REPORT: &str = "report";

/// Drives and folder that a machine is made of.
pub(super) struct Machine<'a> {
    pub(super) root: &'a Root,
    /// The second drive.
    pub(super) payload: &'a Path,
    /// For sockets, logs and the TPM's state.
    pub(super) folder: &'a Path,
}

/// A child that ends with this.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        interrupt::end(&mut self.0, SHORT);
    }
}

impl Machine<'_> {
    /// Runs the checks, shows their lines as they come, and gives them. What the machine
    /// writes to its console goes to a file.
    pub(super) fn run(&self, console: &Path, limit: Duration) -> anyhow::Result<Vec<String>> {
        let report = self.folder.join(REPORT);
        let _tpm = self.tpm()?;
        let mut qemu = self.emulator("quiet");
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.arg("-serial").arg(format!("file:{}", report.display()));
        let log = self.folder.join("qemu.log");
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let mut qemu = Ending(interrupt::spawn(&mut qemu).context("cannot start the emulator")?);
        let end = Instant::now() + limit;
        let mut lines = Vec::new();
        loop {
            let ended = qemu.0.try_wait()?;
            for line in complete_lines(&report).split_off(lines.len()) {
                eprintln!("{line}");
                lines.push(line);
            }
            match ended {
                Some(status) if status.success() => break,
                Some(status) => {
                    bail!("the emulator ended ({status}):\n{}", command::tail(&log, 15))
                }
                None if Instant::now() >= end => {
                    eprintln!("the machine did not power itself off within {} s", limit.as_secs());
                    break;
                }
                None => interrupt::pause(Duration::from_millis(200))?,
            }
        }
        Ok(lines)
    }

    /// A shell of the machine on this terminal, until it is powered off.
    pub(super) fn shell(&self) -> anyhow::Result<()> {
        let _tpm = self.tpm()?;
        let mut qemu = self.emulator("device.shell");
        qemu.args(["-serial", "mon:stdio"]);
        eprintln!("a shell of the machine's root follows; `poweroff` or Ctrl-A X ends it");
        command::run(qemu)
    }

    fn tpm(&self) -> anyhow::Result<Ending> {
        let state = self.folder.join("tpm");
        fs::create_dir_all(&state)?;
        let socket = self.tpm_socket();
        let mut swtpm = dies_with_this_task("swtpm");
        swtpm.args(["socket", "--tpm2", "--flags", "startup-clear"]);
        swtpm.arg("--tpmstate").arg(format!("dir={}", state.display()));
        swtpm.arg("--ctrl").arg(format!("type=unixio,path={}", socket.display()));
        swtpm.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut swtpm = Ending(interrupt::spawn(&mut swtpm).context("cannot start swtpm")?);
        let ready = interrupt::poll(SHORT, || {
            if let Some(status) = swtpm.0.try_wait()? {
                bail!("swtpm ended ({status})");
            }
            Ok(socket.exists().then_some(()))
        })?;
        ready.context("swtpm makes no socket")?;
        Ok(swtpm)
    }

    fn tpm_socket(&self) -> PathBuf {
        self.folder.join("tpm.sock")
    }

    /// The emulator, without its serial ports.
    fn emulator(&self, more: &str) -> Command {
        let Root { image, kernel, ramdisk } = self.root;
        let mut qemu = dies_with_this_task("qemu-system-x86_64");
        // Emulated, so that it runs wherever a test runs; a host that can virtualise may
        // be asked to by hand.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]);
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none"]);
        qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(ramdisk);
        // Else the kernel gives up at boot where the host is too busy for its timer.
        qemu.arg("-append").arg(format!("root=/dev/vda rw console=ttyS0 no_timer_check {more}"));
        // What is written to the root is forgotten with the machine.
        qemu.arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,snapshot=on", image.display()));
        qemu.arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,readonly=on", self.payload.display()));
        qemu.arg("-chardev").arg(format!("socket,id=tpm,path={}", self.tpm_socket().display()));
        qemu.args(["-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm"]);
        qemu
    }
}

/// The lines of a file that end; the terminal of the machine ends them with a carriage
/// return as well.
fn complete_lines(file: &Path) -> Vec<String> {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect()
}
