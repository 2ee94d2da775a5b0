//! Goal: tickets, passes and the memory of calls neither hang nor break their order, whichever
//! thread goes on at each step. Method: shuttle explores schedules at random, with few changes of
//! thread where that finds more; a schedule that hangs is a failure too.
//!
//!     cargo test -p hybridps-core --features schedules schedules
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread;

use crate::failure::Failure;
use crate::ledger::{Kind, Ledger};
use crate::sync::Mutex;
use crate::table::{Stripe, Tickets};

const STRIPES: usize = 3;

/// Schedules of each kind; the campaign tries more.
fn explore(test: impl Fn() + Send + Sync + 'static) {
    let rounds = if std::env::var_os("HYBRIDPS_LONG").is_some() { 20_000 } else { 1000 };
    let test = Arc::new(test);
    for depth in [2, 3] {
        let test = test.clone();
        shuttle::Runner::new(PctScheduler::new(depth, rounds), shuttle::Config::default())
            .run(move || test());
    }
    shuttle::Runner::new(RandomScheduler::new(rounds), shuttle::Config::default())
        .run(move || test());
}

fn stripes() -> Arc<Vec<Stripe>> {
    let ledger = Ledger::new(8 << 20);
    let failure = Arc::<Failure>::default();
    Arc::new((0..STRIPES).map(|_| Stripe::new(&ledger, STRIPES, failure.clone())).collect())
}

/// The one order: whoever holds it draws the next sequence and its tickets.
#[derive(Default)]
struct Order {
    last: u64,
    next: [u64; STRIPES],
}

impl Order {
    fn draw<'a>(&mut self, stripes: &'a [Stripe], touched: &[usize]) -> (u64, Tickets<'a>) {
        self.last += 1;
        let draw = |&s: &usize| {
            self.next[s] += 1;
            (s, self.next[s] - 1)
        };
        (self.last, Tickets::new(stripes, self.last, touched.iter().map(draw).collect()))
    }
}

/// Calls pass every stripe in the order of their sequences, whatever other stripes they touch, and
/// one that ends early passes its turns on.
#[test]
fn calls_pass_stripes_in_order() {
    explore(|| {
        let (stripes, order) = (stripes(), Arc::new(Mutex::new(Order::default())));
        let seen: Arc<[Mutex<Vec<u64>>; STRIPES]> = Arc::default();
        let calls = [vec![0, 1, 2], vec![0, 2], vec![1, 2], vec![0, 1]];
        let run = |(n, touched): (usize, Vec<usize>)| {
            let (stripes, order, seen) = (stripes.clone(), order.clone(), seen.clone());
            thread::spawn(move || {
                let (sequence, mut tickets) = order.lock().draw(&stripes, &touched);
                while let Some((s, guard)) = tickets.next_turn() {
                    assert!(guard.progress.newest() < sequence, "a later call was before");
                    seen[s].lock().push(sequence);
                    if n == 2 {
                        return;
                    }
                }
            })
        };
        let threads: Vec<_> = calls.into_iter().enumerate().map(run).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        for (s, seen) in seen.iter().enumerate() {
            let seen = seen.lock();
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "stripe {s}: {seen:?}");
            let state = stripes[s].lock();
            assert!(seen.iter().all(|&sequence| sequence <= state.progress.newest()));
        }
    });
}

/// A reader that takes a second stripe only if it is free, and a call that keeps its turn while it
/// gives the lock up, do not wait for each other in a ring.
#[test]
fn readers_and_calls_do_not_wait_in_a_ring() {
    explore(|| {
        let (stripes, order) = (stripes(), Arc::new(Mutex::new(Order::default())));
        let call = |touched: &'static [usize]| {
            let (stripes, order) = (stripes.clone(), order.clone());
            thread::spawn(move || {
                let (_, mut tickets) = order.lock().draw(&stripes, touched);
                while let Some((_, mut guard)) = tickets.next_turn() {
                    crate::table::Guard::unlocked(&mut guard, thread::yield_now);
                }
            })
        };
        let read = || {
            let stripes = stripes.clone();
            thread::spawn(move || {
                for s in 0..STRIPES {
                    let first = stripes[s].lock();
                    let second = stripes.get(s + 1).and_then(Stripe::try_lock);
                    drop((first, second));
                }
            })
        };
        let threads = [call(&[0, 1, 2]), read(), call(&[0, 2]), read()];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// Every call gets its memory in the end, no more is held than there is, and all is given back.
#[test]
fn calls_that_wait_for_memory_are_all_served() {
    explore(|| {
        let ledger = Ledger::new(8 << 20);
        let most = ledger.calls_max();
        let call = |bytes: u64| {
            let ledger = ledger.clone();
            thread::spawn(move || {
                let later = Instant::now() + Duration::from_secs(3600);
                let mut hold = ledger.hold_for_call(bytes, later).unwrap();
                assert!(ledger.held(Kind::Calls) <= most);
                hold.resize(bytes / 2);
                drop(ledger.try_hold_for_call(bytes / 4));
            })
        };
        let threads = [most, most / 2, most, most / 3].map(call);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(ledger.total(), 0);
    });
}
