//! Floods: users who open connections as fast as they can, and another user who only
//! wants an answer.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use edgekeep_daemon::listen;
use edgekeep_daemon::peer::PeerSocket;
use edgekeep_daemon::server::{Limits, Response, Router, serve};
use http::Method;
use serde_json::json;
use tokio::sync::watch;

const VERSION: &str = "2018-06-28";
const SOON: Duration = Duration::from_secs(30);
/// Answers that the other user wants.
const WANTED: usize = 200;
/// Connections of nobody's that were looked at.
const FLOODER: u32 = 65534;

struct Server {
    folder: tempfile::TempDir,
    /// Connections of the flooding user that were looked at.
    looked_at: Arc<AtomicU32>,
    stop: watch::Sender<bool>,
    runtime: tokio::runtime::Runtime,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Server {
    fn start(shared: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let looked_at = Arc::new(AtomicU32::new(0));
        let router = Router::new(Arc::clone(&looked_at), &[VERSION])
            .on_connected(|looked_at, caller| {
                if caller.uid() == FLOODER {
                    looked_at.fetch_add(1, Ordering::SeqCst);
                }
                std::future::ready(())
            })
            .route(Method::GET, "/who", VERSION, |_, request| async move {
                let socket = match request.caller.socket() {
                    PeerSocket::Inode(inode) => Some(inode),
                    PeerSocket::Gone | PeerSocket::Untold => None,
                };
                Ok(Response::ok(&json!({ "pid": request.caller.pid(), "socket": socket })))
            });
        let path = folder.path().join("s");
        let listener = runtime.block_on(async { listen::bind(&path, 0o666) }).unwrap();
        let (stop, stopped) = watch::channel(false);
        let limits = Limits { connections_per_uid: 64, shared };
        let served = Some(runtime.spawn(serve(listener, Arc::new(router), limits, stopped)));
        Self { folder, looked_at, stop, runtime, served }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// Asks once, and asserts that the server knew who asked, over which socket.
    fn ask(&self) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let own = rustix::fs::fstat(&stream).unwrap().st_ino;
        write!(
            stream,
            "GET /who?api-version={VERSION} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (_, body) =
            text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        assert_eq!(body, json!({ "pid": std::process::id(), "socket": own }).to_string());
    }

    /// Stops the server, which ends although a flood goes on.
    fn end(mut self) {
        self.stop.send(true).unwrap();
        let served = self.served.take().unwrap();
        self.runtime
            .block_on(async { tokio::time::timeout(SOON, served).await })
            .expect("it ends")
            .unwrap();
        assert!(UnixStream::connect(self.socket()).is_err(), "nobody listens any more");
    }
}

/// This test's program in another process, as nobody.
struct Flood(Child);

impl Flood {
    /// Starts a flood, and waits until it flows.
    fn start(kind: &str, socket: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "what_a_flood_does", "--nocapture", "--test-threads=1"]);
        command.env("EDGEKEEP_TEST_FLOOD", kind).env("EDGEKEEP_TEST_SOCKET", socket);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).gid(FLOODER).uid(FLOODER);
        let mut flood = Self(command.spawn().unwrap());
        let lines = BufReader::new(flood.0.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.ends_with("it flows")), "{kind}");
        flood
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: floods a socket until it is killed.
#[test]
fn what_a_flood_does() {
    let Ok(kind) = std::env::var("EDGEKEEP_TEST_FLOOD") else { return };
    let socket = PathBuf::from(std::env::var_os("EDGEKEEP_TEST_SOCKET").unwrap());
    let mut held = Vec::new();
    for number in 0_u64.. {
        if number == 2000 {
            println!("\nit flows");
        }
        let Ok(mut stream) = UnixStream::connect(&socket) else {
            // The server has ended.
            return;
        };
        match kind.as_str() {
            "drop" => {}
            // Each is closed by the server or makes it wait for the rest.
            "half" => {
                let _ = stream.write_all(b"GET /who");
                held.push(stream);
                if held.len() > 500 {
                    held.clear();
                }
            }
            _ => {
                let _ =
                    write!(stream, "GET /who?api-version={VERSION} HTTP/1.1\r\nHost: x\r\n\r\n");
            }
        }
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root to act as another user");
    }
    root
}

#[test]
fn a_flooding_user_does_not_keep_another_from_an_answer_or_from_being_known() {
    if !is_root() {
        return;
    }
    for shared in [true, false] {
        for kind in ["drop", "half", "ask"] {
            let server = Server::start(shared);
            let floods = [0; 3].map(|_| Flood::start(kind, &server.socket()));
            for _ in 0..WANTED {
                server.ask();
            }
            server.end();
            drop(floods);
        }
    }
}

#[test]
fn connections_that_are_dropped_at_once_are_not_looked_at() {
    if !is_root() {
        return;
    }
    let server = Server::start(true);
    let flood = Flood::start("drop", &server.socket());
    let begin = Instant::now();
    server.ask();
    drop(flood);
    server.ask();
    // 2000 and more: whoever closes between the look at the connection and the look at
    // the process is looked at.
    let looked_at = server.looked_at.load(Ordering::SeqCst);
    assert!(looked_at < 1000, "{looked_at} in {:?}", begin.elapsed());
    server.end();
}
