//! The slots of the file: what each holds, how much of it is live, and which to compact next.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::header::SegmentHeader;
use super::record::charge;
use super::segment::SegmentBuffer;
use crate::device::PAGE;
use crate::types::Place;

/// Names one filling of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentId {
    /// Number of this filling; never given again.
    pub(crate) incarnation: u64,
    /// The slot that it fills.
    pub(crate) slot: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    /// Filling, or waiting for the device.
    Buffered,
    Written,
    /// Its live records were copied; not yet erased.
    Freed,
    /// Its header cannot be read though it was synced once.
    Damaged,
}

#[derive(Clone)]
pub(super) struct SlotInfo {
    pub(super) state: SlotState,
    /// As written; only `incarnation` counts before.
    pub(super) header: SegmentHeader,
    /// The bytes while they are not on the device. The writer thread takes it out.
    pub(super) buffer: Option<Arc<SegmentBuffer>>,
}

const NO_SEGMENT: SegmentHeader = SegmentHeader {
    incarnation: 0,
    slot: 0,
    data_pages: 0,
    footer_bytes: 0,
    entries: 0,
    max_sequence: 0,
    sealed_at: 0,
    data_bytes: 0,
};

impl SlotInfo {
    pub(super) const FREE: Self = Self { state: SlotState::Free, header: NO_SEGMENT, buffer: None };

    pub(super) fn filling(incarnation: u64, buffer: Arc<SegmentBuffer>) -> Self {
        let header = SegmentHeader { incarnation, ..NO_SEGMENT };
        Self { state: SlotState::Buffered, header, buffer: Some(buffer) }
    }

    pub(super) fn written(header: SegmentHeader) -> Self {
        Self { state: SlotState::Written, header, buffer: None }
    }

    pub(super) fn damaged(incarnation: u64) -> Self {
        let header = SegmentHeader { incarnation, ..NO_SEGMENT };
        Self { state: SlotState::Damaged, header, buffer: None }
    }
}

struct Slot {
    live: AtomicU64,
    /// It holds a live record that cannot be read; cleared when one of its records is released.
    is_aside: AtomicBool,
    info: RwLock<SlotInfo>,
}

/// All slots of a file, fixed when it is opened.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    live: AtomicU64,
    merging: Mutex<Merging>,
    pub(super) segment_bytes: u64,
}

/// Short segments that are left alone: fewer cannot be worth a rewrite.
const SHORT_MAX: usize = 4;

/// Merging short segments goes in rounds, each over those that were there when it began. A round
/// that did not leave fewer is not repeated until more have come: a caller that syncs after every
/// copy makes a short segment of each short segment, and must not be kept busy for ever.
#[derive(Default)]
struct Merging {
    newest: u64,
    started_with: usize,
}

impl Merging {
    fn victim(&mut self, short: &[(u64, SegmentId)]) -> Option<SegmentId> {
        let least = |newest| {
            let of_round = short.iter().filter(|(_, id)| id.incarnation <= newest);
            of_round.min().map(|&(_, id)| id)
        };
        if let Some(id) = least(self.newest) {
            return Some(id);
        }
        if short.len() < self.started_with {
            self.started_with = 0;
        }
        if short.len() <= self.started_with + SHORT_MAX {
            return None;
        }
        self.started_with = short.len();
        self.newest = short.iter().map(|(_, id)| id.incarnation).max()?;
        least(self.newest)
    }
}

impl Slots {
    pub(super) fn new(count: usize, segment_bytes: u64) -> Self {
        let slot = |_| Slot {
            live: AtomicU64::new(0),
            is_aside: AtomicBool::new(false),
            info: RwLock::new(SlotInfo::FREE),
        };
        let slots = (0..count).map(slot).collect();
        Self { slots, live: AtomicU64::new(0), merging: Mutex::default(), segment_bytes }
    }

    pub(super) fn count(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        std::mem::size_of_val(&*self.slots) as u64
    }

    /// First byte of a slot in the file.
    pub(super) fn offset(&self, slot: u32) -> u64 {
        PAGE as u64 + u64::from(slot) * self.segment_bytes
    }

    /// The slot that holds a place, if there is one.
    pub(super) fn of(&self, place: Place) -> Option<u32> {
        let slot = place.offset().checked_sub(PAGE as u64)? / self.segment_bytes;
        (slot < self.slots.len() as u64).then_some(slot as u32)
    }

    pub(super) fn info(&self, slot: u32) -> SlotInfo {
        self.slots[slot as usize].info.read().clone()
    }

    pub(super) fn set(&self, slot: u32, info: SlotInfo) {
        *self.slots[slot as usize].info.write() = info;
    }

    pub(super) fn incarnation(&self, slot: u32) -> u64 {
        self.slots[slot as usize].info.read().header.incarnation
    }

    pub(super) fn set_aside(&self, segment: SegmentId) {
        let Some(slot) = self.slots.get(segment.slot as usize) else { return };
        let info = slot.info.read();
        slot.is_aside.store(info.header.incarnation == segment.incarnation, Ordering::Relaxed);
    }

    /// Makes a written segment freed; false if it is not there (any more).
    pub(super) fn set_freed(&self, segment: SegmentId) -> bool {
        let Some(slot) = self.slots.get(segment.slot as usize) else { return false };
        let mut info = slot.info.write();
        let found =
            info.state == SlotState::Written && info.header.incarnation == segment.incarnation;
        if found {
            info.state = SlotState::Freed;
            let live = slot.live.swap(0, Ordering::Relaxed);
            self.live.fetch_sub(live, Ordering::Relaxed);
        }
        found
    }

    pub(super) fn add_live(&self, place: Place, row_floats: usize) {
        if let Some(slot) = self.of(place) {
            let bytes = charge(row_floats);
            self.slots[slot as usize].live.fetch_add(bytes, Ordering::Relaxed);
            self.live.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Never below zero: a record may be released after its segment was freed.
    pub(super) fn subtract_live(&self, place: Place, row_floats: usize) {
        let Some(slot) = self.of(place) else { return };
        self.slots[slot as usize].is_aside.store(false, Ordering::Relaxed);
        let bytes = charge(row_floats);
        let less = |live: u64| Some(live.saturating_sub(bytes));
        let live = &self.slots[slot as usize].live;
        // The closure always gives a value, so both arms hold the count before.
        let (Ok(before) | Err(before)) =
            live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.live.fetch_sub(before.min(bytes), Ordering::Relaxed);
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Every slot with what it holds.
    pub(super) fn each(&self) -> impl Iterator<Item = (u32, SlotInfo)> + '_ {
        self.slots.iter().enumerate().map(|(slot, info)| (slot as u32, info.info.read().clone()))
    }

    /// Segments on the device, in growing incarnation.
    pub(super) fn written(&self) -> Vec<SegmentHeader> {
        let mut written: Vec<SegmentHeader> = self
            .each()
            .filter(|(_, info)| info.state == SlotState::Written)
            .map(|(_, info)| info.header)
            .collect();
        written.sort_unstable_by_key(|header| header.incarnation);
        written
    }

    /// The segment with the lowest share of live bytes below `share_max`; else, of several that
    /// were sealed nearly empty, the one with the least to copy.
    pub(super) fn victim(&self, share_max: f64) -> Option<SegmentId> {
        let mut best = None;
        let mut best_share = share_max;
        let mut short = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let info = slot.info.read();
            if info.state != SlotState::Written || slot.is_aside.load(Ordering::Relaxed) {
                continue;
            }
            let header = &info.header;
            let id = SegmentId { incarnation: header.incarnation, slot: index as u32 };
            let live = slot.live.load(Ordering::Relaxed) as f64;
            let share = live / header.data_bytes.max(1) as f64;
            if share < best_share {
                (best, best_share) = (Some(id), share);
            }
            if (header.written_bytes() as f64) < share_max * self.segment_bytes as f64 {
                short.push((header.written_bytes(), id));
            }
        }
        best.or_else(|| self.merging.lock().victim(&short))
    }

    /// Whether no other segment can hold an older record of a key that `segment` marks removed.
    pub(super) fn is_oldest(&self, segment: SegmentId) -> bool {
        let Some(slot) = self.slots.get(segment.slot as usize) else { return false };
        let header = slot.info.read().header;
        header.incarnation == segment.incarnation
            && self.slots.iter().enumerate().all(|(index, other)| {
                let info = other.info.read();
                index == segment.slot as usize
                    || info.state == SlotState::Free
                    || (info.state != SlotState::Damaged
                        && info.header.incarnation > header.sealed_at)
            })
    }
}
