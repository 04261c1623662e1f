//! A closed-loop load generator for HTTP over Unix sockets that runs as a module, so that it is measured as one.
//!
//! `edgekeep-load CONTROL` listens on the Unix socket CONTROL. Whoever connects sends one line of JSON,
//! `{"socket", "method", "path", "body", "callers", "requests"}`, and gets one back: `{"ok", "refused", "failed",
//! "firstError", "p50Us", "p90Us", "p99Us", "perSecond"}`. `{m}` and `{g}` in a path stand for this module's id and
//! generation; without `socket` its own workload socket is called. Each request is made over a new connection, as the
//! clients of these sockets do, and the time to connect counts; with `"keepAlive": true` each caller keeps one.
//!
//! `edgekeep-load idle` only waits for SIGTERM. `edgekeep-load flood SOCKET HELD DROPPED` is a bad neighbour: it opens
//! connections and holds so many of them, and so many more it opens and drops, one after the other; then it says how many
//! that were, as `{"held", "dropped", "seconds"}`, and holds on until its standard input ends.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "what goes wrong belongs in the module's log")]

mod flood;
mod load;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::load::Case;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, socket, held, dropped] = &arguments[..]
        && mode == "flood"
    {
        return flood::run(socket.as_ref(), held.parse()?, dropped.parse()?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let control = std::env::args().nth(1).context("usage: edgekeep-load CONTROL | idle")?;
    if control != "idle" {
        let _ = std::fs::remove_file(&control);
        let listener = UnixListener::bind(&control).with_context(|| format!("cannot listen on {control}"))?;
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if let Err(error) = stream.map_err(Into::into).and_then(|stream| serve(&stream)) {
                    eprintln!("{error:#}");
                }
            }
        });
    }
    // As the first process of a container it must ask for the signal, or the kernel keeps it.
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
