//! One TPM: the connection to it, sessions, and what is loaded into it.
//!
//! A TPM has room for three objects. So everything that is loaded is held by a value that
//! flushes it when it is dropped, on every path. Two things outlive an operation, because
//! starting them anew costs more than using them: one HMAC session, and a few keys (one
//! by default). They are flushed when others need the room, and at the end.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::error::{Authorized, ResponseCode, TpmError, rc};
use crate::kdf;
use crate::public::{Public, name_of};
use crate::session::{self, Answer, Auth, AuthValue, Entity, Session};
use crate::tcti::{Tcti, Transport};
use crate::wire::{Code, Malformed, Reader, Writer, number};

/// Waits between attempts while the TPM says that it is busy, in milliseconds: ten
/// seconds together.
const BUSY_WAITS: [u64; 10] = [5, 20, 50, 100, 250, 500, 1000, 2000, 3000, 3000];
/// Kinds of handles that take room: transient objects, HMAC sessions, policy sessions.
const ROOM_TAKERS: [u32; 3] = [0x8000_0000, 0x0200_0000, 0x0300_0000];
const LABEL_SECRET: &str = "SECRET";

/// Algorithm of the storage root, if a root has to be made. A root that exists is used as
/// it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootAlgorithm {
    /// NIST P-256: milliseconds to make.
    EcP256,
    /// RSA-2048: seconds to make on some TPMs; what cloud provisioning with a TPM
    /// expects.
    Rsa2048,
}

/// The place of the TPM, and the handles and auth values that are used there.
#[derive(Clone)]
pub struct TpmOptions {
    /// Address of the TPM.
    pub tcti: Tcti,
    /// Persistent handle of the storage root.
    pub storage_root: u32,
    /// Algorithm of the storage root, if the handle is empty and a root has to be made.
    pub root_algorithm: RootAlgorithm,
    /// Persistent handle of the endorsement key.
    pub endorsement_key: u32,
    /// Auth value of the owner hierarchy.
    pub owner: AuthValue,
    /// Auth value of the endorsement hierarchy.
    pub endorsement: AuthValue,
    /// Number of keys that stay loaded between operations. With 0 nothing stays loaded,
    /// not even a session.
    pub keep_loaded: usize,
    /// Longest wait for one answer of swtpm.
    pub timeout: Duration,
}

impl TpmOptions {
    /// The usual places.
    #[must_use]
    pub fn new(tcti: Tcti) -> Self {
        Self {
            tcti,
            storage_root: 0x8100_0001,
            root_algorithm: RootAlgorithm::EcP256,
            endorsement_key: 0x8101_0001,
            owner: AuthValue::empty(),
            endorsement: AuthValue::empty(),
            keep_loaded: 1,
            timeout: Duration::from_secs(60),
        }
    }
}

/// A TPM, used by one thread at a time.
pub struct Tpm {
    pub(crate) options: TpmOptions,
    transport: RefCell<Option<Box<dyn Transport>>>,
    /// Reset and restart counters at the last connection.
    resets: Cell<Option<(u32, u32)>>,
    session: RefCell<Option<Session>>,
    /// The one used longest ago first.
    held: RefCell<Vec<Entity>>,
    pub(crate) root: RefCell<Option<(Entity, Public)>>,
    waited: Cell<Duration>,
}

impl Drop for Tpm {
    fn drop(&mut self) {
        self.release();
    }
}

/// A wrapped key: useless without the storage root that it was made under.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob {
    /// Content of the public structure.
    pub public: Vec<u8>,
    /// Content of the private structure, encrypted by the TPM.
    pub private: Vec<u8>,
}

/// An object in the TPM, flushed when dropped.
pub(crate) struct Transient<'a> {
    tpm: &'a Tpm,
    entity: Entity,
}

impl<'a> Transient<'a> {
    pub(crate) fn new(tpm: &'a Tpm, handle: u32, name: &[u8]) -> Self {
        Self { tpm, entity: Entity::object(handle, name) }
    }

    pub(crate) fn entity(&self) -> &Entity {
        &self.entity
    }

    /// Gives up an object without flushing it: the TPM has flushed it already, or
    /// somebody else flushes it from now on.
    pub(crate) fn forget(self) -> Entity {
        let entity = self.entity.clone();
        std::mem::forget(self);
        entity
    }
}

impl Drop for Transient<'_> {
    fn drop(&mut self) {
        self.tpm.flush(self.entity.handle);
    }
}

/// A session, flushed when dropped.
pub(crate) struct Passing<'a> {
    tpm: &'a Tpm,
    pub(crate) session: Session,
    /// Goes back into the TPM's keeping instead.
    stays: bool,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if self.stays {
            *self.tpm.session.borrow_mut() = Some(self.session.move_out());
        } else {
            self.tpm.flush(self.session.handle);
        }
    }
}

/// A loaded key, which may stay loaded.
pub(crate) enum Loaded<'a> {
    Held(Entity),
    Passing(Transient<'a>),
}

impl Loaded<'_> {
    pub(crate) fn entity(&self) -> &Entity {
        match self {
            Self::Held(entity) => entity,
            Self::Passing(transient) => transient.entity(),
        }
    }
}

impl Tpm {
    /// Connects to a TPM and sees that it answers.
    ///
    /// # Errors
    /// If it is not there, may not be opened, or does not answer as a TPM.
    pub fn open(options: TpmOptions) -> Result<Self, TpmError> {
        let tpm = Self {
            options,
            transport: RefCell::default(),
            resets: Cell::default(),
            session: RefCell::default(),
            held: RefCell::default(),
            root: RefCell::default(),
            waited: Cell::default(),
        };
        tpm.connect()?;
        Ok(tpm)
    }

    /// Flushes what stays loaded between operations. The next operation loads it again.
    pub fn release(&self) {
        if let Some(session) = self.session.take() {
            self.flush(session.handle);
        }
        for entity in self.held.take() {
            self.flush(entity.handle);
        }
    }

    /// Time that was spent waiting for answers so far: what the TPM and the way to it
    /// take.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited.get()
    }

    /// Handles of what stays loaded between operations.
    #[must_use]
    pub fn kept_handles(&self) -> Vec<u32> {
        let session = self.session.borrow().as_ref().map(|session| session.handle);
        session.into_iter().chain(self.held.borrow().iter().map(|entity| entity.handle)).collect()
    }

    /// Does an operation; once more if the connection broke or the TPM was reset, or if
    /// there was no room because somebody who is gone left things loaded.
    pub(crate) fn run<T>(
        &self,
        operation: impl Fn() -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        match operation() {
            Err(error) if error.is_stale() => {
                tracing::warn!(reason = %error, "the TPM lost what was loaded; loading it again");
                self.release();
                self.root.take();
                operation()
            }
            Err(TpmError::NoRoom { .. }) if self.options.tcti.is_exclusive() => {
                self.release();
                self.flush_leftovers()?;
                operation()
            }
            result => result,
        }
    }

    /// Flushes everything that takes room. Only where nobody else can have put it there.
    fn flush_leftovers(&self) -> Result<(), TpmError> {
        for first in ROOM_TAKERS {
            for handle in self.handles_once(first)? {
                tracing::warn!(
                    handle = format_args!("{handle:#010x}"),
                    "flushing what was left loaded in the TPM"
                );
                self.flush(handle);
            }
        }
        Ok(())
    }

    fn connect(&self) -> Result<(), TpmError> {
        let tcti = &self.options.tcti;
        let transport =
            tcti.connect(self.options.timeout).map_err(|source| match (tcti, source.kind()) {
                (Tcti::Device(path), ErrorKind::NotFound) => {
                    TpmError::Missing { path: path.clone() }
                }
                (Tcti::Device(path), ErrorKind::PermissionDenied) => {
                    TpmError::NotPermitted { path: path.clone() }
                }
                (Tcti::Device(path), ErrorKind::ResourceBusy) => {
                    TpmError::InUse { path: path.clone() }
                }
                _ => TpmError::Unreachable { tcti: tcti.to_string(), source },
            })?;
        *self.transport.borrow_mut() = Some(transport);
        let resets = self.reset_counters()?;
        let before = self.resets.replace(Some(resets));
        match before {
            Some(before) if before != resets => {
                tracing::warn!(
                    resets = resets.0,
                    restarts = resets.1,
                    "the TPM was reset since it was last used"
                );
                Ok(())
            }
            // What was loaded over the connection that broke is loaded still, and not all
            // of its handles are known: the answer that would have told one may be what
            // was lost.
            Some(_) if tcti.is_exclusive() => self.flush_leftovers(),
            _ => Ok(()),
        }
    }

    /// Returns the numbers of the TPM's resets and restarts.
    pub(crate) fn reset_counters(&self) -> Result<(u32, u32), TpmError> {
        let answer = self.execute(Code::ReadClock, &[], &mut [], Writer::new())?;
        let mut reader = Reader::new(&answer.parameters);
        let mut read = || {
            reader.u64()?;
            reader.u64()?;
            Ok((reader.u32()?, reader.u32()?))
        };
        read().map_err(malformed(Code::ReadClock))
    }

    /// Handles in use, from `first` on, of its kind.
    pub(crate) fn handles_once(&self, first: u32) -> Result<Vec<u32>, TpmError> {
        let asked = Writer::new().u32(number::CAP_HANDLES).u32(first).u32(254);
        let answer = self.execute(Code::GetCapability, &[], &mut [], asked)?;
        let mut reader = Reader::new(&answer.parameters);
        let mut read = || -> Result<Vec<u32>, Malformed> {
            reader.u8()?;
            reader.u32()?;
            (0..reader.u32()?.min(254)).map(|_| reader.u32()).collect()
        };
        read().map_err(malformed(Code::GetCapability))
    }

    /// Handles of persistent objects (`0x8100_0000`), transient objects (`0x8000_0000`)
    /// or loaded sessions (`0x0200_0000`, `0x0300_0000`), whoever they belong to.
    ///
    /// # Errors
    /// If the TPM does not answer.
    pub fn handles(&self, first: u32) -> Result<Vec<u32>, TpmError> {
        self.run(|| self.handles_once(first))
    }

    /// Sends a command and reads its answer.
    pub(crate) fn execute(
        &self,
        code: Code,
        handles: &[Entity],
        auths: &mut [Auth<'_>],
        parameters: Writer,
    ) -> Result<Answer, TpmError> {
        if self.transport.borrow().is_none() {
            self.connect()?;
        }
        let of = auths.iter().find_map(Auth::of).unwrap_or(Authorized::Object);
        let prepared = session::prepare(code, handles, auths, parameters)?;
        let answer = self.transmit(code, &prepared.bytes, of)?;
        session::accept(code, &prepared, auths, &answer).inspect_err(|_| {
            // It was done all the same; what is not believed is what was said about it.
            let handle = answer
                .get(10..14)
                .and_then(|handle| handle.try_into().ok())
                .map(u32::from_be_bytes);
            if let Some(handle) = handle.filter(|_| code.answers_with_handle()) {
                self.flush(handle);
            }
        })
    }

    /// Sends bytes until the TPM is not too busy to take them. A command that is refused
    /// changed nothing, so the same bytes can be sent again.
    fn transmit(
        &self,
        code: Code,
        bytes: &[u8],
        of: Authorized,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let mut waits = BUSY_WAITS.iter();
        let mut started = false;
        loop {
            let answer = self.exchange(code, bytes)?;
            let refusal = ResponseCode(response_code(&answer).map_err(malformed(code))?);
            if refusal.0 == 0 {
                return Ok(answer);
            }
            if refusal.0 == rc::INITIALIZE && !started {
                // Nobody has started it since it was powered: no firmware did, as on
                // small boards.
                started = true;
                let startup = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0];
                self.exchange(Code::Startup, &startup)?;
                continue;
            }
            match waits.next() {
                Some(wait) if refusal.is_busy() => pause(Duration::from_millis(*wait)),
                _ => return Err(TpmError::from_code(code.name(), refusal, of)),
            }
        }
    }

    fn exchange(&self, code: Code, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let mut transport = self.transport.borrow_mut();
        let lost = |source| TpmError::Lost {
            tcti: self.options.tcti.to_string(),
            command: code.name(),
            source,
        };
        let Some(open) = transport.as_mut() else {
            return Err(lost(ErrorKind::NotConnected.into()));
        };
        let begin = Instant::now();
        let answer = open.transmit(bytes);
        self.waited.set(self.waited.get() + begin.elapsed());
        answer.map_err(|source| {
            *transport = None;
            lost(source)
        })
    }

    /// Flushes an object or a session. That it fails is of no use to anybody: it is gone,
    /// or the TPM is.
    fn flush(&self, handle: u32) {
        if self.transport.borrow().is_none() {
            // Whoever connects next flushes what is left.
            return;
        }
        if let Err(error) =
            self.execute(Code::FlushContext, &[], &mut [], Writer::new().u32(handle))
        {
            tracing::debug!(handle, %error, "could not be flushed");
        }
    }

    /// Starts a session whose key only the TPM with the private half of `salt_key` can
    /// know.
    pub(crate) fn start_session(
        &self,
        salt_key: &Entity,
        salt_public: &Public,
        kind: u8,
    ) -> Result<Passing<'_>, TpmError> {
        let salt = kdf::share_secret(salt_public, LABEL_SECRET)?;
        let nonce = kdf::random()?;
        let handles = [salt_key.clone(), Entity::permanent(number::RH_NULL)];
        let asked = Session::start_parameters(&nonce, &salt.encrypted, kind);
        let answer = self.execute(Code::StartAuthSession, &handles, &mut [], asked)?;
        let malformed = malformed(Code::StartAuthSession);
        let handle = answer.handle.ok_or(Malformed).map_err(&malformed)?;
        let nonce_tpm = Reader::new(&answer.parameters).sized().map_err(malformed);
        let nonce_tpm = nonce_tpm.inspect_err(|_| self.flush(handle))?;
        let session = Session::started(handle, nonce, nonce_tpm, &salt.secret);
        Ok(Passing { tpm: self, session, stays: false })
    }

    /// Starts a policy or trial session, salted with the storage root.
    pub(crate) fn start_policy(&self, kind: u8) -> Result<Passing<'_>, TpmError> {
        let (entity, public) = self.root()?;
        self.start_session(&entity, &public, kind)
    }

    /// Lends the session that stays between operations, which is salted with the storage
    /// root.
    pub(crate) fn with_session<T>(
        &self,
        operation: impl FnOnce(&mut Session) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let kept = self.session.take();
        let mut passing = match kept {
            Some(session) => Passing { tpm: self, session, stays: false },
            None => {
                let (entity, public) = self.root()?;
                self.start_session(&entity, &public, number::SE_HMAC)?
            }
        };
        let result = operation(&mut passing.session);
        // After an answer that was not understood, both sides' nonces may differ.
        let sound = !matches!(
            result,
            Err(TpmError::Lost { .. }
                | TpmError::Malformed { .. }
                | TpmError::NotAuthentic { .. }
                | TpmError::Library)
        );
        passing.stays = sound && self.options.keep_loaded > 0;
        result
    }

    /// Loads a wrapped key, or finds it still loaded.
    pub(crate) fn load_kept(
        &self,
        session: &mut Session,
        blob: &Blob,
    ) -> Result<Loaded<'_>, TpmError> {
        let name = name_of(&blob.public);
        let mut held = self.held.borrow_mut();
        if let Some(at) = held.iter().position(|entity| entity.name() == name) {
            let entity = held.remove(at);
            held.push(entity.clone());
            return Ok(Loaded::Held(entity));
        }
        while !held.is_empty() && held.len() >= self.options.keep_loaded {
            let oldest = held.remove(0);
            self.flush(oldest.handle);
        }
        drop(held);
        let transient = self.load(session, blob)?;
        if self.options.keep_loaded == 0 {
            return Ok(Loaded::Passing(transient));
        }
        let entity = transient.forget();
        self.held.borrow_mut().push(entity.clone());
        Ok(Loaded::Held(entity))
    }

    /// Flushes a key, if it is loaded, because it is not to be used any more.
    pub(crate) fn unload(&self, blob: &Blob) {
        let name = name_of(&blob.public);
        let mut held = self.held.borrow_mut();
        if let Some(at) = held.iter().position(|entity| entity.name() == name) {
            let entity = held.remove(at);
            self.flush(entity.handle);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a TPM that is busy gives no sign when it is done")]
fn pause(wait: Duration) {
    std::thread::sleep(wait);
}

pub(crate) fn response_code(answer: &[u8]) -> Result<u32, Malformed> {
    let mut reader = Reader::new(answer);
    reader.u16()?;
    let len = reader.u32()?;
    if usize::try_from(len) != Ok(answer.len()) {
        return Err(Malformed);
    }
    reader.u32()
}

/// Says which command's answer was malformed.
pub(crate) fn malformed(code: Code) -> impl Fn(Malformed) -> TpmError {
    move |Malformed| TpmError::Malformed { command: code.name() }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Answers with these codes, one after the other, and then as a TPM that was asked
    /// for its clock.
    struct Scripted {
        codes: Vec<u32>,
        asked: Arc<Mutex<Vec<u32>>>,
    }

    impl Transport for Scripted {
        fn transmit(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
            self.asked.lock().unwrap().push(u32::from_be_bytes(command[6..10].try_into().unwrap()));
            let code = if self.codes.is_empty() { 0 } else { self.codes.remove(0) };
            let body = if code == 0 { vec![0; 25] } else { vec![] };
            let len = u32::try_from(10 + body.len()).unwrap();
            Ok(Zeroizing::new(
                [&[0x80, 1][..], &len.to_be_bytes(), &code.to_be_bytes(), &body].concat(),
            ))
        }
    }

    fn scripted(codes: &[u32]) -> (Tpm, Arc<Mutex<Vec<u32>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let transport = Scripted { codes: codes.to_vec(), asked: Arc::clone(&asked) };
        let tpm = Tpm {
            options: TpmOptions::new("swtpm".parse().unwrap()),
            transport: RefCell::new(Some(Box::new(transport))),
            resets: Cell::default(),
            session: RefCell::default(),
            held: RefCell::default(),
            root: RefCell::default(),
            waited: Cell::default(),
        };
        (tpm, asked)
    }

    #[test]
    fn a_busy_tpm_is_asked_again_for_a_bounded_time() {
        let (tpm, asked) = scripted(&[rc::RETRY, rc::YIELDED, rc::TESTING]);
        tpm.reset_counters().unwrap();
        assert_eq!(asked.lock().unwrap().len(), 4);
        assert!(BUSY_WAITS.iter().sum::<u64>() < 15_000);
    }

    #[test]
    fn a_tpm_that_nobody_started_is_started_once() {
        let (tpm, asked) = scripted(&[rc::INITIALIZE]);
        tpm.reset_counters().unwrap();
        let codes = [Code::ReadClock, Code::Startup, Code::ReadClock].map(Code::value);
        assert_eq!(*asked.lock().unwrap(), codes);
        let (tpm, asked) = scripted(&[rc::INITIALIZE, 0, rc::INITIALIZE]);
        assert!(matches!(
            tpm.reset_counters(),
            Err(TpmError::Refused { code: ResponseCode(0x100), .. })
        ));
        assert_eq!(asked.lock().unwrap().len(), 3);
    }

    #[test]
    fn other_refusals_are_not_repeated() {
        for code in [rc::LOCKOUT, rc::AUTH_FAIL, rc::OBJECT_MEMORY, 0x101] {
            let (tpm, asked) = scripted(&[code]);
            assert!(tpm.reset_counters().is_err());
            assert_eq!(asked.lock().unwrap().len(), 1, "{code:#x}");
        }
    }
}
