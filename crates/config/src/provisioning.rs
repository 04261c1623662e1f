//! `[provisioning]`: where the device's identity comes from.

use std::path::PathBuf;

use edgekeep_core::id::DeviceId;
use edgekeep_core::settings::{DeviceCredential, Provisioning};

use crate::credentials::Wanted;
use crate::diagnostic::Code;
use crate::document::View;
use crate::translate::{DEVICE_KEY, Draft};
use crate::value;

#[derive(Clone, Copy)]
enum Source {
    Manual,
    Dps,
    None,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    SymmetricKey,
    X509,
    Tpm,
}

impl Draft<'_> {
    /// Reads `[provisioning]`.
    pub(crate) fn provisioning(&mut self, root: &View<'_>) {
        let Some(view) = root.table("provisioning") else {
            if !root.has("provisioning") {
                let remedy = "add [provisioning] with source = \"dps\", \"manual\" or \"none\"";
                self.report.missing(&(0..0), "provisioning", remedy);
            }
            return;
        };
        let Some(source) = view.text("source") else {
            if !view.has("source") {
                let remedy = "add source = \"dps\", \"manual\" or \"none\"";
                self.report.missing(&view.span, "provisioning.source", remedy);
            }
            return;
        };
        let sources = [("manual", Source::Manual), ("dps", Source::Dps), ("none", Source::None)];
        let provisioning = match self.choice("provisioning.source", &source, &sources) {
            Some(Source::Manual) if view.has("connection_string") => {
                self.only(&view, "`connection_string`", &["source", "connection_string"]);
                self.connection_string(&view)
            }
            Some(Source::Manual) => {
                let allowed = ["source", "iothub_hostname", "device_id", "authentication"];
                self.only(&view, "source = \"manual\"", &allowed);
                self.manual(root, &view)
            }
            Some(Source::Dps) => {
                let allowed = [
                    "source",
                    "global_endpoint",
                    "id_scope",
                    "payload",
                    "attestation",
                    "operational_certificate",
                ];
                self.only(&view, "source = \"dps\"", &allowed);
                if let Some(entry) = root.entry("parent_hostname") {
                    let message = "a device with a parent cannot use the provisioning service";
                    let remedy = "use source = \"manual\", or leave `parent_hostname` out";
                    self.report.error_with(
                        Code::Conflict,
                        &entry.key_span,
                        "parent_hostname",
                        message,
                        remedy,
                    );
                }
                self.dps(root, &view)
            }
            Some(Source::None) => {
                self.only(&view, "source = \"none\"", &["source"]);
                None
            }
            None => None,
        };
        if let Some(provisioning) = provisioning {
            self.identityd.provisioning = provisioning;
        }
    }

    fn connection_string(&mut self, view: &View<'_>) -> Option<Provisioning> {
        const PATH: &str = "provisioning.connection_string";
        let text = view.text("connection_string")?;
        let parsed = self.checked(PATH, &text, value::connection_string(text.text))?;
        for part in parsed.ignored {
            let message = format!("the connection string has {part}, which is not used");
            let remedy = "a parent device is named by `parent_hostname` at the top level";
            self.report.notice(Code::NoEffect, text.span, PATH, message, Some(remedy));
        }
        let key: edgekeep_core::id::KeyId = DEVICE_KEY.parse().ok()?;
        self.symmetric_key(PATH, &text, parsed.key.expose())?;
        self.imported_keys.push((key.clone(), parsed.key));
        let credential = DeviceCredential::SymmetricKey { key };
        Some(Provisioning::Manual { hub: parsed.hub, device_id: parsed.device_id, credential })
    }

    fn manual(&mut self, root: &View<'_>, view: &View<'_>) -> Option<Provisioning> {
        let hub = match view.text("iothub_hostname") {
            Some(text) => {
                self.checked("provisioning.iothub_hostname", &text, value::host(text.text))
            }
            None => self.absent(
                view,
                "iothub_hostname",
                "the hub's host name, or `connection_string` for all in one",
            ),
        };
        let device_id = match view.text("device_id") {
            Some(text) => {
                let id = text.text.parse::<DeviceId>().map_err(|why| why.to_string());
                self.checked("provisioning.device_id", &text, id)
            }
            None => self.absent(view, "device_id", "the device's id at the hub"),
        };
        let credential = match view.table("authentication") {
            Some(authentication) => {
                let methods = [("sas", Method::SymmetricKey), ("x509", Method::X509)];
                let name = device_id.as_ref().map(|id: &DeviceId| id.as_str().to_owned());
                self.credential(root, &authentication, &methods, "device_id_pk", name.as_deref())
            }
            None => self.absent(
                view,
                "authentication",
                "authentication = { method = \"sas\", device_id_pk = { .. } }",
            ),
        };
        Some(Provisioning::Manual { hub: hub?, device_id: device_id?, credential: credential? })
    }

    fn dps(&mut self, root: &View<'_>, view: &View<'_>) -> Option<Provisioning> {
        let endpoint = match view.text("global_endpoint") {
            Some(text) => {
                self.checked("provisioning.global_endpoint", &text, value::https_url(text.text))
            }
            None => self.absent(
                view,
                "global_endpoint",
                "usually global_endpoint = \"https://global.azure-devices-provisioning.net\"",
            ),
        };
        let scope_id = match view.text("id_scope") {
            Some(text) => {
                self.checked("provisioning.id_scope", &text, value::dps_name(text.text, "id scope"))
            }
            None => self.absent(view, "id_scope", "the id scope of your provisioning service"),
        };
        let mut registration_id = None;
        let mut credential = None;
        match view.table("attestation") {
            Some(attestation) => {
                let methods = [
                    ("symmetric_key", Method::SymmetricKey),
                    ("x509", Method::X509),
                    ("tpm", Method::Tpm),
                ];
                let is_x509 =
                    attestation.text("method").is_some_and(|method| method.text == "x509");
                registration_id = match attestation.text("registration_id") {
                    Some(text) => {
                        let path = "provisioning.attestation.registration_id";
                        self.checked(path, &text, value::dps_name(text.text, "registration id"))
                    }
                    None if is_x509 => None,
                    None => self.absent(
                        &attestation,
                        "registration_id",
                        "the name under which the device registers",
                    ),
                };
                if registration_id.is_none() && !is_x509 {
                    self.credential(root, &attestation, &methods, "symmetric_key", None);
                } else {
                    let name = registration_id.as_deref();
                    credential =
                        self.credential(root, &attestation, &methods, "symmetric_key", name);
                }
            }
            None => {
                let remedy = "attestation = { method = \"symmetric_key\", registration_id = \"..\", symmetric_key = { .. } }";
                self.absent::<()>(view, "attestation", remedy);
            }
        }
        let payload = self.payload(view);
        let operational = self.operational_certificate(view, registration_id.as_deref());
        Some(Provisioning::Dps {
            endpoint: endpoint?,
            scope_id: scope_id?,
            registration_id,
            credential: credential?,
            payload,
            operational,
        })
    }

    fn payload(&mut self, view: &View<'_>) -> Option<serde_json::Value> {
        const PATH: &str = "provisioning.payload.uri";
        let payload = view.table("payload")?;
        let Some(uri) = payload.text("uri") else {
            return self.absent(
                &payload,
                "uri",
                "payload = { uri = \"file:///path/to/payload.json\" }",
            );
        };
        let path = self.checked(PATH, &uri, value::file_uri(uri.text))?;
        let content = self.file(PATH, &PathBuf::from(path), uri.span)?;
        match serde_json::from_slice(&content) {
            Ok(value) => Some(value),
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                let message = format!("the file is not JSON (its line {line}, column {column})");
                self.report.error(Code::BadValue, uri.span, PATH, message);
                None
            }
        }
    }

    /// The device's proof, out of `[provisioning.authentication]` or
    /// `[provisioning.attestation]`. `name` is the device's.
    fn credential(
        &mut self,
        root: &View<'_>,
        view: &View<'_>,
        methods: &[(&str, Method)],
        key_name: &str,
        name: Option<&str>,
    ) -> Option<DeviceCredential> {
        let Some(method) = view.text("method") else {
            let words: Vec<&str> = methods.iter().map(|(word, _)| *word).collect();
            return self.absent(view, "method", &format!("method is one of {}", words.join(", ")));
        };
        let path = view.key("method");
        match self.choice(&path, &method, methods)? {
            Method::SymmetricKey => {
                let choice = format!("method = \"{}\"", method.text);
                self.only(view, &choice, &["method", "registration_id", key_name]);
            }
            Method::X509 => return self.device_certificate(root, view, name),
            Method::Tpm => {
                self.only(view, "method = \"tpm\"", &["method", "registration_id"]);
                if !root.has("tpm") {
                    let message = "method = \"tpm\" needs a TPM, and none is configured";
                    let remedy = "add [tpm] with its tcti";
                    self.report.error_with(Code::Missing, method.span, path, message, remedy);
                    return None;
                }
                return Some(DeviceCredential::Tpm);
            }
        }
        let Some(key) = view.table(key_name) else {
            return self.absent(
                view,
                key_name,
                &format!("{key_name} = {{ uri = \"file:///..\" }} or {{ value = \"<base64>\" }}"),
            );
        };
        let id: edgekeep_core::id::KeyId = DEVICE_KEY.parse().ok()?;
        match (key.text("value"), key.text("uri")) {
            (Some(value), None) => {
                let bytes = self.checked(&key.key("value"), &value, value::key(value.text))?;
                self.symmetric_key(&key.key("value"), &value, bytes.expose())?;
                self.imported_keys.push((id.clone(), bytes));
            }
            (None, Some(uri)) => {
                self.preload_key(id.clone(), &key.key("uri"), &uri, &key.span, Wanted::Symmetric);
            }
            (Some(_), Some(uri)) => {
                let message = format!("`{}` has both `value` and `uri`", key.path);
                self.report.error_with(
                    Code::Conflict,
                    uri.span,
                    key.key("uri"),
                    message,
                    "keep one of them",
                );
            }
            (None, None) if !key.has("value") && !key.has("uri") => {
                return self.absent(
                    &key,
                    "uri",
                    "name the key's file with `uri`, or give it with `value`",
                );
            }
            (None, None) => {}
        }
        Some(DeviceCredential::SymmetricKey { key: id })
    }

    /// Reports an absent key; one that is there with a wrong type is reported already.
    pub(crate) fn absent<T>(&mut self, view: &View<'_>, key: &str, remedy: &str) -> Option<T> {
        if !view.has(key) {
            self.report.missing(&view.span, &view.key(key), remedy);
        }
        None
    }
}
