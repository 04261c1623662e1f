//! Floods: users who open connections as fast as they can, and another user who only
//! wants an answer.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Lines, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use edgekeep_core::access_list::AccessList;
use edgekeep_daemon::listen;
use edgekeep_daemon::peer::PeerSocket;
use edgekeep_daemon::server::{Limits, Response, Router, serve};
use http::Method;
use serde_json::json;
use tokio::sync::watch;

const LIST: &str = "system.posix_acl_access";
const VERSION: &str = "2018-06-28";
const SOON: Duration = Duration::from_secs(30);
/// Answers that the other user wants.
const WANTED: usize = 200;
/// The user that floods, nobody.
const FLOODER: u32 = 65534;

#[derive(Default)]
struct Seen {
    /// Connections of the flooding user that were looked at.
    looked_at: AtomicU32,
    /// The user that was kept out last.
    kept_out: AtomicU32,
}

struct Server {
    folder: tempfile::TempDir,
    seen: Arc<Seen>,
    stop: watch::Sender<bool>,
    runtime: tokio::runtime::Runtime,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Server {
    fn start(shared: bool) -> Self {
        Self::with(shared, |_| ())
    }

    /// `prepare` is told the path of the socket before it is served.
    fn with(shared: bool, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let seen = Arc::new(Seen::default());
        let router = Router::new(Arc::clone(&seen), &[VERSION])
            .on_connected(|seen, caller| {
                if caller.uid() == FLOODER {
                    seen.looked_at.fetch_add(1, Ordering::SeqCst);
                }
                std::future::ready(())
            })
            .on_flood(|seen, user, lasting| {
                assert!(lasting >= Duration::from_secs(10));
                seen.kept_out.store(user, Ordering::SeqCst);
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
        prepare(&path);
        let (stop, stopped) = watch::channel(false);
        let limits = Limits { connections_per_uid: 64, shared };
        let served = Some(runtime.spawn(serve(listener, Arc::new(router), limits, stopped)));
        Self { folder, seen, stop, runtime, served }
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

    /// Stops the server, which ends although a flood goes on. The folder has the socket's
    /// file still.
    fn end(mut self) -> tempfile::TempDir {
        self.stop.send(true).unwrap();
        let served = self.served.take().unwrap();
        self.runtime
            .block_on(async { tokio::time::timeout(SOON, served).await })
            .expect("it ends")
            .unwrap();
        assert!(UnixStream::connect(self.socket()).is_err(), "nobody listens any more");
        self.folder
    }
}

/// This test's program in another process, as nobody.
struct Flood {
    process: Child,
    said: RefCell<Lines<BufReader<ChildStdout>>>,
}

impl Flood {
    /// Starts a flood, and waits until it flows.
    fn start(kind: &str, socket: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "what_a_flood_does", "--nocapture", "--test-threads=1"]);
        command.env("EDGEKEEP_TEST_FLOOD", kind).env("EDGEKEEP_TEST_SOCKET", socket);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).gid(FLOODER).uid(FLOODER);
        let mut process = command.spawn().unwrap();
        let said = RefCell::new(BufReader::new(process.stdout.take().unwrap()).lines());
        let flood = Self { process, said };
        flood.says("it flows");
        flood
    }

    /// Waits until it says this.
    fn says(&self, what: &str) {
        let mut said = self.said.borrow_mut();
        assert!(said.by_ref().map_while(Result::ok).any(|line| line.ends_with(what)), "{what}");
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test of its own: floods a socket until it is killed.
#[test]
fn what_a_flood_does() {
    let Ok(kind) = std::env::var("EDGEKEEP_TEST_FLOOD") else { return };
    let socket = PathBuf::from(std::env::var_os("EDGEKEEP_TEST_SOCKET").unwrap());
    let mut held = Vec::new();
    let mut kept_out = false;
    for number in 0_u64.. {
        match number {
            200 => println!("\nit flows"),
            2000 => println!("\nit has flown for long"),
            _ => {}
        }
        let mut stream = match UnixStream::connect(&socket) {
            Ok(stream) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                if !kept_out {
                    println!("\nit is kept out");
                }
                kept_out = true;
                // What it does to the processors is not looked at here.
                pause(Duration::from_millis(1));
                continue;
            }
            // The server has ended.
            Err(_) => return,
        };
        match kind.as_str() {
            "drop" => {}
            "wait" => {
                let _ = write!(
                    stream,
                    "GET /who?api-version={VERSION} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.read_to_end(&mut Vec::new());
            }
            // Each is closed by the server or makes it wait for the rest.
            "half" => {
                let _ = stream.write_all(b"GET /who");
                held.push(stream);
                if held.len() > 500 {
                    held.clear();
                }
            }
            // The answer finds nobody.
            _ => {
                let _ =
                    write!(stream, "GET /who?api-version={VERSION} HTTP/1.1\r\nHost: x\r\n\r\n");
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "between two looks")]
fn pause(time: Duration) {
    std::thread::sleep(time);
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
            // At a socket of one owner others' answers may take long.
            for _ in 0..if shared { WANTED } else { WANTED / 10 } {
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
    // Not a shared socket: there the flood would soon be kept out.
    let server = Server::start(false);
    let flood = Flood::start("drop", &server.socket());
    flood.says("it has flown for long");
    let begin = Instant::now();
    server.ask();
    drop(flood);
    server.ask();
    // 2000 and more: whoever closes between the look at the connection and the look at
    // the process is looked at.
    let looked_at = server.seen.looked_at.load(Ordering::SeqCst);
    assert!(looked_at < 1000, "{looked_at} in {:?}", begin.elapsed());
    server.end();
}

/// The users whom the socket's access control list keeps out.
fn kept_out(socket: &Path) -> BTreeSet<u32> {
    let mut bytes = [0; 1024];
    match rustix::fs::lgetxattr(socket, LIST, &mut bytes[..]) {
        Ok(length) => AccessList::parse(&bytes[..length]).unwrap().kept_out(),
        Err(error) => {
            assert_eq!(error, rustix::io::Errno::NODATA);
            BTreeSet::new()
        }
    }
}

#[test]
fn a_user_who_floods_a_shared_socket_is_kept_out_by_the_kernel_for_a_while_and_no_other_is() {
    if !is_root() {
        return;
    }
    for kind in ["drop", "half", "ask"] {
        let server = Server::start(true);
        let flood = Flood::start(kind, &server.socket());
        flood.says("it is kept out");
        assert_eq!(kept_out(&server.socket()), BTreeSet::from([FLOODER]), "{kind}");
        server.ask();
        assert_eq!(server.seen.kept_out.load(Ordering::SeqCst), FLOODER);
        drop(flood);
        if kind == "drop" {
            let begin = Instant::now();
            while !kept_out(&server.socket()).is_empty() {
                assert!(begin.elapsed() < SOON, "it is let in again");
                pause(Duration::from_millis(100));
            }
            Flood::start("ask", &server.socket());
        }
        let folder = server.end();
        let outlives = kept_out(&folder.path().join("s"));
        assert_eq!(outlives, BTreeSet::new(), "a socket that outlives the server");
    }
}

#[test]
fn who_asks_and_waits_for_the_answer_is_never_kept_out_however_often() {
    if !is_root() {
        return;
    }
    let server = Server::start(true);
    let asks = Flood::start("wait", &server.socket());
    asks.says("it has flown for long");
    assert_eq!(kept_out(&server.socket()), BTreeSet::new());
    server.end();
}

#[test]
fn what_a_killed_daemon_left_in_the_list_is_taken_out_and_what_an_operator_put_there_stays() {
    const ALLOWED: u32 = 4711;
    let of =
        |users: &[u32]| AccessList::of_mode(0o666).keeping_out(&users.iter().copied().collect());
    let write = |socket: &Path, list: &[u8]| {
        rustix::fs::lsetxattr(socket, LIST, list, rustix::fs::XattrFlags::empty()).unwrap();
    };
    let mut operators = of(&[ALLOWED]).to_bytes();
    // The permissions of the named user: to read and write.
    let at = operators.windows(4).position(|id| id == ALLOWED.to_le_bytes()).unwrap();
    operators[at - 2] = 6;
    let list = AccessList::parse(&operators).unwrap();
    let server = Server::with(true, |socket| {
        write(socket, &list.keeping_out(&BTreeSet::from([1, 2])).to_bytes());
        assert_eq!(kept_out(socket), BTreeSet::from([1, 2]));
    });
    server.ask();
    let mut bytes = [0; 1024];
    let length = rustix::fs::lgetxattr(server.socket(), LIST, &mut bytes[..]).unwrap();
    assert_eq!(AccessList::parse(&bytes[..length]), Ok(list));
    server.end();
}
