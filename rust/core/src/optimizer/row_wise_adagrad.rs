//! Row-wise Adagrad as fbgemm's exact row-wise rule: one accumulator, the mean of squares.
//!
//! Slots: the accumulator.

use super::norm::sum_of_squares;
use super::{lanes, magnitude, width, Kernel, INFINITY_BITS};
use crate::optimizer::sgd::Sgd;

#[derive(Clone, Copy)]
pub(super) struct RowWiseAdagrad {
    pub(super) rate: f32,
    pub(super) eps: f32,
}

impl Kernel for RowWiseAdagrad {
    const SLOTS: [usize; 2] = [0, 1];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        let dim = width::<N>(gradient);
        let sum = row[dim] + sum_of_squares(&gradient[..dim]) / dim as f32;
        new[dim] = sum;
        let rate = self.rate / (sum.sqrt() + self.eps);
        lanes::<0, N>(&Sgd { rate }, row, gradient, new) && magnitude(sum) < INFINITY_BITS
    }
}
