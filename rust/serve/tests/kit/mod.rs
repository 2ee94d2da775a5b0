//! What the tests share: a store with known rows, a client and a server's side that talk by bytes.
#![allow(dead_code, reason = "no test uses all of it")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use hybridps_core::{
    Assign, Durability, Initializer, Optimizer, Push, Store, StoreConfig, TableSpec,
};
use hybridps_serve::{as_numbers, Asked, Call, Client, Connection, Event, Words};
use hybridps_wire::{decode_rows, Answer, Ask, Outcome, Sizes};

pub(crate) const FRAME_LIMIT: usize = 16 << 20;
pub(crate) const KEYS_LIMIT: usize = 1 << 17;
/// Columns of the only table, and keys that have a row: 1 to `KEYS`.
pub(crate) const DIM: usize = 64;
pub(crate) const KEYS: u64 = 6000;

/// A store in a directory of its own, which goes with it.
pub(crate) struct Served {
    pub(crate) store: Arc<Store>,
    pub(crate) table: u32,
    path: PathBuf,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Served {
    pub(crate) fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hybridps-serve-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let store = Store::open(StoreConfig {
            path: path.clone(),
            dram_bytes: 32 << 20,
            nvme_bytes: 64 << 20,
            durability: Durability::None,
            threads: 1,
            shard: (0, 1),
            cold: None,
        })
        .unwrap();
        let table = store.create_table(&spec("item", DIM)).unwrap().id;
        store.attach(1, "").unwrap();
        let keys: Vec<u64> = (1..=KEYS).collect();
        let rows: Vec<f32> = keys.iter().flat_map(|&key| row(key)).collect();
        let push = Push { session: 1, number: 1, step: None };
        store.assign(push, &Assign { table, keys: &keys, rows: &rows }).unwrap();
        Self { store: Arc::new(store), table, path }
    }

    pub(crate) fn peer(&self) -> Peer {
        self.peer_of("float32")
    }

    /// A client whose rows and gradients travel as `dtype`.
    pub(crate) fn peer_of(&self, dtype: &str) -> Peer {
        let server = Connection::new(Arc::clone(&self.store), FRAME_LIMIT, KEYS_LIMIT);
        Peer::new(server, Client::new(FRAME_LIMIT, dtype).unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.store.close();
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

pub(crate) fn spec(name: &str, dim: usize) -> TableSpec {
    TableSpec {
        name: name.into(),
        dim: dim as u32,
        optimizer: Optimizer::Sgd,
        learning_rate: 1.0,
        gradients: Default::default(),
        initializer: Initializer::Zeros,
        seed: 0,
        admission: None,
        dtype: "float32".into(),
        dram: None,
        nvme: None,
        expiry: None,
    }
}

/// The row of a key: zeros for one that is absent.
pub(crate) fn row(key: u64) -> Vec<f32> {
    let is_there = (1..=KEYS).contains(&key);
    (0..DIM).map(|c| if is_there { key as f32 + c as f32 / 64.0 } else { 0.0 }).collect()
}

/// An array of a call, as the bytes that a client sends.
pub(crate) fn bytes<T: ToBytes>(numbers: &[T]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_bytes()).collect()
}

pub(crate) trait ToBytes {
    fn to_bytes(&self) -> Vec<u8>;
}
macro_rules! to_bytes {
    ($($number:ty),*) => { $(impl ToBytes for $number {
        fn to_bytes(&self) -> Vec<u8> { self.to_le_bytes().to_vec() }
    })* };
}
to_bytes!(u16, u32, u64, f32);

/// A client and the server's side of its connection, logged in.
pub(crate) struct Peer {
    pub(crate) client: Client,
    pub(crate) server: Connection,
}

impl Peer {
    fn new(server: Connection, client: Client) -> Self {
        let mut peer = Self { client, server };
        let (_, flight) = peer.client.start(7, "", "", None);
        let [Event::Login { question, .. }] = &peer.tell(as_numbers(&flight), 0)[..] else {
            panic!("a login")
        };
        let hello = peer.server.accept(*question);
        assert!(matches!(hello[..], [Event::Cold { verb: "hello", .. }]), "hello comes behind it");
        peer.server.set_session(7);
        let outgoing = peer.server.outgoing();
        assert!(peer.hear(as_numbers(&outgoing)).is_empty());
        peer
    }

    /// Gives bytes to the server's side; what came of them.
    pub(crate) fn tell(&mut self, mut bytes: &[u8], at_once: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() && self.server.closing().is_none() {
            let count = self.server.put(bytes);
            bytes = &bytes[count..];
            events.extend(self.server.received(count, at_once, Call::try_run).unwrap());
        }
        events
    }

    /// Gives bytes to the client; the answers in them.
    pub(crate) fn hear(&mut self, mut bytes: &[u8]) -> Vec<(Answer, Words)> {
        let mut answers = Vec::new();
        while !bytes.is_empty() && self.client.closed().is_none() {
            let count = self.client.put(bytes);
            bytes = &bytes[count..];
            answers.extend(self.client.received(count).unwrap());
        }
        answers
    }

    /// The bytes of a call with these arrays a table.
    pub(crate) fn ask(&mut self, ask: &Ask, tables: &[(u32, Vec<Vec<u8>>)]) -> (u32, Vec<u8>) {
        let sizes: Vec<Sizes> = tables
            .iter()
            .map(|(id, arrays)| (*id, arrays.iter().map(Vec::len).collect()))
            .collect();
        let Asked { question, head, .. } = self.client.ask(ask, &sizes).unwrap();
        let mut sent = as_numbers::<u8>(&head).to_vec();
        for array in tables.iter().flat_map(|(_, arrays)| arrays) {
            sent.extend_from_slice(array);
            sent.resize(sent.len().next_multiple_of(8), 0);
        }
        (question, sent)
    }

    /// The one call that these bytes hold.
    pub(crate) fn call(&mut self, bytes: &[u8]) -> Call {
        let mut events = self.tell(bytes, 0);
        match (events.pop(), events.is_empty()) {
            (Some(Event::Hot(call)), true) => call,
            _ => panic!("one hot call"),
        }
    }

    /// What the client makes of a reply.
    pub(crate) fn outcome(&mut self, reply: &[u8]) -> (Outcome, Words) {
        let mut answers = self.hear(reply);
        let (answer, frame) = answers.pop().expect("an answer");
        assert!(answers.is_empty(), "one reply, one answer");
        (answer.outcome, frame)
    }

    /// A call that is asked, run and answered.
    pub(crate) fn done(&mut self, ask: &Ask, tables: &[(u32, Vec<Vec<u8>>)]) -> (Outcome, Words) {
        let (question, sent) = self.ask(ask, tables);
        let reply = self.call(&sent).run().unwrap();
        assert!(self.server.answer(question).is_none(), "nobody gave it up");
        self.outcome(as_numbers(&reply))
    }
}

/// The rows of each table in the frame of an answer.
pub(crate) fn rows_of(frame: &Words) -> Vec<Vec<f32>> {
    let all: &[f32] = as_numbers(frame);
    let places = decode_rows(frame).unwrap();
    places.iter().map(|place| all[place.rows.start / 4..place.rows.end / 4].to_vec()).collect()
}

/// The class of the exception that a call was answered with.
pub(crate) fn class(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Exception { reason, .. } => &reason.class,
        other => panic!("an exception: {other:?}"),
    }
}
