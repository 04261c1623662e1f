//! The certificate and key that prove who the client is, as rustls takes them.
//!
//! rustls asks for a signature in the middle of a handshake, in a call that returns when
//! the signature is there. The keys service is asked over a socket, by tasks of the
//! runtime. So the call waits for such a task, on a thread that is there to wait:
//! [`crate::Connector`] makes these handshakes on one of the runtime's threads for
//! blocking work, never on one that drives tasks. A runtime of one thread, on which the
//! keys service itself may run, stays free that way.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use edgekeep_core::credentials::Certificate;
use rustls::client::ResolvesClientCert;
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use tokio::runtime::Handle;

use crate::connect::TlsError;
use crate::public_key::KeyKind;
use crate::remote_key::{Form, Hash, RemoteKey};

/// Longest time for one signature. A TPM takes about a second for RSA.
const PATIENCE: Duration = Duration::from_secs(30);

/// Schemes by kind of key, best first.
const P256: &[(SignatureScheme, Form)] =
    &[(SignatureScheme::ECDSA_NISTP256_SHA256, Form::Ecdsa(Hash::Sha256))];
const P384: &[(SignatureScheme, Form)] =
    &[(SignatureScheme::ECDSA_NISTP384_SHA384, Form::Ecdsa(Hash::Sha384))];
const RSA: &[(SignatureScheme, Form)] = &[
    (SignatureScheme::RSA_PSS_SHA256, Form::Pss(Hash::Sha256)),
    (SignatureScheme::RSA_PSS_SHA384, Form::Pss(Hash::Sha384)),
    (SignatureScheme::RSA_PSS_SHA512, Form::Pss(Hash::Sha512)),
    (SignatureScheme::RSA_PKCS1_SHA256, Form::Pkcs1(Hash::Sha256)),
    (SignatureScheme::RSA_PKCS1_SHA384, Form::Pkcs1(Hash::Sha384)),
    (SignatureScheme::RSA_PKCS1_SHA512, Form::Pkcs1(Hash::Sha512)),
];

/// A client's certificate with its chain, and its key in the keys service.
#[derive(Debug, Clone)]
pub struct ClientIdentity {
    chain: Vec<Certificate>,
    key: RemoteKey,
}

impl ClientIdentity {
    /// Puts a chain, from the leaf up, and a key together.
    ///
    /// # Errors
    /// [`TlsError::NoCertificate`] if the chain is empty, [`TlsError::OtherKey`] if its
    /// leaf is of another key.
    pub fn new(chain: Vec<Certificate>, key: RemoteKey) -> Result<Self, TlsError> {
        let leaf = chain.first().ok_or(TlsError::NoCertificate)?;
        if leaf.public_key() != key.public().info() {
            return Err(TlsError::OtherKey { key: key.id().to_owned() });
        }
        Ok(Self { chain, key })
    }

    /// Returns the certificate.
    #[must_use]
    pub fn leaf(&self) -> Option<&Certificate> {
        self.chain.first()
    }

    /// Returns the key.
    #[must_use]
    pub const fn key(&self) -> &RemoteKey {
        &self.key
    }

    /// Returns what rustls asks for certificate and signature. Signatures are made by
    /// tasks of `runtime`.
    pub(crate) fn resolver(&self, runtime: Handle) -> Arc<dyn ResolvesClientCert> {
        // Roots have no place in what is sent: the peer has them, or does not believe
        // them.
        let sent =
            self.chain.iter().take(1).chain(
                self.chain.iter().skip(1).filter(|certificate| !certificate.is_self_issued()),
            );
        let chain = sent.map(|it| CertificateDer::from(it.der().to_vec())).collect();
        let key = Arc::new(KeydSigningKey { key: self.key.clone(), runtime });
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)))
    }
}

/// A key in the keys service, as rustls takes keys.
#[derive(Debug)]
struct KeydSigningKey {
    key: RemoteKey,
    runtime: Handle,
}

impl SigningKey for KeydSigningKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let own = match self.key.public().kind() {
            KeyKind::P256 => P256,
            KeyKind::P384 => P384,
            KeyKind::Rsa { .. } => RSA,
        };
        let (scheme, form) = *own.iter().find(|(scheme, _)| offered.contains(scheme))?;
        let (key, runtime) = (self.key.clone(), self.runtime.clone());
        Some(Box::new(KeydSigner { key, runtime, scheme, form }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.key.public().info()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.key.public().kind() {
            KeyKind::P256 | KeyKind::P384 => SignatureAlgorithm::ECDSA,
            KeyKind::Rsa { .. } => SignatureAlgorithm::RSA,
        }
    }
}

/// The same, with the scheme that the peer takes.
#[derive(Debug)]
struct KeydSigner {
    key: RemoteKey,
    runtime: Handle,
    scheme: SignatureScheme,
    form: Form,
}

impl Signer for KeydSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let (answer, signed) = mpsc::sync_channel(1);
        let (key, form, message) = (self.key.clone(), self.form, message.to_vec());
        self.runtime.spawn(async move {
            let signature = tokio::time::timeout(PATIENCE, key.sign_in(form, &message)).await;
            // Nobody waits any more if that took too long.
            drop(answer.send(signature));
        });
        let id = self.key.id();
        let failed =
            |why: String| rustls::Error::General(format!("key \"{id}\" did not sign: {why}"));
        match signed.recv_timeout(PATIENCE) {
            Ok(Ok(Ok(signature))) => Ok(signature),
            Ok(Ok(Err(error))) => Err(failed(crate::connect::chain(&error))),
            Ok(Err(_)) | Err(_) => Err(failed(format!("no answer in {} s", PATIENCE.as_secs()))),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
