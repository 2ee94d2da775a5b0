//! The candidates of a table in one stripe: keys without a row, and how often each was read.
//!
//! What is kept of a candidate is 32 bits: a tag, the bits of its hash behind those of its bucket,
//! and its count below. A bucket holds them in order of their tags, in two generations. What is
//! counted goes to the young one; when that is full it becomes the old one, and what was old, not
//! counted for as long as a whole generation took to come, is forgotten. So the newest candidates
//! are remembered, with no bit spent on their age.

use super::{Rule, ENTRY_BITS};
use crate::types::{bucket, BUCKETS};

/// Bits of a hash that its bucket tells.
const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();
/// Entries by which a full generation grows at least; beyond, by a sixteenth.
const GROWTH: usize = 4;

/// Those of all buckets of a stripe.
#[derive(Debug)]
pub(crate) struct Candidates {
    buckets: Vec<Bucket>,
    /// Low bits of an entry, which hold its count. Only grows.
    width: u32,
    keys: usize,
    /// Of the memory of all entries.
    bytes: u64,
}

#[derive(Debug, Default, Clone)]
struct Bucket {
    young: Generation,
    old: Generation,
}

/// Entries in order of their tags.
#[derive(Debug, Default, Clone)]
struct Generation(Vec<u32>);

impl Candidates {
    /// Bytes of a bucket beside its entries.
    pub(super) const BUCKET_BYTES: usize = size_of::<Bucket>();

    /// None yet, in so many buckets.
    pub(crate) fn new(buckets: u32) -> Self {
        let buckets = vec![Bucket::default(); buckets as usize];
        Self { buckets, width: 1, keys: 0, bytes: 0 }
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> u64 {
        (size_of::<Self>() + self.buckets.len() * Self::BUCKET_BYTES) as u64 + self.bytes
    }

    /// Most bytes that `keys` more will take.
    pub(crate) fn growth_bytes(&self, keys: usize) -> u64 {
        let touched = keys.min(self.buckets.len());
        // A generation that is full grows by its share.
        ((keys + touched * GROWTH) * size_of::<u32>()) as u64 + self.bytes / 16
    }

    /// Most bytes that the first `keys` take.
    pub(crate) fn first_bytes(buckets: u32, keys: usize) -> u64 {
        let touched = keys.min(buckets as usize);
        let bytes = buckets as usize * Self::BUCKET_BYTES + 4 * (keys + touched * GROWTH);
        (size_of::<Self>() + bytes) as u64
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.keys
    }

    /// Counts `count` occurrences of a key that has no row. If they admit it, it is no candidate
    /// any more: returns its occurrences before.
    pub(crate) fn admit(&mut self, rule: &Rule, hash: u64, count: u32) -> Option<u32> {
        self.widen(rule.width);
        let before = self.count(hash);
        if rule.admits(hash, before, count) {
            return Some(self.forget(hash));
        }
        if count > 0 {
            let (tag, width) = (self.tag(hash), self.width);
            self.edit(hash, |bucket| bucket.note(tag, before + count, width, rule.generation));
        }
        None
    }

    /// Occurrences of a key so far.
    pub(crate) fn count(&self, hash: u64) -> u32 {
        let bucket = &self.buckets[self.at(hash)];
        let of = |generation: &Generation| generation.count(self.tag(hash), self.width);
        of(&bucket.young).or_else(|| of(&bucket.old)).unwrap_or(0)
    }

    /// The key is no candidate any more. Returns its occurrences.
    pub(crate) fn forget(&mut self, hash: u64) -> u32 {
        let (count, tag, width) = (self.count(hash), self.tag(hash), self.width);
        if count > 0 {
            self.edit(hash, |bucket| {
                bucket.young.take(tag, width);
                bucket.old.take(tag, width);
            });
        }
        count
    }

    /// The entries of the n-th bucket, of its young and its old generation, and their width.
    pub(crate) fn entries(&self, n: usize) -> ([&[u32]; 2], u32) {
        let Bucket { young, old } = &self.buckets[n];
        ([&young.0, &old.0], self.width)
    }

    /// Gives the n-th bucket the entries that another had.
    pub(crate) fn restore(&mut self, n: usize, [young, old]: [Vec<u32>; 2], width: u32) {
        self.widen(width);
        let mut bucket = Bucket { young: Generation(young), old: Generation(old) };
        bucket.widen(self.width - width, width);
        self.replace(n, bucket);
    }

    fn replace(&mut self, n: usize, bucket: Bucket) {
        let old = std::mem::replace(&mut self.buckets[n], bucket);
        let new = &self.buckets[n];
        self.keys = self.keys + new.len() - old.len();
        self.bytes = self.bytes + new.bytes() - old.bytes();
    }

    fn edit(&mut self, hash: u64, edit: impl FnOnce(&mut Bucket)) {
        let n = self.at(hash);
        let mut bucket = std::mem::take(&mut self.buckets[n]);
        let (keys, bytes) = (bucket.len(), bucket.bytes());
        edit(&mut bucket);
        self.keys = self.keys + bucket.len() - keys;
        self.bytes = self.bytes + bucket.bytes() - bytes;
        self.buckets[n] = bucket;
    }

    /// Counts get more bits, and tags fewer, for a rule with larger counts.
    fn widen(&mut self, width: u32) {
        let Some(bits) = width.checked_sub(self.width).filter(|&bits| bits > 0) else { return };
        for n in 0..self.buckets.len() {
            let mut bucket = self.buckets[n].clone();
            bucket.widen(bits, self.width);
            self.replace(n, bucket);
        }
        self.width = width;
    }

    fn at(&self, hash: u64) -> usize {
        bucket(hash) as usize % self.buckets.len()
    }

    fn tag(&self, hash: u64) -> u32 {
        (hash << BUCKET_BITS >> (u64::BITS - ENTRY_BITS + self.width)) as u32
    }
}

impl Bucket {
    fn len(&self) -> usize {
        self.young.0.len() + self.old.0.len()
    }

    fn bytes(&self) -> u64 {
        ((self.young.0.capacity() + self.old.0.capacity()) * size_of::<u32>()) as u64
    }

    /// Sets the count of a candidate, as the youngest. A generation takes `most`.
    fn note(&mut self, tag: u32, count: u32, width: u32, most: usize) {
        if self.young.set(tag, count, width) {
            return;
        }
        self.old.take(tag, width);
        if self.young.0.len() >= most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(tag, count, width);
    }

    fn widen(&mut self, bits: u32, width: u32) {
        self.young.widen(bits, width);
        self.old.widen(bits, width);
    }
}

impl Generation {
    fn find(&self, tag: u32, width: u32) -> std::result::Result<usize, usize> {
        let at = self.0.partition_point(|&entry| entry >> width < tag);
        match self.0.get(at) {
            Some(&entry) if entry >> width == tag => Ok(at),
            _ => Err(at),
        }
    }

    fn count(&self, tag: u32, width: u32) -> Option<u32> {
        self.find(tag, width).ok().map(|at| self.0[at] & mask(width))
    }

    /// False if there is no such entry.
    fn set(&mut self, tag: u32, count: u32, width: u32) -> bool {
        let found = self.find(tag, width);
        found.is_ok_and(|at| {
            self.0[at] = tag << width | count;
            true
        })
    }

    fn insert(&mut self, tag: u32, count: u32, width: u32) {
        if self.0.len() == self.0.capacity() {
            self.0.reserve_exact(GROWTH.max(self.0.len() / 16));
        }
        let (Ok(at) | Err(at)) = self.find(tag, width);
        self.0.insert(at, tag << width | count);
    }

    fn take(&mut self, tag: u32, width: u32) {
        let Ok(at) = self.find(tag, width) else { return };
        self.0.remove(at);
        if 2 * self.0.len() < self.0.capacity() {
            self.0.shrink_to_fit();
        }
    }

    /// Counts get `bits` more than `width`. Of entries whose tags become one, the larger count
    /// stays.
    fn widen(&mut self, bits: u32, width: u32) {
        let new = width + bits;
        for entry in &mut self.0 {
            *entry = *entry >> new << new | *entry & mask(width);
        }
        self.0.dedup_by(|later, earlier| {
            let is_same = *later >> new == *earlier >> new;
            if is_same {
                *earlier = (*earlier).max(*later);
            }
            is_same
        });
    }
}

fn mask(width: u32) -> u32 {
    (1 << width) - 1
}

#[cfg(test)]
#[path = "candidates_tests.rs"]
mod tests;
