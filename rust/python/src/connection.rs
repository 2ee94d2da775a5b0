//! `_core.Connection`: the server's side of a connection, for an asyncio transport.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use hybridps_wire::{is_hot, Event, ExceptionKind, ServerConnection, VERBS};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::buffer::{as_numbers, as_numbers_mut, Buffer, Words};
use crate::hot::{HotCall, Shared};
use crate::receiver::Receiver;
use crate::store::PyStore;

/// The schema that this module was compiled with, so that Python reads no other.
#[pyfunction]
pub(crate) fn schema() -> &'static str {
    include_str!("../../../schemas/hybridps.capnp")
}

/// A login that waits for `accept` or `reject`.
#[pyclass(module = "hybridps._core", frozen, get_all)]
pub(crate) struct Login {
    question: u32,
    token: String,
}

/// A call that Python decodes and answers.
#[pyclass(module = "hybridps._core", frozen, get_all)]
pub(crate) struct ColdCall {
    question: u32,
    verb: &'static str,
    frame_bytes: usize,
    params: Py<Buffer>,
}

/// Server side of one connection.
#[pyclass(module = "hybridps._core")]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    server: ServerConnection,
    receiver: Receiver,
}

impl Connection {
    fn events<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let events = PyList::empty(py);
        while !self.server.is_waiting() && self.server.closing().is_none() {
            let mut frame = match self.receiver.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(malformed) => {
                    self.server.abort(malformed.0);
                    break;
                }
            };
            if let Some(event) = self.server.receive(&mut frame) {
                events.append(self.event(py, event, frame)?)?;
            }
        }
        Ok(events)
    }

    fn event(&self, py: Python<'_>, event: Event, frame: Words) -> PyResult<Py<PyAny>> {
        let frame_bytes = frame.len() * 8;
        Ok(match event {
            Event::Login { question, token } => Py::new(py, Login { question, token })?.into_any(),
            Event::Call { question, verb } if is_hot(verb) => {
                Py::new(py, HotCall::new(&self.shared, question, verb, frame))?.into_any()
            }
            Event::Call { question, verb } => {
                let (verb, params) = (VERBS[usize::from(verb)], Py::new(py, Buffer::whole(frame))?);
                Py::new(py, ColdCall { question, verb, frame_bytes, params })?.into_any()
            }
        })
    }
}

/// The words of a message that Python built.
pub(crate) fn words_of(bytes: &[u8]) -> PyResult<Vec<u64>> {
    if bytes.len() % 8 != 0 {
        return Err(PyValueError::new_err(format!(
            "a message is a whole number of 64-bit words, not {} bytes; use to_bytes()",
            bytes.len()
        )));
    }
    let mut words = vec![0; bytes.len() / 8];
    as_numbers_mut(&mut words).copy_from_slice(bytes);
    Ok(words)
}

/// The bytes of small frames.
pub(crate) fn bytes_of<'py>(py: Python<'py>, words: &[u64]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, as_numbers(words))
}

#[pymethods]
impl Connection {
    #[new]
    #[pyo3(signature = (store, *, frame_limit, keys_limit))]
    fn new(store: &PyStore, frame_limit: usize, keys_limit: usize) -> Self {
        Self {
            shared: Arc::new(Shared::new(store.engine(), frame_limit, keys_limit)),
            server: ServerConnection::new(),
            receiver: Receiver::new(frame_limit),
        }
    }

    #[getter]
    fn session(&self) -> u64 {
        self.shared.session.load(Ordering::Relaxed)
    }

    #[setter]
    fn set_session(&self, session: u64) {
        // Published to workers by the hand-over of the calls that come after hello.
        self.shared.session.store(session, Ordering::Relaxed);
    }

    #[getter]
    fn closing(&self) -> Option<&str> {
        self.server.closing()
    }

    #[getter]
    fn is_collecting(&self) -> bool {
        self.shared.parts.is_collecting()
    }

    #[getter]
    fn is_inside_frame(&self) -> bool {
        self.receiver.is_inside_frame()
    }

    #[getter]
    fn frame_wanted(&self) -> usize {
        self.receiver.frame_wanted()
    }

    #[pyo3(signature = (hint, /))]
    fn get_buffer(&mut self, hint: isize) -> Buffer {
        let _ = hint;
        self.receiver.buffer()
    }

    fn received<'py>(&mut self, py: Python<'py>, count: usize) -> PyResult<Bound<'py, PyList>> {
        self.receiver.received(count)?;
        self.events(py)
    }

    fn accept<'py>(&mut self, py: Python<'py>, question: u32) -> PyResult<Bound<'py, PyList>> {
        self.server.accept(question);
        self.events(py)
    }

    fn reject<'py>(
        &mut self,
        py: Python<'py>,
        question: u32,
        reason: &str,
    ) -> PyResult<Bound<'py, PyList>> {
        self.server.reject(question, reason);
        self.events(py)
    }

    fn answer(&mut self, question: u32) -> Option<Buffer> {
        self.server.answer(question).map(|canceled| Buffer::whole(canceled.into()))
    }

    fn returns(&mut self, question: u32, results: &[u8]) -> PyResult<Buffer> {
        let frame = self.server.returns(question, &words_of(results)?);
        let frame = frame.map_err(|malformed| PyValueError::new_err(malformed.0))?;
        Ok(Buffer::whole(frame.into()))
    }

    fn fails(&mut self, question: u32, kind: &str, reason: &str) -> PyResult<Buffer> {
        let kind = ExceptionKind::parse(kind).ok_or_else(|| {
            PyValueError::new_err(format!(
                "kind is {kind:?}; give failed, overloaded, disconnected or unimplemented"
            ))
        })?;
        Ok(Buffer::whole(self.server.fails(question, kind, reason).into()))
    }

    fn forget_parts(&self) {
        self.shared.parts.forget();
    }

    fn cancelled(&self, question: u32) -> bool {
        self.server.is_canceled(question)
    }

    fn outgoing<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes_of(py, &self.server.outgoing())
    }

    fn abort(&mut self, reason: &str) {
        self.server.abort(reason);
    }
}
