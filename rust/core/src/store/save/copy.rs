//! Copying the rows of a moment: stripe by stripe, table by table, a group of buckets at a time.
//!
//! Rows in DRAM are copied under the lock, some thousand at most; records are read together, by the
//! places that the index named, under a pin. Whatever changed since the moment is passed over: it
//! was kept, and what was kept is written with its group.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::moment::{Moment, Saved};
use super::LOOK;
use crate::checkpoint::{BundleKind, Progress, ShardWriter};
use crate::columns::{Columns, GROUP};
use crate::error::{Error, ErrorKind, Result};
use crate::log::Read;
use crate::store::engine::Engine;
use crate::store::fetch::count_reads;
use crate::types::Place;

/// Rows that are copied under one lock: about half a millisecond.
const ROWS_A_LOCK: usize = 4096;
/// Rows of a slice at the lowest rate.
const ROWS_MIN: usize = 64;
/// Rows whose places are held at one time: 1 in so many bytes of DRAM, in this range.
const PLACE_SHARE: u64 = 1024;
const PLACES: Range<u64> = 8 << 10..512 << 10;

/// Bytes of rows that are written together.
pub(super) fn bundle_bytes(dram_bytes: u64) -> usize {
    (dram_bytes / 256).clamp(64 << 10, 1 << 20) as usize
}

/// A checkpoint on its way.
pub(super) struct Copier<'a> {
    pub(super) engine: &'a Engine,
    pub(super) moment: &'a Moment<'a>,
    writer: ShardWriter,
    progress: &'a Progress,
    pace: Pace,
    bundle_bytes: usize,
    pub(super) places_max: usize,
}

/// Where a copier is: a group of one table.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) table: usize,
    pub(super) group: u32,
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        moment: &'a Moment<'a>,
        writer: ShardWriter,
        rate: u64,
        progress: &'a Progress,
    ) -> Self {
        let dram_bytes = engine.config.dram_bytes;
        let places_max = (dram_bytes / PLACE_SHARE).clamp(PLACES.start, PLACES.end) as usize;
        let bundle_bytes = bundle_bytes(dram_bytes);
        let whole = moment.tables.iter().filter(|saved| saved.taken.since.is_none());
        progress.expect(
            whole.map(|saved| saved.rows * Columns::row_bytes(saved.table.floats) as u64).sum(),
        );
        let pace = Pace { rate, begun: Instant::now(), bytes: 0 };
        Self { engine, moment, writer, progress, pace, bundle_bytes, places_max }
    }

    pub(super) fn into_writer(self) -> ShardWriter {
        self.writer
    }

    /// Copies all. False if that is of no moment any more: a table was dropped, or a row given up
    /// that cannot be read.
    pub(super) fn run(&mut self) -> Result<bool> {
        for s in 0..self.engine.stripes.len() {
            for table in 0..self.moment.tables.len() {
                let buckets = self.engine.buckets_of(s);
                for group in buckets.start / GROUP..buckets.end.div_ceil(GROUP) {
                    let at = At { table, group };
                    match self.saved(at).taken.since {
                        None => self.copy_group(at)?,
                        Some(since) => self.copy_changes(at, since)?,
                    }
                    if !self.end_group(at)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    pub(super) fn saved(&self, at: At) -> &'a Saved {
        &self.moment.tables[at.table]
    }

    pub(super) fn buckets(at: At) -> Range<u32> {
        at.group * GROUP..(at.group + 1) * GROUP
    }

    fn stripe(&self, at: At) -> usize {
        (at.group * GROUP / self.engine.tier.buckets_per_stripe) as usize
    }

    /// Position of a group among those of its stripe.
    fn own_group(&self, at: At) -> usize {
        (at.group - self.engine.buckets_of(self.stripe(at)).start / GROUP) as usize
    }

    /// Writes what was kept of a group that is copied now.
    fn end_group(&mut self, at: At) -> Result<bool> {
        let table = &self.saved(at).table;
        let (kept, has_lost) = {
            let mut state = self.engine.stripes[self.stripe(at)].lock();
            let kept = state.take_kept(table.id, self.own_group(at), true);
            (kept, state.has_lost_kept(table.id))
        };
        // Its rows may have gone with it.
        let is_there = self.engine.check_present(table.id).is_ok();
        if !is_there || has_lost {
            return Ok(false);
        }
        self.write(at, BundleKind::Kept, &kept)?;
        self.engine.saving.tell();
        Ok(true)
    }

    /// All rows of a group, slice by slice of the fingerprints, so that no lock is held for long.
    fn copy_group(&mut self, at: At) -> Result<()> {
        let slices = self.slices(at);
        let mut rows = Columns::default();
        for slice in 0..slices {
            self.copy_slice(at, (slice, slices), &mut rows)?;
        }
        self.write(at, BundleKind::Copied, &rows)
    }

    /// Into how many a group is cut.
    fn slices(&self, at: At) -> usize {
        let state = self.engine.stripes[self.stripe(at)].lock();
        let Some(part) = state.parts.get(&self.saved(at).table.id) else { return 0 };
        let counts = Self::buckets(at).map(|bucket| part.index.bucket_locations(bucket).count());
        let (mut sum, mut most) = (0_usize, 0_usize);
        counts.for_each(|count| (sum, most) = (sum + count, most.max(count)));
        let row_bytes = Columns::row_bytes(self.saved(at).table.floats);
        // No slot of the log that is freed is filled again while a slice is read: at a low rate it
        // must be small.
        let paced = match self.pace.rate {
            0 => usize::MAX,
            rate => (rate as usize / 4 / row_bytes).max(ROWS_MIN),
        };
        let rows_a_lock = (self.bundle_bytes / row_bytes).clamp(1, ROWS_A_LOCK);
        // Some grow meanwhile: by far less than this.
        (sum.div_ceil(self.places_max.min(paced))).max(most.div_ceil(rows_a_lock))
    }

    fn copy_slice(
        &mut self,
        at: At,
        (slice, slices): (usize, usize),
        rows: &mut Columns,
    ) -> Result<()> {
        let saved = self.saved(at);
        let engine = self.engine;
        // Before the places are looked up, until they were read.
        let pin = engine.tier.log.pin();
        let mut places = Vec::new();
        for bucket in Self::buckets(at) {
            {
                let state = engine.stripes[self.stripe(at)].lock();
                let Some(part) = state.parts.get(&saved.table.id) else { break };
                for (hash, location) in part.index.bucket_entries(bucket) {
                    if slice_of(hash, slices) != slice {
                        continue;
                    }
                    match location.resolve() {
                        Ok(row) => {
                            let (header, numbers) = part.pool.row(row);
                            if saved.taken.takes(header.sequence, header.last_seen) {
                                let statistics = (header.last_seen, header.frequency);
                                rows.push(header.key, statistics, numbers);
                            }
                        }
                        Err(place) => places.push(place),
                    }
                }
            }
            self.write_full(at, rows)?;
        }
        places.sort_unstable();
        self.read_places(at, &pin, &places, rows)
    }

    fn read_places(
        &mut self,
        at: At,
        pin: &crate::log::Pin<'_>,
        places: &[Place],
        rows: &mut Columns,
    ) -> Result<()> {
        let (saved, log) = (self.saved(at), &self.engine.tier.log);
        let table = &saved.table;
        let a_bundle = (self.bundle_bytes / Columns::row_bytes(table.floats)).max(1);
        for places in places.chunks(a_bundle) {
            let read =
                |n: usize| Read { place: places[n], row_floats: table.floats, table: table.id };
            // A record that cannot be read is read again, alone.
            let mut doubted = Vec::new();
            let mut take = |n: usize, record: Result<crate::log::RecordView<'_>>| match record {
                Ok(record) if record.row.len() == table.floats => {
                    if saved.taken.takes(record.sequence, record.last_seen) {
                        let statistics = (record.last_seen, record.frequency);
                        rows.push(record.key, statistics, record.row);
                    }
                }
                _ => doubted.push(places[n]),
            };
            let counts = log.read(pin, places.len(), &read, &mut take);
            count_reads(std::iter::once((&**table, 1)), 1, counts, true);
            for place in doubted {
                self.read_doubted(at, pin, place, rows)?;
            }
            self.write_full(at, rows)?;
        }
        Ok(())
    }

    fn read_doubted(
        &self,
        at: At,
        pin: &crate::log::Pin<'_>,
        place: Place,
        rows: &mut Columns,
    ) -> Result<()> {
        let (saved, log) = (self.saved(at), &self.engine.tier.log);
        let (floats, id) = (saved.table.floats, saved.table.id);
        let read = |_: usize| Read { place, row_floats: floats, table: id };
        let mut outcome = Ok(());
        log.read(pin, 1, &read, &mut |_, record| match record {
            Ok(record) if record.row.len() == floats => {
                if saved.taken.takes(record.sequence, record.last_seen) {
                    rows.push(record.key, (record.last_seen, record.frequency), record.row);
                }
            }
            Ok(record) => {
                let what = format!("its record holds {} numbers, not {floats}", record.row.len());
                outcome = Err(Error::corruption(what));
            }
            Err(error) => outcome = Err(error),
        });
        match outcome {
            Err(error) if error.kind == ErrorKind::Corruption => {
                Err(self.cannot_be_copied(at, place, &error))
            }
            outcome => outcome,
        }
    }

    /// Whose a damaged record is its footer says.
    fn cannot_be_copied(&self, at: At, place: Place, error: &Error) -> Error {
        let log = &self.engine.tier.log;
        let entry = Self::buckets(at).find_map(|bucket| log.entry_at(place, bucket).ok().flatten());
        let whose =
            entry.map_or_else(|| "a row".into(), |entry| format!("the row of key {}", entry.key));
        Error::corruption(format!(
            "table {:?}: {whose} cannot be copied: {}; assign or remove the key, then make the \
             checkpoint again",
            self.saved(at).spec.name,
            error.message
        ))
    }

    /// Writes rows if they are a bundle.
    pub(super) fn write_full(&mut self, at: At, rows: &mut Columns) -> Result<()> {
        if rows.bytes() >= self.bundle_bytes {
            self.write(at, BundleKind::Copied, rows)?;
            rows.clear();
        }
        Ok(())
    }

    pub(super) fn write(&mut self, at: At, kind: BundleKind, rows: &Columns) -> Result<()> {
        self.writer.add(at.table, at.group, kind, rows)?;
        self.go_on(rows.bytes() as u64)
    }

    pub(super) fn write_removed(&mut self, at: At, keys: &[u64]) -> Result<()> {
        self.writer.add_removed(at.table, at.group, keys)?;
        self.go_on(8 * keys.len() as u64)
    }

    /// Notes what was written; keeps the pace; writes what was kept elsewhere, if that is much.
    fn go_on(&mut self, bytes: u64) -> Result<()> {
        self.progress.add(bytes);
        self.pace.bytes += bytes;
        loop {
            self.check()?;
            self.write_kept()?;
            let pause = self.pace.ahead();
            if pause.is_zero() {
                return Ok(());
            }
            std::thread::sleep(pause.min(LOOK));
        }
    }

    fn check(&self) -> Result<()> {
        self.progress.check()?;
        if self.engine.is_closing.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Error::unavailable("the store is being closed"));
        }
        self.engine.failure.check_reads()
    }

    /// Writes what was kept of all that is to come, once it is half of what may be: calls must not
    /// have to wait for it.
    fn write_kept(&mut self) -> Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        let saving = &self.engine.saving;
        if saving.kept.load(Relaxed) <= saving.limit.load(Relaxed) / 2 {
            return Ok(());
        }
        for s in 0..self.engine.stripes.len() {
            let buckets = self.engine.buckets_of(s);
            for table in 0..self.moment.tables.len() {
                for group in buckets.start / GROUP..buckets.end.div_ceil(GROUP) {
                    let (at, id) = (At { table, group }, self.moment.tables[table].table.id);
                    let own = self.own_group(At { table, group });
                    let kept = self.engine.stripes[s].lock().take_kept(id, own, false);
                    self.writer.add(at.table, at.group, BundleKind::Kept, &kept)?;
                    self.progress.add(kept.bytes() as u64);
                    self.pace.bytes += kept.bytes() as u64;
                    self.engine.saving.tell();
                }
            }
        }
        Ok(())
    }
}

/// Which slice of the fingerprints a key of this hash is in.
pub(super) fn slice_of(hash: u64, slices: usize) -> usize {
    // Below the bits of the bucket.
    let fingerprint = hash << 12 >> 32;
    ((fingerprint * slices as u64) >> 32) as usize
}

/// Bytes a second.
struct Pace {
    /// 0: any.
    rate: u64,
    begun: Instant,
    bytes: u64,
}

impl Pace {
    /// How long to wait for it.
    fn ahead(&self) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let due = Duration::from_secs_f64(self.bytes as f64 / self.rate as f64);
        due.saturating_sub(self.begun.elapsed())
    }
}
