//! What the latest training reads found out about their batches: a push nearly always names the
//! keys of the read before it, in the same order, and goes on from there. Comparing them costs a
//! twentieth of merging them again.

use std::sync::Arc;

use crate::batch::Unique;
use crate::ledger::{Hold, Kind, Ledger};
use crate::sync::Mutex;
use crate::types::TableId;

/// Share of the memory of calls that may be kept: 1 / this.
const SHARE: u64 = 8;
/// Tables of which a batch is kept.
const TABLES: usize = 32;

/// A batch that repeats some keys, and its unique keys.
struct Batch {
    table: TableId,
    keys: Vec<u64>,
    unique: Unique,
    hold: Hold,
}

/// The latest batch of each table, oldest first.
pub(super) struct Recent {
    ledger: Arc<Ledger>,
    batches: Mutex<Vec<Batch>>,
}

impl Recent {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, batches: Mutex::new(Vec::new()) }
    }

    /// Keeps what is known of a batch until it is asked for, if it is small enough.
    pub(super) fn keep(&self, table: TableId, keys: &[u64], unique: Unique) {
        let bytes = (12 * (keys.len() + unique.keys.len())) as u64;
        let mut batches = self.batches.lock();
        batches.retain(|batch| batch.table != table);
        let others: u64 = batches.iter().map(|batch| batch.hold.bytes()).sum();
        if others + bytes <= self.ledger.calls_max() / SHARE && batches.len() < TABLES {
            let hold = self.ledger.hold(Kind::Calls, bytes);
            batches.push(Batch { table, keys: keys.to_vec(), unique, hold });
        }
    }

    /// What is known of exactly this batch. It is given once.
    pub(super) fn take(&self, table: TableId, keys: &[u64]) -> Option<Unique> {
        let mut batches = self.batches.lock();
        let at = batches.iter().position(|batch| batch.table == table && batch.keys == keys)?;
        Some(batches.swap_remove(at).unique)
    }

    /// The table is gone.
    pub(super) fn forget(&self, table: TableId) {
        self.batches.lock().retain(|batch| batch.table != table);
    }
}
