//! The management and the workload API, as routes. Nothing below this room knows of HTTP.

pub(crate) mod log_query;
pub(crate) mod management;
pub(crate) mod refuse;
pub(crate) mod workload;
