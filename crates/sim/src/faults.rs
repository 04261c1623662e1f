//! Faults that the simulator shows on purpose.

use serde::{Deserialize, Serialize};

/// Longest delay of one answer, in milliseconds.
pub const DELAY_LIMIT_MS: u64 = 600_000;

/// The faults in force. The default is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Faults {
    /// For calls to the provisioning service.
    pub dps: RouteFaults,
    /// For calls to the hub: registry, messages, MQTT sessions.
    pub hub: RouteFaults,
    /// For calls to the EST server.
    pub est: EstFaults,
    /// Seconds by which the service's clock is ahead of this machine's; negative: behind.
    /// It moves the `Date` header and the judgement whether a token has expired.
    pub clock_offset_sec: i64,
    /// Polls of each registration that answer `assigning` before it is assigned.
    pub polls_assigning: u32,
    /// `Retry-After` of the provisioning service beside 202, in seconds; absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_after_sec: Option<u32>,
    /// Message with which each registration ends in `failed`; absent: this fault is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuse_registration: Option<String>,
    /// A fault of the certificates that the provisioning service issues with a
    /// registration; absent: they are good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued: Option<IssuedFault>,
    /// Validity of these certificates, in seconds; absent: 30 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_validity_sec: Option<u32>,
}

/// A fault of the certificates that the provisioning service issues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum IssuedFault {
    /// A certificate of another key.
    WrongKey,
    /// A certificate that names another device.
    WrongName,
    /// A certificate that ended yesterday.
    Expired,
    /// A certificate that begins tomorrow.
    NotYetValid,
    /// A certificate that the others did not issue.
    WrongChain,
    /// A certificate of a CA.
    Authority,
    /// The device's own certificate alone.
    LeafAlone,
    /// Text that is no base64.
    NotBase64,
    /// Base64 of no certificate.
    Junk,
    /// A certificate in PEM.
    Pem,
    /// A certificate of a megabyte.
    Oversized,
    /// A hundred certificates.
    Many,
    /// No list.
    NoList,
    /// A good certificate, which the hub does not take: it does not know the CA yet.
    UnknownToHub,
}

/// Faults of one class of routes. They are judged before the request is: delay first,
/// then drop or status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RouteFaults {
    /// Waits this long before anything else, in milliseconds; at most [`DELAY_LIMIT_MS`].
    pub delay_ms: u64,
    /// Answers with this status (400 to 599) instead of doing anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// `Retry-After` beside that status, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_sec: Option<u32>,
    /// Closes the connection without an answer.
    pub drop: bool,
    /// Answers 200 with something that is no answer to the call.
    pub garbage: bool,
    /// The request is carried out before the fault is answered: the client does not learn
    /// that it worked.
    pub after_effect: bool,
    /// Calls that are still to be hit; absent: all until changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

/// Faults of the EST server, beside those of its routes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct EstFaults {
    /// For all its routes.
    pub route: RouteFaults,
    /// An answer in place of a good one to `simpleenroll` and `simplereenroll`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enroll: Option<EstAnswer>,
    /// An answer in place of a good one to `cacerts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cacerts: Option<EstAnswer>,
    /// Requests for certificates that are still to be answered with 202.
    pub pending: u32,
    /// `Retry-After` beside 202, in seconds; absent: the header is not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_sec: Option<u32>,
    /// Validity of the certificates that it issues, in seconds; absent: 30 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validity_sec: Option<u32>,
}

/// A wrong answer of an EST server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum EstAnswer {
    /// A page for people.
    Html,
    /// The right bytes under another media type.
    OtherType,
    /// A certificate of another key.
    WrongKey,
    /// A certificate that ended yesterday.
    Expired,
    /// A certificate that begins tomorrow.
    NotYetValid,
    /// A certificate of a CA that nobody knows.
    WrongChain,
    /// A list without a certificate.
    Empty,
    /// A list that is signed.
    Signed,
    /// Base64 of no DER.
    Junk,
    /// No base64.
    NotBase64,
    /// A body of several megabytes.
    Oversized,
    /// A body that never ends.
    Endless,
    /// A body of which a byte comes now and then.
    Slow,
    /// A body that ends in its middle.
    Cut,
    /// 302 to another place.
    Redirect,
}

/// Failure to take faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FaultsError {
    /// A status that is no error.
    #[error("status {0} is not one of 400 to 599")]
    Status(u16),
    /// A delay that is too long.
    #[error("a delay of {0} ms is longer than {DELAY_LIMIT_MS} ms")]
    Delay(u64),
}

impl Faults {
    /// Checks the bounds.
    ///
    /// # Errors
    /// A status that is no error, or a delay that is too long.
    pub fn check(&self) -> Result<(), FaultsError> {
        for class in [&self.dps, &self.hub, &self.est.route] {
            if let Some(status) = class.status.filter(|status| !(400..600).contains(status)) {
                return Err(FaultsError::Status(status));
            }
            if class.delay_ms > DELAY_LIMIT_MS {
                return Err(FaultsError::Delay(class.delay_ms));
            }
        }
        Ok(())
    }

    /// The service's clock when this machine's shows `now`, in seconds since 1970.
    pub(crate) fn clock(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.clock_offset_sec)
    }
}

impl RouteFaults {
    /// A status for every call.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// Connections closed without an answer.
    #[must_use]
    pub fn dropped() -> Self {
        Self { drop: true, ..Self::default() }
    }

    /// Answers that are none.
    #[must_use]
    pub fn garbage() -> Self {
        Self { garbage: true, ..Self::default() }
    }

    /// The same fault for the next `times` calls only.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// The faults that hit the call that has just come in; counts it.
    pub(crate) fn hit(&mut self) -> Self {
        match &mut self.times {
            None => self.clone(),
            Some(0) => Self::default(),
            Some(left) => {
                *left -= 1;
                self.clone()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_for_two_calls_hits_exactly_two() {
        let mut faults = RouteFaults::status(500).times(2);
        let hits: Vec<_> = (0..4).map(|_| faults.hit().status).collect();
        assert_eq!(hits, [Some(500), Some(500), None, None]);
        assert_eq!(RouteFaults::dropped().hit(), RouteFaults::dropped());
    }

    #[test]
    fn faults_out_of_bounds_are_refused() {
        let status = Faults { hub: RouteFaults::status(200), ..Faults::default() };
        assert_eq!(status.check(), Err(FaultsError::Status(200)));
        let slow = RouteFaults { delay_ms: DELAY_LIMIT_MS + 1, ..RouteFaults::default() };
        assert_eq!(
            Faults { dps: slow, ..Faults::default() }.check(),
            Err(FaultsError::Delay(DELAY_LIMIT_MS + 1))
        );
    }

    #[test]
    fn a_misspelt_fault_is_an_error_and_not_silence() {
        let error = serde_json::from_str::<Faults>(r#"{"hub":{"delayMS":3}}"#).unwrap_err();
        assert!(error.to_string().contains("delayMS"), "{error}");
    }
}
