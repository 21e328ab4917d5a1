//! From codes and scales to the bytes of stored parts: the reverse of `decode`.

mod constants;
mod form;
mod sparse;
mod zeros;

use std::borrow::Cow;
use std::ops::Range;

use safequant_kernels::{Backend, E8M0Rule, NanRule, OverflowRule};

pub(crate) use self::constants::floats_region;
pub use self::constants::{
    constant_regions, group_index_region, held_regions, trivial_index_region,
};
pub use self::form::{block_format, code_form};
use self::sparse::KeptRows;
use self::zeros::stored_zeros;
use crate::arithmetic::code_bytes as bytes_of_code;
use crate::decode::holds_bare_fields;
use crate::storage::{
    Sparse, Stored, WordShift, blocks, grid_of, scale_rows, segments, super_rows, to_u64,
};
use crate::{
    Code, CodeTile, Error, Granularity, IntegerEncoding, Part, QuantizedTensor, Role, ScaleCoding,
    Storage, SuperScale, ZeroPoint,
};

/// Bytes for a rectangle of one stored part.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedRegion {
    /// Index into `QuantizedTensor::parts`.
    pub part: usize,
    /// Bytes of a row of the part, which is seen as a matrix of that many bytes in a row (not always its last dimension).
    pub row_len: u64,
    /// Rows of that matrix.
    pub rows: Range<u64>,
    /// Bytes within each of those rows.
    pub columns: Range<u64>,
    /// The bytes, row after row.
    pub bytes: Vec<u8>,
}

/// Tiles handed to [`encode`] must begin at multiples of this many rows (within each matrix), so that no two tiles share
/// a stored word, a block or a super-scale.
pub fn row_unit(tensor: &QuantizedTensor) -> u64 {
    let scheme = &tensor.scheme;
    let columns = tensor.in_features();
    // Rows after which a run of `n` elements of the flattened matrix is complete.
    let rows_of = |n: u64| least_common_multiple(n, columns) / columns.max(1);
    // Scales that share a super-scale.
    let nested = match scheme.super_scale {
        SuperScale::Nested { size, offset: _ } => size.max(1),
        SuperScale::None
        | SuperScale::Multiply
        | SuperScale::Divide
        | SuperScale::Grouped { .. }
        | SuperScale::Channel => 1,
    };
    let (block, scales) = match scheme.granularity {
        Granularity::Block { rows, .. } => (rows.max(1), rows.max(1)),
        Granularity::Flat { size } => (rows_of(size.max(1).saturating_mul(nested)), 1),
        Granularity::Strided { .. } => (tensor.out_features().max(1), 1),
        Granularity::Group { size } | Granularity::IndexedGroup { size } => {
            let groups = columns.div_ceil(size.max(1)).max(1);
            (least_common_multiple(nested, groups) / groups, 1)
        }
        Granularity::Channel => (nested, 1),
        Granularity::Tensor => (1, 1),
    };
    let parts = tensor.parts.iter().filter(|p| is_streamed(p, tensor));
    parts
        .filter_map(|part| {
            let unit = to_u64(Stored::new(tensor, part).ok()?.write_unit());
            // Rows of the scale grid are blocks of rows, or a single one for the whole matrix.
            let scale = if part.role == Role::Codes { 1 } else { scales };
            is_per_row(part.role, tensor).then(|| unit.saturating_mul(scale))
        })
        .fold(block, least_common_multiple)
}

/// Whether rows of the grid of this role go with rows of the weight.
fn is_per_row(role: Role, tensor: &QuantizedTensor) -> bool {
    let scheme = &tensor.scheme;
    match role {
        Role::Codes | Role::Mask | Role::RowStart => true,
        Role::SuperScale => matches!(
            scheme.super_scale,
            SuperScale::Grouped { .. } | SuperScale::Channel
        ),
        Role::Scale | Role::ZeroPoint | Role::Offset => match scheme.granularity {
            Granularity::Channel
            | Granularity::Group { .. }
            | Granularity::IndexedGroup { .. }
            | Granularity::Block { .. } => true,
            Granularity::Tensor | Granularity::Flat { .. } | Granularity::Strided { .. } => false,
        },
        Role::GroupIndex
        | Role::ScaleTable
        | Role::Codebook
        | Role::ColumnFactor
        | Role::LowRankUp
        | Role::LowRankDown
        | Role::Shape
        | Role::Auxiliary => false,
    }
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a.max(1), b.max(1));
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a.max(1) / x).saturating_mul(b.max(1))
}

/// Whether tiles fill the part.
pub(crate) fn is_streamed(part: &Part, tensor: &QuantizedTensor) -> bool {
    if part.content.is_some() {
        return false;
    }
    match part.role {
        Role::Codes
        | Role::Scale
        | Role::Offset
        | Role::SuperScale
        | Role::Mask
        | Role::RowStart => true,
        Role::ZeroPoint => matches!(tensor.scheme.zero_point, ZeroPoint::Stored(_)),
        Role::GroupIndex
        | Role::ScaleTable
        | Role::Codebook
        | Role::ColumnFactor
        | Role::LowRankUp
        | Role::LowRankDown
        | Role::Shape
        | Role::Auxiliary => false,
    }
}

/// Bytes of one code in a tile: 1, but for dense values.
pub fn code_bytes(tensor: &QuantizedTensor) -> u64 {
    to_u64(bytes_of_code(tensor.scheme.code))
}

/// Whether the bytes of a part follow neither from tiles nor from the layout: they come from the tensor that is converted.
pub fn is_carried(tensor: &QuantizedTensor, part: &Part) -> bool {
    let is_constant = match (part.role, part.storage) {
        // A trivial index follows from the group size; another one is written by whoever has it.
        (Role::Shape | Role::GroupIndex, _) | (Role::ZeroPoint, Storage::PackedConstant { .. }) => {
            true
        }
        _ => part.content.is_some(),
    };
    !is_constant && !is_streamed(part, tensor)
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
    regions(tensor, tile, backend, |_| true)
}

/// As [`encode`], for all parts but the codes: a quantizer has written those itself, in the form that [`code_form`] says.
///
/// # Errors
/// As [`encode`].
///
/// # Panics
/// As [`encode`].
pub fn encode_beside(
    tensor: &QuantizedTensor,
    tile: &CodeTile,
    backend: &'static Backend,
) -> Result<Vec<EncodedRegion>, Error> {
    regions(tensor, tile, backend, |part| part.role != Role::Codes)
}

/// As [`encode`], for the codes alone, and whatever lies in blocks with them.
///
/// # Errors
/// As [`encode`].
///
/// # Panics
/// As [`encode`].
pub fn encode_codes(
    tensor: &QuantizedTensor,
    tile: &CodeTile,
    backend: &'static Backend,
) -> Result<Vec<EncodedRegion>, Error> {
    regions(tensor, tile, backend, |part| part.role == Role::Codes)
}

fn regions(
    tensor: &QuantizedTensor,
    tile: &CodeTile,
    backend: &'static Backend,
    is_wanted: impl Fn(&Part) -> bool,
) -> Result<Vec<EncodedRegion>, Error> {
    let mut regions = Vec::new();
    let streamed: Vec<(usize, &Part, Stored)> = tensor
        .parts
        .iter()
        .enumerate()
        .filter(|(_, part)| is_streamed(part, tensor) && is_wanted(part))
        .map(|(i, part)| Ok((i, part, Stored::new(tensor, part)?)))
        .collect::<Result<_, Error>>()?;
    let scheme = &tensor.scheme;
    let columns = grid_of(tensor, Role::Codes)?.columns;
    let groups = grid_of(tensor, Role::Scale)?.columns;
    let supers = grid_of(tensor, Role::SuperScale)?.columns;
    let width = columns * bytes_of_code(scheme.code);
    let sparse = Sparse::new(tensor)?;
    let (mut code_at, mut scale_at, mut super_at) = (0, 0, 0);
    for (matrix, local) in segments(&tensor.module, &tile.rows, tensor.out_features())? {
        let scale_local = scale_rows(scheme.granularity, &local, columns);
        let super_local = super_rows(scheme.super_scale, &scale_local, groups);
        let codes = code_at..code_at + local.len() * width;
        let scales = scale_at..scale_at + scale_local.len() * groups;
        let above = super_at..super_at + super_local.len() * supers;
        (code_at, scale_at, super_at) = (codes.end, scales.end, above.end);
        let kept = match &sparse {
            Some(sparse) => {
                let at = codes.start / width.max(1)..codes.end / width.max(1);
                Some(KeptRows::new(sparse, tensor, tile, &local, at)?)
            }
            None => None,
        };
        let of_kept =
            |of: fn(&KeptRows) -> &Vec<u8>| kept.as_ref().map(of).cloned().unwrap_or_default();
        for (i, part, stored) in &streamed {
            if let Stored::Blocks(in_blocks) = stored {
                let cut = [&codes, &scales, &above];
                regions.push(in_blocks.encode(tensor, *i, (matrix, &local), tile, cut)?);
                continue;
            }
            let mut shift = WordShift::None;
            let (rows, entries): (_, Cow<'_, [u8]>) = match part.role {
                Role::Codes => match &kept {
                    Some(kept) => (&kept.rows, stored_codes(tensor, part, &kept.codes)),
                    None => (
                        &local,
                        stored_codes(tensor, part, &tile.codes[codes.clone()]),
                    ),
                },
                Role::Mask => (&local, of_kept(|k| &k.mask).into()),
                Role::RowStart => (&local, of_kept(|k| &k.starts).into()),
                Role::ZeroPoint => {
                    let (lanes, word) = stored_zeros(
                        tensor,
                        part,
                        (&tile.zeros[scales.clone()], &tile.scales[scales.clone()]),
                        groups,
                        backend,
                    )?;
                    shift = word;
                    (&scale_local, lanes.into())
                }
                Role::Offset => {
                    let values = &tile.offsets[scales.clone()];
                    let what = ("offset", groups);
                    (
                        &scale_local,
                        stored_floats(tensor, part, what, values, backend)?.into(),
                    )
                }
                Role::SuperScale => {
                    let values = &tile.supers[above.clone()];
                    let what = ("super-scale", supers);
                    (
                        &super_local,
                        stored_floats(tensor, part, what, values, backend)?.into(),
                    )
                }
                Role::Scale
                | Role::GroupIndex
                | Role::ScaleTable
                | Role::Codebook
                | Role::ColumnFactor
                | Role::LowRankUp
                | Role::LowRankDown
                | Role::Shape
                | Role::Auxiliary => {
                    let scales = &tile.scales[scales.clone()];
                    (
                        &scale_local,
                        stored_scales(tensor, part, scales, groups, backend)?.into(),
                    )
                }
            };
            let is_repeated = part.storage == Storage::Common && matrix > 0;
            if !is_repeated && (!is_for_all_rows(part.role, tensor) || local.start == 0) {
                regions.extend(stored.write(*i, matrix, rows, &entries, backend, shift));
            }
        }
    }
    Ok(regions)
}

/// Whether every scale, zero point and offset of a tile has a stored form; its codes are not looked at.
///
/// # Errors
/// As [`encode`].
pub(crate) fn check_scales(tensor: &QuantizedTensor, tile: &CodeTile) -> Result<(), Error> {
    let backend = Backend::detect();
    let groups = grid_of(tensor, Role::Scale)?.columns;
    let supers = grid_of(tensor, Role::SuperScale)?.columns;
    if let Some(format) = blocks::of(tensor) {
        blocks::check(tensor, format, tile)?;
    }
    for part in tensor.parts.iter().filter(|p| is_streamed(p, tensor)) {
        match part.role {
            Role::Scale => drop(stored_scales(tensor, part, &tile.scales, groups, backend)?),
            Role::ZeroPoint => {
                let values = (tile.zeros.as_slice(), tile.scales.as_slice());
                drop(stored_zeros(tensor, part, values, groups, backend)?);
            }
            Role::Offset => {
                let what = ("offset", groups);
                drop(stored_floats(tensor, part, what, &tile.offsets, backend)?);
            }
            Role::SuperScale => {
                let what = ("super-scale", supers);
                drop(stored_floats(tensor, part, what, &tile.supers, backend)?);
            }
            Role::Codes
            | Role::GroupIndex
            | Role::ScaleTable
            | Role::Codebook
            | Role::ColumnFactor
            | Role::LowRankUp
            | Role::LowRankDown
            | Role::Mask
            | Role::RowStart
            | Role::Shape
            | Role::Auxiliary => {}
        }
    }
    Ok(())
}

/// Whether a single entry of this role, or a single row of them, goes with the whole matrix.
fn is_for_all_rows(role: Role, tensor: &QuantizedTensor) -> bool {
    let scheme = &tensor.scheme;
    let of_scales = matches!(
        scheme.granularity,
        Granularity::Tensor | Granularity::Strided { .. }
    );
    match role {
        Role::Codes | Role::Mask | Role::RowStart => false,
        Role::SuperScale => {
            of_scales
                || matches!(
                    scheme.super_scale,
                    SuperScale::Multiply | SuperScale::Divide
                )
        }
        Role::Scale
        | Role::ZeroPoint
        | Role::Offset
        | Role::GroupIndex
        | Role::ScaleTable
        | Role::Codebook
        | Role::ColumnFactor
        | Role::LowRankUp
        | Role::LowRankDown
        | Role::Shape
        | Role::Auxiliary => of_scales,
    }
}

/// Codes as the file spells them.
fn stored_codes<'c>(tensor: &QuantizedTensor, part: &Part, codes: &'c [u8]) -> Cow<'c, [u8]> {
    match tensor.scheme.code {
        Code::Integer {
            bits,
            encoding: IntegerEncoding::TwosComplement,
        } => {
            let half = 1_u8 << (bits - 1);
            if holds_bare_fields(part, bits) {
                return codes.iter().map(|c| c ^ half).collect();
            }
            codes.iter().map(|c| c.wrapping_sub(half)).collect()
        }
        Code::Integer {
            encoding: IntegerEncoding::Unsigned,
            ..
        }
        | Code::Minifloat(_)
        | Code::Codebook(_)
        | Code::StoredCodebook
        | Code::Dense(_) => Cow::Borrowed(codes),
    }
}

/// Scales as the file spells them; each must be one that the stored form holds.
fn stored_scales(
    tensor: &QuantizedTensor,
    part: &Part,
    scales: &[f32],
    groups: usize,
    backend: &'static Backend,
) -> Result<Vec<u8>, Error> {
    let each = |encode: &dyn Fn(f32) -> Option<u8>| {
        let one = |(at, &scale): (usize, &f32)| {
            encode(scale).ok_or_else(|| unstorable(tensor, "scale", scale, at, groups))
        };
        scales.iter().enumerate().map(one).collect()
    };
    match tensor.scheme.scale {
        ScaleCoding::Float(_) => stored_floats(tensor, part, ("scale", groups), scales, backend),
        ScaleCoding::E8M0(rule) => {
            let bytes = Powers::new(rule);
            each(&|s| bytes.byte(s))
        }
        ScaleCoding::Minifloat(format) => {
            let (mut codes, table) = (vec![0; scales.len()], format.table());
            let (overflow, nan) = (OverflowRule::Saturate, NanRule::Torch);
            (backend.encode_minifloat)(format, overflow, nan, scales, &mut codes);
            let value = |code: u8| table[usize::from(code)];
            let mut pairs = codes.iter().zip(scales);
            match pairs.position(|(&code, &scale)| !same_bits(value(code), scale)) {
                None => Ok(codes),
                Some(at) => Err(unstorable(tensor, "scale", scales[at], at, groups)),
            }
        }
        ScaleCoding::Integer => each(&|s| {
            let byte = small_u8(s);
            same_bits(f32::from(byte), s).then_some(byte)
        }),
        ScaleCoding::StoredTable => {
            let table = scale_table(tensor)?;
            let is_it = |s: f32, code: u8| same_bits(table[usize::from(code)], s);
            each(&|s| {
                // Tables are sorted, but nothing says that they must be.
                let likely = table.partition_point(|&value| value < s);
                let likely = u8::try_from(likely).ok().filter(|&code| is_it(s, code));
                likely.or_else(|| (0..=255).find(|&code| is_it(s, code)))
            })
        }
        ScaleCoding::One => each(&|_| None),
    }
}

/// The integer part of a number, at most 255.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates; the caller compares"
)]
fn small_u8(value: f32) -> u8 {
    value as u8
}

/// The bytes of powers of two: the first one that is decoded to a number, found by the number's exponent.
struct Powers {
    rule: E8M0Rule,
    by_exponent: [u8; 256],
}

impl Powers {
    fn new(rule: E8M0Rule) -> Self {
        let mut by_exponent = [0; 256];
        // Downward, so that the first one of equal powers stays.
        for byte in (0..=255).rev() {
            by_exponent[Self::exponent(rule.decode(byte))] = byte;
        }
        Self { rule, by_exponent }
    }

    fn exponent(power: f32) -> usize {
        usize::from((power.to_bits() >> 23).to_le_bytes()[0])
    }

    fn byte(&self, power: f32) -> Option<u8> {
        let is_it = |byte: &u8| same_bits(self.rule.decode(*byte), power);
        let likely = self.by_exponent[Self::exponent(power)];
        // Two subnormal powers have one exponent.
        Some(likely).filter(is_it).or_else(|| (0..=255).find(is_it))
    }
}

/// The 256 values that scale codes index, which a layout carries as content.
fn scale_table(tensor: &QuantizedTensor) -> Result<[f32; 256], Error> {
    let content = tensor
        .part(Role::ScaleTable)
        .and_then(|part| part.content.as_deref());
    let (values, rest) = content.unwrap_or_default().as_chunks::<4>();
    match <&[[u8; 4]; 256]>::try_from(values) {
        Ok(values) if rest.is_empty() => Ok(values.map(f32::from_le_bytes)),
        _ => Err(Error::MissingPart {
            module: tensor.module.clone(),
            part: "the table of scales".to_owned(),
        }),
    }
}

/// Numbers as the part's dtype, which must hold them exactly. `what` is what they are, and the columns of their grid.
fn stored_floats(
    tensor: &QuantizedTensor,
    part: &Part,
    (what, columns): (&'static str, usize),
    values: &[f32],
    backend: &'static Backend,
) -> Result<Vec<u8>, Error> {
    let float = crate::decode::float_dtype(tensor, part)?;
    let mut bytes = vec![0; values.len() * float.size_bytes()];
    let mut back = vec![0.0; values.len()];
    (backend.round)(float, values, &mut bytes);
    (backend.widen)(float, &bytes, &mut back);
    let differs = |(a, b): (&f32, &f32)| !same_bits(*a, *b);
    match values.iter().zip(&back).position(differs) {
        None => Ok(bytes),
        Some(at) => Err(unstorable(tensor, what, values[at], at, columns)),
    }
}

fn same_bits(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

pub(crate) fn unstorable(
    tensor: &QuantizedTensor,
    what: &'static str,
    value: f32,
    at: usize,
    columns: usize,
) -> Error {
    Error::Unstorable {
        module: tensor.module.clone(),
        what,
        value: value.to_string(),
        row: to_u64(at / columns.max(1)),
        group: to_u64(at % columns.max(1)),
        detail: format!("{:?} does not hold it exactly", tensor.scheme.scale),
    }
}
