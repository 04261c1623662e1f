//! The certificate by which the device proves who it is: `identity_cert` and
//! `identity_pk` in `[provisioning.attestation]` and `[provisioning.authentication]`.

use edgekeep_core::names::DEVICE_KEY;
use edgekeep_core::settings::{DeviceCredential, IssuanceMethod};

use crate::credentials::Wanted;
use crate::diagnostic::Code;
use crate::document::{Text, View};
use crate::translate::Draft;

/// Id of the key of a renewed certificate until it takes the old one's place.
const NEXT_KEY: &str = "device-id-temp";

impl Draft<'_> {
    /// Reads the device's certificate and key: from files, a token or the TPM, or issued
    /// for a key that keyd makes. `name` is the device's, for a certificate that is
    /// issued without a name of its own.
    pub(crate) fn device_certificate(
        &mut self,
        root: &View<'_>,
        view: &View<'_>,
        name: Option<&str>,
    ) -> Option<DeviceCredential> {
        let credential = DeviceCredential::X509 { cert: DEVICE_KEY.cert(), key: DEVICE_KEY.key() };
        if let Some(options) = view.table("identity_cert") {
            let choice = "an `identity_cert` that is issued";
            self.only(view, choice, &["method", "registration_id", "identity_cert"]);
            self.issued_device_certificate(root, &options, name)?;
            return Some(credential);
        }
        let choice = "method = \"x509\"";
        self.only(view, choice, &["method", "registration_id", "identity_cert", "identity_pk"]);
        let remedy = "identity_cert = \"file:///..\" and identity_pk, or identity_cert = { method = \"est\" }";
        let Some(cert) = view.text("identity_cert") else {
            return self.absent(view, "identity_cert", remedy);
        };
        let Some(key) = view.text("identity_pk") else {
            let remedy = "the certificate's private key: a file:, pkcs11: or tpm: URI";
            return self.absent(view, "identity_pk", remedy);
        };
        self.device_pair(view, &cert, &key)?;
        Some(credential)
    }

    /// A certificate and its key that exist.
    fn device_pair(&mut self, view: &View<'_>, cert: &Text<'_>, key: &Text<'_>) -> Option<()> {
        let path = view.key("identity_cert");
        let certificates = self.preload_cert(Some(DEVICE_KEY.cert()), &path, cert)?;
        let key_path = view.key("identity_pk");
        let public = self.preload_key(DEVICE_KEY.key(), &key_path, key, &view.span, Wanted::Pair);
        self.matching_pair(&path, cert, &certificates, public.as_deref());
        Some(())
    }

    fn issued_device_certificate(
        &mut self,
        root: &View<'_>,
        options: &View<'_>,
        name: Option<&str>,
    ) -> Option<()> {
        let mut issuance = self.issuance(options, None, &[DEVICE_KEY.as_str()])?;
        if issuance.method == IssuanceMethod::LocalCa {
            self.needs_local_ca(root, options);
        }
        if issuance.common_name.is_none() {
            let Some(name) = name else {
                let remedy = "the name in the certificate, or `registration_id`";
                return self.absent(options, "common_name", remedy);
            };
            if name.chars().count() > 64 {
                let message =
                    "a common name has at most 64 characters, and the device's id has more";
                let (code, path) = (Code::BadValue, options.key("common_name"));
                let remedy = "give `common_name`, or a shorter id";
                self.report.error_with(code, &options.span, path, message, remedy);
                return None;
            }
            issuance.common_name = Some(name.to_owned());
        }
        if issuance.renewal.is_some_and(|renewal| renewal.rotate_key) {
            self.identityd_keys.push(NEXT_KEY);
        }
        self.identityd.cert_issuance.insert(DEVICE_KEY.cert(), issuance);
        Some(())
    }
}
