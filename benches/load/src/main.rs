//! A closed-loop load generator for HTTP over Unix sockets that runs as a module, so that
//! it is measured as one.
//!
//! `edgekeep-load CONTROL` listens on the Unix socket CONTROL. Whoever connects sends one
//! line of JSON, `{"socket", "method", "path", "body", "callers", "requests"}`, and gets
//! one back:
//! `{"ok", "refused", "failed", "firstError", "p50Us", "p90Us", "p99Us", "perSecond"}`.
//! `{m}` and `{g}` in a path stand for this module's id and generation; without `socket`
//! its own workload socket is called. Each request is made over a new connection, as the
//! clients of these sockets do, and the time to connect counts; with `"keepAlive": true`
//! each caller keeps one. With `"nonBlocking": true` a connect that would have to wait is
//! a refusal, counted as `"again"` too.
//!
//! `edgekeep-load idle` only waits for SIGTERM. `edgekeep-load flood SOCKET HELD DROPPED`
//! is a bad neighbour: it opens connections and holds so many of them, and so many more
//! it opens and drops, one after the other; then it says how many that were, as
//! `{"held", "dropped", "seconds"}`, and holds on until its standard input ends.
//! `edgekeep-load storm SOCKET` opens and drops connections until its standard input
//! ends, and says `{"connected", "refused", "seconds"}`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "what goes wrong belongs in the module's log")]

mod flood;
mod load;

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_daemon::arguments::Synopsis;
use serde_json::{Value, json};

use crate::load::Case;

const SYNOPSIS: Synopsis = Synopsis {
    name: "edgekeep-load",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Makes calls over a Unix socket as a module, as many and as fast as it is told, and measures them.",
    usage: "CONTROL | idle | flood SOCKET HELD DROPPED | storm SOCKET",
    flags: &[],
    variables: &[],
};

fn main() -> ExitCode {
    let given = match SYNOPSIS.given(1..=4) {
        Ok(given) => given,
        Err(code) => return code,
    };
    let done = match &given.operands[..] {
        [control] => wait(control.as_ref()),
        [mode, socket, held, dropped] if mode == "flood" => {
            let number = |text: &OsString| text.to_str()?.parse().ok();
            let (Some(held), Some(dropped)) = (number(held), number(dropped)) else {
                return SYNOPSIS.refuse("HELD and DROPPED are numbers");
            };
            flood::run(socket.as_ref(), held, dropped)
        }
        [mode, socket] if mode == "storm" => flood::storm(socket.as_ref()),
        _ => return SYNOPSIS.refuse("arguments that do not fit together"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgekeep-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn wait(control: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if control != Path::new("idle") {
        let _ = std::fs::remove_file(control);
        let listener = UnixListener::bind(control)
            .with_context(|| format!("cannot listen on {}", control.display()))?;
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if let Err(error) = stream.map_err(Into::into).and_then(|stream| serve(&stream)) {
                    eprintln!("{error:#}");
                }
            }
        });
    }
    // As the first process of a container it must ask for the signal, or the kernel keeps
    // it.
    runtime.block_on(async {
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?.recv().await;
        Ok(())
    })
}

fn serve(stream: &UnixStream) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("cannot read a case")?;
    let case: Value = serde_json::from_str(&line).context("a case is not a line of JSON")?;
    let answer = match Case::new(&case, |name| std::env::var(name).ok()) {
        Ok(case) => case.run()?.to_json(),
        Err(error) => json!({ "error": format!("{error:#}") }),
    };
    let mut stream = stream;
    writeln!(stream, "{answer}").context("cannot write a result")
}
