//! Adagrad as torch.optim.Adagrad with a sparse gradient: eps outside the root.
//!
//! Slots: sum of squares[dim].

use super::{lanes, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct Adagrad {
    pub(super) rate: f32,
    pub(super) eps: f32,
}

impl Lane<1> for Adagrad {
    #[inline(always)]
    fn lane(&self, x: f32, [sum]: [f32; 1], g: f32) -> (f32, [f32; 1]) {
        let sum = sum + g * g;
        (x - self.rate * (g / (sum.sqrt() + self.eps)), [sum])
    }
}

impl Kernel for Adagrad {
    const SLOTS: [usize; 2] = [1, 0];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        lanes::<1, N>(self, row, gradient, new)
    }
}
