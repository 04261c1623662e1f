//! moduled: holds the containers and host modules, and nothing else that is dangerous.
//!
//! Serves the management and the workload API. Talks to the container engine's socket, to
//! keyd, identityd and the certificates API through their public sockets, has host
//! modules started by a child of its own ([`begin`]), and reads `/proc` about its
//! callers. Touches its own state folder and the socket folders. Never opens an IP socket
//! and never holds a private key that stays: module keys are made, given to the module
//! and forgotten.
#![forbid(unsafe_code)]

mod children;
#[cfg(test)]
mod fakes;
mod gate;
mod http;
mod identity;
mod keepers;
mod modules;
mod report;
mod run;

pub use children::{Begun, become_child, begin};
pub use keepers::agent::Ended;
pub use run::{AtEnd, run};
