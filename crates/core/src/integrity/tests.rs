//! Every log but the whole one is found.

use proptest::prelude::*;

use super::*;
use crate::digest::Sha256Digest;

fn hash(bytes: &[u8]) -> Sha256Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Sha256Digest::new(digest.as_ref().try_into().unwrap())
}

fn word(text: &str) -> Word {
    text.parse().unwrap()
}

fn time() -> Word {
    word("2026-11-29T16:00:00Z")
}

fn start(boot_id: &str) -> LogStart {
    LogStart {
        log: word("1"),
        reason: Reason::Boot,
        boot_id: word(boot_id),
        previous: None,
        pcr_base: Some(Sha256Digest::new([9; 32])),
        nv_index: Some(word("0x0180ed01")),
        nv_name: Some(Sha256Digest::new([8; 32])),
        nv_base: Some(ZEROS),
        resets: Some(word("4")),
        restarts: Some(word("0")),
    }
}

fn module(number: u8) -> Event {
    Event::ModuleStart {
        module: word(&format!("m{number}")),
        image: Some(Sha256Digest::new([number; 32])),
        executable: None,
        source: Source::Uid(992),
    }
}

fn log_of(boot_id: &str, numbers: &[u8]) -> Logged {
    let mut log = Logged::begin(13, time(), start(boot_id), hash);
    for number in numbers {
        let record = log.next(time(), module(*number), hash).unwrap();
        log.push(record);
    }
    log
}

fn bytes(log: &Logged) -> Vec<u8> {
    log.records().iter().flat_map(Record::encode).collect()
}

/// The registers after the whole log.
fn registers(log: &Logged) -> Observed {
    let verdict = judge(log, &Observed { pcr: Seen::Unread, nv: Seen::Unread }, hash);
    Observed {
        pcr: Seen::Value(verdict.pcr_replayed.unwrap()),
        nv: Seen::Value(verdict.nv_replayed.unwrap()),
    }
}

/// True if these bytes pass for the whole log behind `observed`.
fn passes(bytes: &[u8], observed: &Observed) -> bool {
    Logged::read(bytes, hash).is_ok_and(|log| !log.is_cut() && judge(&log, observed, hash).holds())
}

fn present(log: &Logged, boot_id: &str, resets: (u32, u32)) -> Present {
    let observed = registers(log);
    let (Seen::Value(pcr), Seen::Value(nv)) = (observed.pcr, observed.nv) else { unreachable!() };
    let nv = Some((0x0180_ed01, IndexState::Value(nv)));
    Present {
        boot_id: word(boot_id),
        pcr: 13,
        registers: Some(Registers { resets, pcr: Some(pcr), nv }),
    }
}

fn opened(log: &Logged, present: &Present) -> Opening {
    open(Some(&Ok(log.clone())), present, hash)
}

proptest! {
    #[test]
    fn a_log_reads_back_and_its_replay_is_what_the_registers_hold(numbers in prop::collection::vec(any::<u8>(), 0..12)) {
        let log = log_of("b", &numbers);
        let written = bytes(&log);
        prop_assert_eq!(Logged::read(&written, hash).unwrap(), log.clone());
        prop_assert!(passes(&written, &registers(&log)));
        let all = numbers.len() + 1;
        prop_assert_eq!(opened(&log, &present(&log, "b", (4, 0))), Opening::Continue { pcr: all, nv: all });
    }

    /// Wherever a log is cut, what is left is no whole log. Between records the registers
    /// tell; within one the line itself does.
    #[test]
    fn a_cut_log_is_found(numbers in prop::collection::vec(any::<u8>(), 1..8), at: prop::sample::Index) {
        let log = log_of("b", &numbers);
        let written = bytes(&log);
        let cut = &written[..at.index(written.len())];
        prop_assert!(!passes(cut, &registers(&log)));
    }

    #[test]
    fn removed_swapped_repeated_and_foreign_lines_are_found_also_with_numbers_put_right(
        numbers in prop::collection::hash_set(any::<u8>(), 3..8),
        from: prop::sample::Index,
        to: prop::sample::Index,
        change in 0..4,
        renumber: bool,
    ) {
        let numbers: Vec<u8> = numbers.into_iter().collect();
        let log = log_of("b", &numbers);
        let mut records = log.records().to_vec();
        let (from, to) = (1 + from.index(records.len() - 1), 1 + to.index(records.len() - 1));
        match change {
            0 => drop(records.remove(from)),
            1 if from == to => return Ok(()),
            1 => records.swap(from, to),
            2 => records.insert(to, records[from].clone()),
            _ => records.insert(to, log_of("other", &[7]).records()[1].clone()),
        }
        if renumber {
            for (at, record) in records.iter_mut().enumerate() {
                record.number = at as u64;
            }
        }
        let written: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        prop_assert!(!passes(&written, &registers(&log)));
    }

    #[test]
    fn a_changed_byte_is_found(numbers in prop::collection::vec(any::<u8>(), 0..4), at: prop::sample::Index, to: u8) {
        let log = log_of("b", &numbers);
        let mut written = bytes(&log);
        let at = at.index(written.len());
        prop_assume!(written[at] != to);
        written[at] = to;
        prop_assert!(!passes(&written, &registers(&log)));
    }

    #[test]
    fn a_log_of_another_device_or_boot_is_found(numbers in prop::collection::vec(any::<u8>(), 0..6)) {
        let (ours, theirs) = (log_of("b", &numbers), log_of("other", &numbers));
        prop_assert!(!passes(&bytes(&theirs), &registers(&ours)));
        prop_assert_eq!(opened(&theirs, &present(&ours, "other", (4, 0))), Opening::Begin(Reason::Unlike));
    }

    /// A power cut leaves the log ahead of one register or of both, with half a line at
    /// the end: the next start goes on where each register is.
    #[test]
    fn a_power_cut_at_any_point_is_gone_on_from(
        numbers in prop::collection::vec(any::<u8>(), 1..6),
        in_pcr: prop::sample::Index,
        in_nv: prop::sample::Index,
        half in 0..100usize,
    ) {
        let log = log_of("b", &numbers);
        let all = log.records().len();
        let (pcr, nv) = (1 + in_pcr.index(all), 1 + in_nv.index(all));
        let prefix = |count: usize| log_of("b", &numbers[..count - 1]);
        let Seen::Value(pcr_value) = registers(&prefix(pcr)).pcr else { unreachable!() };
        let Seen::Value(nv_value) = registers(&prefix(nv)).nv else { unreachable!() };
        let mut written = bytes(&log);
        let next = log.next(time(), module(1), hash).unwrap().encode();
        written.extend(&next[..half.min(next.len() - 1)]);
        let read = Logged::read(&written, hash).unwrap();
        prop_assert_eq!(read.whole(), bytes(&log).len());
        let mut now = present(&log, "b", (4, 0));
        now.registers = Some(Registers {
            resets: (4, 0),
            pcr: Some(pcr_value),
            nv: Some((0x0180_ed01, IndexState::Value(nv_value))),
        });
        prop_assert_eq!(opened(&read, &now), Opening::Continue { pcr, nv });
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Logged::read(&bytes, hash);
        let mut line = vec![Record::BEGIN];
        line.extend(bytes);
        line.push(b'\n');
        prop_assert!(Logged::read(&line, hash).is_err());
    }

    #[test]
    fn cleaned_words_are_words(text in ".*") {
        let cleaned = Word::cleaned(&text);
        prop_assert_eq!(cleaned.as_str().parse::<Word>(), Ok(cleaned.clone()));
    }
}

#[test]
fn faults_have_their_own_names() {
    let log = log_of("b", &[1, 2]);
    let fault = |change: &dyn Fn(&mut Vec<Record>)| {
        let mut records = log.records().to_vec();
        change(&mut records);
        let written: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        Logged::read(&written, hash).unwrap_err()
    };
    let of = |at, fault| LogError { at, fault };
    assert_eq!(fault(&|it| drop(it.remove(0))), of(0, LogFault::NoStart));
    assert_eq!(fault(&|it| it.clear()), of(0, LogFault::NoStart));
    assert_eq!(fault(&|it| drop(it.remove(1))), of(1, LogFault::Number));
    assert_eq!(fault(&|it| it.swap(1, 2)), of(1, LogFault::Number));
    assert_eq!(fault(&|it| it[2].pcr = 14), of(2, LogFault::Register));
    assert_eq!(fault(&|it| it[1].digest = ZEROS), of(1, LogFault::Digest));
    assert_eq!(
        fault(&|it| it[2] = Record { number: 2, ..it[0].clone() }),
        of(2, LogFault::SecondStart)
    );
    let written = bytes(&log);
    let spaced = String::from_utf8(written).unwrap().replacen("\"pcr\":", "\"pcr\": ", 1);
    assert_eq!(Logged::read(spaced.as_bytes(), hash).unwrap_err(), of(0, LogFault::NotCanonical));
    let unknown = spaced.replace("\"pcr\": ", "\"pcr\":").replacen(
        "\"boot_id\"",
        "\"also\":\"x\",\"boot_id\"",
        1,
    );
    assert_eq!(Logged::read(unknown.as_bytes(), hash).unwrap_err(), of(0, LogFault::NotCanonical));
}

#[test]
fn each_way_in_which_registers_and_log_part_has_its_reason() {
    let log = log_of("b", &[1, 2, 3]);
    let good = present(&log, "b", (4, 0));
    let with = |change: &dyn Fn(&mut Registers)| {
        let mut now = good.clone();
        let mut registers = now.registers.unwrap();
        change(&mut registers);
        now.registers = Some(registers);
        now
    };
    let nv = |state| move |it: &mut Registers| it.nv = Some((0x0180_ed01, state));
    let begin = Opening::Begin;
    assert_eq!(opened(&log, &with(&nv(IndexState::Absent))), begin(Reason::IndexGone));
    assert_eq!(opened(&log, &with(&nv(IndexState::Unwritten))), begin(Reason::IndexRemade));
    assert_eq!(opened(&log, &with(&nv(IndexState::Foreign))), begin(Reason::IndexRemade));
    assert_eq!(opened(&log, &with(&|it| it.pcr = Some(ZEROS))), begin(Reason::Unlike));
    assert_eq!(opened(&log, &with(&|it| it.nv = None)), begin(Reason::Settings));
    // The power was off: all registers are new, and so is the boot.
    let off = |it: &mut Registers| {
        *it = Registers {
            resets: (5, 0),
            pcr: Some(ZEROS),
            nv: Some((0x0180_ed01, IndexState::Unwritten)),
        };
    };
    let mut now = with(&off);
    assert_eq!(opened(&log, &now), begin(Reason::TpmReset));
    now.boot_id = word("next");
    assert_eq!(opened(&log, &now), begin(Reason::Boot));
    // Without a TPM the kernel's id alone tells of a boot.
    now.registers = None;
    assert_eq!(opened(&log, &now), begin(Reason::Boot));
    now.boot_id = word("b");
    assert_eq!(opened(&log, &now), begin(Reason::TpmGone));
    let unbound = LogStart { pcr_base: None, nv_base: None, nv_index: None, ..start("b") };
    let unbound = Logged::begin(13, time(), unbound, hash);
    assert_eq!(opened(&unbound, &now), Opening::Continue { pcr: 1, nv: 1 });
    assert_eq!(opened(&unbound, &good), begin(Reason::TpmCame));
    let damaged = Err(LogError { at: 0, fault: LogFault::Number });
    assert_eq!(open(Some(&damaged), &good, hash), begin(Reason::Damaged));
    assert_eq!(open(None, &good, hash), begin(Reason::LogLost));
    assert_eq!(open(None, &with(&nv(IndexState::Absent)), hash), begin(Reason::First));
}

#[test]
fn what_was_said_already_is_not_said_again_until_something_else_was() {
    let mut log = log_of("b", &[1, 2]);
    assert!(log.says(&module(1)) && log.says(&module(2)) && !log.says(&module(3)));
    let other = Event::ModuleStart {
        module: word("m1"),
        image: None,
        executable: Some(ZEROS),
        source: Source::Uid(992),
    };
    let record = log.next(time(), other.clone(), hash).unwrap();
    log.push(record);
    assert!(log.says(&other) && !log.says(&module(1)));
}

#[test]
fn a_full_log_takes_no_more() {
    let mut log = log_of("b", &[]);
    while let Some(record) = log.next(time(), module(1), hash) {
        log.push(record);
    }
    assert_eq!(log.records().len(), RECORDS_LIMIT);
    assert!(log.whole() <= SIZE_LIMIT);
    assert!(Logged::read(&bytes(&log), hash).is_ok());
}

/// A stranger's rule for the bytes that are hashed: members by name, no blanks. What
/// Python's `json.dumps(content, sort_keys=True, separators=(",", ":"))` gives.
#[test]
fn the_form_of_a_record_is_the_one_that_is_documented() {
    let log = log_of("b", &[1]);
    let zeros = "00".repeat(32);
    let image = "01".repeat(32);
    let content = format!(
        "{{\"event\":\"module-start\",\"image\":\"sha256:{image}\",\"module\":\"m1\",\"source\":\"uid:992\",\
         \"time\":\"2026-11-29T16:00:00Z\"}}"
    );
    assert_eq!(log.records()[1].content.canonical(), content);
    let json = log.records()[1].json();
    assert!(json.starts_with(
        "{\"recnum\":1,\"pcr\":13,\"digests\":[{\"hashAlg\":\"sha256\",\"digest\":\""
    ));
    assert!(json.ends_with(&format!("\"content_type\":\"edgekeep\",\"content\":{content}}}")));
    assert!(log.records()[0].json().contains(&format!("\"nv_base\":\"sha256:{zeros}\"")));
}

/// Else the fuzzer begins far from what is a log.
#[test]
fn the_seeds_of_the_fuzz_target_are_logs_or_what_their_names_say() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/integrity");
    let read = |name: &str| {
        let seed = std::fs::read(format!("{folder}/{name}")).expect("a seed");
        Logged::read(&seed, |_| ZEROS).map(|log| (log.records().len(), log.is_cut()))
    };
    assert_eq!(read("whole"), Ok((6, false)));
    assert_eq!(read("software"), Ok((1, false)));
    assert_eq!(read("cut"), Ok((5, true)));
    assert_eq!(read("swapped"), Err(LogError { at: 1, fault: LogFault::Number }));
    assert_eq!(read("two_starts"), Err(LogError { at: 1, fault: LogFault::SecondStart }));
}
