//! A proxy between a daemon and its container engine, so that the engine can be away,
//! hang, or answer badly.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Behaviour of the engine, as the proxy shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineFault {
    /// As it is.
    None,
    /// Nobody listens: the engine is not running.
    Away,
    /// It accepts and never answers.
    Hangs,
    /// It sends an answer's head and nothing more.
    HangsAfterHead,
    /// After the head it sends a blank every few milliseconds, for ever.
    Trickles,
    /// It closes every connection in the middle of the answer's head.
    BreaksOff,
    /// A pull fails in its course, for the disk is full; all else works.
    PullsFillTheDisk,
}

/// A socket in front of an engine's.
#[derive(Debug)]
pub struct EngineProxy {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    engine: PathBuf,
    fault: Mutex<EngineFault>,
    open: Mutex<Vec<UnixStream>>,
}

impl EngineProxy {
    /// A proxy at `path` for the engine at `engine`, without a fault.
    ///
    /// # Panics
    /// The socket cannot be made.
    #[must_use]
    pub fn new(path: PathBuf, engine: PathBuf) -> Self {
        let shared =
            Shared { engine, fault: Mutex::new(EngineFault::None), open: Mutex::default() };
        let proxy = Self { path, shared: Arc::new(shared) };
        proxy.listen();
        proxy
    }

    /// The socket's URI.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// From now on the engine behaves so. Connections that are open end, but for a
    /// hanging engine: there they stay, silent.
    ///
    /// # Panics
    /// The socket cannot be made again.
    pub fn set(&self, fault: EngineFault) {
        let before = std::mem::replace(&mut *lock(&self.shared.fault), fault);
        if fault == EngineFault::Away {
            let _ = std::fs::remove_file(&self.path);
        }
        if fault != EngineFault::Hangs {
            self.cut();
        }
        if before == EngineFault::Away && fault != EngineFault::Away {
            self.listen();
        }
    }

    /// Ends all open connections, among them the stream of events.
    pub fn cut(&self) {
        for stream in lock(&self.shared.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn listen(&self) {
        let listener = UnixListener::bind(&self.path).expect("the proxy's socket can be made");
        let (shared, path) = (Arc::clone(&self.shared), self.path.clone());
        let own = inode(&path);
        std::thread::spawn(move || {
            listener.set_nonblocking(true).expect("own socket");
            while inode(&path) == own && own.is_some() {
                match listener.accept() {
                    Ok((client, _)) => {
                        let shared = Arc::clone(&shared);
                        std::thread::spawn(move || drop(serve(client, &shared)));
                    }
                    Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
                }
            }
        });
    }
}

impl Drop for EngineProxy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        self.cut();
    }
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).ok().map(|metadata| metadata.ino())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut client: UnixStream, shared: &Shared) -> io::Result<()> {
    const HEAD: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.set_nonblocking(false)?;
    lock(&shared.open).push(client.try_clone()?);
    let fault = *lock(&shared.fault);
    if matches!(fault, EngineFault::None | EngineFault::PullsFillTheDisk) {
        return pass(client, shared, fault);
    }
    let mut request = [0; 4096];
    let _ = client.read(&mut request)?;
    match fault {
        EngineFault::BreaksOff => {
            client.write_all(b"HTTP/1.1 200 O")?;
            return client.shutdown(Shutdown::Both);
        }
        EngineFault::HangsAfterHead => client.write_all(HEAD)?,
        EngineFault::Trickles => {
            client.write_all(HEAD)?;
            loop {
                client.write_all(b"1\r\n \r\n")?;
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
        _ => {}
    }
    // Until the other side gives up.
    client.read(&mut request).map(drop)
}

/// To the engine and back. While the engine hangs what comes from it is held back.
fn pass(mut client: UnixStream, shared: &Shared, fault: EngineFault) -> io::Result<()> {
    let mut first = [0; 16 << 10];
    let read = client.read(&mut first)?;
    if fault == EngineFault::PullsFillTheDisk && first[..read].starts_with(b"POST /images/create") {
        let progress = b"{\"status\":\"Pulling fs layer\"}\r\n{\"errorDetail\":{\"message\":\"write \
                         /var/lib/docker/tmp/layer: no space left on device\"},\"error\":\"no space left on device\"}\r\n";
        client.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n",
        )?;
        client.write_all(progress)?;
        return client.shutdown(Shutdown::Both);
    }
    let mut engine = UnixStream::connect(&shared.engine)?;
    lock(&shared.open).push(engine.try_clone()?);
    engine.write_all(&first[..read])?;
    let (mut from, mut to) = (client.try_clone()?, engine.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut buffer = [0; 16 << 10];
    loop {
        let read = engine.read(&mut buffer)?;
        while *lock(&shared.fault) == EngineFault::Hangs {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        if read == 0 {
            return client.shutdown(Shutdown::Write);
        }
        client.write_all(&buffer[..read])?;
    }
}
