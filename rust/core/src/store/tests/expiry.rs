//! Goal: exactly those rows go that nobody has seen for long enough, wherever they lie, they stay
//! away, and whoever sees a row in time keeps it.
//!
//! Method: a map of when each key was last seen, beside random calls on stores of which all rows or
//! few are in DRAM, with the clock run ahead by days, over restarts, crashes and compaction. Races
//! are made by hand: what is found due is seen before it is removed, or a push waits for its turn.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::walk::{Due, Seen};
use crate::expiry::{Expiry, Judgement};
use crate::optimizer::GradientOptions;
use crate::scratch::Scratch;
use crate::spec::{TableChange, TableSpec};
use crate::store::tests::{config, copy, hold, open, spec};
use crate::store::{Assign, GradientBatch, InsertBatch, LookupBatch, Store, StoreConfig};
use crate::table::{stripe_of, Found, Item};
use crate::types::{hash, Durability, Push, TableId, BUCKETS};

thread_local! {
    /// Stores that are opened have no thread that walks.
    pub(super) static IS_QUIET: Cell<bool> = const { Cell::new(true) };
}

const DAY: u64 = 86_400;
const MONTH: u64 = 30 * DAY;
/// A kilobyte a row: a table's smallest cap holds some hundred.
const DIM: usize = 256;
const FOREVER: Duration = Duration::from_secs(120);

fn after(name: &str, seconds: u64) -> TableSpec {
    TableSpec { expiry: Some(Expiry::After { seconds }), ..spec(name, DIM as u32) }
}

/// Few of its rows are in DRAM.
fn on_nvme(spec: TableSpec) -> TableSpec {
    TableSpec { dram: Some(1 << 20), ..spec }
}

/// The clocks run ahead by so many days, the date by `jump` more.
fn set_day(store: &Store, day: u64, jump: i64) {
    store.engine.clock.ahead[0].store((day * DAY) as i64, Relaxed);
    store.engine.clock.ahead[1].store(jump, Relaxed);
}

fn expire(store: &Store, table: TableId, now: Option<u64>) -> u64 {
    let (mut removed, mut bucket) = (0, 0);
    while bucket < BUCKETS {
        let (n, next) = store.expire(table, bucket, now).unwrap();
        (removed, bucket) = (removed + n, next);
    }
    removed
}

fn all_keys(store: &Store, table: TableId) -> Vec<u64> {
    let (mut keys, mut bucket) = (Vec::new(), 0);
    while bucket < BUCKETS {
        bucket = store.keys(table, bucket, &mut keys).unwrap();
    }
    keys.sort_unstable();
    keys
}

fn train(store: &Store, table: TableId, dim: usize, keys: &[u64]) {
    let mut rows = vec![0.0; dim * keys.len()];
    store
        .lookup_or_insert(&mut [InsertBatch { table, keys, counts: &[], rows: &mut rows }])
        .unwrap();
}

fn read(store: &Store, table: TableId, dim: usize, keys: &[u64]) -> Vec<f32> {
    let mut rows = vec![0.0; dim * keys.len()];
    store.lookup(&mut [LookupBatch { table, keys, rows: &mut rows, found: &mut [] }]).unwrap();
    rows
}

/// Each value of each row grows by one.
fn push(store: &Store, push: Push, table: TableId, dim: usize, keys: &[u64]) {
    let gradients = vec![-1.0; dim * keys.len()];
    store.apply_gradients(push, &[GradientBatch { table, keys, gradients: &gradients }]).unwrap();
}

fn assign(store: &Store, number: u64, table: TableId, keys: &[u64], value: &[f32]) {
    let rows = value.repeat(keys.len());
    let push = Push { session: 2, number, step: None };
    store.assign(push, &Assign { table, keys, rows: &rows }).unwrap();
}

fn is_in_dram(store: &Store, table: TableId, key: u64) -> bool {
    let item = Item { key, hash: hash(key), index: 0 };
    let state = store.engine.stripes[stripe_of(item.hash, store.engine.stripes.len())].lock();
    matches!(state.parts[&table].find(&item, |_| false), Found::Dram(_))
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn keys(&mut self, n: usize, below: u64) -> Vec<u64> {
        let mut keys: Vec<u64> = (0..n).map(|_| self.next(below)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// A store and the day on which each key of its table was last seen.
struct Model {
    store: Store,
    scratch: Scratch,
    table: TableId,
    seen: BTreeMap<u64, u64>,
    day: u64,
    number: u64,
}

impl Model {
    const KEYS: u64 = 6000;

    fn new(config: impl Fn(&Scratch) -> StoreConfig, spec: &TableSpec) -> Self {
        let scratch = Scratch::in_memory();
        let store = Store::open(config(&scratch)).unwrap();
        let table = store.create_table(spec).unwrap().id;
        Self { store, scratch, table, seen: BTreeMap::new(), day: 0, number: 0 }
    }

    fn see(&mut self, keys: &[u64]) {
        self.seen.extend(keys.iter().map(|&key| (key, self.day)));
    }

    fn call(&mut self, random: &mut Random) {
        let (store, table) = (&self.store, self.table);
        self.number += 1;
        let own = Push { session: 1, number: self.number, step: None };
        let what = random.next(10);
        let keys = random.keys(200, Self::KEYS);
        match what {
            0..4 => train(store, table, DIM, &keys),
            4..7 => push(store, own, table, DIM, &keys),
            7 => assign(store, self.number, table, &keys, &[0.5; DIM]),
            8 => {
                // Nobody's training.
                drop(read(store, table, DIM, &random.keys(400, Self::KEYS)));
                return;
            }
            _ => {
                store.remove(own, table, &keys[..20]).unwrap();
                self.seen.retain(|key, _| !keys[..20].contains(key));
                return;
            }
        }
        self.see(&keys);
    }

    fn expire(&mut self) {
        let due: Vec<u64> =
            self.seen.iter().filter(|(_, &day)| day + 30 <= self.day).map(|row| *row.0).collect();
        self.seen.retain(|_, day| *day + 30 > self.day);
        assert_eq!(expire(&self.store, self.table, None), due.len() as u64, "day {}", self.day);
        self.check();
    }

    fn check(&self) {
        let keys: Vec<u64> = self.seen.keys().copied().collect();
        let there = all_keys(&self.store, self.table);
        let lost: Vec<_> = keys.iter().filter(|key| there.binary_search(key).is_err()).collect();
        let kept: Vec<_> = there.iter().filter(|key| !self.seen.contains_key(key)).collect();
        assert!(there == keys, "day {}: lost {lost:?}, kept {kept:?}", self.day);
    }

    fn pass(&mut self, days: u64) {
        self.day += days;
        set_day(&self.store, self.day, 0);
    }

    /// From the records alone: without its image the index is what they say.
    fn reopen(&mut self, config: impl Fn(&Scratch) -> StoreConfig) {
        self.store.close().unwrap();
        std::fs::remove_file(self.scratch.path().join("index.image")).unwrap();
        self.store = Store::open(config(&self.scratch)).unwrap();
        set_day(&self.store, self.day, 0);
        self.check();
    }
}

/// With all rows in DRAM and with a few percent, with and without a journal, over restarts.
#[test]
fn those_rows_go_that_nobody_has_seen_for_so_long() {
    for (durability, spec, dram) in [
        (Durability::Process, on_nvme(after("t", MONTH)), 8),
        (Durability::None, on_nvme(after("t", MONTH)), 8),
        (Durability::Process, after("t", MONTH), 64),
    ] {
        let config = |scratch: &Scratch| StoreConfig {
            dram_bytes: dram << 20,
            nvme_bytes: 128 << 20,
            ..config(scratch, durability)
        };
        let (mut model, mut random) = (Model::new(config, &spec), Random(7));
        for round in 0..60 {
            (0..4).for_each(|_| model.call(&mut random));
            model.pass(random.next(6));
            if round % 5 == 4 {
                model.expire();
            }
            if round % 15 == 9 {
                model.reopen(config);
            }
        }
        let told = model.store.table_stats(model.table).unwrap();
        let count = |name| told.iter().find(|(known, _)| *known == name).unwrap().1;
        assert!(count("expired_rows") > 300, "{told:?}");
        // What was removed leaves the log, too, and does not come back.
        model.pass(31);
        model.expire();
        assert!(model.seen.is_empty());
        model.store.flush().unwrap();
        model.store.engine.compact().unwrap();
        model.reopen(config);
    }
}

/// What expired is absent in the files of a process that was killed right after it.
#[test]
fn what_expired_stays_away_after_a_crash() {
    let scratch = Scratch::in_memory();
    let store = open(&scratch, Durability::Process);
    let table = store.create_table(&on_nvme(after("t", MONTH))).unwrap().id;
    let keys: Vec<u64> = (0..3000).collect();
    push(&store, Push { session: 1, number: 1, step: None }, table, DIM, &keys);
    set_day(&store, 20, 0);
    push(&store, Push { session: 1, number: 2, step: None }, table, DIM, &keys[..1000]);
    set_day(&store, 35, 0);
    // Some of what is due lies in DRAM, most does not; and what is made anew is new.
    assert_eq!(expire(&store, table, None), 2000);
    push(&store, Push { session: 1, number: 3, step: None }, table, DIM, &[2500]);
    let left = copy(scratch.path());
    let again = open(&left, Durability::Process);
    let expected: Vec<u64> = (0..1000).chain([2500]).collect();
    assert!(all_keys(&again, table) == expected);
    let value = |key: u64| read(&again, table, DIM, &[key])[0];
    assert_eq!([value(7), value(2500), value(2999)], [2.0, 1.0, 0.0]);
}

/// The journal does not say when a push was made: such a row is late by as much as the store was
/// not open, and never early.
#[test]
fn what_a_replay_changes_is_seen_at_the_opening() {
    let scratch = Scratch::in_memory();
    let store = open(&scratch, Durability::Process);
    let table = store.create_table(&after("t", MONTH)).unwrap().id;
    push(&store, Push { session: 1, number: 1, step: None }, table, DIM, &[1, 2]);
    // Their records are old by now, and only the journal knows that they were seen.
    store.engine.checkpoint(true).unwrap();
    set_day(&store, 20, 0);
    push(&store, Push { session: 1, number: 2, step: None }, table, DIM, &[1, 2]);
    store.engine.save_expiry().unwrap();
    let left = copy(scratch.path());
    let again = open(&left, Durability::Process);
    let now = again.engine.clock.reckoned();
    assert_eq!(expire(&again, table, Some(now + MONTH - 100)), 0);
    assert_eq!(expire(&again, table, Some(now + MONTH + 100)), 2);
}

fn resident(key: u64) -> Due {
    Due { key, seen: Seen::Dram }
}

/// Found due, then seen, then removed if it still is: once in DRAM, once by a record on NVMe.
#[test]
fn who_sees_a_row_before_it_goes_keeps_it() {
    let scratch = Scratch::in_memory();
    let store = open(&scratch, Durability::Process);
    let id = store.create_table(&on_nvme(after("t", MONTH))).unwrap().id;
    let keys: Vec<u64> = (0..3000).collect();
    push(&store, Push { session: 1, number: 1, step: None }, id, DIM, &keys);
    store.flush().unwrap();
    set_day(&store, 31, 0);
    let engine = &store.engine;
    let table = engine.table(id).unwrap();
    let judgement = engine.judgement(&table, None).unwrap();
    for (number, in_dram) in [(2, true), (3, false)] {
        let mut own = keys.iter().copied().filter(|&key| is_in_dram(&store, id, key) == in_dram);
        let own: Vec<u64> = own.by_ref().take(4).collect();
        let due: Vec<Due> = own.iter().map(|&key| due_now(&store, id, key)).collect();
        train(&store, id, DIM, &own[..1]);
        push(&store, Push { session: 1, number, step: None }, id, DIM, &own[1..2]);
        drop(read(&store, id, DIM, &own[2..3]));
        let removed: u64 = own
            .iter()
            .zip(due)
            .map(|(&key, due)| {
                let s = stripe_of(hash(key), engine.stripes.len());
                engine.remove_due(&table, s, &[due], &judgement).unwrap().removed
            })
            .sum();
        let left = all_keys(&store, id);
        let is_left = |n: usize| left.binary_search(&own[n]).is_ok();
        assert!(is_left(0) && is_left(1), "in DRAM {in_dram}: what was seen is gone");
        assert!(!is_left(3), "in DRAM {in_dram}: nobody has seen it");
        // A lookup is no training; a row that it has moved is judged where it is now, or later.
        assert_eq!(removed, 2 - u64::from(is_left(2)), "in DRAM {in_dram}");
    }
}

/// As the walk finds it.
fn due_now(store: &Store, table: TableId, key: u64) -> Due {
    let item = Item { key, hash: hash(key), index: 0 };
    let state = store.engine.stripes[stripe_of(item.hash, store.engine.stripes.len())].lock();
    match state.parts[&table].find(&item, |_| false) {
        Found::Nvme(place) => {
            Due { key, seen: Seen::Record(place, store.engine.tier.log.incarnation(place)) }
        }
        _ => resident(key),
    }
}

/// A push has its place in the order, and waits for its turn: what it is about to change stays.
#[test]
fn a_push_on_its_way_keeps_its_rows() {
    let scratch = Scratch::in_memory();
    let store: &'static Store = Box::leak(Box::new(open(&scratch, Durability::Process)));
    let table = store.create_table(&after("t", MONTH)).unwrap().id;
    push(store, Push { session: 1, number: 1, step: None }, table, DIM, &[1, 2, 3]);
    set_day(store, 31, 0);
    let before = store.engine.sequencer.lock().last;
    let held = hold(store, 0);
    std::thread::scope(|scope| {
        let own = Push { session: 1, number: 2, step: None };
        let pushing = scope.spawn(move || push(store, own, table, DIM, &[2]));
        wait_until("the push is ordered", || store.engine.sequencer.lock().last > before);
        let expiring = scope.spawn(move || expire(store, table, None));
        wait_until("the door is closed", || store.engine.sequencer.lock().closed.is_some());
        drop(held);
        pushing.join().unwrap();
        assert_eq!(expiring.join().unwrap(), 2);
    });
    assert_eq!(all_keys(store, table), [2]);
    assert_eq!(read(store, table, DIM, &[2])[0], 2.0, "it was pushed twice and never began anew");
    let again = open(&copy(scratch.path()), Durability::Process);
    assert_eq!((all_keys(&again, table), read(&again, table, DIM, &[2])[0]), (vec![2], 2.0));
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < FOREVER, "{what}: never");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Threads push old rows while those go: each row has all its pushes, on what it was before or on
/// nothing, and so it is after a crash.
#[test]
fn rows_that_are_pushed_while_others_go_lose_nothing() {
    const THREADS: u64 = 3;
    const ROUNDS: u64 = 40;
    let scratch = Scratch::in_memory();
    let store = open(&scratch, Durability::Process);
    let table = store.create_table(&on_nvme(after("t", MONTH))).unwrap().id;
    let keys: Vec<u64> = (0..3000).collect();
    assign(&store, 1, table, &keys, &[1000.0; DIM]);
    set_day(&store, 31, 0);
    let store = &store;
    let counts = std::thread::scope(|scope| {
        let pushers: Vec<_> = (0..THREADS)
            .map(|n| {
                scope.spawn(move || {
                    let (mut random, mut counts) = (Random(n), vec![0_u32; 3000]);
                    for number in 1..=ROUNDS {
                        let keys = random.keys(60, 3000);
                        if number % 2 == 0 {
                            train(store, table, DIM, &keys);
                        }
                        push(
                            store,
                            Push { session: 10 + n, number, step: None },
                            table,
                            DIM,
                            &keys,
                        );
                        keys.iter().for_each(|&key| counts[key as usize] += 1);
                    }
                    counts
                })
            })
            .collect();
        while !pushers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            expire(store, table, None);
        }
        pushers.into_iter().map(|pusher| pusher.join().unwrap()).collect::<Vec<_>>()
    });
    let count = |key: u64| counts.iter().map(|counts| counts[key as usize]).sum::<u32>() as f32;
    expire(store, table, None);
    let rows = read(store, table, DIM, &keys);
    let mut anew = 0;
    for (&key, row) in keys.iter().zip(rows.chunks(DIM)) {
        let is_anew = row[0] < 1000.0;
        anew += usize::from(is_anew);
        assert_eq!(row[0], if is_anew { count(key) } else { 1000.0 + count(key) }, "key {key}");
    }
    assert!(anew > 300, "{anew} rows had gone before");
    let left = copy(scratch.path());
    let again = open(&left, Durability::Process);
    assert!(read(&again, table, DIM, &keys) == rows, "a crash changes rows");
}

fn steps(name: &str, span: u64) -> TableSpec {
    TableSpec { expiry: Some(Expiry::AfterSteps { steps: span }), ..spec(name, 4) }
}

/// By steps that are given, and that are not; over a restart and a crash, in each of which the
/// steps go on; and a setting that is changed.
#[test]
fn rows_go_so_many_steps_after_their_last_push() {
    for (durability, are_given) in
        [(Durability::Process, true), (Durability::Process, false), (Durability::None, false)]
    {
        let mut scratch = Scratch::in_memory();
        let mut store = open(&scratch, durability);
        let table = store.create_table(&steps("t", 10)).unwrap().id;
        let (mut random, mut seen) = (Random(3), BTreeMap::new());
        for step in 1..=60_u64 {
            let keys = random.keys(5, 100);
            let given = are_given.then_some(100 * step as i64);
            push(&store, Push { session: 1, number: step, step: given }, table, 4, &keys);
            seen.extend(keys.iter().map(|&key| (key, step)));
            let span = if are_given { 1 } else { 10 };
            match step {
                15 => {
                    store.close().unwrap();
                    store = open(&scratch, durability);
                }
                25 if durability == Durability::None => store.flush().unwrap(),
                // The file has what the journal has, too: no step counts twice.
                28 => store.flush().unwrap(),
                30 if durability != Durability::None => {
                    scratch = copy(scratch.path());
                    store = open(&scratch, durability);
                }
                _ => {}
            }
            let before = seen.len();
            seen.retain(|_, last| step - *last < span);
            // A hundred steps at a time, of a span of ten: only the last push is within.
            assert_eq!(expire(&store, table, None), (before - seen.len()) as u64, "step {step}");
            assert!(all_keys(&store, table).iter().eq(seen.keys()), "step {step}");
        }
        let change = TableChange { expiry: Some(None), ..TableChange::default() };
        store.alter(table, &change).unwrap();
        let last = Push { session: 1, number: 99, step: are_given.then_some(1 << 40) };
        push(&store, last, table, 4, &[7]);
        assert_eq!(expire(&store, table, None), 0, "rows stay");
    }
}

#[test]
fn rows_go_that_have_become_nothing() {
    let scratch = Scratch::in_memory();
    let store = open(&scratch, Durability::Process);
    let below = Some(Expiry::BelowNorm { norm: 0.5 });
    let id = store.create_table(&on_nvme(TableSpec { expiry: below, ..spec("t", DIM as u32) }));
    let id = id.unwrap().id;
    let keys: Vec<u64> = (0..4000).collect();
    let (short, long) = ([0.5 / 16.0 - 1e-6; DIM], [0.5 / 16.0 + 1e-6; DIM]);
    assign(&store, 1, id, &keys[..1000], &short);
    assign(&store, 2, id, &keys[1000..2000], &long);
    // Read, and never trained: it is zero as it began.
    train(&store, id, DIM, &keys[2000..]);
    expire(&store, id, None);
    assert!(all_keys(&store, id) == keys[1000..]);
    assert!(read(&store, id, DIM, &keys[..1]).iter().all(|&x| x == 0.0));
    let again = open(&copy(scratch.path()), Durability::Process);
    let left = all_keys(&again, id);
    assert!(left.iter().all(|&key| key >= 1000) && left.len() >= 1000);
}

/// The thread of the background does it alone; a date that jumps makes nothing old at once, neither
/// in a store that is open nor in one that is opened.
#[test]
fn a_thread_walks_and_no_jump_of_the_date_is_believed() {
    IS_QUIET.set(false);
    let scratch = Scratch::in_memory();
    let store = open(&scratch, Durability::Process);
    let table = store.create_table(&after("t", MONTH)).unwrap().id;
    let keys: Vec<u64> = (0..500).collect();
    push(&store, Push { session: 1, number: 1, step: None }, table, DIM, &keys);
    set_day(&store, 0, 400 * DAY as i64);
    assert_eq!(expire(&store, table, None), 0);
    store.close().unwrap();
    let store = open(&scratch, Durability::Process);
    set_day(&store, 0, 400 * DAY as i64);
    store.engine.load_expiry().unwrap();
    assert_eq!(expire(&store, table, None), 0);
    set_day(&store, 20, 0);
    push(&store, Push { session: 1, number: 2, step: None }, table, DIM, &keys[..100]);
    // As if time passed.
    set_day(&store, 33, 0);
    let sooner = Some(Some(Expiry::After { seconds: MONTH - 1 }));
    store.alter(table, &TableChange { expiry: sooner, ..TableChange::default() }).unwrap();
    wait_until("rows expire", || store.len(table).unwrap() == 100);
    assert!(all_keys(&store, table) == keys[..100]);
    assert_eq!(store.expire(table, 0, Some(DAY)).unwrap().0, 0, "long before");
}

/// A table without an expiry, one whose rows cannot be due yet, one that is gone.
#[test]
fn nothing_is_due_where_nothing_can_be() {
    let scratch = Scratch::in_memory();
    let store = open(&scratch, Durability::None);
    let plain = store.create_table(&spec("plain", 4)).unwrap().id;
    train(&store, plain, 4, &[1]);
    assert_eq!(store.expire(plain, 0, Some(u64::MAX)).unwrap(), (0, BUCKETS));
    let table = store.engine.table(plain).unwrap();
    assert_eq!(store.engine.judgement(&table, None), None);
    let aged = store.create_table(&after("aged", MONTH)).unwrap().id;
    train(&store, aged, DIM, &[1]);
    assert_eq!(store.expire(aged, 0, Some(5)).unwrap(), (0, BUCKETS));
    let now = u64::MAX;
    let seen = Judgement::Seen { until: now - MONTH, unstamped: store.engine.expiring.begun() };
    let table = store.engine.table(aged).unwrap();
    assert_eq!(store.engine.judgement(&table, Some(now)), Some(seen));
    store.drop_table("aged").unwrap();
    assert!(store.expire(aged, 0, None).is_err());
    let bad = TableSpec { gradients: GradientOptions::default(), ..after("bad", 0) };
    assert!(store.create_table(&bad).unwrap_err().message.contains("seconds is 0"));
}
