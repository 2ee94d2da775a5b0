//! One table's rows in one stripe: index, pool and policy, and the visits that verbs are made of.
//!
//! A probe looks each key up once and keeps what it found, a visit goes there; what is not in DRAM
//! is told to the caller, who reads it without the lock. Rows are added by the stripe, which knows
//! the budget.

use std::sync::Arc;

use super::heat::Beat;
use super::kept::Keeper;
use super::plan::Item;
use super::policy::{Policy, Pulse};
use super::pool::Pool;
use super::row::RowMut;
use super::shape::Table;
use crate::admission::Candidates;
use crate::arena::Arena;
use crate::effort;
use crate::index::{Index, Location, LocationRing, Slot};
use crate::log::{Log, Pin};
use crate::prefetch::vectorized;
use crate::types::{hash, Place};

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
pub(crate) struct Held {
    pub(super) rows: u64,
    pub(super) index: u64,
    pub(super) statistics: u64,
    pub(super) candidates: u64,
}

pub(crate) struct Part {
    pub(crate) table: Arc<Table>,
    pub(crate) index: Index,
    pub(crate) pool: Pool,
    pub(crate) policy: Policy,
    /// Keys that were read and are not admitted, once there are any.
    pub(super) candidates: Option<Box<Candidates>>,
    /// Grows when rows may have left their addresses for others: kept addresses are void.
    pub(crate) era: u64,
    /// Write-back that has looked at some of it, and where it goes on.
    pub(super) written_back: (u32, (usize, usize)),
    /// While a checkpoint copies it: what rows were before they changed.
    pub(super) keeper: Option<Box<Keeper>>,
}

/// Keys between the request for a row and its visit.
const AHEAD: usize = 16;
/// Keys between the request for a line of the index and its use, which takes far less time.
const PROBE_AHEAD: usize = 64;

impl Part {
    pub(super) fn new(
        table: Arc<Table>,
        arena: &Arc<Arena>,
        buckets: u32,
        pulse: Arc<Pulse>,
    ) -> Self {
        let pool = Pool::new(arena.clone(), table.floats);
        let index = Index::new(arena.clone(), buckets);
        let (policy, written_back) = (Policy::new(pulse), <(u32, (usize, usize))>::default());
        let candidates = None;
        Self { table, index, pool, policy, candidates, era: 0, written_back, keeper: None }
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> u64 {
        let Held { rows, index, statistics, candidates } = self.held();
        rows + index + statistics + candidates
    }

    /// The same, by what they are held for.
    pub(super) fn held(&self) -> Held {
        let statistics = size_of::<Self>() as u64 + self.pool.account_bytes() + self.policy.bytes();
        let candidates = self.candidates.as_ref().map_or(0, |candidates| candidates.bytes());
        Held { rows: self.pool.bytes(), index: self.index.bytes(), statistics, candidates }
    }

    /// Keys that are counted and not admitted, and the bytes that they take.
    pub(crate) fn candidates(&self) -> (u64, u64) {
        self.candidates.as_ref().map_or((0, 0), |all| (all.len() as u64, all.bytes()))
    }

    /// Releases all records and gives all memory back, of a part that was taken out of its stripe:
    /// its table was dropped. Returns what it held. `_pin`, taken while it was there: no other
    /// record has come to the places that are released.
    pub(crate) fn bury(self: Box<Self>, log: &Log, _pin: &Pin<'_>) -> Held {
        effort::note(self.index.len());
        for location in self.index.locations() {
            let place = match location.resolve() {
                Err(place) => Some(place),
                Ok(at) => self.pool.header(at).state.place(),
            };
            if let Some(place) = place {
                log.release(place, self.table.floats);
            }
        }
        self.held()
    }

    /// Adds free rows. False when no address space is left.
    pub(super) fn grow_pool(&mut self) -> bool {
        let Self { pool, index, .. } = self;
        let moves = !pool.is_large();
        let has_grown = pool.grow(|header, old, new| move_entry(index, header.key, old, new));
        if has_grown && moves {
            (self.era, self.written_back) = (self.era + 1, Default::default());
        }
        has_grown
    }

    /// Gives the last extent of rows back. False if its rows do not fit the others.
    pub(super) fn shrink_pool(&mut self) -> bool {
        let Self { pool, index, .. } = self;
        let has_shrunk = pool.shrink(|header, old, new| move_entry(index, header.key, old, new));
        if has_shrunk {
            self.policy.fit(self.pool.capacity());
            (self.era, self.written_back) = (self.era + 1, Default::default());
        }
        has_shrunk
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

    /// Visits the item's row where it was found, or wherever else the index finds it. Warms it if
    /// there is a beat for that.
    #[inline(always)]
    fn visit_one<V: Visitor>(
        &mut self,
        n: usize,
        item: &Item,
        found: Found,
        beat: Option<Beat>,
        visitor: &mut V,
    ) {
        if let Found::Dram(at) = found {
            let (header, numbers) = self.pool.row_unmarked(at);
            if header.key == item.key && header.state.is_live() {
                if V::IS_AHEAD {
                    return self.policy.keep(&mut header.state);
                }
                if let Some(beat) = beat {
                    header.state.set_heat(header.state.heat().warmed(beat));
                    self.policy.redeem(&mut header.state);
                }
                let before = header.state.newness();
                if V::CHANGES {
                    if let Some(keeper) = &mut self.keeper {
                        keeper.keep(header, numbers);
                    }
                }
                visitor.hit((header, numbers), item);
                if self.pool.header(at).state.newness() != before {
                    self.pool.mark(at);
                }
                return;
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
            Found::Dram(at) => visitor.hit(self.row_to_change(at), item),
            found => visitor.miss(n, item, found),
        }
    }

    /// A row to change, which a write-back will look at. What it was is kept, if somebody wants it.
    pub(crate) fn row_to_change(&mut self, at: u64) -> RowMut<'_> {
        self.keep(at);
        self.pool.row_mut(at)
    }

    /// The row is about to change or to go.
    pub(super) fn keep(&mut self, at: u64) {
        if let Some(keeper) = &mut self.keeper {
            let (header, numbers) = self.pool.row(at);
            keeper.keep(header, numbers);
        }
    }

    /// Rank of the heat of a row in DRAM.
    #[cfg(test)]
    pub(crate) fn rank(&self, at: u64) -> u8 {
        self.pool.header(at).state.heat().rank(self.policy.beat())
    }

    /// Looks one key up, passing over the places that were found to hold other keys.
    pub(crate) fn find(&self, item: &Item, is_rejected: impl Fn(Place) -> bool) -> Found {
        let entry = self.index.find(item.hash, |location| match location.resolve() {
            Ok(at) => self.pool.header(at).key == item.key,
            Err(place) => !is_rejected(place),
        });
        entry.map_or(Found::Absent, |(_, location)| location.into())
    }

    /// Of the record of the row at a location, if it has one.
    pub(crate) fn place_of(&self, location: Location) -> Option<Place> {
        match location.resolve() {
            Err(place) => Some(place),
            Ok(at) => self.pool.header(at).state.place(),
        }
    }

    /// The entry that points at exactly this location.
    pub(crate) fn slot(&self, hash: u64, location: Location) -> Option<Slot> {
        self.index.find(hash, |other| other == location).map(|(slot, _)| slot)
    }
}

/// A row moved within DRAM.
fn move_entry(index: &mut Index, key: u64, old: u64, new: u64) {
    let entry = index.find(hash(key), |location| location == Location::dram(old));
    if let Some((slot, _)) = entry {
        index.relocate(slot, Location::dram(new));
    }
}

/// What a verb does with the keys of a visit. Methods are inlined into it: mark them so.
pub(crate) trait Visitor {
    /// True if nobody visits the rows yet: they are kept until somebody does, and stay as they are.
    const IS_AHEAD: bool = false;
    /// False if rows stay as they are: only looked at.
    const CHANGES: bool = true;
    /// False if a visit is a question alone: rows do not get warmer by it.
    const WARMS: bool = true;

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
        let is_visit = V::WARMS && !V::IS_AHEAD;
        let beat = if is_visit { part.policy.visited(items.len()) } else { None };
        for (n, item) in items.iter().enumerate() {
            part.visit_one(n, item, found.get(first + n).into(), beat, visitor);
        }
    }
}

vectorized! {
    fn revisit<V: Visitor>(part: &mut Part, items: &[Item], found: &[Found], visitor: &mut V) {
        let lines = part.pool.lines(part.table.floats);
        let beat = part.policy.visited(items.len());
        effort::note(items.len());
        for step in 0..items.len() + AHEAD {
            if let Some(n) = step.checked_sub(AHEAD) {
                part.visit_one(n, &items[n], found[n], beat, visitor);
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
