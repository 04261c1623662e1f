//! Certificates that exist, in a file or as an object on a token.

use edgekeep_core::credentials::Certificate;
use edgekeep_core::hardware::SecretText;
use edgekeep_core::id::CertId;
use edgekeep_core::settings::PreloadedCert;
use edgekeep_hsm::uri::{ObjectType, Pkcs11Uri};

use crate::diagnostic::Code;
use crate::document::Text;
use crate::hardware::pkcs11_uri;
use crate::translate::Draft;
use crate::value;

impl Draft<'_> {
    /// A certificate that `uri` names. Returns those of a file; of one on a token nothing
    /// is known here.
    pub(crate) fn preload_cert(
        &mut self,
        id: Option<CertId>,
        path: &str,
        uri: &Text<'_>,
    ) -> Option<Vec<Certificate>> {
        if uri.text.starts_with("pkcs11:") {
            let (text, shown) = self.cert_on_token(path, uri)?;
            if let Some(id) = id {
                self.keyd.preloaded_certs.insert(id.clone(), text);
                self.identityd.preloaded_certs.insert(id, PreloadedCert::Token { token: shown });
            }
            return Some(Vec::new());
        }
        let file = value::file_uri(uri.text).map_err(|why| match uri.text.split_once(':') {
            Some(("file", _)) | None => why,
            Some(_) => {
                "expected file:///path/to/file, or pkcs11:object=NAME for a certificate on a token"
                    .to_owned()
            }
        });
        self.checked(path, uri, file)?;
        let certificates = self.certificate_file(path, uri).unwrap_or_default();
        if let Some(id) = id {
            let file = PreloadedCert::File(value::plain_file_uri(uri.text));
            self.identityd.preloaded_certs.insert(id, file);
        }
        Some(certificates)
    }

    /// The URI of a certificate that keyd reads from a token: for keyd, and without a PIN
    /// for identityd.
    fn cert_on_token(&mut self, path: &str, text: &Text<'_>) -> Option<(SecretText, String)> {
        let uri = self.checked(path, text, pkcs11_uri(text.text))?;
        if uri.object.class.is_some_and(|class| class != ObjectType::Cert) {
            let remedy = "write type=cert, or leave type= out";
            let message = "the URI names an object that is no certificate";
            self.report.error_with(Code::BadValue, text.span, path, message, remedy);
            return None;
        }
        self.object_on_token(path, text, &uri, "certificate")?;
        let shown = Pkcs11Uri { pin: None, module_path: None, ..uri };
        Some((text.text.into(), shown.to_string()))
    }
}
