//! Traces: marks of removals that no row needs any more, kept for those who follow the changes.
//!
//! One rule bounds them. Traces take at most half of what tombstones may take (`victim`); when they
//! take more the oldest go, down to half of that, and where slots are short all go. A trace goes
//! when its segment is compacted, but from the moment on which the floor is above it: whoever asks
//! for changes since a moment below the floor is told that it is too long ago.

use std::sync::atomic::Ordering::Relaxed;

use super::victim::{tombstone_share, Demand, Segment};
use super::Log;
use crate::types::Sequence;

impl Log {
    /// Removals up to this sequence may be forgotten.
    pub(crate) fn floor(&self) -> Sequence {
        self.floor.load(Relaxed)
    }

    /// Gives traces up. The floor is on the device by now.
    pub(crate) fn raise_floor(&self, floor: Sequence) {
        self.floor.fetch_max(floor, Relaxed);
    }

    /// Where the floor should be now, if that is above where it is. `all`: no trace is kept.
    pub(crate) fn floor_due(&self, all: bool) -> Option<Sequence> {
        let slots = &self.nvme.slots;
        if slots.tombstone_bytes() == 0 {
            return None;
        }
        due(&slots.segments(), &self.nvme.demand(false, self.floor()), all)
    }
}

fn due(segments: &[Segment], demand: &Demand, all: bool) -> Option<Sequence> {
    let has_traces = |s: &&Segment| s.tombstone_bytes > 0 && s.removed_at > demand.floor;
    let mut traces: Vec<_> =
        segments.iter().filter(has_traces).map(|s| (s.removed_at, s.tombstone_bytes)).collect();
    traces.sort_unstable();
    let mut bytes: u64 = traces.iter().map(|trace| trace.1).sum();
    let live = segments.iter().map(|segment| segment.live_bytes).sum();
    let most = if all { 0 } else { tombstone_share(live, demand) / 2 };
    if bytes <= most {
        return None;
    }
    let mut floor = None;
    for (removed_at, own) in traces {
        if bytes <= most / 2 {
            break;
        }
        bytes -= own;
        floor = Some(removed_at);
    }
    floor
}

#[cfg(test)]
mod tests {
    use super::super::slots::{table_bit, SegmentId, SlotState};
    use super::*;
    use crate::types::Disk;

    const SEGMENT: u64 = 54_000;

    fn demand(floor: Sequence) -> Demand {
        let (segment_bytes, capacity_bytes) = (SEGMENT, 1000 * SEGMENT);
        Demand { segment_bytes, capacity_bytes, is_pressed: false, floor }
    }

    /// A segment with `bytes` of tombstones, the newest as of `removed_at`.
    fn segment(removed_at: Sequence, bytes: u64) -> Segment {
        Segment {
            id: SegmentId { incarnation: removed_at, disk: Disk::Nvme, slot: removed_at as u32 },
            state: SlotState::Written,
            written_bytes: SEGMENT,
            data_bytes: SEGMENT,
            live_bytes: 0,
            tombstone_bytes: bytes,
            horizon: 0,
            tables: 0,
            removed_from: table_bit(1),
            removed_at,
            entries: 0,
        }
    }

    #[test]
    fn few_traces_stay_and_of_many_the_oldest_go() {
        // Eight segments of tombstones are no matter; traces may take half of that.
        let most = 8 * SEGMENT / 54 * 32 / 2;
        let own = most / 16;
        let few: Vec<Segment> = (1..=16).rev().map(|at| segment(at * 100, own)).collect();
        assert_eq!(due(&few, &demand(0), false), None);
        let many: Vec<Segment> = (1..=17).rev().map(|at| segment(at * 100, own)).collect();
        let floor = due(&many, &demand(0), false);
        assert_eq!(floor, Some(900), "eight of seventeen stay");
        assert_eq!(due(&many, &demand(900), false), None, "that was enough");
        assert_eq!(due(&many, &demand(900), true), Some(1700), "slots are short");
        assert_eq!(due(&many, &demand(1700), true), None, "nothing is left to give");
    }
}
