//! What the lock of a stripe protects: a range of buckets of every table, and its share of the DRAM
//! budget. Rows that must make room leave for the log.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::arena::Arena;
use super::part::{Found, Held, Part};
use super::plan::Item;
use super::pool::Pool;
use super::shape::{Counters, Table};
use super::share::Share;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{Location, Slot};
use crate::ledger::Ledger;
use crate::log::{Log, Record, RecordView, Stream};
use crate::types::{hash, Place, Sequence, TableId};

/// What lies below and beside the stripes.
pub(crate) struct Tier {
    pub(crate) arena: Arc<Arena>,
    pub(crate) log: Arc<Log>,
    pub(crate) buckets_per_stripe: u32,
}

/// Spreads table ids, which the store gives out one after the other. Every visit asks for one, and
/// the standard hash would cost as much as a row.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What the lock protects.
pub(crate) struct State {
    pub(crate) parts: HashMap<TableId, Part, BuildHasherDefault<IdHasher>>,
    memory: Share,
    /// The ticket whose turn it is.
    pub(super) serving: u64,
    /// All mutating calls up to here that touch this stripe have been applied.
    pub(crate) applied: Sequence,
}

impl State {
    /// One of `stripes` equal ones.
    pub(super) fn new(ledger: &Arc<Ledger>, stripes: usize) -> Self {
        let memory = Share::new(ledger, stripes);
        Self { parts: HashMap::default(), memory, serving: 0, applied: 0 }
    }

    pub(crate) fn used(&self) -> u64 {
        self.memory.used()
    }

    /// The part of `table`, made if there is none yet.
    pub(crate) fn part(&mut self, tier: &Tier, table: &Arc<Table>) -> &mut Part {
        let Self { parts, memory, .. } = self;
        parts.entry(table.id).or_insert_with(|| {
            let part = Part::new(table.clone(), tier.arena.clone(), tier.buckets_per_stripe);
            memory.change(&Held::default(), &part.held());
            part
        })
    }

    /// Drops a table's part; its records on NVMe are dead.
    pub(crate) fn drop_part(&mut self, tier: &Tier, id: TableId) {
        let Some(part) = self.parts.remove(&id) else { return };
        self.memory.change(&part.held(), &Held::default());
        for location in part.index.locations() {
            let place = match location.resolve() {
                Err(place) => Some(place),
                Ok(at) => part.pool.header(at).state.place(),
            };
            if let Some(place) = place {
                tier.log.release(place, part.table.floats);
            }
        }
    }

    /// Refuses new keys of these hashes when the index alone would pass the bound: near it they
    /// must find lanes without growth.
    pub(crate) fn check_room(&self, tier: &Tier, table: &Arc<Table>, hashes: &[u64]) -> Result<()> {
        if hashes.is_empty() {
            return Ok(());
        }
        let fresh;
        let part = match self.parts.get(&table.id) {
            Some(part) => part,
            None => {
                fresh = Part::new(table.clone(), tier.arena.clone(), tier.buckets_per_stripe);
                &fresh
            }
        };
        let (index, keys) = (&part.index, part.index.len() + hashes.len());
        let others: u64 = self.parts.values().map(|part| part.index.bytes()).sum();
        let left = (self.memory.budget() + index.bytes()).saturating_sub(others);
        let extent = part.pool.extent_bytes();
        let bound = left.min(table.stripe_cap()).saturating_sub(part.bytes_with(0, extent));
        // The step that follows may be a quarter more.
        let needed = index.bytes_grown().max(index.bytes_for(keys) / 4 * 5);
        let needed = needed.max(index.bytes_for_fullest(hashes));
        if needed <= bound || index.fits(hashes) {
            return Ok(());
        }
        Err(Error::store_full(format!(
            "table {:?}: no DRAM for the index of new keys ({} keys here, {needed} bytes needed of \
             {bound}); raise dram, or remove keys",
            table.name(),
            index.len(),
        )))
    }

    /// Adds a row for a key that has none, as of `sequence`; its numbers are for the caller to
    /// write.
    pub(crate) fn insert(
        &mut self,
        tier: &Tier,
        table: &Arc<Table>,
        item: &Item,
        sequence: Sequence,
    ) -> Result<u64> {
        // First the entry's lane: making one may take extents away, a row just taken among them.
        // Making room for the row moves entries, but takes no lane.
        self.part(tier, table);
        let slot = self.vacancy(tier, table.id, item.hash)?;
        let at = self.allocate(tier, table)?;
        let Some(part) = self.parts.get_mut(&table.id) else { return Ok(at) };
        let header = part.pool.header_mut(at);
        (header.key, header.sequence) = (item.key, sequence);
        header.state.make_dirty(None);
        part.index.insert(slot, item.hash, Location::dram(at));
        part.policy.insert(&mut part.pool, at, item.hash);
        Ok(at)
    }

    /// Brings a record into DRAM if the index still says that it is the row.
    pub(crate) fn install(
        &mut self,
        tier: &Tier,
        table: &Arc<Table>,
        item: &Item,
        place: Place,
        record: &RecordView<'_>,
    ) -> Result<Option<u64>> {
        // No part: the table was dropped while the record was read.
        let part = self.parts.get(&table.id);
        if part.is_none_or(|part| part.slot(item.hash, Location::nvme(place)).is_none()) {
            return Ok(None);
        }
        let at = self.allocate(tier, table)?;
        let Some(part) = self.parts.get_mut(&table.id) else { return Ok(None) };
        let (header, numbers) = part.pool.row_mut(at);
        (header.key, header.sequence) = (record.key, record.sequence);
        (header.last_seen, header.frequency) = (record.last_seen, record.frequency);
        header.state.make_clean(place);
        numbers.copy_from_slice(record.row);
        part.policy.insert(&mut part.pool, at, item.hash);
        if let Some(slot) = part.slot(item.hash, Location::nvme(place)) {
            part.index.relocate(slot, Location::dram(at));
        }
        Ok(Some(at))
    }

    /// The same for a read that can do without: a log that takes no rows, to which others would
    /// have to leave, because it is full or has failed, is no reason to refuse it.
    pub(crate) fn offer(
        &mut self,
        tier: &Tier,
        table: &Arc<Table>,
        item: &Item,
        place: Place,
        record: &RecordView<'_>,
    ) -> Result<()> {
        match self.install(tier, table, item, place, record) {
            Err(error) if matches!(error.kind, ErrorKind::StoreFull | ErrorKind::Unavailable) => {
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    /// Adds the index entry of a recovered record.
    pub(crate) fn adopt(
        &mut self,
        tier: &Tier,
        table: &Arc<Table>,
        key: u64,
        place: Place,
    ) -> Result<()> {
        let hash = hash(key);
        self.part(tier, table);
        let slot = self.vacancy(tier, table.id, hash)?;
        if let Some(part) = self.parts.get_mut(&table.id) {
            part.index.insert(slot, hash, Location::nvme(place));
        }
        Ok(())
    }

    /// A lane for a new entry; the index grows until there is one.
    fn vacancy(&mut self, tier: &Tier, id: TableId, hash: u64) -> Result<Slot> {
        loop {
            if let Some(slot) = self.parts.get(&id).and_then(|part| part.index.vacancy(hash)) {
                return Ok(slot);
            }
            self.grow_index(tier, id)?;
        }
    }

    /// Rows make room for the index; where there are none left to leave, one growth may pass the
    /// share: `check_room` stops new keys before it adds up.
    fn grow_index(&mut self, tier: &Tier, id: TableId) -> Result<()> {
        loop {
            let Some(part) = self.parts.get(&id) else { return Ok(()) };
            let grown = part.bytes_with(part.index.bytes_grown(), part.pool.bytes());
            let is_capped = grown > part.table.stripe_cap();
            let is_full = self.used() + grown > self.memory.budget() + part.bytes();
            let gave = (is_capped && self.shrink_part(tier, id)?)
                || (is_full && self.shrink_largest(tier)?);
            if !gave {
                break;
            }
        }
        let Self { parts, memory, .. } = self;
        if let Some(part) = parts.get_mut(&id) {
            accounted(memory, part, |part| part.index.grow());
        }
        self.watch_when_short(id);
        Ok(())
    }

    /// A free row of the table's pool, by a new extent, or by evicting.
    fn allocate(&mut self, tier: &Tier, table: &Arc<Table>) -> Result<u64> {
        loop {
            let (budget, used) = (self.memory.budget(), self.used());
            let part = self.part(tier, table);
            if let Some(at) = part.pool.take() {
                return Ok(at);
            }
            let pool = part.pool.bytes() + part.pool.extent_bytes();
            let grown = part.bytes_with(part.index.bytes(), pool);
            let has_room =
                used + grown <= budget + part.bytes() && grown <= part.table.stripe_cap();
            let is_first = part.pool.capacity() == 0;
            // Others make room for the first rows of a table; where none can, they pass the share.
            if is_first && !has_room && self.shrink_largest(tier)? {
                continue;
            }
            if (has_room || is_first) && self.grow_pool(table.id) {
                continue;
            }
            self.make_room(tier, table)?;
        }
    }

    fn grow_pool(&mut self, id: TableId) -> bool {
        let Self { parts, memory, .. } = self;
        let grow = |part: &mut Part| accounted(memory, part, |part| part.pool.grow());
        let has_grown = parts.get_mut(&id).is_some_and(grow);
        self.watch_when_short(id);
        has_grown
    }

    /// Heat is kept when three quarters of the stripe's share are in use, or of the table's cap.
    fn watch_when_short(&mut self, id: TableId) {
        if self.used() >= self.memory.budget() / 4 * 3 {
            self.parts.values_mut().for_each(|part| part.policy.watch());
        }
        let Some(part) = self.parts.get_mut(&id) else { return };
        if part.bytes() >= part.table.stripe_cap() / 4 * 3 {
            part.policy.watch();
        }
    }

    /// Evicts some rows of the table, or takes an extent from a table that holds far more.
    fn make_room(&mut self, tier: &Tier, table: &Arc<Table>) -> Result<()> {
        let own = self.part(tier, table).pool.bytes();
        let capped = self.part(tier, table).bytes() * 2 > table.stripe_cap();
        let largest = self.parts.values().map(|part| part.pool.bytes()).max().unwrap_or(0);
        if !capped && largest > own * 4 && self.shrink_largest(tier)? {
            return Ok(());
        }
        let part = self.part(tier, table);
        let n = (part.pool.capacity() / 64).clamp(1, 64);
        if self.evict(tier, table.id, n)? == 0 && !self.shrink_largest(tier)? {
            return Err(Error::store_full(format!(
                "table {:?}: no DRAM for a row of {} bytes; raise dram",
                table.name(),
                4 * table.floats
            )));
        }
        Ok(())
    }

    /// Moves up to `n` of the coldest rows out of DRAM. Returns how many left.
    fn evict(&mut self, tier: &Tier, id: TableId, n: usize) -> Result<usize> {
        let Some(part) = self.parts.get_mut(&id) else { return Ok(0) };
        let victims = part.policy.victims(&mut part.pool, n);
        victims.iter().try_for_each(|&at| evict_row(tier, part, at))?;
        Ok(victims.len())
    }

    /// Takes the last extent of the largest pool away. False if no pool can give one.
    fn shrink_largest(&mut self, tier: &Tier) -> Result<bool> {
        let Self { parts, memory, .. } = self;
        let can_give = |part: &&mut Part| part.pool.bytes() > part.pool.extent_bytes();
        let largest = parts.values_mut().filter(can_give).max_by_key(|part| part.pool.bytes());
        largest.map_or(Ok(false), |part| accounted(memory, part, |part| shrink(tier, part)))
    }

    fn shrink_part(&mut self, tier: &Tier, id: TableId) -> Result<bool> {
        let Self { parts, memory, .. } = self;
        let part = parts.get_mut(&id);
        part.map_or(Ok(false), |part| accounted(memory, part, |part| shrink(tier, part)))
    }

    /// Evicts until the table is within its own cap again. Returns the bytes that are still above
    /// it: of an index, and of the one extent that a pool keeps.
    pub(crate) fn enforce_cap(&mut self, tier: &Tier, id: TableId) -> Result<u64> {
        let over = |part: &Part| part.bytes().saturating_sub(part.table.stripe_cap());
        loop {
            let over = self.parts.get(&id).map_or(0, over);
            if over == 0 || !self.shrink_part(tier, id)? {
                return Ok(over);
            }
        }
    }

    /// Removes a row: from DRAM, or the record at `place` that was verified to be the key's.
    pub(crate) fn remove(
        &mut self,
        tier: &Tier,
        id: TableId,
        item: &Item,
        location: Location,
        sequence: Sequence,
    ) -> Result<bool> {
        let Some(part) = self.parts.get_mut(&id) else { return Ok(false) };
        let Some(slot) = part.slot(item.hash, location) else { return Ok(false) };
        let place = match location.resolve() {
            Err(place) => Some(place),
            Ok(at) => part.pool.header(at).state.place(),
        };
        if let Some(place) = place {
            tier.log.append_tombstone(Stream::Rows, id, item.key, sequence)?;
            tier.log.release(place, part.table.floats);
        }
        if let Ok(at) = location.resolve() {
            part.pool.give(at);
        }
        part.index.remove(slot);
        Ok(true)
    }

    /// Writes a row that is in DRAM anew, if its record is the one at `place`, which is damaged.
    pub(crate) fn rewrite(
        &mut self,
        tier: &Tier,
        id: TableId,
        item: &Item,
        place: Place,
    ) -> Result<()> {
        let Some(part) = self.parts.get_mut(&id) else { return Ok(()) };
        match part.find(item, |_| true) {
            Found::Dram(at) if part.pool.header(at).state.place() == Some(place) => {
                write_row(tier, Stream::Compaction, &part.table, &mut part.pool, at)
            }
            _ => Ok(()),
        }
    }

    /// Rows in DRAM.
    pub(crate) fn rows(&self) -> usize {
        self.parts.values().map(|part| part.pool.len()).sum()
    }

    /// Writes rows back that need a journal file up to `generation` (dirty rows for `None`),
    /// keeping them in DRAM: `rows_max` at most. True when none is left.
    pub(crate) fn write_back(
        &mut self,
        tier: &Tier,
        generation: Option<u32>,
        rows_max: usize,
    ) -> Result<bool> {
        let mut left = rows_max;
        for part in self.parts.values_mut() {
            for n in 0..part.pool.capacity() {
                let at = part.pool.nth(n);
                let state = part.pool.header(at).state;
                let is_due = generation.is_none_or(|bound| state.needs_journal(bound));
                if state.is_live() && state.is_dirty() && is_due {
                    if left == 0 {
                        return Ok(false);
                    }
                    write_row(tier, Stream::Rows, &part.table, &mut part.pool, at)?;
                    left -= 1;
                }
            }
        }
        Ok(true)
    }
}

/// Takes a part's last extent away. False if it is the only one.
fn shrink(tier: &Tier, part: &mut Part) -> Result<bool> {
    if part.pool.bytes() <= part.pool.extent_bytes() {
        return Ok(false);
    }
    let rows: Vec<u64> = part.pool.last_extent().collect();
    for &at in &rows {
        if part.pool.header(at).state.is_live() {
            evict_row(tier, part, at)?;
        }
    }
    part.policy.forget(|at| rows.binary_search(&at).is_ok());
    part.era += 1;
    part.pool.shrink();
    Ok(true)
}

/// Does `work` on a part and keeps the stripe's account of its bytes.
#[inline(always)]
fn accounted<T>(memory: &mut Share, part: &mut Part, work: impl FnOnce(&mut Part) -> T) -> T {
    let before = part.held();
    let result = work(part);
    memory.change(&before, &part.held());
    result
}

/// The row at `at` leaves DRAM; its entry points at NVMe.
fn evict_row(tier: &Tier, part: &mut Part, at: u64) -> Result<()> {
    if part.pool.header(at).state.is_dirty() {
        write_row(tier, Stream::Rows, &part.table, &mut part.pool, at)?;
    }
    let header = *part.pool.header(at);
    let hash = hash(header.key);
    let slot = part.slot(hash, Location::dram(at));
    if let (Some(slot), Some(place)) = (slot, header.state.place()) {
        part.index.relocate(slot, Location::nvme(place));
    }
    part.policy.remember(hash, header.state.heat(), part.pool.capacity());
    part.pool.give(at);
    part.table.counters.evictions.fetch_add(1, Relaxed);
    Ok(())
}

/// Appends a dirty row to the log and marks it clean.
fn write_row(tier: &Tier, stream: Stream, table: &Table, pool: &mut Pool, at: u64) -> Result<()> {
    let (header, numbers) = pool.row_mut(at);
    let record = Record {
        key: header.key,
        sequence: header.sequence,
        last_seen: header.last_seen,
        frequency: header.frequency,
        row: numbers,
    };
    let place = tier.log.append(stream, table.id, &record)?;
    if let Some(old) = header.state.place() {
        tier.log.release(old, table.floats);
    }
    header.state.make_clean(place);
    Counters::add(&table.counters.device_bytes_written, pool.row_bytes());
    Ok(())
}
