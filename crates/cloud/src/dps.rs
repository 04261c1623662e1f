//! The provisioning service: registering a device (wire facts 6.2).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::authority::{Authority, AuthorityError};
use edgekeep_core::foreign_text::{MESSAGE_LIMIT, cleaned};
use edgekeep_core::id::DeviceId;
use http::Method;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::credential::Credential;
use crate::error::CloudError;
use crate::sas::{Audience, Signer, segment};
use crate::transport::{Call, Transport};

/// Version of the interface where no certificate is asked for.
const VERSION: &str = "2021-06-01";
/// Longest operation id that is believed.
const OPERATION_LIMIT: usize = 512;
/// Most certificates of an issued chain, and the largest of them in base64, in bytes.
const CHAIN: (usize, usize) = (10, 16 * 1024);
/// Longest error code that is told, in characters.
const CODE_LIMIT: usize = 32;

/// A registration: the device, and the service that it registers with.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// Base URL of the service: `https://host[:port]`, without a path.
    pub endpoint: String,
    /// The tenant's scope.
    pub scope_id: String,
    /// The registration's name.
    pub registration_id: String,
    /// JSON that the service passes to its allocation policy.
    pub payload: Option<serde_json::Value>,
    /// Version of the interface that is asked for; `None`: the oldest that knows all but
    /// certificate requests.
    pub api_version: Option<String>,
    /// The request (PKCS#10, DER) for the certificate that the hub shall know the device
    /// by.
    pub csr: Option<Vec<u8>>,
}

/// State of a registration, as the service tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Not decided yet.
    Assigning {
        /// Id of the operation, which the next poll names.
        operation: String,
        /// Pause that the service asks for before the next poll; `None` if it names none.
        retry_after: Option<Duration>,
    },
    /// The device has an identity.
    Assigned {
        /// Host name of the hub; checked to be one.
        hub: String,
        /// The device there.
        device_id: DeviceId,
        /// Key for the hub that only the device's TPM can unwrap; absent without a TPM.
        tpm_key: Option<Vec<u8>>,
        /// Certificates that the service issued, DER, the device's own first. Empty if it
        /// issued none: of an enrolment without a policy for certificates, and of a
        /// service that does not know certificate requests.
        issued: Vec<Vec<u8>>,
    },
    /// The service decided against it.
    Failed {
        /// The reason, in the service's words.
        reason: String,
    },
}

/// Client of one registration.
#[derive(Debug)]
pub struct Dps<S> {
    transport: Arc<Transport>,
    to: Authority,
    host: String,
    base: String,
    version: String,
    audience: Audience,
    registration: Registration,
    credential: Credential<S>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Register<'a> {
    registration_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm: Option<TpmKeys>,
    #[serde(skip_serializing_if = "Option::is_none")]
    csr: Option<String>,
}

/// Public halves of a TPM's keys, in base64.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TpmKeys {
    endorsement_key: String,
    storage_root_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrappedKey {
    authentication_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Operation {
    #[serde(default)]
    operation_id: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    registration_state: Option<RegistrationState>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegistrationState {
    #[serde(default)]
    assigned_hub: Option<String>,
    #[serde(default)]
    device_id: Option<String>,
    #[serde(default)]
    tpm: Option<WrappedKey>,
    #[serde(default)]
    issued_certificate_chain: Option<serde_json::Value>,
    #[serde(default)]
    connection_profile: Option<String>,
    #[serde(default, alias = "code")]
    error_code: Option<serde_json::Value>,
    #[serde(default, alias = "message")]
    error_message: Option<String>,
}

impl<S: Signer> Dps<S> {
    /// A client of `registration`. Nothing is opened.
    ///
    /// # Errors
    /// If the endpoint is not the `https` URL of a host.
    pub fn new(
        transport: Arc<Transport>,
        registration: Registration,
        credential: Credential<S>,
    ) -> Result<Self, AuthorityError> {
        let host = registration.endpoint.strip_prefix("https://").ok_or(AuthorityError::Name)?;
        let to: Authority = host.strip_suffix('/').unwrap_or(host).parse()?;
        let base = format!(
            "/{}/registrations/{}",
            segment(&registration.scope_id),
            segment(&registration.registration_id)
        );
        let resource =
            format!("{}/registrations/{}", registration.scope_id, registration.registration_id);
        let audience = Audience { resource, key_name: Some("registration") };
        let host = to.to_string();
        let version = registration.api_version.as_deref().unwrap_or(VERSION);
        let version = format!("api-version={}", segment(version));
        Ok(Self { transport, to, host, base, version, audience, registration, credential })
    }

    /// Shows the service a TPM: the public halves of its endorsement key and its storage
    /// root key, as the TPM marshals them. Returns the key for the registration, which
    /// only this TPM can unwrap.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn attest(
        &self,
        endorsement: &[u8],
        storage_root: &[u8],
    ) -> Result<Vec<u8>, CloudError> {
        let tpm = TpmKeys {
            endorsement_key: STANDARD.encode(endorsement),
            storage_root_key: STANDARD.encode(storage_root),
        };
        let body = Some(Zeroizing::new(self.body(Some(tpm), None)?));
        let path = format!("{}/register?{}", self.base, self.version);
        let mut session = self.transport.session(&self.to, &self.credential)?;
        let call = self.call(Method::PUT, path, body, true);
        let answer = session.call(&call, &self.credential).await?;
        let found: WrappedKey = serde_json::from_slice(&answer.body)
            .map_err(|error| session.unexpected(&error.to_string()))?;
        wrapped(&found).map_err(|what| session.unexpected(what))
    }

    fn body(&self, tpm: Option<TpmKeys>, csr: Option<&[u8]>) -> Result<Vec<u8>, CloudError> {
        let registration_id = &self.registration.registration_id;
        let payload = self.registration.payload.as_ref();
        let csr = csr.map(|der| STANDARD.encode(der));
        serde_json::to_vec(&Register { registration_id, payload, tpm, csr })
            .map_err(|error| CloudError::Request { what: error.to_string() })
    }

    fn call(
        &self,
        method: Method,
        path: String,
        body: Option<Zeroizing<Vec<u8>>>,
        is_anonymous: bool,
    ) -> Call<'_> {
        Call {
            method,
            path,
            host: &self.host,
            if_match: None,
            body,
            audience: &self.audience,
            is_anonymous,
            subject: "registration",
        }
    }

    /// Asks for an identity.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn register(&self) -> Result<Progress, CloudError> {
        let body = self.body(None, self.registration.csr.as_deref())?;
        self.ask(
            Method::PUT,
            format!("{}/register?{}", self.base, self.version),
            Some(Zeroizing::new(body)),
            None,
        )
        .await
    }

    /// Asks how a registration is getting on.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn poll(&self, operation: &str) -> Result<Progress, CloudError> {
        let path = format!("{}/operations/{}?{}", self.base, segment(operation), self.version);
        self.ask(Method::GET, path, None, Some(operation)).await
    }

    async fn ask(
        &self,
        method: Method,
        path: String,
        body: Option<Zeroizing<Vec<u8>>>,
        operation: Option<&str>,
    ) -> Result<Progress, CloudError> {
        let call = self.call(method, path, body, false);
        let mut session = self.transport.session(&self.to, &self.credential)?;
        let answer = session.call(&call, &self.credential).await?;
        let found: Operation = serde_json::from_slice(&answer.body)
            .map_err(|error| session.unexpected(&error.to_string()))?;
        progress(found, operation, answer.retry_after).map_err(|what| session.unexpected(what))
    }
}

/// Makes sense of an answer to the question about `asked` (`None`: to the registration
/// itself).
fn progress(
    found: Operation,
    asked: Option<&str>,
    retry_after: Option<Duration>,
) -> Result<Progress, &'static str> {
    match (found.status.as_deref(), found.registration_state) {
        (Some("assigned"), Some(state)) => {
            let hub = state.assigned_hub.ok_or("an assignment without a hub")?;
            // What is put into URLs and tokens from now on is checked to be a host name
            // (wire facts 10, W11).
            let hub = Authority::assigned(&hub)
                .map_err(|_| "the assigned hub is not a host name")?
                .to_string();
            let device = state.device_id.ok_or("an assignment without a device id")?;
            let device_id = device.parse().map_err(|_| "the assigned device id is not one")?;
            let tpm_key = state.tpm.as_ref().map(wrapped).transpose()?;
            if state.connection_profile.is_some_and(|profile| profile != "classic") {
                return Err("the assigned hub speaks a protocol that this version does not");
            }
            let issued = issued(state.issued_certificate_chain)?;
            Ok(Progress::Assigned { hub, device_id, tpm_key, issued })
        }
        (Some("failed" | "disabled"), state) => {
            let code = state.as_ref().and_then(|state| state.error_code.as_ref()).map(code_text);
            let message = state
                .as_ref()
                .and_then(|state| state.error_message.as_deref())
                .unwrap_or("no message");
            let message = cleaned(message, MESSAGE_LIMIT);
            let reason =
                code.map_or_else(|| message.clone(), |code| format!("{message} (code {code})"));
            Ok(Progress::Failed { reason })
        }
        (Some("assigning" | "unassigned") | None, _) => {
            let operation =
                asked.map(str::to_owned).or(found.operation_id).ok_or("no operation id")?;
            if operation.is_empty()
                || operation.len() > OPERATION_LIMIT
                || operation.bytes().all(|c| c == b'.')
            {
                return Err("an operation id that is none");
            }
            Ok(Progress::Assigning { operation, retry_after })
        }
        _ => Err("an unknown registration status"),
    }
}

/// Reads the certificates that the service issued.
fn issued(chain: Option<serde_json::Value>) -> Result<Vec<Vec<u8>>, &'static str> {
    let chain = match chain {
        None | Some(serde_json::Value::Null) => return Ok(Vec::new()),
        Some(serde_json::Value::Array(chain)) => chain,
        Some(_) => return Err("issued certificates that are no list"),
    };
    let (most, largest) = CHAIN;
    if chain.len() > most {
        return Err("more than 10 issued certificates");
    }
    let one = |value: &serde_json::Value| {
        let text = value.as_str().ok_or("an issued certificate that is no text")?;
        if text.len() > largest {
            return Err("an issued certificate of more than 16 KiB");
        }
        STANDARD.decode(text).map_err(|_| "an issued certificate that is not base64")
    };
    chain.iter().map(one).collect()
}

/// Returns a key that a TPM unwraps.
fn wrapped(key: &WrappedKey) -> Result<Vec<u8>, &'static str> {
    STANDARD.decode(&key.authentication_key).map_err(|_| "a TPM's key that is not base64")
}

/// An error code: a number, or a word.
fn code_text(code: &serde_json::Value) -> String {
    let text = code.as_str().map_or_else(|| code.to_string(), str::to_owned);
    cleaned(&text, CODE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, asked: Option<&str>) -> Result<Progress, &'static str> {
        progress(serde_json::from_str(text).unwrap(), asked, None)
    }

    #[test]
    fn an_assignment_names_hub_and_device() {
        let text = r#"{"operationId":"o","status":"assigned","registrationState":
            {"assignedHub":"hub.test","deviceId":"press-04","payload":{"x":1}}}"#;
        let expected = Progress::Assigned {
            hub: "hub.test".into(),
            device_id: "press-04".parse().unwrap(),
            tpm_key: None,
            issued: Vec::new(),
        };
        assert_eq!(read(text, Some("o")), Ok(expected));
    }

    #[test]
    fn issued_certificates_are_read_within_bounds_and_junk_among_them_is_named() {
        let with = |chain: String| {
            let text = format!(
                r#"{{"status":"assigned","registrationState":{{"assignedHub":"hub.test","deviceId":"d","issuedCertificateChain":{chain}}}}}"#
            );
            match read(&text, Some("o")) {
                Ok(Progress::Assigned { issued, .. }) => Ok(issued),
                Ok(other) => panic!("{other:?}"),
                Err(why) => Err(why),
            }
        };
        assert_eq!(with(r#"["AQ==","AgM="]"#.into()), Ok(vec![vec![1], vec![2, 3]]));
        for none in ["[]", "null"] {
            assert_eq!(with(none.into()), Ok(Vec::new()), "{none}");
        }
        let large = format!("[\"{}\"]", "A".repeat(16 * 1024 + 4));
        let many = format!("[{}]", ["\"AQ==\""; 11].join(","));
        for (chain, why) in [
            (r#""AQ==""#, "issued certificates that are no list"),
            (r#"{"a":1}"#, "issued certificates that are no list"),
            ("[1]", "an issued certificate that is no text"),
            (r#"["A"]"#, "an issued certificate that is not base64"),
            (r#"["-----BEGIN CERTIFICATE-----"]"#, "an issued certificate that is not base64"),
            (&large, "an issued certificate of more than 16 KiB"),
            (&many, "more than 10 issued certificates"),
        ] {
            assert_eq!(with(chain.into()), Err(why), "{chain:.60}");
        }
    }

    #[test]
    fn a_hub_of_another_protocol_is_refused() {
        let with = |profile: &str| {
            let text = format!(
                r#"{{"status":"assigned","registrationState":{{"assignedHub":"hub.test","deviceId":"d","connectionProfile":{profile}}}}}"#
            );
            read(&text, Some("o")).map(drop)
        };
        assert_eq!((with("null"), with("\"classic\"")), (Ok(()), Ok(())));
        let why = "the assigned hub speaks a protocol that this version does not";
        assert_eq!(with("\"mqttV5\""), Err(why));
    }

    #[test]
    fn an_assignment_whose_hub_is_no_host_name_is_refused() {
        let text = r#"{"status":"assigned","registrationState":{"assignedHub":"hub.test/x?y","deviceId":"press-04"}}"#;
        assert_eq!(read(text, Some("o")), Err("the assigned hub is not a host name"));
    }

    #[test]
    fn an_assignment_to_an_address_is_refused_in_any_form() {
        for hub in ["1", "0x7f000001", "0.0.0.0:1", "127.0.0.1:22", "[::1]:443", "127.1"] {
            let text = format!(
                r#"{{"status":"assigned","registrationState":{{"assignedHub":"{hub}","deviceId":"d"}}}}"#
            );
            assert_eq!(read(&text, Some("o")), Err("the assigned hub is not a host name"), "{hub}");
        }
    }

    #[test]
    fn what_a_failure_says_is_cut_and_cleaned() {
        let text = format!(
            "{{\"status\":\"failed\",\"registrationState\":{{\"errorCode\":\"{}\",\"errorMessage\":\"\\u202e{}\"}}}}",
            "9".repeat(100_000),
            "x".repeat(100_000)
        );
        let Ok(Progress::Failed { reason }) = read(&text, Some("o")) else { panic!("not failed") };
        assert!(
            reason.chars().count() < 350
                && reason.starts_with('\u{fffd}')
                && !reason.contains('\u{202e}'),
            "{reason}"
        );
    }

    #[test]
    fn a_failure_carries_code_and_message_in_either_spelling() {
        for text in [
            r#"{"status":"failed","registrationState":{"errorCode":401002,"errorMessage":"bad key"}}"#,
            r#"{"status":"failed","registrationState":{"code":401002,"message":"bad key"}}"#,
        ] {
            assert_eq!(
                read(text, Some("o")),
                Ok(Progress::Failed { reason: "bad key (code 401002)".into() })
            );
        }
    }

    #[test]
    fn a_poll_goes_on_with_the_operation_that_was_asked_about() {
        let text = r#"{"operationId":"other","status":"assigning"}"#;
        let expected = Progress::Assigning { operation: "mine".into(), retry_after: None };
        assert_eq!(read(text, Some("mine")), Ok(expected));
        assert_eq!(read(r#"{"status":"assigning"}"#, None), Err("no operation id"));
        assert_eq!(
            read(r#"{"status":"perhaps"}"#, Some("mine")),
            Err("an unknown registration status")
        );
    }
}
