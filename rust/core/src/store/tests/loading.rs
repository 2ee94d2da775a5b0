//! Goal: an index that comes from an image, bucket by bucket, is the one that all footers give:
//! whatever was written after the image, whichever image it is, and in whatever order it is asked
//! for. Calls of all kinds are right while it comes.
//!
//! Method: random calls beside a map, with closings, kills, and images of earlier closings put
//! back; each store is opened with and without its image, and rows, places and accounts compared.
//! The thread in the background is kept out where the order matters.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::super::tests::{config, push, spec};
use crate::index::Location;
use crate::log::Account;
use crate::scratch::Scratch;
use crate::store::{GradientBatch, InsertBatch, LookupBatch, Store, StoreConfig};
use crate::types::{bucket, hash, Durability, Place, Push, Sequence, TableId, BUCKETS};

thread_local! {
    /// Stores that this thread opens load nothing in the background.
    pub(super) static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

const DIM: usize = 4;
const KEYS: u64 = 1500;
const IMAGE: &str = "index.image";

fn key(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn at(path: &Path) -> StoreConfig {
    StoreConfig { path: path.to_path_buf(), ..config(&Scratch::in_memory(), Durability::Process) }
}

fn open(path: &Path) -> Store {
    IS_QUIET.set(true);
    let store = Store::open(at(path)).unwrap();
    IS_QUIET.set(false);
    store
}

fn missing(store: &Store) -> usize {
    store.engine.loading.missing(0..BUCKETS).len()
}

fn apply(store: &Store, number: u64, table: TableId, keys: &[u64], by: f32) {
    let gradients = vec![-by; keys.len() * DIM];
    let batch = GradientBatch { table, keys, gradients: &gradients };
    store.apply_gradients(push(number), &[batch]).unwrap();
}

fn insert(store: &Store, table: TableId, keys: &[u64]) {
    let mut rows = vec![0.0; keys.len() * DIM];
    let batch = InsertBatch { table, keys, counts: &[], rows: &mut rows };
    store.lookup_or_insert(&mut [batch]).unwrap();
}

fn lookup(store: &Store, table: TableId, keys: &[u64]) -> Vec<Option<f32>> {
    let (mut rows, mut found) = (vec![0.0; keys.len() * DIM], vec![9; keys.len()]);
    let batch = LookupBatch { table, keys, rows: &mut rows, found: &mut found };
    store.lookup(&mut [batch]).unwrap();
    let rows = rows.chunks(DIM).zip(found);
    rows.map(|(row, found)| (found == 1).then(|| row[0])).collect()
}

/// All that is on the device.
fn write_all(store: &Store) {
    store.engine.checkpoint(true).unwrap();
    store.flush().unwrap();
}

fn copy(from: &Path) -> Scratch {
    let to = Scratch::in_memory();
    std::fs::create_dir_all(to.path().join("journal")).unwrap();
    for folder in ["", "journal"] {
        for file in std::fs::read_dir(from.join(folder)).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                let name = Path::new(folder).join(file.file_name());
                std::fs::copy(file.path(), to.path().join(name)).unwrap();
            }
        }
    }
    to
}

/// Keys of a bucket of a table, and where they are.
type BucketEntries = (TableId, u32, Vec<(u64, Place)>);

/// Every entry of every table, and what the log counts.
#[derive(Debug, PartialEq)]
struct Index {
    entries: Vec<BucketEntries>,
    accounts: Vec<Account>,
    live_bytes: u64,
    record_bytes: u64,
    last: Sequence,
}

fn index(store: &Store) -> Index {
    let engine = &store.engine;
    engine.load_rest().unwrap();
    let mut entries = Vec::new();
    for bucket in 0..BUCKETS {
        let state = engine.stripes[(bucket / engine.tier.buckets_per_stripe) as usize].lock();
        for (&table, part) in &state.parts {
            // Rows in DRAM by their records.
            let place = |location: Location| match location.resolve() {
                Ok(at) => part.pool.header(at).state.place().unwrap(),
                Err(place) => place,
            };
            let of_part = part.index.bucket_entries(bucket);
            let mut own: Vec<_> = of_part.map(|(hash, at)| (hash, place(at))).collect();
            own.sort_unstable();
            if !own.is_empty() {
                entries.push((table, bucket, own));
            }
        }
    }
    entries.sort_unstable_by_key(|of| (of.0, of.1));
    Index {
        entries,
        accounts: engine.tier.log.accounts(),
        live_bytes: engine.tier.log.live_bytes(),
        record_bytes: engine.record_bytes.load(std::sync::atomic::Ordering::Relaxed),
        last: engine.sequencer.lock().last,
    }
}

/// Two tables, with rows that were changed, removed, made anew; and a row that two keys' entries
/// cannot tell apart.
fn fill(path: &Path) -> (Vec<TableId>, Vec<u64>) {
    let store = open(path);
    let tables = ["a", "b"].map(|name| store.create_table(&spec(name, DIM as u32)).unwrap().id);
    let mut keys: Vec<u64> = (0..KEYS).map(key).collect();
    let twins = [0x1234_5678_9abc_0001, 0x1234_5678_9abc_0002];
    keys.extend(twins.map(super::super::tests::unhash));
    apply(&store, 1, tables[0], &keys, 1.0);
    apply(&store, 2, tables[1], &keys[..500], 2.0);
    write_all(&store);
    apply(&store, 3, tables[0], &keys[100..300], 3.0);
    assert_eq!(store.remove(push(4), tables[0], &keys[200..400]).unwrap(), 200);
    write_all(&store);
    insert(&store, tables[0], &keys[250..350]);
    store.close().unwrap();
    (tables.to_vec(), keys)
}

/// Changes after the image, of which the last may be the removal of one of the twins.
fn change(path: &Path, tables: &[TableId], keys: &[u64]) {
    let store = open(path);
    apply(&store, 5, tables[0], &keys[50..150], 5.0);
    store.remove(push(6), tables[0], &keys[120..170]).unwrap();
    store.remove(push(7), tables[0], &keys[keys.len() - 1..]).unwrap();
    insert(&store, tables[1], &keys[400..600]);
    write_all(&store);
    apply(&store, 8, tables[0], &keys[140..160], 6.0);
    write_all(&store);
    // Killed: what it would write at its end does not count.
    std::mem::forget(store);
}

#[test]
fn a_closed_store_comes_from_its_image_as_from_its_footers() {
    let scratch = Scratch::in_memory();
    let (tables, keys) = fill(scratch.path());
    let without = copy(scratch.path());
    std::fs::remove_file(without.path().join(IMAGE)).unwrap();
    let (store, other) = (open(scratch.path()), open(without.path()));
    assert_eq!((missing(&store), missing(&other)), (BUCKETS as usize, 0));
    for &table in &tables {
        let counts = |store: &Store| store.table_stats(table).unwrap()[0];
        assert_eq!(counts(&store), counts(&other), "counted by the image");
        let found = lookup(&store, table, &keys[..1]);
        assert_eq!(found, lookup(&other, table, &keys[..1]));
        assert_eq!(missing(&store), BUCKETS as usize - 1, "one key, one bucket");
    }
    assert_eq!(index(&store), index(&other));
    assert_eq!(missing(&store), 0);
    for &table in &tables {
        assert_eq!(lookup(&store, table, &keys), lookup(&other, table, &keys));
    }
}

#[test]
fn what_came_after_the_image_comes_from_footers() {
    let scratch = Scratch::in_memory();
    let (tables, keys) = fill(scratch.path());
    change(scratch.path(), &tables, &keys);
    let (with, without) = (copy(scratch.path()), copy(scratch.path()));
    std::fs::remove_file(without.path().join(IMAGE)).unwrap();
    let (store, other) = (open(with.path()), open(without.path()));
    assert!(missing(&store) > 0 && missing(&other) == 0);
    assert_eq!(index(&store), index(&other));
    for &table in &tables {
        assert_eq!(lookup(&store, table, &keys), lookup(&other, table, &keys));
    }
}

#[test]
fn damage_of_an_image_changes_nothing_but_the_time() {
    let scratch = Scratch::in_memory();
    let (tables, keys) = fill(scratch.path());
    let closed = copy(scratch.path());
    change(scratch.path(), &tables, &keys);
    for directory in [closed.path(), scratch.path()] {
        let good = std::fs::read(directory.join(IMAGE)).unwrap();
        let without = copy(directory);
        std::fs::remove_file(without.path().join(IMAGE)).unwrap();
        let expected = index(&open(without.path()));
        let step = good.len() / 24;
        let check = |bytes: &[u8], what: String| {
            let image = copy(directory);
            std::fs::write(image.path().join(IMAGE), bytes).unwrap();
            assert!(index(&open(image.path())) == expected, "{what} of {}", good.len());
        };
        for at in (0..good.len()).step_by(step).chain([good.len() - 1]) {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            check(&bytes, format!("byte {at}"));
            check(&good[..at], format!("{at} bytes"));
        }
    }
}

#[test]
fn another_store_s_image_is_refused() {
    let (scratch, other) = (Scratch::in_memory(), Scratch::in_memory());
    let (tables, keys) = fill(scratch.path());
    let store = open(other.path());
    store.create_table(&spec("a", DIM as u32)).unwrap();
    // Its segments bear the same numbers, and are as many at least.
    for number in 1..20 {
        let first = 10 * number as usize;
        apply(&store, number, 1, &keys[first..first + 10], 1.0);
        write_all(&store);
    }
    store.close().unwrap();
    std::fs::copy(scratch.path().join(IMAGE), other.path().join(IMAGE)).unwrap();
    let store = open(other.path());
    assert_eq!(missing(&store), 0);
    assert_eq!(store.len(tables[0]).unwrap(), 190);
}

/// An unchanged store leaves its image as it is, however often it is opened.
#[test]
fn an_image_is_written_when_there_is_something_to_say() {
    let scratch = Scratch::in_memory();
    let (tables, keys) = fill(scratch.path());
    let image = scratch.path().join(IMAGE);
    let written = || std::fs::metadata(&image).unwrap().modified().unwrap();
    let first = written();
    let store = open(scratch.path());
    lookup(&store, tables[0], &keys[..10]);
    assert!(missing(&store) > 0);
    store.close().unwrap();
    assert_eq!(written(), first);
    let store = open(scratch.path());
    apply(&store, 9, tables[0], &keys[..1], 1.0);
    store.close().unwrap();
    assert!(written() > first);
    let store = open(scratch.path());
    assert!(missing(&store) > 0);
    assert_eq!(lookup(&store, tables[0], &keys[..1]), [Some(2.0)]);
}

/// Reads, pushes and removals of many threads, while the thread in the background loads too.
#[test]
fn calls_are_right_while_the_index_comes() {
    let scratch = Scratch::in_memory();
    let (tables, keys) = fill(scratch.path());
    change(scratch.path(), &tables, &keys);
    for round in 0..3 {
        let image = copy(scratch.path());
        let (expected, table) =
            (lookup(&open(copy(scratch.path()).path()), tables[0], &keys), tables[0]);
        let store = Store::open(at(image.path())).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (store, keys, expected) = (&store, &keys, &expected);
                scope.spawn(move || {
                    let own = (thread..keys.len()).step_by(6);
                    for n in own.filter(|n| (n / 6) % 3 == round) {
                        let found = lookup(store, table, &keys[n..n + 1]);
                        assert_eq!(found[0], expected[n], "key {n}");
                        let number = 100 + n as u64;
                        let push = Push { session: 7 + thread as u64, number, step: None };
                        let gradients = [-10.0; DIM];
                        let batch =
                            GradientBatch { table, keys: &keys[n..n + 1], gradients: &gradients };
                        store.apply_gradients(push, &[batch]).unwrap();
                    }
                });
            }
        });
        let found = lookup(&store, table, &keys);
        for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let by =
                if (n / 6) % 3 == round { Some(expected.unwrap_or(0.0) + 10.0) } else { *expected };
            assert_eq!(*found, by, "key {n}");
        }
        let rows = found.iter().flatten().count() as u64;
        assert_eq!(store.len(table).unwrap(), rows);
        let mut listed = Vec::new();
        let mut at = 0;
        while at < BUCKETS {
            at = store.keys(table, at, &mut listed).unwrap();
        }
        assert_eq!(listed.len() as u64, rows);
    }
}

/// A call on the store of the model.
#[derive(Debug, Clone)]
enum Call {
    Apply(u64, u64),
    Remove(u64, u64),
    Insert(u64, u64),
    Write,
    Checkpoint,
    /// Rewrites a segment.
    Compact(usize),
    Close,
    Kill,
    /// A kill, after which the image is one of a closing before.
    Stale(usize),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let range = || (0..300u64, 1..60u64);
    let call = prop_oneof![
        6 => range().prop_map(|(first, count)| Call::Apply(first, count)),
        3 => range().prop_map(|(first, count)| Call::Remove(first, count)),
        3 => range().prop_map(|(first, count)| Call::Insert(first, count)),
        4 => Just(Call::Write),
        1 => Just(Call::Checkpoint),
        3 => (0..9usize).prop_map(Call::Compact),
        2 => Just(Call::Close),
        2 => Just(Call::Kill),
        1 => (0..4usize).prop_map(Call::Stale),
    ];
    prop::collection::vec(call, 1..40)
}

struct Model {
    scratch: Scratch,
    store: Store,
    table: TableId,
    rows: BTreeMap<u64, f32>,
    images: Vec<Vec<u8>>,
    number: u64,
}

impl Model {
    fn new() -> Self {
        let scratch = Scratch::in_memory();
        let store = open(scratch.path());
        let table = store.create_table(&spec("t", DIM as u32)).unwrap().id;
        Self { scratch, store, table, rows: BTreeMap::new(), images: Vec::new(), number: 0 }
    }

    fn run(&mut self, call: &Call) {
        let keys = |first: u64, count: u64| (first..first + count).map(key).collect::<Vec<u64>>();
        self.number += 1;
        match *call {
            Call::Apply(first, count) => {
                apply(&self.store, self.number, self.table, &keys(first, count), 1.0);
                let change = |key| *self.rows.entry(key).or_default() += 1.0;
                keys(first, count).into_iter().for_each(change);
            }
            Call::Remove(first, count) => {
                let keys = keys(first, count);
                let expected = keys.iter().filter(|key| self.rows.remove(key).is_some()).count();
                let removed = self.store.remove(push(self.number), self.table, &keys).unwrap();
                assert_eq!(removed, expected as u64);
            }
            // Rows that only a read has made are durable when they are pushed to.
            Call::Insert(first, count) => {
                insert(&self.store, self.table, &keys(first, count));
                apply(&self.store, self.number, self.table, &keys(first, count), 1.0);
                let change = |key| *self.rows.entry(key).or_default() += 1.0;
                keys(first, count).into_iter().for_each(change);
            }
            Call::Write => write_all(&self.store),
            Call::Checkpoint => self.store.engine.checkpoint(false).unwrap(),
            Call::Compact(n) => {
                let segments = self.store.engine.tier.log.segments().unwrap();
                if !segments.is_empty() {
                    let (segment, _) = segments[n % segments.len()];
                    self.store.engine.compact_segment(segment).unwrap();
                }
            }
            Call::Close => {
                self.store.close().unwrap();
                self.images.push(std::fs::read(self.scratch.path().join(IMAGE)).unwrap());
                self.store = open(self.scratch.path());
            }
            Call::Kill => self.kill(None),
            Call::Stale(n) => {
                let image = (!self.images.is_empty()).then(|| n % self.images.len());
                self.kill(image.map(|n| self.images[n].clone()));
            }
        }
    }

    fn kill(&mut self, image: Option<Vec<u8>>) {
        self.store.engine.tier.log.sync().unwrap();
        let killed = copy(self.scratch.path());
        if let Some(bytes) = image {
            std::fs::write(killed.path().join(IMAGE), bytes).unwrap();
        }
        self.store = open(killed.path());
        self.scratch = killed;
    }

    fn check(&self) {
        let keys: Vec<u64> = (0..400).map(key).collect();
        let expected: Vec<_> = keys.iter().map(|key| self.rows.get(key).copied()).collect();
        // Some first, so that they are asked for alone.
        for n in [7, 160, 399] {
            assert_eq!(lookup(&self.store, self.table, &keys[n..=n]), expected[n..=n]);
        }
        assert_eq!(lookup(&self.store, self.table, &keys), expected);
        assert_eq!(self.store.len(self.table).unwrap(), self.rows.len() as u64);
    }
}

/// What is read of a store, and what its log counts, with the image and without.
fn check_openings(path: &Path, table: TableId) {
    let (with, without) = (copy(path), copy(path));
    let _ = std::fs::remove_file(without.path().join(IMAGE));
    let (store, other) = (open(with.path()), open(without.path()));
    let keys: Vec<u64> = (0..400).map(key).collect();
    assert_eq!(lookup(&store, table, &keys), lookup(&other, table, &keys));
    let (mut one, mut two) = (index(&store), index(&other));
    // The journal was merged into the log, by several threads: places differ.
    let total =
        |index: &Index| index.accounts.iter().map(|account| account.live_bytes).sum::<u64>();
    assert_eq!(total(&one), total(&two));
    for index in [&mut one, &mut two] {
        index.accounts.clear();
        let entries = index.entries.iter_mut().flat_map(|of| &mut of.2);
        entries.for_each(|entry| entry.1 = Place::from_bits(0));
    }
    assert_eq!(one, two);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 100, ..Default::default() })]

    #[test]
    fn a_store_is_a_map_whatever_image_it_is_opened_with(calls in calls()) {
        let mut model = Model::new();
        for call in &calls {
            let is_opening = matches!(call, Call::Close | Call::Kill | Call::Stale(_));
            if is_opening {
                model.check();
            }
            model.run(call);
            if is_opening {
                model.store.engine.tier.log.sync().unwrap();
                check_openings(model.scratch.path(), model.table);
            }
        }
        model.check();
    }
}

/// Compaction copies the mark of a removal: what was made anew before the image stays.
#[test]
fn a_copied_mark_removes_nothing_that_came_after_it() {
    let scratch = Scratch::in_memory();
    let (tables, keys) = fill(scratch.path());
    let store = open(scratch.path());
    let (table, log) = (tables[0], &store.engine.tier.log);
    let newest = || log.segments().unwrap().last().unwrap().0;
    store.remove(push(10), table, &keys[600..610]).unwrap();
    write_all(&store);
    let marks = newest();
    apply(&store, 11, table, &keys[600..605], 4.0);
    write_all(&store);
    store.close().unwrap();
    let store = open(scratch.path());
    store.engine.compact_segment(marks).unwrap();
    write_all(&store);
    std::mem::forget(store);
    let without = copy(scratch.path());
    std::fs::remove_file(without.path().join(IMAGE)).unwrap();
    let with = copy(scratch.path());
    let (store, other) = (open(with.path()), open(without.path()));
    assert_eq!(
        lookup(&store, table, &keys[600..606])[..],
        [[Some(4.0); 5].to_vec(), vec![None]].concat()
    );
    assert_eq!(index(&store), index(&other));
}

#[test]
fn who_needs_a_bucket_waits_for_whoever_loads_it() {
    let scratch = Scratch::in_memory();
    let (tables, keys) = fill(scratch.path());
    let store = open(scratch.path());
    let claim = store.engine.loading.claim(bucket(hash(keys[0])) as usize);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| lookup(&store, tables[0], &keys[..1]));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!call.is_finished(), "it did not wait");
        // Given up: the call takes it over.
        drop(claim);
        assert_eq!(call.join().unwrap(), [Some(1.0)]);
    });
    assert_eq!(missing(&store), BUCKETS as usize - 1);
}

#[test]
fn a_bucket_is_loaded_once_however_many_wait_for_it() {
    let scratch = Scratch::in_memory();
    let (tables, keys) = fill(scratch.path());
    let store = open(scratch.path());
    let of = |key: u64| bucket(hash(key));
    let same: Vec<u64> = keys.iter().copied().filter(|&k| of(k) == of(keys[0])).collect();
    let expected = same.len() as u64;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| lookup(&store, tables[0], &same));
        }
    });
    assert_eq!(missing(&store), BUCKETS as usize - 1);
    let engine = &store.engine;
    let stripe = (of(keys[0]) / engine.tier.buckets_per_stripe) as usize;
    let loaded = engine.stripes[stripe].lock().parts[&tables[0]].index.len() as u64;
    assert_eq!(loaded, expected, "keys of one bucket, each once");
}
