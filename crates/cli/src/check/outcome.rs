//! The outcome of a check.

use serde::ser::{Serialize, SerializeMap as _, Serializer};

/// Ranks of outcomes, for the exit code.
pub(super) const WARNING: u8 = 1;
pub(super) const ERROR: u8 = 2;

/// A fault, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The finding, in words.
    pub(super) details: String,
    /// Its consequence.
    pub(super) why: &'static str,
    /// The remedy.
    pub(super) fix: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Ok,
    Warning(Finding),
    Error(Finding),
    /// The configuration does not use it, or it could not be looked at: why.
    Skipped(String),
    /// Left out by the operator.
    Ignored,
}

impl Outcome {
    pub(super) fn warning(
        details: impl Into<String>,
        why: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        Self::Warning(Finding { details: details.into(), why, fix: fix.into() })
    }

    pub(super) fn error(
        details: impl Into<String>,
        why: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        Self::Error(Finding { details: details.into(), why, fix: fix.into() })
    }

    pub(super) fn skipped(why: impl Into<String>) -> Self {
        Self::Skipped(why.into())
    }

    pub(super) const fn rank(&self) -> u8 {
        match self {
            Self::Ok | Self::Skipped(_) | Self::Ignored => 0,
            Self::Warning(_) => WARNING,
            Self::Error(_) => ERROR,
        }
    }
}

/// As the existing tools write it, with our two sentences beside theirs.
impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Ok => map.serialize_entry("result", "ok")?,
            Self::Ignored => map.serialize_entry("result", "ignored")?,
            Self::Skipped(why) => {
                map.serialize_entry("result", "skipped")?;
                map.serialize_entry("details", why)?;
            }
            Self::Warning(finding) | Self::Error(finding) => {
                let word = if self.rank() == ERROR { "error" } else { "warning" };
                map.serialize_entry("result", word)?;
                map.serialize_entry("details", &finding.details)?;
                map.serialize_entry("why", finding.why)?;
                map.serialize_entry("fix", &finding.fix)?;
            }
        }
        map.end()
    }
}
