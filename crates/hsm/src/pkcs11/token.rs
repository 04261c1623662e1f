//! One token: finding it, logging in to it, sessions with it, and getting back to it
//! after it was away.

use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use edgekeep_base::lock::{lock, waited};

use cryptoki::error::RvError;
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Limit, Slot, TokenInfo};

use super::error::{
    Connection, Failed, PinVerdict, TokenError, call_error, code, code_name, connection_after,
    pin_verdict,
};
use super::library::{Initialized, Library};
use super::pin;
use crate::uri::{KeyUri, PinSource, Pkcs11Uri, TokenAttributes};

/// The properties that tell one token from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenFacts {
    pub(super) slot_id: u64,
    pub(super) label: String,
    pub(super) manufacturer: String,
    pub(super) model: String,
    pub(super) serial: String,
    pub(super) initialized: bool,
}

impl TokenFacts {
    pub(super) fn of(slot: Slot, info: &TokenInfo) -> Self {
        Self {
            slot_id: slot.id(),
            label: info.label().to_owned(),
            manufacturer: info.manufacturer_id().to_owned(),
            model: info.model().to_owned(),
            serial: info.serial_number().to_owned(),
            initialized: info.token_initialized(),
        }
    }

    /// Describes the token for a list that people read.
    pub(super) fn describe(&self) -> String {
        let label = if self.initialized {
            format!("{:?}", self.label)
        } else {
            "not initialized".to_owned()
        };
        format!("{label} (slot-id={}, serial={}, model={})", self.slot_id, self.serial, self.model)
    }
}

/// Result of a choice among tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// The token at this index.
    One(usize),
    /// No attribute was given to choose by.
    Unspecific,
    /// No token matches.
    Absent,
    /// More than one token matches.
    Several,
}

/// Chooses the token that is meant. A slot number decides alone; tokens without label are
/// never meant by another attribute.
pub(super) fn choose(wanted: &TokenAttributes, found: &[TokenFacts]) -> Choice {
    if wanted.is_empty() {
        return Choice::Unspecific;
    }
    let is = |wanted: &Option<String>, found: &str| {
        wanted.as_deref().is_none_or(|wanted| wanted == found)
    };
    let mut fitting = found.iter().enumerate().filter(|(_, token)| match wanted.slot_id {
        Some(slot_id) => token.slot_id == slot_id,
        None => {
            token.initialized
                && is(&wanted.label, &token.label)
                && is(&wanted.manufacturer, &token.manufacturer)
                && is(&wanted.model, &token.model)
                && is(&wanted.serial, &token.serial)
        }
    });
    match (fitting.next(), fitting.next()) {
        (None, _) => Choice::Absent,
        (Some((index, _)), None) => Choice::One(index),
        (Some(_), Some(_)) => Choice::Several,
    }
}

/// The tokens that a library shows.
pub(super) fn tokens(
    library: &Initialized,
) -> Result<Vec<(Slot, TokenInfo)>, cryptoki::error::Error> {
    let mut tokens = Vec::new();
    for slot in library.pkcs11.get_slots_with_token()? {
        match library.pkcs11.get_token_info(slot) {
            Ok(info) => tokens.push((slot, info)),
            // Pulled out between the two calls.
            Err(error) if connection_after(&error) == Connection::Lost => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tokens)
}

/// A token, and sessions with it.
pub(super) struct Token {
    library: Arc<Library>,
    wanted: TokenAttributes,
    /// Name of the token in errors.
    name: String,
    pin: Option<PinSource>,
    limit: usize,
    state: Mutex<State>,
    /// Signalled when a session comes back or there is room for one.
    returned: Condvar,
}

#[derive(Default)]
struct State {
    connected: Option<Connected>,
    /// Counts connections. What belongs to an earlier one is thrown away.
    epoch: u64,
    idle: Vec<Session>,
    /// Sessions that are idle or lent.
    open: usize,
    limit: usize,
}

#[derive(Clone)]
struct Connected {
    slot: Slot,
    /// Number of the library's initialization in which the connection was made.
    generation: u64,
    login_needed: bool,
}

/// A session, lent.
pub(super) struct Lent<'a> {
    session: Option<Session>,
    token: &'a Token,
    epoch: u64,
    login_needed: bool,
}

impl Deref for Lent<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("a session is taken out only when it is dropped")
    }
}

impl Lent<'_> {
    /// Counts connections: object handles are good within one.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Fails if the login is gone. Private objects are then not refused but invisible.
    pub(super) fn check_login(&self) -> Result<(), Failed> {
        if !self.login_needed {
            return Ok(());
        }
        match self.get_session_info()?.session_state() {
            SessionState::RwUser | SessionState::RoUser => Ok(()),
            _ => Err(Failed::Ck(cryptoki::error::Error::Pkcs11(
                RvError::UserNotLoggedIn,
                cryptoki::context::Function::GetSessionInfo,
            ))),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let mut state = self.token.state();
        if state.epoch == self.epoch {
            state.idle.push(session);
            drop(state);
            self.token.returned.notify_one();
        }
        // Else its handle is nobody's or somebody else's by now; sessions do not close
        // themselves here.
    }
}

impl Token {
    /// `sessions` is the most that are open at a time; the token may allow fewer.
    pub(super) fn new(library: Arc<Library>, uri: &Pkcs11Uri, sessions: usize) -> Self {
        let named = Pkcs11Uri { token: uri.token.clone(), ..Pkcs11Uri::default() };
        let name =
            uri.token.label.clone().unwrap_or_else(|| KeyUri::Pkcs11(Box::new(named)).to_string());
        Self {
            library,
            wanted: uri.token.clone(),
            name,
            pin: uri.pin.clone(),
            limit: sessions.max(1),
            state: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Returns the token's name in errors.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Runs `operation` with a session. If the connection turns out to be gone it is made
    /// anew and `operation` is run once more, so it has to be one that may be done twice.
    pub(super) fn run<T>(
        &self,
        operation: impl Fn(&Lent<'_>) -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        let generation = match self.run_once(&operation)? {
            Once::Done(done) => return done,
            Once::Lost { .. } => match self.run_once(&operation)? {
                Once::Done(done) => return done,
                Once::Lost { generation, .. } => generation,
            },
        };
        // Opening other sessions did not help. Some libraries look for tokens only when
        // they are initialized.
        self.library.initialize_anew(generation)?;
        match self.run_once(&operation)? {
            Once::Done(done) => done,
            Once::Lost { why, .. } => Err(why),
        }
    }

    fn run_once<T>(
        &self,
        operation: impl Fn(&Lent<'_>) -> Result<T, Failed>,
    ) -> Result<Once<T>, Failed> {
        let library = self.library.enter();
        let generation = library.generation;
        let lent = match self.lend(&library) {
            Ok(lent) => lent,
            Err(NotLent::Lost(why)) => {
                return Ok(Once::Lost { why: Failed::from(why), generation });
            }
            Err(NotLent::Refused(why)) => return Err(why.into()),
        };
        let done = operation(&lent);
        let Err(Failed::Ck(error)) = &done else { return Ok(Once::Done(done)) };
        let lost = match connection_after(error) {
            Connection::Stands => false,
            Connection::Lost => true,
            Connection::Unclear => !self.answers(&library, &lent),
        };
        if !lost {
            return Ok(Once::Done(done));
        }
        self.disconnect(&library, lent.epoch);
        Ok(Once::Lost { why: call_error(error, &self.name).into(), generation })
    }

    /// Returns true if the token still does what it surely can do. The token is asked for
    /// random bytes, then for its state.
    fn answers(&self, library: &Initialized, session: &Session) -> bool {
        let random = session.generate_random_vec(8).is_ok();
        random
            && self
                .state()
                .connected
                .as_ref()
                .is_some_and(|is| library.pkcs11.get_token_info(is.slot).is_ok())
    }

    /// Forgets the connection, unless that was done since `epoch`.
    fn disconnect(&self, library: &Initialized, epoch: u64) {
        let mut state = self.state();
        if state.epoch != epoch {
            return;
        }
        state.epoch += 1;
        state.open = 0;
        let same = state.connected.take().is_some_and(|is| is.generation == library.generation);
        if same {
            library.connected.fetch_sub(1, Ordering::Relaxed);
        }
        for session in state.idle.drain(..) {
            if same {
                // It may be gone already.
                let _ = session.close();
            }
        }
        drop(state);
        self.returned.notify_all();
    }

    fn lend(&self, library: &Initialized) -> Result<Lent<'_>, NotLent> {
        let mut state = self.state();
        loop {
            let connected = match state.connected.clone() {
                Some(connected) if connected.generation == library.generation => connected,
                stale => {
                    // The library was initialized anew: sessions of before are gone.
                    state.connected = None;
                    state.idle.clear();
                    state.open = 0;
                    state.epoch += u64::from(stale.is_some());
                    let (connected, session, limit) = self.connect(library)?;
                    library.connected.fetch_add(1, Ordering::Relaxed);
                    state.connected = Some(connected.clone());
                    state.limit = limit;
                    state.idle.push(session);
                    state.open = 1;
                    connected
                }
            };
            let lent = |session, epoch| Lent {
                session: Some(session),
                token: self,
                epoch,
                login_needed: connected.login_needed,
            };
            if let Some(session) = state.idle.pop() {
                return Ok(lent(session, state.epoch));
            }
            if state.open < state.limit {
                match library.pkcs11.open_rw_session_no_drop(connected.slot) {
                    Ok(session) => {
                        state.open += 1;
                        return Ok(lent(session, state.epoch));
                    }
                    // The token has fewer than it said. Those that we have will come
                    // back.
                    Err(error) if code(&error) == Some(RvError::SessionCount) && state.open > 0 => {
                        state.limit = state.open;
                    }
                    Err(error) => {
                        let lost = connection_after(&error) != Connection::Stands;
                        let epoch = state.epoch;
                        drop(state);
                        let why = call_error(&error, &self.name);
                        return Err(if lost {
                            self.disconnect(library, epoch);
                            NotLent::Lost(why)
                        } else {
                            NotLent::Refused(why)
                        });
                    }
                }
            }
            state = waited(self.returned.wait(state));
        }
    }

    /// Finds the token, opens the first session and logs in.
    fn connect(&self, library: &Initialized) -> Result<(Connected, Session, usize), NotLent> {
        let failed = |error: cryptoki::error::Error| {
            let why = call_error(&error, &self.name);
            if connection_after(&error) == Connection::Stands {
                NotLent::Refused(why)
            } else {
                NotLent::Lost(why)
            }
        };
        let tokens = tokens(library).map_err(failed)?;
        let (slot, info) = self.find(&tokens)?;
        let session = library.pkcs11.open_rw_session_no_drop(*slot).map_err(failed)?;
        let login_needed =
            info.login_required() || info.user_pin_initialized() && self.pin.is_some();
        if login_needed && let Err(refused) = self.log_in(library, *slot, info, &session) {
            let _ = session.close();
            return Err(refused);
        }
        let limit = match info.max_rw_session_count() {
            Limit::Max(most) => self.limit.min(usize::try_from(most).unwrap_or(usize::MAX)).max(1),
            Limit::Unavailable | Limit::Infinite => self.limit,
        };
        Ok((
            Connected { slot: *slot, generation: library.generation, login_needed },
            session,
            limit,
        ))
    }

    fn find<'t>(&self, tokens: &'t [(Slot, TokenInfo)]) -> Result<&'t (Slot, TokenInfo), NotLent> {
        let facts: Vec<TokenFacts> =
            tokens.iter().map(|(slot, info)| TokenFacts::of(*slot, info)).collect();
        let found = facts.iter().map(TokenFacts::describe).collect();
        let wanted = self.name.clone();
        match choose(&self.wanted, &facts) {
            Choice::One(index) => Ok(&tokens[index]),
            Choice::Unspecific => Err(NotLent::Refused(TokenError::Unspecific { found })),
            Choice::Absent => Err(NotLent::Lost(TokenError::Absent { wanted, found })),
            Choice::Several => Err(NotLent::Refused(TokenError::SeveralTokens { wanted, found })),
        }
    }

    /// Logs in. A PIN that this token refused once in this process is never sent again.
    fn log_in(
        &self,
        library: &Initialized,
        slot: Slot,
        info: &TokenInfo,
        session: &Session,
    ) -> Result<(), NotLent> {
        let token = self.name.clone();
        let refused = |error| Err(NotLent::Refused(error));
        if matches!(
            session.get_session_info().map(|info| info.session_state()),
            Ok(SessionState::RwUser)
        ) {
            return Ok(());
        }
        if info.user_pin_locked() {
            return refused(TokenError::PinLocked { token });
        }
        if !info.user_pin_initialized() {
            return refused(TokenError::PinNotSet { token });
        }
        if info.protected_authentication_path() {
            return session
                .login(UserType::User, None)
                .or_else(|error| self.not_logged_in(&error, false));
        }
        // Only a PIN that cannot be remembered as wrong, or has just been corrected,
        // could make this the last one.
        if info.user_pin_final_try() || self.library.is_refusal_memory_full() {
            return refused(TokenError::PinFinalTry { token });
        }
        let pin = match &self.pin {
            Some(source) => pin::read(source, &token).map_err(NotLent::Refused)?,
            None => return refused(TokenError::PinMissing { token }),
        };
        let identity = identity(info);
        if let Some(code) = self.library.refusal(&identity, pin.expose()) {
            return refused(TokenError::PinRefused { token, code });
        }
        let Err(error) = session.login_with_raw(UserType::User, &pin::for_login(&pin)) else {
            return Ok(());
        };
        // Some libraries name another reason. Then the token's count of wrong PINs tells;
        // or that it answers otherwise.
        let suspect = || {
            let after = library.pkcs11.get_token_info(slot);
            after.is_ok_and(|after| {
                after.user_pin_locked() || after.user_pin_count_low() && !info.user_pin_count_low()
            }) || connection_after(&error) == Connection::Unclear
                && session.generate_random_vec(8).is_ok()
        };
        let wrong =
            pin_verdict(&error) != PinVerdict::None || already(&error).is_none() && suspect();
        if wrong {
            let code = code(&error).map_or_else(|| error.to_string(), code_name);
            self.library.remember_refusal(&identity, pin.expose(), code);
        }
        self.not_logged_in(&error, wrong)
    }

    fn not_logged_in(&self, error: &cryptoki::error::Error, wrong: bool) -> Result<(), NotLent> {
        let token = self.name.clone();
        if already(error).is_some() {
            return Ok(());
        }
        Err(match pin_verdict(error) {
            PinVerdict::Locked => NotLent::Refused(TokenError::PinLocked { token }),
            PinVerdict::Refused => {
                let code = code(error).map_or_else(|| error.to_string(), code_name);
                NotLent::Refused(TokenError::PinRefused { token, code })
            }
            PinVerdict::None if wrong || connection_after(error) == Connection::Stands => {
                NotLent::Refused(call_error(error, &self.name))
            }
            PinVerdict::None => NotLent::Lost(call_error(error, &self.name)),
        })
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let library = self.library.enter();
        let epoch = self.state().epoch;
        self.disconnect(&library, epoch);
    }
}

/// `Some` if somebody in this process is logged in already: logins are the process's.
fn already(error: &cryptoki::error::Error) -> Option<()> {
    (code(error) == Some(RvError::UserAlreadyLoggedIn)).then_some(())
}

/// Returns the properties that a token keeps when it is pulled out and plugged in again.
fn identity(info: &TokenInfo) -> String {
    format!(
        "{}\n{}\n{}\n{}",
        info.manufacturer_id(),
        info.model(),
        info.serial_number(),
        info.label()
    )
}

enum Once<T> {
    Done(Result<T, Failed>),
    Lost { why: Failed, generation: u64 },
}

/// The reason why no session is lent.
enum NotLent {
    /// The connection is lost: the token or the library has to be looked for anew.
    Lost(TokenError),
    /// The token cannot be used now; a new connection would not help.
    Refused(TokenError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(slot_id: u64, label: &str, serial: &str) -> TokenFacts {
        TokenFacts {
            slot_id,
            label: label.to_owned(),
            manufacturer: "maker".to_owned(),
            model: "model".to_owned(),
            serial: serial.to_owned(),
            initialized: !label.is_empty(),
        }
    }

    fn by_label(label: &str) -> TokenAttributes {
        TokenAttributes { label: Some(label.to_owned()), ..TokenAttributes::default() }
    }

    #[test]
    fn the_token_that_is_meant_is_found() {
        let found = [token(0, "a", "1"), token(1, "b", "2"), token(2, "b", "3"), token(3, "", "")];
        assert_eq!(choose(&by_label("a"), &found), Choice::One(0));
        assert_eq!(choose(&by_label("b"), &found), Choice::Several);
        assert_eq!(choose(&by_label("c"), &found), Choice::Absent);
        assert_eq!(choose(&TokenAttributes::default(), &found), Choice::Unspecific);
        let serial = TokenAttributes { serial: Some("3".to_owned()), ..by_label("b") };
        assert_eq!(choose(&serial, &found), Choice::One(2));
        let slot = TokenAttributes { slot_id: Some(1), ..by_label("a") };
        assert_eq!(choose(&slot, &found), Choice::One(1));
        let maker = TokenAttributes {
            manufacturer: Some("maker".to_owned()),
            ..TokenAttributes::default()
        };
        assert_eq!(choose(&maker, &found[2..]), Choice::One(0));
    }

    proptest! {
        #[test]
        fn a_chosen_token_is_always_one_that_fits(labels in prop::collection::vec("[ab]?", 0..6), wanted in "[ab]") {
            let found: Vec<_> = labels.iter().zip(0..).map(|(label, slot)| token(slot, label, "1")).collect();
            let fitting = labels.iter().filter(|label| **label == wanted).count();
            match choose(&by_label(&wanted), &found) {
                Choice::One(index) => prop_assert!(fitting == 1 && labels[index] == wanted),
                Choice::Absent => prop_assert_eq!(fitting, 0),
                Choice::Several => prop_assert!(fitting > 1),
                Choice::Unspecific => prop_assert!(false),
            }
        }
    }
}
