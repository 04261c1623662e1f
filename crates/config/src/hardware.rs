//! `[aziot_keys]` and `[tpm]`: what keys are kept in.

use std::path::{Path, PathBuf};

use edgekeep_core::hardware::{
    AuditCounter, AuthSource, KeyPlace, MeasureInto, PassOn, Seal, SecretText, TokenSettings,
    TpmSettings,
};
use edgekeep_hsm::uri::{KeyUri, Pkcs11Uri};
use edgekeep_tpm::{AuthValue, Tcti};

use crate::diagnostic::Code;
use crate::document::{Text, View};
use crate::places::Expected;
use crate::translate::Draft;
use crate::value;

/// Protections that the store key can have, by the word for each.
pub(crate) const SEALS: [(&str, Seal); 3] =
    [("file", Seal::File), ("tpm", Seal::Tpm), ("pkcs11", Seal::Pkcs11)];

/// A systemd credential's name: a file name.
fn credential_name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if plain && !text.is_empty() && text.len() <= 255 && text != "." && text != ".." {
        Ok(text.to_owned())
    } else {
        Err("expected the name of a systemd credential: letters, digits, '-', '.' and '_'".into())
    }
}

/// A file or folder that a token's library needs. What has everything below it would
/// leave nothing to confine.
fn sandbox_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let names = path.components().skip(1).collect::<Vec<_>>();
    if !path.is_absolute()
        || names.iter().any(|name| !matches!(name, std::path::Component::Normal(_)))
    {
        return Err("expected the absolute path of a file or folder, without \"..\"".to_owned());
    }
    let whole = [
        "/",
        "/etc",
        "/etc/edgekeep",
        "/usr",
        "/var",
        "/var/lib",
        "/home",
        "/root",
        "/run",
        "/proc",
        "/sys",
        "/dev",
    ];
    if whole.iter().any(|whole| path == Path::new(whole)) {
        return Err(
            "too much to be left within reach: name the folders in it that the token's library needs".to_owned()
        );
    }
    Ok(path)
}

/// A `pkcs11:` URI. What is wrong with it is said without its values, of which one may be
/// a PIN.
pub(crate) fn pkcs11_uri(text: &str) -> Result<Pkcs11Uri, String> {
    match text.parse() {
        Ok(KeyUri::Pkcs11(uri)) => Ok(*uri),
        Ok(_) => Err("expected a URI that begins with pkcs11:".into()),
        Err(error) => Err(error.to_string()),
    }
}

impl Draft<'_> {
    pub(crate) fn hardware(&mut self, root: &View<'_>) {
        if let Some(tpm) = root.table("tpm") {
            self.keyd.tpm = Some(self.tpm(&tpm));
            let limits = root.table("aziot_max_requests");
            let connections = limits.and_then(|limits| self.count(&limits, "tpmd", 1, 10_000));
            if let Some(tpm) = &mut self.keyd.tpm {
                tpm.connections_per_uid = connections;
            }
        }
        let Some(keys) = root.table("aziot_keys") else { return };
        self.token(&keys);
        self.places(&keys);
        self.sandbox(&keys);
    }

    fn sandbox(&mut self, keys: &View<'_>) {
        if let Some(enabled) = keys.boolean("sandbox") {
            self.keyd.sandbox.enabled = enabled;
        }
        if let Some(network) = keys.boolean("sandbox_network") {
            self.keyd.sandbox.network = network;
        }
        for path in keys.texts("sandbox_paths") {
            let file = sandbox_path(path.text);
            if let Some(file) = self.checked("aziot_keys.sandbox_paths", &path, file) {
                self.place("aziot_keys.sandbox_paths", &path, &file, Expected::FileOrFolder);
                self.keyd.sandbox.paths.push(file);
            }
        }
        self.unknown_library(keys);
    }

    /// A library that keyd's sandbox may keep from its files.
    fn unknown_library(&mut self, keys: &View<'_>) {
        let named =
            |key: &str| keys.text(key).map(|text| (text.span.clone(), text.text.to_owned()));
        let library = named("pkcs11_lib_path")
            .map(|(span, text)| ("pkcs11_lib_path", span, PathBuf::from(text)));
        let in_uri = named("pkcs11_base_slot").and_then(|(span, text)| {
            let path = pkcs11_uri(&text).ok()?.module_path?;
            Some(("pkcs11_base_slot", span, path))
        });
        let Some((key, span, path)) = in_uri.or(library) else { return };
        if let Some(fix) = self.keyd.sandbox.missing_for(&path) {
            let message = "keyd's sandbox does not know which files this library needs: it may find no token there";
            self.report.notice(Code::Unusual, &span, keys.key(key), message, Some(fix));
        }
    }

    fn tpm(&mut self, tpm: &View<'_>) -> TpmSettings {
        let mut settings = TpmSettings::default();
        if let Some(tcti) = tpm.text("tcti") {
            // Empty means to existing services: try what there is.
            let wanted =
                if tcti.text.is_empty() { settings.tcti.clone() } else { tcti.text.to_owned() };
            let parsed = wanted.parse::<Tcti>().map_err(|why| why.to_string());
            if self.checked("tpm.tcti", &tcti, parsed).is_some() {
                if let Some(node) = wanted.strip_prefix("device:") {
                    self.place("tpm.tcti", &tcti, Path::new(node), Expected::Device);
                }
                settings.tcti = wanted;
            }
        }
        if let Some(index) = self.count(tpm, "auth_key_index", 0, TpmSettings::AUTH_KEY_INDEX_LIMIT)
        {
            settings.auth_key_index = index;
        }
        settings.audit_counter = self.audit_counter(tpm);
        settings.measure = self.measure(tpm, settings.audit_counter);
        if let Some(hierarchies) = tpm.table("hierarchy_authorization") {
            settings.endorsement = self.auth(&hierarchies, "endorsement");
            settings.owner = self.auth(&hierarchies, "owner");
        }
        settings
    }

    fn audit_counter(&mut self, tpm: &View<'_>) -> AuditCounter {
        let mut counter = AuditCounter::default();
        if let Some(enabled) = tpm.boolean("audit_counter") {
            counter.enabled = enabled;
        }
        if let Some(index) = self.nv_index(tpm, "audit_counter_index") {
            counter.index = index;
        }
        if let Some(interval) = self.count(tpm, "audit_counter_interval_sec", 10, 86_400) {
            counter.interval_sec = interval;
            if interval < 60
                && let Some(entry) = tpm.entry("audit_counter_interval_sec")
            {
                let message = "a step of the counter more than once a minute wears the TPM's memory out within years";
                self.report.notice(
                    Code::Unusual,
                    &entry.key_span,
                    tpm.key("audit_counter_interval_sec"),
                    message,
                    None,
                );
            }
        }
        for key in ["audit_counter_index", "audit_counter_interval_sec"] {
            if !counter.enabled
                && let Some(entry) = tpm.entry(key)
            {
                let message =
                    format!("`{}` has no effect: the counter is switched off", tpm.key(key));
                self.report.notice(Code::NoEffect, &entry.key_span, tpm.key(key), message, None);
            }
        }
        counter
    }

    /// An NV index in the owner's range.
    fn nv_index(&mut self, tpm: &View<'_>, key: &str) -> Option<u32> {
        let (index, span) = tpm.integer(key)?;
        let (first, last) = AuditCounter::RANGE;
        let index = u32::try_from(index).ok().filter(|index| (first..=last).contains(index));
        if index.is_none() {
            let message =
                format!("expected an NV index of the owner's range, {first:#010x} to {last:#010x}");
            self.report.error(Code::BadValue, span, tpm.key(key), message);
        }
        index
    }

    fn measure(&mut self, tpm: &View<'_>, counter: AuditCounter) -> MeasureInto {
        let mut into = MeasureInto::default();
        if let Some(pcr) = self.count(tpm, "measure_pcr", 8, 15) {
            into.pcr = u8::try_from(pcr).ok();
        }
        if let Some(index) = self.nv_index(tpm, "measure_index") {
            into.index = Some(index);
        }
        if counter.enabled
            && into.index == Some(counter.index)
            && let Some(entry) =
                tpm.entry("measure_index").or_else(|| tpm.entry("audit_counter_index"))
        {
            let message = "this index is taken: the counter and the measurements need one each";
            self.report.error(Code::BadValue, &entry.key_span, tpm.key("measure_index"), message);
        }
        if tpm.boolean("measure") == Some(false) {
            for key in ["measure_pcr", "measure_index"] {
                if let Some(entry) = tpm.entry(key) {
                    let message =
                        format!("`{}` has no effect: measure is switched off", tpm.key(key));
                    self.report.notice(
                        Code::NoEffect,
                        &entry.key_span,
                        tpm.key(key),
                        message,
                        None,
                    );
                }
            }
            return MeasureInto { pcr: None, index: None };
        }
        into
    }

    fn auth(&mut self, hierarchies: &View<'_>, name: &str) -> Option<AuthSource> {
        let path = hierarchies.key(name);
        if let Some(text) = hierarchies.text(name) {
            let fits = AuthValue::new(text.text.as_bytes()).map_err(|why| why.to_string());
            self.checked(&path, &text, fits)?;
            return (!text.text.is_empty()).then(|| AuthSource::Value(text.text.into()));
        }
        let source = hierarchies.table(name)?;
        let found: Vec<(&str, Text<'_>)> = ["file", "credential"]
            .into_iter()
            .filter_map(|key| Some((key, source.text(key)?)))
            .collect();
        match &found[..] {
            [("file", uri)] => {
                let file = self.checked(&source.key("file"), uri, value::file_uri(uri.text))?;
                self.place(&source.key("file"), uri, Path::new(&file), Expected::File);
                Some(AuthSource::File(PathBuf::from(file)))
            }
            [("credential", name)] => {
                let name =
                    self.checked(&source.key("credential"), name, credential_name(name.text))?;
                Some(AuthSource::Credential(name))
            }
            _ => {
                let remedy = "name one of `file` and `credential`, or write the value itself";
                self.report.error_with(
                    Code::Conflict,
                    &source.span,
                    &path,
                    format!("`{path}` needs one source"),
                    remedy,
                );
                None
            }
        }
    }

    fn token(&mut self, keys: &View<'_>) {
        let mut token = TokenSettings::default();
        if let Some(path) = keys.text("pkcs11_lib_path") {
            let absolute = if path.text.starts_with('/') {
                Ok(PathBuf::from(path.text))
            } else {
                Err("expected the absolute path of a PKCS#11 library".to_owned())
            };
            token.library = self.checked("aziot_keys.pkcs11_lib_path", &path, absolute);
            if let Some(library) = &token.library {
                let library = library.clone();
                self.place("aziot_keys.pkcs11_lib_path", &path, &library, Expected::Library);
            }
        }
        if let Some(slot) = keys.text("pkcs11_base_slot") {
            const PATH: &str = "aziot_keys.pkcs11_base_slot";
            let uri = pkcs11_uri(slot.text).and_then(|uri| {
                if uri.token.is_empty() {
                    Err("the URI names no token: add token= or slot-id=".to_owned())
                } else {
                    Ok(uri)
                }
            });
            if let Some(uri) = self.checked(PATH, &slot, uri) {
                if uri.module_path.is_none() && !keys.has("pkcs11_lib_path") {
                    let message = "nothing says which library knows the token";
                    let remedy =
                        "set `pkcs11_lib_path` to the absolute path of the PKCS#11 library";
                    self.report.error_with(Code::Conflict, slot.span, PATH, message, remedy);
                }
                token.base_slot = Some(slot.text.into());
            }
        }
        if keys.has("pkcs11_lib_path") || keys.has("pkcs11_base_slot") {
            self.keyd.pkcs11 = Some(token);
        }
    }

    fn places(&mut self, keys: &View<'_>) {
        let words =
            [("token", KeyPlace::Token), ("tpm", KeyPlace::Tpm), ("files", KeyPlace::Files)];
        for word in keys.texts("places") {
            const PATH: &str = "aziot_keys.places";
            let Some(place) = self.choice(PATH, &word, &words) else { continue };
            let lacks = match place {
                KeyPlace::Token if !keys.has("pkcs11_base_slot") => {
                    Some("set `pkcs11_base_slot` as well")
                }
                KeyPlace::Tpm if self.keyd.tpm.is_none() => Some("add a table [tpm]"),
                _ if self.keyd.places.contains(&place) => Some("name each place once"),
                _ => None,
            };
            if let Some(remedy) = lacks {
                let message = format!("\"{}\" cannot be a place for keys here", word.text);
                self.report.error_with(Code::Conflict, word.span, PATH, message, remedy);
            }
            self.keyd.places.push(place);
        }
        if let Some(word) = keys.text("pass_on") {
            let words = [
                ("nothing", PassOn::Nothing),
                ("symmetric_keys", PassOn::SymmetricKeys),
                ("everything", PassOn::Everything),
            ];
            if let Some(pass_on) = self.choice("aziot_keys.pass_on", &word, &words) {
                self.keyd.pass_on = pass_on;
            }
        }
        if let Some(word) = keys.text("seal")
            && let Some(seal) = self.choice("aziot_keys.seal", &word, &SEALS)
        {
            let lacks = match seal {
                Seal::Tpm if self.keyd.tpm.is_none() => Some((
                    "the TPM cannot seal the key store: no TPM is configured",
                    "add a table [tpm]",
                )),
                Seal::Pkcs11 if !keys.has("pkcs11_base_slot") => Some((
                    "no token can protect the key store: none is configured",
                    "set `pkcs11_lib_path` and `pkcs11_base_slot` in [aziot_keys]",
                )),
                _ => None,
            };
            if let Some((message, remedy)) = lacks {
                self.report.error_with(
                    Code::Conflict,
                    word.span,
                    "aziot_keys.seal",
                    message,
                    remedy,
                );
            }
            self.keyd.seal = Some(seal);
        }
    }

    /// The URI of a key that keyd finds on a token.
    pub(crate) fn key_on_token(&mut self, path: &str, text: &Text<'_>) -> Option<SecretText> {
        let uri = self.checked(path, text, pkcs11_uri(text.text))?;
        self.object_on_token(path, text, &uri, "key")?;
        Some(text.text.into())
    }

    /// Refuses a URI by which keyd does not find the object.
    pub(crate) fn object_on_token(
        &mut self,
        path: &str,
        text: &Text<'_>,
        uri: &Pkcs11Uri,
        kind: &str,
    ) -> Option<()> {
        let token = self.keyd.pkcs11.as_ref();
        let lacks = if uri.object.label.is_none() && uri.object.id.is_none() {
            Some((format!("the URI names no {kind}"), "add object= or id= to the URI"))
        } else if uri.token.is_empty() && token.is_none_or(|token| token.base_slot.is_none()) {
            Some((
                "the URI names no token".to_owned(),
                "add token= to the URI, or set `pkcs11_base_slot` in [aziot_keys]",
            ))
        } else if uri.module_path.is_none() && token.is_none_or(|token| token.library.is_none()) {
            Some((
                "nothing says which library knows the token".to_owned(),
                "set `pkcs11_lib_path` in [aziot_keys]",
            ))
        } else {
            None
        };
        if let Some((message, remedy)) = lacks {
            self.report.error_with(Code::BadValue, text.span, path, message, remedy);
            return None;
        }
        Some(())
    }

    /// The URI of a key that keyd finds in the TPM.
    pub(crate) fn key_in_tpm(&mut self, path: &str, text: &Text<'_>) -> Option<SecretText> {
        let parsed = text.text.parse::<KeyUri>().map_err(|why| why.to_string());
        self.checked(path, text, parsed)?;
        if self.keyd.tpm.is_none() {
            let message = "the key is in the TPM, and no TPM is configured";
            self.report.error_with(Code::Conflict, text.span, path, message, "add a table [tpm]");
            return None;
        }
        Some(text.text.into())
    }

    /// Assigns the keys that the configuration itself brings to files: files are there
    /// also while the token is not.
    pub(crate) fn assign_imported(&mut self) {
        if self.keyd.has_hardware() {
            let ids = self.imported_keys.iter().map(|(id, _)| (id.clone(), KeyPlace::Files));
            self.keyd.assigned.extend(ids);
        }
    }
}
