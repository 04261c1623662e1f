//! Processes of a daemon's own that hold the rights which the daemon itself gives up.
//!
//! A daemon starts a [`supervisor`] before it reads anything. The supervisor starts the
//! children, each from the daemon's own executable, starts one anew that ended, and ends
//! one on the daemon's word. The daemon asks a child through a [`Link`]: one message a
//! question, one an answer, over a socket that keeps their bounds ([`channel`]). The
//! child answers by [`serve()`]. Questions and answers are types of whoever uses this.
//!
//! Touches: the sockets between these processes, and the executable that it runs in.
//! Never: a file, a network, another process than the children that it started.
#![forbid(unsafe_code)]

pub mod channel;
mod connection;
mod link;
mod serve;
pub mod supervisor;

pub use link::{AskError, Children, Link, Trouble};
pub use serve::serve;
