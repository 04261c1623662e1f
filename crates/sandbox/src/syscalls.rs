//! System calls that a process may make, as a commented list, and the seccomp filter made
//! from the list.
//!
//! A list says in its first line what it is, then names a call a line, with the reason:
//!
//! ```text
//! allow only
//! read                                  # requests, files
//! socket: arg0 = AF_UNIX                # messages to the service manager
//! clone: arg0 & CLONE_THREAD = CLONE_THREAD   # threads, not processes
//! absent clone3                         # its flags cannot be seen; without it the C library falls back to clone
//! [tcp]                                 # what follows counts only if this section is asked for
//! socket: arg0 = AF_INET                # a simulated TPM
//! ```
//!
//! `allow only` refuses every other call, `refuse only` allows every other one. Several
//! lines of one call are alternatives; conditions of one line, joined by `and`, must all
//! hold. `=`, `!=`, `<=` and `>=` compare the low 32 bits: all that the kernel takes of
//! the arguments that such a list can be about. A mistake in a list names its line.
//!
//! A refused call fails with `EPERM`; it does not end the process. What is refused may be
//! a new habit of a C library or of a token's library as well as an attack: the first
//! must cost one operation, and not put a device out of reach in the field by a daemon
//! that is killed at each start. The attacker gets neither the call nor another try at
//! the filter.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::Level;
use crate::names::{self, Name};

/// Calls that no list of a daemon may name, whatever it is for: they run programs, reach
/// into other processes, change rights, or open parts of the kernel that have a history.
/// For the tests of such lists.
pub const FOR_NO_DAEMON: &[&str] = &[
    "execve",
    "execveat",
    "fork",
    "vfork",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "mount",
    "umount2",
    "move_mount",
    "fsopen",
    "open_tree",
    "bpf",
    "io_uring_setup",
    "io_uring_enter",
    "perf_event_open",
    "unshare",
    "setns",
    "setuid",
    "setresuid",
    "setreuid",
    "setfsuid",
    "setgid",
    "setresgid",
    "setgroups",
    "init_module",
    "finit_module",
    "keyctl",
    "add_key",
    "request_key",
    "personality",
    "userfaultfd",
    "seccomp",
    "mknod",
    "mknodat",
    "chroot",
    "pivot_root",
    "open_by_handle_at",
    "name_to_handle_at",
    "kexec_load",
    "pkey_mprotect",
    "shmat",
    "capset",
    "quotactl",
    "swapon",
    "reboot",
    "ioperm",
    "iopl",
    "modify_ldt",
    "settimeofday",
    "clock_settime",
    "sethostname",
];

/// A mistake in a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the list of system calls: {what}")]
pub struct ListError {
    /// Number of the line, from 1.
    pub line: usize,
    what: String,
}

/// The error of making a filter or of putting it into force.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A section that the list does not have.
    #[error("the list of system calls has no section [{0}]")]
    Section(String),
    /// The compiler refused.
    #[error("cannot make a seccomp filter")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel has seccomp, and refused.
    #[error("cannot put the seccomp filter into force")]
    Apply(#[source] seccompiler::Error),
}

/// A list, read and checked. See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyscallList {
    kind: Kind,
    lines: Vec<Line>,
    sections: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    AllowOnly,
    RefuseOnly,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    /// Index of the line, for errors.
    at: usize,
    section: Option<String>,
    name: String,
    number: Name,
    absent: bool,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    argument: u8,
    mask: Option<u32>,
    compare: Compare,
    value: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Equal,
    Unequal,
    AtMost,
    AtLeast,
}

impl SyscallList {
    /// Reads a list.
    ///
    /// # Errors
    /// If a line is not understood, names no system call or gives no reason, or if two
    /// lines contradict each other.
    pub fn parse(text: &str) -> Result<Self, ListError> {
        let mut kind = None;
        let mut list = Self { kind: Kind::AllowOnly, lines: Vec::new(), sections: BTreeSet::new() };
        let mut section = None;
        for (at, text) in text.lines().enumerate() {
            let at = at + 1;
            let wrong = |what: String| ListError { line: at, what };
            let (statement, reason) = text.split_once('#').unwrap_or((text, ""));
            let statement = statement.trim();
            if statement.is_empty() {
                continue;
            }
            if kind.is_none() {
                kind = Some(match statement {
                    "allow only" => Kind::AllowOnly,
                    "refuse only" => Kind::RefuseOnly,
                    _ => {
                        return Err(wrong(
                            "expected \"allow only\" or \"refuse only\" first".to_owned(),
                        ));
                    }
                });
                continue;
            }
            if reason.trim().is_empty() {
                return Err(wrong("no reason: say behind a # what needs it".to_owned()));
            }
            if let Some(name) = statement.strip_prefix('[') {
                let name = name.strip_suffix(']').filter(|name| is_word(name));
                let name = name.ok_or_else(|| wrong("expected [section]".to_owned()))?;
                if !list.sections.insert(name.to_owned()) {
                    return Err(wrong(format!("section [{name}] is there twice")));
                }
                section = Some(name.to_owned());
                continue;
            }
            let line = parse_line(statement, at, section.clone()).map_err(wrong)?;
            let clash = list.lines.iter().find(|other| contradict(other, &line));
            if let Some(other) = clash {
                return Err(wrong(format!("{} is in line {} already", line.name, other.at)));
            }
            list.lines.push(line);
        }
        list.kind = kind.ok_or(ListError { line: 1, what: "the list is empty".to_owned() })?;
        Ok(list)
    }

    /// Returns true if the list names this call, in any section, with or without
    /// conditions.
    #[must_use]
    pub fn names(&self, call: &str) -> bool {
        self.lines.iter().any(|line| !line.absent && line.name == call)
    }

    /// Makes a filter out of the lines without a section and those of `sections`.
    ///
    /// # Errors
    /// If there is no such section, or the list is too long for the kernel.
    pub fn compile(&self, sections: &[&str]) -> Result<Filter, FilterError> {
        if let Some(unknown) = sections.iter().find(|section| !self.sections.contains(**section)) {
            return Err(FilterError::Section((*unknown).to_owned()));
        }
        let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
            return Ok(Filter { programs: None });
        };
        let mut named: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut unconditional = BTreeSet::new();
        let mut absent: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let chosen = |line: &&Line| {
            line.section.as_deref().is_none_or(|section| sections.contains(&section))
        };
        for line in self.lines.iter().filter(chosen) {
            let Name::Number(number) = line.number else { continue };
            if line.absent {
                absent.insert(number, Vec::new());
                if self.kind == Kind::AllowOnly {
                    // Let through here, since the other filter answers for it.
                    named.insert(number, Vec::new());
                }
                continue;
            }
            let rules = named.entry(number).or_default();
            if line.conditions.is_empty() {
                unconditional.insert(number);
            } else {
                let conditions =
                    line.conditions.iter().map(Condition::compiled).collect::<Result<_, _>>()?;
                rules.push(SeccompRule::new(conditions)?);
            }
        }
        // A section may lift the conditions of a call. An empty list of rules means any
        // arguments.
        for number in unconditional {
            named.insert(number, Vec::new());
        }
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let allow = SeccompAction::Allow;
        let (others, those) = match self.kind {
            Kind::AllowOnly => (refuse, allow.clone()),
            Kind::RefuseOnly => (allow.clone(), refuse),
        };
        let mut programs = Vec::new();
        if self.kind == Kind::RefuseOnly && matches!(arch, TargetArch::x86_64) {
            programs.push(no_other_numbers());
        }
        if !absent.is_empty() {
            let missing = SeccompAction::Errno(libc::ENOSYS as u32);
            programs.push(SeccompFilter::new(absent, allow, missing, arch)?.try_into()?);
        }
        programs.push(SeccompFilter::new(named, others, those, arch)?.try_into()?);
        Ok(Filter { programs: Some(programs) })
    }
}

/// Refuses the numbers of x32. They are the same calls with one more bit, which a list of
/// what is refused would let through; the kernel says that they are of the same
/// architecture.
fn no_other_numbers() -> BpfProgram {
    const LOAD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let step = |code, jf, k| seccompiler::sock_filter { code, jt: 0, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    vec![
        step(LOAD, 0, 0),
        step(JUMP_IF_AT_LEAST, 1, X32),
        step(RETURN, 0, refuse),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// The bit that x32 adds to a call's number.
const X32: u32 = 0x4000_0000;

/// Returns true if two lines of one call cannot both be meant. A section may add an
/// alternative, or lift conditions.
fn contradict(one: &Line, other: &Line) -> bool {
    let same_place = one.section == other.section;
    let both_bare = one.conditions.is_empty() || other.conditions.is_empty();
    one.name == other.name
        && (one.absent != other.absent
            || one.conditions == other.conditions && (same_place || one.section.is_none())
            || same_place && both_bare
            || one.section.is_none() && one.conditions.is_empty())
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn parse_line(statement: &str, at: usize, section: Option<String>) -> Result<Line, String> {
    let (head, conditions) = match statement.split_once(':') {
        Some((head, conditions)) => (head.trim(), Some(conditions)),
        None => (statement, None),
    };
    let (absent, name) = match head.strip_prefix("absent ") {
        Some(name) => (true, name.trim()),
        None => (false, head),
    };
    let number =
        names::find(name).ok_or_else(|| format!("{name:?} is no system call that is known"))?;
    if absent && conditions.is_some() {
        return Err("a call is absent with all of its arguments, or not".to_owned());
    }
    let conditions = match conditions {
        None => Vec::new(),
        Some(text) => text.split(" and ").map(parse_condition).collect::<Result<_, _>>()?,
    };
    Ok(Line { at, section, name: name.to_owned(), number, absent, conditions })
}

/// `argN = VALUE` or `argN & MASK = VALUE`.
fn parse_condition(text: &str) -> Result<Condition, String> {
    let mut words = text.split_whitespace();
    let expected =
        || format!("{:?}: expected \"arg0 = VALUE\" or \"arg0 & MASK = VALUE\"", text.trim());
    let argument =
        words.next().and_then(|word| word.strip_prefix("arg")).and_then(|digit| digit.parse().ok());
    let argument: u8 = argument.filter(|argument| *argument < 6).ok_or_else(expected)?;
    let mut operator = words.next().ok_or_else(expected)?;
    let mut mask = None;
    if operator == "&" {
        mask = Some(parse_value(words.next().ok_or_else(expected)?)?);
        operator = words.next().ok_or_else(expected)?;
    }
    let compare = match operator {
        "=" => Compare::Equal,
        "!=" if mask.is_none() => Compare::Unequal,
        "<=" if mask.is_none() => Compare::AtMost,
        ">=" if mask.is_none() => Compare::AtLeast,
        _ => return Err(expected()),
    };
    let value = parse_value(words.next().ok_or_else(expected)?)?;
    if words.next().is_some() {
        return Err(expected());
    }
    if mask.is_some_and(|mask| value & !mask != 0) {
        return Err(format!(
            "{:?} can never hold: the value has bits that the mask has not",
            text.trim()
        ));
    }
    Ok(Condition { argument, mask, compare, value })
}

/// A number, a constant's name, or several of those joined by `|`.
fn parse_value(text: &str) -> Result<u32, String> {
    text.split('|').try_fold(0, |sum, part| {
        let value = match part.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None if part.starts_with(|first: char| first.is_ascii_digit()) => part.parse().ok(),
            None => constant(part),
        };
        value.map(|value| sum | value).ok_or_else(|| format!("{part:?} is no value that is known"))
    })
}

/// Constants by their names in the kernel's headers.
fn constant(name: &str) -> Option<u32> {
    macro_rules! constants {
        ($($name:ident)*) => {
            match name {
                $(stringify!($name) => u32::try_from(libc::$name).ok(),)*
                // Outgrew the type of the C library's constant.
                "CLONE_NEWCGROUP" => Some(0x0200_0000),
                "CLONE_NEWTIME" => Some(0x80),
                "FIONBIO" => Some(libc::FIONBIO as u32),
                "FIOCLEX" => Some(libc::FIOCLEX as u32),
                "FIONREAD" => Some(libc::FIONREAD as u32),
                "TCGETS" => Some(libc::TCGETS as u32),
                _ => None,
            }
        };
    }
    constants! {
        AT_EMPTY_PATH AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET AF_VSOCK AF_ALG
        SOCK_STREAM SOCK_DGRAM SOCK_SEQPACKET SOCK_RAW
        CLONE_THREAD CLONE_VM CLONE_NEWNS CLONE_NEWUSER CLONE_NEWPID CLONE_NEWNET CLONE_NEWIPC CLONE_NEWUTS
        PROT_READ PROT_WRITE PROT_EXEC MAP_ANONYMOUS MAP_SHARED MAP_PRIVATE MFD_EXEC
        PR_SET_NAME PR_GET_NAME PR_SET_VMA PR_SET_DUMPABLE PR_SET_PDEATHSIG PR_SET_NO_NEW_PRIVS PR_CAPBSET_READ
        SIGABRT F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC F_OFD_SETLK F_SETLK F_SETLKW F_GETLK F_ADD_SEALS F_GET_SEALS
        O_WRONLY O_RDWR O_CREAT O_TRUNC S_IFMT S_IFIFO PR_SET_MM PRIO_PROCESS NETLINK_SOCK_DIAG
    }
}

impl Condition {
    fn compiled(&self) -> Result<SeccompCondition, seccompiler::BackendError> {
        let operator = match (self.compare, self.mask) {
            (Compare::Equal, Some(mask)) => SeccompCmpOp::MaskedEq(mask.into()),
            (Compare::Equal, None) => SeccompCmpOp::Eq,
            (Compare::Unequal, _) => SeccompCmpOp::Ne,
            (Compare::AtMost, _) => SeccompCmpOp::Le,
            (Compare::AtLeast, _) => SeccompCmpOp::Ge,
        };
        SeccompCondition::new(self.argument, SeccompCmpArgLen::Dword, operator, self.value.into())
    }
}

/// A filter, ready to be put into force. Nothing is allocated or opened for that, so that
/// it can come last.
#[derive(Debug, Clone)]
pub struct Filter {
    /// In the order in which they are put into force: the last one refuses that any more
    /// are. `None` on an architecture for which none can be made.
    programs: Option<Vec<BpfProgram>>,
}

impl Filter {
    /// A filter of these programs, the last of which may refuse that any more are put
    /// into force.
    pub(crate) fn of(programs: Option<Vec<BpfProgram>>) -> Self {
        Self { programs }
    }

    /// Puts the filter on all threads of this process, and on what they start. For good.
    ///
    /// # Errors
    /// If the kernel has seccomp, and refuses. That it has none is no error but a
    /// [`Level`].
    pub fn restrict_process(&self) -> Result<Level, FilterError> {
        self.restrict(seccompiler::apply_filter_all_threads)
    }

    /// Puts the filter on the calling thread, and on what it starts: for a launcher just
    /// before `execve`.
    ///
    /// # Errors
    /// As [`Filter::restrict_process`].
    pub fn restrict_thread(&self) -> Result<Level, FilterError> {
        self.restrict(seccompiler::apply_filter)
    }

    fn restrict(
        &self,
        apply: fn(&[seccompiler::sock_filter]) -> seccompiler::Result<()>,
    ) -> Result<Level, FilterError> {
        let Some(programs) = &self.programs else {
            let reason = format!("no seccomp filter can be made for {}", std::env::consts::ARCH);
            return Ok(Level::Absent { reason });
        };
        for (at, program) in programs.iter().enumerate() {
            match apply(program) {
                Ok(()) => {}
                Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error))
                    if at == 0
                        && matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) =>
                {
                    return Ok(Level::Absent {
                        reason: "this kernel has no seccomp filters".to_owned(),
                    });
                }
                Err(error) => return Err(FilterError::Apply(error)),
            }
        }
        Ok(Level::Full)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixDatagram;

    use proptest::prelude::*;

    use super::*;

    fn wrong(text: &str) -> String {
        SyscallList::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_mistake_names_its_line() {
        for (line, why) in [
            ("reed # x", "line 2 of the list of system calls: \"reed\" is no system call"),
            ("read", "line 2 of the list of system calls: no reason"),
            ("read #  ", "no reason"),
            ("socket: arg0 = AF_UNIKS # x", "\"AF_UNIKS\" is no value"),
            ("socket: arg6 = 1 # x", "expected \"arg0 = VALUE\""),
            ("socket: arg0 ~ 1 # x", "expected"),
            ("socket: arg0 & 1 != 1 # x", "expected"),
            ("socket: arg0 = 1 2 # x", "expected"),
            ("socket: # x", "expected"),
            ("clone: arg0 & 1 = 3 # x", "can never hold"),
            ("absent clone3: arg0 = 1 # x", "absent with all of its arguments"),
            ("read # x\nread # y", "line 3 of the list of system calls: read is in line 2 already"),
            ("read # x\nread: arg0 = 1 # y", "line 3"),
            ("read # x\n[s] # x\nread # y", "line 4"),
            ("read # x\nabsent read # y", "line 3"),
            ("[s # x", "expected [section]"),
            ("[s] # x\n[s] # x", "is there twice"),
        ] {
            let error = wrong(&format!("allow only\n{line}"));
            assert!(error.contains(why), "{line}: {error}");
        }
        assert!(
            wrong("read # x")
                .contains("line 1 of the list of system calls: expected \"allow only\"")
        );
        assert!(wrong("# nothing").contains("empty"));
    }

    #[test]
    fn a_call_of_another_architecture_is_known_and_left_out() {
        let list = SyscallList::parse("allow only\nopen # x\nopenat # x\n").unwrap();
        assert!(list.names("open") && list.names("openat"));
        let expected = if cfg!(target_arch = "x86_64") { Name::Number(2) } else { Name::Elsewhere };
        assert_eq!(list.lines[0].number, expected);
    }

    #[test]
    fn sections_count_only_when_asked_for() {
        let list = SyscallList::parse("allow only\n[tcp] # x\nsocket # x\n").unwrap();
        assert!(matches!(list.compile(&["udp"]), Err(FilterError::Section(name)) if name == "udp"));
        assert_ne!(verdict(&list, &[], libc::SYS_socket, [0; 6]), ALLOW);
        assert_eq!(verdict(&list, &["tcp"], libc::SYS_socket, [0; 6]), ALLOW);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_refused_call_is_refused_by_its_x32_number_too() {
        for text in ["refuse only\nbpf # x\n", "allow only\nread # x\n"] {
            let list = SyscallList::parse(text).unwrap();
            for call in [libc::SYS_bpf, libc::SYS_read] {
                assert_eq!(
                    verdict(&list, &[], call | i64::from(X32), [0; 6]),
                    REFUSE,
                    "{text}{call}"
                );
            }
            assert_eq!(verdict(&list, &[], libc::SYS_read, [0; 6]), ALLOW);
        }
    }

    #[test]
    fn a_section_may_lift_conditions() {
        let list =
            SyscallList::parse("allow only\nsocket: arg0 = AF_UNIX # x\n[any] # x\nsocket # x\n")
                .unwrap();
        assert_eq!(verdict(&list, &[], libc::SYS_socket, [2, 0, 0, 0, 0, 0]), REFUSE);
        assert_eq!(verdict(&list, &["any"], libc::SYS_socket, [2, 0, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn a_filter_on_a_thread_is_in_force_and_cannot_be_followed_by_another() {
        let text = "allow only\nabsent memfd_create # x\n";
        let rest = [
            "futex",
            "munmap",
            "mmap",
            "madvise",
            "mprotect",
            "exit",
            "sigaltstack",
            "rt_sigprocmask",
            "close",
        ];
        let rest: String = rest.iter().map(|name| format!("{name} # x\n")).collect();
        let list = format!("{text}{rest}socket: arg0 = AF_UNIX # x\nwrite # x\nprctl # x\n");
        let filter = SyscallList::parse(&list).unwrap().compile(&[]).unwrap();
        let got = std::thread::spawn(move || {
            let level = filter.restrict_thread().unwrap();
            let inet =
                UdpSocket::bind("127.0.0.1:0").map(drop).map_err(|error| error.raw_os_error());
            let unix = UnixDatagram::unbound().map(drop).map_err(|error| error.raw_os_error());
            let memory = rustix::fs::memfd_create(c"x", rustix::fs::MemfdFlags::empty()).map(drop);
            let again = filter.restrict_thread().map_err(|error| match error {
                FilterError::Apply(seccompiler::Error::Seccomp(error)) => error.kind(),
                _ => io::ErrorKind::Other,
            });
            (level, inet, unix, memory, again)
        })
        .join()
        .unwrap();
        assert_eq!(got.0, Level::Full);
        assert_eq!(got.1, Err(Some(libc::EPERM)));
        assert_eq!(got.2, Ok(()));
        assert_eq!(got.3, Err(rustix::io::Errno::NOSYS));
        assert_eq!(got.4, Err(io::ErrorKind::PermissionDenied));
    }

    pub(crate) const ALLOW: u32 = 0x7fff_0000;
    pub(crate) const REFUSE: u32 = 0x0005_0000 | libc::EPERM as u32;
    const ABSENT: u32 = 0x0005_0000 | libc::ENOSYS as u32;

    /// Returns the answer that the kernel would give: runs the filters and takes the
    /// strictest answer. Of equal answers, the newest filter's is taken.
    fn verdict(list: &SyscallList, sections: &[&str], number: i64, arguments: [u64; 6]) -> u32 {
        let programs = list.compile(sections).unwrap().programs.unwrap();
        let arch: u32 = match std::env::consts::ARCH {
            "x86_64" => 0xc000_003e,
            "aarch64" => 0xc000_00b7,
            _ => 0xc000_00f3,
        };
        let data = data(arch, u32::try_from(number).unwrap(), arguments);
        programs
            .iter()
            .rev()
            .map(|program| run(program, &data))
            .min_by_key(|answer| answer & 0xffff_0000)
            .unwrap()
    }

    /// Describes a call as the kernel does to a filter.
    pub(crate) fn data(architecture: u32, number: u32, arguments: [u64; 6]) -> [u8; 64] {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        for (at, argument) in arguments.iter().enumerate() {
            data[16 + at * 8..24 + at * 8].copy_from_slice(&argument.to_ne_bytes());
        }
        data
    }

    /// The subset of the kernel's filter machine that the compiler uses.
    pub(crate) fn run(program: &[seccompiler::sock_filter], data: &[u8; 64]) -> u32 {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let step = &program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
            match step.code {
                0x20 => {
                    let from = step.k as usize;
                    accumulator = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
                }
                0x54 => accumulator &= step.k,
                0x05 => at += step.k as usize,
                0x15 => at += jump(accumulator == step.k),
                0x25 => at += jump(accumulator > step.k),
                0x35 => at += jump(accumulator >= step.k),
                0x06 => return step.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// Returns what a list means for a call, found the plain way.
    fn meaning(list: &SyscallList, number: i64, arguments: [u64; 6]) -> u32 {
        let mut lines =
            list.lines.iter().filter(|line| line.number == Name::Number(number)).peekable();
        if lines.peek().is_some_and(|line| line.absent) {
            return ABSENT;
        }
        let holds = |condition: &Condition| {
            let argument = arguments[usize::from(condition.argument)] as u32;
            match condition.compare {
                Compare::Equal => argument & condition.mask.unwrap_or(u32::MAX) == condition.value,
                Compare::Unequal => argument != condition.value,
                Compare::AtMost => argument <= condition.value,
                Compare::AtLeast => argument >= condition.value,
            }
        };
        let matches = lines.any(|line| line.conditions.iter().all(holds));
        if matches == (list.kind == Kind::AllowOnly) { ALLOW } else { REFUSE }
    }

    fn a_line() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "read", "socket", "clone", "mmap", "open", "ioctl", "clone3", "write",
        ]);
        let masked = (0..6_u8, 0..16_u32, 0..16_u32).prop_map(|(argument, mask, value)| {
            format!("arg{argument} & {mask} = {}", value & mask)
        });
        let plain = (0..6_u8, prop::sample::select(vec!["=", "!=", "<=", ">="]), 0..16_u32)
            .prop_map(|(argument, operator, value)| format!("arg{argument} {operator} {value}"));
        let conditions = prop::collection::vec(prop_oneof![masked, plain], 0..3);
        (name, conditions, prop::bool::weighted(0.2)).prop_map(|(name, conditions, absent)| {
            match conditions.is_empty() {
                true if absent => format!("absent {name} # x\n"),
                true => format!("{name} # x\n"),
                false => format!("{name}: {} # x\n", conditions.join(" and ")),
            }
        })
    }

    proptest! {
        #[test]
        fn a_filter_does_what_its_list_says(
            allow in any::<bool>(),
            lines in prop::collection::vec(a_line(), 0..12),
            calls in prop::collection::vec((0..60_i64, prop::array::uniform6((0..3_u64, 0..20_u64))), 1..40),
        ) {
            let first = if allow { "allow only\n" } else { "refuse only\n" };
            let mut list = SyscallList::parse(first).unwrap();
            let mut text = first.to_owned();
            for line in &lines {
                // Lines that contradict earlier ones are left out.
                if let Ok(more) = SyscallList::parse(&format!("{text}{line}")) {
                    text.push_str(line);
                    list = more;
                }
            }
            for (number, arguments) in calls {
                // High bits are not the kernel's.
                let arguments = arguments.map(|(high, low)| high << 32 | low);
                prop_assert_eq!(verdict(&list, &[], number, arguments), meaning(&list, number, arguments), "{}", text);
            }
        }

        #[test]
        fn any_text_is_a_list_or_a_mistake(text in "(allow only\n)?[a-z0-9:=&|#\\[\\] \n]{0,80}") {
            if let Ok(list) = SyscallList::parse(&text) {
                list.compile(&[]).unwrap();
            }
        }
    }
}
