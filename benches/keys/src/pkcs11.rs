//! A token, through the backend and through the binding alone.

use std::path::Path;

use anyhow::{Context as _, bail};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use edgekeep_hsm::pkcs11::{Pkcs11Backend, Pkcs11Settings};
use edgekeep_hsm::uri::KeyUri;

use crate::{DIGEST, MESSAGE, Pair, ecdsa, hmac, keys, serve};

pub(crate) fn measure(library: &Path, uri: &str) -> anyhow::Result<()> {
    let KeyUri::Pkcs11(uri) = uri.parse()? else { bail!("not a pkcs11: URI") };
    let mut settings = Pkcs11Settings::new(*uri);
    settings.library = Some(library.to_owned());
    let backend = Pkcs11Backend::open(settings)?;
    let (key, pair) = keys(&backend)?;

    // Logged in by the backend: that counts for the whole process.
    let pkcs11 = Pkcs11::new(library)?;
    let _ = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let slot = pkcs11.get_slots_with_initialized_token()?.into_iter().next().context("no token")?;
    let session = pkcs11.open_rw_session(slot)?;
    let private = object(&session, ObjectClass::PRIVATE_KEY, pair.as_str())?;
    let mut pairs = Vec::new();
    if let Some(key) = &key {
        let secret = object(&session, ObjectClass::SECRET_KEY, key.as_str())?;
        let session = &session;
        pairs.push(Pair {
            operation: "HMAC-SHA256",
            bare: Box::new(move || bare(session, &Mechanism::Sha256Hmac, secret, &MESSAGE)),
            backend: Box::new(|| hmac(&backend, key)),
            waited: None,
        });
    }
    pairs.push(Pair {
        operation: "ECDSA P-256",
        bare: Box::new(|| bare(&session, &Mechanism::Ecdsa, private, &DIGEST)),
        backend: Box::new(|| ecdsa(&backend, &pair)),
        waited: None,
    });
    serve(&mut pairs)
}

fn bare(
    session: &Session,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
    data: &[u8],
) -> anyhow::Result<()> {
    session.sign(mechanism, key, data)?;
    Ok(())
}

fn object(session: &Session, class: ObjectClass, label: &str) -> anyhow::Result<ObjectHandle> {
    let found = session
        .find_objects(&[Attribute::Class(class), Attribute::Label(label.as_bytes().to_vec())])?;
    found.into_iter().next().with_context(|| format!("{label} is not on the token"))
}
