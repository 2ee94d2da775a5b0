//! Goal: a rule gives the same bits whatever the compiler knew of the width, and a row that would
//! not stay finite stays as it was. Method: all rules, random rows, every number in range.

use proptest::prelude::*;

use super::*;

fn all() -> Vec<Optimizer> {
    let (beta1, beta2, eps) = (0.9, 0.99, 1e-8);
    let (initial_accumulator, l1, l2, l21) = (0.1, 0.01, 0.02, 0.05);
    vec![
        Optimizer::Sgd,
        Optimizer::Momentum { momentum: 0.9, nesterov: false },
        Optimizer::Momentum { momentum: 0.5, nesterov: true },
        Optimizer::Adagrad { initial_accumulator, eps },
        Optimizer::RowWiseAdagrad { initial_accumulator, eps },
        Optimizer::RmsProp { alpha: 0.9, eps },
        Optimizer::Adam { beta1, beta2, eps },
        Optimizer::AdamW { beta1, beta2, eps },
        Optimizer::AmsGrad { beta1, beta2, eps },
        Optimizer::AdaBelief { beta1, beta2, eps },
        Optimizer::RAdam { beta1, beta2, eps },
        Optimizer::Lamb { beta1, beta2, eps },
        Optimizer::Ftrl { initial_accumulator, l1, l2 },
        Optimizer::SparseGroupFtrl { initial_accumulator, l1, l2, l21 },
        Optimizer::GroupAdam { beta1, beta2, eps, l1, l2, l21 },
    ]
}

/// The same step by a loop of known width, compiled for what the processor has.
struct Known<'a> {
    options: Prepared,
    row: &'a mut [f32],
    gradient: &'a [f32],
}

impl With for Known<'_> {
    type Output = bool;

    fn with<K: Kernel>(self, kernel: K) -> bool {
        let mut scratch = vec![f32::NAN; self.row.len() + 16];
        wide(kernel, &self.options, self.row, self.gradient, &mut scratch)
    }
}

crate::prefetch::vectorized! {
    fn wide<K: Kernel>(
        kernel: K,
        options: &Prepared,
        row: &mut [f32],
        gradient: &[f32],
        scratch: &mut [f32],
    ) -> bool {
        step::<K, 16>(kernel, options, row, gradient, scratch)
    }
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #[test]
    fn widths_change_no_bit(
        gradients in prop::collection::vec(prop::array::uniform16(-3.0_f32..3.0), 1..20),
        decay in prop_oneof![Just(0.0_f32), 0.0..0.1_f32],
        clip_norm in prop_oneof![Just(0.0_f32), 0.5..2.0_f32],
    ) {
        let options = GradientOptions { weight_decay: decay, clip_value: decay * 20.0, clip_norm };
        for optimizer in all() {
            let mut row = vec![0.25; 16 + optimizer.slots(16)];
            optimizer.initial_slots(&mut row[16..]);
            let mut other = row.clone();
            let mut scratch = vec![0.0; row.len() + 16];
            for gradient in &gradients {
                prop_assert!(optimizer.step(0.05, &options, &mut row, gradient, &mut scratch));
                let options = options.of(&optimizer);
                let known = Known { options, row: &mut other, gradient };
                prop_assert!(optimizer.with(0.05, options.decay, known));
            }
            prop_assert_eq!(bits(&row), bits(&other), "{:?}", optimizer);
        }
    }
}

/// Also where only the last column, or only a slot, is not finite.
#[test]
fn a_row_that_would_not_stay_finite_stays_as_it_was() {
    for optimizer in all() {
        for dim in [1, 16, 17] {
            let mut row = vec![0.5; dim + optimizer.slots(dim)];
            optimizer.initial_slots(&mut row[dim..]);
            let mut scratch = vec![0.0; row.len() + dim];
            let plain = GradientOptions::default();
            let mut ones = vec![1.0; dim];
            assert!(optimizer.step(0.1, &plain, &mut row, &ones, &mut scratch));
            let before = bits(&row);
            ones[dim - 1] = f32::MAX;
            let stepped = optimizer.step(f32::MAX, &plain, &mut row, &ones, &mut scratch);
            assert!(row.iter().all(|x| x.is_finite()), "{optimizer:?}");
            assert!(stepped || bits(&row) == before, "{optimizer:?}");
            let overflows = !matches!(optimizer, Optimizer::RAdam { .. } | Optimizer::Lamb { .. });
            assert!(!stepped || !overflows, "{optimizer:?}, dim {dim}: it should overflow");
            // What is clipped is applied.
            let clipped = GradientOptions { clip_norm: 1.0, ..plain };
            assert!(optimizer.step(0.1, &clipped, &mut row, &ones, &mut scratch), "{optimizer:?}");
        }
    }
}

#[test]
fn gradients_are_clipped_then_decay_is_added() {
    let options = GradientOptions { weight_decay: 0.5, clip_value: 3.0, clip_norm: 2.5 };
    let (mut out, value) = ([0.0; 2], [2.0, -2.0]);
    options.of(&Optimizer::Sgd).prepare(&value, &[30.0, -4.0], &mut out);
    let scale = (2.5 / 18.0_f64.sqrt()) as f32;
    assert_eq!(out, [3.0 * scale + 1.0, -3.0 * scale - 1.0]);
    let decoupled = Optimizer::AdamW { beta1: 0.9, beta2: 0.9, eps: 0.0 };
    options.of(&decoupled).prepare(&value, &[1.0, 1.0], &mut out);
    assert_eq!((out, options.of(&decoupled).decay), ([1.0, 1.0], 0.5));
}

#[test]
fn thresholds_leave_zero_and_no_sign_of_it() {
    assert_eq!([ftrl::shrink(0.5, 0.2), ftrl::shrink(-0.5, 0.2)], [0.3, -0.3]);
    assert_eq!(ftrl::shrink(-0.1, 0.2).to_bits(), 0);
    assert_eq!(ftrl::value(0.0, 0.0).to_bits(), 0);
    assert_eq!([ftrl::share_left(0.0, 0.0), ftrl::share_left(2.0, 0.5)], [0.0, 0.75]);
}
