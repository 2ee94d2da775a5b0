//! The one background thread: keeps the journal within its share by writing old dirty rows back,
//! and the log within its cap by compaction. Callers wait for it only when the log is nearly full.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::index::Location;
use crate::log::{FooterEntry, Read, Record, RecordView, SegmentId, Stream};
use crate::superblock::Superblock;
use crate::table::{stripe_of, Counters, Found, Guard, Item, State, Tickets};
use crate::types::{hash, Place, Sequence, TableId};

/// Pause between rounds when nobody asks.
const PERIOD: Duration = Duration::from_millis(200);
/// Live share below which a segment is worth compacting: space x1.43, about two writes a row.
const LIVE_SHARE_MAX: f64 = 0.7;
/// Pause of a call that waits in its turn for others to give slots free.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a caller waits for room before it is told that the store is full.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });

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
        match round.unwrap_or_else(|_| panicked()) {
            // Nothing is half done then: the journal keeps what was not written back, and callers
            // are told that the store is full.
            Err(error) if error.kind == ErrorKind::StoreFull => {}
            Err(error) => engine.fail(&error),
            Ok(()) => {}
        }
        engine.wake.state.lock().rounds += 1;
        engine.wake.callers.notify_all();
    }
}

impl Engine {
    fn maintain(&self) -> Result<()> {
        if self.failure.check().is_err() {
            return Ok(());
        }
        self.account();
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
                self.with_log_room(&mut state, |state| work(state))?;
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
            let (records, last) =
                (sequencer.sessions.records(self.clock.seconds()), sequencer.last);
            self.journal().rotate(records, last)?;
            old
        };
        let bound = (!all).then_some(generation);
        self.for_each_stripe_in_turn(|state| {
            state.write_back(&self.tier, bound, usize::MAX).map(drop)
        })?;
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
            self.for_each_stripe_in_turn(|state| {
                state.write_back(&self.tier, None, usize::MAX).map(drop)
            })?;
        }
        self.write_superblock(false)
    }

    /// Compacts while segments are worth it and the log holds more than its live rows justify.
    pub(super) fn compact(&self) -> Result<()> {
        let _alone = self.compacting.lock();
        while self.is_compaction_due() {
            let Some(segment) = self.tier.log.victim(self.victim_share()) else { break };
            match self.compact_segment(segment) {
                // Slots come back when the calls that may look at them end: then it goes on.
                Err(error) if error.kind == ErrorKind::StoreFull => break,
                outcome => outcome?,
            }
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

    /// Does `work` under a stripe's lock. Where the log is full, the lock is given up (a turn is
    /// not) until compaction has made room, and the work is done again: until it has room it
    /// changes nothing.
    pub(super) fn with_log_room<T>(
        &self,
        state: &mut Guard<'_>,
        mut work: impl FnMut(&mut Guard<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut patience = Patience::new(self);
        loop {
            match work(state) {
                Err(error) => Guard::unlocked(state, || patience.make_log_room(error))?,
                outcome => return outcome,
            }
        }
    }

    /// Reads for training again, from the start, if the log was full: rows that were read by then
    /// are counted once more.
    pub(super) fn again_with_log_room(&self, mut read: impl FnMut() -> Result<()>) -> Result<()> {
        let mut patience = Patience::new(self);
        while let Err(error) = read() {
            patience.make_log_room(error)?;
        }
        Ok(())
    }

    /// Copies the live records of a segment to the compaction stream, and frees it.
    fn compact_segment(&self, segment: SegmentId) -> Result<()> {
        let log = &self.tier.log;
        let is_oldest = log.is_oldest(segment);
        let (mut outcome, mut is_damaged) = (Ok(()), false);
        let scanned = log.scan(segment, &mut |place, table, record| match record {
            Err(_) => is_damaged = true,
            Ok(record) if outcome.is_ok() => {
                outcome = self.copy(place, table, &record, is_oldest);
            }
            Ok(_) => {}
        });
        outcome?;
        if is_damaged || scanned.is_err() {
            return self.salvage(segment, is_oldest);
        }
        // Its slot comes back by itself once the copies are on the device.
        log.free(segment);
        Ok(())
    }

    /// What a damaged segment still holds, by its footer: sound records are copied, rows that are
    /// in DRAM too are written anew. If a live row stays that cannot be read, so does the segment.
    fn salvage(&self, segment: SegmentId, is_oldest: bool) -> Result<()> {
        let log = &self.tier.log;
        let mut entries = Vec::new();
        let mut is_whole = log.entries_of(segment, &mut |entry| entries.push(entry)).is_ok();
        for entry in entries {
            if entry.tombstone {
                self.copy_tombstone(entry.table, entry.key, entry.sequence, is_oldest)?;
            } else {
                is_whole &= self.rescue(&entry)?;
            }
        }
        if is_whole {
            log.free(segment);
        } else {
            log.set_aside(segment);
        }
        Ok(())
    }

    /// Moves the row of a record elsewhere, if it is live. False if it cannot be read.
    fn rescue(&self, entry: &FooterEntry) -> Result<bool> {
        let log = &self.tier.log;
        let item = Item { key: entry.key, hash: hash(entry.key), index: 0 };
        let stripe = &self.stripes[stripe_of(item.hash, self.stripes.len())];
        let (table, pin) = {
            let mut state = stripe.lock();
            let Some(part) = state.parts.get(&entry.table) else { return Ok(true) };
            let table = part.table.clone();
            if part.slot(item.hash, Location::nvme(entry.place)).is_none() {
                return state.rewrite(&self.tier, table.id, &item, entry.place).map(|()| true);
            }
            (table, log.pin())
        };
        let (mut outcome, mut is_read) = (Ok(()), false);
        let (row_floats, table) = (entry.row_floats, table);
        let mut reads = [Read { place: entry.place, row_floats, table: table.id, tag: 0 }];
        log.read(&pin, &mut reads, &mut |_, record| {
            if let Ok(record) = record {
                is_read = true;
                outcome = self.copy(entry.place, table.id, &record, false);
            }
        });
        Counters::add(&table.counters.corrupt_records, usize::from(!is_read));
        outcome.map(|()| is_read)
    }

    fn copy_tombstone(
        &self,
        table: TableId,
        key: u64,
        sequence: Sequence,
        is_oldest: bool,
    ) -> Result<()> {
        // While an older segment may hold the key, its removal must be remembered.
        if !is_oldest && self.catalog.read().by_id.contains_key(&table) {
            self.tier.log.append_tombstone(Stream::Compaction, table, key, sequence)?;
        }
        Ok(())
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
            return self.copy_tombstone(table, record.key, record.sequence, is_oldest);
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

/// How long work that the log refuses is tried again.
struct Patience<'a> {
    engine: &'a Engine,
    refused: u64,
    deadline: Option<Instant>,
}

impl<'a> Patience<'a> {
    fn new(engine: &'a Engine) -> Self {
        Self { engine, refused: engine.tier.log.refused(), deadline: None }
    }

    /// One round of compaction, and a pause if calls that may look at freed slots go on.
    ///
    /// # Errors
    /// `error`, if it is not for want of a slot, or the time is over.
    fn make_log_room(&mut self, error: Error) -> Result<()> {
        let log = &self.engine.tier.log;
        let refused = std::mem::replace(&mut self.refused, log.refused());
        let is_log_full = error.kind == ErrorKind::StoreFull && self.refused != refused;
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
        if !is_log_full || Instant::now() > deadline {
            return Err(error);
        }
        self.engine.failure.check()?;
        self.engine.compact()?;
        if !log.has_room() {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}
