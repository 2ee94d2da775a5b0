//! `_core.Connection`: the server's side of a connection, and the calls that come of it.

use std::os::fd::AsRawFd;

use hybridps_serve::{self as serve, Call, Event, Noted, Socket};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::arrays::Keys;
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
pub(crate) struct HotCall(Call);

methods! { impl HotCall:
    #[getter] question(&self) -> u32 = self.0.question();
    #[getter] verb(&self) -> &'static str = self.0.verb();
    #[getter] frame_bytes(&self) -> usize = self.0.frame_bytes();
    #[getter] reply_bytes(&self) -> usize = self.0.reply_bytes();
    #[getter] announced_bytes(&self) -> u64 = self.0.announced_bytes();
    #[getter] cost(&self) -> usize = self.0.cost_bytes();
    #[getter] number(&self) -> u64 = self.0.number();
    #[getter] step(&self) -> Option<i64> = self.0.step();
    #[getter] is_streamed(&self) -> bool = self.0.is_streamed();
    #[getter] tables(&self) -> Vec<u32> = self.0.tables();
    #[getter] keys(&self) -> Vec<(u32, Keys)> =
        self.0.keys().into_iter().map(|(table, keys)| (table, keys.into())).collect();
    #[getter] code(&self) -> &str = self.0.code();
    #[getter] unsent_bytes(&self) -> usize = self.0.unsent_bytes();
    acknowledge(&self) -> Buffer = self.0.acknowledge().into();
}

#[pymethods]
impl HotCall {
    fn run(&self, py: Python<'_>) -> PyResult<Buffer> {
        let reply = py.detach(|| self.0.run());
        Ok(reply.map_err(|misuse| PyRuntimeError::new_err(misuse.0))?.into())
    }

    fn hold(&self, py: Python<'_>) -> PyResult<Option<Buffer>> {
        let reply = py.detach(|| self.0.hold());
        Ok(reply.map_err(|misuse| PyRuntimeError::new_err(misuse.0))?.map(Buffer::from))
    }

    fn try_run(&self, py: Python<'_>) -> Option<Buffer> {
        py.detach(|| self.0.try_run()).map(Buffer::from)
    }

    #[pyo3(signature = (outlet, /))]
    fn send(&self, py: Python<'_>, outlet: &Outlet) -> PyResult<bool> {
        let is_full = py.detach(|| self.0.send(&outlet.0));
        Ok(is_full.map_err(|misuse| PyRuntimeError::new_err(misuse.0))??)
    }
}

#[pyfunction]
pub(crate) fn apply_together(
    py: Python<'_>,
    calls: Vec<Py<HotCall>>,
    number: u64,
) -> PyResult<Vec<Buffer>> {
    let calls: Vec<&Call> = calls.iter().map(|call| &call.get().0).collect();
    let replies = py.detach(|| serve::apply_together(&calls, number));
    let replies = replies.map_err(|misuse| PyRuntimeError::new_err(misuse.0))?;
    Ok(replies.into_iter().map(Buffer::from).collect())
}

#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct Outlet(Socket);

methods! { impl Outlet:
    fileno(&self) -> i32 = self.0.as_raw_fd();
    shutdown(&self) = self.0.shutdown();
}

#[pymethods]
impl Outlet {
    #[new]
    #[pyo3(signature = (descriptor, /))]
    fn new(descriptor: i32) -> PyResult<Self> {
        Ok(Self(Socket::duplicate(descriptor)?))
    }
}

#[pyclass(module = "hybridps._core")]
pub(crate) struct Connection(serve::Connection);

fn seen(py: Python<'_>, event: Event) -> PyResult<Py<PyAny>> {
    Ok(match event {
        Event::Login { question, token } => Py::new(py, Login { question, token })?.into_any(),
        Event::Hot(call) => Py::new(py, HotCall(call))?.into_any(),
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

    fn accept(&mut self, py: Python<'_>, question: u32) -> PyResult<Vec<Py<PyAny>>> {
        all(py, self.0.accept(question))
    }

    fn reject(&mut self, py: Python<'_>, question: u32, reason: &str) -> PyResult<Vec<Py<PyAny>>> {
        all(py, self.0.reject(question, reason))
    }
}

methods! { impl Connection:
    #[getter] session(&self) -> u64 = self.0.session();
    #[setter] set_session(&self, session: u64) = self.0.set_session(session);
    #[getter] closing(&self) -> Option<&str> = self.0.closing();
    #[getter] is_collecting(&self) -> bool = self.0.is_collecting();
    #[getter] is_inside_frame(&self) -> bool = self.0.is_inside_frame();
    #[getter] frame_wanted(&self) -> usize = self.0.frame_wanted();
    #[pyo3(signature = (_hint, /))]
    get_buffer(&mut self, _hint: isize) -> Buffer = Buffer(self.0.buffer());
    noted(&mut self) -> Vec<Noted> = self.0.noted();
    answer(&mut self, question: u32) -> Option<Buffer> = self.0.answer(question).map(Buffer::from);
    returns(&mut self, question: u32, results: &[u8]) -> PyResult<Buffer> =
        self.0.returns(question, results).map(Buffer::from).map_err(misuse);
    fails(&mut self, question: u32, kind: &str, reason: &str) -> PyResult<Buffer> =
        self.0.fails(question, kind, reason).map(Buffer::from).map_err(misuse);
    forget_parts(&self) = self.0.forget_parts();
    cancelled(&self, question: u32) -> bool = self.0.is_canceled(question);
    outgoing(&mut self) -> Buffer = self.0.outgoing().into();
    abort(&mut self, reason: &str) = self.0.abort(reason);
}
