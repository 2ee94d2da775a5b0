//! Goal: what a row carries beside its numbers outlives eviction and restarts; what belongs to no
//! table is nowhere.

use super::{open, spec};
use crate::log::RecordView;
use crate::scratch::Scratch;
use crate::store::{Engine, InsertBatch, Store};
use crate::table::{stripe_of, Found, Item};
use crate::types::{hash, Disk, Durability, Place, TableId};

fn item(key: u64) -> Item {
    Item { key, hash: hash(key), index: 0 }
}

fn count(store: &Store, table: TableId, dim: usize, keys: &[u64], counts: &[u32]) {
    let mut rows = vec![0.0; keys.len() * dim];
    store.lookup_or_insert(&mut [InsertBatch { table, keys, counts, rows: &mut rows }]).unwrap();
}

/// Frequency and last use of a row: where it is in DRAM, or `None`.
pub(super) fn counts(engine: &Engine, table: TableId, key: u64) -> Option<(u32, u32)> {
    let item = item(key);
    let state = engine.stripes[stripe_of(item.hash, engine.stripes.len())].lock();
    let part = state.parts.get(&table)?;
    match part.find(&item, |_| true) {
        Found::Dram(at) => {
            let header = part.pool.header(at);
            Some((header.frequency, header.last_seen))
        }
        _ => None,
    }
}

/// A record that was read for a table that is gone meanwhile once made a part for it, which no
/// one would ever take away again.
#[test]
fn a_record_of_a_dropped_table_makes_no_part() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let id = store.create_table(&spec("t", 4)).unwrap().id;
    let (engine, table) = (&store.engine, store.engine.table(id).unwrap());
    store.drop_table("t").unwrap();
    let item = item(7);
    let row = [0.0; 4];
    let record =
        RecordView { key: 7, sequence: 1, last_seen: 0, frequency: 0, tombstone: false, row: &row };
    let mut state = engine.stripes[stripe_of(item.hash, engine.stripes.len())].lock();
    let place = Place::at(Disk::Nvme, 8224);
    assert_eq!(state.install(&engine.tier, &table, &item, place, &record).unwrap(), None);
    assert!(state.parts.is_empty());
    assert_eq!(state.used(), 0);
}

#[test]
fn counts_and_last_use_outlive_eviction_and_reopening() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::Process);
    let table = store.create_table(&spec("t", 64)).unwrap().id;
    count(&store, table, 64, &[1, 2], &[3, 4_000_000_000]);
    let seen = counts(&store.engine, table, 1).unwrap().1;
    assert!(seen > 1_600_000_000, "{seen} is no time");
    // Rows that are named later, and more often, push it out.
    let pressure = |store: &Store| {
        for _ in 0..3 {
            for first in (10..60_000_u64).step_by(2000) {
                let keys: Vec<u64> = (first..first + 2000).collect();
                count(store, table, 64, &keys, &[]);
            }
        }
    };
    pressure(&store);
    assert_eq!(counts(&store.engine, table, 1), None, "it has not left DRAM");
    store.prefetch(table, &[1]).unwrap();
    assert_eq!(counts(&store.engine, table, 1), Some((3, seen)), "a prefetch counts nothing");
    count(&store, table, 64, &[1, 2], &[5, 4_000_000_000]);
    assert_eq!(counts(&store.engine, table, 1).unwrap().0, 8);
    assert_eq!(counts(&store.engine, table, 2).unwrap().0, u32::MAX, "counts saturate");
    let seen = counts(&store.engine, table, 1).unwrap().1;
    store.close().unwrap();
    let store = open(&scratch, Durability::Process);
    store.prefetch(table, &[1, 2]).unwrap();
    assert_eq!(counts(&store.engine, table, 1), Some((8, seen)));
    assert_eq!(counts(&store.engine, table, 2).unwrap().0, u32::MAX);
    pressure(&store);
    store.prefetch(table, &[1]).unwrap();
    assert_eq!(counts(&store.engine, table, 1), Some((8, seen)));
}
