//! A program that asks for a module's secrets without being that module.
//!
//! ```text
//! intruder --socket PATH --module M --genid G [--json] [--when-orphaned]
//!          [--pass-fd | --exec-after-connect PROGRAM | --exec-after-request PROGRAM |
//!           --filter-and-exec PROGRAM]
//! intruder --serve | --sleep
//! ```
//! Without a mode it tries every call itself. Exit code 0: all calls that carry identity
//! were refused (401, 403, closed without an answer, or no permission to connect); 1: one
//! was granted; 3: one was neither (another status, nobody there), which says nothing
//! about the guard; 2: wrong arguments. With `--json` the same is said in the last line,
//! for engines that tell another exit code than the program's: `{"outcome":"refused"}`,
//! `granted`, `neither`.
//! - `--when-orphaned` first waits until it is a child of the container's first process.
//! - `--pass-fd` connects, and a child that inherited the connection sends the request.
//! - `--exec-after-connect` connects, sends half a request and becomes
//!   `PROGRAM --finish`, which has the connection as its standard input and output and
//!   sends the rest; PROGRAM is another copy of this one.
//! - `--exec-after-request` sends a whole request and becomes `PROGRAM --sleep`, while a
//!   child reads the answer and prints the outcome.
//! - `--filter-and-exec` puts a filter on its own system calls, which outlives `execve`,
//!   and becomes PROGRAM, which tries every call.
//! - `--serve`, `--sleep` only wait for SIGTERM, as a module's first process.

use std::io::{self, ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use edgekeep_test_modules::{encode, end_on_signal, http, say, wait_for_signal};
use serde_json::{Value, json};

/// The part of a request that is left for the next program.
const REST: &str = "EDGEKEEP_TEST_REST";
const USAGE: &str = "Usage: intruder --socket PATH --module M --genid G [--json] [--when-orphaned] [--pass-fd | \
                     --exec-after-connect PROGRAM | --exec-after-request PROGRAM]\n       intruder --serve | --sleep";
const VERSION: &str = "api-version=2020-07-07";

#[derive(Debug, Default)]
struct Arguments {
    socket: PathBuf,
    module: String,
    generation: String,
    json: bool,
    when_orphaned: bool,
    mode: Mode,
}

#[derive(Debug, Default, PartialEq)]
enum Mode {
    #[default]
    Try,
    PassFd,
    ExecAfterConnect(PathBuf),
    ExecAfterRequest(PathBuf),
    FilterAndExec(PathBuf),
    /// Sends what is in [`REST`] over the inherited connection.
    Finish,
    /// Reads an answer from the inherited connection.
    ReadAnswer,
    Wait,
}

/// Outcome of a call that carries identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Refused,
    Neither,
    Granted,
}

impl Verdict {
    fn exit_code(self) -> u8 {
        match self {
            Self::Refused => 0,
            Self::Granted => 1,
            Self::Neither => 3,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Neither => "neither",
            Self::Granted => "granted",
        }
    }
}

fn main() -> ExitCode {
    let mut texts = Vec::new();
    for argument in std::env::args_os().skip(1) {
        match argument.into_string() {
            Ok(text) if text == "--help" || text == "-h" => {
                say(USAGE);
                return ExitCode::SUCCESS;
            }
            Ok(text) if text == "--version" || text == "-V" => {
                say(concat!("intruder ", env!("CARGO_PKG_VERSION")));
                return ExitCode::SUCCESS;
            }
            Ok(text) => texts.push(text),
            Err(argument) => return wrong(&format!("unknown argument {argument:?}")),
        }
    }
    let arguments = match parse(texts.into_iter()) {
        Ok(arguments) => arguments,
        Err(error) => return wrong(&format!("{error:#}")),
    };
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("intruder: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn wrong(reason: &str) -> ExitCode {
    eprintln!("intruder: {reason}\n\n{USAGE}");
    ExitCode::from(2)
}

fn parse(mut texts: impl Iterator<Item = String>) -> anyhow::Result<Arguments> {
    let mut arguments = Arguments::default();
    while let Some(text) = texts.next() {
        let mut value = || texts.next().with_context(|| format!("{text} needs a value"));
        match text.as_str() {
            "--socket" => arguments.socket = value()?.into(),
            "--module" => arguments.module = value()?,
            "--genid" => arguments.generation = value()?,
            "--json" => arguments.json = true,
            "--when-orphaned" => arguments.when_orphaned = true,
            "--pass-fd" => arguments.mode = Mode::PassFd,
            "--exec-after-connect" => arguments.mode = Mode::ExecAfterConnect(value()?.into()),
            "--exec-after-request" => arguments.mode = Mode::ExecAfterRequest(value()?.into()),
            "--filter-and-exec" => arguments.mode = Mode::FilterAndExec(value()?.into()),
            "--finish" => arguments.mode = Mode::Finish,
            "--read-answer" => arguments.mode = Mode::ReadAnswer,
            "--serve" | "--sleep" => arguments.mode = Mode::Wait,
            _ => bail!("unknown argument {text:?}"),
        }
    }
    let inherits = matches!(arguments.mode, Mode::Wait | Mode::Finish | Mode::ReadAnswer);
    if !inherits && (arguments.socket.as_os_str().is_empty() || arguments.module.is_empty()) {
        bail!("--socket and --module are needed");
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    while arguments.when_orphaned && std::os::unix::process::parent_id() != 1 {
        edgekeep_test_modules::pause(std::time::Duration::from_millis(5));
    }
    match &arguments.mode {
        Mode::Wait => {
            end_on_signal()?;
            wait_for_signal()
        }
        Mode::Try => Ok(try_all(arguments).exit_code()),
        Mode::PassFd => {
            let stream = http::connect(&arguments.socket)?;
            let request = sign_request(arguments);
            let status =
                inheriting(&std::env::current_exe()?, &stream, arguments, "--finish", &request)?
                    .status()?;
            u8::try_from(status.code().context("the child was killed")?).context("an odd exit code")
        }
        Mode::ExecAfterConnect(program) => {
            let mut stream = http::connect(&arguments.socket)?;
            let request = sign_request(arguments);
            let (first, rest) = request.split_at(request.len() / 2);
            stream.write_all(first)?;
            Err(inheriting(program, &stream, arguments, "--finish", rest)?.exec().into())
        }
        Mode::ExecAfterRequest(program) => {
            let mut stream = http::connect(&arguments.socket)?;
            let mut reader =
                inheriting(&std::env::current_exe()?, &stream, arguments, "--read-answer", b"")?;
            reader.stdout(Stdio::inherit()).spawn()?;
            stream.write_all(&sign_request(arguments))?;
            Err(Command::new(program).arg("--sleep").exec().into())
        }
        Mode::FilterAndExec(program) => {
            let list = edgekeep_sandbox::SyscallList::parse(
                "refuse only\nreboot # nothing that is needed here\n",
            )?;
            list.compile(&[])?.restrict_thread()?;
            let mut command = Command::new(program);
            command.arg("--socket").arg(&arguments.socket).args(["--module", &arguments.module]);
            Err(command.args(["--genid", &arguments.generation]).exec().into())
        }
        Mode::Finish => {
            let rest = std::env::var(REST).with_context(|| format!("{REST} is not set"))?;
            let mut out = io::stdout().lock();
            // The server may have closed already: then reading tells.
            let _ = out.write_all(rest.as_bytes()).and_then(|()| out.flush());
            let outcome = http::read_answer(io::stdin().lock());
            // Standard output is the connection.
            Ok(judge("sign", outcome, arguments.json, |line| eprintln!("{line}")).exit_code())
        }
        Mode::ReadAnswer => {
            let outcome = http::read_answer(io::stdin().lock());
            Ok(judge("sign", outcome, arguments.json, say).exit_code())
        }
    }
}

/// A command whose standard input and output are the connection.
fn inheriting(
    program: &Path,
    stream: &UnixStream,
    arguments: &Arguments,
    mode: &str,
    rest: &[u8],
) -> anyhow::Result<Command> {
    let (input, output): (OwnedFd, OwnedFd) =
        (stream.try_clone()?.into(), stream.try_clone()?.into());
    let mut command = Command::new(program);
    command.arg(mode).args(arguments.json.then_some("--json"));
    command
        .env(REST, std::str::from_utf8(rest)?)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output));
    Ok(command)
}

fn of_module(arguments: &Arguments, rest: &str) -> String {
    format!(
        "/modules/{}/genid/{}/{rest}?{VERSION}",
        encode(&arguments.module),
        encode(&arguments.generation)
    )
}

fn sign_body() -> Value {
    json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "aW50cnVkZXI=" })
}

fn sign_request(arguments: &Arguments) -> Vec<u8> {
    http::request("POST", &of_module(arguments, "sign"), "localhost", &[], Some(&sign_body()))
}

fn try_all(arguments: &Arguments) -> Verdict {
    let certificate = json!({ "commonName": "intruder", "expiration": "2099-01-01T00:00:00Z" });
    let identity = format!("/modules/{}/certificate/identity?{VERSION}", encode(&arguments.module));
    let encrypt =
        json!({ "plaintext": "aW50cnVkZXI=", "initializationVector": "MDEyMzQ1Njc4OWFi" });
    let tries = [
        ("sign", of_module(arguments, "sign"), sign_body()),
        ("certificate/server", of_module(arguments, "certificate/server"), certificate),
        ("certificate/identity", identity, json!({})),
        ("encrypt", of_module(arguments, "encrypt"), encrypt),
    ];
    // The bundle is public; this only shows whether the socket answers at all.
    let bundle = http::call(&arguments.socket, "GET", &format!("/trust-bundle?{VERSION}"), None);
    judge("trust-bundle", bundle, arguments.json, say);
    let mut worst = Verdict::Refused;
    for (name, target, body) in tries {
        let outcome = http::call(&arguments.socket, "POST", &target, Some(&body));
        worst = worst.max(judge(name, outcome, arguments.json, say));
    }
    if arguments.json {
        say(&json!({ "outcome": worst.word() }).to_string());
    }
    worst
}

/// Tells and judges one outcome. Nothing of a granted answer is shown.
fn judge(name: &str, outcome: io::Result<http::Answer>, as_json: bool, tell: fn(&str)) -> Verdict {
    let (verdict, status, message) = match outcome {
        Ok(answer) if (200..300).contains(&answer.status) => {
            (Verdict::Granted, Some(answer.status), String::new())
        }
        Ok(answer) if matches!(answer.status, 401 | 403) => {
            (Verdict::Refused, Some(answer.status), answer.message())
        }
        Ok(answer) => (Verdict::Neither, Some(answer.status), answer.message()),
        Err(error) => {
            let cut = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            let refused =
                cut.contains(&error.kind()) || error.kind() == ErrorKind::PermissionDenied;
            (if refused { Verdict::Refused } else { Verdict::Neither }, None, error.to_string())
        }
    };
    let word = verdict.word();
    if as_json {
        tell(
            &json!({ "try": name, "status": status, "message": message, "verdict": word })
                .to_string(),
        );
    } else {
        let status =
            status.map_or_else(|| "no answer".to_owned(), |status| format!("HTTP {status}"));
        tell(format!("{name}: {word} ({status}) {message}").trim_end());
    }
    verdict
}
