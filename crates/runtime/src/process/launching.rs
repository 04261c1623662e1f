//! The starter of host modules, which also ends them, as [`super::ProcessRuntime`] has
//! it: a process with the rights for that, or this process.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use edgekeep_children::Link;
use edgekeep_core::host::{Accounts, Daemon};
use rustix::fs::{Mode, OFlags};

use super::asked::{Answer, Asked};
use super::service::LaunchService;
use super::{ProcessError, own_rights};

/// Longest time of a start: systemd, the program's copy, and becoming the module.
const LIMIT: Duration = Duration::from_secs(90);

/// The starter of host modules: this process, or a child of it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Launching {
    who: Who,
    rights: Option<Daemon>,
}

#[derive(Debug, Clone)]
enum Who {
    Own(Arc<dyn Starter>),
    Child(Link),
}

/// An answer to a question, with its descriptors, that is being worked out.
pub type Answering = Pin<Box<dyn Future<Output = (Answer, Vec<OwnedFd>)> + Send>>;

/// A part of this process that starts host modules, and ends them. Tests have one that
/// starts nothing.
pub trait Starter: std::fmt::Debug + Send + Sync {
    /// Does what is asked for. In a tokio runtime.
    fn answer(&self, asked: Asked, files: Vec<OwnedFd>) -> Answering;
}

impl Starter for LaunchService {
    fn answer(&self, asked: Asked, files: Vec<OwnedFd>) -> Answering {
        Box::pin(Self::answer(self, asked, files))
    }
}

impl Launching {
    /// Starts modules from this process, with the rights that it has.
    #[must_use]
    pub fn here(starter: impl Starter + 'static) -> Self {
        Self { who: Who::Own(Arc::new(starter)), rights: own_rights().ok() }
    }

    /// Starts modules from a child of this process, which has these rights.
    #[must_use]
    pub fn child(link: Link, rights: Daemon) -> Self {
        Self { who: Who::Child(link), rights: Some(rights) }
    }

    /// Returns the account and the capabilities of the process that starts host modules.
    /// `None` if they are not known.
    #[must_use]
    pub fn rights(&self) -> Option<Daemon> {
        self.rights
    }

    pub(super) async fn ask(
        &self,
        question: Asked,
        files: Vec<OwnedFd>,
    ) -> Result<(Answer, Vec<OwnedFd>), ProcessError> {
        match &self.who {
            Who::Own(starter) => Ok(starter.answer(question, files).await),
            Who::Child(link) => {
                let files: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
                Ok(link.ask(&question, &files, LIMIT).await?)
            }
        }
    }

    /// Returns the system's users and groups as they are now. The launching process opens
    /// their files, which are out of reach for one that is confined.
    ///
    /// # Errors
    /// The files cannot be read, or there is no answer.
    pub async fn accounts(&self) -> Result<Accounts, ProcessError> {
        let unreadable = |source| ProcessError::Accounts { source };
        if let Who::Own(_) = &self.who {
            return super::accounts().map_err(unreadable);
        }
        let (answer, files) = self.ask(Asked::Accounts, Vec::new()).await?;
        let files: [OwnedFd; 2] = files
            .try_into()
            .map_err(|_| unreadable(std::io::Error::other(format!("{answer:?}"))))?;
        super::accounts_in(files.map(File::from)).map_err(unreadable)
    }

    /// Gives a folder to a user and a group.
    ///
    /// # Errors
    /// The folder cannot be opened, or is not to be given to them.
    pub async fn hand_over(&self, folder: &Path, uid: u32, gid: u32) -> Result<(), ProcessError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = |source| ProcessError::HandOver { folder: folder.to_owned(), source };
        let opened =
            rustix::fs::open(folder, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let (answer, _) = self.ask(Asked::HandOver { uid, gid }, vec![opened]).await?;
        match answer {
            Answer::Done => Ok(()),
            other => Err(failed(std::io::Error::other(format!("{other:?}")))),
        }
    }
}
