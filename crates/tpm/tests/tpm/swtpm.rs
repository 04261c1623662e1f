//! A software TPM of its own for each test, without a resource manager: three object
//! slots, so that leaks show.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use edgekeep_tpm::{Tcti, Tpm, TpmOptions};

/// Transient objects.
pub(crate) const TRANSIENT: u32 = 0x8000_0000;
/// Sessions that are loaded.
pub(crate) const SESSIONS: [u32; 2] = [0x0200_0000, 0x0300_0000];

/// First port for software TPMs, and the number of pairs from there on.
const FIRST_PORT: u16 = 20_000;
const PAIRS: u32 = 4000;

/// As firmware leaves a TPM.
const STARTED: &str = "not-need-init,startup-clear";

/// Returns true if software TPMs or their tools are missing here, so that the test cannot
/// run.
pub(crate) fn skip() -> bool {
    crate::parts::missing(&["swtpm", "tpm2_getcap"])
}

/// A running swtpm; killed at the end, its state removed.
pub(crate) struct Swtpm {
    folder: tempfile::TempDir,
    ports: Ports,
    pid: u32,
}

impl Swtpm {
    pub(crate) fn start() -> Self {
        // A program that is no test may take a port in between.
        for _ in 0..5 {
            let mut swtpm =
                Self { folder: tempfile::tempdir().unwrap(), ports: Ports::take(), pid: 0 };
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
            .args(["--server", &format!("type=tcp,port={}", self.ports.data)])
            .args(["--ctrl", &format!("type=tcp,port={}", self.ports.data + 1)])
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
            if let Some(pid) =
                fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok())
            {
                self.pid = pid;
                return TcpStream::connect(("127.0.0.1", self.ports.data + 1)).is_ok();
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
        Tcti::SwtpmTcp { host: "127.0.0.1".to_owned(), port: self.ports.data }
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

    /// Runs one of the TPM tools in `folder`. No connection of ours may be open: swtpm
    /// serves one at a time.
    pub(crate) fn tool(
        &self,
        folder: &Path,
        name: &str,
        arguments: &[&str],
    ) -> std::process::Output {
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

/// A data port and the control port right above it, where swtpm's tools expect it. No
/// other test has them meanwhile.
struct Ports {
    data: u16,
    /// Locked for as long as the ports are in use. The kernel ends the lock with the
    /// process.
    _lock: fs::File,
}

impl Ports {
    /// Takes a pair that nobody has, below the range from which the kernel takes ports of
    /// connections.
    ///
    /// Looking for free ports is not enough: two tests find the same pair, and the one
    /// whose TPM could not bind would talk to half of the other's.
    fn take() -> Self {
        let folder = std::env::temp_dir().join("edgekeep-swtpm-ports");
        fs::create_dir_all(&folder).unwrap();
        // Tests that start at the same time begin at different places.
        let begin = std::process::id() % PAIRS;
        for pair in (0..PAIRS).map(|step| (begin + step) % PAIRS) {
            let data = FIRST_PORT + 2 * u16::try_from(pair).unwrap();
            let Ok(lock) = fs::File::create(folder.join(data.to_string())) else { continue };
            let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
            if lock.try_lock().is_ok() && free(data) && free(data + 1) {
                return Self { data, _lock: lock };
            }
        }
        panic!("all ports for software TPMs are in use");
    }
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
