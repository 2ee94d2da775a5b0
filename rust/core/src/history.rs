//! What a store can still tell of its past: which cursors it answers. Kept in the superblock.
//!
//! A cursor is a sequence up to which somebody knows all changes. It cannot be answered when
//! removals since then were forgotten, or when it speaks of changes that a crash has taken: what
//! came after the last that survived, before the first of the next opening. Sequences are never
//! given out twice, so such a cursor is known for ever.

use crate::types::Sequence;

/// Calls for which sequences are set aside at a time: after a crash that many are skipped.
pub(crate) const RESERVED: Sequence = 1 << 40;
/// Losses that are remembered one by one.
const LOSSES_MAX: usize = 32;
const HEAD: usize = 24;
/// Bytes in the superblock.
pub(crate) const HISTORY_BYTES: usize = HEAD + 16 * LOSSES_MAX;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct History {
    /// Removals up to here may be forgotten.
    pub(crate) floor: Sequence,
    /// All changes up to here are on the device, rows that only a read has made among them.
    pub(crate) whole: Sequence,
    /// In growing order.
    losses: Vec<Loss>,
}

/// What a crash took: all sequences between the two that were given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Loss {
    after: Sequence,
    before: Sequence,
}

/// Why a cursor is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Removals since then were forgotten.
    TooOld,
    /// It speaks of changes that a crash has taken.
    Lost,
}

impl History {
    /// Whether changes since `since` can be told.
    pub(crate) fn check(&self, since: Sequence) -> Result<(), Refusal> {
        if since < self.floor {
            return Err(Refusal::TooOld);
        }
        let is_lost = |loss: &Loss| loss.after < since && since < loss.before;
        if self.losses.iter().any(is_lost) {
            return Err(Refusal::Lost);
        }
        Ok(())
    }

    /// Whether a crash has taken anything since: also what no cursor speaks of, counts of reads.
    pub(crate) fn has_lost_since(&self, since: Sequence) -> bool {
        self.losses.iter().any(|loss| since < loss.before)
    }

    /// An opening after a crash: everything later is above `first`.
    pub(crate) fn note_crash(&mut self, first: Sequence) {
        let mut loss = Loss { after: self.whole, before: first };
        // Openings that were cut short too have lost the same.
        let same = |last: &&Loss| last.before > loss.after;
        let own = self.losses.iter().rev().take_while(same).count();
        for last in self.losses.drain(self.losses.len() - own..) {
            loss.after = loss.after.min(last.after);
        }
        self.losses.push(loss);
        self.losses.retain(|loss| loss.before > self.floor);
        if self.losses.len() > LOSSES_MAX {
            // More is refused than need be, of what is oldest.
            self.losses[1].after = self.losses[0].after;
            self.losses.remove(0);
        }
    }

    /// See docs/format.md.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HISTORY_BYTES);
        bytes.extend(self.floor.to_le_bytes());
        bytes.extend(self.whole.to_le_bytes());
        bytes.extend((self.losses.len() as u64).to_le_bytes());
        for loss in &self.losses {
            bytes.extend(loss.after.to_le_bytes());
            bytes.extend(loss.before.to_le_bytes());
        }
        bytes
    }

    /// From a superblock whose checksum holds.
    pub(crate) fn decode(bytes: &[u8; HISTORY_BYTES]) -> Self {
        let byte = |at: usize| u64::from(bytes[at]);
        let word = |n: usize| (0..8).rev().fold(0, |word, at| word << 8 | byte(8 * n + at));
        let count = (word(2) as usize).min(LOSSES_MAX);
        let loss = |n: usize| Loss { after: word(3 + 2 * n), before: word(4 + 2 * n) };
        Self { floor: word(0), whole: word(1), losses: (0..count).map(loss).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::next_call;

    /// The sequence of call `n`.
    fn call(n: u64) -> Sequence {
        (0..n).fold(0, |last, _| next_call(last))
    }

    /// A crash of a store that was whole up to call `whole`, and goes on with call `first`.
    fn crash(history: &mut History, whole: u64, first: u64) {
        history.whole = call(whole);
        history.note_crash(call(first));
    }

    #[test]
    fn cursors_of_what_a_crash_took_are_refused_for_ever() {
        let mut history = History::default();
        crash(&mut history, 5, 9);
        for (since, expected) in [
            (call(4), Ok(())),
            (call(5), Ok(())),
            (call(5) + 1, Err(Refusal::Lost)),
            (call(6), Err(Refusal::Lost)),
            (call(9) - 1, Err(Refusal::Lost)),
            (call(9), Ok(())),
        ] {
            assert_eq!(history.check(since), expected, "{since:#x}");
        }
        crash(&mut history, 12, 20);
        assert_eq!(history.check(call(7)), Err(Refusal::Lost));
        assert_eq!(
            (history.check(call(11)), history.check(call(13))),
            (Ok(()), Err(Refusal::Lost))
        );
    }

    #[test]
    fn an_opening_that_is_cut_short_adds_nothing() {
        let mut history = History::default();
        crash(&mut history, 5, 9);
        crash(&mut history, 5, 14);
        assert_eq!((history.losses.len(), history.check(call(9))), (1, Err(Refusal::Lost)));
        assert_eq!((history.check(call(5)), history.check(call(14))), (Ok(()), Ok(())));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_never_too_little() {
        let mut history = History::default();
        let crashes: Vec<u64> = (1..=80).map(|n| 10 * n).collect();
        for &n in &crashes {
            crash(&mut history, n, n + 5);
        }
        assert_eq!(history.losses.len(), LOSSES_MAX);
        for n in crashes {
            assert_eq!(history.check(call(n + 1)), Err(Refusal::Lost), "crash {n}");
        }
        assert_eq!((history.check(call(9)), history.check(call(800))), (Ok(()), Ok(())));
        let mut bytes = history.encode();
        bytes.resize(HISTORY_BYTES, 0);
        assert_eq!(History::decode(bytes.as_slice().try_into().unwrap()), history);
        history.floor = call(700);
        assert_eq!(history.check(call(699)), Err(Refusal::TooOld));
        crash(&mut history, 900, 905);
        assert!(history.losses.len() <= 12, "who is below the floor is refused anyway");
    }
}
