//! Goal: closing, dropping and lowering a cap beside running calls leave nothing half done.
//!
//! Method: SGD with rate 1 counts pushes exactly; threads push while the main thread closes the
//! store, or drops and makes their table; what was acknowledged must be there, and nothing else.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hybridps_core::{Durability, ErrorKind, Initializer, Optimizer, Store, TableChange, TableSpec};

mod kit;
mod scratch;
use kit::{apply, config, insert, lookup, push, spec, stat, MIB};
use scratch::Scratch;

const DIM: usize = 8;
const MODE: Durability = Durability::Process;

fn counting(name: &str) -> TableSpec {
    let mut spec = spec(name, DIM as u32, Optimizer::Sgd);
    (spec.learning_rate, spec.initializer) = (1.0, Initializer::Zeros);
    spec
}

fn open(scratch: &Scratch) -> Store {
    Store::open(config(scratch.path(), MODE)).unwrap()
}

/// The directory's lock was once given up while calls were still on their way.
#[test]
fn close_waits_for_calls_and_loses_none() {
    let scratch = Scratch::new("closing");
    let keys: Vec<u64> = (0..500).collect();
    let acknowledged = AtomicU64::new(0);
    let mut next = [1; 3];
    for round in 0..30_u64 {
        let store = open(&scratch);
        let table = store.create_table(&counting("t")).unwrap().id;
        std::thread::scope(|scope| {
            for (session, next) in (1..).zip(&mut next) {
                let (store, keys, acknowledged) = (&store, &keys, &acknowledged);
                scope.spawn(move || loop {
                    let gradients = vec![-1.0; keys.len() * DIM];
                    match apply(store, push(session, *next), table, keys, &gradients) {
                        Ok(_) => acknowledged.fetch_add(1, Ordering::SeqCst),
                        Err(error) => break assert_eq!(error.kind, ErrorKind::Unavailable),
                    };
                    *next += 1;
                });
            }
            std::thread::sleep(Duration::from_millis(5 + round % 7));
            let (a, b) = std::thread::scope(|scope| {
                let other = scope.spawn(|| store.close());
                (store.close(), other.join().unwrap())
            });
            a.and(b).unwrap();
            // No call is left that could still write: the directory may be another's at once.
            let before = acknowledged.load(Ordering::SeqCst);
            let again = open(&scratch);
            let (rows, _) = lookup(&again, table, DIM, &keys).unwrap();
            assert!(rows.iter().all(|&x| x >= before as f32), "{} of {before}", rows[0]);
            again.close().unwrap();
        });
        let again = open(&scratch);
        let (rows, _) = lookup(&again, table, DIM, &keys).unwrap();
        let expected = acknowledged.load(Ordering::SeqCst) as f32;
        assert!(rows.iter().all(|&x| x == expected), "{} of {expected}", rows[0]);
    }
}

#[test]
fn a_table_is_dropped_and_made_again_under_load() {
    let scratch = Scratch::new("closing");
    let store = open(&scratch);
    let other = store.create_table(&counting("other")).unwrap().id;
    let is_over = AtomicBool::new(false);
    let keys: Vec<u64> = (0..4000).collect();
    let gradients = vec![-1.0; keys.len() * DIM];
    let gone = |error: hybridps_core::Error| assert_eq!(error.kind, ErrorKind::TableNotFound);
    let mut pushed = 0;
    std::thread::scope(|scope| {
        for session in 1..=3 {
            let (store, keys, gradients, is_over) = (&store, &keys, &gradients, &is_over);
            scope.spawn(move || {
                let mut number = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let Ok(table) = store.table("t") else { continue };
                    number += 1;
                    insert(store, table.id, DIM, keys).err().map(gone);
                    apply(store, push(session, number), table.id, keys, gradients).err().map(gone);
                    lookup(store, table.id, DIM, keys).err().map(gone);
                    store.prefetch(table.id, keys).err().map(gone);
                    store.remove(push(session, number + 1), table.id, &keys[..9]).err().map(gone);
                    number += 1;
                }
            });
        }
        for round in 0..40 {
            store.create_table(&counting("t")).unwrap();
            pushed += 1;
            apply(&store, push(9, pushed), other, &keys, &gradients).unwrap();
            std::thread::sleep(Duration::from_millis(3 + round % 5));
            store.drop_table("t").unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
    });
    let check = |store: &Store| {
        let table = store.create_table(&counting("t")).unwrap().id;
        assert_eq!(store.len(table).unwrap(), 0, "a table is new");
        let (rows, _) = lookup(store, other, DIM, &keys).unwrap();
        assert!(rows.iter().all(|&x| x == pushed as f32));
        // What dropped tables held is free again, in DRAM and on the device.
        let (total, own) =
            (kit::store_stat(store, "index_bytes"), stat(store, other, "index_bytes"));
        assert_eq!(total, own);
        store.drop_table("t").unwrap();
    };
    check(&store);
    store.close().unwrap();
    check(&open(&scratch));
}

/// A cap that is lowered holds when the call returns, though the log is full.
#[test]
fn a_lowered_cap_is_reached_in_a_full_log() {
    const WIDE: usize = 1024;
    let scratch = Scratch::new("closing");
    let store = open(&scratch);
    let table = store.create_table(&spec("wide", WIDE as u32, Optimizer::Sgd)).unwrap().id;
    let mut keys: Vec<u64> = Vec::new();
    while insert(&store, table, WIDE, &[keys.len() as u64]).is_ok() {
        keys.push(keys.len() as u64);
    }
    for (number, keys) in (1..).zip(keys.chunks(500)) {
        apply(&store, push(1, number), table, keys, &kit::numbers(1, keys.len() * WIDE)).unwrap();
    }
    let before = stat(&store, table, "dram_bytes");
    let change = TableChange { dram: Some(Some(2 * MIB)), ..TableChange::default() };
    store.alter(table, &change).unwrap();
    let after = stat(&store, table, "dram_bytes");
    assert!(before > 2 * MIB && after <= 2 * MIB, "{before} bytes before, {after} after");
}

/// What a cap cannot hold is said, not passed over.
#[test]
fn a_cap_below_the_index_is_told() {
    let scratch = Scratch::new("closing");
    let store = open(&scratch);
    let table = store.create_table(&spec("many", 1, Optimizer::Sgd)).unwrap().id;
    for first in (0..150_000_u64).step_by(5000) {
        insert(&store, table, 1, &(first..first + 5000).collect::<Vec<u64>>()).unwrap();
    }
    let change = TableChange { dram: Some(Some(MIB)), ..TableChange::default() };
    let error = store.alter(table, &change).unwrap_err();
    assert!(error.kind == ErrorKind::StoreFull && error.message.contains("many"), "{error}");
    assert_eq!(store.spec(table).unwrap().dram, Some(MIB), "the text says that it is stored");
}
