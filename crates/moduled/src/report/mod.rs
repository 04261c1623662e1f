//! Reports of the device: its health, metrics, resources, and the support bundle.

pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod resources;
pub(crate) mod support_bundle;
pub(crate) mod systeminfo;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edgekeep_api::management::SystemInfo;
use edgekeep_core::health::calls::SHOWN_FOR;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::layout::Root;
use edgekeep_daemon::board::Board;
use tokio::sync::Semaphore;

use crate::identity::Credentials;
use crate::modules::Modules;
use crate::report::health::Orders;

/// The device as it is shown to people.
#[derive(Debug)]
pub(crate) struct Report {
    root: Root,
    /// Board of problems, for operators.
    pub(crate) board: Board,
    /// Orders for the modules: what is wanted of each.
    pub(crate) orders: Orders,
    /// The machine.
    pub(crate) system_info: SystemInfo,
    /// Held while a support bundle is made: one at a time, for it is made in memory.
    support_bundle: Semaphore,
    modules: Arc<Modules>,
    credentials: Arc<Credentials>,
}

impl Report {
    /// Returns a report of these modules and credentials, and of what the board has.
    pub(crate) fn new(modules: Arc<Modules>, credentials: Arc<Credentials>, board: Board) -> Self {
        Self {
            root: modules.root.clone(),
            board,
            orders: Orders::default(),
            system_info: systeminfo::read(&modules.settings.additional_info),
            support_bundle: Semaphore::new(1),
            modules,
            credentials,
        }
    }

    /// Tells the operator of a user who flooded a socket.
    pub(crate) fn flooded(&self, socket: &Path, uid: u32, lasting: Duration) {
        let seconds = lasting.as_secs();
        let detail = format!("by user {uid}, who is kept out for {seconds} s");
        self.board.note(Code::SocketFlooded, &Subject::file(socket), detail, SHOWN_FOR);
    }
}
