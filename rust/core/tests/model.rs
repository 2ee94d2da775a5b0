//! Goal: a store is a map from key to row, whatever its cache, its restarts and its crashes.
//!
//! Method: random calls on a store with the smallest budgets, beside plain maps that follow the
//! same rules with the same optimizer code; after every few calls all rows are compared bit for
//! bit.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::collections::{HashMap, HashSet};
use std::path::Path;

use hybridps_core::{
    initial_row, Assign, Durability, GradientBatch, Initializer, InsertBatch, LookupBatch,
    Optimizer, Push, Store, StoreConfig, TableId, TableSpec,
};
use proptest::prelude::*;

mod scratch;
use scratch::Scratch;

const KEYS: u64 = 30_000;

fn spec(name: &str, dim: u32, optimizer: Optimizer) -> TableSpec {
    TableSpec {
        name: name.into(),
        dim,
        optimizer,
        learning_rate: 0.1,
        initializer: Initializer::Normal { mean: 0.0, std: 0.1 },
        seed: 3,
        dtype: "float32".into(),
        dram: Some(1 << 20),
        nvme: None,
    }
}

fn config(path: &Path, durability: Durability) -> StoreConfig {
    StoreConfig {
        path: path.to_path_buf(),
        dram_bytes: 8 << 20,
        nvme_bytes: 64 << 20,
        durability,
        threads: 1,
        shard: (0, 1),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u64, u16),
    Apply(u64, u16),
    Assign(u64, u16),
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
        1 => range.prop_map(|(k, n)| Step::Remove(k, n)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        2 => Just(Step::Crash),
    ]
}

struct Model {
    spec: TableSpec,
    rows: HashMap<u64, Vec<f32>>,
    /// Rows that training reads made and no push has named: a crash may lose them.
    unpushed: HashSet<u64>,
}

impl Model {
    /// After a crash: rows that may be lost, and are.
    fn forget_lost(&mut self, store: &Store, table: TableId) {
        let keys: Vec<u64> = self.unpushed.drain().collect();
        let mut rows = vec![0.0; keys.len() * self.spec.dim as usize];
        let mut found = vec![0; keys.len()];
        let batch = LookupBatch { table, keys: &keys, rows: &mut rows, found: &mut found };
        store.lookup(&mut [batch]).unwrap();
        for (key, found) in keys.iter().zip(found) {
            if found == 0 {
                self.rows.remove(key);
            }
        }
    }

    fn row(&mut self, key: u64) -> &mut Vec<f32> {
        let spec = &self.spec;
        self.rows.entry(key).or_insert_with(|| {
            let mut row = vec![0.0; spec.row_floats()];
            let (value, slots) = row.split_at_mut(spec.dim as usize);
            initial_row(&spec.initializer, spec.seed, key, value);
            spec.optimizer.initial_slots(slots);
            row
        })
    }

    fn apply(&mut self, keys: &[u64], gradients: &[f32]) {
        let (dim, optimizer, rate) =
            (self.spec.dim as usize, self.spec.optimizer, self.spec.learning_rate);
        let mut scratch = vec![0.0; self.spec.row_floats()];
        for (&key, gradient) in keys.iter().zip(gradients.chunks_exact(dim)) {
            optimizer.step(rate, self.row(key), gradient, &mut scratch);
        }
    }
}

/// Keys that jump about, so that pages and buckets mix.
fn keys(first: u64, n: u16) -> Vec<u64> {
    (0..u64::from(n)).map(|i| (first + i * 7) % KEYS).map(|k| k.wrapping_mul(0x9e37_79b9)).collect()
}

fn gradients(seed: u64, keys: &[u64], dim: usize) -> Vec<f32> {
    (0..keys.len() * dim).map(|i| ((i as u64 * 31 + seed) % 17) as f32 / 8.0 - 1.0).collect()
}

/// What a killed process leaves: the files as the kernel has them at one moment. The copy takes
/// the journal last, so that it is not older than the rows.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("journal")).unwrap();
    for name in ["MANIFEST", "superblock", "rows.log"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    for file in std::fs::read_dir(from.join("journal")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join("journal").join(file.file_name())).unwrap();
    }
}

fn compare(store: &Store, table: TableId, model: &Model) -> Result<(), TestCaseError> {
    let dim = model.spec.dim as usize;
    let all: Vec<u64> = (0..KEYS).map(|k| k.wrapping_mul(0x9e37_79b9)).collect();
    let mut rows = vec![f32::NAN; all.len() * dim];
    let mut found = vec![9; all.len()];
    let batch = LookupBatch { table, keys: &all, rows: &mut rows, found: &mut found };
    store.lookup(&mut [batch]).unwrap();
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
    prop_assert_eq!(store.len(table).unwrap(), model.rows.len() as u64);
    let mut listed = Vec::new();
    let mut bucket = 0;
    while bucket < 4096 {
        bucket = store.keys(table, bucket, &mut listed).unwrap();
    }
    listed.sort_unstable();
    let mut expected: Vec<u64> = model.rows.keys().copied().collect();
    expected.sort_unstable();
    prop_assert!(listed == expected, "{} keys listed, {} exist", listed.len(), expected.len());
    Ok(())
}

/// A store, and what its rows should be.
struct Beside {
    scratch: Scratch,
    store: Store,
    table: TableId,
    model: Model,
    mode: Durability,
}

impl Beside {
    fn new(optimizer: Optimizer, dim: u32, mode: Durability) -> Self {
        let scratch = Scratch::new("model");
        let store = Store::open(config(scratch.path(), mode)).unwrap();
        let spec = spec("t", dim, optimizer);
        let table = store.create_table(&spec).unwrap().id;
        store.attach(1, "").unwrap();
        let model = Model { spec, rows: HashMap::new(), unpushed: HashSet::new() };
        Self { scratch, store, table, model, mode }
    }

    fn step(&mut self, number: u64, step: &Step) -> Result<(), TestCaseError> {
        let (table, dim) = (self.table, self.model.spec.dim);
        let push = Push { session: 1, number, step: None };
        match *step {
            Step::Insert(first, n) => {
                let keys = keys(first, n);
                let mut rows = vec![0.0; keys.len() * dim as usize];
                let batch = InsertBatch { table, keys: &keys, counts: &[], rows: &mut rows };
                self.store.lookup_or_insert(&mut [batch]).unwrap();
                for (key, row) in keys.iter().zip(rows.chunks_exact(dim as usize)) {
                    if !self.model.rows.contains_key(key) {
                        self.model.unpushed.insert(*key);
                    }
                    prop_assert_eq!(row, &self.model.row(*key)[..dim as usize]);
                }
            }
            Step::Apply(first, n) => {
                let keys = keys(first, n);
                let gradients = gradients(number, &keys, dim as usize);
                let batch = GradientBatch { table, keys: &keys, gradients: &gradients };
                self.store.apply_gradients(push, &[batch]).unwrap();
                self.model.apply(&keys, &gradients);
                self.model.unpushed.retain(|key| !keys.contains(key));
            }
            Step::Assign(first, n) => {
                let keys = keys(first, n);
                let rows = gradients(number, &keys, dim as usize);
                self.store.assign(push, &Assign { table, keys: &keys, rows: &rows }).unwrap();
                for (key, row) in keys.iter().zip(rows.chunks_exact(dim as usize)) {
                    self.model.row(*key)[..dim as usize].copy_from_slice(row);
                    self.model.unpushed.remove(key);
                }
            }
            Step::Remove(first, n) => {
                let keys = keys(first, n.min(500));
                let removed = self.store.remove(push, table, &keys).unwrap();
                let expected =
                    keys.iter().filter(|key| self.model.rows.remove(key).is_some()).count();
                self.model.unpushed.retain(|key| !keys.contains(key));
                prop_assert_eq!(removed, expected as u64);
            }
            Step::Flush => self.store.flush().unwrap(),
            Step::Reopen => {
                self.store.close().unwrap();
                self.store = Store::open(config(self.scratch.path(), self.mode)).unwrap();
                prop_assert_eq!(self.store.create_table(&self.model.spec).unwrap().id, table);
            }
            // Rows are durable after flush only in mode none: there is nothing to compare with.
            Step::Crash if self.mode == Durability::None => {}
            Step::Crash => {
                let image = Scratch::new("image");
                copy(self.scratch.path(), image.path());

                // Kept until its store is closed.
                let _old = std::mem::replace(&mut self.scratch, image);
                self.store = Store::open(config(self.scratch.path(), self.mode)).unwrap();
                self.model.forget_lost(&self.store, table);
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
            compare(&beside.store, beside.table, &beside.model)?;
        }
    }
    compare(&beside.store, beside.table, &beside.model)?;
    let stats: HashMap<_, _> =
        beside.store.table_stats(beside.table).unwrap().into_iter().collect();
    prop_assert!(stats["dram_bytes"] <= 1 << 20, "{} bytes", stats["dram_bytes"]);
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
            _ => Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
        };
        run(&steps, optimizer, dim, mode)?;
    }
}
