//! Goal: keys may come and go for ever: the store holds what its live rows take, removed keys stay
//! away through compaction, crashes and restarts, and an empty store is nearly empty on the device.
//!
//! Method: fresh keys are pushed and removed in turns, alone and beside rows that are never touched
//! again, while the store is crashed (an image of the open store) and opened again; many times what
//! the log holds goes through it.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hybridps_core::{Durability, Optimizer, Store};

mod kit;
mod scratch;
use kit::{all_keys, config, copy, push, spec, store_stat, Model, MIB};
use scratch::Scratch;

const STEP: u64 = 8000;

/// A table whose keys live for `age` rounds, all but one of `stay`.
struct Churn {
    model: Model,
    alive: VecDeque<Vec<u64>>,
    age: usize,
    stay: Option<u64>,
    number: u64,
}

impl Churn {
    fn round(&mut self, store: &Store) {
        let first = self.number / 2 * STEP;
        // Keys of all buckets, some of them again.
        let keys: Vec<u64> = (first..first + STEP)
            .map(|n| if n % 10 == 0 { n % 30_000 } else { n.wrapping_mul(0x9e37_79b9_7f4a_7c15) })
            .collect();
        let keys: Vec<u64> =
            keys.into_iter().filter(|key| !self.model.rows.contains_key(key)).collect();
        self.model.apply(store, push(1, self.number + 1), &keys, self.number);
        store.flush().unwrap();
        // Rows that stay keep old segments, with the dead rows in them.
        let stays = |key: &u64| self.stay.is_some_and(|n| key / 7 % n == 0);
        self.alive.push_back(keys.into_iter().filter(|key| !stays(key)).collect());
        if self.alive.len() > self.age {
            let gone = self.alive.pop_front().unwrap();
            self.model.remove(store, push(1, self.number + 2), &gone);
        }
        self.number += 2;
    }

    fn remove_all(&mut self, store: &Store) {
        let keys: Vec<u64> = self.model.rows.keys().copied().collect();
        for gone in keys.chunks(20_000) {
            self.number += 1;
            self.model.remove(store, push(1, self.number), gone);
        }
    }
}

fn check(store: &Store, model: &Model) {
    model.check(store);
    let mut keys: Vec<u64> = model.rows.keys().copied().collect();
    keys.sort_unstable();
    assert!(all_keys(store, model.table) == keys, "keys that were removed are back, or lost");
}

fn run(mode: Durability, age: usize, stay: Option<u64>, is_beside: bool) {
    let mut scratch = Scratch::new("churn");
    let mut store = Store::open(config(scratch.path(), mode)).unwrap();
    let mut cold = Model::new(&store, spec("cold", 8, Optimizer::Sgd));
    if is_beside {
        cold.apply(&store, push(2, 1), &(0..20_000).collect::<Vec<_>>(), 3);
        store.flush().unwrap();
    }
    let model = Model::new(&store, spec("item", 8, Optimizer::Sgd));
    let mut churn = Churn { model, alive: VecDeque::new(), age, stay, number: 0 };
    for round in 1..=60 {
        churn.round(&store);
        if round % 30 == 0 {
            // Nothing is on its way: without a journal, too, the image is what was flushed.
            store.flush().unwrap();
            let image = Scratch::new("churn");
            copy(scratch.path(), image.path());
            drop(std::mem::replace(&mut store, Store::open(config(image.path(), mode)).unwrap()));
            scratch = image;
        } else if round % 30 == 15 {
            store.close().unwrap();
            store = Store::open(config(scratch.path(), mode)).unwrap();
        }
        if round % 15 == 0 {
            check(&store, &churn.model);
        }
    }
    churn.remove_all(&store);
    check(&store, &churn.model);
    check(&store, &cold);
    store.close().unwrap();
    store = Store::open(config(scratch.path(), mode)).unwrap();
    check(&store, &cold);
    // Rows of 64 bytes with their entries of 22; a few segments of 256 KiB are no matter.
    let rows = cold.rows.len() as u64 * 90;
    let end = Instant::now() + Duration::from_secs(60);
    while store_stat(&store, "nvme_bytes") > 2 * rows + 6 * MIB {
        let bytes = store_stat(&store, "nvme_bytes");
        assert!(Instant::now() < end, "{bytes} bytes for {} rows", cold.rows.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn keys_that_come_and_go_leave_nothing() {
    run(Durability::None, 0, None, false);
}

#[test]
fn keys_that_come_and_go_beside_rows_that_stay() {
    run(Durability::Process, 0, None, true);
}

#[test]
fn keys_that_age_leave_nothing() {
    run(Durability::Interval, 8, None, true);
}

#[test]
fn keys_that_go_stay_away_beside_some_that_stay() {
    run(Durability::Process, 2, Some(4), false);
}
