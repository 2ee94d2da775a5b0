//! Writes an image: bucket after bucket, then what finds them. Until all of it is on the device it
//! has another name, so a file that bears the image's name was once whole.

use std::fs::File;
use std::io;

use super::format::{encode_end, encode_run};
use super::{Block, Entries, Summary};
use crate::types::Sequence;
use crate::vfs;

/// Bytes that are collected before they are written.
const CHUNK: usize = 1 << 20;

/// A file that is being written.
pub(crate) struct Writer<'a> {
    file: &'a File,
    pending: Vec<u8>,
    written: u64,
    blocks: Vec<Block>,
}

impl<'a> Writer<'a> {
    /// On a new file, which is opened for appending.
    pub(crate) fn new(file: &'a File) -> Self {
        Self { file, pending: Vec::with_capacity(CHUNK), written: 0, blocks: Vec::new() }
    }

    /// Adds the next bucket. `sequence`: all calls up to it that touch the bucket are in it.
    pub(crate) fn bucket(&mut self, sequence: Sequence, runs: &[Entries]) -> io::Result<()> {
        let (offset, start) = (self.written + self.pending.len() as u64, self.pending.len());
        runs.iter().for_each(|(table, entries)| {
            encode_run(&mut self.pending, *table, entries);
        });
        let block = &self.pending[start..];
        let (bytes, crc) = (block.len() as u32, crc32c::crc32c(block));
        self.blocks.push(Block { offset, bytes, crc, sequence });
        if self.pending.len() >= CHUNK {
            self.flush()?;
        }
        Ok(())
    }

    /// Ends the file.
    pub(crate) fn finish(mut self, summary: &Summary) -> io::Result<()> {
        let end = encode_end(summary, &self.blocks);
        self.pending.extend_from_slice(&end);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        vfs::append(self.file, &[&self.pending])?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}
