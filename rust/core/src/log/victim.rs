//! Which segment to compact next: pure functions over plain data.
//!
//! Dead rows are won by taking the segment with the least to copy. Tombstones are won otherwise: a
//! tombstone must stay while any segment up to its horizon may hold a row of its table, so what
//! ages it is that *old* segments go, however live they are. When tombstones take more than their
//! share, the oldest segments are rewritten, in order, up to the newest horizon of then. After that
//! round everything that was removed before it is gone for good.

use super::slots::{table_bit, SegmentId, SlotState};
use crate::types::{Sequence, TableId};

/// Live share below which the log holds more than its rows justify. Of rows of 256 bytes, with
/// their headers and footers, that is space x1.57, and 2.3 to 2.5 writes of a row that reaches the
/// log (ADR 0022).
const LIVE_SHARE_MAX: f64 = 0.72;
/// A segment is worth a rewrite below this live share; under pressure below the second.
const WORTH: f64 = 0.9;
const WORTH_PRESSED: f64 = 0.98;
/// Tombstones may take this part of what live rows take, and of the room that they leave: 1 / this.
/// So a round, which rewrites the live rows once, wins at least a quarter of what it writes.
const TOMBSTONE_SHARE: u64 = 4;
/// But so many segments of them are no matter.
const TOMBSTONE_SEGMENTS: u64 = 8;
/// Bytes in the file for one byte of a tombstone, times 32: its record of 32, its footer entry 22.
const TOMBSTONE_COST: u64 = 54;
/// Segments that are filled or about to be: no sign of dead space.
const SPARE_SEGMENTS: u64 = 4;
/// Short segments that are left alone: fewer cannot be worth a rewrite.
const SHORT_MAX: usize = 4;

/// A slot that is not free.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) state: SlotState,
    pub(super) written_bytes: u64,
    /// Bytes of all its records.
    pub(super) data_bytes: u64,
    pub(super) live_bytes: u64,
    pub(super) tombstone_bytes: u64,
    /// None of its tombstones has a greater one.
    pub(super) horizon: u64,
    /// Tables of its rows and of its tombstones, as sets of `table_bit`.
    pub(super) tables: u32,
    pub(super) removed_from: u32,
    /// Sequence of the newest of its tombstones.
    pub(super) removed_at: Sequence,
    /// Rows and tombstones, live or not.
    pub(super) entries: u32,
}

impl Segment {
    /// What its live rows take of a file, with the pages and footers that they share; of one that
    /// is not written yet that is not known, and left out.
    pub(super) fn live_written(&self) -> u64 {
        if self.data_bytes == 0 {
            return self.live_bytes;
        }
        (self.written_bytes as f64 * self.live_share()) as u64
    }

    /// About how many rows are live.
    fn live_rows(&self) -> u64 {
        (f64::from(self.entries) * self.live_share()) as u64
    }

    fn live_share(&self) -> f64 {
        self.live_bytes as f64 / self.data_bytes.max(1) as f64
    }
}

/// What the segments may hold of which the rows move together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Room {
    pub(crate) segments: usize,
    /// Bytes that live rows take of a file.
    pub(crate) bytes: u64,
    /// Live rows.
    pub(crate) rows: u64,
}

impl Room {
    /// Whether there is room for a segment. Then it has it.
    pub(super) fn take(&mut self, segment: &Segment) -> bool {
        let (bytes, rows) = (segment.live_written(), segment.live_rows());
        let fits = self.segments > 0 && self.bytes >= bytes && self.rows >= rows;
        if fits {
            (self.segments, self.bytes, self.rows) =
                (self.segments - 1, self.bytes - bytes, self.rows - rows);
        }
        fits
    }
}

/// The segments that `next` gives one after the other, as far as there is room: those that it gave
/// are shown to it as freed.
pub(super) fn batch(
    mut segments: Vec<Segment>,
    mut room: Room,
    mut next: impl FnMut(&[Segment]) -> Option<SegmentId>,
) -> Vec<Segment> {
    let mut chosen = Vec::new();
    while let Some(id) = next(&segments) {
        let found = segments.iter_mut().find(|segment| segment.id == id);
        let Some(segment) = found.filter(|segment| room.take(segment)) else { break };
        chosen.push(*segment);
        segment.state = SlotState::Freed;
    }
    chosen
}

/// Whether copies of what is live in `batch` take fewer slots than it does, though the last is
/// short.
pub(super) fn wins_a_slot(batch: &[Segment], segment_bytes: u64) -> bool {
    let live: u64 = batch.iter().map(Segment::live_written).sum();
    live.div_ceil(segment_bytes) < batch.len() as u64
}

/// What the choice depends on beside the segments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    pub(super) segment_bytes: u64,
    /// Bytes of all slots.
    pub(super) capacity_bytes: u64,
    /// Slots are short: any segment with something to win will do.
    pub(super) is_pressed: bool,
    /// Traces of removals up to this sequence are not needed any more.
    pub(super) floor: Sequence,
}

/// Of each set of tables the two oldest segments that may hold rows of it.
#[derive(Debug, Clone)]
pub(crate) struct Elders([[u64; 2]; 32]);

impl Elders {
    pub(super) fn of(segments: &[Segment]) -> Self {
        let mut elders = [[u64::MAX; 2]; 32];
        for segment in segments {
            let incarnation = segment.id.incarnation;
            for (bit, oldest) in elders.iter_mut().enumerate() {
                if segment.tables & (1 << bit) == 0 {
                    continue;
                }
                if incarnation < oldest[0] {
                    *oldest = [incarnation, oldest[0]];
                } else if incarnation < oldest[1] {
                    oldest[1] = incarnation;
                }
            }
        }
        Self(elders)
    }

    /// Whether a tombstone in `segment` may be forgotten with it: no other segment up to its
    /// horizon can hold a row of its table. Its own goes in the same moment.
    pub(crate) fn are_gone(&self, segment: SegmentId, table: TableId, horizon: u64) -> bool {
        let bit = table_bit(table).trailing_zeros() as usize;
        self.oldest_beside(segment, bit) > horizon
    }

    fn oldest_beside(&self, segment: SegmentId, bit: usize) -> u64 {
        let [first, second] = self.0[bit];
        if first == segment.incarnation {
            second
        } else {
            first
        }
    }

    /// Whether all tombstones of a segment may be forgotten.
    fn are_all_gone(&self, segment: &Segment) -> bool {
        let is_in = |bit: &usize| segment.removed_from & (1 << bit) != 0;
        (0..32).filter(is_in).all(|bit| self.oldest_beside(segment.id, bit) > segment.horizon)
    }
}

/// What choices remember of the choices before.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    ageing: Ageing,
    merging: Merging,
}

/// A round over the oldest segments. The next begins when tombstones have grown by half their
/// share since: what a round could not win (a segment that cannot be read holds them) is not tried
/// again for ever.
#[derive(Debug, Default)]
struct Ageing {
    /// Segments up to this incarnation are rewritten; 0 between rounds.
    end: u64,
    /// Bytes that the last round left.
    left: u64,
}

/// Merging short segments goes in rounds, each over those that were there when it began. A round
/// that did not leave fewer is not repeated until more have come: a caller that syncs after every
/// copy makes a short segment of each short segment, and must not be kept busy for ever.
#[derive(Debug, Default)]
struct Merging {
    newest: u64,
    started_with: usize,
}

/// What the segments hold, summed up.
#[derive(Debug, Default)]
struct Sums {
    /// Bytes of taken slots, but for those that are on their way back.
    used: u64,
    live: u64,
    /// Tombstones that must stay, as bytes of records; of those that old segments need: their
    /// bytes, their tables, the newest horizon.
    kept: u64,
    needed: u64,
    removed_from: u32,
    horizon: u64,
}

impl Sums {
    fn of(segments: &[Segment], elders: &Elders, demand: &Demand) -> Self {
        let mut sums = Self::default();
        for segment in segments {
            sums.live += segment.live_bytes;
            if !matches!(segment.state, SlotState::Freed | SlotState::Erasing) {
                sums.used += demand.segment_bytes;
            }
            if segment.tombstone_bytes == 0 {
                continue;
            }
            let is_needed = !elders.are_all_gone(segment);
            if is_needed || segment.removed_at > demand.floor {
                sums.kept += segment.tombstone_bytes;
            }
            if is_needed {
                sums.needed += segment.tombstone_bytes;
                sums.removed_from |= segment.removed_from;
                sums.horizon = sums.horizon.max(segment.horizon);
            }
        }
        sums
    }
}

/// The segment to compact next, if the log holds more than it should.
pub(super) fn choose(
    segments: &[Segment],
    elders: &Elders,
    demand: &Demand,
    rounds: &mut Rounds,
) -> Option<SegmentId> {
    let sums = Sums::of(segments, elders, demand);
    let share = tombstone_share(sums.live, demand);
    let justified = sums.live + sums.kept + SPARE_SEGMENTS * demand.segment_bytes;
    let is_sparse = sums.used as f64 * LIVE_SHARE_MAX > justified as f64;
    let eldest = rounds.ageing.victim(segments, &sums, share);
    if !is_sparse && !demand.is_pressed {
        return eldest;
    }
    let worth = if demand.is_pressed { WORTH_PRESSED } else { WORTH };
    let (emptiest, live_share) = emptiest(segments, elders, demand.floor)?;
    if live_share == 0.0 {
        return Some(emptiest);
    }
    let emptiest = (live_share < worth).then_some(emptiest);
    eldest.or(emptiest).or_else(|| {
        let is_short = |segment: &&Segment| {
            (segment.written_bytes as f64) < worth * demand.segment_bytes as f64
        };
        let short = segments.iter().filter(|s| s.state == SlotState::Written).filter(is_short);
        let short: Vec<_> = short.map(|segment| (segment.written_bytes, segment.id)).collect();
        rounds.merging.victim(&short)
    })
}

/// The oldest of the segments of another volume that keep tombstones of `segments` from being
/// forgotten, while those are too many.
pub(super) fn elder(
    others: &[Segment],
    segments: &[Segment],
    elders: &Elders,
    demand: &Demand,
    rounds: &mut Rounds,
) -> Option<SegmentId> {
    let sums = Sums::of(segments, elders, demand);
    rounds.ageing.victim(others, &sums, tombstone_share(sums.live, demand))
}

/// Bytes of tombstones, as records, that may be kept beside `live` bytes of rows.
pub(super) fn tombstone_share(live: u64, demand: &Demand) -> u64 {
    let room = demand.capacity_bytes.saturating_sub(live);
    let few = TOMBSTONE_SEGMENTS * demand.segment_bytes;
    let share = (live / TOMBSTONE_SHARE).max(few).min(room / TOMBSTONE_SHARE);
    share / TOMBSTONE_COST * 32
}

/// The segment with the least to copy of what it holds, and that share.
fn emptiest(segments: &[Segment], elders: &Elders, floor: Sequence) -> Option<(SegmentId, f64)> {
    let share = |segment: &Segment| {
        let must_stay = !elders.are_all_gone(segment) || segment.removed_at > floor;
        let is_kept = segment.tombstone_bytes > 0 && must_stay;
        let kept = segment.live_bytes + if is_kept { segment.tombstone_bytes } else { 0 };
        kept as f64 / segment.data_bytes.max(1) as f64
    };
    let written = segments.iter().filter(|segment| segment.state == SlotState::Written);
    let shares = written.map(|segment| (segment.id, share(segment)));
    shares.min_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)))
}

impl Ageing {
    /// The oldest segment that keeps tombstones from being forgotten, while they are too many.
    fn victim(&mut self, segments: &[Segment], sums: &Sums, share: u64) -> Option<SegmentId> {
        self.left = self.left.min(sums.needed);
        if self.end == 0 && sums.needed > share.max(self.left + share / 2) {
            self.end = sums.horizon;
        }
        let holds = |segment: &&Segment| {
            segment.state == SlotState::Written
                && segment.id.incarnation <= self.end
                && segment.tables & sums.removed_from != 0
        };
        let eldest = segments.iter().filter(holds).map(|segment| segment.id).min();
        if eldest.is_none() && self.end > 0 {
            *self = Self { end: 0, left: sums.needed };
        }
        eldest
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Disk;

    const SEGMENT: u64 = 1000;
    const CALM: Demand = Demand {
        segment_bytes: SEGMENT,
        capacity_bytes: 100 * SEGMENT,
        is_pressed: false,
        floor: 0,
    };
    const PRESSED: Demand = Demand { is_pressed: true, ..CALM };

    fn id(incarnation: u64) -> SegmentId {
        SegmentId { incarnation, disk: Disk::Nvme, slot: incarnation as u32 }
    }

    fn choose(segments: &[Segment], demand: &Demand, rounds: &mut Rounds) -> Option<SegmentId> {
        super::choose(segments, &Elders::of(segments), demand, rounds)
    }

    /// A full segment of table 1.
    fn segment(incarnation: u64, live_bytes: u64) -> Segment {
        Segment {
            id: id(incarnation),
            state: SlotState::Written,
            written_bytes: SEGMENT,
            data_bytes: SEGMENT,
            live_bytes,
            tombstone_bytes: 0,
            horizon: 0,
            tables: table_bit(1),
            removed_from: 0,
            removed_at: 0,
            entries: 10,
        }
    }

    /// A full segment of tombstones of table 1, and of nothing else.
    fn marks(incarnation: u64, horizon: u64) -> Segment {
        let marks = Segment { tombstone_bytes: SEGMENT, tables: 0, ..segment(incarnation, 0) };
        Segment { horizon, removed_from: table_bit(1), ..marks }
    }

    fn chosen(segments: &[Segment], demand: &Demand) -> Option<u64> {
        choose(segments, demand, &mut Rounds::default()).map(|id| id.incarnation)
    }

    #[test]
    fn a_log_that_its_rows_justify_is_left_alone() {
        let segments: Vec<Segment> = (1..40).map(|n| segment(n, 800)).collect();
        assert_eq!(chosen(&segments, &CALM), None);
        assert_eq!(chosen(&segments, &PRESSED), Some(1), "under pressure a fifth is worth it");
        let full: Vec<Segment> = (1..40).map(|n| segment(n, 990)).collect();
        assert_eq!(chosen(&full, &PRESSED), None, "there is nothing to win");
    }

    #[test]
    fn the_least_to_copy_comes_first_and_what_cannot_be_read_never() {
        let mut segments: Vec<Segment> = (1..40).map(|n| segment(n, 1000 - 25 * n)).collect();
        assert_eq!(chosen(&segments, &CALM), Some(39));
        segments[38].state = SlotState::Aside;
        assert_eq!(chosen(&segments, &CALM), Some(38));
        for state in [SlotState::Freed, SlotState::Erasing, SlotState::Buffered, SlotState::Damaged]
        {
            segments[37].state = state;
            assert_eq!(chosen(&segments, &CALM), Some(37), "{state:?}");
        }
    }

    #[test]
    fn tombstones_that_must_stay_are_no_dead_space() {
        // The row of 1 is older than all that was removed since.
        let mut segments = vec![segment(1, 1000)];
        segments.extend((2..6).map(|n| marks(n, n)));
        assert_eq!(chosen(&segments, &PRESSED), None);
        segments[0].tables = table_bit(2);
        assert_eq!(chosen(&segments, &PRESSED), Some(2), "nothing of their table is left");
        segments[0] = Segment { tables: table_bit(1), ..segment(20, 1000) };
        assert_eq!(chosen(&segments, &PRESSED), Some(2), "it is younger than they are");
        segments[0] = Segment { state: SlotState::Damaged, ..segment(0, 0) };
        assert_eq!(chosen(&segments, &PRESSED), None, "who knows what it holds");
    }

    #[test]
    fn too_many_tombstones_age_by_a_round_over_the_oldest_segments() {
        let mut segments: Vec<Segment> = (1..=20).map(|n| segment(n, 1000)).collect();
        segments.extend((21..=50).map(|n| marks(n, n)));
        segments.push(segment(60, 1000));
        let (mut rounds, mut next, mut order) = (Rounds::default(), 100, Vec::new());
        while let Some(id) = choose(&segments, &CALM, &mut rounds) {
            let at = segments.iter().position(|segment| segment.id == id).unwrap();
            let rewritten = segments.remove(at);
            next += 1;
            if rewritten.tombstone_bytes == 0 {
                segments.push(segment(next, rewritten.live_bytes));
            }
            order.push(id.incarnation);
            assert!(order.len() < 200, "it has no end: {order:?}");
        }
        assert_eq!(order[..20], (1..=20).collect::<Vec<u64>>()[..], "whatever their live share");
        let rows = segments.iter().filter(|segment| segment.live_bytes > 0);
        assert!(rows.clone().all(|segment| segment.id.incarnation > 50), "{order:?}");
        assert_eq!(rows.count(), 21, "no row is lost");
        // The marks are dead space now, which is won until the rows justify the rest.
        assert!(order[20..].iter().all(|n| (21..=50).contains(n)) && segments.len() <= 36);
    }

    #[test]
    fn a_round_that_wins_nothing_is_not_repeated() {
        let mut segments: Vec<Segment> = (1..=20).map(|n| segment(n, 1000)).collect();
        segments[0].state = SlotState::Aside;
        segments.extend((21..=40).map(|n| marks(n, n)));
        let (mut rounds, mut next, mut steps) = (Rounds::default(), 100, 0);
        while let Some(id) = choose(&segments, &CALM, &mut rounds) {
            let segment = segments.iter_mut().find(|segment| segment.id == id).unwrap();
            next += 1;
            segment.id.incarnation = next;
            steps += 1;
            assert!(steps < 200, "it has no end");
        }
        assert_eq!(steps, 19);
        // Only when there are far more.
        segments.extend((200..220).map(|n| marks(n, n)));
        assert!(choose(&segments, &CALM, &mut rounds).is_some());
    }

    const ROOM: Room = Room { segments: 16, bytes: 100 * SEGMENT, rows: 1000 };

    fn batch(segments: &[Segment], room: Room) -> Vec<u64> {
        let (elders, mut rounds) = (Elders::of(segments), Rounds::default());
        let next = |left: &[Segment]| super::choose(left, &elders, &PRESSED, &mut rounds);
        let batch = super::batch(segments.to_vec(), room, next);
        batch.iter().map(|segment| segment.id.incarnation).collect()
    }

    #[test]
    fn a_batch_has_the_emptiest_as_far_as_there_is_room() {
        let segments: Vec<Segment> = (1..=9).map(|n| segment(n, 1000 - 50 * n)).collect();
        assert_eq!(batch(&segments, ROOM), [9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(batch(&segments, Room { segments: 2, ..ROOM }), [9, 8]);
        assert_eq!(batch(&segments, Room { bytes: 1800, ..ROOM }), [9, 8, 7]);
        assert_eq!(batch(&segments, Room { bytes: 1799, ..ROOM }), [9, 8]);
        assert_eq!(batch(&segments, Room { rows: 4, ..ROOM }), [] as [u64; 0]);
        assert_eq!(batch(&segments, Room { rows: 5, ..ROOM }), [9], "half of ten rows");
    }

    #[test]
    fn a_batch_wins_a_slot_only_if_its_copies_take_fewer() {
        let wins = |live: &[u64]| {
            let batch: Vec<Segment> = (1..).zip(live).map(|(n, &live)| segment(n, live)).collect();
            wins_a_slot(&batch, SEGMENT)
        };
        assert!(!wins(&[]) && wins(&[0]) && !wins(&[1]), "a segment for a segment");
        assert!(wins(&[500, 500]) && !wins(&[500, 501]) && wins(&[500, 501, 900]));
        let short = Segment { written_bytes: 300, data_bytes: 90, ..segment(1, 90) };
        assert!(wins_a_slot(&[short; 3], SEGMENT) && !wins_a_slot(&[short], SEGMENT));
    }

    #[test]
    fn short_segments_are_merged_in_rounds() {
        let short = |n| Segment { written_bytes: 100, data_bytes: 90, ..segment(n, 90) };
        let few: Vec<Segment> = (1..=4).map(short).collect();
        assert_eq!(chosen(&few, &PRESSED), None);
        let mut segments: Vec<Segment> = (1..=10).map(short).collect();
        let mut rounds = Rounds::default();
        for n in 1..=10 {
            let id = choose(&segments, &PRESSED, &mut rounds).unwrap();
            assert_eq!(id.incarnation, n);
            // Sealed as short as it was, by a caller that syncs.
            segments.retain(|segment| segment.id != id);
            segments.push(short(n + 100));
        }
        assert_eq!(choose(&segments, &PRESSED, &mut rounds), None, "a round for nothing");
    }
}
