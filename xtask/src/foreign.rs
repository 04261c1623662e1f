//! Programs of another Debian suite, unpacked below the target folder and not installed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::{command, parts, workspace};

/// The suite that has them.
const SUITE: &str = "trixie";
/// The public archive, which is the default of debootstrap too.
const ARCHIVE: &str = "http://deb.debian.org/debian";
/// Keys of the archive, from the package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Packages that are unpacked together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unpacked {
    /// Name of the folder.
    pub(crate) name: &'static str,
    packages: &'static [&'static str],
    /// A file that shows that they are there.
    shown_by: &'static str,
    /// Environment variable by which tests learn of the folder.
    pub(crate) variable: &'static str,
}

/// Cisco's EST server and client, for the libraries of this machine.
pub(crate) const LIBEST: Unpacked = Unpacked {
    name: "libest",
    packages: &["libest-utils", "libest3"],
    shown_by: "usr/bin/estserver",
    variable: "EDGEKEEP_TEST_LIBEST",
};

/// An OpenSSL that has ML-KEM, with the C library that it needs.
pub(crate) const OPENSSL: Unpacked = Unpacked {
    name: "openssl",
    packages: &["openssl", "libssl3t64", "libc6", "zlib1g", "libzstd1"],
    shown_by: "usr/bin/openssl",
    variable: "EDGEKEEP_TEST_OPENSSL",
};

/// Prometheus' linter of metrics; the package of the older suite would start a server.
pub(crate) const PROMETHEUS: Unpacked = Unpacked {
    name: "promtool",
    packages: &["promtool"],
    shown_by: "usr/bin/promtool",
    variable: "EDGEKEEP_TEST_PROMETHEUS",
};

/// Returns the folder with these packages, which is made if there is none. It stays as it
/// was made; remove it to have newer ones.
pub(crate) fn provide(wanted: Unpacked) -> anyhow::Result<PathBuf> {
    let folder = workspace::target().join("foreign");
    let root = folder.join(wanted.name);
    if root.join(wanted.shown_by).exists() {
        return Ok(root);
    }
    for program in ["apt-get", "dpkg"] {
        anyhow::ensure!(parts::find(program).is_some(), "only Debian's {program} can fetch it");
    }
    eprintln!("fetching {} of {SUITE} into {}", wanted.packages.join(", "), root.display());
    let apt = folder.join(format!("{}.apt", wanted.name));
    let _ = fs::remove_dir_all(&apt);
    let (lists, archives) = (apt.join("lists"), apt.join("archives"));
    for made in [lists.join("partial"), archives.join("partial")] {
        fs::create_dir_all(&made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let sources = apt.join("sources.list");
    fs::write(&sources, format!("deb [signed-by={KEYRING}] {ARCHIVE} {SUITE} main\n"))
        .with_context(|| format!("cannot write {}", sources.display()))?;
    let log = folder.join(format!("{}.log", wanted.name));
    let ask = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(&archives);
        for (key, value) in [
            ("Dir::Etc::sourcelist", sources.display().to_string()),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::State::lists", lists.display().to_string()),
            ("Dir::Cache", apt.display().to_string()),
            ("APT::Sandbox::User", String::new()),
        ] {
            command.arg("-o").arg(format!("{key}={value}"));
        }
        command.arg("-q").args(words);
        command::run_quietly(command, &log)
    };
    ask(&["update"])?;
    ask(&[&["download"], wanted.packages].concat())?;
    let unfinished = folder.join(format!("{}.unfinished", wanted.name));
    let _ = fs::remove_dir_all(&unfinished);
    let found = fs::read_dir(&archives)
        .with_context(|| format!("cannot read {}", archives.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    for package in found.iter().map(fs::DirEntry::path) {
        if package.extension().is_some_and(|it| it == "deb") {
            let mut unpack = Command::new("dpkg");
            unpack.arg("-x").arg(package).arg(&unfinished);
            command::run_quietly(unpack, &log)?;
        }
    }
    let _ = fs::remove_dir_all(&apt);
    let _ = fs::remove_dir_all(&root);
    fs::rename(&unfinished, &root).with_context(|| format!("cannot make {}", root.display()))?;
    anyhow::ensure!(root.join(wanted.shown_by).exists(), "{} is not in them", wanted.shown_by);
    Ok(root)
}
