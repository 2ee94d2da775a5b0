//! Deleting old checkpoints, and never one that another is built on.

use std::path::Path;

use super::directory::{checkpoints, delete};
use super::manifest::Checkpoint;
use super::verify::needed;
use crate::error::{Error, Result};

/// Keeps the newest `keep` checkpoints, of the others the newest of every `every_s` seconds if that
/// is given, and all that these are built on; deletes all others, the newest first, so that what is
/// left is whole at any moment. Returns the ids that were deleted. What a crash has left unfinished
/// stays: somebody may be writing it.
///
/// # Errors
/// `BadInput` for keep 0; `Corruption` if the manifest of one cannot be read: what that is built on
/// is not known; `Unavailable` if a file cannot be deleted.
pub fn prune(path: &Path, keep: u64, every_s: Option<f64>) -> Result<Vec<String>> {
    if keep == 0 {
        return Err(Error::bad_input("keep is 0; keep one checkpoint at least"));
    }
    if every_s.is_some_and(|every_s| !(every_s.is_finite() && every_s > 0.0)) {
        return Err(Error::bad_input(format!("every is {every_s:?}; give seconds above 0")));
    }
    let (all, damaged) = checkpoints(path)?;
    if let Some(error) = damaged.into_iter().next() {
        return Err(error);
    }
    let kept = kept(&all, keep, every_s);
    let needed = needed(&kept, &all);
    let mut deleted = Vec::new();
    for checkpoint in all.iter().rev().filter(|checkpoint| !needed.contains(&checkpoint.id)) {
        delete(path, &checkpoint.id)?;
        deleted.push(checkpoint.id.clone());
    }
    deleted.reverse();
    Ok(deleted)
}

fn kept(all: &[Checkpoint], keep: u64, every_s: Option<f64>) -> Vec<Checkpoint> {
    let newest = all.len().saturating_sub(keep.min(usize::MAX as u64) as usize);
    let mut kept = all[newest..].to_vec();
    if let Some(every_s) = every_s {
        let mut last = None;
        for checkpoint in all[..newest].iter().rev() {
            let period = (checkpoint.created / every_s).floor();
            if last != Some(period) {
                kept.push(checkpoint.clone());
                last = Some(period);
            }
        }
    }
    kept
}
