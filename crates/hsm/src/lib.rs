//! Keys and what is done with them, behind one seam: [`KeyBackend`].
//!
//! A backend makes, keeps and uses keys under ids; what it cannot do it says with a typed
//! answer ([`KeyError::NotSupported`]), so that whoever holds several backends can ask
//! the next:
//!
//! - [`software::SoftwareBackend`] keeps its keys in files that are encrypted under a
//!   store key;
//! - [`pkcs11::Pkcs11Backend`] keeps them on a token, through the library of the token's
//!   maker;
//! - [`tpm::TpmBackend`] keeps them in files that only the TPM of this device can open;
//! - [`ordered::Keyring`] is several of these in order.
//!
//! This crate touches one state folder, the files of preloaded keys and of PINs, TPM
//! devices, and the PKCS#11 libraries that the configuration names, which run in this
//! process with all of its rights. The crate itself never touches the network but for a
//! simulated TPM, starts no process and no thread, knows nothing of callers and grants,
//! and hands out no secret except a derived key, keys for their first storage, and
//! backups. Calls block: for a disk at worst for a file's `fsync`, for a token or RSA key
//! generation for seconds.
//!
//! `unsafe` is in one module: `aws_lc`, the two operations that the existing APIs need
//! and the safe binding to AWS-LC does not offer.

mod aws_lc;
pub mod backend;
pub mod configured;
pub mod envelope;
mod gcm;
pub mod key_file;
mod material;
pub mod ordered;
pub mod pkcs11;
mod secret_file;
pub mod software;
pub mod tpm;
pub mod uri;

pub use backend::{
    InputError, KeyBackend, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter,
    PublicValue, RsaPadding, SymmetricKey, Usage,
};
pub use edgekeep_base::secret::{SecretBytes, SecretMemory, secret_memory};
