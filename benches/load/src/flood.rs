//! Connections that are held for nothing, and connections that end as soon as they begin.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;

/// Connects to `socket` and closes, as fast as can be, until the input ends; then says
/// how often. Goes on while it is kept out.
pub(crate) fn storm(socket: &Path) -> anyhow::Result<()> {
    if let Err(error) = UnixStream::connect(socket)
        && error.kind() != ErrorKind::PermissionDenied
    {
        return Err(error).with_context(|| format!("cannot connect to {}", socket.display()));
    }
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let (connected, refused) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            over.store(true, Ordering::Relaxed);
        });
        let (mut connected, mut refused) = (0_u64, 0_u64);
        while !over.load(Ordering::Relaxed) {
            match UnixStream::connect(socket) {
                Ok(_) => connected += 1,
                Err(_) => refused += 1,
            }
        }
        (connected, refused)
    });
    let said = json!({ "connected": connected, "refused": refused, "seconds": begin.elapsed().as_secs_f64() });
    writeln!(std::io::stdout(), "{said}")?;
    Ok(())
}

/// Floods `socket`, says what was done, and holds on until its input ends.
pub(crate) fn run(socket: &Path, hold: usize, drop: usize) -> anyhow::Result<()> {
    let connect = || UnixStream::connect(socket);
    connect().with_context(|| format!("cannot connect to {}", socket.display()))?;
    // Some may be refused: that is their point.
    let held: Vec<UnixStream> = (0..hold).filter_map(|_| connect().ok()).collect();
    let begin = Instant::now();
    let dropped = (0..drop).filter(|_| connect().is_ok()).count();
    let said =
        json!({ "held": held.len(), "dropped": dropped, "seconds": begin.elapsed().as_secs_f64() });
    let mut output = std::io::stdout();
    writeln!(output, "{said}")?;
    output.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
