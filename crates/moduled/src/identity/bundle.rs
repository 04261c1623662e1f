//! Bundles of certificates on their way to modules.

use edgekeep_core::credentials::{Limits, Purpose, pem_of, read_certificates};

/// The certificates of a bundle as strict PEM; `None` if there are none. The certificates
/// service may be one that passes on files as they are, with whatever an operator put
/// into them: nothing but certificates goes on from here. `what` names the bundle in the
/// log.
pub(crate) fn written_anew(what: &'static str, pem: &str) -> Option<String> {
    let file = read_certificates(pem.as_bytes(), &Limits::FILE);
    if let Some(finding) = file.findings.gravest() {
        let remedy = finding.fault.remedy(Purpose::Certificates);
        tracing::warn!("left out of the {what}: {finding}; {remedy}");
    }
    (!file.certificates.is_empty()).then(|| pem_of(&file.certificates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_certificates_goes_to_modules_whatever_the_service_answers() {
        let made = rcgen::generate_simple_self_signed(vec!["root".to_owned()]).unwrap();
        let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let glued = format!("{key}{}{pem}", pem.trim_end());
        assert_eq!(written_anew("trust bundle", &glued), Some(pem));
        assert_eq!(written_anew("trust bundle", &key), None);
        assert_eq!(written_anew("trust bundle", ""), None);
    }
}
