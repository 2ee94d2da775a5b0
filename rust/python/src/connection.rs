//! `_core.Connection`: the server's side of a connection, and the calls that come of it.

use std::os::fd::AsRawFd;

use hybridps_serve::{self as serve, Call, Event, Noted, Socket};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::errors::misuse;
use crate::memory::Buffer;
use crate::store::PyStore;

/// The schema that this module was compiled with, so that Python reads no other.
#[pyfunction]
pub(crate) fn schema() -> &'static str {
    include_str!("../../../schemas/hybridps.capnp")
}

#[pyclass(module = "hybridps._core", frozen, get_all)]
pub(crate) struct Login {
    question: u32,
    token: String,
}

#[pyclass(module = "hybridps._core", frozen, get_all)]
pub(crate) struct ColdCall {
    question: u32,
    verb: &'static str,
    frame_bytes: usize,
    params: Py<Buffer>,
}

#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct HotCall {
    call: Call,
    #[pyo3(get)]
    question: u32,
    #[pyo3(get)]
    verb: &'static str,
    #[pyo3(get)]
    frame_bytes: usize,
    #[pyo3(get)]
    reply_bytes: usize,
    #[pyo3(get)]
    announced_bytes: u64,
    #[pyo3(get)]
    cost: usize,
    #[pyo3(get)]
    is_streamed: bool,
}

impl From<Call> for HotCall {
    fn from(call: Call) -> Self {
        Self {
            question: call.question(),
            verb: call.verb(),
            frame_bytes: call.frame_bytes(),
            reply_bytes: call.reply_bytes(),
            announced_bytes: call.announced_bytes(),
            cost: call.cost_bytes(),
            is_streamed: call.is_streamed(),
            call,
        }
    }
}

#[pymethods]
impl HotCall {
    #[getter]
    fn tables(&self) -> Vec<u32> {
        self.call.tables()
    }

    #[getter]
    fn code(&self) -> &str {
        self.call.code()
    }

    #[getter]
    fn unsent_bytes(&self) -> usize {
        self.call.unsent_bytes()
    }

    fn run(&self, py: Python<'_>) -> PyResult<Buffer> {
        let reply = py.detach(|| self.call.run());
        Ok(reply.map_err(|misuse| PyRuntimeError::new_err(misuse.0))?.into())
    }

    fn try_run(&self, py: Python<'_>) -> Option<Buffer> {
        py.detach(|| self.call.try_run()).map(Buffer::from)
    }

    #[pyo3(signature = (outlet, /))]
    fn send(&self, py: Python<'_>, outlet: &Outlet) -> PyResult<bool> {
        let is_full = py.detach(|| self.call.send(&outlet.0));
        Ok(is_full.map_err(|misuse| PyRuntimeError::new_err(misuse.0))??)
    }
}

#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct Outlet(Socket);

#[pymethods]
impl Outlet {
    #[new]
    #[pyo3(signature = (descriptor, /))]
    fn new(descriptor: i32) -> PyResult<Self> {
        Ok(Self(Socket::duplicate(descriptor)?))
    }

    fn fileno(&self) -> i32 {
        self.0.as_raw_fd()
    }

    fn shutdown(&self) {
        self.0.shutdown();
    }
}

#[pyclass(module = "hybridps._core")]
pub(crate) struct Connection(serve::Connection);

fn seen(py: Python<'_>, event: Event) -> PyResult<Py<PyAny>> {
    Ok(match event {
        Event::Login { question, token } => Py::new(py, Login { question, token })?.into_any(),
        Event::Hot(call) => Py::new(py, HotCall::from(call))?.into_any(),
        Event::Cold { question, verb, params } => {
            let (frame_bytes, params) = (params.len() * 8, Py::new(py, Buffer::from(params))?);
            Py::new(py, ColdCall { question, verb, frame_bytes, params })?.into_any()
        }
    })
}

fn all(py: Python<'_>, events: Vec<Event>) -> PyResult<Vec<Py<PyAny>>> {
    events.into_iter().map(|event| seen(py, event)).collect()
}

#[pymethods]
impl Connection {
    #[new]
    #[pyo3(signature = (store, *, frame_limit, keys_limit))]
    fn new(store: &PyStore, frame_limit: usize, keys_limit: usize) -> Self {
        Self(serve::Connection::new(store.engine(), frame_limit, keys_limit))
    }

    #[getter]
    fn session(&self) -> u64 {
        self.0.session()
    }

    #[setter]
    fn set_session(&self, session: u64) {
        self.0.set_session(session);
    }

    #[getter]
    fn closing(&self) -> Option<&str> {
        self.0.closing()
    }

    #[getter]
    fn is_collecting(&self) -> bool {
        self.0.is_collecting()
    }

    #[getter]
    fn is_inside_frame(&self) -> bool {
        self.0.is_inside_frame()
    }

    #[getter]
    fn frame_wanted(&self) -> usize {
        self.0.frame_wanted()
    }

    #[pyo3(signature = (_hint, /))]
    fn get_buffer(&mut self, _hint: isize) -> Buffer {
        Buffer(self.0.buffer())
    }

    #[pyo3(signature = (count, at_once=0))]
    fn received(
        &mut self,
        py: Python<'_>,
        count: usize,
        at_once: usize,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let run = |call: &Call| py.detach(|| call.try_run());
        all(py, self.0.received(count, at_once, run).map_err(misuse)?)
    }

    fn noted(&mut self) -> Vec<Noted> {
        self.0.noted()
    }

    fn accept(&mut self, py: Python<'_>, question: u32) -> PyResult<Vec<Py<PyAny>>> {
        all(py, self.0.accept(question))
    }

    fn reject(&mut self, py: Python<'_>, question: u32, reason: &str) -> PyResult<Vec<Py<PyAny>>> {
        all(py, self.0.reject(question, reason))
    }

    fn answer(&mut self, question: u32) -> Option<Buffer> {
        self.0.answer(question).map(Buffer::from)
    }

    fn returns(&mut self, question: u32, results: &[u8]) -> PyResult<Buffer> {
        Ok(self.0.returns(question, results).map_err(misuse)?.into())
    }

    fn fails(&mut self, question: u32, kind: &str, reason: &str) -> PyResult<Buffer> {
        Ok(self.0.fails(question, kind, reason).map_err(misuse)?.into())
    }

    fn forget_parts(&self) {
        self.0.forget_parts();
    }

    fn cancelled(&self, question: u32) -> bool {
        self.0.is_canceled(question)
    }

    fn outgoing(&mut self) -> Buffer {
        self.0.outgoing().into()
    }

    fn abort(&mut self, reason: &str) {
        self.0.abort(reason);
    }
}
