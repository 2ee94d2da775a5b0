//! Group commit: one fdatasync at a time serves all that wait for it, and a failure is final.
//!
//! Syncs take turns because the kernel reports a failed write-back once per open file: of two
//! fdatasyncs side by side one would hear of it and the other would promise lost bytes.

use std::path::Path;
use std::sync::OnceLock;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::journal::JournalEnd;
use crate::types::Sequence;

/// What is known to be on the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Synced {
    /// All appends up to this position.
    pub(crate) position: u64,
    /// The last sequence among them.
    pub(crate) sequence: Sequence,
    /// The same as a place in the files.
    pub(crate) end: JournalEnd,
}

/// Whose turn it is to sync, and how far the last one came.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
    failure: OnceLock<Error>,
}

#[derive(Debug)]
struct State {
    synced: Synced,
    taken: bool,
}

impl Turns {
    pub(crate) fn new(synced: Synced) -> Self {
        let state = Mutex::new(State { synced, taken: false });
        Self { state, changed: Condvar::new(), failure: OnceLock::new() }
    }

    /// How far the last sync came.
    pub(crate) fn synced(&self) -> Synced {
        self.state.lock().synced
    }

    /// Waits until `position` is synced, or for the turn to sync it, which `sync` then does.
    ///
    /// # Errors
    /// The first failure, for ever.
    pub(crate) fn reach(
        &self,
        position: u64,
        sync: impl FnOnce() -> Result<Synced>,
    ) -> Result<Synced> {
        let mut state = self.state.lock();
        loop {
            self.check()?;
            if state.synced.position >= position {
                return Ok(state.synced);
            }
            if !state.taken {
                break;
            }
            self.changed.wait(&mut state);
        }
        state.taken = true;
        drop(state);
        let turn = Turn(self);
        let synced = sync()?;
        self.state.lock().synced = synced;
        drop(turn);
        Ok(synced)
    }

    /// Refuses after a failure.
    pub(crate) fn check(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Makes every later call fail, since what the file holds is no longer known.
    pub(crate) fn fail(&self, action: &str, path: &Path, cause: &dyn std::fmt::Display) -> Error {
        let error = Error::unavailable(format!(
            "cannot {action} {}: {cause}; the journal takes no more writes, check the device and \
             open the store again",
            path.display()
        ));
        self.failure.get_or_init(|| error).clone()
    }
}

/// Gives the turn back, however it ended.
struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().taken = false;
        self.0.changed.notify_all();
    }
}
