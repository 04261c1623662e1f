//! The proof by which a service knows this device.

use std::sync::Arc;

use edgekeep_tls::ClientIdentity;

/// Proof by which a service knows this device: exactly one of the two is sent.
#[derive(Debug, Clone)]
pub enum Credential<S> {
    /// A token in each request, signed with a symmetric key.
    Token(S),
    /// A certificate in the TLS handshake, and no token.
    Certificate(Arc<ClientIdentity>),
}
