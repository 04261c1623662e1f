//! Certificates that are objects on tokens, read for whoever asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use edgekeep_core::id::CertId;
use edgekeep_hsm::pkcs11::{CertificateError, Pkcs11Backend};
use edgekeep_hsm::uri::ObjectAttributes;

use crate::recovering::Recovering;

type SharedToken = Arc<Recovering<Pkcs11Backend>>;

/// The certificates that the settings name, each with its token.
#[derive(Default)]
pub(crate) struct TokenCertificates(BTreeMap<CertId, (SharedToken, ObjectAttributes)>);

impl TokenCertificates {
    pub(crate) fn add(
        &mut self,
        token: &SharedToken,
        certificates: BTreeMap<CertId, ObjectAttributes>,
    ) {
        let on_token = |(id, object)| (id, (Arc::clone(token), object));
        self.0.extend(certificates.into_iter().map(on_token));
    }

    /// Reads the value of a certificate. `None`: the settings name no such certificate on
    /// a token.
    pub(crate) fn read(&self, id: &CertId) -> Option<Result<Vec<u8>, CertificateError>> {
        let (token, object) = self.0.get(id)?;
        Some(
            token.get().map_err(CertificateError::from).and_then(|token| token.certificate(object)),
        )
    }
}
