//! Goal: what calls hold does not grow with the number of their keys, nor with that of the calls.
//! Method: many threads read many keys each, of rows that are mostly on NVMe, while the ledger and
//! the resident set of this process are sampled. A file of its own: other tests take memory too.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hybridps_core::{InsertBatch, LookupBatch, Optimizer, Store, TableId, TableSpec};

mod kit;
mod scratch;
use kit::{config, spec, store_stat, MIB};
use scratch::Scratch;

const DRAM: u64 = 80 * MIB;
const THREADS: u64 = 16;
/// Of the allocator, of threads' stacks, of rings that are made at the first misses.
const SLACK: u64 = 60 * MIB;

/// Rows in the store, and keys of one call.
fn sizes() -> (u64, usize) {
    match std::env::var_os("HYBRIDPS_LONG") {
        Some(_) => (3_000_000, 900_000),
        None => (400_000, 80_000),
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The memory of one caller: it is there, and touched, before the store is.
struct Caller {
    keys: Vec<u64>,
    rows: Vec<f32>,
}

impl Caller {
    fn new(thread: u64, rows: u64, keys: usize) -> Self {
        let keys: Vec<u64> = (0..keys as u64).map(|i| (i * 7919 + thread * 331) % rows).collect();
        Self { rows: vec![1.0; keys.len()], keys }
    }

    fn call(&mut self, store: &Store, table: TableId, is_training: bool) {
        let (keys, rows) = (&self.keys[..], &mut self.rows[..]);
        if is_training {
            store.lookup_or_insert(&mut [InsertBatch { table, keys, counts: &[], rows }]).unwrap();
        } else {
            store.lookup(&mut [LookupBatch { table, keys, rows, found: &mut [] }]).unwrap();
        }
        assert!(self.rows.iter().zip(&self.keys).all(|(row, &key)| *row == value(key)));
    }
}

/// What the only column of a key holds.
fn value(key: u64) -> f32 {
    let mut row = [0.0];
    let spec = spec("t", 1, Optimizer::Sgd);
    hybridps_core::initial_row(&spec.initializer, spec.seed, key, &mut row);
    row[0]
}

#[test]
fn many_large_calls_stay_within_their_share_of_dram() {
    let (rows, keys) = sizes();
    let mut callers: Vec<Caller> = (0..THREADS).map(|n| Caller::new(n, rows, keys)).collect();
    let before = resident();
    let scratch = Scratch::new("memory");
    let mut config = config(scratch.path(), hybridps_core::Durability::None);
    (config.dram_bytes, config.nvme_bytes) = (DRAM, 2 << 30);
    let store = Store::open(config).unwrap();
    // Beside the index there is room for few rows.
    let capped = TableSpec { dram: Some(rows * 17), ..spec("t", 1, Optimizer::Sgd) };
    let table = store.create_table(&capped).unwrap().id;
    for first in (0..rows).step_by(50_000) {
        let keys: Vec<u64> = (first..(first + 50_000).min(rows)).collect();
        let mut out = vec![0.0; keys.len()];
        let batch = InsertBatch { table, keys: &keys, counts: &[], rows: &mut out };
        store.lookup_or_insert(&mut [batch]).unwrap();
    }
    let misses = store_stat(&store, "cache_misses");
    let is_done = AtomicBool::new(false);
    let (peak, calls_peak) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                peak.fetch_max(resident(), Ordering::Relaxed);
                calls_peak.fetch_max(store_stat(&store, "dram_calls"), Ordering::Relaxed);
                kit::assert_caps(&store);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        std::thread::scope(|calls| {
            for (n, caller) in callers.iter_mut().enumerate() {
                let store = &store;
                calls.spawn(move || caller.call(store, table, n % 2 == 0));
            }
        });
        is_done.store(true, Ordering::Relaxed);
        sampler.join().unwrap();
    });
    let missed = store_stat(&store, "cache_misses") - misses;
    assert!(missed > THREADS * keys as u64 / 4, "{missed} misses: the rows are in DRAM");
    let (peak, calls_peak) = (peak.into_inner(), calls_peak.into_inner());
    assert!(calls_peak > 0 && calls_peak <= DRAM / 10, "calls held {calls_peak} bytes");
    assert_eq!(store_stat(&store, "dram_calls"), 0, "what a call held is given back");
    let bound = before + DRAM + SLACK;
    assert!(peak <= bound, "{} MiB resident, {} allowed", peak / MIB, bound / MIB);
    eprintln!("calls held at most {calls_peak} bytes; resident {} MiB more", (peak - before) / MIB);
}
