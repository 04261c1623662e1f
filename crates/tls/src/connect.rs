//! Connections: to the host or through the proxy, then TLS.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use edgekeep_base::error;
use edgekeep_base::lock::lock;
use edgekeep_core::authority::Authority;
use edgekeep_core::foreign_text::{CHAIN_LIMIT, cleaned};
use rustls::{AlertDescription, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::proxy::Proxy;
use crate::signing::ClientIdentity;
use crate::trust::{RootsError, Trust};

/// Longest time for a handshake in which the keys service signs. Callers have lower
/// limits; this one ends what they left behind.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// Failure to prepare for connections.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The roots.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// An identity without a certificate.
    #[error("there is no certificate to prove with who this device is")]
    NoCertificate,
    /// A certificate of another key.
    #[error(
        "the certificate does not belong to key \"{key}\"; name the pair that belongs together"
    )]
    OtherKey {
        /// Id of the key.
        key: String,
    },
    /// rustls.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// Failure to connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A host that cannot stand in a certificate.
    #[error("{host}: {what}")]
    Name {
        /// The host.
        host: String,
        /// The fault of the host's name.
        what: String,
    },
    /// Nobody was reached.
    #[error("{what} failed")]
    Down {
        /// The step that failed.
        what: &'static str,
        /// The system's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The host was reached and is not trusted, does not trust this device, or does not
    /// speak TLS.
    #[error("no trusted TLS connection")]
    Untrusted {
        /// The error of the TLS library.
        #[source]
        source: std::io::Error,
    },
}

/// Maker of connections. Roots are read when they are needed, and forgotten after the
/// last connection that needs them.
#[derive(Debug)]
pub struct Connector {
    trust: Trust,
    identity: Option<ClientIdentity>,
    proxy: Option<Proxy>,
    config: Mutex<Weak<ClientConfig>>,
}

/// The same with the roots.
#[derive(Debug, Clone)]
pub struct Prepared {
    config: Arc<ClientConfig>,
    proxy: Option<Proxy>,
    keyd_signs: bool,
}

impl Connector {
    /// Believes in `trust`, goes through no proxy and does not say who it is. Nothing is
    /// opened.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Self { trust, identity: None, proxy: None, config: Mutex::new(Weak::new()) }
    }

    /// The same, which proves who it is to a peer that asks.
    #[must_use]
    pub fn with_identity(self, identity: ClientIdentity) -> Self {
        Self { identity: Some(identity), config: Mutex::new(Weak::new()), ..self }
    }

    /// The same, through a proxy if there is one.
    #[must_use]
    pub fn through(self, proxy: Option<Proxy>) -> Self {
        Self { proxy, ..self }
    }

    /// Reads the roots, unless somebody holds them. To be called on a runtime.
    ///
    /// # Errors
    /// If the roots cannot be read or TLS cannot be set up.
    pub fn prepare(&self) -> Result<Prepared, TlsError> {
        let mut shared = lock(&self.config);
        let config = match shared.upgrade() {
            Some(config) => config,
            None => {
                let fresh = Arc::new(self.config(self.identity.as_ref())?);
                *shared = Arc::downgrade(&fresh);
                fresh
            }
        };
        Ok(Prepared { config, proxy: self.proxy.clone(), keyd_signs: self.identity.is_some() })
    }

    /// The same for connections that prove who they are by `identity`, whatever this
    /// connector shows else.
    ///
    /// # Errors
    /// If the roots cannot be read or TLS cannot be set up.
    pub fn prepare_as(&self, identity: &ClientIdentity) -> Result<Prepared, TlsError> {
        let config = Arc::new(self.config(Some(identity))?);
        Ok(Prepared { config, proxy: self.proxy.clone(), keyd_signs: true })
    }

    fn config(&self, identity: Option<&ClientIdentity>) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.trust.store()?);
        Ok(match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                builder.with_client_cert_resolver(identity.resolver(Handle::current()))
            }
        })
    }
}

impl Prepared {
    /// Connects and shakes hands.
    ///
    /// # Errors
    /// If nobody is reached, or the host is not the one that it should be.
    pub async fn connect(&self, to: &Authority) -> Result<TlsStream<TcpStream>, ConnectError> {
        let name = ServerName::try_from(to.host().to_owned()).map_err(|error| {
            ConnectError::Name { host: to.to_string(), what: error.to_string() }
        })?;
        let proxy = self.proxy.as_ref().filter(|proxy| proxy.is_for(to.host()));
        let peer = proxy.map_or(to, Proxy::authority);
        let reaching = if proxy.is_some() { "connecting to the proxy" } else { "connecting" };
        let mut stream = TcpStream::connect((peer.host(), peer.port()))
            .await
            .map_err(|error| down(reaching, error))?;
        // A request is one write; without this its last part may wait for an
        // acknowledgement.
        stream.set_nodelay(true).map_err(|error| down("connecting", error))?;
        if let Some(proxy) = proxy {
            let tunnel = proxy.tunnel(&mut stream, to).await;
            tunnel.map_err(|error| down("connecting through the proxy", error))?;
        }
        let handshake = TlsConnector::from(Arc::clone(&self.config)).connect(name, stream);
        if !self.keyd_signs {
            return handshake.await.map_err(judged);
        }
        let runtime = Handle::current();
        let waited = tokio::task::spawn_blocking(move || {
            runtime.block_on(tokio::time::timeout(HANDSHAKE, handshake))
        });
        match waited.await {
            Ok(Ok(shaken)) => shaken.map_err(judged),
            Ok(Err(late)) => Err(down("the TLS handshake", late)),
            Err(ended) => Err(down("the TLS handshake", ended)),
        }
    }
}

fn judged(source: std::io::Error) -> ConnectError {
    if of_tls(&source).is_some() {
        ConnectError::Untrusted { source }
    } else {
        down("the TLS handshake", source)
    }
}

fn down(
    what: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ConnectError {
    ConnectError::Down { what, source: source.into() }
}

/// Returns the error of TLS that an error was caused by. In TLS 1.3 a peer that does not
/// take this device's certificate says so after the handshake.
#[must_use]
pub fn of_tls<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        if let Some(inner) =
            error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
        {
            if let Some(found) = inner.downcast_ref::<rustls::Error>() {
                return Some(found);
            }
            next = inner.source();
            continue;
        }
        next = error.source();
    }
    None
}

/// Returns the peer's reason in words if the peer does not take this device's
/// certificate, or misses one.
#[must_use]
pub fn refused_certificate(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let Some(rustls::Error::AlertReceived(alert)) = of_tls(error) else { return None };
    Some(match alert {
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "certificate revoked",
        AlertDescription::CertificateExpired => "certificate expired",
        AlertDescription::CertificateUnknown => "certificate not accepted",
        AlertDescription::UnknownCA => "unknown CA",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "a certificate is required"
        }
        _ => return None,
    })
}

/// Returns an error and its causes in one line, within bounds.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    cleaned(&error::chain(error), CHAIN_LIMIT)
}
