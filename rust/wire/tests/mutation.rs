//! Goal: no bytes of a peer make either side panic, loop or allocate without bound. Method: honest
//! conversations, mutated at random (bits, words, lengths, cuts, splices), are fed to fresh
//! connections; every answer the connection accepts is decoded to the end; a counting allocator
//! bounds what one frame may cost. Seeds are fixed, so a failure repeats.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use hybridps_wire::{
    decode_bags, decode_batches, decode_dtype, decode_push, decode_rows, decode_want_found,
    duplicate_reply, empty_reply, exception_return, is_hot, removed_reply, rows_reply, Ask,
    ClientConnection, Dtype, Event, ExceptionKind, Message, PushHeader, ServerConnection,
    StreamedReply, LOOKUP,
};

mod stream;
use stream::frames;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: forwards to the system's allocator, unchanged; the count is plain thread-local data.
#[allow(unsafe_code, reason = "the only way to see what a decoder allocates")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends allocates after its locals are gone; nobody counts it.
        let _ = ALLOCATED.try_with(|sum| sum.set(sum.get() + layout.size()));
        System.alloc(layout)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        System.dealloc(memory, layout);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// xorshift64*: enough to pick bits, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn filled(layout: hybridps_wire::Layout) -> Vec<u64> {
    let mut frame = layout.header;
    frame.resize(layout.words, 0x0101_0101_0101_0101);
    frame
}

/// What an honest client says.
fn calls() -> Vec<Vec<u64>> {
    let mut client = ClientConnection::new();
    let mut said = frames(&client.start(9, "trainer", "token", None).1);
    said.push(filled(
        client
            .ask(
                &Ask::Lookup { want_found: true, dtype: Dtype::Float32 },
                &[(1, vec![80]), (2, vec![0]), (3, vec![8])],
            )
            .1,
    ));
    said.push(filled(
        client
            .ask(
                &Ask::LookupOrInsert { dtype: Dtype::Float32 },
                &[(1, vec![80, 40]), (2, vec![16, 0])],
            )
            .1,
    ));
    let push = PushHeader { number: 1, step: Some(-1), total: 0 };
    said.push(filled(
        client
            .ask(
                &Ask::ApplyGradients { push, dtype: Dtype::Float32 },
                &[(1, vec![80, 200]), (2, vec![8, 12])],
            )
            .1,
    ));
    let params = [2 << 32, 0x0000_0001_0000_0000, 7];
    said.push(client.call(13, &params).expect("a message").1);
    // Two segments: a far pointer inside, a double far one around.
    let many =
        [1 | 3 << 32, 2, 1 << 32 | 1 << 48, 7, 2 | 1 << 32, 1 | 2 << 32 | 4 << 35, 6_513_249];
    said.push(client.call(8, &many).expect("a message").1);
    said.push(filled(client.ask(&Ask::Prefetch, &[(1, vec![80]), (2, vec![0])]).1));
    said.push(filled(client.ask(&Ask::Assign(push), &[(1, vec![16, 200])]).1));
    said.push(filled(
        client.ask(&Ask::Remove(PushHeader { total: 80, ..push }), &[(1, vec![80])]).1,
    ));
    let pooled = Ask::LookupPooled { key_bytes: 4, dtype: Dtype::Float16 };
    said.push(filled(client.ask(&pooled, &[(1, vec![40, 12, 40]), (2, vec![0, 8, 0])]).1));
    client.forget(4);
    said.extend(frames(&client.pending()));
    said
}

/// What an honest server answers to it.
fn answers() -> Vec<Vec<u64>> {
    let mut server = ServerConnection::new();
    let mut said = Vec::new();
    for mut frame in calls() {
        match server.receive(&mut frame) {
            Some(Event::Login { question, .. }) => server.accept(question),
            Some(Event::Call { question, verb: 1 }) => {
                let reply = StreamedReply::new(question, &[(400, 10), (0, 0), (40, 1)]);
                let arrays = reply.blobs.iter().map(|blob| blob.bytes.div_ceil(8)).sum();
                let arrays = vec![0x0101_0101_0101_0101; arrays];
                said.push([reply.head, arrays, reply.tail].concat());
            }
            Some(Event::Call { question, verb: 0 | 18 }) => {
                said.push(filled(rows_reply(question, &[(400, 10), (0, 0), (40, 1)])));
            }
            Some(Event::Call { question, verb: 2 }) => said.push(duplicate_reply(question, true)),
            Some(Event::Call { question, verb: 5 }) => said.push(empty_reply(question)),
            Some(Event::Call { question, verb: 6 }) => said.push(removed_reply(question, 10)),
            Some(Event::Call { question, verb: 8 }) => {
                let reply = server.returns(question, &frame).expect("a message");
                said.push(reply);
            }
            Some(Event::Call { question, .. }) => {
                let reason = "BadInputError: no";
                said.push(exception_return(question, ExceptionKind::Overloaded, reason));
            }
            None => {}
        }
        said.extend(frames(&server.outgoing()));
        assert_eq!(server.closing(), None);
    }
    said
}

fn mutate(random: &mut Random, frame: &mut Vec<u64>, others: &[Vec<u64>]) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(frame.len());
        match random.below(8) {
            0..=3 => frame[at] ^= 1 << random.below(64),
            4 => frame[at] = random.next(),
            5 => frame[at] = [0, u64::MAX, 2, 3, 1 << 32, u64::MAX << 35 | 1][random.below(6)],
            6 => {
                let other = &others[random.below(others.len())];
                frame[at] = other[random.below(other.len())];
            }
            _ => {
                frame.truncate(at.max(1));
                // The segment table often agrees with the cut, so that decoding gets further.
                if random.below(4) > 0 {
                    frame[0] = (frame.len() as u64 - 1) << 32;
                }
            }
        }
    }
}

/// The last four of `calls`.
fn ask_the_rest(client: &mut ClientConnection) {
    let push = PushHeader { number: 1, step: None, total: 0 };
    client.ask(&Ask::Prefetch, &[(1, vec![80])]);
    client.ask(&Ask::Assign(push), &[(1, vec![16, 200])]);
    client.ask(&Ask::Remove(push), &[(1, vec![80])]);
    let pooled = Ask::LookupPooled { key_bytes: 8, dtype: Dtype::Float32 };
    client.ask(&pooled, &[(1, vec![80, 12, 40])]);
}

/// The most that one frame may make a decoder allocate, over all steps.
fn bound(frame: &[u64]) -> usize {
    64 * 1024 + 64 * frame.len() * 8
}

fn decode_all(verb: u16, frame: &[u64]) {
    let _ = decode_batches(verb, frame, 1 << 16).map(|batches| {
        let keys: usize = batches.iter().map(|batch| batch.keys.len()).sum();
        assert!(keys <= 2 * frame.len() + 64, "{keys} keys in {} words", frame.len());
    });
    let _ = decode_bags(frame, 1 << 16).map(|batches| {
        let keys: usize = batches.iter().map(|batch| batch.keys.len / batch.key_bytes).sum();
        assert!(keys <= 1 << 16, "{keys} keys");
    });
    let _ = (decode_push(frame), decode_want_found(frame), decode_rows(frame));
    let _ = decode_dtype(verb, frame);
    let _ = Message::new(frame).map(|message| message.root().map(|root| root.text(0)));
}

#[test]
fn no_bytes_hurt_the_server() {
    let honest = calls();
    let mut random = Random(1);
    for _ in 0..60_000 {
        let mut server = ServerConnection::new();
        let victim = random.below(honest.len());
        for (i, frame) in honest.iter().enumerate() {
            let mut frame = frame.clone();
            if i == victim || random.below(8) == 0 {
                mutate(&mut random, &mut frame, &honest);
            }
            let (limit, before) = (bound(&frame), ALLOCATED.get());
            match server.receive(&mut frame) {
                Some(Event::Login { question, .. }) => server.accept(question),
                Some(Event::Call { question, verb }) => {
                    decode_all(if is_hot(verb) { verb } else { LOOKUP }, &frame);
                    let _ = server.fails(question, ExceptionKind::Failed, "no");
                }
                None => {}
            }
            let _ = server.outgoing();
            let cost = ALLOCATED.get() - before;
            assert!(cost <= limit, "{cost} bytes for a frame of {} words", frame.len());
        }
    }
}

#[test]
fn no_bytes_hurt_the_client() {
    let honest = answers();
    let mut random = Random(2);
    for _ in 0..60_000 {
        let mut client = ClientConnection::new();
        client.start(9, "trainer", "token", None);
        client.ask(
            &Ask::Lookup { want_found: true, dtype: Dtype::Float32 },
            &[(1, vec![80]), (2, vec![0]), (3, vec![8])],
        );
        client.ask(&Ask::LookupOrInsert { dtype: Dtype::Float32 }, &[(1, vec![80, 40])]);
        client.ask(
            &Ask::ApplyGradients {
                push: PushHeader { number: 1, step: None, total: 0 },
                dtype: Dtype::Float32,
            },
            &[(1, vec![80, 200])],
        );
        client.call(13, &[1 << 32, 0]).expect("a message");
        client.call(8, &[1 << 32, 0]).expect("a message");
        ask_the_rest(&mut client);
        let victim = random.below(honest.len());
        for (i, frame) in honest.iter().enumerate() {
            let mut frame = frame.clone();
            if i == victim || random.below(8) == 0 {
                mutate(&mut random, &mut frame, &honest);
            }
            let (limit, before) = (bound(&frame), ALLOCATED.get());
            if client.receive(&mut frame).is_some() {
                decode_all(0, &frame);
            }
            let _ = client.pending();
            let cost = ALLOCATED.get() - before;
            assert!(cost <= limit, "{cost} bytes for a frame of {} words", frame.len());
        }
    }
}

#[test]
fn honest_conversations_pass_unharmed() {
    let mut client = ClientConnection::new();
    client.start(9, "trainer", "token", None);
    client.ask(
        &Ask::Lookup { want_found: true, dtype: Dtype::Float32 },
        &[(1, vec![80]), (2, vec![0]), (3, vec![8])],
    );
    client.ask(
        &Ask::LookupOrInsert { dtype: Dtype::Float32 },
        &[(1, vec![80, 40]), (2, vec![16, 0])],
    );
    client.ask(
        &Ask::ApplyGradients {
            push: PushHeader { number: 1, step: Some(-1), total: 0 },
            dtype: Dtype::Float32,
        },
        &[(1, vec![80, 200]), (2, vec![8, 12])],
    );
    client.call(13, &[2 << 32, 0x0000_0001_0000_0000, 7]).expect("a message");
    client.call(8, &[1 << 32, 0]).expect("a message");
    ask_the_rest(&mut client);
    let mut outcomes = 0;
    for mut frame in answers() {
        outcomes += usize::from(client.receive(&mut frame).is_some());
        assert_eq!(client.closed(), None);
    }
    // hello, two reads, a push, two cold verbs, and the rest.
    assert_eq!((outcomes, client.in_flight()), (10, 0));
}
