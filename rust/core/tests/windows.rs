//! Goal: a push of more keys than it has memory for does what a small one does, to the last bit,
//! within the bound of `dram`. Method: the smallest store, in which a call has memory for some
//! hundred keys, beside a map; calls of twenty thousand keys whose rows are nearly all on NVMe.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hybridps_core::{
    Durability, ErrorKind, GradientBatch, GradientOptions, Initializer, Optimizer, Store,
};

mod kit;
mod scratch;
use kit::{adam, apply, assert_caps, assign, config, copy, numbers, push, spec, stat, Model};
use scratch::Scratch;

const MODE: Durability = Durability::Process;
const KEYS: u64 = 20_000;

fn open(scratch: &Scratch) -> Store {
    Store::open(config(scratch.path(), MODE)).unwrap()
}

/// Keys of one call, in an order that is not that of the stripes.
fn keys(first: u64, n: u64) -> Vec<u64> {
    (0..n).map(|i| first + i * 7919 % n).collect()
}

/// A call may hold a quarter of a tenth of 8 MiB at a time.
fn assert_calls_are_bounded(store: &Store) {
    let held = kit::store_stat(store, "dram_calls");
    assert!(held <= 8 * kit::MIB / 10, "{held} bytes");
}

#[test]
fn large_calls_equal_the_map_and_their_replay() {
    let scratch = Scratch::new("windows");
    let store = open(&scratch);
    let mut spec = spec("t", 16, adam());
    spec.gradients = GradientOptions { weight_decay: 0.01, clip_value: 0.7, clip_norm: 1.5 };
    let mut model = Model::new(&store, spec);
    for number in 1..=4 {
        // Known keys and new ones, most of the known on NVMe.
        let some = keys(number * 12_000, KEYS);
        model.apply(&store, push(1, number), &some, number);
        assert_caps(&store);
    }
    assert!(stat(&store, model.table, "rows_nvme") > KEYS / 2, "the rows should not fit DRAM");
    model.check(&store);
    let some = keys(40_000, KEYS);
    let rows = numbers(5, some.len() * 16);
    assign(&store, push(1, 5), model.table, &some, &rows).unwrap();
    for (key, row) in some.iter().zip(rows.chunks(16)) {
        model.row(*key)[..16].copy_from_slice(row);
    }
    model.remove(&store, push(1, 6), &keys(30_000, KEYS));
    model.check(&store);
    assert_eq!(kit::store_stat(&store, "dram_calls"), 0, "what was booked is given back");
    let image = Scratch::new("windows");
    copy(scratch.path(), image.path());
    let again = open(&image);
    model.check(&again);
    again.close().unwrap();
    store.close().unwrap();
}

/// Repeats are looked for window by window too.
#[test]
fn repeated_keys_of_a_large_call_are_summed_first() {
    let scratch = Scratch::new("windows");
    let store = open(&scratch);
    let mut model = Model::new(&store, spec("t", 2, adam()));
    let mut repeated = keys(0, KEYS);
    repeated.push(repeated[77]);
    let mut gradients = numbers(1, repeated.len() * 2);
    apply(&store, push(1, 1), model.table, &repeated, &gradients).unwrap();
    let last = gradients.split_off(KEYS as usize * 2);
    gradients[77 * 2] += last[0];
    gradients[77 * 2 + 1] += last[1];
    model.follow(&repeated[..KEYS as usize], &gradients);
    model.check(&store);
    store.close().unwrap();
}

/// Two tables in one call share its memory; other calls go on beside it, and nothing is lost.
#[test]
fn large_calls_side_by_side_add_up() {
    let scratch = Scratch::new("windows");
    let store = open(&scratch);
    let table = |name, dim| {
        let mut spec = spec(name, dim, Optimizer::Sgd);
        (spec.learning_rate, spec.initializer) = (1.0, Initializer::Zeros);
        store.create_table(&spec).unwrap().id
    };
    let (wide, narrow) = (table("wide", 32), table("narrow", 1));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pushers: Vec<_> = (1..=3)
            .map(|session| {
                let store = &store;
                scope.spawn(move || {
                    let keys = keys(session, 10_000);
                    for number in 1..=4 {
                        let ones = vec![-1.0; keys.len() * 32];
                        let batch = |table, n: usize| GradientBatch {
                            table,
                            keys: &keys,
                            gradients: &ones[..n],
                        };
                        let batches = [batch(wide, ones.len()), batch(narrow, keys.len())];
                        store.apply_gradients(push(session, number), &batches).unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !is_done.load(Relaxed) {
                assert_calls_are_bounded(&store);
                kit::lookup(&store, wide, 32, &keys(5000, 500)).unwrap();
            }
        });
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        is_done.store(true, Relaxed);
    });
    for key in [1, 2, 3, 500, 9_999, 10_001, 10_002] {
        let pushed = (1..=3).filter(|&s| (s..s + 10_000).contains(&key)).count() as f32 * 4.0;
        assert_eq!(kit::lookup(&store, wide, 32, &[key]).unwrap().0, [pushed; 32], "{key}");
        assert_eq!(kit::lookup(&store, narrow, 1, &[key]).unwrap().0, [pushed], "{key}");
    }
    store.close().unwrap();
}

/// A record that is found damaged when its turn has come stays as it is; all others are changed,
/// and the call tells of it. Its replay does the same.
#[test]
fn damage_behind_the_first_window_costs_its_own_row() {
    let scratch = Scratch::new("windows");
    let store = open(&scratch);
    let mut model = Model::new(&store, spec("t", 16, adam()));
    let all: Vec<u64> = (0..KEYS).map(|i| kit::unhash(u64::MAX / KEYS * i + 1)).collect();
    model.apply(&store, push(1, 1), &all, 1);
    store.close().unwrap();
    // In the order of their buckets: of the last window.
    let bad = all[KEYS as usize - 10];
    assert!(kit::damage(scratch.path(), bad, model.spec.row_floats()) > 0);
    let store = open(&scratch);
    let gradients = numbers(2, all.len() * 16);
    let error = apply(&store, push(1, 2), model.table, &all, &gradients).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corruption);
    let old = model.rows[&bad].clone();
    model.follow(&all, &gradients);
    model.rows.remove(&bad);
    let sound: Vec<u64> = all.iter().copied().filter(|&key| key != bad).collect();
    let check = |store: &Store, model: &Model| {
        let rows = kit::lookup(store, model.table, 16, &sound).unwrap().0;
        for (key, row) in sound.iter().zip(rows.chunks(16)) {
            assert_eq!(row, &model.rows[key][..16], "key {key}");
        }
        let error = kit::lookup(store, model.table, 16, &[bad]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corruption);
    };
    check(&store, &model);
    let image = Scratch::new("windows");
    copy(scratch.path(), image.path());
    let again = open(&image);
    check(&again, &model);
    // Begun anew it can be trained again.
    assign(&again, push(1, 3), model.table, &[bad], &old[..16]).unwrap();
    assert_eq!(kit::lookup(&again, model.table, 16, &[bad]).unwrap().0, old[..16]);
    again.close().unwrap();
    store.close().unwrap();
}
