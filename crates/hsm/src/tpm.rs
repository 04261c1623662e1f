//! TPM 2.0: keys that never leave the TPM in clear, sealed secrets, quotes and the
//! device's endorsement.
//!
//! Everything from the connection up is written here, without a C library: small enough
//! to be read, and without a search for plug-ins and configuration files at run time.
//! [`Tpm`] is one TPM, [`TpmBackend`] the keys API's view of it, [`TpmPreloaded`] that of
//! keys which somebody else put there.
//!
//! What crosses the wire: every use of a key, a hierarchy or a secret runs in an HMAC
//! session whose key is known to this process and to the holder of the storage root's
//! private half, so that nobody between them reads or changes it. There is no path
//! without. Reading public areas, capabilities and clocks, and starting and flushing, run
//! without a session.
//!
//! | object | under | authorization | counts wrong attempts (lockout) |
//! |---|---|---|---|
//! | storage root | owner hierarchy | empty | no |
//! | endorsement key | endorsement hierarchy | PolicySecret(endorsement) | yes |
//! | keys of [`TpmBackend`] | storage root | empty: whoever has blob and TPM can use it | no |
//! | sealed secrets | storage root | empty, an auth value, or PolicyPCR | only with an auth value |
//! | counter of the audit log | owner hierarchy, NV | an auth value that only its maker knows | no |
//! | authentication key for provisioning | storage root, persistent | as its maker decided | as its maker decided |

mod attestation;
mod backend;
mod blob;
mod device;
pub mod doctor;
mod error;
mod hmac_keys;
mod kdf;
mod nv;
mod objects;
mod preloaded;
mod provisioning;
mod public;
mod report;
mod seal;
mod session;
mod tcti;
mod wire;

pub use attestation::{AttestationKey, Quote};
pub use backend::{TpmBackend, kept_keys};
pub use device::{RootAlgorithm, Tpm, TpmOptions};
pub use error::{Authorized, ResponseCode, TpmError};
pub use nv::NvCounter;
pub use preloaded::TpmPreloaded;
pub use provisioning::ProvisioningKeys;
pub use report::TpmReport;
pub use seal::{PcrSelection, SealTo};
pub use session::AuthValue;
pub use tcti::{Tcti, TctiError};
