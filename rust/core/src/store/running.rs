//! Which mutating calls have their place in the order, but are not yet applied.
//!
//! A call that is acknowledged without being applied itself, because an earlier one was the same
//! push, waits here until that one has changed all its rows.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::failure::{Failure, Watch};
use crate::types::Sequence;

/// Calls between their place in the order and the change of their last row.
pub(super) struct Running {
    /// In growing order: they are entered under the sequencer's lock.
    calls: Mutex<Vec<Sequence>>,
    left: Condvar,
    failure: Arc<Failure>,
}

/// One of them. It leaves when this is dropped; in a panic the store fails before that is seen.
pub(super) struct Underway<'a> {
    running: &'a Running,
    sequence: Sequence,
    watch: Option<Watch<'a>>,
}

impl Running {
    pub(super) fn new(failure: Arc<Failure>) -> Self {
        Self { calls: Mutex::default(), left: Condvar::new(), failure }
    }

    /// Enters the call that was ordered last.
    pub(super) fn enter(&self, sequence: Sequence) -> Underway<'_> {
        self.calls.lock().push(sequence);
        Underway { running: self, sequence, watch: Some(self.failure.watch()) }
    }

    /// Returns when all calls that were ordered before `sequence` are applied, or have failed the
    /// store.
    pub(super) fn wait_before(&self, sequence: Sequence) {
        let mut calls = self.calls.lock();
        while calls.first().is_some_and(|&first| first < sequence) {
            self.left.wait(&mut calls);
        }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.calls.lock().is_empty()
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        drop(self.watch.take());
        let mut calls = self.running.calls.lock();
        calls.retain(|&call| call != self.sequence);
        drop(calls);
        self.running.left.notify_all();
    }
}
