//! How many steps ago a row was last changed: a table that counts steps remembers which call began
//! each of the last ones, so the sequence of a row tells its step, and no row needs a stamp.

use std::collections::VecDeque;

use crate::types::Sequence;

/// Parts that the steps of an expiry are told apart in, at least.
const PARTS: u64 = 1024;

/// A push that took the table on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Knot {
    /// The step that the table was at before it.
    pub(crate) before: i64,
    /// Of the push: rows that were changed before have a smaller one.
    pub(crate) sequence: Sequence,
}

/// The steps of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Steps {
    /// After so many a row expires.
    span: u64,
    /// `None` before the first push: it says where to begin, and ages no row.
    now: Option<i64>,
    /// In growing order; the first one may be older than the span.
    knots: VecDeque<Knot>,
}

impl Steps {
    pub(crate) fn new(span: u64) -> Self {
        Self { span, now: None, knots: VecDeque::new() }
    }

    /// Of another span from now on. What was forgotten stays so: rows may live longer for it.
    pub(crate) fn set_span(&mut self, span: u64) {
        self.span = span;
        self.prune();
    }

    /// Goes on from what was stored.
    pub(crate) fn restore(&mut self, now: Option<i64>, knots: impl Iterator<Item = Knot>) {
        (self.now, self.knots) = (now, knots.collect());
        self.prune();
    }

    pub(crate) fn now(&self) -> Option<i64> {
        self.now
    }

    pub(crate) fn knots(&self) -> impl Iterator<Item = Knot> + '_ {
        self.knots.iter().copied()
    }

    /// A push of the table: of this step, or the one after the last.
    pub(crate) fn count(&mut self, step: Option<i64>, sequence: Sequence) {
        let Some(before) = self.now else {
            self.now = step.or(Some(1));
            return;
        };
        let next = step.unwrap_or(before.saturating_add(1));
        if next <= before {
            return;
        }
        self.now = Some(next);
        let grain = i64::try_from(self.span / PARTS).unwrap_or(i64::MAX).max(1);
        if self.knots.back().is_none_or(|last| before.saturating_sub(last.before) >= grain) {
            self.knots.push_back(Knot { before, sequence });
            self.prune();
        }
    }

    /// Rows whose sequence is smaller than this have expired.
    pub(crate) fn bound(&self) -> Sequence {
        let is_past = |knot: &&Knot| self.age(knot.before) >= self.span;
        self.knots.iter().take_while(is_past).last().map_or(0, |knot| knot.sequence)
    }

    fn age(&self, step: i64) -> u64 {
        self.now.map_or(0, |now| now.abs_diff(step))
    }

    /// Of the knots that lie behind the span only the last one matters.
    fn prune(&mut self) {
        while self.knots.get(1).is_some_and(|second| self.age(second.before) >= self.span) {
            self.knots.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps at which rows were changed, beside the rule itself.
    #[test]
    fn a_row_expires_after_its_steps() {
        let mut steps = Steps::new(3);
        let mut rows = Vec::new();
        for (sequence, step) in [1, 2, 3, 5, 5, 9, 10, 11, 12, 200].into_iter().enumerate() {
            steps.count(Some(step), sequence as Sequence);
            let now = steps.now().expect("it was pushed");
            rows.push((now, sequence as Sequence));
            for &(seen, sequence) in &rows {
                let is_due = now - seen >= 3;
                assert_eq!(sequence < steps.bound(), is_due, "seen at {seen}, now {step}");
            }
        }
        assert!(steps.knots().count() <= 4);
    }

    #[test]
    fn pushes_without_a_step_count_one_each() {
        let mut steps = Steps::new(2);
        (10..14).for_each(|sequence| steps.count(None, sequence));
        // Those of 12 and 13 are the last two.
        assert_eq!((steps.now(), steps.bound()), (Some(4), 12));
        steps.count(Some(3), 20);
        assert_eq!(
            (steps.now(), steps.bound()),
            (Some(4), 12),
            "a step from before changes nothing"
        );
    }

    /// Far more steps than knots: a row is late by no more than a part of the span.
    #[test]
    fn long_spans_are_told_apart_in_parts() {
        let span = 1 << 20;
        let mut steps = Steps::new(span);
        for step in 1..3 << 20 {
            steps.count(None, step);
        }
        let bound = steps.bound();
        let exact = (3 << 20) - span;
        assert!(bound <= exact && exact - bound <= span / PARTS + 1, "{bound} of {exact}");
        assert!(steps.knots().count() as u64 <= PARTS + 2);
    }

    /// A table that begins to count at step 1,000,000 has rows of unknown age.
    #[test]
    fn the_first_push_ages_nothing() {
        let mut steps = Steps::new(10);
        steps.count(Some(1_000_000), 70);
        assert_eq!(steps.bound(), 0);
        steps.count(Some(1_000_009), 80);
        assert_eq!(steps.bound(), 0);
        steps.count(Some(1_000_010), 90);
        assert_eq!(steps.bound(), 80, "all before the second push");
    }

    #[test]
    fn a_longer_span_forgets_nothing_early() {
        let mut steps = Steps::new(2);
        (1..=100).for_each(|sequence| steps.count(None, sequence));
        steps.set_span(50);
        assert!(steps.bound() <= 51, "{}", steps.bound());
        let mut restored = Steps::new(50);
        restored.restore(steps.now(), steps.knots());
        assert_eq!(restored, steps);
    }
}
