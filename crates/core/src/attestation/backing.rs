//! Conditions under which the measurement of an executable is final. From the look at the
//! file on, the file must be known to hold the code that runs.
//!
//! The kernel shows a process's executable as a file, and what is hashed is that file's
//! content *now*. The two are the same only if the content cannot change while it is
//! executed, and a digest may be remembered only if the content cannot change later
//! without a sign. Believed are, and nothing else:
//!
//! - **the daemon's own sealed copy** ([`Lasting::ForGood`]): no call changes sealed
//!   memory, and no other memory file has that inode *and* that change time, which was
//!   long ago when the module began to run;
//! - **a file with a name, on a file system whose writers the kernel keeps out of
//!   executables** (`ETXTBSY`; a mapping that is shared and writable counts as a writer,
//!   whatever becomes of its descriptor) and where each later change shows in the change
//!   time ([`Lasting::UntilChanged`]);
//! - the same where changes through a mapping do not show ([`Lasting::ForNow`]: tmpfs,
//!   overlays that keep their changes on one): hashed at each look;
//! - a file under **fs-verity**, or on a file system that nothing writes to, also where
//!   the kernel lets writers in.
//!
//! A memory file of anybody else's making has writers that the kernel does not count. So
//! may a file whose name is gone be one, and nothing tells them apart for sure. What FUSE
//! and network file systems return is decided elsewhere, each time anew. A layer below an
//! overlay can be written past the overlay by whoever reaches it.

use serde::{Deserialize, Serialize};

use super::{DenyReason, ExecutableFile};

/// The kind of storage that keeps a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// A local file system whose change times also move with writes through mappings.
    Disk,
    /// A file system without any way to write to it.
    ReadOnly,
    /// Pages without a disk: tmpfs, ramfs, memory files.
    Memory,
    /// Layers of other file systems.
    Overlay,
    /// Anything else: FUSE, the network's, hugetlbfs, what is not known.
    Other,
}

impl Storage {
    /// The kind of file system with this number (`f_type` of `statfs`, `linux/magic.h`).
    #[must_use]
    pub fn of_file_system(magic: u64) -> Self {
        match magic {
            // ext2 to ext4, XFS, Btrfs, F2FS, UBIFS.
            0xef53 | 0x5846_5342 | 0x9123_683e | 0xf2f5_2010 | 0x2405_1905 => Self::Disk,
            // SquashFS, EROFS, cramfs.
            0x7371_7368 | 0xe0f5_e1e2 | 0x28cd_3d45 => Self::ReadOnly,
            // tmpfs, ramfs.
            0x0102_1994 | 0x8584_58f6 => Self::Memory,
            0x794c_7630 => Self::Overlay,
            _ => Self::Other,
        }
    }
}

/// An overlay that holds an executable, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Overlay {
    /// The party that mounted the overlay.
    pub mounted: MountedBy,
    /// The storage of what is written to the overlay; `None` if the overlay takes no
    /// writes.
    pub upper: Option<Storage>,
}

/// The party that mounted an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountedBy {
    /// The engine, as the root of the module's container: its layers are in the engine's
    /// own folder.
    Engine,
    /// The machine: it is among the daemon's own mounts. Others may reach its layers,
    /// with the rights that the file has.
    Machine,
    /// Nobody that is known: any user may mount one in a user namespace, of layers that
    /// this user writes to.
    Unknown,
}

/// Properties of the file that a process executes, as the kernel tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    /// The file.
    pub file: ExecutableFile,
    /// Number of its names.
    pub links: u64,
    /// The storage that keeps the file.
    pub storage: Storage,
    /// The overlay that the file is on, if it is on one.
    pub overlay: Option<Overlay>,
    /// True if the file is sealed against every change of size, content and seals.
    pub sealed: bool,
    /// True if fs-verity protects the file.
    pub verity: bool,
    /// True if root alone may write to the file, by owner and mode.
    pub only_root_writes: bool,
}

/// The time for which a measurement stays true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lasting {
    /// As long as the process executes it: the file may change afterwards without a sign.
    ForNow,
    /// Until device, inode, size or change time differ.
    UntilChanged,
    /// The file never changes.
    ForGood,
}

/// The reason why a file's content is not believed to be the code that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// It has no name: a memory file, or one that was removed.
    Nameless,
    /// It is on a file system whose content others decide, or about which nothing is
    /// known.
    Storage,
    /// It is on an overlay whose layers somebody may write to.
    Layers,
    /// This kernel lets executables be written to while they run.
    Writers,
}

impl Doubt {
    /// The reason to refuse a caller with.
    #[must_use]
    pub fn reason(self) -> DenyReason {
        match self {
            Self::Nameless => DenyReason::ExecutableNameless,
            Self::Storage | Self::Layers | Self::Writers => DenyReason::ExecutableNotFinal,
        }
    }
}

/// Decides if the file's content is the code that runs, and returns for how long its
/// digest may be remembered.
///
/// `own_copy` is the sealed copy that the daemon made for the module. `denies_writers` is
/// true if this kernel keeps writers out of executables ([`keeps_writers_out`]).
///
/// # Errors
/// The first thing that is in doubt.
pub fn judge(
    backing: &Backing,
    own_copy: Option<&ExecutableFile>,
    denies_writers: bool,
) -> Result<Lasting, Doubt> {
    if backing.sealed && own_copy == Some(&backing.file) {
        return Ok(Lasting::ForGood);
    }
    if backing.links == 0 {
        return Err(Doubt::Nameless);
    }
    let lasting = match backing.storage {
        Storage::ReadOnly => return Ok(Lasting::UntilChanged),
        Storage::Disk if backing.verity => return Ok(Lasting::UntilChanged),
        Storage::Disk => Lasting::UntilChanged,
        Storage::Memory => Lasting::ForNow,
        Storage::Overlay => on_overlay(backing)?,
        Storage::Other => return Err(Doubt::Storage),
    };
    if denies_writers { Ok(lasting) } else { Err(Doubt::Writers) }
}

fn on_overlay(backing: &Backing) -> Result<Lasting, Doubt> {
    let Some(overlay) = backing.overlay else { return Err(Doubt::Layers) };
    match overlay.mounted {
        MountedBy::Engine => {}
        MountedBy::Machine if backing.only_root_writes => {}
        MountedBy::Machine | MountedBy::Unknown => return Err(Doubt::Layers),
    }
    match overlay.upper {
        None | Some(Storage::Disk) => Ok(Lasting::UntilChanged),
        // An overlay on an overlay, or on what cannot be looked at: changes may not show.
        Some(Storage::Memory | Storage::ReadOnly | Storage::Overlay | Storage::Other) => {
            Ok(Lasting::ForNow)
        }
    }
}

/// Returns true if a kernel keeps writers out of executables. `tried` is what the daemon
/// learned by opening its own executable for writing; `None` if it learned nothing. Linux
/// 6.11 did not keep writers out, and neither did some of the first 6.12 kernels.
#[must_use]
pub fn keeps_writers_out(tried: Option<bool>, release: &str) -> bool {
    tried.unwrap_or(!release.starts_with("6.11."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: ExecutableFile = ExecutableFile { device: 1, inode: 2, size: 3, ctime_ns: 4 };

    fn named(storage: Storage) -> Backing {
        let overlay = None;
        Backing {
            file: FILE,
            links: 1,
            storage,
            overlay,
            sealed: false,
            verity: false,
            only_root_writes: false,
        }
    }

    fn overlay(mounted: MountedBy, upper: Option<Storage>) -> Backing {
        Backing { overlay: Some(Overlay { mounted, upper }), ..named(Storage::Overlay) }
    }

    #[test]
    fn each_kind_of_file_is_believed_for_as_long_as_its_content_cannot_change_unseen() {
        use Lasting::{ForGood, ForNow, UntilChanged};
        let memory_file = Backing { links: 0, ..named(Storage::Memory) };
        let sealed = Backing { sealed: true, ..memory_file };
        let of_roots =
            Backing { only_root_writes: true, ..overlay(MountedBy::Machine, Some(Storage::Disk)) };
        let other_file = ExecutableFile { ctime_ns: 5, ..FILE };
        for (what, backing, own_copy, expected) in [
            ("the own copy", sealed, Some(FILE), Ok(ForGood)),
            (
                "the inode of the own copy, used again",
                sealed,
                Some(other_file),
                Err(Doubt::Nameless),
            ),
            ("the own copy, if it were not sealed", memory_file, Some(FILE), Err(Doubt::Nameless)),
            ("somebody's sealed memory", sealed, None, Err(Doubt::Nameless)),
            ("somebody's memory", memory_file, None, Err(Doubt::Nameless)),
            (
                "huge pages",
                Backing { links: 0, ..named(Storage::Other) },
                None,
                Err(Doubt::Nameless),
            ),
            (
                "a removed file",
                Backing { links: 0, ..named(Storage::Disk) },
                None,
                Err(Doubt::Nameless),
            ),
            ("a file on disk", named(Storage::Disk), None, Ok(UntilChanged)),
            ("a file on tmpfs", named(Storage::Memory), None, Ok(ForNow)),
            ("a file of SquashFS", named(Storage::ReadOnly), None, Ok(UntilChanged)),
            ("a file of FUSE or NFS", named(Storage::Other), None, Err(Doubt::Storage)),
            (
                "an image's file",
                overlay(MountedBy::Engine, Some(Storage::Disk)),
                None,
                Ok(UntilChanged),
            ),
            (
                "an image's file, changes in memory",
                overlay(MountedBy::Engine, Some(Storage::Memory)),
                None,
                Ok(ForNow),
            ),
            (
                "a module's own overlay",
                overlay(MountedBy::Unknown, Some(Storage::Disk)),
                None,
                Err(Doubt::Layers),
            ),
            (
                "an overlay of which nothing is known",
                named(Storage::Overlay),
                None,
                Err(Doubt::Layers),
            ),
            ("a root file system of layers, root's file", of_roots, None, Ok(UntilChanged)),
            (
                "a root file system of layers, a user's file",
                overlay(MountedBy::Machine, Some(Storage::Disk)),
                None,
                Err(Doubt::Layers),
            ),
        ] {
            assert_eq!(judge(&backing, own_copy.as_ref(), true), expected, "{what}");
        }
    }

    #[test]
    fn where_the_kernel_lets_writers_in_only_what_nobody_can_write_is_believed() {
        let sealed = Backing { links: 0, sealed: true, ..named(Storage::Memory) };
        assert_eq!(judge(&sealed, Some(&FILE), false), Ok(Lasting::ForGood));
        let verity = Backing { verity: true, ..named(Storage::Disk) };
        for backing in [verity, named(Storage::ReadOnly)] {
            assert_eq!(judge(&backing, None, false), Ok(Lasting::UntilChanged));
        }
        // An attribute that a file system makes up is no fs-verity.
        let made_up = Backing { verity: true, ..named(Storage::Other) };
        assert_eq!(judge(&made_up, None, false), Err(Doubt::Storage));
        for backing in [
            named(Storage::Disk),
            named(Storage::Memory),
            overlay(MountedBy::Engine, Some(Storage::Disk)),
        ] {
            assert_eq!(judge(&backing, None, false), Err(Doubt::Writers));
        }
    }

    #[test]
    fn what_was_tried_counts_and_else_the_release() {
        for (tried, release, expected) in [
            (Some(true), "6.11.4", true),
            (Some(false), "6.1.0-18-amd64", false),
            (None, "6.11.4", false),
            (None, "6.1.110", true),
            (None, "6.18.44", true),
        ] {
            assert_eq!(keeps_writers_out(tried, release), expected, "{tried:?} {release}");
        }
    }

    fn any_storage() -> impl Strategy<Value = Storage> {
        prop::sample::select(vec![
            Storage::Disk,
            Storage::ReadOnly,
            Storage::Memory,
            Storage::Overlay,
            Storage::Other,
        ])
    }

    fn any_overlay() -> impl Strategy<Value = Overlay> {
        let mounted =
            prop::sample::select(vec![MountedBy::Engine, MountedBy::Machine, MountedBy::Unknown]);
        (mounted, prop::option::of(any_storage()))
            .prop_map(|(mounted, upper)| Overlay { mounted, upper })
    }

    proptest! {
        #[test]
        fn nothing_without_a_name_is_believed_but_the_own_copy_and_nothing_remembered_that_changes_unseen(
            inode in 1..3_u64, links in 0..2_u64, storage in any_storage(), overlay in prop::option::of(any_overlay()),
            flags in prop::array::uniform4(any::<bool>()), has_copy in any::<bool>(),
        ) {
            let [sealed, verity, only_root_writes, denies_writers] = flags;
            let file = ExecutableFile { inode, ..FILE };
            let backing = Backing { file, links, storage, overlay, sealed, verity, only_root_writes };
            let own_copy = has_copy.then_some(FILE);
            let judged = judge(&backing, own_copy.as_ref(), denies_writers);
            let is_own = sealed && own_copy == Some(file);
            if is_own {
                prop_assert_eq!(judged, Ok(Lasting::ForGood));
                return Ok(());
            }
            prop_assert_ne!(judged, Ok(Lasting::ForGood));
            if links == 0 || storage == Storage::Other {
                prop_assert!(judged.is_err());
            }
            if judged == Ok(Lasting::UntilChanged) {
                let on_disk = overlay.is_some_and(|overlay| matches!(overlay.upper, None | Some(Storage::Disk)));
                prop_assert!(matches!(storage, Storage::Disk | Storage::ReadOnly) || on_disk);
            }
            // Writers let in never make anything more believable.
            if !denies_writers {
                prop_assert!(judged.is_err() || judge(&backing, own_copy.as_ref(), true).is_ok());
            }
        }
    }
}
