//! Checkpoints: rows that only old journal files hold are written back, then those files go.
//!
//! No call waits for one. Once the calls that were ordered before the rotation have passed a
//! stripe, no row of it comes to need the old files any more; those that do are written back a few
//! at a time, each step under the stripe's lock for less than a millisecond, outside of any turn.

use std::sync::atomic::Ordering::Relaxed;

use super::engine::Engine;
use super::pressure::Patience;
use crate::error::Result;
use crate::history::RESERVED;
use crate::superblock::Superblock;
use crate::table::{Due, State, Tickets};
use crate::types::Sequence;

/// Bytes that one step writes back under a stripe's lock, and rows at most and at least.
const STEP_BYTES: usize = 256 << 10;
const STEP_ROWS_MAX: usize = 256;
const STEP_ROWS_MIN: usize = 4;

impl Engine {
    /// Runs `work` on a stripe after all calls ordered so far.
    pub(super) fn in_turn<T>(&self, s: usize, work: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut tickets = {
            let mut sequencer = self.sequencer.lock();
            sequencer.tickets[s] += 1;
            let drawn = vec![(s, sequencer.tickets[s] - 1)];
            Tickets::new(&self.stripes, sequencer.last, drawn)
        };
        let (_, mut state) = tickets.next_turn()?;
        Some(work(&mut state))
    }

    /// Writes back what the older journal files are needed for, then deletes them. `all` writes
    /// every dirty row, training counts included.
    ///
    /// # Errors
    /// `StoreFull` when log or file system have no room: the next checkpoint goes on from there.
    pub(super) fn checkpoint(&self, all: bool) -> Result<()> {
        let mut unfinished = self.unfinished.lock();
        let generation = match *unfinished {
            Some(generation) if !all => generation,
            _ => self.rotate()?,
        };
        *unfinished = Some(generation);
        let last = self.sequencer.lock().last;
        self.write_back(if all { Due::All } else { Due::Journal(generation) })?;
        self.write_superblock(false, None)?;
        // Steps are counted by the entries that go.
        self.save_expiry()?;
        // They have passed all stripes; a removal has told the new file what it found, too.
        self.running.wait_before(last + 1);
        self.journal().drop_through(generation)?;
        *unfinished = None;
        self.write_candidates()
    }

    /// Begins a journal file; returns the generation of the one before. Whatever is ordered later
    /// needs the new file.
    fn rotate(&self) -> Result<u32> {
        let next = self.journal().prepare()?;
        let new = {
            // A change of tables whose entry is in the old file is in the manifest then.
            let _definitions = self.directory.lock();
            let mut sequencer = self.sequencer.lock();
            let records = sequencer.sessions.records(self.clock.seconds());
            self.journal().switch(next, records, sequencer.last)?
        };
        // Pushes go on meanwhile.
        self.journal().sync()?;
        Ok(new - 1)
    }

    /// Writes back rows that are due at the time of the call, keeping them in DRAM. Returns the
    /// sequence up to which all changes were there when their stripe was looked at: a new one,
    /// above all that reads had made by then.
    fn write_back(&self, due: Due) -> Result<Sequence> {
        let (tickets, last) = {
            let mut sequencer = self.sequencer.lock();
            self.order_entry(&mut sequencer, None)?;
            (sequencer.tickets.clone(), sequencer.last)
        };
        let rows_max = self.step_rows();
        for (stripe, ticket) in self.stripes.iter().zip(tickets) {
            stripe.wait_served(ticket);
            // Rows that are made dirty meanwhile need a later file; without one they could be met
            // again and again, so that the last of as many steps as it takes writes all.
            let rows = {
                let mut state = stripe.lock();
                // What a read makes from here on is newer than what is promised.
                state.progress.lift(last);
                state.rows()
            };
            let mut steps = 2 * rows / rows_max + 1;
            let mut patience = Patience::new(self, false);
            loop {
                let rows_max = if steps > 0 { rows_max } else { usize::MAX };
                let step = stripe.lock().write_back(&self.tier, due, rows_max);
                match step {
                    Ok(true) => break,
                    Ok(false) => steps = steps.saturating_sub(1),
                    Err(error) => patience.make_log_room(error)?,
                }
                if self.log_free() < self.log_reserve() {
                    self.compact()?;
                }
                std::thread::yield_now();
            }
        }
        Ok(last)
    }

    /// Rows of one step: those of the widest table decide.
    fn step_rows(&self) -> usize {
        let catalog = self.catalog.read();
        let floats = catalog.by_id.values().map(|table| table.floats).max().unwrap_or(1);
        (STEP_BYTES / (4 * floats)).clamp(STEP_ROWS_MIN, STEP_ROWS_MAX)
    }

    /// Syncs log and journal and notes their ends; and that all changes up to `whole` are in the
    /// log.
    pub(super) fn write_superblock(&self, clean: bool, whole: Option<Sequence>) -> Result<()> {
        let log = self.tier.log.sync()?;
        let journal = self.journal().sync()?;
        let last = self.sequencer.lock().last;
        let mut file = self.superblock.lock();
        // Of two at once the later may come first: known ends never go back.
        let mut known = file.current().clone();
        known.history.whole = known.history.whole.max(whole.unwrap_or(0));
        let next = Superblock {
            next_sequence: known.next_sequence.max(last + RESERVED),
            log_incarnation_end: known.log_incarnation_end.max(log.incarnation),
            journal: known.journal.max(journal),
            clean,
            ..known
        };
        let reserved = next.next_sequence;
        file.write(next)?;
        self.reserved.fetch_max(reserved, Relaxed);
        Ok(())
    }

    /// Sets sequences aside for more calls, long before the last of them is needed.
    pub(super) fn reserve_calls(&self) -> Result<()> {
        let last = self.sequencer.lock().last;
        if last + RESERVED / 2 < self.reserved.load(Relaxed) {
            return Ok(());
        }
        let mut file = self.superblock.lock();
        let known = file.current().clone();
        let next_sequence = known.next_sequence.max(last + RESERVED);
        file.write(Superblock { next_sequence, ..known })?;
        self.reserved.fetch_max(next_sequence, Relaxed);
        Ok(())
    }

    /// Forgets removals up to `floor`, once the superblock says so.
    pub(super) fn raise_floor(&self, floor: Sequence) -> Result<()> {
        let mut file = self.superblock.lock();
        let mut next = file.current().clone();
        next.history.floor = next.history.floor.max(floor);
        file.write(next)?;
        self.tier.log.raise_floor(floor);
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<()> {
        // A checkpoint writes rows back, too: one at a time.
        let unfinished = self.unfinished.lock();
        // The journal has all others.
        let due = if self.is_journaled() { Due::Made } else { Due::All };
        let whole = self.write_back(due)?;
        drop(unfinished);
        self.save_expiry()?;
        self.write_candidates()?;
        self.write_superblock(false, Some(whole))
    }
}
