//! Reach of a process by name: files, TCP ports, other processes by signals and abstract
//! sockets. Landlock restricts it.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    NetPort, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use crate::Level;

/// The newest version of the kernel's interface that is made use of.
const KNOWN: ABI = ABI::V7;

/// Rights to a file, or to what is below a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rights {
    /// Read files, list folders.
    Read,
    /// Read them, and remove files.
    Take,
    /// Read, write, make, remove and rename files and folders. No sockets, no devices, no
    /// symbolic links.
    Write,
    /// Write, and make sockets, pipes and symbolic links.
    Serve,
    /// Read and write what is there, and send it device commands. Makes and removes
    /// nothing.
    Device,
    /// Read and execute.
    Execute,
}

impl Rights {
    fn flags(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let make =
            AccessFs::MakeReg | AccessFs::MakeDir | AccessFs::RemoveFile | AccessFs::RemoveDir;
        let write = read | make | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::Refer;
        match self {
            Self::Read => read,
            Self::Take => read | AccessFs::RemoveFile,
            Self::Write => write,
            Self::Serve => write | AccessFs::MakeSock | AccessFs::MakeFifo | AccessFs::MakeSym,
            Self::Device => read | AccessFs::WriteFile | AccessFs::IoctlDev,
            Self::Execute => read | AccessFs::Execute,
        }
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Take => "take",
            Self::Write => "write",
            Self::Serve => "serve",
            Self::Device => "device",
            Self::Execute => "execute",
        })
    }
}

/// A right on a file, or on a folder and all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The file or folder, absolute.
    pub path: PathBuf,
    /// Rights to the file, or to what is below the folder.
    pub rights: Rights,
}

/// The things that stay within reach. Everything that is not named is out of reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    grants: Vec<Grant>,
    connect: Vec<u16>,
    any_port: bool,
    any_connection: bool,
    any_file: bool,
    moves_files: bool,
}

/// The error of restricting reach. Reach is not restricted then.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Other threads would not be restricted.
    #[error("there are {0} threads already: they would not be restricted")]
    Threads(usize),
    /// A file or folder that is there cannot be opened to be granted.
    #[error("cannot look at {}", path.display())]
    Path {
        /// The file or folder.
        path: PathBuf,
        /// The error of opening the file or folder.
        #[source]
        source: io::Error,
    },
    /// The kernel has Landlock, and refused.
    #[error("cannot restrict what is within reach")]
    Kernel(#[from] RulesetError),
}

/// The result of restricting reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The degree to which reach is restricted.
    pub level: Level,
    /// Version of the kernel's Landlock interface; 0 if it has none.
    pub abi: i32,
    /// Granted files and folders that are not there: they are out of reach until the next
    /// start, even if they appear.
    pub missing: Vec<PathBuf>,
}

impl Reach {
    /// Nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a right.
    #[must_use]
    pub fn grant(mut self, path: impl Into<PathBuf>, rights: Rights) -> Self {
        let grant = Grant { path: path.into(), rights };
        if !self.grants.contains(&grant) {
            self.grants.push(grant);
        }
        self
    }

    /// Adds rights.
    #[must_use]
    pub fn grant_all(
        self,
        paths: impl IntoIterator<Item = impl Into<PathBuf>>,
        rights: Rights,
    ) -> Self {
        paths.into_iter().fold(self, |reach, path| reach.grant(path, rights))
    }

    /// Adds TCP connections to a port, on whatever host.
    #[must_use]
    pub fn connect(mut self, port: u16) -> Self {
        self.connect.push(port);
        self
    }

    /// Adds TCP connections from and to any port.
    #[must_use]
    pub fn any_port(mut self) -> Self {
        self.any_port = true;
        self
    }

    /// Adds TCP connections to any port. Ports are still not listened on.
    #[must_use]
    pub fn any_connection(mut self) -> Self {
        self.any_connection = true;
        self
    }

    /// Adds all files: leaves only ports, signals and abstract sockets restricted.
    #[must_use]
    pub fn any_file(mut self) -> Self {
        self.any_file = true;
        self
    }

    /// Keeps moving files from one granted folder to another. The first version of
    /// Landlock (before Linux 5.19) refuses that everywhere, and so restricts no file
    /// then.
    #[must_use]
    pub fn moves_files(mut self) -> Self {
        self.moves_files = true;
        self
    }

    /// The ports that were added, in that order. More may be connected to, see
    /// [`Reach::any_port`] and [`Reach::any_connection`].
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.connect
    }

    /// The rights that were added, in that order.
    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// Restricts the calling thread, which must be the only one, and all that it starts:
    /// for good.
    ///
    /// What is granted and is not there is left out and named in the answer. No new
    /// privileges are given up on the way, as the kernel demands.
    ///
    /// # Errors
    /// If there are other threads, a path cannot be looked at, or the kernel refuses.
    /// That it has no Landlock is no error but a [`Level`].
    pub fn restrict(&self) -> Result<Reached, ReachError> {
        // Unreadable in a process without /proc, which then is a launcher's of one
        // thread.
        let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads > 1 {
            return Err(ReachError::Threads(threads));
        }
        self.restrict_thread()
    }

    /// As [`Reach::restrict`], whatever other threads there are: they are left alone.
    ///
    /// # Errors
    /// As there.
    pub fn restrict_thread(&self) -> Result<Reached, ReachError> {
        if self.is_broken_by(supports) {
            let reason = "this kernel's Landlock (version 1) lets no file be moved between folders";
            return Ok(Reached {
                level: Level::Absent { reason: reason.to_owned() },
                abi: 1,
                missing: Vec::new(),
            });
        }
        let mut rules = Ruleset::default().scope(Scope::from_all(KNOWN))?;
        if !self.any_file {
            rules = rules.handle_access(AccessFs::from_all(KNOWN))?;
        }
        if !self.any_port {
            let net = AccessNet::from_all(KNOWN);
            rules = rules.handle_access(if self.any_connection {
                net & !AccessNet::ConnectTcp
            } else {
                net
            })?;
        }
        let mut rules = rules.create()?;
        let mut missing = Vec::new();
        let granted = self.grants.iter().filter(|_| !self.any_file);
        for grant in granted {
            match open(grant) {
                Ok(Some((path, flags))) => rules = rules.add_rule(PathBeneath::new(path, flags))?,
                Ok(None) => missing.push(grant.path.clone()),
                Err(source) => return Err(ReachError::Path { path: grant.path.clone(), source }),
            }
        }
        for port in self.connect.iter().filter(|_| !self.any_port && !self.any_connection) {
            rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
        }
        let status = rules.restrict_self()?;
        Ok(Reached { level: level(&status), abi: abi(status.landlock), missing })
    }

    /// Returns true if a kernel would refuse what is needed, whatever is granted.
    fn is_broken_by(&self, supports: impl Fn(AccessFs) -> bool) -> bool {
        let refuses_moves = || supports(AccessFs::Execute) && !supports(AccessFs::Refer);
        self.moves_files && !self.any_file && refuses_moves()
    }
}

/// Returns true if this kernel's Landlock knows a right to files.
fn supports(right: AccessFs) -> bool {
    Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(right).is_ok()
}

/// The file or folder, and the rights that there are on such a thing. `None` if it is not
/// there.
fn open(grant: &Grant) -> io::Result<Option<(PathFd, BitFlags<AccessFs>)>> {
    let is_folder = match fs::metadata(&grant.path) {
        Ok(metadata) => metadata.is_dir(),
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let on_files = AccessFs::from_file(KNOWN);
    let flags = if is_folder { grant.rights.flags() } else { grant.rights.flags() & on_files };
    let path = PathFd::new(&grant.path).map_err(|error| {
        let landlock::PathFdError::OpenCall { source, .. } = error else {
            return io::Error::other(error);
        };
        source
    })?;
    Ok(Some((path, flags)))
}

/// Not there, or in a folder that this process cannot look into: out of its reach anyway.
fn is_absent(error: &io::Error) -> bool {
    // Or a path of links that lead nowhere: who can put those there must not be able to
    // switch this layer off.
    error.raw_os_error() == Some(libc::ELOOP)
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::PermissionDenied
        )
}

fn abi(status: LandlockStatus) -> i32 {
    match status {
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            kernel_abi.unwrap_or(effective_abi as i32)
        }
        _ => 0,
    }
}

fn level(status: &RestrictionStatus) -> Level {
    match (&status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Level::Full,
        (_, LandlockStatus::NotEnabled) => Level::Absent {
            reason: "Landlock is not enabled: add landlock to lsm= on the kernel's command line"
                .into(),
        },
        (_, LandlockStatus::NotImplemented) => {
            Level::Absent { reason: "this kernel has no Landlock".into() }
        }
        (RulesetStatus::NotEnforced, _) => {
            Level::Absent { reason: "Landlock did not take the rules".into() }
        }
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            Level::Partial { missing: lacking(effective_abi) }
        }
    }
}

/// Tells, in words, which restrictions a version of the kernel's interface lacks, of
/// those that are made use of.
fn lacking(abi: ABI) -> String {
    let since = [
        (ABI::V2, "moving files between folders"),
        (ABI::V3, "truncating files"),
        (ABI::V4, "TCP ports"),
        (ABI::V5, "device commands"),
        (ABI::V6, "signals and abstract sockets"),
    ];
    let lacks: Vec<&str> =
        since.iter().filter(|(since, _)| *since > abi).map(|(_, what)| *what).collect();
    format!(
        "this kernel's Landlock (version {}) does not restrict {}",
        abi as i32,
        lacks.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::thread;

    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    /// Runs it in a thread of its own, so that the test's is not restricted.
    fn restricted<T: Send>(reach: &Reach, then: impl FnOnce(Reached) -> T + Send) -> T {
        thread::scope(|scope| {
            scope.spawn(|| then(reach.restrict_thread().unwrap())).join().unwrap()
        })
    }

    fn refused<T>(done: io::Result<T>) -> bool {
        done.err().and_then(|error| error.raw_os_error()) == Some(libc::EACCES)
    }

    #[test]
    fn each_right_gives_what_it_says_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["read", "take", "write", "serve", "device"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("f"), "f").unwrap();
            fs::write(at(name).join("g"), "g").unwrap();
        }
        fs::write(at("alone"), "a").unwrap();
        let reach = Reach::none()
            .grant(at("read"), Rights::Read)
            .grant(at("take"), Rights::Take)
            .grant(at("write"), Rights::Write)
            .grant(at("serve"), Rights::Serve)
            .grant(at("device"), Rights::Device)
            .grant(at("alone"), Rights::Write)
            .grant(at("missing"), Rights::Read)
            .grant(at("loop"), Rights::Write);
        symlink(at("loop"), at("loop")).unwrap();
        restricted(&reach, |reached| {
            assert_eq!(reached.missing, [at("missing"), at("loop")]);
            if reached.level != Level::Full {
                eprintln!("skipped: {}", reached.level);
                return;
            }
            for name in ["read", "take", "write", "serve", "device"] {
                assert_eq!(fs::read(at(name).join("f")).unwrap(), b"f", "{name}");
                assert_eq!(fs::read_dir(at(name)).unwrap().count(), 2, "{name}");
                let writes = matches!(name, "write" | "serve" | "device");
                assert_eq!(
                    refused(File::options().write(true).open(at(name).join("f"))),
                    !writes,
                    "{name}"
                );
                assert_eq!(
                    refused(fs::write(at(name).join("new"), "n")),
                    !matches!(name, "write" | "serve"),
                    "{name}"
                );
                assert_eq!(
                    refused(fs::remove_file(at(name).join("g"))),
                    matches!(name, "read" | "device"),
                    "{name}"
                );
                let serves = name == "serve";
                let link = symlink("/etc/passwd", at(name).join("link"));
                assert_eq!(refused(link), !serves, "{name}");
                let socket = std::os::unix::net::UnixListener::bind(at(name).join("s"));
                assert_eq!(refused(socket), !serves, "{name}");
                let pipe = at(name).join("p");
                let pipe = rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0);
                assert_eq!(refused(pipe.map_err(io::Error::from)), !serves, "{name}");
                let node = at(name).join("n");
                let node =
                    rustix::fs::mknodat(CWD, &node, FileType::CharacterDevice, Mode::RUSR, 0x103);
                // Without the right for it the kernel says so before Landlock is asked.
                assert!(node.is_err(), "{name}");
            }
            fs::rename(at("serve").join("s"), at("write").join("s")).unwrap_err();
            fs::create_dir(at("serve").join("below")).unwrap();
            fs::rename(at("serve").join("s"), at("serve").join("below/s")).unwrap();
            fs::rename(at("write").join("new"), at("write").join("renamed")).unwrap();
            let out =
                fs::rename(at("write").join("renamed"), at("read").join("renamed")).unwrap_err();
            assert!(matches!(out.raw_os_error(), Some(libc::EACCES | libc::EXDEV)), "{out}");
            fs::write(at("alone"), "b").unwrap();
            assert!(refused(fs::read("/etc/passwd")));
            assert!(refused(fs::read_dir(folder.path())));
            fs::write(at("missing"), "m").unwrap_err();
        });
        assert_eq!(
            fs::read("/etc/passwd").map(drop).map_err(|error| error.kind()),
            Ok(()),
            "other threads go on"
        );
    }

    #[test]
    fn what_moves_files_is_not_broken_by_a_kernel_that_lets_none_be_moved() {
        let kernel = |abi: ABI| move |right: AccessFs| AccessFs::from_all(abi).contains(right);
        let moves = Reach::none().moves_files();
        assert!(moves.is_broken_by(kernel(ABI::V1)));
        assert!(!moves.is_broken_by(kernel(ABI::V2)));
        assert!(!moves.is_broken_by(kernel(ABI::Unsupported)));
        assert!(!Reach::none().is_broken_by(kernel(ABI::V1)));
        let refuses_moves = supports(AccessFs::Execute) && !supports(AccessFs::Refer);
        assert_eq!(moves.is_broken_by(supports), refuses_moves, "this kernel");
    }

    #[test]
    fn only_named_ports_are_connected_to_and_none_is_listened_on() {
        use std::net::{TcpListener, TcpStream};
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let (open, other) = (open.local_addr().unwrap(), other.local_addr().unwrap());
        restricted(&Reach::none().connect(open.port()), |reached| {
            if reached.abi < 4 {
                eprintln!("skipped: {}", reached.level);
                return;
            }
            assert!(refused(TcpStream::connect(other)));
            assert!(refused(TcpListener::bind("127.0.0.1:0")));
        });
        restricted(&Reach::none().any_connection(), |reached| {
            TcpStream::connect(other).unwrap();
            assert!(reached.abi < 4 || refused(TcpListener::bind("127.0.0.1:0")));
        });
        restricted(&Reach::none().any_port(), |_| drop(TcpListener::bind("127.0.0.1:0").unwrap()));
    }

    #[test]
    fn a_process_with_other_threads_is_not_said_to_be_restricted() {
        let error = thread::spawn(|| Reach::none().restrict().unwrap_err()).join().unwrap();
        assert!(matches!(error, ReachError::Threads(2..)), "{error}");
    }

    #[test]
    fn what_an_older_kernel_lacks_is_named() {
        assert!(lacking(ABI::V3).contains("TCP ports, device commands, signals"));
        assert!(!lacking(ABI::V4).contains("TCP ports"));
    }
}
