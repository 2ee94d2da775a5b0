//! Goal: a key gets a row when its rule says, and not before: nothing but its count is kept, no
//! optimizer touches it. Method: random calls beside a map of counts and a map of rows, for every
//! optimizer; the same calls on stores of other budgets and shards, bit for bit; restarts and
//! crashes.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::collections::HashMap;
use std::path::Path;

use hybridps_core::{
    bucket, hash, initial_row, shard_of_bucket, Admission, Durability, ErrorKind, InsertBatch,
    Optimizer, PushOutcome, Store, StoreConfig, TableChange, TableId, TableSpec,
};

mod kit;
mod scratch;
use kit::{adam, apply, assign, config, copy, insert, lookup, numbers, push, stat, MIB};
use scratch::Scratch;

const KEYS: u64 = 12_000;
const AMPLE: u64 = 1_000_000;

fn min_count(n: u32) -> Admission {
    Admission::MinCount { n, capacity: AMPLE }
}

fn with(optimizer: Optimizer, admission: Admission) -> TableSpec {
    TableSpec { admission: Some(admission), ..kit::spec("t", 24, optimizer) }
}

fn open(path: &Path, dram_bytes: u64) -> Store {
    Store::open(StoreConfig { dram_bytes, ..config(path, Durability::Process) }).unwrap()
}

/// Keys of step `n`, some of them in nearly every step, with counts.
fn batch(n: u64, size: u64) -> (Vec<u64>, Vec<u32>) {
    let key = |i: u64| {
        let x = hash(n * 100_003 + i);
        hash(x % (KEYS >> (x >> 61))) | 1
    };
    let mut keys: Vec<u64> = (0..size).map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.sort_unstable_by_key(|&key| hash(key ^ n));
    let counts = keys.iter().map(|&key| 1 + (hash(key + n) % 4 / 3) as u32).collect();
    (keys, counts)
}

fn insert_counted(store: &Store, table: TableId, keys: &[u64], counts: &[u32]) -> Vec<f32> {
    let mut rows = vec![f32::NAN; keys.len() * 24];
    store.lookup_or_insert(&mut [InsertBatch { table, keys, counts, rows: &mut rows }]).unwrap();
    rows
}

/// Rows, and the counts of keys that have none.
struct Oracle {
    rows: kit::Model,
    counts: HashMap<u64, u32>,
    n: u32,
    dropped: u64,
}

impl Oracle {
    fn new(store: &Store, optimizer: Optimizer, n: u32) -> Self {
        let rows = kit::Model::new(store, with(optimizer, min_count(n)));
        Self { rows, counts: HashMap::new(), n, dropped: 0 }
    }

    fn read(&mut self, store: &Store, keys: &[u64], counts: &[u32]) {
        let rows = insert_counted(store, self.rows.table, keys, counts);
        for ((&key, &count), row) in keys.iter().zip(counts).zip(rows.chunks(24)) {
            let mut initial = vec![0.0; 24];
            initial_row(&self.rows.spec.initializer, self.rows.spec.seed, key, &mut initial);
            let so_far = self.counts.get(&key).copied().unwrap_or(0) + count;
            if !self.rows.rows.contains_key(&key) && so_far < self.n {
                self.counts.insert(key, so_far);
            } else {
                self.counts.remove(&key);
                initial.copy_from_slice(&self.rows.row(key)[..24]);
            }
            assert_eq!(row, initial, "key {key}");
        }
    }

    fn push(&mut self, store: &Store, number: u64, keys: &[u64]) {
        let gradients = numbers(number, keys.len() * 24);
        let outcome = apply(store, push(1, number), self.rows.table, keys, &gradients);
        assert_eq!(outcome.unwrap(), PushOutcome::Applied);
        for (&key, gradient) in keys.iter().zip(gradients.chunks(24)) {
            match self.rows.rows.contains_key(&key) {
                true => self.rows.follow(&[key], gradient),
                false => self.dropped += 1,
            }
        }
    }

    fn assign(&mut self, store: &Store, number: u64, keys: &[u64]) {
        let values = numbers(number, keys.len() * 24);
        assign(store, push(1, number), self.rows.table, keys, &values).unwrap();
        for (&key, value) in keys.iter().zip(values.chunks(24)) {
            self.counts.remove(&key);
            self.rows.row(key)[..24].copy_from_slice(value);
        }
    }

    fn remove(&mut self, store: &Store, number: u64, keys: &[u64]) {
        self.rows.remove(store, push(1, number), keys);
        keys.iter().for_each(|key| _ = self.counts.remove(key));
    }

    fn check(&self, store: &Store) {
        self.rows.check(store);
        let table = self.rows.table;
        assert_eq!(stat(store, table, "candidates"), self.counts.len() as u64);
        let absent: Vec<u64> = self.counts.keys().copied().collect();
        let (rows, found) = lookup(store, table, 24, &absent).unwrap();
        assert!(found.iter().all(|&found| found == 0) && rows.iter().all(|&x| x == 0.0));
    }
}

fn optimizers() -> Vec<Optimizer> {
    let (beta1, beta2, eps) = (0.9, 0.99, 1e-8);
    let (l1, l2, l21, initial_accumulator) = (0.001, 0.01, 0.001, 0.1);
    vec![
        Optimizer::Sgd,
        Optimizer::Adagrad { initial_accumulator, eps },
        Optimizer::RowWiseAdagrad { initial_accumulator, eps },
        adam(),
        Optimizer::Momentum { momentum: 0.9, nesterov: true },
        Optimizer::AdamW { beta1, beta2, eps },
        Optimizer::AmsGrad { beta1, beta2, eps },
        Optimizer::RmsProp { alpha: 0.9, eps },
        Optimizer::Ftrl { initial_accumulator, l1, l2 },
        Optimizer::AdaBelief { beta1, beta2, eps },
        Optimizer::RAdam { beta1, beta2, eps },
        Optimizer::Lamb { beta1, beta2, eps },
        Optimizer::GroupAdam { beta1, beta2, eps, l1, l2, l21 },
        Optimizer::SparseGroupFtrl { initial_accumulator, l1, l2, l21 },
    ]
}

/// The smallest DRAM, so rows of most optimizers leave for the device; counts go through a clean
/// restart and through a crash behind a flush.
#[test]
fn every_optimizer_follows_a_map_of_counts_and_rows() {
    for (which, optimizer) in optimizers().into_iter().enumerate() {
        let (scratch, image) = (Scratch::new("admission-1"), Scratch::new("admission-2"));
        let mut store = open(scratch.path(), 8 * MIB);
        let mut oracle = Oracle::new(&store, optimizer, 2 + which as u32 % 3);
        let mut number = 0;
        for step in 0..24 {
            number += 1;
            let (keys, counts) = batch(step, 1500);
            oracle.read(&store, &keys, &counts);
            oracle.push(&store, number, &keys);
            if step % 7 == 3 {
                number += 2;
                oracle.assign(&store, number - 1, &batch(step + 500, 60).0);
                oracle.remove(&store, number, &batch(step + 900, 400).0);
            }
            if step == 11 {
                assert_eq!(stat(&store, oracle.rows.table, "gradients_unadmitted"), oracle.dropped);
                store.close().unwrap();
                store = open(scratch.path(), 8 * MIB);
            }
            if step == 17 {
                store.flush().unwrap();
                copy(scratch.path(), image.path());
                store.close().unwrap();
                store = open(image.path(), 8 * MIB);
            }
            if step % 6 == 5 {
                oracle.check(&store);
            }
        }
        assert!(oracle.dropped > 1000 && oracle.rows.rows.len() > 1000, "{optimizer:?}");
    }
}

/// All rows of a store, and what became of the keys.
type Outcome = (Vec<(u64, Vec<u32>)>, u64, u64);

/// The same calls on as many stores as there are shards, of so much DRAM, which are restarted now
/// and then.
fn outcome(admission: Admission, shards: u32, dram_bytes: u64, restarts: bool) -> Outcome {
    let scratches: Vec<Scratch> =
        (0..shards).map(|s| Scratch::new(&format!("admission-shard-{s}"))).collect();
    let mut stores: Vec<Store> = scratches.iter().map(|of| open(of.path(), dram_bytes)).collect();
    let spec = with(Optimizer::Adagrad { initial_accumulator: 0.1, eps: 1e-8 }, admission);
    let table = stores.iter().map(|store| store.create_table(&spec).unwrap().id).max().unwrap();
    let (mut admitted, mut dropped) = (0, 0);
    for step in 0..20 {
        let (keys, counts) = batch(step, 6000);
        for s in 0..shards {
            let own = |key: u64| shard_of_bucket(bucket(hash(key)), shards) == s;
            let of = keys.iter().copied().zip(counts.iter().copied()).filter(|of| own(of.0));
            let (keys, counts): (Vec<u64>, Vec<u32>) = of.unzip();
            let store = &stores[s as usize];
            insert_counted(store, table, &keys, &counts);
            let gradients =
                keys.iter().flat_map(|&key| numbers(key % 991 + step, 24)).collect::<Vec<_>>();
            apply(store, push(1, step + 1), table, &keys, &gradients).unwrap();
        }
        if restarts && step % 6 == 5 || step == 19 {
            let sum = |name| stores.iter().map(|store| stat(store, table, name)).sum::<u64>();
            admitted += sum("keys_admitted");
            dropped += sum("gradients_unadmitted");
        }
        if restarts && step % 6 == 5 {
            stores.drain(..).for_each(|store| store.close().unwrap());
            stores = scratches.iter().map(|of| open(of.path(), dram_bytes)).collect();
        }
    }
    let mut rows = Vec::new();
    for store in &stores {
        let keys = kit::all_keys(store, table);
        let (values, _) = lookup(store, table, 24, &keys).unwrap();
        let bits = values.chunks(24).map(|row| row.iter().map(|x| x.to_bits()).collect());
        rows.extend(keys.into_iter().zip(bits));
    }
    rows.sort_unstable();
    (rows, admitted, dropped)
}

/// Goal: who is admitted depends on nothing but the calls, also where far more keys come than
/// counts are kept of. Method: other numbers of stripes, of keys in a window, of shards; restarts.
#[test]
fn dram_shards_and_restarts_change_nothing() {
    let rules = [
        Admission::MinCount { n: 3, capacity: AMPLE },
        Admission::MinCount { n: 3, capacity: 500 },
        Admission::Probability { p: 0.25, capacity: AMPLE },
        Admission::Probability { p: 0.1, capacity: 500 },
    ];
    for rule in rules {
        let expected = outcome(rule, 1, 300 * MIB, false);
        assert!(expected.0.len() > 500 && expected.2 > 500, "{rule:?}: {}", expected.0.len());
        for (shards, dram, restarts) in [(1, 8, false), (1, 8, true), (3, 8, true), (3, 300, false)]
        {
            let other = outcome(rule, shards, dram * MIB, restarts);
            assert!(other == expected, "{rule:?}: {shards} shards, {dram} MiB, {restarts}");
        }
    }
}

/// Goal: with too little room for counts keys are admitted late, never early. Method: the map of
/// counts beside a table that remembers few.
#[test]
fn a_small_capacity_admits_late() {
    let scratch = Scratch::new("admission-4");
    let store = open(scratch.path(), 64 * MIB);
    let rule = Admission::MinCount { n: 4, capacity: 300 };
    let table = store.create_table(&with(Optimizer::Sgd, rule)).unwrap().id;
    let mut counts: HashMap<u64, u32> = HashMap::new();
    for step in 0..30 {
        let (keys, given) = batch(step, 2000);
        insert_counted(&store, table, &keys, &given);
        keys.iter().zip(given).for_each(|(&key, count)| *counts.entry(key).or_default() += count);
    }
    let admitted = kit::all_keys(&store, table);
    assert!(admitted.iter().all(|key| counts[key] >= 4));
    let due = counts.values().filter(|&&count| count >= 4).count();
    assert!(admitted.len() > 100 && admitted.len() < due, "{} of {due}", admitted.len());
    let bytes = stat(&store, table, "candidates_bytes");
    assert!(bytes < 600_000, "{bytes} bytes for 300 keys, in 4096 buckets");
}

/// Goal: a crash costs counts since the last flush and nothing else; a row that was trained stays.
#[test]
fn a_crash_costs_counts_and_never_a_trained_row() {
    let (scratch, image) = (Scratch::new("admission-5"), Scratch::new("admission-6"));
    let store = open(scratch.path(), 8 * MIB);
    let mut oracle = Oracle::new(&store, adam(), 3);
    let (early, late) = ((1..400).collect::<Vec<u64>>(), (1000..1400).collect::<Vec<u64>>());
    oracle.read(&store, &early, &vec![2; early.len()]);
    store.flush().unwrap();
    // Counted behind the flush: lost. Admitted and trained behind it: kept.
    oracle.read(&store, &late, &vec![2; late.len()]);
    oracle.read(&store, &early[..100], &[1; 100]);
    oracle.push(&store, 1, &early);
    copy(scratch.path(), image.path());
    drop(store);
    let store = open(image.path(), 8 * MIB);
    late.iter().for_each(|key| _ = oracle.counts.remove(key));
    oracle.rows.check(&store);
    oracle.read(&store, &late, &vec![1; late.len()]);
    oracle.read(&store, &early, &vec![1; early.len()]);
    assert_eq!(oracle.rows.rows.len(), early.len());
    oracle.push(&store, 2, &early);
    oracle.check(&store);
}

/// A push that is made again drops its gradients once, and one of keys that are all unadmitted is a
/// push like any other.
#[test]
fn a_push_that_comes_again_counts_once() {
    let (scratch, image) = (Scratch::new("admission-7"), Scratch::new("admission-8"));
    let store = open(scratch.path(), 8 * MIB);
    let table = store.create_table(&with(adam(), min_count(2))).unwrap().id;
    let keys: Vec<u64> = (0..50).collect();
    insert(&store, table, 24, &keys).unwrap();
    insert(&store, table, 24, &keys[..10]).unwrap();
    let gradients = numbers(1, 50 * 24);
    let again = |store: &Store| apply(store, push(1, 1), table, &keys, &gradients).unwrap();
    assert_eq!(again(&store), PushOutcome::Applied);
    let (rows, _) = lookup(&store, table, 24, &keys).unwrap();
    assert_eq!(again(&store), PushOutcome::Duplicate);
    // The second attempt finds rows that the first did not.
    insert(&store, table, 24, &keys).unwrap();
    assert_eq!(again(&store), PushOutcome::Duplicate);
    assert_eq!(stat(&store, table, "gradients_unadmitted"), 40);
    assert_eq!(lookup(&store, table, 24, &keys[..10]).unwrap().0, rows[..240]);
    let absent: Vec<u64> = (500..520).collect();
    apply(&store, push(1, 2), table, &absent, &numbers(2, 20 * 24)).unwrap();
    copy(scratch.path(), image.path());
    drop(store);
    let store = open(image.path(), 8 * MIB);
    assert_eq!(lookup(&store, table, 24, &keys[..10]).unwrap().0, rows[..240]);
    assert_eq!(again(&store), PushOutcome::Duplicate);
    let repeated = apply(&store, push(1, 2), table, &absent, &numbers(2, 20 * 24)).unwrap();
    assert_eq!((repeated, store.len(table).unwrap()), (PushOutcome::Duplicate, 10));
}

/// Keys that repeat in a call add up, and gradients of those that repeat are left out whole.
#[test]
fn repeats_add_up() {
    let scratch = Scratch::new("admission-9");
    let store = open(scratch.path(), 8 * MIB);
    let table = store.create_table(&with(Optimizer::Sgd, min_count(3))).unwrap().id;
    let keys = [7, 8, 7, 9, 7, 8];
    let rows = insert(&store, table, 24, &keys).unwrap();
    assert_eq!(rows[..24], rows[2 * 24..3 * 24]);
    assert_eq!(kit::all_keys(&store, table), [7]);
    let mut merged = vec![0.0; keys.len() * 24];
    let batch = InsertBatch { table, keys: &keys, counts: &[], rows: &mut merged };
    store.lookup_or_insert_merged(&mut [batch]).unwrap();
    assert_eq!((merged, kit::all_keys(&store, table)), (rows, vec![7, 8]));
    apply(&store, push(1, 1), table, &[9, 7, 9, 8, 9], &numbers(3, 5 * 24)).unwrap();
    assert_eq!(stat(&store, table, "gradients_unadmitted"), 1, "of keys, summed");
    let frequency = store.inspect(table, &[7, 8, 9]).unwrap();
    let frequency: Vec<u32> = frequency.iter().map(|row| row.frequency).collect();
    assert_eq!(frequency, [6, 4, 0], "what was counted before is in the row");
}

#[test]
fn the_rule_is_a_live_setting() {
    let scratch = Scratch::new("admission-10");
    let store = open(scratch.path(), 8 * MIB);
    let table = store.create_table(&with(adam(), min_count(3))).unwrap().id;
    let alter = |store: &Store, admission| {
        let change = TableChange { admission: Some(admission), ..TableChange::default() };
        store.alter(table, &change)
    };
    let read = |store: &Store| insert(store, table, 24, &[1, 2, 3]).map(drop).unwrap();
    read(&store);
    alter(&store, Some(min_count(1000))).unwrap();
    read(&store);
    read(&store);
    assert_eq!((store.len(table).unwrap(), stat(&store, table, "candidates")), (0, 3));
    let error = alter(&store, Some(min_count(0))).unwrap_err();
    assert_eq!(error.message, "admission: n is 0; give 1 to 65536");
    store.close().unwrap();
    let store = open(scratch.path(), 8 * MIB);
    assert_eq!(store.spec(table).unwrap().admission, Some(min_count(1000)));
    alter(&store, Some(min_count(4))).unwrap();
    read(&store);
    assert_eq!(store.len(table).unwrap(), 3, "counts stay when a rule changes");
    insert(&store, table, 24, &[9]).unwrap();
    alter(&store, None).unwrap();
    assert_eq!(stat(&store, table, "candidates_bytes"), 0);
    insert(&store, table, 24, &[10]).unwrap();
    apply(&store, push(1, 1), table, &[11], &numbers(1, 24)).unwrap();
    assert_eq!(kit::all_keys(&store, table), [1, 2, 3, 10, 11]);
    let stored = store.create_table(&with(adam(), min_count(5))).unwrap();
    assert!(stored.warnings.iter().any(|text| text.starts_with("admission is None")));
    store.close().unwrap();
    assert!(!scratch.path().join("candidates").exists(), "nothing is in it");
}

/// Goal: counts take no more than there is; who has a row goes on. Method: more keys than the
/// smallest DRAM can count.
#[test]
fn counts_that_do_not_fit_are_refused_and_rows_go_on() {
    let scratch = Scratch::new("admission-11");
    let store = open(scratch.path(), 8 * MIB);
    let capacity = 100_000_000;
    let spec = TableSpec { dim: 1, ..with(Optimizer::Sgd, Admission::MinCount { n: 2, capacity }) };
    let table = store.create_table(&spec).unwrap().id;
    insert(&store, table, 1, &[1, 1]).unwrap();
    let mut refused = None;
    for first in (100..3_000_000).step_by(50_000) {
        let keys: Vec<u64> = (first..first + 50_000).collect();
        refused = insert(&store, table, 1, &keys).err();
        kit::assert_caps(&store);
        if refused.is_some() {
            break;
        }
    }
    let error = refused.expect("12 MB were counted in 8 MiB");
    assert_eq!(error.kind, ErrorKind::StoreFull);
    assert!(error.message.contains("counts of keys that are not admitted"), "{error}");
    assert!(stat(&store, table, "candidates") > 500_000, "most of it is theirs");
    insert(&store, table, 1, &[1]).unwrap();
    apply(&store, push(1, 1), table, &[1], &[1.0]).unwrap();
    store.close().unwrap();
    let store = open(scratch.path(), 8 * MIB);
    assert!(stat(&store, table, "candidates") > 500_000, "they come back");
}

/// Goal: damage of counts costs counts. Method: every tenth byte of their file, one at a time.
#[test]
fn a_damaged_file_of_counts_costs_counts_alone() {
    let (scratch, image) = (Scratch::new("admission-12"), Scratch::new("admission-13"));
    let store = open(scratch.path(), 8 * MIB);
    let mut oracle = Oracle::new(&store, adam(), 2);
    oracle.read(&store, &(0..30).collect::<Vec<_>>(), &[1; 30]);
    oracle.read(&store, &(0..10).collect::<Vec<_>>(), &[1; 10]);
    store.close().unwrap();
    let whole = std::fs::read(scratch.path().join("candidates")).unwrap();
    for at in (0..whole.len()).step_by(10) {
        copy(scratch.path(), image.path());
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        std::fs::write(image.path().join("candidates"), bytes).unwrap();
        let store = open(image.path(), 8 * MIB);
        oracle.rows.check(&store);
        assert!(stat(&store, oracle.rows.table, "candidates") <= 20);
        insert(&store, oracle.rows.table, 24, &(10..30).collect::<Vec<_>>()).unwrap();
        insert(&store, oracle.rows.table, 24, &(10..30).collect::<Vec<_>>()).unwrap();
        assert_eq!(store.len(oracle.rows.table).unwrap(), 30);
    }
}
