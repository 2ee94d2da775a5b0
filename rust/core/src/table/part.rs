//! One table's rows in one stripe: index, pool and policy, and the visits that verbs are made of.
//!
//! A visit looks each key up once and keeps what it found; what is not in DRAM is told to the
//! caller, who reads it without the lock. Rows are added by the stripe, which knows the budget.

use std::sync::Arc;

use super::arena::Arena;
use super::plan::Item;
use super::policy::Policy;
use super::pool::Pool;
use super::shape::Table;
use crate::index::{Index, Location, Slot};
use crate::prefetch::vectorized;
use crate::types::Place;

/// Where a key's row was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// In DRAM, at these units of the arena.
    Dram(u64),
    /// Perhaps on NVMe: the fingerprint matches, the key is in the record.
    Nvme(Place),
    /// Nowhere.
    Absent,
}

pub(crate) struct Part {
    pub(crate) table: Arc<Table>,
    pub(crate) index: Index,
    pub(crate) pool: Pool,
    pub(crate) policy: Policy,
    /// Grows when rows may have left their addresses for another pool: kept addresses are void.
    pub(crate) era: u64,
}

/// Distance in keys between the steps of a visit: index line, row, use.
const AHEAD: usize = 16;

impl Part {
    pub(crate) fn new(table: Arc<Table>, arena: Arc<Arena>, buckets: u32) -> Self {
        let pool = Pool::new(arena, table.floats);
        Self { table, index: Index::new(buckets), pool, policy: Policy::new(), era: 0 }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_with(self.index.bytes(), self.pool.bytes())
    }

    /// What the part would take with such an index and such a pool.
    pub(crate) fn bytes_with(&self, index: u64, pool: u64) -> u64 {
        let rows = pool as usize / self.pool.row_bytes();
        size_of::<Self>() as u64 + index + pool + Policy::bytes(rows)
    }

    /// Looks up every item.
    pub(crate) fn visit(&mut self, items: &[Item], visitor: &mut impl Visitor) {
        visit(self, items, visitor);
    }

    /// Looks up the index alone, in order: rows in DRAM are not yet verified.
    pub(crate) fn probe(&self, items: &[Item], found: &mut Vec<Found>) {
        probe(self, items, found);
    }

    /// Visits rows that a probe found in DRAM, without another probe while they stayed there.
    pub(crate) fn revisit(&mut self, items: &[Item], kept: &[Found], visitor: &mut impl Visitor) {
        revisit(self, items, kept, visitor);
    }

    /// A row that is probably the item's, asked for ahead of its use.
    #[inline(always)]
    fn candidate(&self, item: &Item) -> Option<u64> {
        let at = self.index.candidate(item.hash)?.resolve().ok()?;
        self.pool.prefetch(at);
        Some(at)
    }

    #[inline(always)]
    fn is_row(&self, at: u64, key: u64) -> bool {
        let header = self.pool.header(at);
        header.key == key && header.state.is_live()
    }

    /// Looks one key up, passing over the places that were found to hold other keys.
    pub(crate) fn find(&self, item: &Item, is_rejected: impl Fn(Place) -> bool) -> Found {
        let entry = self.index.find(item.hash, |location| match location.resolve() {
            Ok(at) => self.pool.header(at).key == item.key,
            Err(place) => !is_rejected(place),
        });
        entry.map_or(Found::Absent, |(_, location)| location.into())
    }

    /// The entry that points at exactly this location.
    pub(crate) fn slot(&self, hash: u64, location: Location) -> Option<Slot> {
        self.index.find(hash, |other| other == location).map(|(slot, _)| slot)
    }
}

/// What a verb does with the keys of a visit. Methods are inlined into it: mark them so.
pub(crate) trait Visitor {
    /// Asks for the caller's memory that the item will need: it is visited in the order of the
    /// stripes, at random places of the caller's arrays.
    fn prefetch(&self, item: &Item);

    /// The item's row is in DRAM, at `at`.
    fn hit(&mut self, pool: &mut Pool, at: u64, item: &Item);

    /// Item `n` of the visit has no row there.
    fn miss(&mut self, n: usize, item: &Item, found: Found);
}

vectorized! {
    /// Line and row of a key are asked for ahead of their use.
    fn visit<V: Visitor>(part: &mut Part, items: &[Item], visitor: &mut V) {
        let mut kept = [None; AHEAD];
        for step in 0..items.len() + 2 * AHEAD {
            if let Some(n) = step.checked_sub(2 * AHEAD) {
                let item = &items[n];
                let found = match kept[step % AHEAD] {
                    Some(at) if part.pool.header(at).key == item.key => Found::Dram(at),
                    _ => part.find(item, |_| false),
                };
                match found {
                    Found::Dram(at) => visitor.hit(&mut part.pool, at, item),
                    found => visitor.miss(n, item, found),
                }
            }
            if let Some(item) = step.checked_sub(AHEAD).and_then(|at| items.get(at)) {
                kept[step % AHEAD] = part.candidate(item);
                visitor.prefetch(item);
            }
            if let Some(item) = items.get(step) {
                part.index.prefetch(item.hash);
            }
        }
    }
}

vectorized! {
    fn probe(part: &Part, items: &[Item], found: &mut Vec<Found>) {
        for step in 0..items.len() + AHEAD {
            if let Some(item) = step.checked_sub(AHEAD).map(|at| &items[at]) {
                let entry = part.index.find(item.hash, |_| true);
                found.push(entry.map_or(Found::Absent, |(_, location)| location.into()));
            }
            if let Some(item) = items.get(step) {
                part.index.prefetch(item.hash);
            }
        }
    }
}

vectorized! {
    fn revisit<V: Visitor>(part: &mut Part, items: &[Item], kept: &[Found], visitor: &mut V) {
        for step in 0..items.len() + AHEAD {
            if let Some(n) = step.checked_sub(AHEAD) {
                let item = &items[n];
                match kept[n] {
                    Found::Dram(at) if part.is_row(at, item.key) => {
                        visitor.hit(&mut part.pool, at, item);
                    }
                    found => visitor.miss(n, item, found),
                }
            }
            if let (Some(item), Some(Found::Dram(at))) = (items.get(step), kept.get(step)) {
                part.pool.prefetch(*at);
                visitor.prefetch(item);
            }
        }
    }
}

impl From<Location> for Found {
    fn from(location: Location) -> Self {
        match location.resolve() {
            Ok(at) => Self::Dram(at),
            Err(place) => Self::Nvme(place),
        }
    }
}
