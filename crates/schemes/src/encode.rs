//! From codes and scales to the bytes of stored parts: the reverse of `decode`.

use std::ops::Range;

use safequant_container::Dtype;
use safequant_kernels::{Backend, Minifloat, NanRule, OverflowRule};

use crate::decode::integer_bits;
use crate::grid::{Stored, WordShift, grid_of, scale_rows, segments, to_u64};
use crate::{
    Code, Error, Granularity, IntegerEncoding, Part, QuantizedTensor, Role, ScaleCoding, Storage,
    ZeroCoding, ZeroPoint,
};

/// Codes, scales and zero points of some rows, in the neutral form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CodeTile {
    /// Rows of the stack.
    pub rows: Range<u64>,
    /// Codes in unsigned form (integers) or as bit patterns (minifloats, code books): `[rows, in_features]`.
    pub codes: Vec<u8>,
    /// Scales as numbers that the stored dtype holds exactly: `[row groups, in groups]` of the tile (one entry for
    /// per-tensor granularity; one row of entries per block row for blocks). Matrices of a stack stand one after the other.
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
pub fn row_unit(tensor: &QuantizedTensor) -> u64 {
    let block = match tensor.scheme.granularity {
        Granularity::Block { rows, .. } => rows.max(1),
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::Group { .. }
        | Granularity::IndexedGroup { .. } => 1,
    };
    let is_whole = tensor.scheme.granularity == Granularity::Tensor;
    let parts = tensor.parts.iter().filter(|p| is_streamed(p, tensor));
    parts
        .filter_map(|part| {
            let unit = to_u64(Stored::new(tensor, part).ok()?.row_unit());
            // Rows of the scale grid are blocks of rows, or a single one for the whole matrix.
            if part.role == Role::Codes {
                Some(unit)
            } else {
                (!is_whole).then(|| unit.saturating_mul(block))
            }
        })
        .fold(block, least_common_multiple)
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a.max(1), b.max(1));
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a.max(1) / x).saturating_mul(b.max(1))
}

/// Whether tiles fill the part.
fn is_streamed(part: &Part, tensor: &QuantizedTensor) -> bool {
    match part.role {
        Role::Codes | Role::Scale => true,
        Role::ZeroPoint => matches!(tensor.scheme.zero_point, ZeroPoint::Stored(_)),
        Role::GroupIndex | Role::Shape | Role::Auxiliary => false,
    }
}

/// The regions that a tile fills: every byte of every streamed part is filled by exactly one tile. The scale of a whole
/// matrix is filled by the tile with the matrix's first row.
///
/// # Errors
/// A zero point or scale that the convention cannot store: names module, row and group.
///
/// # Panics
/// If the tile's lengths do not fit its rows: the caller's bug.
pub fn encode(
    tensor: &QuantizedTensor,
    tile: &CodeTile,
    backend: &'static Backend,
) -> Result<Vec<EncodedRegion>, Error> {
    let mut regions = Vec::new();
    let streamed: Vec<(usize, &Part, Stored)> = tensor
        .parts
        .iter()
        .enumerate()
        .filter(|(_, part)| is_streamed(part, tensor))
        .map(|(i, part)| Ok((i, part, Stored::new(tensor, part)?)))
        .collect::<Result<_, Error>>()?;
    let columns = grid_of(tensor, Role::Codes)?.columns;
    let groups = grid_of(tensor, Role::Scale)?.columns;
    let (mut code_at, mut scale_at) = (0, 0);
    for (matrix, local) in segments(&tensor.module, &tile.rows, tensor.out_features())? {
        let scale_local = scale_rows(tensor.scheme.granularity, &local);
        let codes = code_at..code_at + local.len() * columns;
        let scales = scale_at..scale_at + scale_local.len() * groups;
        (code_at, scale_at) = (codes.end, scales.end);
        for (i, part, stored) in &streamed {
            let (rows, entries, shift) = match part.role {
                Role::Codes => (
                    &local,
                    stored_codes(tensor, &tile.codes[codes.clone()]),
                    WordShift::None,
                ),
                Role::ZeroPoint => {
                    let (lanes, shift) = stored_zeros(tensor, &tile.zeros[scales.clone()], groups)?;
                    (&scale_local, lanes, shift)
                }
                Role::Scale | Role::GroupIndex | Role::Shape | Role::Auxiliary => {
                    let bytes =
                        stored_scales(tensor, &tile.scales[scales.clone()], groups, backend)?;
                    (&scale_local, bytes, WordShift::None)
                }
            };
            let is_whole =
                tensor.scheme.granularity == Granularity::Tensor && part.role != Role::Codes;
            if !is_whole || local.start == 0 {
                regions.extend(stored.write(*i, matrix, rows, &entries, backend, shift));
            }
        }
    }
    Ok(regions)
}

/// Codes as the file spells them.
fn stored_codes(tensor: &QuantizedTensor, codes: &[u8]) -> Vec<u8> {
    match tensor.scheme.code {
        Code::Integer {
            bits,
            encoding: IntegerEncoding::TwosComplement,
        } => {
            let half = 1_u8 << (bits - 1);
            codes.iter().map(|c| c.wrapping_sub(half)).collect()
        }
        Code::Integer {
            encoding: IntegerEncoding::Unsigned,
            ..
        }
        | Code::Minifloat(_)
        | Code::Codebook(_) => codes.to_vec(),
    }
}

/// Scales as the file spells them; each must be one that the stored dtype holds.
fn stored_scales(
    tensor: &QuantizedTensor,
    scales: &[f32],
    groups: usize,
    backend: &'static Backend,
) -> Result<Vec<u8>, Error> {
    let (bytes, back) = match tensor.scheme.scale {
        ScaleCoding::Float(float) => {
            let mut bytes = vec![0; scales.len() * float.size_bytes()];
            let mut back = vec![0.0; scales.len()];
            (backend.round)(float, scales, &mut bytes);
            (backend.widen)(float, &bytes, &mut back);
            (bytes, back)
        }
        ScaleCoding::E8M0 => {
            let encode =
                |&s: &f32| Minifloat::E8M0.encode(s, OverflowRule::Saturate, NanRule::Torch);
            let bytes: Vec<u8> = scales.iter().map(encode).collect();
            let back = bytes.iter().map(|&b| Minifloat::E8M0.decode(b)).collect();
            (bytes, back)
        }
    };
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    match scales.iter().zip(&back).position(differs) {
        None => Ok(bytes),
        Some(at) => Err(Error::Unstorable {
            module: tensor.module.clone(),
            what: "scale",
            value: scales[at].to_string(),
            row: to_u64(at / groups.max(1)),
            group: to_u64(at % groups.max(1)),
            detail: format!("{:?} does not hold it exactly", tensor.scheme.scale),
        }),
    }
}

/// Zero points as the file spells them, before packing.
fn stored_zeros(
    tensor: &QuantizedTensor,
    zeros: &[i32],
    groups: usize,
) -> Result<(Vec<u8>, WordShift), Error> {
    let ZeroPoint::Stored(coding) = tensor.scheme.zero_point else {
        return Ok((Vec::new(), WordShift::None));
    };
    let bits = integer_bits(tensor);
    let (top, half) = ((1 << bits) - 1, 1 << (bits - 1));
    let mut lanes = Vec::with_capacity(zeros.len());
    for (at, &zero) in zeros.iter().enumerate() {
        let lane = match coding {
            ZeroCoding::Direct | ZeroCoding::MinusOneWord if (0..=top).contains(&zero) => {
                Some(zero)
            }
            ZeroCoding::MinusOne if (1..=top + 1).contains(&zero) => Some(zero - 1),
            ZeroCoding::MinusOneModulo if (0..=top).contains(&zero) => Some((zero - 1) & top),
            ZeroCoding::Signed if (0..=top).contains(&zero) => Some((zero - half) & 0xff),
            ZeroCoding::Direct
            | ZeroCoding::MinusOneWord
            | ZeroCoding::MinusOne
            | ZeroCoding::MinusOneModulo
            | ZeroCoding::Signed => None,
        };
        let detail = match coding {
            ZeroCoding::MinusOne => "gptq stores zero points minus one; gptq_v2 can hold it",
            ZeroCoding::Direct
            | ZeroCoding::MinusOneWord
            | ZeroCoding::MinusOneModulo
            | ZeroCoding::Signed => "",
        };
        lanes.push(
            lane.and_then(|l| u8::try_from(l).ok())
                .ok_or_else(|| Error::Unstorable {
                    module: tensor.module.clone(),
                    what: "zero point",
                    value: zero.to_string(),
                    row: to_u64(at / groups.max(1)),
                    group: to_u64(at % groups.max(1)),
                    detail: detail.to_owned(),
                })?,
        );
    }
    let shift = match coding {
        ZeroCoding::MinusOneWord => WordShift::PerLane(bits),
        ZeroCoding::Direct
        | ZeroCoding::MinusOne
        | ZeroCoding::MinusOneModulo
        | ZeroCoding::Signed => WordShift::None,
    };
    Ok((lanes, shift))
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
    match (part.role, part.storage) {
        (Role::Shape, _) => Some(integers(part.dtype, tensor.shape.iter().copied())),
        (Role::GroupIndex, _) => {
            let size = match tensor.scheme.granularity {
                Granularity::IndexedGroup { .. } => return None,
                Granularity::Group { size } => size.max(1),
                Granularity::Block { columns, .. } => columns.max(1),
                Granularity::Tensor | Granularity::Channel => u64::MAX,
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
        rows: 0..1,
        columns: 0..to_u64(bytes.len()),
        bytes,
    })
}
