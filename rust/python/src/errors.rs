//! Core error -> Python exception: one match.

use hybridps_core::{Error, ErrorKind};
use pyo3::{import_exception, PyErr};

import_exception!(hybridps.errors, HybridPSError);
import_exception!(hybridps.errors, BadInputError);
import_exception!(hybridps.errors, TableNotFoundError);
import_exception!(hybridps.errors, TableMismatchError);
import_exception!(hybridps.errors, StoreFullError);
import_exception!(hybridps.errors, CorruptionError);
import_exception!(hybridps.errors, ConfigError);
import_exception!(hybridps.errors, UnavailableError);

/// The exception of the public API that stands for a core error.
pub(crate) fn raise(error: Error) -> PyErr {
    let text = error.message;
    match error.kind {
        ErrorKind::BadInput => BadInputError::new_err(text),
        ErrorKind::TableNotFound => TableNotFoundError::new_err(text),
        ErrorKind::TableMismatch => TableMismatchError::new_err(text),
        ErrorKind::StoreFull => StoreFullError::new_err(text),
        ErrorKind::Corruption => CorruptionError::new_err(text),
        ErrorKind::Config => ConfigError::new_err(text),
        ErrorKind::Unavailable => UnavailableError::new_err(text),
        _ => HybridPSError::new_err(text),
    }
}

/// A `BadInputError` that reads `text`.
pub(crate) fn bad_input(text: impl Into<String>) -> PyErr {
    BadInputError::new_err(text.into())
}
