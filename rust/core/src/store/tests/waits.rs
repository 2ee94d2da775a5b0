//! Who waits for whom. Method: a lock is held as by a call that waits for the device; what must not
//! wait is done meanwhile, in a thread that is watched.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{open, push, spec};
use crate::scratch::Scratch;
use crate::store::{Assign, InsertBatch, LookupBatch, Store};
use crate::types::{bucket, hash, Durability, TableId};
use crate::vfs::trace::{Change, Traced};

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

const WIDE: usize = 64;

fn wide(store: &Store, number: u64, table: TableId, keys: &[u64]) {
    let rows: Vec<f32> = keys.iter().flat_map(|&key| [key as f32; WIDE]).collect();
    store.assign(push(number), &Assign { table, keys, rows: &rows }).unwrap();
}

fn train(store: &Store, table: TableId, keys: &[u64]) -> Vec<f32> {
    let mut rows = vec![-1.0; keys.len() * WIDE];
    let batch = InsertBatch { table, keys, counts: &[], rows: &mut rows };
    store.lookup_or_insert(&mut [batch]).unwrap();
    rows
}

fn train_all(store: &Store, table: TableId, keys: &[u64]) -> Vec<f32> {
    keys.chunks(200).flat_map(|keys| train(store, table, keys)).collect()
}

/// The device hangs in a write: all segment buffers fill up behind it. Whoever needs one waits, and
/// holds nothing that others need: rows in DRAM are read, and trained on, as if nothing was.
#[test]
fn a_device_that_hangs_holds_up_only_those_who_need_it() {
    let scratch = Scratch::new();
    let traced = Traced::new(scratch.path());
    let store = &open(&scratch, Durability::None);
    let table = store.create_table(&spec("t", WIDE as u32)).unwrap().id;
    let all: Vec<u64> = (0..40_000).collect();
    (1..).zip(all.chunks(1000)).for_each(|(number, keys)| wide(store, number, table, keys));
    store.flush().unwrap();
    let (opened, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let is_segment = |change: &Change| match change {
        Change::Write { offset, bytes, .. } => offset.is_some() && bytes.len() > 65_536,
        _ => false,
    };
    traced.fail(move |change| {
        if is_segment(change) {
            // Open for good once the sender is gone.
            let _ = gate.lock().recv();
        }
        None
    });
    let new: Vec<u64> = (50_000..70_000).collect();
    std::thread::scope(|scope| {
        // Pushes in their turn, and training reads that create rows and bring rows: all must evict.
        // Few keys a call, so that those that hang leave memory for others.
        scope.spawn(|| {
            (1000..)
                .zip(all[..20_000].chunks(200))
                .for_each(|(n, keys)| wide(store, n, table, keys));
        });
        let created = scope.spawn(|| train_all(store, table, &new));
        let brought = scope.spawn(|| train_all(store, table, &all[20_000..]));
        let end = Instant::now() + PATIENCE;
        while !store.engine.tier.log.is_stuck() {
            assert!(Instant::now() < end, "there is always a buffer");
            std::thread::yield_now();
        }
        // Now each of them waits, or will when it comes to evict.
        without_waiting("a read", || {
            let rows = store.inspect(table, &all).unwrap();
            let in_dram = |row: &&crate::store::Inspected| {
                row.tier == Some(crate::store::RowTier::Dram) && row.key >= 20_000
            };
            let dram: Vec<u64> = rows.iter().filter(in_dram).map(|row| row.key).collect();
            assert!(dram.len() > 100, "{}", dram.len());
            for &key in dram.iter().step_by(50) {
                assert_eq!(train(store, table, &[key]), [key as f32; WIDE]);
            }
            let (mut rows, mut found) = (vec![-1.0; all.len() * WIDE], vec![0; all.len()]);
            let batch = LookupBatch { table, keys: &all, rows: &mut rows, found: &mut found };
            // Those on NVMe are answered, and enter DRAM only where no changed row must leave.
            store.lookup(&mut [batch]).unwrap();
            assert!(rows.chunks(WIDE).zip(&all).all(|(row, &key)| row == [key as f32; WIDE]));
        });
        drop(opened);
        assert!(created.join().unwrap().iter().all(|&x| x == 0.0));
        let brought = brought.join().unwrap();
        assert!(brought.chunks(WIDE).zip(&all[20_000..]).all(|(row, &key)| row[0] == key as f32));
        // Each was counted once, however often it was taken up.
        let rows = store.inspect(table, &new).unwrap();
        assert!(rows.iter().all(|row| row.frequency == 1), "counted twice");
    });
    assert_eq!(store.len(table).unwrap(), 60_000);
}
