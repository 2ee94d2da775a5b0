//! Goal: what is replayed in windows is what one entry after the other gives, bit for bit, however
//! often an opening is cut short.
//!
//! Method: random calls on a store and on a map that follows the same rules; images of the store
//! are opened with windows of every size, stopped between two of them, and opened again.

use std::cell::Cell;
use std::path::Path;

use proptest::prelude::*;

use crate::error::{Error, Result};
use crate::scatter::Operation;
use crate::scratch::Scratch;
use crate::spec::{Initializer, Optimizer, TableSpec};
use crate::store::tests::copy;
use crate::store::{
    Assign, GradientBatch, Import, InsertBatch, LookupBatch, Scatter, Store, StoreConfig,
};
use crate::table::Due;
use crate::types::{Durability, Push, TableId};

thread_local! {
    /// Instead of the bytes that a window may take.
    pub(super) static WINDOW_BYTES: Cell<Option<u64>> = const { Cell::new(None) };
    /// Windows that are merged before the opening ends with an error.
    static WINDOWS: Cell<u64> = const { Cell::new(u64::MAX) };
}

pub(super) fn count_window() -> Result<()> {
    let left = WINDOWS.get();
    WINDOWS.set(left.saturating_sub(1));
    if left > 0 {
        return Ok(());
    }
    Err(Error::unavailable("the test ends the opening here"))
}

const DIM: usize = 3;
const KEYS: u64 = 40;

#[derive(Debug, Clone)]
enum Call {
    Apply(Vec<u64>),
    Assign(Vec<u64>),
    Remove(Vec<u64>),
    /// Whole rows, and whether slots come along.
    Import(Vec<u64>, bool),
    /// Keys that repeat, and the operation.
    Scatter(Vec<u64>, u16),
    /// A training read and its push: rows that a read alone made may be lost.
    Insert(Vec<u64>),
    /// Rows reach the log, and may be ahead of journal entries that are replayed.
    Flush,
    Checkpoint,
}

fn call() -> impl Strategy<Value = Call> {
    let keys = || prop::collection::hash_set(0..KEYS, 1..12).prop_map(|k| k.into_iter().collect());
    prop_oneof![
        6 => keys().prop_map(Call::Apply),
        2 => keys().prop_map(Call::Assign),
        2 => keys().prop_map(Call::Remove),
        2 => (keys(), any::<bool>()).prop_map(|(keys, slots)| Call::Import(keys, slots)),
        3 => (prop::collection::vec(0..KEYS, 1..40), 0..6_u16)
            .prop_map(|(keys, operation)| Call::Scatter(keys, operation)),
        1 => keys().prop_map(Call::Insert),
        1 => Just(Call::Flush),
        1 => Just(Call::Checkpoint),
    ]
}

fn spec() -> TableSpec {
    TableSpec {
        optimizer: Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
        initializer: Initializer::Uniform { low: -1.0, high: 1.0 },
        ..super::super::tests::spec("t", DIM as u32)
    }
}

fn numbers(seed: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as u64 * 31 + seed * 7) % 17) as f32 / 8.0 - 1.0).collect()
}

fn config(path: &Path) -> StoreConfig {
    StoreConfig {
        path: path.to_path_buf(),
        dram_bytes: 8 << 20,
        nvme_bytes: 64 << 20,
        durability: Durability::Process,
        threads: 1,
        shard: (0, 1),
        cold: None,
    }
}

fn apply(store: &Store, number: u64, table: TableId, keys: &[u64]) {
    let gradients = numbers(number, keys.len() * DIM);
    let push = Push { session: 1, number, step: None };
    let batch = GradientBatch { table, keys, gradients: &gradients };
    store.apply_gradients(push, &[batch]).unwrap();
}

/// Returns how many rows a removal found.
fn run(store: &Store, table: TableId, number: u64, call: &Call) -> Option<u64> {
    let push = Push { session: 1, number, step: None };
    match call {
        Call::Apply(keys) => apply(store, number, table, keys),
        Call::Assign(keys) => {
            let rows = numbers(number, keys.len() * DIM);
            store.assign(push, &Assign { table, keys, rows: &rows }).map(drop).unwrap();
        }
        Call::Import(keys, with_slots) => {
            let width = if *with_slots { spec().row_floats() + 2 } else { DIM + 2 };
            // Statistics are the bits of numbers, slots of moments are not negative.
            let rows: Vec<f32> =
                numbers(number, keys.len() * width).iter().map(|x| x * x).collect();
            store.import_rows(push, &Import { table, keys, rows: &rows }).map(drop).unwrap();
        }
        Call::Scatter(keys, operation) => {
            let operation = Operation::of(*operation).unwrap();
            // Far from zero, and in some calls so large that repeats overflow.
            let scale = if number % 3 == 0 { 1e25 } else { 1.0 };
            let mut rows = numbers(number, keys.len() * DIM);
            rows.iter_mut().for_each(|x| *x = (*x + 2.0) * scale);
            let scatter = Scatter { table, operation, keys, rows: &rows };
            store.scatter(push, &scatter).map(drop).unwrap();
        }
        Call::Remove(keys) => return Some(store.remove(push, table, keys).unwrap()),
        Call::Insert(keys) => {
            let mut rows = vec![0.0; keys.len() * DIM];
            let batch = InsertBatch { table, keys, counts: &[], rows: &mut rows };
            store.lookup_or_insert(&mut [batch]).unwrap();
            apply(store, number, table, keys);
        }
        Call::Flush => {
            for stripe in &store.engine.stripes {
                stripe.lock().write_back(&store.engine.tier, Due::All, usize::MAX).unwrap();
            }
            store.flush().unwrap();
        }
        Call::Checkpoint => store.engine.checkpoint(false).unwrap(),
    }
    None
}

/// Bits of all values, and of them after one more push: so slots count too.
fn bits(store: &Store, table: TableId) -> (Vec<u32>, Vec<u8>) {
    let keys: Vec<u64> = (0..KEYS).collect();
    let (mut all, mut found) = (Vec::new(), vec![9; keys.len()]);
    for number in [None, Some(1_000_000)] {
        if let Some(number) = number {
            apply(store, number, table, &keys);
        }
        let mut rows = vec![0.0; keys.len() * DIM];
        let found = if number.is_none() { &mut found[..] } else { &mut [] };
        store.lookup(&mut [LookupBatch { table, keys: &keys, rows: &mut rows, found }]).unwrap();
        all.extend(rows.iter().map(|x| x.to_bits()));
    }
    (all, found)
}

/// Of all keys, where no read counts: those are not journaled.
fn statistics(store: &Store, table: TableId, calls: &[Call]) -> Told {
    let counts = calls.iter().any(|call| matches!(call, Call::Insert(_)));
    let keys: Vec<u64> = (0..KEYS).collect();
    let told = (!counts).then(|| store.statistics(table, &keys).unwrap());
    told.map(|told| (told.frequencies, told.last_seen))
}

type Told = Option<(Vec<u32>, Vec<u32>)>;

/// Equal, but that a replay stamps rows with its own moment.
fn are_alike(one: &Told, other: &Told) -> bool {
    match (one, other) {
        (Some((frequencies, seen)), Some((others, later))) => {
            let near = |(a, b): (&u32, &u32)| a.abs_diff(*b) < 600;
            frequencies == others && seen.iter().zip(later).all(near)
        }
        (one, other) => one == other,
    }
}

/// What the removals among `calls` are told when they come again.
fn removals(store: &Store, table: TableId, calls: &[Call]) -> Vec<u64> {
    let removals = (1..).zip(calls).filter(|(_, call)| matches!(call, Call::Remove(_)));
    let again = |(number, _)| Push { session: 1, number, step: None };
    removals.map(again).map(|push| store.remove(push, table, &[]).unwrap()).collect()
}

fn open_within(path: &Path, bytes: u64, windows: u64) -> Result<Store> {
    WINDOW_BYTES.set(Some(bytes));
    WINDOWS.set(windows);
    let store = Store::open(config(path));
    WINDOW_BYTES.set(None);
    WINDOWS.set(u64::MAX);
    store
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, ..Default::default() })]

    #[test]
    fn windows_give_what_single_entries_give(calls in prop::collection::vec(call(), 1..40)) {
        let scratch = Scratch::in_memory();
        let store = Store::open(config(scratch.path())).unwrap();
        let table = store.create_table(&spec()).unwrap().id;
        let numbered = (1..).zip(&calls);
        let removed: Vec<u64> =
            numbered.filter_map(|(number, call)| run(&store, table, number, call)).collect();
        store.engine.tier.log.sync().unwrap();
        let images: Vec<Scratch> = (0..6).map(|_| copy(scratch.path())).collect();
        let known = statistics(&store, table, &calls);
        let expected = bits(&store, table);
        for (image, bytes) in images.iter().zip([1, 300, 1000, 5000, 1 << 20]) {
            let store = open_within(image.path(), bytes, u64::MAX).unwrap();
            // What a repeated removal is told: also where the log is ahead of the journal.
            let told = removals(&store, table, &calls);
            let counted = statistics(&store, table, &calls);
            prop_assert!(are_alike(&counted, &known), "of {} bytes", bytes);
            prop_assert_eq!(&told, &removed, "windows of {} bytes", bytes);
            prop_assert_eq!(&bits(&store, table), &expected, "windows of {} bytes", bytes);
        }
        // Stopped between windows, again and again, each time a little later.
        let image = &images[5];
        let store = (0..).find_map(|n| open_within(image.path(), 500, n).ok()).unwrap();
        prop_assert_eq!(&bits(&store, table), &expected, "stopped between windows");
    }
}
