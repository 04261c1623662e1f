//! The floor below every other crate: files that are read within bounds, and files that
//! are replaced whole, secrets, locks, and errors with their causes.
//!
//! Touches the files that callers name, and nothing else. Has no runtime and starts no
//! thread, so that keyd, the command line and the key store may all stand on it.
//!
//! `unsafe` is in one module: `secret::locked`, the pages that secrets are kept in.

pub mod durable;
pub mod error;
pub mod file;
pub mod lock;
pub mod secret;
