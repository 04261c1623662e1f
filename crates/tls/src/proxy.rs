//! The HTTP proxy through which connections go, as the environment names it.

use std::ffi::OsString;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::authority::Authority;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

/// Port of a proxy that is named without one.
const USUAL_PORT: u16 = 80;
/// Longest head of a proxy's answer, in bytes.
const HEAD_LIMIT: usize = 8 * 1024;

/// An HTTP proxy, and the hosts that are reached without it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    authority: Authority,
    /// Value of `Proxy-Authorization`.
    authorization: Option<Zeroizing<String>>,
    direct: Vec<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// A text that names no proxy. The text is not repeated: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "HTTPS_PROXY does not name a proxy that can be used; give it as http://host:port or http://user:password@host:port"
)]
pub struct ProxyError;

/// Failure of a proxy to connect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("the proxy closed the connection or cannot be written to")]
    Io(#[from] std::io::Error),
    #[error("the proxy asks for a name and a password (status 407); give them in HTTPS_PROXY")]
    Authentication,
    #[error("the proxy refused to connect (status {0})")]
    Status(u16),
    #[error("the proxy's answer is not HTTP")]
    Answer,
}

impl Proxy {
    /// Reads the proxy out of the environment: `HTTPS_PROXY`, else `https_proxy`; the
    /// hosts that are reached without it out of `NO_PROXY`, else `no_proxy`.
    ///
    /// # Errors
    /// If there is a text that names no HTTP proxy.
    pub fn from_environment(
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Self>, ProxyError> {
        let first = |names: [&str; 2]| {
            names.into_iter().filter_map(variable).find(|value| !value.is_empty())
        };
        let Some(url) = first(["HTTPS_PROXY", "https_proxy"]) else { return Ok(None) };
        let url = Zeroizing::new(url.into_string().map_err(|_| ProxyError)?);
        let direct = first(["NO_PROXY", "no_proxy"]).unwrap_or_default();
        let direct = direct.to_string_lossy();
        let direct = direct.split([',', ' ']).map(|name| name.trim().to_ascii_lowercase());
        Self::read(&url, direct.filter(|name| !name.is_empty()).collect()).map(Some)
    }

    fn read(url: &str, direct: Vec<String>) -> Result<Self, ProxyError> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err(ProxyError),
            None => url,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, rest),
        };
        let named = host.rsplit_once(':').is_some_and(|(before, port)| {
            port.bytes().all(|byte| byte.is_ascii_digit())
                && (!before.contains(':') || before.ends_with(']'))
        });
        let host = if named { host.to_owned() } else { format!("{host}:{USUAL_PORT}") };
        let authorization = user.map(|user| {
            let decoded = Zeroizing::new(percent_decode_str(user).collect::<Vec<u8>>());
            Zeroizing::new(format!("Basic {}", STANDARD.encode(&*decoded)))
        });
        let authority = host.parse().map_err(|_| ProxyError)?;
        Ok(Self { authority, authorization, direct })
    }

    /// Returns where the proxy is.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns true if connections to this host go through the proxy.
    #[must_use]
    pub fn is_for(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        !self.direct.iter().any(|name| {
            let name = name.strip_prefix('.').unwrap_or(name);
            name == "*"
                || host == name
                || host.strip_suffix(name).is_some_and(|before| before.ends_with('.'))
        })
    }

    /// Has the proxy connect `stream` to a host.
    pub(crate) async fn tunnel(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        to: &Authority,
    ) -> Result<(), TunnelError> {
        let mut request =
            Zeroizing::new(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n", with_port(to)));
        if let Some(authorization) = &self.authorization {
            request.push_str("Proxy-Authorization: ");
            request.push_str(authorization);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        // Byte by byte, so that nothing of what follows is taken.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == HEAD_LIMIT {
                return Err(TunnelError::Answer);
            }
            head.push(stream.read_u8().await?);
        }
        match status(&head).ok_or(TunnelError::Answer)? {
            200..=299 => Ok(()),
            407 => Err(TunnelError::Authentication),
            status => Err(TunnelError::Status(status)),
        }
    }
}

fn with_port(to: &Authority) -> String {
    let host = to.host();
    if host.contains(':') {
        format!("[{host}]:{}", to.port())
    } else {
        format!("{host}:{}", to.port())
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Proxy, ProxyError> {
        Proxy::read(url, Vec::new())
    }

    #[test]
    fn a_proxy_is_read_out_of_the_forms_in_which_people_write_it() {
        for (url, host, port) in [
            ("http://proxy.example:3128", "proxy.example", 3128),
            ("http://proxy.example:3128/", "proxy.example", 3128),
            ("proxy.example", "proxy.example", 80),
            ("http://10.0.0.1:8080", "10.0.0.1", 8080),
            ("http://[::1]:8080", "::1", 8080),
            ("http://[::1]", "::1", 80),
            ("http://a:b@proxy.example", "proxy.example", 80),
        ] {
            let proxy = read(url).unwrap();
            assert_eq!((proxy.authority.host(), proxy.authority.port()), (host, port), "{url}");
        }
        for url in ["https://proxy.example", "socks5://a", "", "http://", "http://a:99999", "a b"] {
            assert_eq!(read(url), Err(ProxyError), "{url}");
        }
    }

    #[test]
    fn name_and_password_are_decoded_for_basic_and_not_printed() {
        let proxy = read("http://plant%207:p%40ss@proxy.example:3128").unwrap();
        let expected = format!("Basic {}", STANDARD.encode("plant 7:p@ss"));
        assert_eq!(proxy.authorization.as_ref().unwrap().as_str(), expected);
        let printed = format!("{proxy:?}");
        assert!(!printed.contains("p@ss") && !printed.contains("Basic"), "{printed}");
    }

    #[test]
    fn the_hosts_of_no_proxy_are_reached_directly() {
        let environment = |name: &str| match name {
            "https_proxy" => Some("http://proxy.example".into()),
            "NO_PROXY" => Some("localhost, .plant7.example,10.0.0.1".into()),
            _ => None,
        };
        let proxy = Proxy::from_environment(&environment).unwrap().unwrap();
        for (host, through) in [
            ("localhost", false),
            ("LOCALHOST", false),
            ("plant7.example", false),
            ("est.plant7.example", false),
            ("estplant7.example", true),
            ("10.0.0.1", false),
            ("hub.example", true),
        ] {
            assert_eq!(proxy.is_for(host), through, "{host}");
        }
        let all = |name: &str| Some(if name == "HTTPS_PROXY" { "p" } else { "*" }.into());
        assert!(!Proxy::from_environment(&all).unwrap().unwrap().is_for("hub.example"));
        assert_eq!(Proxy::from_environment(&|_| None), Ok(None));
        assert_eq!(Proxy::from_environment(&|_| Some("".into())), Ok(None));
    }

    #[tokio::test]
    async fn an_answer_that_never_ends_is_no_answer() {
        let proxy = read("proxy.example").unwrap();
        let to: Authority = "hub.example:8443".parse().unwrap();
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(&[b'x'; 2 * HEAD_LIMIT]).await.unwrap();
        let error = proxy.tunnel(&mut near, &to).await.unwrap_err();
        assert!(matches!(error, TunnelError::Answer), "{error}");
        let mut asked = vec![0; 38];
        far.read_exact(&mut asked).await.unwrap();
        assert_eq!(asked, b"CONNECT hub.example:8443 HTTP/1.1\r\nHos");
    }
}
