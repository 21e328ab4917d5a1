//! From codes, scales and zero points to weights: every operation and every rounding, and no convention.

mod basis;
mod fused;
mod output;
mod parts;
mod terms;

use std::ops::Range;

use safequant_kernels::{Backend, Float};

use self::basis::probe;
pub use self::output::RowsOut;
pub(crate) use self::terms::negated_product;
use self::terms::{BF16_NAN, add_offset, apply_super};

use crate::storage::{grid_of, scale_rows, segments, super_rows, to_usize};
use crate::{
    Arithmetic, Code, CodeTile, Error, Granularity, OffsetForm, QuantizedTensor, Role, Rotation,
    ScaleCoding, ScaleDirection, Scheme, SuperScale, ZeroPoint,
};

/// Small things that hold for a whole tensor and come from parts of their own.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Group of each input feature, unless groups are consecutive.
    pub group_index: Option<Vec<u32>>,
    /// Of [`Code::StoredCodebook`].
    pub codebook: Option<[f32; 16]>,
    /// Of [`crate::Basis::columns`], one per input feature.
    pub columns: Vec<f32>,
    /// Of [`crate::Basis::rank`], `[out, rank]`.
    pub up: Vec<f32>,
    /// Of [`crate::Basis::rank`], `[in, rank]`.
    pub down: Vec<f32>,
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

/// Turns tiles of one tensor into rows of floats.
pub struct Dequantizer {
    scheme: Scheme,
    reference: Float,
    module: String,
    out_features: u64,
    in_features: usize,
    /// Columns of the scale grid.
    n_groups: usize,
    /// Columns of the grid of super-scales.
    n_supers: usize,
    table: Option<Box<[f32; 256]>>,
    index: Option<GroupOrder>,
    extras: Extras,
    /// Of [`Arithmetic::Probed`]: the input feature's own factor, in the reference dtype.
    probes: Vec<f32>,
    scale_at: ScaleAt,
    backend: &'static Backend,
}

/// When the scale comes in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ScaleAt {
    /// With each code.
    Code,
    /// After the rotation: sums of integer codes are exact, whatever their order, and one rounding is left.
    Rotated,
}

impl ScaleAt {
    fn of(scheme: &Scheme) -> Self {
        let one_per_row = matches!(
            scheme.granularity,
            Granularity::Tensor | Granularity::Channel
        );
        let is_plain = scheme.arithmetic == Arithmetic::ScaledDifference
            && scheme.direction == ScaleDirection::Multiply
            && scheme.super_scale == SuperScale::None
            && matches!(scheme.zero_point, ZeroPoint::Fixed(_))
            && matches!(scheme.code, Code::Integer { .. });
        match scheme.basis.rotation {
            Rotation::ConvRot { .. } if one_per_row && is_plain => ScaleAt::Rotated,
            Rotation::ConvRot { .. } | Rotation::None => ScaleAt::Code,
        }
    }
}

/// What a tile's rows have in common: numbers ready to use.
struct Prepared<'t> {
    tile: &'t CodeTile,
    /// Scale of each entry of the grid, super-scales applied.
    factors: Vec<f32>,
    /// Offset of each entry of the grid, super-scales applied.
    offsets: Vec<f32>,
    /// Every result is rounded to this.
    step: Option<Float>,
    /// The whole row is, before the basis is undone.
    row: Option<Float>,
}

/// One row of a tile.
struct Row {
    /// Which one, in the tile.
    at: usize,
    /// Which one, in its matrix.
    local: usize,
    /// First entry of the tile's scale grid that belongs to the row.
    scale: usize,
    /// Index of the row in the stack's matrix, as flat element, less that of the first group.
    flat: usize,
    /// Its super-scale, where there is one per row.
    channel: f32,
}

/// Buffers for one row in group order.
#[derive(Default)]
struct Sorted {
    codes: Vec<u8>,
    values: Vec<f32>,
}

/// Rounded to F32 once: what bitsandbytes multiplies by.
const OVER_127: f32 = 1.0 / 127.0;

impl Dequantizer {
    /// For tiles of `tensor`; `extras` as far as its scheme needs them.
    ///
    /// # Errors
    /// A size that this machine cannot address; extras of the wrong length.
    pub fn new(
        tensor: &QuantizedTensor,
        mut extras: Extras,
        backend: &'static Backend,
    ) -> Result<Self, Error> {
        let scheme = tensor.scheme.clone();
        let table = match scheme.code {
            Code::Integer { .. } | Code::Dense(_) => None,
            Code::Minifloat(m) => Some(Box::new(*m.table())),
            Code::Codebook(book) => Some(Box::new(*book.table())),
            Code::StoredCodebook => {
                let values = extras.codebook.ok_or_else(|| Error::MissingPart {
                    module: tensor.module.clone(),
                    part: "the code book".to_owned(),
                })?;
                Some(Box::new(std::array::from_fn(|i| values[i % 16])))
            }
        };
        if let Rotation::ConvRot { size } = scheme.basis.rotation
            && (Rotation::conv_rot(size).is_none() || !tensor.in_features().is_multiple_of(size))
        {
            return Err(Error::Unsupported {
                module: tensor.module.clone(),
                format: format!("a rotation in groups of {size} input features"),
                detail: format!("a row has {}", tensor.in_features()),
            });
        }
        let probes = match scheme.arithmetic {
            Arithmetic::Probed(float) => extras.columns.iter().map(|&c| probe(float, c)).collect(),
            Arithmetic::ScaledDifference
            | Arithmetic::RoundedTo(_)
            | Arithmetic::RoundedScale(_)
            | Arithmetic::EachStep(_)
            | Arithmetic::Over127
            | Arithmetic::ScaleOver127
            | Arithmetic::RoundedZero(_)
            | Arithmetic::Int8Grid(_) => Vec::new(),
        };
        let n_groups = grid_of(tensor, Role::Scale)?.columns;
        let index = extras.group_index.take();
        Ok(Self {
            reference: tensor.reference_dtype,
            module: tensor.module.clone(),
            out_features: tensor.out_features(),
            in_features: to_usize(&tensor.module, "a row", tensor.in_features())?,
            n_groups,
            n_supers: grid_of(tensor, Role::SuperScale)?.columns,
            table,
            index: index.map(|i| GroupOrder::new(i, n_groups)),
            probes,
            scale_at: ScaleAt::of(&scheme),
            scheme,
            extras,
            backend,
        })
    }

    /// The group of each input feature, where groups are not consecutive: activation order.
    pub fn group_index(&self) -> Option<&[u32]> {
        self.index.as_ref().map(|i| i.index.as_slice())
    }

    /// What came from parts of their own.
    pub fn extras(&self) -> &Extras {
        &self.extras
    }

    /// The values of a tile, `[rows, in_features]`, row-major.
    ///
    /// # Errors
    /// A size that this machine cannot address.
    ///
    /// # Panics
    /// If `out` has not exactly the length of the rows, or the tile is not one of this tensor.
    pub fn tile(&self, tile: &CodeTile, out: RowsOut<'_>) -> Result<(), Error> {
        let columns = self.in_features;
        let n_rows = to_usize(
            &self.module,
            "a tile",
            tile.rows.end.saturating_sub(tile.rows.start),
        )?;
        let expect = |found: usize, size: usize| {
            let needed = n_rows.saturating_mul(columns).saturating_mul(size);
            assert_eq!(found, needed, "the output is not as long as the rows");
        };
        let mut sorted = Sorted::default();
        match out {
            RowsOut::F32(values) => {
                expect(values.len(), 1);
                let prepared = self.prepare(tile, None)?;
                self.each_row(tile, |row| {
                    let out = line(values, row.at, columns);
                    self.products(&prepared, row, &mut sorted, out);
                    self.undo_basis(&prepared, row, out);
                })
            }
            RowsOut::Bytes(float, bytes) => {
                let size = float.size_bytes();
                expect(bytes.len(), size);
                let prepared = self.prepare(tile, self.step(float))?;
                let mut values = vec![0.0; columns];
                self.each_row(tile, |row| {
                    self.products(&prepared, row, &mut sorted, &mut values);
                    self.undo_basis(&prepared, row, &mut values);
                    self.finish(float, &mut values, line(bytes, row.at, columns * size));
                })
            }
        }
    }

    /// What every operation rounds to when the output has this dtype.
    fn step(&self, output: Float) -> Option<Float> {
        match self.scheme.arithmetic {
            Arithmetic::EachStep(float)
            | Arithmetic::Int8Grid(float)
            | Arithmetic::Probed(float) => (output == self.reference).then_some(float),
            Arithmetic::ScaledDifference
            | Arithmetic::RoundedTo(_)
            | Arithmetic::RoundedScale(_)
            | Arithmetic::RoundedZero(_)
            | Arithmetic::Over127
            | Arithmetic::ScaleOver127 => None,
        }
    }

    fn prepare<'t>(&self, tile: &'t CodeTile, step: Option<Float>) -> Result<Prepared<'t>, Error> {
        let (rounds, each, whole) = match self.scheme.arithmetic {
            Arithmetic::EachStep(_) => (step, step, step),
            Arithmetic::RoundedScale(float) => (Some(float), None, None),
            Arithmetic::Int8Grid(_) | Arithmetic::Probed(_) => (None, None, step),
            Arithmetic::ScaledDifference
            | Arithmetic::RoundedTo(_)
            | Arithmetic::RoundedZero(_)
            | Arithmetic::Over127
            | Arithmetic::ScaleOver127 => (None, None, None),
        };
        let round = |value: f32| rounds.map_or(value, |float| float.nearest(value));
        let mut factors: Vec<f32> = tile.scales.iter().map(|&s| round(s)).collect();
        if self.scheme.arithmetic == Arithmetic::ScaleOver127 {
            for factor in &mut factors {
                *factor /= 127.0;
            }
        }
        let mut offsets: Vec<f32> = tile.offsets.iter().map(|&o| round(o)).collect();
        self.each_super(tile, |scales, above| {
            let kind = self.scheme.super_scale;
            apply_super(
                kind,
                tile.supers[above],
                round,
                &mut factors[scales.clone()],
            );
            if let Some(&factor) = tile.offset_supers.get(above) {
                for offset in &mut offsets[scales] {
                    *offset *= factor;
                }
            }
        })?;
        Ok(Prepared {
            tile,
            factors,
            offsets,
            step: each,
            row: whole,
        })
    }

    /// Calls `f` with each run of entries of the tile's scale grid that have one super-scale, and with that in the tile.
    fn each_super(
        &self,
        tile: &CodeTile,
        mut f: impl FnMut(Range<usize>, usize),
    ) -> Result<(), Error> {
        let kind = self.scheme.super_scale;
        if kind == SuperScale::None {
            return Ok(());
        }
        let (mut first, mut above) = (0, 0);
        for (_, local) in segments(&self.module, &tile.rows, self.out_features)? {
            let groups = scale_rows(self.scheme.granularity, &local, self.in_features);
            let n = groups.len() * self.n_groups;
            let (mut at, mut run) = (0, above);
            while at < n {
                let end = at.saturating_add(self.sharing(at, groups.start)).min(n);
                f(first + at..first + end, run);
                at = end;
                run += 1;
            }
            first += n;
            above += super_rows(kind, &groups, self.n_groups).len() * self.n_supers;
        }
        Ok(())
    }

    /// How many entries of the scale grid have one super-scale, from the `at`-th behind the beginning of row `row` on.
    fn sharing(&self, at: usize, row: usize) -> usize {
        let n = self.n_groups;
        match self.scheme.super_scale {
            SuperScale::None | SuperScale::Multiply | SuperScale::Divide => usize::MAX,
            SuperScale::Nested { size, offset: _ } => {
                let size = length(size);
                size - (row * n + at) % size
            }
            SuperScale::Grouped { size } => {
                let (size, column) = (length(size), at % n);
                (size - column % size).min(n - column)
            }
            SuperScale::Channel => n - at % n,
        }
    }

    /// Calls `f` with each row of the tile.
    fn each_row(&self, tile: &CodeTile, mut f: impl FnMut(&Row)) -> Result<(), Error> {
        if self.in_features == 0 {
            return Ok(());
        }
        let granularity = self.scheme.granularity;
        let (mut at, mut base) = (0, 0);
        for (_, local) in segments(&self.module, &tile.rows, self.out_features)? {
            let groups = scale_rows(granularity, &local, self.in_features);
            for row in local {
                let first = scale_rows(granularity, &(row..row + 1), self.in_features).start;
                let flat = match granularity {
                    Granularity::Flat { size } => row * self.in_features % length(size),
                    Granularity::Strided { count } => row * self.in_features % length(count),
                    Granularity::Tensor
                    | Granularity::Channel
                    | Granularity::Group { .. }
                    | Granularity::IndexedGroup { .. }
                    | Granularity::Block { .. } => 0,
                };
                f(&Row {
                    at,
                    local: row,
                    scale: (base + first - groups.start) * self.n_groups,
                    flat,
                    channel: match self.scheme.super_scale {
                        SuperScale::Channel => tile.supers[at],
                        SuperScale::None
                        | SuperScale::Multiply
                        | SuperScale::Divide
                        | SuperScale::Nested { .. }
                        | SuperScale::Grouped { .. } => 1.0,
                    },
                });
                at += 1;
            }
            base += groups.len();
        }
        Ok(())
    }

    /// One row of products, before the basis is undone.
    fn products(&self, prepared: &Prepared<'_>, row: &Row, sorted: &mut Sorted, out: &mut [f32]) {
        let width = code_bytes(self.scheme.code);
        let line = self.in_features * width;
        let codes = &prepared.tile.codes[row.at * line..(row.at + 1) * line];
        let Some(groups) = &self.index else {
            for (run, index) in self.runs(row) {
                let bytes = run.start * width..run.end * width;
                self.group(prepared, row, &codes[bytes], index, &mut out[run]);
            }
            return;
        };
        sorted.codes.clear();
        sorted.codes.extend(groups.order.iter().map(|&k| codes[k]));
        sorted.values.resize(codes.len(), 0.0);
        let mut at = 0;
        for (group, &len) in groups.lens.iter().enumerate() {
            let cut = at..at + len;
            let values = &mut sorted.values[cut.clone()];
            self.group(prepared, row, &sorted.codes[cut], row.scale + group, values);
            at += len;
        }
        for (&k, &value) in groups.order.iter().zip(&sorted.values) {
            out[k] = value;
        }
    }

    /// The runs of input features with one entry of the scale grid, and that entry.
    fn runs(&self, row: &Row) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (n, scale, flat) = (self.in_features, row.scale, row.flat);
        let granularity = self.scheme.granularity;
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= n {
                return None;
            }
            let (end, index) = match granularity {
                Granularity::Tensor | Granularity::Channel => (n, scale),
                Granularity::Group { size } | Granularity::IndexedGroup { size } => {
                    (at.saturating_add(length(size)), scale + at / length(size))
                }
                Granularity::Block { columns, .. } => (
                    at.saturating_add(length(columns)),
                    scale + at / length(columns),
                ),
                Granularity::Flat { size } => {
                    let index = (flat + at) / length(size);
                    (
                        (index + 1).saturating_mul(length(size)) - flat,
                        scale + index,
                    )
                }
                Granularity::Strided { count } => (at + 1, scale + (flat + at) % length(count)),
            };
            let run = at..end.min(n);
            at = run.end;
            Some((run, index))
        })
    }

    /// Values with one scale, zero and offset.
    fn group(
        &self,
        prepared: &Prepared<'_>,
        row: &Row,
        codes: &[u8],
        index: usize,
        out: &mut [f32],
    ) {
        let scale = match self.scheme.scale {
            ScaleCoding::One => 1.0,
            ScaleCoding::Float(_)
            | ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer => prepared.factors[index],
        };
        let (zero, offset) = match self.scheme.zero_point {
            ZeroPoint::Fixed(zero) => (zero, None),
            ZeroPoint::Stored(_) => self.stored_zero(prepared.tile.zeros[index], scale),
            ZeroPoint::Offset { zero, form } => (zero, Some((form, prepared.offsets[index]))),
        };
        let scale = match self.scale_at {
            ScaleAt::Code => scale,
            ScaleAt::Rotated => 1.0,
        };
        let divides = self.scheme.direction == ScaleDirection::Divide;
        let before = matches!(offset, Some((OffsetForm::BeforeScale, _)));
        let factor = if divides || before { 1.0 } else { scale };
        match (&self.table, self.scheme.code) {
            (Some(table), _) => (self.backend.dequantize_table)(codes, table, factor, out),
            (None, Code::Dense(float)) => (self.backend.widen)(float, codes, out),
            (None, _) => (self.backend.dequantize_integer)(codes, zero, factor, out),
        }
        if divides {
            for value in out.iter_mut() {
                *value /= scale;
            }
        }
        self.second_factor(row, out);
        if let Some((form, offset)) = offset {
            add_offset(form, offset, scale, prepared.step, out);
        }
    }

    /// What a stored zero point subtracts from the codes, or adds to their products.
    fn stored_zero(&self, zero: i32, scale: f32) -> (i32, Option<(OffsetForm, f32)>) {
        match self.scheme.arithmetic {
            Arithmetic::RoundedZero(float) => {
                let offset = negated_product(float, zero, scale);
                (0, Some((OffsetForm::Added, offset)))
            }
            Arithmetic::ScaledDifference
            | Arithmetic::RoundedTo(_)
            | Arithmetic::RoundedScale(_)
            | Arithmetic::EachStep(_)
            | Arithmetic::Over127
            | Arithmetic::ScaleOver127
            | Arithmetic::Probed(_)
            | Arithmetic::Int8Grid(_) => (zero, None),
        }
    }

    /// What multiplies after the scale.
    fn second_factor(&self, row: &Row, out: &mut [f32]) {
        match self.scheme.arithmetic {
            Arithmetic::Over127 => {
                for value in out {
                    *value *= OVER_127;
                }
            }
            Arithmetic::Int8Grid(_) => {
                for value in out {
                    *value = value.round_ties_even().clamp(-127.0, 127.0) * row.channel;
                }
            }
            Arithmetic::ScaledDifference
            | Arithmetic::RoundedTo(_)
            | Arithmetic::RoundedScale(_)
            | Arithmetic::RoundedZero(_)
            | Arithmetic::ScaleOver127
            | Arithmetic::Probed(_)
            | Arithmetic::EachStep(_) => {}
        }
    }

    /// Rounds one row.
    fn finish(&self, float: Float, values: &mut [f32], out: &mut [u8]) {
        if let Arithmetic::RoundedTo(first) = self.scheme.arithmetic
            && float == self.reference
            && first != float
        {
            for value in values.iter_mut() {
                *value = first.nearest(*value);
            }
        }
        (self.backend.round)(float, values, out);
        if float == Float::Bf16 && (self.backend.first_non_finite)(values).is_some() {
            for (_, bytes) in values
                .iter()
                .zip(out.as_chunks_mut().0)
                .filter(|(v, _)| v.is_nan())
            {
                *bytes = BF16_NAN;
            }
        }
    }
}

/// Bytes of one code in a tile.
pub(crate) const fn code_bytes(code: Code) -> usize {
    match code {
        Code::Dense(float) => float.size_bytes(),
        Code::Integer { .. } | Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook => 1,
    }
}

/// A size as this machine counts; what cannot be addressed is longer than any row.
fn length(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX).max(1)
}

/// Row `i` of a matrix with rows of `len`.
fn line<T>(values: &mut [T], i: usize, len: usize) -> &mut [T] {
    &mut values[i * len..(i + 1) * len]
}
