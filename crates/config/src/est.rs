//! `[cert_issuance.est]`: the EST servers, the roots that are believed there, and how the
//! device proves who it is.

use edgekeep_core::authority::Authority;
use edgekeep_core::settings::{EstBasic, EstSettings, Issuance, IssuanceMethod};

use crate::credentials::Wanted;
use crate::diagnostic::Code;
use crate::document::View;
use crate::translate::{Draft, cert_id};
use crate::value;

/// Id of the certificate and key by which the device proves who it is.
const EST_ID: &str = "est-id";
const EST_ID_NEXT: &str = "est-id-temp";
/// Id of the manufacturer's.
const EST_BOOTSTRAP: &str = "est-bootstrap-id";

impl Draft<'_> {
    /// Reads `[cert_issuance.est]`. To be read before what is issued there.
    pub(crate) fn est(&mut self, root: &View<'_>) {
        let Some(view) = root.table("cert_issuance").and_then(|issuance| issuance.table("est"))
        else {
            return;
        };
        let mut settings = EstSettings::default();
        for uri in view.texts("trusted_certs") {
            let path = view.key("trusted_certs");
            if let Some(file) = self.checked(&path, &uri, value::file_uri(uri.text)) {
                self.certificate_file(&path, &uri);
                settings.trusted_certs.push(file);
            }
        }
        if let Some(urls) = view.table("urls") {
            for entry in &urls.table.entries {
                let Some(text) = urls.text(&entry.key) else { continue };
                self.est_url(&urls.key(&entry.key), &text);
                settings.urls.insert(entry.key.clone(), text.text.to_owned());
            }
        }
        if let Some(auth) = view.table("auth") {
            settings.basic = self.basic(&auth);
            let own = self.pair_in_files(&auth, "identity", EST_ID);
            let bootstrap = self.pair_in_files(&auth, "bootstrap_identity", EST_BOOTSTRAP);
            if bootstrap && !own {
                self.own_identity(&view);
            }
        }
        self.identityd.est = Some(settings);
    }

    fn est_url(&mut self, path: &str, text: &crate::document::Text<'_>) {
        let host = text.text.strip_prefix("https://").map(|rest| rest.split('/').next());
        let is_url = host.flatten().is_some_and(|host| host.parse::<Authority>().is_ok());
        let read = if is_url {
            Ok(())
        } else {
            Err("expected an https URL such as https://est.example/.well-known/est".to_owned())
        };
        self.checked(path, text, read);
    }

    /// The URL of one certificate's server.
    pub(crate) fn est_url_of(&mut self, view: &View<'_>, ids: &[&str]) {
        let settings = self.identityd.est.get_or_insert_with(EstSettings::default);
        let Some(text) = view.text("url") else {
            let has = |id: &&str| settings.urls.contains_key(*id);
            if !settings.urls.contains_key("default") && !ids.iter().all(has) {
                let remedy = "the server's URL, or [cert_issuance.est.urls] default";
                let _: Option<()> = self.absent(view, "url", remedy);
            }
            return;
        };
        for id in ids {
            settings.urls.insert((*id).to_owned(), text.text.to_owned());
        }
        self.est_url(&view.key("url"), &text);
    }

    fn basic(&mut self, auth: &View<'_>) -> Option<EstBasic> {
        match (auth.text("username"), auth.text("password")) {
            (Some(username), Some(password)) => Some(EstBasic {
                username: username.text.to_owned(),
                password: password.text.to_owned().into(),
            }),
            (None, None) => None,
            (username, _) => {
                let absent = if username.is_some() { "password" } else { "username" };
                self.absent(auth, absent, "a name and a password go together")
            }
        }
    }

    /// A certificate and its key that exist. Returns whether they are configured.
    fn pair_in_files(&mut self, auth: &View<'_>, name: &str, id: &'static str) -> bool {
        let (cert_key, key_key) = (format!("{name}_cert"), format!("{name}_pk"));
        let (cert, key) = (auth.text(&cert_key), auth.text(&key_key));
        let (Some(cert), Some(key)) = (&cert, &key) else {
            if cert.is_some() || key.is_some() {
                let absent = if cert.is_some() { key_key } else { cert_key };
                let _: Option<()> =
                    self.absent(auth, &absent, "a certificate and a key go together");
            }
            return false;
        };
        let path = auth.key(&cert_key);
        let certificates = self.preload_cert(cert_id(id), &path, cert).unwrap_or_default();
        if let Ok(key_id) = id.parse() {
            let key_path = auth.key(&key_key);
            let public = self.preload_key(key_id, &key_path, key, &auth.span, Wanted::Pair);
            self.matching_pair(&path, cert, &certificates, public.as_deref());
        }
        self.identityd_keys.push(id);
        true
    }

    /// The identity that the manufacturer's certificate gets.
    fn own_identity(&mut self, view: &View<'_>) {
        let renewal = self.renewal_policy(view, "identity_auto_renew");
        let issuance = Issuance {
            method: IssuanceMethod::Est,
            common_name: Some(self.identityd.hostname.clone()),
            expiry_days: None,
            renewal: Some(renewal),
        };
        if let Some(id) = cert_id(EST_ID) {
            self.identityd.cert_issuance.insert(id, issuance);
        }
        self.identityd_keys.extend([EST_ID, EST_ID_NEXT]);
        if !view.table("urls").is_some_and(|urls| urls.has("default") || urls.has(EST_ID)) {
            let message = "no EST server is named at which the device gets its identity";
            let remedy = "add [cert_issuance.est.urls] default, or est-id";
            self.report.error_with(Code::Missing, &view.span, view.key("urls"), message, remedy);
        }
    }
}
