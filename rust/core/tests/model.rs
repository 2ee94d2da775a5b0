//! Goal: a store is a map from key to row, whatever its cache, its restarts and its crashes.
//!
//! Method: random calls on a store with the smallest budgets, beside plain maps that follow the
//! same rules with the same optimizer code; after every few calls all rows are compared bit for
//! bit.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::collections::HashSet;

use hybridps_core::{Durability, Optimizer, PushOutcome, Store, TableSpec};
use proptest::prelude::*;

mod kit;
mod scratch;
use kit::{all_keys, apply, assign, config, copy, insert, lookup, numbers, push, stat, MIB};
use scratch::Scratch;

const KEYS: u64 = 30_000;

#[derive(Debug, Clone)]
enum Step {
    Insert(u64, u16),
    Apply(u64, u16),
    Assign(u64, u16),
    Scatter(u64, u16),
    Remove(u64, u16),
    Flush,
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..KEYS, 1..3000_u16);
    prop_oneof![
        3 => range.clone().prop_map(|(k, n)| Step::Insert(k, n)),
        6 => range.clone().prop_map(|(k, n)| Step::Apply(k, n)),
        1 => range.clone().prop_map(|(k, n)| Step::Assign(k, n)),
        2 => range.clone().prop_map(|(k, n)| Step::Scatter(k, n)),
        1 => range.prop_map(|(k, n)| Step::Remove(k, n)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        2 => Just(Step::Crash),
    ]
}

/// The rows, and those of them that training reads made and no push has named: a crash may lose
/// these.
struct Model {
    table: kit::Model,
    unpushed: HashSet<u64>,
}

impl Model {
    /// After a crash: rows that may be lost, and are.
    fn forget_lost(&mut self, store: &Store) {
        let keys: Vec<u64> = self.unpushed.drain().collect();
        let (_, found) = lookup(store, self.table.table, self.table.dim(), &keys).unwrap();
        for (key, found) in keys.iter().zip(found) {
            if found == 0 {
                self.table.rows.remove(key);
            }
        }
    }
}

/// Keys that jump about, so that pages and buckets mix.
fn keys(first: u64, n: u16) -> Vec<u64> {
    (0..u64::from(n)).map(|i| (first + i * 7) % KEYS).map(|k| k.wrapping_mul(0x9e37_79b9)).collect()
}

fn compare(store: &Store, model: &kit::Model) -> Result<(), TestCaseError> {
    let dim = model.dim();
    let all: Vec<u64> = (0..KEYS).map(|k| k.wrapping_mul(0x9e37_79b9)).collect();
    let (rows, found) = lookup(store, model.table, dim, &all).unwrap();
    for (i, key) in all.iter().enumerate() {
        let row = &rows[i * dim..(i + 1) * dim];
        match model.rows.get(key) {
            Some(expected) => {
                prop_assert!(found[i] == 1, "key {key} is lost");
                prop_assert_eq!(row, &expected[..dim], "key {}", key);
            }
            None => prop_assert!(found[i] == 0 && row.iter().all(|&x| x == 0.0)),
        }
    }
    prop_assert_eq!(store.len(model.table).unwrap(), model.rows.len() as u64);
    let listed = all_keys(store, model.table);
    let mut expected: Vec<u64> = model.rows.keys().copied().collect();
    expected.sort_unstable();
    prop_assert!(listed == expected, "{} keys listed, {} exist", listed.len(), expected.len());
    Ok(())
}

/// A store, and what its rows should be.
struct Beside {
    scratch: Scratch,
    store: Store,
    model: Model,
    mode: Durability,
}

impl Beside {
    fn new(optimizer: Optimizer, dim: u32, mode: Durability) -> Self {
        let scratch = Scratch::new("model");
        let store = Store::open(config(scratch.path(), mode)).unwrap();
        let spec = TableSpec { dram: Some(MIB), ..kit::spec("t", dim, optimizer) };
        let table = kit::Model::new(&store, spec);
        store.attach(1, "").unwrap();
        Self { scratch, store, model: Model { table, unpushed: HashSet::new() }, mode }
    }

    fn step(&mut self, number: u64, step: &Step) -> Result<(), TestCaseError> {
        let Model { table: model, unpushed } = &mut self.model;
        let (table, dim) = (model.table, model.dim());
        let push = push(1, number);
        match *step {
            Step::Insert(first, n) => {
                let keys = keys(first, n);
                let rows = insert(&self.store, table, dim, &keys).unwrap();
                for (key, row) in keys.iter().zip(rows.chunks_exact(dim)) {
                    if !model.rows.contains_key(key) {
                        unpushed.insert(*key);
                    }
                    prop_assert_eq!(row, &model.row(*key)[..dim]);
                }
            }
            Step::Apply(first, n) => {
                let keys = keys(first, n);
                let gradients = numbers(number, keys.len() * dim);
                let outcome = apply(&self.store, push, table, &keys, &gradients).unwrap();
                prop_assert_eq!(outcome, PushOutcome::Applied);
                model.follow(&keys, &gradients);
                unpushed.retain(|key| !keys.contains(key));
            }
            Step::Assign(first, n) => {
                let keys = keys(first, n);
                let rows = numbers(number, keys.len() * dim);
                assign(&self.store, push, table, &keys, &rows).unwrap();
                for (key, row) in keys.iter().zip(rows.chunks_exact(dim)) {
                    model.row(*key)[..dim].copy_from_slice(row);
                    unpushed.remove(key);
                }
            }
            Step::Scatter(first, n) => {
                // Most keys twice, some three times, none side by side.
                let mut keys = [keys(first, n), keys(first + 7, n)].concat();
                keys.extend_from_within(..keys.len() / 4);
                let operands = numbers(number, keys.len() * dim);
                model.scatter(&self.store, push, &keys, &operands);
                unpushed.retain(|key| !keys.contains(key));
            }
            Step::Remove(first, n) => {
                let keys = keys(first, n.min(500));
                model.remove(&self.store, push, &keys);
                unpushed.retain(|key| !keys.contains(key));
            }
            Step::Flush => self.store.flush().unwrap(),
            Step::Reopen => {
                self.store.close().unwrap();
                self.store = Store::open(config(self.scratch.path(), self.mode)).unwrap();
                prop_assert_eq!(self.store.create_table(&model.spec).unwrap().id, table);
            }
            // Rows are durable after flush only in mode none: there is nothing to compare with.
            Step::Crash if self.mode == Durability::None => {}
            Step::Crash => {
                let image = Scratch::new("image");
                copy(self.scratch.path(), image.path());

                // Kept until its store is closed.
                let _old = std::mem::replace(&mut self.scratch, image);
                self.store = Store::open(config(self.scratch.path(), self.mode)).unwrap();
                self.model.forget_lost(&self.store);
            }
        }
        Ok(())
    }
}

fn run(
    steps: &[Step],
    optimizer: Optimizer,
    dim: u32,
    mode: Durability,
) -> Result<(), TestCaseError> {
    let mut beside = Beside::new(optimizer, dim, mode);
    for (number, step) in (1..).zip(steps) {
        beside.step(number, step)?;
        if number % 4 == 0 {
            compare(&beside.store, &beside.model.table)?;
        }
    }
    compare(&beside.store, &beside.model.table)?;
    let used = stat(&beside.store, beside.model.table.table, "dram_bytes");
    prop_assert!(used <= MIB, "{used} bytes");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..Default::default() })]

    #[test]
    fn rows_are_those_of_a_map(
        steps in prop::collection::vec(step(), 1..24),
        dim in prop_oneof![Just(1_u32), Just(8), Just(17), Just(64)],
        which in 0..4,
        mode in prop_oneof![Just(Durability::None), Just(Durability::Process)],
    ) {
        let optimizer = match which {
            0 => Optimizer::Sgd,
            1 => Optimizer::Adagrad { initial_accumulator: 0.1, eps: 1e-10 },
            2 => Optimizer::RowWiseAdagrad { initial_accumulator: 0.0, eps: 1e-8 },
            _ => kit::adam(),
        };
        run(&steps, optimizer, dim, mode)?;
    }
}
