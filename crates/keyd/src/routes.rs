//! The APIs that keyd serves: that of keys, and that of the TPM.

mod keys;
pub(crate) mod tpm;

pub use self::keys::router;
