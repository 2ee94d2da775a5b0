//! Goal: calls from many threads are applied once each, whole, and in one order per row.
//!
//! Method: SGD with rate 1 and integer gradients counts pushes exactly; threads push, read,
//! prefetch, remove and flush on a store too small for its rows, with compaction at work; sums
//! must agree.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use hybridps_core::{
    Durability, GradientBatch, Initializer, InsertBatch, LookupBatch, Optimizer, Push, Store,
    StoreConfig, TableSpec,
};

mod scratch;
use scratch::Scratch;

const DIM: usize = 8;
const KEYS: u64 = 20_000;
const THREADS: u64 = 4;
const PUSHES: u64 = 60;

fn open(path: &Path) -> Store {
    Store::open(StoreConfig {
        path: path.to_path_buf(),
        dram_bytes: 8 << 20,
        nvme_bytes: 64 << 20,
        durability: Durability::Process,
        threads: 2,
        shard: (0, 1),
    })
    .unwrap()
}

fn spec() -> TableSpec {
    TableSpec {
        name: "counts".into(),
        dim: DIM as u32,
        optimizer: Optimizer::Sgd,
        learning_rate: 1.0,
        initializer: Initializer::Zeros,
        seed: 0,
        dtype: "float32".into(),
        dram: Some(1 << 20),
        nvme: None,
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
    let store = open(scratch.path());
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
    let store = open(scratch.path());
    assert_eq!(sum(&store, table), expected);
}
