//! Goal: a power cut of the whole store (log, journal, superblock, manifest together) loses nothing
//! that was promised, doubles nothing, and never keeps the store from opening.
//!
//! Method: a scripted run over two tables, with rows evicted, compacted, checkpointed, removed, and
//! tables altered, dropped and made anew, while every change of its files is traced. Then, for cuts
//! behind changes all along the trace, with every unsynced sector, length and name kept or lost at
//! random: the store that is left opens, and its tables are bit for bit what they were after some
//! number of calls, no fewer than were promised by then. `HYBRIDPS_LONG` tries every cut.

use std::collections::BTreeMap;

use super::push;
use crate::scratch::Scratch;
use crate::spec::{Initializer, Optimizer, TableChange, TableSpec};
use crate::store::{Assign, GradientBatch, LookupBatch, Store, StoreConfig};
use crate::types::{Durability, TableId};
use crate::vfs::trace::Traced;

const MIB: u64 = 1 << 20;
/// Long rows, so that few of them are more than the DRAM.
const DIM: u32 = 900;
const KEYS: u64 = 1600;
const CALLS: u64 = 240;
const CUTS: usize = 20;

/// Numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// A table as it must be: its learning rate, and every row.
#[derive(Clone, Default, PartialEq)]
struct Rows {
    rate: f32,
    rows: BTreeMap<u64, Vec<f32>>,
}

/// All tables by name.
type State = BTreeMap<String, Rows>;

fn config(path: &std::path::Path, durability: Durability) -> StoreConfig {
    StoreConfig {
        path: path.to_path_buf(),
        dram_bytes: 8 * MIB,
        nvme_bytes: 64 * MIB,
        durability,
        threads: 1,
        shard: (0, 1),
    }
}

fn spec(name: &str) -> TableSpec {
    TableSpec {
        name: name.into(),
        dim: DIM,
        optimizer: Optimizer::Sgd,
        learning_rate: 1.0,
        gradients: Default::default(),
        initializer: Initializer::Zeros,
        seed: 0,
        dtype: "float32".into(),
        dram: None,
        nvme: None,
    }
}

/// Calls on the store, and on the model of it.
struct Script<'a> {
    store: &'a Store,
    state: State,
    /// State n is that after call n; 0 is the empty store.
    states: Vec<State>,
    ids: BTreeMap<String, TableId>,
    random: Random,
    number: u64,
    durability: Durability,
}

impl Script<'_> {
    /// The next call; true if all up to it is durable once it returned.
    fn step(&mut self, call: u64) -> bool {
        let name = if self.random.next(4) == 0 { "rare" } else { "often" };
        match self.random.next(24) {
            0 => {
                self.store.flush().unwrap();
                return true;
            }
            1 if name == "rare" => self.drop_and_make(name),
            2 => self.alter(name),
            3 | 4 => self.remove(name),
            5..=8 => self.assign(name, call),
            _ => self.apply(name, call),
        }
        self.states.push(self.state.clone());
        self.durability == Durability::Always
    }

    fn keys(&mut self) -> Vec<u64> {
        let (first, stride) = (self.random.next(KEYS), 1 + self.random.next(7));
        let keys = (0..40).map(|n| (first + n * stride) % KEYS);
        let mut keys: Vec<u64> = keys.collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn numbers(keys: &[u64], call: u64) -> Vec<f32> {
        let number = |key: u64, column: u64| ((key * 31 + call * 7 + column) % 17) as f32;
        keys.iter().flat_map(|&key| (0..u64::from(DIM)).map(move |c| number(key, c))).collect()
    }

    fn next_push(&mut self) -> crate::types::Push {
        self.number += 1;
        push(self.number)
    }

    fn apply(&mut self, name: &str, call: u64) {
        let (keys, table) = (self.keys(), self.ids[name]);
        let gradients = Self::numbers(&keys, call);
        let batch = GradientBatch { table, keys: &keys, gradients: &gradients };
        let push = self.next_push();
        self.store.apply_gradients(push, &[batch]).unwrap();
        let Rows { rate, rows } = self.state.get_mut(name).unwrap();
        for (key, gradient) in keys.iter().zip(gradients.chunks(DIM as usize)) {
            let row = rows.entry(*key).or_insert_with(|| vec![0.0; DIM as usize]);
            row.iter_mut().zip(gradient).for_each(|(x, g)| *x -= *rate * g);
        }
    }

    fn assign(&mut self, name: &str, call: u64) {
        let (keys, table) = (self.keys(), self.ids[name]);
        let rows = Self::numbers(&keys, call + 5);
        let push = self.next_push();
        self.store.assign(push, &Assign { table, keys: &keys, rows: &rows }).unwrap();
        let values = rows.chunks(DIM as usize).map(<[f32]>::to_vec);
        self.state.get_mut(name).unwrap().rows.extend(keys.into_iter().zip(values));
    }

    fn remove(&mut self, name: &str) {
        let keys = self.keys();
        let push = self.next_push();
        self.store.remove(push, self.ids[name], &keys).unwrap();
        let table = self.state.get_mut(name).unwrap();
        table.rows.retain(|key, _| !keys.contains(key));
    }

    fn alter(&mut self, name: &str) {
        let rate = [0.5, 1.0, 2.0][self.random.next(3) as usize];
        let change = TableChange { learning_rate: Some(rate), ..TableChange::default() };
        self.store.alter(self.ids[name], &change).unwrap();
        self.state.get_mut(name).unwrap().rate = rate;
    }

    fn drop_and_make(&mut self, name: &str) {
        self.store.drop_table(name).unwrap();
        self.state.remove(name);
        self.states.push(self.state.clone());
        self.make(name);
    }

    fn make(&mut self, name: &str) {
        let id = self.store.create_table(&spec(name)).unwrap().id;
        self.ids.insert(name.into(), id);
        self.state.insert(name.into(), Rows { rate: 1.0, rows: BTreeMap::new() });
    }
}

/// What a traced run leaves: its states, and which of them are promised when.
struct Run {
    scratch: Scratch,
    traced: Traced,
    states: Vec<State>,
    /// Mark m was made when state `promised[m]` was promised.
    promised: Vec<usize>,
}

fn run(durability: Durability, seed: u64) -> Run {
    let scratch = Scratch::in_memory();
    let traced = Traced::new(scratch.path());
    let mut promised = vec![0];
    let store = Store::open(config(scratch.path(), durability)).unwrap();
    let mut script = Script {
        store: &store,
        state: State::new(),
        states: vec![State::new()],
        ids: BTreeMap::new(),
        random: Random(seed),
        number: 0,
        durability,
    };
    let mut promise = |states: usize| {
        promised.push(states - 1);
        traced.mark(promised.len() as u64 - 1);
    };
    for name in ["often", "rare"] {
        script.make(name);
        script.states.push(script.state.clone());
        // Tables are durable by the manifest, in every mode.
        promise(script.states.len());
    }
    for call in 0..CALLS {
        if script.step(call) {
            promise(script.states.len());
        }
    }
    let states = script.states;
    store.close().unwrap();
    promise(states.len());
    Run { scratch, traced, states, promised }
}

/// Every table of a store, read as any caller does.
fn read(store: &Store) -> State {
    let mut state = State::new();
    for name in store.tables() {
        let info = store.table(&name).unwrap();
        let keys: Vec<u64> = (0..KEYS).collect();
        let mut rows = vec![0.0; keys.len() * DIM as usize];
        let mut found = vec![0; keys.len()];
        let batch = LookupBatch { table: info.id, keys: &keys, rows: &mut rows, found: &mut found };
        store.lookup(&mut [batch]).unwrap();
        let rows = keys.into_iter().zip(rows.chunks(DIM as usize).map(<[f32]>::to_vec));
        let present = rows.zip(found).filter(|(_, found)| *found == 1).map(|(row, _)| row);
        let rows = present.collect();
        state.insert(name, Rows { rate: info.spec.learning_rate, rows });
    }
    state
}

/// Opens what a cut behind the first `n` changes leaves, and compares.
fn check_cut(run: &Run, n: usize, durability: Durability, random: &mut Random) {
    let image = Scratch::in_memory();
    // All kept, nothing kept, or any mixture.
    let keep_of = [0, 50, 90, 100][random.next(4) as usize];
    run.traced.image(n, image.path(), &mut || random.next(100) < keep_of);
    let floor = run.promised[run.traced.marked(n) as usize];
    let what = format!("a cut behind change {n}, {keep_of} % kept");
    let store = match Store::open(config(image.path(), durability)) {
        Ok(store) => store,
        Err(error) => panic!("{what}: the store does not open: {error}"),
    };
    let state = read(&store);
    let is_state = run.states[floor..].contains(&state);
    assert!(is_state, "{what}: no state from call {floor} on is what was found");
    store.close().unwrap_or_else(|error| panic!("{what}: {error}"));
    let again = Store::open(config(image.path(), durability)).unwrap();
    assert!(read(&again) == state, "{what}: opened a second time the tables are others");
}

fn try_cuts(durability: Durability, seed: u64) {
    let run = run(durability, seed);
    let cuts = run.traced.cuts();
    let is_long = std::env::var_os("HYBRIDPS_LONG").is_some();
    let step = if is_long { 1 } else { cuts.len().div_ceil(CUTS) };
    let mut random = Random(seed);
    for n in cuts.iter().step_by(step).chain(cuts.last()) {
        check_cut(&run, *n, durability, &mut random);
    }
    drop(run.scratch);
}

#[test]
fn what_always_promised_outlives_any_power_cut() {
    try_cuts(Durability::Always, 1);
}

#[test]
fn what_was_flushed_outlives_any_power_cut_in_mode_interval() {
    try_cuts(Durability::Interval, 2);
}
