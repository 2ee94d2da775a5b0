//! Goal: a streamed reply arrives whole, in order and with all its rows, however the socket takes
//! it and however many threads send it; it ends when the socket fails, and holds a few pieces at
//! most. Method: outlets that take one byte at a time, stall, or close; a counting allocator.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{ErrorKind, Result};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;

use hybridps_serve::{as_numbers, Call, Outlet};
use hybridps_wire::{Ask, Dtype, Outcome};

mod kit;
use kit::{bytes, class, row, rows_of, Peer, Served, DIM, KEYS};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
/// Tests that look at the bytes in use run alone.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: hands everything to the system's allocator, unchanged.
#[allow(unsafe_code, reason = "counts the bytes in use")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes `step` bytes at a time; after every `stall` bytes, none for a while; fails after `end`.
struct Fake {
    taken: Mutex<Vec<u8>>,
    step: usize,
    stall: usize,
    end: usize,
    is_stalled: AtomicBool,
}

impl Fake {
    fn new(step: usize, stall: usize, end: usize) -> Self {
        let (taken, is_stalled) = (Mutex::default(), AtomicBool::new(false));
        Self { taken, step, stall, end, is_stalled }
    }

    fn bytes(&self) -> Vec<u8> {
        self.taken.lock().unwrap().clone()
    }
}

impl Outlet for Fake {
    fn send(&self, bytes: &[u8]) -> Result<usize> {
        let mut taken = self.taken.try_lock().expect("one thread sends at a time");
        let before = taken.len();
        if before >= self.end {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if self.is_stalled.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let count = bytes.len().min(self.step).min(self.stall - before % self.stall);
        taken.extend_from_slice(&bytes[..count]);
        self.is_stalled.store(taken.len() % self.stall == 0, Ordering::Relaxed);
        Ok(count)
    }

    fn wait(&self, _: i32) -> bool {
        false
    }
}

/// Sends with so many threads until nothing is left, or the outlet fails.
fn send(call: &Call, outlet: &Fake, threads: usize) -> Result<()> {
    while call.unsent_bytes() > 0 {
        let results: Vec<_> = std::thread::scope(|scope| {
            let send = || scope.spawn(|| call.send(outlet).unwrap());
            let running: Vec<_> = (0..threads).map(|_| send()).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for result in results {
            result?;
        }
        outlet.is_stalled.store(false, Ordering::Relaxed);
    }
    Ok(())
}

fn lookup(peer: &mut Peer, table: u32, keys: &[u64]) -> Call {
    let (_, sent) = peer.ask(
        &Ask::Lookup { want_found: false, dtype: Dtype::Float32 },
        &[(table, vec![bytes(keys)])],
    );
    let call = peer.call(&sent);
    assert!(call.is_streamed(), "large enough");
    call
}

fn expected(keys: &[u64]) -> Vec<f32> {
    keys.iter().flat_map(|&key| row(key)).collect()
}

#[test]
fn it_arrives_whole_however_the_socket_takes_it() {
    let _alone = ALONE.lock();
    let served = Served::new();
    let keys: Vec<u64> = (0..KEYS).map(|n| n * 7 % (KEYS + 9)).collect();
    let never = usize::MAX;
    for (step, stall, threads) in
        [(never, never, 1), (1, never, 2), (never, 1 << 16, 2), (7919, 300_001, 3)]
    {
        let mut peer = served.peer();
        let call = lookup(&mut peer, served.table, &keys);
        let outlet = Fake::new(step, stall, never);
        let unsent = call.unsent_bytes();
        send(&call, &outlet, threads).unwrap();
        let sent = outlet.bytes();
        assert_eq!(sent.len(), unsent, "told before");
        assert!(peer.server.answer(call.question()).is_none());
        let (outcome, frame) = peer.outcome(&sent);
        assert_eq!(outcome, Outcome::Rows, "{step} {stall} {threads}");
        assert!(rows_of(&frame)[0] == expected(&keys), "{step} {stall} {threads}");
        assert_eq!(call.code(), "ok");
    }
}

#[test]
fn what_goes_wrong_later_is_told_at_its_end_in_as_many_bytes() {
    let _alone = ALONE.lock();
    let served = Served::new();
    let mut peer = served.peer();
    let keys: Vec<u64> = (1..=KEYS).collect();
    let call = lookup(&mut peer, served.table, &keys);
    let (unsent, outlet) = (call.unsent_bytes(), Fake::new(usize::MAX, 1 << 19, usize::MAX));
    assert!(call.send(&outlet).unwrap().unwrap(), "it is full after the first piece");
    served.store.drop_table("item").unwrap();
    outlet.is_stalled.store(false, Ordering::Relaxed);
    send(&call, &outlet, 2).unwrap();
    assert_eq!(outlet.bytes().len(), unsent);
    let (outcome, _) = peer.outcome(&outlet.bytes());
    assert_eq!((class(&outcome), call.code()), ("TableNotFoundError", "TableNotFoundError"));
}

#[test]
fn what_goes_wrong_first_is_the_whole_reply() {
    let _alone = ALONE.lock();
    let served = Served::new();
    let mut peer = served.peer();
    let keys: Vec<u64> = (1..=KEYS).collect();
    let call = lookup(&mut peer, served.table, &keys);
    served.store.drop_table("item").unwrap();
    let outlet = Fake::new(1, usize::MAX, usize::MAX);
    send(&call, &outlet, 2).unwrap();
    assert!(outlet.bytes().len() < 1000, "no row was sent");
    let (outcome, _) = peer.outcome(&outlet.bytes());
    assert_eq!(class(&outcome), "TableNotFoundError");
}

#[test]
fn a_socket_that_closes_ends_it_for_all_threads() {
    let _alone = ALONE.lock();
    let served = Served::new();
    let keys: Vec<u64> = (1..=KEYS).collect();
    for end in [1, 1 << 19, (1 << 20) + 17] {
        let mut peer = served.peer();
        let call = lookup(&mut peer, served.table, &keys);
        let outlet = Fake::new(4096, usize::MAX, end);
        send(&call, &outlet, 3).unwrap_err();
        assert_eq!(call.unsent_bytes(), 0, "nothing is left to do");
        assert!(!call.send(&outlet).unwrap().unwrap(), "and nobody waits for anything");
    }
}

/// Bytes of rows in one piece.
const PIECE: usize = 1 << 19;
/// Memory that is kept for reuse, and slack.
const KEPT: usize = 16 << 20;

#[test]
fn a_peer_that_does_not_read_holds_a_few_pieces() {
    let _alone = ALONE.lock();
    let served = Served::new();
    let keys: Vec<u64> = (0..60_000).map(|n| n % KEYS + 1).collect();
    let mut peer = served.peer();
    let call = lookup(&mut peer, served.table, &keys);
    assert!(call.reply_bytes() > keys.len() * DIM * 4);
    let outlet = Fake::new(1000, 1 << 20, usize::MAX);
    let base = LIVE.load(Ordering::Relaxed);
    let result: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..2).map(|_| scope.spawn(|| call.send(&outlet))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(result.into_iter().all(|full| full.unwrap().unwrap()), "both went");
    let taken = outlet.bytes().capacity() * 2;
    let held = LIVE.load(Ordering::Relaxed).saturating_sub(base + taken);
    assert!(held < 5 * PIECE, "{held} bytes are held");
}

#[test]
fn it_may_be_had_whole_instead() {
    let _alone = ALONE.lock();
    let served = Served::new();
    let keys: Vec<u64> = (0..KEYS).collect();
    let mut peer = served.peer();
    let call = lookup(&mut peer, served.table, &keys);
    assert_eq!(call.tables(), [served.table]);
    let reply = call.run().unwrap();
    let outlet = Fake::new(usize::MAX, usize::MAX, usize::MAX);
    assert!(call.send(&outlet).is_err() && call.run().is_err(), "once, one way or the other");
    assert!(peer.server.answer(call.question()).is_none());
    let (outcome, frame) = peer.outcome(as_numbers(&reply));
    assert_eq!(outcome, Outcome::Rows);
    assert!(rows_of(&frame)[0] == expected(&keys));
    let begun = lookup(&mut peer, served.table, &keys);
    assert!(begun.send(&Fake::new(usize::MAX, 1 << 18, usize::MAX)).unwrap().unwrap());
    assert!(begun.run().is_err(), "part of it has left");
}

#[test]
fn memory_comes_back_however_a_call_ends() {
    let _alone = ALONE.lock();
    let served = Served::new();
    let keys: Vec<u64> = (1..=KEYS).collect();
    let mut peer = served.peer();
    let end_all = |peer: &mut Peer| {
        drop(lookup(peer, served.table, &keys));
        let stalled = Fake::new(usize::MAX, 1 << 18, usize::MAX);
        assert!(lookup(peer, served.table, &keys).send(&stalled).unwrap().unwrap());
        let closed = Fake::new(usize::MAX, usize::MAX, 1 << 19);
        send(&lookup(peer, served.table, &keys), &closed, 2).unwrap_err();
        let (_, small) = peer.ask(
            &Ask::Lookup { want_found: true, dtype: Dtype::Float32 },
            &[(served.table, vec![bytes(&keys[..100])])],
        );
        drop(peer.call(&small));
        let (_, small) = peer.ask(
            &Ask::Lookup { want_found: true, dtype: Dtype::Float32 },
            &[(served.table, vec![bytes(&keys[..100])])],
        );
        peer.call(&small).run().unwrap();
    };
    end_all(&mut peer);
    let base = LIVE.load(Ordering::Relaxed);
    for _ in 0..40 {
        end_all(&mut peer);
    }
    // 40 rounds hold 180 MB of replies and 6 MB of frames.
    let grown = LIVE.load(Ordering::Relaxed).saturating_sub(base);
    assert!(grown < KEPT, "{grown} bytes did not come back");
}
