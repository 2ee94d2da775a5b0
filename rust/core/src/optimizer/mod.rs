//! Optimizer rules: pure functions on one row, one file per rule.
//!
//! A rule sees the value, the slots and the summed gradient of one key, in float32. It never
//! fails: what makes a row non-finite is undone by `step`, which keeps the old row.

mod adagrad;
mod adam;
mod row_wise_adagrad;
mod sgd;

use crate::spec::Optimizer;

impl Optimizer {
    /// Fills the slots of a fresh row.
    pub fn initial_slots(&self, slots: &mut [f32]) {
        match *self {
            Self::Adagrad { initial_accumulator, .. }
            | Self::RowWiseAdagrad { initial_accumulator, .. } => slots.fill(initial_accumulator),
            Self::Sgd | Self::Adam { .. } => slots.fill(0.0),
        }
    }

    /// One step of one row (value, then slots) along `gradient`.
    ///
    /// Returns false, leaving the row as it was, when the step would make the row non-finite.
    /// `scratch` holds the old row meanwhile and is at least as long.
    #[inline(always)]
    pub fn step(&self, rate: f32, row: &mut [f32], gradient: &[f32], scratch: &mut [f32]) -> bool {
        let old = &mut scratch[..row.len()];
        old.copy_from_slice(row);
        let (value, slots) = row.split_at_mut(gradient.len());
        match *self {
            Self::Sgd => sgd::step(rate, value, gradient),
            Self::Adagrad { eps, .. } => adagrad::step(rate, eps, value, slots, gradient),
            Self::RowWiseAdagrad { eps, .. } => {
                row_wise_adagrad::step(rate, eps, value, slots, gradient);
            }
            Self::Adam { beta1, beta2, eps } => {
                adam::step(rate, [beta1, beta2], eps, value, slots, gradient);
            }
        }
        let finite = are_finite(row);
        if !finite {
            row.copy_from_slice(old);
        }
        finite
    }
}

crate::prefetch::vectorized! {
    /// True if every number is finite.
    pub fn is_finite(numbers: &[f32]) -> bool {
        are_finite(numbers)
    }
}

/// One pass of integer maxima, which vectorizes.
#[inline(always)]
fn are_finite(numbers: &[f32]) -> bool {
    const INFINITY_BITS: u32 = 0x7f80_0000;
    let worst = numbers.iter().fold(0, |worst: u32, x| worst.max(x.to_bits() & 0x7fff_ffff));
    worst < INFINITY_BITS
}
