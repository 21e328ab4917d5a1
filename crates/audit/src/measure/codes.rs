//! What the codes of a weight are like.

use safequant_schemes::{Code, CodeTile, QuantizedTensor, ZeroPoint};

use super::Occurrences;
use super::grid::Grid;

/// Of all codes of a weight, in unsigned form (integers) or as bit patterns.
#[derive(Clone, Debug, PartialEq)]
pub struct CodeStatistics {
    /// How many of each code.
    pub histogram: Box<[u64; 256]>,
    /// Codes that are no number, of small floats that have such.
    pub nan: Occurrences,
    /// Codes that are infinite, of small floats that have such.
    pub infinite: Occurrences,
    /// Rows all of whose codes are the same.
    pub constant_rows: Occurrences,
    /// Matrices of the stack all of whose codes are the same; the place is the first row of the first.
    pub constant_matrices: Occurrences,
    /// Codes that stand for something else than zero (beside float zero points: than their neighbor), but whose scale is zero.
    pub lost: Occurrences,
    /// Codes that are no number and whose scale is zero: what dividing zeros by zero leaves.
    pub nan_without_scale: u64,
    /// Codes beyond the edges of the weight that are not stored as zeros; the place is one of the stored matrix.
    pub padding: Occurrences,
}

impl Default for CodeStatistics {
    fn default() -> Self {
        let none = Occurrences::default();
        Self {
            histogram: Box::new([0; 256]),
            nan: none,
            infinite: none,
            constant_rows: none,
            constant_matrices: none,
            lost: none,
            nan_without_scale: 0,
            padding: none,
        }
    }
}

impl CodeStatistics {
    /// How many codes there are.
    pub fn n(&self) -> u64 {
        self.histogram.iter().sum()
    }

    /// How many different ones.
    pub fn n_used(&self) -> usize {
        self.histogram.iter().filter(|&&count| count > 0).count()
    }
}

/// What a code stands for, as far as that can be said without its scale.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Zero,
    Number,
    Nan,
    Infinite,
}

impl Kind {
    fn of(value: f32) -> Self {
        if value.is_nan() {
            Kind::Nan
        } else if value.is_infinite() {
            Kind::Infinite
        } else if value == 0.0 {
            Kind::Zero
        } else {
            Kind::Number
        }
    }
}

/// The codes of a weight on their way through the tiles.
pub(super) struct CodePass {
    found: CodeStatistics,
    /// What codes stand for; integers are numbers, whose zero the zero point says.
    kinds: Option<Box<[Kind; 256]>>,
    zero: ZeroPoint,
    out_features: u64,
    in_features: usize,
    /// The only code of the matrix so far, if there is only one.
    only: Option<u8>,
    is_constant: bool,
}

impl CodePass {
    pub(super) fn new(tensor: &QuantizedTensor) -> Self {
        let kinds = match tensor.scheme.code {
            Code::Minifloat(format) => Some(format.table().map(Kind::of)),
            Code::Codebook(book) => Some(book.table().map(Kind::of)),
            Code::Integer { .. } | Code::StoredCodebook => Some([Kind::Number; 256]),
            // Two bytes or more each: no codes at all.
            Code::Dense(_) => None,
        };
        Self {
            found: CodeStatistics::default(),
            kinds: kinds.map(Box::new),
            zero: tensor.scheme.zero_point,
            out_features: tensor.out_features(),
            in_features: usize::try_from(tensor.in_features()).unwrap_or(usize::MAX),
            only: None,
            is_constant: false,
        }
    }

    /// Adds a tile of one matrix, whose rows begin with `first` there.
    pub(super) fn add(&mut self, tile: &CodeTile, grid: &Grid, first: u64, index: Option<&[u32]>) {
        let Some(kinds) = self.kinds.take() else {
            return;
        };
        for (row, codes) in (tile.rows.start..).zip(tile.codes.chunks(self.in_features.max(1))) {
            self.add_row(&kinds, row, codes);
        }
        if tile.scales.contains(&0.0) {
            self.add_lost(&kinds, tile, grid, first, index);
        }
        self.kinds = Some(kinds);
    }

    fn add_row(&mut self, kinds: &[Kind; 256], row: u64, codes: &[u8]) {
        let mut counts = [0_u64; 256];
        for &code in codes {
            counts[usize::from(code)] += 1;
        }
        let only = codes.first().copied();
        let only = only.filter(|&code| counts[usize::from(code)] == codes.len() as u64);
        if only.is_some() && codes.len() > 1 {
            self.found.constant_rows.note([row, 0]);
        }
        self.add_to_matrix(row, only);
        for (code, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
            self.found.histogram[code] += count;
            let places = match kinds[code] {
                Kind::Nan => &mut self.found.nan,
                Kind::Infinite => &mut self.found.infinite,
                Kind::Zero | Kind::Number => continue,
            };
            let column = codes.iter().position(|&c| usize::from(c) == code);
            places
                .first
                .get_or_insert([row, column.unwrap_or(0) as u64]);
            places.count += count;
        }
    }

    /// `only`: the only code of the row.
    fn add_to_matrix(&mut self, row: u64, only: Option<u8>) {
        if row.is_multiple_of(self.out_features.max(1)) {
            self.end_matrix(row);
            self.only = only;
            self.is_constant = only.is_some();
        } else {
            self.is_constant &= only == self.only;
        }
    }

    /// `end`: the row behind the matrix.
    fn end_matrix(&mut self, end: u64) {
        if self.is_constant {
            let first = end.saturating_sub(self.out_features);
            self.found.constant_matrices.note([first, 0]);
        }
        self.is_constant = false;
    }

    fn add_lost(
        &mut self,
        kinds: &[Kind; 256],
        tile: &CodeTile,
        grid: &Grid,
        first: u64,
        index: Option<&[u32]>,
    ) {
        let n_rows = tile.rows.end.saturating_sub(tile.rows.start);
        let base = grid
            .scale_rows(&(first..first.saturating_add(n_rows)))
            .start;
        let base = base.saturating_mul(grid.columns);
        let rows = tile.codes.chunks(self.in_features.max(1));
        for (row, codes) in (0..).zip(rows) {
            let mut before = None;
            for (column, &code) in (0..).zip(codes) {
                let entry = grid.entry([first + row, column], index);
                let Ok(entry) = usize::try_from(entry.saturating_sub(base)) else {
                    continue;
                };
                if tile.scales.get(entry) != Some(&0.0) {
                    continue;
                }
                let zero = tile.zeros.get(entry).copied();
                let is_zero = match (kinds[usize::from(code)], self.zero) {
                    (Kind::Zero, _) => true,
                    (Kind::Infinite, _) => false,
                    (Kind::Nan, _) => {
                        self.found.nan_without_scale += 1;
                        true
                    }
                    (Kind::Number, ZeroPoint::Fixed(zero)) => i32::from(code) == zero,
                    (Kind::Number, ZeroPoint::Stored(_)) => zero == Some(i32::from(code)),
                    // The offset is what such a group is made of, and its codes are alike.
                    (Kind::Number, ZeroPoint::Offset { .. }) => before
                        .replace((entry, code))
                        .is_none_or(|(of, other)| of != entry || other == code),
                };
                if !is_zero {
                    self.found.lost.note([tile.rows.start + row, column]);
                }
            }
        }
    }

    pub(super) fn finish(mut self) -> CodeStatistics {
        let end = self.found.n() / (self.in_features as u64).max(1);
        self.end_matrix(end);
        self.found
    }
}

#[cfg(test)]
mod tests {
    use safequant_schemes::Granularity;

    use super::*;

    /// Two matrices of two rows of four FP8 codes, with a scale for each row.
    fn tensor() -> QuantizedTensor {
        use safequant_kernels::{Float, Minifloat};
        use safequant_schemes::{ScaleCoding, Scheme};
        QuantizedTensor {
            module: "m".to_owned(),
            weight: "m.weight".to_owned(),
            convention: "fp8",
            shape: vec![2, 2, 4],
            scheme: Scheme::plain(
                Code::Minifloat(Minifloat::E4M3),
                Granularity::Channel,
                ScaleCoding::Float(Float::F32),
            ),
            reference_dtype: Float::Bf16,
            parts: Vec::new(),
        }
    }

    #[test]
    fn codes_are_counted_row_by_row_and_matrix_by_matrix() {
        let tensor = tensor();
        let grid = Grid::of(&tensor);
        let mut pass = CodePass::new(&tensor);
        let tile = |start, codes: &[u8], scales: &[f32]| CodeTile {
            rows: start..start + 2,
            codes: codes.to_vec(),
            scales: scales.to_vec(),
            ..CodeTile::default()
        };
        pass.add(
            &tile(0, &[9, 9, 9, 9, 0, 0x7f, 5, 0x80], &[1.0, 0.0]),
            &grid,
            0,
            None,
        );
        pass.add(&tile(2, &[7; 8], &[1.0, 1.0]), &grid, 0, None);
        let found = pass.finish();
        let places = |count, first| Occurrences {
            count,
            first: Some(first),
        };
        assert_eq!(found.n(), 16);
        assert_eq!(found.n_used(), 6);
        assert_eq!(found.constant_rows, places(3, [0, 0]));
        assert_eq!(found.constant_matrices, places(1, [2, 0]));
        assert_eq!(found.nan, places(1, [1, 1]));
        assert_eq!(found.nan_without_scale, 1);
        assert_eq!(found.lost, places(1, [1, 2]));
    }
}
