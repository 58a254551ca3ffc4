//! The log against a model of it, through crashes; and what damage is refused.

use super::*;
use crate::disk::{CrashStyle, MemoryDisk};
use proptest::prelude::*;
use raft::Storage;
use raft::eraftpb;
use std::collections::BTreeMap;

fn config() -> LogConfig {
    LogConfig { member: MemberId::new(1).unwrap(), new_disk: DiskId::from_random(1), segment_bytes: 600 }
}

fn open(disk: &MemoryDisk) -> Result<Log<MemoryDisk>, LogError> {
    Log::open(disk.clone(), config())
}

fn entry(index: u64, term: u64, size: usize) -> Entry {
    Entry { index, term, data: vec![b'x'; size].into(), ..Entry::default() }
}

fn hard(term: u64, vote: u64, commit: u64) -> eraftpb::HardState {
    eraftpb::HardState { term, vote, commit, ..eraftpb::HardState::default() }
}

/// What a log holds: terms by index, and the hard state.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    terms: BTreeMap<u64, u64>,
    term: u64,
    vote: u64,
    commit: u64,
}

fn held(log: &Log<MemoryDisk>) -> Model {
    let first = log.first_index().unwrap();
    let last = log.last_index().unwrap();
    let terms = (first..=last).map(|index| (index, log.term(index).unwrap())).collect();
    let state = log.initial_state().unwrap().hard_state;
    Model { terms, term: state.term, vote: state.vote, commit: state.commit }
}

#[derive(Debug, Clone)]
enum Step {
    /// Appends entries, `back` of them replacing the uncommitted end, in a new term.
    Append { back: u64, count: u64, size: usize },
    /// Raises the commit index.
    Commit(u64),
    /// Saves a snapshot at the commit index.
    Snapshot,
    /// Installs a snapshot that is `ahead` of the end.
    Install { ahead: u64 },
    /// Writes something that is never synced, then loses power.
    Crash { unsynced: u64, seed: u64, lose: bool },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u64, 1..5_u64, 0..300_usize).prop_map(|(back, count, size)| Step::Append { back, count, size }),
        3 => (0..6_u64).prop_map(Step::Commit),
        1 => Just(Step::Snapshot),
        1 => (1..5_u64).prop_map(|ahead| Step::Install { ahead }),
        2 => (0..4_u64, any::<u64>(), any::<bool>())
            .prop_map(|(unsynced, seed, lose)| Step::Crash { unsynced, seed, lose }),
    ]
}

fn append(log: &mut Log<MemoryDisk>, model: &mut Model, from: u64, count: u64, size: usize) {
    model.term += 1;
    model.terms.split_off(&from);
    let entries = (from..from + count).map(|index| entry(index, model.term, size)).collect();
    model.terms.extend((from..from + count).map(|index| (index, model.term)));
    log.persist(entries, Some(&hard(model.term, model.vote, model.commit)), true).unwrap();
}

fn take_step(disk: &MemoryDisk, log: &mut Log<MemoryDisk>, model: &mut Model, step: &Step) {
    let last = log.last_index().unwrap();
    match *step {
        Step::Append { back, count, size } => {
            let from = (last + 1).saturating_sub(back).max(model.commit + 1);
            append(log, model, from, count, size);
        }
        Step::Commit(by) => {
            model.commit = last.min(model.commit + by);
            model.vote = by;
            log.persist(Vec::new(), Some(&hard(model.term, model.vote, model.commit)), true).unwrap();
        }
        Step::Snapshot => {
            if log.snapshot().is_some_and(|snapshot| snapshot.index < model.commit) {
                log.keep_snapshot(model.commit, log.term(model.commit).unwrap(), vec![7; 100]).unwrap();
                model.terms = model.terms.split_off(&log.first_index().unwrap());
            }
        }
        Step::Install { ahead } => {
            let (index, term) = (last + ahead, model.term + 1);
            let membership = Membership { voters: vec![1], ..Membership::default() };
            let snapshot = Snapshot { index, term, membership, data: Arc::new(vec![9; 50]) };
            log.install_snapshot(snapshot).unwrap();
            *model = Model { terms: BTreeMap::new(), term, commit: index, vote: model.vote };
        }
        Step::Crash { unsynced, seed, lose } => {
            let entries = (last + 1..=last + unsynced).map(|index| entry(index, model.term, 700)).collect();
            log.persist(entries, None, false).unwrap();
            disk.crash(if lose { CrashStyle::LoseAll } else { CrashStyle::Tear { seed } });
            *log = open(disk).unwrap();
            check_after_crash(log, model, unsynced);
        }
    }
}

/// All that was synced is there; of the rest a prefix may be.
fn check_after_crash(log: &Log<MemoryDisk>, model: &mut Model, unsynced: u64) {
    let found = held(log);
    let (first, end) =
        (log.first_index().unwrap(), model.terms.keys().next_back().copied().unwrap_or(model.commit));
    assert!(first <= model.commit + 1);
    assert_eq!((found.term, found.vote, found.commit), (model.term, model.vote, model.commit));
    for (index, term) in model.terms.range(first..) {
        assert_eq!(found.terms.get(index), Some(term), "entry {index}");
    }
    assert!(found.terms.keys().next_back().copied().unwrap_or(end) <= end + unsynced);
    model.terms = found.terms;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn what_was_synced_survives_every_crash(steps in proptest::collection::vec(any_step(), 1..40)) {
        let disk = MemoryDisk::new();
        let mut log = open(&disk).unwrap();
        log.bootstrap(vec![1, 2, 3]).unwrap();
        let mut model = Model { term: 1, commit: 1, ..Model::default() };
        for step in &steps {
            take_step(&disk, &mut log, &mut model, step);
            prop_assert_eq!(held(&log), model.clone());
        }
    }
}

/// A log with several segments, all synced.
fn filled() -> MemoryDisk {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    log.bootstrap(vec![1]).unwrap();
    for index in 2..12 {
        log.persist(vec![entry(index, 1, 150)], Some(&hard(1, 1, index - 1)), true).unwrap();
    }
    disk
}

fn segments(disk: &MemoryDisk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| name.starts_with("log-")).collect()
}

fn flip(disk: &MemoryDisk, name: &str, at: usize) {
    let mut content = disk.content(name).unwrap();
    content[at] ^= 0x10;
    disk.set_content(name, content);
}

#[test]
fn damage_in_the_middle_is_refused_with_file_and_offset() {
    let disk = filled();
    let names = segments(&disk);
    assert!(names.len() > 2, "{names:?}");
    flip(&disk, &names[0], SEGMENT_HEADER + 30);
    let error = open(&disk).unwrap_err().to_string();
    assert!(
        error.contains(&names[0]) && error.contains("offset 24") && error.contains("add a new one"),
        "{error}"
    );
}

#[test]
fn damage_of_a_synced_record_in_the_last_segment_is_refused() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    log.bootstrap(vec![1]).unwrap();
    log.persist(vec![entry(2, 1, 10)], None, true).unwrap();
    let offset = usize::try_from(log.writer.length).unwrap();
    log.persist(vec![entry(3, 1, 10)], None, true).unwrap();
    log.persist(vec![entry(4, 1, 10)], None, true).unwrap();
    let name = segments(&disk).pop().unwrap();
    flip(&disk, &name, offset + 25);
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, LogError::Damaged { offset: at, .. } if at == offset as u64), "{error}");
}

#[test]
fn a_missing_segment_is_refused() {
    let disk = filled();
    let names = segments(&disk);
    disk.clone().remove(&names[1]).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, LogError::Gap { from: 2, .. }), "{error}");
    assert_eq!(segments(&disk).len(), names.len() - 1, "what is left was touched");
}

#[test]
fn a_lost_committed_end_is_refused() {
    let disk = filled();
    let name = segments(&disk).pop().unwrap();
    let content = disk.content(&name).unwrap();
    // The last segment's first record is the hard state: it says what was committed before.
    let entries_cut = content.len() - 200;
    disk.set_content(&name, content[..entries_cut].to_vec());
    let reopened = open(&disk);
    let state = reopened.map(|log| held(&log));
    assert!(state.is_err() || state.is_ok_and(|held| held.commit <= *held.terms.keys().next_back().unwrap()));
}

#[test]
fn a_damaged_snapshot_falls_back_to_the_older_one() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    log.bootstrap(vec![1]).unwrap();
    for index in 2..30 {
        log.persist(vec![entry(index, 1, 150)], Some(&hard(1, 1, index)), true).unwrap();
        if index % 10 == 0 {
            log.keep_snapshot(index, 1, vec![b's'; 10]).unwrap();
        }
    }
    let newest = disk.list().unwrap().into_iter().rfind(|name| name.starts_with("snapshot-")).unwrap();
    flip(&disk, &newest, 40);
    let log = open(&disk).unwrap();
    assert_eq!(log.snapshot().unwrap().index, 10);
    assert_eq!((log.first_index().unwrap(), log.last_index().unwrap()), (11, 29));
    let older = disk.list().unwrap().into_iter().find(|name| name.starts_with("snapshot-")).unwrap();
    flip(&disk, &older, 40);
    assert!(matches!(open(&disk), Err(LogError::Damaged { .. })));
}

#[test]
fn another_version_and_another_member_are_refused() {
    let disk = filled();
    let name = segments(&disk).pop().unwrap();
    let mut content = disk.content(&name).unwrap();
    content[8] = 9;
    disk.set_content(&name, content);
    assert!(matches!(open(&disk), Err(LogError::Version { found: 9, .. })));
    let other = LogConfig { member: MemberId::new(2).unwrap(), ..config() };
    assert!(matches!(Log::open(filled(), other), Err(LogError::OtherMember { .. })));
}

/// The bytes of format version 1. A later version must still read them.
#[test]
fn golden_segment_and_snapshot_stay_readable() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    log.bootstrap(b"state".to_vec()).unwrap();
    log.persist(vec![entry(2, 1, 3), entry(3, 1, 0)], Some(&hard(1, 1, 2)), true).unwrap();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for name in disk.list().unwrap() {
        let file = folder.join(format!("{name}.hex"));
        let bytes: String = disk.content(&name).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        if std::env::var_os("BASALT_BLESS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&file, format!("{bytes}\n")).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap();
        assert_eq!(bytes, golden.trim(), "{name} differs from what version 1 wrote");
    }
}

#[test]
fn the_operating_systems_files_do_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Log::open(crate::disk::DirectoryDisk::open(folder.path()).unwrap(), config());
    let mut log = open().unwrap();
    log.bootstrap(vec![1]).unwrap();
    for index in 2..12 {
        log.persist(vec![entry(index, 1, 150)], Some(&hard(1, 1, index)), true).unwrap();
    }
    log.keep_snapshot(8, 1, vec![2]).unwrap();
    assert!(crate::disk::DirectoryDisk::open(folder.path()).is_err(), "a second user of the directory");
    drop(log);
    let log = open().unwrap();
    assert_eq!((log.snapshot().unwrap().index, log.last_index().unwrap()), (8, 11));
}
