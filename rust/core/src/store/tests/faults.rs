//! Goal: a file system that is full, or a device that fails, costs what it must and no more: reads
//! go on, what is refused changes nothing, and room that comes back is used without a restart.
//!
//! Method: a store whose changes of files fail on demand, beside counts of acknowledged pushes:
//! each adds one to its rows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{push, spec};
use crate::error::{Error, ErrorKind};
use crate::failure::Health;
use crate::scratch::Scratch;
use crate::store::{GradientBatch, LookupBatch, Store, StoreConfig};
use crate::types::{Durability, TableId};
use crate::vfs::trace::{Change, Traced};

/// Which changes of files fail.
type Chosen = fn(&Change) -> bool;

const DIM: usize = 64;
const KEYS: u64 = 60_000;
/// Keys of a push.
const STEP: u64 = 1000;

fn open(scratch: &Scratch, durability: Durability) -> Store {
    let config = super::config(scratch, durability);
    Store::open(StoreConfig { nvme_bytes: 128 << 20, ..config }).unwrap()
}

/// Pushes, and what was acknowledged of them.
struct Pushes<'a> {
    store: &'a Store,
    table: TableId,
    number: u64,
    /// Pushes to each key.
    counts: BTreeMap<u64, f32>,
}

impl<'a> Pushes<'a> {
    /// Three quarters of the rows do not fit the DRAM.
    fn begin(store: &'a Store) -> Self {
        let table = store.create_table(&spec("t", DIM as u32)).unwrap().id;
        let mut pushes = Self { store, table, number: 0, counts: BTreeMap::new() };
        for _ in 0..KEYS / STEP {
            pushes.next().unwrap();
        }
        pushes.check();
        pushes
    }

    /// The next push, to the next keys.
    fn next(&mut self) -> Result<(), Error> {
        let first = self.number * STEP % KEYS;
        let keys: Vec<u64> = (first..first + STEP).collect();
        let gradients = vec![-1.0; keys.len() * DIM];
        let batch = GradientBatch { table: self.table, keys: &keys, gradients: &gradients };
        self.store.apply_gradients(push(self.number + 1), &[batch])?;
        self.number += 1;
        keys.into_iter().for_each(|key| *self.counts.entry(key).or_default() += 1.0);
        Ok(())
    }

    fn check(&self) {
        check(self.store, self.table, &self.counts);
    }
}

fn check(store: &Store, table: TableId, counts: &BTreeMap<u64, f32>) {
    let keys: Vec<u64> = counts.keys().copied().collect();
    let mut rows = vec![0.0; keys.len() * DIM];
    let batch = LookupBatch { table, keys: &keys, rows: &mut rows, found: &mut [] };
    store.lookup(&mut [batch]).expect("reads go on");
    for (row, (key, count)) in rows.chunks(DIM).zip(counts) {
        assert!(row.iter().all(|x| x == count), "key {key}: {} instead of {count}", row[0]);
    }
}

/// Pushes until one is refused.
fn until_refused(pushes: &mut Pushes<'_>) -> Error {
    (0..2000).find_map(|_| pushes.next().err()).expect("the device is full")
}

#[test]
fn a_full_file_system_refuses_what_needs_room_until_there_is_some() {
    let is_log = |change: &Change| matches!(change, Change::Write { offset: Some(_), .. });
    let is_journal = |change: &Change| matches!(change, Change::Write { offset: None, .. });
    let all = |change: &Change| matches!(change, Change::Write { .. } | Change::Create { .. });
    let cases: [(&str, Chosen); 3] = [("log", is_log), ("journal", is_journal), ("all", all)];
    for (what, is_full) in cases {
        let scratch = Scratch::new();
        let traced = Traced::new(scratch.path());
        let store = open(&scratch, Durability::Process);
        let mut pushes = Pushes::begin(&store);
        for round in 0..3 {
            traced.fail(move |change| is_full(change).then_some(libc::ENOSPC));
            let error = std::thread::scope(|scope| {
                let pusher = scope.spawn(|| until_refused(&mut pushes));
                // A push that has its entry in the journal waits for room: then it goes on.
                let end = Instant::now() + Duration::from_millis(700);
                while !pusher.is_finished() && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(10));
                }
                if !pusher.is_finished() {
                    traced.heal();
                    std::thread::sleep(Duration::from_millis(300));
                    traced.fail(move |change| is_full(change).then_some(libc::ENOSPC));
                }
                let end = Instant::now() + Duration::from_secs(20);
                while !pusher.is_finished() {
                    if Instant::now() > end {
                        traced.heal();
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                pusher.join().unwrap()
            });
            assert_eq!(error.kind, ErrorKind::StoreFull, "{what} {round}: {error}");
            assert!(matches!(store.health(), Health::Degraded(_)), "{what}: {:?}", store.health());
            pushes.check();
            traced.heal();
            let end = Instant::now() + Duration::from_secs(20);
            while let Err(error) = pushes.next() {
                assert_eq!(error.kind, ErrorKind::StoreFull, "{what} {round}: {error}");
                assert!(Instant::now() < end, "{what} {round}: {error}, though there is room");
                std::thread::sleep(Duration::from_millis(20));
            }
            (0..KEYS / STEP).for_each(|_| pushes.next().unwrap());
            pushes.check();
            store.flush().unwrap();
        }
        let (table, counts) = (pushes.table, pushes.counts);
        drop(store);
        check(&open(&scratch, Durability::Process), table, &counts);
    }
}

#[test]
fn a_failed_device_stops_changes_and_no_read() {
    let is_write = |change: &Change| matches!(change, Change::Write { offset: Some(_), .. });
    let is_entry = |change: &Change| matches!(change, Change::Write { offset: None, .. });
    let is_sync = |change: &Change| matches!(change, Change::Sync { .. });
    let cases: [(&str, Chosen); 3] = [("log", is_write), ("journal", is_entry), ("sync", is_sync)];
    for (what, fails) in cases {
        let scratch = Scratch::new();
        let traced = Traced::new(scratch.path());
        let store = open(&scratch, Durability::Always);
        let mut pushes = Pushes::begin(&store);
        traced.fail(move |change| fails(change).then_some(libc::EIO));
        let error = until_refused(&mut pushes);
        assert_eq!(error.kind, ErrorKind::Unavailable, "{what}: {error}");
        // Once is enough: what the device has is unknown for good.
        traced.heal();
        for _ in 0..2 {
            let error = pushes.next().unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unavailable, "{what}: {error}");
        }
        assert_eq!(store.flush().unwrap_err().kind, ErrorKind::Unavailable, "{what}");
        let Health::Failed(reason) = store.health() else {
            panic!("{what}: {:?}", store.health());
        };
        assert!(reason.contains("os error 5"), "{what}: {reason}");
        // The push that failed may be applied or not, to some of its rows.
        let (first, table) = (pushes.number * STEP % KEYS, pushes.table);
        let mut counts = pushes.counts;
        let unknown: Vec<u64> = (first..first + STEP).collect();
        let before = counts[&first];
        counts.retain(|key, _| !unknown.contains(key));
        check(&store, table, &counts);
        assert_eq!(store.len(table).unwrap(), KEYS);
        assert_eq!(store.close().unwrap_err().kind, ErrorKind::Unavailable, "{what}");
        let store = open(&scratch, Durability::Always);
        assert_eq!(store.health(), Health::Ok);
        check(&store, table, &counts);
        // As a whole it is there or not.
        let mut rows = vec![0.0; unknown.len() * DIM];
        let batch = LookupBatch { table, keys: &unknown, rows: &mut rows, found: &mut [] };
        store.lookup(&mut [batch]).unwrap();
        assert!(rows.iter().all(|&x| x == rows[0]) && [before, before + 1.0].contains(&rows[0]));
    }
}

/// A store that a crash left on a full file system opens: its rows can be read.
#[test]
fn a_crashed_store_opens_on_a_full_file_system() {
    let scratch = Scratch::new();
    let traced = Traced::new(scratch.path());
    let store = open(&scratch, Durability::Process);
    let mut pushes = Pushes::begin(&store);
    let (table, counts, number) = (pushes.table, pushes.counts.clone(), pushes.number);
    store.close().unwrap();
    let store = open(&scratch, Durability::Process);
    pushes = Pushes { store: &store, table, number, counts };
    pushes.next().unwrap();
    pushes.next().unwrap();
    let (counts, number) = (pushes.counts, pushes.number);
    // Nothing is written any more: as if the process was killed.
    traced.fail(|_| Some(libc::EIO));
    assert!(store.close().is_err());
    drop(store);
    // What is overwritten in place needs no space.
    let needs_space = |change: &Change| match change {
        Change::Write { offset, bytes, .. } => offset.is_none() || bytes.len() > 8192,
        Change::Create { path } => !path.exists(),
        _ => false,
    };
    traced.fail(move |change| needs_space(change).then_some(libc::ENOSPC));
    let store = open(&scratch, Durability::Process);
    check(&store, table, &counts);
    let mut pushes = Pushes { store: &store, table, number, counts };
    assert_eq!(until_refused(&mut pushes).kind, ErrorKind::StoreFull);
    pushes.check();
    traced.heal();
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(error) = pushes.next() {
        assert!(error.kind == ErrorKind::StoreFull && Instant::now() < end, "{error}");
        std::thread::sleep(Duration::from_millis(20));
    }
    pushes.check();
    store.close().unwrap();
}
