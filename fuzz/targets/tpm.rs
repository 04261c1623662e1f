//! Answers of a TPM, blobs of provisioning services, and records of kept keys.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    edgekeep_tpm::fuzzing::read(content);
    if let Ok(record) = edgekeep_tpm::Record::decode(content) {
        let written = record.encode().expect("what was read is written");
        assert!(edgekeep_tpm::Record::decode(&written).is_ok());
    }
});
