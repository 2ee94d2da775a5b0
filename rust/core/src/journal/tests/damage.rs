//! Every cut and every flipped byte: corruption before the known end, a torn tail after it, never
//! a part of an entry, never more memory than the file is long.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A journal of one file with entries of different kinds and sizes.
struct Sample {
    scratch: Scratch,
    bytes: Vec<u8>,
    entries: Vec<Owned>,
    /// Where entry i begins; the last is the end.
    at: Vec<u64>,
}

impl Sample {
    fn new() -> Self {
        let scratch = Scratch::in_memory();
        let (journal, _) = open(scratch.path(), NEW).unwrap();
        let attach = Owned { sequence: 3, what: What::Attach(8, "b".into()) };
        let push = Push { session: 8, number: 1, step: None };
        let remove = Owned { sequence: 4, what: What::Remove(push, 1, vec![1]) };
        let entries = vec![gradients(1, 3), gradients(2, 0), attach, remove, gradients(5, 1)];
        let at = boundaries(scratch.path(), &journal, &entries);
        let bytes = fs::read(log(scratch.path(), 1)).unwrap();
        Self { scratch, bytes, entries, at }
    }

    fn write(&self, bytes: &[u8]) {
        fs::write(log(self.scratch.path(), 1), bytes).unwrap();
    }

    fn known(&self, entry: usize) -> JournalEnd {
        JournalEnd { generation: 1, offset: self.at[entry] }
    }

    /// Opens and expects exactly the first `whole` entries, and a journal that goes on from there.
    fn expect_cut(&self, known: JournalEnd, whole: usize, context: &str) {
        let path = self.scratch.path();
        let (journal, visited) = open(path, known).unwrap();
        let mut expected = vec![(1, sessions(0))];
        expected.extend(self.entries[..whole].iter().map(|entry| (1, entry.clone())));
        assert_eq!(visited, expected, "{context}");
        assert_eq!(length(path, 1), self.at[whole], "{context}");
        append_all(&journal, &[gradients(9, 1)]);
        drop(journal);
        expected.push((1, gradients(9, 1)));
        assert_eq!(open(path, known).unwrap().1, expected, "{context}");
    }

    fn expect_corruption(&self, known: JournalEnd, context: &str) {
        let before = fs::read(log(self.scratch.path(), 1)).unwrap();
        let error = open(self.scratch.path(), known).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corruption, "{context}: {error}");
        assert!(error.message.contains("00000001.log"), "{context}: {error}");
        assert!(error.message.contains("offset"), "{context}: {error}");
        let after = fs::read(log(self.scratch.path(), 1)).unwrap();
        assert!(before == after, "{context}: the damaged file was changed");
    }
}

#[test]
fn cut_at_every_byte() {
    let sample = Sample::new();
    for known in [None, Some(0), Some(2), Some(4), Some(5)] {
        let end = known.map_or(NEW, |entry| sample.known(entry));
        for length in 0..=sample.bytes.len() {
            sample.write(&sample.bytes[..length]);
            let context = format!("cut to {length}, known {end:?}");
            let whole = sample.at.iter().rposition(|&at| at <= length as u64);
            match whole.filter(|_| length as u64 >= end.offset) {
                None => sample.expect_corruption(end, &context),
                Some(whole) => sample.expect_cut(end, whole, &context),
            }
        }
    }
}

#[test]
fn a_bit_flipped_in_every_byte() {
    let sample = Sample::new();
    for known in [None, Some(2), Some(5)] {
        let end = known.map_or(NEW, |entry| sample.known(entry));
        for i in 0..sample.bytes.len() {
            let mut bytes = sample.bytes.clone();
            bytes[i] ^= 1 << (i % 8);
            sample.write(&bytes);
            let context = format!("byte {i}, known {end:?}");
            let damaged = sample.at.iter().rposition(|&at| at <= i as u64);
            match damaged.filter(|_| i as u64 >= end.offset) {
                None => sample.expect_corruption(end, &context),
                Some(damaged) => sample.expect_cut(end, damaged, &context),
            }
        }
    }
}

#[test]
fn garbage_behind_the_end_is_cut() {
    let sample = Sample::new();
    for garbage in [&[0; 5000][..], &[0xff; 31], b"HPJE", &sample.bytes[120..]] {
        sample.write(&[&sample.bytes, garbage].concat());
        sample.expect_cut(sample.known(5), 5, "garbage");
    }
}

#[test]
fn whole_entries_behind_damage_are_not_read() {
    let sample = Sample::new();
    // Entry 1 is lost, as if its page had not been written before a power cut.
    let mut bytes = sample.bytes.clone();
    bytes[sample.at[1] as usize..sample.at[2] as usize].fill(0);
    sample.write(&bytes);
    sample.expect_corruption(sample.known(2), "known");
    sample.expect_cut(sample.known(1), 1, "unknown");
}

#[test]
fn a_known_end_inside_an_entry_is_corruption() {
    let sample = Sample::new();
    for offset in [sample.at[0] + 1, sample.at[2] - 1] {
        sample.expect_corruption(JournalEnd { generation: 1, offset }, "inside");
    }
}

#[test]
fn damage_in_a_file_with_a_successor_is_corruption() {
    let sample = Sample::new();
    let (journal, _) = open(sample.scratch.path(), NEW).unwrap();
    rotate(&journal, Vec::new(), 5).unwrap();
    drop(journal);
    for cut in [sample.bytes.len() - 1, sample.at[2] as usize, 120, 70, 0] {
        sample.write(&sample.bytes[..cut]);
        if sample.at[..5].contains(&(cut as u64)) {
            // A cut between two entries shows only in what was known.
            sample.expect_corruption(sample.known(5), "between");
        } else {
            sample.expect_corruption(NEW, "within");
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let scratch = Scratch::new();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    for sequence in 1..=4 {
        append_all(&journal, &[gradients(sequence, 1)]);
        rotate(&journal, Vec::new(), sequence).unwrap();
    }
    journal.drop_through(1).unwrap();
    let known = journal.sync().unwrap();
    drop(journal);
    for generation in 2..=5 {
        let file = log(scratch.path(), generation);
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let error = open(scratch.path(), known).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corruption);
        assert!(error.message.contains(&file.display().to_string()), "{error}");
        fs::write(&file, bytes).unwrap();
    }
    open(scratch.path(), known).unwrap();
    fs::remove_dir_all(scratch.path().join("journal")).unwrap();
    assert_eq!(open(scratch.path(), known).unwrap_err().kind, ErrorKind::Corruption);
}

#[test]
fn files_of_others_are_refused() {
    let sample = Sample::new();
    let path = sample.scratch.path();
    let mut other = config(path, Durability::Process);
    other.uuid ^= 1;
    let mut journal = Journal::open(other, NEW).unwrap();
    let error = journal.replay(&mut |_, _| Ok(())).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corruption);
    assert!(error.message.contains("of store 0011"), "{error}");
    // Another generation under this name.
    fs::rename(log(path, 1), log(path, 2)).unwrap();
    fs::write(log(path, 1), &sample.bytes).unwrap();
    let error = open(path, NEW).unwrap_err();
    assert!(error.message.contains("names generation 1"), "{error}");
    fs::remove_file(log(path, 2)).unwrap();
    for name in ["1.log", "00000000.log", "x.log", "+0000001.log", "99999999999.log"] {
        let file = path.join("journal").join(name);
        fs::write(&file, "").unwrap();
        let error = open(path, NEW).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corruption, "{name}");
        assert!(error.message.contains(name), "{error}");
        fs::remove_file(file).unwrap();
    }
    open(path, NEW).unwrap();
}

#[test]
fn a_version_from_the_future_is_named() {
    let sample = Sample::new();
    let mut bytes = sample.bytes.clone();
    bytes[8] = 4;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    sample.write(&bytes);
    let error = open(sample.scratch.path(), NEW).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Config);
    assert!(error.message.contains("version 4"), "{error}");
}

/// A file whose second entry has these header fields and this body, all crcs right.
fn forge(sample: &Sample, kind: u32, claimed: u64, sequence: u64, body: &[u8]) {
    let mut bytes = sample.bytes[..sample.at[0] as usize].to_vec();
    let mut header = Vec::from(*b"HPJE");
    header.extend(kind.to_le_bytes());
    header.extend(claimed.to_le_bytes());
    header.extend(sequence.to_le_bytes());
    header.extend(EPOCH.to_le_bytes());
    header.extend(crc32c::crc32c(body).to_le_bytes());
    let mut place = 1u32.to_le_bytes().to_vec();
    place.extend(sample.at[0].to_le_bytes());
    let crc = crc32c::crc32c(&[&place[..], &header].concat());
    bytes.extend(header);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(body);
    sample.write(&bytes);
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn hostile_content_with_right_crcs_is_corruption() {
    let sample = Sample::new();
    let two = 2u64 << 32; // step absent, parts 2
    let one = 1u64 << 32;
    let huge = u64::MAX;
    let bodies: Vec<(u32, Vec<u64>)> = vec![
        (1, vec![]),
        (1, vec![1, 2, 3]),
        (1, vec![1, 2, 3, (u64::from(u32::MAX)) << 32]),
        (1, vec![1, 2, 3, two, 1, 0, 0]),
        (1, vec![1, 2, 3, one, 1, huge, 0]),
        (1, vec![1, 2, 3, one, 1, 0, huge]),
        (1, vec![1, 2, 3, one, 1, huge / 8 + 1, 0]),
        (1, vec![1, 2, 3, one, 1, 1, huge - 1, 9]),
        (1, vec![1, 2, 3, one, 1, 2, 3, 9, 9, 0, 0]), // ragged
        (1, vec![1, 2, 3, one, 1, 0, 2, 0]),          // floats without keys
        (1, vec![1, 2, 3, one, 1, 1, 2, 9, 0, 0]),    // too long
        (2, vec![1, 2, 3, 0]),                        // no table
        (2, vec![1, 2, 3, two, 1, 0, 0, 1, 0, 0]),    // two tables
        (3, vec![1, 2, 3, one, 1, 1, 2, 9, 0]),       // a remove with floats
        (4, vec![0]),                                 // sessions not first
        (5, vec![1]),
        (5, vec![1, 9, 0]),
        (5, vec![1, u64::from(u32::MAX), 0]),
        (5, vec![1, 1, 0xff]), // not UTF-8
        (5, vec![1, 0, 0]),    // too long
        (6, vec![]),
        (6, vec![9 << 32 | 1, 0]),    // a definition that is cut
        (7, vec![1 << 32 | 1, 0xff]), // not UTF-8
        (7, vec![1, 0]),              // too long
        (8, vec![1 << 32 | 1, 0x78]), // a drop with a definition
        (9, vec![1, 2]),
        (9, vec![1, 2, 3, 4]),
        (0, vec![]),
        (10, vec![1, 2]),
    ];
    for (kind, body) in bodies {
        let bytes = words(&body);
        forge(&sample, kind, bytes.len() as u64, 1, &bytes);
        sample.expect_corruption(NEW, &format!("kind {kind}, body {body:?}"));
    }
    forge(&sample, 5, 4, 1, &[0; 4]);
    sample.expect_corruption(NEW, "length not a multiple of 8");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn any_content_with_right_crcs_is_read_as_written_or_refused(
        kind in 0..11u32,
        body in vec(
            prop_oneof![6 => 0..5u64, 2 => (0..4u64).prop_map(|n| n << 32), 1 => any::<u64>()],
            0..20,
        ),
    ) {
        let sample = Sample::new();
        forge(&sample, kind, body.len() as u64 * 8, 1, &words(&body));
        let written = fs::read(log(sample.scratch.path(), 1)).unwrap();
        match open(sample.scratch.path(), NEW) {
            Err(error) => prop_assert_eq!(error.kind, ErrorKind::Corruption),
            Ok((_, visited)) => {
                prop_assert_eq!(visited.len(), 2);
                // Only bytes that are documented as zero may differ.
                let frame = Frame::new(&visited[1].1.borrow()).unwrap().length();
                prop_assert_eq!(frame, written.len() as u64 - sample.at[0]);
            }
        }
    }
}

#[test]
fn hostile_sessions_are_corruption() {
    for body in [
        vec![],
        vec![0],
        vec![0, u64::MAX],
        vec![0, 1],
        vec![0, 2, 1, 2, 3, 0, 0],
        vec![0, 1, 1, 2, 3, u64::from(u32::MAX), 0],
        vec![0, 1, 1, 2, 3, (u64::from(u32::MAX)) << 32, 0],
        vec![0, 1, 1, 2, 3, 2 << 32, 0, 0, 0],
        vec![0, 1, 1, 2, 3, 0, 2, 0, 0],
        vec![0, 1, 1, 2, 3, 0, u64::from(u32::MAX)],
        vec![0, 1, 1, 2, 3, 1, 0, 0x80],
        vec![0, 0, 0],
    ] {
        let sample = Sample::new();
        let bytes = words(&body);
        let header = Frame::new(&Entry::Attach { session: 0, client_id: "" });
        assert_eq!(header.unwrap().length(), 56);
        let mut start = Sample { at: vec![64], ..sample };
        start.bytes.truncate(64);
        forge(&start, 4, bytes.len() as u64, 0, &bytes);
        start.expect_corruption(NEW, &format!("{body:?}"));
    }
}

#[test]
fn a_lying_length_allocates_nothing() {
    let sample = Sample::new();
    for claimed in [u64::MAX - 7, 1 << 62, 1 << 40, 16] {
        forge(&sample, 1, claimed, 1, &words(&[1]));
        sample.expect_cut(NEW, 0, &format!("claims {claimed}"));
        forge(&sample, 1, claimed, 1, &words(&[1]));
        let known = JournalEnd { generation: 1, offset: sample.at[0] + 40 };
        sample.expect_corruption(known, &format!("claims {claimed}"));
    }
}

#[test]
fn shrinking_sequences_are_corruption() {
    let sample = Sample::new();
    let (journal, _) = open(sample.scratch.path(), NEW).unwrap();
    rotate(&journal, Vec::new(), 5).unwrap();
    drop(journal);
    let second = fs::read(log(sample.scratch.path(), 2)).unwrap();
    forge(&sample, 5, 16, 6, &words(&[1, 0]));
    let error = open(sample.scratch.path(), NEW).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corruption);
    assert!(error.message.contains("sequence 5 follows 6"), "{error}");
    assert!(fs::read(log(sample.scratch.path(), 2)).unwrap() == second);
}

#[test]
fn first_is_checked() {
    let scratch = Scratch::new();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    rotate(&journal, Vec::new(), 0).unwrap();
    journal.drop_through(1).unwrap();
    drop(journal);
    let path = scratch.path().join("journal/FIRST");
    let bytes = fs::read(&path).unwrap();
    for i in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[i] ^= 1 << (i % 8);
        fs::write(&path, &damaged).unwrap();
        let error = open(scratch.path(), NEW).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corruption, "byte {i}");
        fs::write(&path, &bytes[..i]).unwrap();
        assert_eq!(open(scratch.path(), NEW).unwrap_err().kind, ErrorKind::Corruption);
    }
    fs::remove_file(&path).unwrap();
    let error = open(scratch.path(), NEW).unwrap_err();
    assert!(error.message.contains("00000001.log is missing"), "{error}");
}
