//! systemd's start-up protocol: telling it that the daemon is ready, or why it is not.
//!
//! Passed sockets are in [`crate::activation`]; the environment is only read, never
//! changed.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

/// Tells the service manager, if there is one, that the daemon serves.
pub fn notify_ready() {
    notify("READY=1");
}

/// Tells the service manager that the daemon is stopping.
pub fn notify_stopping() {
    notify("STOPPING=1");
}

/// Sets the one-line state that `systemctl status` shows.
pub fn notify_status(status: &str) {
    notify(&format!("STATUS={}", status.replace('\n', " ")));
}

/// Opens what messages are sent by. For a daemon that gives up making sockets; otherwise
/// the first message does it.
pub fn prepare() {
    if let Err(error) = socket() {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

/// The socket that messages are sent by, whoever gets them.
fn socket() -> io::Result<&'static UnixDatagram> {
    static SOCKET: OnceLock<UnixDatagram> = OnceLock::new();
    match SOCKET.get() {
        Some(socket) => Ok(socket),
        None => UnixDatagram::unbound().map(|socket| SOCKET.get_or_init(|| socket)),
    }
}

fn notify(message: &str) {
    let Some(target) = std::env::var_os("NOTIFY_SOCKET").filter(|target| !target.is_empty()) else {
        return;
    };
    let sent = socket().and_then(|socket| {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::ffi::OsStrExt as _;
        use std::os::unix::net::SocketAddr;
        let address = match target.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&target)?,
        };
        socket.send_to_addr(message.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}
