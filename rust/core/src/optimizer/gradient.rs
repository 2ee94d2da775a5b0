//! What is done to a gradient before any rule sees it: clipping, then weight decay.

use serde::{Deserialize, Serialize};

use crate::spec::Optimizer;

/// Options of every optimizer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradientOptions {
    /// Share of the value that is added to the gradient (torch's `weight_decay`). `AdamW` and
    /// `Lamb` take it from the value itself, as their papers do. 0: none.
    pub weight_decay: f32,
    /// Each number is cut to this distance from 0. 0: none.
    pub clip_value: f32,
    /// A key's gradient is shortened to this Euclidean norm. 0: none.
    pub clip_norm: f32,
}

/// The same, for one optimizer.
#[derive(Clone, Copy)]
pub(crate) struct Prepared {
    /// The gradient is used as it is.
    pub(crate) is_plain: bool,
    /// What a rule that decays by itself takes.
    pub(crate) decay: f32,
    coupled: f32,
    clip_value: f32,
    clip_norm: f32,
}

impl GradientOptions {
    /// No option is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn of(&self, optimizer: &Optimizer) -> Prepared {
        let &Self { weight_decay, clip_value, clip_norm } = self;
        let (decay, coupled) =
            if optimizer.is_decoupled() { (weight_decay, 0.0) } else { (0.0, weight_decay) };
        let is_plain = [coupled, clip_value, clip_norm] == [0.0; 3];
        Prepared { is_plain, decay, coupled, clip_value, clip_norm }
    }
}

impl Prepared {
    /// Writes the gradient that the rule shall see.
    #[inline(always)]
    pub(super) fn prepare(&self, value: &[f32], gradient: &[f32], out: &mut [f32]) {
        out.copy_from_slice(gradient);
        if self.clip_value > 0.0 {
            out.iter_mut().for_each(|g| *g = g.clamp(-self.clip_value, self.clip_value));
        }
        if self.clip_norm > 0.0 {
            // In float64: the square of any float32 is finite there.
            let squares = out.iter().map(|&g| f64::from(g) * f64::from(g));
            let norm = squares.sum::<f64>().sqrt();
            if norm > f64::from(self.clip_norm) {
                let scale = (f64::from(self.clip_norm) / norm) as f32;
                out.iter_mut().for_each(|g| *g *= scale);
            }
        }
        if self.coupled > 0.0 {
            out.iter_mut().zip(value).for_each(|(g, x)| *g += self.coupled * x);
        }
    }
}
