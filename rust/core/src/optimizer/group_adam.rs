//! Adam with sparse group lasso (Ni et al., arXiv 2107.14432), in the form of TFPlus' fourth
//! version: l1, l2 and l21 count times the learning rate, and eps enters the linear term with the
//! first step. Without them it is Adam.
//!
//! A row whose linear term stays below the group's bound, l21 * sqrt(dim), is zero, and comes back
//! from zero when it passes it.
//!
//! Slots: first moment[dim], second moment[dim], linear term[dim], step count. The value is a
//! function of the slots alone: what is assigned counts until the next step.

use super::ftrl::{share_left, shrink, value};
use super::moments::{power, Moments};
use super::norm::norm;
use super::{are_finite, lanes, width, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct GroupAdam {
    pub(super) rate: f32,
    pub(super) betas: [f64; 2],
    pub(super) eps: f32,
    /// l1, l2, l21.
    pub(super) group: [f32; 3],
}

/// The linear terms, thresholded, in the place of the value.
struct Terms {
    moments: Moments,
    rate: f32,
    root: f32,
    /// Of the step before; 1 if there was none, for the moment is 0 then.
    root_before: f32,
    /// With the first step only.
    eps: f32,
    l1: f32,
}

impl Lane<3> for Terms {
    #[inline(always)]
    fn lane(&self, x: f32, [m, v, linear]: [f32; 3], g: f32) -> (f32, [f32; 3]) {
        let before = v.sqrt() / self.root_before;
        let (m, v) = (self.moments.first(m, g), self.moments.second(v, g));
        let grown = v.sqrt() / self.root - before + self.eps;
        let linear = linear + (self.rate * m - grown * x);
        (shrink(linear, self.l1), [m, v, linear])
    }
}

impl Kernel for GroupAdam {
    const SLOTS: [usize; 2] = [3, 1];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        let dim = width::<N>(gradient);
        let [l1, l2, l21] = self.group.map(|bound| bound * self.rate);
        let moments = Moments::count(self.betas, row, new);
        let is_first = moments.steps == 1;
        let before = (1.0 - power(self.betas[1], moments.steps - 1)).sqrt() as f32;
        let terms = Terms {
            moments,
            rate: moments.rate(self.rate),
            root: moments.root(),
            root_before: if is_first { 1.0 } else { before },
            eps: if is_first { self.eps } else { 0.0 },
            l1,
        };
        let is_finite = lanes::<3, N>(&terms, row, gradient, new);
        let (row, slots) = new.split_at_mut(dim);
        let left = share_left(norm(row), l21 * (dim as f32).sqrt());
        for (x, v) in row.iter_mut().zip(&slots[dim..2 * dim]) {
            *x = value(*x * left, v.sqrt() / terms.root + self.eps + 2.0 * l2);
        }
        is_finite && are_finite(row)
    }
}
