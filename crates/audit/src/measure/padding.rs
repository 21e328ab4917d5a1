//! Codes that are stored beyond the edges of a weight: zeros, if nothing went wrong.

use std::ops::Range;

use safequant_container::Checkpoint;
use safequant_kernels::Backend;
use safequant_schemes::{
    Basis, Code, Decoder, Error, Granularity, IntegerEncoding, Part, QuantizedTensor, Role,
    ScaleCoding, Scheme, Storage,
};

use super::Occurrences;

/// Codes that are read at once.
const TILE_CODES: u64 = 1 << 20;

/// Counts codes in the padding of a matrix that are not stored as zeros; row and column are those of the stored matrix.
///
/// # Errors
/// I/O.
pub(super) fn dirt(
    tensor: &QuantizedTensor,
    checkpoint: &Checkpoint,
) -> Result<Occurrences, Error> {
    let mut found = Occurrences::default();
    let Some((whole, logical)) = with_padding(tensor) else {
        return Ok(found);
    };
    let decoder = Decoder::new(&whole, checkpoint, Backend::detect())?;
    let zero = match whole.scheme.code {
        Code::Integer {
            bits,
            encoding: IntegerEncoding::TwosComplement,
        } => 1_u8.checked_shl(bits.saturating_sub(1)).unwrap_or(0),
        Code::Integer {
            encoding: IntegerEncoding::Unsigned,
            ..
        }
        | Code::Minifloat(_)
        | Code::Codebook(_)
        | Code::StoredCodebook
        | Code::Dense(_) => 0,
    };
    let (n_rows, width) = (whole.out_features(), whole.in_features());
    // Whole rows of padding stand at the end; the ends of all others are only there if rows are longer than they should be.
    let first = if width > logical[1] { 0 } else { logical[0] };
    let unit = decoder.row_unit().max(1);
    let step = (TILE_CODES / width.max(1) / unit)
        .max(1)
        .saturating_mul(unit);
    let mut start = first / unit * unit;
    while start < n_rows {
        let rows: Range<u64> = start..start.saturating_add(step).min(n_rows);
        let tile = decoder.codes(rows.clone())?;
        let line = usize::try_from(width.max(1)).unwrap_or(usize::MAX);
        for (row, codes) in rows.zip(tile.codes.chunks(line)) {
            let from = if row < logical[0] { logical[1] } else { 0 };
            for (column, &code) in (0..).zip(codes) {
                if column >= from && code != zero {
                    found.note([row, column]);
                }
            }
        }
        start = start.saturating_add(step);
    }
    Ok(found)
}

/// The codes of a single matrix with their padding, as a weight of its own, and the sides of the weight without; `None` where
/// there is no padding, or none that can be told from codes.
fn with_padding(tensor: &QuantizedTensor) -> Option<(QuantizedTensor, [u64; 2])> {
    let codes = tensor.part(Role::Codes)?;
    let [rows, columns] = codes.extent?;
    let logical = [tensor.out_features(), tensor.in_features()];
    let is_grid = match codes.storage {
        Storage::Elements { .. } | Storage::Packed { .. } => true,
        Storage::SharedElements { .. }
        | Storage::PackedConstant { .. }
        | Storage::Flat { .. }
        | Storage::Common
        | Storage::LowHigh { .. }
        | Storage::Planes { .. }
        | Storage::Sparse { .. }
        | Storage::Blocks { .. }
        | Storage::Tiled { .. }
        | Storage::Vector => false,
    };
    let is_code = !matches!(tensor.scheme.code, Code::Dense(_) | Code::StoredCodebook);
    let is_padded = rows > logical[0] || columns > logical[1];
    if tensor.shape.len() != 2 || !is_grid || !is_code || !is_padded {
        return None;
    }
    let scheme = Scheme {
        basis: Basis::WEIGHT,
        ..Scheme::plain(tensor.scheme.code, Granularity::Tensor, ScaleCoding::One)
    };
    let part = Part {
        extent: None,
        ..codes.clone()
    };
    let whole = QuantizedTensor {
        shape: vec![rows, columns],
        scheme,
        parts: vec![part],
        ..tensor.clone()
    };
    Some((whole, logical))
}
