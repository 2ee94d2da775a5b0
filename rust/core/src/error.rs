//! The one error of the engine. Texts name the thing, the value seen and the remedy.

use std::fmt;
use std::path::Path;

/// What went wrong, in the classes that the public API raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's data is not acceptable; nothing changed.
    BadInput,
    /// No table of that name or id.
    TableNotFound,
    /// A table of that name exists with another shape.
    TableMismatch,
    /// A byte cap (DRAM or NVMe) leaves no room; nothing changed.
    StoreFull,
    /// Bytes on disk are not what was written.
    Corruption,
    /// A setting or the data directory cannot be used.
    Config,
    /// The store cannot answer: closed, taken over, or its device failed.
    Unavailable,
    /// What changed since a cursor cannot be told: begin without one.
    Cursor,
    /// It would have to wait for the device, and holds what others need. Inside the engine alone:
    /// no verb returns it.
    Busy,
}

/// Error of every verb of the engine.
#[derive(Debug, Clone)]
pub struct Error {
    /// Class of the error.
    pub kind: ErrorKind,
    /// Text for people.
    pub message: String,
}

/// Result of every verb of the engine.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` that reads `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A failed system call on `path`.
    pub fn io(action: &str, path: &Path, cause: &std::io::Error) -> Self {
        Self::new(ErrorKind::Unavailable, format!("cannot {action} {}: {cause}", path.display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

macro_rules! constructors {
    ($($name:ident $kind:ident),*) => { impl Error { $(
        #[doc = concat!("An error of kind `", stringify!($kind), "`.")]
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(ErrorKind::$kind, message)
        }
    )* } };
}

constructors!(bad_input BadInput, table_not_found TableNotFound, table_mismatch TableMismatch,
    store_full StoreFull, corruption Corruption, config Config, unavailable Unavailable,
    cursor Cursor, busy Busy);
