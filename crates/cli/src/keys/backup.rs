//! `edgekeep keys backup` and `keys restore`: keys that are in files, encrypted to
//! somebody's public key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edgekeep_core::hardware::Seal;
use edgekeep_core::id::KeyId;
use edgekeep_core::layout::Daemon;
use edgekeep_core::settings::KeydSettings;
use edgekeep_hsm::SecretBytes;
use edgekeep_hsm::configured::Hardware;
use edgekeep_hsm::envelope::{Identity, Recipient};
use edgekeep_hsm::software::{
    Backup, Elsewhere, Protection, RestoreError, RestoreMode, Restored, StoreError,
    restore as restore_keys,
};
use edgekeep_hsm::tpm::kept_keys;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::keyd_settings;
use super::migrate::STOP_FIRST;
use crate::arguments::Context;
use crate::output;

/// First bytes of the text of a backup in clear.
const CLEAR: &[u8] = b"edgekeep-keys ";
/// Longest file with a public or private key, in bytes.
const KEY_FILE_LIMIT: u64 = 64 * 1024;
/// Longest backup, in bytes.
const BACKUP_LIMIT: u64 = 128 * 1024 * 1024;

#[derive(Debug, Args)]
pub(crate) struct BackupOptions {
    /// Public key to encrypt to: age1..., or a file with a PEM public key (RSA, EC P-256)
    #[arg(long, value_name = "RECIPIENT")]
    to: String,
    /// File to write; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreOptions {
    /// The backup; "-" for one in clear, from a tool that decrypted it, on standard input
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,
    /// File with the private key: AGE-SECRET-KEY-1... or PEM
    #[arg(long, value_name = "FILE", required_unless_present = "clear")]
    identity: Option<PathBuf>,
    /// The backup is in clear; only from standard input
    #[arg(long, conflicts_with = "identity")]
    clear: bool,
    /// Replace other keys that are there under the same ids; they are kept as earlier
    /// versions
    #[arg(long)]
    force: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn backup(context: &Context, options: &BackupOptions) -> anyhow::Result<ExitCode> {
    let recipient = match options.to.parse::<Recipient>() {
        Ok(recipient) => recipient,
        Err(error) if options.to.starts_with("age1") => return Err(error.into()),
        Err(_) => {
            let path = Path::new(&options.to);
            let content = read_bounded(path, KEY_FILE_LIMIT)?;
            let text = String::from_utf8_lossy(content.expose()).into_owned();
            text.parse().with_context(|| path.display().to_string())?
        }
    };
    let settings = keyd_settings(context)?;
    let folder = context.root.state_folder(Daemon::Keyd);
    let hardware = Hardware::named(&settings);
    let keys = Backup::read(&folder, hardware.sealers())?;
    let elsewhere = elsewhere(&settings, &folder)?;
    let made = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let sealed = recipient.encrypt(&keys.encode(&made, &elsewhere))?;
    write_new(&options.out, &sealed)
        .with_context(|| format!("cannot write {}", options.out.display()))?;
    let counts = keys.counts();
    // On a token keys are found only by logging in, and there may be others than keyd's.
    let token = settings.pkcs11.as_ref().is_some_and(|pkcs11| pkcs11.base_slot.is_some());
    if context.json {
        let elsewhere: Vec<_> = elsewhere
            .iter()
            .map(|key| json!({ "place": key.place, "id": key.id.as_str() }))
            .collect();
        output::print_json(&json!({
            "file": options.out, "made": made, "keys": counts.keys, "olderVersions": counts.older, "own": counts.own,
            "elsewhere": elsewhere, "token": token,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!(
        "wrote {}: {} keys, {} earlier versions of keys, {} of keyd's own\n",
        options.out.display(),
        counts.keys,
        counts.older,
        counts.own
    );
    for key in &elsewhere {
        text.push_str(&format!("not in it: {} ({})\n", key.id, key.place));
    }
    if token {
        text.push_str("not in it: what is on the token of pkcs11_base_slot\n");
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Keys that keyd has and that are not in its files.
fn elsewhere(settings: &KeydSettings, folder: &Path) -> anyhow::Result<Vec<Elsewhere>> {
    let mut found: Vec<Elsewhere> = settings
        .preloaded_keys
        .iter()
        .map(|(id, uri)| {
            let place = match uri.expose().split_once(':') {
                Some(("tpm", _)) => "tpm",
                Some(("pkcs11", _)) => "token",
                _ => "preloaded-file",
            };
            Elsewhere { place, id: id.clone() }
        })
        .collect();
    let in_tpm = kept_keys(&folder.join("tpm")).context("cannot list the keys in the TPM")?;
    found.extend(in_tpm.into_iter().map(|id| Elsewhere { place: "tpm", id }));
    Ok(found)
}

pub(crate) fn restore(context: &Context, options: &RestoreOptions) -> anyhow::Result<ExitCode> {
    let text = clear_text(options)?;
    let backup = Backup::decode(&text)?;
    let settings = keyd_settings(context)?;
    let folder = context.root.state_folder(Daemon::Keyd);
    anyhow::ensure!(
        folder.is_dir(),
        "{} is not there: start keyd once, so that it makes it, and stop it again",
        folder.display()
    );
    // A rehearsal moves no store key.
    let wanted = settings.seal.filter(|_| !options.dry_run).map(|seal| match seal {
        Seal::File => Protection::File,
        Seal::Tpm => Protection::Tpm,
        Seal::Pkcs11 => Protection::Token,
    });
    let hardware = Hardware::named(&settings);
    let mode = RestoreMode { force: options.force, dry_run: options.dry_run };
    let done = match restore_keys(&folder, wanted, hardware.sealers(), &backup, mode) {
        Err(RestoreError::Store(error @ StoreError::InUse { .. })) => {
            return Err(anyhow::Error::new(error).context(STOP_FIRST));
        }
        done => done?,
    };
    if context.json {
        let ids = |ids: &[KeyId]| ids.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>();
        output::print_json(&json!({
            "added": ids(&done.added), "replaced": ids(&done.replaced), "same": done.same, "olderVersions": done.older,
            "ownKept": ids(&done.own_kept), "dryRun": options.dry_run,
        }))?;
    } else {
        output::print(&report(&done, options.dry_run))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(done: &Restored, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    let mut text = String::new();
    for (ids, what) in [
        (&done.added, "added"),
        (&done.replaced, "put in place of another, which is kept as an earlier version"),
        (&done.own_kept, "left as it is on this device: it goes with what is beside it"),
    ] {
        for id in ids {
            text.push_str(&format!("{id}: {would}{what}\n"));
        }
    }
    text.push_str(&format!(
        "{} keys are there already; {} earlier versions in the backup\n",
        done.same, done.older
    ));
    text
}

fn clear_text(options: &RestoreOptions) -> anyhow::Result<SecretBytes> {
    let Some(identity) = &options.identity else {
        anyhow::ensure!(
            options.backup == Path::new("-"),
            "a backup in clear is taken from standard input only: it must not be on a disk"
        );
        return Ok(read_all(io::stdin().lock(), BACKUP_LIMIT)?);
    };
    let identity = Identity::from_file_content(&read_bounded(identity, KEY_FILE_LIMIT)?)
        .with_context(|| identity.display().to_string())?;
    let sealed = if options.backup == Path::new("-") {
        read_all(io::stdin().lock(), BACKUP_LIMIT)?
    } else {
        read_bounded(&options.backup, BACKUP_LIMIT)?
    };
    anyhow::ensure!(
        !sealed.expose().starts_with(CLEAR),
        "this backup is in clear; pass it with --clear on standard input"
    );
    identity
        .decrypt(sealed.expose())
        .with_context(|| format!("cannot open {}", options.backup.display()))
}

fn read_bounded(path: &Path, limit: u64) -> anyhow::Result<SecretBytes> {
    let opened = File::open(path).and_then(|file| read_all(file, limit));
    opened.with_context(|| format!("cannot read {}", path.display()))
}

fn read_all(from: impl io::Read, limit: u64) -> io::Result<SecretBytes> {
    let mut content = Vec::new();
    let read = from.take(limit + 1).read_to_end(&mut content);
    let content = SecretBytes::from(content);
    if read? as u64 > limit {
        return Err(io::Error::other(format!("longer than {limit} bytes")));
    }
    Ok(content)
}

/// Writes a file that was not there, for nobody else to read.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}
