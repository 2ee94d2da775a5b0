//! What the lock of a stripe protects: a range of buckets of every table, and its share of the DRAM
//! budget. Rows that must make room leave for the log.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::part::{Found, Held, Part};
use super::plan::Item;
use super::policy::Pulse;
use super::reclaim::Donors;
use super::shape::Table;
use super::share::Share;
use super::turn::Removed;
use super::write_back::{write_row, WriteBack};
use crate::arena::Arena;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{Location, Slot};
use crate::ledger::Ledger;
use crate::log::{Log, RecordView, Stream};
use crate::sequence::Progress;
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
    pub(crate) parts: HashMap<TableId, Box<Part>, BuildHasherDefault<IdHasher>>,
    pub(super) memory: Share,
    /// Drives the heat of all rows.
    pub(super) pulse: Arc<Pulse>,
    pub(super) donors: Donors,
    pub(super) write_back: WriteBack,
    /// The ticket whose turn it is.
    pub(super) serving: u64,
    /// How far it has come in the order.
    pub(crate) progress: Progress,
    /// What the call that is in its turn has removed.
    pub(super) removed: Option<Removed>,
}

impl State {
    /// One of `stripes` equal ones.
    pub(super) fn new(ledger: &Arc<Ledger>, stripes: usize) -> Self {
        Self {
            parts: HashMap::default(),
            memory: Share::new(ledger, stripes),
            pulse: Arc::default(),
            donors: Donors::default(),
            write_back: WriteBack::default(),
            serving: 0,
            progress: Progress::default(),
            removed: None,
        }
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.memory.used()
    }

    /// The part of `table`, made if there is none yet.
    pub(crate) fn part(&mut self, tier: &Tier, table: &Arc<Table>) -> &mut Part {
        if !self.parts.contains_key(&table.id) {
            let mut part = self.new_part(tier, table);
            self.memory.change(&Held::default(), &part.held());
            self.donors.add(table.id);
            if self.donors.is_short() {
                part.policy.watch();
            }
            self.parts.insert(table.id, Box::new(part));
        }
        self.parts.get_mut(&table.id).expect("it was just made")
    }

    fn new_part(&self, tier: &Tier, table: &Arc<Table>) -> Part {
        Part::new(table.clone(), &tier.arena, tier.buckets_per_stripe, self.pulse.clone())
    }

    /// Takes out the part of a table that was dropped. Its memory stays booked until it has been
    /// given back.
    pub(crate) fn take_part(&mut self, id: TableId) -> Option<Box<Part>> {
        self.donors.forget(id);
        self.parts.remove(&id)
    }

    /// What a part held that was taken out has been given back.
    pub(crate) fn give_back(&mut self, held: &Held) {
        self.memory.change(held, &Held::default());
    }

    /// Refuses new keys of these hashes when the index alone would pass the bound.
    pub(crate) fn check_room(&self, tier: &Tier, table: &Arc<Table>, hashes: &[u64]) -> Result<()> {
        if hashes.is_empty() {
            return Ok(());
        }
        let fresh;
        let part = match self.parts.get(&table.id) {
            Some(part) => part,
            None => {
                fresh = self.new_part(tier, table);
                &fresh
            }
        };
        let others = self.memory.fixed_bytes().saturating_sub(part.index.bytes());
        let bound = self.memory.budget().saturating_sub(others).min(table.stripe_cap());
        // Beside the index there must be room for a row, to be changed in.
        let bound = bound.saturating_sub((size_of::<Part>() + part.pool.row_bytes()) as u64);
        if part.index.bytes_at_most(hashes.len()) <= bound {
            return Ok(());
        }
        let needed = part.index.bytes_with(hashes);
        if needed <= bound {
            return Ok(());
        }
        Err(Error::store_full(format!(
            "table {:?}: no DRAM for the index of new keys ({} keys here, {needed} bytes needed of \
             {bound}); raise dram, or remove keys",
            table.name(),
            part.index.len(),
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
        part.pool.mark(at);
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
        let (header, numbers) = part.pool.row_unmarked(at);
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

    /// As `offer`, of a row that nobody has visited yet: it stays until somebody does.
    pub(crate) fn bring(
        &mut self,
        tier: &Tier,
        table: &Arc<Table>,
        item: &Item,
        place: Place,
        record: &RecordView<'_>,
    ) -> Result<()> {
        let at = self.offer(tier, table, item, place, record)?;
        if let (Some(at), Some(part)) = (at, self.parts.get_mut(&table.id)) {
            part.policy.expect(&mut part.pool, at, item.hash);
        }
        Ok(())
    }

    /// As `install`, for a read that can do without: a log that takes no rows now, to which others
    /// would have to leave, because it is busy, full or has failed, is no reason to refuse it.
    pub(crate) fn offer(
        &mut self,
        tier: &Tier,
        table: &Arc<Table>,
        item: &Item,
        place: Place,
        record: &RecordView<'_>,
    ) -> Result<Option<u64>> {
        match self.install(tier, table, item, place, record) {
            Err(Error {
                kind: ErrorKind::StoreFull | ErrorKind::Unavailable | ErrorKind::Busy,
                ..
            }) => Ok(None),
            outcome => outcome,
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

    /// Points the entry of a recovered row at a newer record.
    pub(crate) fn supersede(
        &mut self,
        tier: &Tier,
        id: TableId,
        hash: u64,
        old: Place,
        new: Place,
    ) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        if let Some(slot) = part.slot(hash, Location::nvme(old)) {
            part.index.relocate(slot, Location::nvme(new));
            tier.log.release(old, part.table.floats);
        }
    }

    /// A lane for a new entry; the index grows until there is one.
    pub(super) fn vacancy(&mut self, tier: &Tier, id: TableId, hash: u64) -> Result<Slot> {
        loop {
            if let Some(slot) = self.parts.get(&id).and_then(|part| part.index.vacancy(hash)) {
                return Ok(slot);
            }
            self.grow_index(tier, id, hash, 1)?;
        }
    }

    /// A free row of the table's pool: by growth, or by eviction.
    fn allocate(&mut self, tier: &Tier, table: &Arc<Table>) -> Result<u64> {
        loop {
            if let Some(at) = self.part(tier, table).pool.take() {
                return Ok(at);
            }
            self.make_room(tier, table)?;
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
        let Some(part) = self.parts.get(&id) else { return Ok(false) };
        if part.slot(item.hash, location).is_none() {
            return Ok(false);
        }
        let has_record = part.place_of(location).is_some();
        bury(tier, id, item.key, has_record, sequence)?;
        self.detach(tier, id, item, location);
        self.shrink(id);
        Ok(true)
    }

    /// Takes a row out of index and DRAM: the key is absent from here on. Whoever does so before
    /// the row is buried sees to that behind. `None` if the index names another location; else
    /// whether it had a record. Other rows stay where they are.
    pub(crate) fn detach(
        &mut self,
        tier: &Tier,
        id: TableId,
        item: &Item,
        location: Location,
    ) -> Option<bool> {
        let Self { parts, memory, .. } = self;
        let part = parts.get_mut(&id)?;
        let slot = part.slot(item.hash, location)?;
        let place = part.place_of(location);
        if let Ok(at) = location.resolve() {
            part.keep(at);
        }
        if let Some(place) = place {
            tier.log.release(place, part.table.floats);
        }
        accounted(memory, part, |part| {
            part.index.remove(slot);
            if let Ok(at) = location.resolve() {
                part.policy.redeem(&mut part.pool.header_mut(at).state);
                part.pool.give(at);
            }
        });
        Some(place.is_some())
    }

    /// Gives extents back that the rows of a table do not need any more: others may move.
    pub(crate) fn shrink(&mut self, id: TableId) {
        let Self { parts, memory, .. } = self;
        let Some(part) = parts.get_mut(&id) else { return };
        accounted(memory, part, |part| while part.pool.is_sparse() && part.shrink_pool() {});
    }

    /// Writes a row that is in DRAM anew, as it is now, if its record is the one at `place`.
    /// Returns whether it was.
    pub(crate) fn rewrite(
        &mut self,
        tier: &Tier,
        id: TableId,
        item: &Item,
        place: Place,
    ) -> Result<bool> {
        let Some(part) = self.parts.get_mut(&id) else { return Ok(false) };
        match part.find(item, |_| true) {
            Found::Dram(at) if part.pool.header(at).state.place() == Some(place) => {
                write_row(tier, Stream::Compaction, &part.table, &mut part.pool, at).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Whether the row whose record is at `place` was visited often of late, or is newer than that.
    /// `None` if it is no row's.
    pub(crate) fn is_warm(&self, id: TableId, item: &Item, place: Place) -> Option<bool> {
        let part = self.parts.get(&id)?;
        if part.slot(item.hash, Location::nvme(place)).is_some() {
            return Some(part.policy.is_warm(item.hash));
        }
        let Found::Dram(at) = part.find(item, |_| true) else { return None };
        let state = part.pool.header(at).state;
        let is_warm = state.is_dirty() || part.policy.is_read_often(state);
        (state.place() == Some(place)).then_some(is_warm)
    }

    /// The record at `old` has a copy at `new`, which takes its place if it is still the row's.
    /// False if it is not: the copy is dead.
    pub(crate) fn redirect(&mut self, id: TableId, item: &Item, old: Place, new: Place) -> bool {
        let Some(part) = self.parts.get_mut(&id) else { return false };
        if let Some(slot) = part.slot(item.hash, Location::nvme(old)) {
            part.index.relocate(slot, Location::nvme(new));
            return true;
        }
        match part.find(item, |_| true) {
            Found::Dram(at) if part.pool.header(at).state.place() == Some(old) => {
                part.pool.header_mut(at).state.set_place(new);
                true
            }
            _ => false,
        }
    }

    /// Rows in DRAM.
    pub(crate) fn rows(&self) -> usize {
        self.parts.values().map(|part| part.pool.len()).sum()
    }
}

/// Leaves the mark of a removal in the log: a tombstone for a row that had a record, else a trace,
/// so that whoever follows the changes learns of it.
pub(crate) fn bury(
    tier: &Tier,
    id: TableId,
    key: u64,
    has_record: bool,
    sequence: Sequence,
) -> Result<()> {
    if has_record {
        tier.log.try_append_tombstone(Stream::Rows, id, key, sequence).map(drop)
    } else {
        tier.log.try_append_trace(id, key, sequence).map(drop)
    }
}

/// Does `work` on a part and keeps the stripe's account of its bytes.
#[inline(always)]
pub(super) fn accounted<T>(
    memory: &mut Share,
    part: &mut Part,
    work: impl FnOnce(&mut Part) -> T,
) -> T {
    let before = part.held();
    let result = work(part);
    memory.change(&before, &part.held());
    result
}
