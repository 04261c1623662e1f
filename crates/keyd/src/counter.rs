//! The audit log's counter, in the TPM.

use std::io;

use edgekeep_audit::MonotonicCounter;
use edgekeep_base::error::chain;
use edgekeep_hsm::KeyError;
use edgekeep_tpm::{NvCounter, Tpm, TpmError};

use crate::places::SharedTpm;

/// A counter in a TPM that may be absent.
pub(crate) struct TpmCounter {
    tpm: SharedTpm,
    counter: NvCounter,
}

impl TpmCounter {
    pub(crate) fn new(tpm: SharedTpm, counter: NvCounter) -> Self {
        Self { tpm, counter }
    }

    fn ask<T>(&self, ask: impl FnOnce(&Tpm, &NvCounter) -> Result<T, TpmError>) -> io::Result<T> {
        let answer =
            self.tpm.get().and_then(|tpm| Ok(tpm.with_tpm(|tpm| ask(tpm, &self.counter))?));
        answer.map_err(|error: KeyError| io::Error::other(chain(&error)))
    }
}

impl MonotonicCounter for TpmCounter {
    fn read(&mut self) -> io::Result<Option<u64>> {
        self.ask(Tpm::counter_value)
    }

    fn make(&mut self) -> io::Result<u64> {
        self.ask(Tpm::make_counter)
    }

    fn increment(&mut self) -> io::Result<u64> {
        self.ask(Tpm::step_counter)
    }
}
