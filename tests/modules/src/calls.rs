//! A module that makes the calls it is given, for tests.
//!
//! `EDGEKEEP_TEST_CALLS` names a file (a FIFO works too) with one call a line:
//! `{"method":"POST","path":"/modules/{m}/genid/{g}/sign?api-version=2020-07-07","body":{...},"api":"workload"}`.
//! `{m}` and `{g}` stand for this module's id and generation, encoded; `api` is
//! `workload` (default) or `management`; `socket`, a path, takes the place of both. A
//! text that begins with `{` is taken as the calls themselves. `{"report":["/path"...]}`
//! in the place of a call asks what the module may do: its users, groups, capabilities
//! and other lines of `/proc/self/status`, its limit of open files, and for each path how
//! opening it for reading went. `EDGEKEEP_TEST_ANSWERS` names the file to which a line is
//! appended for each: `{"path","status","body"}` or `{"path","error"}`, and
//! `{"done":<count>}` at the end. Then it waits for SIGTERM.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Cursor, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use edgekeep_test_modules::{
    answered, encode, end_on_signal, exit_code, http, socket_path, variable, wait_for_signal,
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    answered("calls").unwrap_or_else(|| exit_code(run()))
}

fn run() -> anyhow::Result<()> {
    end_on_signal()?;
    let calls = variable("EDGEKEEP_TEST_CALLS")?;
    let calls: Box<dyn BufRead> = if calls.starts_with('{') {
        Box::new(Cursor::new(calls))
    } else {
        Box::new(BufReader::new(
            File::open(&calls).with_context(|| format!("cannot read {calls}"))?,
        ))
    };
    let answers = variable("EDGEKEEP_TEST_ANSWERS")?;
    let mut answers = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&answers)
        .with_context(|| format!("cannot write {answers}"))?;
    let mut count = 0_u64;
    for line in calls.lines() {
        let line = line.context("cannot read a call")?;
        if line.trim().is_empty() {
            continue;
        }
        let call: Value = serde_json::from_str(&line).context("a call is not a line of JSON")?;
        if let Some(paths) = call["report"].as_array() {
            count += 1;
            let body = report(paths);
            writeln!(answers, "{}", json!({ "path": "report", "status": 200, "body": body }))?;
            continue;
        }
        let path = call["path"].clone();
        let answer = match perform(&call) {
            Ok(http::Answer { status, body }) => {
                let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
                json!({ "path": path, "status": status, "body": serde_json::from_slice(&body).unwrap_or_else(|_| text()) })
            }
            Err(error) => json!({ "path": path, "error": format!("{error:#}") }),
        };
        count += 1;
        writeln!(answers, "{answer}").context("cannot write an answer")?;
    }
    writeln!(answers, "{}", json!({ "done": count })).context("cannot write the end")?;
    wait_for_signal()
}

/// Reports what this process may do, as the process sees it itself.
fn report(paths: &[Value]) -> Value {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let status: serde_json::Map<String, Value> = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| {
            (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ").into())
        })
        .collect();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    let open = |path: &Value| {
        let opened = File::open(path.as_str().unwrap_or_default()).map(drop);
        opened.map_or_else(|error| format!("{:?}", error.kind()), |()| "open".to_owned())
    };
    let opened: Vec<String> = paths.iter().map(open).collect();
    json!({ "status": status, "files": files, "opened": opened, "env": std::env::vars().collect::<std::collections::BTreeMap<_, _>>() })
}

fn perform(call: &Value) -> anyhow::Result<http::Answer> {
    let socket = match (call["socket"].as_str(), call["api"].as_str()) {
        (Some(socket), _) => PathBuf::from(socket),
        (None, None | Some("workload")) => socket_path(&variable("IOTEDGE_WORKLOADURI")?)?,
        (None, Some("management")) => socket_path(&variable("IOTEDGE_MANAGEMENTURI")?)?,
        (None, Some(_)) => anyhow::bail!("\"api\" is neither workload nor management"),
    };
    let method = call["method"].as_str().context("a call without \"method\"")?;
    let own = |name| variable(name).map(|value| encode(&value)).unwrap_or_default();
    let path = call["path"].as_str().context("a call without \"path\"")?;
    let path = path
        .replace("{m}", &own("IOTEDGE_MODULEID"))
        .replace("{g}", &own("IOTEDGE_MODULEGENERATIONID"));
    Ok(http::call(&socket, method, &path, call.get("body"))?)
}
