//! The rows of a mutating call that lie in DRAM where the probe saw them: one pass, of a loop made
//! for the optimizer and the width of the table.

use super::mutate::Effect;
use super::order::Turn;
use crate::batch::{by_width, copy_row};
use crate::optimizer::{step, Kernel, Prepared, With};
use crate::table::{Found, Header, Item, Part, RowMut, Visitor};

/// Items of one stripe, and what was found of them.
pub(super) struct Revisit<'a> {
    pub(super) turn: &'a Turn,
    pub(super) effect: &'a mut Effect,
    /// Items that are not there any more.
    pub(super) later: &'a mut Vec<u32>,
    /// For one row and its gradient.
    pub(super) scratch: &'a mut [f32],
    pub(super) part: &'a mut Part,
    pub(super) items: &'a [Item],
    pub(super) found: &'a [Found],
}

/// What is done with the numbers of a row of N columns (0: of any number).
trait Edit<const N: usize> {
    /// Returns false if they stay as they were.
    fn edit(&mut self, numbers: &mut [f32], given: &[f32]) -> bool;
}

/// One step of an optimizer along each gradient.
pub(super) struct Stepping<'a> {
    pub(super) revisit: Revisit<'a>,
    pub(super) gradients: &'a [f32],
}

struct Step<'a, K> {
    kernel: K,
    options: Prepared,
    scratch: &'a mut [f32],
}

/// The given values in the place of the old.
struct Assign;

struct Pass<'a, E, const N: usize> {
    turn: &'a Turn,
    effect: &'a mut Effect,
    later: &'a mut Vec<u32>,
    given: &'a [f32],
    dim: usize,
    edit: E,
}

impl<E: Edit<N>, const N: usize> Visitor for Pass<'_, E, N> {
    #[inline(always)]
    fn prefetch(&self, item: &Item) {
        crate::prefetch::row(self.given, self.dim, item.index);
    }

    #[inline(always)]
    fn hit(&mut self, (header, numbers): RowMut<'_>, item: &Item) {
        let dim = if N > 0 { N } else { self.dim };
        let start = item.index as usize * dim;
        let is_changed = self.edit.edit(numbers, &self.given[start..start + dim]);
        note_change(self.turn, self.effect, header, is_changed);
    }

    fn miss(&mut self, n: usize, _: &Item, _: Found) {
        self.later.push(n as u32);
    }
}

/// Notes in its header that the numbers of a row were changed, or that they could not be. (The
/// change is no argument: a closure would be compiled apart from the loop, without its vectors.)
#[inline(always)]
pub(super) fn note_change(turn: &Turn, effect: &mut Effect, header: &mut Header, is_changed: bool) {
    if !is_changed {
        effect.poisoned += 1;
        return;
    }
    (header.sequence, header.last_seen) = (turn.sequence, turn.seen);
    header.state.make_dirty(Some(turn.generation));
    effect.updated += 1;
}

impl<K: Kernel, const N: usize> Edit<N> for Step<'_, K> {
    #[inline(always)]
    fn edit(&mut self, numbers: &mut [f32], given: &[f32]) -> bool {
        step::<K, N>(self.kernel, &self.options, numbers, given, self.scratch)
    }
}

impl<const N: usize> Edit<N> for Assign {
    #[inline(always)]
    fn edit(&mut self, numbers: &mut [f32], given: &[f32]) -> bool {
        copy_row::<N>(given, &mut numbers[..given.len()]);
        true
    }
}

impl With for Stepping<'_> {
    type Output = ();

    fn with<K: Kernel>(self, kernel: K) {
        let dim = self.revisit.part.table.dim;
        by_width!(dim, run_steps(self, kernel));
    }
}

fn run_steps<const N: usize>(stepping: Stepping<'_>, kernel: impl Kernel) {
    let Stepping { mut revisit, gradients } = stepping;
    let options = revisit.part.table.gradients;
    let scratch = std::mem::take(&mut revisit.scratch);
    run::<_, N>(revisit, gradients, Step { kernel, options, scratch });
}

/// Sets the values of rows of N columns (0: of any number).
pub(super) fn assign<const N: usize>(revisit: Revisit<'_>, rows: &[f32]) {
    run::<_, N>(revisit, rows, Assign);
}

fn run<E: Edit<N>, const N: usize>(revisit: Revisit<'_>, given: &[f32], edit: E) {
    let Revisit { turn, effect, later, part, items, found, .. } = revisit;
    let dim = part.table.dim;
    let mut pass = Pass { turn, effect, later, given, dim, edit };
    part.revisit(items, found, &mut pass);
}
