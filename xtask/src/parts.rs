//! Foreign parts that tests and the demo use: what is installed, and installing it with
//! the right to.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::{command, workspace};

/// A program of another project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// The program.
    pub(crate) program: &'static str,
    /// Debian's package.
    pub(crate) package: &'static str,
}

pub(crate) const CURL: Part = Part { program: "curl", package: "curl" };
pub(crate) const OPENSSL: Part = Part { program: "openssl", package: "openssl" };
pub(crate) const FAKETIME: Part = Part { program: "faketime", package: "faketime" };
pub(crate) const STRACE: Part = Part { program: "strace", package: "strace" };
pub(crate) const DOCKERD: Part = Part { program: "dockerd", package: "docker.io" };
pub(crate) const IP: Part = Part { program: "ip", package: "iproute2" };
pub(crate) const PODMAN: Part = Part { program: "podman", package: "podman" };
pub(crate) const RUNC: Part = Part { program: "runc", package: "runc" };
pub(crate) const DOCKER: Part = Part { program: "docker", package: "docker.io" };
pub(crate) const SWTPM: Part = Part { program: "swtpm", package: "swtpm" };
pub(crate) const TPM2_TOOLS: Part = Part { program: "tpm2_getcap", package: "tpm2-tools" };
pub(crate) const SOFTHSM: Part = Part { program: "softhsm2-util", package: "softhsm2" };
pub(crate) const AGE: Part = Part { program: "age", package: "age" };
pub(crate) const OPENSC: Part = Part { program: "pkcs11-tool", package: "opensc" };
pub(crate) const TPM2_PTOOL: Part = Part { program: "tpm2_ptool", package: "libtpm2-pkcs11-tools" };
pub(crate) const TPM2_ABRMD: Part = Part { program: "tpm2-abrmd", package: "tpm2-abrmd" };
pub(crate) const DBUS_DAEMON: Part = Part { program: "dbus-daemon", package: "dbus-daemon" };
pub(crate) const DBUS_SEND: Part = Part { program: "dbus-send", package: "dbus-bin" };
pub(crate) const QEMU: Part = Part { program: "qemu-system-x86_64", package: "qemu-system-x86" };
pub(crate) const DEBOOTSTRAP: Part = Part { program: "debootstrap", package: "debootstrap" };
pub(crate) const MKE2FS: Part = Part { program: "mke2fs", package: "e2fsprogs" };
pub(crate) const DEBHELPER: Part = Part { program: "dh", package: "debhelper" };
pub(crate) const DPKG_DEV: Part = Part { program: "dpkg-buildpackage", package: "dpkg-dev" };
pub(crate) const LINTIAN: Part = Part { program: "lintian", package: "lintian" };
pub(crate) const CPP: Part = Part { program: "c++", package: "g++" };
/// Libraries have no program to look for: their file stands for it.
pub(crate) const TPM2_PKCS11: Part =
    Part { program: "libtpm2_pkcs11.so.1", package: "libtpm2-pkcs11-1" };
pub(crate) const TCTI_TABRMD: Part =
    Part { program: "libtss2-tcti-tabrmd.so.0", package: "libtss2-tcti-tabrmd0" };
pub(crate) const PYTHON: Part = Part { program: "python3", package: "python3-venv" };

/// Version of the device SDK that is tested against.
const SDK: &str = "azure-iot-device==2.14.0";
/// Its parser of metrics is the strict one.
const METRICS_PARSER: &str = "prometheus_client==0.26.0";

/// Returns true if this process is root, and so may change the system.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Finds a program or a library. `sbin` is searched even if an ordinary user's `PATH`
/// lacks it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let libraries = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into(), libraries.into()]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Installs what is missing of `wanted`, if it may. What is still missing afterwards is
/// returned.
pub(crate) fn provide(wanted: &[Part]) -> anyhow::Result<Vec<Part>> {
    let missing =
        || wanted.iter().copied().filter(|part| find(part.program).is_none()).collect::<Vec<_>>();
    let absent = missing();
    if absent.is_empty() || !is_root() || find("apt-get").is_none() {
        return Ok(absent);
    }
    let packages: Vec<&str> = absent.iter().map(|part| part.package).collect();
    install(&packages)?;
    Ok(missing())
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    eprintln!("installing {}", packages.join(", "));
    let folder = workspace::target();
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let log = folder.join("apt-get.log");
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q").args(words);
        command::run_quietly(command, &log)
    };
    let wanted = [&["install", "-y"], packages].concat();
    // With fresh package lists only if the present ones do not do.
    apt(&wanted).or_else(|_| apt(&["update"]).and_then(|()| apt(&wanted)))
}

/// The line that says how to get the missing parts.
pub(crate) fn remedy(missing: &[Part]) -> String {
    let names: Vec<&str> = missing.iter().map(|part| part.program).collect();
    let packages: Vec<&str> = missing.iter().map(|part| part.package).collect();
    format!("{} missing: sudo apt-get install {}", names.join(", "), packages.join(" "))
}

/// A Python interpreter that has the unmodified device SDK, in an environment below the
/// target folder; else why not.
pub(crate) fn python() -> anyhow::Result<PathBuf> {
    let folder = workspace::target().join("python");
    let interpreter = folder.join("bin/python");
    if has_sdk(&interpreter) {
        return Ok(interpreter);
    }
    let missing = provide(&[PYTHON])?;
    anyhow::ensure!(missing.is_empty(), remedy(&missing));
    let log = workspace::target().join("python.log");
    let make = || {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "--clear"]).arg(&folder);
        command::run_quietly(venv, &log)
    };
    eprintln!("installing {SDK} from PyPI below {}", folder.display());
    if let Err(error) = make() {
        // Debian has python3 without venv.
        anyhow::ensure!(
            is_root() && find("apt-get").is_some(),
            "{error:#}\nsudo apt-get install {}",
            PYTHON.package
        );
        install(&[PYTHON.package])?;
        make()?;
    }
    let mut pip = Command::new(&interpreter);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        SDK,
        METRICS_PARSER,
    ]);
    command::run_quietly(pip, &log)?;
    anyhow::ensure!(has_sdk(&interpreter), "{SDK} is installed but cannot be imported");
    Ok(interpreter)
}

fn has_sdk(interpreter: &std::path::Path) -> bool {
    let mut python = Command::new(interpreter);
    python
        .args(["-c", "import azure.iot.device, prometheus_client"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    python.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_exists_is_found_and_another_is_not() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program"), None);
    }

    #[test]
    fn the_remedy_is_one_line_with_the_packages() {
        assert_eq!(
            remedy(&[DOCKERD, CURL]),
            "dockerd, curl missing: sudo apt-get install docker.io curl"
        );
    }
}
