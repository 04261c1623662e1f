//! Programs, libraries, devices, sockets and folders that the configuration names: looked
//! at when it is checked and applied, since a daemon only meets them later.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use edgekeep_core::digest::Sha256Digest;

use crate::diagnostic::{Code, Report};
use crate::document::Text;
use crate::translate::{Draft, Environment, Users};
use crate::{check, document};

/// Most places that are looked at.
const MAX_PLACES: usize = 256;
/// Largest program whose digest is made here, in bytes.
const MAX_PROGRAM_BYTES: u64 = 1 << 30;

/// The thing at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
    /// Whoever checks may not look.
    Forbidden,
    /// A file.
    File {
        /// True if somebody may run it.
        executable: bool,
        /// Its digest, if it is a program that has to have one.
        sha256: Option<Sha256Digest>,
    },
    /// A folder.
    Folder,
    /// A device node.
    Device,
    /// A socket.
    Socket,
    /// A pipe, or anything else.
    Other,
}

/// The kind of thing that has to be at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expected {
    /// A program.
    Program,
    /// A library.
    Library,
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A file or a folder.
    FileOrFolder,
    /// A device node.
    Device,
    /// The socket of the container engine.
    EngineSocket,
}

impl Expected {
    const fn words(self) -> &'static str {
        match self {
            Self::Program => "a program",
            Self::Library => "a library",
            Self::File => "a file",
            Self::Folder => "a folder",
            Self::FileOrFolder => "a file or a folder",
            Self::Device => "a device node",
            Self::EngineSocket => "the container engine's socket",
        }
    }

    const fn is(self, seen: &Seen) -> bool {
        match self {
            Self::Program | Self::Library | Self::File => matches!(seen, Seen::File { .. }),
            Self::Folder => matches!(seen, Seen::Folder),
            Self::FileOrFolder => true,
            Self::Device => matches!(seen, Seen::Device),
            Self::EngineSocket => matches!(seen, Seen::Socket),
        }
    }

    /// The consequence of its absence, and the remedy.
    const fn absent(self) -> (&'static str, &'static str) {
        match self {
            Self::Program => {
                ("the module does not start", "install the program, or correct the path")
            }
            Self::Library => ("no token is found", "install the library, or correct the path"),
            Self::File | Self::FileOrFolder => {
                ("until it is, the device does without", "put it there, or correct the path")
            }
            Self::Folder => {
                ("what needs it does not start", "make the folder, or correct the path")
            }
            Self::Device => (
                "keyd waits for it",
                "switch the TPM on in the machine's firmware, or correct the path; ls -l /dev/tpm*",
            ),
            Self::EngineSocket => (
                "no container starts until it is",
                "install and start the engine, or correct the path",
            ),
        }
    }
}

impl Seen {
    const fn words(&self) -> &'static str {
        match self {
            Self::Absent => "nothing",
            Self::Forbidden => "closed to this user",
            Self::File { .. } => "a file",
            Self::Folder => "a folder",
            Self::Device => "a device node",
            Self::Socket => "a socket",
            Self::Other => "neither file nor folder",
        }
    }
}

/// The places that `text` names, for [`Environment::places`].
#[must_use]
pub fn referenced_places(text: &str) -> BTreeMap<PathBuf, Expected> {
    let nothing = Environment { users: Users::all(0), ..Environment::default() };
    let mut draft = Draft::new(&nothing, Report::default());
    let mut table = document::parse(text, &mut draft.report);
    check::check(text, &mut table, &mut draft.report);
    draft.read(&document::View::root(&table));
    draft.places
}

/// Looks at what is at each of the places that `text` names.
pub(crate) fn look_at_all(text: &str) -> BTreeMap<PathBuf, Seen> {
    let named = referenced_places(text).into_iter().take(MAX_PLACES);
    named.map(|(path, expected)| (path.clone(), look(&path, expected))).collect()
}

fn look(path: &Path, expected: Expected) -> Seen {
    match seen(path, expected) {
        Ok(seen) => seen,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Seen::Forbidden,
        Err(_) => Seen::Absent,
    }
}

fn seen(path: &Path, expected: Expected) -> io::Result<Seen> {
    let metadata = std::fs::metadata(path)?;
    let kind = metadata.file_type();
    Ok(if kind.is_file() {
        // A file is opened only when it is known to be one: a pipe would keep us waiting.
        let wanted = expected == Expected::Program && metadata.len() <= MAX_PROGRAM_BYTES;
        let sha256 = if wanted { Some(digest_of(path)?) } else { None };
        Seen::File { executable: metadata.permissions().mode() & 0o111 != 0, sha256 }
    } else if kind.is_dir() {
        Seen::Folder
    } else if kind.is_char_device() || kind.is_block_device() {
        Seen::Device
    } else if kind.is_socket() {
        Seen::Socket
    } else {
        Seen::Other
    })
}

fn digest_of(path: &Path) -> io::Result<Sha256Digest> {
    let mut file = std::fs::File::open(path)?.take(MAX_PROGRAM_BYTES);
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    let bytes = <[u8; 32]>::try_from(context.finish().as_ref());
    bytes.map(Sha256Digest::new).map_err(|_| io::Error::other("a digest has 32 bytes"))
}

impl Draft<'_> {
    /// Judges the thing at `path`, which `text` names.
    pub(crate) fn place(
        &mut self,
        key: &str,
        text: &Text<'_>,
        path: &Path,
        expected: Expected,
    ) -> Option<Seen> {
        self.places.insert(path.to_owned(), expected);
        let seen = self.environment.places.get(path)?.clone();
        let shown = path.display();
        match &seen {
            Seen::Absent => {
                let (consequence, remedy) = expected.absent();
                let message = format!("{shown} is not there: {consequence}");
                self.report.notice(Code::Unusual, text.span, key, message, Some(remedy));
            }
            Seen::Forbidden => {
                let message = format!("{shown} is closed to this user, and was not looked at");
                self.report.notice(Code::Unusual, text.span, key, message, Some("check as root"));
            }
            seen if !expected.is(seen) => {
                let message =
                    format!("{shown} is {}, and {} is asked for", seen.words(), expected.words());
                let remedy = match (expected, seen) {
                    (Expected::EngineSocket, Seen::Folder) => {
                        "remove the folder (an engine makes one where it is told to mount a socket that is not \
                         there), and restart the engine"
                    }
                    _ => "correct the path",
                };
                self.report.error_with(Code::BadValue, text.span, key, message, remedy);
            }
            Seen::File { executable: false, .. } if expected == Expected::Program => {
                let message = format!("{shown} may be run by nobody");
                let remedy = format!("chmod 755 {shown}");
                self.report.error_with(Code::BadValue, text.span, key, message, remedy);
            }
            _ => {}
        }
        Some(seen)
    }

    /// Judges a program of the host, and the digest that it has to have.
    pub(crate) fn program(
        &mut self,
        key: &str,
        text: &Text<'_>,
        path: &Path,
        wanted: Option<(Sha256Digest, &Text<'_>, String)>,
    ) {
        let Some(Seen::File { sha256: Some(found), .. }) =
            self.place(key, text, path, Expected::Program)
        else {
            return;
        };
        if let Some((wanted, digest, key)) = wanted
            && wanted != found
        {
            let message = format!(
                "{} has another digest, {}: it gets no identity unless a host agent approves it",
                path.display(),
                found.hex()
            );
            let remedy = "if the program is the right one, write this digest";
            self.report.notice(Code::Unusual, digest.span, key, message, Some(remedy));
        }
    }
}
