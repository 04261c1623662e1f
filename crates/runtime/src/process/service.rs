//! Starting and ending host modules, for whoever asks over a socket and may have been
//! taken over: only what the configuration has is started, and only what is a host
//! module's is ended or changes hands.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edgekeep_core::attestation::ProcessInstance;
use edgekeep_core::host::{Accounts, Daemon, Grants, NotGranted, Wanted};
use edgekeep_core::id::ModuleId;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::asked::{Answer, Asked, Failure, read_spec};
use super::group::ModuleCgroups;
use super::launcher::{self, StartMessage};
use super::prepared::{Prepared, Start};
use super::program::SealedProgram;
use super::{Launcher, ProcessSpec, account_files, accounts, own_rights};
use crate::evidence::ProcDir;

/// Starts that wait to be begun.
const MAX_WAITING: usize = 64;

/// Longest time that a start waits to be begun. Whoever asked for it gave up before.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts and ends host modules.
#[derive(Debug)]
pub struct LaunchService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    launcher: Launcher,
    cgroups: ModuleCgroups,
    /// Bounds of what may be asked for; `None`: everything may be asked for.
    bounds: Option<Bounds>,
    next: AtomicU32,
    waiting: Mutex<HashMap<u32, Waits>>,
    /// The processes that this one has started and not yet waited for.
    children: Mutex<HashMap<u32, ProcessInstance>>,
}

/// The bounds of what the asking process may ask for.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The host modules that may be started, and whose processes may be ended.
    pub grants: Grants,
    /// The folder of the asking process. Only folders below it change hands.
    pub folder: PathBuf,
}

/// A process that waits to become a module. It ends when this is dropped.
struct Waits {
    control: UnixStream,
    program: SealedProgram,
    stderr: OwnedFd,
    message: StartMessage,
    process: ProcessInstance,
    since: Instant,
}

/// The message may hold secrets.
impl std::fmt::Debug for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waits").field("process", &self.process).finish_non_exhaustive()
    }
}

/// A judgement of a user by the configuration.
type JudgeUser = fn(&Grants, u32, &Daemon, &Accounts) -> Result<(), NotGranted>;

type Answered = Result<(Answer, Vec<OwnedFd>), Failure>;

impl LaunchService {
    /// Starts whatever is asked for, as whoever asks could itself.
    #[must_use]
    pub fn unbounded(launcher: Launcher, cgroups: ModuleCgroups) -> Self {
        Self::new(launcher, cgroups, None)
    }

    /// Does what is within bounds alone.
    #[must_use]
    pub fn bounded(launcher: Launcher, cgroups: ModuleCgroups, bounds: Bounds) -> Self {
        Self::new(launcher, cgroups, Some(bounds))
    }

    fn new(launcher: Launcher, cgroups: ModuleCgroups, bounds: Option<Bounds>) -> Self {
        Self(Arc::new(Inner {
            launcher,
            cgroups,
            bounds,
            next: AtomicU32::new(first_number(std::process::id())),
            waiting: Mutex::default(),
            children: Mutex::default(),
        }))
    }

    /// Does what is asked for. In a tokio runtime.
    pub fn answer(
        &self,
        asked: Asked,
        files: Vec<OwnedFd>,
    ) -> impl Future<Output = (Answer, Vec<OwnedFd>)> + Send + use<> {
        let inner = Arc::clone(&self.0);
        async move {
            let answered = match asked {
                Asked::Clear { id, former, limit_groups } => {
                    let cleared = inner.cgroups.clear(&id, former.as_deref()).await;
                    inner.cgroups.remove_limit_groups(&id, &limit_groups);
                    Ok((Answer::Cleared(cleared), Vec::new()))
                }
                other => {
                    let done = tokio::task::spawn_blocking(move || inner.answer_now(other, files));
                    done.await.unwrap_or_else(|error| Err(Failure::machine(&error)))
                }
            };
            answered.unwrap_or_else(|failure| (Answer::Failed(failure), Vec::new()))
        }
    }
}

impl Inner {
    /// Does what takes no waiting for others. Blocks.
    fn answer_now(&self, asked: Asked, files: Vec<OwnedFd>) -> Answered {
        let alone = |answer| Ok((answer, Vec::new()));
        match asked {
            Asked::About => alone(Answer::About {
                without_cgroups: self.cgroups.unavailable().map(str::to_owned),
            }),
            Asked::Accounts => {
                let opened = account_files().map_err(|error| Failure::machine(&error))?;
                Ok((Answer::Done, opened.map(OwnedFd::from).into()))
            }
            Asked::Prepare { id } => self.prepare(&id, files),
            Asked::Begin { number } => {
                let unknown = || Failure::Refused("nothing waits under that number".into());
                let waits = self.waiting().remove(&number).ok_or_else(unknown)?;
                let Waits { control, program, stderr, message, .. } = waits;
                launcher::send(&control, &message, program.as_fd(), stderr.as_fd())
                    .map_err(|error| Failure::machine(&error))
                    .map(|note| (Answer::Began(note), Vec::new()))
            }
            Asked::Cancel { number } => {
                if let Some(waits) = self.waiting().remove(&number) {
                    let process = waits.process;
                    drop(waits);
                    self.end_child(process);
                }
                alone(Answer::Done)
            }
            Asked::Signal { id, process, kill } => {
                self.signal(&id, process, if kill { Signal::KILL } else { Signal::TERM })?;
                alone(Answer::Done)
            }
            Asked::Ended { process, stopping } => {
                alone(Answer::Exit(self.ended(process, stopping)))
            }
            Asked::Discard { id, cgroup, limit_groups } => {
                if let Some(cgroup) = cgroup.filter(|path| self.cgroups.is_modules(&id, path))
                    && !self.cgroups.is_scope(&id, &cgroup)
                {
                    self.cgroups.remove_if_empty(&cgroup);
                }
                self.cgroups.remove_limit_groups(&id, &limit_groups);
                alone(Answer::Done)
            }
            Asked::HandOver { uid, gid } => {
                let [folder] = files_of(files)?;
                self.hand_over(&folder, uid, gid)?;
                alone(Answer::Done)
            }
            Asked::Clear { .. } => Err(Failure::Refused("not answered here".into())),
        }
    }

    fn prepare(&self, id: &ModuleId, files: Vec<OwnedFd>) -> Answered {
        let mut files = files.into_iter();
        let (Some(spec), Some(stdout), Some(stderr)) = (files.next(), files.next(), files.next())
        else {
            return Err(Failure::Refused("descriptors are missing".into()));
        };
        let spec = read_spec(spec).map_err(|error| Failure::machine(&error))?;
        self.admit(&spec)?;
        self.end_forgotten(Instant::now());
        if self.waiting().len() >= MAX_WAITING {
            return Err(Failure::Machine("too many starts wait to be begun".into()));
        }
        let (program, from_file) = load(&spec, files.next())?;
        let own_copy = program.file().map_err(|error| Failure::machine(&error))?;
        let start = Start {
            id,
            ends: [stdout, stderr],
            spec: &spec,
            launcher: &self.launcher,
            cgroups: &self.cgroups,
        };
        let prepared = start.prepare(program)?;
        let Prepared { program, control, stderr, process, pidfd, cgroup, limits } = prepared;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let message = StartMessage {
            argv0: spec.executable.to_string_lossy().into_owned(),
            args: spec.args,
            env: with_path(spec.env),
            working_dir: spec.working_dir,
            plan: spec.plan,
        };
        self.children().insert(process.pid, process);
        let since = Instant::now();
        let waits = Waits { control, program, stderr, message, process, since };
        self.waiting().insert(number, waits);
        let answer = Answer::Prepared {
            number,
            process,
            own_copy,
            from_file,
            cgroup,
            limits: limits.summary,
            limit_groups: limits.groups,
        };
        Ok((answer, vec![pidfd]))
    }

    /// Lets only pass what the configuration has.
    fn admit(&self, spec: &ProcessSpec) -> Result<(), Failure> {
        let Some(Bounds { grants, .. }) = &self.bounds else { return Ok(()) };
        let machine = |error: io::Error| Failure::machine(&error);
        let (own, accounts) = (own_rights().map_err(machine)?, accounts().map_err(machine)?);
        let wanted = Wanted {
            name: &spec.image,
            executable: &spec.executable.to_string_lossy(),
            sha256: &spec.sha256,
            env: &spec.env,
            working_dir: spec.working_dir.as_deref().and_then(Path::to_str),
            plan: &spec.plan,
        };
        grants.admit(&wanted, &own, &accounts).map_err(|error| Failure::Refused(error.to_string()))
    }

    /// Lets only users pass that the configuration has for it.
    fn admit_user(&self, uid: u32, judge: JudgeUser) -> Result<(), Failure> {
        let Some(Bounds { grants, .. }) = &self.bounds else { return Ok(()) };
        let machine = |error: io::Error| Failure::machine(&error);
        let (own, accounts) = (own_rights().map_err(machine)?, accounts().map_err(machine)?);
        judge(grants, uid, &own, &accounts).map_err(|error| Failure::Refused(error.to_string()))
    }

    fn signal(
        &self,
        id: &ModuleId,
        process: ProcessInstance,
        signal: Signal,
    ) -> Result<(), Failure> {
        let Some(pid) = pid_of(process) else { return Ok(()) };
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        // While the pidfd's process lives, its number, and so its group's, is its own.
        let found = ProcDir::open(process.pid, pidfd.as_fd()).and_then(|found| found.stat());
        if found.is_ok_and(|stat| stat.start_time == process.start_time) {
            let started_here = self.children().get(&process.pid) == Some(&process);
            if !started_here && !self.cgroups.holds(id, process.pid) {
                let owner = std::fs::metadata(format!("/proc/{}", process.pid));
                let uid = owner.map_err(|error| Failure::machine(&error))?.uid();
                self.admit_user(uid, Grants::admit_end)?;
            }
            let _ = rustix::process::kill_process_group(pid, signal);
            let _ = rustix::process::pidfd_send_signal(&pidfd, signal);
        }
        Ok(())
    }

    /// Waits for a child that has ended, and returns its code.
    fn ended(&self, process: ProcessInstance, stopping: bool) -> Option<i64> {
        // Held to the end: the number stays the child's until the one wait for it.
        let mut children = self.children();
        if children.get(&process.pid) != Some(&process) {
            return None;
        }
        let pid = pid_of(process)?;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        rustix::process::waitid(WaitId::Pid(pid), look | WaitIdOptions::NOWAIT).ok()??;
        if stopping {
            // Not waited for yet: the number is still its own, and what is left of its
            // group can be ended.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        let status = rustix::process::waitid(WaitId::Pid(pid), look).ok()??;
        children.remove(&process.pid);
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        status.exit_status().or(signal).map(i64::from)
    }

    /// Ends a child that never became a module.
    fn end_child(&self, process: ProcessInstance) {
        if self.children().remove(&process.pid).is_none() {
            return;
        }
        if let Some(pid) = pid_of(process) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
        }
    }

    /// Ends the starts that nobody begins any more.
    fn end_forgotten(&self, now: Instant) {
        let is_old = |waits: &Waits| now.saturating_duration_since(waits.since) > LONGEST_WAIT;
        let old: Vec<Waits> =
            self.waiting().extract_if(|_, waits| is_old(waits)).map(|(_, waits)| waits).collect();
        for waits in old {
            let process = waits.process;
            drop(waits);
            self.end_child(process);
        }
    }

    fn hand_over(&self, folder: &OwnedFd, uid: u32, gid: u32) -> Result<(), Failure> {
        let machine = |errno: rustix::io::Errno| Failure::machine(&io::Error::from(errno));
        let found = rustix::fs::fstat(folder).map_err(machine)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            return Err(Failure::Refused("only folders change hands".into()));
        }
        self.admit_user(uid, Grants::admit_owner)?;
        if let Some(Bounds { folder: own, .. }) = &self.bounds {
            if ![rustix::process::getegid().as_raw(), uid].contains(&gid) {
                return Err(Failure::Refused(format!("folders are not given to group {gid}")));
            }
            // The kernel's word for the place is a hint: it is the place in the mount
            // namespace of whoever opened the folder, who may have mounted another there.
            let place = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()));
            let place = place.map_err(|error| Failure::machine(&error))?;
            let own = own.canonicalize().map_err(|error| Failure::machine(&error))?;
            let below = place.strip_prefix(&own).ok().filter(|below| !below.as_os_str().is_empty());
            let there = below.and_then(|below| folder_below(&own, below).ok());
            let there = there.filter(|there| {
                rustix::fs::fstat(there)
                    .is_ok_and(|it| (it.st_dev, it.st_ino) == (found.st_dev, found.st_ino))
            });
            let Some(there) = there else {
                return Err(Failure::Refused("only the daemon's own folders change hands".into()));
            };
            return give(&there, uid, gid).map_err(machine);
        }
        give(folder, uid, gid).map_err(machine)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, Waits>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn children(&self) -> MutexGuard<'_, HashMap<u32, ProcessInstance>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of the first start of the launcher with this process number. Launchers
/// after one another begin apart, so that none takes a start that an earlier one prepared
/// for one of its own.
fn first_number(pid: u32) -> u32 {
    pid.wrapping_shl(10) | 1
}

/// Opens a folder below `top` in this process's own mount namespace, through no link.
fn folder_below(top: &Path, below: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(top, flags, Mode::empty())?;
    for name in below.components() {
        at = rustix::fs::openat(&at, name.as_os_str(), flags, Mode::empty())?;
    }
    Ok(at)
}

/// Gives an open folder to a user and a group.
fn give(folder: &OwnedFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(folder, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

/// The program from its file or, if that has another content, from the copy that was
/// kept; and whether it was the file.
fn load(spec: &ProcessSpec, kept: Option<OwnedFd>) -> Result<(SealedProgram, bool), Failure> {
    match SealedProgram::load(&spec.executable, &spec.sha256) {
        Ok(program) => Ok((program, true)),
        // What is the matter is told about the file, not about the copy.
        Err(error) => kept
            .and_then(|kept| {
                let path = Path::new("the copy that was kept");
                SealedProgram::from_open(path, File::from(kept), &spec.sha256).ok()
            })
            .map(|program| (program, false))
            .ok_or_else(|| Failure::from(super::ProcessError::from(error))),
    }
}

fn with_path(
    mut env: std::collections::BTreeMap<String, String>,
) -> std::collections::BTreeMap<String, String> {
    env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    env
}

/// The number of a process that may be signalled: to signal the group of the first one is
/// to signal everything.
fn pid_of(process: ProcessInstance) -> Option<Pid> {
    Pid::from_raw(i32::try_from(process.pid).ok()?).filter(|pid| !pid.is_init())
}

fn files_of<const N: usize>(files: Vec<OwnedFd>) -> Result<[OwnedFd; N], Failure> {
    files.try_into().map_err(|_| Failure::Refused("descriptors are missing".into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use edgekeep_core::host::HostModule;
    use edgekeep_core::settings::ModuledSettings;
    use proptest::prelude::*;

    use super::super::asked::spec_file;
    use super::super::own_plan;
    use super::*;
    use crate::evidence::{CgroupHierarchy, sha256_of};

    type Change = fn(&mut ProcessSpec);

    /// A service that may start `/bin/sleep` under the name "sleep".
    fn service(folder: &Path) -> LaunchService {
        let digest = sha256_of(&std::fs::read("/bin/sleep").expect("exists"));
        let mut settings: ModuledSettings =
            serde_json::from_str(r#"{ "hostname": "h" }"#).expect("settings");
        settings.host_modules.insert("sleep".into(), HostModule::new("/bin/sleep", digest));
        let bounds = Bounds { grants: Grants::of(&settings), folder: folder.to_owned() };
        let launcher = Launcher { program: "/bin/false".into(), args: Vec::new() };
        let cgroups = ModuleCgroups::none(CgroupHierarchy::detect(), "as a test");
        LaunchService::bounded(launcher, cgroups, bounds)
    }

    fn spec(change: impl FnOnce(&mut ProcessSpec)) -> ProcessSpec {
        let mut spec = ProcessSpec {
            image: "sleep".into(),
            executable: "/bin/sleep".into(),
            sha256: sha256_of(&std::fs::read("/bin/sleep").expect("exists")),
            args: vec!["1000".into()],
            env: std::collections::BTreeMap::new(),
            working_dir: None,
            plan: own_plan(),
        };
        change(&mut spec);
        spec
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").expect("exists").into()
    }

    fn id() -> ModuleId {
        "m".parse().expect("valid id")
    }

    async fn refusal(service: &LaunchService, asked: Asked, files: Vec<OwnedFd>) -> String {
        match service.answer(asked, files).await.0 {
            Answer::Failed(Failure::Refused(why)) => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[tokio::test]
    async fn only_what_is_configured_is_started() {
        let folder = tempfile::tempdir().expect("temp folder");
        let service = service(folder.path());
        let ask = |spec: &ProcessSpec| {
            let files = vec![spec_file(spec).expect("written"), null(), null()];
            service.answer(Asked::Prepare { id: id() }, files)
        };
        // What is configured gets as far as the program that should be the launcher.
        let answer = ask(&spec(|_| ())).await.0;
        assert!(matches!(answer, Answer::Failed(Failure::Machine(_))), "{answer:?}");
        let changes: [(Change, &str); 4] = [
            (|spec| spec.image = "other".into(), "has no host module \"other\""),
            (|spec| spec.executable = "/bin/sh".into(), "executable"),
            (|spec| spec.plan.limits.pids_max = Some(1), "plan"),
            (|spec| _ = spec.env.insert("LD_PRELOAD".into(), "/tmp/a".into()), "environment"),
        ];
        for (change, what) in changes {
            let answer = ask(&spec(change)).await.0;
            let Answer::Failed(Failure::Refused(why)) = answer else { panic!("{answer:?}") };
            assert!(why.contains(what), "{why}");
        }
    }

    #[tokio::test]
    async fn a_copy_that_was_kept_is_started_only_with_the_content_of_the_module() {
        let service = service(Path::new("/tmp"));
        let other = spec(|spec| spec.sha256 = edgekeep_core::digest::Sha256Digest::new([1; 32]));
        let files = vec![spec_file(&other).expect("written"), null(), null(), null()];
        let why = refusal(&service, Asked::Prepare { id: id() }, files).await;
        assert!(why.contains("digest"), "{why}");
    }

    #[tokio::test]
    async fn a_process_of_a_user_that_no_module_has_is_not_ended() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let service = service(Path::new("/tmp"));
        let mut sleeper = std::process::Command::new("/bin/sleep");
        std::os::unix::process::CommandExt::uid(&mut sleeper, 64_733);
        let mut sleeper = sleeper.arg("1000").spawn().expect("started");
        let stat = ProcDir::open_unproved(sleeper.id()).and_then(|found| found.stat());
        let start_time = stat.expect("runs").start_time;
        let process = ProcessInstance { pid: sleeper.id(), start_time };
        let why = refusal(&service, Asked::Signal { id: id(), process, kill: true }, vec![]).await;
        assert!(why.contains("64733"), "{why}");
        assert!(sleeper.try_wait().expect("ours").is_none(), "it goes on");
        sleeper.kill().and_then(|()| sleeper.wait()).expect("ours");
    }

    #[test]
    fn a_start_that_nobody_begins_is_ended_after_a_while_and_holds_up_no_other() {
        let inner = service(Path::new("/tmp")).0;
        let mut waiter = std::process::Command::new("/bin/cat");
        let (control, theirs) = UnixStream::pair().expect("pair");
        let waiter = waiter.stdin(std::process::Stdio::from(OwnedFd::from(theirs)));
        #[expect(clippy::zombie_processes, reason = "what is tested waits for it")]
        let child = waiter.stdout(std::process::Stdio::null()).spawn().expect("started");
        let stat = ProcDir::open_unproved(child.id()).and_then(|found| found.stat());
        let start_time = stat.expect("runs").start_time;
        let process = ProcessInstance { pid: child.id(), start_time };
        let message = StartMessage {
            argv0: String::new(),
            args: Vec::new(),
            env: std::collections::BTreeMap::new(),
            working_dir: None,
            plan: own_plan(),
        };
        let sleep = Path::new("/bin/sleep");
        let digest = sha256_of(&std::fs::read(sleep).expect("exists"));
        let program = SealedProgram::load(sleep, &digest).expect("loaded");
        let since = Instant::now();
        let waits = Waits { control, program, stderr: null(), message, process, since };
        inner.children().insert(process.pid, process);
        inner.waiting().insert(1, waits);
        inner.end_forgotten(since + LONGEST_WAIT);
        assert_eq!(inner.waiting().len(), 1, "it may still be begun");
        inner.end_forgotten(since + LONGEST_WAIT + Duration::from_secs(1));
        assert!(inner.waiting().is_empty() && inner.children().is_empty());
        let proc = format!("/proc/{}", process.pid);
        assert!(!Path::new(&proc).exists(), "it is ended, and waited for");
    }

    #[tokio::test]
    async fn only_folders_below_the_daemons_own_change_hands() {
        let folder = tempfile::tempdir().expect("temp folder");
        let (own, other) = (folder.path().join("own"), folder.path().join("other"));
        for path in [&own, &other, &own.join("m")] {
            std::fs::create_dir(path).expect("made");
        }
        std::os::unix::fs::symlink(&other, own.join("link")).expect("made");
        std::fs::write(own.join("file"), "").expect("written");
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).expect("ours");
        let service = service(&own);
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let (uid, gid) = (uid.as_raw(), gid.as_raw());
        let open = |path: &Path| vec![OwnedFd::from(File::open(path).expect("opened"))];
        let give = |uid, gid| Asked::HandOver { uid, gid };
        let done = service.answer(give(uid, gid), open(&own.join("m"))).await.0;
        assert!(matches!(done, Answer::Done), "{done:?}");
        for (path, uid, gid, what) in [
            (&other, uid, gid, "own folders"),
            (&own, uid, gid, "own folders"),
            (&own.join("link"), uid, gid, "own folders"),
            (&own.join("file"), uid, gid, "only folders"),
            (&own.join("m"), 64_733, gid, "64733"),
            (&own.join("m"), uid, 64_733, "64733"),
        ] {
            let why = refusal(&service, give(uid, gid), open(path)).await;
            assert!(why.contains(what), "{}: {why}", path.display());
        }
        assert!(refusal(&service, give(uid, gid), vec![]).await.contains("missing"));
        assert!(refusal(&service, Asked::Begin { number: 5 }, vec![]).await.contains("number"));
    }

    /// A process may mount any folder over one of the daemon's own, in a mount namespace
    /// of its own, and pass a descriptor of that place.
    #[tokio::test]
    async fn a_folder_that_is_mounted_over_the_daemons_own_elsewhere_does_not_change_hands() {
        use std::io::BufRead as _;
        let folder = tempfile::tempdir().expect("temp folder");
        let (own, target) = (folder.path().join("own"), folder.path().join("target"));
        for path in [&own, &target, &own.join("m")] {
            std::fs::create_dir(path).expect("made");
        }
        let place = own.join("m");
        let script = "mount --bind \"$1\" \"$2\" && echo ready && exec sleep 1000";
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.args([&target, &place]).stdout(std::process::Stdio::piped());
        let mut elsewhere = command.spawn().expect("started");
        let mut said = String::new();
        let output = elsewhere.stdout.take().expect("piped");
        io::BufReader::new(output).read_line(&mut said).expect("read");
        if said.trim() == "ready" {
            let seen = Path::new("/proc").join(elsewhere.id().to_string()).join("root");
            let seen = seen.join(place.strip_prefix("/").expect("absolute"));
            let passed = OwnedFd::from(File::open(seen).expect("opened"));
            let named = std::fs::read_link(format!("/proc/self/fd/{}", passed.as_raw_fd()));
            assert_eq!(named.expect("read"), place, "its place looks like the daemon's own");
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            let asked = Asked::HandOver { uid: uid.as_raw(), gid: gid.as_raw() };
            let why = refusal(&service(&own), asked, vec![passed]).await;
            assert!(why.contains("own folders"), "{why}");
        } else {
            eprintln!("skipped: no namespaces of users here");
        }
        let _ = elsewhere.kill();
        elsewhere.wait().expect("ours");
    }

    proptest! {
        /// A question that is not one is never taken for one; one that is comes back as
        /// it was.
        #[test]
        fn questions_are_read_as_they_were_written(pid: u32, start_time: u64, kill: bool, cut in 0usize..40) {
            let asked = Asked::Signal { id: id(), process: ProcessInstance { pid, start_time }, kill };
            let text = serde_json::to_vec(&asked).expect("text");
            let again: Asked = serde_json::from_slice(&text).expect("read");
            prop_assert_eq!(serde_json::to_vec(&again).expect("text"), text.clone());
            let shorter = &text[..text.len().saturating_sub(cut + 1)];
            prop_assert!(serde_json::from_slice::<Asked>(shorter).is_err());
        }
    }
}
