//! Goal: what a store holds is what its account says, freed memory serves whoever comes next, and
//! who is read keeps DRAM, whoever filled it first. Method: tables of many widths filled, read and
//! dropped by a seeded draw; the account is held against the parts.

use super::{config, open, push, spec};
use crate::error::ErrorKind;
use crate::ledger::Kind;
use crate::scratch::Scratch;
use crate::store::{GradientBatch, InsertBatch, LookupBatch, Store, StoreConfig};
use crate::types::{Durability, TableId};

fn stat(store: &Store, table: TableId, name: &str) -> u64 {
    let stats = store.table_stats(table).unwrap();
    stats.iter().find(|stat| stat.0 == name).unwrap().1
}

fn insert(store: &Store, table: TableId, dim: usize, keys: &[u64]) {
    let mut rows = vec![0.0; keys.len() * dim];
    store
        .lookup_or_insert(&mut [InsertBatch { table, keys, counts: &[], rows: &mut rows }])
        .unwrap();
}

fn apply(store: &Store, number: u64, table: TableId, dim: usize, keys: &[u64]) {
    let gradients = vec![-1.0; keys.len() * dim];
    let batch = GradientBatch { table, keys, gradients: &gradients };
    store.apply_gradients(push(number), &[batch]).unwrap();
}

fn lookup(store: &Store, table: TableId, dim: usize, keys: &[u64]) -> Vec<f32> {
    let mut rows = vec![0.0; keys.len() * dim];
    store.lookup(&mut [LookupBatch { table, keys, rows: &mut rows, found: &mut [] }]).unwrap();
    rows
}

/// That the account says what the parts hold, and no more than the bound.
fn check_account(store: &Store) {
    let engine = &store.engine;
    let (mut parts, mut used) = (0, 0);
    for stripe in &engine.stripes {
        let state = stripe.lock();
        parts += state.parts.values().map(|part| part.bytes()).sum::<u64>();
        used += state.used();
    }
    let ledger = &engine.ledger;
    let held: u64 =
        [Kind::Rows, Kind::Index, Kind::Statistics].map(|k| ledger.held(k)).iter().sum();
    assert_eq!((held, used), (parts, parts));
    assert_eq!(ledger.held(Kind::Calls), 0, "no call runs");
    assert!(ledger.total() <= store.config().dram_bytes, "{} bytes", ledger.total());
    // What is in no part and no slab is no one's.
    let pages = u64::from(engine.tier.arena.pages_taken()) * 4096;
    let blocks = ledger.held(Kind::Rows) + ledger.held(Kind::Index) + ledger.held(Kind::Slack);
    assert!(pages <= blocks, "{pages} bytes of pages for {blocks} in blocks and slabs");
}

/// Once memory that one width had freed fitted no other: the third table got none, and failed the
/// store.
#[test]
fn tables_of_any_width_get_what_others_gave_back() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let (mut number, mut most) = (0, 0);
    for (n, dim) in [32, 128, 256, 300, 1, 4096, 16, 1024].into_iter().enumerate() {
        let table = store.create_table(&spec(&format!("t{n}"), dim as u32)).unwrap().id;
        let rows = (9 << 20) / (4 * dim + 32);
        let keys: Vec<u64> = (0..rows as u64).collect();
        for keys in keys.chunks(2000.min(rows / 8)) {
            number += 1;
            apply(&store, number, table, dim, keys);
            check_account(&store);
        }
        let held = stat(&store, table, "dram_bytes");
        most = most.max(held);
        assert!(held >= most / 10 * 8, "dim {dim} got {held} bytes, another table {most}");
        assert!(lookup(&store, table, dim, &keys[..100]).iter().all(|&x| x == 1.0));
        store.drop_table(&format!("t{n}")).unwrap();
        check_account(&store);
        assert_eq!(store.engine.tier.arena.pages_taken(), 0);
    }
}

#[test]
fn the_account_holds_over_random_work() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let dims = [1, 8, 20, 64, 200];
    let mut tables: Vec<(TableId, usize)> = Vec::new();
    let mut random = 7_u64;
    let mut draw = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    for number in 1..600 {
        if tables.len() < 3 || draw(30) == 0 {
            let dim = dims[draw(5) as usize];
            let made = store.create_table(&spec(&format!("t{number}"), dim as u32)).unwrap();
            tables.push((made.id, dim));
        }
        let (table, dim) = tables[draw(tables.len() as u64) as usize];
        let first = draw(20_000);
        let keys: Vec<u64> = (first..first + 1 + draw(1500)).collect();
        match draw(8) {
            0 => drop(store.remove(push(number), table, &keys).unwrap()),
            1 if draw(4) == 0 => {
                let gone = tables.iter().position(|other| other.0 == table).unwrap();
                let name = store.spec(tables.swap_remove(gone).0).unwrap().name;
                store.drop_table(&name).unwrap();
            }
            2 => insert(&store, table, dim, &keys),
            3 => drop(lookup(&store, table, dim, &keys)),
            _ => apply(&store, number, table, dim, &keys),
        }
        check_account(&store);
    }
    let mut number = 1000;
    for (table, _) in tables {
        let keys: Vec<u64> = (0..25_000).collect();
        for keys in keys.chunks(2500) {
            number += 1;
            store.remove(push(number), table, keys).unwrap();
        }
        let held = stat(&store, table, "dram_bytes");
        assert!(held < 16 << 10, "an empty table holds {held} bytes");
    }
    check_account(&store);
}

/// Once three rows took an extent of 64 KiB and a line for each of 256 buckets in every stripe.
#[test]
fn a_table_of_three_rows_costs_little_beside_them() {
    let scratch = Scratch::new();
    for dram_bytes in [8 << 20, 1 << 30] {
        let store =
            Store::open(StoreConfig { dram_bytes, ..config(&scratch, Durability::None) }).unwrap();
        for n in 0..400 {
            let name = format!("{dram_bytes}-{n}");
            let table = store.create_table(&spec(&name, 8)).unwrap().id;
            insert(&store, table, 8, &[0, 1, 2]);
            let rows = 3 * (4 * 8 + 32);
            let held = stat(&store, table, "dram_bytes");
            assert!(held <= rows + 4096, "{held} bytes for three rows");
        }
        check_account(&store);
    }
}

/// Once a table that filled DRAM first kept half of it, though nobody read it any more.
#[test]
fn a_table_that_nobody_reads_gives_its_memory_up() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let old = store.create_table(&spec("old", 32)).unwrap().id;
    let few = store.create_table(&spec("few", 300)).unwrap().id;
    insert(&store, few, 300, &(0..200).collect::<Vec<_>>());
    for first in (0..60_000).step_by(2000) {
        insert(&store, old, 32, &(first..first + 2000).collect::<Vec<_>>());
    }
    // What fits two thirds of the memory of rows.
    let set: Vec<u64> = (0..16_000).collect();
    let new = store.create_table(&spec("new", 64)).unwrap().id;
    set.chunks(1000).for_each(|keys| insert(&store, new, 64, &keys[..keys.len() * 3 / 4]));
    let mut hits = (0, 0);
    for round in 0..25 {
        let before = (stat(&store, new, "cache_hits"), stat(&store, new, "cache_misses"));
        set.chunks(1000).for_each(|keys| insert(&store, new, 64, &keys[..keys.len() * 3 / 4]));
        if round >= 20 {
            hits.0 += stat(&store, new, "cache_hits") - before.0;
            hits.1 += stat(&store, new, "cache_misses") - before.1;
        }
    }
    assert!(hits.1 * 20 < hits.0, "{hits:?} hits and misses");
    assert!(stat(&store, few, "rows_dram") < 100, "{} rows", stat(&store, few, "rows_dram"));
    check_account(&store);
}

#[test]
fn a_full_index_refuses_new_keys_and_serves_the_others() {
    let scratch = Scratch::new();
    let config = StoreConfig { nvme_bytes: 2 << 30, ..config(&scratch, Durability::None) };
    let store = Store::open(config).unwrap();
    let table = store.create_table(&spec("t", 1)).unwrap().id;
    let mut keys = 0;
    let error = loop {
        let next: Vec<u64> = (keys..keys + 5000).collect();
        let mut rows = vec![0.0; next.len()];
        let batch = InsertBatch { table, keys: &next, counts: &[], rows: &mut rows };
        match store.lookup_or_insert(&mut [batch]) {
            Ok(()) => keys += 5000,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::StoreFull);
    assert!(error.message.contains("index") && error.message.contains("raise dram"), "{error}");
    let index = stat(&store, table, "index_bytes");
    assert!(index > store.engine.ledger.rows_max() / 10 * 7, "refused at {index} bytes");
    assert!(index / keys <= 14, "{index} bytes for {keys} keys");
    check_account(&store);
    for first in (0..keys).step_by(5000) {
        insert(&store, table, 1, &(first..first + 5000).collect::<Vec<_>>());
    }
    check_account(&store);
}
