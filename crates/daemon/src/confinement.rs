//! Confinement of a daemon: the rights that the daemon gives up once it has what it
//! needs. These rights are decided as a value, then given up in two steps.
//!
//! 1. [`Confinement::enter`], while there is one thread: capabilities and, by Landlock,
//!    files and TCP ports.
//! 2. [`Entered::seal`], before anything is listened to: all system calls but those of
//!    the daemon's list, for all threads.
//!
//! What a kernel cannot do, or refuses to, is logged and shown by `GET /sandbox` at the
//! operations socket. The daemon goes on: a device without it is lost to its operator,
//! and the other layers hold alone.

use std::path::Path;

use edgekeep_api::operations::{Layer, SandboxReport};
use edgekeep_base::error::chain;
use edgekeep_sandbox::{Level, Reach, Rights, SyscallList, privileges};
use rustix::thread::CapabilitySet;

/// Files by which the C library looks names of hosts up, but for `/etc/resolv.conf`.
pub const FOR_NAMES: &[&str] =
    &["/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf"];

/// The rights to be kept, and the reasons to keep more than usual.
#[derive(Debug)]
pub struct Confinement {
    /// The configuration's key that switches it off.
    pub switch: &'static str,
    /// True if anything is given up.
    pub enabled: bool,
    /// Files and ports.
    pub reach: Reach,
    /// The list of system calls, see [`edgekeep_sandbox::syscalls`].
    pub calls: &'static str,
    /// Sections of that list that count.
    pub sections: Vec<&'static str>,
    /// Things that are kept because the settings need them, in words for people.
    pub widened: Vec<String>,
    /// Capabilities.
    pub keep: CapabilitySet,
}

impl Confinement {
    /// Keeps nothing but the calls of a list that belong to no section.
    #[must_use]
    pub fn new(switch: &'static str, enabled: bool, calls: &'static str) -> Self {
        let (sections, widened) = (Vec::new(), Vec::new());
        Self {
            switch,
            enabled,
            reach: Reach::none(),
            calls,
            sections,
            widened,
            keep: CapabilitySet::empty(),
        }
    }

    /// Adds a right on a file or folder.
    pub fn grant(&mut self, path: impl AsRef<Path>, rights: Rights) {
        self.reach = std::mem::take(&mut self.reach).grant(path.as_ref(), rights);
    }

    /// Adds a right on several.
    pub fn grant_all(&mut self, paths: impl IntoIterator<Item = impl AsRef<Path>>, rights: Rights) {
        for path in paths {
            self.grant(path, rights);
        }
    }

    /// Adds the calls of a section.
    pub fn section(&mut self, name: &'static str) {
        if !self.sections.contains(&name) {
            self.sections.push(name);
        }
    }

    /// Gives up, for good: privileges, and all files and ports but those that are needed.
    /// To be called before there are other threads.
    #[must_use]
    pub fn enter(self) -> Entered {
        if !self.enabled {
            let switch = self.switch;
            tracing::warn!(
                "no sandbox: {switch} = false; whoever takes this daemon over has all rights of its user"
            );
            return Entered { confinement: self, layers: Vec::new() };
        }
        for widened in &self.widened {
            tracing::info!("the sandbox leaves within reach: {widened}");
        }
        let privileges =
            privileges::give_up(self.keep).map_or_else(|error| absent(&error), |()| Level::Full);
        let reach = match self.reach.restrict() {
            Ok(reached) => {
                for path in &reached.missing {
                    tracing::debug!(path = %path.display(), "not there, and out of reach until the next start");
                }
                reached.level
            }
            Err(error) => absent(&error),
        };
        Entered { confinement: self, layers: vec![("privileges", privileges), ("files", reach)] }
    }
}

fn absent(error: &dyn std::error::Error) -> Level {
    Level::Absent { reason: chain(error) }
}

/// A process that has given up its files, and not yet its system calls.
#[derive(Debug)]
pub struct Entered {
    confinement: Confinement,
    layers: Vec<(&'static str, Level)>,
}

impl Entered {
    /// Gives up, for good and for all threads, the system calls that serving does not
    /// need.
    #[must_use]
    pub fn seal(mut self) -> SandboxReport {
        if self.confinement.enabled {
            let applied = SyscallList::parse(self.confinement.calls)
                .map_err(|error| absent(&error))
                .and_then(|list| {
                    list.compile(&self.confinement.sections).map_err(|error| absent(&error))
                })
                .and_then(|filter| filter.restrict_process().map_err(|error| absent(&error)));
            self.layers.push(("system calls", applied.unwrap_or_else(|level| level)));
        }
        for (name, level) in self.layers.iter().filter(|(_, level)| !level.is_full()) {
            tracing::warn!("the sandbox is weaker than it should be: {name}: {level}");
        }
        let layers = self.layers.into_iter().map(|(name, level)| Layer {
            name: name.to_owned(),
            full: level.is_full(),
            in_force: !matches!(level, Level::Absent { .. }),
            level: level.to_string(),
        });
        let widened = if self.confinement.enabled { self.confinement.widened } else { Vec::new() };
        SandboxReport { enabled: self.confinement.enabled, layers: layers.collect(), widened }
    }
}
