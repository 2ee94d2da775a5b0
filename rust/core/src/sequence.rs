//! Sequences: where every change of a row stands in the one order of a store.
//!
//! The high bits count the mutating calls, which the store orders one after the other. The low bits
//! count the rows that reads have made in a stripe since the last call that passed it: such a row
//! is newer than that call and older than the next, and no ticket is drawn for it. So every row
//! that was made or changed has a sequence greater than what its stripe had seen before, and "all
//! up to here" can be said of a stripe at any time.

use crate::types::Sequence;

/// Bits of a sequence that count the rows made by reads between two calls.
const MINOR_BITS: u32 = 20;
const MINORS: Sequence = (1 << MINOR_BITS) - 1;
/// The last that a read gives. The one above is the moment right before the next call.
const MINOR_LAST: Sequence = MINORS - 1;

/// The sequence of the call that comes after `last`.
pub(crate) const fn next_call(last: Sequence) -> Sequence {
    (last | MINORS) + 1
}

/// The call that `sequence` is, or comes after.
pub(crate) const fn call_of(sequence: Sequence) -> Sequence {
    sequence & !MINORS
}

/// Right before `call`: of a row that the call makes and then changes. Nothing that a read made in
/// a stripe before the call passed it is newer.
pub(crate) const fn before_call(call: Sequence) -> Sequence {
    call - 1
}

/// How far a stripe has come in the order. All changes up to here have been made in it; whatever is
/// changed later gets a greater sequence.
#[derive(Debug, Default)]
pub(crate) struct Progress(Sequence);

impl Progress {
    /// All calls up to `sequence` that touch the stripe have been applied.
    pub(crate) fn lift(&mut self, sequence: Sequence) {
        self.0 = self.0.max(sequence);
    }

    /// The newest change, or what the stripe was lifted to.
    pub(crate) fn newest(&self) -> Sequence {
        self.0
    }

    /// The sequence of a row that a read makes now. When a stripe has used up its numbers the last
    /// one is given again and again, until a call passes; `spoken_for` stays below it meanwhile.
    pub(crate) fn create(&mut self) -> Sequence {
        if self.0 & MINORS < MINOR_LAST {
            self.0 += 1;
        }
        self.0
    }

    /// All changes up to here have been made, and no later one will have such a sequence.
    pub(crate) fn spoken_for(&self) -> Sequence {
        match self.0 & MINORS {
            MINOR_LAST => self.0 - 1,
            _ => self.0,
        }
    }

    /// Half of the numbers between two calls are used up: a call should pass.
    pub(crate) fn is_crowded(&self) -> bool {
        self.0 & MINORS > MINORS / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_reads_make_lie_between_two_calls() {
        let mut progress = Progress::default();
        let first = next_call(0);
        progress.lift(first);
        let made: Vec<Sequence> = (0..3).map(|_| progress.create()).collect();
        assert_eq!(made, [first + 1, first + 2, first + 3]);
        let second = next_call(progress.newest());
        assert!(made.iter().all(|&made| made < before_call(second) && call_of(made) == first));
        assert_eq!((call_of(before_call(second)), call_of(second)), (first, second));
        progress.lift(second);
        progress.lift(first);
        assert_eq!(progress.create(), second + 1);
    }

    #[test]
    fn when_numbers_are_used_up_nothing_is_spoken_for_too_early() {
        let mut progress = Progress::default();
        let call = next_call(0);
        progress.lift(call);
        let mut told = 0;
        for _ in 0..MINORS + 9 {
            let made = progress.create();
            assert!(made > told, "{made:#x} was spoken for before it was made");
            assert!(made < before_call(next_call(call)), "it would pass for the next call");
            told = progress.spoken_for();
        }
        assert!(progress.is_crowded());
        progress.lift(next_call(call));
        assert!(!progress.is_crowded() && progress.spoken_for() > told);
    }
}
