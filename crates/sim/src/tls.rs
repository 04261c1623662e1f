//! The simulator's certificate authority and TLS settings.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName as DistinguishedNameDer, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// Validity of certificates: long enough for tests that move a device's clock.
const VALIDITY: Duration = Duration::days(3650);

/// Failure to make or use certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Issue(#[from] rcgen::Error),
    /// PEM text that holds no certificate or key.
    #[error("cannot read the {what} as PEM")]
    Pem {
        /// The text that was read: certificate or key.
        what: &'static str,
        /// The fault of the text.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The TLS library refuses the pair.
    #[error("the TLS library refuses the certificate or its key")]
    Config(#[from] rustls::Error),
}

/// A certificate chain and its key, both as PEM. The key is wiped when dropped.
#[derive(Clone)]
pub struct ServerCertificate {
    /// Leaf first.
    pub chain_pem: String,
    /// PKCS#8, SEC1 or PKCS#1.
    pub key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("chain_pem", &self.chain_pem)
            .finish_non_exhaustive()
    }
}

/// The CA that signs the simulator's server certificates. Keep it to start another
/// simulator that the same devices trust.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authority {
    certificate_pem: String,
    #[serde(with = "wiped_text")]
    key_pem: Zeroizing<String>,
}

mod wiped_text {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(
        text: &Zeroizing<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new CA with a P-256 key.
    ///
    /// # Errors
    /// No key could be made.
    pub fn new() -> Result<Self, TlsError> {
        Self::named("edgekeep simulated cloud CA")
    }

    /// The same, of this name.
    ///
    /// # Errors
    /// No key could be made.
    pub fn named(name: &str) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        Ok(Self::of(&ca_parameters(name)?.self_signed(&key)?, &key))
    }

    /// A new CA of this name that this one has issued.
    ///
    /// # Errors
    /// No key could be made.
    pub fn below(&self, name: &str) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = ca_parameters(name)?;
        params.use_authority_key_identifier_extension = true;
        Ok(Self::of(&params.signed_by(&key, &self.issuer()?)?, &key))
    }

    fn of(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        Self { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()) }
    }

    /// A client certificate, PEM, for a key of which only the public half is here: a
    /// SubjectPublicKeyInfo, DER. It is of the kind that a manufacturer puts into a
    /// device.
    ///
    /// # Errors
    /// A key that cannot stand in a certificate.
    pub fn client_certificate_pem(&self, name: &str, key: &[u8]) -> Result<String, TlsError> {
        let mut params = parameters(name, Vec::new())?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::SubjectPublicKeyInfo::from_der(key)?;
        Ok(params.signed_by(&key, &self.issuer()?)?.pem())
    }

    /// Returns the issuer that signs in the name of this authority.
    pub(crate) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, TlsError> {
        let key = KeyPair::from_pem(&self.key_pem)?;
        Ok(Issuer::from_ca_cert_pem(&self.certificate_pem, key)?)
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A server certificate for these host names and addresses.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub fn issue(&self, names: &[String]) -> Result<ServerCertificate, TlsError> {
        let issuer = self.issuer()?;
        let mut sans = Vec::new();
        for name in names {
            sans.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let mut params =
            parameters(names.first().map_or("edgekeep simulated cloud", String::as_str), sans)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &issuer)?;
        Ok(ServerCertificate {
            chain_pem: format!("{}{}", leaf.pem(), self.certificate_pem),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }
}

fn ca_parameters(name: &str) -> Result<CertificateParams, TlsError> {
    let mut params = parameters(name, Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    Ok(params)
}

fn parameters(common_name: &str, sans: Vec<SanType>) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = sans;
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - VALIDITY, now + VALIDITY);
    Ok(params)
}

/// TLS 1.2 and 1.3; no ALPN, since MQTT and HTTP/1.1 clients alike may send none. A
/// client may prove that it has the key of a certificate: whose that is, is judged for
/// each call.
pub(crate) fn server_config(
    certificate: &ServerCertificate,
) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |what| move |source| TlsError::Pem { what, source };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(pem("certificate chain"))?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes())
        .map_err(pem("private key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AnyClient(provider)))
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// Takes any certificate whose key the client has, and none.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedNameDer] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
