//! A stripe's share of the store's DRAM: what its rows, indexes, statistics and candidates hold of
//! it.

use std::sync::Arc;

use super::part::Held;
use crate::ledger::{Hold, Kind, Ledger};

/// An equal part of what others leave of the store's DRAM, so it shrinks when they grow.
pub(crate) struct Share {
    ledger: Arc<Ledger>,
    stripes: u64,
    rows: Hold,
    index: Hold,
    statistics: Hold,
    candidates: Hold,
    /// Bytes that the index will take when all of it is loaded.
    awaited: Hold,
}

impl Share {
    /// One of `stripes` equal shares; nothing is held yet.
    pub(super) fn new(ledger: &Arc<Ledger>, stripes: usize) -> Self {
        Self {
            ledger: ledger.clone(),
            stripes: stripes as u64,
            rows: ledger.hold(Kind::Rows, 0),
            index: ledger.hold(Kind::Index, 0),
            statistics: ledger.hold(Kind::Statistics, 0),
            candidates: ledger.hold(Kind::Candidates, 0),
            awaited: ledger.hold(Kind::Index, 0),
        }
    }

    /// Bytes that the stripe may hold.
    pub(super) fn budget(&self) -> u64 {
        self.ledger.rows_max() / self.stripes
    }

    /// Bytes that it holds.
    pub(super) fn used(&self) -> u64 {
        let own = self.rows.bytes() + self.statistics.bytes() + self.fixed_bytes();
        own + self.awaited.bytes()
    }

    /// Bytes of all indexes and candidates, which do not make room for others.
    pub(super) fn fixed_bytes(&self) -> u64 {
        self.index.bytes() + self.candidates.bytes()
    }

    /// Sets memory aside for what is still to be loaded of the index.
    pub(super) fn await_index(&mut self, bytes: u64) {
        self.awaited.resize(self.awaited.bytes() + bytes);
    }

    /// So much of it comes now.
    pub(super) fn index_arrives(&mut self, bytes: u64) {
        self.awaited.resize(self.awaited.bytes().saturating_sub(bytes));
    }

    /// Whether so many bytes more can be held.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.used() + bytes <= self.budget()
    }

    /// A part of the stripe that held `before` holds `after`.
    pub(super) fn change(&mut self, before: &Held, after: &Held) {
        let change = |hold: &mut Hold, before: u64, after: u64| {
            if before != after {
                hold.resize(hold.bytes() + after - before);
            }
        };
        change(&mut self.rows, before.rows, after.rows);
        change(&mut self.index, before.index, after.index);
        change(&mut self.statistics, before.statistics, after.statistics);
        change(&mut self.candidates, before.candidates, after.candidates);
    }
}
