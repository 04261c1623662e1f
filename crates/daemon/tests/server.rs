//! The server over a real Unix socket. Every request is written byte by byte, so that
//! what is on the wire is under the test's control; other processes that take part are
//! real ones.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::collections::BTreeMap;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use edgekeep_core::attestation::PeerHandle;
use edgekeep_daemon::listen::{self, ListenError};
use edgekeep_daemon::server::{HttpError, Limits, Request, Response, Router, serve};
use http::Method;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

const VERSIONS: &[&str] = &["2018-06-28", "2019-01-30"];
/// Longest wait for anything that should happen at once.
const SOON: Duration = Duration::from_secs(10);

/// The state of the test's handlers: what they have seen, and the signals that they send
/// and wait for.
#[derive(Default)]
struct Service {
    connected: AtomicU32,
    refused_senders: Mutex<Vec<String>>,
    entered: Notify,
    release: Notify,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    count: u32,
}

fn router(service: Arc<Service>) -> Router<Service> {
    async fn named(_: Arc<Service>, mut request: Request) -> Result<Response, HttpError> {
        let item: Item = request.json().await?;
        Ok(Response::ok(&json!({ "name": item.name, "count": item.count })))
    }
    Router::new(service, VERSIONS)
        .on_connected(|service, _| {
            service.connected.fetch_add(1, Ordering::SeqCst);
            std::future::ready(())
        })
        .on_sender_changed(|service, _, what| {
            service.refused_senders.lock().unwrap().push(what);
            std::future::ready(())
        })
        .route(Method::GET, "/who", VERSIONS[0], |_, request| async move {
            let caller = &request.caller;
            let handle = caller.pidfd().map(|(_, handle)| handle);
            Ok(Response::ok(
                &json!({ "uid": caller.uid(), "gid": caller.gid(), "pid": caller.pid(), "handle": handle }),
            ))
        })
        .route(Method::GET, "/query", VERSIONS[0], |_, request| async move {
            Ok(Response::ok(&json!({ "name": request.query("name"), "version": request.version })))
        })
        .route(Method::GET, "/items/{i}/parts/{p}", VERSIONS[0], |_, request| async move {
            Ok(Response::ok(&json!([request.param(0), request.param(1)])))
        })
        .route(Method::POST, "/items", VERSIONS[0], named)
        .route(Method::PUT, "/items/{i}", VERSIONS[0], named)
        .route(Method::DELETE, "/items/{i}", VERSIONS[0], |_, _| async { Ok(Response::no_content()) })
        .route(Method::POST, "/optional", VERSIONS[0], |_, mut request| async move {
            let item: Option<Item> = request.json_opt().await?;
            Ok(Response::ok(&json!({ "given": item.is_some() })))
        })
        .route(Method::GET, "/since-2019", VERSIONS[1], |_, _| async { Ok(Response::no_content()) })
        .route(Method::GET, "/slow", VERSIONS[0], |service, _| async move {
            service.entered.notify_one();
            service.release.notified().await;
            Ok(Response::ok(&json!("done")))
        })
}

/// A server on a socket of its own.
struct Server {
    folder: tempfile::TempDir,
    service: Arc<Service>,
    stop: watch::Sender<bool>,
    runtime: tokio::runtime::Runtime,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        Self::with_limit(Limits::default().connections_per_uid)
    }

    fn with_limit(connections_per_uid: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Other users take part in some tests.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let service = Arc::new(Service::default());
        let (stop, stopped) = watch::channel(false);
        let routes = Arc::new(router(Arc::clone(&service)));
        let path = folder.path().join("s");
        let listener = runtime.block_on(async { listen::bind(&path, 0o666) }).unwrap();
        let served = runtime.spawn(serve(
            listener,
            routes,
            Limits { connections_per_uid, ..Limits::default() },
            stopped,
        ));
        Self { folder, service, stop, runtime, served: Some(served) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn connect(&self) -> Wire {
        Wire::new(UnixStream::connect(self.socket()).unwrap())
    }

    /// One request on a connection of its own.
    fn ask(&self, request: &str) -> Answer {
        let mut wire = self.connect();
        wire.send(request);
        wire.answer()
    }

    fn get(&self, target: &str) -> Answer {
        self.ask(&get(target))
    }
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn with_body(method: &str, target: &str, content_type: Option<&str>, body: &str) -> String {
    let content_type =
        content_type.map(|value| format!("Content-Type: {value}\r\n")).unwrap_or_default();
    let length = body.len();
    format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\n{content_type}Content-Length: {length}\r\n\r\n{body}"
    )
}

const V: &str = "api-version=2018-06-28";

#[derive(Debug)]
struct Answer {
    status: u16,
    reason: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(
            self.headers.get("content-type").map(String::as_str),
            Some("application/json"),
            "{self:?}"
        );
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and message of an error, which is JSON of exactly one member.
    fn error(&self) -> (u16, String) {
        let body = self.json();
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        (self.status, body["message"].as_str().unwrap().to_owned())
    }
}

/// The client's end of a connection.
struct Wire {
    stream: UnixStream,
    read: Vec<u8>,
}

impl Wire {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        Self { stream, read: Vec::new() }
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer)?;
        self.read.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    fn answer(&mut self) -> Answer {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let count = self.more().expect("the server answers");
            assert!(count > 0, "closed within the head: {:?}", String::from_utf8_lossy(&self.read));
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let mut status_line = lines.next().unwrap().splitn(3, ' ');
        assert_eq!(status_line.next(), Some("HTTP/1.1"));
        let status: u16 = status_line.next().unwrap().parse().unwrap();
        let reason = status_line.next().expect("a status line of three parts").to_owned();
        let headers: BTreeMap<String, String> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length =
            headers.get("content-length").map_or(0, |length| length.parse::<usize>().unwrap());
        while self.read.len() < length {
            assert!(self.more().unwrap() > 0, "closed within the body");
        }
        let body = self.read.drain(..length).collect();
        Answer { status, reason, headers, body }
    }

    /// Asserts that the server closes, without another byte.
    fn ends(&mut self) {
        match self.more() {
            Ok(0) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}: {:?}", String::from_utf8_lossy(&self.read)),
        }
        assert!(self.read.is_empty(), "{:?}", String::from_utf8_lossy(&self.read));
    }
}

/// Runs a test of this file in a process of its own, which learns from `job` what to do.
fn child(job: &str, socket: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "what_the_other_process_does", "--nocapture", "--test-threads=1"]);
    command.env("EDGEKEEP_TEST_JOB", job).env("EDGEKEEP_TEST_SOCKET", socket);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn finished(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Not a test of its own: the part of other tests that runs in another process.
#[test]
fn what_the_other_process_does() {
    let Ok(job) = std::env::var("EDGEKEEP_TEST_JOB") else { return };
    let socket = PathBuf::from(std::env::var_os("EDGEKEEP_TEST_SOCKET").unwrap());
    match job.as_str() {
        "who" => {
            let mut wire = Wire::new(UnixStream::connect(socket).unwrap());
            wire.send(&get(&format!("/who?{V}")));
            let mut who = wire.answer().json();
            who["own pid"] = json!(std::process::id());
            println!("\nWHO {who}");
        }
        "serve one" => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let service = Arc::new(Service::default());
                let (stop, stopped) = watch::channel(false);
                let name = std::env::var("EDGEKEEP_TEST_NAME").unwrap();
                let listener = listen::activated_or_bound(&name, &socket, 0o600).unwrap();
                let serving = tokio::spawn(serve(
                    listener,
                    Arc::new(router(Arc::clone(&service))),
                    Limits::default(),
                    stopped,
                ));
                tokio::time::timeout(SOON, service.entered.notified()).await.unwrap();
                stop.send(true).unwrap();
                service.release.notify_one();
                serving.await.unwrap();
            });
        }
        other => panic!("unknown job {other}"),
    }
}

/// Returns the text that the `who` job printed, as JSON.
fn who(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("WHO ")).expect("the child tells");
    serde_json::from_str(line).unwrap()
}

// --- api-version and routes
// ---------------------------------------------------------------------------------------

#[test]
fn without_an_api_version_nothing_is_routed() {
    let server = Server::start();
    for target in ["/who", "/who?", "/who?name=x", "/nowhere"] {
        assert_eq!(
            server.get(target).error(),
            (400, "api-version not specified".into()),
            "{target}"
        );
    }
}

#[test]
fn an_unknown_api_version_is_named_and_cut() {
    let server = Server::start();
    assert_eq!(
        server.get("/who?api-version=2021-05-11").error(),
        (400, "invalid api-version \"2021-05-11\"".into())
    );
    assert_eq!(server.get("/who?api-version=").error(), (400, "invalid api-version \"\"".into()));
    let (status, message) = server.get(&format!("/who?api-version={}", "9".repeat(2000))).error();
    assert_eq!(status, 400);
    assert!(message.len() < 100, "{message}");
}

#[test]
fn of_repeated_api_versions_the_last_one_counts() {
    let server = Server::start();
    assert_eq!(
        server.get(&format!("/query?api-version=nonsense&{V}")).json()["version"],
        "2018-06-28"
    );
    assert_eq!(
        server.get(&format!("/query?{V}&api-version=nonsense")).error(),
        (400, "invalid api-version \"nonsense\"".into())
    );
}

#[test]
fn a_route_is_closed_at_versions_before_its_own() {
    let server = Server::start();
    assert_eq!(server.get("/since-2019?api-version=2018-06-28").error(), (404, "not found".into()));
    assert_eq!(server.get("/since-2019?api-version=2019-01-30").status, 204);
    assert_eq!(server.get("/query?api-version=2019-01-30").json()["version"], "2019-01-30");
}

#[test]
fn an_unknown_path_is_404_and_a_method_that_is_not_offered_is_400() {
    let server = Server::start();
    for path in ["/nowhere", "/", "//who", "/who/", "/items//parts/1", "/items/a/parts/b/c", "/WHO"]
    {
        assert_eq!(server.get(&format!("{path}?{V}")).error(), (404, "not found".into()), "{path}");
    }
    for method in ["POST", "PATCH", "OPTIONS", "TRACE", "MADEUP"] {
        let request = format!("{method} /who?{V} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(server.ask(&request).error(), (400, "method not allowed".into()), "{method}");
    }
}

#[test]
fn segments_are_matched_raw_and_decoded_once() {
    let server = Server::start();
    let params = |path: &str| server.get(&format!("{path}?{V}")).json();
    assert_eq!(params("/items/%24edgeAgent/parts/a%20b"), json!(["$edgeAgent", "a b"]));
    assert_eq!(params("/items/a%2Fparts%2Fb/parts/..%2f.."), json!(["a/parts/b", "../.."]));
    assert_eq!(params("/items/%252e%252e/parts/%c3%a9"), json!(["%2e%2e", "é"]), "decoded once");
    assert_eq!(
        params("/items/../parts/."),
        json!(["..", "."]),
        "dots are not resolved by the server"
    );
    assert_eq!(server.get(&format!("/items/%ff/parts/1?{V}")).status, 404, "not UTF-8");
    assert_eq!(
        server.get(&format!("/items%2Fa/parts/1?{V}")).status,
        404,
        "an encoded slash separates nothing"
    );
}

#[test]
fn query_parameters_are_form_decoded() {
    let server = Server::start();
    assert_eq!(
        server.get(&format!("/query?name=a+b%2Bc&{V}&name=d%26e+f")).json()["name"],
        "d&e f"
    );
    assert_eq!(server.get("/query?api%2Dversion=2018-06-28").json()["name"], Value::Null);
}

// --- bodies
// ---------------------------------------------------------------------------------------

const ITEM: &str = r#"{"name":"a","count":1,"unknown":true}"#;

#[test]
fn a_body_without_content_type_is_json_and_unknown_members_are_ignored() {
    let server = Server::start();
    for content_type in [None, Some("application/json"), Some("Application/JSON ; charset=utf-8")] {
        for (method, target) in [("POST", format!("/items?{V}")), ("PUT", format!("/items/1?{V}"))]
        {
            let answer = server.ask(&with_body(method, &target, content_type, ITEM));
            assert_eq!(
                (answer.status, answer.json()),
                (200, json!({"name": "a", "count": 1})),
                "{content_type:?}"
            );
        }
    }
}

#[test]
fn a_body_of_another_type_is_missing_for_post_and_415_for_put() {
    let server = Server::start();
    for content_type in ["text/plain", "application/jsonx", "text/json; application/json", "\u{e9}"]
    {
        let post = server.ask(&with_body("POST", &format!("/items?{V}"), Some(content_type), ITEM));
        assert_eq!(post.error(), (400, "missing request body".into()), "{content_type}");
        let optional =
            server.ask(&with_body("POST", &format!("/optional?{V}"), Some(content_type), ITEM));
        assert_eq!(optional.json(), json!({"given": false}), "{content_type}");
        let put = server.ask(&with_body("PUT", &format!("/items/1?{V}"), Some(content_type), ITEM));
        assert_eq!(put.error().0, 415, "{content_type}");
    }
}

#[test]
fn an_empty_body_is_none_for_post_and_422_for_put() {
    let server = Server::start();
    let json = Some("application/json");
    assert_eq!(server.ask(&with_body("POST", &format!("/items?{V}"), json, "")).error().0, 400);
    assert_eq!(
        server.ask(&with_body("POST", &format!("/optional?{V}"), json, "")).json(),
        json!({"given": false})
    );
    assert_eq!(server.ask(&with_body("PUT", &format!("/items/1?{V}"), json, "")).error().0, 422);
    assert_eq!(
        server.ask(&get(&format!("/items?{V}")).replace("GET", "POST")).error().0,
        400,
        "no length at all"
    );
}

#[test]
fn json_that_does_not_fit_is_422_and_is_not_repeated() {
    let server = Server::start();
    let bodies = [
        r#"{"name":"pass-word"#,
        r#"{"name":"pass-word","count":"pass-word"}"#,
        r#"{"name":{"pass-word":1},"count":1}"#,
        r#"{"name":"pass-word"}"#,
        r#""pass-word""#,
        "pass-word",
        r#"{"name":"a","count":1} pass-word"#,
        "[[[[[[[[[[",
    ];
    for body in bodies {
        for (method, target) in [("POST", format!("/items?{V}")), ("PUT", format!("/items/1?{V}"))]
        {
            let (status, message) = server.ask(&with_body(method, &target, None, body)).error();
            assert_eq!(status, 422, "{body}");
            assert!(message.starts_with("invalid request body: "), "{message}");
            assert!(!message.contains("pass") && !message.contains("word"), "{message}");
        }
    }
    let (_, message) =
        server.ask(&with_body("POST", &format!("/items?{V}"), None, r#"{"name":"a"}"#)).error();
    assert!(message.contains("missing field `count`"), "{message}");
}

#[test]
fn deeply_nested_json_is_refused_and_the_server_lives() {
    let server = Server::start();
    let body = format!("{{\"unknown\":{}", "[".repeat(500_000));
    assert_eq!(server.ask(&with_body("POST", &format!("/items?{V}"), None, &body)).error().0, 422);
    assert_eq!(server.get(&format!("/who?{V}")).status, 200);
}

#[test]
fn a_body_over_one_mebibyte_is_413_before_it_is_read() {
    let server = Server::start();
    let mut wire = server.connect();
    // Only announced: the answer comes although no byte of it does.
    wire.send(&format!("POST /items?{V} HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n"));
    let answer = wire.answer();
    assert_eq!(answer.error().0, 413);
    assert_eq!(answer.headers["connection"], "close");
    wire.ends();
}

#[test]
fn a_chunked_body_over_one_mebibyte_is_413() {
    let server = Server::start();
    let mut wire = server.connect();
    wire.send(&format!(
        "POST /items?{V} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    ));
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for _ in 0..17 {
        // The server may answer and close before all is sent.
        if wire.stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    assert_eq!(wire.answer().error().0, 413);
}

#[test]
fn a_body_of_just_one_mebibyte_is_read() {
    let server = Server::start();
    let body = format!("{}{ITEM}", " ".repeat((1 << 20) - ITEM.len()));
    assert_eq!(server.ask(&with_body("POST", &format!("/items?{V}"), None, &body)).status, 200);
    let chunked = format!(
        "POST /items?{V} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{ITEM}\r\n0\r\n\r\n",
        ITEM.len()
    );
    assert_eq!(server.ask(&chunked).status, 200);
}

#[test]
fn a_body_that_does_not_come_is_408_after_five_seconds() {
    let server = Server::start();
    let mut wire = server.connect();
    let begin = Instant::now();
    wire.send(&format!("POST /items?{V} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{"));
    let answer = wire.answer();
    let waited = begin.elapsed();
    assert_eq!(answer.error().0, 408);
    assert!(waited >= Duration::from_millis(4900) && waited < Duration::from_secs(9), "{waited:?}");
    wire.ends();
}

#[test]
fn a_body_that_breaks_off_is_400() {
    let server = Server::start();
    let mut wire = server.connect();
    wire.send(&format!("POST /items?{V} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{\"na"));
    wire.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(wire.answer().error(), (400, "request body breaks off".into()));
    wire.ends();
}

// --- heads and connections
// ---------------------------------------------------------------------------------------

#[test]
fn an_oversized_head_is_refused_and_the_server_lives() {
    let server = Server::start();
    let mut wire = server.connect();
    let head = format!("GET /who?{V} HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n", "y".repeat(64 << 10));
    let _ = wire.stream.write_all(head.as_bytes());
    let answer = wire.answer();
    assert_eq!(answer.status, 431, "{answer:?}");
    wire.ends();
    assert_eq!(server.get(&format!("/who?{V}")).status, 200);
}

#[test]
fn a_head_that_is_no_http_is_refused_and_the_server_lives() {
    let server = Server::start();
    for garbage in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET /who HTTP/9.9\r\n\r\n",
        "GET /\x01 HTTP/1.1\r\n\r\n",
    ] {
        let mut wire = server.connect();
        wire.send(garbage);
        wire.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        let _ = wire.stream.read_to_string(&mut text);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400 "), "{garbage:?}: {text}");
    }
    assert_eq!(server.get(&format!("/who?{V}")).status, 200);
}

#[test]
fn a_length_and_chunks_at_once_do_not_smuggle_a_second_request() {
    let server = Server::start();
    let mut wire = server.connect();
    let second = get(&format!("/query?{V}&name=smuggled"));
    wire.send(&format!(
        "POST /items?{V} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}",
        5 + second.len()
    ));
    let mut text = String::new();
    let _ = wire.stream.read_to_string(&mut text);
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    assert!(!text.contains("smuggled"), "{text}");
}

#[test]
fn many_requests_go_over_one_connection() {
    let server = Server::start();
    let mut wire = server.connect();
    for name in ["a", "b", "c"] {
        wire.send(&get(&format!("/query?{V}&name={name}")));
        assert_eq!(wire.answer().json()["name"], name);
    }
    // An error is no reason to close, and pipelined requests are answered in order.
    wire.send(&format!(
        "{}{}{}",
        get("/who"),
        get(&format!("/nowhere?{V}")),
        get(&format!("/query?{V}&name=d"))
    ));
    assert_eq!(wire.answer().status, 400);
    assert_eq!(wire.answer().status, 404);
    assert_eq!(wire.answer().json()["name"], "d");
    let looks = server.service.connected.load(Ordering::SeqCst);
    assert!(looks <= 1, "{looks}: who has asked before it was accepted is left to the handler");
}

#[test]
fn a_client_that_reads_to_the_end_gets_204_with_a_real_close() {
    let server = Server::start();
    let mut wire = server.connect();
    wire.send(&format!(
        "DELETE /items/a?{V} HTTP/1.1\r\nHost: mgmt.sock:80\r\nConnection: close\r\n\r\n"
    ));
    let mut text = String::new();
    wire.stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 204 No Content\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\n") && !text.contains("content-length"), "{text}");
}

#[test]
fn every_answer_has_a_reason_and_one_of_each_content_header() {
    let server = Server::start();
    for target in ["/who", &format!("/who?{V}"), &format!("/nowhere?{V}")] {
        let answer = server.get(target);
        assert!(!answer.reason.is_empty());
        // A repeated header would have been lost in the map, so it is looked for in the
        // bytes.
        let mut wire = server.connect();
        wire.send(&get(target).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
        let mut text = String::new();
        wire.stream.read_to_string(&mut text).unwrap();
        assert_eq!(text.matches("content-type: application/json\r\n").count(), 1, "{text}");
        assert_eq!(text.matches("content-length: ").count(), 1, "{text}");
        assert!(!text.contains("transfer-encoding"), "{text}");
    }
}

#[test]
fn a_connection_over_the_limit_is_told_so_and_a_place_that_gets_free_is_given() {
    let server = Server::with_limit(2);
    let request = get(&format!("/who?{V}"));
    let mut held: Vec<Wire> = (0..2).map(|_| server.connect()).collect();
    for wire in &mut held {
        wire.send(&request);
        assert_eq!(wire.answer().status, 200);
    }
    let mut third = server.connect();
    third.send(&request);
    let answer = third.answer();
    let (status, message) = answer.error();
    assert_eq!(status, 429);
    assert!(message.starts_with("more than 2 open connections of uid "), "{message}");
    assert_eq!(answer.headers["connection"], "close");
    third.ends();
    let looks = server.service.connected.load(Ordering::SeqCst);
    assert!(looks <= 2, "{looks}: who is not served is not looked at");
    // Those that have a place are served all along.
    held[0].send(&request);
    assert_eq!(held[0].answer().status, 200);
    drop(held.pop());
    let begin = Instant::now();
    while server.ask(&request).status != 200 {
        assert!(begin.elapsed() < SOON, "the place is not given back");
        std::thread::yield_now();
    }
}

#[test]
fn idle_connections_over_the_limit_do_not_starve_those_that_have_a_place() {
    let server = Server::with_limit(1);
    let mut first = server.connect();
    first.send(&get(&format!("/who?{V}")));
    assert_eq!(first.answer().status, 200);
    // Only so many are told; the others are closed at once.
    let silent: Vec<Wire> = (0..80).map(|_| server.connect()).collect();
    let closed = silent.into_iter().filter_map(|mut wire| {
        wire.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        matches!(wire.more(), Ok(0)).then_some(())
    });
    assert!(closed.count() >= 40);
    first.send(&get(&format!("/who?{V}")));
    assert_eq!(first.answer().status, 200);
}

#[test]
fn users_have_places_of_their_own() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to act as another user");
        return;
    }
    let server = Server::with_limit(1);
    let mut held = server.connect();
    held.send(&get(&format!("/who?{V}")));
    assert_eq!(held.answer().status, 200);
    let other = who(&finished(as_nobody(&mut child("who", &server.socket()))));
    assert_eq!((other["uid"].as_u64(), other["gid"].as_u64()), (Some(65534), Some(65534)));
    assert_eq!(server.get(&format!("/who?{V}")).status, 429);
}

fn as_nobody(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt as _;
    command.gid(65534).uid(65534)
}

// --- who calls
// ---------------------------------------------------------------------------------------

#[test]
fn the_caller_is_who_the_kernel_says() {
    let server = Server::start();
    let own = server.get(&format!("/who?{V}")).json();
    assert_eq!(own["uid"], rustix::process::geteuid().as_raw());
    assert_eq!(own["gid"], rustix::process::getegid().as_raw());
    assert_eq!(own["pid"], std::process::id());
    let strongest = edgekeep_daemon::peer::strongest_handle();
    assert_eq!(own["handle"], serde_json::to_value(strongest).unwrap());
    assert!(matches!(strongest, PeerHandle::PeerPidfd | PeerHandle::PidfdOpen));
    let other = who(&finished(&mut child("who", &server.socket())));
    assert_eq!(other["pid"], other["own pid"]);
    assert_ne!(other["pid"], own["pid"]);
}

/// Sends `text` on the same connection from another process, `printf`.
fn sent_by_another_process(wire: &Wire, text: &str) {
    let connection: OwnedFd = wire.stream.try_clone().unwrap().into();
    let mut command = Command::new("sh");
    command
        .args(["-c", "printf %s \"$TEXT\" >&0"])
        .env("TEXT", text)
        .stdin(Stdio::from(connection));
    finished(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
}

fn assert_sender_refused(server: &Server, wire: &mut Wire, what: &str) {
    let answer = wire.answer();
    assert_eq!(answer.error(), (403, "forbidden".into()));
    assert_eq!(answer.headers["connection"], "close");
    wire.ends();
    assert_eq!(*server.service.refused_senders.lock().unwrap(), [what]);
}

#[test]
fn a_request_that_another_process_sends_is_refused() {
    let server = Server::start();
    let mut wire = server.connect();
    sent_by_another_process(&wire, &get(&format!("/who?{V}")));
    assert_sender_refused(&server, &mut wire, "GET /who");
}

#[test]
fn a_request_that_another_process_completes_is_refused() {
    let server = Server::start();
    let mut wire = server.connect();
    let request = get(&format!("/who?{V}"));
    let (first, rest) = request.split_at(request.len() / 2);
    wire.send(first);
    sent_by_another_process(&wire, rest);
    assert_sender_refused(&server, &mut wire, "GET /who");
}

#[test]
fn a_body_that_another_process_sends_is_refused() {
    let server = Server::start();
    let mut wire = server.connect();
    let request = with_body("POST", &format!("/items?{V}"), None, ITEM);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    wire.send(&format!("{head}\r\n\r\n"));
    sent_by_another_process(&wire, body);
    assert_sender_refused(&server, &mut wire, "POST /items");
}

#[test]
fn a_later_request_of_another_process_is_refused_and_so_is_all_that_follows() {
    let server = Server::start();
    let mut wire = server.connect();
    wire.send(&get(&format!("/who?{V}")));
    assert_eq!(wire.answer().status, 200);
    // Both come before the server answers: the own one after the other's is refused too,
    // by the close.
    sent_by_another_process(&wire, &get(&format!("/query?{V}")));
    let _ = wire.stream.write_all(get(&format!("/who?{V}")).as_bytes());
    assert_sender_refused(&server, &mut wire, "GET /query");
}

#[test]
fn bytes_that_were_sent_before_the_connection_was_accepted_carry_their_sender() {
    // The connection waits in the backlog while another process writes into it: only then
    // does the server start.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(async { listen::bind(&path, 0o600) }).unwrap();
    let mut wire = Wire::new(UnixStream::connect(&path).unwrap());
    sent_by_another_process(&wire, &get(&format!("/who?{V}")));
    let (_stop, stopped) = watch::channel(false);
    let service = Arc::new(Service::default());
    runtime.spawn(serve(listener, Arc::new(router(service)), Limits::default(), stopped));
    assert_eq!(wire.answer().error(), (403, "forbidden".into()));
}

#[test]
fn a_descriptor_passed_along_is_refused_and_closed() {
    let server = Server::start();
    let mut wire = server.connect();
    let (passed, mut kept) = UnixStream::pair().unwrap();
    let request = get(&format!("/who?{V}"));
    let descriptors = [passed.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let parts = [IoSlice::new(request.as_bytes())];
    sendmsg::<()>(wire.stream.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
    assert_sender_refused(&server, &mut wire, "GET /who");
    drop(passed);
    kept.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "nobody holds the passed descriptor any more");
}

// --- the end
// ---------------------------------------------------------------------------------------

#[test]
fn a_running_request_ends_in_peace_and_idle_connections_are_closed() {
    let mut server = Server::start();
    let mut idle = server.connect();
    idle.send(&get(&format!("/who?{V}")));
    assert_eq!(idle.answer().status, 200);
    let mut busy = server.connect();
    busy.send(&get(&format!("/slow?{V}")));
    server.runtime.block_on(async {
        tokio::time::timeout(SOON, server.service.entered.notified())
            .await
            .expect("the handler runs");
    });
    server.stop.send(true).unwrap();
    idle.ends();
    let refused = Instant::now();
    while UnixStream::connect(server.socket()).is_ok() {
        assert!(refused.elapsed() < SOON, "still listening");
    }
    server.service.release.notify_one();
    let answer = busy.answer();
    assert_eq!((answer.status, answer.json()), (200, json!("done")));
    busy.ends();
    let served = server.served.take().unwrap();
    server
        .runtime
        .block_on(async { tokio::time::timeout(SOON, served).await })
        .expect("it ends")
        .unwrap();
}

#[test]
fn a_server_ends_when_nobody_is_left_who_could_ask_it_to() {
    let mut server = Server::start();
    drop(std::mem::replace(&mut server.stop, watch::channel(false).0));
    let served = server.served.take().unwrap();
    server
        .runtime
        .block_on(async { tokio::time::timeout(SOON, served).await })
        .expect("it ends")
        .unwrap();
}

// --- listening
// ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_socket_is_bound_with_its_mode_in_a_folder_made_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/deep/s");
    let _listener = listen::bind(&path, 0o660).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
}

#[tokio::test]
async fn what_a_crashed_daemon_left_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _listener = listen::bind(&path, 0o600).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn an_empty_folder_in_the_place_of_a_socket_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    std::fs::create_dir(&path).unwrap();
    let _listener = listen::bind(&path, 0o600).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn what_is_not_ours_to_remove_is_left_alone_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("precious"), "data").unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "data").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [&full, &file, &link] {
        let error = listen::bind(path, 0o600).unwrap_err();
        assert!(
            matches!(&error, ListenError::Occupied { path: named } if named == path),
            "{error}"
        );
        assert!(error.to_string().contains("move it away"), "{error}");
    }
    assert_eq!(std::fs::read(full.join("precious")).unwrap(), b"data");
    assert_eq!(std::fs::read(&file).unwrap(), b"data");
}

#[tokio::test]
async fn a_socket_that_somebody_listens_on_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let live = UnixListener::bind(&path).unwrap();
    let error = listen::bind(&path, 0o600).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    UnixStream::connect(&path).unwrap();
    drop(live);
}

#[tokio::test]
async fn a_path_that_does_not_fit_into_an_address_is_an_error_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().as_os_str().len() + 1;
    let _fits = listen::bind(&folder.path().join("x".repeat(107 - base)), 0o600).unwrap();
    let error = listen::bind(&folder.path().join("x".repeat(108 - base)), 0o600).unwrap_err();
    assert!(matches!(error, ListenError::TooLong { .. }), "{error}");
    assert!(error.to_string().contains("use a shorter root folder"), "{error}");
}

/// Starts a process to which `listener` is passed as a service manager would, with these
/// names; it serves one request.
fn activated(listener: UnixListener, names: Option<&str>, own: &Path) -> std::process::Child {
    let plain = child("serve one", own);
    // The shell puts the listener where the protocol wants it, and keeps its own process
    // id.
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\""]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("LISTEN_FDS", "1").env("EDGEKEEP_TEST_NAME", "daemon.socket");
    if let Some(names) = names {
        command.env("LISTEN_FDNAMES", names);
    }
    let input: OwnedFd = listener.into();
    command
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[test]
fn a_passed_socket_is_used_by_its_name_or_when_it_has_none() {
    for names in [None, Some("unknown"), Some("daemon.socket")] {
        let folder = tempfile::tempdir().unwrap();
        let passed = folder.path().join("passed");
        let own = folder.path().join("own");
        let mut process = activated(UnixListener::bind(&passed).unwrap(), names, &own);
        let mut wire = Wire::new(UnixStream::connect(&passed).unwrap());
        wire.send(&get(&format!("/slow?{V}")));
        assert_eq!(wire.answer().status, 200, "{names:?}");
        assert!(process.wait().unwrap().success());
        assert!(!own.exists(), "{names:?}: a socket was bound although one was passed");
    }
}

#[test]
fn a_socket_passed_for_another_service_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    let mut process = activated(
        UnixListener::bind(folder.path().join("passed")).unwrap(),
        Some("aziot-keyd.socket"),
        &own,
    );
    let begin = Instant::now();
    let stream = loop {
        match UnixStream::connect(&own) {
            Ok(stream) => break stream,
            Err(error) => assert!(begin.elapsed() < SOON, "{error}"),
        }
        std::thread::yield_now();
    };
    let mut wire = Wire::new(stream);
    wire.send(&get(&format!("/slow?{V}")));
    assert_eq!(wire.answer().status, 200);
    assert!(process.wait().unwrap().success());
}
