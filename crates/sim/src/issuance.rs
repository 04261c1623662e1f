//! Certificates that the provisioning service issues with a registration: by a CA of its
//! own, for enrolments that have a policy.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use rcgen::{
    BasicConstraints, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue, IsCa,
    KeyPair, SerialNumber,
};
use rustls_pki_types::CertificateSigningRequestDer;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::dps::error;
use crate::est::Ca;
use crate::exchange::{Answer, Exchange};
use crate::faults::IssuedFault;
use crate::proof::Proof;
use crate::tls::{Authority, TlsError};
use crate::world::World;

/// Versions of the interface that know requests for certificates. Others pass over them.
const VERSIONS: [&str; 3] = ["2025-07-01-preview", "2026-11-01", "2026-11-02-preview"];
/// Validity of what is issued, unless the faults say otherwise.
const VALIDITY: Duration = Duration::days(30);
/// Begin of the validity before now.
const BACKDATED: Duration = Duration::minutes(1);
/// Largest request, in bytes of base64.
const REQUEST_LIMIT: usize = 8 * 1024;
/// Size of an oversized certificate, in bytes of base64. The whole answer is still one
/// that clients read.
const OVERSIZED: usize = 512 * 1024;

/// Reads the request in a body of a registration, DER. `None` if there is none, or the
/// version of the interface knows none.
pub(crate) fn request(
    csr: Option<&str>,
    registration: &str,
    exchange: &Exchange<'_>,
) -> Result<Option<Vec<u8>>, Answer> {
    let is_known = exchange.api_version().is_some_and(|version| VERSIONS.contains(&version));
    let Some(csr) = csr.filter(|_| is_known) else { return Ok(None) };
    let refused = |text: &str| error(StatusCode::BAD_REQUEST, text);
    if csr.len() > REQUEST_LIMIT {
        return Err(refused("csr has more than 8 KiB"));
    }
    let der = STANDARD.decode(csr).map_err(|_| refused("csr is not base64"))?;
    let parsed = parsed(&der)
        .map_err(|_| refused("csr is not PKCS#10 in DER, or its signature is wrong"))?;
    let name = parsed.params.distinguished_name.get(&DnType::CommonName);
    if name.and_then(text).as_deref() != Some(registration) {
        return Err(refused("the common name in csr is not the registration id"));
    }
    let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384];
    if !kinds.contains(&parsed.public_key.algorithm()) {
        return Err(refused("the key in csr is neither on P-256 nor on P-384"));
    }
    Ok(Some(der))
}

fn parsed(der: &[u8]) -> Result<CertificateSigningRequestParams, rcgen::Error> {
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
}

fn text(value: &DnValue) -> Option<String> {
    Some(match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        _ => return None,
    })
}

impl World {
    /// Issues a certificate. Returns the chain as it is sent, and the proof by which the
    /// hub knows the device from now on.
    pub(crate) fn issue(
        &mut self,
        csr: &[u8],
        registration: &str,
        now: u64,
    ) -> Result<(Value, Proof), String> {
        let ca = match &self.issuance {
            Some(ca) => ca.clone(),
            None => {
                let root = "edgekeep simulated device registry root";
                let made = Ca::new(root, "edgekeep simulated device registry CA");
                let made = made.map_err(|error| error.to_string())?;
                self.issuance.insert(made).clone()
            }
        };
        let (fault, validity) = (self.faults.issued, self.faults.issued_validity_sec);
        let serial = (1 << 41) + self.next_serial();
        let leaf = leaf(&ca, csr, fault, now, validity, serial).map_err(|it| it.to_string())?;
        let above = ca.chain();
        let mut chain = vec![STANDARD.encode(&leaf)];
        if fault != Some(IssuedFault::LeafAlone) {
            chain.extend(above.iter().map(|it| STANDARD.encode(it.der())));
        }
        match fault {
            Some(IssuedFault::NotBase64) => chain[0] = "{not base64}".to_owned(),
            Some(IssuedFault::Junk) => chain[0] = STANDARD.encode([0x30, 0x82, 0x7f, 0xff, 6, 1]),
            Some(IssuedFault::Pem) => {
                let head = "-----BEGIN CERTIFICATE-----\n";
                chain[0] = format!("{head}{}\n-----END CERTIFICATE-----\n", chain[0]);
            }
            Some(IssuedFault::Oversized) => chain[0] = "A".repeat(OVERSIZED),
            Some(IssuedFault::Many) => chain = vec![chain[0].clone(); 100],
            _ => {}
        }
        let sent = match fault {
            Some(IssuedFault::NoList) => json!({ "certificate": chain[0] }),
            _ => json!(chain),
        };
        let known = match fault {
            Some(IssuedFault::UnknownToHub) => {
                Authority::named("another registry").map_err(|it| it.to_string())?
            }
            _ => ca.issuing.clone(),
        };
        let authorities = known.certificate_pem().to_owned();
        Ok((sent, Proof::Issued { authorities, name: registration.to_owned() }))
    }
}

fn leaf(
    ca: &Ca,
    csr: &[u8],
    fault: Option<IssuedFault>,
    now: u64,
    validity: Option<u32>,
    serial: u64,
) -> Result<Vec<u8>, TlsError> {
    let mut request = parsed(csr)?;
    let now = i64::try_from(now).ok().and_then(|it| OffsetDateTime::from_unix_timestamp(it).ok());
    let now = now.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let validity = validity.map_or(VALIDITY, |seconds| Duration::seconds(seconds.into()));
    let (from, to) = match fault {
        Some(IssuedFault::Expired) => (now - Duration::days(2), now - Duration::days(1)),
        Some(IssuedFault::NotYetValid) => (now + Duration::days(1), now + Duration::days(2)),
        _ => (now - BACKDATED, now + validity),
    };
    let params = &mut request.params;
    (params.not_before, params.not_after) = (from, to);
    params.serial_number = Some(SerialNumber::from(serial));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    if fault == Some(IssuedFault::WrongName) {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "another-device");
    }
    if fault == Some(IssuedFault::Authority) {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    let issuer = match fault {
        // Of the right name, so that a signature alone tells.
        Some(IssuedFault::WrongChain) => {
            Authority::named("edgekeep simulated device registry CA")?.issuer()?
        }
        _ => ca.issuing.issuer()?,
    };
    let leaf = match fault {
        Some(IssuedFault::WrongKey) => request.params.signed_by(&KeyPair::generate()?, &issuer)?,
        _ => request.signed_by(&issuer)?,
    };
    Ok(leaf.der().to_vec())
}
