//! What is live of each segment, as opening takes it over from an image of the index.

use super::slots::SegmentId;
use super::victim::Segment;
use super::Log;
use crate::types::{Disk, Place, Sequence};

/// What a segment holds that counts, beside what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) segment: SegmentId,
    /// Bytes of rows that are live.
    pub(crate) live_bytes: u64,
    pub(crate) tombstone_bytes: u64,
    /// None of its tombstones has a greater one.
    pub(crate) horizon: u64,
    /// Tables of its tombstones, as the log keeps such sets.
    pub(crate) removed_from: u32,
}

impl Log {
    /// Of every segment that is begun.
    pub(crate) fn accounts(&self) -> Vec<Account> {
        let segments = self.volumes().flat_map(|volume| volume.slots.segments());
        let account = |segment: Segment| Account {
            segment: segment.id,
            live_bytes: segment.live_bytes,
            tombstone_bytes: segment.tombstone_bytes,
            horizon: segment.horizon,
            removed_from: segment.removed_from,
        };
        segments.map(account).collect()
    }

    /// Opening: what an earlier run knew of a written segment.
    pub(crate) fn adopt_account(&self, account: &Account) {
        self.on(account.segment.disk).slots.adopt_account(account);
    }

    /// Opening: all of a segment counts as live until its footer was read. What is dead is to be
    /// released then, tombstones among it, as rows without numbers.
    pub(crate) fn adopt_unread(&self, segment: SegmentId) {
        let slots = &self.on(segment.disk).slots;
        let live_bytes = slots.info(segment.slot).header.data_bytes;
        let (tombstone_bytes, horizon, removed_from) = (0, 0, 0);
        let account = Account { segment, live_bytes, tombstone_bytes, horizon, removed_from };
        slots.adopt_account(&account);
    }

    /// Opening: the greatest sequence of a record in a written segment.
    pub(crate) fn newest_sequence(&self) -> Sequence {
        let written = self.volumes().flat_map(|volume| volume.slots.written());
        written.map(|header| header.max_sequence).max().unwrap_or(0)
    }

    /// Disk and slot that a place lies in, if there is such a slot.
    pub(crate) fn slot_of(&self, place: Place) -> Option<(Disk, u32)> {
        let slot = self.on(place.disk()).slots.of(place)?;
        Some((place.disk(), slot))
    }
}
