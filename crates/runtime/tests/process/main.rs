//! Host modules against the real kernel: programs of this machine, started through the
//! real launcher.

mod scopes;
mod updates;

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgekeep_core::attestation::{DenyReason, PeerHandle, Running, RunningFacts};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::host::{Enforcement, HostModule, LaunchPlan, ScopeUse, SeccompPreset, plan};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::store::sha256;
use edgekeep_runtime::evidence::{
    CgroupHierarchy, Collector, ContainerCgroups, ProcDir, StartedFrom,
};
use edgekeep_runtime::gauge::Gauge;
use edgekeep_runtime::logs::LogQuery;
use edgekeep_runtime::process::{
    LaunchService, Launcher, Launching, ModuleCgroups, ProcessError, ProcessRuntime, ProcessSpec,
    accounts, own_rights,
};
use edgekeep_runtime::status::ModuleState;
use rustix::process::{Pid, PidfdFlags, Signal};

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn module(name: &str) -> ModuleId {
    name.parse().expect("valid id")
}

fn digest(path: &str) -> Sha256Digest {
    sha256(&std::fs::read(path).expect("exists"))
}

fn spec(executable: &str, args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        image: "test".into(),
        executable: executable.into(),
        sha256: digest(executable),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: BTreeMap::new(),
        working_dir: None,
        plan: planned(|_| ()),
    }
}

/// The plan for a host module with these grants.
fn planned(change: impl FnOnce(&mut HostModule)) -> LaunchPlan {
    let mut module = HostModule::new("/bin/sh", Sha256Digest::new([0; 32]));
    change(&mut module);
    plan(&module, &own_rights().expect("known"), &accounts().expect("readable"), true, None)
        .expect("possible")
}

fn shell(script: &str) -> ProcessSpec {
    spec("/bin/sh", &["-c", script])
}

fn cgroups(folder: &Path) -> ModuleCgroups {
    // The temp folder's name is this test's own.
    let instance =
        folder.file_name().expect("has one").to_string_lossy().trim_start_matches('.').to_owned();
    // Where systemd runs, all this is true in scopes as well.
    ModuleCgroups::below_own(CgroupHierarchy::detect(), &instance).in_scopes(ScopeUse::Auto, false)
}

async fn runtime(folder: &Path) -> ProcessRuntime {
    runtime_in(folder, cgroups(folder)).await
}

async fn runtime_in(folder: &Path, cgroups: ModuleCgroups) -> ProcessRuntime {
    let launcher = Launcher {
        program: PathBuf::from(env!("CARGO_BIN_EXE_edgekeep-test-launcher")),
        args: Vec::new(),
    };
    let launching = Launching::here(LaunchService::unbounded(launcher, cgroups));
    let collector = Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default());
    ProcessRuntime::open(&folder.join("host"), launching, Gauge::here(collector))
        .await
        .expect("writable")
}

fn running(runtime: &ProcessRuntime, id: &ModuleId) -> Running {
    match runtime.facts(id) {
        RunningFacts::Running(running) => running,
        other => panic!("{id} does not run: {other:?}, {runtime:?}"),
    }
}

async fn log(runtime: &ProcessRuntime, id: &ModuleId) -> String {
    let mut stream = runtime.logs(id, &LogQuery::default()).expect("readable");
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        text.push_str(&String::from_utf8_lossy(&piece.expect("no error")[8..]));
    }
    text
}

/// The first line that a running module prints from now on, or printed before.
async fn first_line(runtime: &ProcessRuntime, id: &ModuleId) -> String {
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut stream = runtime.logs(id, &query).expect("readable");
    let piece = tokio::time::timeout(LONG, stream.next())
        .await
        .expect("prints")
        .expect("runs")
        .expect("no error");
    String::from_utf8_lossy(&piece[8..]).trim().to_owned()
}

#[tokio::test]
async fn a_module_runs_exactly_the_registered_bytes_with_its_own_environment_and_no_new_privileges()
{
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("thermometer");
    let script =
        "echo $0 $NAME $PATH $(grep NoNewPrivs /proc/self/status) $(env | wc -l); exec sleep 1000";
    let mut spec = shell(script);
    spec.env.insert("NAME".into(), "value".into());
    spec.env.insert("PATH".into(), "/usr/bin:/bin".into());
    runtime.create(&id, spec).await.expect("created");
    assert_eq!(runtime.facts(&id), RunningFacts::Stopped);
    runtime.start(&id).await.expect("started");
    runtime.start(&id).await.expect("runs already");
    // Three variables: NAME, PATH, and the shell's own PWD.
    assert_eq!(first_line(&runtime, &id).await, "/bin/sh value /usr/bin:/bin NoNewPrivs: 1 3");

    runtime.stop(&id, LONG).await.expect("ends");
    let status = runtime.status(&id).await.expect("exists");
    assert_eq!(
        (status.state, status.exit.expect("ended").code),
        (ModuleState::Failed, Some(128 + 15))
    );
    runtime.remove(&id).await.expect("removed");
    assert!(runtime.list().await.is_empty());
}

#[tokio::test]
async fn the_kernel_tells_a_module_by_its_digest_its_first_process_and_its_cgroup() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("thermometer");
    runtime.create(&id, spec("/bin/sleep", &["1000"])).await.expect("created");
    runtime.start(&id).await.expect("started");
    let facts = running(&runtime, &id);

    let pid = Pid::from_raw(i32::try_from(facts.init.pid).expect("pid")).expect("pid");
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("lives");
    let process = ProcDir::open(facts.init.pid, pidfd.as_fd()).expect("visible");
    let collector = Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default());
    let evidence = collector.identify(PeerHandle::PidfdOpen, &process, None).expect("lives");
    let started_from = StartedFrom::from(&runtime.facts(&id));
    // Without the word of whoever started it, a program in memory is nobody's.
    let error = collector
        .measure(&process, evidence.clone(), StartedFrom::default(), None)
        .expect_err("in memory");
    assert_eq!(error.reason(), DenyReason::ExecutableNameless);
    let evidence = collector.measure(&process, evidence, started_from, None).expect("unchanged");
    assert_eq!(evidence.snapshot.process, facts.init);
    assert_eq!(evidence.measurement.expect("measured").digest, digest("/bin/sleep"));
    match (&facts.cgroup, runtime.without_cgroups()) {
        (Some(cgroup), None) => assert_eq!(&evidence.snapshot.cgroup, cgroup),
        (None, Some(why)) => eprintln!("skipped the cgroup: {why}"),
        other => panic!("cgroups and their absence disagree: {other:?}"),
    }
    runtime.remove(&id).await.expect("removed");
    assert_eq!(runtime.facts(&id), RunningFacts::Stopped);
}

#[tokio::test]
async fn an_executable_that_was_changed_after_registration_is_not_started() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let path = folder.path().join("program");
    std::fs::copy("/bin/sleep", &path).expect("copied");
    let path = path.to_str().expect("text");
    let id = module("changed");
    runtime.create(&id, spec(path, &["1000"])).await.expect("created");
    std::fs::copy("/bin/true", path).expect("copied");
    let error = runtime.start(&id).await.expect_err("other content");
    assert!(error.to_string().contains(&digest("/bin/true").to_string()), "{error}");
    assert_eq!(runtime.facts(&id), RunningFacts::Stopped);
    let mut wrong = spec("/bin/sleep", &[]);
    wrong.sha256 = Sha256Digest::new([0; 32]);
    let error = runtime.create(&module("wrong"), wrong).await.expect_err("other content");
    assert_eq!(error.status(), Some(400));
}

#[tokio::test]
async fn a_change_of_the_file_while_the_module_runs_does_not_reach_it() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let path = folder.path().join("program");
    std::fs::copy("/bin/sleep", &path).expect("copied");
    let id = module("sealed");
    runtime.create(&id, spec(path.to_str().expect("text"), &["1000"])).await.expect("created");
    runtime.start(&id).await.expect("started");
    // An ordinary running executable would refuse this with "text file busy".
    std::fs::write(&path, "other").expect("nothing executes this file");
    let exe =
        std::fs::read(format!("/proc/{}/exe", running(&runtime, &id).init.pid)).expect("lives");
    assert_eq!(sha256(&exe), digest("/bin/sleep"));
    runtime.remove(&id).await.expect("removed");
}

#[tokio::test]
async fn exit_codes_are_told_and_a_module_that_ended_can_start_again() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    for (name, script, code, state) in [
        ("fine", "exit 0", 0, ModuleState::Stopped),
        ("failing", "exit 7", 7, ModuleState::Failed),
        ("killed", "kill -9 $$", 137, ModuleState::Failed),
    ] {
        let id = module(name);
        runtime.create(&id, shell(script)).await.expect("created");
        for _ in 0..2 {
            runtime.start(&id).await.expect("started");
            runtime.ended(&id).await.expect("exists");
            let status = runtime.status(&id).await.expect("exists");
            assert_eq!(
                (status.state, status.exit.expect("ended").code),
                (state, Some(code)),
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn a_daemon_that_was_killed_finds_its_modules_running_and_their_output_complete() {
    let folder = tempfile::tempdir().expect("temp folder");
    let id = module("survivor");
    let script =
        "echo before; while [ ! -e \"$0/go\" ]; do sleep 0.01; done; echo after; exec sleep 1000";
    let init = {
        let first = runtime(folder.path()).await;
        let mut spec = shell(script);
        spec.args.push(folder.path().to_string_lossy().into_owned());
        first.create(&id, spec).await.expect("created");
        first.start(&id).await.expect("started");
        assert_eq!(first_line(&first, &id).await, "before");
        running(&first, &id).init
        // Dropped without stopping: what is on disk is what a killed daemon leaves.
    };
    std::fs::write(folder.path().join("go"), "").expect("written");

    let second = runtime(folder.path()).await;
    assert_eq!(running(&second, &id).init, init);
    assert_eq!(second.status(&id).await.expect("exists").state, ModuleState::Running);
    let error = second.create(&id, shell("true")).await.expect_err("exists");
    assert!(matches!(error, ProcessError::Exists { .. }), "{error}");
    second.stop(&id, LONG).await.expect("ends");
    assert_eq!(second.facts(&id), RunningFacts::Stopped);
    assert!(log(&second, &id).await.starts_with("before\n"));
}

#[tokio::test]
async fn a_module_that_ended_while_no_daemon_ran_has_ended_in_an_unknown_way() {
    let folder = tempfile::tempdir().expect("temp folder");
    let id = module("lost");
    let run = {
        let first = runtime(folder.path()).await;
        first.create(&id, spec("/bin/sleep", &["1000"])).await.expect("created");
        first.start(&id).await.expect("started");
        // The state as it is while the module runs, put back after its end.
        let state = folder.path().join("host/lost/module.json");
        let bytes = std::fs::read(&state).expect("written");
        first.stop(&id, LONG).await.expect("ends");
        std::fs::write(&state, &bytes).expect("written");
        bytes
    };
    assert!(String::from_utf8_lossy(&run).contains("start_time"));
    let second = runtime(folder.path()).await;
    assert_eq!(second.facts(&id), RunningFacts::Stopped);
    let status = second.status(&id).await.expect("exists");
    assert_eq!((status.state, status.exit.expect("ended").code), (ModuleState::Failed, None));
    second.start(&id).await.expect("starts again");
    second.remove(&id).await.expect("removed");
}

#[tokio::test]
async fn a_module_that_ignores_sigterm_is_killed_after_its_grace_with_all_it_started() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("stubborn");
    let script = "trap '' TERM; setsid sleep 1000 & echo $!; while :; do sleep 1000; done";
    runtime.create(&id, shell(script)).await.expect("created");
    runtime.start(&id).await.expect("started");
    let child =
        first_line(&runtime, &id).await.parse().ok().and_then(Pid::from_raw).expect("a pid");
    let pidfd = rustix::process::pidfd_open(child, PidfdFlags::empty()).expect("lives");
    runtime.stop(&id, Duration::from_millis(50)).await.expect("killed");
    assert_eq!(runtime.status(&id).await.expect("exists").exit.expect("ended").code, Some(137));
    if let Some(why) = runtime.without_cgroups() {
        // Without a cgroup a child that made an own session is out of reach.
        eprintln!("skipped the child in its own session: {why}");
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    } else {
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).expect("ended, or this hangs");
    }
}

/// A module whose first process ended by itself and left a child in a session of its own:
/// the child.
async fn with_leftover(runtime: &ProcessRuntime, id: &ModuleId) -> std::os::fd::OwnedFd {
    runtime.create(id, shell("setsid sleep 1000 & echo $!")).await.expect("created");
    runtime.start(id).await.expect("started");
    runtime.ended(id).await.expect("exists");
    let child = log(runtime, id).await.trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
    let child = rustix::process::pidfd_open(child, PidfdFlags::empty()).expect("lives");
    assert_eq!(
        runtime.facts(id),
        RunningFacts::Stopped,
        "a child that was left behind is not the module"
    );
    child
}

/// Fails unless the process has ended or does so soon.
async fn ends(process: std::os::fd::OwnedFd) {
    let ended = tokio::task::spawn_blocking(move || {
        let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let ended = rustix::event::poll(&mut fds, Some(&limit)) == Ok(1);
        let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
        ended
    });
    assert!(ended.await.expect("no panic"), "a process of the module survives");
}

/// Returns true if leftovers are out of reach on this machine. Prints that the test is
/// skipped then.
fn skipped_without_cgroups(runtime: &ProcessRuntime) -> bool {
    if let Some(why) = runtime.without_cgroups() {
        eprintln!("skipped: {why}");
    }
    runtime.without_cgroups().is_some()
}

#[tokio::test]
async fn what_a_module_that_ended_by_itself_left_behind_ends_when_it_is_stopped() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    if skipped_without_cgroups(&runtime) {
        return;
    }
    let child = with_leftover(&runtime, &module("parent")).await;
    runtime.stop(&module("parent"), LONG).await.expect("cleared");
    ends(child).await;
}

#[tokio::test]
async fn what_a_module_that_ended_by_itself_left_behind_ends_when_it_is_removed() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    if skipped_without_cgroups(&runtime) {
        return;
    }
    let child = with_leftover(&runtime, &module("parent")).await;
    runtime.remove(&module("parent")).await.expect("cleared");
    ends(child).await;
}

#[tokio::test]
async fn what_a_module_that_ended_by_itself_left_behind_ends_before_it_is_started_again() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("parent");
    if skipped_without_cgroups(&runtime) {
        return;
    }
    let child = with_leftover(&runtime, &id).await;
    runtime.start(&id).await.expect("started");
    ends(child).await;
    runtime.remove(&id).await.expect("removed");
}

#[tokio::test]
async fn what_a_module_that_ended_by_itself_left_behind_ends_when_the_daemon_starts() {
    let folder = tempfile::tempdir().expect("temp folder");
    let id = module("parent");
    let first = runtime(folder.path()).await;
    if skipped_without_cgroups(&first) {
        return;
    }
    let child = with_leftover(&first, &id).await;
    drop(first);
    let second = runtime(folder.path()).await;
    assert_eq!(second.facts(&id), RunningFacts::Stopped);
    ends(child).await;
    second.remove(&id).await.expect("removed");
}

#[tokio::test]
async fn a_daemon_without_cgroups_of_its_own_ends_what_is_left_in_one_that_an_earlier_daemon_made()
{
    let folder = tempfile::tempdir().expect("temp folder");
    let id = module("parent");
    let first = runtime(folder.path()).await;
    if skipped_without_cgroups(&first) {
        return;
    }
    let child = with_leftover(&first, &id).await;
    drop(first);
    let none = ModuleCgroups::none(CgroupHierarchy::detect(), "as a test");
    let second = runtime_in(folder.path(), none).await;
    second.stop(&id, LONG).await.expect("cleared");
    ends(child).await;
}

#[tokio::test]
async fn what_hides_in_a_group_below_the_modules_own_ends_with_it() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("parent");
    if skipped_without_cgroups(&runtime) {
        return;
    }
    runtime
        .create(&id, shell("setsid sleep 1000 & echo $!; exec sleep 1000"))
        .await
        .expect("created");
    runtime.start(&id).await.expect("started");
    let child = first_line(&runtime, &id).await;
    let group = running(&runtime, &id).cgroup.expect("has one");
    let below = format!("{}{group}/below/deeper", CgroupHierarchy::detect().mount_point());
    std::fs::create_dir_all(&below).expect("may make groups");
    std::fs::write(format!("{below}/cgroup.procs"), &child).expect("moved");
    let child = child.parse().ok().and_then(Pid::from_raw).expect("a pid");
    let child = rustix::process::pidfd_open(child, PidfdFlags::empty()).expect("lives");
    runtime.stop(&id, LONG).await.expect("cleared");
    ends(child).await;
    assert!(!Path::new(&below).exists(), "the groups go as well");
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_says_why_and_leaves_no_process() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("nowhere");
    let mut spec = spec("/bin/sleep", &["1000"]);
    spec.working_dir = Some("/nonexistent".into());
    runtime.create(&id, spec).await.expect("created");
    let error = runtime.start(&id).await.expect_err("no such folder");
    let source = std::error::Error::source(&error).expect("has one").to_string();
    assert!(source.contains("No such file"), "{source}");
    assert_eq!(runtime.facts(&id), RunningFacts::Stopped);
    assert_eq!(runtime.status(&id).await.expect("exists").state, ModuleState::Failed);
}

#[tokio::test]
async fn a_module_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("none");
    for result in [
        runtime.start(&id).await,
        runtime.stop(&id, LONG).await,
        runtime.remove(&id).await,
        runtime.status(&id).await.map(drop),
        runtime.logs(&id, &LogQuery::default()).map(drop),
    ] {
        let error = result.expect_err("absent");
        assert_eq!(
            (error.status(), error.to_string().as_str()),
            (Some(404), "there is no host module none")
        );
    }
}

#[tokio::test]
async fn stopping_all_stops_all() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let ids = ["a", "b", "c"].map(module);
    for id in &ids {
        runtime.create(id, spec("/bin/sleep", &["1000"])).await.expect("created");
        runtime.start(id).await.expect("started");
    }
    runtime.stop_all(LONG).await;
    assert!(ids.iter().all(|id| runtime.facts(id) == RunningFacts::Stopped));
    assert_eq!(runtime.list().await.len(), 3);
}

/// The value of a line of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

fn am_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root becomes other users and makes cgroups");
    }
    root
}

/// Returns the output of a module that prints its own state and ends.
async fn printed(runtime: &ProcessRuntime, id: &ModuleId, spec: ProcessSpec) -> String {
    runtime.create(id, spec).await.expect("created");
    runtime.start(id).await.expect("started");
    tokio::time::timeout(LONG, runtime.ended(id)).await.expect("ends").expect("exists");
    log(runtime, id).await
}

#[tokio::test]
async fn another_user_has_no_groups_no_capabilities_and_no_way_back() {
    if !am_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let mut spec = shell(
        "cat /proc/self/status; pwd; id -u; cat /etc/shadow; echo x > /proc/self/oom_score_adj",
    );
    spec.plan = planned(|module| {
        module.user = Some("4711".into());
        module.group = Some("4712".into());
    });
    let text = printed(&runtime, &module("guest"), spec).await;
    assert_eq!(field(&text, "Uid").split_whitespace().collect::<Vec<_>>(), ["4711"; 4]);
    assert_eq!(field(&text, "Gid").split_whitespace().collect::<Vec<_>>(), ["4712"; 4]);
    assert_eq!(field(&text, "Groups"), "");
    assert_eq!(field(&text, "NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&text, set), "0000000000000000", "{set}");
    }
    assert!(text.contains("/etc/shadow: Permission denied"), "{text}");
    assert!(text.contains("\n/\n"), "starts in the root folder: {text}");
}

#[tokio::test]
async fn root_without_a_user_of_its_own_has_no_capabilities_either() {
    if !am_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("temp folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "s").expect("written");
    rustix::fs::chown(&secret, Some(rustix::fs::Uid::from_raw(4711)), None).expect("root may");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("root may");
    let runtime = runtime(folder.path()).await;
    let spec = shell(&format!("cat /proc/self/status; cat {}", secret.display()));
    let text = printed(&runtime, &module("plain"), spec).await;
    assert_eq!(field(&text, "Groups"), "");
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&text, set), "0000000000000000", "{set}");
    }
    assert!(text.contains("Permission denied"), "another's file is another's: {text}");
}

#[tokio::test]
async fn exactly_the_granted_capabilities_come_through_to_another_user() {
    if !am_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let mut spec = shell("cat /proc/self/status");
    spec.plan = planned(|module| {
        module.user = Some("4711".into());
        module.group = Some("4711".into());
        module.capabilities =
            ["net_bind_service", "kill"].iter().map(|name| name.parse().expect("known")).collect();
    });
    let text = printed(&runtime, &module("granted"), spec).await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&text, set), "0000000000000420", "{set}");
    }
}

#[tokio::test]
async fn a_folder_that_the_modules_user_cannot_enter_is_an_error_and_not_another_folder() {
    if !am_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("own folder");
    let mut spec = shell("pwd");
    spec.working_dir = Some(folder.path().to_owned());
    spec.plan = planned(|module| {
        module.user = Some("4711".into());
        module.group = Some("4711".into());
    });
    let id = module("outside");
    runtime.create(&id, spec).await.expect("created");
    let error = runtime.start(&id).await.expect_err("the temp folder is root's alone");
    let ProcessError::Start { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("Permission denied"), "{source}");
}

#[tokio::test]
async fn memory_beyond_the_limit_ends_the_module_and_its_status_says_what_keeps_it() {
    if !am_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("hungry");
    // Doubles a string until it is stopped, at 1 GiB by itself.
    let mut spec = shell("x=aaaaaaaa; while [ ${#x} -lt 1000000000 ]; do x=$x$x; done; echo grew");
    spec.plan = planned(|module| module.limits.memory_max = Some(32 << 20));
    runtime.create(&id, spec).await.expect("created");
    runtime.start(&id).await.expect("started");
    let note = runtime.status(&id).await.expect("exists").note;
    tokio::time::timeout(LONG, runtime.ended(&id)).await.expect("ends").expect("exists");
    let status = runtime.status(&id).await.expect("exists");
    assert_eq!(
        (status.state, status.exit.expect("ended").code),
        (ModuleState::Failed, Some(128 + 9))
    );
    assert!(!log(&runtime, &id).await.contains("grew"));
    assert!(note.is_none_or(|note| note.contains("limits: memory_max by cgroup v")));
    runtime.remove(&id).await.expect("removed");
}

#[tokio::test]
async fn limits_are_what_the_module_sees_and_a_fork_too_many_is_refused() {
    if !am_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("bounded");
    let script = "ulimit -n; cat /proc/self/cgroup; for i in 1 2 3 4 5 6 7 8; do sleep 0.2 & done; wait; echo all";
    let mut spec = shell(script);
    spec.plan = planned(|module| {
        module.limits.pids_max = Some(4);
        module.limits.nofile = Some(77);
        module.limits.cpu_quota = Some(50);
        module.limits.memory_max = Some(64 << 20);
    });
    let text = printed(&runtime, &id, spec).await;
    assert!(text.starts_with("77\n"), "{text}");
    assert!(!text.contains("\nall"), "{text}");
    assert!(text.to_lowercase().contains("fork"), "{text}");
    if matches!(CgroupHierarchy::detect(), CgroupHierarchy::V1(_)) {
        for controller in ["cpu", "memory", "pids"] {
            let line = text
                .lines()
                .find(|line| line.contains(&format!(":{controller}:")))
                .expect("a v1 hierarchy");
            assert!(line.ends_with("/m-bounded") || line.ends_with("-m-bounded.scope"), "{line}");
        }
    }
    // All groups went with the module.
    runtime.remove(&id).await.expect("removed");
    let instance = folder
        .path()
        .file_name()
        .expect("has one")
        .to_string_lossy()
        .trim_start_matches('.')
        .to_owned();
    for controller in ["cpu", "memory", "pids"] {
        let left = std::fs::read_dir(format!("/sys/fs/cgroup/{controller}"))
            .into_iter()
            .flatten()
            .flatten();
        let left: Vec<_> =
            left.filter(|it| it.file_name().to_string_lossy().ends_with(&instance)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn a_limit_that_cannot_be_set_refuses_the_start_unless_best_effort_is_enough() {
    let folder = tempfile::tempdir().expect("temp folder");
    let none = ModuleCgroups::none(CgroupHierarchy::detect(), "no cgroups in this test");
    let runtime = runtime_in(folder.path(), none).await;
    for (name, enforcement) in
        [("strict", Enforcement::Required), ("mild", Enforcement::BestEffort)]
    {
        let mut spec = spec("/bin/sleep", &["1000"]);
        spec.plan = planned(|module| {
            module.limits.memory_max = Some(64 << 20);
            module.limits.cpu_quota = Some(10);
            module.limits.enforcement = enforcement;
        });
        let id = module(name);
        runtime.create(&id, spec).await.expect("created");
        let started = runtime.start(&id).await;
        if enforcement == Enforcement::Required {
            let error = started.expect_err("refused").to_string();
            assert!(error.contains("memory_max cannot be set: no cgroups in this test"), "{error}");
            assert_eq!(runtime.facts(&id), RunningFacts::Stopped);
        } else {
            started.expect("runs");
            let note = runtime.status(&id).await.expect("exists").note.expect("a note");
            assert_eq!(
                note,
                "limits: memory_max only by RLIMIT_DATA (no cgroups in this test), cpu_quota not set (no cgroups in \
                 this test)"
            );
        }
        runtime.remove(&id).await.expect("removed");
    }
}

#[tokio::test]
async fn what_a_module_is_made_from_changes_with_its_next_start_and_not_before() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("renewed");
    runtime.create(&id, shell("echo old; exec sleep 1000")).await.expect("created");
    runtime.start(&id).await.expect("started");
    assert_eq!(first_line(&runtime, &id).await, "old");
    let before = running(&runtime, &id).init;
    runtime.renew(&id, shell("echo new; exec sleep 1000")).await.expect("written");
    assert_eq!(running(&runtime, &id).init, before);
    runtime.restart(&id, LONG).await.expect("restarted");
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut stream = runtime.logs(&id, &query).expect("readable");
    let mut text = String::new();
    while !text.contains("new") {
        let piece = tokio::time::timeout(LONG, stream.next())
            .await
            .expect("prints")
            .expect("runs")
            .expect("no error");
        text.push_str(&String::from_utf8_lossy(&piece[8..]));
    }
    runtime.remove(&id).await.expect("removed");
}

#[tokio::test]
async fn only_the_granted_folders_are_within_reach() {
    let folder = tempfile::tempdir().expect("temp folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    for name in ["read", "write", "other"] {
        std::fs::create_dir(at(name)).expect("made");
        std::fs::write(at(name) + "/f", name).expect("written");
    }
    let runtime = runtime(folder.path()).await;
    let script = format!(
        "read -r x < {0}/f; echo got $x; echo y > {0}/new; read -r x < {1}/f; echo got $x; echo y > {1}/new && echo wrote; \
         read -r x < {2}/f; echo got $x; read -r x < /etc/passwd; echo got $x; /bin/true; \
         while read -r x y; do case $x in Seccomp:) echo mode $y;; esac; done < /proc/self/status",
        at("read"),
        at("write"),
        at("other")
    );
    let mut spec = shell(&script.replace("read -r x <", "x=; read -r x <"));
    spec.plan = planned(|module| {
        module.read = Some(vec![at("read")]);
        module.write = Some(vec![at("write")]);
    });
    let text = printed(&runtime, &module("walled"), spec).await;
    let got: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("got")).map(str::trim).collect();
    assert_eq!(got, ["read", "write", "", ""], "{text}");
    assert!(
        text.contains("wrote") && std::fs::exists(at("write") + "/new").expect("readable"),
        "{text}"
    );
    assert!(!std::fs::exists(at("read") + "/new").expect("readable"), "{text}");
    assert!(
        text.contains("true: Permission denied"),
        "programs elsewhere cannot be executed: {text}"
    );
    assert!(text.contains("mode 2"), "{text}");
}

#[tokio::test]
async fn a_granted_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let mut spec = shell("true");
    spec.plan = planned(|module| module.read = Some(vec!["/nowhere/at/all".into()]));
    let id = module("lost");
    runtime.create(&id, spec).await.expect("created");
    let error = runtime.start(&id).await.expect_err("refused");
    let ProcessError::Start { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("cannot grant /nowhere/at/all"), "{source}");
}

#[tokio::test]
async fn system_calls_are_refused_by_preset() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    for (preset, unshared, forked) in [
        (SeccompPreset::None, true, true),
        (SeccompPreset::Default, false, true),
        (SeccompPreset::Strict, false, false),
    ] {
        let name = format!("{preset:?}").to_lowercase();
        let id = module(&name);
        // A user namespace of one's own is open to every user, unless the machine forbids
        // it.
        let mut spec =
            shell("grep Seccomp: /proc/self/status; unshare --user true && echo unshared; exit 0");
        if preset == SeccompPreset::Strict {
            // Cannot start other programs, so it looks for itself.
            spec = shell(
                "while read -r line; do case $line in Seccomp:*) echo $line;; esac; done < /proc/self/status; (echo forked)",
            );
        }
        spec.plan = planned(|module| module.seccomp = preset);
        let text = printed(&runtime, &id, spec).await;
        let line = text.lines().find(|line| line.starts_with("Seccomp:")).expect("printed");
        assert!(line.ends_with('2'), "{name}: {text}");
        if preset == SeccompPreset::Strict {
            assert_eq!(text.contains("\nforked"), forked, "{text}");
        } else if std::fs::read_to_string("/proc/sys/user/max_user_namespaces")
            .is_ok_and(|max| max.trim() != "0")
        {
            assert_eq!(text.contains("\nunshared"), unshared, "{name}: {text}");
        }
    }
}

#[tokio::test]
async fn no_preset_lets_a_program_pass_for_another() {
    // prctl(PR_SET_MM, ...) and seccomp(SECCOMP_SET_MODE_FILTER, NEW_LISTENER, ...) with
    // arguments that fail by themselves.
    let (prctl, seccomp) = match std::env::consts::ARCH {
        "x86_64" => (157, 317),
        "aarch64" | "riscv64" => (167, 277),
        other => {
            return eprintln!("skipped: the numbers of the calls on {other} are not known here");
        }
    };
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    // A plain filter fails for its own reason: 14 is EFAULT.
    let script = format!(
        "for ([{prctl}, 35, 14, 0], [{seccomp}, 1, 8, 0], [{seccomp}, 1, 0, 0]) {{ $! = 0; syscall($$_[0], $$_[1], $$_[2], $$_[3], 0); print 0 + $!, qq(\\n) }}"
    );
    for preset in [SeccompPreset::None, SeccompPreset::Default] {
        let id = module(&format!("{preset:?}").to_lowercase());
        let mut spec = shell(&format!("exec perl -e '{script}'"));
        spec.plan = planned(|module| module.seccomp = preset);
        let text = printed(&runtime, &id, spec).await;
        assert_eq!(text.lines().collect::<Vec<_>>(), ["1", "1", "14"], "{preset:?}");
    }
}
