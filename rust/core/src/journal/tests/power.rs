//! Power cuts of the journal alone: behind any change of its files, with any unsynced sector,
//! length and name kept or lost, what is read is what was appended up to some entry, no fewer than
//! were committed by then.

use super::*;
use crate::vfs::trace::Traced;

/// Numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Entries with appends between the steps of rotations; mark n says that n were committed.
fn run(journal: &Journal, traced: &Traced, random: &mut Random) -> u64 {
    let mut sequence = 0;
    let mut append_some = |random: &mut Random| {
        for _ in 0..random.next(3) {
            sequence += 1;
            // Some fill more than a sector.
            let keys = random.next(60);
            let position = append(journal, &gradients(sequence, keys)).unwrap();
            if random.next(3) == 0 {
                journal.commit(position).unwrap();
                traced.mark(sequence);
            }
        }
        sequence
    };
    for round in 0..12 {
        append_some(random);
        let next = journal.prepare().unwrap();
        let last = append_some(random);
        let generation = journal.switch(next, Vec::new(), last).unwrap();
        let last = append_some(random);
        if round % 3 == 2 {
            journal.sync().unwrap();
            traced.mark(last);
            journal.drop_through(generation - 2).unwrap();
        }
    }
    append_some(random)
}

#[test]
fn what_was_committed_outlives_any_power_cut() {
    for seed in 1..=4 {
        let scratch = Scratch::in_memory();
        let traced = Traced::new(scratch.path());
        let mut random = Random(seed);
        let (journal, _) = open_in(Durability::Always, scratch.path(), NEW).unwrap();
        let last = run(&journal, &traced, &mut random);
        drop(journal);
        for n in traced.cuts() {
            for keep_of in [0, 50, 90, 100] {
                let image = Scratch::in_memory();
                traced.image(n, image.path(), &mut || random.next(100) < keep_of);
                let what = format!("seed {seed}: a cut behind change {n}, {keep_of} % kept");
                check(image.path(), traced.marked(n), last, &what);
            }
        }
    }
}

fn check(path: &Path, committed: u64, last: u64, what: &str) {
    let (journal, mut visited) = open(path, NEW).unwrap_or_else(|error| panic!("{what}: {error}"));
    if visited.is_empty() {
        // Made anew.
        visited.push((1, sessions(0)));
    }
    let entries = visited.iter().filter(|(_, entry)| !matches!(entry.what, What::Sessions(_)));
    let found: Vec<u64> = entries.map(|(_, entry)| entry.sequence).collect();
    assert!(found.windows(2).all(|pair| pair[1] == pair[0] + 1), "{what}: {found:?}");
    let of_sessions = visited.last().map_or(0, |(_, entry)| entry.sequence);
    let reached = found.last().copied().unwrap_or(of_sessions);
    assert!((committed..=last).contains(&reached), "{what}: {reached}, committed {committed}");
    // It goes on from there, and nothing that was lost comes back.
    append_all(&journal, &[gradients(1000, 1)]);
    rotate(&journal, Vec::new(), 1000).unwrap();
    drop(journal);
    let again = read(path);
    let whole = visited.len();
    assert!(again[..whole] == visited[..] && again.len() == whole + 2, "{what}: opened again");
}
