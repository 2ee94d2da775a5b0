//! Adagrad as torch.optim.Adagrad with a sparse gradient: eps outside the root.

#[inline(always)]
pub(super) fn step(rate: f32, eps: f32, value: &mut [f32], sums: &mut [f32], gradient: &[f32]) {
    for ((x, sum), g) in value.iter_mut().zip(sums).zip(gradient) {
        *sum += g * g;
        *x -= rate * (g / (sum.sqrt() + eps));
    }
}
