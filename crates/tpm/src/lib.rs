//! A TPM 2.0 by its own commands: keys that never leave it in clear, sealed secrets,
//! quotes, a counter, and the device's endorsement.
//!
//! Everything from the connection up is written here, without a C library: small enough
//! to be read, and without a search for plug-ins and configuration files at run time. The
//! crate knows no keys under ids and keeps no files; [`Record`] is the form in which a
//! caller may keep what the TPM wrapped.
//!
//! [`Tpm::open`] connects to a TPM named by a [`Tcti`]. Keys are made by
//! [`Tpm::create_key`], found by [`Tpm::persistent_key`] or [`Key::wrapped`], and used by
//! [`Tpm::hmac_sha256`], [`Tpm::sign_ecdsa_p256`] and [`Tpm::rsa_private`]. Secrets are
//! [sealed](Tpm::seal) and [unsealed](Tpm::unseal). Sessions, loading and flushing are
//! inside.
//!
//! ```no_run
//! use std::borrow::Cow;
//!
//! use edgekeep_tpm::{Key, NewKey, Record, RecordKind, Tpm, TpmOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tpm = Tpm::open(TpmOptions::new("device:/dev/tpmrm0".parse()?))?;
//! let (blob, root_name) = tpm.create_key(NewKey::SignP256)?;
//! let (kind, id) = (RecordKind::Pair, "door".to_owned());
//! let record = Record { kind, usage: 0, pcrs: 0, id, root_name, blob };
//! let key = Key::wrapped(Cow::Borrowed(&record))?;
//! let signature = tpm.sign_ecdsa_p256(&key, &[7; 32])?;
//! # drop(signature);
//! # Ok(())
//! # }
//! ```
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
//! | keys of [`Tpm::create_key`] | storage root | empty: whoever has blob and TPM can use it | no |
//! | sealed secrets | storage root | empty, an auth value, or PolicyPCR | only with an auth value |
//! | counter of the audit log | owner hierarchy, NV | an auth value that only its maker knows | no |
//! | register of measurements | owner hierarchy, NV | an auth value that only its maker knows | no |
//! | authentication key for provisioning | storage root, persistent | as its maker decided | as its maker decided |
//!
//! Touches the TPM's device node or the socket of a simulated TPM, and nothing else.
//! Calls block until the TPM answers. A [`Tpm`] is for one thread at a time.
#![forbid(unsafe_code)]

mod attestation;
mod device;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod kdf;
mod key;
mod nv;
mod nv_register;
mod objects;
mod pcr;
mod provisioning;
mod public;
mod record;
mod report;
mod seal;
mod session;
mod tcti;
mod wire;

pub use attestation::{AttestationKey, Quote};
pub use device::{Blob, RootAlgorithm, Tpm, TpmOptions};
pub use error::{Authorized, ResponseCode, TpmError};
pub use key::{Key, KeyType, NewKey};
pub use nv::NvCounter;
pub use nv_register::{NvRegister, NvRegisterState};
pub use provisioning::ProvisioningKeys;
pub use public::{Algorithm, Public};
pub use record::{Record, RecordKind, Unreadable};
pub use report::TpmReport;
pub use seal::{PcrSelection, SealTo};
pub use session::AuthValue;
pub use tcti::{Tcti, TctiError};
