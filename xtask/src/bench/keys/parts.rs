//! Tokens and TPMs, simulated, each in a folder of its own and ended with the bench.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::engine::dies_with_this_task;
use crate::{command, interrupt, parts};

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "1234";
const SO_PIN: &str = "12345678";
const LABEL: &str = "bench";
const START: Duration = Duration::from_secs(20);

/// A token or TPM, and how it is used.
pub(super) struct Hardware {
    pub(super) name: &'static str,
    /// keyd's settings that make keys in it.
    pub(super) settings: Value,
    pub(super) environment: Vec<(&'static str, String)>,
    /// Arguments of the probe.
    pub(super) probe: Vec<String>,
    pub(super) keeps_symmetric_keys: bool,
    /// Processes that serve the hardware; the first is ended first.
    _children: Vec<Running>,
}

/// A child that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        interrupt::end(&mut self.0, Duration::from_secs(5));
    }
}

impl Hardware {
    pub(super) fn softhsm(folder: &Path) -> anyhow::Result<Self> {
        let folder = made(folder, "softhsm")?;
        let tokens = made(&folder, "tokens")?;
        let configuration = folder.join("softhsm2.conf");
        fs::write(
            &configuration,
            format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()),
        )?;
        let environment = vec![("SOFTHSM2_CONF", configuration.display().to_string())];
        let initialize =
            ["--init-token", "--free", "--label", LABEL, "--so-pin", SO_PIN, "--pin", PIN];
        tool("softhsm2-util", &initialize, &environment)?;
        Ok(Self::token("SoftHSM2", SOFTHSM, environment, true, Vec::new()))
    }

    /// With a resource manager between the library and the TPM, as the kernel has one.
    pub(super) fn tpm2_pkcs11(folder: &Path) -> anyhow::Result<Self> {
        let folder = made(folder, "tpm2-pkcs11")?;
        let store = made(&folder, "store")?;
        let (tpm, tcti) = swtpm(&folder)?;
        let bus = folder.join("bus");
        let address = format!("unix:path={}", bus.display());
        let mut dbus = dies_with_this_task("dbus-daemon");
        dbus.args(["--session", "--nofork", &format!("--address={address}")]);
        let dbus = start(&mut dbus)?;
        interrupt::poll(START, || Ok(bus.exists().then_some(())))?
            .context("dbus-daemon did not start")?;
        let library = parts::find(parts::TPM2_PKCS11.program)
            .context("no libtpm2_pkcs11")?
            .display()
            .to_string();
        let broker = "tabrmd:bus_type=session".to_owned();
        let environment = vec![
            ("DBUS_SESSION_BUS_ADDRESS", address),
            ("TPM2_PKCS11_STORE", store.display().to_string()),
            ("TPM2_PKCS11_TCTI", broker.clone()),
            ("TPM2TOOLS_TCTI", broker),
            ("TSS2_LOG", "all+none".to_owned()),
            ("TPM2_PKCS11_LOG_LEVEL", "0".to_owned()),
        ];
        let mut abrmd = dies_with_this_task("tpm2-abrmd");
        abrmd.args(["--session", "--allow-root", &format!("--tcti={tcti}")]);
        abrmd.envs(environment.iter().map(|(name, value)| (name, value)));
        let abrmd = start(&mut abrmd)?;
        let owner = [
            "--session",
            "--print-reply",
            "--dest=org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus.GetNameOwner",
            "string:com.intel.tss2.Tabrmd",
        ];
        let answers = || Ok(tool("dbus-send", &owner, &environment).ok());
        interrupt::poll(START, answers)?.context("tpm2-abrmd did not start")?;
        let initialize = [
            "--module",
            &library,
            "--init-token",
            "--slot-index",
            "0",
            "--label",
            LABEL,
            "--so-pin",
            SO_PIN,
        ];
        tool("pkcs11-tool", &initialize, &environment)?;
        let set_pin = [
            "--module",
            &library,
            "--init-pin",
            "--token-label",
            LABEL,
            "--login",
            "--so-pin",
            SO_PIN,
            "--pin",
            PIN,
        ];
        tool("pkcs11-tool", &set_pin, &environment)?;
        Ok(Self::token("tpm2-pkcs11", &library, environment, false, vec![abrmd, dbus, tpm]))
    }

    fn token(
        name: &'static str,
        library: &str,
        environment: Vec<(&'static str, String)>,
        keeps_symmetric_keys: bool,
        children: Vec<Running>,
    ) -> Self {
        let uri = format!("pkcs11:token={LABEL}?pin-value={PIN}");
        Self {
            name,
            settings: json!({ "pkcs11": { "library": library, "base_slot": uri } }),
            environment,
            probe: vec!["pkcs11".to_owned(), library.to_owned(), uri],
            keeps_symmetric_keys,
            _children: children,
        }
    }

    /// Three of them: each serves one connection at a time.
    pub(super) fn swtpm(folder: &Path) -> anyhow::Result<Self> {
        let mut children = Vec::new();
        let mut addresses = Vec::new();
        for name in ["bare", "backend", "keyd"] {
            let (tpm, tcti) = swtpm(&made(folder, &format!("swtpm-{name}"))?)?;
            children.push(tpm);
            addresses.push(tcti);
        }
        let keys = made(folder, "swtpm-keys")?.display().to_string();
        Ok(Self {
            name: "swtpm",
            settings: json!({ "tpm": { "tcti": addresses[2], "auth_key_index": 0x100 }, "places": ["tpm", "files"] }),
            environment: Vec::new(),
            probe: vec!["tpm".to_owned(), addresses[0].clone(), addresses[1].clone(), keys],
            keeps_symmetric_keys: true,
            _children: children,
        })
    }
}

/// A software TPM with its state in `folder`, and how TSS programs name it.
fn swtpm(folder: &Path) -> anyhow::Result<(Running, String)> {
    for _ in 0..20 {
        // The control port is the one after the other; somebody may take one of them in
        // between.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = free.local_addr()?.port();
        let Some(Ok(next)) =
            port.checked_add(1).map(|next| TcpListener::bind((Ipv4Addr::LOCALHOST, next)))
        else {
            continue;
        };
        drop((free, next));
        let mut swtpm = dies_with_this_task("swtpm");
        swtpm.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"]);
        swtpm.args(["--tpmstate", &format!("dir={}", folder.display())]);
        swtpm.args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")]);
        swtpm.args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)]);
        let mut running = start(&mut swtpm)?;
        let serves = interrupt::poll(START, || {
            let ended = running.0.try_wait()?.is_some();
            let answers = TcpStream::connect((Ipv4Addr::LOCALHOST, port + 1)).is_ok();
            Ok((ended || answers).then_some(answers && !ended))
        })?;
        if serves == Some(true) {
            return Ok((running, format!("swtpm:host=127.0.0.1,port={port}")));
        }
    }
    anyhow::bail!("swtpm did not start")
}

fn made(folder: &Path, name: &str) -> anyhow::Result<std::path::PathBuf> {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn start(command: &mut Command) -> anyhow::Result<Running> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let what = format!("{command:?}");
    Ok(Running(interrupt::spawn(command).with_context(|| format!("cannot start {what}"))?))
}

fn tool(
    program: &str,
    arguments: &[&str],
    environment: &[(&'static str, String)],
) -> anyhow::Result<()> {
    let mut tool = Command::new(program);
    tool.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
    command::output(tool).map(drop)
}
