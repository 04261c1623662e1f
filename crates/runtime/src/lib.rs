//! Module runtimes for moduled, and the kernel's evidence about who calls it.
//!
//! This crate talks to the container engine's Unix socket, reads `/proc` and image
//! layers, and starts and stops host processes below one state folder. It never opens an
//! IP socket, never touches a key, and decides nothing: whether a caller is let in is
//! `edgekeep_core::attestation::verdict`, over the values that are gathered here.
//!
//! - [`evidence`]: what the kernel says about a peer; [`gauge`]: the same, from a process
//!   that has the rights to look.
//! - [`engine`]: the container engine's API; [`facts`]: what its event stream says runs.
//! - [`process`]: host modules, started from exactly the bytes that were hashed.
//! - [`status`] and [`logs`]: what both runtimes answer alike.
#![forbid(unsafe_code)]

pub mod engine;
pub mod evidence;
pub mod facts;
pub mod gauge;
pub mod logs;
pub mod process;
pub mod status;
