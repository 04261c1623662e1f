//! Identities, keys and certificates of modules, which the other daemons hold.

pub(crate) mod bundle;
pub(crate) mod edge_ca;
pub(crate) mod identities;
pub(crate) mod keys;
pub(crate) mod layout;
pub(crate) mod remote_key;
