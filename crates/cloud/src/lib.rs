//! Clients of the cloud: the provisioning service and the hub's module registry, over
//! HTTPS.
//!
//! Touches: TCP connections to the hosts it is told to call, and for the time of a call
//! the files with the roots that it trusts. Never listens, never holds a key (tokens are
//! signed through [`Signer`]), keeps no state between calls but the clock's offset that
//! the services' own answers show.
//!
//! TLS, roots and proxies are those of `edgekeep_tls`. A device proves who it is by a
//! token or by a certificate ([`Credential`]), never by both.
#![forbid(unsafe_code)]

mod credential;
mod dps;
mod error;
mod hub;
mod sas;
mod transport;

pub use credential::Credential;
pub use dps::{Dps, Progress, Registration};
pub use edgekeep_tls::{Proxy, Trust};
pub use error::{CloudError, SignerError};
pub use hub::{EnsureError, Hub, ListedModule, ModuleKeys, ModuleRecord};
pub use sas::Signer;
pub use transport::{Limits, Observed, Observer, Transport};
