//! Goal: sums of bags, and rows and gradients of 16 bits, are what arithmetic says, in small
//! replies and in streamed ones; what does not fit is told. Method: both sides of a connection and
//! a store.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::io::Result;
use std::sync::Mutex;

use hybridps_core::{Assign, Push};
use hybridps_serve::{as_numbers, Call, Outlet, View};
use hybridps_wire::{Ask, Dtype, Outcome, PushHeader};

mod kit;
use kit::{bytes, class, row, rows_of, Peer, Served, DIM, KEYS};

#[derive(Default)]
struct Taken(Mutex<Vec<u8>>);

impl Outlet for Taken {
    fn send(&self, bytes: &[u8]) -> Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn wait(&self, _: i32) -> bool {
        true
    }
}

/// The reply of a call, streamed or not, and what the client makes of it: rows as float32.
fn answered(peer: &mut Peer, call: &Call) -> (Outcome, Vec<Vec<f32>>) {
    let reply = if call.is_streamed() {
        let outlet = Taken::default();
        while call.unsent_bytes() > 0 {
            call.send(&outlet).unwrap().unwrap();
        }
        let sent = outlet.0.lock().unwrap();
        sent.clone()
    } else {
        as_numbers::<u8>(&call.run().unwrap()).to_vec()
    };
    peer.server.answer(call.question());
    let (outcome, frame) = peer.outcome(&reply);
    if outcome != Outcome::Rows {
        return (outcome, Vec::new());
    }
    let views = peer.client.rows_in(&frame).unwrap();
    let rows = match peer.client.dtype() {
        Dtype::Float32 => rows_of(&frame),
        _ => views.iter().map(|(view, _)| copied(view)).map(floats).collect(),
    };
    (outcome, rows)
}

fn copied(view: &View) -> Vec<u8> {
    // SAFETY: the view keeps its bytes in place, and nobody writes them.
    #[allow(unsafe_code, reason = "looks at them as the owner of a socket does")]
    unsafe {
        std::slice::from_raw_parts(view.as_ptr(), view.len()).to_vec()
    }
}

fn floats(bytes: Vec<u8>) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn pooled(
    peer: &mut Peer,
    key_bytes: u8,
    tables: &[(u32, Vec<Vec<u8>>)],
) -> (Outcome, Vec<Vec<f32>>) {
    let dtype = peer.client.dtype();
    let (_, sent) = peer.ask(&Ask::LookupPooled { key_bytes, dtype }, tables);
    let call = peer.call(&sent);
    answered(peer, &call)
}

/// Sums as plain additions in order of the bag.
fn sums(keys: &[u64], bags: &[u32], weights: &[f32]) -> Vec<f32> {
    let mut next = 0;
    let mut sums = Vec::new();
    for &size in bags {
        let mut sum = vec![0.0; DIM];
        for (n, &key) in keys.iter().enumerate().skip(next).take(size as usize) {
            let weight = weights.get(n).unwrap_or(&1.0);
            sum.iter_mut().zip(row(key)).for_each(|(s, x)| *s += weight * x);
        }
        next += size as usize;
        sums.extend(sum);
    }
    sums
}

#[test]
fn bags_are_summed_in_order_whole_and_streamed() {
    let served = Served::new();
    let mut peer = served.peer();
    let even = (0..6000).map(|n| n % 7).collect();
    // One bag costs as much as all others: pieces are cut by what is read, not by what is sent.
    let uneven = (0..6000).map(|n| if n == 1000 { 30_000 } else { n % 3 }).collect();
    for bags in [vec![], vec![0], vec![0, 3, 0, 1, 0], even, uneven] {
        let bags: Vec<u32> = bags;
        let n = bags.iter().sum::<u32>() as u64;
        let keys: Vec<u64> = (0..n).map(|i| i * 13 % (KEYS + 50)).collect();
        let narrow: Vec<u32> = keys.iter().map(|&key| key as u32).collect();
        let weights: Vec<f32> = keys.iter().map(|&key| 1.0 - key as f32 / 977.0).collect();
        for (weights, key_bytes, sent) in [
            (&[][..], 8, bytes(&keys)),
            (&weights[..], 8, bytes(&keys)),
            (&weights[..], 4, bytes(&narrow)),
        ] {
            let own = vec![sent, bytes(&bags), bytes(weights)];
            let nothing = vec![Vec::new(), bytes(&[0_u32]), Vec::new()];
            let tables = [(served.table, own), (served.table, nothing)];
            let (outcome, rows) = pooled(&mut peer, key_bytes, &tables);
            assert_eq!(outcome, Outcome::Rows);
            assert!(rows[0] == sums(&keys, &bags, weights), "{} bags", bags.len());
            assert_eq!(rows[1], [0.0; DIM]);
        }
    }
}

#[test]
fn bags_that_do_not_fit_are_refused() {
    let served = Served::new();
    let mut peer = served.peer();
    let table = served.table;
    let three = bytes(&[1_u64, 2, 3]);
    let bag = |sizes: &[u32]| bytes(sizes);
    for (key_bytes, arrays) in [
        (8, vec![three.clone(), bag(&[2]), Vec::new()]),
        (8, vec![three.clone(), bag(&[u32::MAX, 4]), Vec::new()]),
        (8, vec![three.clone(), bag(&[3]), bytes(&[1.0_f32])]),
        (8, vec![three.clone(), vec![3, 0, 0], Vec::new()]),
        (4, vec![three.clone(), bag(&[3]), Vec::new()]),
        (3, vec![three.clone(), bag(&[8]), Vec::new()]),
    ] {
        let (outcome, _) = pooled(&mut peer, key_bytes, &[(table, arrays)]);
        assert_eq!(class(&outcome), "BadInputError");
    }
    let lost = [(table + 7, vec![three, bag(&[3]), Vec::new()])];
    assert_eq!(class(&pooled(&mut peer, 8, &lost).0), "TableNotFoundError");
    let empty = vec![0_u8; 4 * (1 << 17)];
    let bound = [(table, vec![Vec::new(), empty, Vec::new()])];
    assert_eq!(class(&pooled(&mut peer, 8, &bound).0), "BadInputError", "a reply of 32 MiB");
}

/// To the nearest of 16 bits, by search.
fn rounded(dtype: Dtype, number: f32) -> f32 {
    let bits = match dtype {
        Dtype::Float32 => return number,
        Dtype::Bfloat16 => 16,
        // Exact for the normal range, which the rows of these tests keep to.
        Dtype::Float16 => 13,
    };
    let step = 1_u32 << bits;
    let low = f32::from_bits(number.to_bits() / step * step);
    let high = f32::from_bits(number.to_bits() / step * step + step);
    let (below, above) = ((number - low).abs(), (high - number).abs());
    let is_low_even = low.to_bits() / step % 2 == 0;
    if below < above || below == above && is_low_even {
        low
    } else {
        high
    }
}

#[test]
fn rows_travel_narrow_whole_and_streamed() {
    let served = Served::new();
    for (name, dtype) in [("bfloat16", Dtype::Bfloat16), ("float16", Dtype::Float16)] {
        let mut peer = served.peer_of(name);
        for count in [0, 1, 3, KEYS, 4 * KEYS] {
            let keys: Vec<u64> = (1..=count).map(|n| n % (KEYS + 5)).collect();
            let ask = Ask::Lookup { want_found: true, dtype };
            let (_, sent) = peer.ask(&ask, &[(served.table, vec![bytes(&keys)])]);
            let call = peer.call(&sent);
            assert_eq!(call.is_streamed(), count > KEYS, "{count}");
            let (outcome, rows) = answered(&mut peer, &call);
            assert_eq!(outcome, Outcome::Rows);
            let expected: Vec<f32> =
                keys.iter().flat_map(|&key| row(key)).map(|x| rounded(dtype, x)).collect();
            assert!(rows[0] == expected, "{name} {count}");
        }
        let tables = [(served.table, vec![bytes(&[5_u64, 7]), bytes(&[2_u32]), Vec::new()])];
        let (_, rows) = pooled(&mut peer, 8, &tables);
        let expected: Vec<f32> =
            sums(&[5, 7], &[2], &[]).iter().map(|x| rounded(dtype, *x)).collect();
        assert_eq!(rows[0], expected);
    }
}

#[test]
fn rows_beyond_float16_are_told_wherever_they_lie() {
    let served = Served::new();
    let mut peer = served.peer_of("float16");
    let far: Vec<f32> = (0..DIM).map(|c| if c == 9 { -70000.0 } else { 1.0 }).collect();
    let mut push = Push { session: 1, number: 1, step: None };
    for key in [1, KEYS] {
        let assign = Assign { table: served.table, keys: &[key], rows: &far };
        push.number += 1;
        served.store.assign(push, &assign).unwrap();
        let many: Vec<u64> = (1..=2 * KEYS).map(|n| (n - 1) / 2 + 1).collect();
        for keys in [vec![2, key, 3], many] {
            let ask = Ask::Lookup { want_found: false, dtype: Dtype::Float16 };
            let (_, sent) = peer.ask(&ask, &[(served.table, vec![bytes(&keys)])]);
            let call = peer.call(&sent);
            let (outcome, _) = answered(&mut peer, &call);
            let Outcome::Exception { reason, .. } = outcome else { panic!("{outcome:?}") };
            assert!(reason.text.contains("-70000 at column 9"), "{}", reason.text);
            assert_eq!((&reason.class[..], call.code()), ("BadInputError", "BadInputError"));
        }
        push.number += 1;
        served.store.remove(push, served.table, &[key]).unwrap();
    }
}

#[test]
fn gradients_travel_narrow_whole_and_in_parts() {
    let served = Served::new();
    served.store.attach(7, "").unwrap();
    for (n, (name, dtype)) in
        [("bfloat16", Dtype::Bfloat16), ("float16", Dtype::Float16)].into_iter().enumerate()
    {
        let mut peer = served.peer_of(name);
        let keys = [100 + 10 * n as u64, 101 + 10 * n as u64];
        let gradients: Vec<f32> = (0..2 * DIM).map(|c| 1.0 + c as f32 * 0.001).collect();
        let narrow = copied(&peer.client.narrowed(&gradients).unwrap().unwrap());
        assert_eq!(narrow.len(), 2 * gradients.len());
        let arrays = vec![(served.table, vec![bytes(&keys), narrow.clone()])];
        let whole = PushHeader { number: 10 * n as u64 + 1, step: None, total: 0 };
        let (outcome, _) = peer.done(&Ask::ApplyGradients { push: whole, dtype }, &arrays);
        assert_eq!(outcome, Outcome::Duplicate(false));
        // Announced as float32, whatever travels: then a part for each key.
        let total = (2 * 8 + 4 * gradients.len()) as u64;
        let push = PushHeader { number: 10 * n as u64 + 2, step: None, total };
        let ask = Ask::ApplyGradients { push, dtype };
        peer.done(&ask, &[(served.table, vec![Vec::new(), Vec::new()])]);
        for (key, part) in keys.iter().zip(narrow.chunks(2 * DIM)) {
            assert!(peer.server.is_collecting());
            peer.done(&ask, &[(served.table, vec![bytes(&[*key]), part.to_vec()])]);
        }
        assert!(!peer.server.is_collecting(), "it was applied");
        let expected: Vec<f32> = keys
            .iter()
            .flat_map(|&key| row(key))
            .zip(&gradients)
            .map(|(x, g)| x - rounded(dtype, *g) - rounded(dtype, *g))
            .collect();
        let mut plain = served.peer();
        let read = [(served.table, vec![bytes(&keys)])];
        let ask = Ask::Lookup { want_found: false, dtype: Dtype::Float32 };
        assert_eq!(rows_of(&plain.done(&ask, &read).1)[0], expected, "{name}");
        let beyond = peer.client.narrowed(&[0.0, 65520.0]);
        assert_eq!(beyond.is_err(), dtype == Dtype::Float16);
    }
    assert!(served.peer().client.narrowed(&[1e30]).unwrap().is_none(), "as they are");
}
