//! The daemon as a process when things go wrong: a disk without room, requests that make
//! no sense, hardware that refuses.
#![allow(clippy::unwrap_used, reason = "tests")]

mod any_request;
mod full_disk;
mod lost_keys;
mod odd_files;
#[path = "../../../tpm/tests/parts/mod.rs"]
mod parts;
mod wrong_pin;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);

/// A running keyd in a folder, whose every key the test's own user may name. Killed at
/// the end.
struct Keyd {
    root: Root,
    child: Child,
}

impl Keyd {
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, &json!({}), &[])
    }

    fn start_with(folder: &Path, more: &Value, environment: &[(&str, &Path)]) -> Self {
        let root = Root::new(folder);
        let mut settings = json!({
            "principals": [{"uid": rustix::process::geteuid().as_raw(), "keys": ["*"], "export": ["*"]}],
            "auditors": [rustix::process::geteuid().as_raw()],
        });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let path = root.settings_file(Daemon::Keyd);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, settings.to_string()).unwrap();
        let notify = folder.join("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_edgekeep-keyd"))
            .env(ROOT_VARIABLE, folder)
            .env("NOTIFY_SOCKET", &notify)
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let keyd = Self { root, child };
        let mut message = [0; 64];
        let ready = manager.recv(&mut message);
        ready.unwrap_or_else(|error| panic!("{error}: {}", keyd.log()));
        keyd
    }

    fn log(&self) -> String {
        fs::read_to_string(
            self.root.settings_file(Daemon::Keyd).ancestors().nth(3).unwrap().join("log"),
        )
        .unwrap()
    }

    /// Sends bytes as they are; the status and the body of the answer. Nothing, if the
    /// connection was closed instead.
    fn send_raw(&self, request: &[u8]) -> Option<(u16, Value)> {
        let mut stream = UnixStream::connect(self.root.keyd_socket()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // It may answer before it has read everything.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer)
            && answer.is_empty()
        {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
            return None;
        }
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or_default()))
    }

    fn send(&self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let head = format!(
            "{method} {path}?api-version=2021-05-01 HTTP/1.1\r\nHost: keyd.sock\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.send_raw(&[head.as_bytes(), body].concat())
            .unwrap_or_else(|| panic!("no answer: {}", self.log()))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, body.to_string().as_bytes())
    }

    /// The handle of a key that is made, imported or found.
    fn handle(&self, path: &str, body: &Value) -> String {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}: {}", self.log());
        answer["keyHandle"].as_str().unwrap().to_owned()
    }

    fn key(&self, id: &str) -> String {
        self.handle("/key", &json!({"keyId": id, "usage": "derive,sign"}))
    }

    fn hmac(&self, handle: &str) -> Value {
        let body = json!({"keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": {"message": "bQ=="}});
        let (status, answer) = self.post("/sign", &body);
        assert_eq!(status, 200, "{answer}");
        answer["signature"].clone()
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }
}

impl Drop for Keyd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn refused((status, answer): (u16, Value), expected: u16, reason: &str) {
    let message = answer["message"].as_str().unwrap_or_default();
    assert_eq!(status, expected, "{answer}");
    assert!(message.contains(reason), "{answer} should mention {reason:?}");
}
