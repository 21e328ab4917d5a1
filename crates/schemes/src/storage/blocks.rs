//! ggml's blocks: codes and everything that scales them, interleaved in one part.
//!
//! A part with this storage fills codes, scales, offsets and super-scales of a tile by itself; there are no parts for those
//! roles. IQ1 has no codes: its tiles hold values ([`Code::Dense`]). The scales of IQ2 and IQ3 are halves of odd integers.

use std::ops::Range;

use safequant_container::TensorRef;
use safequant_kernels::blocks::{BlockLayout, BlockOffset, BlockScale, CodeValue};
use safequant_kernels::{BlockFields, BlockFormat, Codebook, Float};

use super::{Scratch, grid_of, part_bytes, to_u64, wrong_size};
use crate::encode::EncodedRegion;
use crate::{
    Axis, Code, CodeTile, E8M0Rule, Error, Granularity, IntegerEncoding, OffsetForm, Part,
    QuantizedTensor, ScaleCoding, Scheme, Storage, SuperScale, ZeroPoint,
};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    format: BlockFormat,
    rows: usize,
    row_len: usize,
    columns: usize,
}

/// The block type of a tensor that is stored in blocks.
pub(crate) fn of(tensor: &QuantizedTensor) -> Option<BlockFormat> {
    tensor.parts.iter().find_map(|part| {
        if let Storage::Blocks { format } = part.storage {
            Some(format)
        } else {
            None
        }
    })
}

/// Whether blocks hold the scales and offsets of a tile.
///
/// # Errors
/// The first that they do not.
pub(crate) fn check(
    tensor: &QuantizedTensor,
    format: BlockFormat,
    tile: &CodeTile,
) -> Result<(), Error> {
    coded(format).map_or(Ok(()), |layout| fields_of(tensor, layout, tile).map(drop))
}

/// The scheme of a block type.
pub(crate) fn scheme_of(format: BlockFormat) -> Scheme {
    let Some(layout) = coded(format) else {
        return Scheme::plain(
            Code::Dense(Float::F32),
            Granularity::Tensor,
            ScaleCoding::One,
        );
    };
    let (code, zero) = code_of(layout);
    let scale = match layout.scale {
        BlockScale::Super => ScaleCoding::Float(Float::F16),
        BlockScale::Integers | BlockScale::Halves => ScaleCoding::Integer,
        BlockScale::HalfE8M0 => ScaleCoding::E8M0(E8M0Rule::Half),
        // Half of an E4M3 is none: the smallest ones have a bit less.
        BlockScale::HalfE4M3 => ScaleCoding::Float(Float::F32),
    };
    let granularity = Granularity::Group {
        size: to_u64(layout.group),
    };
    let size = to_u64(layout.n_groups());
    Scheme {
        super_scale: match layout.scale {
            BlockScale::Integers | BlockScale::Halves => SuperScale::Grouped { size },
            BlockScale::Super | BlockScale::HalfE8M0 | BlockScale::HalfE4M3 => SuperScale::None,
        },
        zero_point: match layout.offset {
            BlockOffset::None => ZeroPoint::Fixed(zero),
            BlockOffset::Added => offset(zero, OffsetForm::Added),
            BlockOffset::Subtracted => offset(zero, OffsetForm::Subtracted),
        },
        ..Scheme::plain(code, granularity, scale)
    }
}

fn offset(zero: i32, form: OffsetForm) -> ZeroPoint {
    ZeroPoint::Offset { zero, form }
}

/// The layout of a type whose codes the neutral model can hold: not IQ1, nor `Q1_0`, whose values -1 and 1 are no
/// grid of integers with a zero.
fn coded(format: BlockFormat) -> Option<&'static BlockLayout> {
    format.layout().filter(|layout| layout.code_bits > 1)
}

fn code_of(layout: &BlockLayout) -> (Code, i32) {
    match layout.value {
        CodeValue::Integer { zero } => {
            let code = Code::Integer {
                bits: layout.code_bits,
                encoding: IntegerEncoding::Unsigned,
            };
            (code, zero.into())
        }
        CodeValue::Table(_) => match layout.scale {
            BlockScale::HalfE8M0 | BlockScale::HalfE4M3 => {
                (Code::Codebook(Codebook::DoubledE2M1), 0)
            }
            BlockScale::Super | BlockScale::Integers | BlockScale::Halves => {
                (Code::Codebook(Codebook::Iq4Nl), 0)
            }
        },
        CodeValue::Lattice(lattice) => (Code::Codebook(lattice.book), 0),
    }
}

impl Blocks {
    pub(super) fn new(
        tensor: &QuantizedTensor,
        part: &Part,
        format: BlockFormat,
    ) -> Result<Self, Error> {
        let grid = grid_of(tensor, part.role)?;
        if !grid.columns.is_multiple_of(format.elements()) {
            return Err(Error::PartShape {
                module: tensor.module.clone(),
                part: part.name.clone(),
                expected: format!("rows of whole blocks of {} elements", format.elements()),
                found: tensor.shape.clone(),
            });
        }
        let row_len = (grid.columns / format.elements()).saturating_mul(format.bytes());
        let matrix = to_u64(grid.rows).saturating_mul(to_u64(row_len));
        let needed = matrix.saturating_mul(tensor.n_matrices());
        if part_bytes(part) != Some(needed) {
            return Err(wrong_size(tensor, part, needed));
        }
        Ok(Self {
            format,
            rows: grid.rows,
            row_len,
            columns: grid.columns,
        })
    }

    /// The shape of a part with this storage.
    pub(super) fn shape(
        tensor: &QuantizedTensor,
        part: &Part,
        format: BlockFormat,
    ) -> Result<Vec<u64>, Error> {
        let columns = grid_of(tensor, part.role)?.columns;
        let mut shape = tensor.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = to_u64((columns / format.elements()).saturating_mul(format.bytes()));
        }
        Ok(shape)
    }

    pub(super) fn contiguous(&self, axis: Axis, entries: &Range<usize>) -> Option<Range<u64>> {
        let at = |row: usize| to_u64(row * self.row_len);
        (axis == Axis::Out).then(|| at(entries.start)..at(entries.end))
    }

    pub(super) fn scratch_bytes(&self, n_rows: u64) -> u64 {
        // The blocks, and their fields or values: at most four bytes for an element, and a few for a group.
        let columns = to_u64(self.columns);
        n_rows.saturating_mul(to_u64(self.row_len).saturating_add(columns.saturating_mul(6)))
    }

    /// The blocks of rows.
    pub(crate) fn bytes<'s>(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8], Error> {
        let bytes = scratch.lend(rows.len() * self.row_len);
        let first = matrix * to_u64(self.rows) + to_u64(rows.start);
        tensor.read_exact_at(first * to_u64(self.row_len), bytes)?;
        Ok(bytes)
    }

    /// Codes of rows alone.
    pub(super) fn read(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
    ) -> Result<Vec<u8>, Error> {
        let mut tile = CodeTile::default();
        self.fill(tensor, matrix, rows, &mut tile)?;
        Ok(tile.codes)
    }

    /// Appends what the blocks of some rows hold to a tile.
    pub(crate) fn fill(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        tile: &mut CodeTile,
    ) -> Result<(), Error> {
        let mut scratch = Scratch::default();
        let bytes = self.bytes(tensor, matrix, rows, &mut scratch)?;
        let Some(layout) = coded(self.format) else {
            let mut values = vec![0.0; rows.len() * self.columns];
            self.format.dequantize(bytes, &mut values);
            tile.codes
                .extend(values.iter().flat_map(|v| v.to_le_bytes()));
            return Ok(());
        };
        let mut fields = BlockFields::default();
        layout.unpack(bytes, &mut fields);
        tile.codes.append(&mut fields.codes);
        match layout.scale {
            BlockScale::Super => tile.scales.append(&mut fields.d),
            BlockScale::Integers | BlockScale::Halves => {
                let decode = |&code: &i16| layout.scale.decode(code);
                tile.scales.extend(fields.scales.iter().map(decode));
                tile.supers.append(&mut fields.d);
            }
            BlockScale::HalfE8M0 | BlockScale::HalfE4M3 => {
                let decode = |&code: &i16| layout.scale.decode(code);
                tile.scales.extend(fields.scales.iter().map(decode));
            }
        }
        match layout.offset {
            BlockOffset::None => {}
            BlockOffset::Added => tile.offsets.append(&mut fields.m),
            BlockOffset::Subtracted => {
                tile.offsets
                    .extend(fields.mins.iter().map(|&m| f32::from(m)));
                tile.offset_supers.append(&mut fields.m);
            }
        }
        Ok(())
    }

    /// The blocks of rows, from the part of a tile that belongs to them.
    ///
    /// # Errors
    /// A scale or offset that a block cannot hold; a type that is only read.
    pub(crate) fn encode(
        &self,
        tensor: &QuantizedTensor,
        part: usize,
        (matrix, rows): (u64, &Range<usize>),
        tile: &CodeTile,
        cut: [&Range<usize>; 3],
    ) -> Result<EncodedRegion, Error> {
        let Some(layout) = coded(self.format) else {
            return Err(Error::CannotWrite {
                convention: tensor.convention,
                module: tensor.module.clone(),
                preset: self.format.name().to_owned(),
                reason: "blocks of this type are only read".to_owned(),
            });
        };
        let mut bytes = vec![0; rows.len() * self.row_len];
        let scales = tile.scales.get(cut[1].clone()).unwrap_or_default();
        let is_plain = scales.iter().all(|&scale| is_f16(scale));
        let codes = &tile.codes[cut[0].clone()];
        if !is_plain || !self.format.pack_scaled(codes, scales, &mut bytes) {
            let fields = fields_of(tensor, layout, &cut_tile(tile, cut))?;
            layout.pack(&fields, &mut bytes);
        }
        let first = matrix * to_u64(self.rows) + to_u64(rows.start);
        let row_len = to_u64(self.row_len);
        Ok(EncodedRegion {
            part,
            row_len,
            rows: first..first + to_u64(rows.len()),
            columns: 0..row_len,
            bytes,
        })
    }
}

/// What belongs to some rows of a tile: ranges of its codes, scales and super-scales.
fn cut_tile(tile: &CodeTile, [codes, scales, supers]: [&Range<usize>; 3]) -> CodeTile {
    let floats = |values: &[f32], range: &Range<usize>| {
        values
            .get(range.clone())
            .map(<[f32]>::to_vec)
            .unwrap_or_default()
    };
    CodeTile {
        codes: tile.codes[codes.clone()].to_vec(),
        scales: floats(&tile.scales, scales),
        offsets: floats(&tile.offsets, scales),
        supers: floats(&tile.supers, supers),
        offset_supers: floats(&tile.offset_supers, supers),
        ..CodeTile::default()
    }
}

/// The fields of blocks from numbers; every one must be stored exactly.
fn fields_of(
    tensor: &QuantizedTensor,
    layout: &BlockLayout,
    tile: &CodeTile,
) -> Result<BlockFields, Error> {
    let bad = |what, values: &[f32], at: usize| {
        crate::encode::unstorable(tensor, what, values[at], at, values.len().max(1))
    };
    let halves = |what, values: &[f32]| match values.iter().position(|v| !is_f16(*v)) {
        None => Ok(values.to_vec()),
        Some(at) => Err(bad(what, values, at)),
    };
    let integers = |what, values: &[f32], decode: &dyn Fn(i16) -> f32| {
        let find = |value: f32| {
            let mut codes = layout.scale_range();
            codes.find(|code| decode(*code).to_bits() == value.to_bits())
        };
        let each = values.iter().enumerate();
        each.map(|(at, v)| find(*v).ok_or_else(|| bad(what, values, at)))
            .collect::<Result<Vec<i16>, Error>>()
    };
    let scale = |code| layout.scale.decode(code);
    if let Some(at) = layout.first_without_point(&tile.codes) {
        let values: Vec<f32> = tile
            .codes
            .iter()
            .map(|code| layout.value.of(*code))
            .collect();
        return Err(bad("point of the lattice", &values, at));
    }
    let mut fields = BlockFields {
        codes: tile.codes.clone(),
        ..BlockFields::default()
    };
    match layout.scale {
        BlockScale::Super => fields.d = halves("scale", &tile.scales)?,
        BlockScale::Integers | BlockScale::Halves => {
            fields.scales = integers("scale", &tile.scales, &scale)?;
            fields.d = halves("super-scale", &tile.supers)?;
        }
        BlockScale::HalfE8M0 | BlockScale::HalfE4M3 => {
            fields.scales = integers("scale", &tile.scales, &scale)?;
        }
    }
    match layout.offset {
        BlockOffset::None => {}
        BlockOffset::Added => fields.m = halves("offset", &tile.offsets)?,
        BlockOffset::Subtracted => {
            fields.mins = integers("offset", &tile.offsets, &|code| f32::from(code))?;
            fields.m = halves("super-scale", &tile.offset_supers)?;
        }
    }
    Ok(fields)
}

fn is_f16(value: f32) -> bool {
    value.is_nan() || Float::F16.nearest(value).to_bits() == value.to_bits()
}
