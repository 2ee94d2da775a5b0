//! `_core.ClientConnection`: the client's side of a connection, for a blocking or an asyncio
//! socket.

use hybridps_wire::{self as wire, Layout, Outcome, PushHeader, DATA_MAX, VERBS};
use numpy::PyReadonlyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyMemoryView};

use crate::arrays::{slice, KeysIn, RowsIn};
use crate::buffer::{Buffer, Words};
use crate::connection::{bytes_of, words_of};
use crate::errors::bad_input;
use crate::receiver::Receiver;

/// Most bytes of one frame by default, as large as one Data can be.
const FRAME_LIMIT: usize = 1 << 29;

type Call<'py> = (u32, Bound<'py, PyList>);

/// What a call was answered with.
#[pyclass(module = "hybridps._core", frozen, get_all)]
pub(crate) struct Answer {
    question: u32,
    kind: &'static str,
    rows: Py<PyList>,
    duplicate: bool,
    removed: u64,
    results: Option<Py<Buffer>>,
    exception: Option<(&'static str, String, String)>,
}

/// Client side of one connection.
#[pyclass(module = "hybridps._core")]
pub(crate) struct ClientConnection {
    client: wire::ClientConnection,
    receiver: Receiver,
    failure: Option<String>,
}

impl ClientConnection {
    fn answer(&self, py: Python<'_>, answer: wire::Answer, frame: Words) -> PyResult<Answer> {
        let mut made = Answer {
            question: answer.question,
            kind: "results",
            rows: PyList::empty(py).unbind(),
            duplicate: false,
            removed: 0,
            results: None,
            exception: None,
        };
        match answer.outcome {
            Outcome::Rows => {
                made.kind = "rows";
                made.rows = row_views(py, frame)?;
            }
            Outcome::Duplicate(duplicate) => (made.kind, made.duplicate) = ("duplicate", duplicate),
            Outcome::Removed(removed) => (made.kind, made.removed) = ("removed", removed),
            Outcome::Results => made.results = Some(Py::new(py, Buffer::whole(frame))?),
            Outcome::Exception { kind, reason } => {
                made.kind = "exception";
                made.exception = Some((kind.name(), reason.class, reason.text));
            }
        }
        Ok(made)
    }

    /// The buffers of a call: frames that were waiting for company, the header, the arrays.
    fn buffers<'py>(
        &mut self,
        py: Python<'py>,
        layout: &Layout,
        arrays: Vec<Option<Bound<'py, PyAny>>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let mut head = self.client.pending();
        head.extend_from_slice(&layout.header);
        let buffers = PyList::new(py, [bytes_of(py, &head)])?;
        for (blob, array) in layout.blobs.iter().zip(arrays) {
            let Some(array) = array.filter(|_| blob.bytes > 0) else { continue };
            buffers.append(PyMemoryView::from(&array)?.call_method1("cast", ("B",))?)?;
            if blob.bytes % 8 != 0 {
                buffers.append(PyBytes::new(py, &[0; 8][blob.bytes % 8..]))?;
            }
        }
        Ok(buffers)
    }
}

/// Views of the rows in an answer, which own the frame together.
fn row_views(py: Python<'_>, frame: Words) -> PyResult<Py<PyList>> {
    let places = wire::decode_rows(&frame).map_err(|e| PyValueError::new_err(e.0))?;
    let views = PyList::empty(py);
    for place in places {
        let rows = Py::new(py, frame.view(place.rows, true))?;
        let found = (!place.found.is_empty()).then(|| frame.view(place.found, true));
        views.append((rows, found.map(|found| Py::new(py, found)).transpose()?))?;
    }
    Ok(views.unbind())
}

/// Bytes of an array that must fit one Data.
fn size_of_array(what: &str, numbers: usize, size: usize) -> PyResult<usize> {
    let bytes = numbers * size;
    if bytes > DATA_MAX {
        return Err(bad_input(format!(
            "{what} of {bytes} bytes do not fit one call; split it, at most {DATA_MAX} each"
        )));
    }
    Ok(bytes)
}

#[pymethods]
impl ClientConnection {
    #[new]
    #[pyo3(signature = (*, frame_limit=FRAME_LIMIT))]
    fn new(frame_limit: usize) -> Self {
        Self {
            client: wire::ClientConnection::new(),
            receiver: Receiver::new(frame_limit),
            failure: None,
        }
    }

    #[getter]
    fn closed(&self) -> Option<&str> {
        self.failure.as_deref().or(self.client.closed())
    }

    #[getter]
    fn in_flight(&self) -> usize {
        self.client.in_flight()
    }

    #[pyo3(signature = (session, client_id, token=""))]
    fn start<'py>(
        &mut self,
        py: Python<'py>,
        session: u64,
        client_id: &str,
        token: &str,
    ) -> (u32, Bound<'py, PyBytes>) {
        let (question, flight) = self.client.start(session, client_id, token);
        (question, bytes_of(py, &flight))
    }

    fn lookup<'py>(
        &mut self,
        py: Python<'py>,
        batches: Vec<(u32, KeysIn<'py>)>,
        want_found: bool,
    ) -> PyResult<Call<'py>> {
        let mut tables = Vec::with_capacity(batches.len());
        for (table, keys) in &batches {
            tables.push((*table, size_of_array("keys", slice(keys)?.len(), 8)?));
        }
        let (question, layout) = self.client.lookup(&tables, want_found);
        let arrays = batches.iter().map(|(_, keys)| Some(keys.as_any().clone())).collect();
        Ok((question, self.buffers(py, &layout, arrays)?))
    }

    fn lookup_or_insert<'py>(
        &mut self,
        py: Python<'py>,
        batches: Vec<(u32, KeysIn<'py>, Option<PyReadonlyArray1<'py, u32>>)>,
    ) -> PyResult<Call<'py>> {
        let (mut tables, mut arrays) = (Vec::new(), Vec::new());
        for (table, keys, counts) in &batches {
            let count = counts.as_ref().map_or(Ok(0), |counts| slice(counts).map(<[u32]>::len))?;
            let (n, counts_bytes) = (slice(keys)?.len(), size_of_array("counts", count, 4)?);
            tables.push((*table, size_of_array("keys", n, 8)?, counts_bytes));
            arrays.push(Some(keys.as_any().clone()));
            arrays.push(counts.as_ref().map(|counts| counts.as_any().clone()));
        }
        let (question, layout) = self.client.lookup_or_insert(&tables);
        Ok((question, self.buffers(py, &layout, arrays)?))
    }

    #[pyo3(signature = (number, step, batches, total=0))]
    fn apply_gradients<'py>(
        &mut self,
        py: Python<'py>,
        number: u64,
        step: Option<i64>,
        batches: Vec<(u32, KeysIn<'py>, RowsIn<'py>)>,
        total: u64,
    ) -> PyResult<Call<'py>> {
        let (mut tables, mut arrays) = (Vec::new(), Vec::new());
        for (table, keys, gradients) in &batches {
            let bytes = size_of_array("gradients", slice(gradients)?.len(), 4)?;
            tables.push((*table, size_of_array("keys", slice(keys)?.len(), 8)?, bytes));
            arrays.push(Some(keys.as_any().clone()));
            arrays.push(Some(gradients.as_any().clone()));
        }
        let push = PushHeader { number, step, total };
        let (question, layout) = self.client.apply_gradients(push, &tables);
        Ok((question, self.buffers(py, &layout, arrays)?))
    }

    fn prefetch<'py>(
        &mut self,
        py: Python<'py>,
        batches: Vec<(u32, KeysIn<'py>)>,
    ) -> PyResult<Call<'py>> {
        let mut tables = Vec::with_capacity(batches.len());
        for (table, keys) in &batches {
            tables.push((*table, size_of_array("keys", slice(keys)?.len(), 8)?));
        }
        let (question, layout) = self.client.prefetch(&tables);
        let arrays = batches.iter().map(|(_, keys)| Some(keys.as_any().clone())).collect();
        Ok((question, self.buffers(py, &layout, arrays)?))
    }

    #[pyo3(signature = (number, table, keys, rows, total=0))]
    fn assign<'py>(
        &mut self,
        py: Python<'py>,
        number: u64,
        table: u32,
        keys: KeysIn<'py>,
        rows: RowsIn<'py>,
        total: u64,
    ) -> PyResult<Call<'py>> {
        let bytes = size_of_array("rows", slice(&rows)?.len(), 4)?;
        let call = (table, size_of_array("keys", slice(&keys)?.len(), 8)?, bytes);
        let (question, layout) = self.client.assign(PushHeader { number, step: None, total }, call);
        let arrays = vec![Some(keys.as_any().clone()), Some(rows.as_any().clone())];
        Ok((question, self.buffers(py, &layout, arrays)?))
    }

    #[pyo3(signature = (number, table, keys, total=0))]
    fn remove<'py>(
        &mut self,
        py: Python<'py>,
        number: u64,
        table: u32,
        keys: KeysIn<'py>,
        total: u64,
    ) -> PyResult<Call<'py>> {
        let call = (table, size_of_array("keys", slice(&keys)?.len(), 8)?);
        let (question, layout) = self.client.remove(PushHeader { number, step: None, total }, call);
        Ok((question, self.buffers(py, &layout, vec![Some(keys.as_any().clone())])?))
    }

    fn call<'py>(
        &mut self,
        py: Python<'py>,
        verb: &str,
        params: &[u8],
    ) -> PyResult<(u32, Bound<'py, PyList>)> {
        let ordinal = VERBS.iter().position(|known| *known == verb);
        let ordinal = ordinal.ok_or_else(|| {
            PyValueError::new_err(format!("no verb is called {verb:?}; use the schema's names"))
        })?;
        let call = self.client.call(ordinal as u16, &words_of(params)?);
        let (question, frame) = call.map_err(|e| PyValueError::new_err(e.0))?;
        let mut head = self.client.pending();
        head.extend(frame);
        Ok((question, PyList::new(py, [bytes_of(py, &head)])?))
    }

    #[pyo3(signature = (hint, /))]
    fn get_buffer(&mut self, hint: isize) -> Buffer {
        let _ = hint;
        self.receiver.buffer()
    }

    fn received<'py>(&mut self, py: Python<'py>, count: usize) -> PyResult<Bound<'py, PyList>> {
        self.receiver.received(count)?;
        let answers = PyList::empty(py);
        while self.closed().is_none() {
            let mut frame = match self.receiver.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(malformed) => {
                    self.failure = Some(format!("the server broke the protocol: {malformed}"));
                    break;
                }
            };
            if let Some(answer) = self.client.receive(&mut frame) {
                answers.append(self.answer(py, answer, frame)?)?;
            }
        }
        Ok(answers)
    }

    fn forget(&mut self, question: u32) {
        self.client.forget(question);
    }

    fn probe<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let mut head = self.client.pending();
        head.extend(self.client.probe());
        bytes_of(py, &head)
    }

    fn pending_bytes<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes_of(py, &self.client.pending())
    }
}
