//! From codes and scales to the bytes of stored parts: the reverse of `decode`.

use std::ops::Range;

use safequant_kernels::Backend;

use crate::{Error, QuantizedTensor};

/// Codes, scales and zero points of some rows, in the neutral form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CodeTile {
    /// Rows of the stack.
    pub rows: Range<u64>,
    /// Codes in unsigned form (integers) or as bit patterns (minifloats, code books): `[rows, in_features]`.
    pub codes: Vec<u8>,
    /// Scales as numbers that the stored dtype holds exactly: `[row groups, in groups]` of the tile (one entry for
    /// per-tensor granularity; one row of entries per block row for blocks).
    pub scales: Vec<f32>,
    /// Zeros of the unsigned form, laid out as `scales`; empty where the zero point is fixed.
    pub zeros: Vec<i32>,
}

/// Bytes for a rectangle of one stored part.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedRegion {
    /// Index into `QuantizedTensor::parts`.
    pub part: usize,
    /// Rows of the part seen as a matrix of its leading dimensions times its last one.
    pub rows: Range<u64>,
    /// Bytes within each of those rows.
    pub columns: Range<u64>,
    /// The bytes, row after row.
    pub bytes: Vec<u8>,
}

/// Tiles handed to [`encode`] must begin at multiples of this many rows (within each matrix), so that no two tiles share
/// a stored word or a block.
pub fn row_unit(_tensor: &QuantizedTensor) -> u64 {
    unimplemented!()
}

/// The regions that a tile fills: every byte of every streamed part is filled by exactly one tile.
///
/// # Errors
/// A zero point or scale that the convention cannot store: names module, row and group.
pub fn encode(
    _tensor: &QuantizedTensor,
    _tile: &CodeTile,
    _backend: &'static Backend,
) -> Result<Vec<EncodedRegion>, Error> {
    unimplemented!()
}

/// The parts that no tile fills: shape descriptors, trivial group indices, whole and in one region each.
pub fn constant_regions(_tensor: &QuantizedTensor) -> Vec<EncodedRegion> {
    unimplemented!()
}
