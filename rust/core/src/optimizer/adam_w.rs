//! AdamW as torch.optim.AdamW: Adam, and the value itself decays.
//!
//! Slots: as Adam.

use super::adam::Step;
use super::moments::Moments;
use super::{lanes, Kernel};

#[derive(Clone, Copy)]
pub(super) struct AdamW {
    pub(super) rate: f32,
    pub(super) betas: [f64; 2],
    pub(super) eps: f32,
    pub(super) decay: f32,
}

impl Kernel for AdamW {
    const SLOTS: [usize; 2] = [2, 1];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        let moments = Moments::count(self.betas, row, new);
        let (rate, root) = (moments.rate(self.rate), moments.root());
        let keep = (1.0 - f64::from(self.rate) * f64::from(self.decay)) as f32;
        lanes::<2, N>(&Step { moments, rate, root, eps: self.eps, keep }, row, gradient, new)
    }
}
