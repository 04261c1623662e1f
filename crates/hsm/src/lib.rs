//! Keys and what is done with them, behind one seam: [`KeyBackend`].
//!
//! A backend makes, keeps and uses keys under ids; what it cannot do it says with a typed answer
//! ([`KeyError::NotSupported`]), so that whoever holds several backends can ask the next. There is one so far:
//! [`software::SoftwareBackend`], which keeps its keys in files that are encrypted under a store key.
//!
//! This crate touches one state folder and the files of preloaded keys. It never touches the network, starts no process
//! and no thread, knows nothing of callers and grants, and hands out no secret except a derived key and keys for their
//! first storage. Calls block: for a disk at worst for a file's `fsync`, for RSA key generation for seconds.
//!
//! `unsafe` is in one module, `aws_lc`: the two operations that the existing APIs need and the safe binding to AWS-LC does
//! not offer.

mod aws_lc;
pub mod backend;
mod gcm;
mod material;
mod secret;
pub mod software;

pub use backend::{
    InputError, KeyBackend, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter, PublicValue, RsaPadding,
    SymmetricKey, Usage,
};
pub use secret::SecretBytes;
