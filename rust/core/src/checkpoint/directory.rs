//! A directory of checkpoints: each is a directory of its own, named by its date.
//!
//! While one is written, or deleted, it holds a file INCOMPLETE and no manifest. One that has
//! neither has lost its manifest: that is damage, and is told.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::manifest::{Checkpoint, Draft, ShardSummary};
use super::reader::{corrupt, ShardReader};
use crate::directory;
use crate::error::{Error, Result};
use crate::vfs;

const MANIFEST: &str = "MANIFEST";
const INCOMPLETE: &str = "INCOMPLETE";

/// What is found under a checkpoint's name.
pub(super) enum Found {
    Whole(Box<Checkpoint>),
    /// Being written, or what a crash has left of that.
    Incomplete,
    Damaged(Error),
}

/// The file of a server's rows.
pub(crate) fn shard_file(shard: (u32, u32)) -> String {
    format!("shard-{}-of-{}.rows", shard.0, shard.1)
}

/// All checkpoints in `path`, oldest first, and what is wrong with those that cannot be read. An
/// absent directory holds none; other files are none of ours.
///
/// # Errors
/// `Config` if the directory cannot be read.
pub fn checkpoints(path: &Path) -> Result<(Vec<Checkpoint>, Vec<Error>)> {
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for id in ids(path)? {
        match find(path, &id) {
            Found::Whole(checkpoint) => whole.push(*checkpoint),
            Found::Damaged(error) => damaged.push(error),
            Found::Incomplete => {}
        }
    }
    Ok((whole, damaged))
}

/// The checkpoint `id`, or the newest.
///
/// # Errors
/// `BadInput` if there is none; `Corruption` if its manifest is damaged or missing: an older one is
/// not taken in its place.
pub(super) fn open(path: &Path, id: Option<&str>) -> Result<Checkpoint> {
    let shown = path.display();
    let ids = match id {
        Some(id) if is_id(id) && path.join(id).is_dir() => vec![id.to_owned()],
        Some(id) => {
            return Err(Error::bad_input(format!(
                "{shown} holds no checkpoint {id:?}; list those that it holds"
            )))
        }
        None => ids(path)?,
    };
    for id in ids.iter().rev() {
        match find(path, id) {
            Found::Whole(checkpoint) => return Ok(*checkpoint),
            Found::Damaged(error) => return Err(error),
            Found::Incomplete => {}
        }
    }
    Err(Error::bad_input(format!("{shown} holds no whole checkpoint; make one first")))
}

/// The newest checkpoint of this step.
///
/// # Errors
/// `BadInput` if there is none, naming the steps that there are; `Corruption` if one that is newer
/// cannot be read: it may be of that step.
pub(super) fn at_step(path: &Path, step: i64) -> Result<Checkpoint> {
    let mut steps = Vec::new();
    for id in ids(path)?.iter().rev() {
        match find(path, id) {
            Found::Whole(checkpoint) if checkpoint.step == Some(step) => return Ok(*checkpoint),
            Found::Whole(checkpoint) => steps.extend(checkpoint.step),
            Found::Damaged(error) => return Err(error),
            Found::Incomplete => {}
        }
    }
    steps.sort_unstable();
    Err(Error::bad_input(format!(
        "{} holds no checkpoint of step {step}; it has steps {steps:?}",
        path.display()
    )))
}

pub(super) fn find(path: &Path, id: &str) -> Found {
    let folder = path.join(id);
    let manifest = folder.join(MANIFEST);
    match Checkpoint::load(&manifest, id) {
        Ok(Some(checkpoint)) => Found::Whole(Box::new(checkpoint)),
        Ok(None) if folder.join(INCOMPLETE).exists() || is_empty(&folder) => Found::Incomplete,
        Ok(None) => Found::Damaged(corrupt(&manifest, "is missing")),
        Err(error) => Found::Damaged(error),
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Begins the next checkpoint in `path`, which is made if absent. Returns its id, and the newest
/// whole one before it.
///
/// # Errors
/// `Config` if the directory cannot be used.
pub(crate) fn begin(path: &Path, date_ms: u64) -> Result<(String, Option<Checkpoint>)> {
    let failed = |cause: std::io::Error| unusable(path, &cause);
    directory::make(path).map_err(failed)?;
    let known = ids(path)?;
    let newest = known.last().map(String::as_str);
    let mut date_ms = date_ms;
    let folder = loop {
        let id = id_of(date_ms);
        if newest.is_none_or(|newest| *newest < *id) {
            match vfs::create_directory(&path.join(&id)) {
                Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
                outcome => break outcome.map(|()| id).map_err(failed)?,
            }
        }
        // Clocks go back; names do not.
        date_ms = newest.and_then(ms_of).map_or(date_ms, |newest| newest.max(date_ms)) + 1;
    };
    let own = path.join(&folder);
    vfs::create_if_absent(&own.join(INCOMPLETE)).map_err(failed)?;
    directory::sync_directory(&own)?;
    directory::sync_directory(path)?;
    let whole = known.iter().rev().find_map(|id| match find(path, id) {
        Found::Whole(checkpoint) => Some(Some(*checkpoint)),
        // What is behind damage is not built on.
        Found::Damaged(_) => Some(None),
        Found::Incomplete => None,
    });
    Ok((folder, whole.flatten()))
}

/// Opens a server's file of a checkpoint, which must be the one that its manifest names.
pub(crate) fn open_shard(path: &Path, id: &str, summary: &ShardSummary) -> Result<ShardReader> {
    let reader = ShardReader::open(&path.join(id).join(&summary.file))?;
    if reader.identity() != (summary.bytes, summary.crc) {
        return Err(corrupt(reader.path(), "is not the file that the manifest names"));
    }
    Ok(reader)
}

/// Makes a checkpoint of files that are whole: it bears its name when this returns.
///
/// # Errors
/// `Corruption` if a file is not there as it was written, `Unavailable` if the parent is not;
/// `BadInput` for an extra that is too large; `StoreFull`.
pub fn publish(path: &Path, id: &str, draft: Draft) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::new(id, draft);
    let bytes = checkpoint.encode()?;
    for summary in &checkpoint.shards {
        open_shard(path, id, summary)?;
    }
    if let Some(parent) = checkpoint.parent.as_deref() {
        if !matches!(find(path, parent), Found::Whole(_)) {
            return Err(Error::unavailable(format!(
                "checkpoint {parent}, which this one is a delta on, was deleted meanwhile; make it \
                 again"
            )));
        }
    }
    let folder = path.join(id);
    directory::replace(&folder.join(MANIFEST), &bytes)?;
    directory::remove_if_present(&folder.join(INCOMPLETE))?;
    directory::sync_directory(&folder)?;
    Ok(checkpoint)
}

/// Deletes a checkpoint; one that is cut short is incomplete, and no more.
pub(super) fn delete(path: &Path, id: &str) -> Result<()> {
    let folder = path.join(id);
    let failed = |cause: std::io::Error| Error::io("delete", &folder, &cause);
    vfs::create_if_absent(&folder.join(INCOMPLETE)).map_err(failed)?;
    directory::sync_directory(&folder)?;
    directory::remove_if_present(&folder.join(MANIFEST))?;
    directory::sync_directory(&folder)?;
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.file_name().is_some_and(|name| name != INCOMPLETE) {
            directory::remove_if_present(&file)?;
        }
    }
    directory::sync_directory(&folder)?;
    directory::remove_if_present(&folder.join(INCOMPLETE))?;
    vfs::remove_directory(&folder).map_err(failed)?;
    directory::sync_directory(path)
}

/// Names of all checkpoints, oldest first.
pub(super) fn ids(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|cause| unusable(path, &cause))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|cause| unusable(path, &cause))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_id(&name) && entry.path().is_dir() {
            ids.push(name);
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

fn unusable(path: &Path, cause: &std::io::Error) -> Error {
    Error::config(format!(
        "checkpoints cannot be kept in {}: {cause}; give a directory that the server may write",
        path.display()
    ))
}

/// The shape of an id: 20261130T211502.123Z.
fn is_id(name: &str) -> bool {
    let shape = "00000000T000000.000Z";
    name.len() == shape.len()
        && name.bytes().zip(shape.bytes()).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            _ => byte == shape,
        })
}

/// The id of a date in milliseconds since 1970, in the civil calendar (UTC).
fn id_of(date_ms: u64) -> String {
    let (seconds, ms) = (date_ms / 1000, date_ms % 1000);
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Days since 0000-03-01, of which 146,097 are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{date:02}T{hour:02}{minute:02}{second:02}.{ms:03}Z")
}

/// Its inverse; `None` for what is no date.
fn ms_of(id: &str) -> Option<u64> {
    let field = |from: usize, to: usize| id.get(from..to)?.parse::<u64>().ok();
    let (year, month, date) = (field(0, 4)?, field(4, 6)?, field(6, 8)?);
    let year = year.checked_sub(u64::from(month <= 2))?;
    let month = if month > 2 { month.checked_sub(3)? } else { month + 9 };
    let day = (153 * month + 2) / 5 + date.checked_sub(1)?;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day;
    let seconds = days.checked_sub(719_468)? * 86400
        + field(9, 11)? * 3600
        + field(11, 13)? * 60
        + field(13, 15)?;
    Some(seconds * 1000 + field(16, 19)?)
}

/// Path of a server's file.
pub(crate) fn shard_path(path: &Path, id: &str, shard: (u32, u32)) -> PathBuf {
    path.join(id).join(shard_file(shard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_dates_that_sort() {
        assert_eq!(id_of(0), "19700101T000000.000Z");
        assert_eq!(id_of(951_782_400_123), "20000229T000000.123Z");
        assert_eq!(id_of(1_780_261_199_999), "20260531T205959.999Z");
        let mut last = String::new();
        for n in 0..40_000 {
            let ms = n * 123_456_789;
            let id = id_of(ms);
            assert!(is_id(&id) && id > last, "{id} after {last}");
            assert_eq!(ms_of(&id), Some(ms), "{id}");
            last = id;
        }
        for foreign in ["", "latest", "20000229T000000.123Z.tmp", "20000229 000000.123Z"] {
            assert!(!is_id(foreign), "{foreign:?}");
        }
    }
}
