//! Plain gradient descent.

#[inline(always)]
pub(super) fn step(rate: f32, value: &mut [f32], gradient: &[f32]) {
    for (x, g) in value.iter_mut().zip(gradient) {
        *x -= rate * g;
    }
}
