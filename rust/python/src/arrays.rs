//! The NumPy border: contiguity, fresh results, and the batch helpers of the core. Every array that
//! crosses is C-contiguous and of the exact dtype; callers in Python make it so.

use hybridps_core as core;
use hybridps_serve::local::Lent;
use hybridps_serve::texts::{self, parse_spec};
use numpy::ndarray::Dimension;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray};
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArrayDyn, PyReadwriteArray2};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::errors::{bad_input, raise};

/// Keys of one call.
pub(crate) type KeysIn<'py> = PyReadonlyArray1<'py, u64>;
/// Counts, sizes of bags, or the index of each id's key.
pub(crate) type NumbersIn<'py> = PyReadonlyArray1<'py, u32>;
/// Rows or gradients of one call.
pub(crate) type RowsIn<'py> = PyReadonlyArray2<'py, f32>;
pub(crate) type RowsOut<'py> = Bound<'py, PyArray2<f32>>;
type UniqueOut<'py> = (Bound<'py, PyArray1<u64>>, Vec<usize>, Bound<'py, PyArray1<u32>>);

/// A table's id, its keys, and what else there is of each key; None stands for an array that is not
/// given. Which of its arrays is which follows from the dtype.
pub(crate) struct Batch<'py> {
    table: u32,
    keys: KeysIn<'py>,
    numbers: Option<NumbersIn<'py>>,
    values: Option<PyReadonlyArrayDyn<'py, f32>>,
}

impl<'py> FromPyObject<'_, 'py> for Batch<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let fields = object.cast::<PyTuple>()?;
        let (table, keys) = (fields.get_item(0)?.extract()?, fields.get_item(1)?.extract()?);
        let mut batch = Self { table, keys, numbers: None, values: None };
        for array in fields.iter().skip(2).filter(|array| !array.is_none()) {
            match array.extract() {
                Ok(numbers) => batch.numbers = Some(numbers),
                Err(_) => batch.values = Some(array.extract()?),
            }
        }
        Ok(batch)
    }
}

/// The arrays of each table, for as long as the batches live.
pub(crate) fn lend<'a>(batches: &'a [Batch<'_>]) -> PyResult<Vec<Lent<'a>>> {
    let lent = |batch: &'a Batch<'_>| {
        Ok(Lent {
            table: batch.table,
            keys: slice(&batch.keys)?,
            numbers: batch.numbers.as_ref().map_or(Ok(&[][..]), slice)?,
            values: batch.values.as_ref().map_or(Ok(&[][..]), slice)?,
        })
    };
    batches.iter().map(lent).collect()
}

/// A fresh float32[n, dim] whose content is not defined: for verbs that write it whole.
pub(crate) fn fresh_rows(py: Python<'_>, n: usize, dim: usize) -> RowsOut<'_> {
    // SAFETY: every caller hands the array to a verb of the core that writes all n * dim numbers
    // before it returns, and drops the array unread when that verb fails; any bits are a float32.
    #[allow(unsafe_code, reason = "clearing first would touch every page of a reply twice")]
    unsafe {
        PyArray2::new(py, [n, dim], false)
    }
}

/// The numbers of a contiguous array.
pub(crate) fn slice<'a, T: Element, D: Dimension>(
    array: &'a PyReadonlyArray<'_, T, D>,
) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| bad_input("an array is not C-contiguous; pass a plain copy"))
}

#[pyfunction]
pub(crate) fn check_spec(spec: &str) -> PyResult<usize> {
    parse_spec(spec).map(|spec| spec.row_floats()).map_err(raise)
}

#[pyfunction]
pub(crate) fn needs(spec: &str, rows: u64) -> PyResult<Vec<(&'static str, u64)>> {
    texts::needs(spec, rows).map_err(raise)
}

#[pyfunction]
pub(crate) fn initial_rows<'py>(
    py: Python<'py>,
    spec: &str,
    keys: KeysIn<'py>,
) -> PyResult<RowsOut<'py>> {
    let (spec, keys) = (parse_spec(spec).map_err(raise)?, slice(&keys)?);
    let array = fresh_rows(py, keys.len(), spec.dim as usize);
    let mut rows = array.readwrite();
    let out = rows.as_slice_mut()?;
    py.detach(|| texts::initial_rows(&spec, keys, out));
    drop(rows);
    Ok(array)
}

#[pyfunction]
pub(crate) fn unique<'py>(
    py: Python<'py>,
    ids: KeysIn<'py>,
    shards: u32,
) -> PyResult<UniqueOut<'py>> {
    let ids = slice(&ids)?;
    let unique = py.detach(|| core::Unique::new(ids, shards));
    Ok((unique.keys.into_pyarray(py), unique.offsets, unique.inverse.into_pyarray(py)))
}

#[pyfunction]
pub(crate) fn gather(
    py: Python<'_>,
    rows: RowsIn<'_>,
    inverse: NumbersIn<'_>,
    mut out: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    let dim = rows.as_array().ncols();
    if out.as_array().dim() != (inverse.len()?, dim) {
        return Err(bad_input("gather: out is not float32[len(inverse), dim]"));
    }
    let (rows, inverse, out) = (slice(&rows)?, slice(&inverse)?, out.as_slice_mut()?);
    py.detach(|| core::gather(rows, dim, inverse, out));
    Ok(())
}

#[pyfunction]
pub(crate) fn sum_rows<'py>(
    py: Python<'py>,
    rows: RowsIn<'py>,
    inverse: NumbersIn<'py>,
    unique: usize,
) -> PyResult<(RowsOut<'py>, bool)> {
    let (n, dim) = rows.as_array().dim();
    let (rows, inverse) = (slice(&rows)?, slice(&inverse)?);
    if inverse.len() != n {
        return Err(bad_input("sum_rows: rows and inverse differ in length"));
    }
    let array = PyArray2::zeros(py, [unique, dim], false);
    let mut sums = array.readwrite();
    let out = sums.as_slice_mut()?;
    let are_finite = py.detach(|| core::sum_rows(rows, dim, inverse, out));
    drop(sums);
    Ok((array, are_finite))
}

#[pyfunction]
pub(crate) fn sum_counts<'py>(
    py: Python<'py>,
    counts: NumbersIn<'py>,
    inverse: NumbersIn<'py>,
    unique: usize,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let (counts, inverse) = (slice(&counts)?, slice(&inverse)?);
    if inverse.len() != counts.len() {
        return Err(bad_input("sum_counts: counts and inverse differ in length"));
    }
    Ok(py.detach(|| core::sum_counts(counts, inverse, unique)).into_pyarray(py))
}

#[pyfunction]
pub(crate) fn is_finite(py: Python<'_>, rows: RowsIn<'_>) -> PyResult<bool> {
    let rows = slice(&rows)?;
    Ok(py.detach(|| core::is_finite(rows)))
}

/// What Python gets as an array or a dict.
macro_rules! out {
    ($name:ident($of:ty) as $target:ty, |$py:ident, $value:ident| $made:expr) => {
        #[doc = stringify!($of as $target)]
        pub(crate) struct $name(pub(crate) $of);

        impl From<$of> for $name {
            fn from(value: $of) -> Self {
                Self(value)
            }
        }

        impl<'py> IntoPyObject<'py> for $name {
            type Target = $target;
            type Output = Bound<'py, $target>;
            type Error = PyErr;

            fn into_pyobject(self, $py: Python<'py>) -> PyResult<Bound<'py, $target>> {
                let $value = self.0;
                $made
            }
        }
    };
}

out!(Keys(Vec<u64>) as PyArray1<u64>, |py, keys| Ok(keys.into_pyarray(py)));
out!(Numbers(Vec<f32>) as PyArray1<f32>, |py, numbers| Ok(numbers.into_pyarray(py)));
out!(Counts(Vec<u32>) as PyArray1<u32>, |py, numbers| Ok(numbers.into_pyarray(py)));
out!(Flags(Vec<u8>) as PyAny, |py, flags| flags.into_pyarray(py).call_method1("view", ("?",)));
out!(Counters(texts::Counters) as PyDict, |py, told| PyDict::from_sequence(
    &told.into_pyobject(py)?
));
