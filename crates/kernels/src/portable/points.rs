//! The points of a lattice that are nearest to eight values (ggml's IQ2 and IQ3; [`crate::blocks::Lattice`]).
//!
//! With weights alone, `sum h (w - s p)^2` of a point `p` is `sum h w^2 + s (s B - 2 A)`, where `A = sum h |w| p` and `B = sum h p^2`: whatever
//! the scale `s` is, the nearest point lies on the lower right edge of all `(A, B)`. A unit of eight values has few such points
//! ([`edge`]); once they are known, the nearest at a scale costs next to nothing, and is exact.
//!
//! With a whole metric `M` no such shortcut is known: [`improve`] looks at the points that are near by the diagonal of `M`, and counts what
//! each of them changes by all of it.

use std::cmp::Ordering;

use super::fit::FitSums;
use crate::blocks::Lattice;

/// Values whose signs stand together.
const UNIT: usize = Lattice::UNIT;

/// Points that are looked at side by side.
const LANES: usize = 16;

/// A point that is the nearest one at some scales: what a unit's part of the loss needs of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EdgePoint {
    /// Its index.
    pub index: u16,
    /// `sum h |w| p`, less what a sign that had to be turned costs.
    pub product: f32,
    /// `sum h p^2`.
    pub square: f32,
}

impl EdgePoint {
    /// `sum h (w - s p)^2` less `sum h w^2`.
    #[inline(always)]
    pub fn loss(&self, scale: f32) -> f32 {
        scale * (scale * self.square - 2.0 * self.product)
    }
}

/// The signs that eight values get, bit `j` for a minus: their own, but for one where an even number is asked for.
///
/// The one that turns costs least: `h |w|` is the least.
#[inline(always)]
pub fn signs(lattice: &Lattice, values: &[f32; UNIT], weights: &[f32; UNIT]) -> u8 {
    let mut signs = 0;
    for (j, value) in values.iter().enumerate() {
        signs |= u8::from(*value < 0.0) << j;
    }
    if lattice.has_even_signs && signs.count_ones() % 2 == 1 {
        let mut least = 0;
        for j in 1..UNIT {
            if weights[j] * values[j].abs() < weights[least] * values[least].abs() {
                least = j;
            }
        }
        signs ^= 1 << least;
    }
    signs
}

/// The points that are nearest to some coordinates at a scale of `least` or more, from the smallest on; what `found` held is replaced.
///
/// `values`: the coordinates with these signs taken off, negative where a sign was turned; `weights`: what each counts. Both have the
/// lattice's dimensions.
///
/// # Panics
/// If they have not.
#[inline(always)]
pub fn edge(
    lattice: &Lattice,
    values: &[f32],
    weights: &[f32],
    least: f32,
    found: &mut Vec<EdgePoint>,
) {
    assert_eq!(values.len(), lattice.dimensions, "a value per coordinate");
    assert_eq!(weights.len(), lattice.dimensions, "a weight per coordinate");
    let n = lattice.n_points();
    let mut sums = Sums::of(n);
    let coordinates = lattice.magnitudes().chunks_exact(n);
    for (line, (value, weight)) in coordinates.zip(values.iter().zip(weights)) {
        let product = weight * value;
        let all = sums.products[..n].iter_mut().zip(&mut sums.squares[..n]);
        for ((to_product, to_square), magnitude) in all.zip(line) {
            *to_product += product * magnitude;
            *to_square += weight * (magnitude * magnitude);
        }
    }
    found.clear();
    let mut left = sums.best(0.0, 1.0);
    found.push(left);
    // What lies between the last point found and the first of these, the nearest first.
    let mut ahead = [EdgePoint::default(); AHEAD];
    ahead[0] = sums.best(1.0, 0.5 * least);
    let mut n_ahead = usize::from(ahead[0].index != left.index);
    while n_ahead > 0 {
        let right = ahead[n_ahead - 1];
        match sums.beyond(left, right) {
            Some(point) if n_ahead < AHEAD => {
                ahead[n_ahead] = point;
                n_ahead += 1;
            }
            Some(_) | None => {
                found.push(right);
                left = right;
                n_ahead -= 1;
            }
        }
    }
}

/// Points of an edge that wait for those before them, at most: an edge has far fewer.
const AHEAD: usize = 64;

/// Most points of a lattice.
const MOST: usize = 1024;

/// `A` and `B` of all points.
struct Sums {
    n: usize,
    products: [f32; MOST],
    squares: [f32; MOST],
}

impl Sums {
    #[inline(always)]
    fn of(n: usize) -> Self {
        Self {
            n,
            products: [0.0; MOST],
            squares: [0.0; MOST],
        }
    }

    #[inline(always)]
    fn point(&self, at: usize) -> EdgePoint {
        EdgePoint {
            index: at as u16,
            product: self.products[at],
            square: self.squares[at],
        }
    }

    /// The first point with the least `square * B - product * A`.
    #[inline(always)]
    fn best(&self, product: f32, square: f32) -> EdgePoint {
        let (products, _) = self.products[..self.n].as_chunks::<LANES>();
        let (squares, _) = self.squares[..self.n].as_chunks::<LANES>();
        let height = |products: &[f32; LANES], squares: &[f32; LANES], lane: usize| {
            square * squares[lane] - product * products[lane]
        };
        // A look for the least height and one for its place are faster than one for both: neither has to wait for itself.
        let mut lanes = [f32::INFINITY; LANES];
        for (products, squares) in products.iter().zip(squares) {
            for (lane, least) in lanes.iter_mut().enumerate() {
                let height = height(products, squares, lane);
                *least = if height < *least { height } else { *least };
            }
        }
        let mut least = f32::INFINITY;
        for height in lanes {
            least = if height < least { height } else { least };
        }
        for (i, (products, squares)) in products.iter().zip(squares).enumerate() {
            let mut is_here = false;
            for lane in 0..LANES {
                is_here |= height(products, squares, lane) <= least;
            }
            if is_here {
                let is_least = |lane: &usize| height(products, squares, *lane) <= least;
                let lane = (0..LANES).find(is_least).unwrap_or(0);
                return self.point(i * LANES + lane);
            }
        }
        self.point(0)
    }

    /// The point that lies furthest beyond the line between two points of the edge.
    #[inline(always)]
    fn beyond(&self, left: EdgePoint, right: EdgePoint) -> Option<EdgePoint> {
        let (run, rise) = (right.product - left.product, right.square - left.square);
        // Also ends where a sum is no number.
        if !(run > 0.0 && rise > 0.0) {
            return None;
        }
        let furthest = self.best(rise, run);
        let height = |point: &EdgePoint| run * point.square - rise * point.product;
        // Rounding can put a point beyond the line that is not between its ends: it would be found again and again.
        let is_between = left.product < furthest.product
            && furthest.product < right.product
            && left.square < furthest.square
            && furthest.square < right.square;
        (is_between && height(&furthest) < height(&left)).then_some(furthest)
    }
}

/// [`edge`], or what a backend has in its place.
pub type EdgeOf = fn(&Lattice, values: &[f32], weights: &[f32], least: f32, &mut Vec<EdgePoint>);

/// The least scale that is worth a look, as a share of that which gives the largest value its level.
const LEAST: f32 = 0.3;

/// The edges of all units of a group, and what its values weigh. At scales below 0.3 of that which its largest value asks for points are near,
/// but need not be the nearest.
#[derive(Clone, Debug)]
pub struct Edges<'a> {
    lattice: &'static Lattice,
    values: &'a [f32],
    weights: &'a [f32],
    /// The points of each place (a unit, or half of one), one after the other.
    points: Vec<EdgePoint>,
    /// Where the points of each place end.
    ends: Vec<usize>,
    /// The signs of each unit.
    signs: Vec<u8>,
}

impl<'a> Edges<'a> {
    /// Of a group's values.
    ///
    /// # Panics
    /// If there are not as many weights, or these are no whole units.
    pub fn new(
        lattice: &'static Lattice,
        values: &'a [f32],
        weights: &'a [f32],
        edge: EdgeOf,
    ) -> Self {
        assert_eq!(values.len(), weights.len(), "a weight per value");
        let (units, rest) = values.as_chunks::<UNIT>();
        assert!(rest.is_empty(), "whole units");
        let mut found = Self {
            lattice,
            values,
            weights,
            points: Vec::new(),
            ends: Vec::with_capacity(values.len() / lattice.dimensions),
            signs: Vec::with_capacity(units.len()),
        };
        let largest = values
            .iter()
            .fold(0.0, |most: f32, value| most.max(value.abs()));
        let least = LEAST * largest / lattice.largest();
        let mut of_place = Vec::new();
        for (values, weights) in units.iter().zip(weights.as_chunks::<UNIT>().0) {
            let signs = signs(lattice, values, weights);
            let signed: [f32; UNIT] = std::array::from_fn(|j| with_sign(values[j], signs >> j));
            let places = signed.chunks_exact(lattice.dimensions);
            for (values, weights) in places.zip(weights.chunks_exact(lattice.dimensions)) {
                edge(lattice, values, weights, least, &mut of_place);
                found.points.extend_from_slice(&of_place);
                found.ends.push(found.points.len());
            }
            found.signs.push(signs);
        }
        found
    }

    /// The point of each place that is nearest at a scale, the first of several.
    fn nearest(&self, scale: f32) -> impl Iterator<Item = &EdgePoint> {
        let mut start = 0;
        self.ends.iter().filter_map(move |&end| {
            let points = &self.points[start..end];
            start = end;
            let mut all = points.iter();
            let first = all.next()?;
            let mut best = (first.loss(scale), first);
            for point in all {
                let loss = point.loss(scale);
                if loss < best.0 {
                    best = (loss, point);
                }
            }
            Some(best.1)
        })
    }

    /// `sum h (w - l s)^2` with the nearest points; a negative scale has those of its magnitude, with other signs.
    pub fn loss(&self, scale: f32) -> f32 {
        let size = self.lattice.dimensions;
        let pairs = self
            .values
            .chunks_exact(size)
            .zip(self.weights.chunks_exact(size));
        let mut sum = 0.0;
        for ((place, (values, weights)), point) in pairs.enumerate().zip(self.nearest(scale.abs()))
        {
            let mut levels = [0.0; UNIT];
            self.put(place, point, scale, &mut levels[..size]);
            for ((value, weight), level) in values.iter().zip(weights).zip(levels) {
                let error = value - level * scale;
                sum += weight * error * error;
            }
        }
        sum
    }

    /// What the best scale for the points that are nearest at `scale` follows from: squares and products; all else is 0.
    pub fn sums(&self, scale: f32) -> FitSums {
        let mut sums = FitSums::default();
        for point in self.nearest(scale.abs()) {
            sums.squares += point.square;
            sums.products += point.product;
        }
        if scale < 0.0 {
            sums.products = -sums.products;
        }
        sums
    }

    /// Index of the nearest point of each place, and the signs of each unit.
    pub fn points(&self, scale: f32) -> (impl Iterator<Item = u16>, &[u8]) {
        (
            self.nearest(scale.abs()).map(|point| point.index),
            &self.signs,
        )
    }

    /// The levels nearest at a scale.
    ///
    /// # Panics
    /// If there are not as many as values.
    pub fn levels(&self, scale: f32, levels: &mut [f32]) {
        let size = self.lattice.dimensions;
        assert_eq!(levels.len(), self.ends.len() * size, "a level per value");
        let places = levels.chunks_exact_mut(size).enumerate();
        for ((place, levels), point) in places.zip(self.nearest(scale.abs())) {
            self.put(place, point, scale, levels);
        }
    }

    /// Writes the levels of the point of a place.
    fn put(&self, place: usize, point: &EdgePoint, scale: f32, levels: &mut [f32]) {
        let first = place * levels.len();
        let signs = self.signs[first / UNIT];
        let signs = if scale < 0.0 { !signs } else { signs };
        write_point(self.lattice, point.index, signs >> (first % UNIT), levels);
    }
}

/// Eight values of a row, what they are, and what changing them costs.
#[derive(Debug)]
pub struct PointStep<'a> {
    /// Which points there are.
    pub lattice: &'a Lattice,
    /// What levels are multiplied by, not negative.
    pub scale: f32,
    /// What a change `d` of the values costs: `2 slope d + d M d`, `[8, 8]`.
    pub metric: &'a [f32; UNIT * UNIT],
    /// `(q - t) M`; afterwards that of the new values.
    pub slope: &'a mut [f32; UNIT],
    /// The values `q`; afterwards those of the levels.
    pub values: &'a mut [f32; UNIT],
    /// The levels; afterwards the new ones.
    pub levels: &'a mut [f32; UNIT],
    /// Whether the values are no point yet: the first one that is found is then taken.
    pub is_free: bool,
    /// Parts of the lattice of which the nearest point is looked at, each time: a power of two, at most 32.
    pub n_parts: usize,
    /// How often they are looked for.
    pub n_rounds: usize,
}

/// Most parts of a lattice.
const PARTS: usize = 32;

/// Goes to better points, as long as there are such; tells whether it went to any.
///
/// # Panics
/// If parts are no power of two, or more than 32.
#[inline(always)]
pub fn improve(mut step: PointStep<'_>) -> bool {
    assert!(
        step.n_parts.is_power_of_two() && step.n_parts <= PARTS,
        "1, 2, 4 ... {PARTS} parts"
    );
    let mut has_moved = false;
    for _ in 0..step.n_rounds {
        let moved = step.move_points() | step.turn_signs();
        has_moved |= moved;
        if !moved {
            break;
        }
    }
    has_moved
}

impl PointStep<'_> {
    /// Goes to the best of the points that are near.
    #[inline(always)]
    fn move_points(&mut self) -> bool {
        let weights: [f32; UNIT] = std::array::from_fn(|j| self.metric[j * UNIT + j].max(0.0));
        // Where each value would go by itself.
        let wanted: [f32; UNIT] = std::array::from_fn(|j| {
            let by = self.slope[j] / weights[j];
            self.values[j] - if by.is_finite() { by } else { 0.0 }
        });
        let signs = signs(self.lattice, &wanted, &weights);
        let signed: [f32; UNIT] = std::array::from_fn(|j| with_sign(wanted[j], signs >> j));
        let size = self.lattice.dimensions;
        let mut kept = [[0; PARTS]; 2];
        let mut best = [0.0; UNIT];
        for (place, kept) in kept.iter_mut().enumerate().take(UNIT / size) {
            let coordinates = place * size..(place + 1) * size;
            let of = (&signed[coordinates.clone()], &weights[coordinates]);
            nearest(self.lattice, of, self.scale, &mut kept[..self.n_parts]);
            self.put(&mut best, place, kept[0], signs);
        }
        let mut least = self.change(&best);
        for (place, kept) in kept.iter().enumerate().take(UNIT / size) {
            for &index in &kept[1..self.n_parts] {
                let mut levels = best;
                self.put(&mut levels, place, index, signs);
                let change = self.change(&levels);
                if change < least {
                    least = change;
                    best = levels;
                }
            }
        }
        if self.is_free || least < 0.0 {
            self.is_free = false;
            self.take(&best);
            return true;
        }
        false
    }

    /// Turns signs, two at a time where their number stays even, as long as that is a gain.
    #[inline(always)]
    fn turn_signs(&mut self) -> bool {
        let mut has_moved = false;
        for _ in 0..UNIT {
            let by: [f32; UNIT] = std::array::from_fn(|j| -2.0 * self.values[j]);
            let alone: [f32; UNIT] = std::array::from_fn(|j| {
                by[j] * (2.0 * self.slope[j] + by[j] * self.metric[j * UNIT + j])
            });
            let mut least = 0.0;
            let mut turned = [UNIT; 2];
            for i in 0..UNIT {
                if self.lattice.has_even_signs {
                    for j in 0..i {
                        let together = 2.0 * by[i] * by[j] * self.metric[i * UNIT + j];
                        let change = alone[i] + alone[j] + together;
                        if change < least {
                            (least, turned) = (change, [i, j]);
                        }
                    }
                } else if alone[i] < least {
                    (least, turned) = (alone[i], [i, UNIT]);
                }
            }
            let mut levels = *self.levels;
            for (j, level) in levels.iter_mut().enumerate() {
                if turned.contains(&j) {
                    *level = -*level;
                }
            }
            // What rounding made of a gain may be none.
            if turned[0] == UNIT || self.change(&levels).partial_cmp(&0.0) != Some(Ordering::Less) {
                break;
            }
            self.take(&levels);
            has_moved = true;
        }
        has_moved
    }

    /// Writes the levels of a point.
    #[inline(always)]
    fn put(&self, levels: &mut [f32; UNIT], place: usize, index: u16, signs: u8) {
        let first = place * self.lattice.dimensions;
        let levels = &mut levels[first..first + self.lattice.dimensions];
        write_point(self.lattice, index, signs >> first, levels);
    }

    /// What other levels would change.
    #[inline(always)]
    fn change(&self, levels: &[f32; UNIT]) -> f32 {
        let by: [f32; UNIT] = std::array::from_fn(|j| levels[j] * self.scale - self.values[j]);
        let bent = bend(self.metric, &by);
        let each = std::array::from_fn(|j| by[j] * (2.0 * self.slope[j] + bent[j]));
        total(each)
    }

    #[inline(always)]
    fn take(&mut self, levels: &[f32; UNIT]) {
        let values: [f32; UNIT] = std::array::from_fn(|j| levels[j] * self.scale);
        let by: [f32; UNIT] = std::array::from_fn(|j| values[j] - self.values[j]);
        for (slope, bent) in self.slope.iter_mut().zip(bend(self.metric, &by)) {
            *slope += bent;
        }
        *self.values = values;
        *self.levels = *levels;
    }
}

/// The coordinates of a point, with a minus for each bit that is set, the first one lowest.
#[inline(always)]
fn write_point(lattice: &Lattice, index: u16, signs: u8, levels: &mut [f32]) {
    for (i, (level, magnitude)) in levels.iter_mut().zip(lattice.point(index)).enumerate() {
        *level = with_sign(*magnitude, signs >> i);
    }
}

/// A value with another sign where the lowest bit is set.
#[inline(always)]
fn with_sign(value: f32, bits: u8) -> f32 {
    if bits & 1 == 1 { -value } else { value }
}

/// `d M`.
#[inline(always)]
fn bend(metric: &[f32; UNIT * UNIT], by: &[f32; UNIT]) -> [f32; UNIT] {
    let mut bent = [0.0; UNIT];
    for (line, by) in metric.as_chunks::<UNIT>().0.iter().zip(by) {
        for (bent, entry) in bent.iter_mut().zip(line) {
            *bent += by * entry;
        }
    }
    bent
}

#[inline(always)]
fn total(each: [f32; UNIT]) -> f32 {
    let [first, second] = [0, 1].map(|i| (each[i] + each[i + 4]) + (each[i + 2] + each[i + 6]));
    first + second
}

/// Points that are near by weights alone: the nearest of each part of the lattice, the nearest of all in front.
#[inline(always)]
fn nearest(lattice: &Lattice, (values, weights): (&[f32], &[f32]), scale: f32, kept: &mut [u16]) {
    let n = lattice.n_points();
    let mut heights = [0.0; MOST];
    let heights = &mut heights[..n];
    let coordinates = lattice.magnitudes().chunks_exact(n);
    for (line, (value, weight)) in coordinates.zip(values.iter().zip(weights)) {
        let (square, product) = (weight * scale * scale, 2.0 * weight * value * scale);
        for (height, magnitude) in heights.iter_mut().zip(line) {
            *height += magnitude * (square * magnitude - product);
        }
    }
    // Every lattice has 256 points or twice, four times as many.
    let size = n / kept.len();
    let mut best = (f32::INFINITY, 0);
    for (part, (heights, kept)) in heights.chunks_exact(size).zip(kept.iter_mut()).enumerate() {
        let (chunks, _) = heights.as_chunks::<8>();
        let mut lanes = [f32::INFINITY; 8];
        for chunk in chunks {
            for (least, height) in lanes.iter_mut().zip(chunk) {
                *least = if *height < *least { *height } else { *least };
            }
        }
        let mut least = f32::INFINITY;
        for height in lanes {
            least = if height < least { height } else { least };
        }
        let place = heights.iter().position(|height| *height <= least);
        *kept = (part * size + place.unwrap_or(0)) as u16;
        if least < best.0 {
            best = (least, part);
        }
    }
    kept.swap(0, best.1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, Codebook};
    use proptest::prelude::*;

    fn lattices() -> impl Iterator<Item = &'static Lattice> {
        Codebook::LATTICES.iter().filter_map(|book| book.lattice())
    }

    proptest! {
        /// At any scale the edge has a point that no other beats.
        #[test]
        fn the_edge_has_the_nearest_point(
            values in prop::array::uniform8(-2.0_f32..2.0),
            weights in prop::array::uniform8(0.0_f32..3.0),
            scale in 0.0_f32..1.0,
        ) {
            let mut edge_points = Vec::new();
            for lattice in lattices() {
                let size = lattice.dimensions;
                let (values, weights) = (&values[..size], &weights[..size]);
                edge(lattice, values, weights, scale, &mut edge_points);
                let found = edge_points.iter().map(|p| f64::from(p.loss(scale))).fold(f64::INFINITY, f64::min);
                let n = lattice.n_points();
                let loss = |p: usize| -> f64 {
                    (0..size).map(|j| {
                        let magnitude = f64::from(lattice.magnitudes()[j * n + p] * scale);
                        f64::from(weights[j]) * magnitude * (magnitude - 2.0 * f64::from(values[j]))
                    }).sum()
                };
                let best = (0..n).map(loss).fold(f64::INFINITY, f64::min);
                let size_of_terms: f64 = weights.iter().map(|w| f64::from(*w) * 1000.0 * f64::from(scale)).sum();
                prop_assert!(found <= best + 1e-5 * (1.0 + size_of_terms), "{found} {best}");
                prop_assert!(edge_points.is_sorted_by_key(|p| p.square));
                for backend in Backend::available() {
                    let mut again = Vec::new();
                    (backend.point_edge)(lattice, values, weights, scale, &mut again);
                    prop_assert_eq!(&again, &edge_points, "{}", backend.name);
                }
            }
        }

        /// Steps never lose, end at points with legal signs, and keep slope and values true.
        #[test]
        fn steps_are_gains(
            from in prop::array::uniform8(-2.0_f32..2.0),
            mixes in prop::array::uniform32(-1.0_f32..1.0),
            scale in 0.01_f32..0.3,
        ) {
            let mut metric = [0.0; 64];
            for i in 0..8 {
                for j in 0..8 {
                    metric[i * 8 + j] = (0..4).map(|k| mixes[k * 8 + i] * mixes[k * 8 + j]).sum::<f32>()
                        + if i == j { 0.1 } else { 0.0 };
                }
            }
            for lattice in lattices() {
                let (mut slope, mut values, mut levels) = ([0.0; 8], from, [0.0; 8]);
                let loss = |values: &[f32; 8]| {
                    let by = std::array::from_fn(|j| values[j] - from[j]);
                    let bent = bend(&metric, &by);
                    total(std::array::from_fn(|j| by[j] * bent[j]))
                };
                let mut losses = vec![f32::INFINITY];
                for (is_free, n_parts) in [(true, 1), (false, 8), (false, 32)] {
                    let before = (slope, values, levels);
                    improve(PointStep {
                        lattice, scale, metric: &metric, slope: &mut slope, values: &mut values, levels: &mut levels,
                        is_free, n_parts, n_rounds: 4,
                    });
                    for backend in Backend::available() {
                        let (mut slope_again, mut values_again, mut levels_again) = before;
                        (backend.improve_points)(PointStep {
                            lattice, scale, metric: &metric, slope: &mut slope_again, values: &mut values_again,
                            levels: &mut levels_again, is_free, n_parts, n_rounds: 4,
                        });
                        let again = [slope_again, values_again, levels_again].map(|all| all.map(f32::to_bits));
                        let first = [slope, values, levels].map(|all| all.map(f32::to_bits));
                        prop_assert_eq!(again, first, "{}", backend.name);
                    }
                    losses.push(loss(&values));
                    let codes: Vec<u8> = levels.iter().map(|level| {
                        lattice.book.values().iter().position(|value| value == level).unwrap() as u8
                    }).collect();
                    prop_assert_eq!(lattice.first_without_point(&codes), None);
                    for j in 0..8 {
                        prop_assert_eq!(values[j].to_bits(), (levels[j] * scale).to_bits());
                    }
                    let by = std::array::from_fn(|j| values[j] - from[j]);
                    for (kept, new) in slope.iter().zip(bend(&metric, &by)) {
                        prop_assert!((kept - new).abs() <= 1e-3 * (1.0 + new.abs()), "{kept} {new}");
                    }
                }
                prop_assert!(losses.is_sorted_by(|a, b| *b <= a * 1.0001 + 1e-4), "{losses:?}");
            }
        }
    }

    /// Points that lie on one line but for rounding, and sums that are nearly all the same.
    #[test]
    fn an_edge_ends_whatever_the_rounding() {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from((state >> 20) as u16)
        };
        let mut n_edges = 0;
        let mut found = Vec::new();
        for lattice in lattices() {
            for (least, base) in [(0.0, 1.0), (1e-3, 1e3), (1e-3, 1e-3), (0.0, 1e-30)] {
                for _ in 0..100 {
                    let values: [f32; UNIT] = std::array::from_fn(|_| base + base * 1e-7 * next());
                    let weights: [f32; UNIT] =
                        std::array::from_fn(|j| if j % 2 == 0 { 1.0 } else { 1e-6 * next() });
                    let size = lattice.dimensions;
                    edge(
                        lattice,
                        &values[..size],
                        &weights[..size],
                        least,
                        &mut found,
                    );
                    assert!((1..=lattice.n_points()).contains(&found.len()));
                    assert!(
                        found.is_sorted_by(|a, b| a.square < b.square && a.product < b.product)
                    );
                    n_edges += 1;
                }
            }
        }
        assert_eq!(n_edges, 5 * 4 * 100);
    }

    #[test]
    fn what_is_no_number_gives_some_point() {
        for lattice in lattices() {
            for bad in [f32::NAN, f32::INFINITY, 0.0] {
                let mut found = Vec::new();
                edge(
                    lattice,
                    &[bad; 8][..lattice.dimensions],
                    &[1.0; 8][..lattice.dimensions],
                    bad,
                    &mut found,
                );
                assert!(!found.is_empty());
                let (mut slope, mut values, mut levels) = ([0.0; 8], [bad; 8], [0.0; 8]);
                improve(PointStep {
                    lattice,
                    scale: bad,
                    metric: &[bad; 64],
                    slope: &mut slope,
                    values: &mut values,
                    levels: &mut levels,
                    is_free: true,
                    n_parts: 1,
                    n_rounds: 2,
                });
                assert!(levels.iter().all(|level| level.abs() >= 2.0), "{levels:?}");
            }
        }
    }
}
