//! How a failed command says why.

use std::process::ExitCode;

use crate::output;

/// Prints the error and its causes to standard error, and gives the exit code of a failure. A reader that went away is none.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let reader_gone = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe);
    if reader_gone {
        return ExitCode::SUCCESS;
    }
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  caused by: {cause}\n"));
    }
    output::print_error(&text);
    ExitCode::FAILURE
}
