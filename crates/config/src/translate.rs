//! From the text of `config.toml` to the settings of the three daemons. Pure: what lies
//! outside the text comes in as an [`Environment`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use edgekeep_core::create_options::{OwnState, PublishedPorts};
use edgekeep_core::grants::is_reserved;
use edgekeep_core::host::ScopeUse;
use edgekeep_core::id::{CertId, KeyId, ModuleId};
use edgekeep_core::layout::Daemon;
use edgekeep_core::names;
use edgekeep_core::settings::{
    CertPrincipal, CloudSettings, IdentityPrincipal, IdentitydSettings, KeyPrincipal, KeydSettings,
    ModuleEncryption, ModuledSettings, PreloadedCert, Provisioning, ReprovisioningMode,
};

use crate::check::check;
use crate::credentials::{Unjudged, Wanted};
use crate::diagnostic::{Code, Diagnostic, Report};
use crate::document::{self, Node, Text, Value, View, join};
use crate::open_secrets;
use crate::places::{Expected, Seen};
use crate::secret::SecretBytes;
use crate::similar::nearest;
use crate::value;

/// Key id of the device's symmetric key.
pub(crate) const DEVICE_KEY: &str = names::DEVICE_KEY.as_str();
/// Key id from which identityd derives the keys of module identities.
const MASTER_KEY: &str = names::IDENTITY_MASTER_KEY.as_str();
/// Key id of the key with which moduled encrypts for modules.
const ENCRYPTION_KEY: &str = names::DEVICE_DATA_KEY.as_str();
/// Key id of the key that the keys of single modules' data are derived from.
const MODULE_DATA_KEY: &str = names::MODULE_DATA_KEY.as_str();
/// Cert id and key id of the CA that signs module certificates.
pub(crate) const EDGE_CA: &str = names::EDGE_CA.as_str();
/// Key and cert id of that CA's successor while it is made.
pub(crate) const EDGE_CA_NEXT: &str = names::EDGE_CA_NEXT.as_str();
/// Cert id of what modules trust.
const TRUST_BUNDLE: &str = names::TRUST_BUNDLE.as_str();
/// Cert id of the operator's addition to it.
const TRUST_BUNDLE_USER: &str = names::TRUST_BUNDLE_USER.as_str();
/// Cert id and key id of the device's own CA.
pub(crate) const LOCAL_CA: &str = names::LOCAL_CA.as_str();
pub(crate) const LOCAL_CA_NEXT: &str = names::LOCAL_CA_NEXT.as_str();

/// Facts about the device that the translation needs to know.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// User ids of the daemons.
    pub users: Users,
    /// The primary groups of those users, if each has one of its own that may read its
    /// settings; without, settings belong to their daemon's user alone.
    pub groups: Option<Users>,
    /// The operating system's host name, used if the configuration names none.
    pub hostname: String,
    /// The operating system's users by name.
    pub uids: BTreeMap<String, u32>,
    /// Names of the operating system's groups.
    pub group_names: BTreeSet<String>,
    /// Content of the files that [`referenced_files`] names, by path; or why one could
    /// not be read.
    pub files: BTreeMap<PathBuf, Result<Vec<u8>, String>>,
    /// Content of the files of certificates and keys that
    /// [`referenced_credentials`](crate::referenced_credentials) names, by path; or why
    /// one is not judged. What is not in here is not looked at.
    pub credentials: BTreeMap<PathBuf, Result<Arc<SecretBytes>, Unjudged>>,
    /// Things at the places that [`referenced_places`](crate::referenced_places) names.
    /// A place that is not in here is not judged.
    pub places: BTreeMap<PathBuf, Seen>,
    /// Permission bits of the configuration file, if it is one.
    pub mode: Option<u32>,
    /// True if keys that are unknown, or stand in the wrong table, are left out with a
    /// notice instead of being errors.
    pub lenient: bool,
}

/// Unix user ids of the daemons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Users {
    /// keyd's.
    pub keyd: u32,
    /// identityd's.
    pub identityd: u32,
    /// moduled's.
    pub moduled: u32,
}

impl Users {
    /// All three daemons as one user: not isolated from each other, but a device can run
    /// without root.
    #[must_use]
    pub const fn all(uid: u32) -> Self {
        Self { keyd: uid, identityd: uid, moduled: uid }
    }

    /// Returns true if the daemons are one user, and so are not isolated from each other.
    #[must_use]
    pub const fn is_single(self) -> bool {
        self.keyd == self.identityd && self.keyd == self.moduled
    }
}

/// The settings that a configuration becomes.
#[derive(Debug)]
pub struct Translated {
    /// keyd's settings.
    pub keyd: KeydSettings,
    /// identityd's settings.
    pub identityd: IdentitydSettings,
    /// moduled's settings.
    pub moduled: ModuledSettings,
    /// Keys that stood in the configuration itself, for keyd to take into its store.
    pub imported_keys: Vec<(KeyId, SecretBytes)>,
    /// Notices that the reader should know although the configuration applies.
    pub notices: Vec<Diagnostic>,
}

/// The files whose content becomes part of the settings, as far as the text names them.
/// Keys and certificates that the daemons read themselves are not among them.
#[must_use]
pub fn referenced_files(text: &str) -> Vec<PathBuf> {
    let mut report = Report::default();
    let mut table = document::parse(text, &mut report);
    check(text, &mut table, &mut report);
    let root = View::root(&table);
    let payload = root.table("provisioning").and_then(|provisioning| provisioning.table("payload"));
    let uris = [root.text("additional_info"), payload.and_then(|payload| payload.text("uri"))];
    let mut files: Vec<PathBuf> = uris
        .into_iter()
        .flatten()
        .filter_map(|uri| value::file_uri(uri.text).ok())
        .map(PathBuf::from)
        .collect();
    files.extend(crate::image_policy::key_files(&root));
    if let Some(path) = root.text("imported_master_encryption_key") {
        files.push(plain_path(path.text));
    }
    files
}

/// Translates a whole configuration.
///
/// # Errors
/// All diagnostics, notices included, if one of them is an error.
pub fn translate(text: &str, environment: &Environment) -> Result<Translated, Vec<Diagnostic>> {
    let mut report = Report::new(environment.lenient);
    let mut table = document::parse(text, &mut report);
    let parsed = !report.has_errors();
    check(text, &mut table, &mut report);
    if !parsed {
        return Err(report.finish(text));
    }
    open_secrets::check(&table, environment.mode, &mut report);
    let mut draft = Draft::new(environment, report);
    draft.read(&View::root(&table));
    draft.finish(text)
}

/// The settings in the making.
pub(crate) struct Draft<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) report: Report,
    pub(crate) keyd: KeydSettings,
    pub(crate) identityd: IdentitydSettings,
    pub(crate) moduled: ModuledSettings,
    pub(crate) imported_keys: Vec<(KeyId, SecretBytes)>,
    /// Keys that identityd may use besides its own two.
    pub(crate) identityd_keys: Vec<&'static str>,
    /// True if the compatible module runtime may give the edge CA's successor a key of
    /// its own.
    pub(crate) edge_ca_rotates: bool,
    /// Files of certificates and keys that were met.
    pub(crate) credentials: BTreeSet<PathBuf>,
    /// Other places that were met.
    pub(crate) places: BTreeMap<PathBuf, Expected>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(environment: &'a Environment, report: Report) -> Self {
        let hostname = environment.hostname.clone();
        Self {
            environment,
            report,
            keyd: KeydSettings::default(),
            identityd: IdentitydSettings {
                hostname: hostname.clone(),
                parent_hostname: None,
                provisioning: Provisioning::None,
                reprovisioning: ReprovisioningMode::default(),
                cloud: CloudSettings::default(),
                principals: Vec::new(),
                localid_domain: None,
                cert_principals: Vec::new(),
                cert_issuance: BTreeMap::new(),
                local_ca: None,
                est: None,
                preloaded_certs: BTreeMap::new(),
                connections_per_uid: None,
                sandbox: true,
            },
            moduled: ModuledSettings {
                hostname,
                parent_hostname: None,
                agent: edgekeep_core::settings::AgentSettings::default(),
                engine: None,
                host_modules: BTreeMap::new(),
                host_services: BTreeMap::new(),
                allow_root_host_modules: true,
                host_module_scopes: ScopeUse::Auto,
                host_module_ids: None,
                policies: BTreeMap::new(),
                edge_ca: edgekeep_core::settings::EdgeCaSettings::default(),
                watchdog_max_retries: None,
                allow_elevated_permissions: true,
                published_ports: PublishedPorts::default(),
                own_state_in_mounts: OwnState::default(),
                grants: BTreeMap::new(),
                image_policy: None,
                image_collection: edgekeep_core::settings::ImageCollectionSettings::default(),
                module_encryption: ModuleEncryption::default(),
                additional_info: BTreeMap::new(),
                management_connections_per_uid: None,
                workload_connections_per_uid: None,
                sandbox: true,
            },
            imported_keys: Vec::new(),
            identityd_keys: Vec::new(),
            edge_ca_rotates: true,
            credentials: BTreeSet::new(),
            places: BTreeMap::new(),
        }
    }

    pub(crate) fn read(&mut self, root: &View<'_>) {
        self.names(root);
        self.cloud(root);
        self.limits(root);
        self.sandboxes(root);
        self.hardware(root);
        self.notary(root);
        self.est(root);
        self.provisioning(root);
        self.local_ca(root);
        self.edge_ca(root);
        self.trust_bundle(root);
        self.preloaded(root);
        self.modules(root);
        self.additional_info(root);
        self.encryption_key(root);
        self.module_encryption(root);
        self.assign_imported();
        self.principals();
    }

    fn finish(self, text: &str) -> Result<Translated, Vec<Diagnostic>> {
        let failed = self.report.has_errors();
        let diagnostics = self.report.finish(text);
        if failed {
            return Err(diagnostics);
        }
        Ok(Translated {
            keyd: self.keyd,
            identityd: self.identityd,
            moduled: self.moduled,
            imported_keys: self.imported_keys,
            notices: diagnostics,
        })
    }

    fn names(&mut self, root: &View<'_>) {
        if let Some(name) = root.text("hostname")
            && self.checked("hostname", &name, value::hostname(name.text)).is_some()
        {
            name.text.clone_into(&mut self.identityd.hostname);
            name.text.clone_into(&mut self.moduled.hostname);
            if name.text.len() > 64 {
                let message = "the host name is longer than 64 characters: certificates are made with its first 64";
                self.report.notice(Code::Unusual, name.span, "hostname", message, None);
            }
        }
        if !root.has("hostname") && value::hostname(&self.environment.hostname).is_err() {
            self.report.missing(
                &(0..0),
                "hostname",
                "the operating system has no usable host name: name one here",
            );
        }
        if let Some(name) = root.text("parent_hostname")
            && let Some(name) = self.checked("parent_hostname", &name, value::host(name.text))
        {
            self.identityd.parent_hostname = Some(name.clone());
            self.moduled.parent_hostname = Some(name);
        }
        if let Some(domain) = root.table("localid").and_then(|localid| localid.text("domain"))
            && self.checked("localid.domain", &domain, value::hostname(domain.text)).is_some()
        {
            self.identityd.localid_domain = Some(domain.text.to_owned());
        }
    }

    fn cloud(&mut self, root: &View<'_>) {
        if let Some((seconds, span)) = root.integer("cloud_timeout_sec") {
            match u64::try_from(seconds) {
                Ok(seconds @ 1..=86_400) => {
                    self.identityd.cloud.timeout_sec = seconds;
                    if seconds < 70 {
                        let message = "a time limit below 70 seconds may end calls that the hub would still have answered";
                        self.report.notice(Code::Unusual, span, "cloud_timeout_sec", message, None);
                    }
                }
                _ => self.report.error(
                    Code::BadValue,
                    span,
                    "cloud_timeout_sec",
                    "expected 1 to 86400 seconds",
                ),
            }
        }
        if let Some(retries) = self.count(root, "cloud_retries", 0, 100) {
            self.identityd.cloud.retries = retries;
        }
        if let Some(mode) = root.text("auto_reprovisioning_mode") {
            let modes = [
                ("Dynamic", ReprovisioningMode::Dynamic),
                ("AlwaysOnStartup", ReprovisioningMode::AlwaysOnStartup),
                ("OnErrorOnly", ReprovisioningMode::OnErrorOnly),
            ];
            if let Some(mode) = self.choice("auto_reprovisioning_mode", &mode, &modes) {
                self.identityd.reprovisioning = mode;
            }
        }
        if let Some(cloud) = root.table("cloud") {
            for uri in cloud.texts("trusted_certs") {
                if let Some(path) =
                    self.checked("cloud.trusted_certs", &uri, value::file_uri(uri.text))
                {
                    self.certificate_file("cloud.trusted_certs", &uri);
                    self.identityd.cloud.trusted_certs.push(path);
                }
            }
        }
    }

    fn limits(&mut self, root: &View<'_>) {
        if let Some(limits) = root.table("aziot_max_requests") {
            self.keyd.connections_per_uid = self.count(&limits, "keyd", 1, 10_000);
            let identityd = self.count(&limits, "identityd", 1, 10_000);
            let certd = self.count(&limits, "certd", 1, 10_000);
            if let (Some(identityd), Some(certd), Some(entry)) =
                (identityd, certd, limits.entry("certd"))
                && identityd != certd
            {
                let message = "one daemon serves both APIs: the larger of `identityd` and `certd` counts for each socket";
                self.report.notice(
                    Code::Unusual,
                    &entry.key_span,
                    limits.key("certd"),
                    message,
                    None,
                );
            }
            self.identityd.connections_per_uid = identityd.max(certd);
        }
        if let Some(limits) = root.table("iotedge_max_requests") {
            self.moduled.management_connections_per_uid =
                self.count(&limits, "management", 1, 10_000);
            self.moduled.workload_connections_per_uid = self.count(&limits, "workload", 1, 10_000);
        }
    }

    /// Those of the daemons but keyd, whose hardware widens its own.
    fn sandboxes(&mut self, root: &View<'_>) {
        let switch = |daemon| root.table(daemon).and_then(|table| table.boolean("sandbox"));
        if let Some(enabled) = switch("identityd") {
            self.identityd.sandbox = enabled;
        }
        if let Some(enabled) = switch("moduled") {
            self.moduled.sandbox = enabled;
        }
    }

    fn trust_bundle(&mut self, root: &View<'_>) {
        let mut bundle: Vec<CertId> = cert_id(EDGE_CA).into_iter().collect();
        bundle.extend(cert_id(TRUST_BUNDLE_USER));
        if let Some(id) = cert_id(TRUST_BUNDLE) {
            self.identityd.preloaded_certs.insert(id, PreloadedCert::List(bundle));
        }
        if let Some(uri) = root.text("trust_bundle_cert") {
            self.preload_cert(cert_id(TRUST_BUNDLE_USER), "trust_bundle_cert", &uri);
        }
    }

    fn preloaded(&mut self, root: &View<'_>) {
        if let Some(keys) = root.table("preloaded_keys") {
            for entry in &keys.table.entries {
                let path = keys.key(&entry.key);
                let Some(uri) = keys.text(&entry.key) else { continue };
                match entry.key.parse::<KeyId>() {
                    Ok(id) => {
                        self.preload_key(id, &path, &uri, &entry.key_span, Wanted::Any);
                    }
                    Err(why) => {
                        self.report.error(Code::BadValue, &entry.key_span, &path, why.to_string());
                    }
                }
            }
        }
        let Some(certs) = root.table("preloaded_certs") else { return };
        for entry in &certs.table.entries {
            let path = certs.key(&entry.key);
            let id = match entry.key.parse::<CertId>() {
                Ok(id) => id,
                Err(why) => {
                    self.report.error(Code::BadValue, &entry.key_span, &path, why.to_string());
                    continue;
                }
            };
            if self.identityd.preloaded_certs.contains_key(&id) {
                let message =
                    format!("the certificate id `{id}` is set by other keys of this file");
                let remedy = "choose another id; what modules trust is set by `trust_bundle_cert`";
                self.report.error_with(Code::Conflict, &entry.key_span, &path, message, remedy);
                continue;
            }
            if let Value::Text(uri) = &entry.node.value {
                let uri = Text { text: uri, span: &entry.node.span };
                self.preload_cert(Some(id), &path, &uri);
            } else {
                let list = PreloadedCert::List(self.cert_list(&certs, &entry.key));
                self.identityd.preloaded_certs.insert(id, list);
            }
        }
    }

    fn cert_list(&mut self, certs: &View<'_>, key: &str) -> Vec<CertId> {
        let path = certs.key(key);
        let mut ids = Vec::new();
        for item in certs.texts(key) {
            if certs.list(item.text).is_some() {
                let message = "a list of certificates cannot hold another list";
                self.report.error_with(
                    Code::BadValue,
                    item.span,
                    &path,
                    message,
                    "name the certificates themselves",
                );
            } else if let Some(id) = self.checked(
                &path,
                &item,
                item.text.parse::<CertId>().map_err(|why| why.to_string()),
            ) {
                ids.push(id);
            }
        }
        ids
    }

    fn additional_info(&mut self, root: &View<'_>) {
        const KEY: &str = "additional_info";
        let Some(uri) = root.text(KEY) else { return };
        let Some(path) = self.checked(KEY, &uri, value::file_uri(uri.text)) else { return };
        let Some(content) = self.file(KEY, &PathBuf::from(path), uri.span) else { return };
        let info = String::from_utf8(content)
            .ok()
            .and_then(|text| toml::from_str::<BTreeMap<String, String>>(&text).ok());
        match info {
            Some(info) => self.moduled.additional_info = info,
            None => self.report.error_with(
                Code::BadValue,
                uri.span,
                KEY,
                "the file is not a flat TOML table of strings",
                "write lines of the form name = \"value\" into it",
            ),
        }
    }

    fn encryption_key(&mut self, root: &View<'_>) {
        const KEY: &str = "imported_master_encryption_key";
        let Some(path) = root.text(KEY) else { return };
        let Some(bytes) = self.file(KEY, &plain_path(path.text), path.span) else { return };
        let bytes = SecretBytes::new(bytes);
        if bytes.expose().is_empty() || bytes.expose().len() > 4096 {
            self.report.error(
                Code::BadValue,
                path.span,
                KEY,
                "the key file is empty or longer than 4096 bytes",
            );
        } else if self.symmetric_key(KEY, &path, bytes.expose()).is_some()
            && let Ok(id) = ENCRYPTION_KEY.parse()
        {
            self.imported_keys.push((id, bytes));
        }
    }

    fn module_encryption(&mut self, root: &View<'_>) {
        const KEY: &str = "module_encryption";
        const WORDS: [(&str, ModuleEncryption); 3] = [
            ("module-key", ModuleEncryption::ModuleKey),
            ("module-key-only", ModuleEncryption::ModuleKeyOnly),
            ("device-key", ModuleEncryption::DeviceKey),
        ];
        let Some(word) = root.text(KEY) else { return };
        let Some(encryption) = self.choice(KEY, &word, &WORDS) else { return };
        self.moduled.module_encryption = encryption;
        if encryption == ModuleEncryption::DeviceKey {
            let message = "modules' data is encrypted under one key of the device, with the modules' own IVs: a module can \
                           forge what others read; leave this out unless the device goes back to an earlier service";
            self.report.notice(Code::Unusual, word.span, KEY, message, None);
        }
    }

    fn principals(&mut self) {
        let users = self.environment.users;
        let mut identityd = vec![MASTER_KEY];
        if self.identityd.provisioning != Provisioning::None {
            identityd.push(DEVICE_KEY);
        }
        identityd.append(&mut self.identityd_keys);
        let mut moduled = vec![EDGE_CA, ENCRYPTION_KEY, MODULE_DATA_KEY];
        let mut certs = vec![EDGE_CA, "aziot-edged/module/*"];
        if self.edge_ca_rotates {
            moduled.push(EDGE_CA_NEXT);
        }
        certs.push(EDGE_CA_NEXT);
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        self.keyd.principals = vec![
            // moduled passes its handle to the Edge CA's key along when it asks for
            // module certificates.
            KeyPrincipal {
                uid: users.identityd,
                keys: owned(identityd),
                use_only: owned(vec![EDGE_CA, EDGE_CA_NEXT]),
                export: owned(vec![MASTER_KEY]),
                certificates: true,
                // It passes on what moduled says with a certificate request.
                attestor: true,
                daemons: vec![Daemon::Identityd],
                ..KeyPrincipal::default()
            },
            // identityd gives out handles to module keys. The Edge CA's requests are
            // signed by moduled itself.
            KeyPrincipal {
                uid: users.moduled,
                keys: owned(moduled),
                use_derived: owned(vec![MASTER_KEY]),
                certificates: true,
                // It measures the modules for which it asks.
                attestor: true,
                daemons: vec![Daemon::Moduled],
                ..KeyPrincipal::default()
            },
        ];
        self.identityd.cert_principals =
            vec![CertPrincipal { uid: users.moduled, certs: owned(certs), attestor: true }];
        self.identityd.principals = vec![IdentityPrincipal {
            uid: users.moduled,
            name: "aziot-edge".to_owned(),
            kinds: Vec::new(),
        }];
    }

    // What several parts need.

    /// The value of a check, or its error reported at `text`.
    pub(crate) fn checked<T>(
        &mut self,
        path: &str,
        text: &Text<'_>,
        result: Result<T, String>,
    ) -> Option<T> {
        result.map_err(|why| self.report.error(Code::BadValue, text.span, path, why)).ok()
    }

    /// The value that goes with one of a few words.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        path: &str,
        text: &Text<'_>,
        choices: &[(&str, T)],
    ) -> Option<T> {
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text.text) {
            return Some(*value);
        }
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let message = format!("`{path}` is one of {}", words.join(", "));
        match nearest(text.text, choices.iter().map(|(word, _)| *word)) {
            Some(word) => {
                self.report.error_with(
                    Code::BadValue,
                    text.span,
                    path,
                    message,
                    format!("did you mean \"{word}\"?"),
                );
            }
            None => self.report.error(Code::BadValue, text.span, path, message),
        }
        None
    }

    /// An integer within bounds.
    pub(crate) fn count(
        &mut self,
        view: &View<'_>,
        key: &str,
        least: u32,
        most: u32,
    ) -> Option<u32> {
        let (number, span) = view.integer(key)?;
        match u32::try_from(number) {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.report.error(
                    Code::BadValue,
                    span,
                    view.key(key),
                    format!("expected {least} to {most}"),
                );
                None
            }
        }
    }

    /// Reports each key of `view` that is not in `allowed`: it does not go with `choice`.
    pub(crate) fn only(&mut self, view: &View<'_>, choice: &str, allowed: &[&str]) {
        for entry in &view.table.entries {
            // Keys that the schema does not know are reported already.
            if !allowed.contains(&entry.key.as_str()) && self.known(view, &entry.key) {
                let path = view.key(&entry.key);
                let message = format!("`{path}` does not go with {choice}");
                self.report.error_with(
                    Code::Conflict,
                    &entry.key_span,
                    path,
                    message,
                    "leave one of the two out",
                );
            }
        }
    }

    fn known(&self, view: &View<'_>, key: &str) -> bool {
        crate::schema::tables()
            .iter()
            .any(|(path, keys)| *path == view.path && keys.iter().any(|known| known.name == key))
    }

    /// The content of a file that the text refers to.
    pub(crate) fn file(
        &mut self,
        key: &str,
        path: &PathBuf,
        span: &Range<usize>,
    ) -> Option<Vec<u8>> {
        let why = match self.environment.files.get(path) {
            Some(Ok(content)) => return Some(content.clone()),
            Some(Err(why)) => why.clone(),
            None => "it was not read".to_owned(),
        };
        let message = format!("cannot read {}: {why}", path.display());
        self.report.error_with(
            Code::BadValue,
            span,
            key,
            message,
            "create the file, or make it readable",
        );
        None
    }

    /// A key that keyd reads from where `uri` says. Returns the public half of a private
    /// key in a file.
    pub(crate) fn preload_key(
        &mut self,
        id: KeyId,
        path: &str,
        uri: &Text<'_>,
        key_span: &Range<usize>,
        wanted: Wanted,
    ) -> Option<Vec<u8>> {
        let mut public = None;
        let location = if uri.text.starts_with("pkcs11:") {
            self.key_on_token(path, uri)
        } else if uri.text.starts_with("tpm:") {
            self.key_in_tpm(path, uri)
        } else {
            self.checked(path, uri, value::file_uri(uri.text)).map(|_| {
                public = self.key_file(path, uri, wanted);
                value::plain_file_uri(uri.text).into()
            })
        };
        let location = location?;
        if is_reserved(&id) {
            let message = format!("the key id `{id}` is reserved for keyd itself");
            self.report.error_with(Code::BadValue, key_span, path, message, "choose another id");
            return None;
        }
        if self.imported_keys.iter().any(|(known, _)| *known == id)
            || self.keyd.preloaded_keys.contains_key(&id)
        {
            let message = format!("the key id `{id}` is set by other keys of this file");
            self.report.error_with(Code::Conflict, key_span, path, message, "keep one of them");
            return None;
        }
        self.keyd.preloaded_keys.insert(id, location);
        public
    }

    /// A table of free names and strings.
    pub(crate) fn strings(view: &View<'_>) -> BTreeMap<String, String> {
        let text = |node: &Node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        view.table
            .entries
            .iter()
            .filter_map(|entry| Some((entry.key.clone(), text(&entry.node)?)))
            .collect()
    }

    /// The path of a module id's key, with the id parsed.
    pub(crate) fn module_id(
        &mut self,
        view: &View<'_>,
        key: &str,
        span: &Range<usize>,
    ) -> Option<ModuleId> {
        key.parse()
            .map_err(|why: edgekeep_core::id::IdError| {
                self.report.error(Code::BadValue, span, join(&view.path, key), why.to_string());
            })
            .ok()
    }
}

pub(crate) fn cert_id(text: &str) -> Option<CertId> {
    text.parse().ok()
}

/// A path, written plainly or as a `file:` URI.
fn plain_path(text: &str) -> PathBuf {
    value::file_uri(text).map_or_else(|_| PathBuf::from(text), PathBuf::from)
}
