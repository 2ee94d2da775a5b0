//! Goal: a log that neither compaction nor write-back can help refuses calls, and loses nothing.
//! Method: far more tables than a segment has pages. Each has pages of its own, so the segments
//! are full long before their bytes are.

use super::{config, push, spec};
use crate::error::{Error, ErrorKind};
use crate::scratch::Scratch;
use crate::store::{GradientBatch, LookupBatch, Store};
use crate::types::{Durability, TableId};

const TABLES: u64 = 300;
const KEYS: u64 = 700;

fn open(scratch: &Scratch, nvme_bytes: u64) -> Store {
    let config = config(scratch, Durability::Process);
    Store::open(crate::store::StoreConfig { dram_bytes: 768 << 20, nvme_bytes, ..config }).unwrap()
}

fn apply(store: &Store, number: u64, table: TableId) -> Result<(), Error> {
    let keys: Vec<u64> = (0..50).map(|i| (number * 31 + i * 17) % KEYS).collect();
    let gradients = vec![-1.0; 50 * 8];
    let batch = GradientBatch { table, keys: &keys, gradients: &gradients };
    store.apply_gradients(push(number), &[batch]).map(drop)
}

fn sum(store: &Store, tables: &[TableId]) -> f64 {
    let keys: Vec<u64> = (0..KEYS).collect();
    let mut sum = 0.0;
    for &table in tables {
        let mut rows = vec![0.0; keys.len() * 8];
        let batch = LookupBatch { table, keys: &keys, rows: &mut rows, found: &mut [] };
        store.lookup(&mut [batch]).unwrap();
        sum += rows.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    sum
}

/// The checkpoint that found no room once failed the store.
#[test]
fn a_log_of_scattered_pages_refuses_calls_and_keeps_every_row() {
    let scratch = Scratch::new();
    let store = open(&scratch, 64 << 20);
    let make = |n| store.create_table(&spec(&format!("t{n}"), 8)).unwrap().id;
    let tables: Vec<TableId> = (0..TABLES).map(make).collect();
    let table = |number: u64| tables[(number * 7919 % TABLES) as usize];
    let refused = (1..20_000).find_map(|n| apply(&store, n, table(n)).err().map(|e| (n, e)));
    let (number, error) = refused.expect("the log was never full: it needs more tables");
    assert_eq!(error.kind, ErrorKind::StoreFull, "{error}");
    let expected = (number - 1) as f64 * 400.0;
    assert_eq!(sum(&store, &tables), expected, "reads go on");
    // Rows that cannot be written back stay in the journal.
    assert_eq!(store.close().unwrap_err().kind, ErrorKind::StoreFull);
    let store = open(&scratch, 1 << 30);
    assert_eq!(sum(&store, &tables), expected);
    apply(&store, number, table(number)).unwrap();
    store.close().unwrap();
    assert_eq!(sum(&open(&scratch, 1 << 30), &tables), expected + 400.0);
}
