//! Which keys of some buckets are newer than a sequence.
//!
//! A row that is newer is dirty in DRAM, where marks find it, or it has a record that is as new, in
//! a segment whose newest sequence is above the one that is asked for. DRAM is looked at first,
//! then the segments that there are by then: a row that leaves DRAM in between is found in one of
//! them. Removals are found as tombstones in the same segments.

use std::ops::Range;

use super::Following;
use crate::error::Result;
use crate::index::{cell, Location, CELLS_A_BUCKET};
use crate::journal::{Entry, Frame};
use crate::log::Newer;
use crate::store::engine::Engine;
use crate::store::order::Sequencer;
use crate::table::{Look, Tickets};
use crate::types::{Place, Push, Sequence};

/// Dirty rows that are looked at under one lock: a tenth of a millisecond.
const ROWS_A_LOCK: u64 = 1024;

/// What is newer. Keys may be named more than once until they are sorted out.
#[derive(Default)]
pub(super) struct Newest {
    /// Everything that is newer than what was asked for and not newer than this was found.
    pub(super) up_to: Sequence,
    pub(super) removed: Vec<u64>,
    /// Keys with their newest sequence.
    pub(super) rows: Vec<(u64, Sequence)>,
}

pub(super) enum Found {
    All(Newest),
    /// More than there is memory for.
    TooMany,
    /// The stripe has not come that far.
    Ahead,
}

/// All rows of some cells of a bucket, as the index names them at one moment.
pub(super) struct Listing {
    pub(super) bucket: u32,
    /// Of rows in DRAM.
    pub(super) rows: Vec<(u64, Sequence)>,
    /// Of records, when this was the greatest incarnation given out.
    pub(super) places: Vec<Place>,
    pub(super) newest: u64,
}

impl Following<'_> {
    /// What is newer than `since` in buckets of one stripe, of at most `most` keys.
    pub(super) fn find(
        &mut self,
        buckets: Range<u32>,
        since: Sequence,
        most: usize,
    ) -> Result<Found> {
        let stripe = (buckets.start / self.engine.tier.buckets_per_stripe) as usize;
        let up_to = self.engine.advance(stripe)?;
        if since > up_to {
            return Ok(Found::Ahead);
        }
        let mut newest = Newest { up_to, ..Newest::default() };
        let mut look = Look::default();
        loop {
            let state = self.engine.stripes[stripe].lock();
            let (id, rows) = (self.table.id, &mut newest.rows);
            let is_done = state.newer_rows(id, &buckets, since, ROWS_A_LOCK, &mut look, rows);
            drop(state);
            if newest.rows.len() > most {
                return Ok(Found::TooMany);
            }
            if is_done {
                break;
            }
        }
        self.cost.rows += look.rows;
        let newer = Newer { table: self.table.id, buckets, since };
        if !self.find_records(&newer, &mut newest, most)? {
            return Ok(Found::TooMany);
        }
        newest.removed.sort_unstable();
        newest.removed.dedup();
        // Of a key that is named twice the greater sequence stays.
        newest.rows.sort_unstable_by(|a, b| (a.0, b.1).cmp(&(b.0, a.1)));
        newest.rows.dedup_by_key(|row| row.0);
        Ok(Found::All(newest))
    }

    /// False if there are more than `most`.
    fn find_records(&mut self, newer: &Newer, newest: &mut Newest, most: usize) -> Result<bool> {
        let log = &self.engine.tier.log;
        let pin = log.pin();
        for segment in log.newer_segments(&pin, newer.since)? {
            self.cost.segments += 1;
            self.cost.entries += log.newer_entries(&pin, segment, newer, &mut |entry| {
                if newest.rows.len() + newest.removed.len() > most {
                    return;
                }
                match entry.tombstone {
                    true => newest.removed.push(entry.key),
                    false => newest.rows.push((entry.key, entry.sequence)),
                }
            })?;
            if newest.rows.len() + newest.removed.len() > most {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How many rows cells of one bucket have now.
    pub(super) fn count(&self, cells: &Range<u64>) -> usize {
        let bucket = (cells.start / CELLS_A_BUCKET) as u32;
        let stripe = bucket / self.engine.tier.buckets_per_stripe;
        let state = self.engine.stripes[stripe as usize].lock();
        state.parts.get(&self.table.id).map_or(0, |part| {
            let entries = part.index.bucket_entries(bucket);
            entries.filter(|(hash, _)| cells.contains(&cell(*hash))).count()
        })
    }

    /// Lists cells of one bucket; `None` if they have more than `most` rows. The stripe has
    /// advanced before.
    pub(super) fn list(&self, cells: &Range<u64>, most: usize) -> Option<Listing> {
        let bucket = (cells.start / CELLS_A_BUCKET) as u32;
        let stripe = (bucket / self.engine.tier.buckets_per_stripe) as usize;
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        let state = self.engine.stripes[stripe].lock();
        if let Some(part) = state.parts.get(&self.table.id) {
            let entries = part.index.bucket_entries(bucket);
            let own = entries.filter(|(hash, _)| cells.contains(&cell(*hash)));
            let locations = own.map(|(_, location)| location);
            for location in locations.take(most + 1).collect::<Vec<Location>>() {
                match location.resolve() {
                    Ok(at) => {
                        let header = part.pool.header(at);
                        rows.push((header.key, header.sequence));
                    }
                    Err(place) => places.push(place),
                }
            }
        }
        // Under the lock: whatever moves later is in a later segment.
        let newest = self.engine.tier.log.begun_segments();
        drop(state);
        places.sort_unstable();
        let is_whole = rows.len() + places.len() <= most;
        is_whole.then_some(Listing { bucket, rows, places, newest })
    }
}

impl Engine {
    /// Lets the stripe come as far as the calls that are ordered by now. Returns up to where its
    /// changes have been made: later ones are above.
    pub(super) fn advance(&self, stripe: usize) -> Result<Sequence> {
        let own = &self.stripes[stripe];
        if own.lock().progress.is_crowded() {
            self.pass(stripe)?;
        }
        let (ticket, last) = {
            let sequencer = self.sequencer.lock();
            (sequencer.tickets[stripe], sequencer.last)
        };
        own.wait_served(ticket);
        let mut state = own.lock();
        state.progress.lift(last);
        Ok(state.progress.spoken_for())
    }

    /// Sends a call that changes nothing through the stripe: what reads make then has fresh
    /// numbers.
    fn pass(&self, stripe: usize) -> Result<()> {
        let mut sequencer = self.sequencer.lock();
        let sequence = self.order_nothing(&mut sequencer)?;
        sequencer.tickets[stripe] += 1;
        let drawn = vec![(stripe, sequencer.tickets[stripe] - 1)];
        drop(sequencer);
        // It takes its turn, and that is all.
        drop(Tickets::new(&self.stripes, sequence, drawn));
        Ok(())
    }

    /// Gives a place in the order to a call that changes nothing.
    pub(super) fn order_nothing(&self, sequencer: &mut Sequencer) -> Result<Sequence> {
        // Nobody's session, no number to remember, and of whichever table: it names no key.
        let push = Push { session: 0, number: 0, step: None };
        let frame = || Frame::new(&Entry::Remove { push, table: 0, keys: &[] });
        // After a crash cursors up to here must still be known.
        let frame = self.is_journaled().then(frame).transpose()?;
        self.order_entry(sequencer, frame)
    }
}
