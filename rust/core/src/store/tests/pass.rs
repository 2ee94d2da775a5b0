//! Goal: a pass over the stripes reads what a key alone would read, holds nothing while it waits,
//! and keeps heat only when there is use for it. Method: a stripe held by the test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{open, spec};
use crate::scratch::Scratch;
use crate::store::{InsertBatch, LookupBatch, Store};
use crate::table::{stripe_of, Found, Item};
use crate::types::{hash, Durability, TableId};

fn lookup(store: &Store, table: TableId, keys: &[u64]) -> Vec<f32> {
    let mut rows = vec![-1.0; keys.len()];
    store.lookup(&mut [LookupBatch { table, keys, rows: &mut rows, found: &mut [] }]).unwrap();
    rows
}

fn insert(store: &Store, table: TableId, keys: &[u64], dim: usize) {
    let mut rows = vec![0.0; keys.len() * dim];
    store
        .lookup_or_insert(&mut [InsertBatch { table, keys, counts: &[], rows: &mut rows }])
        .unwrap();
}

/// Rank of the heat of a row in DRAM.
fn heat(store: &Store, table: TableId, key: u64) -> u8 {
    let engine = &store.engine;
    let item = Item { key, hash: hash(key), index: 0 };
    let state = engine.stripes[stripe_of(item.hash, engine.stripes.len())].lock();
    let part = &state.parts[&table];
    match part.find(&item, |_| true) {
        Found::Dram(at) => part.rank(at),
        other => panic!("key {key} is at {other:?}"),
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

/// Whoever waits for a stripe while it holds others makes all wait who need one of those.
#[test]
fn a_read_that_waits_for_a_stripe_holds_none() {
    let scratch = Scratch::new();
    let store = Arc::new(open(&scratch, Durability::None));
    let table = store.create_table(&spec("t", 1)).unwrap().id;
    let keys: Vec<u64> = (0..5000).collect();
    insert(&store, table, &keys, 1);
    let engine = &store.engine;
    let held = engine.stripes.len() / 2;
    let guard = engine.stripes[held].lock();
    let reader = {
        let (store, keys) = (store.clone(), keys.clone());
        std::thread::spawn(move || lookup(&store, table, &keys))
    };
    // Long enough for it to come as far as the stripe that is held.
    std::thread::sleep(Duration::from_millis(300));
    let others = || engine.stripes.iter().enumerate().filter(|(s, _)| *s != held);
    wait_until("all others are free", || {
        others().map(|(_, stripe)| stripe.try_lock()).collect::<Option<Vec<_>>>().is_some()
    });
    assert!(!reader.is_finished(), "it has read a stripe that is held");
    drop(guard);
    assert_eq!(reader.join().unwrap(), vec![0.0; keys.len()]);
}

#[test]
fn heat_is_kept_once_dram_runs_short() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let table = store.create_table(&spec("t", 64)).unwrap().id;
    let hot: Vec<u64> = (0..100).collect();
    insert(&store, table, &hot, 64);
    let read = |times: usize| {
        let mut rows = vec![0.0; hot.len() * 64];
        for _ in 0..times {
            let batch = LookupBatch { table, keys: &hot, rows: &mut rows, found: &mut [] };
            store.lookup(&mut [batch]).unwrap();
        }
    };
    read(20);
    let once = heat(&store, table, hot[0]);
    assert!(hot.iter().all(|&key| heat(&store, table, key) == once), "there is room for all");
    let budget = store.config().dram_bytes;
    let mut next = 1000_u64;
    let dram = || store.stats().iter().find(|stat| stat.0 == "dram_bytes").map_or(0, |s| s.1);
    while dram() < budget / 10 * 8 {
        insert(&store, table, &(next..next + 500).collect::<Vec<_>>(), 64);
        next += 500;
    }
    read(20);
    assert!(hot.iter().all(|&key| heat(&store, table, key) > once + 20), "they are the hottest");
    for first in (next..next + 60_000).step_by(2000) {
        insert(&store, table, &(first..first + 2000).collect::<Vec<_>>(), 64);
        read(1);
    }
    let misses = |stats: Vec<(&str, u64)>| stats.iter().find(|s| s.0 == "cache_misses").unwrap().1;
    let before = misses(store.stats());
    read(1);
    assert_eq!(misses(store.stats()), before, "rows that are read all the time stay");
}

#[test]
fn a_prefetch_is_no_hit_and_no_miss() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::None);
    let table = store.create_table(&spec("t", 64)).unwrap().id;
    let keys: Vec<u64> = (0..40_000).collect();
    keys.chunks(2000).for_each(|keys| insert(&store, table, keys, 64));
    let counted = || {
        let names = ["unique_keys", "probes", "cache_hits", "cache_misses", "device_reads"];
        let is_counted = |stat: &(&str, u64)| names.contains(&stat.0);
        store.stats().into_iter().filter(is_counted).collect::<Vec<_>>()
    };
    let background = || store.stats().iter().find(|s| s.0 == "background_reads").unwrap().1;
    let (before, reads) = (counted(), background());
    store.prefetch(table, &keys[..1000]).unwrap();
    assert_eq!(counted(), before);
    assert!(background() > reads, "nothing was read: all rows are in DRAM");
}
