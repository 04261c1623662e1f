//! One line of a process's table of mounts (`proc_pid_mountinfo(5)`). Pure.

/// A mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MountLine<'a> {
    /// Its number, which may be used again after it is gone.
    pub(super) id: u32,
    /// Major and minor number of the file system.
    pub(super) device: &'a str,
    /// The folder of the file system that is seen.
    pub(super) root: &'a str,
    /// Mount point: the path at which the folder is seen.
    pub(super) point: &'a str,
    /// Name of the kind of file system.
    pub(super) file_system: &'a str,
    /// Options of the file system, separated by commas.
    pub(super) options: &'a str,
}

impl<'a> MountLine<'a> {
    /// Reads a line; `None` if it has not the documented form.
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        // Between the fixed fields and the dash stand any number of optional ones.
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let id = fields.next()?.parse().ok()?;
        let device = fields.nth(1)?;
        let (root, point) = (fields.next()?, fields.next()?);
        let [file_system, _, options] = file_system.splitn(3, ' ').collect::<Vec<_>>()[..] else {
            return None;
        };
        Some(Self { id, device, root, point, file_system, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_optional_fields_it_has() {
        for optional in ["", " master:1", " shared:2 master:1"] {
            let line = format!(
                "558 287 0:49 / /m rw,relatime{optional} - overlay overlay rw,lowerdir=/a:/b,upperdir=/c"
            );
            let expected = MountLine {
                id: 558,
                device: "0:49",
                root: "/",
                point: "/m",
                file_system: "overlay",
                options: "rw,lowerdir=/a:/b,upperdir=/c",
            };
            assert_eq!(MountLine::parse(&line), Some(expected), "{optional}");
        }
        for cut in [
            "",
            "558 287 0:49 / /m rw",
            "558 287 0:49 - overlay overlay rw",
            "x 287 0:49 / /m rw - a b c",
        ] {
            assert_eq!(MountLine::parse(cut), None, "{cut}");
        }
    }
}
