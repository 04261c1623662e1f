//! The machine's root file system: Debian with its own kernel, systemd and Docker, as an
//! image that is made once.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::{command, parts, workspace};

const SUITE: &str = "bookworm";
/// Packages in the image beside those that Debian requires. debootstrap does not see that
/// polkitd needs libpam-systemd.
const PACKAGES: &str = "systemd,systemd-sysv,udev,kmod,dbus,linux-image-cloud-amd64,initramfs-tools,tpm-udev,iproute2,iptables,apparmor,libpam-systemd,polkitd,docker.io";
/// Its size; what is not used takes no room.
const SIZE: &str = "4G";

/// Files that are there before the first package: quicker, and a small ramdisk with what
/// this machine's drive needs.
const BEFORE: [(&str, &str); 3] = [
    (
        "etc/dpkg/dpkg.cfg.d/machine",
        "force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n",
    ),
    ("etc/initramfs-tools/conf.d/machine", "MODULES=list\nCOMPRESS=gzip\nFSTYPE=ext4\n"),
    ("usr/share/initramfs-tools/modules.d/machine", "virtio_pci\nvirtio_blk\next4\n"),
];

/// Files that make it the machine of the checks.
const AFTER: [(&str, &str); 4] = [
    ("etc/hostname", "device\n"),
    ("etc/hosts", "127.0.0.1 localhost device\n::1 localhost\n"),
    ("etc/fstab", "/dev/vda / ext4 rw 0 0\n/dev/vdb /payload ext4 ro 0 0\n"),
    (
        "etc/systemd/system/serial-getty@ttyS0.service.d/shell.conf",
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I vt220\n",
    ),
];

/// The unit that runs the checks, once, and ends the machine whatever came of them.
const CHECKS: &str = "[Unit]
Description=Checks of the device
After=multi-user.target
RequiresMountsFor=/payload
ConditionKernelCommandLine=!device.shell
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
Environment=EDGEKEEP_TEST_ENGINE=unix:///run/docker.sock HOME=/root
ExecStart=/payload/device-checks /dev/ttyS1
ExecStopPost=-/bin/sh -c 'journalctl --boot --no-pager --output=short-monotonic --lines=2000 >/dev/ttyS0'
";

/// Units that take time and do nothing for the checks.
const MASKED: [&str; 6] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "getty@tty1.service",
];

/// An image with its kernel and ramdisk beside it.
pub(super) struct Root {
    pub(super) image: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) ramdisk: PathBuf,
}

impl Root {
    fn in_folder(folder: &Path) -> Self {
        Self {
            image: folder.join("root.img"),
            kernel: folder.join("vmlinuz"),
            ramdisk: folder.join("initrd.img"),
        }
    }
}

/// The image, made if there is none of this content.
pub(super) fn made(anew: bool) -> anyhow::Result<Root> {
    let all = workspace::target().join("vm");
    let folder = all.join(format!("{:016x}", content()));
    if anew {
        remove(&folder)?;
    }
    // Renamed into place when it was complete.
    if !folder.exists() {
        // Of former contents.
        remove(&all)?;
        let making = all.join("making");
        fs::create_dir_all(&making).with_context(|| format!("cannot make {}", making.display()))?;
        make(&making)?;
        fs::rename(&making, &folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(Root::in_folder(&folder))
}

/// A number for all that goes in.
fn content() -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (SUITE, PACKAGES, SIZE, BEFORE, AFTER, CHECKS, MASKED).hash(&mut hasher);
    hasher.finish()
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn make(folder: &Path) -> anyhow::Result<()> {
    let tree = folder.join("tree");
    write_all(&tree, &BEFORE)?;
    let log = folder.join("log");
    eprintln!(
        "making the root file system of the machine with debootstrap, once; this takes minutes"
    );
    let mut debootstrap =
        Command::new(parts::find("debootstrap").context("debootstrap is missing")?);
    debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&tree);
    debootstrap.env("DEBIAN_FRONTEND", "noninteractive");
    command::run_quietly(debootstrap, &log)?;
    write_all(&tree, &AFTER)?;
    fs::create_dir_all(tree.join("payload"))?;
    remove(&tree.join("var/cache/apt/archives"))?;
    let units = tree.join("etc/systemd/system");
    fs::write(units.join("device-checks.service"), CHECKS)?;
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    symlink("../device-checks.service", wanted.join("device-checks.service"))?;
    for unit in MASKED {
        symlink("/dev/null", units.join(unit))?;
    }
    let root = Root::in_folder(folder);
    // Names without the version lead to the newest.
    for (link, place) in [("vmlinuz", &root.kernel), ("initrd.img", &root.ramdisk)] {
        let found = newest(&tree.join("boot"), link)?;
        fs::copy(&found, place).with_context(|| format!("cannot copy {}", found.display()))?;
    }
    file_system(&tree, &root.image, SIZE, &log)?;
    remove(&tree)
}

fn newest(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let found = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let named = found.filter(|path| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
    });
    named.max().with_context(|| format!("no {name} in {}", folder.display()))
}

fn write_all(tree: &Path, files: &[(&str, &str)]) -> anyhow::Result<()> {
    for (name, content) in files {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap_or(tree))
            .with_context(|| format!("cannot make {}", path.display()))?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Makes an image of a folder's content; nothing is mounted for it.
pub(super) fn file_system(tree: &Path, image: &Path, size: &str, log: &Path) -> anyhow::Result<()> {
    let mut mke2fs = Command::new(parts::find("mke2fs").context("mke2fs is missing")?);
    mke2fs.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^has_journal,verity",
        "-E",
        "lazy_itable_init=1",
        "-d",
    ]);
    mke2fs.arg(tree).arg(image).arg(size);
    command::run_quietly(mke2fs, log)
}
