//! Opening: which slots hold segments, which writes were torn, which damage is to be reported.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex};

use super::footer::FooterHead;
use super::header::{FileHeader, SegmentHeader, VERSION};
use super::page::PageHeader;
use super::segment::collect_entries;
use super::slots::{Numbers, Roster, Slots, SPARE};
use super::volume::Volume;
use super::writer::State;
use super::{LogConfig, LogEnd};
use crate::device::{AlignedBuffer, Device, Extent, ReadList, PAGE};
use crate::directory;
use crate::error::{Error, Result};
use crate::types::{Disk, BUCKETS};

const SEGMENT_BYTES_MIN: u64 = 256 << 10;
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Two to fill, two for compaction to go on, some to compact; and the spare ones.
const SLOTS_MIN: u64 = 8 + SPARE as u64;
/// A generation has this many incarnations, so that none is ever given twice, not even if the
/// header that carried it was lost in a crash.
const GENERATION_SHIFT: u32 = 32;

/// Checks the settings of a log with so many streams.
pub(super) fn check(config: &LogConfig, streams: usize) -> Result<()> {
    let bytes = config.segment_bytes;
    if bytes % PAGE as u64 != 0 || !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) {
        return Err(Error::config(format!(
            "segment_bytes={bytes}: choose a multiple of {PAGE} from {SEGMENT_BYTES_MIN} to \
             {SEGMENT_BYTES_MAX}"
        )));
    }
    let least = PAGE as u64 + SLOTS_MIN * bytes;
    if config.capacity_bytes < least {
        return Err(Error::config(format!(
            "capacity_bytes={} holds fewer than {SLOTS_MIN} segments of {bytes} bytes: give at \
             least {least}, or smaller segments",
            config.capacity_bytes
        )));
    }
    // One that is filled and one on its way to the device.
    if config.buffers < 2 * streams {
        return Err(Error::config(format!(
            "buffers={} is too few: give at least {}",
            config.buffers,
            2 * streams
        )));
    }
    Ok(())
}

/// `anchor`: the volume beside which this is the cold one.
pub(super) fn recover(
    device: Box<dyn Device>,
    config: LogConfig,
    known: LogEnd,
    anchor: Option<Arc<Volume>>,
) -> Result<Volume> {
    let length = device.length().map_err(|e| Error::io("measure", device.path(), &e))?;
    let mut page = AlignedBuffer::new(PAGE);
    let header = file_header(&*device, &config, known, length, &mut page)?;
    let segment_bytes = config.segment_bytes;
    let in_file = length.saturating_sub(PAGE as u64).div_ceil(segment_bytes);
    let slots_max = ((config.capacity_bytes - PAGE as u64) / segment_bytes) as u32 - SPARE;
    let count = in_file.max(u64::from(slots_max)) + u64::from(SPARE);
    let (disk, numbers, pins) = match &anchor {
        None => (Disk::Nvme, Numbers::default(), Arc::default()),
        Some(anchor) => (Disk::Cold, anchor.slots.numbers().clone(), anchor.pins.clone()),
    };
    let slots = Slots::new(disk, count as usize, segment_bytes, numbers.clone());
    let volume = Volume {
        device,
        slots,
        slots_max,
        streams: [Mutex::new(None), Mutex::new(None)],
        state: Mutex::new(State::new(Roster::new(0, std::iter::empty(), slots_max, &numbers))),
        rounds: Mutex::default(),
        elder_rounds: Mutex::default(),
        ageing: Mutex::default(),
        work: Condvar::new(),
        progress: Condvar::new(),
        pins,
        anchor,
        thread: Mutex::new(None),
        file_header: Mutex::new((header, page)),
        failure: OnceLock::new(),
        refused: AtomicU64::new(0),
        bytes_read: AtomicU64::new(0),
        bytes_written: AtomicU64::new(0),
        config,
    };
    let known = known.incarnation.max(header.synced);
    let found = volume.find_segments(in_file as u32, known)?;
    volume.begin_generation(&found.torn)?;
    let next = (header.generation << GENERATION_SHIFT).max(known.max(found.newest) + 1);
    numbers.begin(next);
    let free = found.free.into_iter().chain(found.torn);
    let roster = volume.slots.open(Roster::new(in_file as u32, free, slots_max, &numbers));
    *volume.state.lock() = State::new(roster);
    Ok(volume)
}

/// The header for this opening: read, checked, its generation raised; not yet written.
fn file_header(
    device: &dyn Device,
    config: &LogConfig,
    known: LogEnd,
    length: u64,
    page: &mut AlignedBuffer,
) -> Result<FileHeader> {
    let path = device.path().display();
    device.read_at(page, 0).map_err(|e| Error::io("read", device.path(), &e))?;
    let Some(mut header) = FileHeader::newest(page) else {
        if length > PAGE as u64 || known.incarnation > 0 {
            return Err(Error::corruption(format!(
                "log {path} is missing or its header is damaged ({length} bytes), though segments \
                 up to {} were written: restore the store from a checkpoint",
                known.incarnation
            )));
        }
        let segment_bytes = config.segment_bytes;
        let version = VERSION;
        return Ok(FileHeader { version, segment_bytes, generation: 1, synced: 0, revision: 1 });
    };
    directory::check_version(device.path(), header.version, VERSION)?;
    if header.segment_bytes != config.segment_bytes {
        return Err(Error::config(format!(
            "log {path} has segments of {} bytes, but segment_bytes={} was asked: open it with \
             its own size",
            header.segment_bytes, config.segment_bytes
        )));
    }
    header.generation += 1;
    header.revision += 1;
    Ok(header)
}

#[derive(Default)]
struct Found {
    free: Vec<u32>,
    torn: Vec<u32>,
    newest: u64,
}

impl Volume {
    /// Reads the header of every slot of the file and sets what the slot holds.
    fn find_segments(&self, in_file: u32, known: u64) -> Result<Found> {
        let page =
            |slot| Extent { offset: self.slots.offset(slot), bytes: PAGE as u32, number: slot };
        let mut unwritten = Vec::new();
        let mut headers = Vec::new();
        let mut failure = None;
        let read = |slot, read: std::io::Result<&[u8]>| match read {
            Ok(bytes) if bytes.iter().all(|&byte| byte == 0) => unwritten.push(slot),
            Ok(bytes) => headers.push((slot, SegmentHeader::decode(bytes))),
            Err(error) => failure = Some(error),
        };
        self.device.read_batch(&mut ReadList::new((0..in_file).map(page), read));
        if let Some(error) = failure {
            return Err(Error::io("read segment headers of", self.device.path(), &error));
        }
        let mut found = Found { free: unwritten, ..Found::default() };
        headers.sort_unstable_by_key(|&(slot, _)| slot);
        for (slot, header) in headers {
            self.find_segment(slot, header, known, &mut found)?;
        }
        Ok(found)
    }

    fn find_segment(
        &self,
        slot: u32,
        header: Option<SegmentHeader>,
        known: u64,
        found: &mut Found,
    ) -> Result<()> {
        let header = header
            .filter(|header| header.slot == slot)
            .filter(|header| header.written_bytes() <= self.slots.segment_bytes);
        let incarnation = match &header {
            Some(header) => header.incarnation,
            None => self.incarnation_of_pages(slot)?,
        };
        found.newest = found.newest.max(incarnation);
        match header {
            Some(header) if incarnation <= known || self.is_whole(&header)? => {
                self.slots.found(header);
            }
            None if incarnation <= known => self.slots.found_damaged(slot, incarnation),
            _ => found.torn.push(slot),
        }
        Ok(())
    }

    /// What the first readable page of a slot says, where its header does not; 0 if none does.
    fn incarnation_of_pages(&self, slot: u32) -> Result<u64> {
        let mut bytes = AlignedBuffer::new(SEGMENT_BYTES_MIN as usize);
        self.read_at(&mut bytes, self.slots.offset(slot))?;
        let pages = bytes.chunks(PAGE).skip(1).find_map(PageHeader::decode);
        Ok(pages.map_or(0, |page| page.incarnation))
    }

    /// Whether every page, record and footer entry of a segment verifies.
    fn is_whole(&self, header: &SegmentHeader) -> Result<bool> {
        let base = self.slots.base(header.slot);
        let mut bytes = AlignedBuffer::new(header.written_bytes() as usize);
        self.read_at(&mut bytes, base.offset())?;
        let (pages, footer) = bytes.split_at(header.footer_offset() as usize);
        let Ok(mut entries) = collect_entries(pages, header.incarnation, base) else {
            return Ok(false);
        };
        let Some(head) = FooterHead::decode(footer, header.incarnation, base) else {
            return Ok(false);
        };
        let all = 0..BUCKETS;
        let mut listed = Vec::with_capacity(entries.len());
        let range = head.range(&all);
        let whole = footer
            .get(range)
            .is_some_and(|bytes| head.visit(&all, bytes, &mut |entry| listed.push(entry)));
        entries.sort_unstable_by_key(|entry| entry.place);
        listed.sort_unstable_by_key(|entry| entry.place);
        Ok(whole && listed.len() == header.entries as usize && listed == entries)
    }

    /// Makes the new generation and the end of torn segments durable, before anything is filled.
    fn begin_generation(&self, torn: &[u32]) -> Result<()> {
        let mut file_header = self.file_header.lock();
        let (header, page) = &mut *file_header;
        header.put(page);
        self.write(page, 0)?;
        self.erase(torn)
    }
}
