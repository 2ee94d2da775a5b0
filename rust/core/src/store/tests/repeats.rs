//! Goal: a push that is sent again is acknowledged only when it is applied, and tells what the
//! first attempt did; who was idle is told by a clock that does not jump. Method: the first attempt
//! is held before its first row, by a ticket that stands before it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{channel, Receiver};
use std::time::Duration;

use super::{copy, hold, open, push, spec};
use crate::error::Result;
use crate::scratch::Scratch;
use crate::store::{GradientBatch, LookupBatch, PushOutcome, Store};
use crate::types::{Durability, Push};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);
const KEYS: [u64; 500] = {
    let mut keys = [0; 500];
    let mut n = 0;
    while n < 500 {
        keys[n] = n as u64;
        n += 1;
    }
    keys
};

/// A store that outlives its threads, and one table of one column.
fn store(scratch: &Scratch) -> (&'static Store, u32) {
    let store: &'static Store = Box::leak(Box::new(open(scratch, Durability::Process)));
    let id = store.create_table(&spec("t", 1)).unwrap().id;
    (store, id)
}

fn apart<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, answer) = channel();
    std::thread::spawn(move || drop(sender.send(call())));
    answer
}

fn apply(store: &Store, push: Push, table: u32) -> Result<PushOutcome> {
    store.apply_gradients(push, &[GradientBatch { table, keys: &KEYS, gradients: &[-1.0; 500] }])
}

fn values(store: &Store, table: u32) -> Vec<f32> {
    let mut rows = vec![0.0; KEYS.len()];
    store
        .lookup(&mut [LookupBatch { table, keys: &KEYS, rows: &mut rows, found: &mut [] }])
        .unwrap();
    rows
}

/// Waits until the first attempt has its place in the order.
fn wait_ordered(store: &Store, before: u64) {
    while store.engine.sequencer.lock().last == before {
        std::thread::yield_now();
    }
}

/// Once the second attempt was acknowledged at once, and a lookup after it read old rows.
#[test]
fn a_duplicate_waits_for_its_original() {
    let scratch = Scratch::new();
    let (store, id) = store(&scratch);
    store.attach(1, "trainer").unwrap();
    let own = Push { session: 1, number: 1, step: Some(1) };
    let before = store.engine.sequencer.lock().last;
    let held = hold(store, 0);
    let first = apart(move || apply(store, own, id));
    wait_ordered(store, before);
    let second = apart(move || (apply(store, own, id).unwrap(), values(store, id)));
    let again = apart(move || store.attach(1, "").map(|last| (last, values(store, id))));
    assert!(second.recv_timeout(SHORT).is_err(), "acknowledged while no row was changed");
    drop(held);
    assert_eq!(first.recv_timeout(LONG).unwrap().unwrap(), PushOutcome::Applied);
    let whole = (PushOutcome::Duplicate, vec![1.0; KEYS.len()]);
    assert_eq!(second.recv_timeout(LONG).unwrap(), whole);
    assert_eq!(again.recv_timeout(LONG).unwrap().unwrap(), (1, whole.1));
    assert!(store.engine.running.is_idle());
}

/// A trainer that was started again makes the same step.
#[test]
fn a_replayed_step_waits_for_its_original() {
    let scratch = Scratch::new();
    let (store, id) = store(&scratch);
    store.attach(1, "trainer").unwrap();
    let before = store.engine.sequencer.lock().last;
    let held = hold(store, 0);
    let first = apart(move || apply(store, Push { session: 1, number: 1, step: Some(1) }, id));
    wait_ordered(store, before);
    let replay = apart(move || {
        store.attach(2, "trainer").unwrap();
        let replayed = Push { session: 2, number: 1, step: Some(1) };
        (apply(store, replayed, id).unwrap(), values(store, id))
    });
    assert!(replay.recv_timeout(SHORT).is_err(), "its step was acknowledged, and not made");
    drop(held);
    first.recv_timeout(LONG).unwrap().unwrap();
    let whole = (PushOutcome::Duplicate, vec![1.0; KEYS.len()]);
    assert_eq!(replay.recv_timeout(LONG).unwrap(), whole);
}

/// One table of a replayed step was pushed before, the other is new: the call waits for all of the
/// first, not for the one stripe (that of key 0 is the first) that it touches itself.
#[test]
fn a_duplicate_in_part_waits_too() {
    let scratch = Scratch::new();
    let (store, id) = store(&scratch);
    let other = store.create_table(&spec("u", 1)).unwrap().id;
    store.attach(1, "trainer").unwrap();
    let before = store.engine.sequencer.lock().last;
    let held = hold(store, 1);
    let first = apart(move || apply(store, Push { session: 1, number: 1, step: Some(1) }, id));
    wait_ordered(store, before);
    let part = apart(move || {
        store.attach(2, "trainer").unwrap();
        let one = |table, n: usize| GradientBatch {
            table,
            keys: &KEYS[..n],
            gradients: &[-1.0; 500][..n],
        };
        let batches = [one(id, 1), one(other, 1)];
        let outcome =
            store.apply_gradients(Push { session: 2, number: 1, step: Some(1) }, &batches);
        (outcome.unwrap(), values(store, id), values(store, other)[0])
    });
    assert!(part.recv_timeout(SHORT).is_err());
    drop(held);
    assert_eq!(first.recv_timeout(LONG).unwrap().unwrap(), PushOutcome::Applied);
    let expected = (PushOutcome::Applied, vec![1.0; KEYS.len()], 1.0);
    assert_eq!(part.recv_timeout(LONG).unwrap(), expected);
}

/// Once a repeated removal returned 0.
#[test]
fn a_repeated_removal_returns_what_the_first_found() {
    let scratch = Scratch::new();
    let (store, id) = store(&scratch);
    apply(store, push(1), id).unwrap();
    assert_eq!(store.remove(push(2), id, &KEYS[..7]).unwrap(), 7);
    let held = hold(store, 0);
    let first = apart(move || store.remove(push(3), id, &KEYS[..20]));
    let second = apart(move || store.remove(push(3), id, &KEYS[..20]));
    assert!(second.recv_timeout(SHORT).is_err() && first.recv_timeout(SHORT).is_err());
    drop(held);
    for answer in [first, second] {
        assert_eq!(answer.recv_timeout(LONG).unwrap().unwrap(), 13);
    }
    assert_eq!(store.remove(push(2), id, &KEYS[..7]).unwrap(), 7);
    // A killed process: the journal has what was removed.
    let image = copy(scratch.path());
    let again = open(&image, Durability::Process);
    assert_eq!(again.remove(push(3), id, &KEYS[..20]).unwrap(), 13);
    again.close().unwrap();
}

/// Once a corrected clock made sessions old, and steps that were replayed then were applied twice.
#[test]
fn nobody_is_idle_because_the_date_jumped() {
    for jump in [-86_400, 7_200] {
        let scratch = Scratch::new();
        let store = open(&scratch, Durability::Process);
        let id = store.create_table(&spec("t", 1)).unwrap().id;
        let replay = |store: &Store, session| {
            store.attach(session, "trainer").unwrap();
            apply(store, Push { session, number: 1, step: Some(5) }, id).unwrap()
        };
        assert_eq!(replay(&store, 1), PushOutcome::Applied);
        store.engine.clock.ahead[1].fetch_add(jump, Relaxed);
        store.engine.checkpoint(false).unwrap();
        assert_eq!(replay(&store, 2), PushOutcome::Duplicate);
        // Closed for as long as the clock says, and nobody was idle.
        store.close().unwrap();
        let store = open(&scratch, Durability::Process);
        store.engine.clock.ahead[1].fetch_add(2 * jump, Relaxed);
        store.engine.checkpoint(false).unwrap();
        assert_eq!(replay(&store, 3), PushOutcome::Duplicate);
        // An hour in which the store ran, and its client did nothing.
        store.engine.clock.ahead[0].fetch_add(3601, Relaxed);
        store.engine.checkpoint(false).unwrap();
        assert_eq!(replay(&store, 4), PushOutcome::Applied);
        store.close().unwrap();
    }
}
