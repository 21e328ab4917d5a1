//! Rows decoded in one go: the formula of a tensor as plain data for [`Backend::decode_rows`], wherever it is one of those
//! that backends know. What is not (rotations, second levels inside the formula) goes the long way.

use std::ops::Range;

use safequant_kernels::rows::{CodeMeaning, CodedRows, Formula, ScaleGrid, StoredCodes, Zeros};
use safequant_kernels::{Float, Stores};

use super::{Dequantizer, OVER_127, Prepared, RowsOut, length, negated_product};
use crate::{
    Arithmetic, Basis, Code, CodeTile, ColumnFactor, Error, Granularity, OffsetForm, Rotation,
    ScaleCoding, ScaleDirection, SuperScale, ZeroPoint,
};

/// How the numbers of a tile come in, in the order of the formula.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Product,
    Quotient,
    Over127,
    /// A stored zero point as a rounded product.
    RoundedZero(Float),
    Offset(OffsetForm),
}

impl Dequantizer {
    /// Whether [`Dequantizer::decode`] can be called: the formula is one that backends know.
    pub(crate) fn is_fused(&self) -> bool {
        self.kind().is_some() && self.grid(&(0..0)).is_some()
    }

    /// Rows `local` of one matrix, from their stored codes; `tile` has their scales, zero points and offsets, `flip` turns
    /// codes into the unsigned form.
    ///
    /// # Errors
    /// A size that this machine cannot address.
    ///
    /// # Panics
    /// If [`Dequantizer::is_fused`] does not hold, or `out` has not exactly the length of the rows.
    pub(crate) fn decode(
        &self,
        tile: &CodeTile,
        (codes, flip): (StoredCodes<'_>, u8),
        local: &Range<usize>,
        (out, stores): (RowsOut<'_>, Stores),
    ) -> Result<(), Error> {
        let float = match out {
            RowsOut::F32(_) => None,
            RowsOut::Bytes(float, _) => Some(float),
        };
        let out = out.into_floats();
        let prepared = self.prepare(tile, float.and_then(|float| self.step(float)))?;
        let offsets = self.offsets(&prepared);
        let rows = self.coded((&prepared, &offsets), (codes, flip), local, float);
        match &self.index {
            Some(groups) => (self.backend.decode_indexed)(&rows, &groups.index, out, stores),
            None => (self.backend.decode_rows)(&rows, out, stores),
        }
        Ok(())
    }

    /// The formula of rows `local` of one matrix as plain data; `float` is the dtype of the output, `None` for F32 values.
    ///
    /// # Panics
    /// If [`Dequantizer::is_fused`] does not hold.
    pub(super) fn coded<'t>(
        &'t self,
        (prepared, offsets): (&'t Prepared<'t>, &'t [f32]),
        (codes, flip): (StoredCodes<'t>, u8),
        local: &Range<usize>,
        float: Option<Float>,
    ) -> CodedRows<'t> {
        let kind = self.kind().expect("the caller has asked");
        let grid = self.grid(local).expect("the caller has asked");
        let first = match self.scheme.arithmetic {
            Arithmetic::RoundedTo(first) if float == Some(self.reference) => first,
            Arithmetic::RoundedTo(_)
            | Arithmetic::ScaledDifference
            | Arithmetic::RoundedScale(_)
            | Arithmetic::RoundedZero(_)
            | Arithmetic::EachStep(_)
            | Arithmetic::Over127
            | Arithmetic::ScaleOver127
            | Arithmetic::Probed(_)
            | Arithmetic::Int8Grid(_) => Float::F32,
        };
        CodedRows {
            n_rows: local.len(),
            n_columns: self.in_features,
            codes,
            value: self.meaning(prepared.tile, flip, kind),
            grid: ScaleGrid {
                scales: match self.scheme.scale {
                    ScaleCoding::One => &[],
                    ScaleCoding::Float(_)
                    | ScaleCoding::E8M0(_)
                    | ScaleCoding::Minifloat(_)
                    | ScaleCoding::StoredTable
                    | ScaleCoding::Integer => &prepared.factors,
                },
                ..grid
            },
            formula: formula(kind, offsets, prepared.step.unwrap_or(Float::F32)),
            first_rounded_to: first,
        }
    }

    /// What is added to products, one for each entry of the grid.
    pub(super) fn offsets(&self, prepared: &Prepared<'_>) -> Vec<f32> {
        match self.kind() {
            None | Some(Kind::Product | Kind::Quotient | Kind::Over127) => Vec::new(),
            Some(Kind::Offset(_)) => prepared.offsets.clone(),
            Some(Kind::RoundedZero(float)) => {
                let pairs = prepared.tile.zeros.iter().zip(&prepared.factors);
                pairs
                    .map(|(&zero, &scale)| negated_product(float, zero, scale))
                    .collect()
            }
        }
    }

    fn kind(&self) -> Option<Kind> {
        let scheme = &self.scheme;
        let is_plain = scheme.basis.rotation == Rotation::None
            && scheme.basis.rank == Basis::WEIGHT.rank
            && matches!(
                scheme.basis.columns,
                ColumnFactor::None | ColumnFactor::Inputs
            );
        let is_known = scheme.super_scale != SuperScale::Channel;
        let has_values = match scheme.code {
            Code::Minifloat(format) => matches!(format.bits(), 4 | 8),
            Code::Dense(_) => false,
            Code::Integer { .. } | Code::Codebook(_) | Code::StoredCodebook => true,
        };
        if !is_plain || !is_known || !has_values {
            return None;
        }
        let divides = scheme.direction == ScaleDirection::Divide;
        match (scheme.arithmetic, scheme.zero_point) {
            (Arithmetic::Int8Grid(_) | Arithmetic::Probed(_), _)
            | (Arithmetic::Over127, ZeroPoint::Offset { .. }) => None,
            (_, ZeroPoint::Offset { form, zero: _ }) => (!divides).then_some(Kind::Offset(form)),
            (Arithmetic::RoundedZero(float), ZeroPoint::Stored(_)) => {
                (!divides).then_some(Kind::RoundedZero(float))
            }
            (Arithmetic::Over127, _) => (!divides).then_some(Kind::Over127),
            (
                Arithmetic::ScaledDifference
                | Arithmetic::RoundedTo(_)
                | Arithmetic::RoundedScale(_)
                | Arithmetic::RoundedZero(_)
                | Arithmetic::EachStep(_)
                | Arithmetic::ScaleOver127,
                _,
            ) if divides => Some(Kind::Quotient),
            (
                Arithmetic::ScaledDifference
                | Arithmetic::RoundedTo(_)
                | Arithmetic::RoundedScale(_)
                | Arithmetic::RoundedZero(_)
                | Arithmetic::EachStep(_)
                | Arithmetic::ScaleOver127,
                _,
            ) => Some(Kind::Product),
        }
    }

    /// Which codes share a scale, without the scales.
    fn grid(&self, local: &Range<usize>) -> Option<ScaleGrid<'static>> {
        let (rows, rows_before, columns) = match self.scheme.granularity {
            Granularity::Tensor => (usize::MAX, 0, self.in_features),
            Granularity::Channel => (1, 0, self.in_features),
            Granularity::Group { size } | Granularity::IndexedGroup { size } => {
                (1, 0, length(size))
            }
            Granularity::Block { rows, columns } => {
                (length(rows), local.start % length(rows), length(columns))
            }
            // Runs that end with the rows are groups.
            Granularity::Flat { size } if self.in_features.is_multiple_of(length(size)) => {
                (1, 0, length(size))
            }
            Granularity::Flat { .. } | Granularity::Strided { .. } => return None,
        };
        Some(ScaleGrid {
            scales: &[],
            rows,
            rows_before,
            columns: columns.max(1),
        })
    }

    fn meaning<'t>(&'t self, tile: &'t CodeTile, flip: u8, kind: Kind) -> CodeMeaning<'t> {
        match (self.scheme.code, &self.table) {
            (Code::Minifloat(format), _) if format.bits() == 8 => CodeMeaning::Minifloat(format),
            (Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook, Some(table)) => {
                CodeMeaning::Table16(table.first_chunk().expect("256 values"))
            }
            (
                Code::Integer { .. }
                | Code::Dense(_)
                | Code::Minifloat(_)
                | Code::Codebook(_)
                | Code::StoredCodebook,
                _,
            ) => CodeMeaning::Integer {
                flip,
                zero: match (self.scheme.zero_point, kind) {
                    (ZeroPoint::Fixed(zero) | ZeroPoint::Offset { zero, form: _ }, _) => {
                        Zeros::Fixed(zero)
                    }
                    (ZeroPoint::Stored(_), Kind::RoundedZero(_)) => Zeros::Fixed(0),
                    (
                        ZeroPoint::Stored(_),
                        Kind::Product | Kind::Quotient | Kind::Over127 | Kind::Offset(_),
                    ) => Zeros::Each(&tile.zeros),
                },
            },
        }
    }
}

fn formula(kind: Kind, offsets: &[f32], step: Float) -> Formula<'_> {
    match kind {
        Kind::Product => Formula::Product,
        Kind::Quotient => Formula::Quotient,
        Kind::Over127 => Formula::ProductTimes(OVER_127),
        Kind::RoundedZero(_) | Kind::Offset(OffsetForm::Added) => {
            Formula::PlusOffset { offsets, step }
        }
        Kind::Offset(OffsetForm::Subtracted) => Formula::MinusOffset { offsets, step },
        Kind::Offset(OffsetForm::BeforeScale) => Formula::OffsetFirst { offsets, step },
    }
}
