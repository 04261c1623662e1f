//! The hub: the registry of a device's modules and the check of a module's token (wire
//! facts 6.3, 6.4).

use aws_lc_rs::rand;
use http::{Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::exchange::{Answer, Exchange};
use crate::token::{Expected, Key, TokenError, verify};
use crate::world::{Credential, Device, Module, World, check_id};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModuleBody {
    module_id: Option<String>,
    device_id: Option<String>,
    managed_by: Option<String>,
    authentication: Option<Authentication>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authentication {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<SymmetricKey>,
    #[serde(default)]
    x509_thumbprint: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SymmetricKey {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

impl World {
    pub(crate) fn module_list(
        &mut self,
        method: &Method,
        device: &str,
        exchange: &Exchange<'_>,
    ) -> Answer {
        if method != Method::GET {
            return error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "only GET");
        }
        if let Err(refusal) = self.admit_device(device, exchange) {
            return refusal;
        }
        let modules = self.devices.get(device).map(|found| &found.modules).into_iter().flatten();
        let list = modules.map(|(id, module)| module.body(device, id)).collect();
        Answer::json(StatusCode::OK, Value::Array(list))
    }

    pub(crate) fn module(
        &mut self,
        method: &Method,
        device: &str,
        id: &str,
        exchange: &Exchange<'_>,
    ) -> Answer {
        if let Err(refusal) = self.admit_device(device, exchange) {
            return refusal;
        }
        match *method {
            Method::GET => self.module_get(device, id, exchange),
            Method::PUT => self.module_put(device, id, exchange),
            Method::DELETE => self.module_delete(device, id, exchange),
            _ => error(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "only GET, PUT and DELETE",
            ),
        }
    }

    /// Answers a module's message: accepts and counts the message if the module's token
    /// is good.
    pub(crate) fn message(
        &mut self,
        method: &Method,
        device: &str,
        id: &str,
        exchange: &Exchange<'_>,
    ) -> Answer {
        if method != Method::POST {
            return error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "only POST");
        }
        if exchange.api_version().is_none() {
            return no_version();
        }
        if let Err(refusal) =
            self.admit_module(device, id, exchange.header(header::AUTHORIZATION), exchange.now)
        {
            return unauthorized(&refusal);
        }
        self.count_message(device, id);
        Answer::empty(StatusCode::NO_CONTENT)
    }

    pub(crate) fn count_message(&mut self, device: &str, id: &str) {
        if let Some(module) =
            self.devices.get_mut(device).and_then(|found| found.modules.get_mut(id))
        {
            module.accepted_messages += 1;
        }
    }

    /// The check behind HTTP messages and MQTT sessions.
    pub(crate) fn admit_module(
        &mut self,
        device: &str,
        id: &str,
        token: Option<&str>,
        now: u64,
    ) -> Result<(), TokenError> {
        let verdict = match self.devices.get(device) {
            None => Err(TokenError::Principal("no such device")),
            Some(found) if !found.enabled => Err(TokenError::Principal("the device is disabled")),
            Some(found) => match found.modules.get(id) {
                None => Err(TokenError::Principal("no such module")),
                Some(module) => verify(
                    token,
                    &Expected {
                        audience: &format!("{}/devices/{device}/modules/{id}", found.hub),
                        keys: &module.credential.keys(),
                        key_name: None,
                        now,
                    },
                ),
            },
        };
        verdict.inspect_err(|refusal| self.note_refusal(format!("module {device}/{id}: {refusal}")))
    }

    fn admit_device(&mut self, device: &str, exchange: &Exchange<'_>) -> Result<(), Answer> {
        if exchange.api_version().is_none() {
            return Err(no_version());
        }
        let verdict = match self.devices.get(device) {
            None => Err(TokenError::Principal("no such device")),
            Some(found) if !found.enabled => Err(TokenError::Principal("the device is disabled")),
            Some(found) => {
                let audience = format!("{}/devices/{device}", found.hub);
                found.proof.check(device, &audience, None, exchange)
            }
        };
        verdict.map_err(|refusal| {
            self.note_refusal(format!("device {device}: {refusal}"));
            unauthorized(&refusal)
        })
    }

    fn module_get(&self, device: &str, id: &str, exchange: &Exchange<'_>) -> Answer {
        let Some(module) = self.devices.get(device).and_then(|found| found.modules.get(id)) else {
            return no_module();
        };
        if exchange.header(header::IF_NONE_MATCH).is_some_and(|condition| module.matches(condition))
        {
            return Answer {
                etag: Some(module.etag.clone()),
                ..Answer::empty(StatusCode::NOT_MODIFIED)
            };
        }
        module.answer(device, id)
    }

    fn module_put(&mut self, device: &str, id: &str, exchange: &Exchange<'_>) -> Answer {
        let body = match exchange.json::<ModuleBody>() {
            Ok(body) => body,
            Err(text) => return error(StatusCode::BAD_REQUEST, "ArgumentInvalid", &text),
        };
        if body.module_id.as_deref() != Some(id) || body.device_id.as_deref() != Some(device) {
            return error(
                StatusCode::BAD_REQUEST,
                "ArgumentInvalid",
                "moduleId or deviceId differs from the path",
            );
        }
        if let Err(fault) = check_id(id) {
            return error(StatusCode::BAD_REQUEST, "ArgumentInvalid", &fault.to_string());
        }
        let (serial, limit) = (self.next_serial(), self.module_limit);
        let Some(Device { modules, .. }) = self.devices.get_mut(device) else { return no_module() };
        let old = modules.get(id);
        // Without a condition, PUT creates; with If-Match, it updates.
        match (exchange.header(header::IF_MATCH), exchange.header(header::IF_NONE_MATCH), old) {
            (Some(_), _, None) => return no_module(),
            (Some(condition), _, Some(module)) if !module.matches(condition) => {
                return precondition("the ETag differs");
            }
            (None, Some(condition), Some(module)) if module.matches(condition) => {
                return precondition("the module exists");
            }
            (None, _, Some(_)) => {
                return error(
                    StatusCode::CONFLICT,
                    "ModuleAlreadyExistsOnDevice",
                    "the module exists; update it with If-Match",
                );
            }
            (None, _, None) if modules.len() >= limit => {
                let text = format!("the device has {limit} modules");
                return error(StatusCode::CONFLICT, "TooManyModulesOnDevice", &text);
            }
            _ => {}
        }
        let credential = match credential(body.authentication, old.map(|module| &module.credential))
        {
            Ok(credential) => credential,
            Err(text) => return error(StatusCode::BAD_REQUEST, "ArgumentInvalid", &text),
        };
        let etag = format!("AAAA{serial:08x}=");
        // Like the real one: a number of 100 ns steps, here made unique by the serial.
        let generation = old.map_or_else(
            || format!("{}", exchange.now.saturating_mul(10_000_000).saturating_add(serial)),
            |module| module.generation.clone(),
        );
        let accepted_messages = old.map_or(0, |module| module.accepted_messages);
        let module =
            Module { generation, etag, managed_by: body.managed_by, credential, accepted_messages };
        let answer = module.answer(device, id);
        modules.insert(id.to_owned(), module);
        answer
    }

    fn module_delete(&mut self, device: &str, id: &str, exchange: &Exchange<'_>) -> Answer {
        let Some(device) = self.devices.get_mut(device) else { return no_module() };
        match (device.modules.get(id), exchange.header(header::IF_MATCH)) {
            (None, _) => no_module(),
            (Some(_), None) => precondition("If-Match is required"),
            (Some(module), Some(condition)) if !module.matches(condition) => {
                precondition("the ETag differs")
            }
            (Some(_), Some(_)) => {
                device.modules.remove(id);
                Answer::empty(StatusCode::NO_CONTENT)
            }
        }
    }
}

impl Module {
    /// Returns true if `condition` is `*`, or lists this module's entity tag, quoted or
    /// not.
    fn matches(&self, condition: &str) -> bool {
        condition
            .split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.trim_matches('"') == self.etag)
    }

    fn answer(&self, device: &str, id: &str) -> Answer {
        Answer {
            etag: Some(self.etag.clone()),
            ..Answer::json(StatusCode::OK, self.body(device, id))
        }
    }

    fn body(&self, device: &str, id: &str) -> Value {
        let authentication = match &self.credential {
            Credential::None => json!({ "type": "none" }),
            Credential::Keys { primary, secondary, .. } => json!({
                "type": "sas",
                "symmetricKey": { "primaryKey": primary.expose_base64(), "secondaryKey": secondary.expose_base64() },
            }),
            Credential::X509 { kind, thumbprint } => {
                json!({ "type": kind, "x509Thumbprint": thumbprint })
            }
        };
        let mut body = json!({
            "moduleId": id, "deviceId": device, "generationId": self.generation, "etag": self.etag,
            "connectionState": "Disconnected", "authentication": authentication,
        });
        if let Some(managed_by) = &self.managed_by {
            body["managedBy"] = Value::String(managed_by.clone());
        }
        body
    }
}

/// Returns the credential that the hub makes of `authentication`. Keys that are not sent
/// are kept from before, or made up.
fn credential(
    sent: Option<Authentication>,
    old: Option<&Credential>,
) -> Result<Credential, String> {
    let Some(sent) = sent else {
        return old.map_or_else(|| keys(SymmetricKey::default(), None), |old| Ok(old.clone()));
    };
    match sent.kind.as_deref() {
        None | Some("sas") => keys(sent.symmetric_key.unwrap_or_default(), old),
        Some("none") => Ok(Credential::None),
        Some(kind @ ("x509" | "selfSigned" | "certificateAuthority")) => {
            Ok(Credential::X509 { kind: kind.to_owned(), thumbprint: sent.x509_thumbprint })
        }
        Some(_) => Err(
            "authentication.type is not one of sas, x509, selfSigned, certificateAuthority, none"
                .to_owned(),
        ),
    }
}

fn keys(sent: SymmetricKey, old: Option<&Credential>) -> Result<Credential, String> {
    match (sent.primary_key, sent.secondary_key, old) {
        (Some(primary), Some(secondary), _) => {
            let key = |text: &str| {
                Key::from_base64(text).map_err(|error| format!("symmetricKey: {error}"))
            };
            Ok(Credential::Keys {
                primary: key(&primary)?,
                secondary: key(&secondary)?,
                given: true,
            })
        }
        (None, None, Some(kept @ Credential::Keys { .. })) => Ok(kept.clone()),
        (None, None, _) => {
            Ok(Credential::Keys { primary: random_key()?, secondary: random_key()?, given: false })
        }
        _ => Err("symmetricKey needs both keys".to_owned()),
    }
}

pub(crate) fn random_key() -> Result<Key, String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| "no randomness".to_owned())?;
    Key::new(bytes.to_vec()).map_err(|error| error.to_string())
}

/// The hub's error body.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Answer {
    Answer::json(status, json!({ "Message": format!("ErrorCode:{code};{message}") }))
}

fn unauthorized(refusal: &TokenError) -> Answer {
    error(StatusCode::UNAUTHORIZED, "IotHubUnauthorizedAccess", &refusal.to_string())
}

fn no_version() -> Answer {
    error(StatusCode::BAD_REQUEST, "InvalidProtocolVersion", "api-version is missing or not one")
}

fn no_module() -> Answer {
    error(StatusCode::NOT_FOUND, "ModuleNotFound", "no such module")
}

fn precondition(message: &str) -> Answer {
    error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", message)
}
