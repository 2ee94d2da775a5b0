//! Keys without a row in tables that do not admit every key: what a training read answers for them,
//! and what a push leaves out.
//!
//! A push asks first which of its keys have rows, and goes on with those alone: so its entry in the
//! journal names rows that were there, and a replay makes them as for any table. Whether a key is
//! admitted is told here, before the push has a place in the order; what comes in between changes
//! no more of that than of the entry.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::engine::Engine;
use super::fetch::Wanted;
use super::mutate::Merged;
use super::walk::{Hits, Verb};
use super::window::Hashed;
use super::{GradientBatch, InsertBatch};
use crate::admission::Rule;
use crate::error::Result;
use crate::ledger::{Hold, Kind};
use crate::log::RecordView;
use crate::table::{Counters, Item, RowMut, State, Table};
use crate::types::hash;

type ByHash = BuildHasherDefault<Hashed>;

/// What became of the keys of a batch, in some windows, that had no row. Windows are read again
/// when the log was full, and a row may have to be made later than its key is admitted: no key is
/// counted twice.
#[derive(Default)]
pub(super) struct Counted {
    /// Positions in the batch, hashed.
    refused: HashSet<u64, ByHash>,
    /// Occurrences before, by the hash of the key.
    admitted: HashMap<u64, u32, ByHash>,
}

impl Counted {
    /// The next windows begin.
    pub(super) fn clear(&mut self) {
        self.refused.clear();
        self.admitted.clear();
    }

    /// Occurrences of a key before it was admitted.
    pub(super) fn before(&self, hash: u64) -> u32 {
        self.admitted.get(&hash).copied().unwrap_or(0)
    }

    /// Counts keys that have no row, in the order in which the caller named them, and answers those
    /// that get none with the value of their initial row. Leaves the others.
    pub(super) fn count(
        &mut self,
        engine: &Engine,
        state: &mut State,
        (table, rule): (&Arc<Table>, &Rule),
        batch: &mut InsertBatch<'_>,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        state.reserve_candidates(&engine.tier, table, items.len())?;
        let before = items.len();
        items.retain(|item| {
            let index = item.index as usize;
            let count = batch.counts.get(index).copied().unwrap_or(1);
            let is_admitted = self.is_admitted(engine, state, (table, rule), (item, count));
            if !is_admitted {
                let start = index * table.dim;
                table.initial_value(item.key, &mut batch.rows[start..start + table.dim]);
            }
            is_admitted
        });
        engine.candidates.note();
        Counters::add(&table.counters.reads_unadmitted, before - items.len());
        Ok(())
    }

    fn is_admitted(
        &mut self,
        engine: &Engine,
        state: &mut State,
        (table, rule): (&Arc<Table>, &Rule),
        (item, count): (&Item, u32),
    ) -> bool {
        let position = hash(item.index.into());
        if self.refused.contains(&position) {
            return false;
        }
        if self.admitted.contains_key(&item.hash) {
            return true;
        }
        let admitted = state.admit(&engine.tier, table, rule, (item.hash, count));
        match admitted {
            Some(before) => _ = self.admitted.insert(item.hash, before),
            None => _ = self.refused.insert(position),
        }
        admitted.is_some()
    }
}

/// Which keys of a batch have rows, one byte a key.
pub(super) struct Present {
    flags: Vec<u8>,
    _hold: Hold,
}

impl Present {
    /// Takes the keys without a row out of a batch, or of what it was merged to. Returns how many
    /// they are.
    pub(super) fn strain(
        &self,
        engine: &Engine,
        batch: &GradientBatch<'_>,
        merged: &mut Option<Merged>,
    ) -> usize {
        let is_there = |at: usize| self.flags[at] != 0;
        match merged {
            Some(merged) => {
                let firsts = std::mem::take(&mut merged.firsts);
                merged.retain(|n| is_there(firsts[n] as usize))
            }
            None if self.flags.contains(&0) => {
                let copy = Merged::copy(engine, batch.keys, batch.gradients);
                merged.insert(copy).retain(is_there)
            }
            None => 0,
        }
    }
}

impl Engine {
    /// Which keys of a batch have rows; `None` if its table admits all. Rows on NVMe come to DRAM,
    /// where they will be changed.
    pub(super) fn present(
        &self,
        table: &Table,
        batch: &GradientBatch<'_>,
    ) -> Result<Option<Present>> {
        if table.admission().is_none() {
            return Ok(None);
        }
        let _hold = self.ledger.hold(Kind::Calls, batch.keys.len() as u64);
        let mut flags = vec![0; batch.keys.len()];
        let walk = self.walk(batch.table, batch.keys)?;
        self.read(&[walk], &mut Asking { flags: &mut flags })?;
        Ok(Some(Present { flags, _hold }))
    }
}

/// Sets a flag for each key that has a row.
struct Asking<'a> {
    flags: &'a mut [u8],
}

impl Hits for &mut Asking<'_> {
    const CHANGES: bool = false;
    const WARMS: bool = false;

    #[inline(always)]
    fn ask(&self, _: &Item) {}

    #[inline(always)]
    fn hit<const N: usize>(&mut self, _: RowMut<'_>, item: &Item) {
        self.flags[item.index as usize] = 1;
    }
}

impl<'a> Verb for Asking<'a> {
    type Hits<'h>
        = &'h mut Asking<'a>
    where
        Self: 'h;

    fn hits(&mut self, _: usize) -> &mut Asking<'a> {
        self
    }

    fn absent(&mut self, _: &Engine, _: &mut State, _: usize, items: &mut Vec<Item>) -> Result<()> {
        items.clear();
        Ok(())
    }

    fn record(
        &mut self,
        engine: &Engine,
        state: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        let &Wanted { table, item, place, .. } = wanted;
        self.flags[item.index as usize] = 1;
        state.offer(&engine.tier, table, &item, place, record)?;
        Ok(true)
    }
}
