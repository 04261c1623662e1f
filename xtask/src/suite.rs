//! Engines of other Debian suites than the machine's: each suite in a folder of its own
//! below the target folder, made once, from which its programs run in a mount namespace
//! of their own. What is below `/tmp` is the same inside and outside, so that the paths
//! which tests, daemons and engines tell each other mean the same to all.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, bail};

use crate::engine::dies_with_this_task;
use crate::{command, parts, workspace};

/// Packages of a suite: those that its engines need, for themselves and for what tests
/// ask of them.
const PACKAGES: &str = "docker.io,podman,runc,conmon,netavark,aardvark-dns,iptables,nftables,iproute2,procps,ca-certificates";

/// Becomes a program in the root `$0`, which sees `/tmp` and the folder `$1` as everybody
/// does, and nothing else of the machine's files.
const ENTER: &str = r#"
root=$0 shared=$1; shift
mkdir -p "$root$shared"
mount --bind "$root" "$root"
for place in /proc /sys /dev /tmp "$shared"; do mount --rbind "$place" "$root$place"; done
mount -t tmpfs tmpfs "$root/run"
cd "$root"
pivot_root . .
umount --lazy .
cd /
exec "$@"
"#;

/// The root of a suite.
#[derive(Debug, Clone)]
pub(crate) struct Suite {
    root: PathBuf,
}

impl Suite {
    /// The suite's root, made if there is none. It stays as it was made; remove it to
    /// have a newer one.
    pub(crate) fn provide(name: &str) -> anyhow::Result<Self> {
        let plain =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        anyhow::ensure!(plain, "{name:?} is no Debian suite");
        anyhow::ensure!(parts::is_root(), "only root can run the engines of another suite");
        let folder = workspace::target().join("suites");
        let root = folder.join(name);
        if root.exists() {
            return Ok(Self { root });
        }
        let missing = parts::provide(&[parts::DEBOOTSTRAP])?;
        anyhow::ensure!(missing.is_empty(), parts::remedy(&missing));
        eprintln!("fetching the engines of {name} into {}", root.display());
        let unfinished = folder.join(format!("{name}.unfinished"));
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut make =
            Command::new(parts::find("debootstrap").unwrap_or_else(|| "debootstrap".into()));
        make.args(["--variant=minbase", "--include", PACKAGES, name]).arg(&unfinished);
        command::run_quietly(make, &folder.join(format!("{name}.log")))?;
        let _ = fs::remove_dir_all(unfinished.join("var/cache/apt/archives"));
        fs::rename(&unfinished, &root)
            .with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self { root })
    }

    /// One of its programs, which sees `shared` and `/tmp` and ends with this task.
    pub(crate) fn program(&self, program: &str, shared: &std::path::Path) -> Command {
        let mut command = dies_with_this_task("unshare");
        command
            .args(["--mount", "--propagation", "slave", "sh", "-ec", ENTER])
            .arg(&self.root)
            .arg(shared)
            .arg(program);
        command
    }
}

/// An engine to test with: `docker`, `podman`, or of a suite `docker:trixie`, and Docker
/// with containerd's image store, which is Docker 29's default, `docker:sid:containerd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) kind: Kind,
    /// The Debian suite that it is of; the machine's own without.
    pub(crate) suite: Option<String>,
}

/// Kind of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Docker {
        /// True if images are in containerd's store.
        containerd: bool,
    },
    Podman,
}

impl Choice {
    /// Its suite's root.
    pub(crate) fn provide(&self) -> anyhow::Result<Option<Suite>> {
        self.suite.as_deref().map(Suite::provide).transpose()
    }
}

impl FromStr for Choice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut words = text.split(':');
        let (engine, suite, store) = (words.next(), words.next(), words.next());
        let kind = match (engine, store, words.next()) {
            (Some("docker"), None, None) => Kind::Docker { containerd: false },
            (Some("docker"), Some("containerd"), None) => Kind::Docker { containerd: true },
            (Some("podman"), None, None) => Kind::Podman,
            _ => bail!(
                "an engine is docker or podman, of a Debian suite: docker:trixie, docker:sid:containerd"
            ),
        };
        Ok(Self { kind, suite: suite.filter(|suite| !suite.is_empty()).map(str::to_owned) })
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.kind == Kind::Podman { "podman" } else { "docker" })?;
        self.suite.iter().try_for_each(|suite| write!(f, " of {suite}"))?;
        if self.kind == (Kind::Docker { containerd: true }) {
            f.write_str(" with containerd's store")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_chosen_by_name_suite_and_store() {
        let of = |kind, suite: Option<&str>| Choice { kind, suite: suite.map(str::to_owned) };
        let docker = |containerd| Kind::Docker { containerd };
        for (text, choice) in [
            ("docker", of(docker(false), None)),
            ("docker:trixie", of(docker(false), Some("trixie"))),
            ("docker:sid:containerd", of(docker(true), Some("sid"))),
            ("podman:sid", of(Kind::Podman, Some("sid"))),
        ] {
            assert_eq!(text.parse::<Choice>().unwrap(), choice);
        }
        for text in
            ["", "moby", "podman:sid:containerd", "docker:sid:other", "docker:sid:containerd:x"]
        {
            assert!(text.parse::<Choice>().is_err(), "{text}");
        }
        assert!(Suite::provide("../sid").is_err());
    }
}
