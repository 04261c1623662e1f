//! The EST server (RFC 7030): a CA for each label, of a root and one below it that
//! issues.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::credentials::Certificate;
use http::{Method, StatusCode, header};
use rcgen::{CertificateSigningRequestParams, KeyPair, SerialNumber};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::exchange::{Answer, Exchange, Pace, Raw};
use crate::faults::EstAnswer;
use crate::proof::{certificates, is_issued};
use crate::tls::{Authority, TlsError};
use crate::world::World;

/// Validity of what is issued, unless the faults say otherwise.
const VALIDITY: Duration = Duration::days(30);
/// Begin of the validity before now.
const BACKDATED: Duration = Duration::minutes(1);
/// Size of an oversized answer, in bytes.
const OVERSIZED: usize = 4 << 20;

const PKCS7: &str = "application/pkcs7-mime; smime-type=certs-only";

/// A key on P-256 is asked for: SEQUENCE { SEQUENCE { ecPublicKey, SET { P-256 } } }.
const ATTRIBUTES: &[u8] = &[
    0x30, 0x17, 0x30, 0x15, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x31, 10, 6, 8, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 3, 1, 7,
];

/// Clients that get certificates, and the labels of the CAs.
#[derive(Debug, Clone, Default)]
pub struct EstOptions {
    /// Name and password of HTTP Basic authentication.
    pub basic: Option<(String, Zeroizing<String>)>,
    /// Roots, PEM, of certificates that are taken beside those that the CA itself issued:
    /// those of manufacturers.
    pub clients_pem: String,
    /// Labels of CAs beside the default one.
    pub labels: Vec<String>,
}

/// A CA.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ca {
    pub(crate) root: Authority,
    pub(crate) issuing: Authority,
}

/// All CAs and who may ask them.
#[derive(Debug)]
pub(crate) struct Est {
    /// By label; that of the default CA is empty.
    cas: BTreeMap<String, Ca>,
    authorization: Option<Zeroizing<String>>,
    clients: Vec<Certificate>,
}

impl Est {
    pub(crate) const fn new(cas: BTreeMap<String, Ca>) -> Self {
        Self { cas, authorization: None, clients: Vec::new() }
    }

    /// Makes the CAs that are missing.
    pub(crate) fn open(&mut self, options: EstOptions) -> Result<(), TlsError> {
        for label in options.labels.into_iter().chain([String::new()]) {
            if let Entry::Vacant(vacant) = self.cas.entry(label) {
                let label = vacant.key().clone();
                let root = format!("edgekeep simulated EST root {label}");
                vacant.insert(Ca::new(&root, &format!("edgekeep simulated EST CA {label}"))?);
            }
        }
        self.authorization = options.basic.map(|(name, password)| {
            let pair = Zeroizing::new(format!("{name}:{}", *password));
            Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
        });
        self.clients = certificates(&options.clients_pem);
        Ok(())
    }

    pub(crate) fn ca(&self, label: Option<&str>) -> Option<&Ca> {
        self.cas.get(label.unwrap_or_default())
    }

    pub(crate) const fn cas(&self) -> &BTreeMap<String, Ca> {
        &self.cas
    }
}

impl Ca {
    /// A new root, and a CA below it that issues.
    pub(crate) fn new(root: &str, issuing: &str) -> Result<Self, TlsError> {
        let root = Authority::named(root)?;
        let issuing = root.below(issuing)?;
        Ok(Self { root, issuing })
    }

    pub(crate) fn chain(&self) -> Vec<Certificate> {
        certificates(&[self.issuing.certificate_pem(), self.root.certificate_pem()].concat())
    }

    /// Tells whether a client's certificate is one of this CA, or of `others`.
    fn knows(&self, client: &[CertificateDer<'static>], others: &[Certificate], now: u64) -> bool {
        let roots: Vec<_> = self.chain().into_iter().chain(others.iter().cloned()).collect();
        is_issued(client, &roots, now)
    }

    fn issue(
        &self,
        mut request: CertificateSigningRequestParams,
        fault: Option<EstAnswer>,
        now: u64,
        validity: Option<u32>,
        serial: u64,
    ) -> Result<Vec<u8>, TlsError> {
        let now =
            i64::try_from(now).ok().and_then(|it| OffsetDateTime::from_unix_timestamp(it).ok());
        let now = now.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let validity = validity.map_or(VALIDITY, |seconds| Duration::seconds(seconds.into()));
        let (from, to) = match fault {
            Some(EstAnswer::Expired) => (now - Duration::days(2), now - Duration::days(1)),
            Some(EstAnswer::NotYetValid) => (now + Duration::days(1), now + Duration::days(2)),
            _ => (now - BACKDATED, now + validity),
        };
        let params = &mut request.params;
        (params.not_before, params.not_after) = (from, to);
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        let issuer = match fault {
            Some(EstAnswer::WrongChain) => {
                Authority::named("edgekeep simulated EST CA of nobody")?.issuer()?
            }
            _ => self.issuing.issuer()?,
        };
        let leaf = if fault == Some(EstAnswer::WrongKey) {
            request.params.signed_by(&KeyPair::generate()?, &issuer)?
        } else {
            request.signed_by(&issuer)?
        };
        Ok(leaf.der().to_vec())
    }
}

impl World {
    pub(crate) fn est(
        &mut self,
        method: &Method,
        label: Option<&str>,
        operation: &str,
        exchange: &Exchange<'_>,
    ) -> Answer {
        let Some(ca) = self.est.ca(label).cloned() else {
            return said(StatusCode::NOT_FOUND, "no CA of this label");
        };
        match (method, operation) {
            (&Method::GET, "cacerts") => list(&ca.chain(), self.faults.est.cacerts),
            (&Method::GET, "csrattrs") => base64("application/csrattrs", ATTRIBUTES),
            (&Method::POST, "simpleenroll" | "simplereenroll") => {
                self.certificate(&ca, operation == "simplereenroll", exchange)
            }
            _ => said(StatusCode::NOT_FOUND, "no such operation"),
        }
    }

    fn certificate(&mut self, ca: &Ca, again: bool, exchange: &Exchange<'_>) -> Answer {
        let basic = exchange.header(header::AUTHORIZATION).is_some_and(|given| {
            self.est.authorization.as_ref().is_some_and(|expected| given == expected.as_str())
        });
        let known = ca.knows(exchange.client, &self.est.clients, exchange.now);
        if !basic && !known {
            return said(
                StatusCode::UNAUTHORIZED,
                "no name and password, nor certificate, that is known",
            );
        }
        if exchange.header(header::CONTENT_TYPE) != Some("application/pkcs10") {
            return said(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected application/pkcs10");
        }
        let digits: Vec<u8> =
            exchange.body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let Ok(der) = STANDARD.decode(digits) else {
            return said(StatusCode::BAD_REQUEST, "the request is not base64");
        };
        let der = CertificateSigningRequestDer::from(der);
        let request = match CertificateSigningRequestParams::from_der(&der) {
            Ok(request) => request,
            Err(error) => {
                return said(
                    StatusCode::BAD_REQUEST,
                    &format!("the request is not taken: {error}"),
                );
            }
        };
        if self.faults.est.pending > 0 {
            self.faults.est.pending -= 1;
            let retry_after_sec = self.faults.est.retry_after_sec;
            return Answer { retry_after_sec, ..Answer::empty(StatusCode::ACCEPTED) };
        }
        let (fault, validity) = (self.faults.est.enroll, self.faults.est.validity_sec);
        let serial = (1 << 40) + self.next_serial();
        let issued = ca.issue(request, fault, exchange.now, validity, serial);
        let Some(issued) = issued.ok().and_then(|der| Certificate::from_der(&der)) else {
            return said(StatusCode::INTERNAL_SERVER_ERROR, "no certificate could be made");
        };
        if again {
            let before = exchange.client.first().and_then(|it| Certificate::from_der(it));
            if !known || before.is_none_or(|before| before.subject() != issued.subject()) {
                let why = "a renewal has the subject of the certificate that the client shows";
                return said(StatusCode::BAD_REQUEST, why);
            }
        }
        list(&[issued], fault)
    }
}

/// An answer in plain words.
fn said(status: StatusCode, text: &str) -> Answer {
    let raw = Raw { content_type: "text/plain", bytes: text.into(), pace: Pace::Whole };
    Answer { status, ..Answer::raw(raw) }
}

fn base64(content_type: &'static str, der: &[u8]) -> Answer {
    let text = STANDARD.encode(der);
    let mut bytes = Vec::new();
    for line in text.as_bytes().chunks(64) {
        bytes.extend_from_slice(line);
        bytes.extend_from_slice(b"\r\n");
    }
    Answer::raw(Raw { content_type, bytes, pace: Pace::Whole })
}

/// Certificates as an answer, or what a fault makes of them.
fn list(certificates: &[Certificate], fault: Option<EstAnswer>) -> Answer {
    let good = || base64(PKCS7, &certs_only(certificates, false));
    let raw = |content_type, bytes, pace| Answer::raw(Raw { content_type, bytes, pace });
    let paced = |pace| match good().raw {
        Some(whole) => Answer::raw(Raw { pace, ..*whole }),
        None => good(),
    };
    match fault {
        Some(EstAnswer::Html) => {
            raw("text/html", b"<html><h1>Sign in</h1></html>".to_vec(), Pace::Whole)
        }
        Some(EstAnswer::OtherType) => match good().raw {
            Some(whole) => Answer::raw(Raw { content_type: "application/octet-stream", ..*whole }),
            None => good(),
        },
        Some(EstAnswer::Empty) => base64(PKCS7, &certs_only(&[], false)),
        Some(EstAnswer::Signed) => base64(PKCS7, &certs_only(certificates, true)),
        Some(EstAnswer::Junk) => base64(PKCS7, &[0x30, 0x82, 0x7f, 0xff, 6, 1, 0xff, 0, 1, 2, 3]),
        Some(EstAnswer::NotBase64) => raw(PKCS7, b"{\"certificate\": null}".to_vec(), Pace::Whole),
        Some(EstAnswer::Oversized) => raw(PKCS7, vec![b'A'; OVERSIZED], Pace::Whole),
        Some(EstAnswer::Endless) => raw(PKCS7, vec![b'A'; 4096], Pace::Endless),
        Some(EstAnswer::Slow) => paced(Pace::Slow),
        Some(EstAnswer::Cut) => paced(Pace::Cut),
        Some(EstAnswer::Redirect) => Answer::empty(StatusCode::FOUND),
        // These are in the certificates.
        Some(
            EstAnswer::WrongKey
            | EstAnswer::Expired
            | EstAnswer::NotYetValid
            | EstAnswer::WrongChain,
        )
        | None => good(),
    }
}

/// A SignedData of certificates alone (RFC 5652, section 5.1), or with a signer.
fn certs_only(certificates: &[Certificate], signed: bool) -> Vec<u8> {
    const SIGNED_DATA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 7, 2];
    const DATA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 7, 1];
    let members: Vec<u8> = certificates.iter().flat_map(|it| it.der().to_vec()).collect();
    let signers = if signed { element(0x30, &[2, 1, 1]) } else { Vec::new() };
    let data = [
        vec![2, 1, 1],
        element(0x31, &[]),
        element(0x30, DATA),
        element(0xa0, &members),
        element(0x31, &signers),
    ];
    let data = element(0xa0, &element(0x30, &data.concat()));
    element(0x30, &[SIGNED_DATA, &data].concat())
}

/// One element of DER.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant: Vec<u8> = length.iter().copied().skip_while(|byte| *byte == 0).collect();
    let mut out = vec![tag];
    match (content.len(), u8::try_from(significant.len())) {
        (0..0x80, _) => out.extend_from_slice(&length[length.len() - 1..]),
        (_, Ok(count)) => {
            out.push(0x80 | count);
            out.extend_from_slice(&significant);
        }
        (_, Err(_)) => {}
    }
    out.extend_from_slice(content);
    out
}
