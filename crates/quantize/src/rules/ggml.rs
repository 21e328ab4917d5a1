//! ggml: clauses 150-152. Its quantizers choose for whole blocks, several groups at once; they stand in the kernels.

use safequant_kernels::blocks::{BlockLayout, BlockOffset, BlockScale, CodeValue};
use safequant_kernels::{
    Backend, BlockFields, BlockFormat, Codebook, E8M0Rule, Float, Floats, Stores, UNSIGNED_E4M3,
};
use safequant_schemes::{
    Code, CodeTile, Granularity, OffsetForm, ScaleCoding, Scheme, SuperScale, ZeroPoint,
};

use super::choice::{Choice, CodeRule};
use super::numbers::stored;
use super::{Group, Reference, Sight, unsupported};
use crate::grid::widen;
use crate::{Error, Rows};

/// A block type and its quantizer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    format: BlockFormat,
    layout: &'static BlockLayout,
}

impl Blocks {
    /// The block type of a scheme.
    ///
    /// # Errors
    /// [`Error::UnsupportedScheme`] if it is that of none that is quantized to.
    pub(crate) fn of(scheme: &Scheme) -> Result<Self, Error> {
        let mut formats = BlockFormat::ALL.iter().copied();
        let found = formats.find_map(|format| {
            format.quantizer()?;
            let layout = format.layout()?;
            is_scheme_of(layout, scheme).then_some(Blocks { format, layout })
        });
        found.map_or_else(
            || unsupported("this is no block type of ggml that is quantized to"),
            Ok,
        )
    }

    /// Where what lies in a block.
    pub(crate) fn layout(self) -> &'static BlockLayout {
        self.layout
    }

    /// Whether scales are halves of unsigned E4M3.
    pub(crate) fn has_half_e4m3_scales(self) -> bool {
        self.layout.scale == BlockScale::HalfE4M3
    }

    /// The block type, if rows are whole blocks of it.
    ///
    /// # Errors
    /// Rows that are not.
    pub(crate) fn format_for(self, in_features: usize) -> Result<BlockFormat, Error> {
        if in_features.is_multiple_of(self.layout.elements) {
            Ok(self.format)
        } else {
            unsupported("rows are no whole blocks of this type")
        }
    }

    /// The types whose codes follow from a group's extremes alone, as other rules' do.
    ///
    /// # Errors
    /// Rows that are no whole blocks.
    pub(crate) fn reference(self, in_features: usize) -> Result<Option<Box<dyn Reference>>, Error> {
        let found: Box<dyn Reference> = if self.format == BlockFormat::Q4_0 {
            Box::new(Signed { half: 8 })
        } else if self.format == BlockFormat::Q5_0 {
            Box::new(Signed { half: 16 })
        } else if self.format == BlockFormat::Q8_0 {
            Box::new(Bytes)
        } else {
            return Ok(None);
        };
        self.format_for(in_features)?;
        Ok(Some(found))
    }

    /// Codes and scales of finite rows.
    ///
    /// # Errors
    /// Rows that are no whole blocks, a scale that F16 cannot hold.
    pub(crate) fn quantize(
        self,
        rows: &Rows<'_>,
        values: &[f32],
        backend: &Backend,
    ) -> Result<CodeTile, Error> {
        let format = self.format_for(rows.in_features)?;
        let mut blocks = vec![0; values.len() / self.layout.elements * self.layout.bytes];
        let source = Floats::F32(values);
        (backend.encode_blocks)(format, source, &mut blocks, Stores::Ordinary);
        let mut fields = BlockFields::default();
        self.layout.unpack(&blocks, &mut fields);
        self.check(rows, &fields)?;
        Ok(self.tile(rows, fields))
    }

    fn check(self, rows: &Rows<'_>, fields: &BlockFields) -> Result<(), Error> {
        let per_row = (rows.in_features / self.layout.elements).max(1);
        for numbers in [&fields.d, &fields.m] {
            if let Some(at) = numbers.iter().position(|n| !n.is_finite()) {
                return Err(Error::ScaleOverflow {
                    row: rows.first_row + widen(at / per_row),
                    group: widen(at % per_row),
                    scale: numbers[at],
                    dtype: "F16",
                });
            }
        }
        Ok(())
    }

    fn tile(self, rows: &Rows<'_>, fields: BlockFields) -> CodeTile {
        let table = |numbers: Vec<i16>, table: fn(u8) -> f32| {
            let byte = |n: i16| u8::try_from(n).unwrap_or(u8::MAX);
            numbers.into_iter().map(|n| table(byte(n))).collect()
        };
        let (scales, supers) = match self.layout.scale {
            BlockScale::Super => (fields.d, Vec::new()),
            BlockScale::Integers | BlockScale::Halves => {
                let decode = |n: i16| self.layout.scale.decode(n);
                (fields.scales.into_iter().map(decode).collect(), fields.d)
            }
            BlockScale::HalfE8M0 => (
                table(fields.scales, |byte| E8M0Rule::Half.decode(byte)),
                Vec::new(),
            ),
            BlockScale::HalfE4M3 => {
                let half = |byte: u8| UNSIGNED_E4M3[usize::from(byte)] * 0.5;
                (table(fields.scales, half), Vec::new())
            }
        };
        let (offsets, offset_supers) = match self.layout.offset {
            BlockOffset::None => (Vec::new(), Vec::new()),
            BlockOffset::Added => (fields.m, Vec::new()),
            BlockOffset::Subtracted => {
                let minima = fields.mins.into_iter().map(f32::from);
                (minima.collect(), fields.m)
            }
        };
        CodeTile {
            rows: rows.first_row..rows.first_row + widen(rows.n_rows()),
            codes: fields.codes,
            scales,
            offsets,
            supers,
            offset_supers,
            ..CodeTile::default()
        }
    }
}

/// `Q4_0`, `Q5_0`: the value of largest magnitude becomes code 0, and the scale carries its sign.
#[derive(Debug)]
struct Signed {
    /// Half the number of codes.
    half: u8,
}

impl Reference for Signed {
    fn sight(&self) -> Sight {
        Sight::Extreme
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let d = group.extreme / -f32::from(self.half);
        let coder = CodeRule::Truncated {
            factor: inverse(d),
            offset: f32::from(self.half) + 0.5,
            max: 2 * self.half - 1,
        };
        // The codes follow from the scale before it is rounded to F16.
        Ok(Choice::scaled(stored(Float::F16, d)?, coder))
    }
}

/// `Q8_0`: ties away from zero.
#[derive(Debug)]
struct Bytes;

impl Reference for Bytes {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let d = group.amax() / 127.0;
        let factor = inverse(d);
        Ok(Choice::scaled(
            stored(Float::F16, d)?,
            CodeRule::AwayFromZero { factor },
        ))
    }
}

/// `1 / value`, and 0 for 0.
fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

/// Whether a scheme is what blocks of this layout mean.
fn is_scheme_of(layout: &BlockLayout, scheme: &Scheme) -> bool {
    let size = widen(layout.group);
    let (bits, zero) = match layout.value {
        CodeValue::Integer { zero } => (Some(layout.code_bits), i32::from(zero)),
        CodeValue::Table(_) | CodeValue::Lattice(_) => (None, 0),
    };
    let is_code = match (scheme.code, bits) {
        (Code::Integer { bits, .. }, Some(wanted)) => bits == wanted && bits > 1,
        (Code::Codebook(book), None) => match (layout.value, layout.scale) {
            (CodeValue::Lattice(lattice), _) => book == lattice.book,
            (_, BlockScale::HalfE8M0 | BlockScale::HalfE4M3) => book == Codebook::DoubledE2M1,
            (_, BlockScale::Super | BlockScale::Integers | BlockScale::Halves) => {
                book == Codebook::Iq4Nl
            }
        },
        _ => false,
    };
    let scale = match layout.scale {
        BlockScale::Super => (ScaleCoding::Float(Float::F16), SuperScale::None),
        BlockScale::Integers | BlockScale::Halves => (
            ScaleCoding::Integer,
            SuperScale::Grouped {
                size: widen(layout.n_groups()),
            },
        ),
        BlockScale::HalfE8M0 => (ScaleCoding::E8M0(E8M0Rule::Half), SuperScale::None),
        BlockScale::HalfE4M3 => (ScaleCoding::Float(Float::F32), SuperScale::None),
    };
    let offset = |form| ZeroPoint::Offset { zero, form };
    let zero_point = match layout.offset {
        BlockOffset::None => ZeroPoint::Fixed(zero),
        BlockOffset::Added => offset(OffsetForm::Added),
        BlockOffset::Subtracted => offset(OffsetForm::Subtracted),
    };
    is_code
        && scheme.granularity == Granularity::Group { size }
        && (scheme.scale, scheme.super_scale) == scale
        && scheme.zero_point == zero_point
}
