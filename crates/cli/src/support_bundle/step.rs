//! A step: a command with a limit of its time and of its output.

use std::process::Stdio;
use std::time::Duration;

use edgekeep_core::layout::ROOT_VARIABLE;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use super::since::Moment;
use crate::arguments::Context;

/// Longest time of a step. A verb gives a silent daemon up before.
pub(super) const LIMIT: Duration = Duration::from_secs(9);
/// Most of a step's output that is kept: its end.
const OUTPUT: usize = 4 << 20;
/// The same for its errors.
const ERRORS: usize = 64 << 10;
/// Most lines of a journal.
const LINES: &str = "50000";

/// A command, and the part of the bundle that its output becomes.
pub(super) struct Step {
    pub(super) name: String,
    command: Result<Command, String>,
    /// True if the command's errors are not its own, but what the part is of.
    takes_errors: bool,
}

/// A part, as far as it could be made.
pub(super) struct Made {
    /// The part.
    pub(super) text: Vec<u8>,
    /// The reason why it is not whole, if it is not.
    pub(super) reason: Option<String>,
}

impl Made {
    /// A whole part.
    pub(super) fn whole(text: impl Into<Vec<u8>>) -> Self {
        Self { text: text.into(), reason: None }
    }

    /// A part that there is nothing of.
    pub(super) fn nothing(reason: impl Into<String>) -> Self {
        Self { text: Vec::new(), reason: Some(reason.into()) }
    }
}

impl Step {
    /// A verb of this program, as another process: one that hangs is ended.
    pub(super) fn of_edgekeep(context: &Context, name: &str, words: &[&str]) -> Self {
        let command = match std::env::current_exe() {
            Ok(program) => {
                let mut command = Command::new(program);
                command.args(words).env(ROOT_VARIABLE, context.root.path()).env("NO_COLOR", "1");
                command.arg("--host").arg(format!("unix://{}", context.management.display()));
                Ok(command)
            }
            Err(error) => Err(format!("this program does not find itself: {error}")),
        };
        Self { name: name.to_owned(), command, takes_errors: false }
    }

    /// A module's log. Lines of its standard error come behind those of its output, as
    /// `edgekeep logs` keeps them apart.
    pub(super) fn module_log(context: &Context, name: &str, words: &[&str]) -> Self {
        Self { takes_errors: true, ..Self::of_edgekeep(context, name, words) }
    }

    /// A unit's journal.
    pub(super) fn journal(
        context: &Context,
        name: &str,
        unit: &str,
        since: Moment,
        until: Option<Moment>,
        now: OffsetDateTime,
    ) -> Self {
        let name = name.to_owned();
        if context.root.path() != std::path::Path::new("/") {
            let why = "the journal is the machine's, and this device's root folder is another";
            return Self { name, command: Err(why.to_owned()), takes_errors: false };
        }
        let mut command = Command::new("journalctl");
        command.args(["--no-pager", "--quiet", "--utc", "-o", "short-iso-precise", "-n", LINES]);
        command.args(["-u", unit, "--since", &format!("@{}", since.seconds(now))]);
        if let Some(until) = until {
            command.args(["--until", &format!("@{}", until.seconds(now))]);
        }
        Self { name, command: Ok(command), takes_errors: false }
    }

    /// Runs it. This never fails: what is not there has a reason.
    pub(super) async fn run(self) -> Made {
        let mut command = match self.command {
            Ok(command) => command,
            Err(why) => return Made::nothing(why),
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.kill_on_drop(true).spawn() {
            Ok(child) => child,
            Err(error) => return Made::nothing(format!("the command cannot be run: {error}")),
        };
        let errors = if self.takes_errors { OUTPUT } else { ERRORS };
        let (mut text, mut said) = (End::new(OUTPUT), End::new(errors));
        let work = async {
            tokio::join!(text.read(child.stdout.take()), said.read(child.stderr.take()));
            child.wait().await
        };
        let ended = tokio::time::timeout(LIMIT, work).await;
        if self.takes_errors && matches!(&ended, Ok(Ok(status)) if status.success()) {
            text.bytes.append(&mut said.bytes);
            text.is_cut |= said.is_cut;
        }
        let mut reasons = Vec::new();
        match ended {
            Err(_) => reasons.push(format!("it took longer than {} s", LIMIT.as_secs())),
            Ok(Err(error)) => reasons.push(format!("its end is not known: {error}")),
            // 1 is a verdict where there is output, such as that of a check.
            Ok(Ok(status)) if !status.success() && text.bytes.is_empty() => {
                reasons.push(format!("the command ended with {status}"));
            }
            Ok(Ok(_)) => {}
        }
        if text.is_cut {
            reasons.push(format!("only the last {} MiB are here", OUTPUT >> 20));
        }
        let said = String::from_utf8_lossy(&said.bytes);
        if !said.trim().is_empty() && (text.bytes.is_empty() || !reasons.is_empty()) {
            reasons.push(said.trim().to_owned());
        }
        let reason = (!reasons.is_empty()).then(|| reasons.join(": "));
        Made { text: text.bytes, reason }
    }
}

/// The end of what a command says.
struct End {
    limit: usize,
    bytes: Vec<u8>,
    is_cut: bool,
}

impl End {
    fn new(limit: usize) -> Self {
        Self { limit, bytes: Vec::new(), is_cut: false }
    }

    async fn read(&mut self, from: Option<impl AsyncRead + Unpin>) {
        let Some(mut from) = from else { return };
        let mut piece = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            self.bytes.extend_from_slice(&piece[..count]);
            if self.bytes.len() > 2 * self.limit {
                self.cut();
            }
        }
        self.cut();
    }

    /// Drops what is too much of the beginning, up to the end of a line.
    fn cut(&mut self) {
        let Some(over) = self.bytes.len().checked_sub(self.limit).filter(|over| *over > 0) else {
            return;
        };
        let line = self.bytes[over..].iter().position(|byte| *byte == b'\n');
        self.bytes.drain(..over + line.map_or(0, |line| line + 1));
        self.is_cut = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_much_output_the_end_is_kept_in_whole_lines() {
        let text: Vec<u8> = (0..1000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let mut end = End::new(100);
        end.read(Some(text.as_slice())).await;
        assert!(end.is_cut && end.bytes.len() <= 100);
        let kept = String::from_utf8(end.bytes).unwrap();
        assert!(kept.starts_with("line ") && kept.ends_with("line 999\n"), "{kept}");
    }

    #[tokio::test]
    async fn a_step_that_fails_says_why_and_one_that_hangs_is_ended() {
        let step = |command: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", command]);
            Step { name: "x".to_owned(), command: Ok(shell), takes_errors: false }
        };
        let log = |command| Step { takes_errors: true, ..step(command) };
        let made = log("echo told; echo warned >&2").run().await;
        assert_eq!((&made.text[..], made.reason), (&b"told\nwarned\n"[..], None));
        let made = log("echo why >&2; exit 3").run().await;
        assert!(made.text.is_empty() && made.reason.unwrap().ends_with("why"));
        let made = step("echo why >&2; exit 3").run().await;
        assert!(made.text.is_empty());
        let reason = made.reason.unwrap();
        assert!(reason.contains("exit status: 3") && reason.ends_with("why"), "{reason}");
        let made = step("echo verdict; echo noise >&2; exit 1").run().await;
        assert_eq!((made.text.as_slice(), made.reason), (&b"verdict\n"[..], None));
        let begun = std::time::Instant::now();
        let made = step("echo first; exec sleep 100").run().await;
        assert_eq!(made.text, b"first\n", "what came before is kept");
        assert!(made.reason.unwrap().contains("longer than 9 s"));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
