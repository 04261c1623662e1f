//! The one configuration file, `config.toml`, and the settings files that it becomes.
//!
//! [`translate`] is a pure function from text and [`Environment`] to the settings of the
//! three daemons; [`apply`] alone touches the disk: it reads `config.toml` and the files
//! named in it, and writes the settings files and the key import folder under one root;
//! [`replace_config`] and [`replace_keyd_settings`] change what a command was told to
//! change. Nothing here opens a socket, starts a process or talks to a daemon.
//!
//! The file is read strictly: a key that is unknown, misplaced, of the wrong type or of
//! no effect is a [`Diagnostic`] with its line and column, and all of them are reported
//! at once. A diagnostic never shows a secret.
#![forbid(unsafe_code)]

mod agent;
mod apply;
mod check;
mod credentials;
mod device_certificate;
mod diagnostic;
mod document;
mod edge_ca;
mod est;
mod explain;
mod grants;
mod hardware;
mod history;
mod host;
mod host_users;
mod image_policy;
mod json_schema;
mod notary;
mod open_secrets;
mod operational_certificate;
mod places;
mod preloaded_certs;
mod provisioning;
mod schema;
mod seal;
mod secret;
mod similar;
mod translate;
mod value;
mod words;

pub use apply::{
    Applied, ApplyError, ApplyMode, Change, Ownership, apply, environment, folder_for, mode_of,
    read_config, write_atomic,
};
pub use credentials::{Unjudged, referenced_credentials};
pub use diagnostic::{Code, Diagnostic, Severity, render};
pub use explain::{Explanation, explain, top_level};
pub use history::previous_config;
pub use json_schema::json_schema;
pub use places::{Expected, Seen, referenced_places};
pub use seal::{SealError, replace_config, replace_keyd_settings, with_seal};
pub use secret::SecretBytes;
pub use translate::{Environment, Translated, Users, referenced_files, translate};
