//! `edgekeep keys migrate`: brings the store key under another protection.
//!
//! The order is: the key under the new protection as well, `config.toml`, keyd's
//! settings, and only then the old form is removed. Wherever this is cut off, keyd starts
//! with what its settings say, and running it again completes it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use edgekeep_config::{environment, replace_config, replace_keyd_settings, translate, with_seal};
use edgekeep_core::hardware::Seal;
use edgekeep_core::layout::Daemon;
use edgekeep_core::settings::KeydSettings;
use edgekeep_hsm::configured::Hardware;
use edgekeep_hsm::software::{MigrateError, Protection, StoreError, migrate, rehearse_migration};
use serde_json::json;

use super::keyd_settings;
use crate::arguments::Context;
use crate::output;

/// Protection that the store key is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// The TPM of [tpm]
    Tpm,
    /// A key on the token of pkcs11_base_slot
    Pkcs11,
    /// The rights on its file, and nothing else
    File,
}

impl To {
    fn protection(self) -> Protection {
        match self {
            Self::Tpm => Protection::Tpm,
            Self::Pkcs11 => Protection::Token,
            Self::File => Protection::File,
        }
    }

    fn seal(self) -> Seal {
        match self {
            Self::Tpm => Seal::Tpm,
            Self::Pkcs11 => Seal::Pkcs11,
            Self::File => Seal::File,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct MigrateOptions {
    /// What is to protect the store key
    #[arg(long, value_name = "WHERE")]
    to: To,
    /// The configuration to change [default: etc/edgekeep/config.toml below the root
    /// folder]
    #[arg(short = 'c', long = "config-file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// See whether it can be done, and change no file
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(context: &Context, options: MigrateOptions) -> anyhow::Result<ExitCode> {
    let to = options.to;
    let settings = keyd_settings(context)?;
    match to {
        To::Tpm => anyhow::ensure!(
            settings.tpm.is_some(),
            "no TPM is configured: add a table [tpm] to the configuration and run `edgekeep config apply`"
        ),
        To::Pkcs11 => anyhow::ensure!(
            settings.pkcs11.as_ref().is_some_and(|pkcs11| pkcs11.base_slot.is_some()),
            "no token is configured: set pkcs11_lib_path and pkcs11_base_slot in [aziot_keys] and run \
             `edgekeep config apply`"
        ),
        To::File => {}
    }
    let config = options.file.unwrap_or_else(|| context.root.config_file());
    let text = edgekeep_config::read_config(&config).with_context(|| {
        format!("cannot read {}; name the configuration with -c", config.display())
    })?;
    let changed = with_seal(&text, to.seal()).with_context(|| config.display().to_string())?;
    if translate(&changed, &environment(&changed)).is_err() {
        anyhow::bail!(
            "{} has errors; nothing was changed: run `edgekeep config check`",
            config.display()
        );
    }
    let new = KeydSettings { seal: Some(to.seal()), ..settings.clone() };

    let folder = context.root.state_folder(Daemon::Keyd);
    let hardware = Hardware::named(&settings);
    let done = if options.dry_run {
        rehearse_migration(&folder, to.protection(), hardware.sealers())
    } else {
        migrate(&folder, to.protection(), hardware.sealers(), || {
            if changed != text {
                replace_config(&config, &changed)?;
            }
            if new != settings {
                replace_keyd_settings(&context.root, &new)?;
            }
            Ok(())
        })
    };
    let done = match done {
        Err(MigrateError::Store(error @ StoreError::InUse { .. })) => {
            return Err(anyhow::Error::new(error).context(STOP_FIRST));
        }
        done => done?,
    };
    let from: Vec<&str> = done.from.iter().map(|protection| protection.word()).collect();
    let already = done.from == [to.protection()];
    if context.json {
        output::print_json(&json!({
            "from": from, "to": to.protection().word(), "keys": done.keys, "dryRun": options.dry_run,
            "configuration": config,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = format!("the store key, under which {} keys are encrypted,", done.keys);
    let by = to.protection();
    output::print(&match (already, options.dry_run) {
        (true, _) => format!("{what} is protected by {by} already\n"),
        (false, true) => {
            format!("{what} can be protected by {by}; now it is by {}\n", from.join(" and "))
        }
        (false, false) => format!(
            "{what} is protected by {by} now; the settings say so\nstart the daemons again\n"
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Remedy for a store that is open.
pub(super) const STOP_FIRST: &str = "keyd is running: stop the daemons (`systemctl stop 'edgekeep-*' 'aziot-*.socket'`; \
                                     without systemd end the process edgekeep-keyd), run this again, and start them again";
