//! The one background thread: keeps the journal within its share by writing old dirty rows back,
//! and the log within its cap by compaction. Callers wait for it only when the log is nearly full.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::engine::{now, Engine};
use crate::error::{Error, Result};
use crate::index::Location;
use crate::log::{Record, RecordView, SegmentId, Stream};
use crate::superblock::Superblock;
use crate::table::{stripe_of, Found, Item, State, Tickets};
use crate::types::{hash, Place, TableId};

/// Pause between rounds when nobody asks.
const PERIOD: Duration = Duration::from_millis(200);
/// Live share below which a segment is worth compacting: space x1.43, about two writes a row.
const LIVE_SHARE_MAX: f64 = 0.7;
/// How long a caller waits for room before it is told that the store is full.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn start(engine: Arc<Engine>) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name("hps-maintain".into()).spawn(move || run(&engine)).map_err(
        |cause| Error::unavailable(format!("cannot start the maintenance thread: {cause}")),
    )
}

pub(super) fn stop(engine: &Engine, thread: JoinHandle<()>) {
    engine.wake.state.lock().is_stopping = true;
    engine.wake.worker.notify_one();
    if thread.join().is_err() {
        engine.fail(&Error::unavailable("the maintenance thread panicked"));
    }
}

fn run(engine: &Engine) {
    loop {
        let mut state = engine.wake.state.lock();
        if !state.is_asked && !state.is_stopping {
            engine.wake.worker.wait_for(&mut state, PERIOD);
        }
        if state.is_stopping {
            return;
        }
        state.is_asked = false;
        drop(state);
        // A panic fails the store, but not the thread: callers wait for its rounds.
        let round = catch_unwind(AssertUnwindSafe(|| engine.maintain()));
        let panicked = || Err(Error::unavailable("the maintenance thread panicked"));
        if let Err(error) = round.unwrap_or_else(|_| panicked()) {
            engine.fail(&error);
        }
        engine.wake.state.lock().rounds += 1;
        engine.wake.callers.notify_all();
    }
}

impl Engine {
    fn maintain(&self) -> Result<()> {
        if self.check_open().is_err() {
            return Ok(());
        }
        self.compact()?;
        if self.is_journaled() && self.journal().bytes() > self.config.journal_bytes() / 2 {
            self.checkpoint(false)?;
        }
        Ok(())
    }

    /// Bytes that the log keeps free, so that evictions of running calls always find room.
    pub(super) fn log_reserve(&self) -> u64 {
        (self.tier.log.capacity_bytes() / 16).max(8 * self.tier.log.segment_bytes())
    }

    pub(super) fn log_free(&self) -> u64 {
        let log = &self.tier.log;
        u64::from(log.free_segments()) * log.segment_bytes()
    }

    /// The journal may pass its share by one call, which is half a share at most.
    fn is_journal_long(&self) -> bool {
        let share = self.config.journal_bytes();
        self.is_journaled() && self.journal().bytes() > share + share / 2
    }

    /// Back-pressure: returns when the log has room for what this call may push out of DRAM, and
    /// the journal for its entry.
    pub(super) fn wait_for_space(&self) -> Result<()> {
        if self.log_free() >= self.log_reserve() && !self.is_journal_long() {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.wake.state.lock();
        while self.log_free() < self.log_reserve() / 2 || self.is_journal_long() {
            state.is_asked = true;
            self.wake.worker.notify_one();
            if self.wake.callers.wait_until(&mut state, deadline).timed_out() {
                return Err(Error::store_full(format!(
                    "the log holds {} of {} bytes and the journal {}, and neither compaction nor \
                     write-back finds room; raise nvme or remove keys",
                    self.tier.log.used_bytes(),
                    self.tier.log.capacity_bytes(),
                    self.journal().bytes()
                )));
            }
            self.failure.check()?;
        }
        self.wake.worker.notify_one();
        Ok(())
    }

    /// Runs `work` on every stripe after all calls ordered so far. Each stripe gets a turn of its
    /// own, so that no call waits longer than for one stripe, and the log is given room before.
    pub(super) fn for_each_stripe_in_turn(
        &self,
        mut work: impl FnMut(&mut State) -> Result<()>,
    ) -> Result<()> {
        for s in 0..self.stripes.len() {
            if self.log_free() < self.log_reserve() {
                self.compact()?;
            }
            let mut tickets = {
                let mut sequencer = self.sequencer.lock();
                sequencer.tickets[s] += 1;
                let drawn = vec![(s, sequencer.tickets[s] - 1)];
                Tickets::new(&self.stripes, sequencer.last, drawn)
            };
            if let Some((_, mut state)) = tickets.next_turn() {
                work(&mut state)?;
            }
        }
        Ok(())
    }

    /// Writes back what the older journal files are needed for, then deletes them. `all` writes
    /// every dirty row, training counts included.
    pub(super) fn checkpoint(&self, all: bool) -> Result<()> {
        // Leaves little to sync to the rotation, which holds every push up.
        self.journal().sync()?;
        let generation = {
            let mut sequencer = self.sequencer.lock();
            let old = self.journal().generation();
            let (records, last) = (sequencer.sessions.records(now()), sequencer.last);
            self.journal().rotate(records, last)?;
            old
        };
        let bound = (!all).then_some(generation);
        self.for_each_stripe_in_turn(|state| state.write_back(&self.tier, bound).map(drop))?;
        self.write_superblock(false)?;
        self.journal().drop_through(generation)
    }

    /// Syncs log and journal and notes their ends.
    pub(super) fn write_superblock(&self, clean: bool) -> Result<()> {
        let log = self.tier.log.sync()?;
        let journal = self.journal().sync()?;
        let last = self.sequencer.lock().last;
        let mut file = self.superblock.lock();
        // Of two at once the later may come first: known ends never go back.
        let known = file.current().clone();
        let next = Superblock {
            next_sequence: known.next_sequence.max(last + 1),
            log_incarnation_end: known.log_incarnation_end.max(log.incarnation),
            journal: known.journal.max(journal),
            clean,
            ..known
        };
        file.write(next)
    }

    pub(super) fn flush(&self) -> Result<()> {
        if !self.is_journaled() {
            self.for_each_stripe_in_turn(|state| state.write_back(&self.tier, None).map(drop))?;
        }
        self.write_superblock(false)
    }

    /// Compacts while segments are worth it and the log holds more than its live rows justify.
    pub(super) fn compact(&self) -> Result<()> {
        let _alone = self.compacting.lock();
        while self.is_compaction_due() {
            let Some(segment) = self.tier.log.victim(self.victim_share()) else { break };
            self.compact_segment(segment)?;
            // Its slot comes back by itself once the copies are on the device.
            self.tier.log.free(segment);
        }
        // But where every caller waits for room nobody fills the segments that hold the copies.
        if self.log_free() < self.log_reserve() && self.tier.log.freed_segments() > 0 {
            self.tier.log.sync()?;
        }
        Ok(())
    }

    fn is_compaction_due(&self) -> bool {
        let log = &self.tier.log;
        let freed = u64::from(log.freed_segments()) * log.segment_bytes();
        let used = log.used_bytes().saturating_sub(freed);
        let spare = 4 * log.segment_bytes();
        used as f64 * LIVE_SHARE_MAX > (log.live_bytes() + spare) as f64
            || self.log_free() + freed < self.log_reserve()
    }

    /// Under pressure any segment with dead records will do.
    fn victim_share(&self) -> f64 {
        if self.log_free() < self.log_reserve() {
            0.98
        } else {
            0.9
        }
    }

    /// Copies the live records of a segment to the compaction stream.
    fn compact_segment(&self, segment: SegmentId) -> Result<()> {
        let is_oldest = self.tier.log.is_oldest(segment);
        let mut outcome = Ok(());
        self.tier.log.scan(segment, &mut |place, table, record| {
            if outcome.is_ok() {
                outcome = record.and_then(|record| self.copy(place, table, &record, is_oldest));
            }
        })?;
        outcome
    }

    fn copy(
        &self,
        place: Place,
        table: TableId,
        record: &RecordView<'_>,
        is_oldest: bool,
    ) -> Result<()> {
        let log = &self.tier.log;
        if record.tombstone {
            // While an older segment may hold the key, its removal must be remembered.
            if !is_oldest && self.catalog.read().by_id.contains_key(&table) {
                log.append_tombstone(Stream::Compaction, table, record.key, record.sequence)?;
            }
            return Ok(());
        }
        let hash = hash(record.key);
        let mut state = self.stripes[stripe_of(hash, self.stripes.len())].lock();
        let Some(part) = state.parts.get_mut(&table) else { return Ok(()) };
        let copy = || {
            log.append(
                Stream::Compaction,
                table,
                &Record {
                    key: record.key,
                    sequence: record.sequence,
                    last_seen: record.last_seen,
                    frequency: record.frequency,
                    row: record.row,
                },
            )
        };
        if let Some(slot) = part.slot(hash, Location::nvme(place)) {
            let new = copy()?;
            part.index.relocate(slot, Location::nvme(new));
            log.release(place, part.table.floats);
            return Ok(());
        }
        // A row in DRAM whose record this is: its eviction returns to it, its recovery begins
        // with it.
        let item = Item { key: record.key, hash, index: 0 };
        if let Found::Dram(at) = part.find(&item, |_| true) {
            if part.pool.header(at).state.place() == Some(place) {
                let new = copy()?;
                part.pool.header_mut(at).state.set_place(new);
                log.release(place, part.table.floats);
            }
        }
        Ok(())
    }
}
