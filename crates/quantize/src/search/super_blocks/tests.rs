//! What holds for every type with two levels of scales.

use proptest::prelude::*;
use safequant_kernels::{BlockFields, Edges};
use safequant_schemes::{
    Code, CodeTile, Granularity, IntegerEncoding, OffsetForm, ScaleCoding, SuperScale, ZeroPoint,
};

use super::*;

const FORMATS: [BlockFormat; 11] = [
    BlockFormat::Q2K,
    BlockFormat::Q3K,
    BlockFormat::Q4K,
    BlockFormat::Q5K,
    BlockFormat::Q6K,
    BlockFormat::Iq4Xs,
    BlockFormat::Iq2Xxs,
    BlockFormat::Iq2Xs,
    BlockFormat::Iq2S,
    BlockFormat::Iq3Xxs,
    BlockFormat::Iq3S,
];

/// What blocks of a type mean.
fn scheme(format: BlockFormat) -> Scheme {
    let layout = format.layout().unwrap();
    let (code, zero) = match layout.value {
        CodeValue::Integer { zero } => {
            let (bits, encoding) = (layout.code_bits, IntegerEncoding::Unsigned);
            (Code::Integer { bits, encoding }, i32::from(zero))
        }
        CodeValue::Table(_) => (Code::Codebook(Codebook::Iq4Nl), 0),
        CodeValue::Lattice(lattice) => (Code::Codebook(lattice.book), 0),
    };
    let form = OffsetForm::Subtracted;
    let wide = |n: usize| u64::try_from(n).unwrap();
    let size = wide(layout.group);
    Scheme {
        super_scale: SuperScale::Grouped {
            size: wide(layout.n_groups()),
        },
        zero_point: match layout.offset {
            BlockOffset::Subtracted => ZeroPoint::Offset { zero, form },
            BlockOffset::None | BlockOffset::Added => ZeroPoint::Fixed(zero),
        },
        ..Scheme::plain(code, Granularity::Group { size }, ScaleCoding::Integer)
    }
}

fn of(format: BlockFormat, in_features: usize) -> SuperBlocks {
    let found = SuperBlocks::new(&scheme(format), in_features).unwrap();
    found.unwrap_or_else(|| panic!("{} has two levels of scales", format.name()))
}

/// Numbers about 0, most of them small, from a seed.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f32::from(u16::try_from(state >> 48).unwrap()) / 65536.0 - 0.5
    };
    (0..n)
        .map(|_| 0.05 * (next() + next() + next() + next()))
        .collect()
}

fn weights(seed: u64, n: usize) -> Vec<f32> {
    noise(seed, n).iter().map(|x| (80.0 * x).exp()).collect()
}

/// The levels nearest to a group's values.
fn nearest(of: &SuperBlocks, values: &[f32], weights: &[f32], at: Candidate) -> Vec<f32> {
    let mut levels = vec![0.0; values.len()];
    let backend = Backend::detect();
    match of.lattice {
        Some(lattice) => {
            Edges::new(lattice, values, weights, backend.point_edge).levels(at.scale, &mut levels);
        }
        None => (backend.nearest)(of.levels, values, at, &mut levels),
    }
    levels
}

/// What a row loses with these numbers.
fn loss(of: &SuperBlocks, row: &RowScales, values: &[f32], weights: &[f32]) -> f64 {
    let size = of.group();
    let groups = values.chunks(size).zip(weights.chunks(size));
    assert_eq!(row.effective.len(), values.len() / size);
    let each = groups.zip(&row.effective).map(|((values, weights), at)| {
        let levels = nearest(of, values, weights, *at);
        let pairs = levels.iter().zip(values).zip(weights);
        pairs.fold(0.0, |sum, ((level, value), weight)| {
            sum + f64::from(*weight) * (f64::from(at.value(*level)) - f64::from(*value)).powi(2)
        })
    });
    each.sum()
}

/// ggml's numbers.
fn reference(of: &SuperBlocks, values: &[f32]) -> RowScales {
    let fields = of.reference(values, Backend::detect());
    let mut row = RowScales::default();
    for i in 0..values.len() / of.layout.elements {
        of.push(&of.first(&fields, i).unwrap(), &mut row);
    }
    row
}

fn choose(of: &SuperBlocks, values: &[f32], weights: &[f32], effort: Effort) -> RowScales {
    // What a row held before does not matter.
    let mut row = reference(of, &vec![1.0; of.layout.elements]);
    let done = of.choose(values, weights, effort, Backend::detect(), &mut row);
    done.unwrap_or_else(|(group, scale)| panic!("group {group}: {scale}"));
    row
}

/// The codes nearest to values, as a tile of one row.
fn tile(of: &SuperBlocks, row: &RowScales, values: &[f32]) -> CodeTile {
    let mut codes = Vec::new();
    for (values, at) in values.chunks(of.group()).zip(&row.effective) {
        let levels = nearest(of, values, &vec![1.0; values.len()], *at);
        codes.extend(levels.iter().map(|level| {
            let all = 0..=u8::MAX;
            let mut all = all.take(1 << of.layout.code_bits);
            all.find(|code| (of.layout.value.of(*code) - level).abs() < 0.5)
                .unwrap()
        }));
    }
    CodeTile {
        rows: 0..1,
        codes,
        scales: row.stored.iter().map(|stored| stored.scale).collect(),
        offsets: if of.has_minima() {
            row.stored.iter().map(|stored| stored.offset).collect()
        } else {
            Vec::new()
        },
        supers: row.supers.clone(),
        offset_supers: row.offset_supers.clone(),
        ..CodeTile::default()
    }
}

/// What is stored is what was meant: the blocks hold the very numbers, and values are those of the effective ones.
fn check_stored(of: &SuperBlocks, row: &RowScales, values: &[f32]) {
    let name = of.format.name();
    let tile = tile(of, row, values);
    let mut bytes = vec![0xa5; values.len() / of.layout.elements * of.layout.bytes];
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the integers of a block have at most 8 bits"
    )]
    let integers = |all: &[f32]| all.iter().map(|n| n.floor() as i16).collect::<Vec<i16>>();
    let meant = BlockFields {
        codes: tile.codes.clone(),
        d: tile.supers.clone(),
        m: tile.offset_supers.clone(),
        scales: integers(&tile.scales),
        mins: integers(&tile.offsets),
    };
    of.layout.pack(&meant, &mut bytes);
    let mut fields = BlockFields::default();
    of.layout.unpack(&bytes, &mut fields);
    let scales = fields
        .scales
        .iter()
        .map(|scale| of.layout.scale.decode(*scale));
    assert_eq!(fields.codes, tile.codes, "{name}");
    assert_eq!(scales.collect::<Vec<f32>>(), tile.scales, "{name}");
    let mins = fields.mins.iter().copied().map(f32::from);
    assert_eq!(mins.collect::<Vec<f32>>(), tile.offsets, "{name}");
    assert_eq!(fields.d, tile.supers, "{name}");
    assert_eq!(fields.m, tile.offset_supers, "{name}");
    // A negative zero among integers would be none that a block can hold.
    let numbers = tile.scales.iter().chain(&tile.offsets);
    assert!(
        numbers
            .into_iter()
            .all(|n| n.to_bits() != (-0.0_f32).to_bits())
    );
    let mut back = vec![0.0; values.len()];
    of.format.dequantize(&bytes, &mut back);
    for (i, (back, code)) in back.iter().zip(&tile.codes).enumerate() {
        let meant = row.effective[i / of.group()].value(of.layout.value.of(*code));
        let difference = (back - meant).abs();
        assert!(difference <= 0.0, "{name}, element {i}: {back} {meant}");
    }
}

#[test]
fn it_loses_less_than_ggml_without_weights_and_with_them() {
    let n = 1024;
    for format in FORMATS {
        let of = of(format, n);
        for (seed, with) in [(1, vec![1.0; n]), (2, weights(7, n))] {
            let values = noise(seed, n);
            let before = loss(&of, &reference(&of, &values), &values, &with);
            let mut last = before;
            for effort in Effort::ALL {
                let row = choose(&of, &values, &with, effort);
                let found = loss(&of, &row, &values, &with);
                // Where the first choice is no tool's but fits its scales by itself, little is left.
                let most = if of.lattice.is_some() { 1.0 } else { 0.99 };
                assert!(
                    found < most * before,
                    "{} {effort}: {found} {before}",
                    format.name()
                );
                // More effort is not worse but by chance, and never much.
                assert!(found < 1.02 * last, "{} {effort}", format.name());
                last = found;
                check_stored(&of, &row, &values);
            }
        }
    }
}

#[test]
fn odd_rows_are_stored_as_well_as_they_can_be() {
    let mut rows: Vec<Vec<f32>> = [
        0.0, -0.0, 1.0, -1.0, 0.3, -1e-3, 1e-8, 1e-40, -1e-45, 6e4, -6e4,
    ]
    .iter()
    .map(|value| vec![*value; 256])
    .collect();
    for outlier in [1.0, -1.0, 1e4, -1e-40] {
        let mut row = vec![0.0; 256];
        row[77] = outlier;
        rows.push(row);
        let mut row = noise(3, 256);
        row[200] = outlier;
        rows.push(row);
    }
    // Groups of one sign, some of them empty.
    rows.push((0..256).map(|i| f32::from(i / 32 % 2 == 0)).collect());
    let mut n_visited = 0;
    for format in FORMATS {
        let of = of(format, 256);
        for values in &rows {
            for with in [vec![1.0; 256], vec![0.0; 256], weights(5, 256)] {
                for effort in Effort::ALL {
                    let row = choose(&of, values, &with, effort);
                    assert!(
                        row.supers
                            .iter()
                            .chain(&row.offset_supers)
                            .all(|n| n.is_finite())
                    );
                    let found = loss(&of, &row, values, &with);
                    let before = loss(&of, &reference(&of, values), values, &with);
                    assert!(
                        found <= before * (1.0 + 1e-5) + 1e-30,
                        "{} {effort} {:?}: {found} {before}",
                        format.name(),
                        &values[70..80]
                    );
                    check_stored(&of, &row, values);
                    n_visited += 1;
                }
            }
        }
    }
    assert_eq!(n_visited, 11 * 20 * 3 * 4);
}

#[test]
fn a_group_that_weighs_nothing_is_not_forgotten() {
    for format in FORMATS {
        let of = of(format, 256);
        let values = noise(11, 256);
        let mut with = vec![1.0; 256];
        with[..of.group()].fill(0.0);
        let row = choose(&of, &values, &with, Effort::Default);
        let only: Vec<f32> = with.iter().map(|weight| 1.0 - weight).collect();
        let zeros: f64 = values[..of.group()]
            .iter()
            .map(|v| f64::from(*v).powi(2))
            .sum();
        let found = loss(&of, &row, &values, &only);
        assert!(found < 0.3 * zeros, "{}: {found} {zeros}", format.name());
    }
}

#[test]
fn what_f16_cannot_hold_is_refused_by_group() {
    for format in FORMATS {
        let of = of(format, 512);
        let mut values = noise(13, 512);
        values[300] = 1e12;
        let mut row = RowScales::default();
        let with = vec![1.0; 512];
        let found = of.choose(&values, &with, Effort::Default, Backend::detect(), &mut row);
        let (group, scale) = found.unwrap_err();
        assert_eq!(group, of.layout.n_groups(), "{}", format.name());
        assert!(!scale.is_finite());
    }
}

#[test]
fn what_is_near_is_on_the_grid_of_the_block() {
    for format in FORMATS {
        let of = of(format, 512);
        let values = noise(17, 512);
        let row = choose(&of, &values, &vec![1.0; 512], Effort::Default);
        let mut n_moved = 0;
        for (group, now) in row.effective.iter().enumerate() {
            assert_eq!(of.near(&row, group, *now), None, "{}", format.name());
            let wanted = Candidate {
                scale: now.scale * 0.8,
                offset: now.offset * 1.3,
            };
            let Some((stored, found)) = of.near(&row, group, wanted) else {
                continue;
            };
            let block = group / of.layout.n_groups();
            let (low, high) = of.integers;
            let scale = row.supers[block] * stored.scale;
            assert_eq!(found.scale.to_bits(), scale.to_bits());
            assert!((stored.scale.fract().abs() - of.half).abs() <= 0.0);
            assert!((low..=high).contains(&stored.scale));
            if of.has_minima() {
                let offset = 0.0 - row.offset_supers[block] * stored.offset;
                assert_eq!(found.offset.to_bits(), offset.to_bits());
                assert!((low..=high).contains(&stored.offset));
            } else {
                assert_eq!((stored.offset, found.offset), (0.0, 0.0));
            }
            let step = row.supers[block].abs();
            assert!((found.scale - wanted.scale).abs() <= 0.5001 * step);
            n_moved += 1;
        }
        assert!(n_moved > row.effective.len() / 2, "{}", format.name());
        let nothing = Candidate {
            scale: f32::NAN,
            offset: f32::NAN,
        };
        assert!(
            of.near(&row, 0, nothing)
                .is_some_and(|(found, _)| found.scale.to_bits() == of.half.to_bits())
        );
        assert_eq!(of.near(&row, row.effective.len(), nothing), None);
    }
}

#[test]
fn other_schemes_and_broken_rows_are_turned_away() {
    let plain = Scheme {
        super_scale: SuperScale::None,
        ..scheme(BlockFormat::Q4K)
    };
    assert!(SuperBlocks::new(&plain, 256).unwrap().is_none());
    for format in FORMATS {
        assert!(SuperBlocks::new(&scheme(format), 384).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn it_is_never_worse_than_ggml(
        values in proptest::collection::vec(
            prop_oneof![8 => -2f32..2.0, 2 => -3e-5f32..3e-5, 1 => Just(0.0), 1 => -90f32..90.0],
            256,
        ),
        with in proptest::collection::vec(
            prop_oneof![4 => 0.0f32..2.0, 1 => Just(0.0), 1 => 0.0f32..1e6],
            256,
        ),
    ) {
        for format in FORMATS {
            let of = of(format, 256);
            for effort in [Effort::Fast, Effort::Default] {
                let row = choose(&of, &values, &with, effort);
                let found = loss(&of, &row, &values, &with);
                let before = loss(&of, &reference(&of, &values), &values, &with);
                prop_assert!(found <= before * (1.0 + 1e-5), "{} {effort}: {found} {before}", format.name());
                check_stored(&of, &row, &values);
            }
        }
    }
}
