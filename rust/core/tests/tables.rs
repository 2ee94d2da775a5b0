//! Goal: tables come and go under load, and every push counts in the table that it was made to, or
//! is refused; none reaches the next table of that name, now or after a crash.
//!
//! Method: threads push to tables by name and count what was acknowledged by id, while another
//! drops, makes and alters them. Then the live store, the image of a killed process, and what is
//! opened after a clean end must all hold exactly these counts.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hybridps_core::{
    Durability, ErrorKind, GradientBatch, Initializer, Optimizer, Push, Store, TableChange,
    TableId, TableSpec,
};

mod kit;
mod scratch;
use kit::{config, copy, lookup, spec};
use scratch::Scratch;

const NAMES: [&str; 2] = ["left", "right"];
const KEYS: [u64; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const ROUNDS: usize = 60;

fn counter(name: &str) -> TableSpec {
    let mut spec = spec(name, 1, Optimizer::Sgd);
    (spec.learning_rate, spec.initializer) = (1.0, Initializer::Zeros);
    spec
}

/// Pushes until told to stop; returns how many were acknowledged for each id.
fn push(store: &Store, session: u64, stop: &AtomicBool) -> HashMap<TableId, usize> {
    let (mut acknowledged, mut handles) = (HashMap::new(), HashMap::new());
    let mut number = 0;
    while !stop.load(Relaxed) {
        number += 1;
        let name = NAMES[(number as usize + session as usize) / 3 % 2];
        let known = handles.get(name).copied().map_or_else(|| store.table(name).map(|t| t.id), Ok);
        let outcome = known.and_then(|table| {
            handles.insert(name, table);
            let batch = GradientBatch { table, keys: &KEYS, gradients: &[-1.0; KEYS.len()] };
            store.apply_gradients(Push { session, number, step: None }, &[batch])?;
            *acknowledged.entry(table).or_default() += 1;
            Ok(())
        });
        if let Err(error) = outcome {
            assert_eq!(error.kind, ErrorKind::TableNotFound, "{error}");
            handles.remove(name);
        }
    }
    acknowledged
}

/// Drops and makes tables again, and alters one in between; returns the ids that are gone.
fn redefine(store: &Store) -> Vec<TableId> {
    let mut gone = Vec::new();
    for round in 0..ROUNDS {
        let name = NAMES[round % 2];
        let old = store.table(name).unwrap().id;
        store.drop_table(name).unwrap();
        gone.push(old);
        let info = store.create_table(&counter(name)).unwrap();
        assert!(info.id > old);
        let nvme = Some(Some((1 << 30) + round as u64));
        store.alter(info.id, &TableChange { nvme, ..TableChange::default() }).unwrap();
    }
    gone
}

fn check(store: &Store, acknowledged: &HashMap<TableId, usize>, gone: &[TableId]) {
    for name in NAMES {
        let info = store.table(name).unwrap();
        assert!(info.spec.nvme.is_some());
        let count = acknowledged.get(&info.id).copied().unwrap_or(0) as f32;
        let (rows, _) = lookup(store, info.id, 1, &KEYS).unwrap();
        assert!(rows.iter().all(|&x| x == count), "{name}: {rows:?}, acknowledged {count}");
    }
    for &id in gone {
        assert_eq!(lookup(store, id, 1, &KEYS).unwrap_err().kind, ErrorKind::TableNotFound);
    }
}

#[test]
fn pushes_count_where_they_were_made_while_tables_come_and_go() {
    for durability in [Durability::Process, Durability::Always] {
        let (scratch, image) = (Scratch::new("tables"), Scratch::new("tables"));
        let store = Store::open(config(scratch.path(), durability)).unwrap();
        NAMES.iter().for_each(|name| drop(store.create_table(&counter(name)).unwrap()));
        let stop = AtomicBool::new(false);
        let (acknowledged, gone) = std::thread::scope(|scope| {
            let pusher = |session| {
                let (store, stop) = (&store, &stop);
                scope.spawn(move || push(store, session, stop))
            };
            let pushers: Vec<_> = (1..=3).map(pusher).collect();
            let gone = redefine(&store);
            stop.store(true, Relaxed);
            let mut all = HashMap::new();
            for pusher in pushers {
                for (id, count) in pusher.join().unwrap() {
                    *all.entry(id).or_default() += count;
                }
            }
            (all, gone)
        });
        assert!(gone.iter().any(|id| acknowledged.contains_key(id)), "no push met a drop");
        check(&store, &acknowledged, &gone);
        copy(scratch.path(), image.path());
        check(&Store::open(config(image.path(), durability)).unwrap(), &acknowledged, &gone);
        store.close().unwrap();
        check(&Store::open(config(scratch.path(), durability)).unwrap(), &acknowledged, &gone);
    }
}
