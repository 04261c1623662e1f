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

    use super::super::ProcessSpec;
    use super::super::program;

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
    /// content.
    pub(crate) fn keep(
        spec: &ProcessSpec,
        process: ProcessInstance,
        folder: &Path,
    ) -> io::Result<()> {
        if program::verify(&spec.executable, &spec.sha256).is_ok()
            || program::verify(&path(folder), &spec.sha256).is_ok()
        {
            return Ok(());
        }
        // What runs was sealed when it was started, so it is still what was hashed; it is
        // hashed again all the same.
        let running = PathBuf::from(format!("/proc/{}/exe", process.pid));
        let temporary = folder.join("program.new");
        std::fs::copy(&running, &temporary)?;
        program::verify(&temporary, &spec.sha256).map_err(io::Error::other)?;
        File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, path(folder))?;
        File::open(folder)?.sync_all()
    }

    pub(crate) fn forget(folder: &Path) {
        for name in ["program", "program.new"] {
            let _ = std::fs::remove_file(folder.join(name));
        }
    }
}
