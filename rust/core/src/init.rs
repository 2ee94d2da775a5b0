//! Initial rows: a pure function of (seed, key, initializer), bit-equal on every machine.
//!
//! Only additions, multiplications, divisions and square roots of IEEE 754, in a fixed order: no
//! libm, no fused multiply-add. Column i draws the i-th number of a SplitMix64 stream whose start
//! mixes seed and key (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
//! 2014). Normal numbers are Acklam's rational approximation of the inverse normal distribution
//! (relative error below 1.2e-9), so a column costs one draw and nothing is rejected.

use crate::spec::Initializer;
use crate::types::hash;

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// Standard normal mass below -2: where `TruncatedNormal` is cut.
const BELOW_MINUS_2: f64 = 0.022_750_131_948_179_21;

/// Writes the initial value of `key` to `row`.
pub fn initial_row(initializer: &Initializer, seed: u64, key: u64, row: &mut [f32]) {
    let start = hash(key ^ hash(seed ^ GAMMA));
    match *initializer {
        Initializer::Zeros => row.fill(0.0),
        Initializer::Constant { value } => row.fill(value),
        Initializer::Uniform { low, high } => {
            let span = high - low;
            fill(row, start, |draw| low + span * ((draw >> 40) as f32 / (1 << 24) as f32));
        }
        Initializer::Normal { mean, std } => {
            fill(row, start, |draw| mean + std * inverse_normal(unit(draw)) as f32);
        }
        Initializer::TruncatedNormal { mean, std } => {
            let span = 1.0 - 2.0 * BELOW_MINUS_2;
            fill(row, start, |draw| {
                mean + std * inverse_normal(BELOW_MINUS_2 + span * unit(draw)) as f32
            });
        }
    }
}

fn fill(row: &mut [f32], start: u64, number: impl Fn(u64) -> f32) {
    let mut state = start;
    for x in row {
        state = state.wrapping_add(GAMMA);
        *x = number(split_mix(state));
    }
}

fn split_mix(state: u64) -> u64 {
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The middle of one of 2^52 equal cells of (0, 1): never 0, never 1.
fn unit(draw: u64) -> f64 {
    ((draw >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

/// x with P(N < x) = p, for 0 < p < 1.
fn inverse_normal(p: f64) -> f64 {
    const TAIL: f64 = 0.02425;
    if p < TAIL {
        tail(p)
    } else if p > 1.0 - TAIL {
        -tail(1.0 - p)
    } else {
        centre(p - 0.5)
    }
}

fn centre(q: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e+01,
        2.209460984245205e+02,
        -2.759285104469687e+02,
        1.38357751867269e2,
        -3.066479806614716e+01,
        2.506628277459239e+00,
    ];
    const B: [f64; 6] = [
        -5.447609879822406e+01,
        1.615858368580409e+02,
        -1.556989798598866e+02,
        6.680131188771972e+01,
        -1.328068155288572e+01,
        1.0,
    ];
    let r = q * q;
    polynomial(&A, r) * q / polynomial(&B, r)
}

fn tail(p: f64) -> f64 {
    const C: [f64; 6] = [
        -7.784894002430293e-03,
        -3.223964580411365e-01,
        -2.400758277161838e+00,
        -2.549732539343734e+00,
        4.374664141464968e+00,
        2.938163982698783e+00,
    ];
    const D: [f64; 5] = [
        7.784695709041462e-03,
        3.224671290700398e-01,
        2.445134137142996e+00,
        3.754408661907416e+00,
        1.0,
    ];
    let q = (-2.0 * natural_log(p)).sqrt();
    polynomial(&C, q) / polynomial(&D, q)
}

fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}

/// ln of a normal positive number: exponent apart, then the atanh series, which at
/// |z| <= 0.172 is exact to double precision after 12 terms.
fn natural_log(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64) - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let square = z * z;
    let series = (0..12).rev().fold(0.0, |sum, n| sum * square + 1.0 / (2 * n + 1) as f64);
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * z * series
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(initializer: Initializer, key: u64, dim: usize) -> Vec<f32> {
        let mut row = vec![0.0; dim];
        initial_row(&initializer, 7, key, &mut row);
        row
    }

    #[test]
    fn log_agrees_with_libm() {
        for x in [1e-300, 1e-9, 0.02, 0.5, 0.999, 1.0, 1.41, 1.42, 3.0, 1e12] {
            let error = (natural_log(x) - f64::ln(x)).abs();
            assert!(error <= 1e-15 * f64::ln(x).abs() + 1e-15, "{x}");
        }
    }

    #[test]
    fn moments_are_right() {
        let n = 200_000;
        let x = row(Initializer::Normal { mean: 1.0, std: 2.0 }, 5, n);
        let mean = x.iter().map(|&x| x as f64).sum::<f64>() / n as f64;
        let variance = x.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() < 0.02 && (variance - 4.0).abs() < 0.06);
        let beyond = x.iter().filter(|&&x| (x - 1.0).abs() > 6.0).count() as f64 / n as f64;
        assert!((beyond - 0.0027).abs() < 0.0006, "{beyond}");
        let cut = row(Initializer::TruncatedNormal { mean: 0.0, std: 1.0 }, 5, n);
        assert!(cut.iter().all(|x| x.abs() <= 2.0));
    }

    #[test]
    fn bits_are_frozen() {
        let x = row(Initializer::Normal { mean: 0.0, std: 0.01 }, 42, 2);
        let y = row(Initializer::Uniform { low: -1.0, high: 1.0 }, 42, 2);
        let bits: Vec<u32> = x.iter().chain(&y).map(|x| x.to_bits()).collect();
        assert_eq!(bits, FROZEN);
    }
    const FROZEN: [u32; 4] = [3141732478, 1002230588, 3194985192, 1054802120];
}
