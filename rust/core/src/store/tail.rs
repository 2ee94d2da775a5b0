//! How long the journal's tail may grow: an opening after a kill has to replay it.
//!
//! The work of a replay is estimated from what the journal holds, as `replay` would do it: a window
//! of changes at a time, each window reading the pages of its rows. A checkpoint ends the tail. It
//! is due when the replay would take long, and earlier where it costs little beside that.

use std::sync::atomic::Ordering::Relaxed;

use super::engine::Engine;
use super::window;
use crate::device::PAGE;
use crate::ledger::Kind;

/// Work to replay at which a checkpoint is due at the latest: ten seconds are promised, and the
/// tail goes on growing while one runs.
const REPLAY_S_MAX: f64 = 8.0;
/// Less is not worth a checkpoint.
const REPLAY_S_MIN: f64 = 1.0;
/// In between it is due when its replay would take this many times as long as it takes to write
/// all rows in DRAM: so checkpoints take a small share of the device.
const REPLAY_PER_WRITE: f64 = 32.0;

/// Cost of a key in an entry, and of a row of a window, on two cores; of a byte read or written.
/// Estimates on the safe side; `benchmarks/opening.py` shows what comes of them.
const CHANGE_S: f64 = 0.15e-6;
const ROW_S: f64 = 0.4e-6;
const BYTE_S: f64 = 1e-9;

/// What a replay would meet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tail {
    /// Length of all journal files.
    pub(super) journal_bytes: u64,
    /// Bytes that a key takes in an entry, on average.
    pub(super) change_bytes: u64,
    /// Rows of the store, and what they take on NVMe.
    pub(super) rows: u64,
    pub(super) record_bytes: u64,
    /// Memory of a window.
    pub(super) window_bytes: u64,
    /// Rows in DRAM: a checkpoint writes these at most.
    pub(super) dram_bytes: u64,
}

impl Tail {
    /// Seconds that its replay would take, at most: keys that come again, and rows that lie beside
    /// each other, make it less.
    pub(super) fn replay_s(&self) -> f64 {
        let change_bytes = self.change_bytes.max(1);
        let changes = self.journal_bytes / change_bytes;
        let in_window = self.window_bytes / (change_bytes + window::KEY_BYTES);
        let in_window = in_window.clamp(1, changes.max(1));
        let windows = changes.div_ceil(in_window);
        let rows = in_window.min(self.rows.max(1));
        let pages = rows.min(self.record_bytes / PAGE as u64 + 1);
        let computing = changes as f64 * CHANGE_S + (windows * rows) as f64 * ROW_S;
        let bytes = self.journal_bytes + windows * pages * PAGE as u64;
        computing.max(bytes as f64 * BYTE_S)
    }
}

/// Whether a checkpoint is due, where the journal may take `share` bytes. Each writes the rows that
/// are hot once more, so that few are better; it ends long before pushes wait, at one and a half.
pub(super) fn is_checkpoint_due(tail: &Tail, share: u64) -> bool {
    let (replay_s, write_s) = (tail.replay_s(), tail.dram_bytes as f64 * BYTE_S);
    tail.journal_bytes > share - share / 4
        || replay_s >= REPLAY_S_MAX
        || replay_s >= REPLAY_S_MIN.max(write_s * REPLAY_PER_WRITE)
}

impl Engine {
    pub(super) fn tail(&self) -> Tail {
        // Without a table nothing is journaled: any number will do.
        let (mut rows, mut written, mut changes, mut least) = (0, 0, 0, u64::from(u32::MAX));
        for table in self.catalog.read().by_id.values() {
            let change_bytes = 8 + 4 * table.dim as u64;
            let journaled = table.counters.journal_bytes.load(Relaxed);
            rows += table.record_bytes.load(Relaxed) / Self::record_bytes_of(table);
            written += journaled;
            changes += journaled / change_bytes;
            least = least.min(change_bytes);
        }
        Tail {
            journal_bytes: self.journal().bytes(),
            // A store that was just opened does not know what its tail is made of.
            change_bytes: written.checked_div(changes).unwrap_or(least),
            rows,
            record_bytes: self.record_bytes.load(Relaxed),
            window_bytes: self.replay_bytes(),
            dram_bytes: self.ledger.held(Kind::Rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// 4 M rows of dim 16 with Adagrad, 15 % of them in DRAM.
    const LARGE: Tail = Tail {
        journal_bytes: 275 * MIB,
        change_bytes: 72,
        rows: 4_000_000,
        record_bytes: 4_000_000 * 185,
        window_bytes: 68 * MIB,
        dram_bytes: 96 * MIB,
    };

    fn with(change: impl FnOnce(&mut Tail)) -> Tail {
        let mut tail = LARGE;
        change(&mut tail);
        tail
    }

    #[test]
    fn work_grows_with_all_that_makes_it() {
        let work = LARGE.replay_s();
        assert!(work > 2.0 && work < 10.0, "{work} s");
        assert!(with(|tail| tail.journal_bytes *= 2).replay_s() > 1.9 * work);
        // Windows that hold less read the same pages more often.
        assert!(with(|tail| tail.window_bytes /= 4).replay_s() > 2.0 * work);
        // A small table is read whole, however many changes name it.
        assert!(
            with(|tail| (tail.rows, tail.record_bytes) = (1000, 185_000)).replay_s() < work / 2.0
        );
        let empty = with(|tail| tail.journal_bytes = 64);
        assert!(empty.replay_s() < 0.01);
    }

    #[test]
    fn a_checkpoint_is_due_before_ten_seconds_of_work() {
        let mut tail = with(|tail| tail.dram_bytes = u64::MAX);
        while !is_checkpoint_due(&tail, u64::MAX) {
            tail.journal_bytes += MIB;
        }
        let work = tail.replay_s();
        assert!((REPLAY_S_MAX..9.0).contains(&work), "{work} s");
    }

    #[test]
    fn a_cheap_checkpoint_comes_earlier_and_an_idle_store_makes_none() {
        let cheap = with(|tail| tail.dram_bytes = 10 * MIB);
        assert!(is_checkpoint_due(&cheap, u64::MAX) && !is_checkpoint_due(&LARGE_DRAM, u64::MAX));
        let idle = with(|tail| (tail.journal_bytes, tail.dram_bytes) = (200, 0));
        assert!(!is_checkpoint_due(&idle, u64::MAX));
        // Whatever the work, the journal keeps within its share.
        assert!(is_checkpoint_due(&LARGE_DRAM, 360 * MIB));
        assert!(!is_checkpoint_due(&LARGE_DRAM, 370 * MIB));
    }

    const LARGE_DRAM: Tail = Tail { dram_bytes: 1 << 40, ..LARGE };

    #[test]
    fn no_number_makes_it_panic() {
        for n in [0, 1, u64::MAX >> 20] {
            let tail = Tail {
                journal_bytes: n,
                change_bytes: n,
                rows: n,
                record_bytes: n,
                window_bytes: n,
                dram_bytes: n,
            };
            assert!(tail.replay_s() >= 0.0);
        }
    }
}
