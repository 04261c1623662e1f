//! One request and its answer as values, and which route a request is for.

use http::{HeaderMap, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A request whose body has been read.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: &'a str,
    pub(crate) body: &'a [u8],
    /// The service's clock, in seconds since 1970.
    pub(crate) now: u64,
    /// The certificates that the client proved to have the key of, the leaf first.
    pub(crate) client: &'a [CertificateDer<'static>],
}

impl Exchange<'_> {
    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The `api-version` of the query, if it has the form of one.
    pub(crate) fn api_version(&self) -> Option<&str> {
        let version = self
            .query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("api-version="))
            .next_back()?;
        let date = version.strip_suffix("-preview").unwrap_or(version).as_bytes();
        let dated = date.len() == 10
            && date
                .iter()
                .enumerate()
                .all(|(at, c)| if at == 4 || at == 7 { *c == b'-' } else { c.is_ascii_digit() });
        dated.then_some(version)
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_slice(self.body).map_err(|error| format!("the body does not fit: {error}"))
    }
}

/// An answer; the server adds `Date` and the content headers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) etag: Option<String>,
    pub(crate) retry_after_sec: Option<u32>,
    pub(crate) body: Option<Value>,
    /// A body that is no JSON, in place of `body`.
    pub(crate) raw: Option<Box<Raw>>,
}

/// A body that is sent as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) pace: Pace,
}

/// The way in which a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Whole,
    /// Again and again.
    Endless,
    /// A byte now and then.
    Slow,
    /// The first half; then the connection ends.
    Cut,
}

impl Answer {
    pub(crate) fn raw(raw: Raw) -> Self {
        Self { raw: Some(Box::new(raw)), ..Self::empty(StatusCode::OK) }
    }

    pub(crate) const fn empty(status: StatusCode) -> Self {
        Self { status, etag: None, retry_after_sec: None, body: None, raw: None }
    }

    pub(crate) const fn json(status: StatusCode, body: Value) -> Self {
        Self { status, etag: None, retry_after_sec: None, body: Some(body), raw: None }
    }
}

/// The destination of a request, with decoded segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Register {
        scope: String,
        registration: String,
    },
    Operation {
        scope: String,
        registration: String,
        operation: String,
    },
    Modules {
        device: String,
    },
    Module {
        device: String,
        module: String,
    },
    Messages {
        device: String,
        module: String,
    },
    /// With the label of a CA, and the name of the operation.
    Est {
        label: Option<String>,
        operation: String,
    },
    Admin(Vec<String>),
    Unknown,
}

/// Class of routes that faults apply to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Dps,
    Hub,
    Est,
    /// Never hit by a fault.
    Other,
}

impl Route {
    pub(crate) fn of(path: &str) -> Self {
        let mut segments = Vec::new();
        for segment in path.split('/').skip(1) {
            match percent_decode_str(segment).decode_utf8() {
                Ok(decoded) if !decoded.is_empty() => segments.push(decoded.into_owned()),
                _ => return Self::Unknown,
            }
        }
        let names: Vec<&str> = segments.iter().map(String::as_str).collect();
        match *names.as_slice() {
            ["admin", ..] => Self::Admin(segments.split_off(1)),
            ["devices", device, "modules"] => Self::Modules { device: device.to_owned() },
            ["devices", device, "modules", module] => {
                Self::Module { device: device.to_owned(), module: module.to_owned() }
            }
            ["devices", device, "modules", module, "messages", "events"] => {
                Self::Messages { device: device.to_owned(), module: module.to_owned() }
            }
            [".well-known", "est", operation] => {
                Self::Est { label: None, operation: operation.to_owned() }
            }
            [".well-known", "est", label, operation] => {
                Self::Est { label: Some(label.to_owned()), operation: operation.to_owned() }
            }
            [scope, "registrations", registration, "register"] => {
                Self::Register { scope: scope.to_owned(), registration: registration.to_owned() }
            }
            [scope, "registrations", registration, "operations", operation] => Self::Operation {
                scope: scope.to_owned(),
                registration: registration.to_owned(),
                operation: operation.to_owned(),
            },
            _ => Self::Unknown,
        }
    }

    pub(crate) const fn class(&self) -> Class {
        match self {
            Self::Register { .. } | Self::Operation { .. } => Class::Dps,
            Self::Modules { .. } | Self::Module { .. } | Self::Messages { .. } => Class::Hub,
            Self::Est { .. } => Class::Est,
            Self::Admin(_) | Self::Unknown => Class::Other,
        }
    }

    /// Counts the call. Calls to the admin routes are not counted.
    pub(crate) fn count(&self, method: &Method, calls: &mut crate::Calls) {
        let counter = match (self, method) {
            (Self::Admin(_), _) => return,
            (Self::Register { .. }, &Method::PUT) => &mut calls.dps_register,
            (Self::Operation { .. }, &Method::GET) => &mut calls.dps_operation,
            (Self::Modules { .. }, &Method::GET) => &mut calls.hub_list,
            (Self::Module { .. }, &Method::GET) => &mut calls.hub_get,
            (Self::Module { .. }, &Method::PUT) => &mut calls.hub_put,
            (Self::Module { .. }, &Method::DELETE) => &mut calls.hub_delete,
            (Self::Messages { .. }, &Method::POST) => &mut calls.hub_message,
            (Self::Est { operation, .. }, _) => match operation.as_str() {
                "cacerts" => &mut calls.est_cacerts,
                "simpleenroll" => &mut calls.est_enroll,
                "simplereenroll" => &mut calls.est_reenroll,
                _ => &mut calls.unknown,
            },
            _ => &mut calls.unknown,
        };
        *counter += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn segments_are_decoded_after_the_path_was_split() {
        let expected =
            Route::Module { device: "press 04".to_owned(), module: "$edgeAgent".to_owned() };
        assert_eq!(Route::of("/devices/press%2004/modules/%24edgeAgent"), expected);
        let tricky = Route::Module { device: "d".to_owned(), module: "a/../b".to_owned() };
        assert_eq!(Route::of("/devices/d/modules/a%2f..%2Fb"), tricky);
    }

    #[test]
    fn paths_that_only_resemble_a_route_are_unknown() {
        for path in [
            "",
            "/",
            "/devices",
            "/devices//modules",
            "/devices/d/modules/",
            "/devices/%ff/modules",
            "/x/registrations/r",
        ] {
            assert_eq!(Route::of(path), Route::Unknown, "{path}");
        }
    }

    #[test]
    fn an_api_version_has_the_form_of_a_date() {
        let version = |query| {
            let headers = HeaderMap::new();
            Exchange { headers: &headers, query, body: b"", now: 0, client: &[] }
                .api_version()
                .map(str::to_owned)
        };
        assert_eq!(
            version("api-version=2017-11-08-preview").as_deref(),
            Some("2017-11-08-preview")
        );
        assert_eq!(version("a=b&api-version=2021-06-01").as_deref(), Some("2021-06-01"));
        for query in [
            "",
            "api-version=",
            "api-version=latest",
            "api-version=2021-6-1x",
            "version=2021-06-01",
        ] {
            assert_eq!(version(query), None, "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_path_has_a_route(path in "\\PC{0,60}") {
            let _ = Route::of(&path).class();
        }
    }
}
