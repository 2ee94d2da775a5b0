//! Goal: who follows the changes misses nothing: a copy that is kept up by them is the table, bit
//! for bit, whatever happened in between; and what cannot be told is refused.
//!
//! Method: a follower with a map and a cursor for every range of buckets, beside random calls, many
//! threads, rows that leave DRAM, compaction, restarts and crashes. Its map is compared with the
//! store, row by row with slots. What an answer looked at is counted.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use hybridps_core::{
    bucket, hash, ChangesCost, ChangesEnd, ChangesQuery, Detail, Durability, ErrorKind, Expiry,
    Optimizer, Sequence, Store, TableId, TableSpec, BUCKETS,
};

mod kit;
mod scratch;
use kit::{
    all_keys, apply, assign, config, copy, damage, insert, lookup, numbers, push, spec, stat, MIB,
};
use scratch::Scratch;

/// Buckets of a stripe in a small store.
const RANGE: u32 = 256;

/// A copy of a table, kept up by its changes.
#[derive(Default)]
struct Follower {
    rows: HashMap<u64, Vec<u32>>,
    cursors: HashMap<u32, Sequence>,
    cost: ChangesCost,
    /// Ranges that were begun anew.
    anew: usize,
}

fn query(table: TableId, buckets: Range<u32>, since: Option<Sequence>) -> ChangesQuery {
    ChangesQuery { table, buckets, since, detail: Detail::Rows }
}

impl Follower {
    fn pull(&mut self, store: &Store, table: TableId) {
        for start in (0..BUCKETS).step_by(RANGE as usize) {
            self.pull_range(store, table, start..start + RANGE);
        }
    }

    fn pull_range(&mut self, store: &Store, table: TableId, buckets: Range<u32>) {
        let since = self.cursors.get(&buckets.start).copied();
        if self.ask(store, table, buckets.clone(), since) {
            return;
        }
        self.anew += 1;
        self.rows.retain(|&key, _| !buckets.contains(&bucket(hash(key))));
        self.cursors.remove(&buckets.start);
        assert!(self.ask(store, table, buckets, None), "all rows can always be told");
    }

    fn ask(
        &mut self,
        store: &Store,
        table: TableId,
        buckets: Range<u32>,
        since: Option<Sequence>,
    ) -> bool {
        let rows = &mut self.rows;
        let (end, cost) = store
            .changes(&query(table, buckets.clone(), since), &mut |piece| {
                for key in piece.removed {
                    rows.remove(key);
                }
                let width = piece.rows.len() / piece.keys.len().max(1);
                for (n, &key) in piece.keys.iter().enumerate() {
                    assert!(buckets.contains(&bucket(hash(key))), "{key} is not of {buckets:?}");
                    let row = &piece.rows[n * width..(n + 1) * width];
                    rows.insert(key, row.iter().map(|x| x.to_bits()).collect());
                }
                assert_eq!(piece.keys.len(), piece.sequences.len());
                assert_eq!(piece.keys.len(), piece.frequency.len());
                Ok(())
            })
            .unwrap();
        self.cost.rows += cost.rows;
        self.cost.segments += cost.segments;
        self.cost.entries += cost.entries;
        self.cost.told += cost.told;
        let ChangesEnd::UpTo(up_to) = end else { return false };
        assert!(since.is_none_or(|since| since <= up_to), "the order goes back");
        self.cursors.insert(buckets.start, up_to);
        true
    }

    /// The copy is the table: keys, values, slots.
    fn check(&self, store: &Store, table: TableId, dim: usize) {
        let mut keys: Vec<u64> = self.rows.keys().copied().collect();
        keys.sort_unstable();
        let there = all_keys(store, table);
        let missing: Vec<_> = there.iter().filter(|key| !self.rows.contains_key(key)).collect();
        let stale: Vec<_> = keys.iter().filter(|key| there.binary_search(key).is_err()).collect();
        assert!(missing.is_empty() && stale.is_empty(), "missed {missing:?}, kept {stale:?}");
        for keys in keys.chunks(1000) {
            let (rows, _) = lookup(store, table, dim, keys).unwrap();
            for (key, row) in keys.iter().zip(rows.chunks(dim)) {
                let bits: Vec<u32> = row.iter().map(|x| x.to_bits()).collect();
                assert_eq!(self.rows[key][..dim], bits, "key {key} is not what it is in the store");
            }
        }
        let mut whole = Self::default();
        whole.pull(store, table);
        assert!(self.rows == whole.rows, "slots differ from those of a copy");
    }
}

fn adagrad() -> Optimizer {
    Optimizer::Adagrad { initial_accumulator: 0.1, eps: 1e-8 }
}

/// A table of which a few thousand rows fit the DRAM.
fn small(name: &str, dim: u32) -> TableSpec {
    TableSpec { dram: Some(MIB), ..spec(name, dim, adagrad()) }
}

/// Numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x9e37_79b9);
        (self.0 >> 33) % below
    }

    /// Some keys, all different, of `among`.
    fn keys(&mut self, most: u64, among: u64) -> Vec<u64> {
        let (first, step, n) = (self.next(among), 1 + self.next(5), 1 + self.next(most));
        let mut keys: Vec<u64> = (0..n).map(|i| (first + i * step) % among).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.iter().map(|key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
    }
}

/// One random call of session `session`.
fn call(store: &Store, table: TableId, dim: usize, random: &mut Random, session: u64, n: u64) {
    const AMONG: u64 = 9000;
    match random.next(10) {
        0..=2 => drop(insert(store, table, dim, &random.keys(600, AMONG)).unwrap()),
        3..=6 => {
            let keys = random.keys(900, AMONG);
            let gradients = numbers(n, keys.len() * dim);
            apply(store, push(session, n), table, &keys, &gradients).unwrap();
        }
        7 => {
            let keys = random.keys(300, AMONG);
            let rows = numbers(n + 1, keys.len() * dim);
            assign(store, push(session, n), table, &keys, &rows).unwrap();
        }
        _ => {
            let keys = random.keys(400, AMONG);
            store.remove(push(session, n), table, &keys).unwrap();
        }
    }
}

#[test]
fn a_follower_has_the_table_bit_for_bit_after_every_kind_of_call() {
    for mode in [Durability::None, Durability::Process] {
        let scratch = Scratch::new("changes");
        let mut store = Store::open(config(scratch.path(), mode)).unwrap();
        let table = store.create_table(&small("t", 16)).unwrap().id;
        let other = store.create_table(&small("other", 8)).unwrap().id;
        let (mut random, mut follower) = (Random(7), Follower::default());
        for n in 1..=160 {
            call(&store, table, 16, &mut random, 1, n);
            call(&store, other, 8, &mut random, 2, n);
            match random.next(12) {
                0 => store.flush().unwrap(),
                1 => {
                    store.close().unwrap();
                    store = Store::open(config(scratch.path(), mode)).unwrap();
                }
                2..=5 => {
                    let start = random.next(16) as u32 * RANGE;
                    follower.pull_range(&store, table, start..start + RANGE);
                }
                _ => {}
            }
            if n % 40 == 0 {
                follower.pull(&store, table);
                follower.check(&store, table, 16);
            }
        }
        assert!(stat(&store, table, "evictions") > 0, "all rows stayed in DRAM");
        assert_eq!(follower.anew, 0, "{mode:?}: after an orderly stop cursors are answered");
    }
}

/// Rows that went by themselves are removed rows, and what is made anew is new.
#[test]
fn a_follower_learns_what_has_expired() {
    let scratch = Scratch::new("changes");
    let mut store = Store::open(config(scratch.path(), Durability::Process)).unwrap();
    let expiry = Some(Expiry::After { seconds: 1000 });
    let table = store.create_table(&TableSpec { expiry, ..small("t", 16) }).unwrap().id;
    let (mut random, mut follower) = (Random(9), Follower::default());
    let mut removed = 0;
    for n in 1..=80 {
        call(&store, table, 16, &mut random, 1, n);
        if n % 5 == 0 {
            let bucket = random.next(u64::from(BUCKETS)) as u32;
            removed += store.expire(table, bucket, Some(1 << 40)).unwrap().0;
        }
        if n % 8 == 0 {
            follower.pull(&store, table);
            follower.check(&store, table, 16);
        }
        if n == 40 {
            store.close().unwrap();
            store = Store::open(config(scratch.path(), Durability::Process)).unwrap();
        }
    }
    assert!(removed > 1000, "{removed} rows have expired");
    assert_eq!(follower.anew, 0);
}

#[test]
fn a_follower_misses_nothing_while_many_write() {
    let scratch = Scratch::new("changes");
    let store = Store::open(config(scratch.path(), Durability::Process)).unwrap();
    let table = store.create_table(&small("t", 32)).unwrap().id;
    let (mut follower, is_over) = (Follower::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=4)
            .map(|session| {
                let store = &store;
                scope.spawn(move || {
                    let mut random = Random(session * 991);
                    for n in 1..=150 {
                        call(store, table, 32, &mut random, session, n);
                        if n % 50 == 0 {
                            store.flush().unwrap();
                        }
                    }
                })
            })
            .collect();
        let (store, follower, is_over) = (&store, &mut follower, &is_over);
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                follower.pull(store, table);
            }
        });
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    assert!(stat(&store, table, "evictions") > 0, "all rows stayed in DRAM");
    follower.pull(&store, table);
    follower.check(&store, table, 32);
    store.close().unwrap();
    let store = Store::open(config(scratch.path(), Durability::Process)).unwrap();
    follower.pull(&store, table);
    follower.check(&store, table, 32);
}

#[test]
fn an_answer_costs_what_changed() {
    let scratch = Scratch::new("changes");
    let store = Store::open(config(scratch.path(), Durability::None)).unwrap();
    let table = store.create_table(&spec("t", 16, adagrad())).unwrap().id;
    let keys: Vec<u64> = (0..60_000).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let gradients = numbers(3, keys.len() * 16);
    for (n, (keys, gradients)) in (1..).zip(keys.chunks(4000).zip(gradients.chunks(4000 * 16))) {
        apply(&store, push(1, n), table, keys, gradients).unwrap();
    }
    store.flush().unwrap();
    let mut follower = Follower::default();
    follower.pull(&store, table);
    assert_eq!(follower.rows.len(), keys.len());
    follower.cost = ChangesCost::default();
    follower.pull(&store, table);
    let ChangesCost { entries, told, .. } = follower.cost;
    assert_eq!((entries, told), (0, 0), "nothing has changed");

    let changed = &keys[..600];
    apply(&store, push(1, 100), table, changed, &gradients[..600 * 16]).unwrap();
    store.remove(push(1, 101), table, &keys[600..700]).unwrap();
    follower.cost = ChangesCost::default();
    follower.pull(&store, table);
    let ChangesCost { rows, entries, told, .. } = follower.cost;
    assert_eq!(told, 700);
    assert!(rows <= 4 * 600, "{rows} rows in DRAM were looked at for 600");
    // Rows that had to leave for those that were changed are among the entries.
    assert!(entries <= 4 * 700, "{entries} entries were looked at for 700 changes");
    follower.check(&store, table, 16);

    // Also when they are in the log again, and asked for one bucket at a time.
    let since = follower.cursors.clone();
    apply(&store, push(1, 102), table, changed, &gradients[..600 * 16]).unwrap();
    store.flush().unwrap();
    let mut found = 0;
    for bucket in 0..BUCKETS {
        let since = Some(since[&(bucket / RANGE * RANGE)]);
        let (_, cost) =
            store.changes(&query(table, bucket..bucket + 1, since), &mut |_| Ok(())).unwrap();
        (found, follower.cost.entries) = (found + cost.told, follower.cost.entries + cost.entries);
        assert!(cost.rows < 100, "no row is dirty");
    }
    assert_eq!(found, 600);
}

#[test]
fn removals_are_told_until_they_are_forgotten_and_then_the_answer_says_so() {
    let scratch = Scratch::new("changes");
    let store = Store::open(config(scratch.path(), Durability::Process)).unwrap();
    let table = store.create_table(&spec("t", 8, adagrad())).unwrap().id;
    // Never on NVMe, made by a read alone, and trained.
    insert(&store, table, 8, &[1, 2]).unwrap();
    apply(&store, push(1, 1), table, &[3], &[1.0; 8]).unwrap();
    let mut follower = Follower::default();
    follower.pull(&store, table);
    let first = follower.cursors.clone();
    store.remove(push(1, 2), table, &[1, 3]).unwrap();
    let mut store = store;
    for _ in 0..2 {
        follower.cursors.clone_from(&first);
        follower.pull(&store, table);
        assert_eq!(follower.rows.keys().collect::<Vec<_>>(), [&2]);
        store.close().unwrap();
        store = Store::open(config(scratch.path(), Durability::Process)).unwrap();
    }
    // Many keys come and go: traces give way, and the log does not fill.
    for n in 0..40 {
        let keys: Vec<u64> = (0..8000).map(|i| 1000 + n * 8000 + i).collect();
        apply(&store, push(1, 3 + 2 * n), table, &keys, &numbers(n, 64_000)).unwrap();
        store.remove(push(1, 4 + 2 * n), table, &keys).unwrap();
        store.flush().unwrap();
    }
    let mut old = Follower { cursors: first, ..Follower::default() };
    old.pull(&store, table);
    assert!(old.anew > 0, "removals of long ago are still remembered");
    follower.pull(&store, table);
    follower.check(&store, table, 8);
}

#[test]
fn a_damaged_row_is_named_and_a_dropped_table_not_found() {
    let scratch = Scratch::new("changes");
    let store = Store::open(config(scratch.path(), Durability::None)).unwrap();
    let table = store.create_table(&spec("t", 8, adagrad())).unwrap().id;
    let keys: Vec<u64> = (5000..5100).collect();
    apply(&store, push(1, 1), table, &keys, &numbers(1, 800)).unwrap();
    store.close().unwrap();
    assert_eq!(damage(scratch.path(), 5050, 16), 1);
    let store = Store::open(config(scratch.path(), Durability::None)).unwrap();
    let own = bucket(hash(5050));
    for since in [None, Some(0)] {
        let query = query(table, own..own + 1, since);
        let error = store.changes(&query, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corruption, "{since:?}");
        assert!(error.message.contains("5050"), "{error}");
    }
    store.remove(push(1, 2), table, &[5050]).unwrap();
    let mut follower = Follower::default();
    follower.pull(&store, table);
    assert_eq!(follower.rows.len(), 99);
    let ahead = query(table, 0..RANGE, Some(Sequence::MAX));
    assert_eq!(store.changes(&ahead, &mut |_| Ok(())).unwrap().0, ChangesEnd::Ahead);
    for (first, end) in [(0, 0), (4095, 4097), (7, 3)] {
        let buckets = first..end;
        let error = store.changes(&query(table, buckets, None), &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadInput);
    }
    store.drop_table("t").unwrap();
    let error = store.changes(&query(table, 0..1, None), &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TableNotFound);
}

/// What a crash took may have been told before: such a cursor is refused, and one that was flushed
/// is answered.
#[test]
fn after_a_crash_no_cursor_of_what_is_lost_is_answered() {
    let (scratch, image) = (Scratch::new("changes"), Scratch::new("image"));
    let store = Store::open(config(scratch.path(), Durability::None)).unwrap();
    let table = store.create_table(&spec("t", 8, adagrad())).unwrap().id;
    let keys: Vec<u64> = (0..3000).collect();
    apply(&store, push(1, 1), table, &keys, &numbers(1, 24_000)).unwrap();
    let mut flushed = Follower::default();
    flushed.pull(&store, table);
    store.flush().unwrap();
    apply(&store, push(1, 2), table, &keys[..2000], &numbers(2, 16_000)).unwrap();
    insert(&store, table, 8, &[77_777]).unwrap();
    let mut ahead = Follower::default();
    ahead.pull(&store, table);
    copy(scratch.path(), image.path());
    let store = Store::open(config(image.path(), Durability::None)).unwrap();
    // Calls of the new life come near the numbers of the old.
    for n in 3..9 {
        apply(&store, push(1, n), table, &keys[..5], &numbers(n, 40)).unwrap();
    }
    flushed.pull(&store, table);
    assert_eq!(flushed.anew, 0, "what was flushed is never refused");
    flushed.check(&store, table, 8);
    ahead.pull(&store, table);
    assert_eq!(ahead.anew, (BUCKETS / RANGE) as usize);
    ahead.check(&store, table, 8);
}
