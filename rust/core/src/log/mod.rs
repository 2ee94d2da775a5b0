//! The tiers below DRAM: rows in a file of segments on NVMe, and in a second one, of the same
//! form, on a slower disk where there is one. Segments are filled in memory, written once and freed
//! when compaction has copied what is live. Formats: `docs/format.md`.
//!
//! A file with its slots and its writer thread is a volume. Rows that leave DRAM, and marks of
//! removals, go to that on NVMe alone; what names a place goes to the volume of its disk.
//!
//! Knows keys and bytes, not dims or optimizers; knows no index: callers keep the places. Lock
//! order: stream > file header > state > slot > segment buffer, the cold volume's before that of
//! the other. No lock is held over a callback.

mod account;
mod append;
mod bytes;
mod cold;
mod footer;
mod header;
mod newer;
mod page;
mod pins;
mod rarity;
mod reader;
mod record;
mod recovery;
mod scan;
mod segment;
mod slots;
#[cfg(test)]
mod tests;
mod traces;
mod victim;
mod volume;
mod writer;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

pub(crate) use account::Account;
pub(crate) use cold::generation;
pub(crate) use footer::FooterEntry;
pub(crate) use newer::Newer;
pub(crate) use pins::Pin;
pub(crate) use reader::{Read, ReadCounts};
pub(crate) use record::{charge, footprint, Record, RecordView, ROW_FLOATS_MAX};
pub(crate) use scan::{Verified, SCAN_BYTES};
pub(crate) use slots::SegmentId;
pub(crate) use victim::{Elders, Room};
pub(crate) use volume::Volume;

use crate::device::{self, Device};
use crate::error::{Error, Result};
use crate::types::{Disk, Place, Sequence, TableId};
use victim::Segment;

/// Called with the greatest sequence of a segment before its bytes go to the device.
pub(crate) type BeforeWrite = dyn Fn(Sequence) -> Result<()> + Send + Sync;

/// How to open a log.
#[derive(Clone)]
pub(crate) struct LogConfig {
    /// The file, created if absent.
    pub(crate) path: PathBuf,
    /// Size of a slot: a multiple of 4096 from 256 KiB to 64 MiB, the same at every opening.
    pub(crate) segment_bytes: u64,
    /// Cap of the file; at least eight slots and a page.
    pub(crate) capacity_bytes: u64,
    /// Segment buffers in all, at least 4.
    pub(crate) buffers: usize,
    /// Reads of one batch that are at the device at once.
    pub(crate) queue_depth: u32,
    /// Called with the greatest sequence of a segment before its bytes go to the device: the
    /// journal must be synced past it, so that no row on the device is ahead of the journal.
    pub(crate) before_write: Arc<BeforeWrite>,
}

/// Who appends. The streams fill segments of their own, because rows that compaction copied live
/// longer than rows that were just changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Rows that leave DRAM.
    Rows,
    /// Rows that compaction copies. May use the last slots, so that it can always go on.
    Compaction,
}

/// Up to where a log is known to be on the device; kept elsewhere and given back at opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct LogEnd {
    /// Greatest incarnation that was synced; 0 for a log that never was.
    pub(crate) incarnation: u64,
}

/// See the module. Thread safe.
pub(crate) struct Log {
    nvme: Arc<Volume>,
    cold: Option<Arc<Volume>>,
    /// Traces of removals up to this sequence may go.
    floor: AtomicU64,
}

impl Log {
    /// Opens or creates the log on NVMe. Segments up to `known` were synced: damage in them is
    /// reported when they are read. Beyond it a segment that does not verify was torn, and is
    /// forgotten.
    ///
    /// # Errors
    /// `Config` for settings out of range or another segment size than the file's; `Corruption`
    /// if the file is missing though segments are known, or its header is damaged; `Unavailable`
    /// if the device fails.
    pub(crate) fn open(config: LogConfig, known: LogEnd) -> Result<Self> {
        recovery::check(&config, 2)?;
        let device = device::open(&config.path, config.queue_depth)?;
        Self::open_on(device, config, known)
    }

    fn open_on(device: Box<dyn Device>, config: LogConfig, known: LogEnd) -> Result<Self> {
        let nvme = Volume::open(device, config, known, None)?;
        Ok(Self { nvme, cold: None, floor: AtomicU64::new(0) })
    }

    /// The volume that what is said to be on `disk` can be asked of.
    fn on(&self, disk: Disk) -> &Volume {
        match (disk, &self.cold) {
            (Disk::Cold, Some(cold)) => cold,
            _ => &self.nvme,
        }
    }

    fn volumes(&self) -> impl Iterator<Item = &Volume> {
        std::iter::once(&self.nvme).chain(&self.cold).map(Arc::as_ref)
    }

    /// Adds a record, live until it is released. In memory until its segment is full or `sync`. May
    /// wait for the device, so the caller holds no lock that others need; `try_append` does not.
    ///
    /// Compaction appends its copy while nothing can remove the key (under the lock of the row):
    /// a dead copy behind a forgotten tombstone would come back at recovery.
    ///
    /// # Errors
    /// `BadInput` for a row above `ROW_FLOATS_MAX`, `StoreFull` if no slot is free, `Unavailable`
    /// after the device failed.
    pub(crate) fn append(
        &self,
        stream: Stream,
        table: TableId,
        record: &Record<'_>,
    ) -> Result<Place> {
        self.nvme.append(stream, table, record, false, true)
    }

    /// As `append`, under a lock that others need: it does not wait.
    ///
    /// # Errors
    /// As `append`; `Busy` while all buffers are on their way to the device: give the lock up,
    /// `wait_for_buffer`, and try again.
    pub(crate) fn try_append(
        &self,
        stream: Stream,
        table: TableId,
        record: &Record<'_>,
    ) -> Result<Place> {
        self.nvme.append(stream, table, record, false, false)
    }

    /// As `try_append` of a row, whose record at `twin` has the same sequence: the new one comes
    /// into a segment that began no earlier, or a recovery from footers would take the older.
    ///
    /// # Errors
    /// As `try_append`.
    pub(crate) fn try_append_behind(
        &self,
        twin: Place,
        table: TableId,
        record: &Record<'_>,
    ) -> Result<Place> {
        self.nvme.seal_older(Stream::Rows, self.incarnation(twin));
        self.try_append(Stream::Rows, table, record)
    }

    /// Adds the mark of a removed key, while nothing can append the key (under the lock of the
    /// row). Its horizon is the newest segment: no older record of the key is in a later one.
    ///
    /// # Errors
    /// As `try_append`.
    pub(crate) fn try_append_tombstone(
        &self,
        stream: Stream,
        table: TableId,
        key: u64,
        sequence: Sequence,
    ) -> Result<Place> {
        let record = Record::tombstone(key, sequence, self.nvme.slots.numbers().newest());
        self.nvme.append(stream, table, &record, true, false)
    }

    /// As `try_append_tombstone`, where no lock is held and the key cannot be appended: it waits.
    ///
    /// # Errors
    /// As `append`.
    pub(crate) fn append_tombstone(
        &self,
        stream: Stream,
        table: TableId,
        key: u64,
        sequence: Sequence,
    ) -> Result<Place> {
        let record = Record::tombstone(key, sequence, self.nvme.slots.numbers().newest());
        self.nvme.append(stream, table, &record, true, true)
    }

    /// The same for a key that has no record: a mere trace of the removal, which hides nothing.
    ///
    /// # Errors
    /// As `try_append`.
    pub(crate) fn try_append_trace(
        &self,
        table: TableId,
        key: u64,
        sequence: Sequence,
    ) -> Result<Place> {
        let trace = Record::tombstone(key, sequence, 0);
        self.nvme.append(Stream::Rows, table, &trace, true, false)
    }

    /// Compaction: copies a tombstone with its own horizon. Not needed where `elders` are gone.
    ///
    /// # Errors
    /// As `append`.
    pub(crate) fn copy_tombstone(&self, table: TableId, record: &RecordView<'_>) -> Result<Place> {
        let record = Record::tombstone(record.key, record.sequence, record.horizon());
        self.nvme.append(Stream::Compaction, table, &record, true, true)
    }

    /// The record at `place` is dead now. Call it before its segment is freed, or not at all.
    pub(crate) fn release(&self, place: Place, row_floats: usize) {
        self.on(place.disk()).slots.subtract_live(place, row_floats);
    }

    /// Whether no row can leave DRAM before the device has taken a segment.
    #[cfg(test)]
    pub(crate) fn is_stuck(&self) -> bool {
        self.nvme.is_stuck()
    }

    /// Returns when a segment could be begun without waiting for the device: for those who append
    /// under a lock that others need.
    ///
    /// # Errors
    /// As `append`.
    pub(crate) fn wait_for_buffer(&self) -> Result<()> {
        self.nvme.wait_for_buffer()
    }

    /// Recovery: the record at `place` is live.
    pub(crate) fn adopt(&self, place: Place, row_floats: usize) {
        self.on(place.disk()).slots.add_live(place, row_floats);
    }

    /// Recovery: there is a tombstone at `place`. Its horizon is not above what its segment was
    /// sealed at.
    pub(crate) fn adopt_tombstone(&self, place: Place, table: TableId, sequence: Sequence) {
        let slots = &self.on(place.disk()).slots;
        let Some(slot) = slots.of(place) else { return };
        slots.add_tombstone(place, table, slots.info(slot).header.sealed_at, sequence);
    }

    /// While the pin is held, no slot that is freed later is filled again or punched: take it
    /// before places are looked up, drop it after they were read.
    pub(crate) fn pin(&self) -> Pin<'_> {
        self.nvme.pins.pin()
    }

    /// Reads `count` records in one batch, of which `read` tells the `n`-th, in the order of their
    /// places; visits each with its `n`, in any order.
    ///
    /// Pages are read once for all records in them, neighbouring pages together up to 16 KiB.
    /// Records that are not written yet come from memory. Checksum, incarnation and table are
    /// checked: a record that is not what was written is given as `Corruption`, a failed read as
    /// `Unavailable`. The visitor compares the key, and calls no `read`.
    pub(crate) fn read(
        &self,
        pin: &Pin<'_>,
        count: usize,
        read: &dyn Fn(usize) -> Read,
        visit: &mut dyn FnMut(usize, Result<RecordView<'_>>),
    ) -> ReadCounts {
        self.read_wanted(pin, count, &mut |_| true, read, visit)
    }

    /// The same, of those records for which `wants` is true when their turn has come.
    pub(crate) fn read_wanted(
        &self,
        pin: &Pin<'_>,
        count: usize,
        wants: &mut dyn FnMut(usize) -> bool,
        read: &dyn Fn(usize) -> Read,
        visit: &mut dyn FnMut(usize, Result<RecordView<'_>>),
    ) -> ReadCounts {
        let Some(cold) = &self.cold else {
            return self.nvme.read(pin, count, wants, read, visit);
        };
        // In the order of places those on NVMe come first.
        let disks: &[_] = &[(&self.nvme, Disk::Nvme), (cold, Disk::Cold)];
        let (mut first, mut counts) = (0, ReadCounts::default());
        for (volume, disk) in disks {
            let end =
                first + partition_point(count - first, |n| read(first + n).place.disk() <= *disk);
            counts += volume.read(
                pin,
                end - first,
                &mut |n| wants(first + n),
                &|n| read(first + n),
                &mut |n, record| visit(first + n, record),
            );
            first = end;
        }
        counts
    }

    /// Seals what is in memory and returns when all that was appended before is on NVMe. What is on
    /// its way to the cold volume is on NVMe too, and that is not waited for.
    ///
    /// # Errors
    /// `Unavailable` if the device or `before_write` fails, now or ever before.
    pub(crate) fn sync(&self) -> Result<LogEnd> {
        self.nvme.sync()
    }

    /// Cap of the file.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.nvme.capacity_bytes()
    }

    /// Size of a slot.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.nvme.segment_bytes()
    }

    /// Bytes of the file that are taken: whole slots.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.nvme.used_bytes()
    }

    /// Bytes of rows that are live, and so of slots that compaction can never win.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.nvme.live_bytes()
    }

    /// Bytes that are written in taken slots; about what the file takes on the file system.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.nvme.allocated_bytes()
    }

    /// The first failure of the device, for ever.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) fn check(&self) -> Result<()> {
        self.nvme.check()
    }

    /// Why segments cannot be written now, though their slots are within the cap: the file system
    /// has no space. It is tried again until there is some.
    pub(crate) fn no_space(&self) -> Option<Error> {
        self.nvme.no_space()
    }

    /// Slots that can be filled now.
    pub(crate) fn free_segments(&self) -> u32 {
        self.nvme.free_segments()
    }

    /// Segments begun so far: grows as records are appended.
    pub(crate) fn begun_segments(&self) -> u64 {
        self.nvme.slots.numbers().newest()
    }

    /// Bytes that are written in taken slots of all disks.
    pub(crate) fn all_allocated_bytes(&self) -> u64 {
        self.volumes().map(Volume::allocated_bytes).sum()
    }

    /// Records refused so far for want of a slot.
    pub(crate) fn refused(&self) -> u64 {
        self.nvme.refused.load(Ordering::Relaxed)
    }

    /// Whether rows that leave DRAM find a slot.
    pub(crate) fn has_room(&self) -> bool {
        self.free_segments() > append::RESERVED
    }

    /// Segments that were freed and whose slots are not free yet: they will be once the copies of
    /// their records are on the device and older pins are gone, without a call of `sync`.
    pub(crate) fn freed_segments(&self) -> u32 {
        self.nvme.freed_segments()
    }

    /// Bytes read from all disks since opening.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.volumes().map(Volume::bytes_read).sum()
    }

    /// Bytes written to all disks since opening.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.volumes().map(Volume::bytes_written).sum()
    }

    /// Memory that readers hold now: rings and page buffers.
    pub(crate) fn reader_bytes(&self) -> u64 {
        self.volumes().map(|volume| volume.device.buffer_bytes()).sum()
    }

    /// Memory of the account of segments.
    pub(crate) fn account_bytes(&self) -> u64 {
        self.volumes().map(|volume| volume.slots.memory_bytes()).sum()
    }

    /// How reads are done, with a warning where that is not the best way.
    pub(crate) fn io_description(&self) -> String {
        let describe = |volume: &Volume| volume.device.description();
        let cold =
            self.cold().map_or_else(String::new, |cold| format!("; cold: {}", describe(cold)));
        describe(&self.nvme) + &cold
    }

    /// What to compact next, if the log holds more than its rows and tombstones justify; under
    /// pressure whatever has something to win. See `victim`.
    ///
    /// Compact on without `sync` between: each sync seals a short segment, which takes a slot.
    pub(crate) fn victim(&self, is_pressed: bool) -> Option<SegmentId> {
        let nvme = &self.nvme;
        let demand = nvme.demand(is_pressed, self.floor());
        victim::choose(&nvme.slots.segments(), &self.elders(), &demand, &mut nvme.rounds.lock())
    }

    /// Reads a written segment in large sequential reads and visits all its records and
    /// tombstones in the order of their places, live or not; what is damaged as `Corruption`,
    /// with table 0 if even that is unknown.
    ///
    /// # Errors
    /// `BadInput` if the segment is not written or was freed; `Unavailable` if a read fails.
    pub(crate) fn scan(
        &self,
        segment: SegmentId,
        visit: &mut dyn FnMut(Place, TableId, Result<RecordView<'_>>),
    ) -> Result<ReadCounts> {
        self.on(segment.disk).scan(segment, visit)
    }

    /// As `scan`, of header and footer too, of a segment that may have been freed: then `None`.
    /// One that cannot be read is not sound.
    pub(crate) fn verify(
        &self,
        segment: SegmentId,
        visit: &mut dyn FnMut(Place, TableId, Result<RecordView<'_>>),
    ) -> Option<Verified> {
        self.on(segment.disk).verify(segment, visit)
    }

    /// The first segment on a device from position `first` on, and its position: slots count on
    /// from one disk to the next.
    pub(crate) fn written_from(&self, first: u32) -> Option<(u32, SegmentId)> {
        let mut before = 0;
        self.volumes().find_map(|volume| {
            let own = first.saturating_sub(before);
            let found = volume.written_from(own).map(|(slot, id)| (before + slot, id));
            before += volume.slots.count();
            found
        })
    }

    /// Which segments may hold rows older than a tombstone. As of now, which holds on: a segment
    /// that is begun later has nothing that is older.
    pub(crate) fn elders(&self) -> Elders {
        let segments: Vec<Segment> =
            self.volumes().flat_map(|volume| volume.slots.segments()).collect();
        Elders::of(&segments)
    }

    /// The live records of a segment were copied. Its slot is filled again once the copies are on
    /// the device (by a later `sync`, or because their segments were full) and the pins that are
    /// held now are gone.
    pub(crate) fn free(&self, segment: SegmentId) {
        self.on(segment.disk).free(segment);
    }

    /// Recovery: all written segments in growing incarnation, with how many entries each has.
    ///
    /// # Errors
    /// `Corruption` if the header of a segment is damaged.
    pub(crate) fn segments(&self) -> Result<Vec<(SegmentId, u32)>> {
        let mut all = self.nvme.segments()?;
        if let Some(cold) = &self.cold {
            all.append(&mut cold.segments()?);
            all.sort_unstable();
        }
        Ok(all)
    }

    /// The footer entries in `buckets` of all written segments, in growing incarnation on each
    /// disk.
    ///
    /// # Errors
    /// `Corruption` if a footer or the header of a segment is damaged; `Unavailable` if a read
    /// fails.
    pub(crate) fn entries(
        &self,
        buckets: Range<u32>,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> Result<()> {
        self.volumes().try_for_each(|volume| volume.entries(&buckets, visit))
    }

    /// What the footer says of the record at `place`, of a key in `bucket`: whose it is can be told
    /// although it is damaged. None if there is no footer that says it. Hold the pin of the place.
    ///
    /// # Errors
    /// `Unavailable` if a read fails.
    pub(crate) fn entry_at(&self, place: Place, bucket: u32) -> Result<Option<FooterEntry>> {
        self.on(place.disk()).entry_at(place, bucket)
    }

    /// The footer entries in `buckets` of a written segment; one read if that is most of them.
    ///
    /// # Errors
    /// `Corruption` if the footer is damaged or the segment was freed; `Unavailable` if a read
    /// fails.
    pub(crate) fn entries_of(
        &self,
        segment: SegmentId,
        buckets: Range<u32>,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> Result<()> {
        self.on(segment.disk).entries_of(segment, &buckets, visit)
    }

    /// A live record of the segment cannot be read, so its slot cannot be won: it is no `victim`
    /// until one of its records is released.
    pub(crate) fn set_aside(&self, segment: SegmentId) {
        self.on(segment.disk).slots.set_aside(segment);
    }

    /// Number of the filling that `place` lies in now. While it stays the same, what was read from
    /// the place is what is there.
    pub(crate) fn incarnation(&self, place: Place) -> u64 {
        let slots = &self.on(place.disk()).slots;
        slots.of(place).map_or(0, |slot| slots.incarnation(slot))
    }

    /// Syncs, and joins the writer thread.
    ///
    /// # Errors
    /// As `sync`.
    #[cfg(test)]
    pub(crate) fn close(self) -> Result<LogEnd> {
        let end = self.nvme.sync();
        self.stop();
        end
    }

    /// Writes what is sealed already, forgets the rest, joins the writer threads. Nothing is
    /// written after that: append and sync no more.
    pub(crate) fn stop(&self) {
        self.volumes().for_each(Volume::stop);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How many of `count` come before the first for which `is_before` is false.
fn partition_point(count: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if is_before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
