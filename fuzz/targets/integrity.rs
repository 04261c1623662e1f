//! Logs of measurements, as a verifier elsewhere gets them.
//!
//! Every record has the same digest here: so the fuzzer gets behind the comparison with
//! the content, and the order of the records is what is left.
#![no_main]

use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::integrity::{
    IndexState, Logged, Observed, Opening, Present, Record, Registers, Seen, ZEROS, judge, open,
};
use libfuzzer_sys::fuzz_target;

fn hash(_: &[u8]) -> Sha256Digest {
    ZEROS
}

fuzz_target!(|content: &[u8]| {
    let read = Logged::read(content, hash);
    if let Ok(log) = &read {
        // There is one way to write a log.
        let written: Vec<u8> = log.records().iter().flat_map(Record::encode).collect();
        assert_eq!(written, content[..log.whole()]);
        assert_eq!(log.is_cut(), log.whole() < content.len());
        for record in log.records() {
            assert_eq!(Record::decode(record.json().as_bytes()).as_ref(), Some(record));
        }
        let _ = judge(log, &Observed { pcr: Seen::Value(ZEROS), nv: Seen::Absent }, hash);
    }
    let boot_id = "b".parse().expect("a word");
    let registers = Registers {
        resets: (1, 2),
        pcr: Some(ZEROS),
        nv: Some((0x0180_ed01, IndexState::Value(ZEROS))),
    };
    let present = Present { boot_id, pcr: 13, registers: Some(registers) };
    let opening = open(Some(&read), &present, hash);
    assert!(read.is_ok() || matches!(opening, Opening::Begin(_)), "no log goes on that is none");
});
