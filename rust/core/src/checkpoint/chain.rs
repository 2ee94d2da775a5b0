//! A checkpoint with all that it is built on: of each server its file, and those of the parents
//! that it is a delta on.

use std::collections::HashSet;
use std::path::Path;

use super::directory::{at_step, find, open, open_shard, Found};
use super::manifest::Checkpoint;
use super::reader::{corrupt, ShardReader};
use super::tail::{Bundle, BundleKind};
use crate::columns::Columns;
use crate::error::Result;
use crate::spec::TableSpec;
use crate::types::{bucket, hash};

/// See the module.
pub(crate) struct Chain {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) links: Vec<Link>,
}

/// One server's files, the newest first.
pub(crate) struct Link {
    pub(crate) files: Vec<ShardReader>,
}

/// Most checkpoints of a chain; a longer one is never made.
pub(crate) const LINKS_MAX: usize = 64;

impl Chain {
    /// Opens the checkpoint `id`, or the newest of `step`, or the newest. The lists of all files
    /// are read and checked; rows are not.
    ///
    /// # Errors
    /// `BadInput` if there is none; `Corruption` naming a file that is missing, damaged or foreign.
    pub(crate) fn open(path: &Path, id: Option<&str>, step: Option<i64>) -> Result<Self> {
        let checkpoint = match (id, step) {
            (None, Some(step)) => at_step(path, step)?,
            _ => open(path, id)?,
        };
        let mut links = Vec::with_capacity(checkpoint.shards.len());
        for n in 0..checkpoint.shards.len() {
            links.push(Link::open(path, &checkpoint, n)?);
        }
        Ok(Self { checkpoint, links })
    }

    /// The spec of a table as of the checkpoint.
    pub(crate) fn spec(&self, name: &str) -> Option<&TableSpec> {
        let file = |link: &'_ Link| -> Option<usize> { link.files[0].position(name) };
        let link = self.links.iter().find(|link| file(link).is_some())?;
        Some(&link.files[0].tail.tables[file(link)?].spec)
    }

    /// Of all its files.
    pub(crate) fn bytes(&self) -> u64 {
        let files = self.links.iter().flat_map(|link| &link.files);
        files.map(|file| file.identity().0).sum()
    }
}

impl Link {
    fn open(path: &Path, checkpoint: &Checkpoint, shard: usize) -> Result<Self> {
        let mut files = vec![open_shard(path, &checkpoint.id, &checkpoint.shards[shard])?];
        loop {
            let file = &files[files.len() - 1];
            let is_delta = file.tail.tables.iter().any(|table| table.since.is_some());
            if !is_delta {
                return Ok(Self { files });
            }
            let missing = |what: &str| corrupt(file.path(), what);
            let parent = file.tail.parent.as_deref().ok_or_else(|| missing("names no parent"))?;
            if files.len() > LINKS_MAX {
                return Err(missing("is of a chain without an end"));
            }
            let parent = match find(path, parent) {
                Found::Whole(parent) => parent,
                Found::Damaged(error) => return Err(error),
                Found::Incomplete => {
                    return Err(missing(&format!("is a delta on {parent}, which is not there")))
                }
            };
            let name = &checkpoint.shards[shard].file;
            let summary = parent.shards.iter().find(|summary| summary.file == *name);
            let summary = summary.ok_or_else(|| {
                missing(&format!("is a delta on {}, which has no file {name}", parent.id))
            })?;
            let next = open_shard(path, &parent.id, summary)?;
            check_follows(file, &next)?;
            files.push(next);
        }
    }

    /// The rows of a table in a group of buckets, as of the checkpoint: each key once. `visit` gets
    /// the rows of a bundle, and which of them count.
    pub(crate) fn visit_group(
        &self,
        name: &str,
        group: u32,
        is_own: impl Fn(u32) -> bool,
        visit: &mut dyn FnMut(&Columns, &[usize]) -> Result<()>,
    ) -> Result<()> {
        let lists = self.bundles_of(name, group);
        // A single bundle, or several of copied rows alone, name no key twice.
        let is_simple =
            lists.iter().all(|(n, bundle)| *n == 0 && bundle.kind == BundleKind::Copied);
        let mut seen = HashSet::new();
        for (n, bundle) in lists {
            let file = &self.files[n];
            if bundle.kind == BundleKind::Removed {
                seen.extend(file.removed(bundle)?);
                continue;
            }
            let rows = file.rows(bundle)?;
            let mut counted = Vec::with_capacity(rows.len());
            for (at, &key) in rows.keys.iter().enumerate() {
                if is_own(bucket(hash(key))) && (is_simple || seen.insert(key)) {
                    counted.push(at);
                }
            }
            visit(&rows, &counted)?;
        }
        Ok(())
    }

    /// Bundles in the order in which they count: those of the newest file first.
    fn bundles_of(&self, name: &str, group: u32) -> Vec<(usize, &Bundle)> {
        let mut found = Vec::new();
        for (n, file) in self.files.iter().enumerate() {
            let Some(table) = file.position(name) else { break };
            found.extend(file.of(table, group).map(|bundle| (n, bundle)));
            if file.tail.tables[table].since.is_none() {
                break;
            }
        }
        found
    }
}

/// A file that holds changes fits only the one since whose moment they are.
fn check_follows(child: &ShardReader, parent: &ShardReader) -> Result<()> {
    let (own, other) = (&child.tail, &parent.tail);
    let is_same = own.store == other.store && own.shard == other.shard;
    for table in own.tables.iter().filter(|table| table.since.is_some()) {
        let before = other.tables.iter().find(|before| before.id == table.id);
        let fits = before.is_some_and(|before| before.spec.name == table.spec.name);
        if !is_same || !fits || table.since != Some(other.sequence) {
            let what = format!("is no delta on {}", parent.path().display());
            return Err(corrupt(child.path(), &what));
        }
    }
    Ok(())
}
