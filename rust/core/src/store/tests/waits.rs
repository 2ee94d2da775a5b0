//! Who waits for whom. Method: a lock is held as by a call that waits for the device; what must not
//! wait is done meanwhile, in a thread that is watched.

use std::sync::mpsc;
use std::time::Duration;

use super::{open, push, spec};
use crate::scratch::Scratch;
use crate::store::{Assign, InsertBatch, LookupBatch, Store};
use crate::types::{bucket, hash, Durability, TableId};

/// Far longer than what is done takes; only a thread that stands still is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `work` in a thread; panics if it does not end.
fn without_waiting<T: Send>(what: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let (done, ended) = mpsc::channel();
        scope.spawn(move || done.send(work()));
        let Ok(result) = ended.recv_timeout(PATIENCE) else {
            eprintln!("{what} waits");
            // The scope would wait for it, too.
            std::process::abort();
        };
        result
    })
}

fn try_lookup(store: &Store, table: TableId, keys: &[u64]) -> Option<Vec<f32>> {
    let (mut rows, mut found) = (vec![-1.0; 2 * keys.len()], vec![9; keys.len()]);
    let mut batch = [LookupBatch { table, keys, rows: &mut rows, found: &mut found }];
    store.try_lookup(&mut batch).unwrap().then_some(rows)
}

/// Unique keys, probes, hits and misses.
fn counters(store: &Store, table: TableId) -> [u64; 4] {
    let all = store.table_stats(table).unwrap();
    ["unique_keys", "probes", "cache_hits", "cache_misses"]
        .map(|name| all.iter().find(|counter| counter.0 == name).unwrap().1)
}

fn since(store: &Store, table: TableId, before: [u64; 4]) -> [u64; 4] {
    let now = counters(store, table);
    std::array::from_fn(|n| now[n] - before[n])
}

fn filled(scratch: &Scratch, keys: &[u64]) -> (Store, TableId) {
    let store = open(scratch, Durability::None);
    let table = store.create_table(&spec("t", 2)).unwrap().id;
    let rows: Vec<f32> = keys.iter().flat_map(|&key| [key as f32, 1.0]).collect();
    store.assign(push(1), &Assign { table, keys, rows: &rows }).unwrap();
    (store, table)
}

/// While a table is defined the manifest is written and synced: nobody else waits for that.
#[test]
fn tables_are_read_and_changed_while_others_are_defined() {
    let scratch = Scratch::new();
    let (store, table) = filled(&scratch, &[1, 2, 3]);
    let definition = store.engine.directory.lock();
    without_waiting("a call", || {
        assert_eq!(try_lookup(&store, table, &[2]).unwrap(), [2.0, 1.0]);
        let (keys, rows) = (&[7][..], &mut [0.0; 2][..]);
        store.lookup_or_insert(&mut [InsertBatch { table, keys, counts: &[], rows }]).unwrap();
        store.assign(push(2), &Assign { table, keys: &[9], rows: &[1.0, 2.0] }).unwrap();
        assert_eq!(store.create_table(&spec("t", 2)).unwrap().id, table);
        assert_eq!(store.table("t").unwrap().id, table);
        assert_eq!(store.spec(table).unwrap().dim, 2);
        assert_eq!(store.snapshot().tables.len(), 1);
    });
    drop(definition);
}

#[test]
fn a_lookup_that_may_not_wait_answers_as_any_other() {
    let scratch = Scratch::new();
    let keys: Vec<u64> = (0..500).collect();
    let (store, table) = filled(&scratch, &keys);
    let asked: Vec<u64> = (0..1000).collect();
    let before = counters(&store, table);
    let (mut rows, mut found) = (vec![-1.0; 2000], vec![9; 1000]);
    let batch = LookupBatch { table, keys: &asked, rows: &mut rows, found: &mut found };
    assert!(store.try_lookup(&mut [batch]).unwrap());
    for key in 0..1000_usize {
        let expected = if key < 500 { [key as f32, 1.0] } else { [0.0; 2] };
        assert_eq!(rows[2 * key..][..2], expected);
        assert_eq!(found[key], u8::from(key < 500));
    }
    assert_eq!(since(&store, table, before), [1000, 1000, 500, 0]);
    let unknown = &mut [LookupBatch { table: 99, keys: &[1], rows: &mut [0.0; 2], found: &mut [] }];
    assert!(store.try_lookup(unknown).is_err());
    store.close().unwrap();
    let again = &mut [LookupBatch { table, keys: &[1], rows: &mut [0.0; 2], found: &mut [] }];
    assert!(!store.try_lookup(again).unwrap(), "`lookup` says better that it is closed");
}

/// Whoever holds a stripe may be waiting for the device.
#[test]
fn a_lookup_that_may_not_wait_does_not_for_a_stripe() {
    let scratch = Scratch::new();
    let keys: Vec<u64> = (0..2000).collect();
    let (store, table) = filled(&scratch, &keys);
    let stripe = |key: u64| (bucket(hash(key)) / store.engine.tier.buckets_per_stripe) as usize;
    let (start, mut answered) = (counters(&store, table), 0);
    for held in [stripe(0), stripe(1), stripe(1999)] {
        let guard = store.engine.stripes[held].lock();
        answered += without_waiting("a lookup", || {
            assert_eq!(try_lookup(&store, table, &keys), None);
            let free: Vec<u64> = keys.iter().copied().filter(|&k| stripe(k) != held).collect();
            let rows = try_lookup(&store, table, &free).unwrap();
            assert!(rows.chunks(2).zip(&free).all(|(row, &key)| row == [key as f32, 1.0]));
            assert!(free.len() < keys.len());
            free.len() as u64
        });
        drop(guard);
    }
    // What did not come to an answer was not counted.
    assert_eq!(since(&store, table, start), [answered, answered, answered, 0]);
}

#[test]
fn a_lookup_that_may_not_wait_does_not_for_the_device() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let table = store.create_table(&spec("t", 256)).unwrap().id;
    let keys: Vec<u64> = (0..20_000).collect();
    for (n, keys) in keys.chunks(1000).enumerate() {
        let rows: Vec<f32> = keys.iter().flat_map(|&key| [key as f32; 256]).collect();
        store.assign(push(n as u64 + 1), &Assign { table, keys, rows: &rows }).unwrap();
    }
    let before = counters(&store, table);
    let (mut hits, mut refused) = (0, 0);
    for key in (0..20_000).step_by(101) {
        let mut rows = [-1.0; 256];
        let batch = LookupBatch { table, keys: &[key], rows: &mut rows, found: &mut [] };
        if store.try_lookup(&mut [batch]).unwrap() {
            assert_eq!(rows, [key as f32; 256]);
            hits += 1;
        } else {
            refused += 1;
        }
    }
    assert!(refused > 0, "the table is larger than DRAM");
    assert_eq!(since(&store, table, before), [hits, hits, hits, 0]);
    let reads = store.stats().iter().find(|counter| counter.0 == "device_reads").unwrap().1;
    assert_eq!(reads, 0);
}
