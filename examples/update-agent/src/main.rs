//! An update agent: replaces the program of another host module, has the new content
//! approved, and restarts the module.
//!
//! ```text
//! update-agent NAME MODULE EXECUTABLE NEW
//! ```
//! `NAME` is the target's entry in `[host_modules]`, `MODULE` the module that runs it,
//! `EXECUTABLE` its path, and `NEW` the file that takes its place: a real agent would
//! have downloaded it and checked its maker's signature. See README.md.
//!
//! What happens, in the order that leaves the device working wherever it breaks off:
//! 1. Who am I? Asked on the module's own workload socket; the answer is for measured
//!    callers only.
//! 2. A request to the update server is signed with the module's key, which this program
//!    never sees.
//! 3. The file is replaced in one step. The target goes on running its old program, which
//!    is a copy in memory.
//! 4. The new content is approved: moduled hashes the file itself, and takes the approval
//!    only from a program that the operator trusted with exactly this name.
//! 5. The target is restarted. If 4 or 5 fails, the old file comes back, and its content
//!    is approved again.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use aws_lc_rs::digest::{SHA256, digest};
use edgekeep_api::management::ManagementClient;
use edgekeep_api::workload::WorkloadClient;

const USAGE: &str = "Usage: update-agent NAME MODULE EXECUTABLE NEW";

/// One update, as the command line tells it.
struct Update {
    name: String,
    module: String,
    executable: PathBuf,
    new: PathBuf,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(text) = asked(&arguments) {
        say(text);
        return ExitCode::SUCCESS;
    }
    let update = match update(&arguments) {
        Ok(update) => update,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = run(&update) {
        let _ = writeln!(std::io::stderr(), "Error: {error:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The answer to a question about this program.
fn asked(arguments: &[OsString]) -> Option<&'static str> {
    match arguments.first()?.to_str()? {
        "-h" | "--help" => Some(USAGE),
        "-V" | "--version" => Some(concat!("update-agent ", env!("CARGO_PKG_VERSION"))),
        _ => None,
    }
}

fn update(arguments: &[OsString]) -> anyhow::Result<Update> {
    let [name, module, executable, new] = arguments else {
        match arguments.get(4).or(arguments.first()) {
            Some(argument) => bail!("unexpected argument {argument:?}, or too few"),
            None => bail!("too few arguments"),
        }
    };
    let text = |argument: &OsString| {
        let name = argument.to_str().filter(|name| !name.starts_with('-'));
        name.map(str::to_owned).with_context(|| format!("unexpected argument {argument:?}"))
    };
    Ok(Update {
        name: text(name)?,
        module: text(module)?,
        executable: executable.into(),
        new: new.into(),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn run(Update { name, module, executable, new }: &Update) -> anyhow::Result<()> {
    let workload = WorkloadClient::new(socket("IOTEDGE_WORKLOADURI")?);
    let management = ManagementClient::new(socket("IOTEDGE_MANAGEMENTURI")?);

    let me = workload.identity().await.context("cannot learn who I am")?;
    say(&format!("I am {} of {}", me.module_id, me.device_id));

    let request = format!("GET /updates/{name} {}", me.device_id);
    let signature = workload.sign(&me.module_id, &me.generation_id, request.as_bytes()).await;
    say(&format!("request signed with {} bytes", signature.context("cannot sign")?.len()));

    let new = fs::read(new).with_context(|| format!("cannot read {}", new.display()))?;
    let old =
        fs::read(executable).with_context(|| format!("cannot read {}", executable.display()))?;
    replace(executable, &new)?;
    say(&format!("{} replaced", executable.display()));

    if let Err(error) = put_in_force(&management, name, module, &new).await {
        replace(executable, &old)
            .context("the update failed, and the old file cannot be put back")?;
        put_in_force(&management, name, module, &old)
            .await
            .context("the update failed, and so did the way back")?;
        return Err(error.context("the update failed; the old program runs again"));
    }
    say(&format!("{module} runs the new program"));
    Ok(())
}

/// Has `content`, which is in the file by now, approved and run.
async fn put_in_force(
    management: &ManagementClient,
    name: &str,
    module: &str,
    content: &[u8],
) -> anyhow::Result<()> {
    let sha256: String =
        digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    management.approve_digest(name, &sha256).await.context("not approved")?;
    say(&format!("{sha256} approved"));
    management.restart_module(module).await.context("not restarted")?;
    Ok(())
}

/// Puts other content under a file's name, so that whoever looks finds the old or the new
/// whole, also after a power cut.
fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("the executable has no folder")?;
    let mode = fs::metadata(path)?.permissions().mode();
    let temporary = path.with_extension("new");
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// The socket that the environment names.
fn socket(variable: &str) -> anyhow::Result<PathBuf> {
    let uri = std::env::var(variable).with_context(|| format!("{variable} is not set"))?;
    let path =
        uri.strip_prefix("unix://").with_context(|| format!("{variable} is not a unix:// URI"))?;
    Ok(path.into())
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
