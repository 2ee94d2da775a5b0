//! Stops at every step: between and within the writes of append, rotation and deletion, and by
//! SIGKILL.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufReader, Write};

use super::*;
use crate::scratch::{spawn_test, spawned_path, wait_for_line};

/// The files of a journal directory.
pub(super) type Files = BTreeMap<OsString, Vec<u8>>;

pub(super) fn files(path: &Path) -> Files {
    let entries = fs::read_dir(path.join("journal")).unwrap();
    entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
        .collect()
}

pub(super) fn restore(files: &Files) -> Scratch {
    let scratch = Scratch::in_memory();
    fs::create_dir(scratch.path().join("journal")).unwrap();
    for (name, bytes) in files {
        fs::write(scratch.path().join("journal").join(name), bytes).unwrap();
    }
    scratch
}

/// States of the directory while one file is replaced: every length of its temporary, then whole.
fn replacing(before: &Files, name: &str, bytes: &[u8]) -> Vec<Files> {
    let temporary = |length: usize| {
        let mut state = before.clone();
        state.insert(format!("{name}.tmp").into(), bytes[..length].to_vec());
        state
    };
    let mut states: Vec<Files> = (0..=bytes.len()).map(temporary).collect();
    let mut after = before.clone();
    after.insert(name.into(), bytes.to_vec());
    states.push(after);
    states
}

/// Opens a state, expects these entries, and checks that the journal works on from it.
pub(super) fn expect(state: &Files, expected: &[(u32, Owned)], known: JournalEnd) {
    let scratch = restore(state);
    let (journal, visited) = open(scratch.path(), known).unwrap();
    assert_eq!(visited, expected, "{:?}", state.keys());
    append_all(&journal, &[gradients(100, 1)]);
    let generation = rotate(&journal, Vec::new(), 100).unwrap();
    drop(journal);
    let mut expected = expected.to_vec();
    expected.push((generation - 1, gradients(100, 1)));
    expected.push((generation, sessions(100)));
    assert_eq!(open(scratch.path(), known).unwrap().1, expected);
    assert!(files(scratch.path()).keys().all(|name| {
        let name = name.to_string_lossy();
        name == "FIRST" || name.ends_with(".log")
    }));
}

#[test]
fn creation_stopped_anywhere_gives_a_new_journal() {
    let scratch = Scratch::in_memory();
    drop(open(scratch.path(), NEW).unwrap());
    let bytes = fs::read(log(scratch.path(), 1)).unwrap();
    for state in replacing(&Files::new(), "00000001.log", &bytes) {
        let scratch = restore(&state);
        drop(open(scratch.path(), NEW).unwrap());
        expect(&files(scratch.path()), &[(1, sessions(0))], NEW);
    }
}

#[test]
fn deletion_stopped_anywhere_leaves_what_is_needed() {
    let scratch = Scratch::in_memory();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    for sequence in 1..=3 {
        append_all(&journal, &[gradients(sequence, 1)]);
        rotate(&journal, Vec::new(), sequence).unwrap();
    }
    let known = journal.sync().unwrap();
    let all = open(scratch.path(), known).unwrap().1;
    let before = files(scratch.path());
    journal.drop_through(2).unwrap();
    let first = fs::read(scratch.path().join("journal/FIRST")).unwrap();
    let needed: Visited = all.iter().filter(|(generation, _)| *generation > 2).cloned().collect();
    let mut states = replacing(&before, "FIRST", &first);
    for gone in [1, 2] {
        let mut state = states[states.len() - 1].clone();
        state.remove(&OsString::from(format!("{gone:08}.log")));
        states.push(state);
    }
    for state in &states {
        let is_done = state.contains_key(&OsString::from("FIRST"));
        expect(state, if is_done { &needed } else { &all }, known);
    }
    assert_eq!(&files(scratch.path()), states.last().unwrap());
}

#[test]
fn every_prefix_of_every_append_recovers_to_whole_entries() {
    let scratch = Scratch::in_memory();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    append_all(&journal, &[gradients(1, 1)]);
    rotate(&journal, Vec::new(), 1).unwrap();
    let entries = [gradients(2, 2), gradients(3, 1)];
    let at = boundaries(scratch.path(), &journal, &entries);
    let state = files(scratch.path());
    let base = [(1, sessions(0)), (1, gradients(1, 1)), (2, sessions(1))];
    for length in at[0]..=at[2] {
        let mut cut = state.clone();
        let bytes = cut.get_mut(&OsString::from("00000002.log")).unwrap();
        bytes.truncate(length as usize);
        let whole = at.iter().rposition(|&at| at <= length).unwrap();
        let mut expected = base.to_vec();
        expected.extend(entries[..whole].iter().map(|entry| (2, entry.clone())));
        expect(&cut, &expected, NEW);
    }
}

/// Acknowledged appends of a process that is killed while it appends and rotates are all there.
#[test]
fn sigkill() {
    for round in 0..4 {
        let scratch = Scratch::new();
        let mut child = spawn_test("journal::tests::crash::child_appends", scratch.path());
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let acknowledged = 100 + round * 57;
        wait_for_line(&mut output, &format!("acknowledged {acknowledged}\n"));
        child.kill().unwrap();
        child.wait().unwrap();
        let visited = read(scratch.path());
        let sequences: Vec<u64> = visited
            .iter()
            .filter(|(_, entry)| !matches!(entry.what, What::Sessions(_)))
            .map(|(_, entry)| entry.sequence)
            .collect();
        let last = sequences.len() as u64;
        assert!(last >= acknowledged, "{acknowledged} were acknowledged, {last} are there");
        assert!(sequences.iter().copied().eq(1..=last), "{sequences:?}");
        assert!(visited.iter().any(|(generation, _)| *generation > 1));
        for (_, entry) in visited.iter().filter(|(_, e)| matches!(e.what, What::Gradients(..))) {
            assert_eq!(*entry, gradients(entry.sequence, entry.sequence % 300));
        }
    }
}

#[test]
#[ignore = "run by sigkill"]
fn child_appends() {
    let (journal, _) = open(&spawned_path(), NEW).unwrap();
    let mut output = std::io::stdout();
    for sequence in 1..100_000 {
        append_all(&journal, &[gradients(sequence, sequence % 300)]);
        writeln!(output, "acknowledged {sequence}").unwrap();
        if sequence % 40 == 0 {
            rotate(&journal, Vec::new(), sequence).unwrap();
        }
    }
}
