//! The client's side of a connection, for whoever owns its socket: calls to bytes, bytes to
//! answers.

use hybridps_core::{Error, Result};
use hybridps_wire::{self as wire, Answer, Ask, Dtype, Sizes, DATA_MAX, VERBS};

use crate::dtype::{narrow, widen};
use crate::failure::Misuse;
use crate::memory::{as_numbers, as_numbers_mut, View, Words};
use crate::receiver::Receiver;

/// Client side of one connection.
pub struct Client {
    client: wire::ClientConnection,
    receiver: Receiver,
    failure: Option<String>,
    dtype: Dtype,
}

/// A call, ready to be sent.
pub struct Asked {
    /// Names it in its answer.
    pub question: u32,
    /// What is sent first: frames that waited for company, and the header of the call.
    pub head: Words,
    /// Bytes of the arrays that are sent behind it, in the order in which they were given; each is
    /// followed by zeros up to a whole word.
    pub arrays: Vec<usize>,
}

impl Client {
    /// A connection on which nothing was said yet. `frame_limit`: bytes of the largest reply;
    /// `dtype`: how rows and gradients travel, "float32", "bfloat16" or "float16".
    ///
    /// # Errors
    /// There is no such dtype.
    pub fn new(frame_limit: usize, dtype: &str) -> std::result::Result<Self, Misuse> {
        let dtype = Dtype::parse(dtype).ok_or_else(|| {
            Misuse(format!("dtype is {dtype:?}; give float32, bfloat16 or float16"))
        })?;
        let client = wire::ClientConnection::new();
        Ok(Self { client, receiver: Receiver::new(frame_limit), failure: None, dtype })
    }

    /// How rows and gradients travel.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Gradients as they travel; None if they do so as they are.
    ///
    /// # Errors
    /// `BadInput`: a number is beyond float16.
    pub fn narrowed(&self, gradients: &[f32]) -> Result<Option<View>> {
        if self.dtype == Dtype::Float32 {
            return Ok(None);
        }
        let mut words = Words::new(gradients.len().div_ceil(4));
        let halves = &mut as_numbers_mut(&mut words)[..gradients.len()];
        narrow(self.dtype, gradients, halves).map_err(|at| {
            Error::bad_input(format!(
                "a gradient is {}, which float16 does not reach; connect with \
                 wire_dtype=\"bfloat16\" or \"float32\", or clip it",
                gradients[at]
            ))
        })?;
        Ok(Some(words.view(0..2 * gradients.len(), false)))
    }

    /// Why no call can succeed any more: the peer aborted, or sent something wrong.
    pub fn closed(&self) -> Option<&str> {
        self.failure.as_deref().or(self.client.closed())
    }

    /// Calls without an answer.
    pub fn in_flight(&self) -> usize {
        self.client.in_flight()
    }

    /// Bootstrap, login and hello in one flight; the question is hello's.
    /// `worker`: how many push together, and which of them this is.
    pub fn start(
        &mut self,
        session: u64,
        client_id: &str,
        token: &str,
        worker: Option<(u32, u32)>,
    ) -> (u32, Words) {
        let (question, flight) = self.client.start(session, client_id, token, worker);
        (question, flight.into())
    }

    /// A call that carries arrays; of each table the bytes of its arrays.
    ///
    /// # Errors
    /// `BadInput`: an array fits no message, or a verb of one table is asked of others.
    pub fn ask(&mut self, ask: &Ask, tables: &[Sizes]) -> Result<Asked> {
        if ask.is_of_one_table() && tables.len() != 1 {
            return Err(Error::bad_input(format!(
                "arrays of {} tables; give those of one",
                tables.len()
            )));
        }
        for (_, sizes) in tables {
            for (what, bytes) in ask.arrays().iter().zip(sizes) {
                if *bytes > DATA_MAX {
                    return Err(Error::bad_input(format!(
                        "{what} of {bytes} bytes do not fit one call; split it, at most {DATA_MAX} \
                         each"
                    )));
                }
            }
        }
        let (question, layout) = self.client.ask(ask, tables);
        let arrays = layout.blobs.iter().map(|blob| blob.bytes).collect();
        Ok(Asked { question, head: self.with_pending(layout.header), arrays })
    }

    /// A call of any verb; `params` is a message whose root is its params struct.
    ///
    /// # Errors
    /// There is no such verb, or `params` is no message.
    pub fn call(&mut self, verb: &str, params: &[u8]) -> std::result::Result<Asked, Misuse> {
        let ordinal = VERBS.iter().position(|known| *known == verb);
        let ordinal = ordinal
            .ok_or_else(|| Misuse(format!("no verb is called {verb:?}; use the schema's names")))?;
        let (question, frame) = self.client.call(ordinal as u16, &Words::from_bytes(params)?)?;
        Ok(Asked { question, head: self.with_pending(frame), arrays: Vec::new() })
    }

    fn with_pending(&mut self, frame: Vec<u64>) -> Words {
        let mut head = self.client.pending();
        head.extend(frame);
        head.into()
    }

    /// The place that the next bytes of the socket go to.
    pub fn buffer(&mut self) -> View {
        self.receiver.buffer()
    }

    /// Writes bytes that are no socket's into the buffer; how many there was room for.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        self.receiver.put(bytes)
    }

    /// Answers that `count` more bytes completed, with their frames. What a peer sent wrong is told
    /// by `closed`.
    ///
    /// # Errors
    /// The buffer was smaller.
    pub fn received(&mut self, count: usize) -> std::result::Result<Vec<(Answer, Words)>, Misuse> {
        self.receiver.received(count)?;
        let mut answers = Vec::new();
        while self.closed().is_none() {
            let mut frame = match self.receiver.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(malformed) => {
                    self.failure = Some(format!("the server broke the protocol: {malformed}"));
                    break;
                }
            };
            if let Some(answer) = self.client.receive(&mut frame) {
                answers.push((answer, frame));
            }
        }
        Ok(answers)
    }

    /// Gives a question up: its answer, when it comes, is dropped.
    pub fn forget(&mut self, question: u32) {
        self.client.forget(question);
    }

    /// Asks for a sign of life; what to send.
    pub fn probe(&mut self) -> Words {
        let probe = self.client.probe();
        self.with_pending(probe)
    }

    /// Small frames that go with the next call, or at once if none comes soon.
    pub fn pending(&mut self) -> Words {
        self.client.pending().into()
    }
}

impl Client {
    /// The rows, as float32, and found flags of each table in a frame that was answered with rows.
    ///
    /// # Errors
    /// The frame is none.
    pub fn rows_in(&self, frame: &Words) -> std::result::Result<Vec<(View, Option<View>)>, Misuse> {
        let places = wire::decode_rows(frame)?.into_iter();
        Ok(places
            .map(|place| {
                let found = (!place.found.is_empty()).then(|| frame.view(place.found, true));
                let rows = match self.dtype {
                    Dtype::Float32 => frame.view(place.rows, true),
                    // An array begins at a word.
                    dtype => {
                        let halves = place.rows.start / 2..place.rows.end / 2;
                        widened(dtype, &as_numbers(frame)[halves])
                    }
                };
                (rows, found)
            })
            .collect())
    }
}

fn widened(dtype: Dtype, halves: &[u16]) -> View {
    let mut words = Words::new(halves.len().div_ceil(2));
    widen(dtype, halves, &mut as_numbers_mut(&mut words)[..halves.len()]);
    words.view(0..4 * halves.len(), true)
}
