//! The NumPy border: contiguity, lengths, fresh results, and the batch helpers of the core.
//!
//! Every array that crosses is C-contiguous and of the exact dtype; callers in `hybridps.client`
//! make it so. This file holds the only `unsafe` of the crate.

use hybridps_core::{gather as core_gather, initial_row, sum_counts as core_sum_counts};
use hybridps_core::{is_finite as core_is_finite, sum_rows as core_sum_rows, TableSpec, Unique};
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyReadwriteArray2,
};
use pyo3::prelude::*;

use crate::errors::{bad_input, raise};

/// Keys of one call.
pub(crate) type KeysIn<'py> = PyReadonlyArray1<'py, u64>;
/// Rows or gradients of one call.
pub(crate) type RowsIn<'py> = PyReadonlyArray2<'py, f32>;
type UniqueOut<'py> = (Bound<'py, PyArray1<u64>>, Vec<usize>, Bound<'py, PyArray1<u32>>);

/// A fresh float32[n, dim] whose content is not defined: for verbs that write it whole.
pub(crate) fn fresh_rows(py: Python<'_>, n: usize, dim: usize) -> Bound<'_, PyArray2<f32>> {
    // SAFETY: every caller hands the array to a verb of the core that writes all n * dim numbers
    // before it returns, and drops the array unread when that verb fails; any bits are a float32.
    #[allow(unsafe_code, reason = "clearing first would touch every page of a reply twice")]
    unsafe {
        PyArray2::new(py, [n, dim], false)
    }
}

/// The numbers of a contiguous array.
pub(crate) fn slice<'a, T: numpy::Element, D: numpy::ndarray::Dimension>(
    array: &'a numpy::PyReadonlyArray<'_, T, D>,
) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| bad_input("an array is not C-contiguous; pass a plain copy"))
}

/// Parses the JSON of a spec and checks its ranges.
pub(crate) fn parse_spec(spec: &str) -> PyResult<TableSpec> {
    let spec: TableSpec = serde_json::from_str(spec).map_err(|e| {
        bad_input(format!("table spec is not readable: {e}; use TableSpec.to_json"))
    })?;
    spec.check().map_err(raise)?;
    Ok(spec)
}

#[pyfunction]
pub(crate) fn check_spec(spec: &str) -> PyResult<()> {
    parse_spec(spec).map(drop)
}

/// What so many rows of a table will take, by name.
#[pyfunction]
pub(crate) fn needs(spec: &str, rows: u64) -> PyResult<Vec<(&'static str, u64)>> {
    let needs = hybridps_core::needs(&parse_spec(spec)?, rows).map_err(raise)?;
    Ok(vec![
        ("row_dram_bytes", needs.row_dram_bytes),
        ("row_nvme_bytes", needs.row_nvme_bytes),
        ("index_bytes", needs.index_bytes),
        ("dram_smallest", needs.dram_smallest),
        ("dram_whole", needs.dram_whole),
        ("nvme", needs.nvme),
    ])
}

#[pyfunction]
pub(crate) fn initial_rows<'py>(
    py: Python<'py>,
    spec: &str,
    keys: KeysIn<'py>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let spec = parse_spec(spec)?;
    let (keys, dim) = (slice(&keys)?, spec.dim as usize);
    let array = fresh_rows(py, keys.len(), dim);
    {
        let mut rows = array.readwrite();
        let rows = rows.as_slice_mut()?;
        py.detach(|| {
            for (row, &key) in rows.chunks_exact_mut(dim).zip(keys) {
                initial_row(&spec.initializer, spec.seed, key, row);
            }
        });
    }
    Ok(array)
}

#[pyfunction]
pub(crate) fn unique<'py>(
    py: Python<'py>,
    ids: KeysIn<'py>,
    shards: u32,
) -> PyResult<UniqueOut<'py>> {
    let ids = slice(&ids)?;
    let unique = py.detach(|| Unique::new(ids, shards));
    let Unique { keys, offsets, inverse } = unique;
    Ok((keys.into_pyarray(py), offsets, inverse.into_pyarray(py)))
}

#[pyfunction]
pub(crate) fn gather(
    py: Python<'_>,
    rows: RowsIn<'_>,
    inverse: PyReadonlyArray1<'_, u32>,
    mut out: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    let dim = rows.as_array().ncols();
    if out.as_array().dim() != (inverse.len()?, dim) {
        return Err(bad_input("gather: out is not float32[len(inverse), dim]"));
    }
    let (rows, inverse) = (slice(&rows)?, slice(&inverse)?);
    let out = out.as_slice_mut()?;
    py.detach(|| core_gather(rows, dim, inverse, out));
    Ok(())
}

#[pyfunction]
pub(crate) fn sum_rows<'py>(
    py: Python<'py>,
    rows: RowsIn<'py>,
    inverse: PyReadonlyArray1<'py, u32>,
    unique: usize,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (n, dim) = rows.as_array().dim();
    let (rows, inverse) = (slice(&rows)?, slice(&inverse)?);
    if inverse.len() != n {
        return Err(bad_input("sum_rows: rows and inverse differ in length"));
    }
    let array = PyArray2::zeros(py, [unique, dim], false);
    {
        let mut sums = array.readwrite();
        let sums = sums.as_slice_mut()?;
        py.detach(|| core_sum_rows(rows, dim, inverse, sums));
    }
    Ok(array)
}

#[pyfunction]
pub(crate) fn sum_counts<'py>(
    py: Python<'py>,
    counts: PyReadonlyArray1<'py, u32>,
    inverse: PyReadonlyArray1<'py, u32>,
    unique: usize,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let (counts, inverse) = (slice(&counts)?, slice(&inverse)?);
    if inverse.len() != counts.len() {
        return Err(bad_input("sum_counts: counts and inverse differ in length"));
    }
    let sums = py.detach(|| core_sum_counts(counts, inverse, unique));
    Ok(sums.into_pyarray(py))
}

#[pyfunction]
pub(crate) fn is_finite(py: Python<'_>, rows: RowsIn<'_>) -> PyResult<bool> {
    let rows = slice(&rows)?;
    Ok(py.detach(|| core_is_finite(rows)))
}
