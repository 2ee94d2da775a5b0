//! What changed since the moment of a parent: found where rows are, as `changes` finds it, and rows
//! of which only the counts are new as well.
//!
//! A row that changed is dirty in DRAM, or was written to the log since; DRAM is looked at first.
//! The entries of what was written name more: copies of compaction, rows that were dirty before.
//! Those are read too, and passed over if neither their sequence nor their last use is new.

use std::collections::HashSet;

use super::copy::{slice_of, At, Copier};
use crate::columns::{Columns, GROUP};
use crate::error::Result;
use crate::log::Newer;
use crate::table::{Look, Since};
use crate::types::{hash, Sequence};

/// Dirty rows that are looked at under one lock.
const ROWS_A_LOCK: u64 = 1024;

/// What may have changed of one group.
#[derive(Default)]
struct Found {
    /// Rows; named once.
    rows: Vec<(u64, Sequence)>,
    removed: Vec<u64>,
}

impl Copier<'_> {
    /// Rows and removals of a group since the parent. In slices, if they are more than memory is
    /// for.
    pub(super) fn copy_changes(&mut self, at: At, since: Since) -> Result<()> {
        let (mut slice, mut slices) = (0, 1);
        while slice < slices {
            let Some(found) = self.find(at, since, (slice, slices))? else {
                // What is done is the same part of them: no key is named twice.
                (slice, slices) = (2 * slice, 2 * slices);
                continue;
            };
            self.tell(at, found)?;
            slice += 1;
        }
        Ok(())
    }

    /// `None` if there are too many.
    fn find(
        &mut self,
        at: At,
        since: Since,
        (slice, slices): (usize, usize),
    ) -> Result<Option<Found>> {
        let (engine, as_of) = (self.engine, self.moment.sequence);
        let (id, buckets) = (self.saved(at).table.id, Self::buckets(at));
        let is_own = |key: u64| slice_of(hash(key), slices) == slice;
        let mut rows: HashSet<u64> = HashSet::new();
        let mut removed: HashSet<u64> = HashSet::new();
        let stripe = &engine.stripes[(at.group * GROUP / engine.tier.buckets_per_stripe) as usize];
        let mut look = Look::default();
        loop {
            let mut dirty = Vec::new();
            let is_done =
                stripe.lock().newer_rows(id, &buckets, 0, ROWS_A_LOCK, &mut look, &mut dirty);
            rows.extend(dirty.into_iter().map(|row| row.0).filter(|&key| is_own(key)));
            if rows.len() > self.places_max {
                return Ok(None);
            }
            if is_done {
                break;
            }
        }
        let log = &engine.tier.log;
        let pin = log.pin();
        let newer = Newer { table: id, buckets, since: 0 };
        for segment in log.newer_segments(&pin, 0)? {
            if segment.incarnation < self.moment.parent_incarnation {
                continue;
            }
            log.newer_entries(&pin, segment, &newer, &mut |entry| {
                let is_removal = entry.sequence > since.sequence && entry.sequence <= as_of;
                if !is_own(entry.key) || rows.len() + removed.len() > self.places_max {
                } else if !entry.tombstone {
                    rows.insert(entry.key);
                } else if is_removal {
                    removed.insert(entry.key);
                }
            })?;
            if rows.len() + removed.len() > self.places_max {
                return Ok(None);
            }
        }
        let mut found = Found { removed: removed.into_iter().collect(), ..Found::default() };
        found.rows = rows.into_iter().map(|key| (key, 0)).collect();
        found.removed.sort_unstable();
        found.rows.sort_unstable();
        Ok(Some(found))
    }

    fn tell(&mut self, at: At, found: Found) -> Result<()> {
        let saved = self.saved(at);
        let mut rows = Columns::default();
        let engine = self.engine;
        let floats = saved.table.floats;
        let taken = saved.taken;
        // A piece is told without a lock: what is full is written at once.
        engine.tell_keys(&saved.table, &found.rows, &mut |piece| {
            for (n, &key) in piece.keys.iter().enumerate() {
                let statistics = (piece.last_seen[n], piece.frequency[n]);
                if taken.takes(piece.sequences[n], statistics.0) {
                    rows.push(key, statistics, &piece.rows[n * floats..(n + 1) * floats]);
                }
            }
            self.write_full(at, &mut rows)
        })?;
        self.write(at, crate::checkpoint::BundleKind::Copied, &rows)?;
        self.write_removed(at, &found.removed)
    }
}
