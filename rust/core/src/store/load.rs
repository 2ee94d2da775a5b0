//! The index, built from the footers of all segments: of each key the newest record counts.
//!
//! Footers are read in large reads, each once if memory allows for all of their entries at a time,
//! else once for each of a few ranges of stripes. Threads take segments, then stripes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use parking_lot::Mutex;

use super::engine::Engine;
use crate::error::{Error, Result};
use crate::ledger::Kind;
use crate::log::{FooterEntry, SegmentId};
use crate::table::{stripe_of, Table};
use crate::types::{hash, Sequence, TableId};

/// Share of the memory for rows that entries may take: no row is there yet.
const SHARE: f64 = 0.5;
const BYTES_MIN: u64 = 1 << 20;
const BYTES_MAX: u64 = 1 << 30;
/// Each waits for the device in turn.
const THREADS_MAX: usize = 4;

/// An entry, and the rank of its segment: of two records the one written later.
pub(super) struct Dated {
    pub(super) entry: FooterEntry,
    pub(super) segment: u32,
}

/// The records of each key, the one that counts last. Sorts them by table.
pub(super) fn by_key(entries: &mut [Dated]) -> impl Iterator<Item = &[Dated]> {
    entries.sort_unstable_by_key(|e| (e.entry.table, e.entry.key, e.age()));
    entries.chunk_by(|a, b| (a.entry.table, a.entry.key) == (b.entry.table, b.entry.key))
}

impl Dated {
    /// Greater for the record that counts. Of equal sequences a row rather than a tombstone: it is
    /// as of the removal, and came after it, whatever place compaction gave the mark.
    fn age(&self) -> (Sequence, bool, u32, u64) {
        (self.entry.sequence, !self.entry.tombstone, self.segment, self.entry.place.bits())
    }
}

impl Engine {
    /// Fills the index. Returns the highest sequence seen.
    pub(super) fn load_index(&self) -> Result<Sequence> {
        let segments = self.tier.log.segments()?;
        let entries: u64 = segments.iter().map(|segment| u64::from(segment.1)).sum();
        let bytes = (self.ledger.rows_max() as f64 * SHARE) as u64;
        let bytes = bytes.clamp(BYTES_MIN, BYTES_MAX);
        #[cfg(test)]
        let bytes = tests::BYTES.get().unwrap_or(bytes);
        let all = entries * size_of::<Dated>() as u64;
        let _held = self.ledger.hold(Kind::Calls, bytes.min(all));
        let passes = all.div_ceil(bytes).clamp(1, self.stripes.len() as u64) as usize;
        let step = self.stripes.len().div_ceil(passes);
        let mut newest = 0;
        for first in (0..self.stripes.len()).step_by(step) {
            let stripes = first..(first + step).min(self.stripes.len());
            newest = newest.max(self.load_stripes(&segments, stripes)?);
        }
        Ok(newest)
    }

    fn load_stripes(
        &self,
        segments: &[(SegmentId, u32)],
        stripes: Range<usize>,
    ) -> Result<Sequence> {
        let lists = self.read_footers(segments, &stripes)?;
        let (next, newest) = (AtomicUsize::new(0), Mutex::new(0));
        side_by_side(stripes.len(), || loop {
            let n = next.fetch_add(1, Relaxed);
            if n >= stripes.len() {
                return Ok(());
            }
            let mut entries = std::mem::take(&mut *lists[n].lock());
            let last = self.load_stripe(stripes.start + n, &mut entries)?;
            let mut newest = newest.lock();
            *newest = last.max(*newest);
        })?;
        Ok(newest.into_inner())
    }

    /// The entries of each of `stripes`, in any order.
    fn read_footers(
        &self,
        segments: &[(SegmentId, u32)],
        stripes: &Range<usize>,
    ) -> Result<Vec<Mutex<Vec<Dated>>>> {
        let per_stripe = self.tier.buckets_per_stripe;
        let buckets = stripes.start as u32 * per_stripe..stripes.end as u32 * per_stripe;
        // Lists that grew by doubling would take twice what was booked.
        let entries: usize = segments.iter().map(|segment| segment.1 as usize).sum();
        let expected = entries / self.stripes.len() / 8 * 9 + 64;
        let list = |_| Mutex::new(Vec::with_capacity(expected));
        let lists: Vec<_> = stripes.clone().map(list).collect();
        let next = AtomicUsize::new(0);
        side_by_side(segments.len(), || {
            let mut own: Vec<Vec<Dated>> = stripes.clone().map(|_| Vec::new()).collect();
            loop {
                let rank = next.fetch_add(1, Relaxed);
                let Some(&(segment, _)) = segments.get(rank) else { return Ok(()) };
                self.tier.log.entries_of(segment, buckets.clone(), &mut |entry| {
                    let stripe = stripe_of(hash(entry.key), self.stripes.len());
                    own[stripe - stripes.start].push(Dated { entry, segment: rank as u32 });
                })?;
                for (list, own) in lists.iter().zip(&mut own) {
                    list.lock().append(own);
                }
            }
        })?;
        Ok(lists)
    }

    /// Adopts what counts of one stripe's entries. Returns their highest sequence.
    fn load_stripe(&self, stripe: usize, entries: &mut [Dated]) -> Result<Sequence> {
        let tables: HashMap<TableId, Arc<Table>> = self.catalog.read().by_id.clone();
        let newest = entries.iter().map(|e| e.entry.sequence).max().unwrap_or(0);
        let mut state = self.stripes[stripe].lock();
        state.progress.lift(newest);
        for of_key in by_key(entries) {
            let Some(Dated { entry, .. }) = of_key.last() else { continue };
            let Some(table) = tables.get(&entry.table) else { continue };
            for Dated { entry, .. } in of_key.iter().filter(|e| e.entry.tombstone) {
                self.tier.log.adopt_tombstone(entry.place, entry.table, entry.sequence);
            }
            if !entry.tombstone {
                self.check_length_of(table, entry)?;
                state.adopt(&self.tier, table, entry.key, entry.place)?;
                self.tier.log.adopt(entry.place, table.floats);
                self.charge_records(table, 1);
            }
        }
        Ok(newest)
    }

    /// A row has the length that its table says.
    pub(super) fn check_length_of(&self, table: &Table, entry: &FooterEntry) -> Result<()> {
        if entry.tombstone || entry.row_floats == table.floats {
            return Ok(());
        }
        Err(Error::corruption(format!(
            "{}: a footer says that rows of table {:?} hold {} numbers, the manifest says {}",
            self.config.path.display(),
            table.name(),
            entry.row_floats,
            table.floats
        )))
    }
}

/// Runs `work` on a few threads, this one among them, of no more than there are `shares`; each
/// takes its shares by itself. Ends with the first error of any.
pub(super) fn side_by_side(shares: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    let machine = std::thread::available_parallelism().map_or(1, usize::from);
    // One of two waits for the device while the other computes.
    let threads = (2 * machine).min(THREADS_MAX).min(shares);
    let panicked = |_| Err(Error::unavailable("a thread of the opening panicked"));
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let outcome = work();
        let others = others.into_iter().map(|other| other.join().unwrap_or_else(panicked));
        others.fold(outcome, Result::and)
    })
}

#[cfg(test)]
#[path = "tests/load.rs"]
mod tests;
