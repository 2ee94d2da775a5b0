//! Plain gradient descent.

use super::{lanes, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct Sgd {
    pub(super) rate: f32,
}

impl Lane<0> for Sgd {
    #[inline(always)]
    fn lane(&self, x: f32, _: [f32; 0], g: f32) -> (f32, [f32; 0]) {
        (x - self.rate * g, [])
    }
}

impl Kernel for Sgd {
    const SLOTS: [usize; 2] = [0, 0];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        lanes::<0, N>(self, row, gradient, new)
    }
}
