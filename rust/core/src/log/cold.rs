//! The volume on the slower disk: how it is opened beside the other, and how rows get there.
//!
//! A record is copied, then synced, and only then named by an index: so wherever the power is cut,
//! a row is in one place at least, and a disk that fails has taken nothing that counted. The caller
//! keeps to that order; of rows that changed meanwhile the copy is dead from the start. A copy
//! carries the sequence of its original: of the two either may be found at an opening.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use super::header::FileHeader;
use super::rarity::Candidate;
use super::victim::{Room, Segment};
use super::{rarity, recovery, victim, Log, LogConfig, LogEnd, Record, SegmentId, Stream, Volume};
use crate::device::{self, Device, PAGE};
use crate::error::{Error, Result};
use crate::types::{Place, TableId};

/// How often the log at `path` was opened. `None` if it is absent, or has no header.
///
/// # Errors
/// `Unavailable` if it cannot be read.
pub(crate) fn generation(path: &Path) -> Result<Option<u64>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::io("open", path, &cause)),
    };
    let mut page = Vec::with_capacity(PAGE);
    file.take(PAGE as u64).read_to_end(&mut page).map_err(|e| Error::io("read", path, &e))?;
    page.resize(PAGE, 0);
    Ok(FileHeader::newest(&page).map(|header| header.generation))
}

impl Log {
    /// Opens or creates the cold volume, before anything is read or appended. It notes its known
    /// end itself.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn open_cold(&mut self, config: LogConfig) -> Result<()> {
        recovery::check(&config, 1)?;
        let device = device::open(&config.path, config.queue_depth)?;
        self.open_cold_on(device, config)
    }

    pub(super) fn open_cold_on(
        &mut self,
        device: Box<dyn Device>,
        config: LogConfig,
    ) -> Result<()> {
        let anchor = Some(self.nvme.clone());
        self.cold = Some(Volume::open(device, config, LogEnd::default(), anchor)?);
        Ok(())
    }

    /// The segments on NVMe whose rows are read least, as far as there is room; where slots are
    /// short, young segments too.
    pub(crate) fn rarest(&self, is_pressed: bool, room: Room) -> Vec<SegmentId> {
        let slots = &self.nvme.slots;
        let segments = slots.segments();
        let candidate =
            |&segment: &Segment| Candidate { segment, reads: slots.reads(segment.id.slot) };
        let candidates: Vec<_> = segments.iter().map(candidate).collect();
        let rarest = rarity::choose(candidates, is_pressed, room);
        if self.nvme.ageing.lock().note(rarest.len(), segments.len()) {
            slots.halve_reads();
        }
        ids(&rarest)
    }

    /// The segments of the cold volume to rewrite together, if it holds more than its rows justify,
    /// or marks of removals wait for its age; under pressure whatever has something to win. None if
    /// their copies would take as many slots as they do.
    pub(crate) fn cold_victims(&self, is_pressed: bool, room: Room) -> Vec<SegmentId> {
        let Some(cold) = &self.cold else { return Vec::new() };
        let (segments, elders) = (cold.slots.segments(), self.elders());
        let demand = cold.demand(is_pressed, self.floor());
        let rounds = &mut *cold.rounds.lock();
        let emptiest = |left: &[Segment]| victim::choose(left, &elders, &demand, rounds);
        let victims = victim::batch(segments.clone(), room, emptiest);
        if victim::wins_a_slot(&victims, demand.segment_bytes) {
            return ids(&victims);
        }
        let (marked, demand) = (self.nvme.slots.segments(), self.nvme.demand(false, self.floor()));
        let rounds = &mut *cold.elder_rounds.lock();
        let eldest = |left: &[Segment]| victim::elder(left, &marked, &elders, &demand, rounds);
        ids(&victim::batch(segments, room, eldest))
    }

    /// Bytes of the log on NVMe that hold live rows, with what belongs to them.
    pub(crate) fn live_written_bytes(&self) -> u64 {
        self.nvme.live_written_bytes()
    }

    /// What keeps rows from going there, if anything does: its disk failed, or is full.
    pub(crate) fn cold_trouble(&self) -> Option<Error> {
        let cold = self.cold.as_ref()?;
        cold.check().err().or_else(|| cold.no_space())
    }

    /// The volume on the slower disk, if there is one.
    pub(crate) fn cold(&self) -> Option<&Arc<Volume>> {
        self.cold.as_ref()
    }
}

/// Of the cold volume. One thread at a time.
impl Volume {
    /// Bytes of its file that hold live rows, with what belongs to them.
    pub(crate) fn live_written_bytes(&self) -> u64 {
        self.slots.segments().iter().map(Segment::live_written).sum()
    }

    /// Slots that copies of its own rows may take.
    pub(crate) fn rewritable_segments(&self) -> u32 {
        let roster = &self.state.lock().roster;
        roster.available() + roster.spare()
    }

    /// Copies a row that is live, under the lock of the row: what removes it later then knows that
    /// there may be a copy. Waits for nothing if `wait_for_buffer` has returned; the stream is that
    /// of compaction for what is here already.
    ///
    /// # Errors
    /// `StoreFull` if no slot is free, `Unavailable` after the device failed.
    pub(crate) fn copy(
        &self,
        stream: Stream,
        table: TableId,
        record: &Record<'_>,
    ) -> Result<Place> {
        self.append(stream, table, record, false, true)
    }

    /// Returns when all copies are on the device and known to be: from now on an index may name
    /// them, and damage in them is told.
    ///
    /// # Errors
    /// `Unavailable` after the device failed, `StoreFull` while its file system is full.
    pub(crate) fn settle(&self) -> Result<()> {
        let end = self.sync()?;
        let mut file_header = self.file_header.lock();
        let (header, page) = &mut *file_header;
        if header.synced >= end.incarnation {
            return Ok(());
        }
        header.synced = end.incarnation;
        header.revision += 1;
        header.put(page);
        self.write(page, 0).and_then(|()| self.device_sync()).map_err(|error| self.fail(&error))
    }

    /// Brings freed slots back whose rows are in newer records, on either disk.
    ///
    /// # Errors
    /// As `settle`.
    pub(crate) fn recall(&self) -> Result<()> {
        self.check()?;
        self.reclaim().map_err(|error| self.fail(&error))
    }
}

fn ids(segments: &[Segment]) -> Vec<SegmentId> {
    segments.iter().map(|segment| segment.id).collect()
}
