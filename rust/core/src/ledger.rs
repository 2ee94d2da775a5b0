//! The one account of the DRAM that a store holds: whoever takes memory books it here first.
//!
//! Every kind has a sum of its own; together they are what `stats` calls `dram_bytes`. A `Hold` is
//! booked memory: it gives back what it booked when it is dropped, however a call ends. Memory that
//! lives with the store is booked at once (`hold`, `try_hold`) or grows (`Hold::resize`). Memory of
//! running calls comes from a share of its own, for which calls wait in the order of asking: it is
//! set aside whole, so that calls never take from rows and rows never from calls.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex};

/// What memory is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Rows, with the free rows between them.
    Rows,
    /// Lines of the index, and what finds them.
    Index,
    /// Statistics of the cache, parts and tables themselves.
    Statistics,
    /// Counts of keys that have no row yet.
    Candidates,
    /// Free blocks of pages that others of the same size share, and free pages that keep memory.
    Slack,
    /// Segments that are filled or on their way to the device.
    Segments,
    /// Rings and buffers of device reads.
    Buffers,
    /// What running calls hold: plans, misses, staged records.
    Calls,
    /// The account of the log's segments.
    Accounts,
    /// Clients' sessions.
    Sessions,
    /// The end of the journal that is not written yet.
    Journal,
}

const KINDS: usize = Kind::Journal as usize + 1;
/// Names of the kinds in `stats`, in their order.
const NAMES: [&str; KINDS] = [
    "dram_rows",
    "dram_index",
    "dram_statistics",
    "dram_candidates",
    "dram_slack",
    "dram_segments",
    "dram_buffers",
    "dram_calls",
    "dram_accounts",
    "dram_sessions",
    "dram_journal",
];

/// What stripes hold of their shares.
const SHARED: [Kind; 4] = [Kind::Rows, Kind::Index, Kind::Statistics, Kind::Candidates];
/// Share of the bound that running calls may hold: 1 / this.
const CALLS_SHARE: u64 = 10;
/// But never less: one call of the smallest store needs about this.
const CALLS_MIN: u64 = 512 << 10;

/// All that a store holds in DRAM, by kind.
pub(crate) struct Ledger {
    limit: u64,
    held: [AtomicU64; KINDS],
    /// Calls that wait for memory, by number, in the order of asking.
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    queue: VecDeque<u64>,
}

/// Memory that was booked. Given back when dropped.
pub(crate) struct Hold {
    ledger: Arc<Ledger>,
    kind: Kind,
    bytes: u64,
}

impl Ledger {
    /// The account of a store whose `dram` is `limit` bytes.
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: Default::default(),
            waiting: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Bytes held for `kind`.
    pub(crate) fn held(&self, kind: Kind) -> u64 {
        self.held[kind as usize].load(Relaxed)
    }

    /// Bytes held for all kinds.
    pub(crate) fn total(&self) -> u64 {
        self.held.iter().map(|bytes| bytes.load(Relaxed)).sum()
    }

    /// Names of the kinds in `stats`, and what is held for each.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES.iter().zip(&self.held).map(|(name, bytes)| (*name, bytes.load(Relaxed)))
    }

    /// Most bytes that all running calls together may hold, and so that one may ask for.
    pub(crate) fn calls_max(&self) -> u64 {
        (self.limit / CALLS_SHARE).max(CALLS_MIN)
    }

    /// What is left for rows, index, statistics and candidates: the bound less all that others hold
    /// and the whole share of calls.
    pub(crate) fn rows_max(&self) -> u64 {
        let others = self.total().saturating_sub(self.rows() + self.held(Kind::Calls));
        self.limit.saturating_sub(others + self.calls_max())
    }

    /// Bytes by which rows, index, statistics and candidates may still grow.
    pub(crate) fn rows_left(&self) -> u64 {
        self.rows_max().saturating_sub(self.rows())
    }

    /// Rows, index, statistics and candidates hold more than is left for them: others have grown.
    pub(crate) fn is_over(&self) -> bool {
        self.rows() > self.rows_max()
    }

    fn rows(&self) -> u64 {
        SHARED.iter().map(|&kind| self.held(kind)).sum()
    }

    /// Books memory that must be had: it is small, or its owner keeps to a share of its own.
    pub(crate) fn hold(self: &Arc<Self>, kind: Kind, bytes: u64) -> Hold {
        self.held[kind as usize].fetch_add(bytes, Relaxed);
        Hold { ledger: self.clone(), kind, bytes }
    }

    /// Books memory of a running call, which waits until others have given back enough. A call asks
    /// once, for all that it will need at one time, and holds no lock and no other such memory
    /// while it waits.
    ///
    /// # Errors
    /// `StoreFull` if it asks for more than `calls_max`, or none is free at `deadline`.
    pub(crate) fn hold_for_call(self: &Arc<Self>, bytes: u64, deadline: Instant) -> Result<Hold> {
        let most = self.calls_max();
        if bytes > most {
            return Err(Error::store_full(format!(
                "a call needs {bytes} bytes of memory at once, of {most} that dram={} leaves to \
                 calls; split the call or raise dram",
                self.limit
            )));
        }
        let mut waiting = self.waiting.lock();
        let own = waiting.next;
        waiting.next += 1;
        waiting.queue.push_back(own);
        while waiting.queue.front() != Some(&own) || self.held(Kind::Calls) + bytes > most {
            if self.changed.wait_until(&mut waiting, deadline).timed_out() {
                waiting.queue.retain(|&other| other != own);
                self.changed.notify_all();
                return Err(Error::store_full(format!(
                    "no memory for a call: others hold {} of {most} bytes that dram={} leaves to \
                     calls; make fewer or smaller calls at a time, or raise dram",
                    self.held(Kind::Calls),
                    self.limit
                )));
            }
        }
        waiting.queue.pop_front();
        let hold = self.hold(Kind::Calls, bytes);
        if !waiting.queue.is_empty() {
            self.changed.notify_all();
        }
        Ok(hold)
    }

    /// Books more memory of a running call if it can be had without waiting. `None`: some is
    /// waited for, or none is free.
    pub(crate) fn try_hold_for_call(self: &Arc<Self>, bytes: u64) -> Option<Hold> {
        let waiting = self.waiting.lock();
        let fits = self.held(Kind::Calls) + bytes <= self.calls_max();
        (waiting.queue.is_empty() && fits).then(|| self.hold(Kind::Calls, bytes))
    }
}

impl Hold {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Books what is held now instead. Only a call's memory is bounded here, and it only shrinks.
    pub(crate) fn resize(&mut self, bytes: u64) {
        debug_assert!(self.kind != Kind::Calls || bytes <= self.bytes, "a call asks once");
        let held = &self.ledger.held[self.kind as usize];
        if bytes >= self.bytes {
            held.fetch_add(bytes - self.bytes, Relaxed);
        } else {
            held.fetch_sub(self.bytes - bytes, Relaxed);
            self.tell();
        }
        self.bytes = bytes;
    }

    /// Calls that wait look again.
    fn tell(&self) {
        if self.kind == Kind::Calls {
            // Under the lock: who has just looked and is about to wait must hear it.
            let waiting = self.ledger.waiting.lock();
            if !waiting.queue.is_empty() {
                self.ledger.changed.notify_all();
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn later() -> Instant {
        Instant::now() + LONG
    }

    #[test]
    fn what_is_dropped_is_given_back() {
        let ledger = Ledger::new(80 << 20);
        let before = ledger.rows_max();
        let mut accounts = ledger.hold(Kind::Accounts, 100);
        let call = ledger.hold_for_call(1000, later()).unwrap();
        assert_eq!((ledger.total(), ledger.held(Kind::Calls), call.bytes()), (1100, 1000, 1000));
        assert_eq!(ledger.rows_max(), before - 100, "the share of calls is set aside already");
        accounts.resize(40);
        assert_eq!(ledger.list().map(|kind| kind.1).sum::<u64>(), 1040);
        drop((accounts, call));
        assert_eq!((ledger.total(), ledger.rows_max()), (0, before));
    }

    #[test]
    fn a_call_that_asks_for_more_than_there_is_is_refused_at_once() {
        let ledger = Ledger::new(8 << 20);
        let error = ledger.hold_for_call(ledger.calls_max() + 1, later()).err().unwrap();
        assert!(error.message.contains("split the call"), "{error}");
        assert_eq!(ledger.total(), 0);
    }

    /// A small call that could be served must not pass a large one that waits: it would starve.
    #[test]
    fn calls_are_served_in_the_order_of_asking() {
        let ledger = Ledger::new(8 << 20);
        let most = ledger.calls_max();
        let first = ledger.hold_for_call(most / 2, later()).unwrap();
        let (sender, served) = mpsc::channel();
        let ask = |name: &'static str, bytes| {
            let (ledger, sender) = (ledger.clone(), sender.clone());
            let queued = ledger.waiting.lock().queue.len();
            let thread = std::thread::spawn({
                let ledger = ledger.clone();
                move || {
                    let hold = ledger.hold_for_call(bytes, later()).unwrap();
                    sender.send(name).unwrap();
                    drop(hold);
                }
            });
            while ledger.waiting.lock().queue.len() == queued {
                std::thread::yield_now();
            }
            thread
        };
        let threads = [ask("large", most), ask("small", 1)];
        assert!(ledger.try_hold_for_call(1).is_none(), "others wait");
        assert!(served.try_recv().is_err());
        drop(first);
        assert_eq!([served.recv().unwrap(), served.recv().unwrap()], ["large", "small"]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(ledger.total(), 0);
    }

    #[test]
    fn who_gives_up_lets_the_next_in_line_pass() {
        let ledger = Ledger::new(8 << 20);
        let _held = ledger.hold_for_call(ledger.calls_max() - 10, later()).unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        let error = ledger.hold_for_call(11, soon).err().unwrap();
        assert!(error.message.contains("fewer or smaller calls"), "{error}");
        assert_eq!(ledger.hold_for_call(10, later()).unwrap().bytes(), 10);
    }
}
