//! Systemd scopes: against the real systemd where it is the first process, and against
//! tools that do not do what they should everywhere.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use edgekeep_core::host::scope_name;

use super::*;

/// Returns the folder of the scope that the running module is in. `None` if systemd makes
/// no scopes here; the test is then skipped.
fn in_scope(running: &Running) -> Option<PathBuf> {
    let scope = running.cgroup.as_ref().filter(|path| path.ends_with(".scope"));
    if scope.is_none() {
        eprintln!("skipped: systemd makes no scopes here");
    }
    scope.map(|path| {
        Path::new(&CgroupHierarchy::detect().mount_point()).join(path.trim_start_matches('/'))
    })
}

fn unit_of(folder: &Path, id: &ModuleId) -> String {
    let instance =
        folder.file_name().expect("has one").to_string_lossy().trim_start_matches('.').to_owned();
    scope_name(Some(&instance), id)
}

async fn gone(path: &Path) {
    for _ in 0..1000 {
        if !path.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} is still there", path.display());
}

fn is_loaded(unit: &str) -> bool {
    let shown =
        Command::new("systemctl").args(["show", "--property=LoadState", "--value", unit]).output();
    String::from_utf8_lossy(&shown.expect("runs").stdout).trim() == "loaded"
}

#[tokio::test]
async fn where_systemd_runs_a_module_has_a_scope_that_outlives_the_daemon_and_ends_with_the_module()
{
    let folder = tempfile::tempdir().expect("temp folder");
    let id = module("scoped");
    let mut spec = shell("(sleep 1000 & sleep 1000 & wait) & exec sleep 1000");
    spec.plan = planned(|module| {
        module.limits.memory_max = Some(64 << 20);
        module.limits.cpu_quota = Some(50);
        module.limits.pids_max = Some(9);
    });
    let (scope, init) = {
        let runtime = runtime(folder.path()).await;
        runtime.create(&id, spec).await.expect("created");
        runtime.start(&id).await.expect("started");
        let running = running(&runtime, &id);
        let Some(scope) = in_scope(&running) else { return };
        let note = runtime.status(&id).await.expect("exists").note.expect("told");
        assert!(
            note.starts_with(&format!("systemd unit {}; limits: ", unit_of(folder.path(), &id))),
            "{note}"
        );
        assert_eq!(note.matches("by cgroup").count(), 3, "{note}");
        (scope, running.init)
    };
    // Another daemon finds it, in the same scope.
    let runtime = runtime(folder.path()).await;
    assert_eq!(running(&runtime, &id).init, init);
    assert!(is_loaded(&unit_of(folder.path(), &id)));
    runtime.stop(&id, LONG).await.expect("ends");
    gone(&scope).await;
    // At once again: systemd may still know the old one.
    for _ in 0..5 {
        runtime.start(&id).await.expect("started");
        assert!(in_scope(&running(&runtime, &id)).is_some());
        runtime.stop(&id, Duration::ZERO).await.expect("ends");
    }
    runtime.remove(&id).await.expect("removed");
    assert!(!is_loaded(&unit_of(folder.path(), &id)));
}

#[tokio::test]
async fn what_is_left_in_a_scope_of_the_same_name_ends_before_the_module_starts() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let id = module("again");
    runtime.create(&id, shell("exec sleep 1000")).await.expect("created");
    runtime.start(&id).await.expect("started");
    if in_scope(&running(&runtime, &id)).is_none() {
        return;
    }
    runtime.remove(&id).await.expect("removed");

    let unit = unit_of(folder.path(), &id);
    let mut left = Command::new("systemd-run")
        .args([
            "--scope",
            "--quiet",
            &format!("--unit={unit}"),
            "sh",
            "-c",
            "trap '' TERM; echo there; sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(left.stdout.take().expect("piped")),
        &mut line,
    )
    .expect("readable");
    assert_eq!(line, "there\n");

    runtime.create(&id, shell("exec sleep 1000")).await.expect("created");
    runtime.start(&id).await.expect("started");
    assert!(in_scope(&running(&runtime, &id)).is_some());
    assert!(!left.wait().expect("ended").success());
    runtime.remove(&id).await.expect("removed");
}

/// A `systemd-run` and a `systemctl` that do this.
fn tools(folder: &Path, script: &str) -> PathBuf {
    let tools = folder.join("tools");
    std::fs::create_dir(&tools).expect("writable");
    for (name, script) in [("systemd-run", script), ("systemctl", "exit 1")] {
        let path = tools.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("own file");
    }
    tools
}

async fn with_tools(
    folder: &Path,
    script: &str,
    or_below: bool,
    patience: Duration,
) -> ProcessRuntime {
    let cgroups = cgroups(folder).in_scopes_made_by(tools(folder, script), or_below, patience);
    runtime_in(folder, cgroups).await
}

/// Becomes the launcher, without a scope.
const AS_ASKED: &str = "while [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"";

#[tokio::test]
async fn a_systemd_that_refuses_hangs_or_lies_is_told_of_and_the_module_runs_below_the_daemons_group()
 {
    for (script, patience, told) in [
        ("echo Access denied >&2; exit 1", LONG, "Access denied"),
        ("exit 1", LONG, "ended without a word"),
        ("exec sleep 1000", Duration::from_millis(200), "did not answer in time"),
        (AS_ASKED, LONG, "but the module is in /"),
    ] {
        let folder = tempfile::tempdir().expect("temp folder");
        let runtime = with_tools(folder.path(), script, true, patience).await;
        let id = module("refused");
        runtime.create(&id, shell("echo $$; exec sleep 1000")).await.expect("created");
        runtime.start(&id).await.expect("started");
        let running = running(&runtime, &id);
        assert_eq!(first_line(&runtime, &id).await, running.init.pid.to_string());
        assert!(
            running.cgroup.as_ref().is_none_or(|path| !path.ends_with(".scope")),
            "{running:?}"
        );
        let note = runtime.status(&id).await.expect("exists").note.expect("told");
        assert!(note.starts_with("no systemd unit of its own (") && note.contains(told), "{note}");
        runtime.remove(&id).await.expect("removed");
    }
}

#[tokio::test]
async fn where_scopes_are_required_none_is_no_start_and_leaves_no_process() {
    for (script, told) in
        [("echo Access denied >&2; exit 1", "Access denied"), (AS_ASKED, "but the module is in /")]
    {
        let folder = tempfile::tempdir().expect("temp folder");
        let runtime = with_tools(folder.path(), script, false, LONG).await;
        let id = module("required");
        let mark = folder.path().join("ran");
        runtime.create(&id, shell(&format!("touch {mark:?}"))).await.expect("created");
        let error = runtime.start(&id).await.expect_err("refused");
        assert!(
            matches!(error, ProcessError::Scope { .. }) && error.to_string().contains(told),
            "{error}"
        );
        assert_eq!(runtime.facts(&id), RunningFacts::Stopped);
        assert!(!mark.exists());
    }
    let without =
        ModuleCgroups::none(CgroupHierarchy::detect(), "as a test").in_scopes(ScopeUse::Off, false);
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime_in(folder.path(), without).await;
    runtime.create(&module("off"), shell("exit 0")).await.expect("created");
    runtime.start(&module("off")).await.expect("scopes are not asked for");
}

#[tokio::test]
async fn a_scope_without_the_limits_that_were_asked_for_is_no_scope_to_start_in() {
    if !am_root() {
        return;
    }
    let hierarchy = CgroupHierarchy::detect();
    let folder = tempfile::tempdir().expect("temp folder");
    let id = module("unbounded");
    let slice =
        format!("{}/{}.slice", hierarchy.mount_point(), unit_of(folder.path(), &module("test")));
    let group = Path::new(&slice).join(unit_of(folder.path(), &id));
    if std::fs::create_dir_all(&group).is_err() || !group.join("cgroup.procs").exists() {
        eprintln!("skipped: no cgroup can be made here");
        return;
    }
    let enter = format!("echo $$ > {:?}; {AS_ASKED}", group.join("cgroup.procs"));
    let runtime = with_tools(folder.path(), &enter, true, LONG).await;
    let mut spec = shell("exec sleep 1000");
    runtime.create(&id, spec.clone()).await.expect("created");
    runtime.start(&id).await.expect("nothing is to be limited");
    assert!(running(&runtime, &id).cgroup.is_some_and(|path| path.ends_with(".scope")));
    runtime.stop(&id, Duration::ZERO).await.expect("ends");

    std::fs::create_dir_all(&group).expect("as before");
    spec.plan = planned(|module| module.limits.pids_max = Some(9));
    runtime.renew(&id, spec.clone()).await.expect("kept");
    let error = runtime.start(&id).await.expect_err("refused");
    assert!(
        error.to_string().contains("pids_max cannot be set: systemd has not set it in"),
        "{error}"
    );
    assert_eq!(runtime.facts(&id), RunningFacts::Stopped);

    spec.plan.limits.enforcement = Enforcement::BestEffort;
    runtime.renew(&id, spec).await.expect("kept");
    runtime.start(&id).await.expect("started");
    let note = runtime.status(&id).await.expect("exists").note.expect("told");
    assert!(note.contains("pids_max not set (systemd has not set it"), "{note}");
    runtime.remove(&id).await.expect("removed");
    gone_by_hand(&group);
    gone_by_hand(Path::new(&slice));
}

fn gone_by_hand(group: &Path) {
    std::fs::remove_dir(group).expect("empty");
}
