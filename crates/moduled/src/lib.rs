//! moduled: holds the containers and host modules, and nothing else that is dangerous.
//!
//! Serves the management and the workload API. Talks to the container engine's socket, to
//! keyd, identityd and the certificates API through their public sockets, starts host
//! modules, and reads `/proc` about its callers. Touches its own state folder and the
//! socket folders. Never opens an IP socket and never holds a private key that stays:
//! module keys are made, given to the module and forgotten.
#![forbid(unsafe_code)]

pub mod agent;
pub mod approvals;
pub mod attest;
mod bundle;
pub mod container;
mod containers;
pub mod edge_ca;
pub mod failure;
mod health;
pub mod host_modules;
pub mod host_services;
mod host_updates;
pub mod identities;
pub mod image;
pub mod images;
pub mod keys;
pub mod log_query;
pub mod management;
pub mod metrics;
pub mod modules;
pub mod own_users;
pub mod refusals;
pub mod registrations;
mod remote_key;
pub mod replacements;
pub mod resources;
pub mod restarts;
pub mod run;
pub mod service;
pub mod sockets;
pub mod spec;
pub mod support_bundle;
pub mod systeminfo;
pub mod upkeep;
pub mod workload;
