//! Numbers of 16 bits on the wire: rounded to the nearest, ties to even, and widened exactly.

use hybridps_wire::Dtype;

/// The upper half of a float32, rounded to nearest even. NaN stays NaN.
#[inline(always)]
fn to_bfloat16(number: f32) -> u16 {
    let bits = number.to_bits();
    if number.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16) as u16
}

/// The smallest float32 that rounds to infinity: half a step beyond the largest float16, 65504.
const FLOAT16_END: f32 = 65520.0;
/// 2^-14, the smallest normal float16.
const FLOAT16_NORMAL: f32 = 6.103_515_6e-5;

/// IEEE 754 binary16, rounded to nearest even; infinity from `FLOAT16_END` on, NaN stays NaN.
#[inline(always)]
fn to_float16(number: f32) -> u16 {
    let bits = number.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let size = number.abs();
    sign | if size.is_nan() {
        0x7e00
    } else if size >= FLOAT16_END {
        0x7c00
    } else if size < FLOAT16_NORMAL {
        // Adding 0.5 leaves the multiple of 2^-24 in the lowest bits, rounded by the addition.
        ((size + 0.5).to_bits() - 0.5_f32.to_bits()) as u16
    } else {
        let size = size.to_bits();
        let rounded = size + 0xfff + (size >> 13 & 1);
        ((rounded - (112 << 23)) >> 13) as u16
    }
}

#[inline(always)]
fn from_float16(half: u16) -> f32 {
    let (sign, size) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7fff));
    let bits = match size {
        // Zero and what is below the smallest normal one: multiples of 2^-24.
        0..0x400 => (size as f32 * f32::from_bits((127 - 24) << 23)).to_bits(),
        0x7c00.. => size << 13 | 0x7f80_0000,
        _ => (size << 13) + (112 << 23),
    };
    f32::from_bits(sign | bits)
}

/// Numbers as they travel.
///
/// # Errors
/// The index of one that float16 does not reach.
pub(crate) fn narrow(dtype: Dtype, numbers: &[f32], narrowed: &mut [u16]) -> Result<(), usize> {
    if dtype == Dtype::Bfloat16 {
        for (to, from) in narrowed.iter_mut().zip(numbers) {
            *to = to_bfloat16(*from);
        }
        return Ok(());
    }
    let mut is_beyond = false;
    for (to, from) in narrowed.iter_mut().zip(numbers) {
        *to = to_float16(*from);
        is_beyond |= from.abs() >= FLOAT16_END;
    }
    if !is_beyond {
        return Ok(());
    }
    Err(numbers.iter().position(|number| number.abs() >= FLOAT16_END).unwrap_or(0))
}

/// What they stood for.
pub(crate) fn widen(dtype: Dtype, narrowed: &[u16], numbers: &mut [f32]) {
    let each = numbers.iter_mut().zip(narrowed);
    match dtype {
        Dtype::Float16 => each.for_each(|(to, from)| *to = from_float16(*from)),
        _ => each.for_each(|(to, from)| *to = f32::from_bits(u32::from(*from) << 16)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a finite half, by the definition of its format.
    fn value(half: u16, exponent_bits: u32) -> f64 {
        let fraction_bits = 15 - exponent_bits;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let exponent = i32::from(half >> fraction_bits & ((1 << exponent_bits) - 1));
        let fraction = f64::from(half & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
        let sign = if half >> 15 == 0 { 1.0 } else { -1.0 };
        match exponent {
            0 => sign * fraction * 2_f64.powi(1 - bias),
            _ => sign * (1.0 + fraction) * 2_f64.powi(exponent - bias),
        }
    }

    fn narrowed(dtype: Dtype, number: f32) -> Result<u16, usize> {
        let mut half = [0];
        narrow(dtype, &[number], &mut half).map(|()| half[0])
    }

    fn widened(dtype: Dtype, half: u16) -> f32 {
        let mut number = [0.0];
        widen(dtype, &[half], &mut number);
        number[0]
    }

    #[test]
    fn every_half_widens_to_its_value_and_comes_back() {
        for (dtype, bits, infinity) in
            [(Dtype::Float16, 5, 0x7c00), (Dtype::Bfloat16, 8, 0x7f80_u16)]
        {
            for half in (0..infinity).chain(0x8000..0x8000 | infinity) {
                let wide = widened(dtype, half);
                assert_eq!(f64::from(wide), value(half, bits), "{dtype:?} {half:#x}");
                assert_eq!(narrowed(dtype, wide), Ok(half), "{dtype:?} {half:#x}");
            }
            assert_eq!(widened(dtype, infinity), f32::INFINITY);
            assert!(widened(dtype, infinity + 1).is_nan());
        }
    }

    #[test]
    fn numbers_between_go_to_the_nearest_and_halfway_to_the_even_one() {
        for (dtype, bits, last) in [(Dtype::Float16, 5, 0x7bff), (Dtype::Bfloat16, 8, 0x7f7f_u16)] {
            for half in 0..last {
                let (low, high) = (value(half, bits), value(half + 1, bits));
                let middle = ((low + high) / 2.0) as f32;
                let even = half + half % 2;
                assert_eq!(narrowed(dtype, middle), Ok(even), "{dtype:?} {half:#x}");
                assert_eq!(narrowed(dtype, -middle), Ok(even | 0x8000), "{dtype:?} {half:#x}");
                let below = f32::from_bits(middle.to_bits() - 1);
                let above = f32::from_bits(middle.to_bits() + 1);
                assert_eq!(narrowed(dtype, below), Ok(half), "{dtype:?} {half:#x}");
                assert_eq!(narrowed(dtype, above), Ok(half + 1), "{dtype:?} {half:#x}");
            }
        }
    }

    #[test]
    fn what_float16_does_not_reach_is_told() {
        assert_eq!(narrowed(Dtype::Float16, 65519.996), Ok(0x7bff));
        let mut halves = [0; 3];
        for beyond in [65520.0, -1e30, f32::INFINITY] {
            assert_eq!(narrow(Dtype::Float16, &[1.0, beyond, 2.0], &mut halves), Err(1));
        }
        assert_eq!(
            narrowed(Dtype::Bfloat16, 1e30),
            Ok(((1e30_f32.to_bits() + 0x7fff) >> 16) as u16)
        );
        let nan = narrowed(Dtype::Bfloat16, f32::from_bits(0x7f80_0001)).unwrap();
        assert!(widened(Dtype::Bfloat16, nan).is_nan(), "no infinity is made of it");
    }
}
