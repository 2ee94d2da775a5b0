//! Rotation: nobody waits for a device under the lock of the order, whatever happens in between is
//! found again, and a full device leaves the old file in use.

use super::crash::{expect, files, Files};
use super::*;
use crate::vfs::trace::{Change, Traced};

fn next_path(path: &Path, generation: u32) -> PathBuf {
    path.join(format!("journal/{generation:08}.next"))
}

/// A journal with two entries that switched to its second file, where two more came.
struct Switched {
    /// Before the switch, with the next file prepared.
    before: Files,
    /// After it: nothing was synced.
    after: Files,
    known: JournalEnd,
    entries: Vec<Owned>,
    /// Where the entries of the first file begin, and its end.
    first: Vec<u64>,
    /// The same of the second.
    second: Vec<u64>,
}

impl Switched {
    fn new() -> Self {
        let scratch = Scratch::in_memory();
        let (journal, _) = open(scratch.path(), NEW).unwrap();
        let entries: Vec<Owned> = (1..=4).map(|sequence| gradients(sequence, 2)).collect();
        let first = boundaries(scratch.path(), &journal, &entries[..2]);
        let known = JournalEnd { generation: 1, offset: first[0] };
        let next = journal.prepare().unwrap();
        let before = files(scratch.path());
        assert_eq!(journal.switch(next, Vec::new(), 2).unwrap(), 2);
        let length = || fs::metadata(next_path(scratch.path(), 2)).unwrap().len();
        let mut second = vec![length()];
        for entry in &entries[2..] {
            append(&journal, entry).unwrap();
            second.push(length());
        }
        let after = files(scratch.path());
        Self { before, after, known, entries, first, second }
    }

    /// What is read when so many entries of the first file are whole, and, if the second one
    /// counts, so many of that.
    fn expected(&self, first: usize, second: Option<usize>) -> Visited {
        let mut expected = vec![(1, sessions(0))];
        expected.extend(self.entries[..first].iter().map(|entry| (1, entry.clone())));
        if let Some(second) = second {
            expected.push((2, sessions(2)));
            expected.extend(self.entries[2..2 + second].iter().map(|entry| (2, entry.clone())));
        }
        expected
    }
}

fn cut(files: &Files, name: &str, length: usize) -> Files {
    let mut cut = files.clone();
    cut.get_mut(std::ffi::OsStr::new(name)).unwrap().truncate(length);
    cut
}

#[test]
fn a_switch_without_a_sync_keeps_every_entry() {
    let switched = Switched::new();
    expect(&switched.before, &switched.expected(2, None), switched.known);
    for length in 0..=switched.second[2] as usize {
        let state = cut(&switched.after, "00000002.next", length);
        let second = switched.second.iter().rposition(|&at| at as usize <= length);
        expect(&state, &switched.expected(2, second), switched.known);
    }
}

/// Rows that come of its entries may reach the log at once: its name must not be lost behind them.
#[test]
fn a_second_file_has_its_name_before_it_is_replayed() {
    let scratch = crash::restore(&Switched::new().after);
    let mut journal = Journal::open(config(scratch.path(), Durability::Process), NEW).unwrap();
    let mut seen = 0;
    let replayed = journal.replay(&mut |stamp, _| {
        let is_named = log(scratch.path(), 2).exists() && !next_path(scratch.path(), 2).exists();
        assert_eq!(is_named, stamp.generation == 2);
        seen += 1;
        Ok(())
    });
    replayed.unwrap();
    assert_eq!(seen, 6);
}

/// The device may have had bytes of the second file and not the end of the first.
#[test]
fn a_second_file_counts_only_behind_all_of_the_first() {
    let switched = Switched::new();
    for length in switched.first[0]..switched.first[2] {
        let state = cut(&switched.after, "00000001.log", length as usize);
        let first = switched.first.iter().rposition(|&at| at <= length).unwrap();
        expect(&state, &switched.expected(first, None), switched.known);
    }
    let mut damaged = switched.after.clone();
    let bytes = damaged.get_mut(std::ffi::OsStr::new("00000001.log")).unwrap();
    bytes[switched.first[1] as usize + 50] ^= 1;
    expect(&damaged, &switched.expected(1, None), switched.known);
    // Before the known end it is damage as ever.
    let bytes = damaged.get_mut(std::ffi::OsStr::new("00000001.log")).unwrap();
    bytes[switched.first[0] as usize - 1] ^= 1;
    let scratch = crash::restore(&damaged);
    assert_eq!(open(scratch.path(), switched.known).unwrap_err().kind, ErrorKind::Corruption);
}

/// Once a rotation has ended, the end of the first file is no torn tail any more.
#[test]
fn behind_a_rotation_that_ended_damage_is_corruption() {
    let scratch = Scratch::in_memory();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    append_all(&journal, &[gradients(1, 1)]);
    rotate(&journal, Vec::new(), 1).unwrap();
    assert!(!next_path(scratch.path(), 2).exists());
    drop(journal);
    let bytes = fs::read(log(scratch.path(), 1)).unwrap();
    fs::write(log(scratch.path(), 1), &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(open(scratch.path(), NEW).unwrap_err().kind, ErrorKind::Corruption);
    // As long as an entry, but not as long as the file after it says.
    fs::write(log(scratch.path(), 1), &bytes[..120]).unwrap();
    let error = open(scratch.path(), NEW).unwrap_err();
    let expected = format!("goes on from offset {} of the file before, which", bytes.len());
    assert!(error.message.contains(&expected), "{error}");
}

#[test]
fn a_switch_waits_for_no_device() {
    let scratch = Scratch::new();
    let traced = Traced::new(scratch.path());
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    append_all(&journal, &[gradients(1, 1)]);
    let next = journal.prepare().unwrap();
    let is_sync = |c: &Change| matches!(c, Change::Sync { .. } | Change::SyncDirectory { .. });
    traced.fail(move |change| is_sync(change).then_some(libc::EIO));
    journal.switch(next, Vec::new(), 1).unwrap();
    append_all(&journal, &[gradients(2, 1)]);
    assert_eq!(journal.generation(), 2);
    traced.heal();
    let end = JournalEnd { generation: 2, offset: length_of_next(scratch.path()) };
    assert_eq!(journal.sync().unwrap(), end);
    assert!(log(scratch.path(), 2).exists() && !next_path(scratch.path(), 2).exists());
}

fn length_of_next(path: &Path) -> u64 {
    fs::metadata(next_path(path, 2)).unwrap().len()
}

/// An entry behind the switch is promised only with the file before it and the new file's name.
#[test]
fn a_commit_behind_a_switch_ends_the_rotation() {
    for step in 0..4 {
        let scratch = Scratch::new();
        let traced = Traced::new(scratch.path());
        let (journal, _) = open_in(Durability::Always, scratch.path(), NEW).unwrap();
        append_all(&journal, &[gradients(1, 1)]);
        let next = journal.prepare().unwrap();
        append(&journal, &gradients(2, 1)).unwrap();
        journal.switch(next, Vec::new(), 2).unwrap();
        let position = append(&journal, &gradients(3, 1)).unwrap();
        let done = AtomicU64::new(0);
        let is_step = |c: &Change| {
            matches!(c, Change::Sync { .. } | Change::Rename { .. } | Change::SyncDirectory { .. })
        };
        traced.fail(move |change| {
            (is_step(change) && done.fetch_add(1, Relaxed) == step).then_some(libc::EIO)
        });
        let error = journal.commit(position).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "step {step}");
        assert!(journal.commit(position).is_err() && append(&journal, &gradients(4, 1)).is_err());
        traced.heal();
        drop(journal);
        let visited = read(scratch.path());
        let sequences: Vec<u64> = visited.iter().map(|(_, entry)| entry.sequence).collect();
        assert_eq!(sequences, [0, 1, 2, 2, 3], "step {step}");
    }
}

#[test]
fn a_full_device_leaves_the_old_file_in_use() {
    let scratch = Scratch::new();
    let traced = Traced::new(scratch.path());
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    append_all(&journal, &[gradients(1, 1)]);
    for written in [0, 1, 63, 64] {
        traced.cut_append(written, libc::ENOSPC);
        assert_eq!(journal.prepare().unwrap_err().kind, ErrorKind::StoreFull);
        let next = journal.prepare().unwrap();
        traced.cut_append(written, libc::ENOSPC);
        let error = journal.switch(next, Vec::new(), 1).unwrap_err();
        assert_eq!(error.kind, ErrorKind::StoreFull, "{error}");
        assert!(!next_path(scratch.path(), 2).exists());
    }
    append_all(&journal, &[gradients(2, 1)]);
    assert_eq!(rotate(&journal, Vec::new(), 2).unwrap(), 2);
    let stale = journal.prepare().unwrap();
    rotate(&journal, Vec::new(), 2).unwrap();
    assert_eq!(journal.switch(stale, Vec::new(), 2).unwrap_err().kind, ErrorKind::BadInput);
    drop(journal);
    assert_eq!(read(scratch.path()).len(), 5);
}

/// Epochs grow, and the superblock knows of each before an entry is written in it.
#[test]
fn epochs_are_checked() {
    let scratch = Scratch::new();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    append_all(&journal, &[gradients(1, 1)]);
    drop(journal);
    let open_as = |epoch| {
        let config = JournalConfig { epoch, ..config(scratch.path(), Durability::Process) };
        let mut journal = Journal::open(config, NEW).unwrap();
        let mut epochs = Vec::new();
        let replayed = journal.replay(&mut |stamp, _| {
            epochs.push(stamp.epoch);
            Ok(())
        });
        replayed.map(|()| (journal, epochs))
    };
    let error = open_as(EPOCH - 1).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corruption);
    assert!(error.message.contains("knows of 2 at most"), "{error}");
    let (journal, epochs) = open_as(EPOCH + 1).unwrap();
    assert_eq!(epochs, [EPOCH, EPOCH]);
    append_all(&journal, &[gradients(2, 1)]);
    rotate(&journal, Vec::new(), 2).unwrap();
    drop(journal);
    assert_eq!(open_as(EPOCH + 1).unwrap().1, [3, 3, 4, 4]);
}
