//! Attacks on the server from whoever shares a folder or a socket with it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use edgekeep_daemon::listen;
use edgekeep_daemon::server::{Limits, Response, Router, serve};
use http::{Method, StatusCode};
use hyper::body::{Body, Frame};
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(10);

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_link_in_a_shared_folder_does_not_steer_the_mode_of_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let (shared, private) = (folder.path().join("shared"), folder.path().join("private"));
    std::fs::create_dir(&shared).unwrap();
    let victim = folder.path().join("victim");
    std::fs::write(&victim, "secret").unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    let socket = shared.join("workload.sock");
    std::os::unix::fs::symlink(&victim, &socket).unwrap();
    let _listener = listen::bind_into(&private, &socket, 0o666).unwrap();
    assert_eq!(mode(&victim), 0o600);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "secret");
    assert_eq!(mode(&socket), 0o666);
    assert!(UnixStream::connect(&socket).is_ok());
    assert_eq!(
        std::fs::read_dir(&private).unwrap().count(),
        0,
        "nothing stays in the private folder"
    );
}

/// A listening socket whose queue is full: a blocking connect to it waits for ever.
fn full_listener(path: &Path) -> (rustix::fd::OwnedFd, Vec<rustix::fd::OwnedFd>) {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    };
    let make = || {
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap()
    };
    let address = SocketAddrUnix::new(path).unwrap();
    let listener = make();
    bind(&listener, &address).unwrap();
    listen(&listener, 0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = make();
        match connect(&client, &address) {
            Ok(()) => waiting.push(client),
            Err(errno) => {
                assert_eq!(errno, rustix::io::Errno::AGAIN);
                return (listener, waiting);
            }
        }
    }
}

#[tokio::test]
async fn a_listener_with_a_full_queue_in_a_sockets_place_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let _full = full_listener(&path);
    let private = folder.path().join("private");
    let bound = tokio::task::spawn_blocking({
        let path = path.clone();
        let handle = tokio::runtime::Handle::current();
        move || {
            let _runtime = handle.enter();
            (listen::bind(&path, 0o600).map(drop), listen::bind_into(&private, &path, 0o600))
        }
    });
    let (own, shared) = tokio::time::timeout(SOON, bound).await.expect("not hung").unwrap();
    assert!(matches!(own, Err(listen::ListenError::InUse { .. })), "{own:?}");
    // In a shared folder whoever put it there is nobody: the daemon's socket takes its
    // place.
    assert!(shared.is_ok(), "{shared:?}");
    assert!(UnixStream::connect(&path).is_ok());
}

/// Says one thing and then nothing, as the log of a quiet module.
struct Quiet(Option<Bytes>);

impl Body for Quiet {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

#[tokio::test]
async fn clients_that_hang_up_on_a_quiet_stream_do_not_use_up_the_connections_of_their_user() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = listen::bind(&path, 0o600).unwrap();
    let router = Router::new(Arc::new(()), &["1"]).route(Method::GET, "/logs", "1", |_, _| async {
        Ok(Response::stream(
            StatusCode::OK,
            "text/plain",
            Quiet(Some(Bytes::from_static(b"line\n"))),
        ))
    });
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(serve(
        listener,
        Arc::new(router),
        Limits { connections_per_uid: 4, ..Limits::default() },
        stopped,
    ));
    let clients = tokio::task::spawn_blocking(move || {
        let begin = std::time::Instant::now();
        let mut served = 0;
        while served < 40 {
            assert!(begin.elapsed() < SOON, "only {served} were served");
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"GET /logs?api-version=1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut head = [0; 15];
            stream.read_exact(&mut head).unwrap();
            // One that came before an earlier one's end was noticed is told so, and tries
            // again.
            served += usize::from(&head == b"HTTP/1.1 200 OK");
        }
    });
    clients.await.unwrap();
}
