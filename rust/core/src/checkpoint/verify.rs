//! Reading checkpoints whole, to see that every byte is what was written.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::chain::{Chain, Link};
use super::directory::{checkpoints, open};
use super::manifest::Checkpoint;
use super::reader::{corrupt, ShardReader};
use super::tail::BundleKind;
use super::Progress;
use crate::columns::GROUP;
use crate::error::{Error, Result};
use crate::types::BUCKETS;

/// Reads the checkpoint `id` and all that it is built on; without `id` all checkpoints in `path`.
/// Returns the one that was asked for, or the newest.
///
/// # Errors
/// `Corruption` naming a file that is missing, damaged or foreign; `BadInput` if there is none.
pub fn verify(path: &Path, id: Option<&str>, progress: &Progress) -> Result<Checkpoint> {
    let chosen = open(path, id)?;
    let (all, damaged) = checkpoints(path)?;
    let wanted: Vec<Checkpoint> = match id {
        Some(_) => vec![chosen.clone()],
        None => all,
    };
    if let (None, Some(error)) = (id, damaged.into_iter().next()) {
        return Err(error);
    }
    let mut chains = Vec::with_capacity(wanted.len());
    for checkpoint in &wanted {
        chains.push(Chain::open(path, Some(&checkpoint.id), None)?);
    }
    let mut files: BTreeMap<&Path, &ShardReader> = BTreeMap::new();
    for file in chains.iter().flat_map(|chain| &chain.links).flat_map(|link| &link.files) {
        files.insert(file.path(), file);
    }
    progress.expect(files.values().map(|file| file.identity().0).sum());
    files.values().try_for_each(|file| verify_file(file, progress))?;
    for chain in &chains {
        chain.links.iter().try_for_each(|link| verify_rows(link, progress))?;
    }
    Ok(chosen)
}

fn verify_file(file: &ShardReader, progress: &Progress) -> Result<()> {
    for bundle in file.bundles() {
        progress.check()?;
        if bundle.kind == BundleKind::Removed {
            file.removed(bundle)?;
        } else {
            file.rows(bundle)?;
        }
        progress.add(bundle.bytes);
    }
    Ok(())
}

/// Each table has as many rows as it is said to have.
fn verify_rows(link: &Link, progress: &Progress) -> Result<()> {
    let newest = &link.files[0];
    for table in &newest.tail.tables {
        let mut rows = 0;
        for group in 0..BUCKETS / GROUP {
            progress.check()?;
            link.visit_group(&table.spec.name, group, |_| true, &mut |_, counted| {
                rows += counted.len() as u64;
                Ok(())
            })?;
        }
        if rows != table.rows {
            return Err(count_differs(newest.path(), &table.spec.name, rows, table.rows));
        }
    }
    Ok(())
}

/// The error of a table that has other rows than its file says.
pub(crate) fn count_differs(path: &Path, table: &str, found: u64, expected: u64) -> Error {
    corrupt(path, &format!("gives table {table:?} {found} rows, not {expected}"))
}

/// All ids that these checkpoints are built on, their own among them.
pub(super) fn needed(kept: &[Checkpoint], all: &[Checkpoint]) -> HashSet<String> {
    let mut needed: HashSet<String> = HashSet::new();
    let mut open: Vec<&str> = kept.iter().map(|checkpoint| checkpoint.id.as_str()).collect();
    while let Some(id) = open.pop() {
        if needed.insert(id.to_owned()) {
            let own = all.iter().find(|checkpoint| checkpoint.id == id);
            open.extend(own.and_then(|checkpoint| checkpoint.parent.as_deref()));
        }
    }
    needed
}
