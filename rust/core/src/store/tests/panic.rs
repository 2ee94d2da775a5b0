//! Goal: a panic inside a call ends that call, not the store's other callers. Method: a target
//! that no door would let in, whose gradients are short, panics half way through its rows.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc;
use std::time::Duration;

use super::{hold, open, push, spec};
use crate::error::ErrorKind;
use crate::scratch::Scratch;
use crate::store::mutate::{Change, Target};
use crate::store::order::Decision;
use crate::store::{GradientBatch, Store};
use crate::types::Durability;

const LONG: Duration = Duration::from_secs(20);

/// Once the tickets of such a call were never passed: every later call waited for ever.
#[test]
fn a_panic_passes_the_turns_and_fails_the_store() {
    let scratch = Scratch::new();
    let store: &'static Store = Box::leak(Box::new(open(&scratch, Durability::None)));
    let id = store.create_table(&spec("t", 4)).unwrap().id;
    let keys: Vec<u64> = (0..1000).collect();
    let apply = move |number, keys: &[u64]| {
        let gradients = vec![1.0; keys.len() * 4];
        store.apply_gradients(
            push(number),
            &[GradientBatch { table: id, keys, gradients: &gradients }],
        )
    };
    apply(1, &keys).unwrap();
    let short = vec![1.0; 2000];
    let table = store.engine.table(id).unwrap();
    let tables = std::slice::from_ref(&table);
    let accepted = store.engine.accept(push(2), tables, keys.len(), &[]).unwrap();
    let Decision::Apply(accepted) = accepted else { panic!("it is new") };
    let change = Change::Gradients(1.0, &short);
    let target = Target { table, keys: keys.clone().into(), change, left_out: 0 };
    let panicked =
        catch_unwind(AssertUnwindSafe(|| store.engine.apply(push(2), accepted, vec![target])));
    assert!(panicked.is_err(), "the target is not as wrong as it should be");
    let (sender, answer) = mpsc::channel();
    std::thread::spawn(move || sender.send(apply(3, &keys)).unwrap());
    let error = answer.recv_timeout(LONG).expect("a later call must not hang").unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message.contains("panicked"), "{error}");
    let (sender, answer) = mpsc::channel();
    std::thread::spawn(move || sender.send(store.close()).unwrap());
    let closed = answer.recv_timeout(LONG).expect("close must not hang");
    assert_eq!(closed.unwrap_err().kind, ErrorKind::Unavailable);
    // The directory is free again, and what was flushed is there.
    open(&scratch, Durability::None).close().unwrap();
}

/// A call that waits for its turn behind the one that panics gets it, and is not acknowledged.
#[test]
fn calls_in_the_queue_are_released_and_refused() {
    let scratch = Scratch::new();
    let store: &'static Store = Box::leak(Box::new(open(&scratch, Durability::Process)));
    let id = store.create_table(&spec("t", 4)).unwrap().id;
    let keys: Vec<u64> = (0..1000).collect();
    let tickets = hold(store, 0);
    let (sender, answer) = mpsc::channel();
    let waiting = keys.clone();
    std::thread::spawn(move || {
        let gradients = vec![1.0; waiting.len() * 4];
        let batch = GradientBatch { table: id, keys: &waiting, gradients: &gradients };
        sender.send(store.apply_gradients(push(1), &[batch])).unwrap();
    });
    assert!(answer.recv_timeout(Duration::from_millis(100)).is_err(), "it passed before its turn");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut tickets = tickets;
        let _turn = tickets.next_turn();
        panic!("as a bug would");
    }));
    assert!(panicked.is_err());
    let error = answer.recv_timeout(LONG).expect("the queue must go on").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
}
