//! `[provisioning.operational_certificate]`: the certificate that the provisioning
//! service issues with a registration, for use at the hub.

use edgekeep_core::names::{OPERATIONAL, OPERATIONAL_NEXT};
use edgekeep_core::settings::{Issuance, IssuanceMethod, OperationalCertificate};

use crate::diagnostic::Code;
use crate::document::View;
use crate::translate::Draft;

/// Version of the service's interface that is asked for if none is named.
const USUAL_VERSION: &str = "2026-11-01";
/// First version that knows certificate requests.
const FIRST_VERSION: &str = "2025-07-01";
/// Longest common name, in characters (RFC 5280, appendix A.1). The certificate's is the
/// registration id.
const COMMON_NAME: usize = 64;

impl Draft<'_> {
    /// Reads the table. `name` is the registration id, where the configuration has it.
    pub(crate) fn operational_certificate(
        &mut self,
        provisioning: &View<'_>,
        name: Option<&str>,
    ) -> Option<OperationalCertificate> {
        let view = provisioning.table("operational_certificate")?;
        let Some(method) = view.text("method") else {
            return self.absent(&view, "method", "method = \"dps\"");
        };
        let methods = [("dps", IssuanceMethod::Dps)];
        let method = self.choice(&view.key("method"), &method, &methods)?;
        if name.is_some_and(|name| name.len() > COMMON_NAME) {
            let message =
                "the certificate names the registration id, which has more than 64 characters here";
            let (code, path) = (Code::BadValue, view.path.clone());
            let remedy = "use a shorter registration_id";
            self.report.error_with(code, &view.span, path, message, remedy);
            return None;
        }
        let api_version = match view.text("api_version") {
            Some(text) => self.checked(&view.key("api_version"), &text, version(text.text))?,
            None => USUAL_VERSION.to_owned(),
        };
        let mut policy = self.renewal_policy(&view, "auto_renew");
        let told = view.table("auto_renew").and_then(|renewal| renewal.boolean("rotate_key"));
        policy.rotate_key = told.unwrap_or(true);
        let renewal = Some(policy);
        let issuance = Issuance { method, common_name: None, expiry_days: None, renewal };
        self.identityd.cert_issuance.insert(OPERATIONAL.cert(), issuance);
        self.identityd_keys.extend([OPERATIONAL.as_str(), OPERATIONAL_NEXT.as_str()]);
        Some(OperationalCertificate { api_version })
    }
}

/// Reads a version of the interface: a date, perhaps of a preview.
fn version(text: &str) -> Result<String, String> {
    let date = text.strip_suffix("-preview").unwrap_or(text);
    let is_date = date.len() == 10
        && date.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    if !is_date {
        return Err("expected a date like \"2026-11-01\" or \"2026-11-02-preview\"".to_owned());
    }
    if date < FIRST_VERSION {
        return Err(format!("no version before {FIRST_VERSION} knows certificate requests"));
    }
    Ok(text.to_owned())
}
