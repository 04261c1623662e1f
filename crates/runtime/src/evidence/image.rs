//! Comparison of a container's executable with its image. The file is looked up in the
//! image's own layers, which the container cannot write to, and compared by content.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use edgekeep_core::attestation::backing::Lasting;
use edgekeep_core::digest::Sha256Digest;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde_json::Value;

use super::DigestCache;
use super::backing::Mounted;
use super::executable::Recent;
use super::proc_dir::executable_file;

/// Comparisons that are remembered.
const CACHED_COMPARISONS: usize = 1024;

/// Engines stop at about 128 layers.
pub(super) const MAX_LAYERS: usize = 500;

/// The folders that an image's layers are stored in, top-most first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayers {
    image: Sha256Digest,
    folders: Arc<[PathBuf]>,
    /// True if the folders belong to the image itself and serve every container of it;
    /// false if they were read from the mounts of one container.
    of_image: bool,
}

/// Result of a lookup of a path in the layers.
#[derive(Debug)]
pub enum LayerLookup {
    /// A regular file.
    File(OwnedFd),
    /// Nothing, or not a regular file.
    Absent,
    /// The layers use a feature that is not understood, or cannot be read.
    Undetermined,
}

impl ImageLayers {
    /// The layers of `image` in `folders`, top-most first.
    #[must_use]
    pub fn new(image: Sha256Digest, folders: Vec<PathBuf>) -> Self {
        Self { image, folders: folders.into(), of_image: true }
    }

    /// The layers in the engine's answer to an image inspect; `None` if it does not keep
    /// them as overlay folders.
    #[must_use]
    pub fn from_image_inspect(answer: &Value) -> Option<Self> {
        let image = answer["Id"].as_str()?.parse().ok()?;
        let data = &answer["GraphDriver"]["Data"];
        let top = data["UpperDir"].as_str()?;
        let lower = data["LowerDir"].as_str().unwrap_or_default();
        let folders: Vec<PathBuf> = std::iter::once(top)
            .chain(lower.split(':'))
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .collect();
        let usable =
            folders.len() <= MAX_LAYERS && folders.iter().all(|folder| folder.is_absolute());
        usable.then(|| Self { image, folders: folders.into(), of_image: true })
    }

    /// The layers below a container's root: the image's, and what the engine put between
    /// them and the container's own. Who asks has made sure that nothing in the container
    /// may mount.
    pub(crate) fn from_root_mount(image: Sha256Digest, folders: Vec<PathBuf>) -> Self {
        Self { image, folders: folders.into(), of_image: false }
    }

    /// Returns true if the layers serve every container of the image, as long as the
    /// image exists.
    pub(crate) fn is_of_image(&self) -> bool {
        self.of_image
    }

    /// The folders, top-most first.
    pub(crate) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// The image's id.
    #[must_use]
    pub fn image(&self) -> &Sha256Digest {
        &self.image
    }

    /// Looks up a path as the merged file system shows it. The path comes from the
    /// kernel, so it holds no symbolic link; one that is met anyway is not followed.
    #[must_use]
    pub fn find(&self, path: &Path) -> LayerLookup {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::RootDir => {}
                Component::Normal(name) => names.push(name),
                _ => return LayerLookup::Absent,
            }
        }
        let Some((file_name, parents)) = names.split_last() else { return LayerLookup::Absent };
        for folder in self.folders.iter() {
            match find_in_layer(folder, parents, file_name) {
                Ok(InLayer::File(fd)) => return LayerLookup::File(fd),
                Ok(InLayer::Hidden) => return LayerLookup::Absent,
                Ok(InLayer::LookBelow) => {}
                Ok(InLayer::NotUnderstood) | Err(_) => return LayerLookup::Undetermined,
            }
        }
        LayerLookup::Absent
    }
}

enum InLayer {
    File(OwnedFd),
    /// This layer removes the path, or puts something else in its place.
    Hidden,
    /// This layer does not mention the path.
    LookBelow,
    NotUnderstood,
}

fn find_in_layer(
    layer: &Path,
    parents: &[&std::ffi::OsStr],
    file_name: &std::ffi::OsStr,
) -> Result<InLayer, Errno> {
    let open_folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = rustix::fs::open(layer, open_folder & !OFlags::NOFOLLOW, Mode::empty())?;
    // An opaque folder shows nothing of the layers below it.
    let mut opaque = false;
    let absent = |opaque: bool| if opaque { InLayer::Hidden } else { InLayer::LookBelow };
    for name in parents {
        let stat = match rustix::fs::statat(&folder, *name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(absent(opaque)),
            Err(other) => return Err(other),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(InLayer::Hidden);
        }
        folder = rustix::fs::openat(&folder, *name, open_folder, Mode::empty())?;
        if overlay_attribute(&folder, "redirect")?.is_some() {
            return Ok(InLayer::NotUnderstood);
        }
        if overlay_attribute(&folder, "opaque")?.as_deref() == Some(b"y") {
            opaque = true;
        }
    }
    let stat = match rustix::fs::statat(&folder, file_name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(absent(opaque)),
        Err(other) => return Err(other),
    };
    // Also a whiteout (a character device 0/0) ends here.
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(InLayer::Hidden);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&folder, file_name, flags, Mode::empty())?;
    if overlay_attribute(&fd, "metacopy")?.is_some() {
        return Ok(InLayer::NotUnderstood);
    }
    Ok(InLayer::File(fd))
}

/// An attribute that the overlay file system left on a layer's file: `trusted.` for a
/// privileged engine, `user.` for a rootless one.
fn overlay_attribute(fd: &OwnedFd, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    for space in ["trusted", "user"] {
        let mut value = [0; 16];
        match rustix::fs::fgetxattr(fd, format!("{space}.overlay.{name}"), &mut value) {
            Ok(length) => return Ok(Some(value[..length].to_vec())),
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            // A value longer than any that is compared.
            Err(Errno::RANGE) => return Ok(Some(Vec::new())),
            Err(other) => return Err(other),
        }
    }
    Ok(None)
}

/// Image, path in it, digest that was found running.
type Comparison = (Sha256Digest, PathBuf, Sha256Digest);

/// Remembers comparisons. An image's layers never change, so neither does the outcome.
#[derive(Debug, Clone)]
pub(super) struct ImageMemo(Arc<Mutex<Recent<Comparison, bool>>>);

impl Default for ImageMemo {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Recent::new(CACHED_COMPARISONS))))
    }
}

impl ImageMemo {
    /// Returns true if the image holds content with `digest` under `path`; `None` if that
    /// cannot be determined. Blocks for as long as reading takes.
    pub(super) fn unmodified(
        &self,
        image: &ImageLayers,
        path: &Path,
        digest: Sha256Digest,
        digests: &DigestCache,
    ) -> Option<bool> {
        let key = (image.image, path.to_owned(), digest);
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Some(known);
        }
        // The path came from the kernel; one that is not absolute (a memory file, another
        // mount tree) is in no image.
        if !path.as_os_str().as_bytes().starts_with(b"/") {
            return Some(false);
        }
        let same = match image.find(path) {
            LayerLookup::File(fd) => {
                // In the engine's own folder, where only the engine writes.
                let stored =
                    Mounted { file: executable_file(&rustix::fs::fstat(&fd).ok()?), mount: 0 };
                digests.digest(stored, Lasting::UntilChanged, fd).ok()? == digest
            }
            LayerLookup::Absent => false,
            LayerLookup::Undetermined => return None,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, same);
        Some(same)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::evidence::executable::sha256_of;

    /// Layers as folders, top-most first: `(path, content)`; content `None` makes a
    /// folder.
    fn layers(root: &Path, contents: &[&[(&str, Option<&str>)]]) -> ImageLayers {
        let mut folders = Vec::new();
        for (number, entries) in contents.iter().enumerate() {
            let folder = root.join(number.to_string());
            fs::create_dir(&folder).expect("new");
            for (path, content) in *entries {
                let path = folder.join(path);
                fs::create_dir_all(path.parent().expect("has one")).expect("made");
                match content {
                    Some(content) => fs::write(path, content).expect("written"),
                    None => fs::create_dir_all(path).expect("made"),
                }
            }
            folders.push(folder);
        }
        ImageLayers::new(Sha256Digest::new([7; 32]), folders)
    }

    fn found(layers: &ImageLayers, path: &str) -> Option<String> {
        match layers.find(Path::new(path)) {
            LayerLookup::File(fd) => {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut fs::File::from(fd), &mut text).expect("text");
                Some(text)
            }
            LayerLookup::Absent => None,
            LayerLookup::Undetermined => panic!("undetermined"),
        }
    }

    #[test]
    fn the_topmost_layer_that_has_the_file_wins() {
        let root = tempfile::tempdir().expect("temp folder");
        let layers = layers(
            root.path(),
            &[&[("bin/a", Some("new"))], &[("bin/a", Some("old")), ("bin/b", Some("b"))]],
        );
        assert_eq!(found(&layers, "/bin/a").as_deref(), Some("new"));
        assert_eq!(found(&layers, "/bin/b").as_deref(), Some("b"));
        assert_eq!(found(&layers, "/bin/c"), None);
        assert_eq!(found(&layers, "/bin"), None, "a folder is not a program");
        assert_eq!(found(&layers, "/bin/a (deleted)"), None);
        assert_eq!(found(&layers, "/bin/../bin/a"), None, "the kernel gives no such path");
    }

    #[test]
    fn symbolic_links_in_a_layer_lead_nowhere() {
        let root = tempfile::tempdir().expect("temp folder");
        let layers = layers(root.path(), &[&[("bin/x", Some("x"))], &[("sbin/b", Some("below"))]]);
        std::os::unix::fs::symlink("/etc", root.path().join("0/sbin")).expect("linked");
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("0/bin/p")).expect("linked");
        assert_eq!(found(&layers, "/sbin/passwd"), None);
        assert_eq!(found(&layers, "/sbin/b"), None, "the link hides the folder below");
        assert_eq!(found(&layers, "/bin/p"), None);
    }

    #[test]
    fn an_opaque_folder_hides_the_layers_below() {
        let root = tempfile::tempdir().expect("temp folder");
        let layers = layers(root.path(), &[&[("opt", None)], &[("opt/tool", Some("hidden"))]]);
        assert_eq!(found(&layers, "/opt/tool").as_deref(), Some("hidden"));
        let set = rustix::fs::setxattr(
            root.path().join("0/opt"),
            "user.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        );
        if set == Err(Errno::NOTSUP) {
            eprintln!("skipped: the temp folder's file system has no extended attributes");
            return;
        }
        set.expect("own folder");
        assert_eq!(found(&layers, "/opt/tool"), None);
    }

    #[test]
    fn a_whiteout_hides_the_file_below() {
        let root = tempfile::tempdir().expect("temp folder");
        let layers = layers(root.path(), &[&[("bin", None)], &[("bin/a", Some("old"))]]);
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            root.path().join("0/bin/a"),
            FileType::CharacterDevice,
            Mode::empty(),
            rustix::fs::makedev(0, 0),
        );
        if made == Err(Errno::PERM) {
            eprintln!("skipped: making a whiteout needs root here");
            return;
        }
        made.expect("own folder");
        assert_eq!(found(&layers, "/bin/a"), None);
    }

    #[test]
    fn layers_that_cannot_be_read_determine_nothing() {
        let layers =
            ImageLayers::new(Sha256Digest::new([7; 32]), vec!["/nonexistent/layer".into()]);
        assert!(matches!(layers.find(Path::new("/bin/a")), LayerLookup::Undetermined));
    }

    #[test]
    fn the_engines_answer_lists_the_top_layer_and_those_below() {
        let id = format!("sha256:{}", "a".repeat(64));
        let answer = json!({ "Id": id, "GraphDriver": { "Data": { "UpperDir": "/l/3", "LowerDir": "/l/2:/l/1" } } });
        let layers = ImageLayers::from_image_inspect(&answer).expect("overlay");
        assert_eq!(&*layers.folders, ["/l/3", "/l/2", "/l/1"].map(PathBuf::from));
        let single = json!({ "Id": id, "GraphDriver": { "Data": { "UpperDir": "/l/1" } } });
        assert_eq!(ImageLayers::from_image_inspect(&single).expect("overlay").folders.len(), 1);
        assert_eq!(ImageLayers::from_image_inspect(&json!({ "Id": id, "GraphDriver": {} })), None);
        let relative = json!({ "Id": id, "GraphDriver": { "Data": { "UpperDir": "l/1" } } });
        assert_eq!(ImageLayers::from_image_inspect(&relative), None);
    }

    #[test]
    fn only_the_same_content_under_the_same_path_is_unmodified() {
        let root = tempfile::tempdir().expect("temp folder");
        let layers = layers(root.path(), &[&[("bin/a", Some("program"))]]);
        let (memo, digests) = (ImageMemo::default(), DigestCache::default());
        for (path, content, expected) in [
            ("/bin/a", "program", true),
            ("/bin/a", "changed", false),
            ("/bin/b", "program", false),
        ] {
            let digest = sha256_of(content.as_bytes());
            let verdict = memo.unmodified(&layers, Path::new(path), digest, &digests);
            assert_eq!(verdict, Some(expected), "{path} {content}");
        }
    }
}
