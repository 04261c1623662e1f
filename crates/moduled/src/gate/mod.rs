//! The gate: evidence about callers, the verdict on each, and the trail of refusals.

pub(crate) mod attest;
pub(crate) mod trail;
