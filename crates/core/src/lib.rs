//! The decisions of edgekeep, and the values they are made over.
//!
//! This crate touches nothing: no file, no socket, no clock, no thread, no `unsafe`. Time
//! comes in as a value. What is decided here (who a caller is, what a key may be used
//! for, what to do next about a registration, a certificate or a module) is decided for
//! all three daemons, and is tested without any of them.
#![forbid(unsafe_code)]

pub mod access;
pub mod access_list;
pub mod assurance;
pub mod attestation;
pub mod authority;
pub mod backoff;
pub mod clock;
pub mod container;
pub mod create_options;
pub mod credentials;
pub mod deployment;
pub mod digest;
pub mod ec_point;
pub mod edge_ca;
pub mod fair_queue;
pub mod flood;
pub mod foreign_text;
pub mod grants;
pub mod hardware;
pub mod health;
pub mod host;
pub mod id;
pub mod image_collection;
pub mod image_policy;
pub mod integrity;
pub mod issuance;
pub mod issuers;
pub mod key_use;
pub mod layout;
pub mod migration;
pub mod module_list;
pub mod module_refresh;
pub mod names;
pub mod on_token;
pub mod provisioning;
pub mod reconcile;
pub mod redaction;
pub mod refusals;
pub mod renewal;
pub mod replacement;
pub mod settings;
pub mod watchdog;
