//! A hot verb between frame and store: keys and gradients are read where they were received, rows
//! are written where they are sent from (`reads`, `stream`).

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hybridps_wire::{self as wire, ExceptionKind, LOOKUP, LOOKUP_POOLED, PREFETCH, VERBS};

use crate::failure::{guarded, Failure, Misuse};
use crate::memory::Words;
use crate::outlet::Outlet;
use crate::pushes::push;
use crate::reads::{whole_reply, Reading, Sizes};
use crate::shared::{Plan, Shared};
use crate::stream::Stream;
use crate::together::{hold, Held};

/// A hot call, decoded as far as its cost.
pub struct Call {
    shared: Arc<Shared>,
    question: u32,
    verb: u16,
    frame_bytes: usize,
    reply_bytes: usize,
    announced_bytes: u64,
    /// Number and step of a push; a call that cannot be read has none.
    push: (u64, Option<i64>),
    is_streamed: bool,
    /// Frame and plan, until the call is run or begun to be sent.
    work: Mutex<Option<(Words, Result<Plan, Failure>)>>,
    /// Once it is begun to be sent.
    stream: OnceLock<Box<Stream>>,
    /// A push that waits for those of others.
    held: Mutex<Option<Held>>,
    /// Class of the error that was answered.
    failure: OnceLock<String>,
}

impl Call {
    pub(crate) fn new(shared: &Arc<Shared>, question: u32, verb: u16, frame: Words) -> Self {
        let plan = shared.plan(verb, &frame);
        let reply_bytes = plan.as_ref().map_or(0, Plan::cost_bytes);
        let announced_bytes = plan.as_ref().map_or(0, |plan| plan.announced);
        let push = plan.as_ref().map_or((0, None), |plan| plan.push);
        let frame_bytes = frame.len() * 8;
        let is_streamed = plan.as_ref().is_ok_and(|plan| !plan.pieces.is_empty());
        Self {
            shared: Arc::clone(shared),
            question,
            verb,
            frame_bytes,
            reply_bytes,
            announced_bytes,
            push,
            is_streamed,
            work: Mutex::new(Some((frame, plan))),
            stream: OnceLock::new(),
            held: Mutex::new(None),
            failure: OnceLock::new(),
        }
    }

    fn work(&self) -> MutexGuard<'_, Option<(Words, Result<Plan, Failure>)>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reply: results, or an exception for anything that is wrong. Whole, also where it could
    /// be sent while it is gathered: for a socket that has to see all bytes (TLS).
    ///
    /// # Errors
    /// It was run before, or is being sent.
    pub fn run(&self) -> Result<Words, Misuse> {
        let (frame, plan) = self.taken()?;
        let reply = plan.and_then(|plan| guarded(|| self.execute(&frame, &plan.sizes)));
        Ok(reply.unwrap_or_else(|failure| self.exception(&failure)))
    }

    /// The reply, if nothing has to be waited for; what is wrong with the call is told at once.
    /// None for a verb that may always have to wait, and for what is run, or to be sent.
    pub fn try_run(&self) -> Option<Words> {
        if self.is_streamed() {
            return None;
        }
        let mut work = self.work();
        let reply = match work.as_ref()? {
            (_, Err(_)) => Err(work.take()?.1.err()?),
            (frame, Ok(plan)) if matches!(self.verb, LOOKUP | LOOKUP_POOLED) => {
                guarded(|| self.read(frame, &plan.sizes, false)).transpose()?
            }
            _ => return None,
        };
        *work = None;
        Some(reply.unwrap_or_else(|failure| self.exception(&failure)))
    }

    /// Sends some of a streamed reply. True if the socket takes no more now; an error if it failed.
    ///
    /// # Errors
    /// The call is not streamed.
    pub fn send(&self, outlet: &dyn Outlet) -> Result<std::io::Result<bool>, Misuse> {
        let stream = self.stream()?;
        let is_full = stream.send(outlet, self.verb, &self.shared);
        if let Some(failure) = stream.failure() {
            self.note(failure);
        }
        Ok(is_full)
    }

    fn stream(&self) -> Result<&Stream, Misuse> {
        // Two threads may begin at the same time: the first makes it.
        let mut work = self.work();
        if self.is_streamed() && self.stream.get().is_none() {
            if let Some((frame, Ok(plan))) = work.take() {
                let Plan { sizes, pieces, is_in_order, .. } = plan;
                let stream = Stream::new(self.question, frame, &sizes, (pieces, is_in_order));
                return Ok(self.stream.get_or_init(|| stream.into()));
            }
        }
        drop(work);
        let misuse = || Misuse("this call is not streamed, or was run: run() it once".into());
        self.stream.get().map(Box::as_ref).ok_or_else(misuse)
    }

    /// Ids of the tables that it names, before it is run, or while it is held; none for a call that
    /// cannot be read.
    pub fn tables(&self) -> Vec<u32> {
        if let Some(held) = self.held().as_ref() {
            return held.tables(self);
        }
        let work = self.work();
        let Some((frame, _)) = work.as_ref() else { return Vec::new() };
        let limit = self.shared.keys_limit;
        if wire::is_read(self.verb) {
            let rows = Reading::decode(self.verb, frame, limit).map(|reading| reading.rows());
            return rows.map_or_else(|_| Vec::new(), |all| all.iter().map(|of| of.0).collect());
        }
        let batches = wire::decode_batches(self.verb, frame, limit);
        batches.map_or_else(|_| Vec::new(), |all| all.iter().map(|batch| batch.table).collect())
    }

    /// The keys of a read by table, before it is run; none of another call, or of one that cannot
    /// be read.
    pub fn keys(&self) -> Vec<(u32, Vec<u64>)> {
        let work = self.work();
        let Some((frame, _)) = work.as_ref().filter(|_| wire::is_read(self.verb)) else {
            return Vec::new();
        };
        let reading = Reading::decode(self.verb, frame, self.shared.keys_limit);
        reading.map_or_else(|_| Vec::new(), |reading| reading.keys())
    }

    /// Names the call in its answer.
    pub fn question(&self) -> u32 {
        self.question
    }

    /// Name of the verb in the schema.
    pub fn verb(&self) -> &'static str {
        VERBS[usize::from(self.verb)]
    }

    /// Bytes of the frame.
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    /// Bytes of the reply, and of what is needed to make it; 0 when that is little, as for a call
    /// that will fail.
    pub fn reply_bytes(&self) -> usize {
        self.reply_bytes
    }

    /// Bytes of a push in parts, of which this call only tells; else 0.
    pub fn announced_bytes(&self) -> u64 {
        self.announced_bytes
    }

    /// Number of a push in its session, or its round; 0 if it is none.
    pub fn number(&self) -> u64 {
        self.push.0
    }

    /// The trainer's step, if it gave one.
    pub fn step(&self) -> Option<i64> {
        self.push.1
    }

    /// What must move: the frame and the reply.
    pub fn cost_bytes(&self) -> usize {
        self.frame_bytes + self.reply_bytes
    }

    /// Whether it can be sent while it is gathered.
    pub fn is_streamed(&self) -> bool {
        self.is_streamed
    }

    /// Bytes of a streamed reply that have not left; 0 once nothing is left to send.
    pub fn unsent_bytes(&self) -> usize {
        self.stream().map_or(0, Stream::unsent_bytes)
    }

    /// Once run: "ok", or the class of the error.
    pub fn code(&self) -> &str {
        self.failure.get().map_or("ok", String::as_str)
    }

    /// The reply of a read; None if it would have to be waited for, and `waits` is false.
    fn read(&self, frame: &[u64], sizes: &Sizes, waits: bool) -> Result<Option<Words>, Failure> {
        let reading = Reading::decode(self.verb, frame, self.shared.keys_limit)?;
        whole_reply(&self.shared.store, self.question, &reading, sizes, waits)
    }

    fn execute(&self, frame: &[u64], sizes: &Sizes) -> Result<Words, Failure> {
        if wire::is_read(self.verb) {
            // Who waits has a reply.
            return Ok(self.read(frame, sizes, true)?.unwrap_or_else(|| Words::new(0)));
        }
        if self.verb != PREFETCH {
            return push(&self.shared, self.question, self.verb, frame);
        }
        for batch in wire::decode_batches(self.verb, frame, self.shared.keys_limit)? {
            self.shared.store.prefetch(batch.table, batch.keys)?;
        }
        Ok(wire::empty_reply(self.question).into())
    }

    /// Takes a push in that is to be applied with those of others: `apply_together`. The reply, if
    /// it ends here: it was a part of a push, or something is wrong with it.
    ///
    /// # Errors
    /// It was run or held before.
    pub fn hold(&self) -> Result<Option<Words>, Misuse> {
        let (frame, plan) = self.taken()?;
        match plan.and_then(|_| guarded(|| hold(&self.shared, self.verb, frame))) {
            Err(failure) => Ok(Some(self.exception(&failure))),
            Ok(None) => Ok(Some(wire::empty_reply(self.question).into())),
            Ok(Some(held)) => {
                *self.held() = Some(held);
                Ok(None)
            }
        }
    }

    pub(crate) fn take_held(&self) -> Option<Held> {
        self.held().take()
    }

    /// The reply to a held push that was applied before.
    pub fn acknowledge(&self) -> Words {
        drop(self.take_held());
        wire::duplicate_reply(self.question, true).into()
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn ordinal(&self) -> u16 {
        self.verb
    }

    fn taken(&self) -> Result<(Words, Result<Plan, Failure>), Misuse> {
        let work = self.work().take();
        work.ok_or_else(|| Misuse("this call was run or sent before: run() it once".into()))
    }

    pub(crate) fn exception(&self, failure: &Failure) -> Words {
        self.note(failure);
        wire::exception_return(self.question, ExceptionKind::Failed, &failure.0).into()
    }

    fn note(&self, failure: &Failure) {
        // Set once: a call fails once.
        let _ = self.failure.set(failure.class().to_owned());
    }
}
