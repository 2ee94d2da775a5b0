//! The first failure after which a store cannot answer for its rows: kept until it is opened again.

use std::sync::OnceLock;

use crate::error::{Error, Result};

#[derive(Default)]
pub(crate) struct Failure(OnceLock<String>);

/// Notes a failure when a panic drops it: what the caller was changing may be half done.
pub(crate) struct Watch<'a> {
    failure: &'a Failure,
    /// Made while a panic goes on: a store that is closed by it does not fail of it.
    was_panicking: bool,
}

impl Failure {
    /// Keeps the first.
    pub(crate) fn note(&self, error: &Error) {
        self.0.get_or_init(|| error.message.clone());
    }

    #[inline]
    pub(crate) fn watch(&self) -> Watch<'_> {
        Watch { failure: self, was_panicking: std::thread::panicking() }
    }

    /// Refuses after a failure.
    pub(crate) fn check(&self) -> Result<()> {
        self.0.get().map_or(Ok(()), |text| {
            Err(Error::unavailable(format!("the store failed and must be opened again: {text}")))
        })
    }
}

impl Drop for Watch<'_> {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking() && !self.was_panicking {
            self.failure.note(&Error::unavailable(
                "a call panicked while it held rows; see what the process printed, and report it",
            ));
        }
    }
}
