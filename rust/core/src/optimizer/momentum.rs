//! Gradient descent with momentum, as torch.optim.SGD: the first step's velocity is its gradient.
//!
//! Slots: velocity[dim].

use super::{lanes, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct Momentum {
    pub(super) rate: f32,
    pub(super) momentum: f32,
    pub(super) nesterov: bool,
}

impl Lane<1> for Momentum {
    #[inline(always)]
    fn lane(&self, x: f32, [velocity]: [f32; 1], g: f32) -> (f32, [f32; 1]) {
        let velocity = self.momentum * velocity + g;
        let along = if self.nesterov { g + self.momentum * velocity } else { velocity };
        (x - self.rate * along, [velocity])
    }
}

impl Kernel for Momentum {
    const SLOTS: [usize; 2] = [1, 0];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        lanes::<1, N>(self, row, gradient, new)
    }
}
