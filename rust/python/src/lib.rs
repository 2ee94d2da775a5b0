//! `hybridps._core`: the engine and the connection as seen from Python. Glue only: unpack, release
//! the interpreter lock, call, map errors.

mod arrays;
mod buffer;
mod client_connection;
mod connection;
mod errors;
mod hot;
mod outlet;
mod pushes;
mod reads;
mod receiver;
mod role;
mod store;
mod stream;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name Python expects")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    use crate::arrays::{
        check_spec, gather, initial_rows, is_finite, needs, sum_counts, sum_rows, unique,
    };
    #[pymodule_export]
    use crate::buffer::{tune_allocator, Buffer};
    #[pymodule_export]
    use crate::client_connection::{Answer, ClientConnection};
    #[pymodule_export]
    use crate::connection::{schema, ColdCall, Connection, Login};
    #[pymodule_export]
    use crate::hot::HotCall;
    #[pymodule_export]
    use crate::outlet::Outlet;
    #[pymodule_export]
    use crate::role::{Claim, Role};
    #[pymodule_export]
    use crate::store::PyStore;
}
