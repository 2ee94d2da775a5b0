//! Goal: a push is applied once, a step of a client once, and a session that was taken over never
//! again, over crashes and restarts of the store. Method: SGD with rate 1 counts what was applied;
//! images of the open store are crashes.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use hybridps_core::{
    Durability, Error, ErrorKind, GradientBatch, Initializer, Optimizer, Push, PushOutcome, Store,
};

mod kit;
mod scratch;
use kit::{assign, config, copy, lookup, push, spec};
use scratch::Scratch;

use PushOutcome::{Applied, Duplicate};

struct Beside {
    scratch: Scratch,
    store: Store,
    tables: [u32; 2],
}

impl Beside {
    fn new() -> Self {
        let scratch = Scratch::new("sessions");
        let store = Store::open(config(scratch.path(), Durability::Process)).unwrap();
        let tables = ["a", "b"].map(|name| {
            let mut spec = spec(name, 1, Optimizer::Sgd);
            (spec.learning_rate, spec.initializer) = (1.0, Initializer::Zeros);
            store.create_table(&spec).unwrap().id
        });
        Self { scratch, store, tables }
    }

    /// A killed process, or a clean end.
    fn again(&mut self, is_crash: bool) {
        let image = Scratch::new("sessions");
        if !is_crash {
            self.store.close().unwrap();
        }
        copy(self.scratch.path(), image.path());
        self.store = Store::open(config(image.path(), Durability::Process)).unwrap();
        self.scratch = image;
    }

    fn push(
        &self,
        session: u64,
        number: u64,
        step: Option<i64>,
        tables: &[u32],
    ) -> Result<PushOutcome, Error> {
        let batch = |&table: &u32| GradientBatch { table, keys: &[5], gradients: &[-1.0] };
        let batches: Vec<_> = tables.iter().map(batch).collect();
        self.store.apply_gradients(Push { session, number, step }, &batches)
    }

    /// How often each table was pushed to.
    fn applied(&self) -> [f32; 2] {
        self.tables.map(|table| lookup(&self.store, table, 1, &[5]).unwrap().0[0])
    }
}

#[test]
fn numbers_count_once_over_crashes_and_restarts() {
    let mut beside = Beside::new();
    let [a, b] = beside.tables;
    assert_eq!(beside.store.attach(1, "").unwrap(), 0);
    for number in 1..=3 {
        assert_eq!(beside.push(1, number, None, &[a, b]).unwrap(), Applied);
    }
    assert_eq!(assign(&beside.store, push(1, 4), a, &[6], &[1.0]).unwrap(), Applied);
    assert_eq!(beside.store.remove(push(1, 5), a, &[6]).unwrap(), 1);
    for is_crash in [true, true, false, true, false, false] {
        beside.again(is_crash);
        assert_eq!(beside.store.attach(1, "").unwrap(), 5);
        for number in 1..=3 {
            assert_eq!(beside.push(1, number, None, &[a, b]).unwrap(), Duplicate);
        }
        assert_eq!(assign(&beside.store, push(1, 4), a, &[6], &[1.0]).unwrap(), Duplicate);
        assert_eq!(beside.store.remove(push(1, 5), a, &[6]).unwrap(), 1);
        assert_eq!(beside.applied(), [3.0, 3.0]);
        assert_eq!(lookup(&beside.store, a, 1, &[6]).unwrap().1, [0]);
    }
    assert_eq!(beside.push(1, 6, None, &[a]).unwrap(), Applied);
    beside.again(true);
    assert_eq!(beside.store.attach(1, "").unwrap(), 6);
    assert_eq!(beside.applied(), [4.0, 3.0]);
}

#[test]
fn steps_and_who_took_over_outlive_crashes_and_restarts() {
    let mut beside = Beside::new();
    let [a, b] = beside.tables;
    beside.store.attach(1, "trainer").unwrap();
    for step in 1..=5 {
        beside.push(1, step, Some(step as i64), &[a]).unwrap();
    }
    beside.push(1, 6, Some(6), &[b]).unwrap();
    beside.again(true);
    // A trainer that begins again at its third step.
    assert_eq!(beside.store.attach(2, "trainer").unwrap(), 0);
    assert_eq!(beside.push(2, 1, Some(3), &[a]).unwrap(), Duplicate);
    for is_crash in [true, false, true, false] {
        beside.again(is_crash);
        assert_eq!(beside.store.attach(1, "trainer").unwrap_err().kind, ErrorKind::Unavailable);
        let old = beside.push(1, 7, Some(9), &[a]).unwrap_err();
        assert_eq!(old.kind, ErrorKind::Unavailable);
        beside.store.attach(2, "trainer").unwrap();
        assert_eq!(beside.push(2, 2, Some(5), &[a]).unwrap(), Duplicate);
        assert_eq!(beside.applied(), [5.0, 1.0]);
    }
    // Step 6 is new to one of the tables only.
    assert_eq!(beside.push(2, 3, Some(6), &[a, b]).unwrap(), Applied);
    assert_eq!(beside.applied(), [6.0, 1.0]);
    for is_crash in [true, false] {
        beside.again(is_crash);
        assert_eq!(beside.applied(), [6.0, 1.0]);
        assert_eq!(beside.store.attach(2, "trainer").unwrap(), 3);
        let stale = beside.push(2, 4, Some(6), &[a]).unwrap_err();
        assert_eq!(stale.kind, ErrorKind::BadInput, "a step grows within its session");
    }
    assert_eq!(beside.push(2, 4, Some(7), &[a, b]).unwrap(), Applied);
    assert_eq!(beside.applied(), [7.0, 2.0]);
}
