//! The command line of a program: help, version, flags without values, operands, and a
//! refusal of all else.
//!
//! A program answers before it does anything: no file is made, no socket is opened,
//! nothing is logged.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::process::ExitCode;

/// The exit code after arguments that a program does not take.
pub const WRONG_ARGUMENTS: u8 = 2;

/// Longest quotation of an argument in a message, in characters.
const QUOTED: usize = 60;

/// A program as its help describes it.
#[derive(Debug, Clone, Copy)]
pub struct Synopsis {
    /// Name of the executable.
    pub name: &'static str,
    /// Version that `--version` prints.
    pub version: &'static str,
    /// One sentence about the program.
    pub summary: &'static str,
    /// The usage line after the program's name.
    pub usage: &'static str,
    /// Flags besides `--help` and `--version`.
    pub flags: &'static [(&'static str, &'static str)],
    /// Environment variables that the program reads.
    pub variables: &'static [(&'static str, &'static str)],
}

/// The arguments of a program that is to do its work.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Given {
    /// Flags, as the synopsis spells them.
    pub flags: BTreeSet<&'static str>,
    /// Arguments that are no flags, in order.
    pub operands: Vec<OsString>,
}

/// The outcome of reading a command line.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    /// Do the program's work.
    Run(Given),
    Help,
    Version,
    /// Refuse, with the reason.
    Wrong(String),
}

impl Synopsis {
    /// Reads the flags of this process, which takes no operands. See [`Self::given`].
    ///
    /// # Errors
    /// The exit code. There is nothing left to do.
    pub fn flags(&self) -> Result<BTreeSet<&'static str>, ExitCode> {
        self.given(0..=0).map(|given| given.flags)
    }

    /// Reads the arguments of this process, so many operands among them. Where there is
    /// nothing to do but to answer, the answer is written and the exit code returned:
    /// help and version go to the standard output, a refusal to the standard error.
    ///
    /// # Errors
    /// The exit code. There is nothing left to do.
    pub fn given(&self, operands: RangeInclusive<usize>) -> Result<Given, ExitCode> {
        let text = match self.read(std::env::args_os().skip(1), operands) {
            Request::Run(given) => return Ok(given),
            Request::Help => self.help(),
            Request::Version => format!("{} {}\n", self.name, self.version),
            Request::Wrong(reason) => return Err(self.refuse(&reason)),
        };
        let mut output = std::io::stdout();
        let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
        Err(if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Says on the standard error why the arguments are not taken. The exit code.
    #[must_use]
    pub fn refuse(&self, reason: &str) -> ExitCode {
        let text =
            format!("error: {reason}\n\n{}\n\nFor more information, try '--help'.\n", self.usage());
        // Nobody is left to tell if this fails.
        let _ = std::io::stderr().write_all(text.as_bytes());
        ExitCode::from(WRONG_ARGUMENTS)
    }

    /// The first argument that is neither a flag nor an operand decides.
    fn read(
        &self,
        arguments: impl Iterator<Item = OsString>,
        operands: RangeInclusive<usize>,
    ) -> Request {
        let mut given = Given::default();
        for argument in arguments {
            let flag = self.flags.iter().map(|(flag, _)| *flag).find(|flag| argument == *flag);
            match (argument.to_str(), flag) {
                (Some("-h" | "--help"), _) => return Request::Help,
                (Some("-V" | "--version"), _) => return Request::Version,
                (_, Some(flag)) => _ = given.flags.insert(flag),
                _ if argument.as_encoded_bytes().starts_with(b"-")
                    || given.operands.len() == *operands.end() =>
                {
                    return Request::Wrong(format!("unexpected argument {}", quoted(&argument)));
                }
                _ => given.operands.push(argument),
            }
        }
        if given.operands.len() < *operands.start() && given.flags.is_empty() {
            return Request::Wrong("too few arguments".into());
        }
        Request::Run(given)
    }

    fn usage(&self) -> String {
        format!("Usage: {} {}", self.name, self.usage)
    }

    fn help(&self) -> String {
        let common = [("-h, --help", "Print help"), ("-V, --version", "Print version")];
        let options: Vec<(String, &str)> =
            (self.flags.iter().map(|(flag, about)| (format!("    {flag}"), *about)))
                .chain(common.map(|(flag, about)| (flag.to_owned(), about)))
                .collect();
        let mut text = format!("{}\n\n{}\n\nOptions:\n", self.summary, self.usage());
        list(&mut text, &options);
        if !self.variables.is_empty() {
            text.push_str("\nEnvironment:\n");
            let variables: Vec<_> =
                self.variables.iter().map(|(name, about)| ((*name).to_owned(), *about)).collect();
            list(&mut text, &variables);
        }
        text
    }
}

fn list(text: &mut String, lines: &[(String, &str)]) {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, about) in lines {
        text.push_str(&format!("  {name:width$}  {about}\n"));
    }
}

/// An argument as a message may show it: of bounded length, and without what moves a
/// terminal's cursor.
fn quoted(argument: &OsStr) -> String {
    let text = argument.to_string_lossy();
    let mut shown: String = text.chars().take(QUOTED).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTED).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use proptest::prelude::*;

    use super::*;

    const PROGRAM: Synopsis = Synopsis {
        name: "edgekeep-x",
        version: "1.2.3",
        summary: "Does x.",
        usage: "[OPTIONS]",
        flags: &[("--stop-modules", "Stop all modules at the end")],
        variables: &[("ROOT", "Root folder")],
    };

    fn read(arguments: &[&str]) -> Request {
        PROGRAM.read(arguments.iter().map(OsString::from), 0..=0)
    }

    #[test]
    fn the_first_argument_that_is_no_flag_decides() {
        assert_eq!(read(&[]), Request::Run(Given::default()));
        let flags = Given { flags: ["--stop-modules"].into(), operands: Vec::new() };
        assert_eq!(read(&["--stop-modules", "--stop-modules"]), Request::Run(flags));
        for help in ["-h", "--help"] {
            assert_eq!(read(&["--stop-modules", help, "--nonsense"]), Request::Help);
        }
        for version in ["-V", "--version"] {
            assert_eq!(read(&[version]), Request::Version);
        }
        for wrong in [
            "--nonsense",
            "",
            "-",
            "--",
            "--help=x",
            "--stop-module",
            "--stop-modules=1",
            "-hV",
            "help",
        ] {
            let reason = format!("unexpected argument \"{wrong}\"");
            assert_eq!(read(&["--stop-modules", wrong, "--help"]), Request::Wrong(reason));
        }
    }

    #[test]
    fn operands_are_as_many_as_the_program_takes() {
        let read = |words: &[&str]| PROGRAM.read(words.iter().map(OsString::from), 1..=2);
        let run = |words: &[&str]| {
            Request::Run(Given {
                flags: BTreeSet::new(),
                operands: words.iter().map(OsString::from).collect(),
            })
        };
        for words in [&["a"][..], &["a", "b"], &["", ""]] {
            assert_eq!(read(words), run(words));
        }
        assert_eq!(read(&[]), Request::Wrong("too few arguments".into()));
        assert_eq!(read(&["a", "b", "c"]), Request::Wrong("unexpected argument \"c\"".into()));
        assert_eq!(read(&["a", "-b"]), Request::Wrong("unexpected argument \"-b\"".into()));
        assert_eq!(read(&["a", "b", "--help"]), Request::Help);
    }

    #[test]
    fn the_help_lists_all_that_the_program_takes() {
        let expected = "Does x.\n\nUsage: edgekeep-x [OPTIONS]\n\nOptions:\n      --stop-modules  Stop all modules at the \
                        end\n  -h, --help          Print help\n  -V, --version       Print version\n\nEnvironment:\n  \
                        ROOT  Root folder\n";
        assert_eq!(PROGRAM.help(), expected);
    }

    proptest! {
        #[test]
        fn no_argument_makes_a_message_long_or_raw(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let argument = OsString::from_vec(bytes);
            let known = ["-h", "--help", "-V", "--version", "--stop-modules"].iter().any(|known| argument == *known);
            match PROGRAM.read(std::iter::once(argument), 0..=0) {
                Request::Wrong(reason) => {
                    prop_assert!(!known);
                    prop_assert!(reason.len() < 1000 && !reason.chars().any(char::is_control), "{reason}");
                }
                _ => prop_assert!(known),
            }
        }
    }
}
