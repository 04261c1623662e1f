//! Whole logs in real folders: what they keep, what tampering shows, what happens when
//! they cannot be written.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use edgekeep_audit::entry::{Entry, Event, Key, LogEvent, Operation, Outcome, Shown, Who};
use edgekeep_audit::note::VerifierKey;
use edgekeep_audit::tree::{Tree, leaf_hash};
use edgekeep_audit::verify::{FaultKind, Gap, Known, Report, verify};
use edgekeep_audit::{
    CheckpointSigner, Log, MonotonicCounter, Options, SignError, SoftwareSigner, export, proof,
    read,
};
use proptest::prelude::*;
use time::OffsetDateTime;

const SEED: [u8; 32] = [7; 32];

fn signer() -> Box<SoftwareSigner> {
    Box::new(SoftwareSigner::from_seed(&SEED).unwrap())
}

/// Segments of a few entries.
fn small() -> Options {
    Options { segment_bytes: 3000, total_bytes: 9000, sign_after_entries: 7, ..Options::default() }
}

fn open(folder: &Path, options: Options) -> Log {
    Log::open(folder, options, signer(), None).unwrap()
}

fn entry(number: u32) -> Entry {
    let event = Event::Asked {
        who: Who { uid: 1000, pid: Some(number), says: None },
        what: Operation::Sign,
        key: Some(Key::new("device-id".parse().unwrap())),
        outcome: Outcome::Done,
    };
    Entry { time: OffsetDateTime::now_utc(), event }
}

fn append(log: &Log, numbers: std::ops::Range<u32>) {
    for number in numbers {
        log.reserve_within(Duration::from_secs(20)).unwrap().append(entry(number));
    }
}

fn check(folder: &Path, key: &VerifierKey) -> Report {
    verify(folder, &Known { key, checkpoint: None, counter: None }).unwrap()
}

/// A closed log of 60 entries and one about its opening, in one segment per few; nothing
/// dropped.
fn written(folder: &Path) -> VerifierKey {
    let log = open(folder, Options { total_bytes: 1 << 20, ..small() });
    for at in 0..12 {
        append(&log, at * 5..at * 5 + 5);
        log.checkpoint().unwrap();
    }
    log.key().clone()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut segments: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    segments.sort();
    segments
}

/// The records of a segment: kind, where it begins, where it ends.
fn records(bytes: &[u8]) -> Vec<(u8, usize, usize)> {
    let mut at = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut found = Vec::new();
    while at < bytes.len() {
        let end = at + 19 + usize::from(u16::from_be_bytes([bytes[at + 1], bytes[at + 2]]));
        found.push((bytes[at], at, end));
        at = end;
    }
    found
}

fn shown(folder: &Path) -> Vec<Shown> {
    let excerpt = read(folder, 0, usize::MAX, usize::MAX).unwrap();
    excerpt.entries.iter().map(|entry| serde_json::from_slice(entry).unwrap()).collect()
}

#[test]
fn what_was_appended_is_there_in_order_after_closing_and_the_log_is_intact() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("audit");
    let key = written(&folder);
    let report = check(&folder, &key);
    assert!(report.is_intact() && report.gaps.is_empty(), "{report:?}");
    assert_eq!((report.first, report.size), (0, 60));
    assert!(segments(&folder).len() > 2);
    let pids: Vec<Option<u32>> = shown(&folder).iter().map(|entry| entry.pid).collect();
    assert_eq!(pids, (0..60).map(Some).collect::<Vec<_>>());
    let log = open(&folder, small());
    assert_eq!(log.key(), &key);
    assert_eq!(log.opened().events, [LogEvent::Opened { clean: true, cut: 0 }]);
    drop(log);
    let report = check(&folder, &key);
    assert!(report.is_intact() && report.gaps.is_empty(), "{report:?}");
    assert_eq!(report.size, 61);
}

#[test]
fn a_checkpoint_covers_everything_before_it_and_proves_each_entry() {
    let temp = tempfile::tempdir().unwrap();
    let log = open(&temp.path().join("audit"), Options { total_bytes: 1 << 20, ..small() });
    append(&log, 0..40);
    let note = log.checkpoint().unwrap();
    let excerpt = read(log.folder(), 0, usize::MAX, usize::MAX).unwrap();
    let mut tree = Tree::new(excerpt.edge);
    excerpt.entries.iter().for_each(|entry| tree.append(leaf_hash(entry)));
    for (index, entry) in (0..).zip(&excerpt.entries) {
        let hashes = tree.inclusion(index, 40).unwrap();
        let text = proof::text(index, entry, &hashes, &note);
        assert_eq!(proof::check(&text, log.key()).unwrap().entry, *entry);
        let other = proof::text(index, b"{}", &hashes, &note);
        assert_eq!(proof::check(&other, log.key()), Err(proof::ProofError::NotIncluded(index)));
    }
}

#[test]
fn a_log_that_is_killed_goes_on_and_says_what_may_be_missing() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("audit");
    let key = written(&folder);
    let last = segments(&folder).pop().unwrap();
    let whole = fs::read(&last).unwrap();
    // The beginning of a record that a kill left.
    fs::write(&last, [&whole[..], b"E\x00\x50\x00\x00"].concat()).unwrap();
    let report = check(&folder, &key);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.gaps, [Gap::Unfinished(5)]);
    let log = open(&folder, small());
    assert_eq!(log.opened().events, [LogEvent::Opened { clean: false, cut: 5 }]);
    append(&log, 60..61);
    drop(log);
    let report = check(&folder, &key);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.size, &report.gaps[..]), (62, &[Gap::Unclean(60)][..]));
}

#[test]
fn rotation_keeps_the_size_bounded_and_what_is_left_provable() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("audit");
    let log = open(&folder, small());
    for at in 0..60 {
        append(&log, at * 10..at * 10 + 10);
        log.checkpoint().unwrap();
    }
    let key = log.key().clone();
    drop(log);
    let size: u64 = segments(&folder).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(size < 9000 + 2 * 6000, "{size}");
    let report = check(&folder, &key);
    assert!(report.is_intact(), "{report:?}");
    assert!(report.first > 300 && report.size == 600, "{report:?}");
    assert_eq!(report.gaps, [Gap::Dropped(report.first)]);
    assert_eq!(shown(&folder).len() as u64, report.entries());
    // Somebody drops one more.
    fs::remove_file(&segments(&folder)[0]).unwrap();
    let faults = check(&folder, &key).faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(matches!(faults[0].kind, FaultKind::Beheaded(stated) if stated == report.first));
    // The log itself goes on.
    assert_eq!(open(&folder, small()).opened().size, 600);
}

#[test]
fn an_edited_entry_is_named_even_if_its_record_is_made_to_fit() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("audit");
    let key = written(&folder);
    let path = &segments(&folder)[1];
    let mut bytes = fs::read(path).unwrap();
    let (_, at, end) =
        records(&bytes).into_iter().filter(|(kind, ..)| *kind == b'E').nth(3).unwrap();
    let index = u64::from_be_bytes(bytes[at + 3..at + 11].try_into().unwrap());
    let place = at + bytes[at..end].windows(8).position(|text| text == b"\"uid\":10").unwrap() + 6;
    bytes[place] = b'2';
    fs::write(path, &bytes).unwrap();
    let faults = check(&folder, &key).faults;
    assert_eq!((faults[0].entry, &faults[0].kind), (index, &FaultKind::Record));
    assert_eq!(faults[0].segment.as_deref(), path.file_name().unwrap().to_str());
    let check_bytes = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        &[&bytes[at..at + 11], &bytes[at + 19..end]].concat(),
    );
    bytes[at + 11..at + 19].copy_from_slice(&check_bytes.as_ref()[..8]);
    fs::write(path, &bytes).unwrap();
    let faults = check(&folder, &key).faults;
    let FaultKind::Content(covered) = faults[0].kind else { panic!("{faults:?}") };
    assert!(
        faults[0].entry <= index && index < covered && covered - faults[0].entry <= 7,
        "{faults:?}"
    );
}

/// Changes a segment, given its entries.
type Change<'a> = &'a dyn Fn(&mut Vec<u8>, &[(u8, usize, usize)]);

/// All that is done here makes records that fit by themselves.
#[test]
fn removed_added_and_swapped_entries_and_missing_segments_are_noticed() {
    let temp = tempfile::tempdir().unwrap();
    let original = temp.path().join("audit");
    let key = written(&original);
    let count = segments(&original).len();
    let mut round = 0;
    let mut tampered = |change: Change<'_>| {
        for segment in 0..count {
            round += 1;
            let folder = temp.path().join(format!("tampered-{round}"));
            copy(&original, &folder);
            let path = &segments(&folder)[segment];
            let mut bytes = fs::read(path).unwrap();
            let entries: Vec<_> =
                records(&bytes).into_iter().filter(|(kind, ..)| *kind == b'E').collect();
            if entries.len() < 2 {
                continue;
            }
            change(&mut bytes, &entries);
            fs::write(path, &bytes).unwrap();
            let report = check(&folder, &key);
            assert!(!report.is_intact(), "segment {segment}");
        }
    };
    // Removed, in the middle and at the end.
    tampered(&|bytes, entries| drop(bytes.drain(entries[0].1..entries[0].2)));
    tampered(&|bytes, entries| drop(bytes.drain(entries[entries.len() - 1].1..)));
    // Twice.
    tampered(&|bytes, entries| {
        let record = bytes[entries[1].1..entries[1].2].to_vec();
        bytes.splice(entries[1].2..entries[1].2, record);
    });
    // Swapped.
    tampered(&|bytes, entries| {
        let first = bytes[entries[0].1..entries[0].2].to_vec();
        let second = bytes[entries[1].1..entries[1].2].to_vec();
        bytes.splice(entries[0].1..entries[1].2, [second, first].concat());
    });
    for segment in 0..count {
        let folder = temp.path().join(format!("missing-{segment}"));
        copy(&original, &folder);
        let path = &segments(&folder)[segment];
        // One that was just begun has nothing that could be missing.
        let is_empty = records(&fs::read(path).unwrap()).iter().all(|(kind, ..)| *kind != b'E');
        fs::remove_file(path).unwrap();
        assert!(is_empty || !check(&folder, &key).is_intact(), "segment {segment}");
    }
    let folder = temp.path().join("no-checkpoint");
    copy(&original, &folder);
    fs::remove_file(folder.join("checkpoint")).unwrap();
    assert_eq!(check(&folder, &key).faults[0].kind, FaultKind::NoCheckpoint);
}

#[test]
fn a_log_that_was_removed_as_a_whole_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("audit");
    written(&audit);
    fs::remove_dir_all(&audit).unwrap();
    let log = open(&audit, Options { expected: true, ..small() });
    log.checkpoint().unwrap();
    let key = log.key().clone();
    drop(log);
    let report = check(&audit, &key);
    assert_eq!(report.alarms(&[]).collect::<Vec<_>>(), [&Gap::Replaces(0, None)], "{report:?}");
    // Once.
    drop(open(&audit, Options { expected: true, ..small() }));
    assert_eq!(check(&audit, &key).alarms(&[0]).count(), 0);
}

#[test]
fn a_log_of_another_key_or_name_is_not_accepted() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("audit");
    let key = written(&folder);
    let other = SoftwareSigner::from_seed(&[8; 32]).unwrap().public_key();
    for key in [
        VerifierKey::new(key.name(), other).unwrap(),
        VerifierKey::new("edgekeep/audit/0", *key.public_key()).unwrap(),
    ] {
        let faults = check(&folder, &key).faults;
        assert!(matches!(faults[0].kind, FaultKind::Checkpoint(_)), "{faults:?}");
    }
}

/// The log of which copies are flipped.
static FLIPPED: LazyLock<(tempfile::TempDir, VerifierKey)> = LazyLock::new(|| {
    let temp = tempfile::tempdir().unwrap();
    let key = written(&temp.path().join("audit"));
    (temp, key)
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn any_flipped_bit_is_noticed(segment in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        let (original, key) = &*FLIPPED;
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("audit");
        copy(&original.path().join("audit"), &folder);
        let mut files = segments(&folder);
        files.push(folder.join("checkpoint"));
        let path = segment.get(&files);
        let mut bytes = fs::read(path).unwrap();
        let at = at.index(bytes.len() * 8);
        bytes[at / 8] ^= 1 << (at % 8);
        fs::write(path, &bytes).unwrap();
        let report = check(&folder, key);
        // A length at the very end may look like a record that is not finished; that is
        // said as well.
        let said = report.gaps.iter().any(|gap| matches!(gap, Gap::Unfinished(_)));
        prop_assert!(!report.is_intact() || said, "{:?}", report);
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_truncation_of_the_newest_part_is_noticed(cut in any::<prop::sample::Index>()) {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("audit");
        let log = open(&folder, Options { segment_bytes: 1 << 20, ..small() });
        append(&log, 0..25);
        let key = log.key().clone();
        drop(log);
        let path = &segments(&folder)[0];
        let bytes = fs::read(path).unwrap();
        let entries: Vec<_> = records(&bytes).into_iter().filter(|(kind, ..)| *kind == b'E').collect();
        let cut = cut.index(entries[24].2);
        fs::write(path, &bytes[..cut]).unwrap();
        let report = check(&folder, &key);
        prop_assert!(!report.is_intact(), "{:?}", report);
        // And the daemon does not go on with it as if nothing had been.
        let log = open(&folder, small());
        let is_replaced = matches!(log.opened().events[..], [LogEvent::Replaces { .. }]);
        prop_assert!(is_replaced, "{:?}", log.opened());
        prop_assert_ne!(log.key().name(), key.name());
        drop(log);
        prop_assert!(folder.with_extension("damaged-1").exists());
    }
}

/// A counter as hardware has one.
struct Hardware(Arc<AtomicU64>);

impl MonotonicCounter for Hardware {
    fn read(&mut self) -> io::Result<Option<u64>> {
        Ok(Some(self.0.load(Ordering::SeqCst)))
    }

    fn make(&mut self) -> io::Result<u64> {
        self.increment()
    }

    fn increment(&mut self) -> io::Result<u64> {
        Ok(self.0.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

#[test]
fn a_log_put_back_to_an_earlier_state_is_behind_its_counter_and_behind_a_known_checkpoint() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("audit");
    let counter = Arc::new(AtomicU64::new(41));
    let options = Options { count_after: Duration::ZERO, ..small() };
    let reopen = || {
        Log::open(
            &folder,
            options.clone(),
            signer(),
            Some(Box::new(Hardware(Arc::clone(&counter)))),
        )
        .unwrap()
    };
    let log = reopen();
    // The counter was used before: whatever log there was is gone.
    append(&log, 0..5);
    let key = log.key().clone();
    drop(log);
    let earlier = temp.path().join("earlier");
    copy(&folder, &earlier);
    let log = reopen();
    append(&log, 5..10);
    let later = log.checkpoint().unwrap();
    drop(log);
    let hardware = counter.load(Ordering::SeqCst);
    let known = Known { key: &key, checkpoint: Some(&later), counter: Some(hardware) };
    let report = verify(&folder, &known).unwrap();
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.gaps, [Gap::BehindCounter(0)]);

    fs::remove_dir_all(&folder).unwrap();
    copy(&earlier, &folder);
    assert!(check(&folder, &key).is_intact(), "by itself an old state is consistent");
    let kinds: Vec<FaultKind> =
        verify(&folder, &known).unwrap().faults.into_iter().map(|fault| fault.kind).collect();
    assert!(
        matches!(kinds[..], [FaultKind::Truncated(_), FaultKind::Counter(Some(_), _)]),
        "{kinds:?}"
    );
    // The daemon notices too, and what it writes says so for ever.
    drop(reopen());
    let gaps = check(&folder, &key).gaps;
    assert!(gaps.iter().any(|gap| matches!(gap, Gap::BehindCounter(at) if *at > 0)), "{gaps:?}");
}

#[test]
fn a_log_that_branched_off_is_no_continuation_of_a_known_checkpoint() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("audit");
    let log = open(&folder, small());
    append(&log, 0..5);
    let key = log.key().clone();
    drop(log);
    let branch = temp.path().join("branch");
    copy(&folder, &branch);
    let log = open(&folder, small());
    append(&log, 5..6);
    let known = log.checkpoint().unwrap();
    drop(log);
    let log = open(&branch, small());
    append(&log, 77..90);
    drop(log);
    let report =
        verify(&branch, &Known { key: &key, checkpoint: Some(&known), counter: None }).unwrap();
    assert!(matches!(report.faults[0].kind, FaultKind::OtherHistory(_)), "{report:?}");
}

/// Signs only while it may.
struct Switched(SoftwareSigner, Arc<AtomicBool>);

impl CheckpointSigner for Switched {
    fn public_key(&self) -> [u8; 32] {
        self.0.public_key()
    }

    fn sign(&self, text: &[u8]) -> Result<[u8; 64], SignError> {
        if self.1.load(Ordering::SeqCst) {
            self.0.sign(text)
        } else {
            Err(SignError("switched off".into()))
        }
    }
}

#[test]
fn a_log_that_cannot_go_on_refuses_when_its_queue_is_full_and_loses_nothing_when_it_can_again() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("audit");
    let on = Arc::new(AtomicBool::new(true));
    let options = Options { queue: 10, sign_after_entries: 1, ..Options::default() };
    let signer = Switched(*signer(), Arc::clone(&on));
    let log = Log::open(&folder, options, Box::new(signer), None).unwrap();
    on.store(false, Ordering::SeqCst);
    let mut accepted = 0;
    // Places become free as long as the log does not know yet that it cannot be signed.
    while let Ok(permit) = log.reserve_within(Duration::from_secs(20)) {
        permit.append(entry(accepted));
        accepted += 1;
        assert!(accepted <= 10, "the queue has no bound");
    }
    log.refused(entry(1000));
    log.refused(entry(1001));
    assert!(log.checkpoint().unwrap_err().0.contains("switched off"));
    on.store(true, Ordering::SeqCst);
    log.checkpoint().unwrap();
    log.reserve_within(Duration::from_secs(20)).unwrap().append(entry(accepted));
    log.checkpoint().unwrap();
    let key = log.key().clone();
    drop(log);
    let report = check(&folder, &key);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.gaps.len(), 1);
    assert!(matches!(report.gaps[0], Gap::Lost(_, 2)), "{report:?}");
    let pids: Vec<u32> = shown(&folder).iter().filter_map(|entry| entry.pid).collect();
    assert_eq!(pids, (0..=accepted).collect::<Vec<_>>());
}

#[test]
fn a_place_that_is_not_used_is_free_again() {
    let temp = tempfile::tempdir().unwrap();
    let log = open(&temp.path().join("audit"), Options { queue: 1, ..Options::default() });
    let permit = log.reserve().unwrap();
    assert!(log.reserve().is_err());
    drop(permit);
    assert!(log.reserve().is_ok());
}

#[test]
fn an_exported_log_is_verified_like_the_original() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("audit");
    let log = open(&folder, small());
    for at in 0..30 {
        append(&log, at * 10..at * 10 + 10);
        log.checkpoint().unwrap();
    }
    let note = log.checkpoint().unwrap();
    let first = read(&folder, 0, 10, usize::MAX).unwrap();
    let mut entries = first.entries;
    loop {
        let from = first.from + entries.len() as u64;
        let more = read(&folder, from, 10, usize::MAX).unwrap();
        assert_eq!(more.from, from);
        if more.entries.is_empty() {
            break;
        }
        entries.extend(more.entries);
    }
    let copy = temp.path().join("copy");
    export(&copy, log.key(), &first.edge, &first.base, &entries, &note).unwrap();
    let report = check(&copy, log.key());
    assert!(
        report.is_intact() && report.size == 300 && report.first == first.edge.size(),
        "{report:?}"
    );
}

/// Measures the time that the side of the keys spends on an entry, while the other side
/// writes. The limit is far above what is measured, since tests run beside each other.
#[test]
fn handing_over_an_entry_does_not_wait_for_the_disk() {
    let temp = tempfile::tempdir().unwrap();
    let log = open(&temp.path().join("audit"), Options::default());
    let mut times = Vec::new();
    for number in 0..3000 {
        let start = Instant::now();
        let permit = log.reserve().unwrap();
        permit.append(entry(number));
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[1500] < Duration::from_micros(50), "{:?}", times[1500]);
}

/// Variable with the folder where the test below finds its small file system.
const SMALL_DISK: &str = "EDGEKEEP_TEST_SMALL_DISK";

/// Runs a test of this file on a file system of its own of so many bytes. `false` if that
/// is not possible here.
fn on_small_disk(name: &str, bytes: u32) -> bool {
    let temp = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size="$2" none "$1" && shift 2 && exec "$@""#;
    let inside = |command: &[&str]| {
        let folder = temp.path().to_str().unwrap();
        let bytes = bytes.to_string();
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--mount", "sh", "-c", script, "sh", folder, &bytes]).args(command);
        unshare.env(SMALL_DISK, folder).output()
    };
    if !inside(&["true"]).is_ok_and(|output| output.status.success()) {
        eprintln!(
            "skipped: no mount namespace can be made here (run as root, with unshare installed)"
        );
        return false;
    }
    let test = std::env::current_exe().unwrap();
    let output =
        inside(&[test.to_str().unwrap(), "--exact", name, "--ignored", "--nocapture"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

#[test]
fn a_full_disk_takes_the_oldest_part_of_the_log_and_only_then_the_keys() {
    on_small_disk("full_disk", 1 << 20);
}

#[test]
fn a_damaged_segment_on_a_full_disk_ends_in_refusals_and_not_in_a_loop() {
    on_small_disk("full_disk_with_a_damaged_segment", 1 << 20);
}

#[test]
#[ignore = "run by another test, on a small file system"]
fn full_disk_with_a_damaged_segment() {
    let disk = PathBuf::from(std::env::var_os(SMALL_DISK).unwrap());
    let folder = disk.join("audit");
    let options = Options {
        queue: 64,
        segment_bytes: 64 << 10,
        total_bytes: 1 << 30,
        reserve_bytes: 4 << 10,
        sync_after: Duration::ZERO,
        ..Options::default()
    };
    let log = Log::open(&folder, options, signer(), None).unwrap();
    append(&log, 0..2000);
    log.checkpoint().unwrap();
    fs::write(&segments(&folder)[1], b"not a segment").unwrap();
    // While it refuses, the log says so at once; a loop would let this wait to its end.
    let begin = Instant::now();
    for number in 2000.. {
        fill(&disk, number);
        match log.reserve_within(Duration::from_secs(30)) {
            Ok(permit) => permit.append(entry(number)),
            Err(_) => break,
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert!(log.checkpoint().is_err());
    assert!(segments(&folder).len() >= 4, "what shows the damage stays");
}

/// Fills what is free.
fn fill(folder: &Path, number: u32) {
    use std::io::Write as _;
    let mut file = fs::File::create(folder.join(format!("filler-{number}"))).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

#[test]
#[ignore = "run by another test, on a small file system"]
fn full_disk() {
    let disk = PathBuf::from(std::env::var_os(SMALL_DISK).unwrap());
    let folder = disk.join("audit");
    let options = Options {
        queue: 64,
        segment_bytes: 64 << 10,
        total_bytes: 1 << 30,
        reserve_bytes: 64 << 10,
        sign_after_entries: 50,
        sync_after: Duration::ZERO,
        ..Options::default()
    };
    let log = Log::open(&folder, options, signer(), None).unwrap();
    append(&log, 0..2000);
    log.checkpoint().unwrap();
    let before = segments(&folder).len();
    assert!(before >= 4, "{before}");
    fill(&disk, 0);
    // As much as the room that is kept for this, several times over.
    append(&log, 2000..3000);
    log.checkpoint().unwrap();
    let key = log.key().clone();
    let report = check(&folder, &key);
    assert!(report.is_intact(), "{report:?}");
    assert!(
        report.first > 0 && report.gaps.iter().any(|gap| matches!(gap, Gap::DiskFull(_))),
        "{report:?}"
    );
    // Whoever fills the disk takes what the log gives up, until it has nothing more to
    // give.
    let mut number = 3000;
    let refused = loop {
        fill(&disk, number);
        match log.reserve_within(Duration::from_secs(20)) {
            Ok(permit) => permit.append(entry(number)),
            Err(busy) => break busy,
        }
        number += 1;
        assert!(number < 20_000, "it has no end");
    };
    assert!(refused.to_string().contains("is the disk full?"), "{refused}");
    assert!(log.checkpoint().is_err());
    // And when there is room again it goes on, with everything that it had accepted.
    for file in fs::read_dir(&disk).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    log.checkpoint().unwrap();
    append(&log, number..number + 1);
    log.checkpoint().unwrap();
    drop(log);
    let report = check(&folder, &key);
    assert!(report.is_intact(), "{report:?}");
    let pids: Vec<u32> = shown(&folder).iter().filter_map(|entry| entry.pid).collect();
    let first = pids[0];
    assert_eq!(pids, (first..=number).collect::<Vec<_>>(), "nothing is missing in between");
}
