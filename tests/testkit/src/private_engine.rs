//! A Docker engine of one test's own, which may be killed, stopped and started again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::engine::Engine;
use crate::http;
use crate::wait::wait_for;

/// A `dockerd` with folders and a socket of its own, and no network: it shares nothing
/// with another engine. It ends with its containers when this is dropped.
#[derive(Debug)]
pub struct PrivateEngine {
    folder: tempfile::TempDir,
    live_restore: bool,
    child: Option<Child>,
}

impl PrivateEngine {
    /// One that runs; without root or `dockerd` it is said that the test is skipped. With
    /// `live_restore` containers go on while it is away. With `disk` its images lie on a
    /// file system of so many MiB.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn or_skip(live_restore: bool, disk: Option<u32>) -> Option<Self> {
        let installed = ["/usr/sbin", "/usr/bin", "/usr/local/bin"]
            .iter()
            .any(|place| Path::new(place).join("dockerd").exists());
        if !rustix::process::geteuid().is_root() || !installed {
            eprintln!("skipped: needs root and dockerd (apt-get install docker.io)");
            return None;
        }
        let folder = tempfile::Builder::new()
            .prefix("ek-dk-")
            .tempdir_in("/tmp")
            .expect("/tmp can be written");
        std::fs::create_dir(folder.path().join("data")).expect("own folder");
        std::fs::write(folder.path().join("daemon.json"), "{}").expect("own folder");
        let mut engine = Self { folder, live_restore, child: None };
        if let Some(size) = disk {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={size}m"), "tmpfs"]).arg(engine.data());
            assert!(
                mount.status().expect("mount is installed").success(),
                "a small disk can be mounted"
            );
        }
        engine.start();
        Some(engine)
    }

    /// To be used as any engine.
    #[must_use]
    pub fn engine(&self) -> Engine {
        Engine::at(&format!("unix://{}", self.socket().display()))
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// It does not.
    pub fn start(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        let log = File::options().create(true).append(true).open(path("log")).expect("own folder");
        // A test that is killed takes it along.
        let mut dockerd = Command::new("setpriv");
        dockerd
            .args(["--pdeathsig", "TERM", "--", "dockerd", "--config-file"])
            .arg(path("daemon.json"));
        dockerd.arg("--data-root").arg(self.data()).arg("--exec-root").arg(path("exec"));
        dockerd
            .arg("--pidfile")
            .arg(path("pid"))
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()));
        dockerd.args([
            "--bridge",
            "none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
        ]);
        dockerd.args(self.live_restore.then_some("--live-restore")).args(["--log-level", "warn"]);
        dockerd.stdin(Stdio::null()).stdout(log.try_clone().expect("own file")).stderr(log);
        let mut child = dockerd.spawn().expect("setpriv is installed");
        let socket = self.socket();
        wait_for("the private engine to answer", || {
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(path("log")).unwrap_or_default();
                panic!("dockerd ended ({status}):\n{log}");
            }
            http::call(&socket, "GET", "/_ping", None)
                .is_ok_and(|answer| answer.status == 200)
                .then_some(())
        });
        self.child = Some(child);
    }

    /// Ends it, and the containerd that it started, as a crash would. Its containers
    /// stay.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        let _ = child.wait();
        // A new one would take a containerd that is about to end, or that nobody has
        // waited for, for one that lives.
        let file = self.folder.path().join("exec/containerd/containerd.pid");
        let written = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = written.and_then(Pid::from_raw) {
            let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
            wait_for("containerd to end", || {
                let Ok(stat) = std::fs::read_to_string(&stat) else { return Some(()) };
                let _ = stat.contains("(containerd)").then(|| kill_process(pid, Signal::KILL));
                stat.contains(") Z ").then_some(())
            });
        }
        let _ = std::fs::remove_file(file);
    }

    /// Hangs it: it accepts connections, as far as the kernel does that, and answers
    /// none.
    pub fn hang(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.as_ref().map(Pid::from_child) {
            let _ = kill_process(pid, signal);
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns the processes that this engine started and did not end: its containers'
    /// shims have its folder in their arguments.
    fn left(&self) -> Vec<Pid> {
        let own = self.folder.path().display().to_string();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
                let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
                let text = String::from_utf8_lossy(&arguments).into_owned();
                (text.contains(&own) && text.starts_with("/usr/bin/containerd-shim")).then_some(pid)
            })
            .collect()
    }
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        self.go_on();
        if self.child.is_some() {
            let all = self.engine().docker(&["ps", "-aq"]);
            let ids = String::from_utf8_lossy(&all.stdout).into_owned();
            let mut arguments = vec!["rm", "-f"];
            arguments.extend(ids.split_whitespace());
            let _ = self.engine().docker(&arguments);
        }
        self.signal(Signal::TERM);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        for pid in self.left() {
            let _ = kill_process(pid, Signal::KILL);
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("--- dockerd ---\n{log}");
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let own: Vec<&str> =
            own.filter(|place| Path::new(place).starts_with(self.folder.path())).collect();
        for place in own.into_iter().rev() {
            let _ = Command::new("umount").args(["--lazy", place]).status();
        }
    }
}
