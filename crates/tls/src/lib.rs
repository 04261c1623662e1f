//! TLS as a client whose private key may be in the keys service.
//!
//! Touches: TCP connections to the hosts, or the proxy, that it is told to connect to;
//! for the time of a call the files with the roots that it trusts; the keys service's
//! socket where a handshake or a request is to be signed. Never listens, never has a
//! private key.
//!
//! Every handshake offers X25519MLKEM768 first: what is recorded today cannot be read by
//! a quantum computer later, if the peer has the algorithm too.
#![forbid(unsafe_code)]

mod connect;
mod proxy;
mod pss;
mod public_key;
mod remote_key;
mod signing;
mod trust;

pub use connect::{ConnectError, Connector, Prepared, TlsError, of_tls, refused_certificate};
pub use proxy::{Proxy, ProxyError};
pub use public_key::{KeyKind, PublicKey};
pub use remote_key::{RemoteKey, RemoteKeyError};
pub use signing::ClientIdentity;
pub use trust::{RootsError, Trust};
