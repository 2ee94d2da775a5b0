//! Who must make room: one judge over all tables of a stripe.
//!
//! A table that needs memory which the stripe has not takes an extent of the table whose rows are
//! coldest, if they are colder than its own; otherwise its own coldest rows leave. Heat compares
//! over tables, for one pulse cools all of them; so a table that nobody reads gives its memory up
//! whatever its size, and a table that is read keeps what it earns. Tables are compared by a sample
//! of the rows of a few, in turn, and the last that gave is always one of them.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::heat::Beat;
use super::part::Part;
use super::shape::Table;
use super::stripe::{accounted, State, Tier};
use super::write_back::write_row;
use crate::effort;
use crate::error::{Error, ErrorKind, Result};
use crate::index::Location;
use crate::log::Stream;
use crate::types::{hash, Disk, TableId};

/// Tables looked at in one comparison.
const CANDIDATES: usize = 4;
/// Ranks by which another table must be colder: a quarter of the visits. Less is chance.
const MARGIN: u8 = 4;
/// Rounds of eviction between two comparisons of which the first found no colder table.
const PAUSE: u32 = 8;
/// Most rows evicted in one round, and the share of the table's rows.
const ROUND_ROWS: usize = 64;
const ROUND_SHARE: usize = 64;

/// Most extents that are given back under one lock.
const EXTENTS: usize = 8;

/// The tables of a stripe, as givers of memory.
#[derive(Default)]
pub(super) struct Donors {
    tables: Vec<TableId>,
    /// Whose turn it is to be looked at.
    turn: usize,
    last: Option<TableId>,
    /// Rounds until tables are compared again.
    pause: u32,
    /// Visits to a beat.
    period: u64,
    /// Three quarters of the share were in use: heat is kept.
    is_short: bool,
}

impl Donors {
    pub(super) fn add(&mut self, table: TableId) {
        self.tables.push(table);
    }

    pub(super) fn forget(&mut self, table: TableId) {
        self.tables.retain(|&other| other != table);
        self.last = self.last.filter(|&last| last != table);
    }

    pub(super) fn is_short(&self) -> bool {
        self.is_short
    }

    /// The tables to look at now.
    fn candidates(&mut self) -> Vec<TableId> {
        let mut found: Vec<TableId> = self.last.into_iter().collect();
        for _ in 0..self.tables.len().min(CANDIDATES) {
            self.turn = (self.turn + 1) % self.tables.len();
            found.push(self.tables[self.turn]);
        }
        found
    }
}

impl State {
    /// One step towards a free row of the table: more rows, or fewer of the coldest.
    pub(super) fn make_room(&mut self, tier: &Tier, table: &Arc<Table>) -> Result<()> {
        self.advance_pulse();
        self.fit(tier)?;
        let part = self.part(tier, table);
        let growth = part.pool.growth_bytes();
        let is_first = part.pool.capacity() == 0;
        let is_capped = part.bytes() + growth > table.stripe_cap();
        if !is_capped && !self.memory.has_room(growth) {
            self.take_from_colder(tier, table.id, growth, is_first)?;
        }
        // The first row of a table passes its cap, and the share if no other table can give.
        if (!is_capped && self.memory.has_room(growth)) || is_first {
            return self.grow_pool(table.id);
        }
        if self.evict_round(tier, table.id)? == 0 {
            return Err(Error::store_full(format!(
                "table {:?}: no DRAM for a row of {} bytes; raise dram",
                table.name(),
                4 * table.floats
            )));
        }
        Ok(())
    }

    fn grow_pool(&mut self, id: TableId) -> Result<()> {
        let Self { parts, memory, .. } = self;
        let Some(part) = parts.get_mut(&id) else { return Ok(()) };
        if !accounted(memory, part, Part::grow_pool) {
            return Err(no_space("rows"));
        }
        self.watch_when_short(id);
        Ok(())
    }

    /// Rows make room for so many keys more in the index, of the bucket of this hash. Where there
    /// are none left to leave, one growth may pass the share: `check_room` stops new keys before it
    /// adds up.
    pub(super) fn grow_index(
        &mut self,
        tier: &Tier,
        id: TableId,
        hash: u64,
        keys: usize,
    ) -> Result<()> {
        loop {
            let Some(part) = self.parts.get(&id) else { return Ok(()) };
            let growth = part.index.growth_bytes(hash, keys);
            let is_capped = part.bytes() + growth > part.table.stripe_cap();
            let gave = match (is_capped, self.memory.has_room(growth)) {
                (false, true) => break,
                (true, _) => self.give_extent(tier, id)?,
                (false, false) => self.give_coldest(tier)?,
            };
            if !gave {
                break;
            }
        }
        let Self { parts, memory, .. } = self;
        let Some(part) = parts.get_mut(&id) else { return Ok(()) };
        if !accounted(memory, part, |part| part.index.grow(hash, keys)) {
            return Err(no_space("an index"));
        }
        self.watch_when_short(id);
        Ok(())
    }

    /// Heat is kept when three quarters of the stripe's share are in use, or of the table's cap.
    fn watch_when_short(&mut self, id: TableId) {
        if !self.donors.is_short && self.memory.used() >= self.memory.budget() / 4 * 3 {
            self.donors.is_short = true;
            self.parts.values_mut().for_each(|part| part.policy.watch());
        }
        let Some(part) = self.parts.get_mut(&id) else { return };
        if part.bytes() >= part.table.stripe_cap() / 4 * 3 {
            part.policy.watch();
        }
    }

    /// The pulse beats with the visits.
    fn advance_pulse(&mut self) {
        let visits = self.pulse.visits();
        if visits < self.donors.period {
            return;
        }
        let rows = self.parts.values().map(|part| part.pool.len()).sum();
        self.donors.period = Beat::period(rows) as u64;
        // After a long time without need all is cold alike: the rest would change nothing. What is
        // due is done a beat at a time, since each looks at many rows; heats compare at any.
        let due = (visits / self.donors.period).min(Beat::ROUND as u64);
        if due == 0 {
            return;
        }
        self.pulse.take(visits - (due - 1) * self.donors.period);
        self.pulse.advance();
        for part in self.parts.values_mut() {
            part.policy.sweep(&mut part.pool);
        }
    }

    /// Gives memory back where the stripe holds more than its share, which shrinks when others of
    /// the store take more: some at a time. False if there is more to give.
    pub(crate) fn fit(&mut self, tier: &Tier) -> Result<bool> {
        for _ in 0..EXTENTS {
            if self.memory.has_room(0) || !self.give_coldest(tier)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes memory from a colder table, if there is one; from any if `must`.
    fn take_from_colder(&mut self, tier: &Tier, id: TableId, bytes: u64, must: bool) -> Result<()> {
        if self.donors.pause > 0 && !must {
            self.donors.pause -= 1;
            return Ok(());
        }
        let own = self.coldness(id).unwrap_or(u8::MAX);
        while !self.memory.has_room(bytes) {
            let donor = self.coldest(Some(id));
            let Some((donor, rank)) = donor else { break };
            if !must && rank.saturating_add(MARGIN) > own {
                self.donors.pause = PAUSE;
                break;
            }
            if !self.give_extent(tier, donor)? {
                break;
            }
        }
        Ok(())
    }

    fn coldness(&mut self, id: TableId) -> Option<u8> {
        let part = self.parts.get_mut(&id)?;
        part.policy.coldness(&mut part.pool)
    }

    /// The coldest of a few tables, and how cold it is. Where none of them holds rows, any does.
    fn coldest(&mut self, but: Option<TableId>) -> Option<(TableId, u8)> {
        let mut looked_at = self.donors.candidates();
        looked_at.retain(|&id| Some(id) != but);
        let rank = |state: &mut Self, id| state.coldness(id).map(|rank| (id, rank));
        let mut ranked: Vec<_> = looked_at.into_iter().filter_map(|id| rank(self, id)).collect();
        if ranked.is_empty() {
            let any = self.parts.iter().find_map(|(id, part)| {
                (Some(*id) != but && part.pool.capacity() > 0).then_some(*id)
            })?;
            ranked.push((any, self.coldness(any).unwrap_or(0)));
        }
        let coldest = ranked.into_iter().min_by_key(|table| table.1);
        self.donors.last = coldest.map(|table| table.0);
        coldest
    }

    /// Takes an extent from the coldest of a few tables. False if no table holds rows.
    pub(super) fn give_coldest(&mut self, tier: &Tier) -> Result<bool> {
        match self.coldest(None) {
            Some((id, _)) => self.give_extent(tier, id),
            None => Ok(false),
        }
    }

    /// The coldest rows of a table leave, as many as fill an extent, and it gives one back. False
    /// if it has none.
    fn give_extent(&mut self, tier: &Tier, id: TableId) -> Result<bool> {
        let Some(part) = self.parts.get(&id) else { return Ok(false) };
        let free = part.pool.capacity() - part.pool.len();
        let wanted = part.pool.last_rows().saturating_sub(free);
        self.evict(tier, id, wanted)?;
        let Self { parts, memory, .. } = self;
        Ok(parts.get_mut(&id).is_some_and(|part| accounted(memory, part, Part::shrink_pool)))
    }

    /// Evicts some of the coldest rows of a table. Returns how many left.
    fn evict_round(&mut self, tier: &Tier, id: TableId) -> Result<usize> {
        let rows = self.parts.get(&id).map_or(0, |part| part.pool.capacity());
        self.evict(tier, id, (rows / ROUND_SHARE).clamp(1, ROUND_ROWS))
    }

    /// Moves up to `n` of the coldest rows out of DRAM. Returns how many left.
    fn evict(&mut self, tier: &Tier, id: TableId, n: usize) -> Result<usize> {
        let Self { parts, memory, .. } = self;
        let Some(part) = parts.get_mut(&id) else { return Ok(0) };
        let victims = part.policy.victims(&mut part.pool, n);
        effort::note(victims.len());
        accounted(memory, part, |part| {
            victims.iter().try_for_each(|&at| evict_row(tier, part, at))
        })?;
        Ok(victims.len())
    }

    /// Evicts towards the table's own cap, some rows at a time. Once no more can leave, the bytes
    /// that are still above it: of its index.
    pub(crate) fn enforce_cap(&mut self, tier: &Tier, id: TableId) -> Result<Option<u64>> {
        let over = |part: &Part| part.bytes().saturating_sub(part.table.stripe_cap());
        for _ in 0..EXTENTS {
            let over = self.parts.get(&id).map_or(0, |part| over(part));
            if over == 0 || !self.give_extent(tier, id)? {
                return Ok(Some(over));
            }
        }
        Ok(None)
    }
}

/// The row at `at` leaves DRAM; its entry points at its record. One that came from the cold disk
/// and was read often stays on NVMe from now on, if that has room.
fn evict_row(tier: &Tier, part: &mut Part, at: u64) -> Result<()> {
    let state = part.pool.header(at).state;
    let is_cold = state.place().is_some_and(|place| place.disk() == Disk::Cold);
    if state.is_dirty() {
        write_row(tier, Stream::Rows, &part.table, &mut part.pool, at)?;
    } else if is_cold && part.policy.is_read_often(state) && tier.log.has_room() {
        match write_row(tier, Stream::Rows, &part.table, &mut part.pool, at) {
            Err(error) if error.kind == ErrorKind::StoreFull => {}
            outcome => outcome?,
        }
    }
    let header = *part.pool.header(at);
    let hash = hash(header.key);
    let slot = part.slot(hash, Location::dram(at));
    if let (Some(slot), Some(place)) = (slot, header.state.place()) {
        part.index.relocate(slot, Location::nvme(place));
    }
    part.policy.redeem(&mut part.pool.header_mut(at).state);
    part.policy.remember(hash, header.state.heat(), part.pool.capacity());
    part.pool.give(at);
    part.table.counters.evictions.fetch_add(1, Relaxed);
    Ok(())
}

fn no_space(what: &str) -> Error {
    Error::store_full(format!("no address space is left for {what}; remove keys, or raise dram"))
}
