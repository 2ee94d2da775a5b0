//! Demotion: rows that are rarely read move from NVMe to the slower disk before NVMe runs short, a
//! batch of segments at a time; and segments there are rewritten as their rows die, in batches too,
//! for the last one that a batch fills is short.
//!
//! Records are copied, the copies synced, and only then named by the index, so wherever it ends a
//! row is in one place at least. Nobody waits for the slower disk under a lock, and what goes wrong
//! with it does not fail the store: what cannot go down stays.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::compaction::Copying;
use super::engine::Engine;
use crate::cold_directory::ColdDirectory;
use crate::error::{ErrorKind, Result};
use crate::ledger::Kind;
use crate::log::{Record, RecordView, Room, SegmentId, Stream, Volume, SCAN_BYTES};
use crate::table::{stripe_of, Item};
use crate::types::{hash, Disk, Place, TableId};

/// Bytes of the segments of a batch, and how many there are at most and at least: the more, the
/// less it costs that the last segment on the cold disk is short, and two syncs.
const BATCH_BYTES: u64 = 16 << 20;
const SEGMENTS_MAX: u64 = 16;
const SEGMENTS_MIN: u64 = 4;
/// Memory for the moves of a batch, in segments.
const MOVES_SEGMENTS: u64 = 2;
/// Slots of the cold volume that rows coming down leave to the rewriting of what is there: with as
/// many live rows as it may have, so many win one at least.
const COLD_RESERVED: u64 = 8;
/// Segments that are begun before it is tried again where most rows were too warm to go.
const PAUSE_SEGMENTS: u64 = 64;

/// A record that was copied, and is not yet named by the index.
struct Move {
    table: TableId,
    floats: u32,
    key: u64,
    old: Place,
    new: Place,
}

impl Engine {
    /// Moves a batch of rarely read rows down, if NVMe has more live rows than it should. True if
    /// that is to go on at once: slots are short. The caller holds `compacting`.
    pub(super) fn demote(&self, is_pressed: bool) -> Result<bool> {
        let Some(cold) = self.usable_cold() else { return Ok(false) };
        let log = &self.tier.log;
        let again = self.demotes_again.load(Relaxed);
        let is_early = log.begun_segments() < again || !self.loading.is_done();
        if (is_early && !is_pressed) || !self.is_nvme_full() {
            return Ok(false);
        }
        let outcome = self.find_room_below(cold).and_then(|room| {
            let rarest = log.rarest(is_pressed, room);
            Batch::new(self, cold, Stream::Rows, is_pressed).run(&rarest)
        });
        let Some(moved) = self.forgive(outcome)? else { return Ok(false) };
        if moved.stayed > moved.went {
            self.demotes_again.store(log.begun_segments() + PAUSE_SEGMENTS, Relaxed);
        }
        Ok(is_pressed && moved.went > 0)
    }

    fn is_nvme_full(&self) -> bool {
        self.tier.log.live_written_bytes() >= self.demotes_from.load(Relaxed)
    }

    /// Rewrites segments of the cold volume, if that holds more than its rows justify.
    pub(super) fn tend_cold(&self) -> Result<()> {
        let _alone = self.compacting.lock();
        let Some(cold) = self.usable_cold().filter(|_| self.loading.is_done()) else {
            return Ok(());
        };
        self.forgive(self.rewrite(cold, false)).map(drop)
    }

    /// What a batch may bring down now, after room was made for it. All rows there together stay
    /// below what lets a rewriting win slots.
    fn find_room_below(&self, cold: &Volume) -> Result<Room> {
        let slot_bytes = cold.segment_bytes();
        let rows_max = self.config.cold_record_bytes_max(slot_bytes);
        let left = rows_max.saturating_sub(cold.live_written_bytes());
        let wanted = left.min(self.segments_of_a_batch() * self.tier.log.segment_bytes());
        let free = || u64::from(cold.free_segments()).saturating_sub(COLD_RESERVED) * slot_bytes;
        if free() < wanted {
            self.rewrite(cold, true)?;
        }
        Ok(self.batch_of(free().min(wanted)))
    }

    fn segments_of_a_batch(&self) -> u64 {
        (BATCH_BYTES / self.tier.log.segment_bytes()).clamp(SEGMENTS_MIN, SEGMENTS_MAX)
    }

    /// A batch of at most so many bytes.
    fn batch_of(&self, bytes: u64) -> Room {
        let moves_bytes = MOVES_SEGMENTS * self.tier.log.segment_bytes();
        let rows = moves_bytes / size_of::<Move>() as u64;
        Room { segments: self.segments_of_a_batch() as usize, bytes, rows }
    }

    /// Rewrites the segments of the cold volume with most to win, if that wins a slot, and brings
    /// their slots back; under pressure (`is_pressed`) although its rows justify them. What has
    /// come down stays there until it is read: else it would go up and down.
    fn rewrite(&self, cold: &Volume, is_pressed: bool) -> Result<()> {
        self.recall_cold(cold)?;
        let room = self.batch_of(u64::from(cold.rewritable_segments()) * cold.segment_bytes());
        let victims = self.tier.log.cold_victims(is_pressed, room);
        Batch::new(self, cold, Stream::Compaction, true).run(&victims)?;
        self.recall_cold(cold)
    }

    /// Brings freed slots of the cold volume back. Where slots are short NVMe is synced for that:
    /// what replaced their rows may be in memory.
    fn recall_cold(&self, cold: &Volume) -> Result<()> {
        let slot_bytes = cold.segment_bytes();
        let reserve = (cold.capacity_bytes() / 16).max(2 * COLD_RESERVED * slot_bytes);
        let is_short = u64::from(cold.free_segments()) * slot_bytes < reserve;
        if is_short && cold.freed_segments() > 0 {
            match self.tier.log.sync() {
                Err(error) if error.kind != ErrorKind::StoreFull => return Err(error),
                _ => {}
            }
        }
        cold.recall()
    }

    /// The cold volume, if rows can go there.
    fn usable_cold(&self) -> Option<&Volume> {
        let log = &self.tier.log;
        log.cold().filter(|_| log.cold_trouble().is_none()).map(|cold| &**cold)
    }

    /// What the slower disk refuses is told by `health`, and is no failure of the store.
    fn forgive<T>(&self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Err(error) if self.tier.log.check().is_ok() && self.failure.check().is_ok() => {
                if error.kind != ErrorKind::StoreFull {
                    self.failure.note_refusal(&error);
                }
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }
}

/// How many rows of a batch went down, and how many live ones stayed on NVMe.
#[derive(Default)]
struct Moved {
    went: usize,
    stayed: usize,
}

/// Segments of which the rows go to the cold volume together.
pub(super) struct Batch<'a> {
    engine: &'a Engine,
    cold: &'a Volume,
    stream: Stream,
    /// Slots are short: also rows go that were read of late.
    is_pressed: bool,
    moves: Vec<Move>,
    stayed: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        cold: &'a Volume,
        stream: Stream,
        is_pressed: bool,
    ) -> Self {
        Self { engine, cold, stream, is_pressed, moves: Vec::new(), stayed: 0 }
    }

    /// Moves the rows of segments, and frees those of which nothing is left.
    fn run(mut self, segments: &[SegmentId]) -> Result<Moved> {
        if segments.is_empty() {
            return Ok(Moved::default());
        }
        let (engine, log) = (self.engine, &self.engine.tier.log);
        engine.cold.lock().as_ref().map_or(Ok(()), ColdDirectory::link)?;
        let mut held = engine.ledger.hold(Kind::Buffers, SCAN_BYTES as u64);
        let (mut copied, mut outcome) = (0, Ok(()));
        for &segment in segments {
            match self.copy_segment(segment) {
                Ok(true) => copied += 1,
                // Compaction knows what to do with a damaged one, and frees it if it can.
                Ok(false) => {
                    outcome = engine.compact_segment(segment).map(drop);
                    break;
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
            let moves = self.moves.capacity() * size_of::<Move>();
            held.resize((SCAN_BYTES + moves) as u64);
        }
        let moved = Moved { went: self.moves.len(), stayed: self.stayed };
        self.settle()?;
        segments[..copied].iter().for_each(|&segment| log.free(segment));
        outcome.map(|()| moved)
    }

    /// Copies what must stay of a segment: marks of removals at last, on NVMe, so that one that is
    /// left half done has not doubled them. False if some of it is damaged.
    pub(super) fn copy_segment(&mut self, segment: SegmentId) -> Result<bool> {
        let engine = self.engine;
        // Of keys that are not in the index it would take the records for dead.
        engine.load_rest()?;
        let copying = Copying::of(engine, segment);
        let (mut outcome, mut is_sound) = (Ok(()), true);
        let mut records: BTreeMap<TableId, u64> = BTreeMap::new();
        let mut marks: Vec<(Place, TableId, RecordView<'static>)> = Vec::new();
        let scanned = engine.tier.log.scan(segment, &mut |place, table, record| match record {
            Err(_) => is_sound = false,
            Ok(record) if outcome.is_ok() => {
                *records.entry(table).or_default() += 1;
                if record.tombstone {
                    marks.push((place, table, RecordView { row: &[], ..record }));
                } else {
                    outcome = self.copy_row(&copying, place, table, &record);
                }
            }
            Ok(_) => {}
        });
        engine.count_scan(&records, scanned.as_ref().copied().unwrap_or_default());
        outcome?;
        if segment.disk == Disk::Cold {
            // A slower disk that cannot be read is not damaged.
            scanned?;
        } else {
            is_sound &= scanned.is_ok();
        }
        if is_sound {
            marks.iter().try_for_each(|(place, table, mark)| copying.copy(*place, *table, mark))?;
        }
        Ok(is_sound)
    }

    /// Copies a live row: down, or on NVMe if it was visited often of late.
    fn copy_row(
        &mut self,
        copying: &Copying<'_>,
        place: Place,
        table: TableId,
        record: &RecordView<'_>,
    ) -> Result<()> {
        let (engine, log) = (self.engine, &self.engine.tier.log);
        let item = Item { key: record.key, hash: hash(record.key), index: 0 };
        // Here, and not under the lock, the devices are waited for.
        self.cold.wait_for_buffer()?;
        log.wait_for_buffer()?;
        let state = engine.stripes[stripe_of(item.hash, engine.stripes.len())].lock();
        let Some(is_warm) = state.is_warm(table, &item, place) else { return Ok(()) };
        if is_warm && !self.is_pressed {
            drop(state);
            self.stayed += 1;
            return copying.copy_row(place, table, record);
        }
        let RecordView { key, sequence, last_seen, frequency, row, .. } = *record;
        let copy = Record { key, sequence, last_seen, frequency, row };
        let new = self.cold.copy(self.stream, table, &copy)?;
        self.moves.push(Move { table, floats: row.len() as u32, key, old: place, new });
        Ok(())
    }

    /// Syncs the copies, and names them in the index.
    pub(super) fn settle(&mut self) -> Result<()> {
        let (engine, log) = (self.engine, &self.engine.tier.log);
        if self.moves.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.cold.settle() {
            self.moves.iter().for_each(|copy| log.release(copy.new, copy.floats as usize));
            return Err(error);
        }
        for &Move { table, floats, key, old, new } in &self.moves {
            let item = Item { key, hash: hash(key), index: 0 };
            let mut state = engine.stripes[stripe_of(item.hash, engine.stripes.len())].lock();
            let is_moved = state.redirect(table, &item, old, new);
            log.release(if is_moved { old } else { new }, floats as usize);
        }
        Ok(())
    }
}
