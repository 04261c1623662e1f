//! Linux capabilities by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// In the order of their numbers (capabilities(7)).
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// The text is not a capability's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the name of a Linux capability, for example \"net_bind_service\"")]
pub struct CapabilityError;

/// One capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(u8);

impl Capability {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Every name, in lower case and without `CAP_`.
    #[must_use]
    pub const fn names() -> &'static [&'static str] {
        &NAMES
    }
}

impl FromStr for Capability {
    type Err = CapabilityError;

    /// With or without `CAP_`, in any case of letters.
    fn from_str(text: &str) -> Result<Self, CapabilityError> {
        let name = text.to_ascii_lowercase();
        let name = name.strip_prefix("cap_").unwrap_or(&name);
        let number = NAMES.iter().position(|known| *known == name).ok_or(CapabilityError)?;
        u8::try_from(number).map(Self).map_err(|_| CapabilityError)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.get(usize::from(self.0)).unwrap_or(&"unknown"))
    }
}

/// A set of capabilities. On the wire a list of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Capabilities(u64);

impl Capabilities {
    /// One bit for each, as the kernel numbers them.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Those whose bit is set; bits of capabilities that are not known here are left out.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << NAMES.len()) - 1))
    }

    /// Returns true if the set holds no capability.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in it, by number.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        (0..).take(NAMES.len()).filter(move |number| self.0 & (1 << number) != 0).map(Capability)
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(all: I) -> Self {
        Self(all.into_iter().fold(0, |bits, capability| bits | 1 << capability.0))
    }
}

impl TryFrom<Vec<String>> for Capabilities {
    type Error = CapabilityError;

    fn try_from(names: Vec<String>) -> Result<Self, CapabilityError> {
        names.iter().map(|name| name.parse::<Capability>()).collect()
    }
}

impl From<Capabilities> for Vec<String> {
    fn from(capabilities: Capabilities) -> Self {
        capabilities.iter().map(|capability| capability.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_in_either_form_and_numbered_as_the_kernel_does() {
        for (text, number) in [
            ("net_bind_service", 10),
            ("CAP_SYS_PTRACE", 19),
            ("chown", 0),
            ("checkpoint_restore", 40),
        ] {
            assert_eq!(text.parse::<Capability>().map(Capability::number), Ok(number), "{text}");
        }
        for text in ["", "cap_", "net", "all", "net_admin "] {
            assert_eq!(text.parse::<Capability>(), Err(CapabilityError), "{text}");
        }
    }

    #[test]
    fn a_set_comes_back_from_its_names() {
        let set: Capabilities =
            serde_json::from_str(r#"["CAP_KILL","chown","kill"]"#).expect("known names");
        assert_eq!(set.bits(), 0b10_0001);
        assert_eq!(serde_json::to_string(&set).expect("serializable"), r#"["chown","kill"]"#);
        assert!(serde_json::from_str::<Capabilities>(r#"["everything"]"#).is_err());
    }
}
