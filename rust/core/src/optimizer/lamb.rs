//! LAMB of You et al. (arXiv 1904.00962), one trust ratio a row: Adam's direction, decay included,
//! is stretched to the length of the row. Where either has none, the ratio is 1.
//!
//! Slots: as Adam.

use super::moments::Moments;
use super::norm::norm;
use super::{are_finite, lanes, width, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct Lamb {
    pub(super) rate: f32,
    pub(super) betas: [f64; 2],
    pub(super) eps: f32,
    pub(super) decay: f32,
}

/// The direction, in the place of the value.
struct Direction {
    moments: Moments,
    correction: f32,
    root: f32,
    eps: f32,
    decay: f32,
}

impl Lane<2> for Direction {
    #[inline(always)]
    fn lane(&self, x: f32, [m, v]: [f32; 2], g: f32) -> (f32, [f32; 2]) {
        let (m, v) = (self.moments.first(m, g), self.moments.second(v, g));
        let along = m / self.correction / (v.sqrt() / self.root + self.eps);
        (along + self.decay * x, [m, v])
    }
}

impl Kernel for Lamb {
    const SLOTS: [usize; 2] = [2, 1];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        let dim = width::<N>(gradient);
        let moments = Moments::count(self.betas, row, new);
        let (correction, root) = (moments.corrections[0] as f32, moments.root());
        let direction = Direction { moments, correction, root, eps: self.eps, decay: self.decay };
        let is_finite = lanes::<2, N>(&direction, row, gradient, new);
        let (value, along) = (&row[..dim], &mut new[..dim]);
        let norms = (norm(value), norm(along));
        let trust = if norms.0 > 0.0 && norms.1 > 0.0 { norms.0 / norms.1 } else { 1.0 };
        let rate = self.rate * trust;
        for (along, x) in along.iter_mut().zip(value) {
            *along = x - rate * *along;
        }
        is_finite && are_finite(along)
    }
}
