//! The device provisioning service: registration with a symmetric key or a certificate,
//! of a device that is enrolled by itself or by its group; api-version 2021-06-01 (wire
//! facts 6.2).

use aws_lc_rs::hmac;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::exchange::{Answer, Exchange};
use crate::proof::Proof;
use crate::token::{Key, TokenError};
use crate::world::{Enrolment, EnrolmentGroup, Operation, PresetDevice, World};

/// Pause between polls that clients are told unless a fault says otherwise, in seconds.
const POLL_AFTER_SEC: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegisterBody {
    registration_id: Option<String>,
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
        let id = format!("5.{:016x}.{registration}", self.next_serial());
        self.remember(Operation {
            id: id.clone(),
            registration: registration.to_owned(),
            polls: 0,
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
        self.assign(enrolment, id, exchange)
    }

    /// Makes the device at the hub, with the enrolment's key or the certificate that it
    /// shows. Modules of a device that was there before stay.
    fn assign(&mut self, enrolment: Enrolment, id: &str, exchange: &Exchange<'_>) -> Answer {
        let Enrolment { registration_id, proof, device_id, hub, payload } = enrolment;
        let proof = match (proof, exchange.client.first()) {
            (key @ Proof::Key(_), _) => key,
            (_, Some(shown)) => Proof::thumbprint(shown),
            (proof, None) => proof,
        };
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
        if let Some(payload) = payload {
            state["payload"] = payload;
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

    /// The enrolments that a registration may be of: its own alone, else those of the
    /// groups.
    fn candidates(&self, registration: &str) -> Vec<Enrolment> {
        if let Some(own) = self.enrolments.get(registration) {
            return vec![own.clone()];
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
