//! Report of a failed command: the error, its causes and the remedy.

use std::path::Path;
use std::process::ExitCode;

use edgekeep_api::client::ClientError;
use http::StatusCode;

use crate::output;

/// Prints the error, its causes and what to do to standard error, and gives the exit code
/// of a failure. A reader that went away is none.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let reader_gone = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe);
    if reader_gone {
        return ExitCode::SUCCESS;
    }
    let mut text = format!("error: {}\n", lines(&error.to_string()));
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  caused by: {}\n", lines(&cause.to_string())));
    }
    let of_daemon = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>());
    if let Some(remedy) = of_daemon.and_then(remedy) {
        text.push_str(&format!("  remedy: {remedy}\n"));
    }
    output::print_error(&text);
    ExitCode::FAILURE
}

/// Text of a daemon, which may have lines of its own, without what steers the terminal.
fn lines(text: &str) -> String {
    text.lines().map(output::printable).collect::<Vec<_>>().join("\n  ")
}

/// Returns the remedy for a call that failed, where the daemon itself does not tell it.
pub(crate) fn remedy(error: &ClientError) -> Option<String> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    Some(match error {
        ClientError::Connect { path, source } => {
            let name = daemon_of(path);
            match source.kind() {
                NotFound => format!(
                    "start it (systemctl start {name}); for a device in another folder name that with --root, for \
                     another socket with --host"
                ),
                ConnectionRefused => {
                    format!(
                        "the daemon has ended: start it (systemctl start {name}); why it ended: journalctl -u {name}"
                    )
                }
                PermissionDenied => "run as root (sudo), or as a member of the socket's group".to_owned(),
                _ => format!("see that {name} runs and that this is its socket"),
            }
        }
        ClientError::Timeout { path, .. } => {
            let name = daemon_of(path);
            format!(
                "it may wait for another daemon or for the container engine: edgekeep status; journalctl -u {name}; \
                 if it hangs: systemctl restart {name}"
            )
        }
        ClientError::Status { status: StatusCode::FORBIDDEN, .. } => {
            "this user may not ask that: run as root (sudo), or as the user that the daemon runs as".to_owned()
        }
        ClientError::Status { status: StatusCode::TOO_MANY_REQUESTS, .. } => "wait a moment, and try again".to_owned(),
        ClientError::Transport { path, .. } => {
            let name = daemon_of(path);
            format!("the daemon ended or was restarted while it answered: try again; journalctl -u {name}")
        }
        ClientError::Answer { .. } => {
            "something else than edgekeep, or another version of it, listens at this socket".to_owned()
        }
        ClientError::Status { status: StatusCode::BAD_REQUEST, message, .. }
            if message.starts_with("invalid api-version") =>
        {
            "another service, or another version of it, answers at this socket: see --host and --root".to_owned()
        }
        // The daemon's own words say it.
        _ => return None,
    })
}

/// Names the cause of a 404 at a route that compatible services do not have.
pub(crate) fn of_our_own_route<T>(answer: Result<T, ClientError>) -> anyhow::Result<T> {
    answer.map_err(|error| match &error {
        ClientError::Status { status: StatusCode::NOT_FOUND, code: None, .. } => anyhow::Error::new(error).context(
            "a compatible service, or an older edgekeep, answers at this socket: it does not know what this command asks for",
        ),
        _ => error.into(),
    })
}

/// The unit of the daemon behind a socket.
pub(crate) fn daemon_of(socket: &Path) -> &'static str {
    match socket.file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        "keyd.sock" | "tpmd.sock" | "keyd.metrics.sock" => "edgekeep-keyd",
        "identityd.sock" | "certd.sock" | "identityd.metrics.sock" => "edgekeep-identityd",
        _ => "edgekeep-moduled",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_route_that_a_compatible_service_does_not_have_is_told_from_what_a_daemon_does_not_find() {
        let answer = |status, code| {
            Err::<(), _>(ClientError::Status { status, message: "not found".to_owned(), code })
        };
        let said = |answer| of_our_own_route(answer).unwrap_err().to_string();
        assert!(said(answer(StatusCode::NOT_FOUND, None)).contains("a compatible service"));
        assert!(
            !said(answer(StatusCode::NOT_FOUND, Some(edgekeep_api::ErrorCode::Absent)))
                .contains("compatible")
        );
        assert!(!said(answer(StatusCode::FORBIDDEN, None)).contains("compatible"));
    }

    #[test]
    fn every_failure_of_a_call_has_a_remedy_that_names_the_daemon_or_the_user() {
        let path = || std::path::PathBuf::from("/run/edgekeep/keyd.metrics.sock");
        let connect =
            |kind: std::io::ErrorKind| ClientError::Connect { path: path(), source: kind.into() };
        let status = |status| ClientError::Status { status, message: "no".to_owned(), code: None };
        for (error, part) in [
            (connect(std::io::ErrorKind::NotFound), "systemctl start edgekeep-keyd"),
            (connect(std::io::ErrorKind::ConnectionRefused), "journalctl -u edgekeep-keyd"),
            (connect(std::io::ErrorKind::PermissionDenied), "root"),
            (connect(std::io::ErrorKind::OutOfMemory), "edgekeep-keyd"),
            (ClientError::Timeout { path: path(), limit: Duration::from_secs(1) }, "edgekeep-keyd"),
            (status(StatusCode::FORBIDDEN), "root"),
            (status(StatusCode::TOO_MANY_REQUESTS), "again"),
            (
                ClientError::Status {
                    status: StatusCode::BAD_REQUEST,
                    message: "invalid api-version \"2022-08-03\"".to_owned(),
                    code: None,
                },
                "another service",
            ),
            (ClientError::Answer { path: path(), what: "x".to_owned() }, "another version"),
        ] {
            assert!(remedy(&error).is_some_and(|text| text.contains(part)), "{error:?}");
        }
        assert_eq!(remedy(&status(StatusCode::CONFLICT)), None, "the daemon's message says it");
        assert_eq!(daemon_of(Path::new("/run/iotedge/mgmt.sock")), "edgekeep-moduled");
    }
}
