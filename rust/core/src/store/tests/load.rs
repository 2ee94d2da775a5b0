//! Goal: the index that footers give is the one that was, however many ranges of stripes they are
//! read for, and of several records of a key the one that counts is found.
//!
//! Method: rows are written, written again, removed and made anew, so that footers disagree; the
//! store is opened with memory for all entries and for those of one stripe.

use std::cell::Cell;

use super::super::tests::{open, push, spec};
use crate::scratch::Scratch;
use crate::store::{GradientBatch, InsertBatch, LookupBatch, Store};
use crate::types::{Durability, TableId};

thread_local! {
    /// Instead of the bytes that entries may take.
    pub(super) static BYTES: Cell<Option<u64>> = const { Cell::new(None) };
}

const DIM: usize = 4;

fn apply(store: &Store, number: u64, table: TableId, keys: &[u64]) {
    let gradients = vec![-(number as f32); keys.len() * DIM];
    let batch = GradientBatch { table, keys, gradients: &gradients };
    store.apply_gradients(push(number), &[batch]).unwrap();
    store.flush().unwrap();
}

fn insert(store: &Store, table: TableId, keys: &[u64]) {
    let mut rows = vec![0.0; keys.len() * DIM];
    store
        .lookup_or_insert(&mut [InsertBatch { table, keys, counts: &[], rows: &mut rows }])
        .unwrap();
    store.flush().unwrap();
}

/// All rows, what is there, and what the log counts as live.
fn state(store: &Store, tables: &[TableId], keys: &[u64]) -> (Vec<f32>, Vec<u8>, Vec<u64>) {
    let (mut rows, mut found, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for &table in tables {
        let (mut own, mut there) = (vec![0.0; keys.len() * DIM], vec![9; keys.len()]);
        let batch = LookupBatch { table, keys, rows: &mut own, found: &mut there };
        store.lookup(&mut [batch]).unwrap();
        rows.append(&mut own);
        found.append(&mut there);
        counts.push(store.len(table).unwrap());
    }
    counts.push(store.engine.tier.log.live_bytes());
    (rows, found, counts)
}

#[test]
fn any_number_of_passes_gives_the_same_index() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let tables = ["a", "b"].map(|name| store.create_table(&spec(name, DIM as u32)).unwrap().id);
    let keys: Vec<u64> = (0..6000).map(|n| n * 0x9e37_79b9).collect();
    for (number, &table) in (1..).zip(&tables) {
        apply(&store, number, table, &keys[..5000]);
    }
    apply(&store, 3, tables[0], &keys[1000..3000]);
    assert_eq!(store.remove(push(4), tables[0], &keys[2000..4000]).unwrap(), 2000);
    store.flush().unwrap();
    // As of the removal itself: no call came between.
    insert(&store, tables[0], &keys[2500..3500]);
    let expected = state(&store, &tables, &keys);
    assert_eq!(expected.2[..2], [4000, 5000]);
    let mut last = store.engine.sequencer.lock().last;
    store.close().unwrap();
    for bytes in [None, Some(1), Some(200_000)] {
        BYTES.set(bytes);
        let store = open(&scratch, Durability::None);
        BYTES.set(None);
        let found = state(&store, &tables, &keys);
        assert!(found == expected, "{bytes:?}: {:?} instead of {:?}", found.2, expected.2);
        let next = store.engine.sequencer.lock().last;
        assert!(next > last, "{next:#x} was given out before");
        last = next;
    }
}
