//! From stored parts to rows of dense floats: the only reader of weights.

use std::ops::Range;

use safequant_container::{Checkpoint, Dtype, TensorRef};
use safequant_kernels::{Backend, Float, Minifloat};

use crate::grid::{Stored, WordShift, grid_of, scale_rows, segments, to_u64, to_usize};
use crate::{
    Arithmetic, Code, CodeTile, Error, Granularity, IntegerEncoding, Part, QuantizedTensor, Role,
    ScaleCoding, ScaleDirection, ZeroCoding, ZeroPoint,
};

/// Decodes rows of one quantized tensor. Holds what every row needs (the group index), never more.
pub struct Decoder<'a> {
    /// What is decoded.
    pub tensor: &'a QuantizedTensor,
    backend: &'static Backend,
    codes: Located<'a>,
    scale: Located<'a>,
    zero: Option<(Located<'a>, ZeroCoding)>,
    /// Group of each input feature, unless groups are consecutive.
    index: Option<GroupOrder>,
    table: Option<&'static [f32; 256]>,
    in_features: usize,
    /// Columns of the scale grid.
    n_groups: usize,
}

/// A group index and the same thing sorted, so that a group is one kernel call.
struct GroupOrder {
    /// Group of each input feature.
    index: Vec<u32>,
    /// Input features by group, ascending within a group.
    order: Vec<usize>,
    /// Members of each group.
    lens: Vec<usize>,
}

impl GroupOrder {
    fn new(index: Vec<u32>, n_groups: usize) -> Self {
        let mut order: Vec<usize> = (0..index.len()).collect();
        order.sort_by_key(|&k| index[k]);
        let mut lens = vec![0; n_groups];
        for &group in &index {
            lens[group as usize] += 1;
        }
        Self { index, order, lens }
    }
}

/// Buffers for one row in group order.
#[derive(Default)]
struct Sorted {
    codes: Vec<u8>,
    values: Vec<f32>,
}

/// A part and where its grids lie.
struct Located<'a> {
    part: &'a Part,
    stored: Stored,
    bytes: TensorRef<'a>,
}

/// Where decoded rows go.
pub enum RowsOut<'a> {
    /// F32 values: products before any rounding to a narrower type.
    F32(&'a mut [f32]),
    /// Little-endian bytes of a dense float type. In the tensor's `reference_dtype` they are the reference's bits; in
    /// another one the F32 values, rounded once.
    Bytes(Float, &'a mut [u8]),
}

impl<'a> Decoder<'a> {
    /// Prepares to decode: checks the shapes of all parts against the scheme, reads and checks the group index.
    ///
    /// # Errors
    /// A part with a wrong dtype or shape, a group index out of range: names module, part, expected, found.
    pub fn new(
        tensor: &'a QuantizedTensor,
        checkpoint: &'a Checkpoint,
        backend: &'static Backend,
    ) -> Result<Self, Error> {
        let zero = match tensor.scheme.zero_point {
            ZeroPoint::Fixed(_) => None,
            ZeroPoint::Stored(coding) => {
                Some((locate(tensor, Role::ZeroPoint, checkpoint)?, coding))
            }
        };
        let scale = locate(tensor, Role::Scale, checkpoint)?;
        check_scale_dtype(tensor, scale.part)?;
        let table = match tensor.scheme.code {
            Code::Integer { .. } => None,
            Code::Minifloat(m) => Some(m.table()),
            Code::Codebook(book) => Some(book.table()),
        };
        let n_groups = grid_of(tensor, Role::Scale)?.columns;
        let index = read_index(tensor, checkpoint)?;
        Ok(Self {
            tensor,
            backend,
            codes: locate(tensor, Role::Codes, checkpoint)?,
            scale,
            zero,
            index: index.map(|i| GroupOrder::new(i, n_groups)),
            n_groups,
            table,
            in_features: to_usize(&tensor.module, "a row", tensor.in_features())?,
        })
    }

    /// The group of each input feature, where groups are not consecutive: activation order.
    pub fn group_index(&self) -> Option<&[u32]> {
        self.index.as_ref().map(|i| i.index.as_slice())
    }

    /// Rows between two places where decoding can start without reading a stored word twice: tiles should be multiples.
    pub fn row_unit(&self) -> u64 {
        let zero = self.zero.as_ref().map_or(1, |(z, _)| z.stored.row_unit());
        to_u64(zero.max(self.codes.stored.row_unit()))
    }

    /// Bytes of scratch that decoding `n_rows` at once allocates, output excluded: what a memory budget must count.
    pub fn scratch_bytes(&self, n_rows: u64) -> u64 {
        let columns = to_u64(self.in_features);
        let scales = n_rows.saturating_mul(to_u64(self.n_groups));
        let zero = self.zero.as_ref().map_or(0, |(z, _)| {
            z.stored
                .scratch_bytes(n_rows)
                .saturating_add(scales.saturating_mul(8))
        });
        // Codes, and once more when rows of several matrices are put together; scales raw and as F32; lines in F32, rounded
        // and in group order.
        self.codes
            .stored
            .scratch_bytes(n_rows)
            .saturating_add(n_rows.saturating_mul(columns))
            .saturating_add(self.scale.stored.scratch_bytes(n_rows))
            .saturating_add(scales.saturating_mul(8))
            .saturating_add(zero)
            .saturating_add(columns.saturating_mul(20))
    }

    /// Codes, scales and zero points of rows `rows` of the stack, in the neutral form; scales as stored (see
    /// [`crate::ScaleDirection`]), in F32.
    ///
    /// # Errors
    /// I/O, or stored values that no reader accepts.
    pub fn codes(&self, rows: Range<u64>) -> Result<CodeTile, Error> {
        let mut tile = CodeTile {
            rows: rows.clone(),
            ..CodeTile::default()
        };
        for (matrix, local) in segments(&self.tensor.module, &rows, self.tensor.out_features())? {
            let groups = scale_rows(self.tensor.scheme.granularity, &local);
            append(&mut tile.codes, self.read_codes(matrix, &local)?);
            append(&mut tile.scales, self.read_scales(matrix, &groups)?);
            if let Some((zero, coding)) = &self.zero {
                append(
                    &mut tile.zeros,
                    self.read_zeros(zero, *coding, matrix, &groups)?,
                );
            }
        }
        Ok(tile)
    }

    fn read_codes(&self, matrix: u64, rows: &Range<usize>) -> Result<Vec<u8>, Error> {
        let codes = &self.codes;
        let mut entries =
            codes
                .stored
                .read(codes.bytes, matrix, rows, self.backend, WordShift::None)?;
        let Code::Integer {
            bits,
            encoding: IntegerEncoding::TwosComplement,
        } = self.tensor.scheme.code
        else {
            return Ok(entries);
        };
        let half = 1_u8 << (bits - 1);
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
        for byte in &mut entries {
            *byte = byte.wrapping_add(half);
        }
        Ok(entries)
    }

    fn read_scales(&self, matrix: u64, rows: &Range<usize>) -> Result<Vec<f32>, Error> {
        let raw = self.scale.stored.read(
            self.scale.bytes,
            matrix,
            rows,
            self.backend,
            WordShift::None,
        )?;
        Ok(match self.tensor.scheme.scale {
            ScaleCoding::Float(float) => {
                let mut scales = vec![0.0; raw.len() / float.size_bytes()];
                (self.backend.widen)(float, &raw, &mut scales);
                scales
            }
            ScaleCoding::E8M0 => {
                let table = Minifloat::E8M0.table();
                raw.iter().map(|&b| table[usize::from(b)]).collect()
            }
        })
    }

    fn read_zeros(
        &self,
        zero: &Located<'_>,
        coding: ZeroCoding,
        matrix: u64,
        rows: &Range<usize>,
    ) -> Result<Vec<i32>, Error> {
        let bits = integer_bits(self.tensor);
        let shift = match coding {
            ZeroCoding::MinusOneWord => WordShift::PerLane(bits),
            ZeroCoding::Direct
            | ZeroCoding::Signed
            | ZeroCoding::MinusOne
            | ZeroCoding::MinusOneModulo => WordShift::None,
        };
        let lanes = zero
            .stored
            .read(zero.bytes, matrix, rows, self.backend, shift)?;
        let decode = |lane: u8| match coding {
            ZeroCoding::Direct | ZeroCoding::MinusOneWord => i32::from(lane),
            ZeroCoding::Signed => i32::from(lane.cast_signed()) + (1 << (bits - 1)),
            ZeroCoding::MinusOne => i32::from(lane) + 1,
            ZeroCoding::MinusOneModulo => (i32::from(lane) + 1) & ((1 << bits) - 1),
        };
        Ok(lanes.into_iter().map(decode).collect())
    }

    /// Decodes rows `rows` of the stack into `out`, `[rows, in_features]`, row-major.
    ///
    /// # Errors
    /// I/O, or stored values that no reader accepts.
    ///
    /// # Panics
    /// If `out` has not exactly the length of the rows.
    pub fn rows(&self, rows: Range<u64>, out: RowsOut<'_>) -> Result<(), Error> {
        let n_rows = to_usize(
            &self.tensor.module,
            "a tile",
            rows.end.saturating_sub(rows.start),
        )?;
        let mut tile = self.codes(rows)?;
        if let Arithmetic::RoundedScale(float) = self.tensor.scheme.arithmetic {
            let mut rounded = vec![0; tile.scales.len() * float.size_bytes()];
            (self.backend.round)(float, &tile.scales, &mut rounded);
            (self.backend.widen)(float, &rounded, &mut tile.scales);
        }
        let columns = self.in_features;
        let n_values = n_rows * columns;
        let mut sorted = Sorted::default();
        match out {
            RowsOut::F32(values) => {
                assert_eq!(
                    values.len(),
                    n_values,
                    "the output is not as long as the rows"
                );
                self.each_row(&tile, |i, row| {
                    self.row(&tile, row, i, &mut sorted, line(values, i, columns));
                })?;
            }
            RowsOut::Bytes(float, bytes) => {
                let size = float.size_bytes();
                assert_eq!(
                    bytes.len(),
                    n_values * size,
                    "the output is not as long as the rows"
                );
                let mut values = vec![0.0; columns];
                self.each_row(&tile, |i, row| {
                    self.row(&tile, row, i, &mut sorted, &mut values);
                    self.finish(float, &mut values, line(bytes, i, columns * size));
                })?;
            }
        }
        Ok(())
    }

    /// Calls `f` with each row of the tile and the row of its scales in the tile.
    fn each_row(&self, tile: &CodeTile, mut f: impl FnMut(usize, usize)) -> Result<(), Error> {
        if self.in_features == 0 {
            return Ok(());
        }
        let granularity = self.tensor.scheme.granularity;
        let (mut at, mut base) = (0, 0);
        for (_, local) in segments(&self.tensor.module, &tile.rows, self.tensor.out_features())? {
            let groups = scale_rows(granularity, &local);
            for row in local {
                let group = scale_rows(granularity, &(row..row + 1)).start;
                f(at, base + group - groups.start);
                at += 1;
            }
            base += groups.len();
        }
        Ok(())
    }

    /// One row: `scale_row` counts rows of scales in the tile, `i` rows of codes.
    fn row(
        &self,
        tile: &CodeTile,
        scale_row: usize,
        i: usize,
        sorted: &mut Sorted,
        out: &mut [f32],
    ) {
        let codes = &tile.codes[i * self.in_features..(i + 1) * self.in_features];
        let cut = scale_row * self.n_groups..(scale_row + 1) * self.n_groups;
        let scales = &tile.scales[cut.clone()];
        let zeros = tile.zeros.get(cut).unwrap_or(&[]);
        let zero = |group: usize| match self.tensor.scheme.zero_point {
            ZeroPoint::Fixed(value) => value,
            ZeroPoint::Stored(_) => zeros[group],
        };
        let Some(groups) = &self.index else {
            let size = self.group_columns();
            for (group, (codes, out)) in codes.chunks(size).zip(out.chunks_mut(size)).enumerate() {
                self.group(codes, zero(group), scales[group], out);
            }
            return;
        };
        sorted.codes.clear();
        sorted.codes.extend(groups.order.iter().map(|&k| codes[k]));
        sorted.values.resize(codes.len(), 0.0);
        let mut at = 0;
        for (group, &len) in groups.lens.iter().enumerate() {
            let cut = at..at + len;
            let out = &mut sorted.values[cut.clone()];
            self.group(&sorted.codes[cut], zero(group), scales[group], out);
            at += len;
        }
        for (&k, &value) in groups.order.iter().zip(&sorted.values) {
            out[k] = value;
        }
    }

    /// Consecutive input features with one scale.
    fn group_columns(&self) -> usize {
        let size = match self.tensor.scheme.granularity {
            Granularity::Tensor | Granularity::Channel => u64::MAX,
            Granularity::Group { size } | Granularity::IndexedGroup { size } => size,
            Granularity::Block { columns, .. } => columns,
        };
        usize::try_from(size).unwrap_or(usize::MAX).max(1)
    }

    /// Values with one scale and zero.
    fn group(&self, codes: &[u8], zero: i32, scale: f32, out: &mut [f32]) {
        let factor = match self.tensor.scheme.direction {
            ScaleDirection::Multiply => scale,
            ScaleDirection::Divide => 1.0,
        };
        match self.table {
            Some(table) => (self.backend.dequantize_table)(codes, table, factor, out),
            None => (self.backend.dequantize_integer)(codes, zero, factor, out),
        }
        if self.tensor.scheme.direction == ScaleDirection::Divide {
            for value in out {
                *value /= scale;
            }
        }
    }

    /// Rounds one row.
    fn finish(&self, float: Float, values: &mut [f32], out: &mut [u8]) {
        if let Arithmetic::RoundedTo(first) = self.tensor.scheme.arithmetic
            && float == self.tensor.reference_dtype
            && first != float
        {
            let mut rounded = vec![0; values.len() * first.size_bytes()];
            (self.backend.round)(first, values, &mut rounded);
            (self.backend.widen)(first, &rounded, values);
        }
        (self.backend.round)(float, values, out);
    }
}

/// Row `i` of a matrix with rows of `len`.
fn line<T>(values: &mut [T], i: usize, len: usize) -> &mut [T] {
    &mut values[i * len..(i + 1) * len]
}

/// Moves `more` behind `to`, without a copy where `to` is empty.
fn append<T>(to: &mut Vec<T>, mut more: Vec<T>) {
    if to.is_empty() {
        *to = more;
    } else {
        to.append(&mut more);
    }
}

/// Bits of an integer code; 8 for others, which have no zero points.
pub(crate) fn integer_bits(tensor: &QuantizedTensor) -> u32 {
    match tensor.scheme.code {
        Code::Integer { bits, .. } => bits,
        Code::Minifloat(_) | Code::Codebook(_) => 8,
    }
}

/// Finds a part and checks that the checkpoint still has it as bound.
fn locate<'a>(
    tensor: &'a QuantizedTensor,
    role: Role,
    checkpoint: &'a Checkpoint,
) -> Result<Located<'a>, Error> {
    let missing = |part: String| Error::MissingPart {
        module: tensor.module.clone(),
        part,
    };
    let part = tensor
        .part(role)
        .ok_or_else(|| missing(format!("the part for {role:?}")))?;
    let bytes = checkpoint
        .tensor(&part.name)
        .ok_or_else(|| missing(part.name.clone()))?;
    if bytes.dtype() != part.dtype {
        return Err(Error::PartDtype {
            module: tensor.module.clone(),
            part: part.name.clone(),
            expected: part.dtype.name().to_owned(),
            found: bytes.dtype(),
        });
    }
    if bytes.shape() != part.shape {
        return Err(Error::PartShape {
            module: tensor.module.clone(),
            part: part.name.clone(),
            expected: format!("{:?}", part.shape),
            found: bytes.shape().to_vec(),
        });
    }
    Ok(Located {
        part,
        stored: Stored::new(tensor, part)?,
        bytes,
    })
}

fn check_scale_dtype(tensor: &QuantizedTensor, part: &Part) -> Result<(), Error> {
    let fits = match tensor.scheme.scale {
        ScaleCoding::Float(float) => crate::scheme::float_of(part.dtype) == Some(float),
        ScaleCoding::E8M0 => matches!(part.dtype, Dtype::F8E8M0 | Dtype::U8),
    };
    if fits {
        return Ok(());
    }
    Err(Error::PartDtype {
        module: tensor.module.clone(),
        part: part.name.clone(),
        expected: format!("{:?}", tensor.scheme.scale),
        found: part.dtype,
    })
}

/// The group index of an act-order module; `None` where groups are consecutive, be it by declaration or by content.
fn read_index(
    tensor: &QuantizedTensor,
    checkpoint: &Checkpoint,
) -> Result<Option<Vec<u32>>, Error> {
    let Granularity::IndexedGroup { size } = tensor.scheme.granularity else {
        return Ok(None);
    };
    let missing = |part: &str| Error::MissingPart {
        module: tensor.module.clone(),
        part: part.to_owned(),
    };
    let part = tensor
        .part(Role::GroupIndex)
        .ok_or_else(|| missing("the group index"))?;
    let stored = checkpoint
        .tensor(&part.name)
        .ok_or_else(|| missing(&part.name))?;
    if stored.shape() != [tensor.in_features()] {
        return Err(Error::PartShape {
            module: tensor.module.clone(),
            part: part.name.clone(),
            expected: format!("[{}]", tensor.in_features()),
            found: stored.shape().to_vec(),
        });
    }
    let bytes = stored.read_all(stored.info.len_bytes())?;
    let entries: Vec<i64> = if stored.dtype() == Dtype::I32 {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| i64::from(i32::from_le_bytes(b)))
            .collect()
    } else if stored.dtype() == Dtype::I64 {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| i64::from_le_bytes(b))
            .collect()
    } else {
        return Err(Error::PartDtype {
            module: tensor.module.clone(),
            part: part.name.clone(),
            expected: "I32 or I64".to_owned(),
            found: stored.dtype(),
        });
    };
    let n_groups = tensor.in_features().div_ceil(size.max(1));
    let mut index = Vec::with_capacity(entries.len());
    for (position, value) in entries.into_iter().enumerate() {
        let group = u32::try_from(value)
            .ok()
            .filter(|g| u64::from(*g) < n_groups);
        index.push(group.ok_or_else(|| Error::GroupIndexRange {
            module: tensor.module.clone(),
            part: part.name.clone(),
            position,
            value,
            n_groups,
        })?);
    }
    let trivial = index
        .iter()
        .zip(0_u64..)
        .all(|(&g, k)| u64::from(g) == k / size.max(1));
    Ok((!trivial).then_some(index))
}
