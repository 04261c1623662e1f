//! Ancestors of a process.

use std::os::fd::OwnedFd;

use edgekeep_core::attestation::{Ancestor, ProcessInstance, chain_stands};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::proc_dir::{open_stat, read_stat};
use super::{EvidenceError, ProcDir};

impl ProcDir {
    /// Does the same as [`Self::walk`], and without a call where the earlier result still
    /// stands by the process id of the parent, as it is now.
    pub(super) fn ancestry(
        &self,
        parent: u32,
        stop_at: Option<&ProcessInstance>,
        limit: usize,
    ) -> Result<Vec<Ancestor>, EvidenceError> {
        if let Some(stop_at) = stop_at
            && let Some(chain) = self.found().chain.as_ref()
            && chain_stands(chain, stop_at, parent)
        {
            return Ok(chain.clone());
        }
        let chain = self.walk(stop_at, limit)?;
        self.found().chain = Some(chain.clone());
        Ok(chain)
    }

    /// The process and its ancestors, each proved to be the parent of the one before it:
    /// up to `stop_at`, at most `limit`.
    fn walk(
        &self,
        stop_at: Option<&ProcessInstance>,
        limit: usize,
    ) -> Result<Vec<Ancestor>, EvidenceError> {
        let mut child = open_stat(self.folder())?;
        let mut stat = read_stat(&child)?;
        let mut chain = vec![stat.as_ancestor(self.pid())];
        // Twice the limit: a process whose parents keep ending costs a bounded number of
        // looks.
        for _ in 0..limit * 2 {
            let last = chain.last().map(|ancestor| &ancestor.process);
            if stat.parent == 0 || chain.len() >= limit || last == stop_at {
                break;
            }
            let Ok(parent) = open_folder(stat.parent)
                .map_err(EvidenceError::reading("stat"))
                .and_then(|f| open_stat(&f))
            else {
                break;
            };
            // Opened, then still named as the parent by a child that is still there, then
            // still alive: so what was opened is the parent's. Otherwise the child got a
            // new parent meanwhile, and the new one is looked at.
            let named = read_stat(&child)?;
            if named.parent != stat.parent {
                stat = named;
                continue;
            }
            let parent_stat = match read_stat(&parent) {
                Ok(parent_stat) => parent_stat,
                Err(EvidenceError::Gone) => continue,
                Err(other) => return Err(other),
            };
            chain.push(parent_stat.as_ancestor(stat.parent));
            stat = parent_stat;
            child = parent;
        }
        Ok(chain)
    }
}

fn open_folder(pid: u32) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        format!("/proc/{pid}"),
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY,
        Mode::empty(),
    )
}
