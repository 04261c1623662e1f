//! An image registry with one image, for those who know the password. It listens on
//! loopback, where engines use plain HTTP.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_daemon::store::sha256;
use serde_json::json;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A registry that ends with the test's process.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    manifest: String,
}

/// Paths that the registry serves, with their content, and the password that opens them.
struct Content {
    password: String,
    paths: HashMap<String, (&'static str, Vec<u8>)>,
}

impl Registry {
    /// Serves an image of these programs, as [`crate::Engine::import`] makes them, to the
    /// user `u` with this password.
    ///
    /// # Panics
    /// It cannot listen, or the image cannot be packed.
    #[must_use]
    pub fn start(programs: &[PathBuf], password: &str) -> Self {
        let layer =
            std::fs::read(crate::engine::packed(programs, "registry").path()).expect("own file");
        let first = programs.first().and_then(|program| program.file_name()).expect("a program");
        let config = json!({ "architecture": "amd64", "os": "linux",
            "config": { "Entrypoint": [format!("/bin/{}", first.display())] },
            "rootfs": { "type": "layers", "diff_ids": [sha256(&layer).to_string()] } });
        let config = config.to_string().into_bytes();
        let part = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "size": bytes.len(), "digest": sha256(bytes).to_string() });
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
            "config": part("application/vnd.docker.container.image.v1+json", &config),
            "layers": [part("application/vnd.docker.image.rootfs.diff.tar", &layer)] });
        let manifest = manifest.to_string().into_bytes();
        let digest = sha256(&manifest).to_string();
        let mut paths = HashMap::new();
        for blob in [config, layer] {
            paths.insert(
                format!("/v2/plant/app/blobs/{}", sha256(&blob)),
                ("application/octet-stream", blob),
            );
        }
        for tag in ["1", &digest] {
            paths.insert(format!("/v2/plant/app/manifests/{tag}"), (MANIFEST, manifest.clone()));
        }
        paths.insert("/v2/".to_owned(), ("application/json", b"{}".to_vec()));
        let content =
            Arc::new(Content { password: STANDARD.encode(format!("u:{password}")), paths });
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of loopback is free");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let content = Arc::clone(&content);
                std::thread::spawn(move || content.answer(stream));
            }
        });
        Self { address, manifest: digest }
    }

    /// The image's name, with its tag.
    #[must_use]
    pub fn image(&self) -> String {
        format!("{}/plant/app:1", self.address)
    }

    /// The digest of its manifest.
    #[must_use]
    pub fn manifest(&self) -> &str {
        &self.manifest
    }
}

impl Content {
    fn answer(&self, mut stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < 16 * 1024 {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
            // Engines try TLS first, and take a plain answer for what it is.
            if head[0] == 0x16 {
                let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
                return;
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let known = head.lines().any(|line| {
            line.split_once(": ").is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("authorization")
                    && value == format!("Basic {}", self.password)
            })
        });
        let (status, more, kind, body) = match self.paths.get(path) {
            _ if !known => {
                let error =
                    br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
                (
                    "401 Unauthorized",
                    "WWW-Authenticate: Basic realm=\"plant\"\r\n",
                    "application/json",
                    &error[..],
                )
            }
            Some((kind, body)) => ("200 OK", "", *kind, &body[..]),
            None => ("404 Not Found", "", "application/json", &b"{\"errors\":[]}"[..]),
        };
        let digest =
            if status.starts_with("200") { sha256(body).to_string() } else { String::new() };
        let head = format!(
            "HTTP/1.1 {status}\r\n{more}Docker-Distribution-Api-Version: registry/2.0\r\nDocker-Content-Digest: \
             {digest}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes());
        if method != "HEAD" {
            let _ = stream.write_all(body);
        }
    }
}
