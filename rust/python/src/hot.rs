//! The hot verbs between frame and store: keys and gradients are read where they were received,
//! rows are written where they are sent from (`reads`, `stream`).

use std::collections::HashMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hybridps_core::{Error, ErrorKind, Store};
use hybridps_wire::{
    self as wire, Batch, ExceptionKind, Malformed, Parts, Refusal, StreamedReply, LOOKUP,
    LOOKUP_OR_INSERT, PREFETCH, VERBS,
};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::buffer::{as_numbers, Buffer, Words};
use crate::outlet::Outlet;
use crate::pushes::push;
use crate::reads::{self, Sizes};
use crate::stream::{Stream, PIECE_BYTES};

/// Replies larger than this are streamed.
const WHOLE_MAX: usize = PIECE_BYTES + PIECE_BYTES / 2;

/// Why a call fails: the reason of its exception, "<class>: <text>".
pub(crate) struct Failure(pub(crate) String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let class = match error.kind {
            ErrorKind::BadInput => "BadInputError",
            ErrorKind::TableNotFound => "TableNotFoundError",
            ErrorKind::TableMismatch => "TableMismatchError",
            ErrorKind::StoreFull => "StoreFullError",
            ErrorKind::Corruption => "CorruptionError",
            ErrorKind::Config => "ConfigError",
            ErrorKind::Unavailable => "UnavailableError",
            _ => "HybridPSError",
        };
        Self(format!("{class}: {}", error.message))
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self(format!("BadInputError: {malformed}"))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(format!("BadInputError: {refusal}"))
    }
}

pub(crate) fn bad_input(text: String) -> Failure {
    Failure::from(Error::bad_input(text))
}

/// What is known of a call before it runs.
#[derive(Default)]
struct Plan {
    /// Of a read, the reply's arrays, and the keys per table.
    sizes: Sizes,
    keys: Vec<usize>,
    /// Bytes that a push in parts announces.
    announced: u64,
}

/// What all hot calls of a connection share.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) session: AtomicU64,
    pub(crate) frame_limit: usize,
    pub(crate) keys_limit: usize,
    parts: Mutex<Parts>,
    /// Columns by table. Ids are never used again and a table's dim is fixed, so this never goes
    /// stale; a dropped table is refused by the store.
    dims: Mutex<HashMap<u32, usize>>,
}

/// Tables whose dim a connection remembers; beyond it, it starts over.
const DIMS_MAX: usize = 4096;

impl Shared {
    pub(crate) fn new(store: Arc<Store>, frame_limit: usize, keys_limit: usize) -> Self {
        let (session, dims) = (AtomicU64::new(0), Mutex::default());
        Self { store, session, frame_limit, keys_limit, parts: Mutex::default(), dims }
    }

    /// The push that this connection collects.
    pub(crate) fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dim(&self, table: u32) -> Result<usize, Failure> {
        let mut dims = self.dims.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(dim) = dims.get(&table) {
            return Ok(*dim);
        }
        let dim = self.store.spec(table)?.dim as usize;
        if dims.len() >= DIMS_MAX {
            dims.clear();
        }
        dims.insert(table, dim);
        Ok(dim)
    }

    /// The reply's shape. What is wrong with a read's arrays is found here, before a byte is sent.
    fn plan(&self, verb: u16, frame: &[u64]) -> Result<Plan, Failure> {
        let batches = wire::decode_batches(verb, frame, self.keys_limit)?;
        if verb == PREFETCH {
            // Nobody hears what goes wrong later.
            batches.iter().try_for_each(|batch| self.dim(batch.table).map(drop))?;
            return Ok(Plan::default());
        }
        if verb > LOOKUP_OR_INSERT {
            let header = wire::decode_push(frame)?;
            let announced = if wire::is_announcement(&header, &batches) { header.total } else { 0 };
            return Ok(Plan { announced, ..Plan::default() });
        }
        let want_found = verb == LOOKUP && wire::decode_want_found(frame)?;
        let mut plan = Plan::default();
        let mut total = StreamedReply::FIXED_BYTES;
        for batch in &batches {
            check_counts(verb, batch)?;
            let rows = batch.keys.len() * self.dim(batch.table)? * 4;
            let found = if want_found { batch.keys.len() } else { 0 };
            total += rows + found + 64;
            if rows > wire::DATA_MAX || total > self.frame_limit {
                return Err(bad_input(format!(
                    "a reply of more than {} bytes was asked for; ask for fewer keys at a time",
                    self.frame_limit.min(wire::DATA_MAX)
                )));
            }
            plan.sizes.push((rows, found));
            plan.keys.push(batch.keys.len());
        }
        Ok(plan)
    }
}

/// A hot call, decoded as far as its cost.
#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct HotCall {
    shared: Arc<Shared>,
    #[pyo3(get)]
    question: u32,
    verb: u16,
    #[pyo3(get)]
    frame_bytes: usize,
    #[pyo3(get)]
    reply_bytes: usize,
    #[pyo3(get)]
    announced_bytes: u64,
    work: Work,
    /// Class of the error that was answered.
    failure: OnceLock<String>,
}

enum Work {
    /// Done once.
    Whole(Mutex<Option<(Words, Result<Sizes, Failure>)>>),
    Stream(Box<Stream>),
}

impl HotCall {
    pub(crate) fn new(shared: &Arc<Shared>, question: u32, verb: u16, frame: Words) -> Self {
        let plan = shared.plan(verb, &frame);
        let reply_bytes =
            plan.as_ref().map_or(0, |plan| plan.sizes.iter().map(|(r, f)| r + f + 64).sum());
        let frame_bytes = frame.len() * 8;
        let announced_bytes = plan.as_ref().map_or(0, |plan| plan.announced);
        let work = match plan {
            Ok(plan) if reply_bytes > WHOLE_MAX => {
                Work::Stream(Stream::new(question, frame, &plan.sizes, &plan.keys).into())
            }
            plan => Work::Whole(Mutex::new(Some((frame, plan.map(|plan| plan.sizes))))),
        };
        let (shared, failure) = (Arc::clone(shared), OnceLock::new());
        Self { shared, question, verb, frame_bytes, reply_bytes, announced_bytes, work, failure }
    }

    /// The reply; None if it was run before, or is to be sent.
    fn reply(&self) -> Option<Words> {
        let Work::Whole(work) = &self.work else { return None };
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (frame, plan) = work?;
        let reply = plan.and_then(|plan| guarded(|| self.execute(&frame, &plan)));
        Some(reply.unwrap_or_else(|failure| self.exception(&failure)))
    }

    /// The reply, if nothing has to be waited for; what is wrong with the call is told at once.
    pub(crate) fn try_reply(&self) -> Option<Words> {
        let Work::Whole(work) = &self.work else { return None };
        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = match work.as_ref()? {
            (_, Err(_)) => Err(work.take()?.1.err()?),
            (frame, Ok(plan)) if self.verb == LOOKUP => {
                guarded(|| self.try_lookup(frame, plan)).transpose()?
            }
            _ => return None,
        };
        *work = None;
        Some(reply.unwrap_or_else(|failure| self.exception(&failure)))
    }

    fn try_lookup(&self, frame: &[u64], plan: &Sizes) -> Result<Option<Words>, Failure> {
        let batches = wire::decode_batches(self.verb, frame, self.shared.keys_limit)?;
        reads::try_lookup(&self.shared.store, self.question, &batches, plan)
    }

    /// What must move: the frame and the reply.
    pub(crate) fn cost_bytes(&self) -> usize {
        self.frame_bytes + self.reply_bytes
    }

    fn exception(&self, failure: &Failure) -> Words {
        self.note(failure);
        wire::exception_return(self.question, ExceptionKind::Failed, &failure.0).into()
    }

    fn note(&self, Failure(reason): &Failure) {
        let class = reason.split(": ").next().unwrap_or_default();
        // Set once: a call fails once.
        let _ = self.failure.set(class.to_owned());
    }

    fn execute(&self, frame: &[u64], plan: &[(usize, usize)]) -> Result<Words, Failure> {
        let batches = wire::decode_batches(self.verb, frame, self.shared.keys_limit)?;
        match self.verb {
            LOOKUP | LOOKUP_OR_INSERT => {
                reads::whole(&self.shared.store, self.question, self.verb, &batches, plan)
            }
            PREFETCH => {
                for batch in batches {
                    self.shared.store.prefetch(batch.table, batch.keys)?;
                }
                Ok(wire::empty_reply(self.question).into())
            }
            verb => push(&self.shared, self.question, verb, frame, &batches),
        }
    }
}

#[pymethods]
impl HotCall {
    #[getter]
    pub(crate) fn verb(&self) -> &'static str {
        VERBS[usize::from(self.verb)]
    }

    #[getter]
    pub(crate) fn code(&self) -> &str {
        self.failure.get().map_or("ok", String::as_str)
    }

    #[getter]
    fn cost(&self) -> usize {
        self.cost_bytes()
    }

    #[getter]
    fn is_streamed(&self) -> bool {
        matches!(self.work, Work::Stream(_))
    }

    #[getter]
    fn unsent_bytes(&self) -> usize {
        match &self.work {
            Work::Whole(_) => 0,
            Work::Stream(stream) => stream.unsent_bytes(),
        }
    }

    fn run(&self, py: Python<'_>) -> PyResult<Buffer> {
        let reply = py.detach(|| self.reply());
        let reply = reply.ok_or_else(|| {
            PyRuntimeError::new_err("this call was run before, or is streamed: send() it")
        })?;
        Ok(Buffer::whole(reply))
    }

    /// `None` if the engine would have to wait, or for a verb that may always have to: `run` it.
    fn try_run(&self, py: Python<'_>) -> Option<Buffer> {
        py.detach(|| self.try_reply()).map(Buffer::whole)
    }

    #[pyo3(signature = (outlet, /))]
    fn send(&self, py: Python<'_>, outlet: &Outlet) -> PyResult<bool> {
        let Work::Stream(stream) = &self.work else {
            return Err(PyRuntimeError::new_err("this call is not streamed: run() it"));
        };
        let is_full = py.detach(|| stream.send(outlet, self.verb, &self.shared));
        if let Some(failure) = stream.failure() {
            self.note(failure);
        }
        Ok(is_full?)
    }
}

/// A panic in the engine must cost one call, not the worker that runs it.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(Failure("HybridPSError: internal error in the engine".to_owned())))
}

fn check_counts(verb: u16, batch: &Batch<'_>) -> Result<(), Failure> {
    if verb != LOOKUP_OR_INSERT {
        return Ok(());
    }
    let (have, want) = (numbers::<u32>("counts", batch)?.len(), batch.keys.len());
    if have == 0 || have == want {
        return Ok(());
    }
    Err(bad_input(format!("{have} counts for {want} keys; give none or one each")))
}

/// The numbers of a batch's blob.
pub(crate) fn numbers<'a, T>(what: &str, batch: &Batch<'a>) -> Result<&'a [T], Failure>
where
    T: crate::buffer::Number,
{
    let len = batch.blob.len;
    if len % 4 != 0 {
        return Err(bad_input(format!("{what} of {len} bytes are not whole 32-bit numbers")));
    }
    Ok(&as_numbers(batch.blob.words)[..len / 4])
}
