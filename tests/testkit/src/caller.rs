//! A module that makes the calls that a test tells it to, from its own measured process.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::Answer;

/// Longest time of a call, the module's start included.
const PATIENCE: Duration = Duration::from_secs(60);

/// The test's end of the program `calls`: it writes calls into one FIFO and reads answers
/// from another.
#[derive(Debug)]
pub struct Caller {
    module: String,
    calls: PathBuf,
    answers: PathBuf,
    line: Mutex<Line>,
}

#[derive(Debug)]
struct Line {
    calls: File,
    answers: Receiver<Value>,
}

impl Caller {
    /// Makes the FIFOs in a folder of their own. The module is started with
    /// [`Self::environment`].
    ///
    /// # Panics
    /// They cannot be made.
    #[must_use]
    pub fn new(folder: &Path, module: &str) -> Self {
        let folder = folder.join(module.trim_start_matches('$'));
        std::fs::create_dir_all(&folder).expect("the folder of a test can be written");
        let fifo = |name: &str| {
            let path = folder.join(name);
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).expect("a FIFO can be made");
            path
        };
        let (calls, answers) = (fifo("calls"), fifo("answers"));
        // Open for both directions, so that neither opening waits and no end is seen when
        // the module ends.
        let open = |path: &Path| {
            OpenOptions::new().read(true).write(true).open(path).expect("a FIFO can be opened")
        };
        let (sender, receiver) = channel();
        let reader = BufReader::new(open(&answers));
        let line = Line { calls: open(&calls), answers: receiver };
        std::thread::spawn(move || {
            for text in reader.lines().map_while(Result::ok) {
                let Ok(answer) = serde_json::from_str::<Value>(&text) else { continue };
                // Ended by the drop of the caller, which sends itself a last line.
                if answer["end"].is_boolean() || sender.send(answer).is_err() {
                    return;
                }
            }
        });
        Self { module: module.to_owned(), calls, answers, line: Mutex::new(line) }
    }

    /// The module's id.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Returns the variables that the program needs beside those that every module gets.
    #[must_use]
    pub fn environment(&self) -> [(String, String); 2] {
        [("EDGEKEEP_TEST_CALLS", &self.calls), ("EDGEKEEP_TEST_ANSWERS", &self.answers)]
            .map(|(name, path)| (name.to_owned(), path.display().to_string()))
    }

    /// The folder of the FIFOs, to be mounted into a container.
    ///
    /// # Panics
    /// Never: they lie in a folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.calls.parent().expect("in a folder")
    }

    /// As [`Self::environment`], where [`Self::folder`] is mounted at `place`.
    #[must_use]
    pub fn environment_at(&self, place: &str) -> [(String, String); 2] {
        [("EDGEKEEP_TEST_CALLS", "calls"), ("EDGEKEEP_TEST_ANSWERS", "answers")]
            .map(|(name, file)| (name.to_owned(), format!("{place}/{file}")))
    }

    /// A call over the module's workload socket. `{m}` and `{g}` in `target` stand for
    /// its id and generation.
    ///
    /// # Panics
    /// There is no HTTP answer.
    #[track_caller]
    pub fn call(&self, method: &str, target: &str, body: Option<Value>) -> Answer {
        self.send(json!({ "method": method, "path": target }), body)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Self::call`], where there may be no answer.
    ///
    /// # Errors
    /// There is no HTTP answer.
    pub fn try_call(
        &self,
        method: &str,
        target: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        self.send(json!({ "method": method, "path": target }), body)
    }

    /// A call over the management socket.
    ///
    /// # Panics
    /// There is no HTTP answer.
    #[track_caller]
    pub fn manage(&self, method: &str, target: &str, body: Option<Value>) -> Answer {
        let call = json!({ "method": method, "path": target, "api": "management" });
        self.send(call, body).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A call over any socket.
    ///
    /// # Errors
    /// There is no HTTP answer.
    pub fn call_at(
        &self,
        socket: &Path,
        method: &str,
        target: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        self.send(json!({ "method": method, "path": target, "socket": socket }), body)
    }

    /// Asks the module what it may do, by its own view, and how it could open `paths`.
    ///
    /// # Panics
    /// It does not answer.
    #[track_caller]
    pub fn report(&self, paths: &[&Path]) -> Value {
        self.send(json!({ "report": paths }), None)
            .unwrap_or_else(|error| panic!("{error}"))
            .expect(200)
    }

    /// Lets a module of another user read its calls and write its answers.
    ///
    /// # Panics
    /// This is not root.
    pub fn give_to(&self, uid: u32) {
        for path in [&self.calls, &self.answers] {
            std::os::unix::fs::chown(path, Some(uid), None).expect("root may");
        }
    }

    /// Lets a module of whatever user read its calls and write its answers.
    ///
    /// # Panics
    /// They are gone.
    pub fn open_to_all(&self) {
        for path in [&self.calls, &self.answers] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
                .expect("own files");
        }
    }

    /// A token's signature, as an SDK asks for it.
    ///
    /// # Panics
    /// There is no HTTP answer.
    #[track_caller]
    pub fn sign(&self) -> Answer {
        self.call("POST", "/modules/{m}/genid/{g}/sign?api-version=2020-07-07", Some(sign_body()))
    }

    /// As [`Self::sign`]; `None` while nobody serves the module.
    #[must_use]
    pub fn try_signed(&self) -> Option<Answer> {
        let answer = self.try_call(
            "POST",
            "/modules/{m}/genid/{g}/sign?api-version=2020-07-07",
            Some(sign_body()),
        );
        answer.ok().filter(|answer| answer.status == 200)
    }

    fn send(&self, mut call: Value, body: Option<Value>) -> Result<Answer, String> {
        if let Some(body) = body {
            call["body"] = body;
        }
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.calls.write_all(format!("{call}\n").as_bytes()).expect("a FIFO can be written");
        match line.answers.recv_timeout(PATIENCE) {
            Ok(answer) => {
                match (
                    answer["status"].as_u64().and_then(|status| u16::try_from(status).ok()),
                    &answer["error"],
                ) {
                    (Some(status), _) => {
                        let body = match &answer["body"] {
                            Value::String(text) => text.clone().into_bytes(),
                            other => other.to_string().into_bytes(),
                        };
                        Ok(Answer { status, headers: std::collections::BTreeMap::new(), body })
                    }
                    (None, error) => Err(format!("{}: {call}: {error}", self.module)),
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(format!("{}: no answer within {} s to {call}", self.module, PATIENCE.as_secs()))
            }
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Ok(mut answers) = OpenOptions::new().read(true).write(true).open(&self.answers) {
            let _ = answers.write_all(b"{\"end\":true}\n");
        }
    }
}

/// A request to sign, as SDKs send it.
pub(crate) fn sign_body() -> Value {
    json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "ZGF0YQ==" })
}
