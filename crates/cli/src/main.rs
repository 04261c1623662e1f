//! `edgekeep`: the operator's and developer's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgekeep_cli::run(std::env::args_os())
}
