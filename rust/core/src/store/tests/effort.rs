//! Goal: while a stripe is locked, little is done, however much a call asks for: who waits for the
//! lock does not wait for growth, for a large push, for the end of a table, or for the system to
//! find memory. Method: counts of the rows and entries of the index that this thread touches under
//! one lock, and of huge pages that it was the first to touch.

use super::{config, push, spec};
use crate::effort;
use crate::scratch::Scratch;
use crate::spec::TableChange;
use crate::store::{GradientBatch, InsertBatch, LookupBatch, Store, StoreConfig};
use crate::types::{Durability, TableId};

/// Rows and entries that may be touched under one lock.
const MOST: usize = 24 << 10;
/// Each of the 16 stripes has more.
const KEYS: u64 = 16 * (32 << 10);

fn open(scratch: &Scratch) -> Store {
    let (dram_bytes, nvme_bytes) = (96 << 20, 512 << 20);
    let config = config(scratch, Durability::None);
    Store::open(StoreConfig { dram_bytes, nvme_bytes, ..config }).unwrap()
}

fn insert(store: &Store, table: TableId, keys: &[u64]) {
    let mut rows = vec![0.0; keys.len()];
    let batch = InsertBatch { table, keys, counts: &[], rows: &mut rows };
    store.lookup_or_insert(&mut [batch]).unwrap();
}

fn apply(store: &Store, number: u64, table: TableId, keys: &[u64]) {
    let gradients = vec![-1.0; keys.len()];
    let batch = GradientBatch { table, keys, gradients: &gradients };
    store.apply_gradients(push(number), &[batch]).unwrap();
}

/// Does `work` and returns the most that was done under one lock.
fn most(work: impl FnOnce()) -> usize {
    effort::reset();
    work();
    effort::most()
}

#[test]
fn little_is_done_under_a_lock_however_much_a_call_asks_for() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let table = store.create_table(&spec("t", 1)).unwrap().id;
    let keys: Vec<u64> = (0..KEYS).collect();
    let growth = most(|| insert(&store, table, &keys));
    assert!((1024..=MOST).contains(&growth), "growth: {growth}");
    let train = most(|| apply(&store, 1, table, &keys));
    assert!((1024..=MOST).contains(&train), "a push: {train}");
    let cap = most(|| {
        let change = TableChange { dram: Some(Some(12 << 20)), ..TableChange::default() };
        store.alter(table, &change).unwrap();
    });
    assert!((1024..=MOST / 2).contains(&cap), "a lower cap: {cap}");
    let stats = store.table_stats(table).unwrap();
    let rows = |name| stats.iter().find(|stat| stat.0 == name).unwrap().1;
    assert!(rows("rows_nvme") > KEYS / 4 && rows("keys") == KEYS, "{stats:?}");
    let end = most(|| store.drop_table("t").unwrap());
    assert!(end <= MOST, "the end of a table: {end}");
    assert_eq!(store.engine.tier.arena.pages_taken(), 0);
    assert_eq!(store.engine.tier.log.live_bytes(), 0, "what it had on NVMe was released");
}

/// Beats that were not due before come due at once where many rows were only read for long.
#[test]
fn rows_cool_a_part_at_a_time() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let table = store.create_table(&spec("t", 1)).unwrap().id;
    insert(&store, table, &(0..KEYS).collect::<Vec<u64>>());
    for stripe in &store.engine.stripes {
        let mut state = stripe.lock();
        let part = state.parts.get_mut(&table).unwrap();
        part.policy.watch();
        part.policy.visited(1 << 40);
    }
    let grown = most(|| insert(&store, table, &(KEYS..2 * KEYS).collect::<Vec<u64>>()));
    assert!((1024..=MOST).contains(&grown), "{grown}");
}

/// The system once brought a huge page while a stripe was locked.
#[test]
fn memory_is_touched_before_a_stripe_is_locked() {
    let scratch = Scratch::new();
    let config = config(&scratch, Durability::None);
    let (dram_bytes, nvme_bytes) = (256 << 20, 1 << 30);
    let store = Store::open(StoreConfig { dram_bytes, nvme_bytes, ..config }).unwrap();
    let tables = ["read", "pushed"].map(|name| store.create_table(&spec(name, 64)).unwrap().id);
    let (mut number, mut rows) = (0, vec![0.0; 64 * 8192]);
    for first in (0..196_608).step_by(8192) {
        let keys: Vec<u64> = (first..first + 8192).collect();
        let (table, counts) = (tables[0], &[][..]);
        let batch = InsertBatch { table, keys: &keys, counts, rows: &mut rows };
        store.lookup_or_insert(&mut [batch]).unwrap();
        number += 1;
        let batch = GradientBatch { table: tables[1], keys: &keys, gradients: &rows };
        store.apply_gradients(push(number), &[batch]).unwrap();
    }
    let arena = &store.engine.tier.arena;
    assert!(arena.pages_taken() > 20_000, "{} pages", arena.pages_taken());
    assert_eq!(arena.unprepared(), 0);
}

/// What others will take is not touched by who takes nothing: it would wait for the system.
#[test]
fn a_lookup_of_rows_in_dram_touches_no_memory_for_others() {
    let scratch = Scratch::new();
    let config = config(&scratch, Durability::None);
    let (dram_bytes, nvme_bytes) = (256 << 20, 1 << 30);
    let store = Store::open(StoreConfig { dram_bytes, nvme_bytes, ..config }).unwrap();
    let table = store.create_table(&spec("read", 64)).unwrap().id;
    let mut rows = vec![0.0; 64 * 8192];
    let is_short = || store.engine.tier.arena.is_short();
    let mut first = 0;
    while !is_short() {
        assert!(first < 196_608, "it never runs short");
        let keys: Vec<u64> = (first..first + 8192).collect();
        let batch = InsertBatch { table, keys: &keys, counts: &[], rows: &mut rows };
        store.lookup_or_insert(&mut [batch]).unwrap();
        first += 8192;
    }
    let rows = &mut rows[..64 * 100];
    let keys: Vec<u64> = (0..100).collect();
    store.lookup(&mut [LookupBatch { table, keys: &keys, rows, found: &mut [] }]).unwrap();
    assert!(is_short(), "a lookup has paid for others");
}
