//! Reports of the device: its health, metrics, resources, and the support bundle.

pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod resources;
pub(crate) mod support_bundle;
pub(crate) mod systeminfo;
