//! Goal: a power cut of the whole store (log, journal, superblock, manifest together) loses nothing
//! that was promised, doubles nothing, and never keeps the store from opening.
//!
//! Method: a scripted run over three tables, with rows evicted, compacted, checkpointed, removed,
//! and tables made, altered, dropped and made again under the same name with pushes between, while
//! every change of its files is traced. Then, for cuts behind changes all along the trace, with
//! every unsynced sector, length and name kept or lost at random: the store that is left opens, and
//! its tables are bit for bit what they were after some number of calls, no fewer than were
//! promised by then; so are the last push of the session and the id that the next table gets, and
//! the last removal that was promised still says what it found. `HYBRIDPS_LONG` tries every cut.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::push;
use crate::error::Error;
use crate::scratch::Scratch;
use crate::spec::{Initializer, Optimizer, TableChange, TableSpec};
use crate::store::changes::{ChangesEnd, ChangesQuery, Detail};
use crate::store::{Assign, ColdConfig, GradientBatch, LookupBatch, Store, StoreConfig};
use crate::types::{Durability, Sequence, TableId, BUCKETS};
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

/// A table as it must be: its live settings, and every row.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rows {
    rate: f32,
    nvme: Option<u64>,
    rows: BTreeMap<u64, Vec<f32>>,
}

/// What a store holds after a call.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    tables: BTreeMap<String, Rows>,
    /// Number of the last push.
    pushes: u64,
}

impl State {
    /// The same without its rows and pushes: what mode `none` keeps too.
    fn settings(&self) -> Self {
        let bare = |(name, table): (&String, &Rows)| {
            (name.clone(), Rows { rows: BTreeMap::new(), ..*table })
        };
        Self { tables: self.tables.iter().map(bare).collect(), pushes: 0 }
    }
}

/// A state with what is not seen by reading the tables.
#[derive(Clone, Default)]
struct Moment {
    state: State,
    /// Tables made so far, each with an id of its own.
    made: TableId,
    /// The last removal: its push, and how many rows it found.
    removal: Option<(u64, u64)>,
}

/// How a store is opened, and on how many disks.
#[derive(Clone, Copy)]
struct Setup {
    durability: Durability,
    has_cold: bool,
}

const DATA: &str = "data";
const COLD: &str = "cold";

fn open(path: &Path, Setup { durability, has_cold }: Setup) -> Result<Store, Error> {
    let cold = ColdConfig { path: path.join(COLD), cap_bytes: 32 * MIB };
    let store = Store::open(StoreConfig {
        path: path.join(DATA),
        dram_bytes: 8 * MIB,
        nvme_bytes: 64 * MIB,
        durability,
        threads: 1,
        shard: (0, 1),
        cold: has_cold.then_some(cold),
    })?;
    // Whatever may go down goes.
    store.engine.demotes_from.store(0, Relaxed);
    Ok(store)
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
        admission: None,
        dtype: "float32".into(),
        dram: None,
        nvme: None,
        expiry: None,
    }
}

/// Calls on the store, and on the model of it.
struct Script {
    store: Store,
    now: Moment,
    /// Moment n is that after call n; 0 is the empty store.
    moments: Vec<Moment>,
    ids: BTreeMap<String, TableId>,
    random: Random,
    durability: Durability,
}

impl Script {
    /// The next call; true if all up to it is durable once it returned.
    fn step(&mut self, call: u64) -> bool {
        let name = ["rare", "other", "often", "often"][self.random.next(4) as usize];
        if !self.now.state.tables.contains_key(name) {
            self.make(name);
            return self.end(true);
        }
        let is_durable = match self.random.next(24) {
            0 => {
                self.store.flush().unwrap();
                true
            }
            1 | 2 if name != "often" => {
                self.store.drop_table(name).unwrap();
                self.now.state.tables.remove(name);
                true
            }
            3 => {
                self.alter(name);
                true
            }
            4 => {
                self.store.engine.checkpoint(false).unwrap();
                false
            }
            kind => {
                match kind {
                    5 | 6 => self.remove(name),
                    7..=10 => self.assign(name, call),
                    _ => self.apply(name, call),
                }
                self.durability == Durability::Always
            }
        };
        self.end(is_durable)
    }

    fn end(&mut self, is_durable: bool) -> bool {
        self.moments.push(self.now.clone());
        is_durable
    }

    fn table(&mut self, name: &str) -> &mut Rows {
        self.now.state.tables.get_mut(name).unwrap()
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
        self.now.state.pushes += 1;
        push(self.now.state.pushes)
    }

    fn apply(&mut self, name: &str, call: u64) {
        let (keys, table) = (self.keys(), self.ids[name]);
        let gradients = Self::numbers(&keys, call);
        let batch = GradientBatch { table, keys: &keys, gradients: &gradients };
        let push = self.next_push();
        self.store.apply_gradients(push, &[batch]).unwrap();
        let Rows { rate, rows, .. } = self.table(name);
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
        self.table(name).rows.extend(keys.into_iter().zip(values));
    }

    fn remove(&mut self, name: &str) {
        let keys = self.keys();
        let push = self.next_push();
        let found = self.store.remove(push, self.ids[name], &keys).unwrap();
        let rows = &mut self.table(name).rows;
        let before = rows.len();
        rows.retain(|key, _| !keys.contains(key));
        assert_eq!(found, (before - rows.len()) as u64);
        self.now.removal = Some((push.number, found));
    }

    fn alter(&mut self, name: &str) {
        let rate = [0.5, 1.0, 2.0][self.random.next(3) as usize];
        let nvme = [None, Some(1 << 40)][self.random.next(2) as usize];
        let change =
            TableChange { learning_rate: Some(rate), nvme: Some(nvme), ..TableChange::default() };
        self.store.alter(self.ids[name], &change).unwrap();
        let table = self.table(name);
        (table.rate, table.nvme) = (rate, nvme);
    }

    fn make(&mut self, name: &str) {
        let id = self.store.create_table(&spec(name)).unwrap().id;
        self.now.made += 1;
        assert_eq!(id, self.now.made);
        self.ids.insert(name.into(), id);
        let table = Rows { rate: 1.0, ..Rows::default() };
        self.now.state.tables.insert(name.into(), table);
    }
}

/// A table that changes are told of, as somebody has it.
#[derive(Clone)]
struct Copied {
    rows: BTreeMap<u64, Vec<f32>>,
    /// All changes up to here are in it.
    cursor: Option<Sequence>,
}

impl Copied {
    /// Follows the table `often`. False if the cursor is refused.
    fn follow(&mut self, store: &Store) -> bool {
        let table = store.table("often").unwrap().id;
        let (buckets, detail) = (0..BUCKETS, Detail::Values);
        let query = ChangesQuery { table, buckets, since: self.cursor, detail };
        let rows = &mut self.rows;
        let told = store.changes(&query, &mut |piece| {
            piece.removed.iter().for_each(|key| drop(rows.remove(key)));
            let values = piece.rows.chunks(DIM as usize).map(<[f32]>::to_vec);
            rows.extend(piece.keys.iter().copied().zip(values));
            Ok(())
        });
        let (end, _) = told.unwrap();
        if let ChangesEnd::UpTo(up_to) = end {
            self.cursor = Some(up_to);
        }
        matches!(end, ChangesEnd::UpTo(_))
    }
}

/// What a traced run leaves: its moments, and which of them are promised when.
struct Run {
    scratch: Scratch,
    traced: Traced,
    setup: Setup,
    moments: Vec<Moment>,
    /// Mark m was made when moment `promised[m]` was promised.
    promised: Vec<usize>,
    /// What a follower had all along, each with the changes of files that came before.
    copies: Vec<(usize, Copied)>,
}

fn cold(store: &Store) -> u64 {
    store.stats().iter().find(|stat| stat.0 == "rows_cold").unwrap().1
}

fn run(setup: Setup, seed: u64) -> Run {
    let scratch = Scratch::in_memory();
    let traced = Traced::new(scratch.path());
    let mut promised = vec![0];
    let open = || open(scratch.path(), setup).unwrap();
    let mut script = Script {
        store: open(),
        now: Moment::default(),
        moments: vec![Moment::default()],
        ids: BTreeMap::new(),
        random: Random(seed),
        durability: setup.durability,
    };
    let mut promise = |moments: usize| {
        promised.push(moments - 1);
        traced.mark(promised.len() as u64 - 1);
    };
    let mut follower = Copied { rows: BTreeMap::new(), cursor: None };
    let mut copies = Vec::new();
    for call in 0..CALLS {
        if script.step(call) {
            promise(script.moments.len());
        }
        // An image of the index is written, and what comes after is younger than it.
        if call % (CALLS / 3) == CALLS / 6 {
            script.store.close().unwrap();
            promise(script.moments.len());
            script.store = open();
        }
        if call % 9 == 8 && script.now.state.tables.contains_key("often") {
            assert!(follower.follow(&script.store));
            assert!(follower.rows == script.now.state.tables["often"].rows, "call {call}");
            copies.push((traced.cuts().last().copied().unwrap_or(0), follower.clone()));
        }
    }
    let end = Instant::now() + Duration::from_secs(60);
    while setup.has_cold && cold(&script.store) <= 100 {
        assert!(Instant::now() < end, "{:?}", script.store.stats());
        script.store.engine.demotes_again.store(0, Relaxed);
        std::thread::sleep(Duration::from_millis(10));
    }
    script.store.close().unwrap();
    let moments = script.moments;
    promise(moments.len());
    Run { scratch, traced, setup, moments, promised, copies }
}

/// A store as any caller finds it.
fn read(store: &Store) -> State {
    let mut tables = BTreeMap::new();
    for name in store.tables() {
        let info = store.table(&name).unwrap();
        let keys: Vec<u64> = (0..KEYS).collect();
        let mut rows = vec![0.0; keys.len() * DIM as usize];
        let mut found = vec![0; keys.len()];
        let batch = LookupBatch { table: info.id, keys: &keys, rows: &mut rows, found: &mut found };
        store.lookup(&mut [batch]).unwrap();
        let rows = keys.into_iter().zip(rows.chunks(DIM as usize).map(<[f32]>::to_vec));
        let present = rows.zip(found).filter(|(_, found)| *found == 1).map(|(row, _)| row);
        let TableSpec { learning_rate: rate, nvme, .. } = info.spec;
        tables.insert(name, Rows { rate, nvme, rows: present.collect() });
    }
    State { tables, pushes: store.attach(1, "").unwrap() }
}

/// Opens what a cut behind the first `n` changes leaves, and compares.
fn check_cut(run: &Run, n: usize, random: &mut Random) {
    let image = Scratch::in_memory();
    // All kept, nothing kept, or any mixture.
    let keep_of = [0, 50, 90, 100][random.next(4) as usize];
    // The power of both disks is cut, or of one.
    let spared = [None, Some(DATA), Some(COLD)][random.next(3) as usize];
    let spared = spared.filter(|_| run.setup.has_cold).map(|name| run.scratch.path().join(name));
    run.traced.image_but(n, image.path(), spared.as_deref(), &mut || random.next(100) < keep_of);
    let floor = run.promised[run.traced.marked(n) as usize];
    let what = format!("a cut behind change {n}, {keep_of} % kept, but for {spared:?}");
    let open = || open(image.path(), run.setup);
    let store = open().unwrap_or_else(|error| panic!("{what}: it does not open: {error}"));
    let state = read(&store);
    let is_none = run.setup.durability == Durability::None;
    let is_that = |moment: &&Moment| match is_none {
        true => moment.state.settings() == state.settings(),
        false => moment.state == state,
    };
    check_followers(run, &store, &state, n, &what);
    let found: Vec<&Moment> = run.moments[floor..].iter().filter(is_that).collect();
    assert!(!found.is_empty(), "{what}: no moment from call {floor} on is what was found");
    if let (Some((number, rows)), Ok(often), false) =
        (run.moments[floor].removal, store.table("often"), is_none)
    {
        assert_eq!(store.remove(push(number), often.id, &[]).unwrap(), rows, "{what}: removal");
    }
    store.close().unwrap_or_else(|error| panic!("{what}: {error}"));
    let again = open().unwrap();
    assert!(read(&again) == state, "{what}: opened a second time it is another");
    let fresh = again.create_table(&spec("fresh")).unwrap().id;
    assert!(found.iter().any(|moment| moment.made + 1 == fresh), "{what}: {fresh} is its id");
}

/// Whoever is answered has the table afterwards. Behind an orderly end everybody is.
fn check_followers(run: &Run, store: &Store, state: &State, n: usize, what: &str) {
    let Some(often) = state.tables.get("often") else { return };
    let is_end = run.traced.cuts().last() == Some(&n);
    for (taken_at, copy) in run.copies.iter().filter(|(taken_at, _)| *taken_at <= n) {
        let mut copy = copy.clone();
        if copy.follow(store) {
            assert!(copy.rows == often.rows, "{what}: a copy of change {taken_at} went wrong");
        } else {
            assert!(!is_end, "{what}: the copy of change {taken_at} is refused");
        }
    }
}

fn try_cuts(setup: Setup, seed: u64) {
    let run = run(setup, seed);
    let cuts = run.traced.cuts();
    let is_long = std::env::var_os("HYBRIDPS_LONG").is_some();
    let step = if is_long { 1 } else { cuts.len().div_ceil(CUTS) };
    let mut random = Random(seed);
    for n in cuts.iter().step_by(step).chain(cuts.last()) {
        check_cut(&run, *n, &mut random);
    }
    drop(run.scratch);
}

#[test]
fn what_always_promised_outlives_any_power_cut() {
    try_cuts(Setup { durability: Durability::Always, has_cold: false }, 1);
}

#[test]
fn what_was_flushed_outlives_any_power_cut_in_mode_interval() {
    try_cuts(Setup { durability: Durability::Interval, has_cold: false }, 2);
}

#[test]
fn rows_on_two_disks_outlive_power_cuts_of_either() {
    try_cuts(Setup { durability: Durability::Always, has_cold: true }, 3);
    try_cuts(Setup { durability: Durability::Interval, has_cold: true }, 4);
}

/// Of rows it promises nothing before a flush; tables are durable in every mode.
#[test]
fn tables_outlive_any_power_cut_in_mode_none() {
    try_cuts(Setup { durability: Durability::None, has_cold: false }, 3);
}
