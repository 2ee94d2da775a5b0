//! Which segment on NVMe goes down to the slower disk next: pure functions over plain data.
//!
//! A segment is as rare as its rows are read from the device: reads for each live byte, which age
//! as segments go down. Rows in DRAM cost no reads wherever their record is; who demotes a segment
//! writes those anew. Young segments are left alone, for what they hold has just left DRAM and
//! nothing is known of it yet.

use super::slots::SlotState;
use super::victim::{Room, Segment};

/// This part of the segments is young: 1 / this.
const YOUNG_SHARE: usize = 4;
/// Counts of reads halve when this part of the segments went down: 1 / this.
const AGEING_SHARE: usize = 4;

/// A segment, and the reads of its records by calls and by look-ahead, of late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) segment: Segment,
    pub(super) reads: u64,
}

/// The segments whose rows are read least, as far as there is room; of equal ones the oldest.
/// Where slots are short (`is_pressed`) young ones go too.
pub(super) fn choose(
    mut candidates: Vec<Candidate>,
    is_pressed: bool,
    mut room: Room,
) -> Vec<Segment> {
    candidates.retain(|candidate| candidate.segment.state == SlotState::Written);
    candidates.sort_unstable_by_key(|candidate| candidate.segment.id);
    if !is_pressed {
        candidates.truncate(candidates.len() - candidates.len().div_ceil(YOUNG_SHARE));
    }
    candidates.retain(|candidate| candidate.segment.live_bytes > 0);
    let rate = |of: &Candidate| of.reads as f64 / of.segment.live_bytes as f64;
    candidates.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
    let rarest = candidates.into_iter().map(|candidate| candidate.segment);
    rarest.take_while(|segment| room.take(segment)).collect()
}

/// When counts of reads are to be halved.
#[derive(Debug, Default)]
pub(super) struct Ageing {
    demoted: usize,
}

impl Ageing {
    /// Segments of `count` go down. True if all counts are to be halved.
    pub(super) fn note(&mut self, demoted: usize, count: usize) -> bool {
        self.demoted += demoted;
        let is_due = self.demoted > count / AGEING_SHARE;
        if is_due {
            self.demoted = 0;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::SegmentId;
    use super::*;
    use crate::types::Disk;
    use proptest::prelude::*;

    const ALL: Room = Room { segments: usize::MAX, bytes: u64::MAX, rows: u64::MAX };

    fn candidate(incarnation: u64, live_bytes: u64, reads: u64) -> Candidate {
        let segment = Segment {
            id: SegmentId { incarnation, disk: Disk::Nvme, slot: 0 },
            state: SlotState::Written,
            written_bytes: 1000,
            data_bytes: 1000,
            live_bytes,
            tombstone_bytes: 0,
            horizon: 0,
            tables: 1,
            removed_from: 0,
            removed_at: 0,
            entries: 10,
        };
        Candidate { segment, reads }
    }

    fn chosen(candidates: &[Candidate], is_pressed: bool, room: Room) -> Vec<u64> {
        let chosen = choose(candidates.to_vec(), is_pressed, room);
        chosen.iter().map(|segment| segment.id.incarnation).collect()
    }

    #[test]
    fn the_least_read_go_and_of_equals_the_oldest() {
        let segments = [
            candidate(4, 100, 0),
            candidate(1, 100, 50),
            candidate(2, 100, 3),
            candidate(3, 1000, 20),
        ];
        assert_eq!(chosen(&segments, false, ALL), [3, 2, 1], "two reads for a hundred bytes");
        assert_eq!(chosen(&segments, true, ALL), [4, 3, 2, 1], "young, but slots are short");
        let equal: Vec<_> = (1..9).rev().map(|n| candidate(n, 100, 7)).collect();
        assert_eq!(chosen(&equal, false, ALL), [1, 2, 3, 4, 5, 6]);
        assert_eq!(chosen(&equal, false, Room { segments: 2, ..ALL }), [1, 2]);
        assert_eq!(chosen(&equal, false, Room { bytes: 399, ..ALL }), [1, 2, 3]);
    }

    #[test]
    fn what_has_nothing_to_move_is_left_to_compaction() {
        let none: [u64; 0] = [];
        assert_eq!(chosen(&[], true, ALL), none);
        assert_eq!(chosen(&[candidate(1, 0, 0)], true, ALL), none);
        assert_eq!(chosen(&[candidate(1, 10, 0)], false, ALL), none, "one segment is young");
        let mut aside = candidate(1, 10, 0);
        aside.segment.state = SlotState::Aside;
        assert_eq!(chosen(&[aside], true, ALL), none, "it cannot be read");
    }

    #[test]
    fn counts_are_halved_when_a_quarter_went_down() {
        let mut ageing = Ageing::default();
        let halved: Vec<usize> = (1..=22).filter(|_| ageing.note(1, 40)).collect();
        assert_eq!(halved.len(), 2);
        assert!(ageing.note(11, 40), "all at once");
        assert!(Ageing::default().note(1, 0), "no segment: nothing to remember");
    }

    proptest! {
        #[test]
        fn nothing_that_may_go_is_read_less(
            segments in prop::collection::vec((0u64..4, 0u64..100), 0..40),
            is_pressed: bool,
        ) {
            let all: Vec<Candidate> = (1..).zip(&segments)
                .map(|(n, &(live, reads))| candidate(n, live * 100, reads)).collect();
            let old = all.len() - if is_pressed { 0 } else { all.len().div_ceil(YOUNG_SHARE) };
            let has_rows = |c: &&Candidate| c.segment.live_bytes > 0;
            let may_go: Vec<&Candidate> = all[..old].iter().filter(has_rows).collect();
            let one = Room { segments: 1, ..ALL };
            let first = chosen(&all, is_pressed, one);
            prop_assert_eq!(first.len(), may_go.len().min(1));
            for n in first {
                let it = may_go.iter().find(|c| c.segment.id.incarnation == n);
                let it = it.expect("one that may go");
                // Compared without a division.
                let is_least = may_go.iter().all(|other| {
                    it.reads * other.segment.live_bytes <= other.reads * it.segment.live_bytes
                });
                prop_assert!(is_least);
            }
        }
    }
}
