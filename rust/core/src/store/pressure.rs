//! Back-pressure: callers wait for room in the log and in the journal before they take a place in
//! the order, and a call that has its place makes room itself.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::table::{stripe_of, Guard, State};

/// Pause of a call that waits in its turn for others to give slots free.
const PAUSE: Duration = Duration::from_millis(1);
/// Segments that are begun between two rounds of compaction, while calls come.
const PACE_SEGMENTS: u64 = 4;
/// How long a caller waits for room before it is told that the store is full.
pub(super) const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });

impl Engine {
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
    ///
    /// # Errors
    /// `StoreFull` when neither finds room in time; at once where the file system is full.
    pub(super) fn wait_for_space(&self) -> Result<()> {
        self.find_space().inspect_err(|error| self.note_refusal(error))
    }

    fn find_space(&self) -> Result<()> {
        self.saving.wait_for_room();
        self.check_no_space()?;
        if self.log_free() >= self.log_reserve() && !self.is_journal_long() {
            self.pace_compaction();
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.wake.state.lock();
        while self.log_free() < self.log_reserve() / 2 || self.is_journal_long() {
            state.is_asked = true;
            self.wake.worker.notify_one();
            if self.wake.callers.wait_until(&mut state, deadline).timed_out() {
                return Err(self.full());
            }
            self.failure.check()?;
            self.check_no_space()?;
        }
        self.wake.worker.notify_one();
        Ok(())
    }

    /// Compaction follows what is written, a few segments behind: were it left to its period, it
    /// would come in bursts that calls wait for.
    fn pace_compaction(&self) {
        let begun = self.tier.log.begun_segments();
        if begun >= self.wake.begun_segments.load(Ordering::Relaxed) + PACE_SEGMENTS {
            self.wake.ask();
        }
    }

    fn check_no_space(&self) -> Result<()> {
        self.tier.log.no_space().map_or(Ok(()), Err)
    }

    fn full(&self) -> Error {
        let log = &self.tier.log;
        let (below, remedy) = match (log.cold(), log.cold_trouble()) {
            (None, _) => (String::new(), "raise nvme"),
            (Some(_), Some(error)) => {
                (format!("; {}", error.message), "mend the cold disk, raise nvme")
            }
            (Some(cold), None) => (
                format!(
                    "; the cold disk holds {} of {} bytes ({} live)",
                    cold.used_bytes(),
                    cold.capacity_bytes(),
                    cold.live_bytes()
                ),
                "raise nvme or cold_cap",
            ),
        };
        Error::store_full(format!(
            "the log holds {} of {} bytes ({} of them live rows) and the journal {}, and neither \
             compaction nor write-back finds room{below}; {remedy} or remove keys",
            log.used_bytes(),
            log.capacity_bytes(),
            log.live_bytes(),
            self.journal().bytes()
        ))
    }

    /// Does `work` under the lock of a key's stripe, for a thread in the background. Where it would
    /// wait for the device, the lock is given up meanwhile.
    pub(super) fn outside_of_turns<T>(
        &self,
        hash: u64,
        mut work: impl FnMut(&mut State) -> Result<T>,
    ) -> Result<T> {
        let stripe = &self.stripes[stripe_of(hash, self.stripes.len())];
        loop {
            let outcome = work(&mut stripe.lock());
            match outcome {
                Err(error) if error.kind == ErrorKind::Busy => self.tier.log.wait_for_buffer()?,
                outcome => return outcome,
            }
        }
    }

    /// Does `work` under a stripe's lock, of a call that has its place in the order. Where the log
    /// is busy or full, the lock is given up (a turn is not) until it has a buffer, or compaction
    /// has made room, and the work is done again: until it has room it changes nothing. Where the
    /// file system is full, until there is space: the call's entry is in the journal, so it cannot
    /// be refused any more.
    pub(super) fn with_log_room<T>(
        &self,
        state: &mut Guard<'_>,
        mut work: impl FnMut(&mut Guard<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut patience = Patience::new(self, true);
        loop {
            match work(state) {
                Err(error) => Guard::unlocked(state, || patience.make_log_room(error))?,
                outcome => return outcome,
            }
        }
    }

    /// A read would have to wait for the device: waits, holding no stripe. False if `error` is of
    /// another kind, or a sync brings no slot back (it is tried once).
    pub(super) fn wait_out(&self, error: &Error, may_sync: &mut bool) -> Result<bool> {
        match error.kind {
            ErrorKind::Busy => match self.tier.log.wait_for_buffer() {
                // It says so itself, if that is how it is.
                Err(error) if error.kind != ErrorKind::StoreFull => Err(error),
                _ => Ok(true),
            },
            ErrorKind::StoreFull if std::mem::take(may_sync) => self.recall(),
            _ => Ok(false),
        }
    }

    /// Reads for training again, from the start, if the log was full: rows that were read by then
    /// are counted once more.
    pub(super) fn again_with_log_room(&self, mut read: impl FnMut() -> Result<()>) -> Result<()> {
        let mut patience = Patience::new(self, false);
        while let Err(error) = read() {
            patience.make_log_room(error).inspect_err(|error| self.note_refusal(error))?;
        }
        Ok(())
    }
}

/// How long work that the log refuses is tried again.
pub(super) struct Patience<'a> {
    engine: &'a Engine,
    /// It has its place in the order.
    is_ordered: bool,
    refused: u64,
    deadline: Option<Instant>,
}

impl<'a> Patience<'a> {
    pub(super) fn new(engine: &'a Engine, is_ordered: bool) -> Self {
        Self { engine, is_ordered, refused: engine.tier.log.refused(), deadline: None }
    }

    /// Returns when it may be tried again: the log has a buffer, or there was a round of
    /// compaction, and a pause if calls that may look at freed slots go on.
    ///
    /// # Errors
    /// `error`, if it is not for want of a buffer or slot, or the time is over.
    pub(super) fn make_log_room(&mut self, error: Error) -> Result<()> {
        let log = &self.engine.tier.log;
        if error.kind == ErrorKind::Busy {
            return match log.wait_for_buffer() {
                Err(error) if error.kind == ErrorKind::StoreFull => self.wait_for_the_device(error),
                outcome => outcome,
            };
        }
        let refused = std::mem::replace(&mut self.refused, log.refused());
        let is_log_full = error.kind == ErrorKind::StoreFull && self.refused != refused;
        if !is_log_full {
            return Err(error);
        }
        self.engine.failure.check()?;
        if log.no_space().is_some() {
            return self.wait_for_the_device(error);
        }
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
        if Instant::now() > deadline {
            return Err(error);
        }
        self.engine.compact_for_room()?;
        if !log.has_room() {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn wait_for_the_device(&self, error: Error) -> Result<()> {
        let log = &self.engine.tier.log;
        while self.is_ordered && log.no_space().is_some() {
            if self.engine.is_closing.load(Ordering::Relaxed) {
                return Err(error);
            }
            self.engine.failure.check()?;
            log.check()?;
            std::thread::sleep(PAUSE * 10);
        }
        if self.is_ordered {
            Ok(())
        } else {
            Err(error)
        }
    }
}
