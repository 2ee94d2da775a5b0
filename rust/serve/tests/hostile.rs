//! Goal: no bytes of a peer make its connection panic, or harm a store that others use. Method: an
//! honest conversation, mutated at random, is told to fresh connections of one store; every call
//! that comes of it is run or sent, and every reply is a frame. Seeds are fixed.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::io::Result;
use std::sync::Mutex;

use hybridps_serve::{as_numbers, Call, Connection, Event, Outlet};
use hybridps_wire::{Ask, Dtype, FrameSize, PushHeader};
use std::sync::Arc;

mod kit;
use kit::{bytes, row, rows_of, Served, DIM, FRAME_LIMIT, KEYS, KEYS_LIMIT};

/// xorshift64*: enough to pick bits, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound.max(1) as u64) as usize
    }
}

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

/// All calls of an honest client, after its login.
fn honest(served: &Served) -> Vec<Vec<u8>> {
    let mut peer = served.peer();
    let push = |number, total| PushHeader { number, step: Some(3), total };
    let (table, few) = (served.table, bytes(&[1_u64, 2, 3]));
    let many = bytes(&(1..=4000_u64).collect::<Vec<_>>());
    let rows = bytes(&[0.25_f32; 3 * DIM]);
    let both = |arrays: &[&Vec<u8>]| vec![(table, arrays.iter().map(|a| (*a).clone()).collect())];
    [
        peer.ask(&Ask::Lookup { want_found: true, dtype: Dtype::Float32 }, &both(&[&few])),
        peer.ask(&Ask::Lookup { want_found: false, dtype: Dtype::Float32 }, &both(&[&many])),
        peer.ask(
            &Ask::LookupOrInsert { dtype: Dtype::Float32 },
            &both(&[&few, &bytes(&[1_u32, 2, 3])]),
        ),
        peer.ask(&Ask::Prefetch, &both(&[&few])),
        peer.ask(
            &Ask::ApplyGradients { push: push(1, 0), dtype: Dtype::Float32 },
            &both(&[&few, &rows]),
        ),
        peer.ask(
            &Ask::ApplyGradients { push: push(2, 9000), dtype: Dtype::Float32 },
            &both(&[&Vec::new(), &Vec::new()]),
        ),
        peer.ask(
            &Ask::ApplyGradients { push: push(2, 9000), dtype: Dtype::Float32 },
            &both(&[&few, &rows]),
        ),
        peer.ask(&Ask::Assign(push(3, 0)), &both(&[&few, &rows])),
        peer.ask(&Ask::Remove(push(4, 0)), &both(&[&few])),
    ]
    .map(|(_, sent)| sent)
    .to_vec()
}

/// Answers everything that came of some bytes.
fn answer(server: &mut Connection, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Login { question, .. } => {
                let behind = server.accept(question);
                answer(server, behind);
            }
            Event::Cold { question, .. } => {
                let kinds = ["failed", "overloaded"];
                server.fails(question, kinds[question as usize % 2], "no").unwrap();
            }
            Event::Hot(call) if call.is_streamed() => {
                let outlet = Taken::default();
                while call.unsent_bytes() > 0 {
                    call.send(&outlet).unwrap().unwrap();
                }
                check_frame(&outlet.0.lock().unwrap());
                server.answer(call.question());
            }
            Event::Hot(call) => {
                check_frame(as_numbers(&call.run().unwrap()));
                server.answer(call.question());
            }
        }
    }
}

fn check_frame(reply: &[u8]) {
    let size = FrameSize::of(reply, FRAME_LIMIT).expect("a frame");
    assert!(matches!(size, FrameSize::Known(size) if size == reply.len()), "one whole frame");
}

fn mutate(random: &mut Random, sent: &mut Vec<u8>) {
    // Mostly the headers: the arrays behind them may hold anything.
    let near = sent.len().min(300);
    for _ in 0..1 + random.below(3) {
        let end = if random.below(4) == 0 { sent.len() } else { near };
        let at = random.below(end);
        match random.below(4) {
            0 | 1 => sent[at] ^= 1 << random.below(8),
            2 => sent[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            _ => {
                let word = at / 8 * 8;
                let end = (word + 8).min(sent.len());
                sent[word..end].fill([0, 0xff][random.below(2)]);
            }
        }
    }
    if random.below(16) == 0 {
        sent.truncate(random.below(sent.len()).max(1));
    }
}

#[test]
fn mutated_conversations_harm_nobody() {
    let served = Served::new();
    let calls = honest(&served);
    let rounds = if std::env::var_os("HYBRIDPS_LONG").is_some() { 30_000 } else { 1500 };
    let mut random = Random(0x5e17_e5e1);
    for round in 0..rounds {
        let mut server = Connection::new(Arc::clone(&served.store), FRAME_LIMIT, KEYS_LIMIT);
        server.set_session(7);
        let login =
            hybridps_serve::Client::new(FRAME_LIMIT, "float32").unwrap().start(7, "", "", None).1;
        let mut sent = as_numbers::<u8>(&login).to_vec();
        for _ in 0..1 + random.below(3) {
            let mut call = calls[random.below(calls.len())].clone();
            mutate(&mut random, &mut call);
            sent.extend(call);
        }
        let mut rest = &sent[..];
        while !rest.is_empty() && server.closing().is_none() {
            let count = server.put(&rest[..rest.len().min(1 + random.below(60_000))]);
            rest = &rest[count..];
            let at_once = [0, 1 << 16][random.below(2)];
            let events = server.received(count, at_once, Call::try_run).unwrap();
            answer(&mut server, events);
        }
        let _ = (server.outgoing(), server.noted(), server.is_collecting(), round);
    }
    let mut peer = served.peer();
    let read = [(served.table, vec![bytes(&[KEYS])])];
    let (_, frame) = peer.done(&Ask::Lookup { want_found: false, dtype: Dtype::Float32 }, &read);
    assert_eq!(rows_of(&frame), [row(KEYS)], "the next client is served");
}

#[test]
fn what_is_merely_announced_costs_nothing() {
    let served = Served::new();
    let mut server = Connection::new(Arc::clone(&served.store), FRAME_LIMIT, KEYS_LIMIT);
    let words = (FRAME_LIMIT / 8 - 1) as u64;
    let mut head = (words << 32).to_le_bytes().to_vec();
    head.resize(64, 0);
    let count = server.put(&head);
    assert!(server.received(count, 0, Call::try_run).unwrap().is_empty());
    assert_eq!(server.frame_wanted(), FRAME_LIMIT);
    assert!(server.is_inside_frame() && server.closing().is_none());
    let mut server = Connection::new(Arc::clone(&served.store), FRAME_LIMIT, KEYS_LIMIT);
    let count = server.put(&((words + 1) << 32).to_le_bytes());
    server.received(count, 0, Call::try_run).unwrap();
    assert!(server.closing().is_some(), "one word too many");
}
