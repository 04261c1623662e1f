//! Examination of a token, its library and our rights to it, with remedies.
//!
//! The examination does what the daemon would do, in the same way: it logs in, once, and
//! makes, uses and deletes test keys.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use cryptoki::mechanism::MechanismType;
use edgekeep_base::error::chain;
use edgekeep_core::id::KeyId;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde::Serialize;

use super::error::{TokenError, call_error};
use super::library::Library;
use super::token::{Choice, TokenFacts, choose, tokens};
use super::{Pkcs11Backend, Pkcs11Settings, pin};
use crate::backend::{
    KeyBackend, KeyError, KeyKind, PairAlgorithm, RsaPadding, SymmetricKey, Usage,
};
use crate::uri::{PinSource, Pkcs11Uri};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// Severity of the finding.
    pub verdict: Verdict,
    /// Description of the finding.
    pub text: String,
    /// Remedy; `None` if nothing needs to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works, with a limitation or a risk.
    Warning,
    /// Does not work.
    Bad,
}

/// The report while it is made.
#[derive(Default)]
struct Report(Vec<Finding>);

impl Report {
    fn good(&mut self, check: &'static str, text: impl Into<String>) {
        self.0.push(Finding { check, verdict: Verdict::Good, text: text.into(), fix: None });
    }

    fn warn(&mut self, check: &'static str, text: impl Into<String>, fix: Option<String>) {
        self.0.push(Finding { check, verdict: Verdict::Warning, text: text.into(), fix });
    }

    fn bad(&mut self, check: &'static str, text: impl Into<String>, fix: Option<String>) {
        self.0.push(Finding { check, verdict: Verdict::Bad, text: text.into(), fix });
    }
}

/// Examines the token of `uri` with `library`, unless the URI names one. Without a URI,
/// all tokens are listed and none is logged in to. Stops where going on makes no sense.
/// Leaves nothing on the token.
#[must_use]
pub fn examine(library: Option<&Path>, uri: Option<&Pkcs11Uri>) -> Vec<Finding> {
    let mut report = Report::default();
    examine_into(&mut report, library, uri);
    report.0
}

fn examine_into(report: &mut Report, library: Option<&Path>, uri: Option<&Pkcs11Uri>) {
    let Some(path) = uri.and_then(|uri| uri.module_path.as_deref()).or(library) else {
        return report.bad("library", TokenError::NoLibrary.to_string(), None);
    };
    check_surroundings(report, path);
    let loaded = match Library::load(path) {
        Ok(loaded) => loaded,
        Err(error) => return report.bad("library", error.to_string(), Some(package_of(path))),
    };
    {
        let initialized = loaded.enter();
        match initialized.pkcs11.get_library_info() {
            Ok(info) => {
                let (name, version) = (info.library_description(), info.library_version());
                report
                    .good("library", format!("{} is {name:?} {version}", loaded.path().display()));
            }
            Err(error) => report.warn("library", call_error(&error, "").to_string(), None),
        }
        match initialized.pkcs11.get_all_slots() {
            Ok(slots) => report.good("slots", format!("{} slots", slots.len())),
            Err(error) => return report.bad("slots", call_error(&error, "").to_string(), None),
        }
        let tokens = match tokens(&initialized) {
            Ok(tokens) => tokens,
            Err(error) => return report.bad("tokens", call_error(&error, "").to_string(), None),
        };
        let facts: Vec<TokenFacts> =
            tokens.iter().map(|(slot, info)| TokenFacts::of(*slot, info)).collect();
        for (token, (_, info)) in facts.iter().zip(&tokens) {
            let text = token.describe();
            if !token.initialized {
                report.warn(
                    "tokens",
                    text,
                    Some("initialize it before use (pkcs11-tool --init-token)".to_owned()),
                );
            } else if info.user_pin_locked() {
                let token = token.label.clone();
                report.bad(
                    "tokens",
                    format!("{text}: PIN locked"),
                    Some(TokenError::PinLocked { token }.to_string()),
                );
            } else if info.user_pin_final_try() || info.user_pin_count_low() {
                report.warn("tokens", format!("{text}: a wrong PIN was given lately"), None);
            } else {
                report.good("tokens", text);
            }
        }
        if tokens.is_empty() {
            let fix = "plug a token in, or initialize one (softhsm2-util, tpm2_ptool); \
                       look also at the rights on its store";
            report.bad("tokens", "there is no token", Some(fix.to_owned()));
        }
        let Some(uri) = uri else { return };
        match choose(&uri.token, &facts) {
            Choice::One(index) => {
                report.good("token", format!("the uri means {}", facts[index].describe()));
                match initialized.pkcs11.get_mechanism_list(tokens[index].0) {
                    Ok(mechanisms) => check_mechanisms(report, &mechanisms),
                    Err(error) => {
                        report.warn("mechanisms", call_error(&error, "").to_string(), None);
                    }
                }
            }
            // The login names the reason.
            Choice::Absent | Choice::Several | Choice::Unspecific => {}
        }
    }
    let Some(uri) = uri else { return };
    check_pin_file(report, uri);
    let settings = Pkcs11Settings {
        library: Some(path.to_owned()),
        uri: uri.clone(),
        sessions: 2,
        preloaded: BTreeMap::new(),
    };
    match Pkcs11Backend::open(settings) {
        Ok(backend) => check_use(report, &backend),
        Err(error) => report.bad("library", error.to_string(), None),
    }
}

fn check_use(report: &mut Report, backend: &Pkcs11Backend) {
    match backend.connect() {
        Ok(()) => report.good("login", format!("logged in to {:?}", backend.token_name())),
        Err(error) => return report.bad("login", chain(&error), None),
    }
    let mut suffix = [0; 6];
    // Also zeros are a name that no other key has.
    let _ = rand::fill(&mut suffix);
    let suffix: String = suffix.iter().map(|byte| format!("{byte:02x}")).collect();
    let Ok(id) = format!("edgekeep-doctor-{suffix}").parse::<KeyId>() else { return };
    let hmac = Usage { derive_or_sign: true, encrypt: false };
    let aes = Usage { derive_or_sign: false, encrypt: true };
    check_key(report, backend, &id, KeyKind::Pair, "EC P-256 key pair", &|| {
        backend.create_key_pair(&id, &[PairAlgorithm::EcP256])?;
        backend.sign_ecdsa(&id, &[7; 32]).map(drop)
    });
    check_key(report, backend, &id, KeyKind::Pair, "RSA-2048 key pair", &|| {
        backend.create_key_pair(&id, &[PairAlgorithm::Rsa2048])?;
        backend.rsa_private_operation(&id, RsaPadding::Pkcs1, &[7; 32]).map(drop)
    });
    check_key(report, backend, &id, KeyKind::Symmetric, "HMAC-SHA256 key", &|| {
        backend.create_key(&id, hmac)?;
        backend.hmac_sha256(SymmetricKey::Stored(&id), b"test").map(drop)
    });
    check_key(report, backend, &id, KeyKind::Symmetric, "imported HMAC-SHA256 key", &|| {
        backend.import_key(&id, vec![7; 32].into(), hmac)?;
        backend.hmac_sha256(SymmetricKey::Stored(&id), b"test").map(drop)
    });
    check_key(report, backend, &id, KeyKind::Symmetric, "AES-256-GCM key", &|| {
        backend.create_key(&id, aes)?;
        backend.encrypt(SymmetricKey::Stored(&id), &[7; 16], b"", b"test").map(drop)
    });
}

/// Makes, uses and deletes a key.
fn check_key(
    report: &mut Report,
    backend: &Pkcs11Backend,
    id: &KeyId,
    kind: KeyKind,
    what: &str,
    make_and_use: &dyn Fn() -> Result<(), KeyError>,
) {
    let used = make_and_use();
    let deleted = match (&used, backend.kind(id)) {
        (Err(_), Ok(None)) => Ok(()),
        _ => backend.delete(id, kind),
    };
    match used {
        Ok(()) => report.good("test key", format!("{what}: made, used")),
        Err(KeyError::NotSupported { .. }) => {
            let fix = "such keys have to be kept elsewhere: let the keyring pass them on to the next place";
            report.warn(
                "test key",
                format!("{what}: the token does not have this"),
                Some(fix.to_owned()),
            );
        }
        Err(error) => report.bad("test key", format!("{what}: {}", chain(&error)), None),
    }
    if let Err(error) = deleted {
        let fix = format!("delete it by hand (pkcs11-tool --login --delete-object --label {id})");
        report.bad("test key", format!("{what} was not deleted: {}", chain(&error)), Some(fix));
    }
}

fn check_mechanisms(report: &mut Report, found: &[MechanismType]) {
    let wanted = [
        ("CKM_EC_KEY_PAIR_GEN", MechanismType::ECC_KEY_PAIR_GEN),
        ("CKM_ECDSA", MechanismType::ECDSA),
        ("CKM_RSA_PKCS_KEY_PAIR_GEN", MechanismType::RSA_PKCS_KEY_PAIR_GEN),
        ("CKM_RSA_PKCS", MechanismType::RSA_PKCS),
        ("CKM_RSA_X_509", MechanismType::RSA_X_509),
        ("CKM_GENERIC_SECRET_KEY_GEN", MechanismType::GENERIC_SECRET_KEY_GEN),
        ("CKM_SHA256_HMAC", MechanismType::SHA256_HMAC),
        ("CKM_AES_KEY_GEN", MechanismType::AES_KEY_GEN),
        ("CKM_AES_GCM", MechanismType::AES_GCM),
    ];
    let missing: Vec<&str> =
        wanted.iter().filter(|(_, kind)| !found.contains(kind)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        report.good("mechanisms", "the token has all that can be used");
    } else {
        report.warn("mechanisms", format!("the token does not have {}", missing.join(", ")), None);
    }
}

fn check_pin_file(report: &mut Report, uri: &Pkcs11Uri) {
    match &uri.pin {
        None => {}
        Some(PinSource::Value(_)) => {
            let fix = "put it into a file of its own, or a systemd credential, and name that with pin-source=";
            report.warn("PIN", "the PIN stands in the configuration", Some(fix.to_owned()));
        }
        Some(source) => {
            let Some(path) = pin::path(source) else { return };
            match fs::metadata(&path) {
                Err(error) => {
                    let fix = format!("make the file, with mode 0400 and owned by {}", user());
                    report.bad("PIN", format!("{}: {error}", path.display()), Some(fix));
                }
                Ok(data) if data.permissions().mode() & 0o077 != 0 => {
                    let text = format!(
                        "{} can be read by others (mode {:o})",
                        path.display(),
                        data.permissions().mode() & 0o777
                    );
                    report.warn("PIN", text, Some(format!("chmod 0400 {}", path.display())));
                }
                Ok(_) => match pin::read(source, "") {
                    Ok(_) => report.good("PIN", format!("{} can be read", path.display())),
                    Err(error) => {
                        let fix = format!("chown {} {}", user(), path.display());
                        report.bad("PIN", chain(&KeyError::from(error)), Some(fix));
                    }
                },
            }
        }
    }
}

/// A file, folder or device that a library works with.
#[derive(Debug, PartialEq, Eq)]
struct Needed {
    path: PathBuf,
    what: &'static str,
    /// True if the library also writes the file.
    written: bool,
    /// Remedy if the file does not exist.
    if_missing: String,
    /// Remedy if we have no rights on the file.
    if_denied: String,
}

/// Returns the files and folders that the common libraries need. `environment` looks up
/// variables, `content` reads files.
fn needed(
    library: &Path,
    user: &str,
    environment: impl Fn(&str) -> Option<String>,
    content: impl Fn(&Path) -> Option<String>,
) -> Vec<Needed> {
    let name =
        library.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let home = environment("HOME").map(PathBuf::from);
    if name.contains("softhsm") {
        let of_user = home.map(|home| home.join(".config/softhsm2/softhsm2.conf"));
        let configuration = match environment("SOFTHSM2_CONF") {
            Some(path) => PathBuf::from(path),
            None => of_user
                .filter(|path| content(path).is_some())
                .unwrap_or_else(|| "/etc/softhsm/softhsm2.conf".into()),
        };
        let tokens = content(&configuration).and_then(|text| {
            let line = text.lines().find_map(|line| {
                line.trim().strip_prefix("directories.tokendir").map(str::to_owned)
            })?;
            Some(PathBuf::from(line.trim().strip_prefix('=')?.trim()))
        });
        let mut all = vec![Needed {
            what: "SoftHSM configuration",
            written: false,
            if_missing:
                "install SoftHSM's configuration, or set SOFTHSM2_CONF in the unit of the daemon"
                    .to_owned(),
            if_denied: format!("usermod -aG softhsm {user}, or chgrp it to a group of {user}"),
            path: configuration,
        }];
        all.extend(tokens.map(|path| Needed {
            what: "SoftHSM token folder",
            written: true,
            if_missing: format!("install -d -m 0770 -o {user} {}", path.display()),
            if_denied: format!(
                "chown -R {user} {} (or usermod -aG softhsm {user})",
                path.display()
            ),
            path,
        }));
        return all;
    }
    if name.contains("tpm2_pkcs11") {
        let system = PathBuf::from("/etc/tpm2_pkcs11");
        let store = match environment("TPM2_PKCS11_STORE") {
            Some(path) => PathBuf::from(path),
            None if system.is_dir() => system,
            None => home.map_or(system, |home| home.join(".tpm2_pkcs11")),
        };
        let mut all = vec![Needed {
            what: "store of libtpm2_pkcs11",
            written: true,
            if_missing: format!(
                "tpm2_ptool init --path {0}, and set TPM2_PKCS11_STORE={0} in the unit of the daemon",
                store.display()
            ),
            if_denied: format!("chown -R {user} {}", store.display()),
            path: store,
        }];
        let tcti = environment("TPM2_PKCS11_TCTI").unwrap_or_default();
        let device = match tcti.split_once(':') {
            None if tcti.is_empty() || tcti == "device" => Some(PathBuf::from("/dev/tpmrm0")),
            Some(("device", path)) => Some(PathBuf::from(path)),
            _ => None,
        };
        all.extend(device.map(|path| Needed {
            what: "TPM",
            written: true,
            if_missing: "switch the TPM on in the firmware, and load its kernel module".to_owned(),
            if_denied: format!("usermod -aG tss {user}, then restart the daemon"),
            path,
        }));
        return all;
    }
    if name.contains("opensc") || name.contains("ykcs11") {
        return vec![Needed {
            path: "/run/pcscd/pcscd.comm".into(),
            what: "smart card service",
            written: true,
            if_missing: "systemctl enable --now pcscd.socket".to_owned(),
            if_denied: format!(
                "allow {user} the action org.debian.pcsc-lite.access_pcsc in polkit"
            ),
        }];
    }
    Vec::new()
}

fn check_surroundings(report: &mut Report, library: &Path) {
    let variable = |name: &str| std::env::var(name).ok();
    for needed in needed(library, &user(), variable, |path| fs::read_to_string(path).ok()) {
        if needed.path.starts_with("/dev") && needed.path.to_string_lossy().ends_with("/tpm0") {
            let fix = "use /dev/tpmrm0: a TPM has room for three objects, and the kernel's resource manager makes more";
            report.warn("TPM", "the TPM is used without resource manager", Some(fix.to_owned()));
        }
        let path = needed.path.display();
        let mut access = Access::READ_OK;
        if needed.written {
            access |= Access::WRITE_OK;
        }
        if needed.path.is_dir() {
            access |= Access::EXEC_OK;
        }
        match accessat(CWD, &needed.path, access, AtFlags::EACCESS) {
            Ok(()) => report.good("rights", format!("{} {path} can be used", needed.what)),
            Err(rustix::io::Errno::NOENT) => {
                report.bad(
                    "rights",
                    format!("{} {path} is not there", needed.what),
                    Some(needed.if_missing),
                );
            }
            Err(error) => {
                report.bad(
                    "rights",
                    format!("{} {path} is denied to us: {error}", needed.what),
                    Some(needed.if_denied),
                );
            }
        }
    }
}

/// The package that has a library that is not there.
fn package_of(library: &Path) -> String {
    let name = library.to_string_lossy();
    let package = match () {
        () if name.contains("softhsm") => "apt install softhsm2",
        () if name.contains("tpm2_pkcs11") => "apt install libtpm2-pkcs11-1",
        () if name.contains("opensc") => "apt install opensc-pkcs11",
        () => {
            return "install the library of the token's maker, and name it by its absolute path"
                .to_owned();
        }
    };
    format!("{package}, or correct the path")
}

/// Whom rights have to be given: the name if there is one, else the number.
fn user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    name.unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_library_needs_is_known_with_the_exact_fix() {
        let environment =
            |name: &str| (name == "SOFTHSM2_CONF").then(|| "/c/softhsm2.conf".to_owned());
        let content = |path: &Path| {
            (path == Path::new("/c/softhsm2.conf"))
                .then(|| "# x\n directories.tokendir = /c/tokens \n".to_owned())
        };
        let all =
            needed(Path::new("/usr/lib/softhsm/libsofthsm2.so"), "keyd", environment, content);
        let paths: Vec<_> =
            all.iter().map(|needed| (needed.path.as_path(), needed.written)).collect();
        assert_eq!(paths, [(Path::new("/c/softhsm2.conf"), false), (Path::new("/c/tokens"), true)]);
        assert_eq!(all[1].if_missing, "install -d -m 0770 -o keyd /c/tokens");

        let environment = |name: &str| match name {
            "TPM2_PKCS11_STORE" => Some("/s".to_owned()),
            "TPM2_PKCS11_TCTI" => Some("device:/dev/tpm0".to_owned()),
            _ => None,
        };
        let all = needed(Path::new("/usr/lib/libtpm2_pkcs11.so.1"), "keyd", environment, |_| None);
        let paths: Vec<_> = all.iter().map(|needed| needed.path.as_path()).collect();
        assert_eq!(paths, [Path::new("/s"), Path::new("/dev/tpm0")]);
        assert!(all[1].if_denied.contains("usermod -aG tss keyd"));
        assert!(needed(Path::new("/opt/vendor.so"), "keyd", |_| None, |_| None).is_empty());
    }

    #[test]
    fn a_library_that_is_not_there_is_a_finding_with_a_fix() {
        let findings = examine(Some(Path::new("/nowhere/libsofthsm2.so")), None);
        let last = findings.last().unwrap();
        assert_eq!((last.check, last.verdict), ("library", Verdict::Bad));
        assert_eq!(last.fix.as_deref(), Some("apt install softhsm2, or correct the path"));
        assert_eq!(examine(None, None)[0].verdict, Verdict::Bad);
        let text = serde_json::to_string(last).unwrap();
        assert!(text.contains(r#""verdict":"bad""#), "{text}");
    }
}
