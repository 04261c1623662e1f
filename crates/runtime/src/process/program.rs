//! A program as it was hashed: a copy in sealed memory, which nobody can change between
//! measuring and executing.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use edgekeep_core::attestation::ExecutableFile;
use edgekeep_core::digest::Sha256Digest;
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;

use crate::evidence::{executable_file, finish};

/// Larger executables are not started: the copy lives in memory as long as the module
/// runs.
pub const MAX_PROGRAM_BYTES: u64 = 512 * 1024 * 1024;

/// The reason why an executable cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The executable cannot be opened, read or copied.
    #[error("cannot read the executable {}", path.display())]
    Read {
        /// Path of the executable.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The path leads to a folder, a device or the like.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The executable is larger than [`MAX_PROGRAM_BYTES`].
    #[error("the executable {} is larger than {MAX_PROGRAM_BYTES} bytes", path.display())]
    TooLarge {
        /// Path of the executable.
        path: PathBuf,
    },
    /// The executable has other content than the registered one.
    #[error("the executable {} has {found}, but {expected} is registered; if it was updated on purpose, register the new digest", path.display())]
    OtherContent {
        /// Path of the executable.
        path: PathBuf,
        /// The registered digest.
        expected: Sha256Digest,
        /// The digest of the content that was found.
        found: Sha256Digest,
    },
    /// The executable is a script.
    #[error("{} is a script; register its interpreter as the executable and pass the script as an argument", path.display())]
    Script {
        /// Path of the script.
        path: PathBuf,
    },
    /// The executable is neither an ELF executable for this machine nor a script.
    #[error("{} is not an ELF executable for this machine", path.display())]
    NotElf {
        /// Path of the executable.
        path: PathBuf,
    },
    /// There is no memory for the copy.
    #[error("cannot make a sealed copy of the executable in memory")]
    Seal(#[source] io::Error),
}

/// Length of the beginning of a program that names the program's machine, in bytes.
const HEAD: usize = 20;

/// A sealed copy of an executable with the expected content.
#[derive(Debug)]
pub(super) struct SealedProgram(OwnedFd);

impl SealedProgram {
    /// Copies while hashing, compares, seals. Blocks for as long as reading takes.
    pub(super) fn load(path: &Path, expected: &Sha256Digest) -> Result<Self, ProgramError> {
        Self::from_open(path, open(path)?, expected)
    }

    /// Does the same as [`Self::load`], from an open file; `path` is for messages.
    pub(super) fn from_open(
        path: &Path,
        mut source: File,
        expected: &Sha256Digest,
    ) -> Result<Self, ProgramError> {
        let mut copy =
            File::from(memory_file(path).map_err(|errno| ProgramError::Seal(errno.into()))?);
        let (found, head) = copy_hashing(path, &mut source, Some(&mut copy))?;
        check(path, expected, found, &head)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fchmod(&copy, Mode::from_raw_mode(0o555))
            .and_then(|()| rustix::fs::fcntl_add_seals(&copy, seals))
            .map_err(|errno| ProgramError::Seal(errno.into()))?;
        Ok(Self(copy.into()))
    }
}

impl SealedProgram {
    /// Returns the file of the copy. A process that was started from the copy is known by
    /// this file.
    pub(super) fn file(&self) -> io::Result<ExecutableFile> {
        Ok(executable_file(&rustix::fs::fstat(&self.0)?))
    }
}

impl AsFd for SealedProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Checks that an executable could be started: it can be read, has the expected content,
/// and is an ELF file.
pub(crate) fn verify(path: &Path, expected: &Sha256Digest) -> Result<(), ProgramError> {
    verify_open(path, open(path)?, expected)
}

/// Does the same as [`verify`], with an open file; `path` is for messages.
pub(crate) fn verify_open(
    path: &Path,
    mut file: File,
    expected: &Sha256Digest,
) -> Result<(), ProgramError> {
    let (found, head) = copy_hashing(path, &mut file, None)?;
    check(path, expected, found, &head)
}

fn open(path: &Path) -> Result<File, ProgramError> {
    // Not blocking, in case it is a pipe.
    let read = |errno: Errno| ProgramError::Read { path: path.to_owned(), source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(read)?;
    let stat = rustix::fs::fstat(&fd).map_err(read)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ProgramError::NotAFile { path: path.to_owned() });
    }
    Ok(File::from(fd))
}

/// Makes a memory file that can be executed. Kernels from 6.3 on are asked for an
/// executable one; memory files of older kernels are executable anyway.
fn memory_file(path: &Path) -> Result<OwnedFd, Errno> {
    let name =
        path.file_name().map_or_else(Default::default, |name| name.to_string_lossy().into_owned());
    let name: String = name.chars().take(60).collect();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(&name, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(&name, flags),
        other => other,
    }
}

fn copy_hashing(
    path: &Path,
    source: &mut File,
    mut copy: Option<&mut File>,
) -> Result<(Sha256Digest, Vec<u8>), ProgramError> {
    let read = |source| ProgramError::Read { path: path.to_owned(), source };
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 128 * 1024];
    let mut head = Vec::new();
    let mut total = 0;
    loop {
        let length = match source.read(&mut buffer) {
            Ok(0) => return Ok((finish(context), head)),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read(error)),
        };
        total += length as u64;
        if total > MAX_PROGRAM_BYTES {
            return Err(ProgramError::TooLarge { path: path.to_owned() });
        }
        let piece = &buffer[..length];
        head.extend(piece.iter().take(HEAD - head.len().min(HEAD)));
        context.update(piece);
        if let Some(copy) = copy.as_deref_mut() {
            copy.write_all(piece).map_err(ProgramError::Seal)?;
        }
    }
}

fn check(
    path: &Path,
    expected: &Sha256Digest,
    found: Sha256Digest,
    head: &[u8],
) -> Result<(), ProgramError> {
    let path = path.to_owned();
    if head.starts_with(b"#!") {
        return Err(ProgramError::Script { path });
    }
    if !is_executable_here(head) {
        return Err(ProgramError::NotElf { path });
    }
    if found != *expected {
        return Err(ProgramError::OtherContent { path, expected: *expected, found });
    }
    Ok(())
}

/// Returns true if this is the beginning of a program for this machine. If the kernel
/// refuses a file as a program, the C library hands the file to a shell.
fn is_executable_here(head: &[u8]) -> bool {
    let Some([class, order, version]) =
        head.strip_prefix(b"\x7fELF").and_then(|rest| rest.first_chunk())
    else {
        return false;
    };
    let half = |at: usize| -> Option<u16> {
        let bytes = [*head.get(at)?, *head.get(at + 1)?];
        Some(if *order == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let native_order = if cfg!(target_endian = "big") { 2 } else { 1 };
    // Class and number of the machine; on 64 bits also those of the 32 bits before it.
    let machines: &[(u8, u16)] = match std::env::consts::ARCH {
        "x86_64" => &[(2, 62), (1, 62), (1, 3)],
        "x86" => &[(1, 3)],
        "aarch64" => &[(2, 183), (1, 40)],
        "arm" => &[(1, 40)],
        "riscv64" => &[(2, 243)],
        _ => &[],
    };
    let for_machine = machines.is_empty()
        || half(18).is_some_and(|machine| machines.contains(&(*class, machine)));
    let (executable, shared) = (2, 3);
    *order == native_order
        && *version == 1
        && half(16).is_some_and(|kind| [executable, shared].contains(&kind))
        && for_machine
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::sha256_of;

    fn sleep_digest() -> Sha256Digest {
        sha256_of(&std::fs::read("/bin/sleep").expect("exists"))
    }

    #[test]
    fn the_copy_has_the_registered_content_and_cannot_be_changed() {
        let program =
            SealedProgram::load(Path::new("/bin/sleep"), &sleep_digest()).expect("matches");
        let mut file = File::options()
            .read(true)
            .open(format!("/proc/self/fd/{}", fd_number(&program)))
            .expect("open");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("readable");
        assert_eq!(sha256_of(&bytes), sleep_digest());
        assert_eq!(rustix::io::pwrite(&program, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&program, 0), Err(Errno::PERM));
        assert_eq!(
            rustix::fs::fcntl_add_seals(&program, SealFlags::FUTURE_WRITE),
            Err(Errno::PERM)
        );
    }

    fn fd_number(program: &SealedProgram) -> i32 {
        use std::os::fd::AsRawFd as _;
        program.0.as_raw_fd()
    }

    #[test]
    fn another_content_is_refused_with_both_digests() {
        let expected = Sha256Digest::new([1; 32]);
        let error =
            SealedProgram::load(Path::new("/bin/sleep"), &expected).expect_err("other content");
        let text = error.to_string();
        assert!(
            text.contains(&expected.to_string()) && text.contains(&sleep_digest().to_string()),
            "{text}"
        );
        assert!(verify(Path::new("/bin/sleep"), &expected).is_err());
        verify(Path::new("/bin/sleep"), &sleep_digest()).expect("matches");
    }

    #[test]
    fn a_script_is_refused_with_the_remedy_and_other_files_by_what_they_are() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("run.sh");
        std::fs::write(&path, "#!/bin/sh\n").expect("written");
        let error = SealedProgram::load(&path, &sha256_of(b"#!/bin/sh\n")).expect_err("script");
        assert!(error.to_string().contains("register its interpreter"), "{error}");
        std::fs::write(&path, "text").expect("written");
        assert!(matches!(verify(&path, &sha256_of(b"text")), Err(ProgramError::NotElf { .. })));
        // Of another machine, an object file, of the other byte order, cut off.
        let sleep = std::fs::read("/bin/sleep").expect("exists");
        assert!(is_executable_here(&sleep[..HEAD]));
        for (at, value) in [(18, 0xfe), (16, 1), (5, 3 - sleep[5]), (6, 0), (4, 9)] {
            let mut other = sleep[..HEAD].to_vec();
            other[at] = value;
            assert!(!is_executable_here(&other), "{at}");
        }
        assert!((0..HEAD).all(|length| !is_executable_here(&sleep[..length])));
        assert!(matches!(
            verify(folder.path(), &sleep_digest()),
            Err(ProgramError::NotAFile { .. })
        ));
        assert!(matches!(
            verify(&folder.path().join("none"), &sleep_digest()),
            Err(ProgramError::Read { .. })
        ));
    }
}
