//! The assurance of a device: one word for what keeps its keys and its log of
//! measurements from whoever gets hold of its disk or of one of its programs.
//!
//! Each level has what the levels below it have. The decision is a function over facts
//! that keyd knows of itself, so nothing has to be believed from others. What each level
//! means, and what it does not, is in `docs/assurance.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A level of assurance, the lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Rights on files keep the keys.
    Software,
    /// The keys are with a process of its own user that gave up all other rights.
    Sandboxed,
    /// A TPM seals the store key, and binds the log of measurements.
    TpmResident,
    /// The same, and the TPM opens the store in a known state of the device alone.
    TpmStateBound,
}

impl Level {
    /// All levels, the lowest first.
    pub const ALL: [Self; 4] =
        [Self::Software, Self::Sandboxed, Self::TpmResident, Self::TpmStateBound];

    /// Returns the level's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Sandboxed => "sandboxed",
            Self::TpmResident => "tpm-resident",
            Self::TpmStateBound => "tpm-state-bound",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The rights that keyd has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confined {
    /// All layers of its sandbox are in force, as far as the kernel has them.
    InAllLayers,
    /// A layer is not in force at all.
    NotInAllLayers,
    /// None: the configuration says so.
    Not,
}

/// The protection of the store key, under which keys in files are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKey {
    /// The rights on its file.
    File,
    /// A key on a token.
    Token,
    /// The TPM, in any state of the device.
    Tpm,
    /// The TPM, in a known state of the device.
    TpmInKnownState,
}

/// The TPM as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TpmState {
    /// The configuration names none.
    None,
    /// The TPM answers, and is the one that keyd began with.
    Usable,
    /// The TPM does not answer.
    Lost,
    /// The TPM was reset while the kernel ran on: its registers forgot all starts.
    Reset,
    /// The TPM refuses what is protected against guessing.
    Lockout,
}

/// The log of measurements as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogState {
    /// A register of the TPM binds it.
    Bound,
    /// No register binds it.
    Unbound,
    /// Something happened to it, or to its registers, since the machine was started.
    Differs,
}

/// The facts that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The rights that keyd has given up.
    pub confined: Confined,
    /// True if another daemon has keyd's user.
    pub shared_user: bool,
    /// The protection of the store key.
    pub store_key: StoreKey,
    /// The TPM.
    pub tpm: TpmState,
    /// The log of measurements.
    pub log: LogState,
}

/// A reason why the level is not higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lack {
    /// The sandbox is switched off.
    SandboxOff,
    /// A layer of the sandbox is not in force.
    SandboxLayer,
    /// Another daemon has keyd's user.
    SharedUser,
    /// The configuration names no TPM.
    NoTpm,
    /// The TPM does not answer.
    TpmLost,
    /// The TPM was reset while the machine ran.
    TpmReset,
    /// The TPM is in lockout.
    TpmLockout,
    /// The store key is in a file.
    StoreKeyInFile,
    /// A token protects the store key.
    StoreKeyOnToken,
    /// No register of the TPM binds the log of measurements.
    LogUnbound,
    /// The log of measurements and the TPM did not agree.
    LogDiffers,
    /// The store opens in any state of the device.
    AnyState,
    /// A newer keyd has a reason that this program does not know.
    #[serde(other)]
    Unknown,
}

impl Lack {
    /// The reason in words, with the remedy.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::SandboxOff => {
                "keyd's sandbox is switched off: set sandbox = true in [aziot_keys]"
            }
            Self::SandboxLayer => "a layer of keyd's sandbox is not in force: its log says why",
            Self::SharedUser => {
                "another daemon has keyd's user: install the package, which gives each its own"
            }
            Self::NoTpm => "no TPM is configured: add [tpm]",
            Self::TpmLost => "the TPM does not answer",
            Self::TpmReset => "the TPM was reset while the machine ran: restart the machine",
            Self::TpmLockout => {
                "the TPM is in lockout: wait, or run `tpm2_dictionarylockout --clear-lockout`"
            }
            Self::StoreKeyInFile => {
                "the store key is in a file: run `edgekeep keys migrate --to tpm`"
            }
            Self::StoreKeyOnToken => "a token protects the store key, and the TPM does not",
            Self::LogUnbound => "no register of the TPM binds the log of measurements",
            Self::LogDiffers => {
                "the log of measurements and the TPM did not agree: `edgekeep integrity replay` compares them"
            }
            Self::AnyState => "the store opens in any state of the device",
            Self::Unknown => "a reason that this program does not know: it is older than keyd",
        }
    }
}

/// The level, and all that keeps the device from the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assurance {
    /// The level.
    pub level: Level,
    /// The reasons why it is not the next one; empty at the highest.
    pub lacks: Vec<Lack>,
}

/// Decides the level: the highest of which nothing is lacking, and nothing of those below
/// it.
#[must_use]
pub fn assurance(facts: &Facts) -> Assurance {
    let steps = [
        (Level::Software, lacks_of_sandbox(facts)),
        (Level::Sandboxed, lacks_of_tpm(facts)),
        (Level::TpmResident, lacks_of_state(facts)),
    ];
    let stopped = steps.into_iter().find(|(_, lacks)| !lacks.is_empty());
    let (level, lacks) = stopped.unwrap_or((Level::TpmStateBound, Vec::new()));
    Assurance { level, lacks }
}

fn lacks_of_sandbox(facts: &Facts) -> Vec<Lack> {
    let sandbox = match facts.confined {
        Confined::InAllLayers => None,
        Confined::NotInAllLayers => Some(Lack::SandboxLayer),
        Confined::Not => Some(Lack::SandboxOff),
    };
    sandbox.into_iter().chain(facts.shared_user.then_some(Lack::SharedUser)).collect()
}

fn lacks_of_tpm(facts: &Facts) -> Vec<Lack> {
    let tpm = match facts.tpm {
        TpmState::Usable => None,
        // What there is no TPM for is not lacking besides.
        TpmState::None => return vec![Lack::NoTpm],
        TpmState::Lost => Some(Lack::TpmLost),
        TpmState::Reset => Some(Lack::TpmReset),
        TpmState::Lockout => Some(Lack::TpmLockout),
    };
    let store_key = match facts.store_key {
        StoreKey::File => Some(Lack::StoreKeyInFile),
        StoreKey::Token => Some(Lack::StoreKeyOnToken),
        StoreKey::Tpm | StoreKey::TpmInKnownState => None,
    };
    let log = match facts.log {
        LogState::Bound => None,
        LogState::Unbound => Some(Lack::LogUnbound),
        LogState::Differs => Some(Lack::LogDiffers),
    };
    [tpm, store_key, log].into_iter().flatten().collect()
}

fn lacks_of_state(facts: &Facts) -> Vec<Lack> {
    match facts.store_key {
        StoreKey::TpmInKnownState => Vec::new(),
        StoreKey::File | StoreKey::Token | StoreKey::Tpm => vec![Lack::AnyState],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEST: Facts = Facts {
        confined: Confined::InAllLayers,
        shared_user: false,
        store_key: StoreKey::TpmInKnownState,
        tpm: TpmState::Usable,
        log: LogState::Bound,
    };

    fn facts() -> impl Strategy<Value = Facts> {
        use {Confined as C, LogState as L, StoreKey as K, TpmState as T};
        (
            prop::sample::select(vec![C::InAllLayers, C::NotInAllLayers, C::Not]),
            any::<bool>(),
            prop::sample::select(vec![K::File, K::Token, K::Tpm, K::TpmInKnownState]),
            prop::sample::select(vec![T::None, T::Usable, T::Lost, T::Reset, T::Lockout]),
            prop::sample::select(vec![L::Bound, L::Unbound, L::Differs]),
        )
            .prop_map(|(confined, shared_user, store_key, tpm, log)| Facts {
                confined,
                shared_user,
                store_key,
                tpm,
                log,
            })
    }

    fn level(facts: Facts) -> Level {
        assurance(&facts).level
    }

    #[test]
    fn each_level_is_reached_and_says_what_the_next_one_lacks() {
        let told = |facts| {
            let Assurance { level, lacks } = assurance(&facts);
            (level, lacks)
        };
        assert_eq!(told(BEST), (Level::TpmStateBound, vec![]));
        let sealed = Facts { store_key: StoreKey::Tpm, ..BEST };
        assert_eq!(told(sealed), (Level::TpmResident, vec![Lack::AnyState]));
        let without = Facts { tpm: TpmState::None, store_key: StoreKey::File, ..BEST };
        assert_eq!(told(without), (Level::Sandboxed, vec![Lack::NoTpm]));
        let in_file = Facts { store_key: StoreKey::File, log: LogState::Unbound, ..BEST };
        let lacks = vec![Lack::StoreKeyInFile, Lack::LogUnbound];
        assert_eq!(told(in_file), (Level::Sandboxed, lacks));
        let open = Facts { confined: Confined::Not, shared_user: true, ..BEST };
        assert_eq!(told(open), (Level::Software, vec![Lack::SandboxOff, Lack::SharedUser]));
    }

    proptest! {
        /// Nothing makes up for what is lacking: each fact alone lowers the level.
        #[test]
        fn whatever_goes_wrong_never_raises_the_level(before in facts()) {
            let now = level(before);
            let worse = [
                Facts { confined: Confined::Not, ..before },
                Facts { shared_user: true, ..before },
                Facts { store_key: StoreKey::File, ..before },
                Facts { tpm: TpmState::Lost, ..before },
                Facts { tpm: TpmState::Reset, ..before },
                Facts { tpm: TpmState::Lockout, ..before },
                Facts { log: LogState::Differs, ..before },
            ];
            for facts in worse {
                prop_assert!(level(facts) <= now, "{facts:?}");
            }
            for tpm in [TpmState::None, TpmState::Lost, TpmState::Reset, TpmState::Lockout] {
                let without = level(Facts { tpm, ..before });
                prop_assert!(without <= Level::Sandboxed);
            }
            let shared = level(Facts { shared_user: true, ..before });
            prop_assert_eq!(shared, Level::Software);
        }

        #[test]
        fn only_the_highest_level_lacks_nothing_and_no_reason_is_unknown(facts in facts()) {
            let Assurance { level, lacks } = assurance(&facts);
            prop_assert_eq!(lacks.is_empty(), level == Level::TpmStateBound);
            prop_assert!(!lacks.contains(&Lack::Unknown));
        }
    }

    #[test]
    fn words_are_what_is_written_and_a_newer_reason_is_read() {
        for level in Level::ALL {
            assert_eq!(serde_json::to_value(level).unwrap(), level.word());
        }
        assert!(Level::ALL.is_sorted());
        let newer: Lack = serde_json::from_str("\"from-the-future\"").unwrap();
        assert_eq!(newer, Lack::Unknown);
    }

    #[test]
    fn the_document_names_each_level() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/assurance.md");
        let text = std::fs::read_to_string(path).unwrap();
        for level in Level::ALL {
            assert!(text.contains(&format!("`{level}`")), "{level}");
        }
    }
}
