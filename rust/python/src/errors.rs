//! Errors below -> Python exceptions.

use hybridps_core::Error;
use hybridps_serve::{class_of, Misuse};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The exception of the public API that stands for an error of the engine.
pub(crate) fn raise(error: Error) -> PyErr {
    Python::attach(|py| {
        let class = py.import("hybridps.errors").and_then(|m| m.getattr(class_of(error.kind)));
        class.and_then(|class| class.call1((error.message,))).map_or_else(|e| e, PyErr::from_value)
    })
}

/// A `BadInputError` that reads `text`.
pub(crate) fn bad_input(text: &str) -> PyErr {
    raise(Error::bad_input(text))
}

/// What the Python of this project did wrong.
pub(crate) fn misuse(Misuse(text): Misuse) -> PyErr {
    PyValueError::new_err(text)
}
