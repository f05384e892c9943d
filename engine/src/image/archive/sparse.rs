//! Maps of sparse files: which parts of the file the archive stores.

use super::header::{BLOCK, Header, unsigned};
use super::pax::decimal;

/// Most parts of one file: a map of that length is 16 MiB in memory and has never been seen.
const MAX_EXTENTS: usize = 1 << 20;

/// A stored part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

pub(super) fn push(extents: &mut Vec<Extent>, extent: Extent) -> Result<(), String> {
    if extents.len() == MAX_EXTENTS {
        return Err(format!("has a sparse map of more than {MAX_EXTENTS} parts"));
    }
    extents.push(extent);
    Ok(())
}

/// Parts must be in order, apart, inside the file, and exactly as long as what the archive stores.
pub(super) fn check(extents: &[Extent], size: u64, stored: u64) -> Result<(), String> {
    let mut end = 0;
    let mut sum = 0_u64;
    for extent in extents {
        let next = extent.offset.checked_add(extent.length).filter(|next| extent.offset >= end && *next <= size);
        end = next.ok_or("has a sparse map whose parts overlap or lie outside the file")?;
        // Parts are apart and inside the file, so their sum is at most its size.
        sum += extent.length;
    }
    if sum == stored { Ok(()) } else { Err(format!("has a sparse map of {sum} bytes, but {stored} are stored")) }
}

/// The old GNU map: four parts in the header, then 21 in each further block.
#[derive(Default)]
pub(super) struct Map {
    extents: Vec<Extent>,
}

impl Map {
    /// The file's size, and whether a block with more parts follows.
    pub(super) fn begin(&mut self, header: &Header) -> Result<(u64, bool), String> {
        let block = header.gnu();
        self.parts(&block[386..386 + 4 * 24])?;
        Ok((unsigned(&block[483..495], "sparse size")?, block[482] != 0))
    }

    pub(super) fn extend(&mut self, block: &[u8; BLOCK]) -> Result<bool, String> {
        self.parts(&block[..21 * 24])?;
        Ok(block[504] != 0)
    }

    fn parts(&mut self, fields: &[u8]) -> Result<(), String> {
        for field in fields.chunks_exact(24) {
            // An empty field ends the list.
            if field.iter().all(|byte| *byte == 0) {
                break;
            }
            let (offset, length) = (unsigned(&field[..12], "sparse offset")?, unsigned(&field[12..], "sparse length")?);
            push(&mut self.extents, Extent { offset, length })?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<Extent> {
        self.extents
    }
}

/// The map of version 1.0: decimal lines in front of the data, padded to whole blocks.
#[derive(Default)]
pub(super) struct Text {
    line: Vec<u8>,
    count: Option<u64>,
    offset: Option<u64>,
    extents: Vec<Extent>,
}

impl Text {
    /// Takes a block; the map when it is complete.
    pub(super) fn take(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Extent>>, String> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err("has a sparse map with a line that is no number".to_owned());
                }
                continue;
            }
            let number = decimal(&self.line)?;
            self.line.clear();
            match (self.count, self.offset.take()) {
                (None, _) => self.count = Some(number),
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => push(&mut self.extents, Extent { offset, length: number })?,
            }
            if self.count == Some(self.extents.len() as u64) && self.offset.is_none() {
                return Ok(Some(std::mem::take(&mut self.extents)));
            }
        }
        Ok(None)
    }
}
