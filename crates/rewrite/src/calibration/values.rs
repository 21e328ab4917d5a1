//! F32 values out of a file.

use std::path::Path;

use safequant_container::ReadAt;

use super::Error;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 1 << 18;

/// Bytes of a value.
pub(super) const VALUE_BYTES: u64 = 4;

/// `n` values from `offset` on, a range that was compared with the file when it was opened.
pub(super) fn read(
    file: &str,
    source: &dyn ReadAt,
    offset: u64,
    n: u64,
) -> Result<Vec<f32>, Error> {
    let len_bytes = n.saturating_mul(VALUE_BYTES);
    let out_of_memory = || Error::OutOfMemory {
        file: file.to_owned(),
        len_bytes,
    };
    let mut values: Vec<f32> = Vec::new();
    let count = usize::try_from(n).map_err(|_| out_of_memory())?;
    let reserved = values.try_reserve_exact(count);
    reserved.map_err(|_| out_of_memory())?;
    let mut buffer =
        vec![0; usize::try_from(len_bytes).map_or(CHUNK_BYTES, |n| n.min(CHUNK_BYTES))];
    let mut at = offset;
    let end = offset.saturating_add(len_bytes);
    while at < end {
        let left = end.saturating_sub(at);
        let size = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let chunk = buffer.get_mut(..size).unwrap_or_default();
        let read = source.read_exact_at(at, chunk);
        read.map_err(|e| Error::io(Path::new(file), "read statistics", e))?;
        let words = chunk.chunks_exact(4);
        values.extend(words.map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])));
        at = at.saturating_add(size as u64);
    }
    Ok(values)
}
