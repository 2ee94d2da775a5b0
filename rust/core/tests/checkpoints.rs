//! Goal: a checkpoint is all of a store as of one moment, bit for bit, whatever goes on meanwhile;
//! it restores to any number of servers; and whatever is wrong with its files is told before
//! anything changes.
//!
//! Method: a writer whose every call is followed by a model, while checkpoints are made at a low
//! rate: what they restore must be what the model was between two of its calls. Servers in number,
//! saved and restored in others. Every byte of small checkpoints flipped, every file taken away.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use hybridps_core::{
    bucket, checkpoints, hash, initial_row, prune, publish, shard_of_bucket, verify, Draft,
    Durability, ErrorKind, InsertBatch, Optimizer, Progress, Store, TableSpec, TakenKind,
};

mod kit;
mod scratch;
use kit::saved::{
    dump, dump_all, open_shards, request, restore, restore_of, rows, save, Dump, Row,
};
use kit::{apply, assign, config, numbers, push, spec};
use scratch::Scratch;

/// Numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn adagrad() -> Optimizer {
    Optimizer::Adagrad { initial_accumulator: 0.1, eps: 1e-8 }
}

/// What a call of the writer does.
#[derive(Clone)]
enum Op {
    Read(Vec<u64>),
    Push(Vec<u64>, u64),
    Assign(Vec<u64>, u64),
    Remove(Vec<u64>),
}

/// A table that follows the calls. Last uses are left out: they are checked against the store's.
#[derive(Default)]
struct Follower {
    rows: BTreeMap<u64, (Vec<f32>, u32)>,
}

impl Follower {
    fn row<'a>(&'a mut self, spec: &TableSpec, key: u64) -> &'a mut (Vec<f32>, u32) {
        self.rows.entry(key).or_insert_with(|| {
            let mut row = vec![0.0; spec.row_floats()];
            let (value, slots) = row.split_at_mut(spec.dim as usize);
            initial_row(&spec.initializer, spec.seed, key, value);
            spec.optimizer.initial_slots(slots);
            (row, 0)
        })
    }

    fn follow(&mut self, spec: &TableSpec, op: &Op) {
        let dim = spec.dim as usize;
        match op {
            Op::Read(keys) => keys.iter().for_each(|&key| self.row(spec, key).1 += 1),
            Op::Push(keys, seed) => {
                let gradients = numbers(*seed, keys.len() * dim);
                let mut scratch = vec![0.0; spec.row_floats() + dim];
                for (&key, gradient) in keys.iter().zip(gradients.chunks_exact(dim)) {
                    let (row, _) = self.row(spec, key);
                    let (rate, options) = (spec.learning_rate, &spec.gradients);
                    spec.optimizer.step(rate, options, row, gradient, &mut scratch);
                }
            }
            Op::Assign(keys, seed) => {
                let values = numbers(*seed, keys.len() * dim);
                for (&key, value) in keys.iter().zip(values.chunks_exact(dim)) {
                    self.row(spec, key).0[..dim].copy_from_slice(value);
                }
            }
            Op::Remove(keys) => keys.iter().for_each(|key| drop(self.rows.remove(key))),
        }
    }

    fn is(&self, rows: &BTreeMap<u64, Row>) -> bool {
        self.rows.len() == rows.len()
            && self.rows.iter().zip(rows).all(|((key, (row, count)), (other, told))| {
                let bits = row.iter().map(|x| x.to_bits());
                key == other && bits.eq(told.0.iter().copied()) && *count == told.2
            })
    }
}

/// The one writer of a store.
struct Writer<'a> {
    store: &'a Store,
    spec: TableSpec,
    table: u32,
    keys: u64,
    random: Random,
    pushes: u64,
    ops: Vec<Op>,
}

impl Writer<'_> {
    fn some_keys(&mut self, n: u64) -> Vec<u64> {
        let mut keys: Vec<u64> = (0..n).map(|_| self.random.next(self.keys)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn call(&mut self) {
        let dim = self.spec.dim as usize;
        let seed = self.random.next(1000);
        let op = match self.random.next(8) {
            0..=2 => Op::Read(self.some_keys(400)),
            3..=5 => Op::Push(self.some_keys(400), seed),
            6 => Op::Assign(self.some_keys(40), seed),
            _ => Op::Remove(self.some_keys(3)),
        };
        self.pushes += 1;
        let (store, table, own) = (self.store, self.table, push(1, self.pushes));
        match &op {
            Op::Read(keys) => {
                let mut rows = vec![0.0; keys.len() * dim];
                let batch = InsertBatch { table, keys, counts: &[], rows: &mut rows };
                store.lookup_or_insert(&mut [batch]).unwrap();
            }
            Op::Push(keys, seed) => {
                let gradients = numbers(*seed, keys.len() * dim);
                apply(store, own, table, keys, &gradients).unwrap();
            }
            Op::Assign(keys, seed) => {
                let values = numbers(*seed, keys.len() * dim);
                assign(store, own, table, keys, &values).unwrap();
            }
            Op::Remove(keys) => drop(store.remove(own, table, keys).unwrap()),
        }
        self.ops.push(op);
    }
}

fn files_of(path: &Path, id: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(path.join(id)).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort_unstable();
    files
}

/// Checkpoints, full ones and deltas, at such a rate that many calls come meanwhile: each is what
/// the table was between two calls, with slots and counts.
fn is_of_one_moment(durability: Durability, keys: u64, dim: u32) {
    let scratch = Scratch::new("checkpoints");
    let path = scratch.path().join("saved");
    let store = Store::open(config(&scratch.path().join("store"), durability)).unwrap();
    let spec = spec("t", dim, adagrad());
    let table = store.create_table(&spec).unwrap().id;
    let random = Random(u64::from(dim));
    let mut writer =
        Writer { store: &store, spec: spec.clone(), table, keys, random, pushes: 0, ops: vec![] };
    for _ in 0..60 {
        writer.call();
    }
    let row_bytes = 16 + 4 * spec.row_floats() as u64;
    let mut begun_at = Vec::new();
    let mut made = Vec::new();
    for n in 0..4 {
        begun_at.push(writer.ops.len());
        let begun = store.begin_checkpoint(&path, n == 2).unwrap();
        // A third of a second for all rows.
        let request = request(&path, &begun, 3 * keys * row_bytes);
        let is_done = AtomicBool::new(false);
        let summary = std::thread::scope(|scope| {
            let saved = scope.spawn(|| {
                let saved = store.save(&request, &Progress::default());
                is_done.store(true, Ordering::Release);
                saved
            });
            while !is_done.load(Ordering::Acquire) {
                writer.call();
            }
            saved.join().unwrap().unwrap()
        });
        let draft = Draft {
            parent: begun.1,
            step: Some(n),
            extra: serde_json::Value::Null,
            shards: vec![summary],
        };
        made.push(publish(&path, &begun.0, draft).unwrap());
    }
    // A delta, unless more was removed meanwhile than is remembered.
    assert_eq!([made[0].kind, made[2].kind], [TakenKind::Full; 2]);
    verify(&path, None, &Progress::default()).unwrap();
    let mut follower = Follower::default();
    let mut at = 0;
    for (n, made) in made.iter().enumerate() {
        let other =
            Store::open(config(&scratch.path().join(format!("of-{n}")), durability)).unwrap();
        let request = hybridps_core::RestoreRequest { step: Some(n as i64), ..restore_of(&path) };
        restore(std::slice::from_ref(&other), &request).unwrap();
        let restored = rows(&other, "t");
        assert_eq!(made.tables["t"], restored.len() as u64);
        while at < begun_at[n] {
            follower.follow(&spec, &writer.ops[at]);
            at += 1;
        }
        let end = begun_at.get(n + 1).copied().unwrap_or(writer.ops.len());
        while !follower.is(&restored) {
            assert!(at < end, "checkpoint {n} is no moment of the table");
            follower.follow(&spec, &writer.ops[at]);
            at += 1;
        }
    }
}

#[test]
fn a_checkpoint_is_of_one_moment_while_rows_come_and_go() {
    is_of_one_moment(Durability::Interval, 20_000, 8);
}

/// Most rows are on NVMe.
#[test]
fn and_so_is_one_of_rows_that_do_not_fit_the_dram() {
    is_of_one_moment(Durability::None, 30_000, 64);
}

/// Stores with two tables, trained a little; rows as they are.
fn train(stores: &[Store], keys: u64) -> Dump {
    let specs = [spec("a", 4, adagrad()), spec("b", 12, kit::adam())];
    let shards = stores.len() as u32;
    for (n, store) in stores.iter().enumerate() {
        let is_own = |key: &u64| shard_of_bucket(bucket(hash(*key)), shards) == n as u32;
        store.attach(7, "trainer").unwrap();
        for (number, spec) in (1..).zip(&specs) {
            let table = store.create_table(spec).unwrap().id;
            let own: Vec<u64> = (0..keys).filter(is_own).collect();
            kit::insert(store, table, spec.dim as usize, &own).unwrap();
            let gradients = numbers(number, own.len() * spec.dim as usize);
            let push = hybridps_core::Push { step: Some(5), ..push(7, number) };
            apply(store, push, table, &own, &gradients).unwrap();
        }
    }
    dump_all(stores)
}

#[test]
fn what_k_servers_saved_m_restore() {
    let numbers_of_servers = [1, 2, 3, 5, 8];
    for k in numbers_of_servers {
        let scratch = Scratch::new("checkpoints");
        let path = scratch.path().join("saved");
        let stores = open_shards(&scratch.path().join("from"), k, Durability::None);
        let before = train(&stores, 2000);
        let made = save(&stores, &path, Some(5), false);
        assert_eq!((made.kind, made.shards.len()), (TakenKind::Full, k as usize));
        drop(stores);
        for m in numbers_of_servers {
            let others = open_shards(&scratch.path().join("to"), m, Durability::Process);
            restore(&others, &restore_of(&path)).unwrap();
            assert!(dump_all(&others) == before, "saved by {k}, restored by {m}");
            for store in &others {
                // The trainer comes again, and repeats its last step.
                let table = store.table("a").unwrap();
                store.attach(8, "trainer").unwrap();
                for (number, step) in [(1, 5), (2, 6)] {
                    let push = hybridps_core::Push { step: Some(step), ..push(8, number) };
                    let outcome = apply(store, push, table.id, &[], &[]).unwrap();
                    let is_known = outcome == hybridps_core::PushOutcome::Duplicate;
                    assert_eq!(is_known, step == 5, "step {step} at {m} servers");
                }
            }
        }
    }
}

/// Rows removed and made again, counts alone, tables that come, go and come again.
#[test]
fn a_chain_of_deltas_is_the_store() {
    let scratch = Scratch::new("checkpoints");
    let path = scratch.path().join("saved");
    let from = scratch.path().join("store");
    let open = || vec![Store::open(config(&from, Durability::Process)).unwrap()];
    let mut stores = open();
    train(&stores, 3000);
    let first = save(&stores, &path, Some(0), false);
    let mut dumps = vec![dump(&stores[0])];
    let mut number = 10;
    let mut next = || {
        number += 1;
        push(7, number)
    };
    for round in 1..8_u64 {
        if round == 1 {
            // Nothing is lost at an orderly end. Counts are told by the second: let one pass that
            // is behind those of the checkpoint.
            stores.clear();
            std::thread::sleep(std::time::Duration::from_secs(3));
            stores = open();
        }
        let store = &stores[0];
        let a = store.table("a").unwrap().id;
        let some: Vec<u64> = (round * 10..round * 10 + 30).collect();
        store.remove(next(), a, &some).unwrap();
        assign(store, next(), a, &some[..10], &numbers(round, 40)).unwrap();
        kit::insert(store, a, 4, &some[10..12]).unwrap();
        // These are read, and no more.
        kit::insert(store, a, 4, &[2000 + round, 2100]).unwrap();
        match round {
            2 => drop(store.create_table(&spec("c", 3, Optimizer::Sgd)).unwrap()),
            3 => {
                let c = store.table("c").unwrap().id;
                apply(store, next(), c, &[1, 2], &numbers(1, 6)).unwrap();
            }
            4 => store.drop_table("c").unwrap(),
            5 => {
                store.drop_table("b").unwrap();
                let b = store.create_table(&spec("b", 12, kit::adam())).unwrap().id;
                apply(store, next(), b, &[5], &numbers(2, 12)).unwrap();
            }
            _ => {}
        }
        let made = save(&stores, &path, Some(round as i64), false);
        assert_eq!(made.kind, TakenKind::Delta, "round {round}");
        assert!(made.bytes < first.bytes / 2, "{} of {} bytes", made.bytes, first.bytes);
        dumps.push(dump(&stores[0]));
    }
    verify(&path, None, &Progress::default()).unwrap();
    for (step, before) in dumps.iter().enumerate() {
        let to = scratch.path().join(format!("to-{step}"));
        let other = vec![Store::open(config(&to, Durability::None)).unwrap()];
        let request =
            hybridps_core::RestoreRequest { step: Some(step as i64), ..restore_of(&path) };
        restore(&other, &request).unwrap();
        assert!(dump(&other[0]) == *before, "step {step}");
    }
    // A chain that stays is never broken.
    let deleted = prune(&path, 1, None).unwrap();
    assert!(deleted.is_empty(), "all are needed by the last: {deleted:?}");
    save(&stores, &path, None, true);
    assert_eq!(prune(&path, 2, None).unwrap().len(), 0);
    assert_eq!(prune(&path, 1, None).unwrap().len(), 8);
    assert_eq!(checkpoints(&path).unwrap().0.len(), 1);
}

/// What a crash has taken is in no delta: counts, rows that reads made.
#[test]
fn a_store_that_has_lost_its_tail_is_saved_whole() {
    let scratch = Scratch::new("checkpoints");
    let (path, image) = (scratch.path().join("saved"), scratch.path().join("image"));
    let store = Store::open(config(&scratch.path().join("store"), Durability::Process)).unwrap();
    let stores = vec![store];
    train(&stores, 500);
    stores[0].flush().unwrap();
    let table = stores[0].table("a").unwrap().id;
    // Counts that the checkpoint has, and no record, nor the journal.
    kit::insert(&stores[0], table, 4, &[1, 2, 3, 9000]).unwrap();
    save(&stores, &path, None, false);
    // So the store does not seem to have lost anything that its cursors knew.
    stores[0].flush().unwrap();
    kit::copy(&scratch.path().join("store"), &image);
    let crashed = vec![Store::open(config(&image, Durability::Process)).unwrap()];
    let before = dump(&crashed[0]);
    let made = save(&crashed, &path, None, false);
    assert_eq!(made.kind, TakenKind::Full);
    let other = vec![Store::open(config(&scratch.path().join("to"), Durability::None)).unwrap()];
    restore(&other, &restore_of(&path)).unwrap();
    assert!(dump(&other[0]) == before);
    // Another store is no parent either.
    assert_eq!(save(&other, &path, None, false).kind, TakenKind::Full);
}

/// Calls `check` with every small change of the files: a byte flipped, a file gone.
fn damage_all(path: &Path, ids: &[String], mut check: impl FnMut(&str)) {
    for file in ids.iter().flat_map(|id| files_of(path, id)) {
        let bytes = std::fs::read(&file).unwrap();
        let step = if std::env::var_os("HYBRIDPS_LONG").is_some() { 1 } else { 7 };
        for at in (0..bytes.len()).step_by(step).chain([bytes.len() - 1]) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&file, &damaged).unwrap();
            check(&format!("byte {at} of {}", file.display()));
        }
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        check(&format!("{} cut short", file.display()));
        std::fs::remove_file(&file).unwrap();
        check(&format!("{} taken away", file.display()));
        std::fs::write(&file, &bytes).unwrap();
    }
}

#[test]
fn all_damage_is_told_before_anything_changes() {
    let scratch = Scratch::new("checkpoints");
    let path = scratch.path().join("saved");
    let stores = open_shards(&scratch.path().join("from"), 2, Durability::None);
    train(&stores, 12);
    let mut ids = vec![save(&stores, &path, Some(1), false).id];
    let table = stores[0].table("a").unwrap().id;
    let own: Vec<u64> = (0..12).filter(|&key| shard_of_bucket(bucket(hash(key)), 2) == 0).collect();
    stores[0].remove(push(7, 9), table, &own[..2]).unwrap();
    ids.push(save(&stores, &path, Some(2), false).id);
    let other = Store::open(config(&scratch.path().join("to"), Durability::None)).unwrap();
    restore(std::slice::from_ref(&other), &restore_of(&path)).unwrap();
    let before = dump(&other);
    let progress = Progress::default();
    damage_all(&path, &ids, |what| {
        let error = verify(&path, None, &progress).err();
        let error = error.unwrap_or_else(|| panic!("{what}: not found by verify"));
        let names_file = ids.iter().any(|id| error.message.contains(id));
        assert!(error.kind == ErrorKind::Corruption && names_file, "{what}: {error}");
        let told = other.stage_restore(&restore_of(&path), &progress).err();
        let told = told.unwrap_or_else(|| panic!("{what}: not found by restore"));
        assert_eq!(told.kind, ErrorKind::Corruption, "{what}: {told}");
        assert_eq!(other.commit_restore().err().map(|e| e.kind), Some(ErrorKind::BadInput));
    });
    assert!(dump(&other) == before, "something has changed");
    verify(&path, None, &progress).unwrap();
}

/// What does not fit is refused by name; slots=False takes the values alone.
#[test]
fn a_table_of_another_shape_is_refused() {
    let scratch = Scratch::new("checkpoints");
    let path = scratch.path().join("saved");
    let stores = open_shards(&scratch.path().join("from"), 1, Durability::None);
    let before = train(&stores, 100);
    save(&stores, &path, None, false);
    let other = vec![Store::open(config(&scratch.path().join("to"), Durability::None)).unwrap()];
    let wanted = TableSpec { seed: 4, ..spec("a", 5, adagrad()) };
    other[0].create_table(&wanted).unwrap();
    let error = restore(&other, &restore_of(&path)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TableMismatch);
    assert!(error.message.contains("dim is 5") && error.message.contains("seed"), "{error}");
    assert_eq!(other[0].tables(), ["a"]);
    other[0].drop_table("a").unwrap();
    let fresh = TableSpec { learning_rate: 0.7, ..spec("a", 4, kit::adam()) };
    other[0].create_table(&fresh).unwrap();
    let error = restore(&other, &restore_of(&path)).unwrap_err();
    assert!(error.message.contains("optimizer"), "{error}");
    let request = hybridps_core::RestoreRequest {
        with_slots: false,
        tables: Some(vec!["a".into()]),
        ..restore_of(&path)
    };
    restore(&other, &request).unwrap();
    let restored = dump(&other[0]);
    assert_eq!(other[0].table("a").unwrap().spec.learning_rate, 0.7);
    let mut slots = vec![0.0; fresh.row_floats() - 4];
    fresh.optimizer.initial_slots(&mut slots);
    let slots: Vec<u32> = slots.iter().map(|x| x.to_bits()).collect();
    for (key, (bits, ..)) in &restored["a"] {
        assert_eq!(bits[..4], before["a"][key].0[..4]);
        assert_eq!(bits[4..], slots);
    }
    let missing =
        hybridps_core::RestoreRequest { tables: Some(vec!["z".into()]), ..restore_of(&path) };
    assert_eq!(restore(&other, &missing).unwrap_err().kind, ErrorKind::TableNotFound);
    let step = hybridps_core::RestoreRequest { step: Some(3), ..restore_of(&path) };
    assert_eq!(restore(&other, &step).unwrap_err().kind, ErrorKind::BadInput);
}

/// Handles outlive a restore, and a restart; tables that are not restored stay.
#[test]
fn a_restore_replaces_its_tables_and_no_others() {
    let scratch = Scratch::new("checkpoints");
    let path = scratch.path().join("saved");
    let own = config(&scratch.path().join("store"), Durability::Process);
    let mut stores = vec![Store::open(own.clone()).unwrap()];
    let before = train(&stores, 300);
    save(&stores, &path, None, false);
    let (a, b) = (stores[0].table("a").unwrap().id, stores[0].table("b").unwrap().id);
    let mut number = 20;
    for round in 0..3 {
        let store = &stores[0];
        number += 2;
        apply(store, push(7, number), a, &[1, 2, 4000 + round], &numbers(1, 12)).unwrap();
        apply(store, push(7, number + 1), b, &[1], &numbers(1, 12)).unwrap();
        let b_now = rows(store, "b");
        let request =
            hybridps_core::RestoreRequest { tables: Some(vec!["a".into()]), ..restore_of(&path) };
        restore(&stores, &request).unwrap();
        assert!(rows(&stores[0], "a") == before["a"] && rows(&stores[0], "b") == b_now);
        let (row, found) = kit::lookup(&stores[0], a, 4, &[1, 4000 + round]).unwrap();
        let bits: Vec<u32> = row[..4].iter().map(|x| x.to_bits()).collect();
        assert_eq!((bits, found), (before["a"][&1].0[..4].to_vec(), vec![1, 0]));
        if round == 1 {
            // As after a kill: the journal has pushes to the table that is gone.
            let image = scratch.path().join("image");
            kit::copy(&own.path, &image);
            let crashed = Store::open(config(&image, Durability::Process)).unwrap();
            assert!(rows(&crashed, "a") == before["a"] && rows(&crashed, "b") == b_now);
            stores.clear();
            stores.push(Store::open(own.clone()).unwrap());
            assert!(rows(&stores[0], "a") == before["a"]);
        }
    }
    assert_eq!(stores[0].tables(), ["a", "b"]);
    let known: HashMap<String, u64> =
        [("a", a), ("b", b)].map(|(name, id)| (name.into(), stores[0].len(id).unwrap())).into();
    assert_eq!(known["a"], 300);
}
