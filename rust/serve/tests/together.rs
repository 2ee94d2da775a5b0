//! Goal: pushes of several workers are summed in the order of their ranks and applied once, and
//! what is wrong with one is told to it alone. Method: connections to one store, and numbers whose
//! sum in float32 shows its order; then what a caller in this process lends.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use hybridps_core::Push;
use hybridps_serve::local::{self, Lent};
use hybridps_serve::{apply_together, as_numbers, Call};
use hybridps_wire::{Ask, Dtype, Outcome, PushHeader};

mod kit;
use kit::{bytes, class, row, Peer, Served, DIM, KEYS};

/// In this order they come to 0; with the first two or the last two exchanged to 1.
const IN_ORDER: [f32; 3] = [1e8, 1.0, -1e8];

fn push(number: u64, total: u64) -> Ask {
    let push = PushHeader { number, step: None, total };
    Ask::ApplyGradients { push, dtype: Dtype::Float32 }
}

/// A push of one key, as it waits for others.
fn held(peer: &mut Peer, number: u64, table: u32, key: u64, value: f32) -> Call {
    let tables = [(table, vec![bytes(&[key]), bytes(&[value; DIM])])];
    let (_, sent) = peer.ask(&push(number, 0), &tables);
    let call = peer.call(&sent);
    assert!(call.hold().unwrap().is_none(), "it waits");
    call
}

fn rows(served: &Served, keys: &[u64]) -> Vec<f32> {
    let mut rows = vec![0.0; keys.len() * DIM];
    let lent = [Lent { table: served.table, keys, numbers: &[], values: &[] }];
    let found = local::lookup(&served.store, &lent, vec![&mut rows], true).unwrap();
    let is_there = |key: &u64| u8::from((1..=KEYS).contains(key));
    assert_eq!(found, [Some(keys.iter().map(is_there).collect())]);
    rows
}

fn trained(key: u64, by: f32) -> Vec<f32> {
    row(key).iter().map(|x| x - by).collect()
}

#[test]
fn gradients_are_summed_in_the_order_of_ranks_and_applied_once() {
    let served = Served::new();
    let mut peers: Vec<Peer> = IN_ORDER.map(|_| served.peer()).into();
    for (round, order, sum) in [(1, [0, 1, 2], 0.0), (2, [0, 2, 1], 1.0)] {
        let before = rows(&served, &[3]);
        let calls: Vec<Call> = peers
            .iter_mut()
            .zip(order)
            .map(|(peer, n)| held(peer, round, served.table, 3, IN_ORDER[n]))
            .collect();
        for expected in [false, true] {
            let again: Vec<Call>;
            let mut of_round: Vec<&Call> = calls.iter().collect();
            if expected {
                // The answers were lost, and all is sent again.
                let same = |(peer, n)| held(peer, round, served.table, 3, IN_ORDER[n]);
                again = peers.iter_mut().zip(order).map(same).collect();
                of_round = again.iter().collect();
            }
            let replies = apply_together(&of_round, round).unwrap();
            for (peer, (call, reply)) in peers.iter_mut().zip(of_round.iter().zip(&replies)) {
                assert!(peer.server.answer(call.question()).is_none());
                assert_eq!(peer.outcome(as_numbers(reply)).0, Outcome::Duplicate(expected));
            }
            let after: Vec<f32> = before.iter().map(|x| x - sum).collect();
            assert_eq!(rows(&served, &[3]), after, "round {round}");
        }
    }
}

#[test]
fn keys_of_one_and_of_several_and_pushes_in_parts_are_one_push() {
    let served = Served::new();
    let (mut one, mut two) = (served.peer(), served.peer());
    let first = held(&mut one, 1, served.table, 5, 1.0);
    let part = |key: u64| [(served.table, vec![bytes(&[key]), bytes(&[2.0_f32; DIM])])];
    let total = 2 * (8 + 4 * DIM as u64);
    let announcement = [(served.table, vec![Vec::new(), Vec::new()])];
    let mut last = None;
    for (tables, waits) in [(&announcement[..], false), (&part(5), false), (&part(6), true)] {
        let (_, sent) = two.ask(&push(1, total), tables);
        let call = two.call(&sent);
        assert_eq!(call.hold().unwrap().is_none(), waits);
        last = Some(call);
    }
    let last = last.unwrap();
    assert_eq!((last.tables(), last.number()), (vec![served.table], 1));
    assert_eq!(apply_together(&[&first, &last], 1).unwrap().len(), 2);
    assert_eq!(rows(&served, &[5, 6]), [trained(5, 3.0), trained(6, 2.0)].concat());
}

#[test]
fn what_is_wrong_with_one_is_told_to_it_before_others_wait() {
    let served = Served::new();
    let mut peer = served.peer();
    let good = bytes(&[1.0_f32; DIM]);
    for (number, table, gradients, expected) in [
        (1, 99, good.clone(), "TableNotFoundError"),
        (1, served.table, bytes(&[1.0_f32; DIM - 1]), "BadInputError"),
        (1, served.table, bytes(&[f32::NAN; DIM]), "BadInputError"),
        (0, served.table, good, "BadInputError"),
    ] {
        let (_, sent) = peer.ask(&push(number, 0), &[(table, vec![bytes(&[3_u64]), gradients])]);
        let call = peer.call(&sent);
        let reply = call.hold().unwrap().expect("an answer");
        assert!(peer.server.answer(call.question()).is_none());
        assert_eq!(class(&peer.outcome(as_numbers(&reply)).0), expected);
        assert_eq!(call.code(), expected);
        assert!(apply_together(&[&call], 1).is_err(), "it is not held");
    }
    let call = held(&mut peer, 1, served.table, 3, 1.0);
    assert!(call.hold().is_err() && call.run().is_err(), "once");
    let reply = call.acknowledge();
    assert!(peer.server.answer(call.question()).is_none());
    assert_eq!(peer.outcome(as_numbers(&reply)).0, Outcome::Duplicate(true));
    assert!(apply_together(&[&call], 1).is_err(), "nothing of it is left");
    assert_eq!(rows(&served, &[3, KEYS + 1]), [row(3), row(KEYS + 1)].concat());
}

#[test]
fn a_failure_is_that_of_all_and_the_round_may_be_made_again() {
    let served = Served::new();
    let (mut one, mut two) = (served.peer(), served.peer());
    let other = served.store.create_table(&kit::spec("other", DIM)).unwrap().id;
    let calls = [held(&mut one, 1, served.table, 3, 1.0), held(&mut two, 1, other, 3, 1.0)];
    served.store.drop_table("other").unwrap();
    let replies = apply_together(&[&calls[0], &calls[1]], 1).unwrap();
    for (peer, (call, reply)) in [&mut one, &mut two].into_iter().zip(calls.iter().zip(&replies)) {
        assert!(peer.server.answer(call.question()).is_none());
        assert_eq!(class(&peer.outcome(as_numbers(reply)).0), "TableNotFoundError");
    }
    assert_eq!(rows(&served, &[3]), row(3));
    let again = held(&mut one, 1, served.table, 3, 1.0);
    apply_together(&[&again], 1).unwrap();
    assert_eq!(rows(&served, &[3]), trained(3, 1.0));
}

#[test]
fn verbs_of_one_table_are_lent_the_arrays_of_one() {
    let served = Served::new();
    let (table, ones) = (served.table, [1.0; DIM]);
    let push = |number| Push { session: 5, number, step: None };
    let lent = || Lent { table, keys: &[2], numbers: &[], values: &ones };
    for lent in [vec![], vec![lent(), lent()]] {
        assert!(local::assign(&served.store, push(1), &lent).is_err());
        assert!(local::remove(&served.store, push(1), &lent).is_err());
        assert!(local::inspect(&served.store, &lent).is_err());
    }
    assert!(!local::apply_gradients(&served.store, push(1), &[lent()]).unwrap());
    assert!(local::apply_gradients(&served.store, push(1), &[lent()]).unwrap(), "a duplicate");
    assert_eq!(rows(&served, &[2]), trained(2, 1.0));
    local::assign(&served.store, push(2), &[lent()]).unwrap();
    assert_eq!(rows(&served, &[2]), ones);
    let mut fresh = [0.0; 2 * DIM];
    let counted = [Lent { keys: &[2, KEYS + 9], numbers: &[4, 1], ..lent() }];
    local::lookup_or_insert(&served.store, &counted, vec![&mut fresh]).unwrap();
    assert_eq!(local::inspect(&served.store, &counted).unwrap()[0].frequency, 4);
    let mut sums = [0.0; DIM];
    let bag = [Lent { keys: &[2, 2], numbers: &[2], values: &[1.0, 0.5], ..lent() }];
    local::lookup_pooled(&served.store, &bag, vec![&mut sums]).unwrap();
    assert_eq!(sums, [1.5; DIM]);
    assert_eq!(local::remove(&served.store, push(3), &counted).unwrap(), 2);
    local::prefetch(&served.store, &counted).unwrap();
}
