//! A whole device for tests: the real daemons as processes, a simulated cloud in this
//! process, modules that make the calls that a test tells them to.
//!
//! Everything lies in one temporary folder with a short path. A [`Device`] ends all that
//! it started when it is dropped, and only that; if the test panics, it prints the
//! daemons' logs first. What a test kit cannot go on without is a panic that names the
//! remedy.
#![forbid(unsafe_code)]

mod builder;
mod caller;
mod compatible;
mod device;
mod engine;
mod engine_proxy;
pub mod http;
mod private_engine;
mod processes;
mod programs;
mod registry;
mod wait;

pub use builder::{Builder, DEVICE_ID};
pub use caller::Caller;
pub use compatible::{Behaviour, Call, Compatible};
pub use device::{Device, add_variable, base64, module_spec};
pub use engine::{ENGINE_VARIABLE, Engine, Image};
pub use engine_proxy::{EngineFault, EngineProxy};
pub use private_engine::PrivateEngine;
pub use programs::{program, sha256_of};
pub use registry::Registry;
pub use wait::{PATIENCE, wait_for};

/// The API version that tests ask for where it does not matter: the newest.
pub const VERSION: &str = "api-version=2022-08-03";
