//! AMSGrad as torch.optim.Adam with `amsgrad`: the second moment never shrinks.
//!
//! Slots: first moment[dim], second moment[dim], greatest second moment[dim], step count.

use super::moments::Moments;
use super::{lanes, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct AmsGrad {
    pub(super) rate: f32,
    pub(super) betas: [f64; 2],
    pub(super) eps: f32,
}

struct Step {
    moments: Moments,
    rate: f32,
    root: f32,
    eps: f32,
}

impl Lane<3> for Step {
    #[inline(always)]
    fn lane(&self, x: f32, [m, v, greatest]: [f32; 3], g: f32) -> (f32, [f32; 3]) {
        let (m, v) = (self.moments.first(m, g), self.moments.second(v, g));
        let greatest = if v > greatest { v } else { greatest };
        let x = x - self.rate * (m / (greatest.sqrt() / self.root + self.eps));
        (x, [m, v, greatest])
    }
}

impl Kernel for AmsGrad {
    const SLOTS: [usize; 2] = [3, 1];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        let moments = Moments::count(self.betas, row, new);
        let (rate, root) = (moments.rate(self.rate), moments.root());
        lanes::<3, N>(&Step { moments, rate, root, eps: self.eps }, row, gradient, new)
    }
}
