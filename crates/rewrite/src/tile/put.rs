//! Where what a tile gives is written, and its digests.

use std::ops::Range;

use safequant_container::FileWriter;
use safequant_schemes::EncodedRegion;

use super::{Done, StepContext};
use crate::Error;

impl StepContext<'_> {
    pub(super) fn write_regions(
        &self,
        regions: Vec<EncodedRegion>,
        done: &mut Done,
    ) -> Result<(), Error> {
        let mut regions = regions.into_iter();
        regions.try_for_each(|region| self.write_region(&region, done))
    }

    pub(super) fn write_region(
        &self,
        region: &EncodedRegion,
        done: &mut Done,
    ) -> Result<(), Error> {
        let row_len = region.row_len;
        let width = region.columns.end - region.columns.start;
        let offset = region.rows.start * row_len + region.columns.start;
        let n_rows = region.rows.end - region.rows.start;
        if n_rows <= 1 || width == row_len {
            return self.write(region.part, offset, &region.bytes, done);
        }
        let lines = region.bytes.chunks_exact(self.fits(width.max(1))?);
        for (row, line) in (region.rows.start..).zip(lines) {
            self.put(region.part, row * row_len + region.columns.start, line)?;
        }
        done.segments[region.part].add(None, &region.bytes);
        Ok(())
    }

    /// Writes bytes that lie together, and digests them.
    pub(super) fn write(
        &self,
        output: usize,
        offset: u64,
        bytes: &[u8],
        done: &mut Done,
    ) -> Result<(), Error> {
        self.put(output, offset, bytes)?;
        done.segments[output].add(Some(offset), bytes);
        Ok(())
    }

    fn put(&self, output: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        if let Some(writer) = self.writer.as_ref().filter(|_| !bytes.is_empty()) {
            let (_, tensor) = self.step.outputs[output].at;
            writer.write_at(tensor, offset, bytes)?;
        }
        Ok(())
    }

    /// Lets the disk write out bytes of an output.
    pub(crate) fn start_writeback(&self, output: usize, range: Range<u64>) {
        if let Some(writer) = &self.writer {
            let (_, tensor) = self.step.outputs[output].at;
            writer.start_writeback(tensor, range);
        }
    }

    /// Digests an output as the file holds it: for parts whose bytes did not come in order.
    pub(crate) fn digest_file(&self, output: usize, buffer: &mut [u8]) -> Result<String, Error> {
        let mut hasher = blake3::Hasher::new();
        if let Some(writer) = &self.writer {
            digest_tensor(writer, &self.step.outputs[output], buffer, &mut hasher)?;
        }
        Ok(crate::journal::hex(&hasher))
    }
}

/// Feeds a written tensor to a hasher.
pub(crate) fn digest_tensor(
    writer: &FileWriter,
    output: &crate::steps::Output,
    buffer: &mut [u8],
    hasher: &mut blake3::Hasher,
) -> Result<(), Error> {
    let mut at = 0;
    while at < output.len_bytes {
        let left = usize::try_from(output.len_bytes - at).unwrap_or(usize::MAX);
        let n = left.min(buffer.len());
        writer.read_at(output.at.1, at, &mut buffer[..n])?;
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
    Ok(())
}
