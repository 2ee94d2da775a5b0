//! `hybridps._core`: the engine and the connection as seen from Python. Glue only: unpack, release
//! the interpreter lock, call, map errors.

#[macro_use]
mod glue;

mod arrays;
mod client;
mod connection;
mod errors;
mod memory;
mod role;
mod store;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name Python expects")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    const WORKERS_SESSION: u64 = hybridps_core::WORKERS_SESSION;

    #[pymodule_export]
    use crate::arrays::{
        check_spec, gather, initial_rows, is_finite, needs, sum_counts, sum_rows, unique,
    };
    #[pymodule_export]
    use crate::client::{Answer, ClientConnection};
    #[pymodule_export]
    use crate::connection::{apply_together, schema, ColdCall, Connection, HotCall, Login, Outlet};
    #[pymodule_export]
    use crate::memory::{tune_allocator, Buffer};
    #[pymodule_export]
    use crate::role::{Claim, Role};
    #[pymodule_export]
    use crate::store::{checkpoints, prune_checkpoints, verify_checkpoint, PyStore};
}
