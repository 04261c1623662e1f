//! The steps of a plan, one after the other. Each replaces whole files with what they are
//! to be, so that any of them may be done again.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, chown, symlink};
use std::path::Path;

use anyhow::Context as _;
use edgekeep_base::file::{self, Rules};
use edgekeep_config::{ApplyMode, Ownership, apply, folder_for, write_atomic};
use edgekeep_core::credentials::Limits;
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::{
    DEVICE_FILE, Daemon, MODULES_FILE, REGISTRATIONS_FILE, Root, StateForm,
};
use edgekeep_core::migration::{Plan, Step};
use edgekeep_daemon::store::StateFile;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::look::Looked;

/// Carries the plan out. `after_step` is called when a step is on the disk.
///
/// # Errors
/// The first step that fails. What was done stays, and the next run completes it.
pub(super) fn carry_out(
    root: &Root,
    looked: &Looked,
    plan: &Plan,
    mut after_step: impl FnMut(),
) -> anyhow::Result<()> {
    let users = looked.environment.users;
    let state = |daemon| root.state_folder(daemon);
    for (daemon, uid) in [
        (Daemon::Keyd, users.keyd),
        (Daemon::Identityd, users.identityd),
        (Daemon::Moduled, users.moduled),
    ] {
        folder_for(&state(daemon), 0o700, uid)?;
    }
    folder_for(&root.key_import_folder(), 0o700, users.keyd)?;
    folder_for(&root.certificate_folder(), 0o700, users.identityd)?;
    for step in &plan.steps {
        match step {
            Step::Key { from, id } => {
                copy(root, from, &root.key_import_folder().join(id.as_str()), users.keyd)?;
            }
            Step::Certificate { from, file } => {
                copy(root, from, &root.certificate_folder().join(file), users.identityd)?;
            }
            Step::Identity(identity) => {
                save(&state(Daemon::Identityd), DEVICE_FILE, identity, users.identityd)?;
            }
            Step::Modules(modules) => {
                save(&state(Daemon::Identityd), MODULES_FILE, modules, users.identityd)?;
            }
            Step::Registrations(known) => {
                save(&state(Daemon::Moduled), REGISTRATIONS_FILE, known, users.moduled)?;
            }
            Step::Socket(module) => link(root, module)?,
            Step::Configuration => {
                let alone = Ownership::alone(rustix::process::geteuid().as_raw());
                write_atomic(&root.config_file(), looked.text.as_bytes(), alone)?;
                after_step();
                apply(root, &looked.text, &looked.environment, ApplyMode::Write)?;
            }
        }
        after_step();
    }
    Ok(())
}

fn copy(root: &Root, from: &str, to: &Path, uid: u32) -> anyhow::Result<()> {
    let from = root.path().join(from);
    let rules = Rules::named(Limits::FILE.bytes as u64).without_links();
    let content = file::read(&from, rules).map(Zeroizing::new);
    let content = content.with_context(|| format!("cannot read {}", from.display()))?;
    write_atomic(to, &content, Ownership::alone(uid))?;
    Ok(())
}

fn save<T: Serialize + DeserializeOwned>(
    folder: &Path,
    form: StateForm,
    state: &T,
    uid: u32,
) -> anyhow::Result<()> {
    let file = StateFile::of(folder, form);
    file.save(state)?;
    if uid != rustix::process::geteuid().as_raw() {
        chown(file.path(), Some(uid), None)
            .with_context(|| format!("cannot change the owner of {}", file.path().display()))?;
    }
    Ok(())
}

/// Has a container that mounts its former socket meet the shared one, at its next start.
/// systemd makes that socket, so that it outlives a daemon that is restarted.
fn link(root: &Root, module: &ModuleId) -> anyhow::Result<()> {
    let folder = root.former_socket_folder();
    let path = folder.join(format!("{}.sock", module.name()));
    let fault = || {
        format!(
            "cannot put a link in place of {}; remove what stands there and run this again",
            path.display()
        )
    };
    fs::create_dir_all(&folder).with_context(fault)?;
    match fs::symlink_metadata(&path).map(|metadata| metadata.file_type()) {
        // Engines make an empty folder where a socket that is to be mounted is absent.
        Ok(kind) if kind.is_dir() => fs::remove_dir(&path).with_context(fault)?,
        Ok(kind) if !kind.is_socket() && !kind.is_symlink() => {
            return Err(io::Error::other("it is no socket")).with_context(fault);
        }
        Ok(_) | Err(_) => {}
    }
    let temporary = folder.join(format!(".{}.sock.tmp", module.name()));
    let _ = fs::remove_file(&temporary);
    symlink(root.legacy_workload_socket(), &temporary).with_context(fault)?;
    fs::rename(&temporary, &path).with_context(fault)
}
