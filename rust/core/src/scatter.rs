//! The arithmetic of `scatter`: what an operand does to the value of a row. Float32, column by
//! column, the operands of a key one after the other; optimizer slots are never touched.

use crate::optimizer::is_finite;

/// What a `scatter` does with its operands. (Setting values is `assign`.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// value + operand
    Add,
    /// value - operand
    Sub,
    /// value * operand
    Mul,
    /// value / operand; an operand of 0 is refused.
    Div,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
}

impl Operation {
    /// All, in the order of their numbers in the schema and in the journal.
    pub const ALL: [Self; 6] = [Self::Add, Self::Sub, Self::Mul, Self::Div, Self::Min, Self::Max];

    /// Its name in the schema.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Min => "min",
            Self::Max => "max",
        }
    }

    /// Its number in the schema and in the journal.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// By its number; `None` for one of the future.
    pub fn of(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    fn apply(self, value: &mut [f32], operand: &[f32]) {
        let each = value.iter_mut().zip(operand);
        match self {
            Self::Add => each.for_each(|(x, &y)| *x += y),
            Self::Sub => each.for_each(|(x, &y)| *x -= y),
            Self::Mul => each.for_each(|(x, &y)| *x *= y),
            Self::Div => each.for_each(|(x, &y)| *x /= y),
            Self::Min => each.for_each(|(x, &y)| *x = if y < *x { y } else { *x }),
            Self::Max => each.for_each(|(x, &y)| *x = if y > *x { y } else { *x }),
        }
    }
}

/// Applies the operands of a row, float32[n, columns] in their order, to its value. Returns false,
/// leaving the value as it was, if it would not stay finite.
pub(crate) fn scatter(
    operation: Operation,
    value: &mut [f32],
    operands: &[f32],
    scratch: &mut [f32],
) -> bool {
    let new = &mut scratch[..value.len()];
    new.copy_from_slice(value);
    for operand in operands.chunks_exact(value.len()) {
        operation.apply(new, operand);
    }
    // What has overflowed on the way stays infinite or becomes NaN: operands are finite.
    let stays_finite = is_finite(new);
    if stays_finite {
        value.copy_from_slice(new);
    }
    stays_finite
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_applied_one_after_the_other() {
        let cases = [
            (Operation::Add, [3.0 + 5.0 + 2.0, -1.0 + 4.0 - 8.0]),
            (Operation::Sub, [3.0 - 5.0 - 2.0, -1.0 - 4.0 + 8.0]),
            (Operation::Mul, [3.0 * 5.0 * 2.0, 4.0 * 8.0]),
            (Operation::Div, [3.0 / 5.0 / 2.0, -1.0 / 4.0 / -8.0]),
            (Operation::Min, [2.0, -8.0]),
            (Operation::Max, [5.0, 4.0]),
        ];
        for (operation, expected) in cases {
            let mut value = [3.0, -1.0];
            assert!(scatter(operation, &mut value, &[5.0, 4.0, 2.0, -8.0], &mut [0.0; 4]));
            assert_eq!(value, expected, "{operation:?}");
        }
    }

    #[test]
    fn a_value_that_would_not_stay_finite_stays_as_it_was() {
        let cases = [
            (Operation::Add, [f32::MAX, f32::MAX]),
            // Infinite after the first operand, NaN after the second.
            (Operation::Mul, [f32::MAX, 0.0]),
            (Operation::Div, [f32::MIN_POSITIVE, 1.0]),
        ];
        for (operation, [first, second]) in cases {
            let mut value = [1.0, f32::MAX];
            let operands = [1.0, first, 1.0, second];
            assert!(!scatter(operation, &mut value, &operands, &mut [0.0; 2]), "{operation:?}");
            assert_eq!(value, [1.0, f32::MAX]);
        }
    }

    #[test]
    fn numbers_and_names_are_those_of_the_schema() {
        let schema = include_str!("../../../schemas/hybridps.capnp");
        let (_, listed) = schema.split_once("enum Scatter {").unwrap();
        let (listed, _) = listed.split_once('}').unwrap();
        for operation in Operation::ALL {
            let entry = format!("{} @{};", operation.name(), operation.number());
            assert!(listed.contains(&entry), "{entry}");
            assert_eq!(Operation::of(operation.number()), Some(operation));
        }
        assert_eq!(listed.matches('@').count(), Operation::ALL.len());
        assert_eq!(Operation::of(Operation::ALL.len() as u16), None);
    }
}
