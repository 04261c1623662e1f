//! Keys in a TPM, as backends over the layer of `edgekeep_tpm`: [`TpmBackend`] keeps
//! wrapped keys under ids in files, [`TpmPreloaded`] uses keys which somebody else put
//! there.

mod backend;
pub mod doctor;
mod hmac_keys;
mod preloaded;

use edgekeep_tpm::TpmError;

pub use self::backend::{TpmBackend, kept_keys};
pub use self::preloaded::TpmPreloaded;
use crate::backend::KeyError;

impl From<TpmError> for KeyError {
    fn from(error: TpmError) -> Self {
        Self::backend("TPM", error)
    }
}
