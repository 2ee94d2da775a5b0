//! A bucket of the index on its way to an image, and back.

use std::sync::Arc;

use super::part::Part;
use super::shape::Table;
use super::stripe::{accounted, State, Tier};
use crate::error::Result;
use crate::index::{Entry, Location};
use crate::log::Log;
use crate::types::TableId;

impl State {
    /// The entries of a bucket, table by table: of all rows that have a record in a segment up to
    /// `end`. Rows in DRAM have the place of their record, older or not.
    pub(crate) fn entries_of(
        &self,
        log: &Log,
        bucket: u32,
        end: u64,
    ) -> Vec<(Arc<Table>, Vec<Entry>)> {
        let mut runs: Vec<_> = self
            .parts
            .values()
            .map(|part| (part.table.clone(), part.entries_of(log, bucket, end)))
            .filter(|(_, entries)| !entries.is_empty())
            .collect();
        runs.sort_unstable_by_key(|(table, _)| table.id);
        runs
    }

    /// Sets memory aside for what is still to be loaded of the index: rows do not take it.
    pub(crate) fn await_index(&mut self, bytes: u64) {
        self.memory.await_index(bytes);
    }

    /// So much of it is adopted next.
    pub(crate) fn index_arrives(&mut self, bytes: u64) {
        self.memory.index_arrives(bytes);
    }

    /// Takes the entries of a bucket of `table` over, which has none yet.
    ///
    /// # Errors
    /// `StoreFull` when no DRAM is left for them, and the log has no room for rows that would have
    /// to leave; nothing has changed then.
    pub(crate) fn adopt_entries(
        &mut self,
        tier: &Tier,
        table: &Arc<Table>,
        bucket: u32,
        entries: &[Entry],
    ) -> Result<()> {
        self.part(tier, table);
        let Some(first) = entries.first() else { return Ok(()) };
        let hash = first.hash_in(bucket);
        while !self.parts[&table.id].index.has_room(hash, entries.len()) {
            self.grow_index(tier, table.id, hash, entries.len())?;
        }
        let Some(part) = self.parts.get_mut(&table.id) else { return Ok(()) };
        for entry in entries {
            let hash = entry.hash_in(bucket);
            let Some(slot) = part.index.vacancy(hash) else { unreachable!("room was made") };
            part.index.insert(slot, hash, Location::nvme(entry.place()));
        }
        Ok(())
    }

    /// Takes back what was adopted.
    pub(crate) fn forget_entries(&mut self, table: TableId, bucket: u32, entries: &[Entry]) {
        let Self { parts, memory, .. } = self;
        let Some(part) = parts.get_mut(&table) else { return };
        accounted(memory, part, |part| {
            for entry in entries {
                let location = Location::nvme(entry.place());
                if let Some(slot) = part.slot(entry.hash_in(bucket), location) {
                    part.index.remove(slot);
                }
            }
        });
    }
}

impl Part {
    fn entries_of(&self, log: &Log, bucket: u32, end: u64) -> Vec<Entry> {
        let entry = |(hash, location): (u64, Location)| {
            let place = match location.resolve() {
                Ok(at) => self.pool.header(at).state.place(),
                Err(place) => Some(place),
            }?;
            (log.incarnation(place) <= end).then(|| Entry::new(hash, place))
        };
        self.index.bucket_entries(bucket).filter_map(entry).collect()
    }
}
