//! The routes under `/admin`, for whoever runs the simulator: no token, but only from a
//! loopback address.
//!
//! | route | does |
//! |---|---|
//! | GET `/admin/state` | [`State`](crate::State) |
//! | GET, PUT `/admin/faults` | [`Faults`]; a PUT replaces them all, what is left out is no fault |
//! | PUT `/admin/enrolments/{id}` | body: [`Enrolment`] without `registrationId` |
//! | DELETE `/admin/enrolments/{id}` | the device of it stays |
//! | PUT, DELETE `/admin/groups/{id}` | body: [`EnrolmentGroup`] without `groupId`; the devices of it stay |
//! | PUT `/admin/devices/{id}` | body: [`PresetDevice`] without `deviceId`; modules of a known device stay |
//! | DELETE `/admin/devices/{id}`, DELETE `/admin/devices/{id}/modules/{m}` | as an operator would at the hub |
//! | DELETE `/admin/calls` | sets all counts to 0 |

use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::exchange::{Answer, Exchange};
use crate::faults::Faults;
use crate::world::{Calls, Enrolment, EnrolmentGroup, PresetDevice, World};

impl World {
    pub(crate) fn admin(
        &mut self,
        method: &Method,
        path: &[String],
        exchange: &Exchange<'_>,
    ) -> Answer {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let done = match (method, path.as_slice()) {
            (&Method::GET, ["state"]) => return shown(&self.state()),
            (&Method::GET, ["faults"]) => return shown(&self.faults),
            (&Method::PUT, ["faults"]) => exchange.json::<Faults>().and_then(|faults| {
                faults.check().map_err(|error| error.to_string())?;
                self.faults = faults;
                Ok(true)
            }),
            (&Method::PUT, ["enrolments", id]) => {
                with_id::<Enrolment>(exchange, "registrationId", id).and_then(|enrolment| {
                    self.enrol(enrolment).map(|()| true).map_err(|error| error.to_string())
                })
            }
            (&Method::PUT, ["devices", id]) => with_id::<PresetDevice>(exchange, "deviceId", id)
                .and_then(|device| {
                    self.add_device(device).map(|()| true).map_err(|error| error.to_string())
                }),
            (&Method::PUT, ["groups", id]) => with_id::<EnrolmentGroup>(exchange, "groupId", id)
                .and_then(|group| {
                    self.enrol_group(group).map(|()| true).map_err(|error| error.to_string())
                }),
            (&Method::DELETE, ["groups", id]) => Ok(self.groups.remove(*id).is_some()),
            (&Method::DELETE, ["enrolments", id]) => Ok(self.enrolments.remove(*id).is_some()),
            (&Method::DELETE, ["devices", id]) => Ok(self.devices.remove(*id).is_some()),
            (&Method::DELETE, ["devices", id, "modules", module]) => Ok(self
                .devices
                .get_mut(*id)
                .is_some_and(|device| device.modules.remove(*module).is_some())),
            (&Method::DELETE, ["calls"]) => {
                self.calls = Calls::default();
                Ok(true)
            }
            _ => Ok(false),
        };
        match done {
            Ok(true) => Answer::empty(StatusCode::NO_CONTENT),
            Ok(false) => error(StatusCode::NOT_FOUND, "no such thing to administer"),
            Err(text) => error(StatusCode::BAD_REQUEST, &text),
        }
    }
}

fn with_id<T: DeserializeOwned>(
    exchange: &Exchange<'_>,
    member: &str,
    id: &str,
) -> Result<T, String> {
    let mut body: Value = exchange.json()?;
    let object = body.as_object_mut().ok_or("the body is not an object")?;
    object.insert(member.to_owned(), Value::String(id.to_owned()));
    serde_json::from_value(body).map_err(|error| format!("the body does not fit: {error}"))
}

fn shown<T: serde::Serialize>(value: &T) -> Answer {
    match serde_json::to_value(value) {
        Ok(value) => Answer::json(StatusCode::OK, value),
        Err(fault) => error(StatusCode::INTERNAL_SERVER_ERROR, &fault.to_string()),
    }
}

pub(crate) fn error(status: StatusCode, message: &str) -> Answer {
    Answer::json(status, json!({ "message": message }))
}
