//! Why a call fails, as it is told to the peer; and what an owner of a connection did wrong.

use std::panic::{catch_unwind, AssertUnwindSafe};

use hybridps_core::{Error, ErrorKind};
use hybridps_wire::{Malformed, Refusal};

/// The reason of an exception: "<class>: <text>".
#[derive(Debug)]
pub struct Failure(pub(crate) String);

impl Failure {
    /// The class.
    pub fn class(&self) -> &str {
        self.0.split(": ").next().unwrap_or_default()
    }
}

/// The exception of the public API that stands for an error of the engine.
pub fn class_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::BadInput => "BadInputError",
        ErrorKind::TableNotFound => "TableNotFoundError",
        ErrorKind::TableMismatch => "TableMismatchError",
        ErrorKind::StoreFull => "StoreFullError",
        ErrorKind::Corruption => "CorruptionError",
        ErrorKind::Config => "ConfigError",
        ErrorKind::Unavailable => "UnavailableError",
        ErrorKind::Cursor => "CursorError",
        _ => "HybridPSError",
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(format!("{}: {}", class_of(error.kind), error.message))
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        bad_input(malformed.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        bad_input(refusal.to_string())
    }
}

pub(crate) fn bad_input(text: String) -> Failure {
    Failure::from(Error::bad_input(text))
}

/// A panic in the engine must cost one call, not the worker that runs it.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(Failure("HybridPSError: internal error in the engine".to_owned())))
}

/// A mistake of the program that owns a connection, never of its peer; nothing has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Misuse(pub String);

impl From<Malformed> for Misuse {
    fn from(malformed: Malformed) -> Self {
        Self(malformed.0.to_owned())
    }
}
