//! Least cost of a call: hyper on a Unix socket that answers each request with its own
//! body. `edgekeep-echo SOCKET`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "what goes wrong belongs on the standard error")]

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use edgekeep_daemon::arguments::Synopsis;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

const SYNOPSIS: Synopsis = Synopsis {
    name: "edgekeep-echo",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Answers each request on a Unix socket with its own body.",
    usage: "SOCKET",
    flags: &[],
    variables: &[],
};

fn main() -> ExitCode {
    let given = match SYNOPSIS.given(1..=1) {
        Ok(given) => given,
        Err(code) => return code,
    };
    match serve(Path::new(&given.operands[0])) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgekeep-echo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(socket: &Path) -> anyhow::Result<()> {
    let listener = tokio::net::UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, PermissionsExt::from_mode(0o666))?;
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(async move {
            // A caller that goes away is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(echo))
                .await;
        });
    }
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request
        .into_body()
        .collect()
        .await
        .map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
    Ok(Response::new(Full::new(body)))
}
