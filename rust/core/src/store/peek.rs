//! Rows as they are stored, read without a visit: nothing is counted, warmed, moved or changed. For
//! people who ask why, and for what reads whole tables.

use std::sync::Arc;

use super::engine::Engine;
use super::fetch::{Damage, Miss, Receiver, Source, Wanted};
use super::inspect::RowTier;
use crate::error::Result;
use crate::ledger::Kind;
use crate::log::RecordView;
use crate::table::{stripe_of, Found, Item, State, Table};
use crate::types::{hash, Place, Sequence};

/// Keys that are fetched together.
const WINDOW_KEYS: usize = 512;

/// A row where it lies.
pub(super) struct Stored<'a> {
    pub(super) tier: RowTier,
    /// Of its record, if it has one.
    pub(super) place: Option<Place>,
    /// The row in DRAM is newer than that record.
    pub(super) is_dirty: bool,
    /// The last call that changed it.
    pub(super) sequence: Sequence,
    /// Training reads, saturating.
    pub(super) frequency: u32,
    /// Unix seconds when it was last seen in training; 0: before such were stamped.
    pub(super) last_seen: u32,
    /// Value, then slots.
    pub(super) numbers: &'a [f32],
}

/// Who peeks. Told of each key that has a row, by its place among the keys. No lock is held over
/// what is on the device.
pub(super) trait Look {
    fn stored(&mut self, index: usize, stored: &Stored<'_>) -> Result<()>;

    /// The row is on the device and cannot be read.
    fn damaged(&mut self, index: usize, place: Place, damage: Damage) -> Result<()>;
}

impl Engine {
    /// Shows the rows of `keys`. Those on the device cost a read each, shared by neighbours.
    pub(super) fn peek(
        &self,
        table: &Arc<Table>,
        keys: &[u64],
        look: &mut impl Look,
    ) -> Result<()> {
        self.load_for(keys.iter().copied())?;
        let window_bytes = WINDOW_KEYS * 4 * table.floats;
        let _memory = self.ledger.hold(Kind::Buffers, window_bytes as u64);
        for (n, keys) in keys.chunks(WINDOW_KEYS).enumerate() {
            let mut peeking = Peeking { first: n * WINDOW_KEYS, look: &mut *look };
            // Before the places are looked up, until they were read.
            let pin = self.tier.log.pin();
            let mut misses = Vec::new();
            for (index, &key) in keys.iter().enumerate() {
                let item = Item { key, hash: hash(key), index: index as u32 };
                let mut state = self.stripes[stripe_of(item.hash, self.stripes.len())].lock();
                let part = state.parts.get(&table.id);
                match part.map_or(Found::Absent, |part| part.find(&item, |_| false)) {
                    Found::Dram(at) => peeking.resident(&mut state, table, &item, at)?,
                    Found::Nvme(place) => {
                        misses.push(Miss { source: 0, index: item.index, place });
                    }
                    Found::Absent => {}
                }
            }
            let sources = [Source { table, keys }];
            self.fetch(&pin, &sources, &mut misses, &mut peeking)?;
        }
        Ok(())
    }
}

/// The keys of a window.
struct Peeking<'a, L> {
    /// Number of its first key.
    first: usize,
    look: &'a mut L,
}

impl<L: Look> Peeking<'_, L> {
    fn index(&self, item: &Item) -> usize {
        self.first + item.index as usize
    }

    fn resident(&mut self, state: &mut State, table: &Table, item: &Item, at: u64) -> Result<()> {
        let Some(part) = state.parts.get_mut(&table.id) else { return Ok(()) };
        let (header, numbers) = part.pool.row_unmarked(at);
        let stored = Stored {
            tier: RowTier::Dram,
            place: header.state.place(),
            is_dirty: header.state.is_dirty(),
            sequence: header.sequence,
            frequency: header.frequency,
            last_seen: header.last_seen,
            numbers,
        };
        self.look.stored(self.index(item), &stored)
    }
}

impl<L: Look> Receiver for Peeking<'_, L> {
    const IS_BACKGROUND: bool = true;

    fn record(
        &mut self,
        _: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        let stored = Stored {
            tier: RowTier::of(wanted.place),
            place: Some(wanted.place),
            is_dirty: false,
            sequence: record.sequence,
            frequency: record.frequency,
            last_seen: record.last_seen,
            numbers: record.row,
        };
        self.look.stored(self.index(&wanted.item), &stored)?;
        Ok(true)
    }

    fn resident(&mut self, state: &mut State, wanted: &Wanted<'_>, at: u64) -> Result<()> {
        self.resident(state, wanted.table, &wanted.item, at)
    }

    fn absent(&mut self, _: &mut State, _: &Wanted<'_>) -> Result<()> {
        Ok(())
    }

    fn damaged(&mut self, _: &mut State, wanted: &Wanted<'_>, damage: Damage) -> Result<()> {
        self.look.damaged(self.index(&wanted.item), wanted.place, damage)
    }
}
