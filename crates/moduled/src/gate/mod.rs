//! The gate: evidence about callers, the verdict on each, and the trail of refusals.

pub(crate) mod attest;
mod judge;
pub(crate) mod trail;

pub(crate) use judge::{Called, Gate, Refused};
