//! Chosen lengths and fills.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Minifloat, NanRule, OverflowRule};

/// Around the edges of words and of vectors of 8, 16, 32, 64 and 128 bytes, and around the chunks of the portable code;
/// 1021 and 4099 are primes that leave a remainder in every block.
pub(super) const LENGTHS: &[usize] = &[
    0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257,
    511, 512, 513, 1021, 4099,
];

/// How far the slices start behind an aligned address, in elements.
pub(super) const OFFSETS: &[usize] = &[0, 1, 3];

/// One in so many of the cases of rows is run: `SAFEQUANT_TEST_ONE_IN` says how many when the tests are built, and where it
/// is not set, all are. `tests/emulated/run.sh` sets it: an emulated processor is some hundred times slower. A prime meets
/// every kind of case.
const ONE_IN: Option<&str> = option_env!("SAFEQUANT_TEST_ONE_IN");

/// Whether the case at hand is run.
pub(super) fn is_chosen() -> bool {
    static CASE: AtomicUsize = AtomicUsize::new(0);
    let one_in = ONE_IN.map_or(1, |n| n.parse().expect("a number of cases"));
    CASE.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in)
}

/// What to say of the cases that were not run.
pub(super) fn share() -> String {
    match ONE_IN {
        None => String::new(),
        Some(n) => format!(" (ONLY ONE IN {n} WAS RUN: SAFEQUANT_TEST_ONE_IN)"),
    }
}

/// Repeats every 251 bytes: a prime, so that no two blocks of a power of two are equal and swapped ones are noticed.
pub(super) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Values that decide: the ones of every minifloat, their ties and neighbors, special values, and any bit pattern. The
/// stride is odd, so that each value meets each lane.
pub(super) fn floats(len: usize) -> Vec<f32> {
    let mut pool = vec![
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
    ];
    pool.extend([
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(0x7f80_0001),
    ]);
    for &format in Minifloat::ALL {
        for pair in format.table().windows(2).step_by(5) {
            let tie = f32::midpoint(pair[0], pair[1]);
            pool.extend([pair[0], tie, f32::from_bits(tie.to_bits() ^ 1), -tie]);
        }
    }
    (0..len)
        .map(|i| match i % 3 {
            0 => f32::from_bits((i as u32).wrapping_mul(0x9e37_79b1)),
            _ => pool[(i * 101) % pool.len()],
        })
        .collect()
}

/// Like [`floats`], without NaN and infinities, of the size of weights.
pub(super) fn weights(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0)
        .collect()
}

/// Every pair of rules.
pub(super) fn rules() -> impl Iterator<Item = (OverflowRule, NanRule)> {
    let nans = |overflow| NanRule::ALL.iter().map(move |&nan| (overflow, nan));
    OverflowRule::ALL.iter().copied().flat_map(nans)
}

/// Numbers for a grid of scales with a line per row.
pub(super) struct Rows {
    columns: usize,
    pub(super) scales: Vec<f32>,
    pub(super) zeros: Vec<i32>,
    pub(super) offsets: Vec<f32>,
}

impl Rows {
    /// Scales of either sign around 0.01, some of them zero, subnormal or infinite.
    pub(super) fn new(n_rows: usize, n_columns: usize, group: usize) -> Self {
        let n = n_rows * n_columns.div_ceil(group);
        let scale = |i: usize| match i % 23 {
            7 => 0.0,
            11 => -3e-41,
            19 => f32::INFINITY,
            step => (step as f32 - 5.3) * 0.0017,
        };
        Self {
            columns: group,
            scales: (0..n).map(scale).collect(),
            zeros: (0..n).map(|i| (i % 19) as i32 - 1).collect(),
            offsets: (0..n).map(|i| (i % 17) as f32 * 0.13 - 1.0).collect(),
        }
    }

    pub(super) fn grid(&self) -> crate::rows::ScaleGrid<'_> {
        crate::rows::ScaleGrid {
            scales: &self.scales,
            rows: 1,
            rows_before: 0,
            columns: self.columns,
        }
    }
}
