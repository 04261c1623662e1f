//! The one error of all that is done to modules. It says what is the matter; what a
//! client is answered follows from it in `http::refuse`.

use std::error::Error;
use std::fmt;

use edgekeep_core::container::Obstacle;
use edgekeep_core::id::ModuleId;
use edgekeep_core::image_policy::ImageRefusal;
use edgekeep_daemon::store::StoreError;
use edgekeep_runtime::engine::EngineError;
use edgekeep_runtime::process::ProcessError;

use crate::modules::image::MeasureError;
use crate::modules::sockets::SocketError;

/// Failure to do something with a module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    /// Nothing has the module's name, in any runtime.
    #[error("there is no module {}: `edgekeep list` shows those that there are", .0.name())]
    NoModule(ModuleId),
    /// A module of that name is there already.
    #[error("there already is a module {}", .0.name())]
    NameTaken(ModuleId),
    /// The container of that name is none of this daemon's.
    #[error("the container {0} was not made by this daemon; remove the module and create it again")]
    NotRegistered(String),
    /// The name is that of a service, which something else starts and stops.
    #[error("{0}")]
    IsService(String),
    /// Something that somebody else did to the module's container.
    #[error("{}", .1.explained(.0.name()))]
    Obstacle(ModuleId, Obstacle),
    /// Something else changes the module's container faster than it can be put right.
    #[error(
        "the container of module {} is changed again and again by something else than this daemon; find out by what \
         (docker events) and stop it",
        .0.name()
    )]
    Contended(ModuleId),
    /// The specification or the configuration cannot be carried out as it stands.
    #[error("{0}")]
    Invalid(String),
    /// The image is not the one that was pinned, or is not signed.
    #[error(transparent)]
    Image(ImageRefusal),
    /// The create options name a network that is not there.
    #[error(
        "there is no network {0}, which the create options name; make it (docker network create {0}), or take it \
         out of them"
    )]
    NoNetwork(String),
    /// A container module on a device without an engine.
    #[error("no container engine is configured; set [moby_runtime] uri, or use type \"process\"")]
    NoEngine,
    /// The engine does not answer.
    #[error("{0}")]
    EngineSilent(String),
    /// The engine cannot be reached, and when it was heard last.
    #[error("{}\n{heard}", Chain(.source))]
    EngineAway {
        /// The engine's client says.
        source: EngineError,
        /// Time when the engine was heard last, and the remedy, for the error's text.
        heard: String,
    },
    /// The engine refuses.
    #[error("{}", Chain(.0))]
    Engine(#[from] EngineError),
    /// The runtime of host modules refuses.
    #[error("{}", Chain(.0))]
    Process(#[from] ProcessError),
    /// The module's sockets cannot be opened.
    #[error("{}", Chain(.0))]
    Socket(#[from] SocketError),
    /// The registration cannot be written, so nothing was made.
    #[error("{}", Chain(.0))]
    NotWritten(StoreError),
    /// An update failed, and what became of the module.
    #[error("the update of {module} failed; {now}\ncaused by: {cause}")]
    UpdateFailed {
        /// The module.
        module: ModuleId,
        /// State of the module now, for the error's text.
        now: String,
        /// The reason.
        cause: Box<ModuleError>,
    },
    /// A module was taken back to what it was, and does not start.
    #[error("it does not start as it was either: {0}")]
    DoesNotStartAgain(Box<ModuleError>),
    /// Something of the device that a client may know.
    #[error("{0}")]
    Device(String),
    /// Something of the device that is for the log alone.
    #[error("{}", Chain(&**.0))]
    Hidden(Box<dyn Error + Send + Sync>),
}

impl ModuleError {
    /// Returns an error whose cause no client is told.
    pub(crate) fn hidden(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::Hidden(Box::new(cause))
    }
}

impl From<MeasureError> for ModuleError {
    fn from(error: MeasureError) -> Self {
        match error {
            MeasureError::Engine(error) => Self::Engine(error),
            MeasureError::Refused(refusal) => Self::Image(refusal),
        }
    }
}

/// An error and its causes, as existing clients get them (wire facts 1.5).
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, "\ncaused by: {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
