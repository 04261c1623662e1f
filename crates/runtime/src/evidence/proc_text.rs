//! The texts of `/proc/PID/stat` and `/proc/PID/status`.

use edgekeep_core::attestation::{Ancestor, ProcessInstance};

/// The values that are read from `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcStat {
    pub(crate) parent: u32,
    pub(crate) session: u32,
    pub(crate) start_time: u64,
}

impl ProcStat {
    pub(super) fn as_ancestor(self, pid: u32) -> Ancestor {
        Ancestor {
            process: ProcessInstance { pid, start_time: self.start_time },
            session: self.session,
        }
    }
}

/// The values that are read from `/proc/PID/status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcStatus {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) tracer: u32,
    pub(super) filters: Option<u32>,
    /// Process id of its parent.
    pub(super) parent: u32,
}

/// The program's name stands in parentheses and may itself hold parentheses and blanks:
/// fields count from the last `)`.
pub(super) fn parse_stat(text: &[u8]) -> Option<ProcStat> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    // Field 3 (state) comes first here; the parent is field 4, the session field 6, the
    // start time field 22.
    let parent = fields.nth(1)?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start_time = fields.nth(15)?.parse().ok()?;
    Some(ProcStat { parent, session, start_time })
}

pub(super) fn parse_status(text: &[u8]) -> Option<ProcStatus> {
    let (mut uid, mut gid, mut tracer, mut filters) = (None, None, None, None);
    let mut parent = None;
    for line in text.split(|&byte| byte == b'\n') {
        let field = |name: &[u8], number: usize| {
            let rest = std::str::from_utf8(line.strip_prefix(name)?).ok()?;
            rest.split_ascii_whitespace().nth(number)?.parse::<u32>().ok()
        };
        match line {
            line if line.starts_with(b"PPid:") => parent = field(b"PPid:", 0),
            line if line.starts_with(b"TracerPid:") => tracer = field(b"TracerPid:", 0),
            // Real, effective, saved, file system: the effective one acts.
            line if line.starts_with(b"Uid:") => uid = field(b"Uid:", 1),
            line if line.starts_with(b"Gid:") => gid = field(b"Gid:", 1),
            // Behind the others.
            line if line.starts_with(b"Seccomp_filters:") => {
                filters = Some(field(b"Seccomp_filters:", 0)?);
                break;
            }
            _ => {}
        }
    }
    Some(ProcStatus { uid: uid?, gid: gid?, tracer: tracer?, filters, parent: parent? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_program_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let tail = "S 7 1 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 192557 1 1";
        for name in ["sleep", "a) R 1 (b", ") ) )", "x y"] {
            let line = format!("42 ({name}) {tail}");
            assert_eq!(
                parse_stat(line.as_bytes()),
                Some(ProcStat { parent: 7, session: 3, start_time: 192_557 }),
                "{name}"
            );
        }
    }

    #[test]
    fn the_filters_of_system_calls_are_counted_where_the_kernel_tells() {
        let told = "PPid:\t7\nTracerPid:\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nSeccomp:\t2\nSeccomp_filters:\t3\nThreads:\t1\n";
        let status = ProcStatus { uid: 2, gid: 6, tracer: 0, filters: Some(3), parent: 7 };
        assert_eq!(parse_status(told.as_bytes()), Some(status));
        let older = told.replace("Seccomp_filters:\t3\n", "");
        assert_eq!(parse_status(older.as_bytes()), Some(ProcStatus { filters: None, ..status }));
        for wrong in [
            told.replace("filters:\t3", "filters:\tx"),
            told.replace("TracerPid", "T"),
            told.replace("PPid", "P"),
        ] {
            assert_eq!(parse_status(wrong.as_bytes()), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_stat(&bytes);
            let _ = parse_status(&bytes);
        }
    }
}
