//! The answering side of the gauge: looks at processes and files, and decides nothing.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgekeep_core::attestation::{DenyReason, ProcessInstance};
use edgekeep_core::digest::Sha256Digest;
use rustix::fs::{SealFlags, SeekFrom};

use super::asked::{Answer, Asked, First, Look, Measure, Seen};
use crate::evidence::{Collector, EvidenceError, ImageLayers, ProcDir, lower_folders};
use crate::process::{verify, verify_open, words};

/// Answers questions about processes, with the rights of this process.
#[derive(Debug, Clone)]
pub struct GaugeService(Arc<Collector>);

impl GaugeService {
    /// A service that looks by this collector of evidence.
    #[must_use]
    pub fn new(collector: Collector) -> Self {
        Self(Arc::new(collector))
    }

    /// Answers a question. In a tokio runtime. Only looks are made on the calling thread:
    /// they never wait for a file system that somebody else serves.
    pub fn answer(
        &self,
        asked: Asked,
        files: Vec<OwnedFd>,
    ) -> impl Future<Output = (Answer, Vec<OwnedFd>)> + Send + use<> {
        let collector = Arc::clone(&self.0);
        async move {
            let pidfd = files.into_iter().next();
            if let Asked::Look(look) = asked {
                return (or_reason(see(&collector, &look, pidfd)), Vec::new());
            }
            let done = tokio::task::spawn_blocking(move || answer_now(&collector, asked, pidfd));
            // The task only fails when the process ends.
            done.await.unwrap_or_else(|_| (Answer::Unseen(DenyReason::CallerGone), Vec::new()))
        }
    }
}

fn answer_now(
    collector: &Collector,
    asked: Asked,
    pidfd: Option<OwnedFd>,
) -> (Answer, Vec<OwnedFd>) {
    let answer = match asked {
        Asked::About => Answer::About(collector.kernel_denies_writers()),
        Asked::Look(look) => or_reason(see(collector, &look, pidfd)),
        Asked::Measure(measure) => or_reason(measured(collector, measure, pidfd)),
        Asked::First { pid } => Answer::First(first(collector, pid)),
        Asked::Layers { init } => Answer::Layers(layers(init)),
        Asked::Program { process, sha256 } => match program(process, &sha256) {
            Ok(file) => return (Answer::Opened, vec![file]),
            Err(why) => Answer::Unfit(why),
        },
        Asked::Verify { executable, sha256 } => match verify(&executable, &sha256) {
            Ok(()) => Answer::Verified,
            Err(error) => Answer::Unfit(words(&error)),
        },
        Asked::Runs { uid, executable } => Answer::Runs(runs(uid, &executable)),
    };
    (answer, Vec::new())
}

fn or_reason(answer: Result<Answer, EvidenceError>) -> Answer {
    answer.unwrap_or_else(|error| {
        // The cause (for example a missing capability) is the operator's to know, not the
        // caller's.
        tracing::debug!(%error, "no evidence");
        Answer::Unseen(error.reason())
    })
}

fn see(
    collector: &Collector,
    look: &Look,
    pidfd: Option<OwnedFd>,
) -> Result<Answer, EvidenceError> {
    let pidfd = pidfd.ok_or(EvidenceError::Gone)?;
    let (process, mut seen) =
        collector.meet(look.pid, pidfd.as_fd(), |process| glance(collector, process, look))?;
    // The executable was looked at before: see `ProcDir::holding`.
    seen.held = look.connection.as_ref().map(|connection| {
        let program = &seen.snapshot.executable;
        collector.holding(&process, connection.socket, program, &connection.likely)
    });
    if let Some(compared) = &look.measured {
        let (from, image) = (compared.started_from, compared.image);
        seen.measurement = collector.known_measurement(&process, &seen.snapshot, from, image)?;
    }
    if look.keep {
        collector.keep(&process);
    }
    Ok(Answer::Seen(Box::new(seen)))
}

fn glance(collector: &Collector, process: &ProcDir, look: &Look) -> Result<Seen, EvidenceError> {
    let mut seen = if look.again {
        Seen::of(collector.snapshot(process)?)
    } else {
        let (snapshot, ancestry) = collector.known_twice(process, look.stop_at.as_ref())?;
        let path = Some(process.executable_path()?.display().to_string());
        Seen { ancestry, path, ..Seen::of(snapshot) }
    };
    seen.container = collector.container_of(&seen.snapshot);
    Ok(seen)
}

fn measured(
    collector: &Collector,
    measure: Measure,
    pidfd: Option<OwnedFd>,
) -> Result<Answer, EvidenceError> {
    let pidfd = pidfd.ok_or(EvidenceError::Gone)?;
    let Measure { snapshot, compared, folders, keep } = measure;
    let layers = compared.image.map(|image| ImageLayers::new(image, folders));
    let look = |process: &ProcDir| {
        // A number that is another process's now is found out before anything is read.
        let now = collector.snapshot(process)?;
        if now == snapshot { Ok(()) } else { Err(EvidenceError::Changed) }
    };
    let (process, ()) = collector.meet(snapshot.process.pid, pidfd.as_fd(), look)?;
    let measurement =
        collector.measured(&process, &snapshot, compared.started_from, layers.as_ref())?;
    if keep {
        collector.keep(&process);
    }
    Ok(Answer::Measured(measurement))
}

fn first(collector: &Collector, pid: u32) -> Option<First> {
    let process = ProcDir::open_unproved(pid).ok()?;
    let stat = process.stat().ok()?;
    let cgroup = process.cgroup(collector.hierarchy()).ok()?;
    let user_namespace = process.user_namespace().ok()?;
    let filters = filters_at_start(process.filters().ok()?, stat.parent);
    let process = ProcessInstance { pid, start_time: stat.start_time };
    Some(First { process, cgroup, user_namespace, filters })
}

/// Returns the number of filters of system calls with which a container's first process
/// was started: those of its parent, which is the engine's, and one that the engine puts
/// on it, unless it has fewer. Filters that the first process has put on itself since do
/// not count.
fn filters_at_start(has: Option<u32>, parent: u32) -> Option<u32> {
    let of_parent =
        ProcDir::open_unproved(parent).and_then(|parent| parent.filters()).ok().flatten();
    Some(has?.min(of_parent.unwrap_or(0) + 1))
}

/// The folders below the root of a container's first process, unless that process is in a
/// user namespace of its own, where it may mount.
fn layers(init: ProcessInstance) -> Option<Vec<PathBuf>> {
    let process = ProcDir::open_unproved(init.pid).ok()?;
    let own = ProcDir::open_unproved(std::process::id()).ok()?;
    let mounts = process.mounts().ok()?;
    let same_namespace = process.user_namespace().ok()? == own.user_namespace().ok()?;
    let same_process = process.stat().ok()?.start_time == init.start_time;
    (same_namespace && same_process).then(|| lower_folders(&mounts))?
}

/// Opens the program of a process that runs a sealed copy with this content. Nothing else
/// is handed out: whoever asks has to know the content.
fn program(process: ProcessInstance, sha256: &Sha256Digest) -> Result<OwnedFd, String> {
    let found = ProcDir::open_unproved(process.pid).map_err(|error| words(&error))?;
    let (_, opened) = found.open_executable().map_err(|error| words(&error))?;
    let stat = found.stat().map_err(|error| words(&error))?;
    if stat.start_time != process.start_time {
        return Err("the process has ended".to_owned());
    }
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    if !rustix::fs::fcntl_get_seals(&opened).is_ok_and(|seals| seals.contains(all)) {
        return Err("the process does not run a sealed copy".to_owned());
    }
    let copy = opened.try_clone().map_err(|error| words(&error))?;
    verify_open(Path::new("what runs"), copy.into(), sha256).map_err(|error| words(&error))?;
    rustix::fs::seek(&opened, SeekFrom::Start(0)).map_err(|error| words(&error))?;
    Ok(opened)
}

/// Returns true if a process of the user executes the file. For people: no caller is
/// judged by the answer.
fn runs(uid: u32, executable: &Path) -> Option<bool> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten().filter(|entry| {
        entry.file_name().to_string_lossy().bytes().all(|c| c.is_ascii_digit())
            && entry.metadata().is_ok_and(|metadata| metadata.uid() == uid)
    });
    Some(processes.into_iter().any(|entry| {
        std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == executable)
    }))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, PidfdFlags};

    use super::super::{Compared, Gauge, Whom};
    use super::*;
    use crate::evidence::{CgroupHierarchy, ContainerCgroups, StartedFrom, sha256_of};

    struct Sleeper(std::process::Child, OwnedFd);

    impl Sleeper {
        fn new(program: &Path) -> Self {
            let mut command = Command::new(program);
            let child = command.arg("1000").stdin(Stdio::null()).spawn().expect("sleep starts");
            let pid = Pid::from_child(&child);
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("it lives");
            Self(child, pidfd)
        }

        fn whom(&self) -> Whom<'_> {
            Whom { pid: self.0.id(), pidfd: self.1.as_fd(), socket: None, measured: None }
        }

        async fn process(&self, gauge: &Gauge) -> ProcessInstance {
            let seen = gauge.look(self.whom(), None).await.expect("answers").expect("seen");
            seen.0.snapshot.process
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn gauge() -> Gauge {
        Gauge::here(Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default()))
    }

    fn sleep() -> Sha256Digest {
        sha256_of(&std::fs::read("/bin/sleep").expect("exists"))
    }

    #[tokio::test]
    async fn a_process_that_is_kept_is_told_with_its_measurement_in_one_answer() {
        let (gauge, child) = (gauge(), Sleeper::new(Path::new("/bin/sleep")));
        let compared = Compared { started_from: StartedFrom::default(), image: None };
        let whom = Whom { measured: Some(compared), ..child.whom() };
        let (first, _) = gauge.look(whom, None).await.expect("answers").expect("seen");
        assert_eq!(first.ancestry[1].process.pid, std::process::id());
        assert_eq!(first.measurement, None, "it was not measured before");
        let measure = || gauge.measure(whom.pidfd, &first.snapshot, compared, None);
        let Ok(measured) = measure().await.expect("answers") else {
            return eprintln!("skipped: no executable is believed on this machine");
        };
        assert_eq!(measured.digest, sleep());
        let look = || async { gauge.look(whom, None).await.expect("answers").expect("seen").0 };
        assert_eq!(look().await.measurement, None, "nobody was admitted");
        gauge.keep(whom.pid);
        measure().await.expect("answers").expect("measured");
        assert_eq!(look().await.measurement, Some(measured));
        let (again, _) = gauge.look_again(whom).await.expect("answers").expect("seen");
        assert_eq!((again.snapshot, again.ancestry.len()), (first.snapshot, 0));
    }

    #[tokio::test]
    async fn only_a_sealed_program_whose_content_is_known_is_handed_out() {
        let gauge = gauge();
        let child = Sleeper::new(Path::new("/bin/sleep"));
        let process = child.process(&gauge).await;
        let refused = gauge.program(process, sleep()).await.expect("answers").expect_err("a file");
        assert!(refused.contains("sealed"), "{refused}");

        let copy = crate::process::sealed(Path::new("/bin/sleep"), &sleep());
        let number = std::os::fd::AsRawFd::as_raw_fd(&copy);
        let child = Sleeper::new(Path::new(&format!("/proc/{}/fd/{number}", std::process::id())));
        let process = child.process(&gauge).await;
        let program = gauge.program(process, sleep()).await.expect("answers").expect("the copy");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut File::from(program), &mut bytes).expect("readable");
        assert_eq!(sha256_of(&bytes), sleep());
        let other = gauge.program(process, sha256_of(b"x")).await.expect("answers");
        assert!(other.expect_err("another content").contains("is registered"));
        let later = ProcessInstance { start_time: process.start_time + 1, ..process };
        let ended = gauge.program(later, sleep()).await.expect("answers");
        assert!(ended.expect_err("another process").contains("has ended"));
    }

    #[tokio::test]
    async fn of_a_file_that_is_no_program_no_digest_is_told() {
        let folder = tempfile::tempdir().expect("temp folder");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "secret").expect("written");
        let gauge = gauge();
        let why = gauge.verify(secret, sha256_of(b"x")).await.expect("answers").expect_err("no");
        assert!(why.contains("not an ELF executable"), "{why}");
        assert!(!why.contains(&sha256_of(b"secret").hex()), "{why}");
        let sleeps = PathBuf::from("/bin/sleep");
        assert_eq!(gauge.verify(sleeps, sleep()).await.expect("answers"), Ok(()));
    }

    #[tokio::test]
    async fn a_handle_of_another_process_shows_nothing_and_neither_does_one_of_an_ended_process() {
        let (gauge, mut child) = (gauge(), Sleeper::new(Path::new("/bin/sleep")));
        let whom = Whom { pid: std::process::id(), ..child.whom() };
        let refused = gauge.look(whom, None).await.expect("answers").expect_err("two processes");
        assert_eq!(refused, DenyReason::CallerChanged);
        gauge.keep(child.0.id());
        child.process(&gauge).await;
        child.0.kill().and_then(|()| child.0.wait()).expect("ours");
        let refused = gauge.look(child.whom(), None).await.expect("answers").expect_err("ended");
        assert_eq!(refused, DenyReason::CallerGone);
    }
}
