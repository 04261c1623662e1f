//! The APIs that keyd serves: that of keys, and that of the TPM.

mod audit;
mod certificates;
mod integrity;
mod keys;
mod steps;
pub(crate) mod tpm;

pub use self::keys::router;
