//! Row-wise Adagrad as fbgemm's exact row-wise rule: one accumulator, the mean of squares.

#[inline(always)]
pub(super) fn step(rate: f32, eps: f32, value: &mut [f32], sums: &mut [f32], gradient: &[f32]) {
    sums[0] += sum_of_squares(gradient) / gradient.len() as f32;
    let scale = rate / (sums[0].sqrt() + eps);
    for (x, g) in value.iter_mut().zip(gradient) {
        *x -= scale * g;
    }
}

/// Eight partial sums in a fixed order: the same bits on every machine, and it vectorizes.
fn sum_of_squares(numbers: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    let whole = numbers.chunks_exact(8);
    let rest = whole.remainder();
    for chunk in whole {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += x * x;
    }
    sums.iter().sum()
}
