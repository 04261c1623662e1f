//! Sessions: who may use what, proved by HMAC over each command and its answer, with the
//! first parameter encrypted (part 1, sections 19 and 21).

use aws_lc_rs::constant_time;
use zeroize::Zeroizing;

use crate::error::{Authorized, TpmError};
use crate::kdf::{self, HASH_LEN, ParameterCipher, hmac_sha256, kdfa, sha256};
use crate::wire::{Code, Malformed, Reader, Writer, number};

const CONTINUE: u8 = 0x01;
/// The command's first parameter is encrypted.
const DECRYPT: u8 = 0x20;
/// The answer's first parameter is encrypted.
const ENCRYPT: u8 = 0x40;

/// The secret that allows the use of a hierarchy or an object. Wiped when dropped, never
/// printed.
#[derive(Clone)]
pub struct AuthValue(Zeroizing<Vec<u8>>);

impl AuthValue {
    /// Longest value, in bytes: the length of the name algorithm's hash.
    pub const LIMIT: usize = HASH_LEN;

    /// Takes an auth value. Zeros at its end are not part of it: a TPM removes them.
    ///
    /// # Errors
    /// If it is longer than [`AuthValue::LIMIT`].
    pub fn new(bytes: &[u8]) -> Result<Self, TpmError> {
        let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if len > Self::LIMIT {
            return Err(TpmError::TooLong { what: "the auth value", limit: Self::LIMIT });
        }
        Ok(Self(Zeroizing::new(bytes[..len].to_vec())))
    }

    /// No value: what hierarchies and keys have unless somebody set one.
    #[must_use]
    pub fn empty() -> Self {
        Self(Zeroizing::default())
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Default for AuthValue {
    fn default() -> Self {
        Self::empty()
    }
}

/// Something that a handle names, with the name that authorizations cover.
#[derive(Clone)]
pub(crate) struct Entity {
    pub(crate) handle: u32,
    name: Vec<u8>,
}

impl Entity {
    /// A hierarchy or a session: the handle is the name.
    pub(crate) fn permanent(handle: u32) -> Self {
        Self { handle, name: handle.to_be_bytes().to_vec() }
    }

    /// An object; the name is empty for sequences.
    pub(crate) fn object(handle: u32, name: &[u8]) -> Self {
        Self { handle, name: name.to_vec() }
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }
}

/// A session as both sides know it.
pub(crate) struct Session {
    pub(crate) handle: u32,
    key: Zeroizing<Vec<u8>>,
    nonce_caller: [u8; HASH_LEN],
    nonce_tpm: Vec<u8>,
}

impl Session {
    /// Writes the request for a session, after the handle of the salt key: nonce, salt,
    /// type, cipher and hash.
    pub(crate) fn start_parameters(
        nonce_caller: &[u8; HASH_LEN],
        encrypted_salt: &[u8],
        kind: u8,
    ) -> Writer {
        let asked = Writer::new().sized(nonce_caller).sized(encrypted_salt).u8(kind);
        asked.u16(number::ALG_AES).u16(128).u16(number::ALG_CFB).u16(number::ALG_SHA256)
    }

    /// The session after the TPM answered with its handle and nonce.
    pub(crate) fn started(
        handle: u32,
        nonce_caller: [u8; HASH_LEN],
        nonce_tpm: &[u8],
        salt: &[u8],
    ) -> Self {
        let key = kdfa(salt, "ATH", nonce_tpm, &nonce_caller, HASH_LEN);
        Self { handle, key, nonce_caller, nonce_tpm: nonce_tpm.to_vec() }
    }

    /// The session, taken out of a place that is about to go away.
    pub(crate) fn move_out(&mut self) -> Self {
        Self {
            handle: self.handle,
            key: std::mem::take(&mut self.key),
            nonce_caller: self.nonce_caller,
            nonce_tpm: std::mem::take(&mut self.nonce_tpm),
        }
    }

    /// Session key and auth value, one after the other.
    fn value(&self, auth: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut value = Zeroizing::new(Vec::with_capacity(self.key.len() + auth.len()));
        value.extend_from_slice(&self.key);
        value.extend_from_slice(auth);
        value
    }
}

/// The authorization for one handle of a command, or the session that encrypts its
/// parameter.
pub(crate) enum Auth<'a> {
    /// An empty auth value, without a session. Only where nothing is secret.
    Empty,
    /// The auth value of the object that the handle names.
    Hmac { session: &'a mut Session, value: &'a AuthValue, of: Authorized },
    /// The conditions that the policy session has been told.
    Policy { session: &'a mut Session },
}

impl Auth<'_> {
    fn session(&self) -> Option<&Session> {
        match self {
            Self::Empty => None,
            Self::Hmac { session, .. } | Self::Policy { session } => Some(session),
        }
    }

    fn value(&self) -> &[u8] {
        match self {
            Self::Hmac { value, .. } => value.expose(),
            Self::Empty | Self::Policy { .. } => &[],
        }
    }

    /// Returns the owner of the auth value that was used, for errors.
    pub(crate) fn of(&self) -> Option<Authorized> {
        match self {
            Self::Hmac { of, .. } => Some(*of),
            Self::Empty | Self::Policy { .. } => None,
        }
    }
}

/// A command ready to be sent, and what is needed to check its answer.
pub(crate) struct Prepared {
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    pub(crate) attributes: Vec<u8>,
}

/// Puts a command together: draws nonces, encrypts the first parameter, computes the
/// HMACs.
pub(crate) fn prepare(
    code: Code,
    handles: &[Entity],
    auths: &mut [Auth<'_>],
    parameters: Writer,
) -> Result<Prepared, TpmError> {
    let too_long = || TpmError::TooLong { what: "the command", limit: super::wire::MESSAGE_LIMIT };
    let mut parameters = parameters.finish().ok_or_else(too_long)?;
    for auth in &mut *auths {
        if let Auth::Hmac { session, .. } | Auth::Policy { session } = auth {
            session.nonce_caller = kdf::random()?;
        }
    }
    let mut attributes = vec![CONTINUE; auths.len()];
    if let Some((auth, session)) = auths.first().and_then(|auth| Some((auth, auth.session()?))) {
        if code.first_parameter_is_sized() {
            attributes[0] |= DECRYPT;
            let cipher = ParameterCipher::new(
                &session.value(auth.value()),
                &session.nonce_caller,
                &session.nonce_tpm,
            );
            cipher.encrypt(first_sized(&mut parameters).map_err(|Malformed| TpmError::Library)?)?;
        }
        if code.first_answer_is_sized() {
            attributes[0] |= ENCRYPT;
        }
    }

    let mut area = Writer::new();
    if !auths.is_empty() {
        let mut hashed: Vec<&[u8]> = Vec::with_capacity(handles.len() + 2);
        let number = code.value().to_be_bytes();
        hashed.push(&number);
        hashed.extend(handles.iter().map(Entity::name));
        hashed.push(&parameters);
        let cp_hash = sha256(&hashed);
        for (auth, attributes) in auths.iter().zip(&attributes) {
            area = match auth.session() {
                None => area.u32(number::RS_PW).u16(0).u8(CONTINUE).u16(0),
                Some(session) => {
                    let mac = hmac_sha256(
                        &session.value(auth.value()),
                        &[&cp_hash, &session.nonce_caller, &session.nonce_tpm, &[*attributes]],
                    );
                    area.u32(session.handle)
                        .sized(&session.nonce_caller)
                        .u8(*attributes)
                        .sized(&mac)
                }
            };
        }
    }
    let area = area.finish().ok_or_else(too_long)?;

    let tag = if auths.is_empty() { number::ST_NO_SESSIONS } else { number::ST_SESSIONS };
    let area_len = if auths.is_empty() { 0 } else { 4 + area.len() };
    let len = 10 + 4 * handles.len() + area_len + parameters.len();
    let mut command = Writer::new().u16(tag).u32(length(len)).u32(code.value());
    for entity in handles {
        command = command.u32(entity.handle);
    }
    if !auths.is_empty() {
        command = command.u32(length(area.len())).bytes(&area);
    }
    let bytes = command.bytes(&parameters).finish().ok_or_else(too_long)?;
    Ok(Prepared { bytes, attributes })
}

/// The answer of a TPM.
pub(crate) struct Answer {
    /// Handle of the object that was loaded or the session that was started, if the
    /// command has one.
    pub(crate) handle: Option<u32>,
    /// The parameters, decrypted.
    pub(crate) parameters: Zeroizing<Vec<u8>>,
}

/// Reads a successful answer: checks the HMACs, takes over the TPM's nonces, decrypts the
/// first parameter.
pub(crate) fn accept(
    code: Code,
    prepared: &Prepared,
    auths: &mut [Auth<'_>],
    answer: &[u8],
) -> Result<Answer, TpmError> {
    let malformed = |Malformed| TpmError::Malformed { command: code.name() };
    let mut reader = Reader::new(answer);
    // Tag, size and response code, which the caller has looked at.
    reader.bytes(10).map_err(malformed)?;
    let handle =
        if code.answers_with_handle() { Some(reader.u32().map_err(malformed)?) } else { None };
    if auths.is_empty() {
        return Ok(Answer { handle, parameters: Zeroizing::new(reader.rest().to_vec()) });
    }
    let len = usize::try_from(reader.u32().map_err(malformed)?).unwrap_or(usize::MAX);
    let mut parameters = Zeroizing::new(reader.bytes(len).map_err(malformed)?.to_vec());
    let rp_hash = sha256(&[&0_u32.to_be_bytes(), &code.value().to_be_bytes(), &parameters]);
    for (auth, asked) in auths.iter_mut().zip(&prepared.attributes) {
        let nonce = reader.sized().map_err(malformed)?;
        let attributes = reader.u8().map_err(malformed)?;
        let mac = reader.sized().map_err(malformed)?;
        let value = auth.session().map(|session| session.value(auth.value()));
        let (Auth::Hmac { session, .. } | Auth::Policy { session }, Some(value)) = (auth, value)
        else {
            continue;
        };
        let expected =
            hmac_sha256(&value, &[&rp_hash, nonce, &session.nonce_caller, &[attributes]]);
        // An answer that says it is not encrypted where that was asked for is as wrong as
        // one with a wrong HMAC.
        if attributes != *asked || constant_time::verify_slices_are_equal(&expected, mac).is_err() {
            return Err(TpmError::NotAuthentic { command: code.name() });
        }
        session.nonce_tpm = nonce.to_vec();
    }
    reader.end().map_err(malformed)?;
    if let Some(auth) = auths.first()
        && let Some(session) = auth.session()
        && prepared.attributes[0] & ENCRYPT != 0
    {
        let cipher = ParameterCipher::new(
            &session.value(auth.value()),
            &session.nonce_tpm,
            &session.nonce_caller,
        );
        cipher.decrypt(first_sized(&mut parameters).map_err(malformed)?)?;
    }
    Ok(Answer { handle, parameters })
}

/// The bytes of the sized parameter that `parameters` begin with.
fn first_sized(parameters: &mut [u8]) -> Result<&mut [u8], Malformed> {
    let (len, rest) = parameters.split_first_chunk_mut::<2>().ok_or(Malformed)?;
    rest.get_mut(..usize::from(u16::from_be_bytes(*len))).ok_or(Malformed)
}

/// Lengths here are below the message limit.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::started(0x0200_0000, [1; 32], &[2; 32], b"salt")
    }

    #[test]
    fn an_auth_value_ends_before_its_zeros_and_has_a_limit() {
        assert_eq!(AuthValue::new(b"hello\0").unwrap().expose(), b"hello");
        assert_eq!(AuthValue::new(b"\0\0").unwrap().expose(), b"");
        assert_eq!(AuthValue::new(b"a\0b\0").unwrap().expose(), b"a\0b");
        assert!(AuthValue::new(&[1; 33]).is_err());
    }

    #[test]
    fn a_secret_parameter_does_not_leave_in_clear() {
        let (mut session, value) = (session(), AuthValue::empty());
        let entity = [Entity::object(0x8000_0000, b"name")];
        let parameters = Writer::new().sized(b"a very secret parameter").u16(7);
        let mut auths =
            [Auth::Hmac { session: &mut session, value: &value, of: Authorized::Object }];
        let prepared = prepare(Code::Create, &entity, &mut auths, parameters).unwrap();
        assert!(!prepared.bytes.windows(6).any(|window| window == b"secret"));
        assert_eq!(prepared.attributes, [CONTINUE | DECRYPT | ENCRYPT]);
    }

    #[test]
    fn a_changed_answer_is_not_taken() {
        let (mut session, value) = (session(), AuthValue::empty());
        let key = session.key.clone();
        let mut auths =
            [Auth::Hmac { session: &mut session, value: &value, of: Authorized::Object }];
        let entity = [Entity::object(0x8000_0000, b"name")];
        let prepared =
            prepare(Code::Sign, &entity, &mut auths, Writer::new().sized(&[3; 32])).unwrap();
        let nonce_caller = auths[0].session().unwrap().nonce_caller;

        let rp_hash = sha256(&[&[0; 4], &Code::Sign.value().to_be_bytes(), b"signature"]);
        let attributes = CONTINUE | DECRYPT;
        let mac = hmac_sha256(&key, &[&rp_hash, &[9; 32], &nonce_caller, &[attributes]]);
        let good = Writer::new()
            .bytes(&[0; 10])
            .u32(9)
            .bytes(b"signature")
            .sized(&[9; 32])
            .u8(attributes)
            .sized(&mac);
        let good = good.finish().unwrap();
        for at in [14, 25, 57, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let error = accept(Code::Sign, &prepared, &mut auths, &bad).err().unwrap();
            assert!(matches!(error, TpmError::NotAuthentic { .. }), "{at}: {error}");
        }
        for len in 0..good.len() {
            assert!(accept(Code::Sign, &prepared, &mut auths, &good[..len]).is_err(), "{len}");
        }
        let answer = accept(Code::Sign, &prepared, &mut auths, &good).unwrap();
        assert_eq!(*answer.parameters, b"signature");
    }
}
