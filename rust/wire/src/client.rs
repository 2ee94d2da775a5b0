//! The client's side of a connection: asks for the Gate, logs in, says hello, calls `Session`. It
//! hosts nothing.

use std::collections::HashMap;

use crate::ask::{Ask, Sizes};
use crate::compose::Composer;
use crate::message::{set_root, Malformed, Message, Struct};
use crate::rpc::{self, ExceptionKind, Incoming, Returned, Target};
use crate::schema::{
    is_read, APPLY_GRADIENTS, HELLO, INTERFACE_GATE, INTERFACE_SESSION, LOGIN, REMOVE,
};
use crate::verbs::{self, Layout};

const BOOTSTRAP_QUESTION: u32 = 0;
const LOGIN_QUESTION: u32 = 1;

/// What a Return answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The question, as `call` and its kin gave it out.
    pub question: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Results of `lookup` or `lookupOrInsert`: the frame's root is now the results struct.
    Rows,
    /// Result of `applyGradients`.
    Duplicate(bool),
    /// Result of `remove`.
    Removed(u64),
    /// Results of another verb: the frame's root is now the results struct.
    Results,
    /// The call failed.
    Exception {
        /// Type of the exception.
        kind: ExceptionKind,
        /// Its text.
        reason: Reason,
    },
}

/// Reason of an exception, "<class>: <text>" if it follows our convention.
#[derive(Debug, PartialEq, Eq)]
pub struct Reason {
    /// Class name, which ends in Error; empty if the peer did not name one.
    pub class: String,
    /// The rest.
    pub text: String,
}

impl Reason {
    fn parse(reason: String) -> Self {
        match reason.split_once(": ") {
            Some((class, text))
                if class.ends_with("Error") && class.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                Self { class: class.to_owned(), text: text.to_owned() }
            }
            _ => Self { class: String::new(), text: reason },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Login,
    Rows,
    Duplicate,
    Removed,
    Results,
    /// Only that it is answered matters.
    Probe,
}

impl Kind {
    /// What a verb is answered with.
    fn of(verb: u16) -> Self {
        match verb {
            _ if is_read(verb) => Self::Rows,
            APPLY_GRADIENTS => Self::Duplicate,
            REMOVE => Self::Removed,
            _ => Self::Results,
        }
    }
}

struct Question {
    kind: Kind,
    is_forgotten: bool,
}

/// State of one connection.
#[derive(Default)]
pub struct ClientConnection {
    questions: HashMap<u32, Question>,
    last_question: u32,
    /// The Session, once the login was answered; before, calls go to the promise of it.
    session: Option<u32>,
    pending: Vec<u64>,
    closed: Option<String>,
}

impl ClientConnection {
    /// A connection on which nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Why no call can succeed any more: the peer aborted, or sent something wrong.
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// Calls without an answer, forgotten ones not counted.
    pub fn in_flight(&self) -> usize {
        let waits =
            |q: &&Question| !q.is_forgotten && q.kind != Kind::Login && q.kind != Kind::Probe;
        self.questions.values().filter(waits).count()
    }

    /// Small frames that should go out with the next call.
    pub fn pending(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.pending)
    }

    /// Bootstrap, login and hello in one flight; the question is hello's.
    /// `worker`: how many push together, and which of them this is.
    pub fn start(
        &mut self,
        session: u64,
        client_id: &str,
        token: &str,
        worker: Option<(u32, u32)>,
    ) -> (u32, Vec<u64>) {
        self.last_question = LOGIN_QUESTION;
        let login = Question { kind: Kind::Login, is_forgotten: false };
        self.questions.insert(LOGIN_QUESTION, login);
        let gate = Target::Promised { question: BOOTSTRAP_QUESTION, path: Vec::new() };
        let mut flight = rpc::bootstrap(BOOTSTRAP_QUESTION);
        let (mut composer, at) = rpc::call(LOGIN_QUESTION, &gate, INTERFACE_GATE, LOGIN);
        let params = composer.structure(at, 0, 1);
        composer.text(params, token);
        flight.extend(composer.frame());
        let (question, mut composer, at) = self.open(HELLO, Kind::Results);
        let words = 1 + usize::from(worker.is_some());
        let params = composer.structure(at, words as u16, 1);
        composer.words[params] = session;
        if let Some((workers, rank)) = worker {
            composer.words[params + 1] = u64::from(workers) | u64::from(rank) << 32;
        }
        composer.text(params + words, client_id);
        flight.extend(composer.frame());
        (question, flight)
    }

    /// Asks for a sign of life, which a server gives whatever calls wait: the Gate once more.
    pub fn probe(&mut self) -> Vec<u64> {
        rpc::bootstrap(self.question(Kind::Probe))
    }

    fn question(&mut self, kind: Kind) -> u32 {
        loop {
            self.last_question = self.last_question.wrapping_add(1).max(LOGIN_QUESTION + 1);
            if !self.questions.contains_key(&self.last_question) {
                break;
            }
        }
        self.questions.insert(self.last_question, Question { kind, is_forgotten: false });
        self.last_question
    }

    fn target(&self) -> Target {
        match self.session {
            Some(id) => Target::Cap(id),
            None => Target::Promised { question: LOGIN_QUESTION, path: vec![0] },
        }
    }

    fn open(&mut self, verb: u16, kind: Kind) -> (u32, Composer, usize) {
        let question = self.question(kind);
        let (composer, at) = rpc::call(question, &self.target(), INTERFACE_SESSION, verb);
        (question, composer, at)
    }

    /// A call that carries arrays; of each table the bytes of its arrays.
    pub fn ask(&mut self, ask: &Ask, tables: &[Sizes]) -> (u32, Layout) {
        let question = self.question(Kind::of(ask.verb()));
        (question, ask.call(question, &self.target(), tables))
    }

    /// Call of any verb with `params`, a message whose root is its params struct.
    ///
    /// # Errors
    /// `params` is not such a message; nothing was asked.
    pub fn call(&mut self, verb: u16, params: &[u64]) -> Result<(u32, Vec<u64>), Malformed> {
        Message::new(params)?.root()?;
        let (question, composer, at) = self.open(verb, Kind::of(verb));
        Ok((question, composer.wrap(at, params)?))
    }

    /// Gives a question up: the server may stop, and its answer will be dropped.
    pub fn forget(&mut self, question: u32) {
        if let Some(asked) = self.questions.get_mut(&question) {
            if !std::mem::replace(&mut asked.is_forgotten, true) {
                self.pending.extend(rpc::finish(question, true));
            }
        }
    }

    /// Takes the next whole frame.
    pub fn receive(&mut self, frame: &mut [u64]) -> Option<Answer> {
        if self.closed.is_some() {
            return None;
        }
        self.handle(frame).unwrap_or_else(|malformed| {
            self.closed = Some(format!("the server broke the protocol: {malformed}"));
            None
        })
    }

    fn handle(&mut self, frame: &mut [u64]) -> Result<Option<Answer>, Malformed> {
        let message = Message::new(frame)?;
        let answer = match rpc::parse(&message)? {
            Incoming::Return(answer) => answer,
            Incoming::Abort { reason } => {
                self.closed = Some(format!("the server ended the connection: {reason}"));
                return Ok(None);
            }
            Incoming::Resolve { cap } => {
                // The promise itself stays usable; what it became is not needed apart.
                self.pending.extend(cap.map(rpc::release).unwrap_or_default());
                return Ok(None);
            }
            _ => return Err(Malformed("only Return, Resolve and Abort come from a server")),
        };
        let question = answer.question;
        if question == BOOTSTRAP_QUESTION {
            // Errors of it come again as errors of hello, and its Gate is released after login.
            return Ok(None);
        }
        if question == LOGIN_QUESTION {
            self.logged_in(answer.result)?;
            return Ok(None);
        }
        let asked = self.questions.remove(&question);
        let asked = asked.ok_or(Malformed("Return for a question never asked"))?;
        if asked.is_forgotten {
            return Ok(None);
        }
        self.pending.extend(rpc::finish(question, true));
        if asked.kind == Kind::Probe {
            return Ok(None);
        }
        let (outcome, root) = outcome(asked.kind, answer.result)?;
        if let Some(root) = root {
            set_root(frame, root);
            if outcome == Outcome::Rows {
                verbs::decode_rows(frame)?;
            }
        }
        Ok(Some(Answer { question, outcome }))
    }

    /// Keeps the Session. The login stays unfinished until then, because calls in flight are
    /// addressed to the promise of its answer.
    fn logged_in(&mut self, result: Returned<'_, '_>) -> Result<(), Malformed> {
        if self.questions.remove(&LOGIN_QUESTION).is_none() {
            return Err(Malformed("login was answered twice"));
        }
        if let Returned::Results { payload } = result {
            let index = payload.structure(0)?.capability(0)?;
            self.session = Some(descriptor(payload, index)?);
            self.pending.extend(rpc::finish(LOGIN_QUESTION, false));
            self.pending.extend(rpc::finish(BOOTSTRAP_QUESTION, true));
        }
        Ok(())
    }
}

fn descriptor(payload: Struct<'_, '_>, index: Option<u32>) -> Result<u32, Malformed> {
    let none = Malformed("login returned no Session");
    let entry = payload.list(1)?.iter().nth(index.ok_or(none)? as usize);
    rpc::hosted(entry.ok_or(none)?).ok_or(none)
}

/// What a result means for a question, and the word that makes the results the frame's root.
fn outcome(kind: Kind, result: Returned<'_, '_>) -> Result<(Outcome, Option<u64>), Malformed> {
    Ok(match (result, kind) {
        (Returned::Results { payload }, Kind::Duplicate) => {
            (Outcome::Duplicate(payload.structure(0)?.bit(0)), None)
        }
        (Returned::Results { payload }, Kind::Removed) => {
            (Outcome::Removed(payload.structure(0)?.u64(0)), None)
        }
        (Returned::Results { payload }, Kind::Rows) => (Outcome::Rows, Some(payload.as_root(0))),
        (Returned::Results { payload }, _) => (Outcome::Results, Some(payload.as_root(0))),
        (Returned::Exception { kind, reason }, _) => {
            (Outcome::Exception { kind, reason: Reason::parse(reason) }, None)
        }
        _ => return Err(Malformed("a call was answered neither with results nor an exception")),
    })
}
