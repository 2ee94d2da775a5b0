//! Goal: a hot verb does what it says between two buffers, and what is wrong with one is told to
//! its peer alone. Method: both sides of a connection and a store; arithmetic says what must come.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use hybridps_serve::{as_numbers, Call, Event};
use hybridps_wire::{Ask, Dtype, Outcome, PushHeader};

mod kit;
use kit::{bytes, class, row, rows_of, Served, DIM, KEYS, KEYS_LIMIT};

const LOOKUP: Ask = Ask::Lookup { want_found: true, dtype: Dtype::Float32 };

fn push(number: u64) -> PushHeader {
    PushHeader { number, step: None, total: 0 }
}

#[test]
fn reads_answer_rows_and_flags_and_training_reads_create() {
    let served = Served::new();
    let mut peer = served.peer();
    let keys = [3, KEYS + 5, 1, 3];
    let (outcome, frame) = peer.done(&LOOKUP, &[(served.table, vec![bytes(&keys)])]);
    assert_eq!(outcome, Outcome::Rows);
    assert_eq!(rows_of(&frame), [keys.map(row).concat()]);
    let found = &hybridps_wire::decode_rows(&frame).unwrap()[0].found;
    assert_eq!(as_numbers::<u8>(&frame)[found.clone()], [1, 0, 1, 1]);
    assert_eq!(served.store.len(served.table).unwrap(), KEYS, "a lookup creates nothing");
    let counts: [u32; 4] = [1, 2, 3, 4];
    let tables = [(served.table, vec![bytes(&keys), bytes(&counts)])];
    let (outcome, frame) = peer.done(&Ask::LookupOrInsert { dtype: Dtype::Float32 }, &tables);
    assert_eq!((outcome, rows_of(&frame)), (Outcome::Rows, vec![keys.map(row).concat()]));
    assert_eq!(served.store.len(served.table).unwrap(), KEYS + 1);
}

#[test]
fn pushes_apply_once_by_number() {
    let served = Served::new();
    let mut peer = served.peer();
    served.store.attach(7, "").unwrap();
    let tables = [(served.table, vec![bytes(&[1_u64]), bytes(&[1.0_f32; DIM])])];
    let (outcome, _) =
        peer.done(&Ask::ApplyGradients { push: push(1), dtype: Dtype::Float32 }, &tables);
    assert_eq!(outcome, Outcome::Duplicate(false));
    let (outcome, _) =
        peer.done(&Ask::ApplyGradients { push: push(1), dtype: Dtype::Float32 }, &tables);
    assert_eq!(outcome, Outcome::Duplicate(true));
    let trained: Vec<f32> = row(1).iter().map(|x| x - 1.0).collect();
    let read = [(served.table, vec![bytes(&[1_u64])])];
    assert_eq!(rows_of(&peer.done(&LOOKUP, &read).1), [trained]);
    let assign = [(served.table, vec![bytes(&[1_u64]), bytes(&[0.5_f32; DIM])])];
    assert_eq!(peer.done(&Ask::Assign(push(2)), &assign).0, Outcome::Results);
    assert_eq!(rows_of(&peer.done(&LOOKUP, &read).1), [[0.5; DIM]]);
    let (outcome, _) = peer.done(&Ask::Remove(push(3)), &read);
    assert_eq!(outcome, Outcome::Removed(1));
    assert_eq!(rows_of(&peer.done(&LOOKUP, &read).1), [[0.0; DIM]]);
}

#[test]
fn a_push_in_parts_is_applied_with_its_last() {
    let served = Served::new();
    let mut peer = served.peer();
    served.store.attach(7, "").unwrap();
    let part = |keys: &[u64]| {
        vec![(served.table, vec![bytes(keys), bytes(&vec![1.0_f32; keys.len() * DIM])])]
    };
    let header = PushHeader { number: 1, step: None, total: 2 * (8 + 4 * DIM as u64) };
    let announced = [(served.table, vec![Vec::new(), Vec::new()])];
    let (_, sent) =
        peer.ask(&Ask::ApplyGradients { push: header, dtype: Dtype::Float32 }, &announced);
    let call = peer.call(&sent);
    assert_eq!(call.announced_bytes(), header.total);
    call.run().unwrap();
    assert!(peer.server.is_collecting());
    let (_, first) =
        peer.ask(&Ask::ApplyGradients { push: header, dtype: Dtype::Float32 }, &part(&[1]));
    peer.call(&first).run().unwrap();
    let read = [(served.table, vec![bytes(&[1_u64])])];
    assert_eq!(rows_of(&peer.done(&LOOKUP, &read).1), [row(1)], "nothing before the last");
    let (outcome, _) =
        peer.done(&Ask::ApplyGradients { push: header, dtype: Dtype::Float32 }, &part(&[2]));
    assert_eq!((outcome, peer.server.is_collecting()), (Outcome::Duplicate(false), false));
    let trained: Vec<f32> = row(1).iter().map(|x| x - 1.0).collect();
    assert_eq!(rows_of(&peer.done(&LOOKUP, &read).1), [trained]);
}

#[test]
fn what_is_wrong_is_told_and_changes_nothing() {
    let served = Served::new();
    let mut peer = served.peer();
    let (table, one) = (served.table, bytes(&[1_u64]));
    let gradients = bytes(&[1.0_f32; DIM]);
    let too_many = bytes(&vec![1_u64; KEYS_LIMIT + 1]);
    let wrong: [(Ask, u32, Vec<Vec<u8>>, &str); 8] = [
        (LOOKUP, table + 9, vec![one.clone()], "TableNotFoundError"),
        (LOOKUP, table, vec![too_many], "BadInputError"),
        (LOOKUP, table, vec![vec![0; 7]], "BadInputError"),
        (
            Ask::LookupOrInsert { dtype: Dtype::Float32 },
            table,
            vec![one.clone(), vec![0; 8]],
            "BadInputError",
        ),
        (
            Ask::LookupOrInsert { dtype: Dtype::Float32 },
            table,
            vec![one.clone(), vec![0; 5]],
            "BadInputError",
        ),
        (
            Ask::ApplyGradients { push: push(0), dtype: Dtype::Float32 },
            table,
            vec![one.clone(), gradients.clone()],
            "BadInputError",
        ),
        (
            Ask::ApplyGradients { push: push(1), dtype: Dtype::Float32 },
            table,
            vec![one.clone(), vec![0; 12]],
            "BadInputError",
        ),
        (Ask::Assign(push(1)), table, vec![one.clone(), bytes(&[f32::NAN; DIM])], "BadInputError"),
    ];
    for (ask, table, arrays, expected) in wrong {
        let (question, sent) = peer.ask(&ask, &[(table, arrays)]);
        let call = peer.call(&sent);
        let reply = call.run().unwrap();
        peer.server.answer(question);
        assert_eq!(class(&peer.outcome(as_numbers(&reply)).0), expected, "{ask:?}");
        assert_eq!(call.code(), expected);
        assert!(call.run().is_err(), "once");
    }
    let read = [(served.table, vec![one])];
    assert_eq!(rows_of(&peer.done(&LOOKUP, &read).1), [row(1)]);
}

#[test]
fn small_lookups_are_answered_where_they_are_decoded_and_in_order() {
    let served = Served::new();
    let mut peer = served.peer();
    let key = |n: u64| [(served.table, vec![bytes(&[n])])];
    let mut sent = Vec::new();
    let mut asked = Vec::new();
    for n in 1..=3 {
        let (question, call) = peer.ask(&LOOKUP, &key(n));
        asked.push(question);
        sent.extend(call);
    }
    let (training, call) = peer.ask(
        &Ask::LookupOrInsert { dtype: Dtype::Float32 },
        &[(served.table, vec![bytes(&[9_u64]), Vec::new()])],
    );
    sent.extend(call);
    sent.extend(peer.ask(&LOOKUP, &key(4)).1);
    let events = peer.tell(&sent, 1 << 16);
    let hot = |event: &Event| matches!(event, Event::Hot(call) if call.question() >= training);
    assert!(events.len() == 2 && events.iter().all(hot), "what may wait, and all behind it");
    let noted = peer.server.noted();
    assert_eq!(noted.len(), 3);
    assert!(noted.iter().all(|(verb, code, _)| (*verb, &code[..]) == ("lookup", "ok")));
    let outgoing = peer.server.outgoing();
    let answers = peer.hear(as_numbers(&outgoing));
    let questions: Vec<u32> = answers.iter().map(|(answer, _)| answer.question).collect();
    assert_eq!(questions, asked);
    for (n, (_, frame)) in answers.iter().enumerate() {
        assert_eq!(rows_of(frame), [row(n as u64 + 1)]);
    }
}

#[test]
fn a_call_that_costs_more_is_not_answered_at_once() {
    let served = Served::new();
    let mut peer = served.peer();
    let keys: Vec<u64> = (1..=300).collect();
    let (_, sent) = peer.ask(&LOOKUP, &[(served.table, vec![bytes(&keys)])]);
    let events = peer.tell(&sent, 1 << 16);
    let [Event::Hot(call)] = &events[..] else { panic!("one call") };
    assert!(call.cost_bytes() > 1 << 16 && !call.is_streamed());
    assert!(call.try_run().is_some() && call.try_run().is_none(), "once");
    assert!(call.send(&Nobody).is_err(), "it is not streamed");
}

struct Nobody;

impl hybridps_serve::Outlet for Nobody {
    fn send(&self, _: &[u8]) -> std::io::Result<usize> {
        Ok(0)
    }

    fn wait(&self, _: i32) -> bool {
        false
    }
}

#[test]
fn mistakes_of_the_owner_are_told_and_harm_nothing() {
    let served = Served::new();
    let mut peer = served.peer();
    let room = peer.server.buffer().len();
    assert!(peer.server.received(room + 1, 0, Call::try_run).is_err());
    assert!(peer.server.returns(0, &[0; 7]).is_err());
    assert!(peer.server.fails(0, "angry", "").is_err());
    assert!(peer.client.call("no verb", &[]).is_err());
    let read = [(served.table, vec![bytes(&[1_u64])])];
    assert_eq!(rows_of(&peer.done(&LOOKUP, &read).1), [row(1)]);
}
