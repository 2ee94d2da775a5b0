//! Goal: room is refused before anything changes, said clearly, and comes back when keys go.
//!
//! Method: small caps that are filled to the last key, again and again, by calls that fail half
//! way, by keys that look alike to the index, and by removals; a leak or a debt of a single row
//! would move the cap.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use hybridps_core::{
    Durability, Error, ErrorKind, GradientBatch, InsertBatch, Optimizer, Push, PushOutcome, Store,
    TableChange, TableId,
};

mod kit;
mod scratch;
use kit::{apply, config, insert, lookup, push, spec, stat, store_stat, unhash, Model, MIB};
use scratch::Scratch;

const DIM: usize = 8;

fn open(scratch: &Scratch) -> Store {
    Store::open(config(scratch.path(), Durability::Process)).unwrap()
}

fn capped(store: &Store, name: &str, nvme: u64) -> TableId {
    let spec = hybridps_core::TableSpec { nvme: Some(nvme), ..spec(name, 8, Optimizer::Sgd) };
    store.create_table(&spec).unwrap().id
}

fn assert_full(error: &Error) {
    assert_eq!(error.kind, ErrorKind::StoreFull, "{error}");
    assert!(error.message.contains("raise"), "no remedy: {error}");
}

/// Keys that fit the cap of an empty table, one at a time.
fn capacity(store: &Store, table: TableId, first: u64) -> u64 {
    let (mut n, before) = (0, store.len(table).unwrap());
    loop {
        match insert(store, table, DIM, &[first + n]) {
            Ok(_) => n += 1,
            Err(error) => {
                assert_full(&error);
                assert_eq!(store.len(table).unwrap(), before + n, "a refused key is not there");
                return n;
            }
        }
    }
}

/// A push that was refused for its second table kept what it had set aside for its first.
#[test]
fn a_refused_push_gives_back_what_it_set_aside() {
    let scratch = Scratch::new("accounting");
    let store = open(&scratch);
    let (a, b) = (capped(&store, "a", 10_000), capped(&store, "b", 1000));
    let keys: Vec<u64> = (0..100).collect();
    let gradients = vec![1.0; keys.len() * DIM];
    for number in 1..200 {
        let batch = |table| GradientBatch { table, keys: &keys, gradients: &gradients };
        let error = store.apply_gradients(push(1, number), &[batch(a), batch(b)]).unwrap_err();
        assert_full(&error);
        assert_eq!((store.len(a).unwrap(), store.len(b).unwrap()), (0, 0));
    }
    let n = capacity(&store, a, 0);
    assert!((80..=125).contains(&n), "{n} keys of about 86 bytes in 10000");
}

/// Tables whose step was a repeat are passed over; what was set aside for them went to others.
#[test]
fn a_push_that_applies_in_part_settles_table_by_table() {
    let scratch = Scratch::new("accounting");
    let store = open(&scratch);
    let (a, b) = (capped(&store, "a", 10_000), capped(&store, "b", 10_000));
    let n = capacity(&store, b, 0);
    let keys: Vec<u64> = (0..n).collect();
    assert_eq!(store.remove(push(99, 1), b, &keys).unwrap(), n);
    let gradients = vec![1.0; keys.len() * DIM];
    let one = GradientBatch { table: a, keys: &[1 << 40], gradients: &[1.0; DIM] };
    store.attach(1, "trainer").unwrap();
    let step = |session| Push { session, number: 1, step: Some(1) };
    store.apply_gradients(step(1), &[one]).unwrap();
    for session in 2..20 {
        store.attach(session, "trainer").unwrap();
        let few = GradientBatch { table: a, keys: &keys[..50], gradients: &gradients[..50 * DIM] };
        let all = GradientBatch { table: b, keys: &keys, gradients: &gradients };
        let step = Push { step: Some(session as i64), ..step(session) };
        let replayed = Push { step: Some(1), ..step };
        let outcome = store.apply_gradients(replayed, &[few]).unwrap();
        assert_eq!(outcome, PushOutcome::Duplicate);
        let mixed = Push { number: 2, step: Some(1), ..step };
        let outcome = store.apply_gradients(
            mixed,
            &[
                GradientBatch { table: a, keys: &keys[..50], gradients: &gradients[..50 * DIM] },
                all,
            ],
        );
        // From the second round on all of it is a repeat.
        let expected = if session == 2 { PushOutcome::Applied } else { PushOutcome::Duplicate };
        assert_eq!(outcome.unwrap(), expected);
    }
    assert_eq!((store.len(a).unwrap(), store.len(b).unwrap()), (1, n));
    assert_full(&insert(&store, b, DIM, &[n]).unwrap_err());
    assert_eq!(store.remove(push(99, 2), b, &keys).unwrap(), n);
    assert_eq!(capacity(&store, b, 0), n);
    assert_eq!(capacity(&store, a, 0), n - 1);
}

/// Keys whose 36 bits in the index agree: a probe takes each for the others, so that they are
/// created without having been foreseen.
#[test]
fn keys_that_look_alike_are_told_apart_and_charged() {
    let scratch = Scratch::new("accounting");
    let mut store = open(&scratch);
    let table = capped(&store, "twins", 100_000);
    let spec = store.spec(table).unwrap();
    let mut model = Model { spec, table, rows: Default::default() };
    let n = capacity(&store, table, 0);
    assert_eq!(store.remove(push(9, 1), table, &(0..n).collect::<Vec<_>>()).unwrap(), n);
    let mixed = |group: u64| group.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let twin = |group: u64, i: u64| unhash(mixed(group) & !0xfff_ffff | i);
    let mut number = 0;
    for round in 0..20 {
        for i in 0..5 {
            number += 1;
            let keys: Vec<u64> = (0..100).map(|group| twin(group, i)).collect();
            model.apply(&store, push(1, number), &keys, number);
        }
        model.check(&store);
        if round % 4 == 3 {
            store.close().unwrap();
            store = open(&scratch);
            model.check(&store);
        }
        number += 1;
        let keys: Vec<u64> = (0..100).flat_map(|g| (0..5).map(move |i| twin(g, i))).collect();
        model.remove(&store, push(1, number), &keys);
    }
    assert_eq!(capacity(&store, table, 0), n);
}

/// The region of one bucket, and so one stripe, holds all keys.
#[test]
fn one_bucket_may_hold_all_keys() {
    let scratch = Scratch::new("accounting");
    let mut store = open(&scratch);
    let mut model = Model::new(&store, spec("skewed", 2, Optimizer::Sgd));
    let keys: Vec<u64> = (0..20_000_u64)
        .map(|i| unhash(77 << 52 | i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 12))
        .collect();
    let mut number = 0;
    for keys in keys.chunks(20) {
        let gradients = vec![0.5; keys.len() * 2];
        number += 1;
        match apply(&store, push(1, number), model.table, keys, &gradients) {
            Ok(_) => model.follow(keys, &gradients),
            Err(error) => {
                assert_full(&error);
                break;
            }
        }
    }
    kit::assert_caps(&store);
    model.check(&store);
    assert!(model.rows.len() >= 100, "{} keys fit", model.rows.len());
    let some: Vec<u64> = model.rows.keys().copied().take(60).collect();
    model.remove(&store, push(1, number + 1), &some);
    store.close().unwrap();
    store = open(&scratch);
    model.check(&store);
}

/// New keys are refused when the index alone would pass the bound; the old go on.
#[test]
fn the_index_stops_new_keys_before_it_passes_the_bound() {
    let scratch = Scratch::new("accounting");
    let store = open(&scratch);
    let spec = hybridps_core::TableSpec { dram: Some(MIB), ..spec("t", 1, Optimizer::Sgd) };
    let mut model = Model::new(&store, spec);
    let error = (0..1000).find_map(|n| {
        let keys: Vec<u64> = (n * 1000..n * 1000 + 1000).collect();
        let gradients = vec![1.0; keys.len()];
        let outcome = apply(&store, push(1, n + 1), model.table, &keys, &gradients);
        outcome.map(|_| model.follow(&keys, &gradients)).err()
    });
    assert_full(&error.unwrap());
    assert!(model.rows.len() > 30_000, "{} keys fit 1 MiB", model.rows.len());
    assert!(stat(&store, model.table, "dram_bytes") <= MIB);
    model.check(&store);
    let old: Vec<u64> = (0..1000).collect();
    model.apply(&store, push(1, 5000), &old, 3);
    store
        .alter(model.table, &TableChange { dram: Some(Some(2 * MIB)), ..Default::default() })
        .unwrap();
    let more: Vec<u64> = (10_000_000..10_001_000).collect();
    model.apply(&store, push(1, 5001), &more, 3);
    // The index of all these keys is a little more than it could be before.
    let lower = Some(Some(MIB / 8 * 9));
    store.alter(model.table, &TableChange { dram: lower, ..Default::default() }).unwrap();
    model.check(&store);
}

/// The cap on rows keeps the log workable, whatever shape the rows have: half a page is wasted
/// behind records of 2 KiB, and records of 48 bytes cost as much again in footers.
#[test]
fn a_store_full_of_rows_of_any_shape_goes_on() {
    for dim in [1_u32, 512, 1100, 4096] {
        let scratch = Scratch::new("accounting");
        let mut config = config(scratch.path(), Durability::Process);
        config.dram_bytes = if dim == 1 { 32 * MIB } else { 8 * MIB };
        let store = Store::open(config.clone()).unwrap();
        let mut model = Model::new(&store, spec("t", dim, Optimizer::Sgd));
        let step = (MIB / 4 / u64::from(dim) / 4).clamp(16, 10_000);
        let error = (0..10_000).find_map(|n| {
            let keys: Vec<u64> = (n * step..(n + 1) * step).collect();
            let seed = kit::numbers(n, keys.len() * dim as usize);
            let outcome = apply(&store, push(1, n + 1), model.table, &keys, &seed);
            outcome.map(|_| model.follow(&keys, &seed)).err()
        });
        let error = error.unwrap();
        assert_full(&error);
        assert!(error.message.contains("new keys would take"), "dim {dim}: {error}");
        let n = model.rows.len() as u64;
        for round in 0..3 * n / step {
            let keys: Vec<u64> = (0..step).map(|i| (i * 37 + round * step) % n).collect();
            let keys: std::collections::BTreeSet<u64> = keys.into_iter().collect();
            let keys: Vec<u64> = keys.into_iter().collect();
            model.apply(&store, push(2, round + 1), &keys, round);
        }
        kit::assert_caps(&store);
        store.close().unwrap();
        let store = Store::open(config).unwrap();
        model.check(&store);
    }
}

/// A key that came twice in a batch of new keys got two rows when the keys between pushed its
/// first out of DRAM.
#[test]
fn repeats_in_a_batch_of_new_keys_make_one_row() {
    let scratch = Scratch::new("accounting");
    let store = open(&scratch);
    let spec = hybridps_core::TableSpec { dram: Some(MIB), ..spec("t", 64, Optimizer::Sgd) };
    let table = store.create_table(&spec).unwrap().id;
    let once: Vec<u64> = (0..6000).collect();
    let keys = [&once[..], &once[..]].concat();
    insert(&store, table, 64, &keys).unwrap();
    assert_eq!(store.len(table).unwrap(), 6000);
    assert_eq!(kit::all_keys(&store, table), once);
    let gradients = vec![1.0; keys.len() * 64];
    apply(&store, push(1, 1), table, &keys, &gradients).unwrap();
    assert_eq!(store.remove(push(1, 2), table, &keys).unwrap(), 6000);
    assert_eq!(store.len(table).unwrap(), 0);
}

#[test]
fn empty_batches_and_extreme_keys_are_fine() {
    let scratch = Scratch::new("accounting");
    let store = open(&scratch);
    let mut model = Model::new(&store, spec("t", 3, kit::adam()));
    assert!(insert(&store, model.table, 3, &[]).unwrap().is_empty());
    assert_eq!(lookup(&store, model.table, 3, &[]).unwrap(), (vec![], vec![]));
    apply(&store, push(1, 1), model.table, &[], &[]).unwrap();
    kit::assign(&store, push(1, 2), model.table, &[], &[]).unwrap();
    assert_eq!(store.remove(push(1, 3), model.table, &[]).unwrap(), 0);
    store.prefetch(model.table, &[]).unwrap();
    store.lookup(&mut []).unwrap();
    store.lookup_or_insert(&mut []).unwrap();
    store.apply_gradients(push(1, 4), &[]).unwrap();
    model.apply(&store, push(1, 5), &[0, u64::MAX, 1 << 63], 5);
    model.check(&store);
    let twice = &mut [0.0; 12];
    let keys = [u64::MAX, u64::MAX, 0, u64::MAX];
    let batch = InsertBatch { table: model.table, keys: &keys, counts: &[], rows: twice };
    store.lookup_or_insert(&mut [batch]).unwrap();
    assert_eq!(twice[..3], model.rows[&u64::MAX][..3]);
    store.close().unwrap();
    let store = open(&scratch);
    model.check(&store);
    let (hits, misses) = ("cache_hits", "cache_misses");
    let known = stat(&store, model.table, hits) + stat(&store, model.table, misses);
    assert_eq!(known, 3);
    assert!(stat(&store, model.table, "device_reads") <= stat(&store, model.table, misses));
    assert_eq!(store_stat(&store, "tables"), 1);
}
