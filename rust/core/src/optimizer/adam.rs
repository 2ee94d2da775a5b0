//! Adam as torch.optim.Adam, with each row's own step count for the bias correction.
//!
//! Slots: first moment[dim], second moment[dim], step count (a u32 kept in the bits of a float32).

#[inline(always)]
pub(super) fn step(
    rate: f32,
    betas: [f64; 2],
    eps: f32,
    value: &mut [f32],
    slots: &mut [f32],
    gradient: &[f32],
) {
    let dim = value.len();
    let (first, rest) = slots.split_at_mut(dim);
    let (second, count) = rest.split_at_mut(dim);
    let steps = count[0].to_bits().saturating_add(1).min(STEPS_MAX);
    count[0] = f32::from_bits(steps);
    let step_size = (f64::from(rate) / (1.0 - power(betas[0], steps))) as f32;
    let root = (1.0 - power(betas[1], steps)).sqrt() as f32;
    let rest1 = (1.0 - betas[0]) as f32;
    let keep2 = betas[1] as f32;
    let rest2 = (1.0 - betas[1]) as f32;
    for (((x, m), v), g) in value.iter_mut().zip(first).zip(second).zip(gradient) {
        *m += rest1 * (g - *m);
        *v = keep2 * *v + rest2 * (g * g);
        *x -= step_size * (*m / (v.sqrt() / root + eps));
    }
}

/// Beyond this count both corrections are 1 for any usable beta; the bits stay a finite float.
const STEPS_MAX: u32 = 0x7f7f_ffff;

/// base^n by squaring: no libm, so equal on every machine.
fn power(base: f64, n: u32) -> f64 {
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
