//! AdaBelief, algorithm 2 of Zhuang et al. (arXiv 2010.07468): eps inside the second moment and at
//! the root, both moments corrected.
//!
//! Slots: as Adam; the second moment is of the distance from the first.

use super::moments::Moments;
use super::{lanes, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct AdaBelief {
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

impl Lane<2> for Step {
    #[inline(always)]
    fn lane(&self, x: f32, [m, s]: [f32; 2], g: f32) -> (f32, [f32; 2]) {
        let m = self.moments.first(m, g);
        let s = self.moments.second(s, g - m) + self.eps;
        (x - self.rate * (m / (s.sqrt() / self.root + self.eps)), [m, s])
    }
}

impl Kernel for AdaBelief {
    const SLOTS: [usize; 2] = [2, 1];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        let moments = Moments::count(self.betas, row, new);
        let (rate, root) = (moments.rate(self.rate), moments.root());
        lanes::<2, N>(&Step { moments, rate, root, eps: self.eps }, row, gradient, new)
    }
}
