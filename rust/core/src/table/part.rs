//! One table's rows in one stripe: index, pool and policy, and the visits that verbs are made of.
//!
//! A probe looks each key up once and keeps what it found, a visit goes there; what is not in DRAM
//! is told to the caller, who reads it without the lock. Rows are added by the stripe, which knows
//! the budget.

use std::sync::Arc;

use super::arena::Arena;
use super::plan::Item;
use super::policy::Policy;
use super::pool::{Pool, RowMut};
use super::shape::Table;
use crate::index::{Index, Location, LocationRing, Slot};
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

/// Bytes that a part holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) rows: u64,
    pub(super) index: u64,
    pub(super) statistics: u64,
}

pub(crate) struct Part {
    pub(crate) table: Arc<Table>,
    pub(crate) index: Index,
    pub(crate) pool: Pool,
    pub(crate) policy: Policy,
    /// Grows when rows may have left their addresses for another pool: kept addresses are void.
    pub(crate) era: u64,
}

/// Keys between the request for a row and its visit.
const AHEAD: usize = 16;
/// Keys between the request for a line of the index and its use, which takes far less time.
const PROBE_AHEAD: usize = 64;

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
        index + pool + self.statistics_bytes(pool)
    }

    fn statistics_bytes(&self, pool: u64) -> u64 {
        size_of::<Self>() as u64 + Policy::bytes(pool as usize / self.pool.row_bytes())
    }

    /// The same, by what it is held for.
    pub(super) fn held(&self) -> Held {
        let (rows, index) = (self.pool.bytes(), self.index.bytes());
        Held { rows, index, statistics: self.statistics_bytes(rows) }
    }

    /// Asks for the lines of the index that `items` will be probed in.
    pub(crate) fn ask(&self, items: &[Item]) {
        items.iter().for_each(|item| self.index.prefetch(item.hash));
    }

    /// Looks up the index alone, in order: rows in DRAM are not yet verified.
    pub(crate) fn probe(&self, items: &[Item], found: &mut Vec<Found>) {
        probe(self, items, found);
    }

    /// As `probe`, of items from `first` on whose lines were asked for. Asks for the header and the
    /// first `floats` numbers of each row ahead of a visit.
    pub(crate) fn probe_ahead(
        &self,
        items: &[Item],
        floats: usize,
        found: &mut LocationRing,
        first: usize,
    ) {
        probe_ahead(self, items, floats, found, first);
    }

    /// Visits items, from `first` on, where a probe found them; what is not there any more is
    /// looked up again.
    pub(crate) fn visit(
        &mut self,
        items: &[Item],
        found: &LocationRing,
        first: usize,
        visitor: &mut impl Visitor,
    ) {
        visit(self, items, found, first, visitor);
    }

    /// As `visit`, of rows that were not asked for yet, and of which all numbers are needed.
    pub(crate) fn revisit(&mut self, items: &[Item], found: &[Found], visitor: &mut impl Visitor) {
        revisit(self, items, found, visitor);
    }

    #[inline(always)]
    fn probe_one(&self, item: &Item) -> Option<Location> {
        self.index.find(item.hash, |_| true).map(|(_, location)| location)
    }

    /// Visits the item's row where it was found, or wherever else the index finds it.
    #[inline(always)]
    fn visit_one(&mut self, n: usize, item: &Item, found: Found, visitor: &mut impl Visitor) {
        if let Found::Dram(at) = found {
            let row = self.pool.row_mut(at);
            if row.0.key == item.key && row.0.state.is_live() {
                return visitor.hit(row, item);
            }
        }
        self.visit_elsewhere(n, item, found, visitor);
    }

    #[cold]
    fn visit_elsewhere(&mut self, n: usize, item: &Item, found: Found, visitor: &mut impl Visitor) {
        let found = match found {
            Found::Dram(_) => self.find(item, |_| false),
            found => found,
        };
        match found {
            Found::Dram(at) => visitor.hit(self.pool.row_mut(at), item),
            found => visitor.miss(n, item, found),
        }
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
    /// Asks for the caller's memory that a revisit of the item will need: items come in the order
    /// of the stripes, at random places of the caller's arrays.
    fn prefetch(&self, _item: &Item) {}

    /// The item's row is in DRAM.
    fn hit(&mut self, row: RowMut<'_>, item: &Item);

    /// Item `n` of the visit has no row there.
    fn miss(&mut self, n: usize, item: &Item, found: Found);
}

vectorized! {
    fn probe(part: &Part, items: &[Item], found: &mut Vec<Found>) {
        for step in 0..items.len() + PROBE_AHEAD {
            if let Some(item) = step.checked_sub(PROBE_AHEAD).map(|at| &items[at]) {
                found.push(part.probe_one(item).into());
            }
            if let Some(item) = items.get(step) {
                part.index.prefetch(item.hash);
            }
        }
    }
}

vectorized! {
    fn probe_ahead(
        part: &Part,
        items: &[Item],
        floats: usize,
        found: &mut LocationRing,
        first: usize,
    ) {
        // Two short loops, faster than one: with few instructions between them, requests that wait
        // for the page table overlap.
        for (n, item) in items.iter().enumerate() {
            found.set(first + n, part.probe_one(item));
        }
        let rows = (first..first + items.len()).filter_map(|n| found.get(n)?.resolve().ok());
        part.pool.prefetch(rows, floats);
    }
}

vectorized! {
    fn visit<V: Visitor>(
        part: &mut Part,
        items: &[Item],
        found: &LocationRing,
        first: usize,
        visitor: &mut V,
    ) {
        for (n, item) in items.iter().enumerate() {
            part.visit_one(n, item, found.get(first + n).into(), visitor);
        }
    }
}

vectorized! {
    fn revisit<V: Visitor>(part: &mut Part, items: &[Item], found: &[Found], visitor: &mut V) {
        let lines = part.pool.lines(part.table.floats);
        for step in 0..items.len() + AHEAD {
            if let Some(n) = step.checked_sub(AHEAD) {
                part.visit_one(n, &items[n], found[n], visitor);
            }
            if let (Some(item), Some(&Found::Dram(at))) = (items.get(step), found.get(step)) {
                part.pool.prefetch_lines(at, lines);
                visitor.prefetch(item);
            }
        }
    }
}

impl From<Option<Location>> for Found {
    fn from(location: Option<Location>) -> Self {
        location.map_or(Self::Absent, Self::from)
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
