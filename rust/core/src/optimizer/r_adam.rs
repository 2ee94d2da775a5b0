//! RAdam as torch.optim.RAdam: while too few squares are known for their average to be trusted,
//! the step goes along the first moment alone.
//!
//! Slots: as Adam.

use super::moments::{power, Moments};
use super::{lanes, Kernel, Lane};

#[derive(Clone, Copy)]
pub(super) struct RAdam {
    pub(super) rate: f32,
    pub(super) betas: [f64; 2],
    pub(super) eps: f32,
}

struct Step {
    moments: Moments,
    /// Of the step along the first moment, corrected.
    rate: f32,
    /// What takes part in a step by the second moment, too.
    rectified: f32,
    is_rectified: bool,
    eps: f32,
}

impl Lane<2> for Step {
    #[inline(always)]
    fn lane(&self, x: f32, [m, v]: [f32; 2], g: f32) -> (f32, [f32; 2]) {
        let (m, v) = (self.moments.first(m, g), self.moments.second(v, g));
        let adaptive = if self.is_rectified { self.rectified / (v.sqrt() + self.eps) } else { 1.0 };
        (x - self.rate * m * adaptive, [m, v])
    }
}

impl RAdam {
    /// The root of the variance's ratio to what it becomes, or `None` while it is not tractable.
    #[inline(always)]
    fn rectification(&self, moments: &Moments) -> Option<f64> {
        let beta = self.betas[1];
        let most = 2.0 / (1.0 - beta) - 1.0;
        let steps = f64::from(moments.steps);
        let now = most - 2.0 * steps * power(beta, moments.steps) / moments.corrections[1];
        let ratio = (now - 4.0) * (now - 2.0) * most / ((most - 4.0) * (most - 2.0) * now);
        (now > 5.0).then(|| ratio.sqrt())
    }
}

impl Kernel for RAdam {
    const SLOTS: [usize; 2] = [2, 1];

    #[inline(always)]
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool {
        let moments = Moments::count(self.betas, row, new);
        let ratio = self.rectification(&moments);
        let rectified = (ratio.unwrap_or(0.0) * moments.corrections[1].sqrt()) as f32;
        let rate = moments.rate(self.rate);
        let is_rectified = ratio.is_some();
        let step = Step { moments, rate, rectified, is_rectified, eps: self.eps };
        lanes::<2, N>(&step, row, gradient, new)
    }
}
