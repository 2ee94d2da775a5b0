//! Sums of squares: eight partial sums in a fixed order, the same bits on every machine and for
//! every width, and it vectorizes.

#[inline(always)]
pub(super) fn sum_of_squares(numbers: &[f32]) -> f32 {
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

/// The Euclidean norm.
#[inline(always)]
pub(super) fn norm(numbers: &[f32]) -> f32 {
    sum_of_squares(numbers).sqrt()
}
