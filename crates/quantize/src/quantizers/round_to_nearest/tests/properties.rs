//! Properties: tiles, stacks, fixed points, arbitrary bits.

use proptest::prelude::*;

use super::*;

fn weight(source: Float) -> impl Strategy<Value = f32> {
    let value =
        prop_oneof![8 => -2f32..2.0, 1 => -3e-5f32..3e-5, 1 => Just(0.0), 1 => -90f32..90.0];
    value.prop_map(move |v| source.nearest(v))
}

fn source() -> impl Strategy<Value = Float> {
    proptest::sample::select(Float::ALL)
}

fn granularity() -> impl Strategy<Value = Granularity> {
    prop_oneof![
        Just(Granularity::Tensor),
        Just(Granularity::Channel),
        (1u64..9).prop_map(|size| Granularity::Group { size }),
        (1u64..4, 1u64..9).prop_map(|(rows, columns)| Granularity::Block { rows, columns }),
    ]
}

fn unit(granularity: Granularity) -> u64 {
    match granularity {
        Granularity::Block { rows, .. } => rows,
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::Group { .. }
        | Granularity::IndexedGroup { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => 1,
    }
}

/// A stack of matrices: values, in features, out features, matrices.
#[derive(Debug)]
struct Stack {
    values: Vec<f32>,
    in_features: usize,
    out_features: usize,
    n_matrices: usize,
    source: Float,
}

impl Stack {
    fn rows(&self) -> Rows<'_> {
        let out_features = widen(self.out_features);
        Rows {
            out_features,
            ..rows(&self.values, self.in_features, self.source)
        }
    }

    /// The rows `range` as a tile.
    fn tile(&self, range: std::ops::Range<usize>) -> Rows<'_> {
        let values = &self.values[range.start * self.in_features..range.end * self.in_features];
        Rows {
            values: Floats::F32(values),
            first_row: widen(range.start),
            ..self.rows()
        }
    }
}

fn stack() -> impl Strategy<Value = Stack> {
    (1usize..13, 1usize..8, 1usize..4, source()).prop_flat_map(|(k, n, m, source)| {
        proptest::collection::vec(weight(source), k * n * m).prop_map(move |values| Stack {
            values,
            in_features: k,
            out_features: n,
            n_matrices: m,
            source,
        })
    })
}

proptest! {
    #[test]
    fn tiles_of_any_size_together_equal_the_whole(
        stack in stack(),
        granularity in granularity(),
        step in 1u64..6,
    ) {
        let backend = Backend::detect();
        for target in targets(granularity, Float::F32) {
            let whole = quantize(&target, stack.rows()).unwrap();
            let losses =
                row_losses(&layout(&target, &stack.rows(), stack.source), &stack.rows(), &whole, backend).unwrap();
            let step = usize::try_from(step * unit(granularity)).unwrap();
            let mut tiles = Vec::new();
            for matrix in 0..stack.n_matrices {
                let first = matrix * stack.out_features;
                for start in (0..stack.out_features).step_by(step) {
                    let end = (start + step).min(stack.out_features);
                    tiles.push(stack.tile(first + start..first + end));
                }
            }
            let mut statistics = Statistics::default();
            for tile in tiles.iter().rev() {
                statistics.merge(&RoundToNearest.observe(&target, *tile, backend).unwrap());
            }
            let mut joined = CodeTile { rows: whole.rows.clone(), ..CodeTile::default() };
            let mut joined_losses = Vec::new();
            for tile in tiles {
                let part =
                    RoundToNearest.quantize(&target, tile, Some(&statistics), backend).unwrap();
                joined_losses.extend(
                    row_losses(&layout(&target, &stack.rows(), stack.source), &tile, &part, backend).unwrap());
                joined.codes.extend(part.codes);
                // Every tile of a matrix repeats the matrix's one scale.
                let new = granularity != Granularity::Tensor
                    || tile.first_row.is_multiple_of(tile.out_features);
                if new {
                    joined.scales.extend(part.scales);
                    joined.zeros.extend(part.zeros);
                }
            }
            prop_assert_eq!(&joined, &whole);
            prop_assert_eq!(joined_losses, losses);
        }
    }

    #[test]
    fn a_stack_equals_its_matrices_one_by_one(stack in stack(), granularity in granularity()) {
        for target in targets(granularity, Float::F32) {
            let whole = quantize(&target, stack.rows()).unwrap();
            let mut joined = CodeTile { rows: whole.rows.clone(), ..CodeTile::default() };
            for values in stack.values.chunks(stack.out_features * stack.in_features) {
                let single = quantize(&target, rows(values, stack.in_features, stack.source));
                let single = single.unwrap();
                joined.codes.extend(single.codes);
                joined.scales.extend(single.scales);
                joined.zeros.extend(single.zeros);
            }
            prop_assert_eq!(joined, whole);
        }
    }

    /// The rules rarely choose the same scale again (the middle of symmetric integers is between two codes); where they
    /// do, the codes stay. The loss never exceeds what the step size allows.
    #[test]
    fn quantizing_what_was_dequantized_gives_the_same_codes_for_the_same_scale(
        stack in stack(),
        granularity in granularity(),
    ) {
        let backend = Backend::detect();
        for target in targets(granularity, Float::F32) {
            let tile = quantize(&target, stack.rows()).unwrap();
            let values =
                dequantize_tile(&layout(&target, &stack.rows(), stack.source), &tile, backend).unwrap();
            prop_assert_eq!(values.len(), stack.values.len());
            let again = quantize(&target, Rows { values: Floats::F32(&values), ..stack.rows() }).unwrap();
            if again.scales == tile.scales && again.zeros == tile.zeros {
                let minus_zero = |c: &u8| if *c == 0x80 { 0 } else { *c };
                let codes = |t: &CodeTile| match target.scheme.code {
                    Code::Minifloat(_) => t.codes.iter().map(minus_zero).collect(),
                    Code::Integer { .. }
                    | Code::Codebook(_)
                    | Code::StoredCodebook
                    | Code::Dense(_) => t.codes.clone(),
                };
                prop_assert_eq!(codes(&again), codes(&tile), "{:?}", target);
            }
        }
    }

    #[test]
    fn arbitrary_bits_never_panic(
        bits in proptest::collection::vec(any::<u32>(), 24),
        source in source(),
        scale in source(),
        granularity in granularity(),
    ) {
        let values: Vec<f32> =
            bits.iter().map(|&b| source.nearest(f32::from_bits(b))).collect();
        for mut target in targets(granularity, scale) {
            target.nonfinite = NonFinite::Clamp;
            // A scale may overflow; nothing else may go wrong.
            match quantize(&target, rows(&values, 6, source)) {
                Ok(tile) => prop_assert!(tile.scales.iter().all(|s| s.is_finite())),
                Err(error) => {
                    let is_overflow = matches!(error, Error::ScaleOverflow { .. });
                    prop_assert!(is_overflow, "{}", error);
                }
            }
        }
    }
}
