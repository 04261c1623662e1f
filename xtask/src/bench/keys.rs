//! keyd by itself, over its socket: how much it signs with keys in files, and what it and
//! the backends add to tokens and TPMs.

mod parts;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::figures::{Bar, Figures, median, memory_kib};
use super::load::Load;
use super::{Results, build};
use crate::http::{self, Body};
use crate::{interrupt, parts as programs};
use parts::Hardware;

/// Each case is run this often, in turns with the others; the median counts.
const ROUNDS: usize = 5;
const STARTS: usize = 9;
const CALLERS: [u32; 3] = [1, 8, 32];
/// The number of callers whose rate is held against the bar: enough that keyd never waits
/// for one of them.
const BUSY: u32 = 8;
const HMAC_BAR: f64 = 15_000.0;
const ECDSA_BAR: f64 = 8_000.0;
/// Times the hardware's own time.
const HARDWARE_BAR: f64 = 1.3;
const MEMORY_BAR: f64 = 6.0;
const SOFTWARE_START_BAR: f64 = 50.0;
const TPM_START_BAR: f64 = 300.0;
const LIMIT: Duration = Duration::from_secs(30);
/// 32 bytes that a caller has hashed, and a message of 64.
const DIGEST: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
const MESSAGE: &str =
    "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw==";

/// Measures everything that the installed parts allow.
pub(super) fn run() -> anyhow::Result<Results> {
    let folder = build(&["edgekeep-keyd", "edgekeep-load", "edgekeep-bench-keys"])?;
    let temporary = tempfile::Builder::new()
        .prefix("edgekeep-bench-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let load = Load::start(&folder, temporary.path())?;
    let mut figures = Figures::new();
    let bench = Bench { programs: &folder, load: &load };
    bench.software(&temporary.path().join("software"), &mut figures)?;

    let wanted = [
        programs::SWTPM,
        programs::SOFTHSM,
        programs::OPENSC,
        programs::TPM2_PKCS11,
        programs::TPM2_ABRMD,
        programs::DBUS_DAEMON,
        programs::DBUS_SEND,
        programs::TCTI_TABRMD,
    ];
    let missing = programs::provide(&wanted)?;
    if missing.is_empty() {
        for make in [Hardware::softhsm, Hardware::tpm2_pkcs11, Hardware::swtpm] {
            let hardware = make(temporary.path())?;
            bench.hardware(&hardware, temporary.path(), &mut figures)?;
        }
    } else {
        eprintln!("tokens and TPMs are not measured: {}", programs::remedy(&missing));
    }
    let title = "keyd over its socket, kept connections; medians of several runs";
    Ok(Results {
        name: "keys",
        table: figures.to_table(title),
        json: figures.to_json(),
        missed: figures.missed(),
    })
}

struct Bench<'a> {
    programs: &'a Path,
    load: &'a Load,
}

impl Bench<'_> {
    fn software(&self, root: &Path, figures: &mut Figures) -> anyhow::Result<()> {
        let settings = json!({ "connections_per_uid": 64 });
        let mut keyd = Keyd::start(self.programs, root, &settings, &[])?;
        let (hmac, ecdsa) = (keyd.hmac("bench-key")?, keyd.ecdsa("bench-pair")?);
        interrupt::pause(Duration::from_secs(3))?;
        let idle = memory_kib(keyd.child.id().into())?;
        let mut cases = Vec::new();
        for callers in CALLERS {
            cases.push((hmac.name, callers, with(&hmac, callers, 4000)));
            cases.push((ecdsa.name, callers, with(&ecdsa, callers, 4000)));
            let mut echo = with(&hmac, callers, 4000);
            echo["socket"] = self.load.echo().display().to_string().into();
            cases.push(("bare echo", callers, echo));
        }
        for (name, callers, results) in self.rounds(&cases)? {
            let bar = match name {
                "HMAC-SHA256" if callers == BUSY => Bar::AtLeast(HMAC_BAR),
                "ECDSA P-256" if callers == BUSY => Bar::AtLeast(ECDSA_BAR),
                _ => Bar::None,
            };
            let of = |field: &str| {
                median(results.iter().filter_map(|result| result[field].as_f64()).collect())
            };
            let detail = format!("p50 {:.0} µs, p99 {:.0} µs", of("p50Us"), of("p99Us"));
            figures.add(
                format!("{name}, software, {callers} callers"),
                of("perSecond"),
                "/s",
                bar,
                detail,
            );
        }
        let loaded = memory_kib(keyd.child.id().into())?;
        keyd.stop()?;
        for (what, kib, bar) in
            [("idle", idle, Bar::AtMost(MEMORY_BAR)), ("after load", loaded, Bar::None)]
        {
            if let Some(kib) = kib {
                figures.add(
                    format!("PSS of keyd, {what}"),
                    mebibytes(kib),
                    "MiB",
                    bar,
                    String::new(),
                );
            }
        }
        self.start_times("software", root, &settings, &[], &hmac, SOFTWARE_START_BAR, figures)
    }

    fn hardware(
        &self,
        hardware: &Hardware,
        folder: &Path,
        figures: &mut Figures,
    ) -> anyhow::Result<()> {
        let name = hardware.name;
        let root = folder.join(format!("{name}-device"));
        let mut keyd =
            Keyd::start(self.programs, &root, &hardware.settings, &hardware.environment)?;
        let operations = match hardware.keeps_symmetric_keys {
            true => vec![keyd.hmac("bench-key")?, keyd.ecdsa("bench-pair")?],
            false => vec![keyd.ecdsa("bench-pair")?],
        };
        // Only now: two processes that make one key at the same time make two.
        let mut probe = Probe::start(self.programs, hardware)?;
        let mut times: Vec<[Vec<f64>; 5]> = operations.iter().map(|_| Default::default()).collect();
        for round in 0..=ROUNDS {
            let probed = probe.round()?;
            for (operation, times) in operations.iter().zip(&mut times) {
                let through = with(operation, 1, 300);
                let mut echo = with(operation, 1, 2000);
                echo["socket"] = self.load.echo().display().to_string().into();
                let keyd = self.load.perform(&through)?["p50Us"].as_f64().context("no time")?;
                let echo = self.load.perform(&echo)?["p50Us"].as_f64().context("no time")?;
                let own = probed
                    .iter()
                    .find(|one| one["operation"] == operation.name)
                    .context("no such operation")?;
                let of = |field: &str| own[field].as_f64().unwrap_or(f64::NAN);
                // The first round is to warm up.
                if round > 0 {
                    let all = [of("bareUs"), of("backendUs"), of("waitedUs"), keyd, echo];
                    times.iter_mut().zip(all).for_each(|(times, time)| times.push(time));
                }
            }
        }
        for (operation, times) in operations.iter().zip(times) {
            let [bare, backend, waited, keyd, echo] = times.map(median);
            let what = format!("{}, {name}", operation.name);
            figures.add(format!("{what}: bare call"), bare, "µs", Bar::None, String::new());
            // A TPM's own time for a command depends on what protects it on its way; ours
            // are all protected.
            let own = if waited.is_nan() { bare } else { waited };
            if !waited.is_nan() {
                let detail = format!("{:.2} × the bare call", waited / bare);
                figures.add(format!("{what}: call in a session"), waited, "µs", Bar::None, detail);
            }
            let bar = Bar::AtMost(HARDWARE_BAR);
            let detail = |time: f64| format!("{time:.0} µs, {:.2} × the bare call", time / bare);
            figures.add(format!("{what}: backend"), backend / own, "×", bar, detail(backend));
            let net = keyd - echo;
            let detail = format!(
                "{}; HTTP {echo:.0} µs; with the hand-over to the backend's thread",
                detail(net)
            );
            figures.add(format!("{what}: keyd without HTTP"), net / own, "×", Bar::None, detail);
        }
        keyd.stop()?;
        if name == "swtpm" {
            let operation = operations.into_iter().next().context("no operation")?;
            let (settings, environment) = (&hardware.settings, &hardware.environment);
            self.start_times(
                name,
                &root,
                settings,
                environment,
                &operation,
                TPM_START_BAR,
                figures,
            )?;
        }
        Ok(())
    }

    /// From the start of the process to the answer to a request that uses a key.
    #[expect(clippy::too_many_arguments, reason = "what one start needs")]
    fn start_times(
        &self,
        name: &str,
        root: &Path,
        settings: &Value,
        environment: &[(&'static str, String)],
        operation: &Operation,
        bar: f64,
        figures: &mut Figures,
    ) -> anyhow::Result<()> {
        let mut times = Vec::new();
        for _ in 0..STARTS {
            let begin = Instant::now();
            let mut keyd = Keyd::start(self.programs, root, settings, environment)?;
            keyd.post("/sign", &operation.body)?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            keyd.stop()?;
        }
        let slowest = times.iter().fold(0.0, |slowest: f64, time| slowest.max(*time));
        let what = format!("start to first signature, {name}");
        figures.add(
            what,
            median(times),
            "ms",
            Bar::AtMost(bar),
            format!("slowest of {STARTS}: {slowest:.1} ms"),
        );
        Ok(())
    }

    /// Runs all cases in turn, several times.
    fn rounds(
        &self,
        cases: &[(&'static str, u32, Value)],
    ) -> anyhow::Result<Vec<(&'static str, u32, Vec<Value>)>> {
        let mut results: Vec<_> =
            cases.iter().map(|(name, callers, _)| (*name, *callers, Vec::new())).collect();
        for round in 0..=ROUNDS {
            for ((_, _, case), (_, _, results)) in cases.iter().zip(&mut results) {
                let result = self.load.perform(case)?;
                if round > 0 {
                    results.push(result);
                }
            }
        }
        Ok(results)
    }
}

/// A signing request.
struct Operation {
    name: &'static str,
    socket: PathBuf,
    body: Value,
}

fn with(operation: &Operation, callers: u32, requests: u32) -> Value {
    json!({
        "socket": operation.socket, "method": "POST", "path": "/sign?api-version=2021-05-01", "body": operation.body,
        "callers": callers, "requests": requests, "keepAlive": true,
    })
}

/// The backend next to the bare call, in a process of its own: libraries of tokens find
/// them by their environment.
struct Probe {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Probe {
    fn start(programs: &Path, hardware: &Hardware) -> anyhow::Result<Self> {
        let mut command = crate::engine::dies_with_this_task(programs.join("edgekeep-bench-keys"));
        command.args(&hardware.probe).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.envs(hardware.environment.iter().map(|(name, value)| (name, value)));
        let mut child =
            interrupt::spawn(&mut command).context("cannot start edgekeep-bench-keys")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("no pipes")
        };
        Ok(Self { child, input, output: BufReader::new(output) })
    }

    fn round(&mut self) -> anyhow::Result<Vec<Value>> {
        interrupt::check()?;
        writeln!(self.input).context("edgekeep-bench-keys ended")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).context("edgekeep-bench-keys gave no result")
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        interrupt::end(&mut self.child, Duration::from_secs(5));
    }
}

/// A keyd of its own.
struct Keyd {
    root: PathBuf,
    child: Child,
}

impl Keyd {
    /// Starts one whose every key this task's user may name; returns when it serves.
    fn start(
        programs: &Path,
        root: &Path,
        settings: &Value,
        environment: &[(&'static str, String)],
    ) -> anyhow::Result<Self> {
        let configuration = root.join("etc/edgekeep");
        fs::create_dir_all(&configuration)?;
        let mut settings = settings.clone();
        settings["principals"] = json!([{ "uid": nix::unistd::geteuid().as_raw(), "keys": ["*"] }]);
        fs::write(configuration.join("keyd.json"), settings.to_string())?;
        let notify = root.join("notify");
        match fs::remove_file(&notify) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let manager = UnixDatagram::bind(&notify)?;
        manager.set_read_timeout(Some(LIMIT))?;
        let mut command = Command::new(programs.join("edgekeep-keyd"));
        command.env("EDGEKEEP_ROOT", root).env("NOTIFY_SOCKET", &notify).env_remove("RUST_LOG");
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = root.join("keyd.log");
        command.stderr(fs::File::create(&log)?);
        let child = interrupt::spawn(&mut command).context("cannot start edgekeep-keyd")?;
        let keyd = Self { root: root.to_owned(), child };
        let mut message = [0; 64];
        let ready = manager.recv(&mut message);
        ready.with_context(|| format!("keyd is not ready:\n{}", crate::command::tail(&log, 15)))?;
        Ok(keyd)
    }

    fn socket(&self) -> PathBuf {
        self.root.join("run/aziot/keyd.sock")
    }

    fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        http::json(
            &self.socket(),
            "POST",
            &format!("{path}?api-version=2021-05-01"),
            Body::Json(body),
        )
    }

    /// Makes a key, or finds it; signing with it.
    fn hmac(&self, id: &str) -> anyhow::Result<Operation> {
        let made = self.post("/key", &json!({ "keyId": id, "usage": "derive,sign" }))?;
        let parameters = json!({ "message": MESSAGE });
        let body = json!({ "keyHandle": made["keyHandle"], "algorithm": "HMAC-SHA256", "parameters": parameters });
        Ok(Operation { name: "HMAC-SHA256", socket: self.socket(), body })
    }

    fn ecdsa(&self, id: &str) -> anyhow::Result<Operation> {
        let made =
            self.post("/keypair", &json!({ "keyId": id, "preferredAlgorithms": "ec-p256" }))?;
        let parameters = json!({ "digest": DIGEST });
        let body = json!({ "keyHandle": made["keyHandle"], "algorithm": "ECDSA", "parameters": parameters });
        Ok(Operation { name: "ECDSA P-256", socket: self.socket(), body })
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        interrupt::end(&mut self.child, LIMIT);
        let status = self.child.try_wait()?;
        anyhow::ensure!(
            status.is_some_and(|status| status.success()),
            "keyd ended with {status:?}"
        );
        Ok(())
    }
}

impl Drop for Keyd {
    fn drop(&mut self) {
        interrupt::end(&mut self.child, LIMIT);
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of memory")]
fn mebibytes(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
