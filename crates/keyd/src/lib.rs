//! keyd: the daemon that holds the device's keys. It serves the keys API on `keyd.sock`.
//!
//! Touches: its state folder (`keys/`, `internal/`, `store.key`, `import/`, `audit.jsonl`), the files of preloaded keys
//! (reading), its socket, its settings file (reading). Never: the network, another process, a container engine. Private
//! keys and symmetric keys do not leave it; only keys derived from a symmetric key can be exported, by who may name that key.

pub mod handle;
pub mod routes;
mod start;

use std::sync::Arc;

use edgekeep_core::grants::Grants;
use edgekeep_daemon::audit::Audit;
use edgekeep_hsm::KeyBackend;
pub use start::{StartError, grants};

use crate::handle::Handles;

/// What the routes work on.
pub struct Keyd {
    backend: Arc<dyn KeyBackend>,
    handles: Handles,
    grants: Grants,
    audit: Audit,
}
