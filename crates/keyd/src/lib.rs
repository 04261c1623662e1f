//! keyd: the daemon that holds the device's keys. It serves the keys API on `keyd.sock`.
//!
//! Touches: its state folder (`keys/`, `internal/`, `store.key`, `import/`, `audit/`), the files of preloaded keys
//! (reading), its socket, its settings file (reading). Never: the network, another process, a container engine. Private
//! keys and symmetric keys do not leave it; only keys derived from a symmetric key can be exported, by who was granted that.
//! Every use of a key and every refusal is in its audit log before the answer goes out.

pub mod handle;
pub mod policy;
mod record;
pub mod routes;
mod start;

use std::sync::Arc;

use edgekeep_hsm::KeyBackend;
pub use start::StartError;

use crate::handle::Handles;
use crate::policy::Policy;
use crate::record::Recorder;

/// What the routes work on.
pub struct Keyd {
    /// First, so that it is closed before the backend gives up the folder for another process.
    recorder: Recorder,
    backend: Arc<dyn KeyBackend>,
    handles: Handles,
    policy: Policy,
}
