//! Rows as they were at the moment of a checkpoint, of which copies are made while calls go on.
//!
//! From the moment on, whoever is about to change a row that was not copied yet leaves what it was
//! here first. So the checkpoint has every row as of one moment: from here if it was changed
//! meanwhile, from where it lies if not. A row whose sequence is later was kept, or is new.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use super::part::Part;
use super::plan::Item;
use super::row::Header;
use super::shape::Table;
use super::stripe::State;
use crate::columns::{Columns, GROUP};
use crate::index::Location;
use crate::log::RecordView;
use crate::types::{bucket, hash, Place, Sequence, TableId};

/// Which rows of a table a checkpoint takes: those that were there at its moment, and of these, if
/// it is a delta, those that may have changed since the moment of its parent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// All changes up to here, and no later one.
    pub(crate) as_of: Sequence,
    pub(crate) since: Option<Since>,
}

/// The moment of a parent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Since {
    /// Rows and removals above this one are new.
    pub(crate) sequence: Sequence,
    /// Counts alone give no sequence: rows that were read after this second are new, too.
    pub(crate) seconds: u32,
}

impl Taken {
    pub(crate) fn takes(&self, sequence: Sequence, last_seen: u32) -> bool {
        let is_new = |since: Since| sequence > since.sequence || last_seen > since.seconds;
        sequence <= self.as_of && self.since.is_none_or(is_new)
    }
}

/// Of one part: what was changed before it was copied.
pub(crate) struct Keeper {
    as_of: Sequence,
    /// First bucket of the stripe.
    start: u32,
    /// By group of buckets; `None` once that is copied.
    groups: Vec<Option<Kept>>,
    /// Bytes that all keepers of a checkpoint hold.
    account: Arc<AtomicU64>,
    /// A row that could not be read was removed or begun anew.
    has_lost: bool,
}

/// Rows of one group.
#[derive(Default)]
struct Kept {
    rows: Columns,
    /// Of those in `rows`: a row that is counted again stays as it was the first time.
    keys: HashSet<u64>,
}

impl Keeper {
    pub(crate) fn new(as_of: Sequence, buckets: &Range<u32>, account: &Arc<AtomicU64>) -> Self {
        let groups = buckets.len().div_ceil(GROUP as usize);
        Self {
            as_of,
            start: buckets.start,
            groups: (0..groups).map(|_| Some(Kept::default())).collect(),
            account: account.clone(),
            has_lost: false,
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn keep(&mut self, header: &Header, numbers: &[f32]) {
        let Header { key, sequence, last_seen, frequency, .. } = *header;
        self.keep_row(key, sequence, (last_seen, frequency), numbers);
    }

    fn keep_row(&mut self, key: u64, sequence: Sequence, statistics: (u32, u32), numbers: &[f32]) {
        // A delta too: once a row was counted again, what the parent has of it could not be told
        // from what is new.
        if sequence > self.as_of {
            return;
        }
        let group = (bucket(hash(key)) - self.start) / GROUP;
        let Some(kept) = &mut self.groups[group as usize] else { return };
        if kept.keys.insert(key) {
            kept.rows.push(key, statistics, numbers);
            self.account.fetch_add(kept_bytes(numbers.len()), Relaxed);
        }
    }

    /// Takes out what was kept of a group; `is_last`: it is copied now, nothing more is kept of it.
    fn take(&mut self, group: usize, is_last: bool) -> Columns {
        let Some(kept) = &mut self.groups[group] else { return Columns::default() };
        let rows = std::mem::take(kept).rows;
        if is_last {
            self.groups[group] = None;
        }
        self.give_back(&rows);
        rows
    }

    fn give_back(&self, rows: &Columns) {
        if let Some(floats) = rows.numbers.len().checked_div(rows.len()) {
            self.account.fetch_sub(rows.len() as u64 * kept_bytes(floats), Relaxed);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        for kept in self.groups.iter().flatten() {
            self.give_back(&kept.rows);
        }
    }
}

/// A row, and its key among those that are known.
fn kept_bytes(floats: usize) -> u64 {
    (Columns::row_bytes(floats) + 2 * size_of::<u64>()) as u64
}

impl State {
    /// From now on rows of `table` are kept before they are changed. Returns how many it has.
    pub(crate) fn begin_keeping(
        &mut self,
        table: TableId,
        as_of: Sequence,
        buckets: &Range<u32>,
        account: &Arc<AtomicU64>,
    ) -> u64 {
        let Some(part) = self.parts.get_mut(&table) else { return 0 };
        part.keeper = Some(Box::new(Keeper::new(as_of, buckets, account)));
        part.index.len() as u64
    }

    /// Whether a checkpoint has rows of `table` kept before they are changed.
    pub(crate) fn is_keeping(&self, table: TableId) -> bool {
        self.parts.get(&table).is_some_and(|part| part.keeper.is_some())
    }

    /// No rows are kept any more.
    pub(crate) fn end_keeping(&mut self) {
        self.parts.values_mut().for_each(|part| part.keeper = None);
    }

    /// Takes out what was kept of a group of the stripe's buckets.
    pub(crate) fn take_kept(&mut self, table: TableId, group: usize, is_last: bool) -> Columns {
        let keeper = self.parts.get_mut(&table).and_then(|part| part.keeper.as_mut());
        keeper.map_or_else(Columns::default, |keeper| keeper.take(group, is_last))
    }

    /// Whether a row whose record was damaged was given up since the moment.
    pub(crate) fn has_lost_kept(&self, table: TableId) -> bool {
        let keeper = self.parts.get(&table).and_then(|part| part.keeper.as_ref());
        keeper.is_some_and(|keeper| keeper.has_lost)
    }

    /// The row of this record is about to be removed, if the record at `place` is still the row.
    pub(crate) fn keep_record(
        &mut self,
        table: &Table,
        item: &Item,
        place: Place,
        record: &RecordView<'_>,
    ) {
        let Some(part) = self.parts.get_mut(&table.id) else { return };
        let is_the_row = |part: &Part| part.slot(item.hash, Location::nvme(place)).is_some();
        if part.keeper.is_none() || !is_the_row(part) {
            return;
        }
        if let Some(keeper) = &mut part.keeper {
            let statistics = (record.last_seen, record.frequency);
            keeper.keep_row(record.key, record.sequence, statistics, record.row);
        }
    }

    /// A row whose record is damaged is about to be removed or begun anew.
    pub(crate) fn keep_nothing(&mut self, table: &Table) {
        let keeper = self.parts.get_mut(&table.id).and_then(|part| part.keeper.as_mut());
        if let Some(keeper) = keeper {
            keeper.has_lost = true;
        }
    }
}
