//! A new key of the Edge CA: what becomes of modules that trust the former one.
//!
//! With the same key nothing is done: what modules have stays good. With another key the
//! former CA is in the trust bundle for a while, but a module that reads the bundle at
//! its start alone does not know the new one.

use std::sync::Arc;
use std::time::Duration;

use edgekeep_core::edge_ca::{Consequence, consequence};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::Daemon;
use edgekeep_daemon::store::{StateFile, sha256};
use edgekeep_runtime::status::ModuleState;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::identity::Credentials;
use crate::modules;
use crate::modules::Modules;
use crate::modules::error::ModuleError;

/// Time for which operators are told.
const TOLD: Duration = Duration::from_secs(24 * 3600);

/// The key that the modules know.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    /// SHA-256 of the public key, hex.
    key: String,
}

/// Looks at the Edge CA's key after each look at its certificate, until `stop`.
pub(crate) async fn keep(
    credentials: Arc<Credentials>,
    modules: Arc<Modules>,
    mut stop: watch::Receiver<bool>,
) {
    let mut looks = credentials.edge_ca.subscribe();
    let mut known = None;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            looked = looks.changed() => if looked.is_err() { return },
        }
        follow(&credentials, &modules, &mut known).await;
    }
}

/// Looks whether the Edge CA has another key than `known`, and does what follows. The key
/// is remembered when that is done: an interrupted round is made again.
async fn follow(credentials: &Credentials, modules: &Arc<Modules>, known: &mut Option<String>) {
    let certificate = credentials.settings.edge_ca.cert.as_str();
    let Ok(pem) = credentials.certificates.load(certificate).await else { return };
    let Some(key) = key_of(&pem) else { return };
    if known.as_ref() == Some(&key) {
        return;
    }
    let path = modules.root.state_folder(Daemon::Moduled).join("edge-ca-key.json");
    let file = StateFile::<Known>::new(path, "edge-ca-key", 1);
    let before = match file.load() {
        Ok(before) => before.map(|before| before.key),
        Err(error) => {
            tracing::warn!(%error, "it is not known which Edge CA the modules know");
            None
        }
    };
    // The CA is part of the bundle. Files may be replaced by such of the same validity.
    credentials.trust_bundle.forget();
    match consequence(before.as_deref(), &key, credentials.settings.edge_ca.on_new_key) {
        Consequence::Nothing => {}
        Consequence::Tell => {
            let subject = Subject::certificate(certificate);
            let words = "modules that started before do not know it until they read the bundle";
            modules.board.note(Code::EdgeCaNewKey, &subject, words, TOLD);
        }
        Consequence::Restart => {
            for module in agent_last(modules.registrations.modules()) {
                restart(modules, &module).await;
            }
        }
    }
    if let Err(error) = file.save(&Known { key: key.clone() }) {
        tracing::warn!(%error, "the Edge CA's key is not remembered");
    }
    *known = Some(key);
}

/// Restarts a module that runs. One that cannot be restarted keeps no other from it.
async fn restart(modules: &Arc<Modules>, module: &ModuleId) {
    match modules.state(module).await {
        Ok((_, status)) if status.state != ModuleState::Running => return,
        Err(ModuleError::NoModule(_)) => return,
        // What cannot be looked at cannot be restarted either, which is told.
        Ok(_) | Err(_) => {}
    }
    tracing::info!(%module, "restarted: the Edge CA has a new key");
    if let Err(error) = modules::restart(modules, module).await {
        let words = format!("it was not restarted: {error}");
        modules.board.note(Code::EdgeCaNewKey, &Subject::module(module), words, TOLD);
    }
}

/// Returns the modules in the order of their restart: the agent, which looks after the
/// others, comes last.
fn agent_last(mut modules: Vec<ModuleId>) -> Vec<ModuleId> {
    modules.sort_by_key(|module| (module.is_edge_agent(), module.name().to_owned()));
    modules
}

fn key_of(pem: &str) -> Option<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Some(sha256(certificate.public_key().raw).hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_restarted_last_and_a_key_is_told_from_another() {
        let ids = ["$edgeAgent", "zone", "$edgeHub", "able"].map(|id| id.parse().unwrap());
        let names: Vec<_> = agent_last(ids.to_vec()).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["able", "$edgeHub", "zone", "$edgeAgent"]);
        let made = || rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).unwrap();
        let (one, other) = (made().cert.pem(), made().cert.pem());
        assert_eq!(key_of(&one), key_of(&one));
        assert_ne!(key_of(&one), key_of(&other));
        assert_eq!(key_of("nothing"), None);
    }
}
