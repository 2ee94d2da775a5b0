//! `_core.ClientConnection`: the client's side of a connection.

use hybridps_serve::{as_numbers, Asked, Client, Words};
use hybridps_wire::{self as wire, Ask, Outcome, PushHeader};
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyTuple};

use crate::arrays::{slice, KeysIn, RowsIn};
use crate::errors::{misuse, raise};
use crate::memory::Buffer;

/// Most bytes of one frame by default, as large as one Data can be.
const FRAME_LIMIT: usize = 1 << 29;

/// A question, and what to send.
type Call = (u32, Vec<Sent>);

/// Bytes to send: of our own, or the caller's array as it lies.
#[derive(IntoPyObject)]
enum Sent {
    Ours(Vec<u8>),
    Array(Py<PyMemoryView>),
}

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

fn bytes_of(words: &Words) -> Vec<u8> {
    as_numbers(words).to_vec()
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

    fn ask(&mut self, ask: &Ask, batches: &[Bound<'_, PyTuple>]) -> PyResult<Call> {
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
        let mut buffers = vec![Sent::Ours(bytes_of(&head))];
        for (view, bytes) in views.into_iter().zip(arrays) {
            let Some(view) = view else { continue };
            buffers.push(Sent::Array(view.cast_into::<PyMemoryView>()?.unbind()));
            if bytes % 8 != 0 {
                buffers.push(Sent::Ours(vec![0; 8 - bytes % 8]));
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

    fn received(&mut self, py: Python<'_>, count: usize) -> PyResult<Vec<Answer>> {
        let answers = self.0.received(count).map_err(misuse)?.into_iter();
        answers.map(|(made, frame)| answer(py, &self.0, made, frame)).collect()
    }
}

methods! { impl ClientConnection:
    #[getter] closed(&self) -> Option<&str> = self.0.closed();
    #[getter] in_flight(&self) -> usize = self.0.in_flight();
    #[pyo3(signature = (_hint, /))]
    get_buffer(&mut self, _hint: isize) -> Buffer = Buffer(self.0.buffer());
    forget(&mut self, question: u32) = self.0.forget(question);
    probe(&mut self) -> Vec<u8> = bytes_of(&self.0.probe());
    pending_bytes(&mut self) -> Vec<u8> = bytes_of(&self.0.pending());
    #[pyo3(signature = (session, client_id, token="", worker=None))]
    start(
        &mut self, session: u64, client_id: &str, token: &str, worker: Option<(u32, u32)>
    ) -> (u32, Vec<u8>) = {
        let (question, flight) = self.0.start(session, client_id, token, worker);
        (question, bytes_of(&flight))
    };
    call(&mut self, verb: &str, params: &[u8]) -> PyResult<Call> = {
        let asked = self.0.call(verb, params).map_err(misuse)?;
        Ok((asked.question, vec![Sent::Ours(bytes_of(&asked.head))]))
    };

    lookup(&mut self, batches: Batches<'_>, want_found: bool) -> PyResult<Call> =
        self.ask(&Ask::Lookup { want_found, dtype: self.0.dtype() }, &batches);
    lookup_or_insert(&mut self, batches: Batches<'_>) -> PyResult<Call> =
        self.ask(&Ask::LookupOrInsert { dtype: self.0.dtype() }, &batches);
    lookup_pooled(&mut self, batches: Batches<'_>, key_bytes: u8) -> PyResult<Call> =
        self.ask(&Ask::LookupPooled { key_bytes, dtype: self.0.dtype() }, &batches);
    prefetch(&mut self, batches: Batches<'_>) -> PyResult<Call> =
        self.ask(&Ask::Prefetch, &batches);
    #[pyo3(signature = (number, step, batches, total=0))]
    apply_gradients(
        &mut self, number: u64, step: Option<i64>, batches: Batches<'_>, total: u64
    ) -> PyResult<Call> = {
        let (push, dtype) = (push(number, step, total), self.0.dtype());
        self.ask(&Ask::ApplyGradients { push, dtype }, &batches)
    };
    #[pyo3(signature = (number, batches, total=0))]
    assign(&mut self, number: u64, batches: Batches<'_>, total: u64) -> PyResult<Call> =
        self.ask(&Ask::Assign(push(number, None, total)), &batches);
    #[pyo3(signature = (number, batches, total=0))]
    import_rows(&mut self, number: u64, batches: Batches<'_>, total: u64) -> PyResult<Call> =
        self.ask(&Ask::ImportRows(push(number, None, total)), &batches);
    #[pyo3(signature = (number, operation, batches, total=0))]
    scatter(
        &mut self, number: u64, operation: u16, batches: Batches<'_>, total: u64
    ) -> PyResult<Call> =
        self.ask(&Ask::Scatter { push: push(number, None, total), operation }, &batches);
    #[pyo3(signature = (number, batches, total=0))]
    remove(&mut self, number: u64, batches: Batches<'_>, total: u64) -> PyResult<Call> =
        self.ask(&Ask::Remove(push(number, None, total)), &batches);
}

fn push(number: u64, step: Option<i64>, total: u64) -> PushHeader {
    PushHeader { number, step, total }
}
