//! `cargo xtask package`: the Debian package of a device.
//!
//! Everything is laid out in one folder below the target folder: the programs, what
//! `packaging/` and `docs/` hold, and the pages that the command makes of itself.
//! Debian's own tools make the package of it (decision 32).

mod layout;
mod notices;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::{command, parts, workspace};

/// Packages of the workspace whose programs are in the package.
const SHIPPED: [&str; 5] =
    ["edgekeep", "edgekeep-keyd", "edgekeep-identityd", "edgekeep-moduled", "edgekeep-agent"];

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Take the programs of this folder, and build none
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Text at the end of the version, so that two builds differ
    #[arg(long, value_name = "TEXT", default_value = "")]
    suffix: String,
    /// Say what Debian's checker of packages finds
    #[arg(long)]
    lint: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let programs = match &options.programs {
        Some(folder) => std::path::absolute(folder)?,
        None => command::step("build", built)?,
    };
    provide()?;
    let package = command::step("package", || made(&programs, &options.suffix, Packing::Small))?;
    let bytes = std::fs::metadata(&package)?.len();
    eprintln!("{}: {:.2} MiB; installed {}", package.display(), mib(bytes), installed(&package)?);
    if options.lint {
        return command::step("lintian", || lint(&package));
    }
    Ok(())
}

/// Installs Debian's tools; else says which are missing.
pub(crate) fn provide() -> anyhow::Result<()> {
    let missing = parts::provide(&[parts::DEBHELPER, parts::DPKG_DEV, parts::LINTIAN])?;
    ensure!(missing.is_empty(), parts::remedy(&missing));
    Ok(())
}

/// Builds the programs as they are shipped, and returns their folder.
fn built() -> anyhow::Result<PathBuf> {
    let mut build = workspace::cargo();
    build.args(["build", "--release", "--locked"]);
    build.args(SHIPPED.iter().flat_map(|name| ["-p", name]));
    command::run(build)?;
    Ok(workspace::target().join("release"))
}

/// The packing of a package's content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    /// As small as Debian's own packages are.
    Small,
    /// Not packed: soonest made and installed.
    None,
}

/// Makes the package of programs that were built to be tested, and returns its path.
pub(crate) fn for_now(programs: &Path) -> anyhow::Result<PathBuf> {
    made(programs, "", Packing::None)
}

/// Makes the package of the programs in a folder, and returns its path.
fn made(programs: &Path, suffix: &str, packing: Packing) -> anyhow::Result<PathBuf> {
    let folder = workspace::target().join("package");
    let tree = folder.join("tree");
    if tree.exists() {
        std::fs::remove_dir_all(&tree)
            .with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    let version = format!("{}{suffix}", env!("CARGO_PKG_VERSION"));
    let time = time_of_sources()?;
    layout::lay_out(programs, &tree, &version, time)?;
    let mut build = Command::new("dpkg-buildpackage");
    build.current_dir(&tree).args(["--build=binary", "--no-sign", "--no-pre-clean"]);
    // Tests and debugging symbols are cargo's; the same sources make the same package.
    build.env("DEB_BUILD_OPTIONS", "nocheck").env("SOURCE_DATE_EPOCH", time.to_string());
    if packing == Packing::None {
        build.env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    }
    command::run_quietly(build, &folder.join("log"))?;
    let mut architecture = Command::new("dpkg");
    architecture.arg("--print-architecture");
    let architecture = command::output(architecture)?;
    Ok(folder.join(format!("edgekeep_{version}_{}.deb", architecture.trim())))
}

/// Seconds from 1970 to the last commit: the time that every file of the package bears.
fn time_of_sources() -> anyhow::Result<u64> {
    let mut git = Command::new("git");
    git.current_dir(workspace::folder()).args(["log", "-1", "--format=%ct"]);
    command::output(git)?.trim().parse().context("git tells no time of the last commit")
}

/// The size that the package says it has when it is installed.
fn installed(package: &Path) -> anyhow::Result<String> {
    let mut field = Command::new("dpkg-deb");
    field.arg("--field").arg(package).arg("Installed-Size");
    let kib: u64 = command::output(field)?.trim().parse().context("dpkg-deb tells no size")?;
    Ok(format!("{:.2} MiB", mib(kib * 1024)))
}

#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Fails if lintian finds anything but what is overridden with a reason.
fn lint(package: &Path) -> anyhow::Result<()> {
    let mut lintian = Command::new("lintian");
    lintian.args(["--no-tag-display-limit", "--tag-display-limit=0", "--info", "--fail-on"]);
    lintian.args(["error,warning,info", "--display-info"]).arg(package);
    // A package of root's folder is looked at by root, too.
    lintian.arg("--allow-root");
    command::run(lintian)
}
