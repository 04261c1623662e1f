//! Updates of a module that can be taken back: what it was is kept beside what it
//! becomes, until that has started.

use edgekeep_core::attestation::ProcessInstance;
use edgekeep_core::replacement::Runs;
use serde::{Deserialize, Serialize};

use super::ProcessSpec;

/// The state of a module before an update.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Former {
    pub(super) spec: ProcessSpec,
    /// The process that ran then.
    process: Option<ProcessInstance>,
    /// True if the updated module is to be started.
    start: bool,
}

/// An update that is not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunUpdate {
    /// Specification of the module before the update.
    pub former: ProcessSpec,
    /// Specification of the module after the update.
    pub next: ProcessSpec,
    /// True if the module ran before the update.
    pub ran: bool,
    /// True if the updated module is to be started.
    pub start: bool,
    /// The process that runs now: none, the old one, or the new one.
    pub runs: Runs,
}

impl Former {
    pub(super) fn seen(&self, next: &ProcessSpec, process: Option<ProcessInstance>) -> BegunUpdate {
        let runs = match process {
            None => Runs::Nothing,
            Some(_) if process == self.process => Runs::Old,
            Some(_) => Runs::New,
        };
        let ran = self.process.is_some();
        BegunUpdate { former: self.spec.clone(), next: next.clone(), ran, start: self.start, runs }
    }
}

/// Returns the record of an update that begins. An update over another update that is not
/// settled goes back to the state before that other update.
pub(super) fn begun(
    spec: &ProcessSpec,
    unsettled: Option<&Former>,
    process: Option<ProcessInstance>,
    start: bool,
) -> Former {
    match unsettled {
        Some(former) => Former { start, ..former.clone() },
        None => Former { spec: spec.clone(), process, start },
    }
}

/// A copy of a program in its module's folder, for as long as the program's file has
/// another content.
pub(super) mod kept {
    use std::fs::File;
    use std::io;
    use std::path::{Path, PathBuf};

    use edgekeep_core::attestation::ProcessInstance;
    use edgekeep_core::digest::Sha256Digest;

    use super::super::{ProcessError, ProcessSpec, blocking, program};
    use crate::gauge::Gauge;

    fn path(folder: &Path) -> PathBuf {
        folder.join("program")
    }

    /// The copy, if there is one.
    pub(crate) fn open(folder: &Path) -> Option<File> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        rustix::fs::open(path(folder), flags, Mode::empty()).ok().map(File::from)
    }

    /// Copies the program of the module that runs, unless its file still has the same
    /// content. The inner error is one of the folder.
    pub(crate) async fn keep(
        gauge: &Gauge,
        spec: &ProcessSpec,
        process: ProcessInstance,
        folder: &Path,
    ) -> Result<io::Result<()>, ProcessError> {
        let sha256 = spec.sha256;
        if gauge.verify(spec.executable.clone(), sha256).await?.is_ok() {
            return Ok(Ok(()));
        }
        let kept = path(folder);
        if blocking(move || Ok(program::verify(&kept, &sha256).is_ok())).await? {
            return Ok(Ok(()));
        }
        let running = match gauge.program(process, sha256).await? {
            Ok(running) => File::from(running),
            Err(why) => return Ok(Err(io::Error::other(why))),
        };
        let folder = folder.to_owned();
        blocking(move || Ok(copy(running, &sha256, &folder))).await
    }

    /// Copies what runs. It was sealed when it was started, so it is still what was
    /// hashed; it is hashed again all the same.
    fn copy(mut running: File, sha256: &Sha256Digest, folder: &Path) -> io::Result<()> {
        let temporary = folder.join("program.new");
        let mut new = File::create(&temporary)?;
        io::copy(&mut running, &mut new)?;
        program::verify(&temporary, sha256).map_err(io::Error::other)?;
        new.sync_all()?;
        std::fs::rename(&temporary, path(folder))?;
        File::open(folder)?.sync_all()
    }

    pub(crate) fn forget(folder: &Path) {
        for name in ["program", "program.new"] {
            let _ = std::fs::remove_file(folder.join(name));
        }
    }
}
