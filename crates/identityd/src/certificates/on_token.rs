//! Certificates on tokens. keyd has the tokens: it is asked now and then, and what it
//! answered last is in use.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::KeysClient;
use edgekeep_base::error::chain;
use edgekeep_base::lock::lock;
use edgekeep_core::credentials::Certificate;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::CertId;
use edgekeep_core::on_token::{Known, Look};
use edgekeep_daemon::board::Board;

use super::CertStoreError;

/// Time between two looks at the tokens.
const PAUSE: Duration = Duration::from_secs(5);
/// The same while something is missing after the start: keyd may still be starting.
const SHORT: Duration = Duration::from_millis(500);
/// Looks after the start before the pauses are long.
const QUICK: u32 = 20;

/// The certificates on tokens.
#[derive(Debug)]
pub(super) struct OnToken {
    board: Board,
    /// `None`: the first look is still to come.
    known: Mutex<BTreeMap<CertId, Option<Known>>>,
}

impl OnToken {
    pub(super) fn new(ids: impl Iterator<Item = CertId>, board: Board) -> Self {
        Self { board, known: Mutex::new(ids.map(|id| (id, None)).collect()) }
    }

    /// Returns the certificate that is in use.
    pub(super) fn read(&self, id: &CertId) -> Result<Vec<Certificate>, CertStoreError> {
        let why = match lock(&self.known).get(id) {
            Some(Some(Known { certificate: Some(certificate), .. })) => {
                return Ok(vec![certificate.clone()]);
            }
            Some(Some(Known { problem: Some(why), .. })) => why.clone(),
            _ => "keyd, which has the token, has not answered yet".to_owned(),
        };
        Err(CertStoreError::OnToken { id: id.clone(), why })
    }

    /// Asks keyd for each certificate, after so many looks. Returns true if another one
    /// is in use than before.
    pub(super) async fn look(&self, keys: &KeysClient, looks: u32) -> bool {
        let ids: Vec<CertId> = lock(&self.known).keys().cloned().collect();
        let mut changed = false;
        for id in ids {
            let look = look_of(&id, keys.certificate(id.as_str()).await);
            changed |= self.take(id, look, looks);
        }
        changed
    }

    fn take(&self, id: CertId, look: Look, looks: u32) -> bool {
        let subject = Subject::certificate(id.as_str());
        let mut all = lock(&self.known);
        let before = all.get(&id).cloned().flatten();
        // Daemons that are started together need no problem.
        if before.is_none() && looks < QUICK && matches!(look, Look::Silent(_)) {
            return false;
        }
        let before = before.unwrap_or_default();
        let known = before.clone().after(look);
        match &known.problem {
            Some(problem) => self.board.raise(Code::CertificateOnToken, &subject, problem),
            None => self.board.clear(Code::CertificateOnToken, &subject),
        }
        let changed = known.certificate != before.certificate;
        all.insert(id, Some(known));
        changed
    }

    /// Asks keyd for those that were never looked at.
    pub(super) async fn first_look(&self, keys: &KeysClient) -> bool {
        let is_new = lock(&self.known).values().any(Option::is_none);
        is_new && self.look(keys, 0).await
    }

    /// Returns the time until the next look, after so many; `None` if there is nothing to
    /// look at.
    pub(super) fn pause(&self, looks: u32) -> Option<Duration> {
        let known = lock(&self.known);
        let is_read = |one: &Option<Known>| one.as_ref().is_some_and(|it| it.certificate.is_some());
        let pause = if looks >= QUICK || known.values().all(is_read) { PAUSE } else { SHORT };
        (!known.is_empty()).then_some(pause)
    }
}

fn look_of(id: &CertId, answer: Result<Vec<u8>, ClientError>) -> Look {
    match answer {
        Ok(value) => Look::Value(value),
        Err(ClientError::Status { status, message, .. }) if status.is_client_error() => {
            Look::Refused(message)
        }
        Err(ClientError::Status { .. }) => Look::Silent(format!(
            "keyd cannot read certificate \"{id}\" from its token: keyd's log names the cause"
        )),
        Err(error) => {
            Look::Silent(format!("keyd, which has the token, cannot be asked: {}", chain(&error)))
        }
    }
}
