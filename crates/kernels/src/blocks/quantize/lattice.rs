//! IQ2 and IQ3: the nearest points of the lattice, under scales of least squares.

use super::super::layout::{Block, BlockLayout, CodeValue};
use crate::portable::points::{EdgeOf, Edges};

/// Scales that a group begins with, as shares of what its largest value asks for: with few levels it pays to cut off what is large.
const SHARES: [f32; 6] = [0.5, 0.65, 0.8, 0.95, 1.1, 1.3];

/// Times that points and scale are fitted to each other.
const ROUNDS: usize = 4;

/// The largest scale of a group, in units of `d`.
const MOST: f32 = 15.5;

/// Each group gets the scale that fits it best, `d` the unit in which the largest of them is the last; then all the nearest points.
pub(crate) fn choose(
    layout: &'static BlockLayout,
    edge: EdgeOf,
    values: &[f32],
    block: &mut Block,
) {
    let CodeValue::Lattice(lattice) = layout.value else {
        return;
    };
    let weights = [1.0; 32];
    let groups = values.chunks_exact(layout.group);
    let edges: Vec<Edges<'_>> = groups
        .map(|values| Edges::new(lattice, values, &weights[..layout.group], edge))
        .collect();
    let wanted: Vec<f32> = values
        .chunks_exact(layout.group)
        .zip(&edges)
        .map(|(values, edges)| fitted(edges, super::max_magnitude(values) / lattice.largest()))
        .collect();
    let most = wanted.iter().copied().fold(0.0, f32::max);
    block.d = crate::Float::F16.nearest(most / MOST);
    let per_unit = super::inverse(block.d);
    let codes = block.codes.chunks_exact_mut(layout.group);
    let all = codes.zip(&edges).zip(wanted).zip(&mut block.scales);
    for (((codes, edges), wanted), scale) in all {
        let nearest = super::nearest_int((wanted * per_unit - 0.5).clamp(0.0, 15.0));
        *scale = nearest as i16;
        let (points, signs) = edges.points(block.d * (f32::from(*scale) + 0.5));
        lattice.write_codes(points, signs, codes);
    }
}

/// The scale of least squares, from several starts.
fn fitted(edges: &Edges<'_>, full: f32) -> f32 {
    let mut best = (edges.loss(0.0), 0.0);
    for share in SHARES {
        let mut scale = full * share;
        for _ in 0..ROUNDS {
            let Some(next) = edges.sums(scale).best_scale() else {
                break;
            };
            scale = next.scale.max(0.0);
        }
        let loss = edges.loss(scale);
        if loss < best.0 {
            best = (loss, scale);
        }
    }
    best.1
}
