//! Goal: look-ahead brings rows without being waited for, and no row is read twice at a time.
//! Method: the store's own door, and claims that the test holds.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{open, push, spec};
use crate::scratch::Scratch;
use crate::store::{Assign, InsertBatch, LookupBatch, Store};
use crate::table::{stripe_of, Found, Item};
use crate::types::{hash, Durability, TableId};

const DIM: usize = 4;

fn value(key: u64) -> [f32; DIM] {
    [key as f32, 1.0, 2.0, 3.0]
}

/// Rows of these keys, all on NVMe.
fn filled(scratch: &Scratch, keys: &[u64]) -> (Arc<Store>, TableId) {
    let store = open(scratch, Durability::Process);
    let table = store.create_table(&spec("t", DIM as u32)).unwrap().id;
    let rows: Vec<f32> = keys.iter().flat_map(|&key| value(key)).collect();
    store.assign(push(1), &Assign { table, keys, rows: &rows }).unwrap();
    store.close().unwrap();
    (Arc::new(open(scratch, Durability::Process)), table)
}

fn lookup(store: &Store, table: TableId, keys: &[u64]) {
    let mut rows = vec![9.0; keys.len() * DIM];
    store.lookup(&mut [LookupBatch { table, keys, rows: &mut rows, found: &mut [] }]).unwrap();
    let expected: Vec<f32> = keys.iter().flat_map(|&key| value(key)).collect();
    assert_eq!(rows, expected);
}

fn found(store: &Store, table: TableId, key: u64) -> Found {
    let item = Item { key, hash: hash(key), index: 0 };
    let engine = &store.engine;
    let state = engine.stripes[stripe_of(item.hash, engine.stripes.len())].lock();
    state.parts[&table].find(&item, |_| false)
}

fn stat(store: &Store, name: &str) -> u64 {
    store.stats().iter().find(|stat| stat.0 == name).unwrap().1
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn rows_that_were_looked_ahead_for_are_no_misses() {
    let scratch = Scratch::new();
    let keys: Vec<u64> = (0..3000).collect();
    let (store, table) = filled(&scratch, &keys);
    for keys in keys.chunks(500) {
        store.look_ahead(table, keys).unwrap();
    }
    let in_dram = |key: &u64| matches!(found(&store, table, *key), Found::Dram(_));
    wait_until("all rows are in DRAM", || keys.iter().all(in_dram));
    lookup(&store, table, &keys);
    assert_eq!((stat(&store, "cache_misses"), stat(&store, "device_reads")), (0, 0));
    assert!(stat(&store, "background_reads") > 0);
    wait_until("what the queue held is given back", || stat(&store, "dram_calls") == 0);
    store.drop_table("t").unwrap();
    assert!(store.look_ahead(table, &keys).is_err(), "a dropped table is told");
}

#[test]
fn a_call_waits_for_a_row_that_is_on_its_way() {
    let scratch = Scratch::new();
    let (store, table) = filled(&scratch, &(0..100).collect::<Vec<_>>());
    let engine = &store.engine;
    let Found::Nvme(place) = found(&store, table, 7) else { panic!("7 is in DRAM") };
    let claims = engine.flights.claims();
    assert!(claims.claim(place));
    engine.ahead.is_busy.store(true, Relaxed);
    let reader = {
        let store = store.clone();
        std::thread::spawn(move || lookup(&store, table, &(0..100).collect::<Vec<_>>()))
    };
    wait_until("others are read meanwhile", || {
        stat(&store, "background_reads") > 0 || stat(&store, "device_reads") > 0
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!reader.is_finished(), "it has read what another is reading");
    // Look-ahead leaves what is on its way; and is not kept by it.
    store.prefetch(table, &[7]).unwrap();
    assert!(matches!(found(&store, table, 7), Found::Nvme(_)));
    drop(claims);
    reader.join().unwrap();
    assert_eq!(stat(&store, "cache_misses"), 100);
    assert!(stat(&store, "device_reads") <= 100);
}

#[test]
fn a_store_closes_while_it_looks_ahead() {
    let scratch = Scratch::new();
    let keys: Vec<u64> = (0..20_000).collect();
    let (store, table) = filled(&scratch, &keys);
    keys.chunks(1000).for_each(|keys| store.look_ahead(table, keys).unwrap());
    store.close().unwrap();
    assert!(store.look_ahead(table, &keys).is_err());
    drop(store);
    let store = open(&scratch, Durability::Process);
    assert_eq!(store.len(table).unwrap(), 20_000);
    lookup(&store, table, &keys);
}

/// Rows of this many columns: 8 MiB of DRAM hold about 16,000 of them.
const WIDE: usize = 64;

fn visit(store: &Store, table: TableId, keys: std::ops::Range<u64>) {
    for first in keys.clone().step_by(1000) {
        let keys: Vec<u64> = (first..keys.end.min(first + 1000)).collect();
        let mut rows = vec![0.0; keys.len() * WIDE];
        let batch = InsertBatch { table, keys: &keys, counts: &[], rows: &mut rows };
        store.lookup_or_insert(&mut [batch]).unwrap();
    }
}

/// Goal: rows brought for a batch are there when it comes, whatever others read meanwhile,
/// and are judged as any other after it. Method: cold rows, and scans as large as DRAM.
#[test]
fn rows_stay_until_their_batch_has_come() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let table = store.create_table(&spec("t", WIDE as u32)).unwrap().id;
    visit(&store, table, 0..60_000);
    let announced: Vec<u64> = (0..2000).collect();
    let in_dram = || {
        let is_there = |&&key: &&u64| matches!(found(&store, table, key), Found::Dram(_));
        announced.iter().filter(is_there).count()
    };
    assert!(in_dram() < 200, "{} are still there", in_dram());
    // A row that finds no place while the log is busy with evicted ones is not brought.
    wait_until("all rows that were announced have come", || {
        store.prefetch(table, &announced).unwrap();
        in_dram() == announced.len()
    });
    visit(&store, table, 20_000..60_000);
    assert_eq!(in_dram(), announced.len());
    let before = stat(&store, "cache_misses");
    visit(&store, table, 0..2000);
    assert_eq!(stat(&store, "cache_misses"), before, "they were kept, and are hits");
    for _ in 0..4 {
        visit(&store, table, 2000..60_000);
    }
    assert!(in_dram() < 1000, "{} stay for ever", in_dram());
}

/// What is announced and never read does not keep the others out.
#[test]
fn more_than_dram_holds_may_be_announced() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let table = store.create_table(&spec("t", WIDE as u32)).unwrap().id;
    visit(&store, table, 0..60_000);
    for _ in 0..2 {
        store.prefetch(table, &(0..50_000).collect::<Vec<_>>()).unwrap();
    }
    let hot = 55_000..56_000;
    for _ in 0..8 {
        visit(&store, table, hot.clone());
        store.prefetch(table, &(0..10_000).collect::<Vec<_>>()).unwrap();
    }
    let before = stat(&store, "cache_misses");
    visit(&store, table, hot);
    let missed = stat(&store, "cache_misses") - before;
    assert!(missed < 100, "{missed} of 1000 hot rows had to leave");
    store.remove(push(1), table, &(0..10_000).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.len(table).unwrap(), 50_000);
}
