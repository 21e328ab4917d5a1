//! From stored parts to codes and scales, and on to rows of dense floats: the only reader of weights.

mod parts;
mod rows;
mod sparse;

use std::ops::Range;

use safequant_container::{Checkpoint, TensorRef};
use safequant_kernels::{Backend, BlockFormat, Float};

pub(crate) use self::parts::float_dtype;
use self::parts::{SmallParts, check_scale_dtype, locate};
use self::sparse::{SparseParts, SparseRows};
use crate::arithmetic::{Dequantizer, Extras, code_bytes};
use crate::storage::{
    Stored, WordShift, blocks, grid_of, scale_rows, segments, super_rows, to_u64, to_usize,
};
use crate::{
    Code, CodeTile, Error, Granularity, IntegerEncoding, Kept, Part, QuantizedTensor, Role,
    ScaleCoding, Storage, SuperScale, ZeroCoding, ZeroPoint,
};

pub use crate::arithmetic::RowsOut;

/// Decodes rows of one quantized tensor. Holds what every row needs (the group index, code books, low-rank factors), never
/// more.
pub struct Decoder<'a> {
    /// What is decoded.
    pub tensor: &'a QuantizedTensor,
    checkpoint: &'a Checkpoint,
    backend: &'static Backend,
    codes: Located<'a>,
    sparse: Option<SparseParts<'a>>,
    scale: Option<Located<'a>>,
    zero: Option<(Located<'a>, ZeroCoding)>,
    offset: Option<Located<'a>>,
    super_scale: Option<Located<'a>>,
    scale_table: Option<Box<[f32; 256]>>,
    dequantizer: Dequantizer,
    in_features: usize,
    /// Columns of the scale grid.
    n_groups: usize,
    way: Way,
}

/// How rows are decoded.
#[derive(Clone, Copy)]
enum Way {
    /// To codes, then step by step.
    Tile,
    /// In one go: from the stored bytes, where backends know how codes lie in them and `flip` turns those into the unsigned
    /// form, else from codes that are read first.
    Rows { flip: Option<u8> },
    /// In one go, from blocks that hold everything.
    Blocks(BlockFormat),
}

impl Way {
    fn new(tensor: &QuantizedTensor, codes: &Located<'_>, is_fused: bool) -> Self {
        // A second level outside of the blocks is a formula of its own.
        if let Some(format) = blocks::of(tensor)
            && tensor.scheme == blocks::scheme_of(format)
        {
            return Way::Blocks(format);
        }
        if !is_fused {
            return Way::Tile;
        }
        Way::Rows {
            flip: flip(tensor, codes.part).filter(|_| codes.stored.is_raw()),
        }
    }
}

/// What of a tile is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Scales,
}

/// A part and where its grids lie.
struct Located<'a> {
    part: &'a Part,
    stored: Stored,
    bytes: TensorRef<'a>,
}

impl<'a> Decoder<'a> {
    /// Prepares to decode: checks the shapes of all parts against the scheme, reads and checks the group index and other
    /// small parts.
    ///
    /// # Errors
    /// A part with a wrong dtype or shape, a group index out of range: names module, part, expected, found.
    pub fn new(
        tensor: &'a QuantizedTensor,
        checkpoint: &'a Checkpoint,
        backend: &'static Backend,
    ) -> Result<Self, Error> {
        let find = |role| locate(tensor, role, checkpoint);
        let codes = find(Role::Codes)?;
        // Blocks hold what has no part of its own.
        let in_blocks = matches!(codes.stored, Stored::Blocks(_));
        let find_beside = |role| match tensor.part(role) {
            None if in_blocks => Ok(None),
            Some(_) | None => find(role).map(Some),
        };
        let (zero, offset) = match tensor.scheme.zero_point {
            ZeroPoint::Fixed(_) => (None, None),
            ZeroPoint::Stored(coding) => (Some((find(Role::ZeroPoint)?, coding)), None),
            ZeroPoint::Offset { .. } => (None, find_beside(Role::Offset)?),
        };
        let scale = match tensor.scheme.scale {
            ScaleCoding::One => None,
            ScaleCoding::Float(_)
            | ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer => find_beside(Role::Scale)?,
        };
        if let Some(scale) = &scale {
            check_scale_dtype(tensor, scale.part)?;
        }
        let super_scale = match tensor.scheme.super_scale {
            SuperScale::None => None,
            SuperScale::Multiply
            | SuperScale::Divide
            | SuperScale::Nested { .. }
            | SuperScale::Grouped { .. }
            | SuperScale::Channel => find_beside(Role::SuperScale)?,
        };
        for float in [&offset, &super_scale].into_iter().flatten() {
            float_dtype(tensor, float.part)?;
        }
        let reader = SmallParts {
            tensor,
            checkpoint,
            backend,
        };
        let scale_table = match tensor.scheme.scale {
            ScaleCoding::StoredTable => Some(Box::new(reader.array(Role::ScaleTable)?)),
            ScaleCoding::One
            | ScaleCoding::Float(_)
            | ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::Integer => None,
        };
        let sparse = SparseParts::new(tensor, checkpoint)?;
        let dequantizer = Dequantizer::new(tensor, reader.extras()?, backend)?;
        let is_fused = sparse.is_none() && dequantizer.is_fused();
        Ok(Self {
            tensor,
            checkpoint,
            backend,
            way: Way::new(tensor, &codes, is_fused),
            codes,
            sparse,
            scale,
            zero,
            offset,
            super_scale,
            scale_table,
            dequantizer,
            in_features: to_usize(&tensor.module, "a row", tensor.in_features())?,
            n_groups: grid_of(tensor, Role::Scale)?.columns,
        })
    }

    /// The group of each input feature, where groups are not consecutive: activation order.
    pub fn group_index(&self) -> Option<&[u32]> {
        self.dequantizer.group_index()
    }

    /// The parts that are held as a whole (the group index apart): for [`crate::encode::held_regions`].
    pub fn held(&self) -> &Extras {
        self.dequantizer.extras()
    }

    /// All values of a part of dense floats that is held as long as the tensor is.
    pub(crate) fn small_floats(&self, role: Role) -> Result<Vec<f32>, Error> {
        let reader = SmallParts {
            tensor: self.tensor,
            checkpoint: self.checkpoint,
            backend: self.backend,
        };
        reader.floats(role)
    }

    /// What turns this tensor's tiles into values.
    pub fn dequantizer(&self) -> &Dequantizer {
        &self.dequantizer
    }

    /// Rows between two places where decoding can start without reading a stored word twice: tiles should be multiples.
    pub fn row_unit(&self) -> u64 {
        let zero = self.zero.as_ref().map_or(1, |(z, _)| z.stored.row_unit());
        let mask = self.sparse.as_ref().map_or(1, SparseParts::row_unit);
        to_u64(zero.max(mask).max(self.codes.stored.row_unit()))
    }

    /// Bytes of scratch that decoding `n_rows` at once allocates, output excluded: what a memory budget must count.
    pub fn scratch_bytes(&self, n_rows: u64) -> u64 {
        let columns = to_u64(self.in_features);
        let groups = self.scale_rows_of(n_rows);
        let scales = groups.saturating_mul(to_u64(self.n_groups));
        let floats = |part: &Option<Located<'_>>, rows: u64| {
            part.as_ref().map_or(0, |p| p.stored.scratch_bytes(rows))
        };
        let zero = self.zero.as_ref().map_or(0, |(z, _)| {
            z.stored
                .scratch_bytes(groups)
                .saturating_add(scales.saturating_mul(8))
        });
        // Codes, and once more when rows of several matrices are put together; scales raw, as F32 and with their
        // super-scales; lines in F32, rounded and in group order.
        let width = to_u64(code_bytes(self.tensor.scheme.code));
        let sparse = self.sparse.as_ref().map_or(0, |s| s.scratch_bytes(n_rows));
        self.codes
            .stored
            .scratch_bytes(n_rows)
            .saturating_add(sparse)
            .saturating_add(n_rows.saturating_mul(columns).saturating_mul(width))
            .saturating_add(floats(&self.scale, groups))
            .saturating_add(floats(&self.offset, groups))
            .saturating_add(floats(&self.super_scale, groups))
            .saturating_add(scales.saturating_mul(24))
            .saturating_add(zero)
            .saturating_add(columns.saturating_mul(20))
    }

    /// At most so many rows of the scale grid belong to `n_rows` rows.
    fn scale_rows_of(&self, n_rows: u64) -> u64 {
        match self.tensor.scheme.granularity {
            Granularity::Flat { size } => {
                let elements = n_rows.saturating_mul(to_u64(self.in_features));
                (elements / size.max(1)).saturating_add(2)
            }
            Granularity::Tensor
            | Granularity::Channel
            | Granularity::Group { .. }
            | Granularity::IndexedGroup { .. }
            | Granularity::Block { .. }
            | Granularity::Strided { .. } => n_rows,
        }
    }

    /// Bytes of the scales, zero points and super-scales that go with `n_rows` rows, as [`CodeTile`] holds them.
    pub fn scale_bytes(&self, n_rows: u64) -> u64 {
        let scales = self.scale_rows_of(n_rows);
        scales
            .saturating_mul(to_u64(self.n_groups))
            .saturating_mul(12)
    }

    /// As [`Decoder::codes`], without the codes.
    ///
    /// # Errors
    /// As there.
    pub fn scales(&self, rows: Range<u64>) -> Result<CodeTile, Error> {
        self.read_tile(rows, Wanted::Scales)
    }

    /// Codes, scales and zero points of rows `rows` of the stack, in the neutral form; scales as stored (see
    /// [`crate::ScaleDirection`]), in F32.
    ///
    /// # Errors
    /// I/O, or stored values that no reader accepts.
    pub fn codes(&self, rows: Range<u64>) -> Result<CodeTile, Error> {
        self.read_tile(rows, Wanted::All)
    }

    fn read_tile(&self, rows: Range<u64>, wanted: Wanted) -> Result<CodeTile, Error> {
        let mut tile = CodeTile {
            rows: rows.clone(),
            ..CodeTile::default()
        };
        for (matrix, local) in segments(&self.tensor.module, &rows, self.tensor.out_features())? {
            let scheme = &self.tensor.scheme;
            let groups = scale_rows(scheme.granularity, &local, self.in_features);
            if let Stored::Blocks(blocks) = &self.codes.stored {
                blocks.fill(self.codes.bytes, matrix, &local, &mut tile)?;
            } else if wanted == Wanted::All {
                let rows = self.read_codes(matrix, &local)?;
                append(&mut tile.codes, rows.codes);
                append(&mut tile.marks, rows.marks);
                append(&mut tile.starts, rows.starts);
            }
            let scales = match &self.scale {
                Some(scale) => self.read_scales(scale, matrix, &groups)?,
                None => Vec::new(),
            };
            if let Some(offset) = &self.offset {
                append(
                    &mut tile.offsets,
                    self.read_floats(offset, matrix, &groups)?,
                );
            }
            if let Some(part) = &self.super_scale {
                let rows = super_rows(scheme.super_scale, &groups, self.n_groups);
                append(&mut tile.supers, self.read_floats(part, matrix, &rows)?);
            }
            if let Some((zero, coding)) = &self.zero {
                append(
                    &mut tile.zeros,
                    self.read_zeros(zero, *coding, matrix, &groups, &scales)?,
                );
            }
            append(&mut tile.scales, scales);
        }
        if wanted == Wanted::Scales {
            tile.codes.clear();
        }
        Ok(tile)
    }

    fn read_codes(&self, matrix: u64, rows: &Range<usize>) -> Result<SparseRows, Error> {
        let codes = &self.codes;
        let mut read = match &self.sparse {
            Some(sparse) => sparse.read(codes, rows, self.backend)?,
            None => SparseRows {
                codes: codes.stored.read(
                    codes.bytes,
                    matrix,
                    rows,
                    self.backend,
                    WordShift::None,
                )?,
                ..SparseRows::default()
            },
        };
        let Code::Integer {
            bits,
            encoding: IntegerEncoding::TwosComplement,
        } = self.tensor.scheme.code
        else {
            return Ok(read);
        };
        let entries = &mut read.codes;
        let half = 1_u8 << (bits - 1);
        if holds_bare_fields(codes.part, bits) {
            for field in entries {
                *field ^= half;
            }
            return Ok(read);
        }
        if bits < 8 {
            let limit = i16::from(half);
            let bad = |&b: &u8| !(-limit..limit).contains(&i16::from(b.cast_signed()));
            if let Some(at) = entries.iter().position(bad) {
                let row = rows.start + at / self.in_features.max(1);
                return Err(Error::CodeRange {
                    module: self.tensor.module.clone(),
                    part: codes.part.name.clone(),
                    row: matrix * self.tensor.out_features() + to_u64(row),
                    value: entries[at].cast_signed(),
                    bits,
                });
            }
        }
        for byte in entries {
            *byte = byte.wrapping_add(half);
        }
        Ok(read)
    }

    fn read_scales(
        &self,
        scale: &Located<'_>,
        matrix: u64,
        rows: &Range<usize>,
    ) -> Result<Vec<f32>, Error> {
        let bytes = || {
            let stored = &scale.stored;
            stored.read(scale.bytes, matrix, rows, self.backend, WordShift::None)
        };
        match self.tensor.scheme.scale {
            ScaleCoding::Float(_) => self.read_floats(scale, matrix, rows),
            ScaleCoding::E8M0(rule) => Ok(decoded(&bytes()?, |b| rule.decode(b))),
            ScaleCoding::Minifloat(format) => {
                let table = format.table();
                Ok(decoded(&bytes()?, |b| table[usize::from(b)]))
            }
            ScaleCoding::StoredTable => {
                let table = self.scale_table.as_deref().unwrap_or(&[f32::NAN; 256]);
                Ok(decoded(&bytes()?, |b| table[usize::from(b)]))
            }
            ScaleCoding::Integer => Ok(decoded(&bytes()?, f32::from)),
            ScaleCoding::One => Ok(Vec::new()),
        }
    }

    /// Elements of a dense float dtype.
    fn read_floats(
        &self,
        part: &Located<'_>,
        matrix: u64,
        rows: &Range<usize>,
    ) -> Result<Vec<f32>, Error> {
        let float = float_dtype(self.tensor, part.part)?;
        let stored = &part.stored;
        let raw = stored.read(part.bytes, matrix, rows, self.backend, WordShift::None)?;
        let mut values = vec![0.0; raw.len() / float.size_bytes()];
        (self.backend.widen)(float, &raw, &mut values);
        Ok(values)
    }

    fn read_zeros(
        &self,
        zero: &Located<'_>,
        coding: ZeroCoding,
        matrix: u64,
        rows: &Range<usize>,
        scales: &[f32],
    ) -> Result<Vec<i32>, Error> {
        let bits = integer_bits(self.tensor);
        if coding == ZeroCoding::NegatedProduct {
            let products = self.read_floats(zero, matrix, rows)?;
            let float = float_dtype(self.tensor, zero.part)?;
            let pairs = products.iter().zip(scales).enumerate();
            let undo = |(at, (&product, &scale)): (usize, (&f32, &f32))| {
                undo_product(float, product, scale, bits).ok_or_else(|| Error::ProductRange {
                    module: self.tensor.module.clone(),
                    part: zero.part.name.clone(),
                    row: to_u64(rows.start + at / self.n_groups.max(1)),
                    group: to_u64(at % self.n_groups.max(1)),
                    value: product.to_string(),
                    scale: scale.to_string(),
                })
            };
            return pairs.map(undo).collect();
        }
        let shift = match coding {
            ZeroCoding::MinusOneWord => WordShift::PerLane(bits),
            ZeroCoding::Direct
            | ZeroCoding::Signed
            | ZeroCoding::MinusOne
            | ZeroCoding::MinusOneModulo
            | ZeroCoding::NegatedProduct => WordShift::None,
        };
        let lanes = zero
            .stored
            .read(zero.bytes, matrix, rows, self.backend, shift)?;
        let decode = |lane: u8| match coding {
            ZeroCoding::Direct | ZeroCoding::MinusOneWord | ZeroCoding::NegatedProduct => {
                i32::from(lane)
            }
            ZeroCoding::Signed => i32::from(lane.cast_signed()) + (1 << (bits - 1)),
            ZeroCoding::MinusOne => i32::from(lane) + 1,
            ZeroCoding::MinusOneModulo => (i32::from(lane) + 1) & ((1 << bits) - 1),
        };
        Ok(lanes.into_iter().map(decode).collect())
    }
}

/// The numbers that bytes stand for. A loop for each `decode`: there may be a byte for every sixteen codes.
fn decoded(bytes: &[u8], decode: impl Fn(u8) -> f32) -> Vec<f32> {
    bytes.iter().map(|&byte| decode(byte)).collect()
}

/// What turns stored codes into the unsigned form by an exclusive or; `None` where they must be read one by one.
fn flip(tensor: &QuantizedTensor, part: &Part) -> Option<u8> {
    match tensor.scheme.code {
        Code::Integer {
            bits,
            encoding: IntegerEncoding::TwosComplement,
        } => {
            let is_field = bits == 8 || holds_bare_fields(part, bits);
            is_field.then(|| 1 << (bits - 1))
        }
        Code::Integer {
            encoding: IntegerEncoding::Unsigned,
            ..
        }
        | Code::Minifloat(_)
        | Code::Codebook(_)
        | Code::StoredCodebook => Some(0),
        Code::Dense(_) => None,
    }
}

/// The zero point whose negated product with `scale`, rounded, is `product`.
fn undo_product(float: Float, product: f32, scale: f32, bits: u32) -> Option<i32> {
    (0..1 << bits).find(|&zero| {
        let back = crate::arithmetic::negated_product(float, zero, scale);
        // Beside a scale of zero every zero point gives the same weights: the first one will do.
        let equal = back.total_cmp(&product).is_eq() || (back == 0.0 && product == 0.0);
        equal && product.is_finite()
    })
}

/// Moves `more` behind `to`, without a copy where `to` is empty.
fn append<T>(to: &mut Vec<T>, mut more: Vec<T>) {
    if to.is_empty() {
        *to = more;
    } else {
        to.append(&mut more);
    }
}

/// Whether codes of a part are fields of exactly `bits` bits when they are read, so that a negative one has no sign bits
/// above: packed codes; not bytes, which are sign-extended.
pub(crate) fn holds_bare_fields(part: &Part, bits: u32) -> bool {
    match part.storage {
        Storage::Packed { packing, .. }
        | Storage::PackedConstant { packing, .. }
        | Storage::Flat { packing } => packing.bits() == bits,
        Storage::Planes { .. }
        | Storage::Tiled { .. }
        | Storage::LowHigh { .. }
        | Storage::Sparse {
            kept: Kept::Tiles { .. },
        } => true,
        Storage::Elements { .. }
        | Storage::SharedElements { .. }
        | Storage::Common
        | Storage::Blocks { .. }
        | Storage::Vector
        | Storage::Sparse {
            kept: Kept::Rows { .. } | Kept::Ragged,
        } => false,
    }
}

/// Bits of an integer code; 8 for others, which have no zero points.
pub(crate) fn integer_bits(tensor: &QuantizedTensor) -> u32 {
    match tensor.scheme.code {
        Code::Integer { bits, .. } => bits,
        Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => 8,
    }
}
