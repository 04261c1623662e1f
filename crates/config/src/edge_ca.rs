//! `[cert_issuance.local_ca]` and `[edge_ca]`: the CAs on the device and who signs them.

use edgekeep_core::renewal::{Margin, Policy, Window};
use edgekeep_core::settings::{
    EdgeCaRenewal, Issuance, IssuanceMethod, LocalCa, ModuleKeys, OnNewKey,
};

use crate::credentials::Wanted;
use crate::diagnostic::Code;
use crate::document::{Text, View};
use crate::translate::{Draft, EDGE_CA, EDGE_CA_NEXT, LOCAL_CA, LOCAL_CA_NEXT, cert_id};

/// Validity of a CA that the device makes for itself when nothing is said, in days.
const QUICKSTART_DAYS: u32 = 90;

/// Longest validity, in days.
const MAX_DAYS: u32 = 36_500;

/// Keys of an issuance table that every method takes.
const ANY_METHOD: [&str; 4] = ["method", "common_name", "subject", "auto_renew"];

/// Keys by which one certificate would prove to its EST server who asks.
const OWN_PROOF: [&str; 6] = [
    "username",
    "password",
    "bootstrap_identity_cert",
    "bootstrap_identity_pk",
    "identity_cert",
    "identity_pk",
];

impl Draft<'_> {
    /// Reads `[cert_issuance.local_ca]`.
    pub(crate) fn local_ca(&mut self, root: &View<'_>) {
        let Some(view) =
            root.table("cert_issuance").and_then(|issuance| issuance.table("local_ca"))
        else {
            return;
        };
        let (Some(cert), Ok(key)) = (cert_id(LOCAL_CA), LOCAL_CA.parse()) else { return };
        self.identityd.local_ca = Some(LocalCa { cert: cert.clone(), key });
        self.identityd_keys.push(LOCAL_CA);
        if let Some(options) = view.table("cert") {
            self.only(&view, "a `cert` that is issued", &["cert"]);
            if let Some(issuance) =
                self.issuance(&options, Some(IssuanceMethod::LocalCa), &[LOCAL_CA])
            {
                if issuance.renewal.is_some_and(|renewal| renewal.rotate_key) {
                    self.identityd_keys.push(LOCAL_CA_NEXT);
                }
                self.identityd.cert_issuance.insert(cert, issuance);
            }
        } else if let Some(uri) = view.text("cert") {
            self.ca_in_files(&view, cert, &uri, LOCAL_CA);
        } else {
            let _: Option<()> = self.absent(
                &view,
                "cert",
                "cert = \"file:///..\" and pk, or cert = { method = \"self_signed\" }",
            );
        }
    }

    /// A CA whose certificate and key lie in files or on a token.
    fn ca_in_files(
        &mut self,
        view: &View<'_>,
        cert: edgekeep_core::id::CertId,
        uri: &Text<'_>,
        key: &str,
    ) {
        let path = view.key("cert");
        let certificates = self.preload_cert(Some(cert), &path, uri).unwrap_or_default();
        match view.text("pk") {
            Some(pk) => {
                if let Ok(id) = key.parse() {
                    let public =
                        self.preload_key(id, &view.key("pk"), &pk, &view.span, Wanted::Pair);
                    self.ca_pair(&path, uri, &certificates, public.as_deref());
                }
            }
            None => {
                let _: Option<()> =
                    self.absent(view, "pk", "the file of the certificate's private key");
            }
        }
    }

    /// Reads `[edge_ca]`; without it the device makes a CA for itself.
    pub(crate) fn edge_ca(&mut self, root: &View<'_>) {
        let empty = crate::document::Table::default();
        let view = root.table("edge_ca").unwrap_or_else(|| View {
            table: &empty,
            span: 0..0,
            path: "edge_ca".to_owned(),
        });
        let own = ["module_keys", "algorithms", "on_new_key"];
        if view.has("cert") || view.has("pk") {
            self.edge_ca_in_files(&view);
            self.only(&view, "`cert` and `pk`", &[&["cert", "pk"], &own[..]].concat());
        } else if view.has("method") {
            if let Some(issuance) = self.issuance(&view, None, &[EDGE_CA, EDGE_CA_NEXT]) {
                self.issue_edge_ca(issuance, root, &view);
            }
        } else {
            let quickstart =
                ["auto_generated_edge_ca_expiry_days", "auto_renew", "common_name", "subject"];
            self.only(&view, "an edge CA without `method`", &[&quickstart[..], &own[..]].concat());
            let days = self
                .count(&view, "auto_generated_edge_ca_expiry_days", 1, MAX_DAYS)
                .unwrap_or(QUICKSTART_DAYS);
            let common_name = self.common_name(&view);
            let issuance = Issuance {
                method: IssuanceMethod::SelfSigned,
                common_name,
                expiry_days: Some(days),
                renewal: Some(self.auto_renew(&view)),
            };
            self.issue_edge_ca(issuance, root, &view);
        }
        self.module_keys(&view);
    }

    /// An Edge CA that the operator has, and replaces.
    fn edge_ca_in_files(&mut self, view: &View<'_>) {
        self.moduled.edge_ca.renewal = EdgeCaRenewal::Files;
        let remedy = "a certificate and a key go together: cert = \"file:///..\" and pk";
        match (cert_id(EDGE_CA), view.text("cert")) {
            (Some(id), Some(uri)) => self.ca_in_files(view, id, &uri, EDGE_CA),
            _ => {
                let _: Option<()> = self.absent(view, "cert", remedy);
            }
        }
    }

    fn issue_edge_ca(&mut self, mut issuance: Issuance, root: &View<'_>, view: &View<'_>) {
        let renewal = issuance.renewal.unwrap_or_default();
        self.moduled.edge_ca.renewal =
            if renewal.enabled { EdgeCaRenewal::Service } else { EdgeCaRenewal::Off };
        if renewal.rotate_key && issuance.method != IssuanceMethod::SelfSigned {
            self.identityd_keys.extend([EDGE_CA, EDGE_CA_NEXT]);
        }
        match issuance.method {
            IssuanceMethod::SelfSigned => self.identityd_keys.extend([EDGE_CA, EDGE_CA_NEXT]),
            IssuanceMethod::LocalCa => {
                self.needs_local_ca(root, view);
            }
            // The last one is no choice here.
            IssuanceMethod::Est | IssuanceMethod::Dps => {}
        }
        self.moduled.edge_ca.common_name = issuance.common_name.take();
        // The compatible module runtime asks for the renewed certificate under an id of
        // its own, and only then puts it in the place of the old one.
        for id in [EDGE_CA, EDGE_CA_NEXT].into_iter().filter_map(cert_id) {
            let renewal = issuance.renewal.filter(|_| id.as_str() == EDGE_CA);
            self.identityd.cert_issuance.insert(id, Issuance { renewal, ..issuance.clone() });
        }
    }

    /// Reports a certificate of the local CA where there is no local CA.
    pub(crate) fn needs_local_ca(&mut self, root: &View<'_>, view: &View<'_>) {
        let is_there = root.table("cert_issuance").is_some_and(|issuance| issuance.has("local_ca"));
        if !is_there && let Some(method) = view.text("method") {
            let message = "method = \"local_ca\" needs [cert_issuance.local_ca]";
            let remedy = "add [cert_issuance.local_ca] with the CA's certificate and key";
            let path = view.key("method");
            self.report.error_with(Code::Missing, method.span, path, message, remedy);
        }
    }

    /// Reads issuance options of certificates with these ids. `not_this` is a method that
    /// cannot be used here: a CA is not issued by itself.
    pub(crate) fn issuance(
        &mut self,
        view: &View<'_>,
        not_this: Option<IssuanceMethod>,
        ids: &[&str],
    ) -> Option<Issuance> {
        let Some(method) = view.text("method") else {
            return self.absent(view, "method", "method is one of self_signed, local_ca, est");
        };
        let path = view.key("method");
        let all = [
            ("self_signed", IssuanceMethod::SelfSigned),
            ("local_ca", IssuanceMethod::LocalCa),
            ("est", IssuanceMethod::Est),
        ];
        let chosen = self.choice(&path, &method, &all)?;
        if Some(chosen) == not_this {
            let message = "the local CA cannot be issued by itself";
            self.report.error_with(
                Code::BadValue,
                method.span,
                path,
                message,
                "use method = \"self_signed\"",
            );
            return None;
        }
        let choice = format!("method = \"{}\"", method.text);
        let edge_ca = &["module_keys", "algorithms", "on_new_key"][..];
        if chosen == IssuanceMethod::Est {
            // The server decides how long it is valid.
            let allowed = [&ANY_METHOD[..], &["url"], edge_ca].concat();
            for key in OWN_PROOF.into_iter().filter(|key| view.has(key)) {
                if let Some(entry) = view.entry(key) {
                    let message = format!("`{}` is not supported yet", view.key(key));
                    let remedy = "set it in [cert_issuance.est.auth], for all certificates";
                    let path = view.key(key);
                    let code = Code::NotSupported;
                    self.report.error_with(code, &entry.key_span, path, message, remedy);
                }
            }
            self.only(view, &choice, &[&allowed[..], &OWN_PROOF].concat());
            self.est_url_of(view, ids);
        } else {
            self.only(view, &choice, &[&ANY_METHOD[..], &["expiry_days"], edge_ca].concat());
        }
        let renewal = Some(self.auto_renew(view));
        let expiry_days = self.count(view, "expiry_days", 1, MAX_DAYS);
        Some(Issuance { method: chosen, common_name: self.common_name(view), expiry_days, renewal })
    }

    /// `common_name`, or the `CN` of `subject`.
    fn common_name(&mut self, view: &View<'_>) -> Option<String> {
        if let Some(subject) = view.table("subject") {
            for entry in &subject.table.entries {
                let path = subject.key(&entry.key);
                if !entry.key.eq_ignore_ascii_case("CN") {
                    let message = format!(
                        "`{path}` is not supported yet: this version sets the common name only"
                    );
                    self.report.error_with(
                        Code::NotSupported,
                        &entry.key_span,
                        path,
                        message,
                        "leave it out, or use `common_name`",
                    );
                }
            }
            if view.has("common_name") {
                let message = format!("`{}` has both `common_name` and `subject`", view.path);
                self.report.error_with(
                    Code::Conflict,
                    &subject.span,
                    &subject.path,
                    message,
                    "keep one of them",
                );
            }
        }
        let subject = view.table("subject");
        let name = view.text("common_name").or_else(|| {
            let entry = subject
                .as_ref()?
                .table
                .entries
                .iter()
                .find(|entry| entry.key.eq_ignore_ascii_case("CN"))?;
            subject.as_ref()?.text(&entry.key)
        })?;
        let fits = !name.text.is_empty() && !name.text.chars().any(char::is_control);
        let checked = if fits {
            Ok(())
        } else {
            Err("the common name is empty or has control characters".to_owned())
        };
        self.checked(&view.key("common_name"), &name, checked)?;
        if name.text.chars().count() > 64 {
            let message = "a common name has at most 64 characters: the rest is cut off";
            self.report.notice(Code::Unusual, name.span, view.key("common_name"), message, None);
        }
        Some(name.text.chars().take(64).collect())
    }

    /// Reads `auto_renew`. Without that table a certificate is renewed and keeps its key.
    fn auto_renew(&mut self, view: &View<'_>) -> Policy {
        self.renewal_policy(view, "auto_renew")
    }

    /// Reads a table of renewal under this key.
    pub(crate) fn renewal_policy(&mut self, view: &View<'_>, key: &str) -> Policy {
        let mut policy = Policy::default();
        let Some(renewal) = view.table(key) else { return policy };
        if renewal.boolean("rotate_key") == Some(false) && view.path == "edge_ca" {
            self.edge_ca_rotates = false;
        }
        policy.enabled = renewal.boolean("enabled").unwrap_or(policy.enabled);
        policy.rotate_key = renewal.boolean("rotate_key").unwrap_or(policy.rotate_key);
        for (key, margin) in [("threshold", &mut policy.threshold), ("retry", &mut policy.retry)] {
            if let Some(text) = renewal.text(key)
                && let Some(read) =
                    self.checked(&renewal.key(key), &text, text.text.parse::<Margin>())
            {
                *margin = read;
            }
        }
        if let Some(text) = renewal.text("window") {
            let read = text.text.parse::<Window>();
            policy.window = self.checked(&renewal.key("window"), &text, read);
        }
        policy
    }

    fn module_keys(&mut self, view: &View<'_>) {
        if let Some(text) = view.text("module_keys") {
            let choices = [("ec-p256", ModuleKeys::EcP256), ("rsa-2048", ModuleKeys::Rsa2048)];
            if let Some(chosen) = self.choice("edge_ca.module_keys", &text, &choices) {
                self.moduled.edge_ca.module_keys = chosen;
            }
        }
        if let Some(text) = view.text("on_new_key") {
            let choices = [
                ("restart", OnNewKey::Restart),
                ("notify", OnNewKey::Notify),
                ("none", OnNewKey::None),
            ];
            if let Some(chosen) = self.choice("edge_ca.on_new_key", &text, &choices) {
                self.moduled.edge_ca.on_new_key = chosen;
            }
        }
        if let Some(text) = view.text("algorithms") {
            let known = ["ec-p256", "ec-p384", "rsa-2048", "rsa-4096", "*"];
            let fits = text.text.split(':').all(|word| known.contains(&word));
            let checked = if fits {
                Ok(())
            } else {
                Err("expected ec-p256, ec-p384, rsa-2048, rsa-4096 or *, separated by ':'"
                    .to_owned())
            };
            if self.checked("edge_ca.algorithms", &text, checked).is_some() {
                text.text.clone_into(&mut self.moduled.edge_ca.algorithms);
            }
        }
    }
}
