//! Secret bytes that are wiped and never printed, and pages that keep them from others.

use zeroize::Zeroizing;

mod locked;

use self::locked::Locked;
pub use self::locked::{SecretMemory, secret_memory};

/// Bytes of a key or of something as secret. Wiped when dropped; never printed, so there
/// is no `Debug`.
pub struct SecretBytes(Bytes);

enum Bytes {
    Passing(Zeroizing<Vec<u8>>),
    Kept(Locked),
}

impl SecretBytes {
    /// The bytes, for use in a cryptographic operation.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        match &self.0 {
            Bytes::Passing(bytes) => bytes,
            Bytes::Kept(bytes) => bytes.expose(),
        }
    }

    /// The same secret, to stay: in pages that are kept from others (see
    /// [`secret_memory`]), if there is room.
    #[must_use]
    pub fn kept(self) -> Self {
        let Bytes::Passing(bytes) = &self.0 else { return self };
        match Locked::copy_of(bytes) {
            Some(kept) => Self(Bytes::Kept(kept)),
            None => self,
        }
    }

    /// The bytes, moved out, where they have to leave this crate's care. Whoever takes
    /// them wipes them.
    #[must_use]
    pub fn into_exposed(self) -> Vec<u8> {
        match self.0 {
            Bytes::Passing(mut bytes) => std::mem::take(&mut bytes),
            Bytes::Kept(bytes) => bytes.expose().to_vec(),
        }
    }
}

impl Clone for SecretBytes {
    fn clone(&self) -> Self {
        let copy = Self::from(self.expose());
        match self.0 {
            Bytes::Passing(_) => copy,
            Bytes::Kept(_) => copy.kept(),
        }
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Bytes::Passing(Zeroizing::new(bytes)))
    }
}

impl From<&[u8]> for SecretBytes {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}
