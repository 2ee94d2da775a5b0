//! Goal: a change of tables has one place in the order of calls, whatever stops it, and what a
//! removal found is known as long as its session. Method: changes of files that fail, and images of
//! the directory as a killed process leaves it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use super::{copy, hold, open, push, spec};
use crate::error::ErrorKind;
use crate::scratch::Scratch;
use crate::spec::TableChange;
use crate::store::{Assign, LookupBatch, Store};
use crate::types::{Durability, TableId};
use crate::vfs::trace::{Change, Traced};

const KEYS: [u64; 4] = [1, 2, 3, 4];

fn assign(store: &Store, number: u64, table: TableId, value: f32) {
    let rows = [value; 2 * KEYS.len()];
    store.assign(push(number), &Assign { table, keys: &KEYS, rows: &rows }).unwrap();
}

fn value(store: &Store, table: TableId) -> f32 {
    let (mut rows, keys) = ([0.0; 2 * KEYS.len()], &KEYS);
    store.lookup(&mut [LookupBatch { table, keys, rows: &mut rows, found: &mut [] }]).unwrap();
    assert!(rows.iter().all(|x| *x == rows[0]));
    rows[0]
}

fn rate(rate: f32) -> TableChange {
    TableChange { learning_rate: Some(rate), ..TableChange::default() }
}

fn is_manifest(change: &Change) -> bool {
    matches!(change, Change::Rename { to, .. } if to.ends_with("MANIFEST"))
}

/// The three changes, on a store with the tables "a" and "b".
const CHANGES: [fn(&Store) -> crate::error::Result<()>; 3] = [
    |store| store.create_table(&spec("new", 2)).map(drop),
    |store| store.alter(store.table("a")?.id, &rate(7.0)),
    |store| store.drop_table("a"),
];

/// An entry whose manifest never came is made at the next opening, behind what was before it.
#[test]
fn a_change_that_was_cut_short_behind_its_entry_is_made_by_the_replay() {
    for (n, change) in CHANGES.iter().enumerate() {
        let scratch = Scratch::new();
        let traced = Traced::new(scratch.path());
        let store = open(&scratch, Durability::Process);
        let ids = ["a", "b"].map(|name| store.create_table(&spec(name, 2)).unwrap().id);
        assign(&store, 1, ids[0], 1.0);
        assign(&store, 2, ids[1], 2.0);
        traced.fail(|change| is_manifest(change).then_some(libc::EIO));
        assert_eq!(change(&store).unwrap_err().kind, ErrorKind::Unavailable);
        // What is known of the device is not enough to go on.
        assert_eq!(store.flush().unwrap_err().kind, ErrorKind::Unavailable);
        traced.heal();
        drop(store);
        for _ in 0..2 {
            let store = open(&scratch, Durability::Process);
            let expected: &[&str] = [&["a", "b", "new"][..], &["a", "b"], &["b"]][n];
            assert_eq!(store.tables(), expected);
            assert_eq!(value(&store, ids[1]), 2.0);
            let rows = if n < 2 { 8 } else { 4 };
            let charged = store.engine.record_bytes.load(Relaxed);
            assert_eq!(charged, rows * crate::log::footprint(2), "rows that are gone are charged");
            if n < 2 {
                assert_eq!(value(&store, ids[0]), 1.0);
                let known = store.spec(ids[0]).unwrap().learning_rate;
                assert_eq!(known, [1.0, 7.0][n]);
            }
        }
        let store = open(&scratch, Durability::Process);
        let id = store.create_table(&spec("more", 2)).unwrap().id;
        assert_eq!(id, [4, 3, 3][n], "an id is never used again");
    }
}

/// A drop, and a table of the same name, while the rows of the first are still in the journal.
#[test]
fn entries_of_a_dropped_table_do_not_reach_the_next_of_its_name() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::Process);
    let first = store.create_table(&spec("t", 2)).unwrap().id;
    assign(&store, 1, first, 1.0);
    store.drop_table("t").unwrap();
    let second = store.create_table(&spec("t", 2)).unwrap().id;
    assert_eq!(store.len(second).unwrap(), 0);
    assign(&store, 2, second, 2.0);
    let image = copy(scratch.path());
    let again = open(&image, Durability::Process);
    assert_eq!(again.table("t").unwrap().id, second);
    assert_eq!((value(&again, second), again.len(second).unwrap()), (2.0, 4));
    assert_eq!(again.len(first).unwrap_err().kind, ErrorKind::TableNotFound);
    assert_eq!(again.attach(1, "").unwrap(), 2);
}

/// Until a drop is durable its rows may be wanted again: compaction must not pass over them, and no
/// change may come behind it.
#[test]
fn a_drop_on_its_way_keeps_its_rows_and_takes_no_push() {
    let scratch = Scratch::new();
    let traced = Traced::new(scratch.path());
    let store: &'static Store = Box::leak(Box::new(open(&scratch, Durability::Process)));
    let table = store.create_table(&spec("t", 2)).unwrap().id;
    assign(store, 1, table, 1.0);
    let looks = Arc::new(AtomicU64::new(0));
    let counted = looks.clone();
    traced.fail(move |change| {
        if is_manifest(change) {
            let rows = [0.0; 2];
            let behind = store.assign(push(2), &Assign { table, keys: &[1], rows: &rows });
            let is_refused = behind.is_err_and(|error| error.kind == ErrorKind::TableNotFound);
            let is_kept = store.engine.catalog.read().by_id.contains_key(&table);
            let is_read = value(store, table) == 1.0;
            counted.fetch_add(u64::from(is_refused && is_kept && is_read), Relaxed);
        }
        None
    });
    store.drop_table("t").unwrap();
    assert_eq!(looks.load(Relaxed), 1);
    assert_eq!(store.len(table).unwrap_err().kind, ErrorKind::TableNotFound);
    assert!(store.engine.catalog.read().leaving.is_none());
}

/// What can be refused is refused before the change has a place in the order.
#[test]
fn a_change_without_room_changes_nothing() {
    let scratch = Scratch::new();
    let traced = Traced::new(scratch.path());
    let store = open(&scratch, Durability::Process);
    for name in ["a", "b"] {
        store.create_table(&spec(name, 2)).unwrap();
    }
    let stored = || std::fs::read(scratch.path().join("MANIFEST")).unwrap();
    let before = (stored(), store.engine.sequencer.lock().last);
    let refused = |change: fn(&Store) -> crate::error::Result<()>| {
        assert_eq!(change(&store).unwrap_err().kind, ErrorKind::StoreFull);
        assert_eq!(store.tables(), ["a", "b"]);
        assert_eq!(store.table("a").unwrap().spec.learning_rate, 1.0);
        assert_eq!((stored(), store.engine.sequencer.lock().last), before);
        assert!(!scratch.path().join("MANIFEST.tmp").exists());
    };
    for change in CHANGES {
        traced.fail(|change| matches!(change, Change::Create { .. }).then_some(libc::ENOSPC));
        refused(change);
        traced.heal();
        // The second append: that of the entry.
        let appends = AtomicU64::new(0);
        traced.fail(move |change| {
            let is_append = matches!(change, Change::Write { offset: None, .. });
            (is_append && appends.fetch_add(1, Relaxed) == 1).then_some(libc::ENOSPC)
        });
        refused(change);
        traced.heal();
    }
    CHANGES.iter().for_each(|change| change(&store).unwrap());
    assert_eq!(store.tables(), ["b", "new"]);
}

/// Older entries must not undo what was changed in a run without a journal.
#[test]
fn a_run_without_a_journal_counts_on() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::Process);
    let table = store.create_table(&spec("t", 2)).unwrap().id;
    store.alter(table, &rate(2.0)).unwrap();
    assign(&store, 1, table, 1.0);
    let image = copy(scratch.path());
    let store = open(&image, Durability::None);
    // More than the calls that an opening sets aside.
    (0..9).for_each(|_| store.alter(table, &rate(3.0)).unwrap());
    let last = store.engine.sequencer.lock().last;
    let image = copy(image.path());
    let store = open(&image, Durability::Process);
    assert_eq!(store.spec(table).unwrap().learning_rate, 3.0);
    assert!(store.engine.sequencer.lock().last >= last);
    assert_eq!(value(&store, table), 1.0);
    store.alter(table, &rate(4.0)).unwrap();
    let store = open(&copy(image.path()), Durability::Process);
    assert_eq!(store.spec(table).unwrap().learning_rate, 4.0);
}

/// Once a rotation synced, and changes of tables may, while every push stood behind them.
#[test]
fn no_sync_is_waited_for_under_the_lock_of_the_order() {
    let scratch = Scratch::new();
    let traced = Traced::new(scratch.path());
    let store: &'static Store = Box::leak(Box::new(open(&scratch, Durability::Always)));
    let table = store.create_table(&spec("t", 2)).unwrap().id;
    assign(store, 1, table, 1.0);
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = syncs.clone();
    traced.fail(move |change| {
        if matches!(change, Change::Sync { .. } | Change::SyncDirectory { .. }) {
            counted.fetch_add(1, Relaxed);
            // Others hold it for no longer than a write takes.
            let free = store.engine.sequencer.try_lock_for(Duration::from_secs(20));
            if free.is_none() {
                eprintln!("a sync under the lock of the order");
                std::process::abort();
            }
        }
        None
    });
    store.engine.checkpoint(false).unwrap();
    store.alter(table, &rate(2.0)).unwrap();
    assign(store, 2, table, 2.0);
    store.engine.checkpoint(true).unwrap();
    store.drop_table("t").unwrap();
    assert!(syncs.load(Relaxed) > 10);
}

/// Once a checkpoint forgot it, and a repeated removal returned 0 after a restart.
#[test]
fn what_a_removal_found_is_known_behind_checkpoints_and_crashes() {
    let scratch = Scratch::new();
    let store: &'static Store = Box::leak(Box::new(open(&scratch, Durability::Process)));
    let table = store.create_table(&spec("t", 2)).unwrap().id;
    assign(store, 1, table, 1.0);
    assert_eq!(store.remove(push(2), table, &KEYS[..3]).unwrap(), 3);
    let known = |store: &Store, number| store.remove(push(number), table, &KEYS).unwrap();
    // The log has the removal by then, and its replay would find nothing.
    store.flush().unwrap();
    assert_eq!(known(&open(&copy(scratch.path()), Durability::Process), 2), 3);
    // One that has its place before the new file begins, and finds its rows after it.
    let held = hold(store, 0);
    let removal = std::thread::spawn(move || store.remove(push(3), table, &KEYS).unwrap());
    while store.engine.running.is_idle() {
        std::thread::yield_now();
    }
    let checkpoint = std::thread::spawn(move || store.engine.checkpoint(false).unwrap());
    while store.engine.journal().generation() == 1 {
        std::thread::yield_now();
    }
    drop(held);
    assert_eq!(removal.join().unwrap(), 1);
    checkpoint.join().unwrap();
    assert!(!scratch.path().join("journal/00000001.log").exists());
    let image = copy(scratch.path());
    for _ in 0..3 {
        let store = open(&image, Durability::Process);
        assert_eq!([known(&store, 2), known(&store, 3)], [3, 1]);
        store.close().unwrap();
    }
}
