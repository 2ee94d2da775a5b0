//! `_core.Connection`: the server's side of a connection, for an asyncio transport.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

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
    /// Answers that were given where their calls were decoded, and what is to be counted of them.
    replies: Vec<u64>,
    noted: Vec<Noted>,
}

/// Verb, code and seconds of an answered call.
type Noted = (&'static str, String, f64);

/// Most bytes that are answered at once: other connections have their turn then.
const AT_ONCE_MAX: usize = 256 << 10;

impl Connection {
    /// `at_once`: the cost of calls that are answered here if they need not wait, 0 for none. Only
    /// up to the first that is not, since those behind it must not be answered before it.
    fn events<'py>(&mut self, py: Python<'py>, mut at_once: usize) -> PyResult<Bound<'py, PyList>> {
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
            match self.server.receive(&mut frame) {
                None => {}
                Some(Event::Call { question, verb }) if is_hot(verb) => {
                    let call = HotCall::new(&self.shared, question, verb, frame);
                    if !self.is_answered(py, &call, question, &mut at_once) {
                        events.append(Py::new(py, call)?)?;
                    }
                }
                Some(event) => {
                    at_once = 0;
                    events.append(Self::event(py, event, frame)?)?;
                }
            }
        }
        Ok(events)
    }

    /// Answers a call where it was decoded, if it may and need not wait.
    fn is_answered(
        &mut self,
        py: Python<'_>,
        call: &HotCall,
        question: u32,
        at_once: &mut usize,
    ) -> bool {
        let has_room = self.replies.len() * 8 < AT_ONCE_MAX;
        let started = Instant::now();
        let reply = (has_room && call.cost_bytes() <= *at_once)
            .then(|| py.detach(|| call.try_reply()))
            .flatten();
        let Some(reply) = reply else {
            *at_once = 0;
            return false;
        };
        let seconds = started.elapsed().as_secs_f64();
        self.noted.push((call.verb(), call.code().to_owned(), seconds));
        match self.server.answer(question) {
            Some(canceled) => self.replies.extend(canceled),
            None => self.replies.extend_from_slice(&reply),
        }
        true
    }

    fn event(py: Python<'_>, event: Event, frame: Words) -> PyResult<Py<PyAny>> {
        let frame_bytes = frame.len() * 8;
        Ok(match event {
            Event::Login { question, token } => Py::new(py, Login { question, token })?.into_any(),
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
            replies: Vec::new(),
            noted: Vec::new(),
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
        self.shared.parts().is_collecting()
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

    #[pyo3(signature = (count, at_once=0))]
    fn received<'py>(
        &mut self,
        py: Python<'py>,
        count: usize,
        at_once: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        self.receiver.received(count)?;
        self.events(py, at_once)
    }

    fn noted(&mut self) -> Vec<Noted> {
        std::mem::take(&mut self.noted)
    }

    fn accept<'py>(&mut self, py: Python<'py>, question: u32) -> PyResult<Bound<'py, PyList>> {
        self.server.accept(question);
        self.events(py, 0)
    }

    fn reject<'py>(
        &mut self,
        py: Python<'py>,
        question: u32,
        reason: &str,
    ) -> PyResult<Bound<'py, PyList>> {
        self.server.reject(question, reason);
        self.events(py, 0)
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
        self.shared.parts().forget();
    }

    fn cancelled(&self, question: u32) -> bool {
        self.server.is_canceled(question)
    }

    fn outgoing(&mut self) -> Buffer {
        let mut frames = self.server.outgoing();
        frames.append(&mut self.replies);
        Buffer::whole(frames.into())
    }

    fn abort(&mut self, reason: &str) {
        self.server.abort(reason);
    }
}
