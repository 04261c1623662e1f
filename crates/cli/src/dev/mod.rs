//! `dev`: a whole simulated device on this machine, from nothing to running modules,
//! until it is told to stop.
//!
//! It is the same device as an installed one: the same daemons as three processes, the
//! same configuration through `config apply`, the same sockets below a root folder of its
//! own, the reference agent as a measured host module. Only the cloud is simulated, by
//! `edgekeep-sim`. With `--json` every event is one line of JSON (see [`event::Event`]).

pub mod event;
mod plan;
mod process;
mod watch;

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use edgekeep_api::client::{Client, ClientError};
use edgekeep_base::durable::{self, Until};
use edgekeep_base::file::{self, Rules};
use edgekeep_base::lock::lock;
use edgekeep_config::{ApplyError, ApplyMode, Users};
use edgekeep_core::deployment::{Deployment, DesiredStatus, MANIFEST_LIMIT};
use edgekeep_core::layout::{Daemon, Root};
use http::Method;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch as channel};

use crate::arguments::{Context, DevOptions};
use crate::dev::event::{Event, Events};
use crate::dev::plan::{Agent, Cloud, Memory, Plan};
use crate::dev::process::{Program, Running};

/// Longest time from a daemon's start to its first answer.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Longest time that a daemon may take to stop before it is killed. moduled itself waits
/// 30 s for the modules.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// Runs `edgekeep dev`.
pub(crate) async fn run(
    context: &Context,
    options: DevOptions,
    root: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for signals")?;
    let folder = Folder::open(
        root.filter(|folder| !folder.as_os_str().is_empty()).is_some(),
        context,
        options.keep,
    )?;
    let events = Events::new(context.json);
    let (stop, stopped) = channel::channel(false);
    let mut device =
        Device { root: folder.root.clone(), events: events.clone(), running: Vec::new() };

    let result = {
        let brought_up = device.bring_up(&options, stopped);
        tokio::pin!(brought_up);
        tokio::select! {
            result = &mut brought_up => result.map(Some),
            _ = terminate.recv() => Ok(None),
            _ = interrupt.recv() => Ok(None),
        }
    };
    let result = match result {
        Ok(Some(watching)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            watching.abort();
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    events.emit(&Event::Stopping);
    let _ = stop.send(true);
    // A second signal does not wait.
    tokio::select! {
        () = device.shut_down() => {}
        _ = terminate.recv() => device.kill(),
        _ = interrupt.recv() => device.kill(),
    }
    let kept = folder.close();
    events.emit(&Event::Stopped { root: kept });
    result.map(|()| ExitCode::SUCCESS)
}

/// The device's folder, locked against a second `dev` in it.
struct Folder {
    root: Root,
    _lock: fs::File,
    remove: bool,
}

impl Folder {
    fn open(named: bool, context: &Context, keep: bool) -> anyhow::Result<Self> {
        let path = if named {
            ensure!(
                context.root.path() != Path::new("/"),
                "a simulated device does not belong in /: name a folder with --root"
            );
            context.root.path().to_owned()
        } else {
            fresh_folder()?
        };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).with_context(|| {
            format!("cannot make {}; name another folder with --root", path.display())
        })?;
        let path = fs::canonicalize(&path)
            .with_context(|| format!("cannot resolve {}", path.display()))?;
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("dev.lock"))
            .with_context(|| {
                format!("cannot write in {}; name another folder with --root", path.display())
            })?;
        rustix::fs::flock(lock.as_fd(), rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| {
                anyhow::anyhow!(
                    "a simulated device runs in {} already; stop it, or use another --root",
                    path.display()
                )
            })?;
        let root = Root::new(path);
        plan::check_socket_paths(&root)?;
        Ok(Self { root, _lock: lock, remove: !named && !keep })
    }

    /// Removes what nobody asked to keep; what is kept is returned.
    fn close(self) -> Option<PathBuf> {
        if self.remove && fs::remove_dir_all(self.root.path()).is_ok() {
            None
        } else {
            Some(self.root.path().to_owned())
        }
    }
}

/// A new folder below the user's cache folder.
fn fresh_folder() -> anyhow::Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set; name a folder with --root")?;
    Ok(cache.join("edgekeep").join(format!("dev-{}", std::process::id())))
}

struct Device {
    root: Root,
    events: Events,
    /// In the order in which they were started.
    running: Vec<Running>,
}

impl Device {
    /// Brings the device up; afterwards it is watched by the task that is returned.
    async fn bring_up(
        &mut self,
        options: &DevOptions,
        stopped: channel::Receiver<bool>,
    ) -> anyhow::Result<tokio::task::JoinHandle<()>> {
        let begin = Instant::now();
        let programs = Programs::find()?;
        let (manifest, expected) = self.manifest(options)?;
        let mut plan = Plan {
            root: self.root.clone(),
            agent: match &options.agent_image {
                Some(image) => Agent::Image { image: image.clone(), pull: !options.no_pull },
                None => Agent::Host {
                    executable: programs.agent()?,
                    sha256: sha256(&programs.agent()?)?,
                },
            },
            engine: options.docker.clone(),
            manifest,
            host_modules: Vec::new(),
        };
        for (name, path) in &options.host_module {
            let path = fs::canonicalize(path)
                .with_context(|| format!("cannot find the host module {}", path.display()))?;
            let digest = sha256(&path)?;
            plan.host_modules.push((name.clone(), path, digest));
        }
        self.events.emit(&Event::Starting { root: self.root.path().to_owned() });

        let cloud = self.start_cloud(&programs, options.module_limit, &stopped).await?;
        self.configure(&plan, &cloud)?;
        for daemon in Daemon::ALL {
            self.start_daemon(&programs, daemon, &stopped).await?;
        }
        self.events.emit(&Event::Sockets {
            keyd: self.root.keyd_socket(),
            identityd: self.root.identityd_socket(),
            certd: self.root.certd_socket(),
            management: self.root.management_socket(),
            modules: self.root.module_socket_folder(),
        });
        let watch = watch::Watch::new(&self.root, self.events.clone(), expected, begin);
        Ok(tokio::spawn(watch.run()))
    }

    /// The manifest that the agent will read, and the modules that run when it is
    /// applied.
    fn manifest(&self, options: &DevOptions) -> anyhow::Result<(PathBuf, Vec<String>)> {
        let path = match &options.manifest {
            Some(path) => fs::canonicalize(path)
                .with_context(|| format!("cannot find the manifest {}", path.display()))?,
            None => {
                let path = self.root.path().join("deployment.json");
                if !path.exists() {
                    fs::write(&path, plan::EMPTY_DEPLOYMENT)
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
                path
            }
        };
        let text = file::read_text(&path, Rules::named(MANIFEST_LIMIT as u64))
            .with_context(|| format!("cannot read {}", path.display()))?;
        let deployment = Deployment::parse(&text, None)
            .with_context(|| format!("{} is no deployment manifest", path.display()))?;
        let running =
            deployment.modules.iter().filter(|(_, module)| module.status == DesiredStatus::Running);
        let mut expected: Vec<String> = running.map(|(id, _)| id.name().to_owned()).collect();
        expected.push("edgeAgent".to_owned());
        Ok((path, expected))
    }

    async fn start_cloud(
        &mut self,
        programs: &Programs,
        module_limit: Option<usize>,
        stopped: &channel::Receiver<bool>,
    ) -> anyhow::Result<Cloud> {
        let memory = Memory::load_or_make(&self.root)?;
        let (first, line) = oneshot::channel();
        let mut program = Program::new("cloud", programs.cloud()?, &self.root);
        program.arguments = memory.cloud_arguments(&self.root, module_limit);
        program.first_line = Some(first);
        let running = self.keep(process::start(program, self.events.clone(), stopped.clone()));
        let line = running.first_line(line, START_LIMIT).await?;
        let arguments = running.arguments.clone();
        let cloud: Cloud = serde_json::from_str(&line)
            .context("edgekeep-sim is of another version: it did not say where it is")?;
        // From now on the port stays: tokens and the assigned hub name hold it.
        let memory = memory.with_port_of(&cloud)?;
        memory.save(&self.root)?;
        *lock(&arguments) = memory.cloud_arguments(&self.root, module_limit);
        self.events.emit(&Event::Cloud {
            dps: cloud.dps.clone(),
            hub: cloud.hub.clone(),
            scope_id: cloud.scope_id.clone(),
            admin: cloud.admin.clone(),
            ca: memory.ca_file(&self.root),
        });
        Ok(Cloud { key: memory.key, ..cloud })
    }

    fn configure(&self, plan: &Plan, cloud: &Cloud) -> anyhow::Result<()> {
        let file = self.root.config_file();
        let present = match edgekeep_config::read_config(&file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        // A file that somebody took over by removing the first line is theirs.
        let own = present.as_ref().is_some_and(|text| !text.starts_with(plan::MARK));
        let text = match present {
            Some(text) if own => text,
            _ => {
                let text = plan.config(cloud);
                write_secret(&file, &text)
                    .with_context(|| format!("cannot write {}", file.display()))?;
                text
            }
        };
        let mut environment = edgekeep_config::environment(&text);
        environment.users = Users::all(rustix::process::geteuid().as_raw());
        match edgekeep_config::apply(&self.root, &text, &environment, ApplyMode::Write) {
            Ok(_) => {}
            Err(ApplyError::Invalid(found)) => {
                let shown = edgekeep_config::render(&found, &file.display().to_string(), false);
                bail!("the configuration has errors\n{shown}");
            }
            Err(error) => return Err(error.into()),
        }
        self.events.emit(&Event::Configured { file, own });
        Ok(())
    }

    async fn start_daemon(
        &mut self,
        programs: &Programs,
        daemon: Daemon,
        stopped: &channel::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let begin = Instant::now();
        let mut program = Program::new(daemon.name(), programs.daemon(daemon)?, &self.root);
        if daemon == Daemon::Moduled {
            program.arguments.push("--stop-modules".into());
        }
        let sockets = match daemon {
            Daemon::Keyd => vec![(self.root.keyd_socket(), "/?api-version=2021-05-01")],
            Daemon::Identityd => vec![
                (self.root.identityd_socket(), "/identities/provisioning?api-version=2022-08-01"),
                (self.root.certd_socket(), "/?api-version=2020-09-01"),
            ],
            Daemon::Moduled => {
                vec![(self.root.management_socket(), "/modules?api-version=2022-08-03")]
            }
        };
        let answers = async {
            for (socket, path) in &sockets {
                answered(socket, path).await;
            }
        };
        self.keep(process::start(program, self.events.clone(), stopped.clone()))
            .unless_ended(answers, START_LIMIT)
            .await?;
        self.events
            .emit(&Event::Ready { name: daemon.name(), ms: event::milliseconds(begin.elapsed()) });
        Ok(())
    }

    /// Keeps a process for the way down, from before it is waited for.
    fn keep(&mut self, running: Running) -> &Running {
        self.running.push(running);
        &self.running[self.running.len() - 1]
    }

    /// Stops everything in the reverse order of its start; moduled stops the modules.
    async fn shut_down(&mut self) {
        while let Some(running) = self.running.pop() {
            running.stop(STOP_LIMIT).await;
        }
    }

    fn kill(&mut self) {
        let message = "killed without waiting: modules may still run".to_owned();
        self.events.emit(&Event::Problem { message });
        for running in self.running.drain(..) {
            running.kill();
        }
    }
}

/// Waits until something that speaks HTTP answers at a socket.
async fn answered(socket: &Path, path: &str) {
    let client = Client::new(socket).with_timeout(Duration::from_secs(5));
    loop {
        match client.call_empty(Method::GET, path, None::<&()>).await {
            Ok(()) | Err(ClientError::Status { .. }) => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// The programs of a device; they lie beside this one.
struct Programs {
    folder: PathBuf,
}

impl Programs {
    fn find() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program lies")?;
        Ok(Self { folder: own.parent().map(Path::to_owned).unwrap_or_default() })
    }

    fn named(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        ensure!(
            path.is_file(),
            "{} is missing: it belongs beside this program; in a checkout, `cargo build --workspace` makes it",
            path.display()
        );
        Ok(path)
    }

    fn cloud(&self) -> anyhow::Result<PathBuf> {
        self.named("edgekeep-sim")
    }

    fn agent(&self) -> anyhow::Result<PathBuf> {
        self.named("edgekeep-agent")
    }

    fn daemon(&self, daemon: Daemon) -> anyhow::Result<PathBuf> {
        self.named(&format!("edgekeep-{}", daemon.name()))
    }
}

/// SHA-256 of a file, in hex.
fn sha256(path: &Path) -> anyhow::Result<String> {
    use io::Read as _;
    let mut file =
        fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count =
            file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if count == 0 {
            break;
        }
        context.update(&buffer[..count]);
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Replaces a file that only its owner may read.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    durable::replace(path, text.as_bytes(), 0o600, Until::OnDisk, |_| Ok(()))
        .map_err(|error| error.source)
}
