//! Keys in the TPM: the persistent ones, and wrapped ones that are loaded for use.

use crate::device::{Blob, Loaded, RootAlgorithm, Tpm, Transient, malformed};
use crate::error::{Authorized, ResponseCode, TpmError, rc};
use crate::kdf::{HASH_LEN, der};
use crate::public::{Algorithm, Public, Template, name_of};
use crate::session::{Auth, AuthValue, Entity, Session};
use crate::wire::{Code, Malformed, Reader, Writer, number};
use edgekeep_base::secret::SecretBytes;

/// Longest text that TPM2_HMAC takes at once, in bytes; every TPM takes this much.
const BUFFER_LIMIT: usize = 1024;
/// Most that can be sealed, in bytes.
pub(crate) const SEAL_LIMIT: usize = 128;

/// A persistent key: where it is, what it should be, and who may put it there.
struct Place<'a> {
    handle: u32,
    template: Template<'a>,
    hierarchy: u32,
    /// Auth value of `hierarchy`.
    auth: &'a AuthValue,
    of: Authorized,
    fits: fn(&Public) -> bool,
    expected: &'static str,
}

impl Tpm {
    /// The storage root; made and made persistent if its place is empty.
    pub(crate) fn root(&self) -> Result<(Entity, Public), TpmError> {
        if let Some(known) = &*self.root.borrow() {
            return Ok(known.clone());
        }
        let found = self.persistent(&Place {
            handle: self.options.storage_root,
            template: match self.options.root_algorithm {
                RootAlgorithm::EcP256 => Template::StorageP256,
                RootAlgorithm::Rsa2048 => Template::StorageRsa,
            },
            hierarchy: number::RH_OWNER,
            auth: &self.options.owner,
            of: Authorized::Owner,
            fits: Public::is_storage_root,
            expected: "a storage root (restricted decryption key, P-256 or RSA-2048, AES-128-CFB)",
        })?;
        *self.root.borrow_mut() = Some(found.clone());
        Ok(found)
    }

    /// The endorsement key; made and made persistent if its place is empty.
    pub(crate) fn endorsement_key(&self) -> Result<(Entity, Public), TpmError> {
        self.persistent(&Place {
            handle: self.options.endorsement_key,
            template: Template::EndorsementRsa,
            hierarchy: number::RH_ENDORSEMENT,
            auth: &self.options.endorsement,
            of: Authorized::Endorsement,
            fits: Public::is_endorsement_key,
            expected: "an RSA-2048 endorsement key of the default template",
        })
    }

    fn persistent(&self, place: &Place<'_>) -> Result<(Entity, Public), TpmError> {
        let taken =
            |found| TpmError::HandleTaken { handle: place.handle, found, expected: place.expected };
        if let Some(area) = self.read_public(place.handle)? {
            let public = Public::read(&area).map_err(malformed(Code::ReadPublic))?;
            return match public {
                Some(public) if (place.fits)(&public) => {
                    Ok((Entity::object(place.handle, &public.name()), public))
                }
                other => Err(taken(describe(other.as_ref(), &area))),
            };
        }
        // Nothing is there yet that a session could be salted with: a key of the null
        // hierarchy, for now, will do.
        let (salt_key, salt_public) = self.create_salt_key()?;
        let mut session = self.start_session(salt_key.entity(), &salt_public, number::SE_HMAC)?;
        drop(salt_key);
        let auth = Auth::Hmac { session: &mut session.session, value: place.auth, of: place.of };
        let (primary, public) = self.create_primary(place.hierarchy, auth, place.template)?;
        match self.evict_control(&mut session.session, primary.entity(), place.handle) {
            // Somebody was faster.
            Err(TpmError::Refused { code, .. }) if code.base() == rc::NV_DEFINED => {
                Err(taken("another key".to_owned()))
            }
            other => other,
        }?;
        tracing::info!(
            handle = format_args!("{:#010x}", place.handle),
            "made {} in the TPM",
            place.expected
        );
        Ok((Entity::object(place.handle, &public.name()), public))
    }

    fn create_salt_key(&self) -> Result<(Transient<'_>, Public), TpmError> {
        self.create_primary(number::RH_NULL, Auth::Empty, Template::StorageP256)
    }

    fn create_primary(
        &self,
        hierarchy: u32,
        auth: Auth<'_>,
        template: Template<'_>,
    ) -> Result<(Transient<'_>, Public), TpmError> {
        let asked = create_parameters(&AuthValue::empty(), &[], template)?;
        let answer =
            self.execute(Code::CreatePrimary, &[Entity::permanent(hierarchy)], &mut [auth], asked)?;
        let malformed = malformed(Code::CreatePrimary);
        let handle = answer.handle.ok_or(Malformed).map_err(&malformed)?;
        let area = Reader::new(&answer.parameters).sized().map_err(&malformed);
        // Held before anything else can fail.
        let transient = Transient::new(self, handle, &name_of(area.as_deref().unwrap_or_default()));
        let public =
            Public::read(area?).map_err(&malformed)?.ok_or(Malformed).map_err(malformed)?;
        Ok((transient, public))
    }

    /// Public area of the object under a handle; `None` if there is none.
    pub(crate) fn read_public(&self, handle: u32) -> Result<Option<Vec<u8>>, TpmError> {
        // The name is what is asked for, and authorizations do not cover this command.
        match self.execute(Code::ReadPublic, &[Entity::object(handle, &[])], &mut [], Writer::new())
        {
            Ok(answer) => {
                let area =
                    Reader::new(&answer.parameters).sized().map_err(malformed(Code::ReadPublic))?;
                Ok(Some(area.to_vec()))
            }
            Err(TpmError::Refused { code: ResponseCode(code), .. })
                if ResponseCode(code).base() == rc::HANDLE =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a loaded object persistent, or removes a persistent one (given as the object
    /// itself).
    pub(crate) fn evict_control(
        &self,
        session: &mut Session,
        object: &Entity,
        handle: u32,
    ) -> Result<(), TpmError> {
        let handles = [Entity::permanent(number::RH_OWNER), object.clone()];
        let auth = Auth::Hmac { session, value: &self.options.owner, of: Authorized::Owner };
        self.execute(Code::EvictControl, &handles, &mut [auth], Writer::new().u32(handle)).map(drop)
    }

    /// Makes a key or seals bytes under the storage root.
    pub(crate) fn create(
        &self,
        session: &mut Session,
        template: Template<'_>,
        auth: &AuthValue,
        secret: &[u8],
    ) -> Result<Blob, TpmError> {
        let (root, _) = self.root()?;
        let asked = create_parameters(auth, secret, template)?;
        let answer = self.execute(Code::Create, &[root], &mut [by_root(session)], asked)?;
        let mut reader = Reader::new(&answer.parameters);
        let malformed = malformed(Code::Create);
        let private = reader.sized().map_err(&malformed)?.to_vec();
        let public = reader.sized().map_err(&malformed)?.to_vec();
        Ok(Blob { public, private })
    }

    /// Loads a wrapped key.
    pub(crate) fn load(
        &self,
        session: &mut Session,
        blob: &Blob,
    ) -> Result<Transient<'_>, TpmError> {
        let (root, _) = self.root()?;
        let asked = Writer::new().sized(&blob.private).sized(&blob.public);
        let answer = match self.execute(Code::Load, &[root], &mut [by_root(session)], asked) {
            Err(TpmError::Refused { code, .. }) if code.base() == rc::INTEGRITY => {
                return Err(TpmError::DamagedBlob);
            }
            other => other?,
        };
        let malformed = malformed(Code::Load);
        let handle = answer.handle.ok_or(Malformed).map_err(&malformed)?;
        let transient = Transient::new(self, handle, &name_of(&blob.public));
        // The TPM computed it from what it loaded; the session vouches for the answer.
        if Reader::new(&answer.parameters).sized().map_err(&malformed)? != transient.entity().name()
        {
            return Err(TpmError::DamagedBlob);
        }
        Ok(transient)
    }

    /// Uses a wrapped key in the session that stays.
    pub(crate) fn with_loaded<T>(
        &self,
        blob: &Blob,
        operation: impl Fn(&mut Session, &Entity) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        self.run(|| {
            self.with_session(|session| {
                let loaded: Loaded<'_> = self.load_kept(session, blob)?;
                operation(session, loaded.entity())
            })
        })
    }

    /// ECDSA over a digest of 32 bytes. The DER sequence of r and s.
    pub(crate) fn sign_p256(
        &self,
        session: &mut Session,
        key: &Entity,
        digest: &[u8; HASH_LEN],
    ) -> Result<Vec<u8>, TpmError> {
        let asked = Writer::new().sized(digest).u16(number::ALG_ECDSA).u16(number::ALG_SHA256);
        // No proof that the TPM made the digest: the key is not restricted to such.
        let asked = asked.u16(number::ST_HASHCHECK).u32(number::RH_NULL).u16(0);
        let answer =
            self.execute(Code::Sign, std::slice::from_ref(key), &mut [by_object(session)], asked)?;
        read_ecdsa(&mut Reader::new(&answer.parameters)).map_err(malformed(Code::Sign))
    }

    /// The bare RSA private-key operation on a block as long as the modulus and below it.
    pub(crate) fn rsa_private_operation(
        &self,
        session: &mut Session,
        key: &Entity,
        block: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let asked = Writer::new().sized(block).u16(number::ALG_NULL).u16(0);
        let answer = self.execute(
            Code::RsaDecrypt,
            std::slice::from_ref(key),
            &mut [by_object(session)],
            asked,
        )?;
        let malformed = malformed(Code::RsaDecrypt);
        let done = Reader::new(&answer.parameters).sized().map_err(&malformed)?;
        let mut padded =
            vec![0; block.len().checked_sub(done.len()).ok_or(Malformed).map_err(malformed)?];
        padded.extend_from_slice(done);
        Ok(padded)
    }

    /// HMAC-SHA256 of a text of any length.
    pub(crate) fn hmac(
        &self,
        session: &mut Session,
        key: &Entity,
        text: &[u8],
    ) -> Result<[u8; HASH_LEN], TpmError> {
        let read = |code, parameters: &[u8]| {
            let mac = Reader::new(parameters)
                .sized()
                .and_then(|mac| mac.try_into().map_err(|_| Malformed));
            mac.map_err(malformed(code))
        };
        let key_only = std::slice::from_ref(key);
        if text.len() <= BUFFER_LIMIT {
            let asked = Writer::new().sized(text).u16(number::ALG_SHA256);
            let answer = self.execute(Code::Hmac, key_only, &mut [by_object(session)], asked)?;
            return read(Code::Hmac, &answer.parameters);
        }
        let asked = Writer::new().u16(0).u16(number::ALG_SHA256);
        let answer = self.execute(Code::HmacStart, key_only, &mut [by_object(session)], asked)?;
        let handle = answer.handle.ok_or(Malformed).map_err(malformed(Code::HmacStart))?;
        // Sequences have no name.
        let sequence = Transient::new(self, handle, &[]);
        let mut chunks = text.chunks(BUFFER_LIMIT).peekable();
        while let Some(chunk) = chunks.next() {
            let asked = Writer::new().sized(chunk);
            let (code, asked) = if chunks.peek().is_some() {
                (Code::SequenceUpdate, asked)
            } else {
                (Code::SequenceComplete, asked.u32(number::RH_NULL))
            };
            let handles = [sequence.entity().clone()];
            let answer = self.execute(code, &handles, &mut [by_object(session)], asked)?;
            if code == Code::SequenceComplete {
                // The TPM has flushed it.
                sequence.forget();
                return read(code, &answer.parameters);
            }
        }
        Err(TpmError::Library)
    }

    /// Random bytes made by the TPM, encrypted on their way here.
    ///
    /// # Errors
    /// If the TPM does not give them.
    pub fn random(&self, len: usize) -> Result<SecretBytes, TpmError> {
        self.run(|| {
            self.with_session(|session| {
                let mut bytes = Vec::with_capacity(len);
                while bytes.len() < len {
                    let asked = u16::try_from(len - bytes.len()).unwrap_or(u16::MAX).min(32);
                    let value = AuthValue::empty();
                    let auth = Auth::Hmac { session, value: &value, of: Authorized::Object };
                    let answer =
                        self.execute(Code::GetRandom, &[], &mut [auth], Writer::new().u16(asked))?;
                    let some = Reader::new(&answer.parameters)
                        .sized()
                        .map_err(malformed(Code::GetRandom))?;
                    if some.is_empty() || some.len() > usize::from(asked) {
                        return Err(TpmError::Malformed { command: Code::GetRandom.name() });
                    }
                    bytes.extend_from_slice(some);
                }
                Ok(bytes.into())
            })
        })
    }
}

static NO_AUTH: std::sync::LazyLock<AuthValue> = std::sync::LazyLock::new(AuthValue::empty);

/// Authorizes the use of the storage root, which has no auth value.
pub(crate) fn by_root(session: &mut Session) -> Auth<'_> {
    Auth::Hmac { session, value: &NO_AUTH, of: Authorized::StorageRoot }
}

/// Authorizes the use of a key, which has no auth value: what protects it is that its
/// blob is in our folder.
pub(crate) fn by_object(session: &mut Session) -> Auth<'_> {
    Auth::Hmac { session, value: &NO_AUTH, of: Authorized::Object }
}

/// Parameters of TPM2_Create and TPM2_CreatePrimary.
fn create_parameters(
    auth: &AuthValue,
    secret: &[u8],
    template: Template<'_>,
) -> Result<Writer, TpmError> {
    let too_long = || TpmError::TooLong { what: "the secret", limit: SEAL_LIMIT };
    if secret.len() > SEAL_LIMIT {
        return Err(too_long());
    }
    let sensitive =
        Writer::new().sized(auth.expose()).sized(secret).finish().ok_or_else(too_long)?;
    let public = template.marshal().finish().ok_or_else(too_long)?;
    Ok(Writer::new().sized(&sensitive).sized(&public).u16(0).u32(0))
}

/// Reads an ECDSA signature into its DER form.
pub(crate) fn read_ecdsa(reader: &mut Reader<'_>) -> Result<Vec<u8>, Malformed> {
    if (reader.u16()?, reader.u16()?) != (number::ALG_ECDSA, number::ALG_SHA256) {
        return Err(Malformed);
    }
    let (r, s) = (integer(reader.sized()?), integer(reader.sized()?));
    Ok(der(0x30, &[r, s].concat()))
}

/// A DER integer out of big-endian bytes.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let mut content = bytes[zeros..].to_vec();
    if content.first().is_none_or(|first| first & 0x80 != 0) {
        content.insert(0, 0);
    }
    der(0x02, &content)
}

/// Describes a public area in words.
fn describe(public: Option<&Public>, area: &[u8]) -> String {
    let kind = match public.map(|public| &public.algorithm) {
        Some(Algorithm::EccP256 { .. }) => "a P-256 key".to_owned(),
        Some(Algorithm::Rsa2048 { .. }) => "an RSA-2048 key".to_owned(),
        Some(Algorithm::KeyedHash) => "an HMAC key or sealed bytes".to_owned(),
        None => match Reader::new(area).u16() {
            Ok(number::ALG_RSA) => "an RSA key".to_owned(),
            Ok(number::ALG_ECC) => "an elliptic-curve key".to_owned(),
            Ok(other) => format!("an object of algorithm {other:#06x}"),
            Err(Malformed) => "an object".to_owned(),
        },
    };
    match public {
        Some(public) => format!("{kind} with the attributes {:#010x}", public.attributes),
        None => kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_der_with_positive_integers() {
        let signature = Writer::new()
            .u16(0x18)
            .u16(0x0b)
            .sized(&[0x80, 1])
            .sized(&[0, 0, 0x7f])
            .finish()
            .unwrap();
        let der = read_ecdsa(&mut Reader::new(&signature)).unwrap();
        assert_eq!(der, [0x30, 8, 2, 3, 0, 0x80, 1, 2, 1, 0x7f]);
        assert_eq!(integer(&[0, 0]), [2, 1, 0]);
        let other = Writer::new().u16(0x14).u16(0x0b).sized(&[1]).sized(&[1]).finish().unwrap();
        assert_eq!(read_ecdsa(&mut Reader::new(&other)), Err(Malformed));
    }
}
