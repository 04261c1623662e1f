//! What a call costs at least: hyper on a Unix socket that answers each request with its own body. `edgekeep-echo SOCKET`.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let socket = std::env::args().nth(1).context("usage: edgekeep-echo SOCKET")?;
    let listener = tokio::net::UnixListener::bind(&socket).with_context(|| format!("cannot listen on {socket}"))?;
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666))?;
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
    let body = request.into_body().collect().await.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
    Ok(Response::new(Full::new(body)))
}
