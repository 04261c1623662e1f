//! The identities daemon. See the library for what it may touch.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgekeep_daemon::program::run::<edgekeep_identityd::Identityd>()
}
