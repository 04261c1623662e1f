//! Reading a file that somebody else may have changed.
//!
//! Whatever stands at the path, the call returns: nothing is opened but a regular file,
//! the file is opened without waiting, and no more is read than the limit and one byte.
//! [`Rules`] says who may have written the file and who may read it. A file that breaks a
//! rule is an [`io::Error`] around a [`FileFault`], so that callers treat it as any
//! failure to read.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

/// A fault of a file that shows before the content is looked at. The caller adds the
/// path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// Something else than a regular file stands there.
    #[error("there is {kind} in place of a file; remove it, or put the file back")]
    NotAFile {
        /// The kind of thing, with an article.
        kind: &'static str,
    },
    /// The file is longer than it can rightly be.
    #[error("the file is longer than {limit} bytes, the most that is read")]
    TooLong {
        /// The limit, in bytes.
        limit: u64,
    },
    /// Somebody owns the file, or the link to it, whom the reader has no reason to
    /// believe.
    #[error(
        "the {what} belongs to uid {owner}, not to root or to uid {expected}; check its content, then chown it"
    )]
    Owner {
        /// The file or the link.
        what: &'static str,
        /// User id of the owner.
        owner: u32,
        /// User id of the only owner that is allowed besides root.
        expected: u32,
    },
    /// Others may write the file, and reach it.
    #[error("others may write the file (mode {mode:04o}); check its content, then chmod go-w it")]
    Writable {
        /// The permission bits.
        mode: u32,
    },
    /// Somebody can put another file in the place of this one.
    #[error(
        "uid {owner} can replace the file, through a folder above it; give the folders on its way to root"
    )]
    Replaceable {
        /// The owner of the folder, or of a folder that everybody may write.
        owner: u32,
    },
    /// A link stands where only a file may.
    #[error("there is a link in place of a file; put the file itself there")]
    Link,
}

/// The authors that are trusted to write a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Authors {
    /// Root, the user of this process and, for root, the owner of the folder: a command
    /// run by root reads what a daemon wrote in its own folder.
    Trusted,
    /// Root and the user of this process. Root does not believe the owner of the folder,
    /// and wants every folder on the way to be root's.
    Obeyed,
    /// Any author. The operator named the file, and is responsible for its owner.
    Anybody,
}

/// Conditions that a file must meet to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    limit: u64,
    authors: Authors,
    links: bool,
}

impl Rules {
    /// Rules for a file that a daemon or a command of ours wrote: its owner is root or
    /// this process's user, nobody else may write it, and a link to it is believed if its
    /// owner is. At most `limit` bytes. Permission bits count where the folder lets
    /// others in: behind a folder of mode 0700 nobody can make use of them.
    #[must_use]
    pub const fn own(limit: u64) -> Self {
        Self { limit, authors: Authors::Trusted, links: true }
    }

    /// Rules for a file that has this process act with its own rights, as to load a
    /// library: nobody but root and this process's user may have written the file, and
    /// for root nobody else can put another in its place. At most `limit` bytes.
    #[must_use]
    pub const fn obeyed(limit: u64) -> Self {
        Self { limit, authors: Authors::Obeyed, links: false }
    }

    /// Rules for a file that the operator's configuration names: any owner, through any
    /// link. At most `limit` bytes.
    #[must_use]
    pub const fn named(limit: u64) -> Self {
        Self { limit, authors: Authors::Anybody, links: true }
    }

    /// The same rules, for a file that is no link.
    #[must_use]
    pub const fn without_links(self) -> Self {
        Self { links: false, ..self }
    }
}

/// A file's content, with the file.
#[derive(Debug)]
pub struct Content {
    /// The bytes. They are not wiped: a secret's owner takes them into a type that does.
    pub bytes: Vec<u8>,
    /// The open file.
    pub file: File,
    /// The file's metadata when it was opened.
    pub metadata: Metadata,
}

impl Content {
    /// The permission bits if they are for others besides the owner.
    #[must_use]
    pub fn open_to_others(&self) -> Option<u32> {
        let mode = self.metadata.mode() & 0o7777;
        (mode & 0o077 != 0).then_some(mode)
    }

    /// Takes the file's permission bits away from everybody but its owner.
    ///
    /// # Errors
    /// If the system refuses, for example because the file is another user's.
    pub fn close_to_others(&self) -> io::Result<()> {
        self.file.set_permissions(fs::Permissions::from_mode(self.metadata.mode() & 0o700))
    }
}

/// Reads a whole file.
///
/// # Errors
/// If there is none ([`io::ErrorKind::NotFound`]), it cannot be read, or it breaks a rule
/// (a [`FileFault`] within).
pub fn read(path: &Path, rules: Rules) -> io::Result<Vec<u8>> {
    open(path, rules).map(|content| content.bytes)
}

/// Reads a whole file of text.
///
/// # Errors
/// As [`read`], and if the content is not UTF-8 ([`io::ErrorKind::InvalidData`]).
pub fn read_text(path: &Path, rules: Rules) -> io::Result<String> {
    let bytes = read(path, rules)?;
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the file is not UTF-8 text"))
}

/// Reads a whole file and returns its metadata with it.
///
/// # Errors
/// As [`read`].
pub fn open(path: &Path, rules: Rules) -> io::Result<Content> {
    let uid = rustix::process::geteuid().as_raw();
    // Before anything is opened: opening a device alone may set it going.
    let link = fs::symlink_metadata(path)?;
    if link.file_type().is_symlink() {
        if !rules.links {
            return Err(FileFault::Link.into());
        }
        // Not the folder's owner: a daemon must not have root read what is not the
        // daemon's.
        if rules.authors == Authors::Trusted && !is_one_of(link.uid(), [0, uid]) {
            return Err(FileFault::Owner { what: "link", owner: link.uid(), expected: uid }.into());
        }
        expect_file(fs::metadata(path)?.file_type())?;
    } else {
        expect_file(link.file_type())?;
    }
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if !rules.links {
        flags |= OFlags::NOFOLLOW;
    }
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    expect_file(metadata.file_type())?;
    match rules.authors {
        Authors::Trusted => expect_trusted(&metadata, &fs::metadata(folder_of(path))?, uid)?,
        Authors::Obeyed => expect_obeyed(&metadata, folder_of(path), uid)?,
        Authors::Anybody => {}
    }
    let bytes = read_open(&file, metadata.len(), rules.limit)?;
    Ok(Content { bytes, file, metadata })
}

/// Opens a file of our own to write to its end, and makes it if there is none. Never
/// waits for a reader, follows no link.
///
/// # Errors
/// If the system refuses, or something else than a regular file stands there (a
/// [`FileFault`] within).
pub fn open_to_append(path: &Path, mode: u32) -> io::Result<File> {
    open_to_write(path, OFlags::APPEND, mode)
}

/// Opens a file of our own that is only ever locked, and makes it if there is none. Never
/// waits, follows no link.
///
/// # Errors
/// As [`open_to_append`].
pub fn open_to_lock(path: &Path, mode: u32) -> io::Result<File> {
    open_to_write(path, OFlags::empty(), mode)
}

fn open_to_write(path: &Path, flags: OFlags, mode: u32) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_symlink() => return Err(FileFault::Link.into()),
        Ok(found) => expect_file(found.file_type())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let always = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(path, always | flags, Mode::from_raw_mode(mode))?);
    expect_file(file.metadata()?.file_type())?;
    Ok(file)
}

fn expect_trusted(file: &Metadata, folder: &Metadata, uid: u32) -> io::Result<()> {
    // Root alone believes the owner of the folder, who can replace what is in it anyway.
    let folder_owner = if uid == 0 { folder.uid() } else { uid };
    if !is_one_of(file.uid(), [0, uid, folder_owner]) {
        return Err(FileFault::Owner { what: "file", owner: file.uid(), expected: uid }.into());
    }
    let reach = |bits: u32, search: u32| file.mode() & bits != 0 && folder.mode() & search != 0;
    if reach(0o020, 0o010) || reach(0o002, 0o001) {
        return Err(FileFault::Writable { mode: file.mode() & 0o7777 }.into());
    }
    Ok(())
}

/// Refuses a file that somebody else than root or `uid` wrote, or can replace.
fn expect_obeyed(file: &Metadata, folder: &Path, uid: u32) -> io::Result<()> {
    if !is_one_of(file.uid(), [0, uid]) {
        return Err(FileFault::Owner { what: "file", owner: file.uid(), expected: uid }.into());
    }
    if file.mode() & 0o022 != 0 {
        return Err(FileFault::Writable { mode: file.mode() & 0o7777 }.into());
    }
    // For anybody else a folder that a group may write is usual, and a file of another
    // user in it is refused above.
    if uid != 0 {
        return Ok(());
    }
    // Without links, so that each folder is the one that is looked up.
    for folder in fs::canonicalize(folder)?.ancestors() {
        let found = fs::metadata(folder)?;
        // In a sticky folder nobody but its owner replaces what is not their own.
        let open = found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0;
        if open || !is_one_of(found.uid(), [0, uid]) {
            return Err(FileFault::Replaceable { owner: found.uid() }.into());
        }
    }
    Ok(())
}

fn read_open(file: &File, length: u64, limit: u64) -> io::Result<Vec<u8>> {
    let too_long = || io::Error::from(FileFault::TooLong { limit });
    if length > limit {
        return Err(too_long());
    }
    // Room for all and one byte: a buffer that grows leaves copies of a secret behind.
    let room = usize::try_from(length).map_err(|_| too_long())?.saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_long());
    }
    Ok(std::mem::take(&mut *bytes))
}

fn is_one_of<const N: usize>(uid: u32, known: [u32; N]) -> bool {
    known.contains(&uid)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn expect_file(found: FileType) -> io::Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let kind = if found.is_dir() {
        "a folder"
    } else if found.is_fifo() {
        "a FIFO"
    } else if found.is_socket() {
        "a socket"
    } else if found.is_block_device() || found.is_char_device() {
        "a device"
    } else {
        "something"
    };
    Err(FileFault::NotAFile { kind }.into())
}

impl From<FileFault> for io::Error {
    fn from(fault: FileFault) -> Self {
        Self::new(io::ErrorKind::InvalidInput, fault)
    }
}

impl FileFault {
    /// The fault that an error of this module carries; `None` if the system refused.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

#[cfg(test)]
mod tests;
