//! The files of the compatible packages, read into values.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use aws_lc_rs::digest;
use edgekeep_base::file::{self, Rules};
use edgekeep_config::{Diagnostic, Environment, Translated, environment, translate};
use edgekeep_core::credentials::{Limits, read_certificates, read_key};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::layout::Root;
use edgekeep_core::migration::{
    CONFIGURATION, Content, Device, FOLDERS, Found, RUNTIME_FOLDER, Role, role,
};
use edgekeep_core::provisioning::{DeviceIdentity, Source};
use edgekeep_core::settings::{DeviceCredential, ModuleEncryption, PreloadedCert, Provisioning};
use serde::Deserialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::engine;
use crate::arguments::Context;
use crate::config;

/// Most files that are looked at, and most folders within each other.
const FILES: usize = 10_000;
const DEPTH: usize = 8;
/// Longest file with an identity, in bytes.
const SMALL: u64 = 64 * 1024;

/// Lines that come before the configuration that is taken over, where it says nothing of
/// how modules' data is encrypted.
const WAY_BACK: &str = "# Written by `edgekeep migrate`: modules' data is encrypted as before, so that the existing packages\n\
                        # can read it after `edgekeep migrate --undo`. Remove the line to give each module a key of its own.\n\
                        module_encryption = \"device-key\"\n\n";

/// A device, and what is made of its configuration.
pub(super) struct Looked {
    pub(super) device: Device,
    /// The configuration that is read.
    pub(super) configuration: PathBuf,
    /// The configuration as it is to be.
    pub(super) text: String,
    pub(super) environment: Environment,
    pub(super) notices: Vec<Diagnostic>,
}

/// A configuration with errors.
pub(super) struct Refused {
    file: PathBuf,
    found: Vec<Diagnostic>,
}

impl Refused {
    pub(super) fn show(self, context: &Context) -> anyhow::Result<ExitCode> {
        config::refused(context, &self.found, &self.file.display().to_string())
    }
}

/// Reads everything that the plan is made from.
///
/// # Errors
/// If a folder or file cannot be read, or the engine does not answer. Within, a
/// configuration with errors.
pub(super) async fn device(
    root: &Root,
    lenient: bool,
    ids: Vec<String>,
) -> anyhow::Result<Result<Looked, Refused>> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        list(root, Path::new(folder), 0, &mut files)?;
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    let configuration = root.path().join(CONFIGURATION);
    let text = edgekeep_config::read_config(&configuration).with_context(|| {
        format!(
            "cannot read {}, the configuration of the existing tools; write it, or run as root (sudo)",
            configuration.display()
        )
    })?;
    let seen = |text: &str| {
        let mode = edgekeep_config::mode_of(&configuration);
        Environment { mode, lenient, ..environment(text) }
    };
    let environment_of_old = seen(&text);
    let translated = match translate(&text, &environment_of_old) {
        Ok(translated) => translated,
        Err(found) => return Ok(Err(Refused { file: configuration, found })),
    };
    let is_unsaid = translated.moduled.module_encryption == ModuleEncryption::default()
        && !text.contains("module_encryption");
    let text = match is_unsaid {
        true => format!("{WAY_BACK}{}", text.trim_start_matches('\u{feff}')),
        false => text,
    };
    // Ours is written for root alone.
    let environment = Environment { mode: Some(0o600), ..seen(&text) };
    let containers = match &translated.moduled.engine {
        Some(engine) if root.path().join(RUNTIME_FOLDER).is_dir() => {
            engine::containers(&engine.uri).await?
        }
        _ => Vec::new(),
    };
    let device = Device {
        containers,
        ids: ids_of(&translated, ids),
        source: Source::of(&translated.identityd.provisioning),
        certificate: thumbprint(root, &translated, &files),
        policies: translated.moduled.policies.clone(),
        now: OffsetDateTime::now_utc().unix_timestamp(),
        files,
    };
    let notices = translated.notices;
    Ok(Ok(Looked { device, configuration, text, environment, notices }))
}

/// Ids of keys and certificates that the configuration names.
fn ids_of(translated: &Translated, named: Vec<String>) -> BTreeSet<String> {
    let mut ids: BTreeSet<String> = named.into_iter().collect();
    ids.extend(translated.keyd.preloaded_keys.keys().map(ToString::to_string));
    ids.extend(translated.keyd.assigned.keys().map(ToString::to_string));
    ids.extend(translated.identityd.cert_issuance.keys().map(ToString::to_string));
    ids.extend(translated.identityd.preloaded_certs.keys().map(ToString::to_string));
    ids
}

fn list(root: &Root, folder: &Path, depth: usize, files: &mut Vec<Found>) -> anyhow::Result<()> {
    let path = root.path().join(folder);
    let unreadable = || format!("cannot read {}; run as root (sudo)", path.display());
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(unreadable),
    };
    for entry in entries {
        let entry = entry.with_context(unreadable)?;
        let kind = entry.file_type().with_context(unreadable)?;
        let below = folder.join(entry.file_name());
        if kind.is_dir() {
            anyhow::ensure!(depth < DEPTH, "folders in {} are too deep", path.display());
            list(root, &below, depth + 1, files)?;
            continue;
        }
        anyhow::ensure!(files.len() < FILES, "there are more than {FILES} files to look at");
        let name = below.to_str().map(str::to_owned);
        let content = match (&name, kind.is_file()) {
            (Some(name), true) => read(&root.path().join(name), role(name))?,
            (Some(_), false) => Content::Unusable("is no regular file".to_owned()),
            (None, _) => Content::Unusable("has a name that is no text".to_owned()),
        };
        let path = name.unwrap_or_else(|| below.to_string_lossy().into_owned());
        files.push(Found { path, content });
    }
    Ok(())
}

/// Looks into a file as far as its role needs it.
///
/// # Errors
/// If this user may not read it. Whatever else is wrong with a file is told of it.
fn read(path: &Path, role: Role<'_>) -> anyhow::Result<Content> {
    let limit = match role {
        Role::Key(_) | Role::Certificate(_) => Limits::FILE.bytes as u64,
        Role::DeviceInfo | Role::Module(_) => SMALL,
        Role::Configuration | Role::NotNeeded(_) | Role::DropIn | Role::Unknown => {
            return Ok(Content::Unread);
        }
    };
    let content = match file::read(path, Rules::named(limit).without_links()) {
        Ok(content) => Zeroizing::new(content),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(error)
                .with_context(|| format!("cannot read {}; run as root (sudo)", path.display()));
        }
        Err(error) => return Ok(Content::Unusable(error.to_string())),
    };
    Ok(match role {
        Role::Key(_) => key(&content),
        Role::Certificate(_) => certificates(&content),
        Role::DeviceInfo => device_info(&content),
        _ => serde_json::from_slice(&content)
            .map_or_else(|_| Content::Unusable("is no JSON".to_owned()), Content::Json),
    })
}

fn key(content: &[u8]) -> Content {
    if content.is_empty() {
        return Content::Unusable("is empty".to_owned());
    }
    match read_key(content, &Limits::FILE) {
        Ok(_) => Content::Usable,
        Err(finding) => Content::Unusable(finding.to_string()),
    }
}

fn certificates(content: &[u8]) -> Content {
    let read = read_certificates(content, &Limits::FILE);
    match read.findings.gravest() {
        Some(finding) if read.certificates.is_empty() => Content::Unusable(finding.to_string()),
        _ => Content::Usable,
    }
}

/// Form of the file with the identity that the provisioning service gave.
#[derive(Deserialize)]
struct DeviceInfo {
    hub_name: String,
    device_id: String,
}

fn device_info(content: &[u8]) -> Content {
    let Ok(text) = std::str::from_utf8(content) else {
        return Content::Unusable("is no text".to_owned());
    };
    if text.trim() == "unprovisioned" {
        return Content::Identity(None);
    }
    let identity = toml::from_str::<DeviceInfo>(text).ok().and_then(|info| {
        Some(DeviceIdentity { hub: info.hub_name, device_id: info.device_id.parse().ok()? })
    });
    match identity {
        Some(identity) => Content::Identity(Some(identity)),
        None => Content::Unusable("names no hub_name and device_id".to_owned()),
    }
}

/// Thumbprint of the certificate that proves the device to the provisioning service.
fn thumbprint(root: &Root, translated: &Translated, files: &[Found]) -> Option<String> {
    let Provisioning::Dps { credential: DeviceCredential::X509 { cert, .. }, .. } =
        &translated.identityd.provisioning
    else {
        return None;
    };
    let path = match translated.identityd.preloaded_certs.get(cert) {
        Some(PreloadedCert::File(uri)) => PathBuf::from(uri.strip_prefix("file://").unwrap_or(uri)),
        // The existing packages know none on tokens.
        Some(PreloadedCert::Token { .. } | PreloadedCert::List(_)) => return None,
        None => {
            let end = format!("-{}.cer", sha256(cert.as_str()));
            let found = files.iter().find(|found| {
                matches!(role(&found.path), Role::Certificate(_)) && found.path.ends_with(&end)
            });
            root.path().join(&found?.path)
        }
    };
    let content = file::read(&path, Rules::named(Limits::FILE.bytes as u64)).ok()?;
    let leaf = read_certificates(&content, &Limits::FILE).certificates.into_iter().next()?;
    Some(digest_of(leaf.der()).hex())
}

fn digest_of(bytes: &[u8]) -> Sha256Digest {
    let mut array = [0; 32];
    array.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    Sha256Digest::new(array)
}

/// SHA-256 of a text, in hexadecimal digits.
pub(super) fn sha256(text: &str) -> String {
    digest_of(text.as_bytes()).hex()
}
