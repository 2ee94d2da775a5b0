//! The server's side of a connection, for whoever owns its socket: bytes in, calls out. Small
//! lookups are answered where they are decoded.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use hybridps_core::Store;
use hybridps_wire::{self as wire, is_hot, ExceptionKind, ServerConnection, VERBS};

use crate::call::Call;
use crate::failure::Misuse;
use crate::memory::{View, Words};
use crate::receiver::Receiver;
use crate::shared::Shared;

/// Something that the owner must answer.
#[allow(clippy::large_enum_variant, reason = "moved once, from where it is made to who answers")]
pub enum Event {
    /// A login, which waits for `accept` or `reject`.
    Login {
        /// Names it in the answer.
        question: u32,
        /// What the peer showed.
        token: String,
    },
    /// A call that carries arrays.
    Hot(Call),
    /// Any other verb.
    Cold {
        /// Names it in the answer.
        question: u32,
        /// Name of the verb in the schema.
        verb: &'static str,
        /// A message whose root is the params of the verb.
        params: Words,
    },
}

/// Verb, code and seconds of a call that was answered at once.
pub type Noted = (&'static str, String, f64);

/// Most bytes that are answered at once: other connections have their turn then.
const AT_ONCE_MAX: usize = 256 << 10;

/// Server side of one connection.
pub struct Connection {
    shared: Arc<Shared>,
    server: ServerConnection,
    receiver: Receiver,
    /// Answers that were given where their calls were decoded, and what is to be counted of them.
    replies: Vec<u64>,
    noted: Vec<Noted>,
}

impl Connection {
    /// A connection on which nothing was said yet. `frame_limit`: bytes of the largest frame and
    /// reply; `keys_limit`: the most that one call may name.
    pub fn new(store: Arc<Store>, frame_limit: usize, keys_limit: usize) -> Self {
        Self {
            shared: Arc::new(Shared::new(store, frame_limit, keys_limit)),
            server: ServerConnection::new(),
            receiver: Receiver::new(frame_limit),
            replies: Vec::new(),
            noted: Vec::new(),
        }
    }

    /// Session of this connection's pushes; 0: hello was not said.
    pub fn session(&self) -> u64 {
        self.shared.session.load(Ordering::Relaxed)
    }

    /// Names the pushes of this connection.
    pub fn set_session(&self, session: u64) {
        // Published to workers by the hand-over of the calls that come after hello.
        self.shared.session.store(session, Ordering::Relaxed);
    }

    /// Why the connection must be closed once `outgoing` is written.
    pub fn closing(&self) -> Option<&str> {
        self.server.closing()
    }

    /// Whether a push waits for further parts.
    pub fn is_collecting(&self) -> bool {
        self.shared.parts().is_collecting()
    }

    /// Drops what came of a push in parts.
    pub fn forget_parts(&self) {
        self.shared.parts().forget();
    }

    /// True while a frame has begun and not ended.
    pub fn is_inside_frame(&self) -> bool {
        self.receiver.is_inside_frame()
    }

    /// Bytes of the large frame that is on its way, 0 if none is.
    pub fn frame_wanted(&self) -> usize {
        self.receiver.frame_wanted()
    }

    /// The place that the next bytes of the socket go to.
    pub fn buffer(&mut self) -> View {
        self.receiver.buffer()
    }

    /// Writes bytes that are no socket's into the buffer; how many there was room for.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        self.receiver.put(bytes)
    }

    /// What `count` more bytes in the buffer completed.
    ///
    /// `at_once`: the cost of calls that `run` may answer here, 0 for none. Only up to the first
    /// that it does not, since those behind it must not be answered before it.
    ///
    /// # Errors
    /// The buffer was smaller.
    pub fn received(
        &mut self,
        count: usize,
        at_once: usize,
        run: impl Fn(&Call) -> Option<Words>,
    ) -> Result<Vec<Event>, Misuse> {
        self.receiver.received(count)?;
        Ok(self.events(at_once, run))
    }

    /// Grants a login; returns what had been waiting behind it.
    pub fn accept(&mut self, question: u32) -> Vec<Event> {
        self.server.accept(question);
        self.events(0, |_| None)
    }

    /// Refuses a login, and the calls that were sent behind it; returns what else there is.
    pub fn reject(&mut self, question: u32, reason: &str) -> Vec<Event> {
        self.server.reject(question, reason);
        self.events(0, |_| None)
    }

    fn events(&mut self, mut at_once: usize, run: impl Fn(&Call) -> Option<Words>) -> Vec<Event> {
        let mut events = Vec::new();
        while !self.server.is_waiting() && self.server.closing().is_none() {
            let mut frame = match self.receiver.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(malformed) => {
                    self.server.abort(malformed.0);
                    break;
                }
            };
            let Some(event) = self.server.receive(&mut frame) else { continue };
            let event = self.event(event, frame);
            if let Event::Hot(call) = &event {
                if call.cost_bytes() <= at_once && self.is_answered(call, &run) {
                    continue;
                }
            }
            at_once = 0;
            events.push(event);
        }
        events
    }

    fn event(&self, event: wire::Event, frame: Words) -> Event {
        match event {
            wire::Event::Login { question, token } => Event::Login { question, token },
            wire::Event::Call { question, verb } if is_hot(verb) => {
                Event::Hot(Call::new(&self.shared, question, verb, frame))
            }
            wire::Event::Call { question, verb } => {
                Event::Cold { question, verb: VERBS[usize::from(verb)], params: frame }
            }
        }
    }

    /// Answers a call where it was decoded, if there is room for its reply and it need not wait.
    fn is_answered(&mut self, call: &Call, run: impl Fn(&Call) -> Option<Words>) -> bool {
        if self.replies.len() * 8 >= AT_ONCE_MAX {
            return false;
        }
        let started = Instant::now();
        let Some(reply) = run(call) else { return false };
        let seconds = started.elapsed().as_secs_f64();
        self.noted.push((call.verb(), call.code().to_owned(), seconds));
        match self.server.answer(call.question()) {
            Some(canceled) => self.replies.extend(canceled),
            None => self.replies.extend_from_slice(&reply),
        }
        true
    }

    /// Calls that were answered at once since this was last asked.
    pub fn noted(&mut self) -> Vec<Noted> {
        std::mem::take(&mut self.noted)
    }

    /// Books the reply of a hot call; returns what to send instead if the peer has given up.
    pub fn answer(&mut self, question: u32) -> Option<Words> {
        self.server.answer(question).map(Words::from)
    }

    /// The Return around `results`, a message whose root is the results struct.
    ///
    /// # Errors
    /// It is none.
    pub fn returns(&mut self, question: u32, results: &[u8]) -> Result<Words, Misuse> {
        Ok(self.server.returns(question, &Words::from_bytes(results)?)?.into())
    }

    /// The Return of an exception. `kind`: failed, overloaded, disconnected or unimplemented.
    ///
    /// # Errors
    /// There is no such kind.
    pub fn fails(&mut self, question: u32, kind: &str, reason: &str) -> Result<Words, Misuse> {
        let kind = ExceptionKind::parse(kind).ok_or_else(|| {
            Misuse(format!(
                "kind is {kind:?}; give failed, overloaded, disconnected or unimplemented"
            ))
        })?;
        Ok(self.server.fails(question, kind, reason).into())
    }

    /// Whether the peer no longer wants the answer. It still has to be given.
    pub fn is_canceled(&self, question: u32) -> bool {
        self.server.is_canceled(question)
    }

    /// Frames to write now: of the connection itself, and answers that `received` gave.
    pub fn outgoing(&mut self) -> Words {
        let mut frames = self.server.outgoing();
        frames.append(&mut self.replies);
        frames.into()
    }

    /// Ends the connection: tells the peer why, and says so in `closing`.
    pub fn abort(&mut self, reason: &str) {
        self.server.abort(reason);
    }
}
