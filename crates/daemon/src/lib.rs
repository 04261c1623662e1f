//! Building blocks of every daemon of edgekeep: HTTP/1.1 over Unix sockets with the
//! peer's evidence, atomic state files, the audit trail, systemd's start-up protocol,
//! confinement, logging, metrics, known problems, and the socket on which operators get
//! at these.
//!
//! Touches: the sockets and the state folder it is given, the environment of systemd.
//! Knows no route, no key and no container: what a daemon serves is in that daemon's
//! crate.
#![deny(unsafe_code)]

pub mod activation;
pub mod arguments;
pub mod audit;
pub mod board;
pub mod clock;
pub mod confinement;
pub mod lifecycle;
pub mod listen;
pub mod logging;
pub mod measured;
pub mod memory;
pub mod metrics;
pub mod operations;
pub mod peer;
pub mod program;
pub mod server;
pub mod settings;
pub mod store;
pub mod systemd;
