//! PEM, as the certificates API takes and answers it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::IssueError;

/// Most certificates in one chain or bundle.
const CERTIFICATES: usize = 100;

/// One PEM block.
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::with_capacity(text.len() + text.len() / 64 + 64);
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

/// The certificates in `text`, each of which must be one that can be read; anything else in it is an error.
pub(super) fn certificates(text: &str) -> Result<Vec<Vec<u8>>, IssueError> {
    let bad = |what: &str| IssueError::Pem { what: what.to_owned() };
    let mut found = Vec::new();
    for block in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.map_err(|_| bad("not PEM"))?;
        if block.label != "CERTIFICATE" {
            return Err(bad("a block that is no certificate"));
        }
        match x509_parser::parse_x509_certificate(&block.contents) {
            Ok(([], _)) => found.push(block.contents),
            _ => return Err(bad("a certificate that cannot be read")),
        }
        if found.len() > CERTIFICATES {
            return Err(bad("too many certificates"));
        }
    }
    if found.is_empty() { Err(bad("no certificate")) } else { Ok(found) }
}

/// The one block of a certificate request.
pub(super) fn request(text: &str) -> Result<Vec<u8>, IssueError> {
    let bad = |what: &str| IssueError::Request { what: what.to_owned() };
    let (_, block) = x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|_| bad("it is not PEM"))?;
    // The second spelling is what old tools write.
    if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
        return Err(bad("the PEM block is no certificate request"));
    }
    Ok(block.contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_back_by_another_parser() {
        for length in [0, 1, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let text = encode("CERTIFICATE", &der);
            assert!(text.lines().all(|line| line.len() <= 64));
            assert_eq!(x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap().1.contents, der);
        }
    }

    #[test]
    fn only_certificates_pass_as_certificates() {
        let key = encode("PRIVATE KEY", &[1, 2, 3]);
        for (text, fault) in [
            ("", "no certificate"),
            ("hello", "no certificate"),
            (key.as_str(), "a block that is no certificate"),
            (encode("CERTIFICATE", &[1, 2, 3]).as_str(), "a certificate that cannot be read"),
        ] {
            let error = certificates(text).unwrap_err();
            assert!(error.to_string().contains(fault), "{text:?}: {error}");
        }
    }
}
