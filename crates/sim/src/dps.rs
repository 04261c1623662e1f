//! The device provisioning service: registration with a symmetric key or a certificate,
//! of a device that is enrolled by itself or by its group; api-version 2021-06-01 (wire
//! facts 6.2), and later ones with certificates that are issued with a registration.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::exchange::{Answer, Exchange};
use crate::hub::random_key;
use crate::issuance;
use crate::proof::Proof;
use crate::token::{Key, TokenError};
use crate::tpm;
use crate::world::{Attested, Enrolment, EnrolmentGroup, Operation, PresetDevice, World};

/// Pause between polls that clients are told unless a fault says otherwise, in seconds.
const POLL_AFTER_SEC: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegisterBody {
    registration_id: Option<String>,
    tpm: Option<TpmBody>,
    csr: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TpmBody {
    endorsement_key: String,
    storage_root_key: String,
}

impl World {
    pub(crate) fn register(
        &mut self,
        method: &Method,
        scope: &str,
        registration: &str,
        exchange: &Exchange<'_>,
    ) -> Answer {
        if method != Method::PUT {
            return error(StatusCode::METHOD_NOT_ALLOWED, "only PUT");
        }
        if exchange.header(header::AUTHORIZATION).is_none()
            && scope == self.scope_id
            && let Some(challenge) = self.challenge(registration, exchange)
        {
            return challenge;
        }
        if let Err(refusal) = self.admit(scope, registration, exchange) {
            return refusal;
        }
        let body = match exchange.json::<RegisterBody>() {
            Ok(body) => body,
            Err(text) => return error(StatusCode::BAD_REQUEST, &text),
        };
        if body.registration_id.as_deref() != Some(registration) {
            return error(
                StatusCode::BAD_REQUEST,
                "registrationId in the body and in the path differ",
            );
        }
        let csr = match issuance::request(body.csr.as_deref(), registration, exchange) {
            Ok(csr) => csr,
            Err(refusal) => return refusal,
        };
        if csr.is_some() {
            self.last_csr.clone_from(&csr);
        }
        let id = format!("5.{:016x}.{registration}", self.next_serial());
        self.remember(Operation {
            id: id.clone(),
            registration: registration.to_owned(),
            polls: 0,
            csr,
        });
        self.assigning(&id, registration)
    }

    pub(crate) fn operation(
        &mut self,
        method: &Method,
        scope: &str,
        registration: &str,
        id: &str,
        exchange: &Exchange<'_>,
    ) -> Answer {
        if method != Method::GET {
            return error(StatusCode::METHOD_NOT_ALLOWED, "only GET");
        }
        let enrolment = match self.admit(scope, registration, exchange) {
            Ok(enrolment) => enrolment,
            Err(refusal) => return refusal,
        };
        let Some(operation) = self
            .operations
            .iter_mut()
            .find(|known| known.id == id && known.registration == registration)
        else {
            return error(StatusCode::NOT_FOUND, "no such operation");
        };
        let csr = operation.csr.clone();
        operation.polls = operation.polls.saturating_add(1);
        if operation.polls <= self.faults.polls_assigning {
            return self.assigning(id, registration);
        }
        if let Some(message) = &self.faults.refuse_registration {
            let state = json!({
                "registrationId": registration, "status": "failed", "errorCode": 400_207, "errorMessage": message,
            });
            return Answer::json(
                StatusCode::OK,
                json!({ "operationId": id, "status": "failed", "registrationState": state }),
            );
        }
        self.assign(enrolment, id, csr.as_deref(), exchange)
    }

    /// Makes the device at the hub, with the enrolment's key or the certificate that it
    /// shows. Modules of a device that was there before stay.
    fn assign(
        &mut self,
        enrolment: Enrolment,
        id: &str,
        csr: Option<&[u8]>,
        exchange: &Exchange<'_>,
    ) -> Answer {
        let Enrolment { registration_id, proof, device_id, hub, payload, certificate_policy_name } =
            enrolment;
        let csr = csr.filter(|_| certificate_policy_name.is_some());
        let issued = csr.map(|csr| self.issue(csr, &registration_id, exchange.now)).transpose();
        let issued = match issued {
            Ok(issued) => issued,
            Err(text) => return error(StatusCode::INTERNAL_SERVER_ERROR, &text),
        };
        let wrapped = match self.hub_key_for_tpm(&registration_id) {
            Ok(wrapped) => wrapped,
            Err(text) => return error(StatusCode::INTERNAL_SERVER_ERROR, &text),
        };
        let (proof, wrapped) = match wrapped {
            Some((key, wrapped)) => (Proof::Key(key), Some(wrapped)),
            None => (proof, None),
        };
        let (chain, told) = issued.unzip();
        let proof = match (proof, exchange.client.first()) {
            (key @ Proof::Key(_), _) => key,
            (_, Some(shown)) => Proof::thumbprint(shown),
            (proof, None) => proof,
        };
        let proof = told.unwrap_or(proof);
        let device = device_id.unwrap_or_else(|| registration_id.clone());
        let hub = hub.unwrap_or_else(|| self.hub.clone());
        if let Err(full) =
            self.put_device(PresetDevice::with_proof(device.clone(), proof), hub.clone())
        {
            return error(StatusCode::INTERNAL_SERVER_ERROR, &full.to_string());
        }
        let mut state = json!({
            "registrationId": registration_id, "assignedHub": hub, "deviceId": device,
            "status": "assigned", "substatus": "initialAssignment",
        });
        if let Some(chain) = chain {
            state["issuedCertificateChain"] = chain;
        }
        if let Some(payload) = payload {
            state["payload"] = payload;
        }
        if let Some(wrapped) = wrapped {
            state["tpm"] = json!({ "authenticationKey": STANDARD.encode(wrapped) });
        }
        Answer::json(
            StatusCode::OK,
            json!({ "operationId": id, "status": "assigned", "registrationState": state }),
        )
    }

    fn assigning(&self, id: &str, registration: &str) -> Answer {
        let body = json!({
            "operationId": id, "status": "assigning",
            "registrationState": { "registrationId": registration, "status": "assigning" },
        });
        let retry_after_sec = Some(self.faults.poll_after_sec.unwrap_or(POLL_AFTER_SEC));
        Answer { retry_after_sec, ..Answer::json(StatusCode::ACCEPTED, body) }
    }

    /// The enrolment behind the request, if its token or certificate is good.
    fn admit(
        &mut self,
        scope: &str,
        registration: &str,
        exchange: &Exchange<'_>,
    ) -> Result<Enrolment, Answer> {
        if exchange.api_version().is_none() {
            return Err(error(StatusCode::BAD_REQUEST, "api-version is missing or not one"));
        }
        if scope != self.scope_id {
            return Err(error(StatusCode::NOT_FOUND, "no such id scope"));
        }
        let audience = format!("{scope}/registrations/{registration}");
        let candidates = self.candidates(registration);
        let mut verdict = Err(TokenError::Principal("no such enrolment"));
        for enrolment in candidates {
            match enrolment.proof.check(registration, &audience, Some("registration"), exchange) {
                Ok(()) => {
                    verdict = Ok(enrolment);
                    break;
                }
                Err(refusal) => verdict = Err(refusal),
            }
        }
        verdict.map_err(|refusal| {
            self.note_refusal(format!("registration {registration}: {refusal}"));
            error(StatusCode::UNAUTHORIZED, &refusal.to_string())
        })
    }

    /// Answers a device that shows its TPM: a key that only this TPM can unwrap. `None`
    /// if the registration is of no TPM.
    fn challenge(&mut self, registration: &str, exchange: &Exchange<'_>) -> Option<Answer> {
        let Proof::EndorsementKey(enrolled) = &self.enrolments.get(registration)?.proof else {
            return None;
        };
        let refused = |text: &str| error(StatusCode::UNAUTHORIZED, text);
        let tpm = exchange.json::<RegisterBody>().ok().and_then(|body| body.tpm);
        let Some(tpm) = tpm else { return Some(refused("the TPM's keys are missing")) };
        if tpm.endorsement_key != *enrolled {
            self.note_refusal(format!("registration {registration}: another endorsement key"));
            return Some(refused("the endorsement key is another one"));
        }
        let made = (|| {
            let read = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
            let (endorsement, storage_root) =
                (read(&tpm.endorsement_key)?, read(&tpm.storage_root_key)?);
            let key = random_key()?;
            let blob = tpm::import_blob(&endorsement, &storage_root, &key)
                .map_err(|error| error.to_string())?;
            Ok::<_, String>((Attested { storage_root, key }, blob))
        })();
        Some(match made {
            Ok((attested, blob)) => {
                self.attested.insert(registration.to_owned(), attested);
                let mut challenge = refused("prove that this is the TPM");
                if let Some(body) = &mut challenge.body {
                    body["authenticationKey"] = Value::String(STANDARD.encode(blob));
                }
                challenge
            }
            Err(text) => error(StatusCode::BAD_REQUEST, &text),
        })
    }

    /// Makes a TPM's key for the hub: the key, and how the device gets it. `None` if the
    /// registration is of no TPM.
    fn hub_key_for_tpm(&self, registration: &str) -> Result<Option<(Key, Vec<u8>)>, String> {
        let enrolment = self.enrolments.get(registration).map(|enrolment| &enrolment.proof);
        let (Some(Proof::EndorsementKey(endorsement)), Some(attested)) =
            (enrolment, self.attested.get(registration))
        else {
            return Ok(None);
        };
        let endorsement = STANDARD.decode(endorsement).map_err(|error| error.to_string())?;
        let key = random_key()?;
        let blob = tpm::import_blob(&endorsement, &attested.storage_root, &key)
            .map_err(|error| error.to_string())?;
        Ok(Some((key, blob)))
    }

    /// The enrolments that a registration may be of: its own alone, else those of the
    /// groups.
    fn candidates(&self, registration: &str) -> Vec<Enrolment> {
        if let Some(own) = self.enrolments.get(registration) {
            let mut own = own.clone();
            if let (Proof::EndorsementKey(_), Some(attested)) =
                (&own.proof, self.attested.get(registration))
            {
                own.proof = Proof::Key(attested.key.clone());
            }
            return vec![own];
        }
        let of_group = |group: &EnrolmentGroup| {
            let proof = match &group.proof {
                Proof::Key(key) => Proof::Key(derived(key, registration)?),
                proof => proof.clone(),
            };
            Some(Enrolment {
                registration_id: registration.to_owned(),
                proof,
                device_id: None,
                hub: group.hub.clone(),
                payload: None,
                certificate_policy_name: group.certificate_policy_name.clone(),
            })
        };
        self.groups.values().filter_map(of_group).collect()
    }
}

/// Returns the key of a group's device.
fn derived(group: &Key, registration: &str) -> Option<Key> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, group.expose());
    let derived = hmac::sign(&key, registration.to_lowercase().as_bytes());
    Key::new(derived.as_ref().to_vec()).ok()
}

/// The service's error body; its codes begin with the status.
pub(crate) fn error(status: StatusCode, message: &str) -> Answer {
    let code =
        u32::from(status.as_u16()) * 1000 + if status == StatusCode::UNAUTHORIZED { 2 } else { 0 };
    let body: Value = json!({ "errorCode": code, "trackingId": "simulated", "message": message });
    Answer::json(status, body)
}
