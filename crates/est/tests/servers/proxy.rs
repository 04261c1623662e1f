//! Through a proxy, as the environment names it.

use edgekeep_tls::Proxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A proxy that takes one connection, answers with `status`, and tells what it was asked.
async fn proxy(status: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        near.write_all(format!("HTTP/1.1 {status}\r\nVia: test\r\n\r\n").as_bytes()).await.unwrap();
        if status.starts_with("200") {
            let to = head.split(' ').nth(1).unwrap().replace("localhost", "127.0.0.1");
            let mut far = TcpStream::connect(to).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
        head
    });
    (port, task)
}

#[tokio::test]
async fn a_call_goes_through_the_proxy_with_its_name_and_password() {
    let server = simulator("").await;
    let (port, task) = proxy("200 Connection established").await;
    let environment =
        |name: &str| (name == "https_proxy").then(|| format!("http://a:b@127.0.0.1:{port}").into());
    let proxy = Proxy::from_environment(&environment).unwrap();
    let cas = stranger(&server).through(proxy).cacerts().await.unwrap();
    assert_eq!(cas.len(), 2);
    let head = task.await.unwrap();
    let expected =
        format!("CONNECT localhost:{0} HTTP/1.1\r\nHost: localhost:{0}\r\n", server.port());
    assert!(head.starts_with(&expected), "{head}");
    assert!(head.contains("Proxy-Authorization: Basic YTpi\r\n"), "{head}");
}

#[tokio::test]
async fn a_proxy_that_refuses_says_why() {
    let server = simulator("").await;
    for (status, reason) in [
        ("407 Proxy Authentication Required", "asks for a name and a password"),
        ("403 Forbidden", "refused to connect (status 403)"),
        ("nonsense", "refused to connect"),
    ] {
        let (port, _task) = proxy(status).await;
        let environment = |_: &str| Some(format!("127.0.0.1:{port}").into());
        let proxy = Proxy::from_environment(&|name| {
            if name == "HTTPS_PROXY" { environment(name) } else { None }
        });
        let error = stranger(&server).through(proxy.unwrap()).cacerts().await.unwrap_err();
        let edgekeep_est::EstError::Down { what, source, .. } = &error else { panic!("{error}") };
        assert_eq!(*what, "connecting through the proxy");
        let said = source.to_string();
        assert!(said.contains(reason) || said.contains("not HTTP"), "{said}");
    }
}
