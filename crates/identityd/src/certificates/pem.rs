//! PEM, as the certificates API takes and answers it.

use edgekeep_core::credentials::{Certificate, Limits, Purpose, read_certificates};

use super::IssueError;

/// The certificates in `text`. An API's caller can be told: anything else in it is an
/// error.
pub(super) fn certificates(text: &str) -> Result<Vec<Certificate>, IssueError> {
    let file = read_certificates(text.as_bytes(), &Limits::FILE);
    match file.findings.gravest() {
        Some(finding) => Err(IssueError::Pem {
            what: format!("{finding}; {}", finding.fault.remedy(Purpose::Certificates)),
        }),
        None => Ok(file.certificates),
    }
}

/// The one block of a certificate request.
pub(super) fn request(text: &str) -> Result<Vec<u8>, IssueError> {
    let bad = |what: &str| IssueError::Request { what: what.to_owned() };
    let (_, block) =
        x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|_| bad("it is not PEM"))?;
    // The second spelling is what old tools write.
    if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
        return Err(bad("the PEM block is no certificate request"));
    }
    Ok(block.contents)
}

#[cfg(test)]
mod tests {
    use edgekeep_core::credentials::encode_pem;

    use super::*;

    #[test]
    fn only_certificates_pass_as_certificates() {
        let key = encode_pem("PRIVATE KEY", &[1, 2, 3]);
        let good = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap().cert.pem();
        assert_eq!(certificates(&good).unwrap().len(), 1);
        for (text, fault) in [
            ("", "the file is empty"),
            ("hello", "nothing in the file is PEM or DER"),
            (&format!("{good}{key}"), "block 2: it is a private key"),
            (
                &encode_pem("CERTIFICATE", &[1, 2, 3]),
                "line 1, block 1: what stands in it is damaged",
            ),
        ] {
            let error = certificates(text).unwrap_err();
            assert!(error.to_string().contains(fault), "{text:?}: {error}");
        }
    }
}
