//! What the rules of Adam's family share: two moving averages, and the step count of a row by which
//! their bias is corrected.
//!
//! The count is a u32 in the bits of the last float32 of the row.

/// How far the averages of a row are from being unbiased.
#[derive(Clone, Copy)]
pub(super) struct Moments {
    /// 1 - beta1^steps, 1 - beta2^steps.
    pub(super) corrections: [f64; 2],
    pub(super) steps: u32,
    rest1: f32,
    keep2: f32,
    rest2: f32,
}

/// Beyond this count both corrections are 1 for any usable beta; the bits stay a finite float.
const STEPS_MAX: u32 = 0x7f7f_ffff;

impl Moments {
    /// Counts one step: `row` ends with the count, and `new` will.
    #[inline(always)]
    pub(super) fn count(betas: [f64; 2], row: &[f32], new: &mut [f32]) -> Self {
        let last = row.len() - 1;
        let steps = row[last].to_bits().saturating_add(1).min(STEPS_MAX);
        new[last] = f32::from_bits(steps);
        Self {
            corrections: betas.map(|beta| 1.0 - power(beta, steps)),
            steps,
            rest1: (1.0 - betas[0]) as f32,
            keep2: betas[1] as f32,
            rest2: (1.0 - betas[1]) as f32,
        }
    }

    /// The average of gradients.
    #[inline(always)]
    pub(super) fn first(&self, m: f32, g: f32) -> f32 {
        m + self.rest1 * (g - m)
    }

    /// The average of squares of `g`.
    #[inline(always)]
    pub(super) fn second(&self, v: f32, g: f32) -> f32 {
        self.keep2 * v + self.rest2 * (g * g)
    }

    /// The rate that corrects the first average, too.
    #[inline(always)]
    pub(super) fn rate(&self, rate: f32) -> f32 {
        (f64::from(rate) / self.corrections[0]) as f32
    }

    /// By which the root of the second average is divided.
    #[inline(always)]
    pub(super) fn root(&self) -> f32 {
        self.corrections[1].sqrt() as f32
    }
}

/// base^n by squaring: no libm, so equal on every machine.
#[inline(always)]
pub(super) fn power(base: f64, n: u32) -> f64 {
    let (mut result, mut square, mut n) = (1.0, base, n);
    while n > 0 {
        if n & 1 == 1 {
            result *= square;
        }
        square *= square;
        n >>= 1;
    }
    result
}
