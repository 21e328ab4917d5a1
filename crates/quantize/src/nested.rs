//! Scales that are quantized themselves: bitsandbytes' double quantization.
//!
//! ```text
//! offset                      mean of the scales of the whole matrix, known before
//! above[b]                    largest |scale - offset| of the scales of block b
//! entry                       of the dynamic map, near to (scale - offset) / above[b]
//! entry * above[b] + offset   what readers get
//! ```
//! Spec: `specs/quantizers/round_to_nearest.md`, clauses 85-89.

use safequant_kernels::{Backend, DYNAMIC_8BIT, Dynamic8BitRule};
use safequant_schemes::{CodeTile, Granularity, Scheme, SuperScale};

use crate::grid::{Grid, Line, widen};
use crate::quantizers::round_to_nearest::{AHEAD, Stop, with_finite};
use crate::{Error, Rows, Target};

/// Blocks of scales, each with a scale of its own, and one offset for all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Nesting {
    /// Scales of a block, in row-major order over the matrix.
    pub(crate) size: usize,
    offset: f32,
}

impl Nesting {
    pub(crate) fn new(size: u64, offset: f32) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX).max(1);
        Self { size, offset }
    }

    /// Of a scheme; `None` where scales are not quantized themselves.
    pub(crate) fn of(scheme: &Scheme) -> Option<Self> {
        match scheme.super_scale {
            SuperScale::Nested { size, offset } => Some(Self::new(size, offset)),
            SuperScale::None
            | SuperScale::Multiply
            | SuperScale::Divide
            | SuperScale::Grouped { .. }
            | SuperScale::Channel => None,
        }
    }

    /// What the scales of a block are scaled by.
    pub(crate) fn above(self, scales: &[f32]) -> f32 {
        let far = |scale: &f32| (scale - self.offset).abs();
        scales.iter().map(far).fold(0.0, f32::max)
    }

    /// The entry that the library stores for a scale.
    pub(crate) fn entry(self, scale: f32, above: f32) -> f32 {
        let code = Dynamic8BitRule::Grid.encode((scale - self.offset) * (1.0 / above));
        DYNAMIC_8BIT[usize::from(code)]
    }

    /// The scale that an entry stands for.
    pub(crate) fn scale(self, entry: f32, above: f32) -> f32 {
        entry * above + self.offset
    }

    /// The entry whose scale is nearest to a wanted one, of two the lower; `None` if none is positive.
    pub(crate) fn nearest(self, wanted: f32, above: f32) -> Option<f32> {
        let scale = |entry: &f32| self.scale(*entry, above);
        if above == 0.0 {
            // Any stands for the offset: the library's own.
            return (self.offset > 0.0).then_some(DYNAMIC_8BIT[0]);
        }
        let first = DYNAMIC_8BIT.partition_point(|entry| scale(entry) <= 0.0);
        let positive = &DYNAMIC_8BIT[first..];
        let upper = positive.partition_point(|entry| scale(entry) < wanted);
        let lower = upper.checked_sub(1).and_then(|at| positive.get(at));
        match (lower, positive.get(upper)) {
            (Some(a), Some(b)) if scale(b) - wanted < wanted - scale(a) => Some(*b),
            (Some(entry), _) | (None, Some(entry)) => Some(*entry),
            (None, None) => None,
        }
    }

    /// The scales of a block have one scale, so a tile with a part of it could not choose it.
    ///
    /// # Panics
    /// If rows begin or end within a block: the caller's bug.
    pub(crate) fn assert_whole_blocks(self, granularity: Granularity, rows: &Rows<'_>) {
        let end = rows.first_row + widen(rows.n_rows());
        for row in [rows.first_row, end] {
            let within = row % rows.out_features.max(1);
            let before = match granularity {
                Granularity::Flat { size } => within * widen(rows.in_features) / size.max(1),
                Granularity::Group { size } => {
                    within * widen(rows.in_features).div_ceil(size.max(1))
                }
                Granularity::Channel => within,
                Granularity::Tensor
                | Granularity::IndexedGroup { .. }
                | Granularity::Block { .. }
                | Granularity::Strided { .. } => 0,
            };
            assert!(
                before.is_multiple_of(widen(self.size)),
                "a tile boundary at row {row} cuts a block of {} scales",
                self.size
            );
        }
    }
}

/// Quantizes the scales of a tile, which are numbers so far, as the library does; where the scheme has them quantized themselves.
///
/// # Panics
/// As [`Nesting::assert_whole_blocks`].
pub(crate) fn nest(scheme: &Scheme, rows: &Rows<'_>, grid: Grid, tile: &mut CodeTile) {
    let Some(nesting) = Nesting::of(scheme) else {
        return;
    };
    nesting.assert_whole_blocks(scheme.granularity, rows);
    let mut first = 0;
    for n in groups_of_matrices(grid) {
        for block in tile.scales[first..first + n].chunks_mut(nesting.size) {
            let above = nesting.above(block);
            for scale in block {
                *scale = nesting.entry(*scale, above);
            }
            tile.supers.push(above);
        }
        first += n;
    }
}

/// Groups of each matrix of a tile.
fn groups_of_matrices(grid: Grid) -> Vec<usize> {
    let lines: Vec<Line> = grid.lines().collect();
    let matrices = lines.chunk_by(|a, b| a.matrix == b.matrix);
    let n_groups = |lines: &[Line]| lines.iter().map(Line::n_groups).sum();
    matrices.map(n_groups).collect()
}

/// Sums of the scales that the convention's own tool gives the groups of some rows, before they are quantized themselves: one for each
/// block of scales ([`SuperScale::Nested`]), in order. Added up in this order they do not depend on how a matrix was cut into
/// tiles; divided by the number of scales they are the offset of the scheme. Rows begin where blocks of scales do.
///
/// # Errors
/// A non-finite weight, if the target refuses it; [`Error::UnsupportedScheme`] for scales that are not quantized themselves.
pub fn scale_sums(
    target: &Target,
    rows: Rows<'_>,
    backend: &'static Backend,
) -> Result<Vec<f64>, Error> {
    let nesting = Nesting::of(&target.scheme).ok_or(Error::UnsupportedScheme {
        reason: "its scales are not quantized themselves",
    })?;
    let granularity = target.scheme.granularity;
    nesting.assert_whole_blocks(granularity, &rows);
    let grid = Grid::new(granularity, &rows)?;
    with_finite(target, &rows, backend, |values| {
        let mut scales = Vec::new();
        for line in grid.lines() {
            for run in line.runs(rows.in_features) {
                let first = scales.len();
                scales.resize(first + line.n_groups(), 0.0);
                let found = &mut scales[first..];
                (backend.magnitudes)(values.cut(run), line.group, AHEAD, found);
                if !found
                    .iter()
                    .fold(true, |all, scale| all & scale.is_finite())
                {
                    return Err(Stop::NonFinite);
                }
            }
        }
        let mut sums = Vec::new();
        let mut rest = scales.as_slice();
        for n in groups_of_matrices(grid) {
            let (of_matrix, others) = rest.split_at(n);
            let blocks = of_matrix.chunks(nesting.size);
            sums.extend(blocks.map(|block| block.iter().map(|s| f64::from(*s)).sum::<f64>()));
            rest = others;
        }
        Ok(sums)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NESTING: Nesting = Nesting {
        size: 256,
        offset: 0.535,
    };

    /// bitsandbytes.md §13: eight scales 0.50 to 0.57.
    #[test]
    fn entries_are_those_of_the_dossier() {
        let scales = [0.50f32, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 0.57];
        let nesting = Nesting {
            offset: 0.534_999_97,
            ..NESTING
        };
        let above = nesting.above(&scales);
        assert_eq!(above.to_bits(), 0.035_000_026_f32.to_bits());
        let codes = [0, 20, 40, 60, 194, 214, 234, 255];
        for (scale, code) in scales.into_iter().zip(codes) {
            assert_eq!(
                nesting.entry(scale, above).to_bits(),
                DYNAMIC_8BIT[code].to_bits()
            );
        }
    }

    #[test]
    fn the_nearest_scale_is_positive_and_none_is_nearer() {
        for (offset, above) in [(0.535, 0.1), (0.01, 3.0), (1e-3, 1e-30), (0.0, 2.0)] {
            let nesting = Nesting { offset, ..NESTING };
            let all = DYNAMIC_8BIT.map(|entry| nesting.scale(entry, above));
            for i in 0..200_u16 {
                let wanted = offset + above * (f32::from(i) / 80.0 - 1.25);
                let entry = nesting.nearest(wanted, above).unwrap();
                let found = nesting.scale(entry, above);
                assert!(found > 0.0 && DYNAMIC_8BIT.contains(&entry));
                let distance = |scale: f32| (scale - wanted).abs();
                let mut positive = all.iter().filter(|scale| **scale > 0.0);
                assert!(
                    positive.all(|scale| distance(found) <= distance(*scale)),
                    "{wanted} about {offset} by {above}: {found}"
                );
            }
        }
    }

    #[test]
    fn scales_that_are_all_the_offset_have_one_entry() {
        let above = NESTING.above(&[0.535; 3]);
        assert_eq!(above.to_bits(), 0);
        let entry = NESTING.entry(0.535, above);
        assert_eq!(NESTING.nearest(7.0, above), Some(entry));
        assert_eq!(NESTING.scale(entry, above).to_bits(), 0.535_f32.to_bits());
        let zeros = Nesting {
            offset: 0.0,
            ..NESTING
        };
        assert_eq!(zeros.nearest(7.0, 0.0), None);
        assert_eq!(zeros.scale(zeros.entry(0.0, 0.0), 0.0).to_bits(), 0);
        let below = Nesting {
            offset: -1.0,
            ..NESTING
        };
        assert_eq!(below.nearest(7.0, 0.5), None);
    }
}
