//! Uses of keys: who may make them, and how many of them are written down.
//!
//! The words are those of the audit log. [`Policy`] decides on each use; [`Throttle`] and
//! [`Shares`] decide how much of a log of bounded size one uid takes, by its refusals and
//! by its uses.

mod handle;
mod policy;
mod shares;
mod throttle;
mod used;
mod words;

pub use self::handle::{Binding, Named, Target};
pub use self::policy::Policy;
pub use self::shares::{Counted, Shares, Told};
pub use self::throttle::Throttle;
pub use self::used::{Key, Outcome, Statement, Used, Who};
pub use self::words::{Operation, Purpose, Reason};
