//! Codes, scales and zero points in the neutral form.

use std::ops::Range;

use safequant_kernels::Backend;
use safequant_schemes::{
    Code, CodeTile, Decoder, Error, QuantizedTensor, RowOrder, ScaleCoding, SuperScale, ZeroPoint,
};

use super::align::Pair;
use super::entries::{Entries, canonical};
use super::figures::{Codes, Compared, Scales, ZeroPoints};
use super::side::Side;
use crate::measure::Grid;

/// Bytes of codes and scales that are held at a time, for each thread.
const TILE_BYTES: u64 = 2 << 20;
/// The same where stored rows are columns of the weight: a tile is read in pieces as short as it has rows.
const TRANSPOSED_TILE_BYTES: u64 = 16 << 20;

/// What is found of a weight.
type Found = (Compared<Codes>, Compared<Scales>, Compared<ZeroPoints>);

/// Compares both, of one shape.
///
/// # Errors
/// What cannot be read.
pub(super) fn compare(pair: &Pair<'_>, tolerance: f64) -> Result<Found, Error> {
    let (a, b) = (&pair.a, &pair.b);
    let not = |why: String| Ok((Compared::Not(why), Compared::Nothing, Compared::Nothing));
    let kinds = || format!("{} and {}", a.weight().form, b.weight().form);
    let (Some(of_a), Some(of_b)) = (a.codes(), b.codes()) else {
        return not(kinds());
    };
    let backend = Backend::detect();
    let decoders = [
        Decoder::new(of_a, a.checkpoint, backend)?,
        Decoder::new(of_b, b.checkpoint, backend)?,
    ];
    let Some(map) = CodeMap::new(&decoders) else {
        return not(kinds());
    };
    let shares_scales = |side: &Side<'_>, tensor: &QuantizedTensor| {
        side.order != RowOrder::Same && !CodeTile::has_rows_of_its_own(&tensor.scheme)
    };
    if shares_scales(a, of_a) || shares_scales(b, of_b) {
        return not("rows in another order that share scales".to_owned());
    }
    let mut pass = Pass::new(&decoders, map, tolerance);
    let per_matrix = a.rows_per_matrix();
    let n_matrices = if a.width() == 0 {
        0
    } else {
        a.n_rows().checked_div(per_matrix).unwrap_or(0)
    };
    let (most, unit) = tiling(pair, &decoders);
    let grid = Grid::of(of_a);
    for matrix in 0..n_matrices {
        let base = matrix.saturating_mul(per_matrix);
        pass.begin_matrix(matrix, per_matrix);
        for rows in grid.tiles(per_matrix, most, unit) {
            let of_stack = base.saturating_add(rows.start)..base.saturating_add(rows.end);
            let tiles = [
                a.tile(&decoders[0], &of_stack)?,
                b.tile(&decoders[1], &of_stack)?,
            ];
            pass.add(&rows, base, &tiles);
        }
    }
    if pass.is_outside {
        return not(kinds());
    }
    Ok(pass.finish())
}

/// Rows that fit in memory, and rows between two places where both can be read.
fn tiling(pair: &Pair<'_>, decoders: &[Decoder<'_>; 2]) -> (u64, u64) {
    let is_transposed = decoders.iter().any(|d| d.tensor.is_transposed());
    let bytes = if is_transposed {
        TRANSPOSED_TILE_BYTES
    } else {
        TILE_BYTES
    };
    let per_row: u64 = decoders.iter().map(|d| d.scratch_bytes(1)).sum();
    let most = bytes / per_row.max(1);
    // Units are powers of two but for the orders of rows, and the largest one of them is a multiple of the others.
    let order = pair.a.order_unit().max(pair.b.order_unit());
    let stored = decoders.iter().map(Decoder::row_unit).max().unwrap_or(1);
    if order == 1 {
        return (most, stored);
    }
    let unit = if order.is_multiple_of(stored) {
        order
    } else {
        order.saturating_mul(stored)
    };
    (most.max(unit), unit)
}

/// Which code of B stands for the same number as a code of A.
struct CodeMap {
    steps: Steps,
    /// B's numbers are A's times this: its scales are divided by it.
    factor: f64,
}

enum Steps {
    /// The same.
    Same,
    /// An integer code that is larger by this. `n`: how many codes A and B have, if not equally many.
    Shifted { by: i16, n: Option<[i16; 2]> },
    /// Another one.
    Table(Box<[u8; 256]>),
}

impl CodeMap {
    /// `None` where the codes stand for numbers that have nothing to do with each other.
    fn new(decoders: &[Decoder<'_>; 2]) -> Option<Self> {
        let [a, b] = decoders;
        let (of_a, of_b) = (&a.tensor.scheme, &b.tensor.scheme);
        if let (Code::Integer { bits: m, .. }, Code::Integer { bits: n, .. }) =
            (of_a.code, of_b.code)
        {
            let middle = |bits: u32| 1_i32.checked_shl(bits.checked_sub(1)?);
            let by = match (of_a.zero_point, of_b.zero_point) {
                (ZeroPoint::Fixed(a), ZeroPoint::Fixed(b)) => b.checked_sub(a)?,
                (_, _) => middle(n)? - middle(m)?,
            };
            let by = i16::try_from(by).ok()?;
            let steps = match (by, m == n) {
                (0, true) => Steps::Same,
                (by, is_same) => Steps::Shifted {
                    by,
                    n: (!is_same).then_some([1_i16.checked_shl(m)?, 1_i16.checked_shl(n)?]),
                },
            };
            return Some(Self { steps, factor: 1.0 });
        }
        Self::of_tables(&numbers(a)?, &numbers(b)?)
    }

    /// Tables of the same numbers, perhaps all times two, perhaps in another order (FP4 of bitsandbytes and of others).
    fn of_tables(a: &[f32], b: &[f32]) -> Option<Self> {
        if a.len() != b.len() {
            return None;
        }
        for factor in [1.0_f32, 2.0, 0.5] {
            let at = |code: usize| {
                let wanted = a[code] * factor;
                // Infinities have no difference, NaN has many spellings, zero has two.
                let equal = |value: f32| {
                    value.to_bits() == wanted.to_bits()
                        || (value - wanted).abs() == 0.0
                        || (value.is_nan() && wanted.is_nan())
                };
                let same = b.get(code).is_some_and(|&v| equal(v)).then_some(code);
                same.or_else(|| b.iter().position(|&v| equal(v)))
            };
            let Some(found) = (0..a.len()).map(at).collect::<Option<Vec<usize>>>() else {
                continue;
            };
            let is_identity = found.iter().enumerate().all(|(i, &code)| i == code);
            let table = std::array::from_fn(|code| {
                let code = found.get(code).copied().unwrap_or(0);
                u8::try_from(code).unwrap_or(0)
            });
            return Some(Self {
                steps: if is_identity {
                    Steps::Same
                } else {
                    Steps::Table(Box::new(table))
                },
                factor: f64::from(factor),
            });
        }
        None
    }

    /// What is added to an integer code.
    fn shift(&self) -> f64 {
        match self.steps {
            Steps::Same | Steps::Table(_) => 0.0,
            Steps::Shifted { by, .. } => f64::from(by),
        }
    }
}

/// The numbers that codes stand for.
fn numbers(decoder: &Decoder<'_>) -> Option<Vec<f32>> {
    match decoder.tensor.scheme.code {
        Code::Minifloat(format) => {
            let n = 1_usize.checked_shl(format.bits())?.min(256);
            Some(format.table().iter().take(n).copied().collect())
        }
        Code::Codebook(book) => Some(book.values().to_vec()),
        Code::StoredCodebook => decoder.held().codebook.map(|book| book.to_vec()),
        Code::Integer { .. } | Code::Dense(_) => None,
    }
}

/// The figures of a weight on their way through the tiles.
struct Pass<'a> {
    map: CodeMap,
    tolerance: f64,
    tensors: [&'a QuantizedTensor; 2],
    grids: [Grid; 2],
    /// The group of each input feature, where groups are not consecutive.
    indices: [Option<&'a [u32]>; 2],
    /// Whether the two grids are one, so that its entries are compared and not each weight's.
    is_one_grid: bool,
    codes: Codes,
    scales: Option<Scales>,
    zeros: Option<ZeroPoints>,
    /// Whether a code of one has none in the other: the wider one of two integers uses its width.
    is_outside: bool,
    /// Rows of A's grid in the matrices before.
    rows_before: u64,
    /// Entries of this matrix that were compared: tiles may need the same ones.
    seen: u64,
}

impl<'a> Pass<'a> {
    fn new(decoders: &'a [Decoder<'a>; 2], map: CodeMap, tolerance: f64) -> Self {
        let tensors = [decoders[0].tensor, decoders[1].tensor];
        let indices = [decoders[0].group_index(), decoders[1].group_index()];
        let has_scales = |tensor: &QuantizedTensor| {
            tensor.scheme.scale != ScaleCoding::One || tensor.scheme.super_scale != SuperScale::None
        };
        let has_zeros =
            |tensor: &QuantizedTensor| !matches!(tensor.scheme.zero_point, ZeroPoint::Fixed(_));
        let is_one_grid = indices[0] == indices[1]
            && canonical(tensors[0], indices[0]) == canonical(tensors[1], indices[1]);
        let scales = Scales {
            is_per_weight: !is_one_grid,
            ..Scales::default()
        };
        Self {
            map,
            tolerance,
            tensors,
            grids: tensors.map(Grid::of),
            indices,
            is_one_grid,
            codes: Codes::default(),
            scales: tensors.into_iter().any(has_scales).then_some(scales),
            zeros: tensors
                .into_iter()
                .any(has_zeros)
                .then_some(ZeroPoints::default()),
            is_outside: false,
            rows_before: 0,
            seen: 0,
        }
    }

    fn begin_matrix(&mut self, matrix: u64, n_rows: u64) {
        let rows = self.grids[0].scale_rows(&(0..n_rows));
        self.rows_before = matrix.saturating_mul(rows.end);
        self.seen = 0;
    }

    /// Adds rows `rows` of a matrix whose first row is the stack's row `base`.
    fn add(&mut self, rows: &Range<u64>, base: u64, tiles: &[CodeTile; 2]) {
        let first = base.saturating_add(rows.start);
        self.add_codes(first, &tiles[0].codes, &tiles[1].codes);
        if self.scales.is_none() && self.zeros.is_none() {
            return;
        }
        let of_grids = [0, 1].map(|at| self.grids[at].scale_rows(rows));
        let entries = [0, 1]
            .map(|at| Entries::of(self.tensors[at], &self.grids[at], &of_grids[at], &tiles[at]));
        if self.is_one_grid {
            self.add_entries(&of_grids[0], &entries);
        } else {
            self.add_weights(rows, base, &of_grids, &entries);
        }
    }

    fn add_codes(&mut self, first: u64, a: &[u8], b: &[u8]) {
        let width = self.tensors[0].in_features().max(1);
        self.codes.n += a.len() as u64;
        let (mut flipped, mut outside) = (0, false);
        let mut place = None;
        for (at, (&a, &b)) in (0_u64..).zip(a.iter().zip(b)) {
            let is_same = match &self.map.steps {
                Steps::Same => a == b,
                Steps::Table(table) => table[usize::from(a)] == b,
                Steps::Shifted { by, n } => {
                    let wanted = i16::from(a) + by;
                    let back = i16::from(b) - by;
                    outside |= n.is_some_and(|[of_a, of_b]| {
                        !(0..of_a).contains(&back) || !(0..of_b).contains(&wanted)
                    });
                    wanted == i16::from(b)
                }
            };
            if !is_same {
                flipped += 1;
                place.get_or_insert(at);
            }
        }
        self.codes.n_flipped += flipped;
        self.is_outside |= outside;
        if let Some(at) = place {
            let place = [first.saturating_add(at / width), at % width];
            self.codes.first.get_or_insert(place);
        }
    }

    /// Compares entry with entry, each once.
    fn add_entries(&mut self, rows: &Range<u64>, [a, b]: &[Entries; 2]) {
        let columns = self.grids[0].columns.max(1);
        let start = rows.start.saturating_mul(columns);
        let skip = usize::try_from(self.seen.saturating_sub(start)).unwrap_or(usize::MAX);
        let n = a.scales.len().min(b.scales.len());
        for at in skip..n {
            let entry = start.saturating_add(at as u64);
            let place = [
                self.rows_before.saturating_add(entry / columns),
                entry % columns,
            ];
            self.add_pair([a, b], [at, at], place);
        }
        self.seen = self.seen.max(start.saturating_add(n as u64));
    }

    /// Compares what each weight is scaled by.
    fn add_weights(
        &mut self,
        rows: &Range<u64>,
        base: u64,
        of_grids: &[Range<u64>; 2],
        [a, b]: &[Entries; 2],
    ) {
        let starts = [0, 1].map(|at| of_grids[at].start.saturating_mul(self.grids[at].columns));
        for row in rows.clone() {
            for column in 0..self.tensors[0].in_features() {
                let entries = [0, 1].map(|at| {
                    let entry = self.grids[at].entry([row, column], self.indices[at]);
                    let entry = entry.saturating_sub(starts[at]);
                    usize::try_from(entry).unwrap_or(usize::MAX)
                });
                self.add_pair([a, b], entries, [base.saturating_add(row), column]);
            }
        }
    }

    fn add_pair(&mut self, [a, b]: [&Entries; 2], [i, j]: [usize; 2], place: [u64; 2]) {
        let (tolerance, factor) = (self.tolerance, self.map.factor);
        if let Some(scales) = &mut self.scales
            && let (Some(&a), Some(&b)) = (a.scales.get(i), b.scales.get(j))
        {
            scales.add_pair(a, b * factor, tolerance, place);
        }
        if let Some(zeros) = &mut self.zeros
            && let (Some(&a), Some(&b)) = (a.zeros.get(i), b.zeros.get(j))
        {
            let wanted = a * factor + self.map.shift();
            zeros.add_pair(wanted, b, tolerance, place);
        }
    }

    fn finish(self) -> Found {
        let found = |scales: Option<_>| scales.map_or(Compared::Nothing, Compared::Found);
        (
            Compared::Found(self.codes),
            found(self.scales),
            self.zeros.map_or(Compared::Nothing, Compared::Found),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_same_numbers_are_found() {
        let a = [0.0, 1.0, 2.0, -1.0];
        let of_e5m2 = [f32::INFINITY, f32::NAN, 1.0, 2.0];
        let same = CodeMap::of_tables(&of_e5m2, &of_e5m2).unwrap();
        assert!(matches!(same.steps, Steps::Same));
        let map = |b: &[f32]| CodeMap::of_tables(&a, b);
        assert!(matches!(
            map(&a),
            Some(CodeMap {
                steps: Steps::Same,
                ..
            })
        ));
        let doubled = map(&[0.0, 2.0, 4.0, -2.0]).unwrap();
        assert!(matches!(doubled.steps, Steps::Same));
        assert!((doubled.factor - 2.0).abs() < 1e-12);
        let Some(Steps::Table(table)) = map(&[-1.0, 2.0, 1.0, 0.0]).map(|map| map.steps) else {
            panic!("another order is not found");
        };
        assert_eq!(table[..4], [3, 2, 1, 0]);
        assert!(map(&[0.0, 1.0, 3.0, -1.0]).is_none());
        assert!(map(&[0.0, 1.0]).is_none());
    }
}
