//! `_core.ClientConnection`: the client's side of a connection.

use hybridps_serve::{as_numbers, Asked, Client, Words};
use hybridps_wire::{self as wire, Ask, Outcome, PushHeader};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PyTuple};

use crate::arrays::{slice, KeysIn, RowsIn};
use crate::errors::{misuse, raise};
use crate::memory::Buffer;

/// Most bytes of one frame by default, as large as one Data can be.
const FRAME_LIMIT: usize = 1 << 29;

/// A question, and the buffers to send.
type Call = (u32, Vec<Py<PyAny>>);
/// A table id and its arrays; None stands for an empty one.
type Batches<'py> = Vec<Bound<'py, PyTuple>>;

#[pyclass(module = "hybridps._core", frozen, get_all)]
pub(crate) struct Answer {
    question: u32,
    kind: &'static str,
    rows: Vec<(Py<Buffer>, Option<Py<Buffer>>)>,
    duplicate: bool,
    removed: u64,
    results: Option<Py<Buffer>>,
    exception: Option<(&'static str, String, String)>,
}

fn answer(py: Python<'_>, client: &Client, answer: wire::Answer, frame: Words) -> PyResult<Answer> {
    let (question, rows) = (answer.question, Vec::new());
    let (kind, results, exception) = ("results", None, None);
    let mut made =
        Answer { question, kind, rows, duplicate: false, removed: 0, results, exception };
    match answer.outcome {
        Outcome::Rows => {
            made.kind = "rows";
            for (rows, found) in client.rows_in(&frame).map_err(misuse)? {
                let found = found.map(|found| Py::new(py, Buffer(found))).transpose()?;
                made.rows.push((Py::new(py, Buffer(rows))?, found));
            }
        }
        Outcome::Duplicate(duplicate) => (made.kind, made.duplicate) = ("duplicate", duplicate),
        Outcome::Removed(removed) => (made.kind, made.removed) = ("removed", removed),
        Outcome::Results => made.results = Some(Py::new(py, Buffer::from(frame))?),
        Outcome::Exception { kind, reason } => {
            made.kind = "exception";
            made.exception = Some((kind.name(), reason.class, reason.text));
        }
    }
    Ok(made)
}

fn bytes_of(py: Python<'_>, words: &[u64]) -> Py<PyAny> {
    PyBytes::new(py, as_numbers(words)).into_any().unbind()
}

#[pyclass(module = "hybridps._core")]
pub(crate) struct ClientConnection(Client);

impl ClientConnection {
    /// As they travel.
    fn gradients<'py>(&self, array: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let narrowed = self.0.narrowed(slice(&array.extract::<RowsIn<'py>>()?)?).map_err(raise)?;
        narrowed
            .map_or(Ok(array.clone()), |view| Ok(Bound::new(array.py(), Buffer(view))?.into_any()))
    }

    fn ask(&mut self, py: Python<'_>, ask: &Ask, batches: &[Bound<'_, PyTuple>]) -> PyResult<Call> {
        let (mut sizes, mut views) = (Vec::with_capacity(batches.len()), Vec::new());
        for batch in batches {
            let keys = batch.get_item(1)?;
            if !matches!(ask, Ask::LookupPooled { key_bytes: 4, .. }) {
                slice(&keys.extract::<KeysIn<'_>>()?)?;
            }
            let mut bytes = Vec::with_capacity(2);
            for (n, array) in batch.iter().enumerate().skip(1) {
                let array = match ask {
                    Ask::ApplyGradients { .. } if n > 1 => self.gradients(array)?,
                    _ => array,
                };
                let view = (!array.is_none()).then(|| PyMemoryView::from(&array)).transpose()?;
                let size = view.as_ref().map_or(Ok(0), |view| view.getattr("nbytes")?.extract())?;
                let view = view.filter(|_| size > 0).map(|v| v.call_method1("cast", ("B",)));
                views.push(view.transpose()?);
                bytes.push(size);
            }
            sizes.push((batch.get_item(0)?.extract()?, bytes));
        }
        let Asked { question, head, arrays } = self.0.ask(ask, &sizes).map_err(raise)?;
        let mut buffers = vec![bytes_of(py, &head)];
        for (view, bytes) in views.into_iter().zip(arrays) {
            let Some(view) = view else { continue };
            buffers.push(view.unbind());
            if bytes % 8 != 0 {
                buffers.push(PyBytes::new(py, &[0; 8][bytes % 8..]).into_any().unbind());
            }
        }
        Ok((question, buffers))
    }
}

#[pymethods]
impl ClientConnection {
    #[new]
    #[pyo3(signature = (*, frame_limit=FRAME_LIMIT, dtype="float32"))]
    fn new(frame_limit: usize, dtype: &str) -> PyResult<Self> {
        Ok(Self(Client::new(frame_limit, dtype).map_err(misuse)?))
    }

    #[getter]
    fn closed(&self) -> Option<&str> {
        self.0.closed()
    }

    #[getter]
    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    #[pyo3(signature = (session, client_id, token=""))]
    fn start(
        &mut self,
        py: Python<'_>,
        session: u64,
        client_id: &str,
        token: &str,
    ) -> (u32, Py<PyAny>) {
        let (question, flight) = self.0.start(session, client_id, token);
        (question, bytes_of(py, &flight))
    }

    fn lookup(&mut self, py: Python<'_>, batches: Batches<'_>, want_found: bool) -> PyResult<Call> {
        self.ask(py, &Ask::Lookup { want_found, dtype: self.0.dtype() }, &batches)
    }

    fn lookup_or_insert(&mut self, py: Python<'_>, batches: Batches<'_>) -> PyResult<Call> {
        self.ask(py, &Ask::LookupOrInsert { dtype: self.0.dtype() }, &batches)
    }

    fn lookup_pooled(
        &mut self,
        py: Python<'_>,
        batches: Batches<'_>,
        key_bytes: u8,
    ) -> PyResult<Call> {
        self.ask(py, &Ask::LookupPooled { key_bytes, dtype: self.0.dtype() }, &batches)
    }

    #[pyo3(signature = (number, step, batches, total=0))]
    fn apply_gradients(
        &mut self,
        py: Python<'_>,
        number: u64,
        step: Option<i64>,
        batches: Batches<'_>,
        total: u64,
    ) -> PyResult<Call> {
        let (push, dtype) = (PushHeader { number, step, total }, self.0.dtype());
        self.ask(py, &Ask::ApplyGradients { push, dtype }, &batches)
    }

    fn prefetch(&mut self, py: Python<'_>, batches: Batches<'_>) -> PyResult<Call> {
        self.ask(py, &Ask::Prefetch, &batches)
    }

    #[pyo3(signature = (number, table, keys, rows, total=0))]
    fn assign<'py>(
        &mut self,
        py: Python<'py>,
        number: u64,
        table: u32,
        keys: Bound<'py, PyAny>,
        rows: Bound<'py, PyAny>,
        total: u64,
    ) -> PyResult<Call> {
        let push = PushHeader { number, step: None, total };
        self.ask(py, &Ask::Assign(push), &[(table, keys, rows).into_pyobject(py)?])
    }

    #[pyo3(signature = (number, table, keys, total=0))]
    fn remove<'py>(
        &mut self,
        py: Python<'py>,
        number: u64,
        table: u32,
        keys: Bound<'py, PyAny>,
        total: u64,
    ) -> PyResult<Call> {
        let push = PushHeader { number, step: None, total };
        self.ask(py, &Ask::Remove(push), &[(table, keys).into_pyobject(py)?])
    }

    fn call(&mut self, py: Python<'_>, verb: &str, params: &[u8]) -> PyResult<Call> {
        let asked = self.0.call(verb, params).map_err(misuse)?;
        Ok((asked.question, vec![bytes_of(py, &asked.head)]))
    }

    #[pyo3(signature = (_hint, /))]
    fn get_buffer(&mut self, _hint: isize) -> Buffer {
        Buffer(self.0.buffer())
    }

    fn received(&mut self, py: Python<'_>, count: usize) -> PyResult<Vec<Answer>> {
        let answers = self.0.received(count).map_err(misuse)?.into_iter();
        answers.map(|(made, frame)| answer(py, &self.0, made, frame)).collect()
    }

    fn forget(&mut self, question: u32) {
        self.0.forget(question);
    }

    fn probe(&mut self, py: Python<'_>) -> Py<PyAny> {
        bytes_of(py, &self.0.probe())
    }

    fn pending_bytes(&mut self, py: Python<'_>) -> Py<PyAny> {
        bytes_of(py, &self.0.pending())
    }
}
