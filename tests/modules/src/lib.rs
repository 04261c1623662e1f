//! Shared code of the small programs that act as modules: HTTP over a Unix socket, the
//! environment of a module, waiting.
//!
//! They go into container images and run as host modules, so they are plain: blocking
//! calls, no runtime, linked to nothing but the C library. They open the sockets that
//! their environment names, and nothing else unless told to.
#![forbid(unsafe_code)]

pub mod http;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, Signal};

/// Answers the command line of a program that takes no arguments: help, version, or a
/// refusal. The exit code, or `None` without arguments.
#[must_use]
pub fn answered(name: &str) -> Option<ExitCode> {
    let argument = std::env::args_os().nth(1)?;
    match argument.to_str() {
        Some("-h" | "--help") => {
            say(&format!("Acts as a module, by its environment alone.\n\nUsage: {name}"));
        }
        Some("-V" | "--version") => say(&format!("{name} {}", env!("CARGO_PKG_VERSION"))),
        _ => {
            let shown: String = argument.to_string_lossy().chars().take(60).collect();
            let _ = writeln!(
                std::io::stderr(),
                "error: unexpected argument {shown:?}\n\nUsage: {name}"
            );
            return Some(ExitCode::from(2));
        }
    }
    Some(ExitCode::SUCCESS)
}

/// The exit code of a program that did what it is for, or says why not.
#[must_use]
pub fn exit_code(done: anyhow::Result<()>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    let _ = writeln!(std::io::stderr(), "Error: {error:?}");
    ExitCode::FAILURE
}

/// A variable that must be set.
///
/// # Errors
/// It is not, or is no UTF-8.
pub fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("cannot use the variable {name}"))
}

/// The path of a `unix://` URI.
///
/// # Errors
/// Another scheme.
pub fn socket_path(uri: &str) -> anyhow::Result<PathBuf> {
    match uri.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => bail!("\"{uri}\" is not unix:///path"),
    }
}

/// Percent-encodes everything but letters, digits and `-._~`, as clients do with a module
/// id or an audience.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Prints a line. A reader that has gone away does not stop a module.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// From now on SIGTERM and SIGINT end this process with code 0, also as the first process
/// of a container, for which the kernel has no default action. Call it before any other
/// thread is started.
///
/// # Errors
/// The kernel refuses.
pub fn end_on_signal() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let code = i32::from(signals.wait().is_err());
        std::process::exit(code);
    })?;
    Ok(())
}

/// Waits this long.
pub fn pause(duration: Duration) {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    {
        std::thread::park_timeout(left);
    }
}

/// Waits for the signal of [`end_on_signal`].
pub fn wait_for_signal() -> ! {
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_encoded_as_the_sdks_do() {
        assert_eq!(
            encode("hub:443/devices/d/modules/$m"),
            "hub%3A443%2Fdevices%2Fd%2Fmodules%2F%24m"
        );
        assert_eq!(encode("a-b._~é"), "a-b._~%C3%A9");
    }

    #[test]
    fn only_a_unix_uri_has_a_socket_path() {
        assert_eq!(socket_path("unix:///run/w.sock").unwrap(), PathBuf::from("/run/w.sock"));
        for uri in ["http://x", "unix://relative", "/run/w.sock"] {
            assert_eq!(
                socket_path(uri).unwrap_err().to_string(),
                format!("\"{uri}\" is not unix:///path")
            );
        }
    }
}
