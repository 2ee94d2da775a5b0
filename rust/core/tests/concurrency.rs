//! Goal: calls from many threads are applied once each, whole, and in one order per row.
//!
//! Method: SGD with rate 1 and integer gradients counts pushes exactly; threads push, read and
//! flush on a store too small for its rows, with compaction at work; sums must agree. Then every
//! verb at once, in large batches that evict: all of them must end, and no row may be torn or
//! another key's.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::Duration;

use hybridps_core::{
    Assign, Durability, GradientBatch, Initializer, InsertBatch, LookupBatch, Optimizer, Push,
    Store, StoreConfig, TableChange, TableSpec,
};

mod scratch;
use scratch::Scratch;

const DIM: usize = 8;
const KEYS: u64 = 20_000;
const THREADS: u64 = 4;
const PUSHES: u64 = 60;

fn open(path: &Path, nvme_bytes: u64) -> Store {
    Store::open(StoreConfig {
        path: path.to_path_buf(),
        dram_bytes: 8 << 20,
        nvme_bytes,
        durability: Durability::Process,
        threads: 2,
        shard: (0, 1),
        cold: None,
    })
    .unwrap()
}

fn spec() -> TableSpec {
    TableSpec {
        name: "counts".into(),
        dim: DIM as u32,
        optimizer: Optimizer::Sgd,
        learning_rate: 1.0,
        gradients: Default::default(),
        initializer: Initializer::Zeros,
        seed: 0,
        admission: None,
        dtype: "float32".into(),
        dram: Some(1 << 20),
        nvme: None,
        expiry: None,
    }
}

/// Column `thread` of a row counts the pushes of that thread to its key, downwards.
fn push(store: &Store, table: u32, thread: u64, total: &AtomicU64) {
    for number in 1..=PUSHES {
        let first = number * 977 + thread * 131;
        let keys: Vec<u64> = (0..2000).map(|i| (first + i * 13) % KEYS).collect();
        let mut gradients = vec![0.0; keys.len() * DIM];
        gradients.iter_mut().skip(thread as usize).step_by(DIM).for_each(|g| *g = 1.0);
        let mut rows = vec![0.0; keys.len() * DIM];
        let insert = InsertBatch { table, keys: &keys, counts: &[], rows: &mut rows };
        store.lookup_or_insert(&mut [insert]).unwrap();
        let push = Push { session: thread + 1, number, step: None };
        let batch = GradientBatch { table, keys: &keys, gradients: &gradients };
        store.apply_gradients(push, &[batch]).unwrap();
        total.fetch_add(keys.len() as u64, Ordering::Relaxed);
        let mut after = vec![0.0; keys.len() * DIM];
        let lookup = LookupBatch { table, keys: &keys, rows: &mut after, found: &mut [] };
        store.lookup(&mut [lookup]).unwrap();
        for (before, after) in rows.chunks(DIM).zip(after.chunks(DIM)) {
            let column = thread as usize;
            assert_eq!(after[column], before[column] - 1.0, "a session sees its own push, once");
        }
        if number % 16 == 0 {
            store.flush().unwrap();
        }
    }
}

fn sum(store: &Store, table: u32) -> f64 {
    let keys: Vec<u64> = (0..KEYS).collect();
    let mut rows = vec![0.0; keys.len() * DIM];
    let lookup = LookupBatch { table, keys: &keys, rows: &mut rows, found: &mut [] };
    store.lookup(&mut [lookup]).unwrap();
    -rows.iter().map(|&x| f64::from(x)).sum::<f64>()
}

#[test]
fn every_push_counts_once() {
    let scratch = Scratch::new("concurrency");
    let store = open(scratch.path(), 64 << 20);
    let table = store.create_table(&spec()).unwrap().id;
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, total) = (&store, &total);
            scope.spawn(move || push(store, table, thread, total));
        }
    });
    let expected = total.load(Ordering::Relaxed) as f64;
    assert_eq!(sum(&store, table), expected);
    store.close().unwrap();
    let store = open(scratch.path(), 64 << 20);
    assert_eq!(sum(&store, table), expected);
}

/// Keys of a large batch: several windows of a read, and all stripes, in any order.
const LARGE: u64 = 40_000;
const ROUNDS: u64 = 12;

/// Calls that wait for one another would hang the test: after ten minutes the process ends.
fn watched(work: impl FnOnce()) {
    let (done, ended) = channel::<()>();
    std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(600)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("calls wait for one another: a deadlock");
            std::process::exit(101);
        }
    });
    work();
    drop(done);
}

fn large(round: u64) -> Vec<u64> {
    (0..LARGE).map(|i| (i * 7919 + round * 5003) % (2 * LARGE)).collect()
}

/// Column 0 holds the key or, until it was assigned, zero; all others are alike.
fn check(keys: &[u64], rows: &[f32]) {
    for (&key, row) in keys.iter().zip(rows.chunks(DIM)) {
        assert!(row[0] == 0.0 || row[0] == key as f32, "key {key} has the row of another: {row:?}");
        assert!(row[2..].iter().all(|&x| x == row[1]), "key {key} has a torn row: {row:?}");
    }
}

fn read(store: &Store, table: u32, round: u64) {
    let keys = large(round);
    let mut rows = vec![f32::NAN; keys.len() * DIM];
    if round % 2 == 0 {
        let insert = InsertBatch { table, keys: &keys, counts: &[], rows: &mut rows };
        store.lookup_or_insert(&mut [insert]).unwrap();
    } else {
        let mut found = vec![0; keys.len()];
        let lookup = LookupBatch { table, keys: &keys, rows: &mut rows, found: &mut found };
        store.lookup(&mut [lookup]).unwrap();
    }
    check(&keys, &rows);
}

/// One of the mutating verbs.
fn change(store: &Store, table: u32, session: u64, round: u64) {
    let push = Push { session, number: round + 1, step: None };
    let keys: Vec<u64> = large(round + session).into_iter().step_by(4).collect();
    let mut rows = vec![1.0; keys.len() * DIM];
    rows.iter_mut().step_by(DIM).for_each(|x| *x = 0.0);
    match round % 3 {
        0 => {
            let batch = GradientBatch { table, keys: &keys, gradients: &rows };
            store.apply_gradients(push, &[batch]).unwrap();
        }
        1 => {
            rows.iter_mut().step_by(DIM).zip(&keys).for_each(|(x, &key)| *x = key as f32);
            store.assign(push, &Assign { table, keys: &keys, rows: &rows }).unwrap();
        }
        _ => drop(store.remove(push, table, &keys[..keys.len() / 4]).unwrap()),
    }
}

/// What looks at all stripes, or makes them smaller.
fn disturb(store: &Store, table: u32, round: u64) {
    match round % 5 {
        0 => store.flush().unwrap(),
        1 => drop(store.table_stats(table).unwrap()),
        2 => store.prefetch(table, &large(round)[..5000]).unwrap(),
        3 => {
            let dram = Some(Some((4 + round % 2) << 20));
            store.alter(table, &TableChange { dram, ..TableChange::default() }).unwrap();
        }
        _ => {
            let (mut keys, mut bucket) = (Vec::new(), 0);
            while bucket < 4096 {
                bucket = store.keys(table, bucket, &mut keys).unwrap();
            }
            let other = TableSpec { name: "other".into(), ..spec() };
            let id = store.create_table(&other).unwrap().id;
            let mut rows = vec![0.0; 100 * DIM];
            let insert =
                InsertBatch { table: id, keys: &keys[..100], counts: &[], rows: &mut rows };
            store.lookup_or_insert(&mut [insert]).unwrap();
            store.drop_table("other").unwrap();
        }
    }
}

#[test]
fn large_reads_beside_every_other_verb_come_to_an_end() {
    watched(|| {
        let scratch = Scratch::new("verbs");
        // Room for all that these calls push out of DRAM: a full log is for other tests.
        let store = open(scratch.path(), 512 << 20);
        let spec = TableSpec { dram: Some(4 << 20), ..spec() };
        let table = store.create_table(&spec).unwrap().id;
        read(&store, table, 0);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (store, is_over) = (&store, &is_over);
            let others = move || (0..).take_while(|_| !is_over.load(Ordering::Relaxed));
            scope.spawn(move || others().for_each(|round| disturb(store, table, round)));
            for session in 1..=2 {
                scope.spawn(move || others().for_each(|n| change(store, table, session, n)));
            }
            let readers = [0, 1, 2].map(|reader| {
                scope.spawn(move || (0..ROUNDS).for_each(|n| read(store, table, n + reader)))
            });
            let results = readers.map(std::thread::ScopedJoinHandle::join);
            is_over.store(true, Ordering::Relaxed);
            assert!(results.iter().all(Result::is_ok), "a reader failed");
        });
        let stats = store.table_stats(table).unwrap();
        let moved = |name, value| matches!(name, "evictions" | "device_reads") && value > 1000;
        assert_eq!(stats.iter().filter(|&&(name, value)| moved(name, value)).count(), 2);
        store.close().unwrap();
        read(&open(scratch.path(), 512 << 20), table, 1);
    });
}
