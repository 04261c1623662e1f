//! The thing that a problem is about.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::foreign_text::cleaned;
use crate::id::ModuleId;
use crate::layout::Daemon;

/// Longest name of a subject, in characters.
pub const NAME_LIMIT: usize = 256;

/// A kind of subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The device as a whole.
    Device,
    /// One of the daemons.
    Daemon,
    /// A module, a host module or a service of the host.
    Module,
    /// The container engine.
    Engine,
    /// A certificate, by its id.
    Certificate,
    /// A key, by its id.
    Key,
    /// A file or a folder.
    File,
    /// A service in the cloud, by its host name.
    Cloud,
    /// A kind that only another version knows.
    #[serde(other)]
    Other,
}

/// The thing that a problem is about: a kind, and a name that is bounded and cleaned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject {
    kind: Kind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
}

impl Subject {
    /// The device as a whole.
    #[must_use]
    pub const fn device() -> Self {
        Self { kind: Kind::Device, name: String::new() }
    }

    /// A daemon.
    #[must_use]
    pub fn daemon(daemon: Daemon) -> Self {
        Self::new(Kind::Daemon, daemon.name())
    }

    /// A module, a host module or a service of the host, by its name without `$`.
    #[must_use]
    pub fn module(module: &ModuleId) -> Self {
        Self::new(Kind::Module, module.name())
    }

    /// The container engine at `uri`.
    #[must_use]
    pub fn engine(uri: &str) -> Self {
        Self::new(Kind::Engine, uri)
    }

    /// A certificate.
    #[must_use]
    pub fn certificate(id: &str) -> Self {
        Self::new(Kind::Certificate, id)
    }

    /// A key.
    #[must_use]
    pub fn key(id: &str) -> Self {
        Self::new(Kind::Key, id)
    }

    /// A file or a folder.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self::new(Kind::File, &path.to_string_lossy())
    }

    /// A service in the cloud.
    #[must_use]
    pub fn cloud(host: &str) -> Self {
        Self::new(Kind::Cloud, host)
    }

    /// A subject of any kind. The name is bounded and cleaned.
    #[must_use]
    pub fn new(kind: Kind, name: &str) -> Self {
        Self { kind, name: cleaned(name, NAME_LIMIT) }
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name; empty for the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Device => f.write_str("device"),
            Kind::Daemon | Kind::File | Kind::Other => f.write_str(&self.name),
            Kind::Module => write!(f, "module {}", self.name),
            Kind::Engine => write!(f, "engine {}", self.name),
            Kind::Certificate => write!(f, "certificate {}", self.name),
            Kind::Key => write!(f, "key {}", self.name),
            Kind::Cloud => write!(f, "service {}", self.name),
        }
    }
}
