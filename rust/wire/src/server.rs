//! The server's side of a connection: hosts `Gate` and `Session`, answers what the protocol itself
//! asks, and hands calls of `Session` up. It never asks questions of its own.

use std::collections::HashMap;

use crate::message::{set_root, Malformed, Message};
use crate::rpc::{self, Call, ExceptionKind, Incoming, Target};
use crate::schema::{INTERFACE_GATE, INTERFACE_SESSION, LOGIN, VERBS};

/// Most questions that a peer may leave without Finish; what it costs us is one map entry each.
pub const QUESTIONS_MAX: usize = 1 << 16;

const GATE: u32 = 0;
const SESSION: u32 = 1;

/// Something that the owner of the connection must answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// `Gate.login`. No further frame may be given before `accept` or `reject`.
    Login {
        /// To be named in the answer.
        question: u32,
        /// What the peer showed.
        token: String,
    },
    /// A verb of `Session`; the frame's root is now its params struct.
    Call {
        /// To be named in the answer.
        question: u32,
        /// Ordinal, an index of `VERBS`.
        verb: u16,
    },
}

/// Which capability an answer leads to, for calls on a promise of it.
enum Promise {
    Nothing,
    Gate,
    Session,
    Rejected(String),
}

struct Question {
    promise: Promise,
    is_returned: bool,
    is_finished: bool,
    /// The Finish that came before the Return gave up the capabilities in it.
    release: bool,
}

/// State of one connection.
#[derive(Default)]
pub struct ServerConnection {
    questions: HashMap<u32, Question>,
    /// References that the peer holds on export 0 and 1.
    references: [u64; 2],
    login: Option<u32>,
    outgoing: Vec<u64>,
    closing: Option<String>,
}

impl ServerConnection {
    /// A connection on which nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Why the connection must be closed once `outgoing` is written.
    pub fn closing(&self) -> Option<&str> {
        self.closing.as_deref()
    }

    /// True while a login waits for its answer: give no frame now.
    pub fn is_waiting(&self) -> bool {
        self.login.is_some()
    }

    /// Frames of the connection itself, to be written now.
    pub fn outgoing(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.outgoing)
    }

    /// Ends the connection: tells the peer why, and says so in `closing`.
    pub fn abort(&mut self, reason: &str) {
        if self.closing.is_none() {
            self.outgoing.extend(rpc::abort(reason));
            self.closing = Some(reason.to_owned());
        }
    }

    /// Takes the next whole frame.
    pub fn receive(&mut self, frame: &mut [u64]) -> Option<Event> {
        if self.closing.is_some() {
            return None;
        }
        self.handle(frame).unwrap_or_else(|malformed| {
            self.abort(malformed.0);
            None
        })
    }

    fn handle(&mut self, frame: &mut [u64]) -> Result<Option<Event>, Malformed> {
        let message = Message::new(frame)?;
        match rpc::parse(&message)? {
            Incoming::Bootstrap { question } => self.bootstrap(question)?,
            Incoming::Call(call) if call.to_caller => {
                let root = call.params.as_root(0);
                let event = self.call(&call)?;
                if matches!(event, Some(Event::Call { .. })) {
                    set_root(frame, root);
                }
                return Ok(event);
            }
            Incoming::Finish { question, release } => self.finish(question, release),
            Incoming::Release { id, count } => self.release(id, count)?,
            Incoming::Abort { reason } => self.closing = Some(format!("peer aborted: {reason}")),
            Incoming::Unimplemented => {
                return Err(Malformed("peer does not implement what this server sends"))
            }
            Incoming::Return(_) => return Err(Malformed("Return for a question never asked")),
            Incoming::Disembargo => {
                return Err(Malformed("Disembargo of a capability that is not the peer's own"))
            }
            Incoming::Call(_) | Incoming::Resolve { .. } | Incoming::Unknown => {
                let echo = rpc::unimplemented(frame);
                self.outgoing.extend(echo.ok_or(Malformed("message cannot be sent back"))?);
            }
        }
        Ok(None)
    }

    fn ask(&mut self, question: u32) -> Result<(), Malformed> {
        if self.questions.len() >= QUESTIONS_MAX {
            return Err(Malformed("too many questions without Finish"));
        }
        let new = Question {
            promise: Promise::Nothing,
            is_returned: false,
            is_finished: false,
            release: false,
        };
        match self.questions.insert(question, new) {
            None => Ok(()),
            Some(_) => Err(Malformed("question id is in use")),
        }
    }

    fn bootstrap(&mut self, question: u32) -> Result<(), Malformed> {
        self.ask(question)?;
        self.references[GATE as usize] += 1;
        self.outgoing.extend(rpc::capability_return(question, GATE, false));
        self.settle(question, Promise::Gate);
        Ok(())
    }

    fn call(&mut self, call: &Call<'_, '_>) -> Result<Option<Event>, Malformed> {
        self.ask(call.question)?;
        let question = call.question;
        match self.export_of(&call.target)? {
            Ok(GATE) if call.interface == INTERFACE_GATE && call.method == LOGIN => {
                let token = call.params.structure(0)?.text(0)?;
                self.login = Some(question);
                return Ok(Some(Event::Login { question, token }));
            }
            Ok(SESSION) if call.interface == INTERFACE_SESSION => {
                if usize::from(call.method) < VERBS.len() {
                    return Ok(Some(Event::Call { question, verb: call.method }));
                }
                self.unimplemented(question, &format!("Session has no method {}", call.method));
            }
            Ok(export) => {
                let name = if export == GATE { "Gate" } else { "Session" };
                let (interface, method) = (call.interface, call.method);
                self.unimplemented(
                    question,
                    &format!("{name} does not implement method {method} of {interface:#x}"),
                );
            }
            Err(reason) => self.refuse(question, ExceptionKind::Failed, &reason),
        }
        Ok(None)
    }

    /// The export that a call is for, or why the call must fail.
    fn export_of(&self, target: &Target) -> Result<Result<u32, String>, Malformed> {
        match target {
            Target::Cap(id) => match self.references.get(*id as usize) {
                Some(1..) => Ok(Ok(*id)),
                _ => Err(Malformed("call of a capability that is not exported")),
            },
            Target::Promised { question, path } => {
                let asked = self.questions.get(question).filter(|asked| !asked.is_finished);
                let asked = asked.ok_or(Malformed("call on an answer that is not promised"))?;
                Ok(match (&asked.promise, path.as_slice()) {
                    (Promise::Gate, []) => Ok(GATE),
                    (Promise::Session, [0]) => Ok(SESSION),
                    (Promise::Rejected(reason), _) => Err(reason.clone()),
                    _ => Err("BadInputError: the answer holds no capability there".to_owned()),
                })
            }
        }
    }

    fn unimplemented(&mut self, question: u32, reason: &str) {
        self.refuse(question, ExceptionKind::Unimplemented, reason);
    }

    fn refuse(&mut self, question: u32, kind: ExceptionKind, reason: &str) {
        self.outgoing.extend(rpc::exception_return(question, kind, reason));
        self.settle(question, Promise::Nothing);
    }

    /// Grants the login; its answer leads to the Session.
    pub fn accept(&mut self, question: u32) {
        if self.login != Some(question) {
            return;
        }
        self.login = None;
        self.references[SESSION as usize] += 1;
        self.outgoing.extend(rpc::capability_return(question, SESSION, true));
        self.settle(question, Promise::Session);
    }

    /// Refuses the login, and every call that was sent behind it.
    pub fn reject(&mut self, question: u32, reason: &str) {
        if self.login != Some(question) {
            return;
        }
        self.login = None;
        self.outgoing.extend(rpc::exception_return(question, ExceptionKind::Failed, reason));
        self.settle(question, Promise::Rejected(reason.to_owned()));
    }

    /// True if the peer no longer wants this answer. It must still be given.
    pub fn is_canceled(&self, question: u32) -> bool {
        self.questions.get(&question).is_some_and(|asked| asked.is_finished)
    }

    /// Books the answer to a call as given. What must be sent for it: `None`, the reply at hand;
    /// or, since the peer had given up, this short one.
    pub fn answer(&mut self, question: u32) -> Option<Vec<u64>> {
        let canceled = self.is_canceled(question).then(|| rpc::canceled_return(question));
        self.settle(question, Promise::Nothing);
        canceled
    }

    /// The Return for `question` around `results`, a message whose root is the results struct.
    ///
    /// # Errors
    /// `results` is not such a message; nothing was booked.
    pub fn returns(&mut self, question: u32, results: &[u64]) -> Result<Vec<u64>, Malformed> {
        let (composer, at) = rpc::results_return(question);
        let reply = composer.wrap(at, results)?;
        Ok(self.answer(question).unwrap_or(reply))
    }

    /// The Return for `question` with an exception.
    pub fn fails(&mut self, question: u32, kind: ExceptionKind, reason: &str) -> Vec<u64> {
        self.answer(question).unwrap_or_else(|| rpc::exception_return(question, kind, reason))
    }

    /// A question is forgotten when both its Return and its Finish have gone by.
    fn settle(&mut self, question: u32, promise: Promise) {
        let Some(asked) = self.questions.get_mut(&question) else { return };
        asked.promise = promise;
        asked.is_returned = true;
        if asked.is_finished {
            let release = asked.release;
            self.forget(question, release);
        }
    }

    /// A Finish for an unknown question is no error: peers that sent two may be old.
    fn finish(&mut self, question: u32, release: bool) {
        let Some(asked) = self.questions.get_mut(&question) else { return };
        asked.is_finished = true;
        asked.release = release;
        if asked.is_returned {
            self.forget(question, release);
        }
    }

    fn forget(&mut self, question: u32, release: bool) {
        let export = match self.questions.remove(&question).map(|asked| asked.promise) {
            Some(Promise::Gate) => GATE,
            Some(Promise::Session) => SESSION,
            _ => return,
        };
        if release {
            let references = &mut self.references[export as usize];
            *references = references.saturating_sub(1);
        }
    }

    fn release(&mut self, id: u32, count: u32) -> Result<(), Malformed> {
        let references = self.references.get_mut(id as usize);
        let references = references.ok_or(Malformed("Release of a capability never exported"))?;
        let left = references.checked_sub(u64::from(count));
        *references = left.ok_or(Malformed("Release of more references than were given"))?;
        Ok(())
    }
}
