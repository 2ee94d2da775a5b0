//! The walk over a table, bucket by bucket: every row is judged where it lies. Rows on NVMe are
//! read past the cache, in the order of their places, and do not move.
//!
//! A stripe is locked while the entries of one bucket are listed, and while some hundred rows are
//! looked at; no lock is held while the device is read. Rows that move meanwhile are found when the
//! bucket is listed again.

use super::removal::Removal;
use crate::error::Result;
use crate::expiry::Judgement;
use crate::ledger::Kind;
use crate::log::{Read, RecordView};
use crate::store::engine::Engine;
use crate::store::fetch::count_reads;
use crate::table::Table;
use crate::types::{bucket, hash, Place};

/// Rows that are looked at, or removed, under one lock.
const ROWS_A_LOCK: usize = 512;
/// Bytes of records that are read at a time.
const READ_BYTES: usize = 256 << 10;
/// How often a bucket is listed while its rows move: then the next walk will find them.
const LISTINGS: usize = 8;

/// A row that was found due.
pub(super) struct Due {
    pub(super) key: u64,
    pub(super) seen: Seen,
}

/// Where a row was judged.
pub(super) enum Seen {
    Dram,
    /// By its record there, in the filling of its slot that has this incarnation.
    Record(Place, u64),
}

/// The rows of a bucket, as the index names them at one moment.
struct Listing {
    /// Addresses in DRAM, while the part has this era.
    rows: Vec<u64>,
    era: u64,
    places: Vec<Place>,
    /// The greatest incarnation that was given out by then.
    newest: u64,
}

/// One bucket of a walk.
struct Walk<'a> {
    engine: &'a Engine,
    table: &'a Table,
    judgement: &'a Judgement,
    bucket: u32,
    stripe: usize,
    total: Removal,
}

impl Engine {
    /// Judges the rows of a bucket and removes what is due; returns when that is committed.
    /// Returns how many went. The rows of a damaged record stay.
    pub(super) fn expire_bucket(
        &self,
        table: &Table,
        bucket: u32,
        judgement: &Judgement,
    ) -> Result<u64> {
        self.load_buckets(bucket..bucket + 1)?;
        let stripe = (bucket / self.tier.buckets_per_stripe) as usize;
        let total = Removal::default();
        let mut walk = Walk { engine: self, table, judgement, bucket, stripe, total };
        for _ in 0..LISTINGS {
            walk.total.moved = 0;
            if !walk.run()? || walk.total.moved == 0 {
                break;
            }
        }
        self.commit(walk.total.position)?;
        Ok(walk.total.removed)
    }
}

impl Walk<'_> {
    /// Lists the bucket and judges its rows. False if it is empty.
    fn run(&mut self) -> Result<bool> {
        let state = self.engine.stripes[self.stripe].lock();
        let part = state.parts.get(&self.table.id);
        let count = part.map_or(0, |part| part.index.bucket_locations(self.bucket).count());
        drop(state);
        if count == 0 {
            return Ok(false);
        }
        let read_bytes = READ_BYTES + ROWS_A_LOCK * size_of::<Due>();
        let bytes = count * size_of::<Place>() + read_bytes;
        let _memory = self.engine.ledger.hold(Kind::Calls, bytes as u64);
        let listing = self.list(count);
        self.judge_resident(&listing)?;
        self.judge_records(&listing)?;
        Ok(true)
    }

    /// Keys that have come since they were counted are younger than this walk.
    fn list(&self, count: usize) -> Listing {
        let (mut rows, mut places, mut era) = (Vec::new(), Vec::new(), 0);
        let state = self.engine.stripes[self.stripe].lock();
        if let Some(part) = state.parts.get(&self.table.id) {
            era = part.era;
            for location in part.index.bucket_locations(self.bucket).take(count) {
                match location.resolve() {
                    Ok(at) => rows.push(at),
                    Err(place) => places.push(place),
                }
            }
        }
        // Under the lock: whatever moves later is in a later segment.
        let newest = self.engine.tier.log.begun_segments();
        drop(state);
        places.sort_unstable();
        Listing { rows, era, places, newest }
    }

    fn judge_resident(&mut self, listing: &Listing) -> Result<()> {
        for rows in listing.rows.chunks(ROWS_A_LOCK) {
            let mut due = Vec::new();
            let state = self.engine.stripes[self.stripe].lock();
            let part = state.parts.get(&self.table.id).filter(|part| part.era == listing.era);
            let Some(part) = part else {
                self.total.moved += rows.len() as u64;
                return Ok(());
            };
            for &at in rows {
                let (header, numbers) = part.pool.row(at);
                let is_own = header.state.is_live() && bucket(hash(header.key)) == self.bucket;
                if !is_own {
                    // It has left, perhaps for the log.
                    self.total.moved += 1;
                } else if self.is_due(header.last_seen, header.sequence, numbers) {
                    due.push(Due { key: header.key, seen: Seen::Dram });
                }
            }
            drop(state);
            self.remove(&due)?;
        }
        Ok(())
    }

    fn judge_records(&mut self, listing: &Listing) -> Result<()> {
        let (log, table) = (&self.engine.tier.log, self.table);
        let records = (READ_BYTES / (4 * table.floats)).clamp(1, ROWS_A_LOCK);
        for places in listing.places.chunks(records) {
            let mut due = Vec::new();
            let pin = log.pin();
            let holds = |place: &&Place| log.still_holds(&pin, **place, listing.newest);
            let held: Vec<Place> = places.iter().filter(holds).copied().collect();
            self.total.moved += (places.len() - held.len()) as u64;
            let read =
                |n: usize| Read { place: held[n], row_floats: table.floats, table: table.id };
            let counts = log.read(&pin, held.len(), &read, &mut |n, record| {
                // One that cannot be read is for those who look for damage.
                let Ok(record) = record else { return };
                if self.is_due_record(&record) {
                    let seen = Seen::Record(held[n], log.incarnation(held[n]));
                    due.push(Due { key: record.key, seen });
                }
            });
            // Not while it waits for calls: they may wait for the slots.
            drop(pin);
            count_reads(std::iter::once((table, 1)), 1, counts, true);
            self.remove(&due)?;
        }
        Ok(())
    }

    fn is_due_record(&self, record: &RecordView<'_>) -> bool {
        let is_row = !record.tombstone && record.row.len() == self.table.floats;
        is_row && self.is_due(record.last_seen, record.sequence, record.row)
    }

    fn is_due(&self, last_seen: u32, sequence: u64, numbers: &[f32]) -> bool {
        self.judgement.is_due(last_seen, sequence, &numbers[..self.table.dim])
    }

    fn remove(&mut self, due: &[Due]) -> Result<()> {
        let removal = self.engine.remove_due(self.table, self.stripe, due, self.judgement)?;
        self.total.removed += removal.removed;
        self.total.moved += removal.moved;
        self.total.position = removal.position.or(self.total.position);
        Ok(())
    }
}
