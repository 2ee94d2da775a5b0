//! Goal: a batch that repeats its keys is answered as its unique keys would be, and a push of rows
//! in DRAM needs memory for their places alone. Method: merged calls beside plain ones, bit for
//! bit, in a store whose DRAM holds a part of the rows.

use super::{open, push, spec};
use crate::scratch::Scratch;
use crate::spec::Initializer;
use crate::store::stage::Memory;
use crate::store::{GradientBatch, InsertBatch, LookupBatch, Store};
use crate::types::{Durability, TableId};

const DIM: usize = 33;

fn draws(seed: u64, n: usize, below: u64) -> Vec<u64> {
    let mut random = seed;
    let mut draw = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    (0..n).map(|_| draw()).collect()
}

fn table(store: &Store) -> TableId {
    let initializer = Initializer::Normal { mean: 0.0, std: 1.0 };
    let mut spec = spec("t", DIM as u32);
    spec.initializer = initializer;
    store.create_table(&spec).unwrap().id
}

fn stat(store: &Store, table: TableId, name: &str) -> u64 {
    let stats = store.table_stats(table).unwrap();
    stats.iter().find(|stat| stat.0 == name).unwrap().1
}

fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn merged_reads_are_plain_reads() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let table = table(&store);
    for round in 0..6 {
        // More rows than DRAM holds; of a batch each key comes about three times, or once.
        let below = if round % 3 == 2 { 1 << 40 } else { 60_000 };
        let keys: Vec<u64> = draws(round, 4000, below)
            .into_iter()
            .flat_map(|key| [key, key % 1000, key % 7919])
            .collect();
        let mut unique = keys.clone();
        unique.sort_unstable();
        unique.dedup();
        let before = stat(&store, table, "unique_keys");
        let mut rows = vec![f32::NAN; keys.len() * DIM];
        let batch = InsertBatch { table, keys: &keys, counts: &[], rows: &mut rows };
        store.lookup_or_insert_merged(&mut [batch]).unwrap();
        assert_eq!(stat(&store, table, "unique_keys") - before, unique.len() as u64);
        let mut plain = vec![f32::NAN; keys.len() * DIM];
        let (mut found, mut found_plain) = (vec![9; keys.len()], vec![9; keys.len()]);
        let batch = LookupBatch { table, keys: &keys, rows: &mut plain, found: &mut [] };
        store.lookup(&mut [batch]).unwrap();
        assert_eq!(bits(&rows), bits(&plain));
        // Some of these were never inserted.
        let keys: Vec<u64> = keys.iter().map(|key| key / 2 * 3).collect();
        let batch = LookupBatch { table, keys: &keys, rows: &mut rows, found: &mut found };
        store.lookup_merged(&mut [batch]).unwrap();
        let batch = LookupBatch { table, keys: &keys, rows: &mut plain, found: &mut found_plain };
        store.lookup(&mut [batch]).unwrap();
        assert_eq!((bits(&rows), &found), (bits(&plain), &found_plain));
        assert!(found.contains(&0) && found.contains(&1));
    }
}

#[test]
fn counts_of_all_occurrences_are_summed() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let table = table(&store);
    let keys = [5, 6, 5, 5, 7, 6];
    let mut rows = vec![0.0; keys.len() * DIM];
    let mut read = |counts: &[u32]| {
        let batch = InsertBatch { table, keys: &keys, counts, rows: &mut rows };
        store.lookup_or_insert_merged(&mut [batch]).unwrap();
    };
    read(&[]);
    read(&[10, 1, 20, 30, 4, u32::MAX]);
    let frequency = |key| super::rows::counts(&store.engine, table, key).unwrap().0;
    assert_eq!([5, 6, 7].map(frequency), [63, u32::MAX, 5]);
}

/// Once a call booked memory for the records of all its keys, wherever they were: one of 42,000
/// keys in DRAM went in two windows, and probed half of them twice.
#[test]
fn a_push_books_places_first_and_records_with_what_is_left() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let book = |keys, floats| {
        let memory = Memory::book(&store.engine, keys, floats).unwrap();
        (memory.window, memory.records)
    };
    assert_eq!(book(300, 32), (300, 300), "a small call has all it may need");
    let (window, records) = book(1000, 256);
    assert_eq!(window, 1000);
    assert!((1..500).contains(&records), "{records}");
    let (window, records) = book(1 << 20, 256);
    assert!(window > 1000 && window < 1 << 20 && records >= 1, "{window}, {records}");
    assert!(book(5, 16_368).1 >= 1);
}

/// Rows on the device beyond what a push can read ahead are read in its turn.
#[test]
fn a_push_changes_rows_that_it_has_no_memory_to_read_ahead() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let table = table(&store);
    let all: Vec<u64> = (0..40_000).collect();
    let mut rows = vec![0.0; all.len() * DIM];
    let batch = InsertBatch { table, keys: &all, counts: &[], rows: &mut rows };
    store.lookup_or_insert(&mut [batch]).unwrap();
    let keys = &all[..2_500];
    assert!(Memory::book(&store.engine, keys.len(), DIM).unwrap().records < 2_000);
    let gradients = vec![1.0; keys.len() * DIM];
    let misses = stat(&store, table, "cache_misses");
    let batch = GradientBatch { table, keys, gradients: &gradients };
    store.apply_gradients(push(1), &[batch]).unwrap();
    assert!(stat(&store, table, "cache_misses") - misses > 2_000, "they were on the device");
    let mut now = vec![0.0; keys.len() * DIM];
    let batch = LookupBatch { table, keys, rows: &mut now, found: &mut [] };
    store.lookup(&mut [batch]).unwrap();
    let expected: Vec<f32> = rows[..now.len()].iter().map(|x| x - 1.0).collect();
    assert_eq!(bits(&now), bits(&expected));
}

/// What a read found out about its batch serves the push of the same batch alone, is counted while
/// it is kept, and goes with the table.
#[test]
fn a_push_goes_on_from_the_read_of_its_batch() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let table = table(&store);
    let kept = || store.engine.ledger.held(crate::ledger::Kind::Calls);
    let (first, other) = (draws(1, 600, 90), draws(2, 600, 90));
    let read = |keys: &[u64]| {
        let mut rows = vec![0.0; keys.len() * DIM];
        let batch = InsertBatch { table, keys, counts: &[], rows: &mut rows };
        store.lookup_or_insert_merged(&mut [batch]).unwrap();
        rows
    };
    let mut numbers = 1..;
    let mut apply = |keys: &[u64]| {
        let gradients = vec![-1.0; keys.len() * DIM];
        let batch = GradientBatch { table, keys, gradients: &gradients };
        store.apply_gradients(push(numbers.next().unwrap()), &[batch]).unwrap();
    };
    let check = |keys: &[u64], before: &[f32]| {
        for (n, (now, before)) in read(keys).chunks(DIM).zip(before.chunks(DIM)).enumerate() {
            let times = keys.iter().filter(|&&key| key == keys[n]).count();
            let grown = |(x, y): (&f32, &f32)| (x - y - times as f32).abs() < 1e-4;
            assert!(now.iter().zip(before).all(grown), "key {}", keys[n]);
        }
    };
    let before = read(&first);
    assert!(kept() > 0);
    apply(&first);
    assert_eq!(kept(), 0, "it is given once");
    check(&first, &before);
    // The read before this push was another one's.
    let before = read(&other);
    drop(read(&first));
    apply(&other);
    assert!(kept() > 0);
    check(&other, &before);
    store.drop_table("t").unwrap();
    assert_eq!(kept(), 0);
    let table = store.create_table(&spec("u", 1)).unwrap().id;
    let many = draws(3, 100_000, 50_000);
    let mut rows = vec![0.0; many.len()];
    let batch = InsertBatch { table, keys: &many, counts: &[], rows: &mut rows };
    store.lookup_or_insert_merged(&mut [batch]).unwrap();
    assert_eq!(kept(), 0, "what is too large is not kept");
}
