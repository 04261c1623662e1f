//! Judges answers: functions over status, headers and body.

use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use edgekeep_core::credentials::{Certificate, read_certs_only};
use edgekeep_core::foreign_text::{MESSAGE_LIMIT, cleaned};
use http::{HeaderMap, StatusCode, header};
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::attributes::CsrAttributes;
use crate::error::AnswerError;

/// Largest answer that is read, in bytes. A chain of ten certificates has about 20 KiB.
pub(crate) const ANSWER_LIMIT: usize = 256 * 1024;
/// Most certificates of one answer.
pub(crate) const CERTIFICATES: usize = 32;
/// Wait of a server that answers "later" and not when.
const USUAL_WAIT: Duration = Duration::from_secs(3600);
/// Longest wait that a server is taken to ask for: a request that a person must approve.
const LONGEST_WAIT: Duration = Duration::from_secs(7 * 86_400);

const PKCS7: &str = "application/pkcs7-mime";
const ATTRIBUTES: &str = "application/csrattrs";

/// Base64 as servers write it, with its padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(false),
);

/// An answer, read whole.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// The meaning of a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    Later(Duration),
    Nothing,
    Credentials(String),
    NotFound,
    Redirect,
    Refused(String),
    Service { message: String, retry_after: Option<Duration> },
    Unexpected,
}

impl Answer {
    fn text(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Judges the status alone. `now` is this device's clock.
    pub(crate) fn verdict(&self, now: OffsetDateTime) -> Verdict {
        match self.status.as_u16() {
            200 => Verdict::Done,
            202 => Verdict::Later(self.retry_after(now).unwrap_or(USUAL_WAIT)),
            204 => Verdict::Nothing,
            300..=399 => Verdict::Redirect,
            401 | 403 => Verdict::Credentials(self.message()),
            404 => Verdict::NotFound,
            429 | 500..=599 => {
                let (message, retry_after) = (self.message(), self.retry_after(now));
                Verdict::Service { message, retry_after }
            }
            400..=499 => Verdict::Refused(self.message()),
            _ => Verdict::Unexpected,
        }
    }

    /// `Retry-After`, in seconds or as a date (RFC 9110, section 10.2.3), at most a week.
    fn retry_after(&self, now: OffsetDateTime) -> Option<Duration> {
        let asked = self.text(header::RETRY_AFTER)?.trim();
        if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
            // A number too large for a number is a very long time all the same.
            let seconds = Duration::from_secs(asked.parse().unwrap_or(u64::MAX));
            return Some(seconds.min(LONGEST_WAIT));
        }
        // Counted from the server's own clock, if it says what that shows.
        let until = date(asked)?;
        let from = self.text(header::DATE).and_then(date).unwrap_or(now);
        let wait = Duration::try_from(until - from).unwrap_or(Duration::ZERO);
        Some(wait.min(LONGEST_WAIT))
    }

    /// The server's own words, for people. A page of markup says less than the status.
    fn message(&self) -> String {
        let kind = self.content_type();
        let body = &self.body[..self.body.len().min(4 * MESSAGE_LIMIT)];
        let text = String::from_utf8_lossy(body);
        if kind == "text/plain" || kind == "application/json" || kind.is_empty() {
            let text = cleaned(&text, MESSAGE_LIMIT);
            if !text.is_empty() && !text.starts_with('<') {
                return text;
            }
        }
        "no message".to_owned()
    }

    /// The media type without parameters, in small letters.
    fn content_type(&self) -> String {
        let text = self.text(header::CONTENT_TYPE).unwrap_or_default();
        text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    fn expect_type(&self, expected: &'static str) -> Result<(), AnswerError> {
        let found = self.content_type();
        if found == expected {
            return Ok(());
        }
        let found =
            if found.is_empty() { "of no stated type".to_owned() } else { cleaned(&found, 60) };
        Err(AnswerError::ContentType { found, expected })
    }

    /// Reads certificates out of the body.
    pub(crate) fn certificates(&self) -> Result<Vec<Certificate>, AnswerError> {
        self.expect_type(PKCS7)?;
        Ok(read_certs_only(&self.decoded()?, CERTIFICATES)?)
    }

    /// Reads the attributes that the server wants in requests.
    pub(crate) fn attributes(&self) -> Result<CsrAttributes, AnswerError> {
        self.expect_type(ATTRIBUTES)?;
        CsrAttributes::from_der(&self.decoded()?).ok_or(AnswerError::Attributes)
    }

    /// The DER in the body: base64 with blanks anywhere, with PEM's lines around it, or
    /// the bytes themselves, as some servers send them.
    fn decoded(&self) -> Result<Vec<u8>, AnswerError> {
        if self.body.first() == Some(&0x30) && !self.body.is_ascii() {
            return Ok(self.body.clone());
        }
        // libest counts the end of a C string among the text.
        let body = self.body.strip_suffix(b"\0").unwrap_or(&self.body);
        let text = std::str::from_utf8(body).map_err(|_| AnswerError::Base64)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
        let digits: String = lines.flat_map(str::split_ascii_whitespace).collect();
        BASE64.decode(digits).map_err(|_| AnswerError::Base64)
    }
}

/// A date of HTTP (RFC 9110, section 5.6.7), in the form that is not obsolete.
fn date(text: &str) -> Option<OffsetDateTime> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    PrimitiveDateTime::parse(text, format).ok().map(PrimitiveDateTime::assume_utc)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-01-01 00:00:00 UTC);

    fn answer(status: u16, headers: &[(header::HeaderName, &str)], body: &[u8]) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers: headers.collect(), body: body.to_vec() }
    }

    #[test]
    fn a_server_says_when_to_come_again_in_seconds_or_by_a_date() {
        let wait =
            |headers: &[(header::HeaderName, &str)]| match answer(202, headers, b"").verdict(NOW) {
                Verdict::Later(wait) => wait.as_secs(),
                other => panic!("{other:?}"),
            };
        let after = |value| wait(&[(header::RETRY_AFTER, value)]);
        assert_eq!(after("3600"), 3600);
        assert_eq!(after("0"), 0);
        assert_eq!(after("99999999999999999999999"), 7 * 86_400);
        assert_eq!(after("Thu, 01 Jan 2026 00:10:00 GMT"), 600);
        assert_eq!(after("Wed, 31 Dec 2025 00:10:00 GMT"), 0);
        assert_eq!(after("soon"), 3600);
        assert_eq!(after("-5"), 3600);
        assert_eq!(wait(&[]), 3600);
        // By the server's clock, which is a day ahead.
        let ahead = [
            (header::DATE, "Fri, 02 Jan 2026 00:00:00 GMT"),
            (header::RETRY_AFTER, "Fri, 02 Jan 2026 00:01:00 GMT"),
        ];
        assert_eq!(wait(&ahead), 60);
    }

    #[test]
    fn each_status_has_one_meaning() {
        let said = |status| answer(status, &[], b"no such day").verdict(NOW);
        assert_eq!(said(200), Verdict::Done);
        assert_eq!(said(204), Verdict::Nothing);
        assert_eq!(said(302), Verdict::Redirect);
        assert_eq!(said(401), Verdict::Credentials("no such day".to_owned()));
        assert_eq!(said(404), Verdict::NotFound);
        assert_eq!(said(400), Verdict::Refused("no such day".to_owned()));
        let message = "no such day".to_owned();
        assert_eq!(said(503), Verdict::Service { message, retry_after: None });
        assert_eq!(said(206), Verdict::Unexpected);
    }

    #[test]
    fn a_page_for_people_is_not_repeated() {
        for body in ["<html><b>Sign in</b>", "  <!DOCTYPE html>"] {
            let said = answer(403, &[], body.as_bytes()).verdict(NOW);
            assert_eq!(said, Verdict::Credentials("no message".to_owned()));
        }
        let html = answer(200, &[(header::CONTENT_TYPE, "text/html; charset=utf-8")], b"<html>");
        let error = html.certificates().unwrap_err().to_string();
        assert_eq!(error, "it is text/html, not application/pkcs7-mime");
    }

    #[test]
    fn a_body_that_is_no_list_of_certificates_is_refused_with_its_reason() {
        let kind = [(header::CONTENT_TYPE, "Application/PKCS7-mime; smime-type=certs-only")];
        for (body, reason) in [
            (&b"not base64!"[..], "its body is not base64"),
            (b"\xff\xfe", "its body is not base64"),
            (b"MAA=", "it is not PKCS#7 in DER"),
            (b"-----BEGIN PKCS7-----\nMAA\n-----END PKCS7-----\n", "it is not PKCS#7 in DER"),
            (b"MIAG", "in BER with indefinite lengths"),
            (b"\x30\x82\xff\xff", "it is not PKCS#7 in DER"),
            (b"", "it is not PKCS#7 in DER"),
        ] {
            let error = answer(200, &kind, body).certificates().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_judged(
            status in 200u16..600,
            kind in "[ -~]{0,40}",
            body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let headers =
                [(header::CONTENT_TYPE, kind.as_str()), (header::RETRY_AFTER, kind.as_str())];
            let answer = answer(status, &headers, &body);
            let _ = answer.verdict(NOW);
            prop_assert!(answer.certificates().is_err());
            let pkcs7 = Answer {
                headers: [(header::CONTENT_TYPE, PKCS7.parse().unwrap())].into_iter().collect(),
                ..answer
            };
            prop_assert!(pkcs7.certificates().is_err());
        }
    }
}
