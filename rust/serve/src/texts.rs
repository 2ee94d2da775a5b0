//! What comes or goes as text, or in plain fields: specs and changes of tables as JSON, settings,
//! counters and findings by name.

use hybridps_core::{
    initial_row, Damaged, Durability, Error, Health, Inspected, Operation, Result, RowTier,
    Scrubbed, Store, TableChange, TableId, TableInfo, TableSpec,
};

/// Reads the JSON of a spec and checks its ranges.
///
/// # Errors
/// `BadInput`: no table can have it.
pub fn parse_spec(json: &str) -> Result<TableSpec> {
    let spec: TableSpec = serde_json::from_str(json).map_err(|e| {
        Error::bad_input(format!("table spec is not readable: {e}; use TableSpec.to_json"))
    })?;
    spec.check()?;
    Ok(spec)
}

/// The JSON of a spec.
pub fn spec_json(spec: &TableSpec) -> String {
    // Numbers, names and options of fixed form: nothing in it can fail to be written.
    serde_json::to_string(spec).unwrap_or_default()
}

/// Creates a table, or opens an equal one: its id, the stored spec, settings in which they differ.
///
/// # Errors
/// Those of the engine; `BadInput`: no table can have that spec.
pub fn create_table(store: &Store, spec: &str) -> Result<(TableId, String, Vec<String>)> {
    let TableInfo { id, spec, warnings } = store.create_table(&parse_spec(spec)?)?;
    Ok((id, spec_json(&spec), warnings))
}

/// A table's id and stored spec.
///
/// # Errors
/// Those of the engine.
pub fn table(store: &Store, name: &str) -> Result<(TableId, String)> {
    let TableInfo { id, spec, .. } = store.table(name)?;
    Ok((id, spec_json(&spec)))
}

/// Reads a JSON object of live settings; null lifts a cap.
///
/// # Errors
/// `BadInput`: a setting is unknown, or no value for it.
pub fn parse_change(json: &str) -> Result<TableChange> {
    let unreadable =
        |what: &str| Error::bad_input(format!("change of a table is not readable: {what}"));
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(json).map_err(|e| unreadable(&e.to_string()))?;
    let mut change = TableChange::default();
    for (name, value) in fields {
        let cap = || match value.is_null() {
            true => Ok(None),
            false => value.as_u64().map(Some).ok_or_else(|| unreadable(&name)),
        };
        match name.as_str() {
            "learning_rate" => {
                let rate = value.as_f64().ok_or_else(|| unreadable(&name))?;
                change.learning_rate = Some(rate as f32);
            }
            "admission" => {
                let admission = serde_json::from_value(value);
                change.admission = Some(admission.map_err(|e| unreadable(&e.to_string()))?);
            }
            "dram" => change.dram = Some(cap()?),
            "nvme" => change.nvme = Some(cap()?),
            "expiry" => {
                let expiry = serde_json::from_value(value);
                change.expiry = Some(expiry.map_err(|e| unreadable(&format!("expiry: {e}")))?);
            }
            _ => return Err(unreadable(&format!("no live setting is called {name:?}"))),
        }
    }
    Ok(change)
}

/// A durability by name.
///
/// # Errors
/// `Config`: there is none of that name.
pub fn parse_durability(name: &str) -> Result<Durability> {
    Ok(match name {
        "none" => Durability::None,
        "process" => Durability::Process,
        "interval" => Durability::Interval,
        "always" => Durability::Always,
        other => {
            return Err(Error::config(format!(
                "durability is {other:?}; give \"none\", \"process\", \"interval\" or \"always\""
            )))
        }
    })
}

/// An operation by its number in the schema.
///
/// # Errors
/// `BadInput`: there is none of that number.
pub fn operation(number: u16) -> Result<Operation> {
    Operation::of(number).ok_or_else(|| {
        let last = Operation::ALL.len() - 1;
        Error::bad_input(format!("scatter: operation is {number}; give one of 0 to {last}"))
    })
}

/// Tiers as the wire has them: a byte each, 0 for a key without a row.
pub fn tiers(tiers: &[Option<RowTier>]) -> Vec<u8> {
    let number = |tier: &Option<RowTier>| match tier {
        None => 0,
        Some(RowTier::Dram) => 1,
        Some(RowTier::Nvme) => 2,
        Some(RowTier::Cold) => 3,
    };
    tiers.iter().map(number).collect()
}

/// The name of a state of health, and what is not served and why.
pub fn health_text(health: Health) -> (&'static str, String) {
    match health {
        Health::Ok => ("ok", String::new()),
        Health::Degraded(reason) => ("degraded", reason),
        Health::Failed(reason) => ("failed", reason),
    }
}

/// A row as it is stored: tier, place, is dirty, sequence, frequency, last seen, norm, error.
pub type Row = (Option<&'static str>, Option<u64>, bool, u64, u32, u32, f64, Option<String>);
/// What is damaged: table and key, byte offset, fate.
pub type Finding = (Option<(String, u64)>, u64, &'static str);
/// A step of a scrub: where to go on, records, bytes, bytes of a whole pass, findings.
pub type Step = (Option<u64>, u64, u64, u64, Vec<Finding>);

/// Rows as they are stored, field by field.
pub fn rows(rows: Vec<Inspected>) -> Vec<Row> {
    let row = |row: Inspected| {
        let tier = row.tier.map(|tier| tier.name());
        let Inspected { place, is_dirty, sequence, frequency, last_seen, norm, error, .. } = row;
        (tier, place, is_dirty, sequence, frequency, last_seen, norm, error)
    };
    rows.into_iter().map(row).collect()
}

fn findings(found: Vec<Damaged>) -> Vec<Finding> {
    found.into_iter().map(|found| (found.row, found.offset, found.fate.name())).collect()
}

/// What is damaged, field by field, and how much more there was.
pub fn told((found, left_out): (Vec<Damaged>, u64)) -> (Vec<Finding>, u64) {
    (findings(found), left_out)
}

/// A step of a scrub, field by field.
pub fn step(step: Scrubbed) -> Step {
    (step.next, step.records, step.bytes, step.total_bytes, findings(step.damaged))
}

/// What so many rows of a table will take, by name.
///
/// # Errors
/// `BadInput`: no table can have that spec.
pub fn needs(spec: &str, rows: u64) -> Result<Vec<(&'static str, u64)>> {
    let needs = hybridps_core::needs(&parse_spec(spec)?, rows)?;
    Ok(vec![
        ("row_dram_bytes", needs.row_dram_bytes),
        ("row_nvme_bytes", needs.row_nvme_bytes),
        ("index_bytes", needs.index_bytes),
        ("candidates_bytes", needs.candidates_bytes),
        ("dram_smallest", needs.dram_smallest),
        ("dram_whole", needs.dram_whole),
        ("nvme", needs.nvme),
    ])
}

/// Counters by name.
pub type Counters = Vec<(&'static str, u64)>;

/// The names of all tables' counters, and each table with their values.
pub fn counters(tables: Vec<(String, Counters)>) -> (Vec<&'static str>, Vec<(String, Vec<u64>)>) {
    let first = tables.first().map_or(&[][..], |(_, counters)| counters);
    let names = first.iter().map(|(name, _)| *name).collect();
    let values = |counters: Counters| counters.into_iter().map(|(_, value)| value).collect();
    (names, tables.into_iter().map(|(name, counters)| (name, values(counters))).collect())
}

/// The rows that keys of such a table start with, written to `rows`, one after the other.
pub fn initial_rows(spec: &TableSpec, keys: &[u64], rows: &mut [f32]) {
    for (row, &key) in rows.chunks_exact_mut(spec.dim as usize).zip(keys) {
        initial_row(&spec.initializer, spec.seed, key, row);
    }
}
