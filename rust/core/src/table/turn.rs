//! The lock of a stripe and the queue before it: mutating calls pass in the order of their tickets.
//!
//! A turn ends when its guard is dropped, and what is left of a call's tickets is passed on when
//! the call ends, however it ends: a panic must not keep all later calls waiting. It fails the
//! store instead, for the rows that it was changing may be half changed.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::stripe::State;
use crate::failure::{Failure, Watch};
use crate::ledger::Ledger;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::types::Sequence;

/// A stripe and the queue before it.
pub(crate) struct Stripe {
    state: Mutex<State>,
    queue: Condvar,
    failure: Arc<Failure>,
}

/// A locked stripe.
pub(crate) struct Guard<'a> {
    // Dropped in this order: whoever gets the lock next must not be acknowledged after a panic.
    _watch: Watch<'a>,
    state: MutexGuard<'a, State>,
    queue: &'a Condvar,
    /// In a turn: all calls up to here have been applied when it ends.
    turn: Option<Sequence>,
}

/// A call's places before the stripes that it touches.
pub(crate) struct Tickets<'a> {
    stripes: &'a [Stripe],
    sequence: Sequence,
    left: std::vec::IntoIter<(usize, u64)>,
}

impl Stripe {
    /// One of `stripes` equal ones, whose memory `ledger` accounts for.
    pub(crate) fn new(ledger: &Arc<Ledger>, stripes: usize, failure: Arc<Failure>) -> Self {
        let state = Mutex::new(State::new(ledger, stripes));
        Self { state, queue: Condvar::new(), failure }
    }

    pub(crate) fn lock(&self) -> Guard<'_> {
        self.guard(self.state.lock(), None)
    }

    /// `None` while another call holds it.
    pub(crate) fn try_lock(&self) -> Option<Guard<'_>> {
        self.state.try_lock().map(|state| self.guard(state, None))
    }

    fn guard<'a>(&'a self, state: MutexGuard<'a, State>, turn: Option<Sequence>) -> Guard<'a> {
        Guard { _watch: self.failure.watch(), state, queue: &self.queue, turn }
    }

    /// Returns when all calls that drew a ticket below `ticket` have passed. Holds nobody up.
    pub(crate) fn wait_served(&self, ticket: u64) {
        let mut state = self.state.lock();
        while state.serving < ticket {
            self.queue.wait(&mut state);
        }
    }

    /// Locks when `ticket` is next in line; the turn of call `sequence` ends with the guard.
    fn lock_in_turn(&self, ticket: u64, sequence: Sequence) -> Guard<'_> {
        let mut state = self.state.lock();
        while state.serving != ticket {
            self.queue.wait(&mut state);
        }
        self.guard(state, Some(sequence))
    }
}

impl<'a> Tickets<'a> {
    /// `drawn`: stripes and tickets, in growing order of the stripes.
    pub(crate) fn new(stripes: &'a [Stripe], sequence: Sequence, drawn: Vec<(usize, u64)>) -> Self {
        Self { stripes, sequence, left: drawn.into_iter() }
    }

    /// Waits for the turn at the next stripe.
    pub(crate) fn next_turn(&mut self) -> Option<(usize, Guard<'a>)> {
        let (s, ticket) = self.left.next()?;
        Some((s, self.stripes[s].lock_in_turn(ticket, self.sequence)))
    }
}

impl Drop for Tickets<'_> {
    fn drop(&mut self) {
        while self.next_turn().is_some() {}
    }
}

impl Guard<'_> {
    /// Gives the lock up for `work`; a turn is kept.
    pub(crate) fn unlocked<T>(guard: &mut Self, work: impl FnOnce() -> T) -> T {
        MutexGuard::unlocked(&mut guard.state, work)
    }
}

impl Deref for Guard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(sequence) = self.turn {
            self.state.progress.lift(sequence);
            self.state.serving += 1;
            self.queue.notify_all();
        }
    }
}
