//! The reference agent: applies a standard deployment manifest through the management
//! API, so that a device works without a vendor's agent image and without a cloud.
//!
//! Touches: the management socket, the manifest file (reads) and its own state folder. No
//! network, no engine, no keys. Decisions are in `edgekeep-core` (`deployment`,
//! `reconcile`); here calls are made and files written.
//!
//! Differences from the field's agent, on purpose:
//! - It never replaces or removes itself: which agent runs is the device's configuration.
//! - When it ends, modules keep running.
//! - While a manifest is bad, the last good one goes on being supervised.
//! - A change of the device (host name, hub, parent) makes containers anew, so that
//!   modules see it.
//! - A module whose identity was lost gets a new one, and one whose identity was made
//!   anew is made anew itself: with its old generation it would be refused. While
//!   identities cannot be listed, nothing is done about them.
//! - Environment values and passwords are masked in what it reports.
#![forbid(unsafe_code)]

pub mod agent;
pub mod manifest;
pub mod reported;
pub mod settings;
pub mod spec;
