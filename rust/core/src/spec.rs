//! What a table is: its shape, its live settings, and which of two specs may share one table.
//!
//! Shape (dim, dtype, optimizer class and the settings that fill its slots, initializer, seed) is
//! fixed at creation, and opening a table with another shape is refused. Of all else the stored
//! value wins; learning rate and caps may be altered. The serde form is the manifest's.

use serde::{Deserialize, Serialize};

use crate::admission::Admission;
use crate::error::{Error, Result};
use crate::expiry::Expiry;
use crate::layout::Layout;
use crate::optimizer::GradientOptions;

/// Most columns a row may have.
pub(crate) const DIM_MAX: u32 = 4096;
/// Most numbers of a row, value and slots: its record then fits the longest read.
const ROW_FLOATS_MAX: usize = 16_368;
/// Smallest byte cap that a table may be given.
pub(crate) const TABLE_DRAM_MIN: u64 = 1 << 20;

/// Optimizer of a table, without its learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs, reason = "fields carry the names of the public API")]
pub enum Optimizer {
    /// Plain gradient descent.
    Sgd,
    /// torch.optim.Adagrad.
    Adagrad { initial_accumulator: f32, eps: f32 },
    /// One accumulator a row: the mean of squares (fbgemm).
    RowWiseAdagrad { initial_accumulator: f32, eps: f32 },
    /// torch.optim.Adam with a step count per row.
    Adam { beta1: f64, beta2: f64, eps: f32 },
    /// torch.optim.SGD with momentum.
    Momentum { momentum: f32, nesterov: bool },
    /// torch.optim.AdamW with a step count per row.
    AdamW { beta1: f64, beta2: f64, eps: f32 },
    /// torch.optim.Adam with amsgrad and a step count per row.
    AmsGrad { beta1: f64, beta2: f64, eps: f32 },
    /// torch.optim.RMSprop.
    RmsProp { alpha: f64, eps: f32 },
    /// TensorFlow's Ftrl with power -1/2.
    Ftrl { initial_accumulator: f32, l1: f32, l2: f32 },
    /// Algorithm 2 of its paper, with a step count per row.
    AdaBelief { beta1: f64, beta2: f64, eps: f32 },
    /// torch.optim.RAdam with a step count per row.
    RAdam { beta1: f64, beta2: f64, eps: f32 },
    /// That of its paper, with one trust ratio and a step count per row.
    Lamb { beta1: f64, beta2: f64, eps: f32 },
    /// Adam with sparse group lasso, a row being a group.
    GroupAdam { beta1: f64, beta2: f64, eps: f32, l1: f32, l2: f32, l21: f32 },
    /// Ftrl with sparse group lasso, a row being a group.
    SparseGroupFtrl { initial_accumulator: f32, l1: f32, l2: f32, l21: f32 },
}

/// Distribution of initial values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs, reason = "fields carry the names of the public API")]
pub enum Initializer {
    /// All zero.
    Zeros,
    /// All `value`.
    Constant { value: f32 },
    /// Uniform in [low, high).
    Uniform { low: f32, high: f32 },
    /// Normal.
    Normal { mean: f32, std: f32 },
    /// Normal, cut at two standard deviations.
    TruncatedNormal { mean: f32, std: f32 },
}

/// One table's definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// Unique in the store; `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`.
    pub name: String,
    /// Columns of a row, 1 to 4096.
    pub dim: u32,
    /// Rule that `apply_gradients` follows.
    pub optimizer: Optimizer,
    /// Live.
    pub learning_rate: f32,
    /// What is done to gradients before the rule sees them.
    #[serde(default, skip_serializing_if = "GradientOptions::is_default")]
    pub gradients: GradientOptions,
    /// Where rows start.
    pub initializer: Initializer,
    /// Enters the initial row together with the key.
    pub seed: u64,
    /// Live: which keys get a row; all, if it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<Admission>,
    /// "float32".
    pub dtype: String,
    /// Live byte cap in DRAM: rows, index and statistics.
    pub dram: Option<u64>,
    /// Live byte cap on NVMe.
    pub nvme: Option<u64>,
    /// When rows go by themselves. Live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Expiry>,
}

/// A change of live settings; `None` keeps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableChange {
    /// New learning rate.
    pub learning_rate: Option<f32>,
    /// New admission; `Some(None)` lets all keys in.
    pub admission: Option<Option<Admission>>,
    /// New DRAM cap; `Some(None)` lifts it.
    pub dram: Option<Option<u64>>,
    /// New NVMe cap; `Some(None)` lifts it.
    pub nvme: Option<Option<u64>>,
    /// New expiry; `Some(None)`: rows stay.
    pub expiry: Option<Option<Expiry>>,
}

impl Optimizer {
    /// What fills the slots of a fresh row.
    fn initial_accumulator(&self) -> f32 {
        match *self {
            Self::Adagrad { initial_accumulator, .. }
            | Self::RowWiseAdagrad { initial_accumulator, .. }
            | Self::Ftrl { initial_accumulator, .. }
            | Self::SparseGroupFtrl { initial_accumulator, .. } => initial_accumulator,
            _ => 0.0,
        }
    }

    /// The rows of both are laid out and begun alike.
    fn has_shape_of(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && self.initial_accumulator() == other.initial_accumulator()
    }

    fn check(&self) -> Result<()> {
        at_least_zero("initial_accumulator", self.initial_accumulator())?;
        match *self {
            Self::Sgd => Ok(()),
            Self::Momentum { momentum, .. } => below_one("momentum", momentum.into()),
            Self::Adagrad { eps, .. } | Self::RowWiseAdagrad { eps, .. } => {
                at_least_zero("eps", eps)
            }
            Self::RmsProp { alpha, eps } => {
                below_one("alpha", alpha)?;
                at_least_zero("eps", eps)
            }
            Self::Ftrl { l1, l2, .. } => check_bounds(&[("l1", l1), ("l2", l2)]),
            Self::SparseGroupFtrl { l1, l2, l21, .. } => {
                check_bounds(&[("l1", l1), ("l2", l2), ("l21", l21)])
            }
            Self::GroupAdam { beta1, beta2, eps, l1, l2, l21 } => {
                check_betas(beta1, beta2)?;
                check_bounds(&[("eps", eps), ("l1", l1), ("l2", l2), ("l21", l21)])
            }
            Self::Adam { beta1, beta2, eps }
            | Self::AdamW { beta1, beta2, eps }
            | Self::AmsGrad { beta1, beta2, eps }
            | Self::AdaBelief { beta1, beta2, eps }
            | Self::RAdam { beta1, beta2, eps }
            | Self::Lamb { beta1, beta2, eps } => {
                check_betas(beta1, beta2)?;
                at_least_zero("eps", eps)
            }
        }
    }

    /// Rules that divide by the learning rate cannot do without.
    fn check_learning_rate(&self, rate: f32) -> Result<()> {
        at_least_zero("learning_rate", rate)?;
        match self {
            Self::Ftrl { .. } | Self::SparseGroupFtrl { .. } if rate == 0.0 => {
                Err(bad("learning_rate", rate, "a number above 0: this optimizer divides by it"))
            }
            _ => Ok(()),
        }
    }
}

impl Initializer {
    fn check(&self) -> Result<()> {
        let numbers: &[(&str, f32)] = match self {
            Self::Zeros => &[],
            Self::Constant { value } => &[("value", *value)],
            Self::Uniform { low, high } => &[("low", *low), ("high", *high)],
            Self::Normal { mean, std } | Self::TruncatedNormal { mean, std } => {
                at_least_zero("std", *std)?;
                &[("mean", *mean)]
            }
        };
        match numbers.iter().find(|(_, x)| !x.is_finite()) {
            Some(&(name, x)) => Err(bad(name, x, "a finite number")),
            None => Ok(()),
        }
    }
}

impl TableSpec {
    /// Refuses a spec that no table can have.
    ///
    /// # Errors
    /// `BadInput` naming the field, the value and its range.
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        if self.dim == 0 || self.dim > DIM_MAX {
            return Err(bad("dim", self.dim, "1 to 4096"));
        }
        Layout::of(&self.dtype)?;
        self.optimizer.check_learning_rate(self.learning_rate)?;
        self.admission.as_ref().map_or(Ok(()), Admission::check)?;
        check_dram(self.dram)?;
        check_expiry(self.expiry)?;
        self.optimizer.check()?;
        let GradientOptions { weight_decay, clip_value, clip_norm } = self.gradients;
        check_bounds(&[
            ("weight_decay", weight_decay),
            ("clip_value", clip_value),
            ("clip_norm", clip_norm),
        ])?;
        if self.row_floats() > ROW_FLOATS_MAX {
            return Err(bad(
                "dim",
                self.dim,
                "fewer columns, or an optimizer with fewer slots: value and slots of a row are \
                 16368 numbers at most",
            ));
        }
        self.initializer.check()
    }

    /// Float32 numbers of one row: value and slots.
    pub fn row_floats(&self) -> usize {
        let dim = self.dim as usize;
        dim + self.optimizer.slots(dim)
    }

    /// Compares an asked spec with the stored one.
    ///
    /// Returns a sentence for each live setting that differs (the stored value wins).
    ///
    /// # Errors
    /// `TableMismatch` naming each difference in shape.
    pub fn open_as(&self, asked: &TableSpec) -> Result<Vec<String>> {
        let shape: Vec<String> = [
            differs("dim", &self.dim, &asked.dim),
            differs("dtype", &self.dtype, &asked.dtype),
            differs("optimizer", &self.optimizer, &asked.optimizer)
                .filter(|_| !self.optimizer.has_shape_of(&asked.optimizer)),
            differs("initializer", &self.initializer, &asked.initializer),
            differs("seed", &self.seed, &asked.seed),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !shape.is_empty() {
            return Err(Error::table_mismatch(format!(
                "table {:?} exists with another shape: {}; open it with the stored spec, or choose \
                 another name",
                self.name, shape.join("; ")
            )));
        }
        let live = [
            differs("learning_rate", &self.learning_rate, &asked.learning_rate),
            differs("optimizer", &self.optimizer, &asked.optimizer),
            differs("gradients", &self.gradients, &asked.gradients),
            differs("admission", &self.admission, &asked.admission),
            differs("dram", &self.dram, &asked.dram),
            differs("nvme", &self.nvme, &asked.nvme),
            differs("expiry", &self.expiry, &asked.expiry),
        ];
        Ok(live.into_iter().flatten().collect())
    }

    /// Applies a change of live settings.
    ///
    /// # Errors
    /// `BadInput` naming the setting; nothing changed then.
    pub fn alter(&mut self, change: &TableChange) -> Result<()> {
        if let Some(rate) = change.learning_rate {
            self.optimizer.check_learning_rate(rate)?;
        }
        if let Some(Some(admission)) = change.admission {
            admission.check()?;
        }
        if let Some(dram) = change.dram {
            check_dram(dram)?;
        }
        check_expiry(change.expiry.flatten())?;
        self.learning_rate = change.learning_rate.unwrap_or(self.learning_rate);
        self.admission = change.admission.unwrap_or(self.admission);
        self.dram = change.dram.unwrap_or(self.dram);
        self.nvme = change.nvme.unwrap_or(self.nvme);
        self.expiry = change.expiry.unwrap_or(self.expiry);
        Ok(())
    }
}

fn differs<T: std::fmt::Debug + PartialEq>(name: &str, stored: &T, asked: &T) -> Option<String> {
    (stored != asked).then(|| format!("{name} is {stored:?}, asked {asked:?}"))
}

fn check_name(name: &str) -> Result<()> {
    let legal = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    let first = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if !first || name.len() > 128 || !name.bytes().all(legal) {
        return Err(bad(
            "name",
            format!("{name:?}"),
            "1 to 128 of A-Z a-z 0-9 . _ - beginning with a letter or digit",
        ));
    }
    Ok(())
}

fn check_betas(beta1: f64, beta2: f64) -> Result<()> {
    below_one("betas[0]", beta1)?;
    below_one("betas[1]", beta2)
}

fn check_bounds(bounds: &[(&str, f32)]) -> Result<()> {
    bounds.iter().try_for_each(|&(name, x)| at_least_zero(name, x))
}

fn below_one(name: &str, x: f64) -> Result<()> {
    if (0.0..1.0).contains(&x) {
        return Ok(());
    }
    Err(bad(name, x, "at least 0 and below 1"))
}

fn check_dram(dram: Option<u64>) -> Result<()> {
    match dram {
        Some(bytes) if bytes < TABLE_DRAM_MIN => Err(bad("dram", bytes, "at least 1 MiB")),
        _ => Ok(()),
    }
}

fn check_expiry(expiry: Option<Expiry>) -> Result<()> {
    expiry.map_or(Ok(()), |expiry| expiry.check())
}

fn at_least_zero(name: &str, x: f32) -> Result<()> {
    if x.is_finite() && x >= 0.0 {
        return Ok(());
    }
    Err(bad(name, x, "a finite number of at least 0"))
}

fn bad(name: &str, value: impl std::fmt::Display, allowed: &str) -> Error {
    Error::bad_input(format!("{name} is {value}; give {allowed}"))
}
