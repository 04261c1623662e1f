//! moduled: holds the containers and host modules, and nothing else that is dangerous.
//!
//! Serves the management and the workload API. Talks to the container engine's socket, to
//! keyd, identityd and the certificates API through their public sockets. Has its callers
//! looked at, and host modules started, by children of its own ([`begin`]). Touches its
//! own state folder; everything else it gives up ([`Prepared`]). Never opens an IP socket
//! and never holds a private key that stays: module keys are made, given to the module
//! and forgotten.
#![forbid(unsafe_code)]

mod children;
mod confine;
#[cfg(test)]
mod fakes;
mod gate;
mod http;
mod identity;
mod keepers;
mod modules;
mod prepared;
mod report;
mod run;

pub use children::{Begun, ConfinedGauge, ConfinedLauncher, become_child, begin};
pub use keepers::agent::Ended;
pub use prepared::Prepared;
pub use run::{AtEnd, run};
