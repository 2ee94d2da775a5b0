//! `_core.Role`: what one thread at a time does, claimed and given up without a gap.
//!
//! A Python lock that is tried, not waited for, can be left locked for good: a signal's exception
//! may come between the return of `acquire` and the block that would release it. Entering and
//! leaving `with` is one step each where both are compiled, and so cannot be parted.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

/// Something that one thread at a time may do.
#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct Role {
    is_taken: AtomicBool,
}

/// An attempt at a role: `with role.claim() as is_mine`.
#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct Claim {
    role: Py<Role>,
    is_mine: AtomicBool,
}

#[pymethods]
impl Role {
    #[new]
    fn new() -> Self {
        Self { is_taken: AtomicBool::new(false) }
    }

    #[getter]
    fn is_taken(&self) -> bool {
        self.is_taken.load(Ordering::Acquire)
    }

    fn claim(slf: Py<Self>) -> Claim {
        Claim { role: slf, is_mine: AtomicBool::new(false) }
    }
}

#[pymethods]
impl Claim {
    fn __enter__(&self) -> bool {
        let is_mine = !self.role.get().is_taken.swap(true, Ordering::Acquire);
        self.is_mine.store(is_mine, Ordering::Relaxed);
        is_mine
    }

    fn __exit__(&self, _kind: Py<PyAny>, _error: Py<PyAny>, _traceback: Py<PyAny>) {
        if self.is_mine.swap(false, Ordering::Relaxed) {
            self.role.get().is_taken.store(false, Ordering::Release);
        }
    }
}
