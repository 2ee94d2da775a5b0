//! A hot verb between frame and store: keys and gradients are read where they were received, rows
//! are written where they are sent from (`reads`, `stream`).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use hybridps_wire::{self as wire, ExceptionKind, LOOKUP, LOOKUP_OR_INSERT, PREFETCH, VERBS};

use crate::failure::{guarded, Failure, Misuse};
use crate::memory::Words;
use crate::outlet::Outlet;
use crate::pushes::push;
use crate::reads::{self, Sizes};
use crate::shared::{Plan, Shared};
use crate::stream::{Stream, PIECE_BYTES};

/// Replies larger than this are streamed.
const WHOLE_MAX: usize = PIECE_BYTES + PIECE_BYTES / 2;

/// A hot call, decoded as far as its cost.
pub struct Call {
    shared: Arc<Shared>,
    question: u32,
    verb: u16,
    frame_bytes: usize,
    reply_bytes: usize,
    announced_bytes: u64,
    work: Work,
    /// Class of the error that was answered.
    failure: OnceLock<String>,
}

enum Work {
    /// Done once.
    Whole(Mutex<Option<(Words, Result<Plan, Failure>)>>),
    Stream(Box<Stream>),
}

impl Call {
    pub(crate) fn new(shared: &Arc<Shared>, question: u32, verb: u16, frame: Words) -> Self {
        let plan = shared.plan(verb, &frame);
        let reply_bytes = plan.as_ref().map_or(0, Plan::reply_bytes);
        let announced_bytes = plan.as_ref().map_or(0, |plan| plan.announced);
        let frame_bytes = frame.len() * 8;
        let work = match plan {
            Ok(plan) if reply_bytes > WHOLE_MAX => {
                Work::Stream(Stream::new(question, frame, &plan.sizes, &plan.keys).into())
            }
            plan => Work::Whole(Mutex::new(Some((frame, plan)))),
        };
        let (shared, failure) = (Arc::clone(shared), OnceLock::new());
        Self { shared, question, verb, frame_bytes, reply_bytes, announced_bytes, work, failure }
    }

    /// The reply: results, or an exception for anything that is wrong.
    ///
    /// # Errors
    /// It was run before, or is to be sent.
    pub fn run(&self) -> Result<Words, Misuse> {
        let Work::Whole(work) = &self.work else {
            return Err(Misuse("this call is streamed: send() it".to_owned()));
        };
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (frame, plan) =
            work.ok_or_else(|| Misuse("this call was run before: run() it once".to_owned()))?;
        let reply = plan.and_then(|plan| guarded(|| self.execute(&frame, &plan.sizes)));
        Ok(reply.unwrap_or_else(|failure| self.exception(&failure)))
    }

    /// The reply, if nothing has to be waited for; what is wrong with the call is told at once.
    /// None for a verb that may always have to wait, and for what is run, or to be sent.
    pub fn try_run(&self) -> Option<Words> {
        let Work::Whole(work) = &self.work else { return None };
        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = match work.as_ref()? {
            (_, Err(_)) => Err(work.take()?.1.err()?),
            (frame, Ok(plan)) if self.verb == LOOKUP => {
                guarded(|| self.try_lookup(frame, &plan.sizes)).transpose()?
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
        let Work::Stream(stream) = &self.work else {
            return Err(Misuse("this call is not streamed: run() it".to_owned()));
        };
        let is_full = stream.send(outlet, self.verb, &self.shared);
        if let Some(failure) = stream.failure() {
            self.note(failure);
        }
        Ok(is_full)
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

    /// Bytes of the reply; 0 when it is small, as that of a call that will fail.
    pub fn reply_bytes(&self) -> usize {
        self.reply_bytes
    }

    /// Bytes of a push in parts, of which this call only tells; else 0.
    pub fn announced_bytes(&self) -> u64 {
        self.announced_bytes
    }

    /// What must move: the frame and the reply.
    pub fn cost_bytes(&self) -> usize {
        self.frame_bytes + self.reply_bytes
    }

    /// Whether it is to be sent, not run.
    pub fn is_streamed(&self) -> bool {
        matches!(self.work, Work::Stream(_))
    }

    /// Bytes of a streamed reply that have not left; 0 once nothing is left to send.
    pub fn unsent_bytes(&self) -> usize {
        match &self.work {
            Work::Whole(_) => 0,
            Work::Stream(stream) => stream.unsent_bytes(),
        }
    }

    /// Once run: "ok", or the class of the error.
    pub fn code(&self) -> &str {
        self.failure.get().map_or("ok", String::as_str)
    }

    fn try_lookup(&self, frame: &[u64], sizes: &Sizes) -> Result<Option<Words>, Failure> {
        let batches = wire::decode_batches(self.verb, frame, self.shared.keys_limit)?;
        reads::try_lookup(&self.shared.store, self.question, &batches, sizes)
    }

    fn execute(&self, frame: &[u64], sizes: &Sizes) -> Result<Words, Failure> {
        let batches = wire::decode_batches(self.verb, frame, self.shared.keys_limit)?;
        match self.verb {
            LOOKUP | LOOKUP_OR_INSERT => {
                reads::whole(&self.shared.store, self.question, self.verb, &batches, sizes)
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

    fn exception(&self, failure: &Failure) -> Words {
        self.note(failure);
        wire::exception_return(self.question, ExceptionKind::Failed, &failure.0).into()
    }

    fn note(&self, failure: &Failure) {
        // Set once: a call fails once.
        let _ = self.failure.set(failure.class().to_owned());
    }
}
