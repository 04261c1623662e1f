//! The server: routes with API versions, request bodies with bounds and deadlines, error
//! bodies, connection limits.
//!
//! Semantics are those of wire facts 1.3 to 1.6, with three differences that clients
//! cannot trip over: a body may have 1 MiB, a connection over the limit is answered with
//! 429 before it is closed, and a connection on which another process sent bytes is
//! answered with the refusal that the service chose.

mod acceptor;
mod connection;
mod door;
mod intake;
mod line;
mod measure;
mod request;
mod response;
mod router;
mod waiting;

pub use connection::{Limits, serve};
pub use measure::FAMILIES;
pub use request::Request;
pub use response::{HttpError, Response, ResponseBody};
pub use router::{FailedCall, Router};
