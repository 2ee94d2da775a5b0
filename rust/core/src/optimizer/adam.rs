//! Adam as torch.optim.Adam, with each row's own step count for the bias correction.
//!
//! Slots: first moment[dim], second moment[dim], step count.

use super::moments::Moments;
use super::{lanes, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct Adam {
    pub(super) rate: f32,
    pub(super) betas: [f64; 2],
    pub(super) eps: f32,
}

/// Adam in one row. `keep` is what decay leaves of the value, 1 without.
pub(super) struct Step {
    pub(super) moments: Moments,
    pub(super) rate: f32,
    pub(super) root: f32,
    pub(super) eps: f32,
    pub(super) keep: f32,
}

impl Lane<2> for Step {
    #[inline(always)]
    fn lane(&self, x: f32, [m, v]: [f32; 2], g: f32) -> (f32, [f32; 2]) {
        let (m, v) = (self.moments.first(m, g), self.moments.second(v, g));
        (x * self.keep - self.rate * (m / (v.sqrt() / self.root + self.eps)), [m, v])
    }
}

impl Kernel for Adam {
    const SLOTS: [usize; 2] = [2, 1];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        let moments = Moments::count(self.betas, row, new);
        let (rate, root) = (moments.rate(self.rate), moments.root());
        let step = Step { moments, rate, root, eps: self.eps, keep: 1.0 };
        lanes::<2, N>(&step, row, gradient, new)
    }
}
