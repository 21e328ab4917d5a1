//! The parts that no tile fills: what follows from the layout, group indices, and what is held as a whole.

use safequant_container::Dtype;
use safequant_kernels::Backend;

use super::{EncodedRegion, stored_floats};
use crate::arithmetic::Extras;
use crate::storage::{Stored, WordShift, grid_of, to_u64};
use crate::{Error, Granularity, Part, QuantizedTensor, Role, Storage};

/// The parts of `tensor` that are held as a whole while it is decoded (code book, factors per input feature, low-rank
/// factors), in the layout of `target`: when a tensor is written again in the same basis. Whole and in one region each.
///
/// # Errors
/// A number that the target's dtype does not hold.
pub fn held_regions(
    target: &QuantizedTensor,
    held: &Extras,
    backend: &'static Backend,
) -> Result<Vec<EncodedRegion>, Error> {
    let mut regions = Vec::new();
    for (i, part) in target.parts.iter().enumerate() {
        let values: &[f32] = match part.role {
            Role::Codebook => held.codebook.as_ref().map_or(&[], |b| b.as_slice()),
            Role::ColumnFactor => &held.columns,
            Role::LowRankUp => &held.up,
            Role::LowRankDown => &held.down,
            Role::Codes
            | Role::Scale
            | Role::ZeroPoint
            | Role::Offset
            | Role::SuperScale
            | Role::ScaleTable
            | Role::GroupIndex
            | Role::RowStart
            | Role::Mask
            | Role::Shape
            | Role::Auxiliary => continue,
        };
        if part.content.is_some() {
            continue;
        }
        let grid = grid_of(target, part.role)?;
        if grid.rows.checked_mul(grid.columns) != Some(values.len()) {
            return Err(Error::MissingPart {
                module: target.module.clone(),
                part: part.name.clone(),
            });
        }
        let stored = Stored::new(target, part)?;
        let entries = stored_floats(target, part, ("factor", grid.columns), values, backend)?;
        regions.extend(stored.write(i, 0, &(0..grid.rows), &entries, backend, WordShift::None));
    }
    Ok(regions)
}

/// The parts that no tile fills: shape descriptors, trivial group indices, the zero points of symmetric integers where
/// the convention stores them; whole and in one region each.
pub fn constant_regions(tensor: &QuantizedTensor) -> Vec<EncodedRegion> {
    let region = |part: usize, bytes: Vec<u8>| {
        let shape = &tensor.parts[part].shape;
        let rows = shape.iter().rev().skip(1).product::<u64>();
        let row_len = to_u64(bytes.len()).checked_div(rows).unwrap_or(0);
        EncodedRegion {
            part,
            row_len,
            rows: 0..rows,
            columns: 0..row_len,
            bytes,
        }
    };
    tensor
        .parts
        .iter()
        .enumerate()
        .filter_map(|(i, part)| Some(region(i, constant_bytes(tensor, part)?)))
        .collect()
}

/// The bytes of a part that follows from the scheme alone.
fn constant_bytes(tensor: &QuantizedTensor, part: &Part) -> Option<Vec<u8>> {
    if let Some(content) = &part.content {
        return Some(content.clone());
    }
    match (part.role, part.storage) {
        (Role::Shape, _) => Some(integers(part.dtype, tensor.shape.iter().copied())),
        (Role::GroupIndex, _) => {
            let size = match tensor.scheme.granularity {
                Granularity::IndexedGroup { .. } => return None,
                Granularity::Group { size } => size.max(1),
                Granularity::Block { columns, .. } => columns.max(1),
                Granularity::Tensor
                | Granularity::Channel
                | Granularity::Flat { .. }
                | Granularity::Strided { .. } => u64::MAX,
            };
            Some(integers(
                part.dtype,
                (0..tensor.in_features()).map(|k| k / size),
            ))
        }
        (Role::ZeroPoint, Storage::PackedConstant { lane, .. }) => {
            let grid = grid_of(tensor, Role::ZeroPoint).ok()?;
            let stored = Stored::new(tensor, part).ok()?;
            let lanes = vec![lane; grid.rows * grid.columns];
            let backend = Backend::detect();
            let one = stored.write(0, 0, &(0..grid.rows), &lanes, backend, WordShift::None);
            let bytes: Vec<u8> = one.into_iter().flat_map(|r| r.bytes).collect();
            Some(bytes.repeat(usize::try_from(tensor.n_matrices()).ok()?))
        }
        _ => None,
    }
}

/// Little-endian I64, or I32 where the part says so.
fn integers(dtype: Dtype, values: impl Iterator<Item = u64>) -> Vec<u8> {
    values
        .flat_map(|v| {
            let bytes = v.to_le_bytes();
            let len = if dtype == Dtype::I32 { 4 } else { 8 };
            bytes.into_iter().take(len)
        })
        .collect()
}

/// The bytes of a part of dense floats, whole; `values` are all entries of its grid.
///
/// # Errors
/// A value that its dtype does not hold exactly.
pub(crate) fn floats_region(
    tensor: &QuantizedTensor,
    part: usize,
    values: &[f32],
) -> Result<Vec<EncodedRegion>, Error> {
    let backend = Backend::detect();
    let stored = Stored::new(tensor, &tensor.parts[part])?;
    let rows = 0..grid_of(tensor, tensor.parts[part].role)?.rows;
    let bytes = stored_floats(tensor, &tensor.parts[part], ("factor", 1), values, backend)?;
    Ok(stored.write(part, 0, &rows, &bytes, backend, WordShift::None))
}

/// The bytes of a group index of consecutive groups, where the layout keeps an index all the same. `None` where the layout
/// has none, or where it follows from the layout alone.
pub fn trivial_index_region(tensor: &QuantizedTensor) -> Option<EncodedRegion> {
    let Granularity::IndexedGroup { size } = tensor.scheme.granularity else {
        return None;
    };
    let group = |k: u64| u32::try_from(k / size.max(1)).ok();
    let index: Option<Vec<u32>> = (0..tensor.in_features()).map(group).collect();
    group_index_region(tensor, &index?)
}

/// The bytes of a group index that is not trivial: when act-order weights are written again.
///
/// `index`: one group per input feature. `None` if the tensor has no such part or the length differs.
pub fn group_index_region(tensor: &QuantizedTensor, index: &[u32]) -> Option<EncodedRegion> {
    let part = tensor
        .parts
        .iter()
        .position(|p| p.role == Role::GroupIndex)?;
    if to_u64(index.len()) != tensor.in_features() {
        return None;
    }
    let bytes = integers(
        tensor.parts[part].dtype,
        index.iter().map(|&g| u64::from(g)),
    );
    Some(EncodedRegion {
        part,
        row_len: to_u64(bytes.len()),
        rows: 0..1,
        columns: 0..to_u64(bytes.len()),
        bytes,
    })
}
