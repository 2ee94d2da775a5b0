//! Which rows a table gives up by itself: the rule of its spec, and the judgement of one row.
//!
//! A judgement is fixed when a walk over the table begins, from what the clocks say then, so it is
//! the same for every row, wherever the row lies. It errs on one side: a row may stay longer.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sequence::call_of;
use crate::types::Sequence;

/// Longest age, in seconds: a century.
const SECONDS_MAX: u64 = 36_525 * 86_400;
/// Most steps: far beyond any run, and well within what steps are counted in.
const STEPS_MAX: u64 = 1 << 62;

/// When rows of a table go by themselves. Live.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs, reason = "fields carry the names of the public API")]
pub enum Expiry {
    /// Not seen in training for so many seconds: neither read by it, nor pushed, nor assigned.
    After { seconds: u64 },
    /// Neither pushed nor assigned for so many steps.
    AfterSteps { steps: u64 },
    /// The Euclidean norm of the value is below this, when a walk comes by.
    BelowNorm { norm: f32 },
}

impl Expiry {
    pub(crate) fn check(&self) -> Result<()> {
        let (name, value, most) = match *self {
            Self::After { seconds } => ("seconds", seconds, SECONDS_MAX),
            Self::AfterSteps { steps } => ("steps", steps, STEPS_MAX),
            Self::BelowNorm { norm } if norm.is_finite() && norm > 0.0 => return Ok(()),
            Self::BelowNorm { norm } => {
                let text = format!("expiry: norm is {norm}; give a finite number above 0");
                return Err(Error::bad_input(text));
            }
        };
        if (1..=most).contains(&value) {
            return Ok(());
        }
        Err(Error::bad_input(format!("expiry: {name} is {value}; give 1 to {most}")))
    }
}

/// What is decided about every row of a walk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Judgement {
    /// Rows go that were last seen at this second or before. One that has no stamp counts as seen
    /// at `unstamped`.
    Seen { until: u64, unstamped: u64 },
    /// Rows go whose last change is older than this one.
    Changed { before: Sequence },
    /// Rows go whose value is shorter, unless nothing has changed them since a read made them.
    Short { norm: f64 },
}

impl Judgement {
    /// Whether a row is to go.
    pub(crate) fn is_due(&self, last_seen: u32, sequence: Sequence, value: &[f32]) -> bool {
        match *self {
            Self::Seen { until, unstamped } if last_seen == 0 => unstamped <= until,
            Self::Seen { until, .. } => u64::from(last_seen) <= until,
            Self::Changed { before } => sequence < before,
            Self::Short { norm: bound } => call_of(sequence) == sequence && norm(value) < bound,
        }
    }
}

/// Euclidean length of a value, summed in float64.
pub(crate) fn norm(value: &[f32]) -> f64 {
    value.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::next_call;

    #[test]
    fn ranges() {
        for (expiry, text) in [
            (Expiry::After { seconds: 0 }, "seconds is 0; give 1 to 3155760000"),
            (Expiry::After { seconds: SECONDS_MAX + 1 }, "seconds is 3155760001"),
            (Expiry::AfterSteps { steps: 0 }, "steps is 0; give 1 to"),
            (Expiry::BelowNorm { norm: 0.0 }, "norm is 0; give a finite number above 0"),
            (Expiry::BelowNorm { norm: f32::NAN }, "norm is NaN"),
        ] {
            let error = expiry.check().expect_err(text);
            assert!(error.message.contains(text), "{}", error.message);
        }
        for expiry in [
            Expiry::After { seconds: 1 },
            Expiry::AfterSteps { steps: STEPS_MAX },
            Expiry::BelowNorm { norm: 1e-30 },
        ] {
            expiry.check().expect("it is in range");
        }
    }

    #[test]
    fn a_row_without_a_stamp_expires_too() {
        let seen = Judgement::Seen { until: 1000, unstamped: 900 };
        let is_due = |last_seen| seen.is_due(last_seen, 0, &[]);
        assert!(is_due(1) && is_due(1000) && !is_due(1001) && is_due(0));
        assert!(!Judgement::Seen { until: 899, unstamped: 900 }.is_due(0, 0, &[]));
    }

    #[test]
    fn short_rows_go_once_they_were_changed() {
        let short = Judgement::Short { norm: 5.0 };
        let (call, made) = (next_call(0), next_call(0) + 3);
        assert!(short.is_due(0, call, &[3.0, 3.9]));
        assert!(!short.is_due(0, call, &[3.0, 4.0]), "it is not below");
        assert!(!short.is_due(0, made, &[0.0, 0.0]), "it was never trained");
    }
}
