//! Updates that can be taken back, wherever the daemon ends.

use edgekeep_core::replacement::Runs;

use super::*;

async fn begun(runtime: &ProcessRuntime, id: &ModuleId) -> (Runs, bool, bool) {
    let begun = runtime.update(id).await.expect("an update is under way");
    (begun.runs, begun.ran, begun.start)
}

#[tokio::test]
async fn an_update_is_remembered_through_ends_of_the_daemon_with_what_runs_at_each_step() {
    let folder = tempfile::tempdir().expect("temp folder");
    let id = module("updated");
    let (old, new) = (shell("exec sleep 1000"), shell("exec sleep 2000"));
    let next = |_: ProcessRuntime| runtime(folder.path());

    let runtime = runtime(folder.path()).await;
    runtime.create(&id, old.clone()).await.expect("created");
    runtime.start(&id).await.expect("started");
    assert_eq!((runtime.update(&id).await, runtime.begun_updates().await), (None, vec![]));
    runtime.begin_update(&id, new.clone(), true).await.expect("written down");
    let runtime = next(runtime).await;
    assert_eq!(begun(&runtime, &id).await, (Runs::Old, true, true));
    assert_eq!(runtime.begun_updates().await, std::slice::from_ref(&id));
    runtime.stop(&id, Duration::ZERO).await.expect("ends");
    let runtime = next(runtime).await;
    assert_eq!(begun(&runtime, &id).await, (Runs::Nothing, true, true));
    runtime.start(&id).await.expect("started");
    let runtime = next(runtime).await;
    assert_eq!(begun(&runtime, &id).await, (Runs::New, true, true));
    // One over the other goes back to where the first began.
    runtime.begin_update(&id, shell("exit 1"), false).await.expect("written down");
    assert_eq!(begun(&runtime, &id).await, (Runs::New, true, false));

    runtime.end_update(&id, false).await.expect("written down");
    let runtime = next(runtime).await;
    assert!(runtime.spec(&id).await.expect("exists") == old && runtime.update(&id).await.is_none());
    runtime.begin_update(&id, new.clone(), false).await.expect("written down");
    runtime.end_update(&id, true).await.expect("written down");
    let runtime = next(runtime).await;
    assert!(runtime.spec(&id).await.expect("exists") == new);
    runtime.remove(&id).await.expect("removed");
}

/// A program that the kernel does not start: its loader is not there.
fn without_loader(of: &str, to: &Path) {
    let mut bytes = std::fs::read(of).expect("exists");
    let name = b"/ld-linux";
    let at = bytes.windows(name.len()).position(|part| part == name).expect("names its loader");
    bytes[at + 1] = b'n';
    std::fs::write(to, bytes).expect("written");
}

#[tokio::test]
async fn the_program_that_ran_is_kept_while_its_file_is_another_and_for_no_longer() {
    let folder = tempfile::tempdir().expect("temp folder");
    let runtime = runtime(folder.path()).await;
    let path = folder.path().join("program");
    std::fs::copy("/bin/sleep", &path).expect("copied");
    let (id, text) = (module("kept"), path.to_str().expect("text"));
    let copy = folder.path().join("host/kept/program");
    let old = spec(text, &["1000"]);
    runtime.create(&id, old.clone()).await.expect("created");
    runtime.start(&id).await.expect("started");
    // Nothing to be kept while the file is what runs.
    runtime.begin_update(&id, shell("exit 0"), true).await.expect("written down");
    assert!(!copy.exists());
    runtime.end_update(&id, false).await.expect("written down");

    std::fs::remove_file(&path).expect("a file");
    without_loader("/bin/sleep", &path);
    runtime.begin_update(&id, spec(text, &[]), true).await.expect("written down");
    runtime.stop(&id, Duration::ZERO).await.expect("ends");
    let error = runtime.start(&id).await.expect_err("no program");
    assert!(matches!(error, ProcessError::Start { .. }), "{error}");
    runtime.end_update(&id, false).await.expect("written down");
    runtime.start(&id).await.expect("started from the copy");
    let exe =
        std::fs::read(format!("/proc/{}/exe", running(&runtime, &id).init.pid)).expect("lives");
    assert_eq!(sha256(&exe), digest("/bin/sleep"));
    runtime.stop(&id, Duration::ZERO).await.expect("ends");

    // A copy that somebody changed is no program.
    std::fs::write(&copy, b"\x7fELF, and something else").expect("written");
    let error = runtime.start(&id).await.expect_err("other content");
    assert!(error.to_string().contains(&old.sha256.to_string()), "{error}");

    // With the old content back in the file, it is of no more use.
    std::fs::copy("/bin/sleep", &path).expect("copied");
    runtime.start(&id).await.expect("started");
    assert!(!copy.exists());
    std::fs::remove_file(&path).expect("a file");
    runtime.begin_update(&id, shell("exit 0"), true).await.expect("written down");
    assert!(copy.exists());
    runtime.end_update(&id, false).await.expect("written down");

    // An update that is whole needs no way back.
    runtime.begin_update(&id, shell("exec sleep 1000"), true).await.expect("written down");
    runtime.end_update(&id, true).await.expect("written down");
    assert!(!copy.exists());
    runtime.remove(&id).await.expect("removed");
}
