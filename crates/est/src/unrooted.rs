//! Check of certificates whose roots are not known here: those that a provisioning
//! service issues with a registration, for use at a hub.

use edgekeep_core::credentials::Certificate;
use time::OffsetDateTime;

use crate::chain::{Pool, checked};
use crate::error::AnswerError;

/// Returns the certificate of `key` (a SubjectPublicKeyInfo, DER) out of `chain` and
/// those above it, up to the last of `chain`.
///
/// The last one is believed as it is: who issues is known to the hub alone, and the
/// channel over which the chain came is all that vouches for it. So this finds what could
/// never be used: a certificate of another key, one that is over, or one that the others
/// did not issue.
///
/// # Errors
/// The first reason for not taking the chain.
pub fn checked_without_roots(
    key: &[u8],
    chain: &[Certificate],
    now: OffsetDateTime,
) -> Result<Vec<Certificate>, AnswerError> {
    let roots = chain.get(chain.len().saturating_sub(1)..).unwrap_or_default();
    let sent = chain.get(..chain.len().saturating_sub(1)).unwrap_or_default();
    checked(key, chain, Pool { sent, roots, named: "the last certificate that came with it" }, now)
}
