//! RMSprop as torch.optim.RMSprop, without momentum and not centred.
//!
//! Slots: average of squares[dim].

use super::{lanes, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct RmsProp {
    rate: f32,
    keep: f32,
    rest: f32,
    eps: f32,
}

impl RmsProp {
    pub(super) fn new(rate: f32, alpha: f64, eps: f32) -> Self {
        Self { rate, keep: alpha as f32, rest: (1.0 - alpha) as f32, eps }
    }
}

impl Lane<1> for RmsProp {
    #[inline(always)]
    fn lane(&self, x: f32, [average]: [f32; 1], g: f32) -> (f32, [f32; 1]) {
        let average = self.keep * average + self.rest * (g * g);
        (x - self.rate * (g / (average.sqrt() + self.eps)), [average])
    }
}

impl Kernel for RmsProp {
    const SLOTS: [usize; 2] = [1, 0];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        lanes::<1, N>(self, row, gradient, new)
    }
}
