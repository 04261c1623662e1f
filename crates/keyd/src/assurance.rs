//! The assurance of this device, as keyd knows it at this moment.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use edgekeep_api::operations::SandboxReport;
use edgekeep_audit::entry::Event;
use edgekeep_base::lock::lock;
use edgekeep_core::assurance::{
    Assurance, Confined, Facts, Lack, Level, LogState, StoreKey, TpmState, assurance,
};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::key_use::Policy;
use edgekeep_core::layout::Daemon;
use edgekeep_daemon::board::Board;
use edgekeep_hsm::software::Protection;
use edgekeep_tpm::{Tpm, TpmError};

use crate::integrity::Integrity;
use crate::places::SharedTpm;
use crate::record::Recorder;

/// Time for which an answer is good: so many askers cost one look at the TPM.
const FRESH: Duration = Duration::from_secs(1);

/// The inputs of the decision, and the decision that was told last.
pub(crate) struct Assured {
    integrity: Arc<Integrity>,
    recorder: Arc<Recorder>,
    tpm: Option<SharedTpm>,
    store_key: StoreKey,
    shared_user: bool,
    /// Set once the sandbox is entered.
    confined: OnceLock<Confined>,
    board: Board,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<(Instant, Assurance)>,
    /// The TPM's count of its resets when it was first read.
    resets: Option<u32>,
    /// The level in the newest entry of the audit log that tells one.
    told: Option<Assurance>,
    /// The highest level since keyd was started.
    highest: Option<Level>,
}

impl Assured {
    pub(crate) fn new(
        integrity: Arc<Integrity>,
        recorder: Arc<Recorder>,
        tpm: Option<SharedTpm>,
        protection: Protection,
        policy: &Policy,
        board: Board,
    ) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let others = [Daemon::Identityd, Daemon::Moduled];
        Self {
            integrity,
            recorder,
            tpm,
            store_key: match protection {
                Protection::File => StoreKey::File,
                Protection::Token => StoreKey::Token,
                Protection::Tpm => StoreKey::Tpm,
            },
            shared_user: others.iter().any(|daemon| policy.speaks_for(uid, *daemon).is_ok()),
            confined: OnceLock::new(),
            board,
            state: Mutex::default(),
        }
    }

    /// Takes the report of what keyd has given up. Until then nothing is given up.
    pub(crate) fn confined(&self, report: &SandboxReport) {
        let confined = match report.enabled {
            false => Confined::Not,
            true if report.layers.iter().all(|layer| layer.in_force) => Confined::InAllLayers,
            true => Confined::NotInAllLayers,
        };
        let _ = self.confined.set(confined);
    }

    /// The assurance now. Asks the TPM, unless that was done just before; what changed
    /// goes into the audit log and onto the board.
    pub(crate) fn now(&self) -> Assurance {
        let mut state = lock(&self.state);
        if let Some((at, known)) = &state.looked
            && at.elapsed() < FRESH
        {
            return known.clone();
        }
        let (tpm, log) = self.tpm_and_log(&mut state);
        let assured = assurance(&Facts {
            confined: self.confined.get().copied().unwrap_or(Confined::Not),
            shared_user: self.shared_user,
            store_key: self.store_key,
            tpm,
            log,
        });
        state.looked = Some((Instant::now(), assured.clone()));
        self.tell(&mut state, &assured);
        assured
    }

    fn tpm_and_log(&self, state: &mut State) -> (TpmState, LogState) {
        let log = self.integrity.condition();
        let Some(tpm) = &self.tpm else { return (TpmState::None, log) };
        let look = |tpm: &Tpm| Ok::<_, TpmError>((tpm.resets()?.0, tpm.in_lockout()?));
        let asked = tpm.get().and_then(|tpm| Ok(tpm.with_tpm(look)?));
        let Ok((resets, in_lockout)) = asked else { return (TpmState::Lost, log) };
        let first = *state.resets.get_or_insert(resets);
        let tpm = match (first == resets, in_lockout) {
            (false, _) => TpmState::Reset,
            (true, true) => TpmState::Lockout,
            (true, false) => TpmState::Usable,
        };
        (tpm, log)
    }

    fn tell(&self, state: &mut State, assured: &Assurance) {
        if state.told.as_ref() != Some(assured) {
            let was = state.told.as_ref().map(|told| told.level);
            let event = Event::Assurance { assured: assured.clone(), was };
            // If there is no place for it now, the next look tells it.
            if self.recorder.tell(event) {
                tracing::info!(level = %assured.level, lacks = ?assured.lacks, "assurance");
                state.told = Some(assured.clone());
            }
        }
        let highest = state.highest.map_or(assured.level, |before| before.max(assured.level));
        state.highest = Some(highest);
        if assured.level < highest {
            let why: Vec<&str> = assured.lacks.iter().map(|lack| Lack::words(*lack)).collect();
            let detail = format!("it was {highest} and is {}: {}", assured.level, why.join("; "));
            self.board.raise(Code::AssuranceLowered, &Subject::device(), detail);
        } else {
            self.board.clear(Code::AssuranceLowered, &Subject::device());
        }
    }
}
