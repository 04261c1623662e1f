//! Swap of a certificate together with its key.
//!
//! A certificate's key is in keyd, under the certificate's own name. Its successor is
//! under a second name until the swap. The rename of the certificate's file is the swap;
//! after that the successor takes the place of the key, which is one step in keyd. A
//! power cut between the two leaves the key under the second name, so that each
//! certificate in use has its key under one of the two. [`pair`] tells which.

/// Place of the key that belongs to a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// Under the certificate's name. What is under the second name is left over.
    Whole,
    /// Under the second name: a swap was interrupted, and the key is to be moved.
    TakeOver,
    /// Nowhere. The certificate is of no use and is issued anew.
    KeyLost,
    /// There is no certificate.
    NoCertificate,
}

/// Decides by the public keys of the certificate, of the key under its name, and of the
/// key under the second name.
#[must_use]
pub fn pair<K: PartialEq>(certificate: Option<&K>, key: Option<&K>, next: Option<&K>) -> Pair {
    match certificate {
        None => Pair::NoCertificate,
        Some(of) if Some(of) == key => Pair::Whole,
        Some(of) if Some(of) == next => Pair::TakeOver,
        Some(_) => Pair::KeyLost,
    }
}
