//! The messages of `rpc.capnp` that two parties exchange: read as `Incoming`, written by one
//! function each. Which of them is allowed when is the business of `server` and `client`.

use crate::compose::{Composer, CAPABILITY};
use crate::message::{Malformed, Message, Struct};

type Result<T> = std::result::Result<T, Malformed>;

const UNIMPLEMENTED: u16 = 0;
const ABORT: u16 = 1;
const CALL: u16 = 2;
const RETURN: u16 = 3;
const FINISH: u16 = 4;
const RESOLVE: u16 = 5;
const RELEASE: u16 = 6;
const BOOTSTRAP: u16 = 8;
const DISEMBARGO: u16 = 13;

/// Most operations in the transform of a promised answer; ours need one.
const TRANSFORM_MAX: usize = 16;

/// Types of exceptions, by ordinal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExceptionKind {
    /// The call failed; the same call would fail again.
    Failed,
    /// The peer lacks resources now.
    Overloaded,
    /// A connection was lost; a new one may work.
    Disconnected,
    /// The peer does not know the method.
    Unimplemented,
}

impl ExceptionKind {
    const ALL: [Self; 4] =
        [Self::Failed, Self::Overloaded, Self::Disconnected, Self::Unimplemented];

    /// The name in the schema.
    pub fn name(self) -> &'static str {
        ["failed", "overloaded", "disconnected", "unimplemented"][self as usize]
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Whom a call is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Cap(u32),
    /// The capability that following these pointer fields finds in the answer to a question.
    Promised {
        question: u32,
        path: Vec<u16>,
    },
}

pub(crate) struct Call<'m, 'a> {
    pub(crate) question: u32,
    pub(crate) target: Target,
    pub(crate) interface: u64,
    pub(crate) method: u16,
    pub(crate) params: Struct<'m, 'a>,
    pub(crate) to_caller: bool,
}

pub(crate) struct Return<'m, 'a> {
    pub(crate) question: u32,
    pub(crate) result: Returned<'m, 'a>,
}

pub(crate) enum Returned<'m, 'a> {
    Results { payload: Struct<'m, 'a> },
    Exception { kind: ExceptionKind, reason: String },
    Canceled,
    Other,
}

pub(crate) enum Incoming<'m, 'a> {
    Unimplemented,
    Abort {
        reason: String,
    },
    Bootstrap {
        question: u32,
    },
    Call(Call<'m, 'a>),
    Return(Return<'m, 'a>),
    Finish {
        question: u32,
        release: bool,
    },
    Resolve {
        cap: Option<u32>,
    },
    Release {
        id: u32,
        count: u32,
    },
    Disembargo,
    /// Third-party messages, obsolete ones, and those of later versions.
    Unknown,
}

pub(crate) fn parse<'m, 'a>(message: &'m Message<'a>) -> Result<Incoming<'m, 'a>> {
    let root = message.root()?;
    let body = root.structure(0);
    Ok(match root.u16(0) {
        UNIMPLEMENTED => Incoming::Unimplemented,
        ABORT => Incoming::Abort { reason: body?.text(0)? },
        BOOTSTRAP => Incoming::Bootstrap { question: body?.u32(0) },
        CALL => Incoming::Call(parse_call(body?)?),
        RETURN => Incoming::Return(parse_return(body?)?),
        FINISH => {
            let body = body?;
            // Booleans that default to true are stored inverted.
            Incoming::Finish { question: body.u32(0), release: !body.bit(32) }
        }
        RESOLVE => {
            let body = body?;
            let cap = if body.u16(2) == 0 { hosted(body.structure(0)?) } else { None };
            Incoming::Resolve { cap }
        }
        RELEASE => {
            let body = body?;
            Incoming::Release { id: body.u32(0), count: body.u32(1) }
        }
        DISEMBARGO => Incoming::Disembargo,
        _ => Incoming::Unknown,
    })
}

fn parse_call<'m, 'a>(call: Struct<'m, 'a>) -> Result<Call<'m, 'a>> {
    Ok(Call {
        question: call.u32(0),
        target: parse_target(call.structure(0)?)?,
        interface: call.u64(1),
        method: call.u16(2),
        params: call.structure(1)?,
        to_caller: call.u16(3) == 0,
    })
}

fn parse_target(target: Struct<'_, '_>) -> Result<Target> {
    match target.u16(2) {
        0 => Ok(Target::Cap(target.u32(0))),
        1 => {
            let answer = target.structure(0)?;
            let operations = answer.list(0)?;
            if operations.len() > TRANSFORM_MAX {
                return Err(Malformed("transform of a promised answer is too long"));
            }
            // Operation 0 does nothing; 1 follows the pointer field it names.
            let path = operations.iter().filter(|op| op.u16(0) == 1).map(|op| op.u16(1));
            Ok(Target::Promised { question: answer.u32(0), path: path.collect() })
        }
        _ => Err(Malformed("call target of unknown kind")),
    }
}

fn parse_return<'m, 'a>(body: Struct<'m, 'a>) -> Result<Return<'m, 'a>> {
    let result = match body.u16(3) {
        0 => Returned::Results { payload: body.structure(0)? },
        1 => {
            let exception = body.structure(0)?;
            let kind = ExceptionKind::ALL.get(usize::from(exception.u16(2)));
            Returned::Exception {
                kind: kind.copied().unwrap_or(ExceptionKind::Failed),
                reason: exception.text(0)?,
            }
        }
        2 => Returned::Canceled,
        _ => Returned::Other,
    };
    Ok(Return { question: body.u32(0), result })
}

/// The export that a capability descriptor of the sender names.
pub(crate) fn hosted(descriptor: Struct<'_, '_>) -> Option<u32> {
    matches!(descriptor.u16(0), 1 | 2).then(|| descriptor.u32(1))
}

/// A message of one kind: the composer, and the pointer at which its body goes.
fn message(kind: u16) -> (Composer, usize) {
    let mut composer = Composer::new();
    let root = composer.structure(Composer::ROOT, 1, 1);
    composer.words[root] = u64::from(kind);
    (composer, root + 1)
}

pub(crate) fn bootstrap(question: u32) -> Vec<u64> {
    let (mut composer, at) = message(BOOTSTRAP);
    let body = composer.structure(at, 1, 1);
    composer.words[body] = u64::from(question);
    composer.frame()
}

/// A Call whose params go to the returned pointer.
pub(crate) fn call(
    question: u32,
    target: &Target,
    interface: u64,
    method: u16,
) -> (Composer, usize) {
    let (mut composer, at) = message(CALL);
    let body = composer.structure(at, 3, 3);
    composer.words[body] = u64::from(question) | u64::from(method) << 32;
    composer.words[body + 1] = interface;
    let to = composer.structure(body + 3, 1, 1);
    match target {
        Target::Cap(id) => composer.words[to] = u64::from(*id),
        Target::Promised { question, path } => {
            composer.words[to] = 1 << 32;
            let answer = composer.structure(to + 1, 1, 1);
            composer.words[answer] = u64::from(*question);
            let first = composer.list(answer + 1, path.len(), 1, 0);
            for (i, field) in path.iter().enumerate() {
                composer.words[first + i] = 1 | u64::from(*field) << 16;
            }
        }
    }
    let payload = composer.structure(body + 4, 0, 2);
    (composer, payload)
}

fn return_body(question: u32, tag: u16) -> (Composer, usize) {
    let (mut composer, at) = message(RETURN);
    let body = composer.structure(at, 2, 1);
    composer.words[body] = u64::from(question) | u64::from(tag) << 48;
    (composer, body + 2)
}

/// A Return whose results go to the returned pointer. It holds no capabilities.
pub(crate) fn results_return(question: u32) -> (Composer, usize) {
    let (mut composer, at) = return_body(question, 0);
    let payload = composer.structure(at, 0, 2);
    (composer, payload)
}

/// A Return with one capability, our export `export`, at the first pointer of a struct (`login`'s
/// results), or as the content itself (`bootstrap`).
pub(crate) fn capability_return(question: u32, export: u32, in_struct: bool) -> Vec<u64> {
    let (mut composer, payload) = results_return(question);
    let at = if in_struct { composer.structure(payload, 0, 1) } else { payload };
    composer.words[at] = CAPABILITY;
    let entry = composer.list(payload + 1, 1, 1, 1);
    // No file descriptor is attached: 255 is the field's default, and stored as zero.
    composer.words[entry] = 1 | u64::from(export) << 32;
    composer.frame()
}

/// A Return with an exception.
pub fn exception_return(question: u32, kind: ExceptionKind, reason: &str) -> Vec<u64> {
    exception_message(question, kind, reason).frame()
}

pub(crate) fn exception_message(question: u32, kind: ExceptionKind, reason: &str) -> Composer {
    let (mut composer, at) = return_body(question, 1);
    exception(&mut composer, at, kind, reason);
    composer
}

fn exception(composer: &mut Composer, at: usize, kind: ExceptionKind, reason: &str) {
    let body = composer.structure(at, 1, 2);
    composer.words[body] = (kind as u64) << 32;
    composer.text(body + 1, reason);
}

pub(crate) fn canceled_return(question: u32) -> Vec<u64> {
    return_body(question, 2).0.frame()
}

pub(crate) fn abort(reason: &str) -> Vec<u64> {
    let (mut composer, at) = message(ABORT);
    exception(&mut composer, at, ExceptionKind::Failed, reason);
    composer.frame()
}

pub(crate) fn finish(question: u32, release: bool) -> Vec<u64> {
    let (mut composer, at) = message(FINISH);
    let body = composer.structure(at, 1, 0);
    composer.words[body] = u64::from(question) | u64::from(!release) << 32;
    composer.frame()
}

pub(crate) fn release(id: u32) -> Vec<u64> {
    let (mut composer, at) = message(RELEASE);
    let body = composer.structure(at, 1, 0);
    composer.words[body] = u64::from(id) | 1 << 32;
    composer.frame()
}

/// Sends a message back as not understood; `None` if it cannot be echoed.
pub(crate) fn unimplemented(frame: &[u64]) -> Option<Vec<u64>> {
    let (composer, at) = message(UNIMPLEMENTED);
    composer.wrap(at, frame).ok()
}
