//! Look-ahead: rows of coming batches are brought to DRAM by a thread of the engine's own, so that
//! no call waits in line behind it.
//!
//! What was asked for while the thread was busy is read together: misses of several batches that
//! share a page cost one read. Asking is a hint: it returns at once, and what finds no memory in
//! the queue is dropped.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::engine::Engine;
use crate::error::{Error, Result};
use crate::ledger::Hold;
use crate::types::TableId;

/// Share of the memory of calls that the keys in the queue may hold: 1 / this.
const QUEUE_SHARE: u64 = 4;

/// Keys of one table that will be needed.
struct Ask {
    table: TableId,
    keys: Vec<u64>,
    _memory: Hold,
}

#[derive(Default)]
struct Queue {
    asks: Vec<Ask>,
    bytes: u64,
    is_stopping: bool,
}

/// The queue before the thread. Shared by the store's verbs and the thread.
#[derive(Default)]
pub(super) struct Ahead {
    queue: Mutex<Queue>,
    work: Condvar,
    /// Whether the thread has work: only then calls look whether a row is on its way already.
    pub(super) is_busy: AtomicBool,
    /// No more windows are begun.
    pub(super) is_stopping: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Ahead {
    fn push(&self, engine: &Engine, table: TableId, keys: &[u64]) {
        let bytes = 8 * keys.len() as u64;
        let mut queue = self.queue.lock();
        let fits = queue.bytes + bytes <= engine.ledger.calls_max() / QUEUE_SHARE;
        if !fits || queue.is_stopping {
            return;
        }
        let Some(_memory) = engine.ledger.try_hold_for_call(bytes) else { return };
        queue.bytes += bytes;
        queue.asks.push(Ask { table, keys: keys.to_vec(), _memory });
        self.work.notify_one();
    }

    /// All that was asked for; `None` when the store is closed.
    fn next(&self) -> Option<Vec<Ask>> {
        let mut queue = self.queue.lock();
        while queue.asks.is_empty() && !queue.is_stopping {
            self.is_busy.store(false, Relaxed);
            self.work.wait(&mut queue);
        }
        if queue.is_stopping {
            return None;
        }
        self.is_busy.store(true, Relaxed);
        queue.bytes = 0;
        Some(std::mem::take(&mut queue.asks))
    }

    /// Ends the thread, after the window that it is in.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
        let mut queue = self.queue.lock();
        queue.is_stopping = true;
        queue.asks.clear();
        self.work.notify_all();
        drop(queue);
        if let Some(thread) = self.thread.lock().take() {
            // A panic has failed the store already, and said so.
            drop(thread.join());
        }
    }
}

impl Engine {
    /// Rows of these keys will be needed: returns at once.
    pub(super) fn look_ahead(self: &Arc<Self>, table: TableId, keys: &[u64]) -> Result<()> {
        self.walk(table, keys)?;
        self.start_ahead()?;
        self.ahead.push(self, table, keys);
        Ok(())
    }

    /// The thread is made at the first ask: most stores need none.
    fn start_ahead(self: &Arc<Self>) -> Result<()> {
        let mut thread = self.ahead.thread.lock();
        if thread.is_none() && !self.ahead.is_stopping.load(Relaxed) {
            let engine = self.clone();
            let builder = std::thread::Builder::new().name("hps-ahead".into());
            let started = builder.spawn(move || {
                while let Some(asks) = engine.ahead.next() {
                    engine.bring(&asks);
                }
            });
            *thread = Some(started.map_err(|cause| {
                Error::unavailable(format!("cannot start the look-ahead thread: {cause}"))
            })?);
        }
        Ok(())
    }

    fn bring(&self, asks: &[Ask]) {
        let Ok(_call) = self.enter() else { return };
        let walks: Vec<_> =
            asks.iter().filter_map(|ask| self.walk(ask.table, &ask.keys).ok()).collect();
        // A table may be dropped, a record damaged, the device fail: whoever reads the rows for an
        // answer is told.
        drop(self.warm(&walks));
    }
}
