//! Round trips, torn slots, versions, frozen bytes.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use super::*;
use crate::error::ErrorKind;
use crate::scratch::Scratch;

const GOLDEN: &[u8] = include_bytes!("../golden/superblock-v2");

fn state(next_sequence: u64) -> Superblock {
    Superblock {
        uuid: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
        shard: 2,
        shards: 5,
        segment_bytes: 16 << 20,
        next_sequence,
        log_incarnation_end: 77,
        journal: JournalEnd { generation: 3, offset: 4096 },
        epoch: 4,
        clean: next_sequence % 2 == 0,
        history: history(next_sequence),
    }
}

/// None in the golden bytes.
fn history(n: u64) -> History {
    let mut history = History::default();
    if n == 1 || n >= 1000 {
        return history;
    }
    (history.floor, history.whole) = (n, n << 20);
    history.note_crash((n + 2) << 20);
    history
}

fn store() -> (Scratch, Directory) {
    let scratch = Scratch::new();
    let directory = Directory::open(scratch.path()).unwrap();
    (scratch, directory)
}

#[test]
fn absent_then_created_then_written() {
    let (_scratch, directory) = store();
    assert!(SuperblockFile::open(&directory).unwrap().is_none());
    let mut file = SuperblockFile::create(&directory, state(1)).unwrap();
    for sequence in 2..7 {
        let read = SuperblockFile::open(&directory).unwrap().unwrap();
        assert_eq!(read.current(), &state(sequence - 1));
        assert_eq!(file.current(), read.current());
        file.write(state(sequence)).unwrap();
    }
    let mut read = SuperblockFile::open(&directory).unwrap().unwrap();
    read.write(state(7)).unwrap();
    assert_eq!(SuperblockFile::open(&directory).unwrap().unwrap().current(), &state(7));
}

#[test]
fn new_stores_differ_in_their_id() {
    let (a, b) = (Superblock::new((0, 1), 1).unwrap(), Superblock::new((0, 1), 1).unwrap());
    assert_ne!(a.uuid, b.uuid);
}

#[test]
fn a_slot_torn_anywhere_gives_the_state_before() {
    let scratch = Scratch::in_memory();
    let directory = Directory::open(scratch.path()).unwrap();
    let mut file = SuperblockFile::create(&directory, state(1)).unwrap();
    for sequence in 2..5 {
        let before = fs::read(&file.path).unwrap();
        file.write(state(sequence)).unwrap();
        let after = fs::read(&file.path).unwrap();
        let at = (file.generation % 2) as usize * SLOT;
        // Bytes up to 136 and the crc differ; between them all is zero.
        for cut in (0..140).chain(CRC_AT..SLOT) {
            let mut torn = before.clone();
            torn[at..at + cut].copy_from_slice(&after[at..at + cut]);
            fs::write(&file.path, &torn).unwrap();
            let read = SuperblockFile::open(&directory).unwrap().unwrap();
            let whole = torn[at..at + SLOT] == after[at..at + SLOT];
            let expected = if whole { sequence } else { sequence - 1 };
            assert_eq!(read.current(), &state(expected), "cut at {cut}");
        }
        fs::write(&file.path, &after).unwrap();
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    let scratch = Scratch::in_memory();
    let directory = Directory::open(scratch.path()).unwrap();
    let file = SuperblockFile::create(&directory, state(1)).unwrap();
    let bytes = fs::read(&file.path).unwrap();
    for i in SLOT..2 * SLOT {
        let mut damaged = bytes.clone();
        damaged[i] ^= 1 << (i % 8);
        fs::write(&file.path, &damaged).unwrap();
        let error = SuperblockFile::open(&directory).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corruption, "byte {i}");
        assert!(error.message.contains("superblock"), "{error}");
    }
}

#[test]
fn lengths_that_it_never_has() {
    let (_scratch, directory) = store();
    let file = SuperblockFile::create(&directory, state(1)).unwrap();
    let bytes = fs::read(&file.path).unwrap();
    for length in [0, 1, SLOT, 2 * SLOT - 1] {
        fs::write(&file.path, &bytes[..length]).unwrap();
        assert_eq!(SuperblockFile::open(&directory).unwrap_err().kind, ErrorKind::Corruption);
    }
    fs::write(&file.path, [&bytes[..], b"x"].concat()).unwrap();
    assert_eq!(SuperblockFile::open(&directory).unwrap_err().kind, ErrorKind::Corruption);
}

#[test]
fn a_version_from_the_future_in_either_slot_is_named() {
    let (_scratch, directory) = store();
    let mut file = SuperblockFile::create(&directory, state(1)).unwrap();
    file.write(state(2)).unwrap();
    let bytes = fs::read(&file.path).unwrap();
    for slot in 0..2 {
        let mut future = bytes.clone();
        let slot = &mut future[slot * SLOT..][..SLOT];
        slot[8] = 9;
        let crc = crc32c::crc32c(&slot[..CRC_AT]);
        slot[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        fs::write(&file.path, &future).unwrap();
        let error = SuperblockFile::open(&directory).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Config);
        assert!(error.message.contains("version 9"), "{error}");
    }
}

#[test]
fn after_a_failed_write_no_other_is_tried() {
    let (_scratch, directory) = store();
    let mut file = SuperblockFile::create(&directory, state(1)).unwrap();
    file.file = File::open(&file.path).unwrap(); // read-only: writes fail
    assert_eq!(file.write(state(2)).unwrap_err().kind, ErrorKind::Unavailable);
    file.file = open_file(&file.path).unwrap();
    let error = file.write(state(2)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("superblock"), "{error}");
    assert_eq!(SuperblockFile::open(&directory).unwrap().unwrap().current(), &state(1));
}

#[test]
fn golden_bytes() {
    let (_scratch, directory) = store();
    let mut file = SuperblockFile::create(&directory, state(1)).unwrap();
    file.write(state(1_000_000)).unwrap();
    assert!(fs::read(&file.path).unwrap() == GOLDEN, "the format changed");
    fs::write(&file.path, GOLDEN).unwrap();
    let read = SuperblockFile::open(&directory).unwrap().unwrap();
    assert_eq!((read.generation, read.current()), (2, &state(1_000_000)));
}

#[test]
fn the_golden_bytes_of_version_1_are_refused_by_name() {
    let (_scratch, directory) = store();
    let path = directory.file(SUPERBLOCK);
    fs::write(&path, include_bytes!("../golden/superblock-v1")).unwrap();
    let error = SuperblockFile::open(&directory).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Config);
    let expected = format!(
        "{} has format version 1, this program reads version 2; open it with the version of \
         hybridps that wrote it, or give another directory",
        path.display()
    );
    assert_eq!(error.message, expected);
}
