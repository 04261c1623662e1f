//! Enrolment over Secure Transport (RFC 7030, as RFC 8951 clarifies it), as a client:
//! asks an EST server for its CA's certificates, for the attributes that it wants in
//! requests, and for certificates.
//!
//! What decides is pure: requests are values ([`Csr`]), answers are judged by functions
//! over their bytes. [`Est`] does the I/O. Every certificate that is handed out was
//! checked: it is of the key that the request is of, it is valid now, and it chains to
//! the trusted roots.
//!
//! Touches: TCP connections to the server, or the proxy, that it is told; nothing else.
#![forbid(unsafe_code)]

mod answer;
mod attributes;
mod chain;
mod client;
mod csr;
mod error;
mod unrooted;

pub use attributes::CsrAttributes;
pub use client::{Basic, Enrolment, Est, EstUrl, UrlError};
pub use csr::{Csr, CsrError, Profile, request_key};
pub use error::{AnswerError, EstError};
pub use unrooted::checked_without_roots;
