use edgekeep_runtime::status::ModuleState;
use serde_json::json;

use super::*;
use crate::fakes::{PROGRAM_NAME, Site, container, id, process};
use crate::modules::approvals::Approved;

/// A site with a container module "box" and a host module "tool", both running.
async fn running() -> Site {
    let site = Site::new().await;
    for spec in [container("box", &json!({})), process("tool", &["1000"])] {
        create(&site.modules, &spec).await.expect("created");
        start(&site.modules, &spec.module).await.expect("started");
    }
    site
}

async fn state(site: &Site, name: &str) -> ModuleState {
    site.modules.state(&id(name)).await.expect("is there").1.state
}

#[tokio::test]
async fn a_module_is_made_registered_and_not_started_in_either_runtime() {
    let site = Site::new().await;
    create(&site.modules, &container("box", &json!({}))).await.expect("created");
    create(&site.modules, &process("tool", &["1000"])).await.expect("created");
    assert_eq!(site.engine.phase("box").as_deref(), Some("created"));
    assert_eq!(site.starter.starts(), 0);
    let registered = |name: &str| site.modules.registrations.of(&id(name)).expect("registered");
    assert!(matches!(registered("box").workload, Workload::Container { .. }));
    assert!(matches!(registered("tool").workload, Workload::Process { .. }));
    assert_eq!(registered("box").policy, Policy::Image);
    assert_eq!(registered("tool").policy, Policy::Executable);
    let link = |name: &str| site.modules.root.module_socket_folder().join(format!("{name}.sock"));
    for name in ["box", "tool"] {
        assert!(link(name).exists(), "{name} has a workload socket before its first start");
        start(&site.modules, &id(name)).await.expect("started");
        assert_eq!(state(&site, name).await, ModuleState::Running);
    }
    assert_eq!(site.starter.starts(), 1);
}

#[tokio::test]
async fn a_name_is_taken_across_both_runtimes() {
    let site = running().await;
    for spec in [
        container("box", &json!({})),
        process("box", &[]),
        container("tool", &json!({})),
        process("tool", &[]),
    ] {
        let error = create(&site.modules, &spec).await.expect_err("taken");
        assert!(
            matches!(&error, ModuleError::NameTaken(taken) if *taken == spec.module),
            "{error}"
        );
    }
    assert_eq!(site.engine.names(), ["box"]);
}

#[tokio::test]
async fn stop_start_restart_and_remove_reach_the_runtime_that_has_the_module() {
    let site = running().await;
    for name in ["box", "tool"] {
        stop(&site.modules, &id(name)).await.expect("stopped");
        assert_ne!(state(&site, name).await, ModuleState::Running);
        start(&site.modules, &id(name)).await.expect("started");
        restart(&site.modules, &id(name)).await.expect("restarted");
        assert_eq!(state(&site, name).await, ModuleState::Running);
        remove(&site.modules, &id(name)).await.expect("removed");
        let gone = site.modules.state(&id(name)).await.expect_err("gone");
        assert!(matches!(gone, ModuleError::NoModule(_)), "{gone}");
        assert!(site.modules.registrations.of(&id(name)).is_none());
    }
    assert_eq!(site.starter.starts(), 3);
    assert!(site.engine.names().is_empty());
}

#[tokio::test]
async fn an_operation_on_what_is_not_there_is_refused_and_asks_nothing_of_the_runtime() {
    let site = Site::new().await;
    for refused in [
        start(&site.modules, &id("none")).await,
        stop(&site.modules, &id("none")).await,
        restart(&site.modules, &id("none")).await,
        remove(&site.modules, &id("none")).await,
        update(&site.modules, &container("none", &json!({})), true).await.map(drop),
    ] {
        let error = refused.expect_err("not there");
        assert!(matches!(error, ModuleError::NoModule(_)), "{error}");
    }
    assert_eq!(site.engine.calls("POST /containers"), 0);
}

#[tokio::test]
async fn a_container_that_this_daemon_did_not_make_is_neither_started_nor_restarted() {
    let site = running().await;
    site.modules.registrations.remove(&id("box")).await.expect("written");
    for refused in
        [start(&site.modules, &id("box")).await, restart(&site.modules, &id("box")).await]
    {
        let error = refused.expect_err("nobody judged its options");
        assert!(matches!(error, ModuleError::NotRegistered(_)), "{error}");
    }
    // To end it does no harm.
    stop(&site.modules, &id("box")).await.expect("stopped");
}

#[tokio::test]
async fn an_update_makes_a_new_container_and_leaves_none_of_the_old() {
    let site = running().await;
    let before = site.modules.registrations.of(&id("box")).expect("registered");
    let spec = container("box", &json!({ "Env": ["MODE=new"] }));
    assert!(update(&site.modules, &spec, true).await.expect("updated"));
    let after = site.modules.registrations.of(&id("box")).expect("registered");
    assert_ne!(before.workload, after.workload);
    assert_eq!(site.engine.names(), ["box"]);
    assert_eq!(state(&site, "box").await, ModuleState::Running);
    assert!(site.modules.replacements.of(&id("box")).is_none());
}

#[tokio::test]
async fn an_update_that_fails_at_any_step_leaves_the_old_container_running() {
    for (call, times) in
        [("POST /rename", 1), ("POST /containers/create", 1), ("POST /start", 2), ("POST /stop", 2)]
    {
        let site = running().await;
        let before = site.modules.registrations.of(&id("box"));
        site.engine.fail(call, 500, times);
        let spec = container("box", &json!({ "Env": ["MODE=new"] }));
        let error = update(&site.modules, &spec, true).await.expect_err(call);
        assert!(error.to_string().contains("as the test wants it"), "{call}: {error}");
        assert_eq!(site.engine.names(), ["box"], "{call}");
        assert_eq!(state(&site, "box").await, ModuleState::Running, "{call}");
        assert_eq!(site.modules.registrations.of(&id("box")), before, "{call}");
        assert!(site.modules.replacements.of(&id("box")).is_none(), "{call}: settled");
    }
}

#[tokio::test]
async fn an_update_that_cannot_be_taken_back_at_once_is_settled_before_the_next_operation() {
    let site = running().await;
    let before = site.modules.registrations.of(&id("box"));
    // The new one is not made, and the old one does not get its name back.
    site.engine.fail("POST /containers/create", 500, 1);
    let (reached, goes_on) = site.engine.hold("POST /containers/create");
    let (modules, engine) = (Arc::clone(&site.modules), site.engine.clone());
    let updating = tokio::spawn(async move {
        update(&modules, &container("box", &json!({ "Env": ["MODE=new"] })), true).await
    });
    reached.notified().await;
    engine.fail("POST /rename", 500, 1);
    goes_on.notify_one();
    updating.await.expect("no panic").expect_err("not made");
    assert!(site.modules.replacements.of(&id("box")).is_some(), "written down");
    start(&site.modules, &id("box")).await.expect("settled, then started");
    assert_eq!(site.engine.names(), ["box"]);
    assert_eq!(site.modules.registrations.of(&id("box")), before);
    assert!(site.modules.replacements.of(&id("box")).is_none());
}

#[tokio::test]
async fn an_update_of_a_host_module_that_does_not_begin_is_taken_back() {
    let site = running().await;
    site.starter.refuse_to_begin(true);
    let error =
        update(&site.modules, &process("tool", &["2000"]), true).await.expect_err("not begun");
    let text = error.to_string();
    assert!(text.contains("does not start") || text.contains("not yet as it was"), "{text}");
    site.starter.refuse_to_begin(false);
    start(&site.modules, &id("tool")).await.expect("started");
    let spec = site.modules.processes.spec(&id("tool")).await.expect("is there");
    assert_eq!(spec.args, ["1000"], "as it was");
    // One that begins is what the deployment says.
    assert!(update(&site.modules, &process("tool", &["2000"]), true).await.expect("updated"));
    let spec = site.modules.processes.spec(&id("tool")).await.expect("is there");
    assert_eq!(spec.args, ["2000"]);
    assert_eq!(state(&site, "tool").await, ModuleState::Running);
}

#[tokio::test]
async fn a_module_may_change_its_runtime() {
    let site = running().await;
    assert!(update(&site.modules, &process("box", &["1000"]), true).await.expect("updated"));
    assert!(site.engine.names().is_empty());
    let (kind, now) = site.modules.state(&id("box")).await.expect("is there");
    assert_eq!((kind, now.state), (Kind::Process, ModuleState::Running));
    assert!(update(&site.modules, &container("box", &json!({})), true).await.expect("updated"));
    assert_eq!(site.modules.state(&id("box")).await.expect("is there").0, Kind::Docker);
    assert_eq!(site.engine.phase("box").as_deref(), Some("running"));
}

#[tokio::test]
async fn what_cannot_be_registered_is_not_left_behind() {
    let site = Site::new().await;
    let folder = site.modules.state_folder();
    let file = folder.join("registrations.json");
    // A folder in the file's place keeps it from being written, as a full disk would.
    std::fs::create_dir(&file).expect("made");
    for spec in [container("box", &json!({})), process("tool", &[])] {
        let error = create(&site.modules, &spec).await.expect_err("not written");
        assert!(matches!(error, ModuleError::NotWritten(_)), "{error}");
        assert!(site.modules.state(&spec.module).await.is_err(), "{}", spec.module);
    }
    std::fs::remove_dir(&file).expect("removed");
    create(&site.modules, &container("box", &json!({}))).await.expect("created");
}

#[tokio::test]
async fn a_program_that_was_changed_is_neither_made_nor_restarted_and_what_runs_goes_on() {
    let site = running().await;
    let other = Site::with(|settings| {
        let program = settings.host_modules.get_mut(PROGRAM_NAME).expect("there");
        program.sha256 = Sha256Digest::new([7; 32]);
    });
    let other = other.await;
    let error = create(&other.modules, &process("tool", &[])).await.expect_err("another program");
    assert!(error.to_string().contains("is registered"), "{error}");
    let approved = Approved {
        sha256: Sha256Digest::new([7; 32]),
        configured: site.modules.settings.host_modules[PROGRAM_NAME].sha256,
        by: "updater".into(),
        time: "2026-01-01T00:00:00Z".into(),
    };
    site.modules.approvals.put(PROGRAM_NAME, approved).await.expect("written");
    let error = restart(&site.modules, &id("tool")).await.expect_err("another program");
    assert!(error.to_string().contains("is registered"), "{error}");
    assert_eq!(state(&site, "tool").await, ModuleState::Running);
}

#[tokio::test]
async fn at_the_end_of_the_device_everything_stops_and_one_that_does_not_holds_up_no_other() {
    let site = running().await;
    site.engine.fail("POST /stop", 500, 2);
    stop_all(&site.modules).await;
    assert_ne!(state(&site, "tool").await, ModuleState::Running);
    assert_eq!(
        state(&site, "box").await,
        ModuleState::Running,
        "the engine refused, and it is logged"
    );
    stop_all(&site.modules).await;
    assert_ne!(state(&site, "box").await, ModuleState::Running);
}
