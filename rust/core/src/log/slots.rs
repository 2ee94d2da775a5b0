//! The slot table: what each slot of the file holds, how much of that is live, and the steps from
//! one state to the next. Nothing else changes a slot.
//!
//! A slot goes round: free, buffered, written, freed, erasing, free. Each step is a method that
//! checks where the slot comes from. Steps need the `Roster`, which the log's state lock guards;
//! the counts of live bytes are atomic, and what a slot holds is read under a lock of its own.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use parking_lot::RwLock;

use super::account::Account;
use super::header::SegmentHeader;
use super::record::charge;
use super::segment::SegmentBuffer;
use super::victim::Segment;
use crate::device::PAGE;
use crate::types::{Disk, Place, Sequence, TableId};

/// Names one filling of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentId {
    /// Number of this filling; never given again, on no disk.
    pub(crate) incarnation: u64,
    /// The disk that it is on.
    pub(crate) disk: Disk,
    /// The slot that it fills.
    pub(crate) slot: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    /// Filling, or waiting for the device.
    Buffered,
    Written,
    /// Written, with a live record that cannot be read: it cannot be won until one of its records
    /// is released.
    Aside,
    /// Its live records were copied; their copies may not be on the device yet.
    Freed,
    /// Its header is being overwritten.
    Erasing,
    /// Its header cannot be read though it was synced once.
    Damaged,
}

impl SlotState {
    /// Whether the file has a segment there that counts.
    pub(super) fn is_written(self) -> bool {
        matches!(self, Self::Written | Self::Aside)
    }
}

#[derive(Clone)]
pub(super) struct SlotInfo {
    pub(super) state: SlotState,
    /// As written; only `incarnation` counts before.
    pub(super) header: SegmentHeader,
    /// The bytes while they are not on the device. The writer thread takes it out.
    pub(super) buffer: Option<Arc<SegmentBuffer>>,
}

impl SlotInfo {
    const FREE: Self = Self { state: SlotState::Free, header: SegmentHeader::NONE, buffer: None };
}

/// Tables as bits of a small set: one that is not in it is not there, one that is in it may be.
pub(super) const fn table_bit(table: TableId) -> u32 {
    1 << (table % 32)
}

struct Slot {
    /// Bytes of rows that are live.
    live: AtomicU64,
    /// Bytes of tombstones.
    tombstones: AtomicU64,
    /// No tombstone in it has a greater horizon.
    horizon: AtomicU64,
    /// Tables of its rows, and of its tombstones.
    tables: AtomicU32,
    removed_from: AtomicU32,
    /// Sequence of the newest of its tombstones.
    removed_at: AtomicU64,
    /// Reads of its records of late, in the proportion of what is counted.
    reads: AtomicU64,
    is_aside: AtomicBool,
    info: RwLock<SlotInfo>,
}

impl Slot {
    fn new() -> Self {
        Self {
            live: AtomicU64::new(0),
            tombstones: AtomicU64::new(0),
            horizon: AtomicU64::new(0),
            tables: AtomicU32::new(0),
            removed_from: AtomicU32::new(0),
            removed_at: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            is_aside: AtomicBool::new(false),
            info: RwLock::new(SlotInfo::FREE),
        }
    }
}

/// All slots of a file, fixed when it is opened.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    live: AtomicU64,
    tombstones: AtomicU64,
    numbers: Numbers,
    disk: Disk,
    pub(super) segment_bytes: u64,
}

/// Incarnations, counted over all disks of a log: so of two segments the later one is known,
/// wherever they are, and a tombstone on one disk hides older records on the other.
#[derive(Clone, Default)]
pub(super) struct Numbers(Arc<AtomicU64>);

impl Numbers {
    /// Greatest that was given out. Every record that was appended so far is in a segment up to
    /// it.
    pub(super) fn newest(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Opening: none below `next` is given out.
    pub(super) fn begin(&self, next: u64) {
        self.0.fetch_max(next - 1, Relaxed);
    }

    fn give(&self) -> u64 {
        self.0.fetch_add(1, Relaxed) + 1
    }
}

/// A slot whose records were copied.
struct Freed {
    slot: u32,
    /// The copies are in segments up to this incarnation.
    copies: u64,
    /// Pins before this epoch may look at it.
    epoch: u64,
}

/// Slots kept back for compaction when it finds no other: the last of the cap, or, where a log is
/// opened that has filled those too, as many behind its end. So a log that is full to the last slot
/// can be compacted nevertheless.
pub(super) const SPARE: u32 = 2;

/// Which slots can be taken, which are on their way back, and how far the device has come.
pub(super) struct Roster {
    free: BinaryHeap<Reverse<u32>>,
    /// Slots from here on were never used.
    fresh: u32,
    /// Slots from here on are spare, or past the cap.
    slots_max: u32,
    /// Slots that only compaction may take, in need.
    spare: BinaryHeap<Reverse<u32>>,
    /// Slots that are not free, and bytes that the file takes for them.
    taken: u32,
    written_bytes: u64,
    /// Incarnations that were given out and are not on the device.
    unwritten: BTreeSet<u64>,
    numbers: Numbers,
    freed: Vec<Freed>,
    /// Segments up to this incarnation are synced.
    synced: u64,
}

impl Roster {
    /// Of a file that has `in_file` slots, with `free` among them. `spare` slots that do not exist
    /// yet lie behind it.
    pub(super) fn new(
        in_file: u32,
        free: impl Iterator<Item = u32>,
        slots_max: u32,
        numbers: &Numbers,
    ) -> Self {
        let (free, mut spare): (Vec<u32>, Vec<u32>) = free.partition(|&slot| slot < slots_max);
        let taken = in_file - (free.len() + spare.len()) as u32;
        let end = in_file.max(slots_max);
        spare.extend(end..end + SPARE);
        spare.truncate(SPARE as usize);
        Self {
            free: free.into_iter().map(Reverse).collect(),
            fresh: in_file,
            slots_max,
            spare: spare.into_iter().map(Reverse).collect(),
            taken,
            written_bytes: 0,
            unwritten: BTreeSet::new(),
            numbers: numbers.clone(),
            freed: Vec::new(),
            synced: numbers.newest(),
        }
    }

    /// Slots that can be filled now.
    pub(super) fn available(&self) -> u32 {
        self.free.len() as u32 + self.slots_max.saturating_sub(self.fresh)
    }

    /// Slots that only compaction may take, in need.
    pub(super) fn spare(&self) -> u32 {
        self.spare.len() as u32
    }

    /// Greatest incarnation given out, on any disk.
    pub(super) fn newest(&self) -> u64 {
        self.numbers.newest()
    }

    /// All segments up to this incarnation are written, though perhaps not synced.
    pub(super) fn written_up_to(&self) -> u64 {
        self.unwritten.first().map_or(self.newest(), |first| first - 1)
    }

    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    /// A sync of the device began when all segments up to `incarnation` were written.
    pub(super) fn note_synced(&mut self, incarnation: u64) {
        self.synced = self.synced.max(incarnation);
    }

    pub(super) fn freed(&self) -> u32 {
        self.freed.len() as u32
    }

    /// Freed slots that could go once segments up to `written` are synced.
    pub(super) fn erasable(&self, written: u64, oldest_pin: u64) -> u32 {
        let goes = |freed: &&Freed| freed.copies <= written && freed.epoch <= oldest_pin;
        self.freed.iter().filter(goes).count() as u32
    }

    pub(super) fn taken(&self) -> u32 {
        self.taken
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}

impl Slots {
    pub(super) fn new(disk: Disk, count: usize, segment_bytes: u64, numbers: Numbers) -> Self {
        Self {
            slots: (0..count).map(|_| Slot::new()).collect(),
            live: AtomicU64::new(0),
            tombstones: AtomicU64::new(0),
            numbers,
            disk,
            segment_bytes,
        }
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

    /// Place of a slot's first byte.
    pub(super) fn base(&self, slot: u32) -> Place {
        Place::at(self.disk, self.offset(slot))
    }

    /// Names a filling of a slot.
    pub(super) fn id(&self, slot: u32, incarnation: u64) -> SegmentId {
        SegmentId { incarnation, disk: self.disk, slot }
    }

    /// The slot that holds a place, if there is one.
    pub(super) fn of(&self, place: Place) -> Option<u32> {
        if place.disk() != self.disk {
            return None;
        }
        let slot = place.offset().checked_sub(PAGE as u64)? / self.segment_bytes;
        (slot < self.slots.len() as u64).then_some(slot as u32)
    }

    pub(super) fn info(&self, slot: u32) -> SlotInfo {
        self.slots[slot as usize].info.read().clone()
    }

    pub(super) fn incarnation(&self, slot: u32) -> u64 {
        self.slots[slot as usize].info.read().header.incarnation
    }

    pub(super) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Every slot with what it holds.
    pub(super) fn each(&self) -> impl Iterator<Item = (u32, SlotInfo)> + '_ {
        self.slots.iter().enumerate().map(|(slot, info)| (slot as u32, info.info.read().clone()))
    }

    /// Segments on the device, in growing incarnation.
    pub(super) fn written(&self) -> Vec<SegmentHeader> {
        let mut written: Vec<SegmentHeader> = self
            .each()
            .filter(|(_, info)| info.state.is_written())
            .map(|(_, info)| info.header)
            .collect();
        written.sort_unstable_by_key(|header| header.incarnation);
        written
    }
}

/// The steps of a slot.
impl Slots {
    /// Free to buffered: takes the lowest slot, so that the file stays short, and a new
    /// incarnation. The caller knows that there is one, if only a spare one.
    pub(super) fn fill(&self, roster: &mut Roster, buffer: Arc<SegmentBuffer>) -> SegmentId {
        let fresh = (roster.fresh < roster.slots_max).then_some(roster.fresh);
        let free = roster.free.pop().map(|Reverse(slot)| slot).or(fresh);
        let spare = || roster.spare.pop().map(|Reverse(slot)| slot);
        let slot = free.or_else(spare).expect("the caller has asked for a slot that is there");
        roster.fresh = roster.fresh.max(slot + 1);
        roster.taken += 1;
        let incarnation = roster.numbers.give();
        roster.unwritten.insert(incarnation);
        let header = SegmentHeader { incarnation, slot, ..SegmentHeader::NONE };
        let info = SlotInfo { state: SlotState::Buffered, header, buffer: Some(buffer) };
        self.step(slot, SlotState::Free, info);
        self.id(slot, incarnation)
    }

    /// Buffered to written: the device has the segment.
    pub(super) fn complete(&self, roster: &mut Roster, header: SegmentHeader) {
        let info = SlotInfo { state: SlotState::Written, header, buffer: None };
        self.step(header.slot, SlotState::Buffered, info);
        roster.unwritten.remove(&header.incarnation);
        roster.written_bytes += header.written_bytes();
    }

    /// Written to freed: its live records were copied, and pins before `epoch` may look at it.
    /// False if it is not there (any more).
    pub(super) fn free(&self, roster: &mut Roster, segment: SegmentId, epoch: u64) -> bool {
        let Some(slot) = self.slots.get(segment.slot as usize) else { return false };
        let mut info = slot.info.write();
        if !info.state.is_written() || info.header.incarnation != segment.incarnation {
            return false;
        }
        info.state = SlotState::Freed;
        self.live.fetch_sub(slot.live.swap(0, Relaxed), Relaxed);
        self.tombstones.fetch_sub(slot.tombstones.swap(0, Relaxed), Relaxed);
        // Not only copies: a newer version of a row may be in any segment that was begun by now.
        let copies = roster.newest();
        roster.freed.push(Freed { slot: segment.slot, copies, epoch });
        true
    }

    /// Freed to erasing: those whose copies are in segments up to `synced` and that no pin can see.
    /// They come back by `erased`, or, where that fails, by `restore`.
    pub(super) fn begin_erasing(
        &self,
        roster: &mut Roster,
        synced: u64,
        oldest_pin: u64,
    ) -> Erasing {
        let is_due = |freed: &Freed| freed.copies <= synced && freed.epoch <= oldest_pin;
        let (due, kept) = std::mem::take(&mut roster.freed).into_iter().partition(is_due);
        roster.freed = kept;
        let due: Vec<Freed> = due;
        for freed in &due {
            self.change(freed.slot, SlotState::Freed, SlotState::Erasing);
        }
        Erasing(due)
    }

    /// Erasing to free: the device has no segment there any more.
    pub(super) fn erased(&self, roster: &mut Roster, slots: Erasing) {
        for Freed { slot, .. } in slots.0 {
            roster.taken -= 1;
            roster.written_bytes -= self.info(slot).header.written_bytes();
            self.step(slot, SlotState::Erasing, SlotInfo::FREE);
            let own = &self.slots[slot as usize];
            own.horizon.store(0, Relaxed);
            own.reads.store(0, Relaxed);
            own.tables.store(0, Relaxed);
            own.removed_from.store(0, Relaxed);
            own.removed_at.store(0, Relaxed);
            if slot < roster.slots_max {
                roster.free.push(Reverse(slot));
            } else if roster.spare.len() < SPARE as usize {
                roster.spare.push(Reverse(slot));
            }
        }
    }

    /// Erasing back to freed: the device could not do it now.
    pub(super) fn restore(&self, roster: &mut Roster, slots: Erasing) {
        for freed in &slots.0 {
            self.change(freed.slot, SlotState::Erasing, SlotState::Freed);
        }
        roster.freed.extend(slots.0);
    }

    /// Written to aside: a live record cannot be read.
    pub(super) fn set_aside(&self, segment: SegmentId) {
        let Some(slot) = self.slots.get(segment.slot as usize) else { return };
        let mut info = slot.info.write();
        if info.state == SlotState::Written && info.header.incarnation == segment.incarnation {
            info.state = SlotState::Aside;
            slot.is_aside.store(true, Relaxed);
        }
    }

    /// Opening: free to written.
    pub(super) fn found(&self, header: SegmentHeader) {
        let info = SlotInfo { state: SlotState::Written, header, buffer: None };
        self.step(header.slot, SlotState::Free, info);
        self.slots[header.slot as usize].tables.store(header.tables, Relaxed);
    }

    /// Opening: free to damaged.
    pub(super) fn found_damaged(&self, slot: u32, incarnation: u64) {
        let header = SegmentHeader { incarnation, slot, ..SegmentHeader::NONE };
        self.step(
            slot,
            SlotState::Free,
            SlotInfo { state: SlotState::Damaged, header, buffer: None },
        );
        // Nobody knows what it holds.
        self.slots[slot as usize].tables.store(u32::MAX, Relaxed);
    }

    /// Opening: the roster for what was found.
    pub(super) fn open(&self, mut roster: Roster) -> Roster {
        roster.written_bytes = self.written().iter().map(SegmentHeader::written_bytes).sum();
        roster
    }

    fn step(&self, slot: u32, from: SlotState, to: SlotInfo) {
        let mut info = self.slots[slot as usize].info.write();
        assert_eq!(info.state, from, "slot {slot} cannot become {:?}", to.state);
        *info = to;
    }

    fn change(&self, slot: u32, from: SlotState, to: SlotState) {
        let mut info = self.slots[slot as usize].info.write();
        assert_eq!(info.state, from, "slot {slot} cannot become {to:?}");
        info.state = to;
    }
}

/// Slots that are being erased.
#[must_use]
pub(super) struct Erasing(Vec<Freed>);

impl Erasing {
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|freed| freed.slot)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is live.
impl Slots {
    /// A row was appended, or found by recovery.
    pub(super) fn add_live(&self, place: Place, row_floats: usize) {
        let Some(slot) = self.of(place).map(|slot| &self.slots[slot as usize]) else { return };
        let bytes = charge(row_floats);
        slot.live.fetch_add(bytes, Relaxed);
        self.live.fetch_add(bytes, Relaxed);
    }

    /// The segment of `place` holds a row of `table`.
    pub(super) fn note_table(&self, place: Place, table: TableId) {
        let Some(slot) = self.of(place).map(|slot| &self.slots[slot as usize]) else { return };
        if slot.tables.load(Relaxed) & table_bit(table) == 0 {
            slot.tables.fetch_or(table_bit(table), Relaxed);
        }
    }

    /// A tombstone was appended, or found by recovery; its horizon, or a greater number.
    pub(super) fn add_tombstone(
        &self,
        place: Place,
        table: TableId,
        horizon: u64,
        sequence: Sequence,
    ) {
        let Some(slot) = self.of(place).map(|slot| &self.slots[slot as usize]) else { return };
        let bytes = charge(0);
        slot.tombstones.fetch_add(bytes, Relaxed);
        self.tombstones.fetch_add(bytes, Relaxed);
        slot.horizon.fetch_max(horizon, Relaxed);
        slot.removed_from.fetch_or(table_bit(table), Relaxed);
        slot.removed_at.fetch_max(sequence, Relaxed);
    }

    /// Never below zero: a record may be released after its segment was freed.
    pub(super) fn subtract_live(&self, place: Place, row_floats: usize) {
        let Some(slot) = self.of(place).map(|slot| &self.slots[slot as usize]) else { return };
        if slot.is_aside.swap(false, Relaxed) {
            let mut info = slot.info.write();
            if info.state == SlotState::Aside {
                info.state = SlotState::Written;
            }
        }
        let bytes = charge(row_floats);
        let less = |live: u64| Some(live.saturating_sub(bytes));
        // The closure always gives a value, so both arms hold the count before.
        let (Ok(before) | Err(before)) = slot.live.fetch_update(Relaxed, Relaxed, less);
        self.live.fetch_sub(before.min(bytes), Relaxed);
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live.load(Relaxed)
    }

    /// Opening: what is known of a written segment; of another filling of its slot nothing is.
    pub(super) fn adopt_account(&self, account: &Account) {
        let Some(slot) = self.slots.get(account.segment.slot as usize) else { return };
        if slot.info.read().header.incarnation != account.segment.incarnation {
            return;
        }
        slot.live.store(account.live_bytes, Relaxed);
        slot.tombstones.store(account.tombstone_bytes, Relaxed);
        slot.horizon.store(account.horizon, Relaxed);
        slot.removed_from.store(account.removed_from, Relaxed);
        if account.tombstone_bytes > 0 {
            // None of them is newer.
            slot.removed_at.store(slot.info.read().header.max_sequence, Relaxed);
        }
        self.live.fetch_add(account.live_bytes, Relaxed);
        self.tombstones.fetch_add(account.tombstone_bytes, Relaxed);
    }

    /// Tables of the rows of a slot, as a set of `table_bit`.
    pub(super) fn tables(&self, slot: u32) -> u32 {
        self.slots[slot as usize].tables.load(Relaxed)
    }

    /// Records of a slot were read for those who want the rows.
    pub(super) fn note_reads(&self, slot: u32, reads: u64) {
        self.slots[slot as usize].reads.fetch_add(reads, Relaxed);
    }

    /// Older reads count half from now on.
    pub(super) fn halve_reads(&self) {
        for slot in &self.slots {
            slot.reads.store(slot.reads.load(Relaxed) / 2, Relaxed);
        }
    }

    /// Reads of the records of a slot, of late.
    pub(super) fn reads(&self, slot: u32) -> u64 {
        self.slots[slot as usize].reads.load(Relaxed)
    }

    pub(super) fn tombstone_bytes(&self) -> u64 {
        self.tombstones.load(Relaxed)
    }

    /// All segments as plain data.
    pub(super) fn segments(&self) -> Vec<Segment> {
        let segment = |(slot, own): (usize, &Slot)| {
            let info = own.info.read();
            (info.state != SlotState::Free).then(|| Segment {
                id: self.id(slot as u32, info.header.incarnation),
                state: info.state,
                written_bytes: info.header.written_bytes(),
                data_bytes: info.header.data_bytes,
                live_bytes: own.live.load(Relaxed),
                tombstone_bytes: own.tombstones.load(Relaxed),
                horizon: own.horizon.load(Relaxed),
                tables: own.tables.load(Relaxed),
                removed_from: own.removed_from.load(Relaxed),
                removed_at: own.removed_at.load(Relaxed),
                entries: info.header.entries,
            })
        };
        self.slots.iter().enumerate().filter_map(segment).collect()
    }
}
