//! A large reply, which the engine's threads send while they gather it.
//!
//! A thread gathers a piece and, when those before it have left, sends it at once, while its rows
//! are still in the thread's cache. Pieces are few, and a socket that takes no more stops all: what
//! nobody reads is not gathered.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use hybridps_wire::{self as wire, ExceptionKind, StreamedReply};

use crate::failure::{guarded, Failure};
use crate::memory::{as_numbers, Words};
use crate::outlet::Outlet;
use crate::reads::{Array, Reading, Share, Sizes, Span};
use crate::shared::Shared;

/// Pieces that may wait for their turn: enough that no thread waits for another.
const WAITING_MAX: usize = 2;
/// Pieces that a thread gathers or sends before it goes back to those who wait for a thread.
const STEPS_A_TURN: usize = 32;
/// How long a thread waits for a peer that reads as fast as it can. One that once did not is not
/// waited for again: it would cost others their threads.
const PATIENCE_MS: i32 = 5;

/// A reply in pieces, which any threads may send together. The last one is made when all others
/// have left: it says what went wrong in one of them. What goes wrong in the first fails the call
/// before anything is sent.
pub(crate) struct Stream {
    frame: Words,
    reply: StreamedReply,
    /// Rows of each piece but the last.
    pieces: Vec<Vec<Span>>,
    /// Found flags of each.
    found: Vec<OnceLock<Vec<u8>>>,
    failure: OnceLock<Failure>,
    progress: Mutex<Progress>,
    moved: Condvar,
}

struct Progress {
    /// The first piece that nobody has begun.
    next: usize,
    /// Pieces that have left.
    sent: usize,
    /// Pieces in all; fewer when the first failed, or the socket.
    end: usize,
    /// Bytes of piece `sent` that have left.
    offset: usize,
    unsent_bytes: usize,
    /// Pieces that wait for their turn.
    waiting: Vec<(usize, Words)>,
    is_sending: bool,
    /// Pieces are gathered one after the other.
    is_in_order: bool,
    /// The socket took no more: all threads go.
    is_full: bool,
    /// It has been so before.
    is_slow: bool,
    threads: usize,
}

/// What a thread may do next.
enum Step {
    Gather(usize),
    Send(usize, Words),
}

impl Progress {
    /// None: there is nothing to do before another thread has done something.
    fn step(&mut self) -> Option<Step> {
        let turn = self.waiting.iter().position(|(n, _)| *n == self.sent);
        if let (Some(at), false) = (turn, self.is_sending) {
            self.is_sending = true;
            let (n, piece) = self.waiting.swap_remove(at);
            return Some(Step::Send(n, piece));
        }
        let last = self.end - 1;
        let gathering = self.next - self.sent - self.waiting.len() - usize::from(self.is_sending);
        let is_free = gathering == 0 || !self.is_in_order;
        let can_begin = self.next < last && self.waiting.len() < WAITING_MAX && is_free;
        if can_begin || self.next == last && self.sent == last {
            self.next += 1;
            return Some(Step::Gather(self.next - 1));
        }
        None
    }

    fn is_over(&self) -> bool {
        self.is_full || self.sent >= self.end
    }
}

impl Stream {
    /// `is_in_order`: the keys of a piece must be read after those of the piece before.
    pub(crate) fn new(
        question: u32,
        frame: Words,
        sizes: &Sizes,
        (pieces, is_in_order): (Vec<Vec<Span>>, bool),
    ) -> Self {
        let reply = StreamedReply::new(question, sizes);
        let found = pieces.iter().map(|_| OnceLock::new()).collect();
        let arrays: usize = reply.blobs.iter().map(|blob| blob.bytes.div_ceil(8)).sum();
        let progress = Progress {
            next: 0,
            sent: 0,
            end: pieces.len() + 1,
            offset: 0,
            unsent_bytes: 8 * (reply.head.len() + arrays + reply.tail.len()),
            waiting: Vec::new(),
            is_sending: false,
            is_in_order,
            is_full: false,
            is_slow: false,
            threads: 0,
        };
        let (failure, progress, moved) = (OnceLock::new(), Mutex::new(progress), Condvar::new());
        Self { frame, reply, pieces, found, failure, progress, moved }
    }

    /// Bytes that have not left; 0 when nothing is left to do.
    pub(crate) fn unsent_bytes(&self) -> usize {
        let progress = self.progress();
        if progress.sent < progress.end {
            progress.unsent_bytes
        } else {
            0
        }
    }

    /// Why the call failed.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// Sends some pieces, in turn with other threads that do the same. True if the socket takes no
    /// more now.
    pub(crate) fn send(
        &self,
        outlet: &dyn Outlet,
        verb: u16,
        shared: &Shared,
    ) -> std::io::Result<bool> {
        let mut progress = self.progress();
        // The first one in tries again.
        progress.is_full &= progress.threads > 0;
        progress.threads += 1;
        drop(progress);
        let mut outcome = Ok(());
        for _ in 0..STEPS_A_TURN {
            let Some(step) = self.step() else { break };
            match step {
                Step::Gather(n) => self.add(n, self.make(n, verb, shared)),
                Step::Send(n, piece) => {
                    outcome = self.send_piece(n, piece, outlet);
                    // A peer on this machine was woken where we run: to read what our cache holds.
                    std::thread::yield_now();
                }
            }
        }
        let mut progress = self.progress();
        progress.threads -= 1;
        outcome.map(|()| progress.is_full)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do; None when nothing is left, or the socket is full.
    fn step(&self) -> Option<Step> {
        let mut progress = self.progress();
        while !progress.is_over() {
            if let Some(step) = progress.step() {
                return Some(step);
            }
            progress = self.moved.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn add(&self, n: usize, piece: Words) {
        let mut progress = self.progress();
        progress.waiting.push((n, piece));
        if n == progress.sent {
            self.moved.notify_all();
        }
    }

    fn make(&self, n: usize, verb: u16, shared: &Shared) -> Words {
        let Some(spans) = self.pieces.get(n) else { return self.last() };
        let head = if n == 0 { &self.reply.head[..] } else { &[] };
        let words: usize = spans.iter().map(|span| span.bytes.div_ceil(8)).sum();
        let mut piece = Words::new(head.len() + words);
        let (start, rows) = piece.split_at_mut(head.len());
        start.copy_from_slice(head);
        match guarded(|| self.gather(spans, verb, shared, rows)) {
            Ok(found) => drop(self.found[n].set(found)),
            Err(failure) if n == 0 => return self.refusal(failure),
            Err(failure) => {
                rows.fill(0);
                // The first failure stands for all.
                drop(self.failure.set(failure));
            }
        }
        piece
    }

    /// The whole reply of a call that failed before anything was sent.
    fn refusal(&self, failure: Failure) -> Words {
        let frame: Words =
            wire::exception_return(self.reply.question, ExceptionKind::Failed, &failure.0).into();
        let mut progress = self.progress();
        (progress.end, progress.unsent_bytes) = (1, 8 * frame.len());
        drop(self.failure.set(failure));
        frame
    }

    /// Sends the piece whose turn it is, and puts it back if something is left.
    fn send_piece(&self, n: usize, piece: Words, outlet: &dyn Outlet) -> std::io::Result<()> {
        let bytes: &[u8] = as_numbers(&piece);
        let mut progress = self.progress();
        loop {
            let (rest, is_slow) = (&bytes[progress.offset..], progress.is_slow);
            drop(progress);
            let sent = outlet.send(rest);
            let is_full = matches!(sent, Ok(0)) && (is_slow || !outlet.wait(PATIENCE_MS));
            progress = self.progress();
            let count = *sent.as_ref().unwrap_or(&0);
            progress.offset += count;
            progress.unsent_bytes -= count;
            let is_sent = progress.offset == bytes.len();
            if is_sent {
                (progress.sent, progress.offset) = (n + 1, 0);
            } else if is_full {
                (progress.is_full, progress.is_slow) = (true, true);
            } else if sent.is_err() {
                progress.end = 0;
            } else {
                continue;
            }
            progress.is_sending = false;
            if !is_sent {
                progress.waiting.push((n, piece));
            }
            self.moved.notify_all();
            return sent.map(drop);
        }
    }

    /// Found flags of the spans, one after the other; empty if nobody asked for them.
    fn gather(
        &self,
        spans: &[Span],
        verb: u16,
        shared: &Shared,
        mut words: &mut [u64],
    ) -> Result<Vec<u8>, Failure> {
        let reading = Reading::decode(verb, &self.frame, shared.keys_limit)?;
        let tables = self.reply.blobs.len() / 2;
        let is_found_wanted = self.reply.blobs[tables..].iter().any(|blob| blob.bytes > 0);
        let count: usize = spans.iter().map(|span| span.rows.len()).sum();
        let mut found = vec![0; if is_found_wanted { count } else { 0 }];
        let (mut shares, mut flags) = (Vec::with_capacity(spans.len()), &mut found[..]);
        for span in spans {
            let (own, rest) = flags.split_at_mut(span.rows.len().min(flags.len()));
            flags = rest;
            let rows = Array::take(&mut words, span.bytes);
            shares.push(Share { span, rows, found: own });
        }
        reading.fill(&shared.store, shares, true)?;
        Ok(found)
    }

    /// Found flags of all tables, and the Return.
    fn last(&self) -> Words {
        let tail = match self.failure.get() {
            None => self.reply.tail.clone(),
            Some(Failure(reason)) => self.reply.failed_tail(ExceptionKind::Failed, reason),
        };
        let flags = &self.reply.blobs[self.reply.blobs.len() / 2..];
        let words: usize = flags.iter().map(|blob| blob.bytes.div_ceil(8)).sum();
        let mut piece = Words::new(words + tail.len());
        let (mut rest, end) = piece.split_at_mut(words);
        end.copy_from_slice(&tail);
        let mut found = self.found.iter().flat_map(|found| found.get().into_iter().flatten());
        for blob in flags {
            // Nothing is left of them when a piece failed.
            let flags: &mut [u8] = Array::take(&mut rest, blob.bytes).numbers();
            flags.fill_with(|| found.next().copied().unwrap_or(0));
        }
        piece
    }
}
