//! Arguments of the command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use edgekeep_core::layout::Root;

/// Heading of the options that every verb takes.
const GLOBAL: &str = "Options of every command";

/// Security manager of an edge device.
#[derive(Debug, Parser)]
#[command(name = "edgekeep", version)]
pub(crate) struct Arguments {
    /// Root folder of the device; everything of it lies below [default: /]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR", env = "EDGEKEEP_ROOT", hide_env_values = true)]
    pub(crate) root: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// Management socket, as a unix:// URI
    #[arg(short = 'H', long, global = true, help_heading = GLOBAL, value_name = "URI")]
    host: Option<String>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Bring up a whole simulated device: cloud, daemons and agent, until Ctrl-C
    Dev(DevOptions),
    /// Check or apply the configuration
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Take over a device that runs the existing packages: keys, certificates, identity
    /// and modules
    Migrate(crate::migrate::MigrateOptions),
    /// Say how the device is; fails if it is not healthy
    Status,
    /// Probe the device: configuration, connections, certificates, disk; fails on an
    /// error
    Check(crate::check::CheckOptions),
    /// List what `check` looks at
    CheckList,
    /// Show whether a process would be served as a module, and why (fails if it would
    /// not), or past refusals
    Attest(AttestOptions),
    /// List the modules
    List,
    /// Show which images of former modules would be removed, and why
    Images {
        /// Remove them now
        #[arg(long)]
        collect: bool,
        /// Only show them, which is the default
        #[arg(long, conflicts_with = "collect")]
        dry_run: bool,
    },
    /// Show the log of a module
    Logs(LogsOptions),
    /// Stop a module and start it again
    Restart {
        /// The module's name
        module: String,
    },
    /// Show, check and copy keyd's audit log
    Audit {
        #[command(subcommand)]
        verb: crate::audit::AuditVerb,
    },
    /// Show what was measured, and compare it with the TPM
    Integrity {
        #[command(subcommand)]
        verb: crate::integrity::IntegrityVerb,
    },
    /// Show the device's identity, ask for it again, or say what keeps it away
    Identity {
        #[command(subcommand)]
        verb: crate::identity::IdentityVerb,
    },
    /// Show, renew and export certificates
    Certs {
        #[command(subcommand)]
        verb: crate::certs::CertsVerb,
    },
    /// Look after the keys and what they are kept in
    Keys {
        #[command(subcommand)]
        verb: crate::keys::KeysVerb,
    },
    /// Print the daemons' metrics, as OpenMetrics text
    Metrics {
        /// Which daemon's [default: all]
        #[arg(value_enum)]
        daemon: Option<crate::operations::Which>,
        /// Form of the text
        #[arg(long, value_enum, default_value = "openmetrics")]
        format: crate::exposition::Format,
    },
    /// Show how much the daemons log, or change it until they are restarted
    LogLevel {
        /// Which daemon's [default: all]
        #[arg(value_enum)]
        daemon: Option<crate::operations::Which>,
        /// The new level
        #[arg(value_enum, requires = "daemon")]
        level: Option<crate::operations::Level>,
    },
    /// Write a zip for a person who helps: state, checks, logs, facts; no secret
    SupportBundle(crate::support_bundle::SupportBundleOptions),
    /// Look after the daemons' units: status, logs, restart, stop, level of the log
    System {
        #[command(subcommand)]
        verb: crate::system::SystemVerb,
    },
    /// Print the completions of a shell, for its folder of completions
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Manual {
        /// The folder
        folder: PathBuf,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Check the configuration and write the daemons' settings
    Apply {
        /// The configuration [default: etc/edgekeep/config.toml below the root folder]
        #[arg(short = 'c', long = "config-file", visible_alias = "config", value_name = "FILE")]
        file: Option<PathBuf>,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Leave out keys that are unknown or in the wrong table, with a notice
        #[arg(long)]
        lenient: bool,
    },
    /// Check the configuration and change nothing
    Check {
        /// The configuration [default: etc/edgekeep/config.toml below the root folder]
        #[arg(short = 'c', long = "config-file", visible_alias = "config", value_name = "FILE")]
        file: Option<PathBuf>,
        /// Leave out keys that are unknown or in the wrong table, with a notice
        #[arg(long)]
        lenient: bool,
    },
    /// Go back to the configuration that was applied before the present one
    Rollback {
        /// The configuration to write [default: etc/edgekeep/config.toml below the root
        /// folder]
        #[arg(short = 'c', long = "config-file", value_name = "FILE")]
        file: Option<PathBuf>,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Say what a key is for, and what it takes
    Explain {
        /// The key, or the end of its path: "tpm.tcti", "tcti" [default: the top level]
        key: Option<String>,
    },
    /// Print the JSON Schema of the configuration, for editors
    Schema,
}

#[derive(Debug, Args)]
pub(crate) struct AttestOptions {
    /// A process id, or a module's name for its first process
    #[arg(value_name = "PID|MODULE", required_unless_present = "refusals")]
    pub(crate) subject: Option<String>,
    /// As which module a process is looked at; the one that it fits best if not given
    #[arg(long, conflicts_with = "refusals")]
    pub(crate) module: Option<String>,
    /// Show callers that were refused instead, of MODULE or of all, with each check as it
    /// was then
    #[arg(long)]
    pub(crate) refusals: bool,
    /// So many of them [default: 10]
    #[arg(long, value_name = "NUMBER", requires = "refusals")]
    pub(crate) last: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsOptions {
    /// The module's name
    pub(crate) module: String,
    /// Go on with new lines until Ctrl-C
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Only the last lines: a number, or "all"
    #[arg(long, value_name = "NUM", value_parser = tail)]
    pub(crate) tail: Option<String>,
    /// Only what is younger: a duration ("90m"), a time (RFC 3339) or Unix seconds
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Only what is older
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Begin each line with its time
    #[arg(long)]
    pub(crate) timestamps: bool,
}

/// Options of `edgekeep dev`.
#[derive(Debug, Args)]
pub(crate) struct DevOptions {
    /// Deployment manifest that the agent applies [default: one without modules]
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// A host program that modules of type "process" may name as their image; may be
    /// repeated
    #[arg(long, value_name = "NAME=PATH", value_parser = host_module)]
    pub(crate) host_module: Vec<(String, PathBuf)>,
    /// Also use a container engine, at this socket
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = "/var/run/docker.sock")]
    pub(crate) docker: Option<PathBuf>,
    /// Run the agent from this image instead of as a host program
    #[arg(long, value_name = "IMAGE", requires = "docker")]
    pub(crate) agent_image: Option<String>,
    /// Never pull the agent's image
    #[arg(long, requires = "agent_image")]
    pub(crate) no_pull: bool,
    /// Most modules that the simulated hub allows the device [default: as many as the
    /// real one]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) module_limit: Option<usize>,
    /// Keep the device's folder when it is stopped
    #[arg(long)]
    pub(crate) keep: bool,
}

fn tail(text: &str) -> Result<String, String> {
    if text == "all" || text.parse::<u64>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("expected a number or \"all\"".to_owned())
    }
}

fn host_module(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        _ => Err("expected NAME=PATH".to_owned()),
    }
}

/// Facts that every verb needs.
#[derive(Debug)]
pub(crate) struct Context {
    /// The device's root folder.
    pub(crate) root: Root,
    /// The management socket.
    pub(crate) management: PathBuf,
    /// True if the output is to be JSON.
    pub(crate) json: bool,
}

impl Arguments {
    pub(crate) fn context(&self, as_iotedge: bool) -> anyhow::Result<Context> {
        let root = match self.root.as_deref() {
            Some(folder) if !folder.as_os_str().is_empty() => {
                Root::new(std::path::absolute(folder).context("cannot resolve the root folder")?)
            }
            _ => Root::default(),
        };
        let variable = std::env::var("IOTEDGE_HOST").ok().filter(|_| as_iotedge);
        let management = match self.host.clone().or(variable) {
            Some(uri) => socket_of(&uri)?,
            None => root.management_socket(),
        };
        Ok(Context { root, management, json: self.json })
    }
}

fn socket_of(uri: &str) -> anyhow::Result<PathBuf> {
    let path = uri.strip_prefix("unix://").unwrap_or(uri);
    anyhow::ensure!(
        path.starts_with('/'),
        "the management API is reached by a socket: expected unix:///path/to/socket"
    );
    Ok(PathBuf::from(path))
}

/// Returns true if the program was called by the name of a tool that it can stand in for.
pub(crate) fn is_iotedge(program: &OsStr) -> bool {
    let name = Path::new(program).file_name();
    ["iotedge", "aziotctl"].into_iter().any(|known| name == Some(OsStr::new(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_host_option_names_the_management_socket() {
        let arguments =
            Arguments::try_parse_from(["iotedge", "list", "-H", "unix:///x/mgmt.sock"]).unwrap();
        assert_eq!(arguments.context(true).unwrap().management, Path::new("/x/mgmt.sock"));
        let arguments =
            Arguments::try_parse_from(["iotedge", "-H", "http://localhost:15580", "list"]).unwrap();
        assert!(arguments.context(true).is_err());
    }

    #[test]
    fn docker_takes_a_socket_or_none() {
        for (words, socket) in [
            (&["edgekeep", "dev", "--docker"][..], Some("/var/run/docker.sock")),
            (&["edgekeep", "dev", "--docker", "/x.sock"], Some("/x.sock")),
            (&["edgekeep", "dev"], None),
        ] {
            let Verb::Dev(options) = Arguments::try_parse_from(words).unwrap().verb else {
                panic!()
            };
            assert_eq!(options.docker.as_deref(), socket.map(Path::new));
        }
        assert!(Arguments::try_parse_from(["edgekeep", "dev", "--agent-image", "x"]).is_err());
    }

    #[test]
    fn the_program_is_known_by_its_file_name() {
        assert!(is_iotedge(OsStr::new("/usr/bin/iotedge")));
        assert!(is_iotedge(OsStr::new("aziotctl")));
        assert!(!is_iotedge(OsStr::new("/usr/bin/edgekeep")));
    }
}
