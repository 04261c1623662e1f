//! Writing what [`translate`] made: the only part of this crate that touches the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_base::durable::{self, Until};
use edgekeep_base::file::{self, FileFault, Rules};
use edgekeep_core::credentials::Limits;
use edgekeep_core::layout::{Daemon, Root};
use serde::{Deserialize, Serialize};

use crate::credentials::{Unjudged, referenced_credentials};
use crate::diagnostic::Diagnostic;
use crate::document::MAX_BYTES;
use crate::history;
use crate::places::look_at_all;
use crate::secret::SecretBytes;
use crate::translate::{Environment, Users, referenced_files, translate};

/// Longest file that is read because the configuration names it, in bytes.
const MAX_REFERENCED_BYTES: u64 = 256 * 1024;
/// Most files that are read because the configuration names them.
const MAX_REFERENCED: usize = 256;
/// Longest record of the keys that were handed over, in bytes.
const RECORD_LIMIT: u64 = 4 << 20;
/// Longest file that was written here before and is compared, in bytes.
const WRITTEN_LIMIT: u64 = 16 << 20;
/// Most bytes that are read of all files of certificates and keys together.
const MAX_CREDENTIAL_BYTES: usize = 64 << 20;

/// The mode of [`apply`]: to write, or only to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApplyMode {
    /// Write what changed.
    Write,
    /// Only say what would change.
    DryRun,
}

/// One file that changed, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// Content of the file, in words.
    pub what: String,
    /// True if the file is new.
    pub created: bool,
}

/// The result of [`apply`].
#[derive(Debug)]
pub struct Applied {
    /// Files that changed, in the order in which they were written.
    pub changes: Vec<Change>,
    /// Daemons that must be restarted to see them.
    pub restart: Vec<Daemon>,
    /// Notices that the reader should know although the configuration applied.
    pub notices: Vec<Diagnostic>,
}

/// The error of applying a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It has errors; nothing was written.
    #[error("the configuration has errors; nothing was changed")]
    Invalid(Vec<Diagnostic>),
    /// Two daemons' users have the same primary group: what one may read the other could.
    #[error(
        "the users edgekeep-keyd, edgekeep-identityd and edgekeep-moduled share a primary group; give each a group of its own (usermod --gid), so that none can read another's settings"
    )]
    SharedGroup,
    /// A file or folder could not be read or written. Files before it in order may have
    /// been written; applying again completes them.
    #[error("cannot {action} {path}; run as root, or name a folder of your own with --root")]
    File {
        /// The action that was tried, in words.
        action: &'static str,
        /// The file or folder that it was tried on.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

/// This host as [`translate`] sees it: who runs the daemons, the host's name, and the
/// files that `text` refers to.
///
/// The daemons have users of their own if this process is root and the users
/// `edgekeep-keyd`, `edgekeep-identityd` and `edgekeep-moduled` all exist; else
/// everything runs as the present user.
#[must_use]
pub fn environment(text: &str) -> Environment {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let files = referenced_files(text).into_iter().enumerate().map(|(number, path)| {
        let content = match number {
            ..MAX_REFERENCED => file::read(&path, Rules::named(MAX_REFERENCED_BYTES))
                .map_err(|error| error.to_string()),
            _ => Err(format!("the configuration names more than {MAX_REFERENCED} files")),
        };
        (path, content)
    });
    let credentials =
        referenced_credentials(text).into_iter().scan(MAX_CREDENTIAL_BYTES, |left, path| {
            let content = read_credential(&path, left);
            Some((path, content))
        });
    let users = users(uid, &passwd);
    Environment {
        users,
        groups: groups(users, &passwd),
        hostname,
        uids: uids(&passwd),
        group_names: fs::read_to_string("/etc/group").map_or_else(
            |_| BTreeSet::new(),
            |text| {
                text.lines().filter_map(|line| line.split(':').next()).map(str::to_owned).collect()
            },
        ),
        files: files.collect(),
        credentials: credentials.collect(),
        places: look_at_all(text),
        mode: None,
        lenient: false,
    }
}

/// A file of certificates or keys, as far as `left` bytes may still be read of all of
/// them.
fn read_credential(path: &Path, left: &mut usize) -> Result<Arc<SecretBytes>, Unjudged> {
    let limit = Limits::FILE.bytes.min(*left);
    match file::read(path, Rules::named(limit as u64)) {
        Ok(content) => {
            *left -= content.len();
            Ok(Arc::new(SecretBytes::new(content)))
        }
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => Unjudged::Absent,
            io::ErrorKind::PermissionDenied => Unjudged::Forbidden,
            _ => Unjudged::Unusable(error.to_string()),
        }),
    }
}

/// The users in `passwd`.
fn uids(passwd: &str) -> BTreeMap<String, u32> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    };
    passwd.lines().filter_map(user).collect()
}

/// The primary groups of the daemons' users in `passwd`, if no two share one.
fn groups(users: Users, passwd: &str) -> Option<Users> {
    let of = |uid: u32| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':').skip(2);
            let found = fields.next()?.parse::<u32>().ok()?;
            let group = fields.next()?.parse::<u32>().ok()?;
            (found == uid).then_some(group)
        })
    };
    let (keyd, identityd, moduled) = (of(users.keyd)?, of(users.identityd)?, of(users.moduled)?);
    let apart = keyd != identityd && keyd != moduled && identityd != moduled;
    apart.then_some(Users { keyd, identityd, moduled })
}

/// The daemons' users: their own if `uid` is root's and all three stand in `passwd`, else
/// all `uid`.
fn users(uid: u32, passwd: &str) -> Users {
    let uids = uids(passwd);
    let of = |daemon: Daemon| uids.get(&format!("edgekeep-{}", daemon.name())).copied();
    match (of(Daemon::Keyd), of(Daemon::Identityd), of(Daemon::Moduled)) {
        (Some(keyd), Some(identityd), Some(moduled)) if uid == 0 => {
            Users { keyd, identityd, moduled }
        }
        _ => Users::all(uid),
    }
}

/// Permission bits of a configuration file; none if there is no such file.
#[must_use]
pub fn mode_of(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|metadata| metadata.mode() & 0o7777)
}

/// Reads a configuration file, at most as much of it as is parsed. Whose the file is, is
/// for the operator to know.
///
/// # Errors
/// If there is no file, it is too long or no text, or cannot be read.
pub fn read_config(path: &Path) -> io::Result<String> {
    file::read_text(path, Rules::named(MAX_BYTES as u64))
}

/// Translates `text` and writes the settings files and keys that differ from what is
/// there. Each file is replaced as a whole or not at all.
///
/// # Errors
/// [`ApplyError::Invalid`] with all diagnostics and [`ApplyError::SharedGroup`], before
/// anything is written; [`ApplyError::File`].
pub fn apply(
    root: &Root,
    text: &str,
    environment: &Environment,
    mode: ApplyMode,
) -> Result<Applied, ApplyError> {
    let translated = translate(text, environment).map_err(ApplyError::Invalid)?;
    let users = environment.users;
    if environment.groups.is_none() && !users.is_single() {
        return Err(ApplyError::SharedGroup);
    }
    let mut writer = Writer { mode, changes: Vec::new(), restart: Vec::new() };
    writer.keys(root, users.keyd, &translated.imported_keys)?;
    let reader = |of: fn(&Users) -> u32| match environment.groups {
        Some(groups) if !users.is_single() => Ownership::readable_by(of(&groups)),
        _ => Ownership::alone(of(&users)),
    };
    writer.settings(root, Daemon::Keyd, reader(|of| of.keyd), &translated.keyd)?;
    writer.settings(root, Daemon::Identityd, reader(|of| of.identityd), &translated.identityd)?;
    writer.settings(root, Daemon::Moduled, reader(|of| of.moduled), &translated.moduled)?;
    if mode == ApplyMode::Write {
        history::keep(root, text)?;
    }
    let restart =
        Daemon::ALL.into_iter().filter(|daemon| writer.restart.contains(daemon)).collect();
    Ok(Applied { changes: writer.changes, restart, notices: translated.notices })
}

struct Writer {
    mode: ApplyMode,
    changes: Vec<Change>,
    restart: Vec<Daemon>,
}

/// The keys that were handed to keyd: an HMAC of each, under a key that only this file
/// holds. So an unchanged key is not handed over again, and keyd need not be restarted
/// for it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct HandedOver {
    salt: String,
    keys: BTreeMap<String, String>,
}

impl HandedOver {
    fn fingerprint(&self, id: &str, key: &[u8]) -> String {
        let mut context =
            hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, self.salt.as_bytes()));
        context.update(id.as_bytes());
        context.update(&[0]);
        context.update(key);
        STANDARD.encode(context.sign())
    }
}

impl Writer {
    fn settings<T: Serialize>(
        &mut self,
        root: &Root,
        daemon: Daemon,
        ownership: Ownership,
        settings: &T,
    ) -> Result<(), ApplyError> {
        let path = root.settings_file(daemon);
        let mut content = serde_json::to_vec_pretty(settings).unwrap_or_default();
        content.push(b'\n');
        if self.replace(&path, &content, ownership, format!("settings of {}", daemon.name()))? {
            self.restart.push(daemon);
        }
        Ok(())
    }

    fn keys(
        &mut self,
        root: &Root,
        uid: u32,
        keys: &[(edgekeep_core::id::KeyId, SecretBytes)],
    ) -> Result<(), ApplyError> {
        if keys.is_empty() {
            return Ok(());
        }
        let record = root.settings_file(Daemon::Keyd).with_file_name("imported-keys.json");
        let known: HandedOver = file::read(&record, Rules::own(RECORD_LIMIT))
            .ok()
            .and_then(|content| serde_json::from_slice(&content).ok())
            .unwrap_or_default();
        let folder = root.key_import_folder();
        // A store that was emptied needs its keys again.
        let store = fs::read_dir(root.state_folder(Daemon::Keyd))
            .map_or(0, |entries| entries.flatten().filter(|entry| entry.path() != folder).count());
        let mut handed = HandedOver { salt: known.salt.clone(), keys: BTreeMap::new() };
        if handed.salt.is_empty() {
            let mut salt = [0; 32];
            aws_lc_rs::rand::fill(&mut salt).map_err(|_| ApplyError::File {
                action: "make a random number for",
                path: record.clone(),
                source: io::Error::other("no randomness"),
            })?;
            handed.salt = STANDARD.encode(salt);
        }
        for (id, key) in keys {
            let fingerprint = handed.fingerprint(id.as_str(), key.expose());
            let path = folder.join(id.as_str());
            let taken = store > 0 || path.exists();
            if known.keys.get(id.as_str()) != Some(&fingerprint) || !taken {
                if self.mode == ApplyMode::Write {
                    let state = root.state_folder(Daemon::Keyd);
                    folder_for(&state, 0o700, uid)?;
                    folder_for(&folder, 0o700, uid)?;
                }
                self.replace(
                    &path,
                    key.expose(),
                    Ownership::alone(uid),
                    format!("key `{id}` for keyd to take over"),
                )?;
                self.restart.push(Daemon::Keyd);
            }
            handed.keys.insert(id.as_str().to_owned(), fingerprint);
        }
        // After the keys: a crash between the two hands a key over twice, never not at
        // all.
        if handed != known && self.mode == ApplyMode::Write {
            let content = serde_json::to_vec_pretty(&handed).unwrap_or_default();
            write_atomic(&record, &content, Ownership::alone(rustix::process::geteuid().as_raw()))?;
        }
        Ok(())
    }

    /// Replaces a file if its content differs; whether it did.
    fn replace(
        &mut self,
        path: &Path,
        content: &[u8],
        ownership: Ownership,
        what: String,
    ) -> Result<bool, ApplyError> {
        let present = match file::read(path, Rules::named(WRITTEN_LIMIT)) {
            Ok(present) => Some(present),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // Whatever stands there is replaced; what cannot be replaced, a folder, says
            // so then.
            Err(error) if FileFault::of(&error).is_some() => Some(Vec::new()),
            Err(source) => {
                return Err(ApplyError::File { action: "read", path: path.to_owned(), source });
            }
        };
        let owned = fs::metadata(path).is_ok_and(|metadata| ownership.is_that_of(&metadata));
        let same = present.as_deref() == Some(content);
        if let Some(present) = &present
            && same
            && owned
        {
            drop(SecretBytes::new(present.clone()));
            return Ok(false);
        }
        if self.mode == ApplyMode::Write {
            write_atomic(path, content, ownership)?;
        }
        self.changes.push(Change { path: path.to_owned(), what, created: present.is_none() });
        Ok(!same)
    }
}

/// The owner, group and permission bits of a file that is written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    uid: u32,
    gid: Option<u32>,
    mode: u32,
}

impl Ownership {
    /// Readable and writable by this user alone.
    #[must_use]
    pub const fn alone(uid: u32) -> Self {
        Self { uid, gid: None, mode: 0o600 }
    }

    /// Root's, and readable by this group: a daemon reads its settings and cannot change
    /// what commands that root runs take from them.
    const fn readable_by(gid: u32) -> Self {
        Self { uid: 0, gid: Some(gid), mode: 0o640 }
    }

    /// As a file has them now, with no rights for others than its owner and the readers
    /// in its group.
    pub(crate) fn of(path: &Path) -> Result<Self, ApplyError> {
        let data = fs::metadata(path).map_err(|source| ApplyError::File {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let mode = 0o600 | data.mode() & 0o040;
        Ok(Self { uid: data.uid(), gid: (mode != 0o600).then_some(data.gid()), mode })
    }

    fn is_that_of(self, metadata: &fs::Metadata) -> bool {
        metadata.uid() == self.uid
            && self.gid.is_none_or(|gid| metadata.gid() == gid)
            && metadata.mode() & 0o777 == self.mode
    }

    fn give(self, file: &File) -> io::Result<()> {
        let me = rustix::process::geteuid().as_raw();
        let uid = (self.uid != me).then_some(self.uid);
        if uid.is_some() || self.gid.is_some() {
            std::os::unix::fs::fchown(file, uid, self.gid)?;
        }
        // Whatever this process's umask took away.
        file.set_permissions(fs::Permissions::from_mode(self.mode))
    }
}

/// Writes a file with this owner and these rights: a new file beside it, made durable,
/// then renamed over it.
///
/// # Errors
/// [`ApplyError::File`]; the old file is then still in place.
pub fn write_atomic(path: &Path, content: &[u8], ownership: Ownership) -> Result<(), ApplyError> {
    let fail = |action| move |source| ApplyError::File { action, path: path.to_owned(), source };
    let Some(folder) = path.parent() else { return Ok(()) };
    if !folder.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .map_err(fail("make the folder of"))?;
    }
    // Closed until it has its owner and its group.
    durable::replace(path, content, 0o600, Until::OnDisk, |file| ownership.give(file)).map_err(
        |error| ApplyError::File {
            action: error.step,
            path: path.to_owned(),
            source: error.source,
        },
    )
}

/// Makes a folder that only `uid` can enter, if it is not there. A folder that is there
/// is closed to others.
///
/// # Errors
/// [`ApplyError::File`], also if something else stands there.
pub fn folder_for(path: &Path, mode: u32, uid: u32) -> Result<(), ApplyError> {
    let fail = |source| ApplyError::File { action: "make", path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        // What follows writes secrets into it: a link that someone put there is not
        // followed.
        Ok(metadata) if !metadata.is_dir() => {
            return Err(fail(io::Error::other("it is not a folder")));
        }
        Ok(metadata) => {
            if metadata.mode() & 0o077 != 0 {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fail)?;
            }
            return Ok(());
        }
        Err(_) => {}
    }
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(fail)?;
    }
    fs::DirBuilder::new().mode(mode).create(path).map_err(fail)?;
    if uid != rustix::process::geteuid().as_raw() {
        std::os::unix::fs::chown(path, Some(uid), None).map_err(fail)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use edgekeep_core::settings::{IdentitydSettings, KeydSettings, ModuledSettings};

    use super::*;

    const TEXT: &str = "hostname = \"press\"\n[provisioning]\nsource = \"manual\"\n\
        connection_string = \"HostName=h.example;DeviceId=press-04;SharedAccessKey=a2V5MQ==\"\n";

    fn here() -> Environment {
        environment(TEXT)
    }

    fn read<T: serde::de::DeserializeOwned>(root: &Root, daemon: Daemon) -> T {
        serde_json::from_slice(&fs::read(root.settings_file(daemon)).unwrap()).unwrap()
    }

    #[test]
    fn the_settings_are_written_for_their_owner_alone_and_the_key_into_the_import_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let applied = apply(&root, TEXT, &here(), ApplyMode::Write).unwrap();
        assert_eq!(applied.restart, Daemon::ALL);
        assert_eq!(applied.changes.len(), 4);
        let keyd: KeydSettings = read(&root, Daemon::Keyd);
        let identityd: IdentitydSettings = read(&root, Daemon::Identityd);
        let moduled: ModuledSettings = read(&root, Daemon::Moduled);
        assert_eq!((identityd.hostname.as_str(), moduled.hostname.as_str()), ("press", "press"));
        assert!(!keyd.principals.is_empty());
        let key = root.key_import_folder().join("device-id");
        assert_eq!(fs::read(&key).unwrap(), b"key1");
        for path in [key, root.settings_file(Daemon::Keyd)] {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "{}", path.display());
        }
        assert_eq!(fs::metadata(root.key_import_folder()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn applying_the_same_again_changes_nothing_even_after_keyd_took_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        apply(&root, TEXT, &here(), ApplyMode::Write).unwrap();
        assert_eq!(apply(&root, TEXT, &here(), ApplyMode::Write).unwrap().changes, []);
        fs::write(root.state_folder(Daemon::Keyd).join("store"), "taken").unwrap();
        fs::remove_file(root.key_import_folder().join("device-id")).unwrap();
        let again = apply(&root, TEXT, &here(), ApplyMode::Write).unwrap();
        assert_eq!((again.changes, again.restart), (vec![], vec![]));
    }

    #[test]
    fn a_changed_key_or_an_emptied_store_gets_the_key_again() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        apply(&root, TEXT, &here(), ApplyMode::Write).unwrap();
        fs::remove_file(root.key_import_folder().join("device-id")).unwrap();
        assert_eq!(apply(&root, TEXT, &here(), ApplyMode::Write).unwrap().restart, [Daemon::Keyd]);
        let other = TEXT.replace("a2V5MQ==", "a2V5Mg==");
        assert_eq!(
            apply(&root, &other, &here(), ApplyMode::Write).unwrap().restart,
            [Daemon::Keyd]
        );
        assert_eq!(fs::read(root.key_import_folder().join("device-id")).unwrap(), b"key2");
    }

    #[test]
    fn only_the_daemon_whose_settings_changed_needs_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        apply(&root, TEXT, &here(), ApplyMode::Write).unwrap();
        let text = format!("auto_reprovisioning_mode = \"OnErrorOnly\"\n{TEXT}");
        let applied = apply(&root, &text, &here(), ApplyMode::Write).unwrap();
        assert_eq!(applied.restart, [Daemon::Identityd]);
        assert_eq!(applied.changes.len(), 1);
    }

    #[test]
    fn nothing_is_written_in_a_dry_run_or_when_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path().join("device"));
        assert_eq!(apply(&root, TEXT, &here(), ApplyMode::DryRun).unwrap().changes.len(), 4);
        let wrong = format!("colour = 1\n{TEXT}");
        let error = apply(&root, &wrong, &here(), ApplyMode::Write).unwrap_err();
        assert!(matches!(error, ApplyError::Invalid(ref found) if found.len() == 1), "{error:?}");
        assert!(!folder.path().join("device").exists());
    }

    #[test]
    fn a_link_in_place_of_the_import_folder_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path().join("device"));
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::create_dir_all(root.state_folder(Daemon::Keyd)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, root.key_import_folder()).unwrap();
        let error = apply(&root, TEXT, &here(), ApplyMode::Write).unwrap_err();
        assert!(matches!(error, ApplyError::File { action: "make", .. }), "{error:?}");
        assert_eq!(fs::read_dir(elsewhere).unwrap().count(), 0);
    }

    #[test]
    fn the_daemons_have_their_own_users_only_for_root_and_if_all_three_exist() {
        let all = "root:x:0:0::/:/bin/sh\nedgekeep-keyd:x:101:1::/:\nedgekeep-identityd:x:102:1::/:\nedgekeep-moduled:x:103:1::/:\n";
        assert_eq!(users(0, all), Users { keyd: 101, identityd: 102, moduled: 103 });
        assert_eq!(users(1000, all), Users::all(1000));
        assert_eq!(users(0, "edgekeep-keyd:x:101:1::/:\n"), Users::all(0));
        assert_eq!(users(0, "edgekeep-keyd\n::"), Users::all(0));
    }

    #[test]
    fn settings_have_a_group_of_readers_only_if_no_two_daemons_share_one() {
        let passwd = |keyd: u32, identityd: u32, moduled: u32| {
            format!("a:x:101:{keyd}::/:\nb:x:102:{identityd}::/:\nc:x:103:{moduled}::/:\n")
        };
        let users = Users { keyd: 101, identityd: 102, moduled: 103 };
        let own = Some(Users { keyd: 1, identityd: 2, moduled: 3 });
        assert_eq!(groups(users, &passwd(1, 2, 3)), own);
        for (keyd, identityd, moduled) in [(1, 1, 3), (1, 2, 1), (1, 2, 2), (4, 4, 4)] {
            assert_eq!(groups(users, &passwd(keyd, identityd, moduled)), None);
        }
        assert_eq!(groups(users, "a:x:101:1::/:\n"), None);
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment { users, groups: None, ..here() };
        let error = apply(&Root::new(folder.path()), TEXT, &environment, ApplyMode::Write);
        assert!(matches!(error, Err(ApplyError::SharedGroup)));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(groups(Users::all(101), &passwd(1, 2, 3)), None);
    }

    /// Needs root, to be several users. The reader is another program, under the
    /// daemon's ids.
    #[test]
    fn a_daemon_reads_its_settings_and_can_neither_change_them_nor_read_anothers() {
        use std::os::unix::process::CommandExt as _;
        use std::process::Command;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = Root::new(folder.path());
        let environment = Environment {
            users: Users { keyd: 64101, identityd: 64102, moduled: 64103 },
            groups: Some(Users { keyd: 64201, identityd: 64202, moduled: 64203 }),
            ..here()
        };
        apply(&root, TEXT, &environment, ApplyMode::Write).unwrap();
        let done = |uid: u32, gid: u32, words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).uid(uid).gid(gid);
            command.output().unwrap().status.success()
        };
        for (number, daemon) in [(1, Daemon::Keyd), (2, Daemon::Identityd), (3, Daemon::Moduled)] {
            let path = root.settings_file(daemon);
            let data = fs::metadata(&path).unwrap();
            let found = (data.uid(), data.gid(), data.mode() & 0o777);
            assert_eq!(found, (0, 64200 + number, 0o640), "{}", path.display());
            let path = path.to_str().unwrap();
            for reader in 1..=3 {
                let (uid, gid) = (64100 + reader, 64200 + reader);
                assert_eq!(done(uid, gid, &["cat", path]), reader == number, "{path} {reader}");
                assert!(!done(uid, gid, &["cp", "/dev/null", path]), "{path} {reader}");
                assert!(!done(uid, gid, &["rm", "-f", path]), "{path} {reader}");
            }
        }
        assert_eq!(apply(&root, TEXT, &environment, ApplyMode::Write).unwrap().changes, []);
        // As an earlier version left the file: given back to root without a restart.
        std::os::unix::fs::chown(root.settings_file(Daemon::Keyd), Some(64101), None).unwrap();
        let again = apply(&root, TEXT, &environment, ApplyMode::Write).unwrap();
        assert_eq!((again.changes.len(), again.restart), (1, vec![]));
        assert_eq!(fs::metadata(root.settings_file(Daemon::Keyd)).unwrap().uid(), 0);
    }
}
