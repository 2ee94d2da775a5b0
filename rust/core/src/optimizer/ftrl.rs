//! FTRL-proximal as TensorFlow's Ftrl with power -1/2 (its l2 counts twice), and the same with a
//! bound for the row as a group (Ni et al., "Adaptive Optimizers with Sparse Group Lasso",
//! arXiv 2107.14432): a row whose linear term stays below the bound is zero, and comes back from
//! zero when it passes it.
//!
//! Slots: sum of squares[dim], linear term[dim]. The value is a function of the slots alone: what
//! is assigned counts until the next step.

use super::norm::norm;
use super::{are_finite, lanes, width, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct Ftrl {
    pub(super) rate: f32,
    pub(super) l1: f32,
    pub(super) l2: f32,
}

#[derive(Clone, Copy)]
pub(super) struct SparseGroupFtrl {
    pub(super) lane: Ftrl,
    pub(super) l21: f32,
}

impl Ftrl {
    /// The slots after a step.
    #[inline(always)]
    fn slots(&self, x: f32, [sum, linear]: [f32; 2], g: f32) -> [f32; 2] {
        let next = sum + g * g;
        [next, linear + (g - (next.sqrt() - sum.sqrt()) / self.rate * x)]
    }

    /// By what the thresholded linear term is divided.
    #[inline(always)]
    fn divisor(&self, sum: f32) -> f32 {
        sum.sqrt() / self.rate + 2.0 * self.l2
    }
}

/// `x` brought nearer to 0 by `bound`, at most to 0.
#[inline(always)]
pub(super) fn shrink(x: f32, bound: f32) -> f32 {
    let least = x.abs() - bound;
    if least > 0.0 {
        least.copysign(x)
    } else {
        0.0
    }
}

/// The value of a thresholded linear term. Zero is zero, also where there is nothing to divide by.
#[inline(always)]
pub(super) fn value(term: f32, divisor: f32) -> f32 {
    if term == 0.0 {
        0.0
    } else {
        -term / divisor
    }
}

/// What is left of a group of this norm.
#[inline(always)]
pub(super) fn share_left(norm: f32, bound: f32) -> f32 {
    if norm > bound {
        1.0 - bound / norm
    } else {
        0.0
    }
}

impl Lane<2> for Ftrl {
    #[inline(always)]
    fn lane(&self, x: f32, slots: [f32; 2], g: f32) -> (f32, [f32; 2]) {
        let [sum, linear] = self.slots(x, slots, g);
        (value(shrink(linear, self.l1), self.divisor(sum)), [sum, linear])
    }
}

impl Kernel for Ftrl {
    const SLOTS: [usize; 2] = [2, 0];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        lanes::<2, N>(self, row, gradient, new)
    }
}

/// The linear terms first, thresholded, in the place of the value.
struct Terms(Ftrl);

impl Lane<2> for Terms {
    #[inline(always)]
    fn lane(&self, x: f32, slots: [f32; 2], g: f32) -> (f32, [f32; 2]) {
        let [sum, linear] = self.0.slots(x, slots, g);
        (shrink(linear, self.0.l1), [sum, linear])
    }
}

impl Kernel for SparseGroupFtrl {
    const SLOTS: [usize; 2] = [2, 0];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        let dim = width::<N>(gradient);
        let is_finite = lanes::<2, N>(&Terms(self.lane), row, gradient, new);
        let (terms, slots) = new.split_at_mut(dim);
        let left = share_left(norm(terms), self.l21 * (dim as f32).sqrt());
        for (x, &sum) in terms.iter_mut().zip(&slots[..dim]) {
            *x = value(*x * left, self.lane.divisor(sum));
        }
        is_finite && are_finite(terms)
    }
}
