//! Goal: changes a page at a time are the changes: a copy that is kept up by pages, and cursors
//! between them, is the table, whatever happens between two pages; no page is much larger than was
//! asked for; and who has seen all is told nothing more.
//!
//! Method: a follower with a map and one cursor, beside random calls before every page, with pages
//! of a few rows, rows that leave DRAM, restarts, and threads that write.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use hybridps_core::{
    bucket, hash, Detail, Durability, ErrorKind, Optimizer, PageQuery, Sequence, Store, TableId,
    TableSpec,
};

mod kit;
mod scratch;
use kit::{all_keys, apply, assign, config, insert, lookup, numbers, push, spec, stat, MIB};
use scratch::Scratch;

const CELLS: u64 = 1 << 36;
const DIM: usize = 16;

/// A copy of a table, kept up by pages: what a client is, without the wire.
#[derive(Default)]
struct Follower {
    rows: HashMap<u64, Vec<u32>>,
    /// All changes up to here are known, once the pass is through.
    since: Option<Sequence>,
    /// Rows and removals told so far, and the largest page in bytes.
    told: usize,
    largest: usize,
}

impl Follower {
    /// One pass over the table; `between` is called before every page.
    fn pass(&mut self, store: &Store, table: TableId, bytes: u64, between: &mut dyn FnMut()) {
        let now = store.cursor().unwrap().sequence;
        assert!(self.since.is_none_or(|since| since <= now), "the order goes back");
        let mut start = 0;
        while start < CELLS {
            between();
            let cells = start..CELLS;
            let query =
                PageQuery { table, cells, since: self.since, detail: Detail::Values, bytes };
            let page = store.changes_page(&query).unwrap();
            assert!(page.next > start, "no page may stand still");
            for &key in page.removed.iter().chain(&page.keys) {
                let cell = u64::from(bucket(hash(key))) << 24;
                assert!(cell < page.next && cell + (1 << 24) > start, "{key} lies elsewhere");
            }
            assert!(page.removed.iter().all(|key| !page.keys.contains(key)));
            for key in &page.removed {
                self.rows.remove(key);
            }
            for (key, row) in page.keys.iter().zip(page.rows.chunks(DIM)) {
                self.rows.insert(*key, row.iter().map(|x| x.to_bits()).collect());
            }
            self.told += page.keys.len() + page.removed.len();
            let own = 8 * (page.keys.len() + page.removed.len()) + 4 * page.rows.len();
            self.largest = self.largest.max(own);
            start = page.next;
        }
        self.since = Some(now);
    }

    fn check(&self, store: &Store, table: TableId) {
        let mut keys: Vec<u64> = self.rows.keys().copied().collect();
        keys.sort_unstable();
        assert_eq!(keys, all_keys(store, table));
        for keys in keys.chunks(1000) {
            let (rows, _) = lookup(store, table, DIM, keys).unwrap();
            for (key, row) in keys.iter().zip(rows.chunks(DIM)) {
                let bits: Vec<u32> = row.iter().map(|x| x.to_bits()).collect();
                assert_eq!(self.rows[key], bits, "key {key}");
            }
        }
    }
}

/// A table of which a few thousand rows fit the DRAM.
fn small(name: &str) -> TableSpec {
    let optimizer = Optimizer::Adagrad { initial_accumulator: 0.1, eps: 1e-8 };
    TableSpec { dram: Some(MIB), ..spec(name, DIM as u32, optimizer) }
}

/// Numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x9e37_79b9);
        (self.0 >> 33) % below
    }

    fn keys(&mut self, most: u64) -> Vec<u64> {
        let (first, step, n) = (self.next(9000), 1 + self.next(5), 1 + self.next(most));
        let mut keys: Vec<u64> = (0..n).map(|i| (first + i * step) % 9000).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.iter().map(|key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
    }
}

/// One random call of session `session`.
fn call(store: &Store, table: TableId, random: &mut Random, session: u64, n: u64) {
    let keys = random.keys(200);
    match random.next(10) {
        0..=2 => drop(insert(store, table, DIM, &keys).unwrap()),
        3..=6 => {
            let gradients = numbers(n, keys.len() * DIM);
            let _ = apply(store, push(session, n), table, &keys, &gradients).unwrap();
        }
        7 => {
            let rows = numbers(n + 1, keys.len() * DIM);
            let _ = assign(store, push(session, n), table, &keys, &rows).unwrap();
        }
        _ => drop(store.remove(push(session, n), table, &keys).unwrap()),
    }
}

#[test]
fn pages_between_calls_of_every_kind_are_the_table() {
    for mode in [Durability::None, Durability::Process] {
        let scratch = Scratch::new("pages");
        let mut store = Store::open(config(scratch.path(), mode)).unwrap();
        let table = store.create_table(&small("t")).unwrap().id;
        let (mut random, mut follower, mut n) = (Random(11), Follower::default(), 0);
        let mut evictions = 0;
        for round in 0..12 {
            for _ in 0..25 {
                n += 1;
                call(&store, table, &mut random, 1, n);
            }
            follower.pass(&store, table, 1 << (12 + round % 5), &mut || {
                n += 1;
                call(&store, table, &mut random, 1, n);
            });
            follower.pass(&store, table, 64 << 10, &mut || ());
            follower.check(&store, table);
            if round % 3 == 2 {
                evictions += stat(&store, table, "evictions");
                store.close().unwrap();
                store = Store::open(config(scratch.path(), mode)).unwrap();
            }
        }
        assert!(evictions > 0, "all rows stayed in DRAM");
    }
}

#[test]
fn pages_miss_nothing_while_many_write() {
    let scratch = Scratch::new("pages");
    let store = Store::open(config(scratch.path(), Durability::Process)).unwrap();
    let table = store.create_table(&small("t")).unwrap().id;
    let (mut follower, is_over) = (Follower::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=3)
            .map(|session| {
                let store = &store;
                scope.spawn(move || {
                    let mut random = Random(session * 991);
                    (1..=150).for_each(|n| call(store, table, &mut random, session, n));
                })
            })
            .collect();
        let (store, follower, is_over) = (&store, &mut follower, &is_over);
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                follower.pass(store, table, 16 << 10, &mut || ());
            }
        });
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    follower.pass(&store, table, 16 << 10, &mut || ());
    follower.check(&store, table);
}

#[test]
fn a_page_has_the_size_that_was_asked_for_and_who_has_seen_all_is_told_nothing() {
    let scratch = Scratch::new("pages");
    let store = Store::open(config(scratch.path(), Durability::Process)).unwrap();
    let table = store.create_table(&small("t")).unwrap().id;
    let keys: Vec<u64> = (0..20_000).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    for keys in keys.chunks(2000) {
        insert(&store, table, DIM, keys).unwrap();
    }
    let mut follower = Follower::default();
    let (bytes, row) = (8 << 10, 8 + 4 * DIM);
    follower.pass(&store, table, bytes, &mut || ());
    assert_eq!(follower.rows.len(), keys.len());
    assert!(follower.largest <= bytes as usize + row, "{} bytes", follower.largest);
    // Rows that only reads have made are told once, though no call comes after them.
    for _ in 0..3 {
        follower.told = 0;
        follower.pass(&store, table, bytes, &mut || ());
        assert_eq!(follower.told, 0, "told again");
    }
    follower.largest = 0;
    for (n, keys) in (1..).zip(keys.chunks(2000)) {
        apply(&store, push(1, n), table, keys, &numbers(n, keys.len() * DIM)).unwrap();
    }
    store.remove(push(1, 99), table, &keys[..3000]).unwrap();
    follower.pass(&store, table, bytes, &mut || ());
    assert_eq!(follower.told, keys.len());
    assert!(follower.largest <= bytes as usize + row, "{} bytes", follower.largest);
    follower.check(&store, table);
    // One row at a time, if it must be.
    apply(&store, push(1, 100), table, &keys[5000..5040], &numbers(3, 40 * DIM)).unwrap();
    follower.pass(&store, table, 1, &mut || ());
    follower.check(&store, table);
}

/// Between a cursor and the first page nothing is lost either, though reads alone make rows then.
#[test]
fn a_cursor_is_below_whatever_comes_after_it() {
    let scratch = Scratch::new("pages");
    let store = Store::open(config(scratch.path(), Durability::None)).unwrap();
    let table = store.create_table(&small("t")).unwrap().id;
    for round in 0..20 {
        insert(&store, table, DIM, &[2 * round]).unwrap();
        let since = store.cursor().unwrap().sequence;
        insert(&store, table, DIM, &[2 * round + 1]).unwrap();
        let mut told = Follower { since: Some(since), ..Follower::default() };
        told.pass(&store, table, 4096, &mut || ());
        assert_eq!(told.rows.keys().collect::<Vec<_>>(), [&(2 * round + 1)]);
    }
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let scratch = Scratch::new("pages");
    let store = Store::open(config(scratch.path(), Durability::None)).unwrap();
    let table = store.create_table(&small("t")).unwrap().id;
    let ask = |table, cells, since| {
        let query = PageQuery { table, cells, since, detail: Detail::Values, bytes: 1 << 20 };
        store.changes_page(&query).map_err(|error| error.kind)
    };
    for cells in [(0, 0), (5, 3), (0, CELLS + 1), (u64::MAX, u64::MAX)] {
        assert_eq!(ask(table, cells.0..cells.1, None).err(), Some(ErrorKind::BadInput));
    }
    for since in [1 << 50, Sequence::MAX] {
        assert_eq!(ask(table, 0..CELLS, Some(since)).err(), Some(ErrorKind::Cursor));
    }
    assert_eq!(ask(table + 1, 0..CELLS, None).err(), Some(ErrorKind::TableNotFound));
    let cursor = store.cursor().unwrap();
    assert_eq!(cursor.tables, [("t".to_owned(), table, DIM as u32)]);
    assert!(cursor.store != 0);
}
