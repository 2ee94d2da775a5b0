//! Optimizer rules: pure functions on one row, one file a rule.
//!
//! A rule sees the value, the slots and the summed gradient of one key, in float32, and writes what
//! they become beside them; only a row that stays finite is put in the old one's place. Arithmetic
//! is plain IEEE: additions in a fixed order, square roots and divisions that every machine rounds
//! alike, no fused multiply-add, nothing of libm. So a rule gives the same bits on any machine, for
//! any width that the compiler was told.

mod ada_belief;
mod adagrad;
mod adam;
mod adam_w;
mod ams_grad;
mod ftrl;
mod gradient;
mod group_adam;
mod lamb;
mod moments;
mod momentum;
mod norm;
mod r_adam;
mod rms_prop;
mod row_wise_adagrad;
mod sgd;
#[cfg(test)]
mod tests;

pub use self::gradient::GradientOptions;
pub(crate) use self::gradient::Prepared;
use crate::spec::Optimizer;

/// A rule with the settings of one call.
pub(crate) trait Kernel: Copy {
    /// Slots of each column, and further ones of the row.
    const SLOTS: [usize; 2];

    /// Writes the row after one step along `gradient` to `new`, which is as long as `row`. Returns
    /// whether it is finite. A row has N columns (0: as many as the gradient).
    fn step<const N: usize>(&self, row: &[f32], gradient: &[f32], new: &mut [f32]) -> bool;
}

/// A rule that treats each column alone, with K slots for each.
trait Lane<const K: usize> {
    /// Value and slots of a column after one step.
    fn lane(&self, x: f32, slots: [f32; K], g: f32) -> (f32, [f32; K]);
}

/// What is done with a kernel, whichever it is.
pub(crate) trait With {
    type Output;

    fn with<K: Kernel>(self, kernel: K) -> Self::Output;
}

impl Optimizer {
    /// Float32 slots that one row of `dim` columns carries beside its value.
    pub fn slots(&self, dim: usize) -> usize {
        self.with(0.0, 0.0, Slots { dim })
    }

    /// Fills the slots of a fresh row.
    pub fn initial_slots(&self, slots: &mut [f32]) {
        slots.fill(0.0);
        match *self {
            Self::Adagrad { initial_accumulator, .. }
            | Self::RowWiseAdagrad { initial_accumulator, .. } => slots.fill(initial_accumulator),
            Self::Ftrl { initial_accumulator, .. }
            | Self::SparseGroupFtrl { initial_accumulator, .. } => {
                let dim = slots.len() / 2;
                slots[..dim].fill(initial_accumulator);
            }
            _ => {}
        }
    }

    /// Whether the rule takes weight decay for itself, and not as a part of the gradient.
    pub(crate) fn is_decoupled(&self) -> bool {
        matches!(self, Self::AdamW { .. } | Self::Lamb { .. })
    }

    /// Does `work` with the kernel of this rule.
    #[inline(always)]
    pub(crate) fn with<W: With>(&self, rate: f32, decay: f32, work: W) -> W::Output {
        match *self {
            Self::Sgd => work.with(sgd::Sgd { rate }),
            Self::Momentum { momentum, nesterov } => {
                work.with(momentum::Momentum { rate, momentum, nesterov })
            }
            Self::Adagrad { eps, .. } => work.with(adagrad::Adagrad { rate, eps }),
            Self::RowWiseAdagrad { eps, .. } => {
                work.with(row_wise_adagrad::RowWiseAdagrad { rate, eps })
            }
            Self::Adam { beta1, beta2, eps } => {
                work.with(adam::Adam { rate, betas: [beta1, beta2], eps })
            }
            Self::AdamW { beta1, beta2, eps } => {
                work.with(adam_w::AdamW { rate, betas: [beta1, beta2], eps, decay })
            }
            Self::AmsGrad { beta1, beta2, eps } => {
                work.with(ams_grad::AmsGrad { rate, betas: [beta1, beta2], eps })
            }
            Self::RmsProp { alpha, eps } => work.with(rms_prop::RmsProp::new(rate, alpha, eps)),
            Self::Ftrl { l1, l2, .. } => work.with(ftrl::Ftrl { rate, l1, l2 }),
            Self::SparseGroupFtrl { l1, l2, l21, .. } => {
                work.with(ftrl::SparseGroupFtrl { lane: ftrl::Ftrl { rate, l1, l2 }, l21 })
            }
            Self::AdaBelief { beta1, beta2, eps } => {
                work.with(ada_belief::AdaBelief { rate, betas: [beta1, beta2], eps })
            }
            Self::RAdam { beta1, beta2, eps } => {
                work.with(r_adam::RAdam { rate, betas: [beta1, beta2], eps })
            }
            Self::Lamb { beta1, beta2, eps } => {
                work.with(lamb::Lamb { rate, betas: [beta1, beta2], eps, decay })
            }
            Self::GroupAdam { beta1, beta2, eps, l1, l2, l21 } => {
                let group = [l1, l2, l21];
                work.with(group_adam::GroupAdam { rate, betas: [beta1, beta2], eps, group })
            }
        }
    }

    /// One step of one row (value, then slots) along `gradient`.
    ///
    /// Returns false, leaving the row as it was, when the step would make the row non-finite.
    /// `scratch` is at least as long as the row and the gradient together.
    pub fn step(
        &self,
        rate: f32,
        options: &GradientOptions,
        row: &mut [f32],
        gradient: &[f32],
        scratch: &mut [f32],
    ) -> bool {
        self.step_one(rate, options.of(self), row, gradient, scratch)
    }

    pub(crate) fn step_one(
        &self,
        rate: f32,
        options: Prepared,
        row: &mut [f32],
        gradient: &[f32],
        scratch: &mut [f32],
    ) -> bool {
        self.with(rate, options.decay, One { options, row, gradient, scratch })
    }
}

struct Slots {
    dim: usize,
}

impl With for Slots {
    type Output = usize;

    fn with<K: Kernel>(self, _: K) -> usize {
        K::SLOTS[0] * self.dim + K::SLOTS[1]
    }
}

/// A step of one row.
struct One<'a> {
    options: Prepared,
    row: &'a mut [f32],
    gradient: &'a [f32],
    scratch: &'a mut [f32],
}

impl With for One<'_> {
    type Output = bool;

    fn with<K: Kernel>(self, kernel: K) -> bool {
        step::<K, 0>(kernel, &self.options, self.row, self.gradient, self.scratch)
    }
}

/// As `Optimizer::step`, of a row of N columns (0: of any number).
#[inline(always)]
pub(crate) fn step<K: Kernel, const N: usize>(
    kernel: K,
    options: &Prepared,
    row: &mut [f32],
    gradient: &[f32],
    scratch: &mut [f32],
) -> bool {
    let dim = width::<N>(gradient);
    // Lengths that the compiler knows become plain vector moves.
    let row = &mut row[..dim + K::SLOTS[0] * dim + K::SLOTS[1]];
    let (new, rest) = scratch.split_at_mut(row.len());
    let is_finite = if options.is_plain {
        kernel.step::<N>(row, gradient, new)
    } else {
        let prepared = &mut rest[..dim];
        options.prepare(&row[..dim], gradient, prepared);
        kernel.step::<N>(row, prepared, new)
    };
    if is_finite {
        row.copy_from_slice(new);
    }
    is_finite
}

/// Columns of a row, a number that the compiler knows if N is not 0.
#[inline(always)]
fn width<const N: usize>(gradient: &[f32]) -> usize {
    if N > 0 {
        N
    } else {
        gradient.len()
    }
}

/// The first K columns-long parts of a row, and what follows them. (No closures in here and in
/// `lanes`: one that is left outside of the loop is called column by column, without vectors.)
#[inline(always)]
fn parts<const K: usize>(row: &[f32], dim: usize) -> ([&[f32]; K], &[f32]) {
    let (mut parts, mut rest) = ([&[][..]; K], row);
    for part in &mut parts {
        (*part, rest) = rest.split_at(dim);
    }
    (parts, rest)
}

#[inline(always)]
fn parts_mut<const K: usize>(row: &mut [f32], dim: usize) -> ([&mut [f32]; K], &mut [f32]) {
    let (mut parts, mut rest) = ([(); K].map(|()| Default::default()), row);
    for part in &mut parts {
        (*part, rest) = std::mem::take(&mut rest).split_at_mut(dim);
    }
    (parts, rest)
}

/// Steps all columns of a rule; returns whether all that was written is finite.
#[inline(always)]
fn lanes<const K: usize, const N: usize>(
    rule: &impl Lane<K>,
    row: &[f32],
    gradient: &[f32],
    new: &mut [f32],
) -> bool {
    let dim = width::<N>(gradient);
    let (gradient, (value, slots)) = (&gradient[..dim], row.split_at(dim));
    let (old, _) = parts::<K>(slots, dim);
    let (new_value, new_slots) = new.split_at_mut(dim);
    let (new_slots, _) = parts_mut::<K>(new_slots, dim);
    let mut worst = 0;
    for i in 0..dim {
        let mut slots = [0.0; K];
        for k in 0..K {
            slots[k] = old[k][i];
        }
        let (x, slots) = rule.lane(value[i], slots, gradient[i]);
        new_value[i] = x;
        worst = magnitude(x).max(worst);
        for k in 0..K {
            new_slots[k][i] = slots[k];
            worst = magnitude(slots[k]).max(worst);
        }
    }
    worst < INFINITY_BITS
}

pub(crate) const INFINITY_BITS: u32 = 0x7f80_0000;

/// Grows with the distance from 0; infinity and NaN are at or above `INFINITY_BITS`.
#[inline(always)]
pub(crate) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
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
    numbers.iter().fold(0, |worst: u32, &x| worst.max(magnitude(x))) < INFINITY_BITS
}
