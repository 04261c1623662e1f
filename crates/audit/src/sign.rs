//! The signer of checkpoints, and the counter in hardware that counts them.

use std::io;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

/// Signs checkpoints with an Ed25519 key.
pub trait CheckpointSigner: Send + Sync {
    /// The public half.
    fn public_key(&self) -> [u8; 32];

    /// The signature over a note's text.
    ///
    /// # Errors
    /// If what holds the key does not answer.
    fn sign(&self, text: &[u8]) -> Result<[u8; 64], SignError>;
}

/// The error of signing a checkpoint.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign a checkpoint of the audit log")]
pub struct SignError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A counter in hardware that only ever goes up. Its value is in the signed checkpoints,
/// so a log that was put back to an earlier state, or lost its newest part, is behind it.
pub trait MonotonicCounter: Send {
    /// The value; `None` if there is no counter, because it was never made or was
    /// removed.
    ///
    /// # Errors
    /// If the hardware does not answer.
    fn read(&mut self) -> io::Result<Option<u64>>;

    /// Makes the counter and gives its first value. One that was removed has to begin
    /// above what it had.
    ///
    /// # Errors
    /// If the hardware does not answer, or has no place for it.
    fn make(&mut self) -> io::Result<u64>;

    /// Adds one and gives the new value. Asked for at most once in
    /// [`crate::Options::count_after`], since each time wears the hardware.
    ///
    /// # Errors
    /// If the hardware does not answer. Whether it was done is then found out by reading.
    fn increment(&mut self) -> io::Result<u64>;
}

/// A key in memory.
pub struct SoftwareSigner(Ed25519KeyPair);

impl SoftwareSigner {
    /// The key of a seed, as RFC 8032 defines it.
    ///
    /// # Errors
    /// If the cryptographic library does not take it, which it has no reason to.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, SignError> {
        Ed25519KeyPair::from_seed_unchecked(seed)
            .map(Self)
            .map_err(|error| SignError(Box::new(error)))
    }
}

impl CheckpointSigner for SoftwareSigner {
    fn public_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        key
    }

    fn sign(&self, text: &[u8]) -> Result<[u8; 64], SignError> {
        self.0.sign(text).as_ref().try_into().map_err(|error| SignError(Box::new(error)))
    }
}
