//! The loops: each looks from time to time, asks `core` what follows, and does it.

pub(crate) mod agent;
pub(crate) mod edge_ca;
pub(crate) mod images;
pub(crate) mod new_ca;
pub(crate) mod sockets;
pub(crate) mod upkeep;
