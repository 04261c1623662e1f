//! Proof by which a device is known, to the provisioning service or to the hub.

use aws_lc_rs::digest::{SHA256, digest};
use edgekeep_core::credentials::{Certificate, Limits, read_certificates};
use http::header;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::exchange::Exchange;
use crate::token::{Expected, Key, TokenError, verify};

/// Proof by which a device is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Proof {
    /// A symmetric key, with which the device signs tokens.
    Key(Key),
    /// SHA-256 thumbprints of certificates, in hexadecimal. The device shows one of them.
    Thumbprints(Vec<String>),
    /// A TPM's endorsement key, as the TPM marshals it (TPM2B_PUBLIC), in base64. For
    /// enrolments alone: of it come symmetric keys that only this TPM can unwrap.
    EndorsementKey(String),
    /// Certificates of CAs, PEM. The device shows a certificate of one of them that names
    /// the device.
    Authorities(String),
    /// Certificates that the provisioning service issued: of CAs, PEM, and of this name.
    /// For devices at the hub alone.
    Issued {
        /// Certificates of the CAs, PEM.
        authorities: String,
        /// Registration id, which the certificate names.
        name: String,
    },
}

/// The members of [`Proof`] in a body: exactly one is there.
#[derive(Debug, Deserialize)]
pub(crate) struct OneProof {
    pub(crate) key: Option<Key>,
    pub(crate) thumbprints: Option<Vec<String>>,
    pub(crate) authorities: Option<String>,
    pub(crate) endorsement_key: Option<String>,
}

const ONE: &str = "expected one of key, thumbprints, authorities, endorsementKey";

impl TryFrom<OneProof> for Proof {
    type Error = &'static str;

    fn try_from(sent: OneProof) -> Result<Self, Self::Error> {
        if let OneProof {
            key: None,
            thumbprints: None,
            authorities: None,
            endorsement_key: Some(key),
        } = sent
        {
            return Ok(Self::EndorsementKey(key));
        }
        if sent.endorsement_key.is_some() {
            return Err(ONE);
        }
        match (sent.key, sent.thumbprints, sent.authorities) {
            (Some(key), None, None) => Ok(Self::Key(key)),
            (None, Some(thumbprints), None) => Ok(Self::Thumbprints(
                thumbprints.iter().map(|text| text.to_ascii_lowercase()).collect(),
            )),
            (None, None, Some(pem)) if !certificates(&pem).is_empty() => Ok(Self::Authorities(pem)),
            (None, None, Some(_)) => Err("authorities has no certificate in PEM"),
            _ => Err(ONE),
        }
    }
}

impl Proof {
    /// A certificate's proof by itself: its thumbprint.
    #[must_use]
    pub fn thumbprint(der: &[u8]) -> Self {
        Self::Thumbprints(vec![thumbprint_of(der)])
    }

    /// Checks that a request comes from the device of this name.
    pub(crate) fn check(
        &self,
        name: &str,
        audience: &str,
        key_name: Option<&'static str>,
        exchange: &Exchange<'_>,
    ) -> Result<(), TokenError> {
        let token = exchange.header(header::AUTHORIZATION);
        if let Self::Key(key) = self {
            let expected = Expected { audience, keys: &[key], key_name, now: exchange.now };
            return verify(token, &expected);
        }
        if matches!(self, Self::EndorsementKey(_)) {
            return Err(TokenError::Principal("the TPM has not been asked to prove itself"));
        }
        if token.is_some() {
            return Err(TokenError::Principal("the device has a certificate and sent a token"));
        }
        let leaf = exchange.client.first();
        let leaf = leaf.ok_or(TokenError::Principal("no client certificate was shown"))?;
        if !is_valid(leaf, exchange.now) {
            return Err(TokenError::Principal("the client certificate is not valid now"));
        }
        match self {
            Self::Thumbprints(known) if known.contains(&thumbprint_of(leaf)) => Ok(()),
            Self::Authorities(pem)
                if !is_issued(exchange.client, &certificates(pem), exchange.now) =>
            {
                Err(TokenError::Principal("the client certificate is of no CA that is enrolled"))
            }
            Self::Issued { authorities, .. }
                if !is_issued(exchange.client, &certificates(authorities), exchange.now) =>
            {
                Err(TokenError::Principal(
                    "the client certificate is of no CA that the hub was told of",
                ))
            }
            Self::Issued { name, .. } if common_name(leaf).as_deref() == Some(name) => Ok(()),
            Self::Issued { .. } => {
                Err(TokenError::Principal("the client certificate names another registration"))
            }
            Self::Authorities(_) if common_name(leaf).as_deref() == Some(name) => Ok(()),
            Self::Authorities(_) => {
                Err(TokenError::Principal("the client certificate names another device"))
            }
            _ => Err(TokenError::Principal("the client certificate is another one")),
        }
    }
}

/// Reads certificates, PEM.
pub(crate) fn certificates(pem: &str) -> Vec<Certificate> {
    read_certificates(pem.as_bytes(), &Limits::FILE).certificates
}

/// Returns the SHA-256 thumbprint of a certificate, in hexadecimal.
pub(crate) fn thumbprint_of(der: &[u8]) -> String {
    digest(&SHA256, der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns true if a client's certificate is one of these roots.
pub(crate) fn is_issued(client: &[CertificateDer<'_>], roots: &[Certificate], now: u64) -> bool {
    let Some((leaf, above)) = client.split_first() else { return false };
    let mut store = rustls::RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().map(|it| CertificateDer::from(it.der())));
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let store = std::sync::Arc::new(store);
    let built =
        rustls::server::WebPkiClientVerifier::builder_with_provider(store, provider).build();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
    built.is_ok_and(|verifier| verifier.verify_client_cert(leaf, above, now).is_ok())
}

fn is_valid(der: &[u8], now: u64) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let validity = certificate.validity();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now)
}

/// Returns the common name of a certificate's subject.
pub(crate) fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}
