//! A software TPM of its own for each test, without a resource manager: three object slots, so that leaks show.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use edgekeep_hsm::tpm::{Tcti, Tpm, TpmOptions};

/// Transient objects.
pub(crate) const TRANSIENT: u32 = 0x8000_0000;
/// Sessions that are loaded.
pub(crate) const SESSIONS: [u32; 2] = [0x0200_0000, 0x0300_0000];

/// As firmware leaves a TPM.
const STARTED: &str = "not-need-init,startup-clear";

/// Whether there are no software TPMs or no tools for them here, so that the test cannot run.
pub(crate) fn skip() -> bool {
    crate::parts::missing(&["swtpm", "tpm2_getcap"])
}

/// A running swtpm; killed at the end, its state removed.
pub(crate) struct Swtpm {
    folder: tempfile::TempDir,
    port: u16,
    pid: u32,
}

impl Swtpm {
    pub(crate) fn start() -> Self {
        for _ in 0..20 {
            let Some(port) = free_pair_of_ports() else { continue };
            let mut swtpm = Self { folder: tempfile::tempdir().unwrap(), port, pid: 0 };
            // Fails if another test was faster to take one of the ports.
            if swtpm.spawn(STARTED) {
                return swtpm;
            }
        }
        panic!("swtpm did not start; is it installed (apt install swtpm tpm2-tools)?");
    }

    /// Starts it on its port and state; returns when it listens.
    fn spawn(&mut self, flags: &str) -> bool {
        let state = self.folder.path();
        let pid_file = state.join("pid");
        let started = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", flags, "--daemon"])
            .arg("--tpmstate")
            .arg(format!("dir={}", state.display()))
            .args(["--server", &format!("type=tcp,port={}", self.port)])
            .args(["--ctrl", &format!("type=tcp,port={}", self.port + 1)])
            .arg("--pid")
            .arg(format!("file={}", pid_file.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("swtpm is installed (apt install swtpm tpm2-tools)");
        if !started.success() {
            return false;
        }
        // The daemon writes its number after its parent has gone.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(pid) = fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok()) {
                self.pid = pid;
                return TcpStream::connect(("127.0.0.1", self.port + 1)).is_ok();
            }
            std::thread::yield_now();
        }
        false
    }

    /// Takes its power away: nothing loaded survives, what is persistent does.
    pub(crate) fn kill(&mut self) {
        if self.pid == 0 {
            return;
        }
        let killed = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status().unwrap();
        assert!(killed.success());
        while Path::new(&format!("/proc/{}", self.pid)).exists() && !is_zombie(self.pid) {
            std::thread::yield_now();
        }
        let _ = fs::remove_file(self.folder.path().join("pid"));
        self.pid = 0;
    }

    pub(crate) fn start_again(&mut self) {
        assert!(self.spawn(STARTED), "swtpm did not start again");
    }

    /// Gives it power again, on a board whose firmware does not start it.
    pub(crate) fn power_on(&mut self) {
        assert!(self.spawn("not-need-init"), "swtpm did not start again");
    }

    pub(crate) fn tcti(&self) -> Tcti {
        Tcti::SwtpmTcp { host: "127.0.0.1".to_owned(), port: self.port }
    }

    pub(crate) fn options(&self) -> TpmOptions {
        TpmOptions::new(self.tcti())
    }

    pub(crate) fn open(&self) -> Tpm {
        Tpm::open(self.options()).unwrap()
    }

    /// A folder that lives as long as the TPM.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Runs one of the TPM tools in `folder`. No connection of ours may be open: swtpm serves one at a time.
    pub(crate) fn tool(&self, folder: &Path, name: &str, arguments: &[&str]) -> std::process::Output {
        Command::new(name)
            .args(arguments)
            .current_dir(folder)
            .env("TPM2TOOLS_TCTI", self.tcti().to_string())
            .output()
            .unwrap_or_else(|error| panic!("{name} (apt install tpm2-tools): {error}"))
    }

    /// Runs one of the TPM tools, which has to succeed.
    pub(crate) fn tool_ok(&self, folder: &Path, name: &str, arguments: &[&str]) -> String {
        let output = self.tool(folder, name, arguments);
        assert!(
            output.status.success(),
            "{name} {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// swtpm's tools expect the control port right above the data port.
fn free_pair_of_ports() -> Option<u16> {
    let first = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let second = first.checked_add(1)?;
    TcpListener::bind(("127.0.0.1", second)).ok()?;
    Some(first)
}

/// Everything loaded in the TPM, sorted.
pub(crate) fn loaded(tpm: &Tpm) -> Vec<u32> {
    let mut handles = tpm.handles(TRANSIENT).unwrap();
    for first in SESSIONS {
        handles.extend(tpm.handles(first).unwrap());
    }
    handles.sort_unstable();
    handles
}

/// Says that nothing is loaded except what is kept on purpose.
pub(crate) fn assert_no_leak(tpm: &Tpm, after: &str) {
    let mut kept = tpm.kept_handles();
    kept.sort_unstable();
    let shown: Vec<String> = loaded(tpm).iter().map(|handle| format!("{handle:#x}")).collect();
    assert_eq!(loaded(tpm), kept, "after {after}: {shown:?}");
}
