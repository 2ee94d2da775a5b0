//! What keeps a store from serving all that it should: the first failure of a device, after which
//! nothing is written, the first panic, after which nothing is served, and refusals for want of
//! room, which pass.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// How long a refusal counts: callers of a store that is full come again sooner.
const REFUSAL: Duration = Duration::from_secs(5);

/// Whether a store serves all that it should, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All verbs are served.
    Ok,
    /// Calls that need room are refused for want of it: `StoreFull`. All others go on, and these
    /// will as soon as there is room, without a restart.
    Degraded(String),
    /// No call that changes anything is served until the store is opened again; reads are, unless
    /// the reason is a panic.
    Failed(String),
}

#[derive(Default)]
pub(crate) struct Failure {
    /// A device failed, or a call after its place in the order.
    stopped: OnceLock<String>,
    /// Rows in DRAM may be half changed.
    broken: OnceLock<String>,
    refused: Mutex<Option<(Instant, String)>>,
}

/// Notes a failure when a panic drops it: what the caller was changing may be half done.
pub(crate) struct Watch<'a> {
    failure: &'a Failure,
    /// Made while a panic goes on: a store that is closed by it does not fail of it.
    was_panicking: bool,
}

impl Failure {
    /// Nothing is written from now on. Keeps the first reason.
    pub(crate) fn stop_writes(&self, error: &Error) {
        self.stopped.get_or_init(|| error.message.clone());
    }

    /// Nothing is served from now on. Keeps the first reason.
    pub(crate) fn break_off(&self, error: &Error) {
        self.broken.get_or_init(|| error.message.clone());
    }

    /// A call was refused for want of room.
    pub(crate) fn note_refusal(&self, error: &Error) {
        *self.refused.lock() = Some((Instant::now(), error.message.clone()));
    }

    #[inline]
    pub(crate) fn watch(&self) -> Watch<'_> {
        Watch { failure: self, was_panicking: std::thread::panicking() }
    }

    /// Refuses what changes anything after a failure.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_reads()?;
        self.stopped.get().map_or(Ok(()), |text| {
            Err(Error::unavailable(format!(
                "the store failed and takes no more changes until it is opened again: {text}"
            )))
        })
    }

    /// Refuses reads after a panic.
    pub(crate) fn check_reads(&self) -> Result<()> {
        self.broken.get().map_or(Ok(()), |text| {
            Err(Error::unavailable(format!("the store failed and must be opened again: {text}")))
        })
    }

    pub(crate) fn health(&self) -> Health {
        if let Some(reason) = self.broken.get().or_else(|| self.stopped.get()) {
            return Health::Failed(reason.clone());
        }
        match &*self.refused.lock() {
            Some((at, reason)) if at.elapsed() < REFUSAL => Health::Degraded(reason.clone()),
            _ => Health::Ok,
        }
    }
}

impl Drop for Watch<'_> {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking() && !self.was_panicking {
            self.failure.break_off(&Error::unavailable(
                "a call panicked while it held rows; see what the process printed, and report it",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_told_and_the_first_is_kept() {
        let failure = Failure::default();
        assert_eq!(failure.health(), Health::Ok);
        failure.note_refusal(&Error::store_full("no room"));
        assert_eq!(failure.health(), Health::Degraded("no room".into()));
        assert!(failure.check().is_ok());
        failure.stop_writes(&Error::unavailable("disk"));
        failure.stop_writes(&Error::unavailable("another"));
        assert_eq!(failure.health(), Health::Failed("disk".into()));
        assert!(failure.check_reads().is_ok() && failure.check().is_err());
        failure.break_off(&Error::unavailable("panic"));
        assert_eq!(failure.health(), Health::Failed("panic".into()));
        assert!(failure.check_reads().is_err());
    }
}
