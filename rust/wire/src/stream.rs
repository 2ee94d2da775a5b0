//! A reply of rows that is sent while its later rows are still being gathered.
//!
//! A message of one segment begins with its Return, so an answer would have to be known to be good
//! before its first byte is sent. This one has three segments: a root that leads to the last one;
//! the arrays; and last the Return, which says where in the second the arrays lie, or what went
//! wrong on the way. To a reader of Cap'n Proto it is a message like any other.

use crate::compose::{far_pointer, Composer};
use crate::rpc::{self, ExceptionKind};
use crate::verbs::{self, BlobAt};

const ARRAYS: usize = 1;
const RETURN: usize = 2;
/// Words of `head`.
const HEAD_WORDS: usize = 3;
/// Least words of the last segment: room for an exception of a kilobyte.
const RETURN_WORDS_MIN: usize = 144;

/// A streamed reply: `head`, then the arrays, then a Return of `tail_words`.
#[derive(Debug)]
pub struct StreamedReply {
    /// Of the call that it answers.
    pub question: u32,
    /// The first words of the frame.
    pub head: Vec<u64>,
    /// Where each array goes, counted from the first word of the frame: the rows of all tables,
    /// then the found flags of all, without gaps but for the padding of each to a whole word, which
    /// must be zero.
    pub blobs: Vec<BlobAt>,
    /// The Return that ends the frame when every array was written.
    pub tail: Vec<u64>,
}

impl StreamedReply {
    /// Most bytes of a frame beside its arrays and 64 bytes a table.
    pub const FIXED_BYTES: usize = 8 * (HEAD_WORDS + RETURN_WORDS_MIN);

    /// As `rows_reply`: per table the bytes of rows and of found flags.
    pub fn new(question: u32, tables: &[(usize, usize)]) -> Self {
        let (mut composer, at) = rpc::results_return(question);
        let first = verbs::rows_results(&mut composer, at, tables.len());
        let (mut blobs, mut words) = (Vec::with_capacity(2 * tables.len()), 0);
        let rows = tables.iter().enumerate().map(|(i, sizes)| (2 * i, sizes.0));
        let found = tables.iter().enumerate().map(|(i, sizes)| (2 * i + 1, sizes.1));
        for (pointer, bytes) in rows.chain(found) {
            composer.far_blob(first + pointer, RETURN, (ARRAYS, words), bytes);
            blobs.push(BlobAt { start: HEAD_WORDS + words, bytes });
            words += bytes.div_ceil(8);
        }
        let tail = padded(composer, RETURN_WORDS_MIN);
        // Number of segments less one, then the words of each; the root is a far pointer to the
        // first word of the Return's segment.
        let head = vec![
            RETURN as u64 | 1 << 32,
            words as u64 | (tail.len() as u64) << 32,
            far_pointer(RETURN, 0, false),
        ];
        Self { question, head, blobs, tail }
    }

    /// The Return that ends the frame instead of `tail`, of the same length: the call failed. A
    /// reason that is too long is cut.
    pub fn failed_tail(&self, kind: ExceptionKind, reason: &str) -> Vec<u64> {
        let without = rpc::exception_message(self.question, kind, "").words.len();
        // A word that the segment lacks is the segment table; the empty text has one for its NUL.
        let room = (self.tail.len() + 1 - without) * 8 + 7;
        let mut end = reason.len().min(room);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        padded(rpc::exception_message(self.question, kind, &reason[..end]), self.tail.len())
    }
}

fn padded(composer: Composer, least: usize) -> Vec<u64> {
    let mut words = composer.into_segment();
    words.resize(words.len().max(least), 0);
    words
}
