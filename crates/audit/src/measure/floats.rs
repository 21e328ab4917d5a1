//! What some floats are like: how many are no numbers, how large the others are.

use safequant_kernels::{Float, Minifloat};

use super::Occurrences;

/// Of a grid of floats, in F32.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatStatistics {
    /// How many there are.
    pub n: u64,
    /// Not a number.
    pub nan: Occurrences,
    /// Infinite.
    pub infinite: Occurrences,
    /// Zero, of either sign.
    pub zero: Occurrences,
    /// Below zero.
    pub negative: Occurrences,
    /// Subnormal in the dtype they are stored in: they have lost bits.
    pub subnormal: Occurrences,
    /// Finite, not zero, and no power of two.
    pub not_power_of_two: Occurrences,
    /// Finite and larger than F16 holds.
    pub beyond_f16: Occurrences,
    /// Not zero, but zero in F16.
    pub below_f16: Occurrences,
    /// The smallest magnitude that is finite and not zero.
    pub smallest: Option<f32>,
    /// The largest magnitude that is finite and not zero.
    pub largest: Option<f32>,
    /// The first place of the largest.
    pub largest_at: Option<[u64; 2]>,
    /// Finite ones that are not zero, by the biased exponent of their F32: 127 counts magnitudes in 1..2.
    pub exponents: Box<[u64; 256]>,
}

impl Default for FloatStatistics {
    fn default() -> Self {
        let none = Occurrences::default();
        Self {
            n: 0,
            nan: none,
            infinite: none,
            zero: none,
            negative: none,
            subnormal: none,
            not_power_of_two: none,
            beyond_f16: none,
            below_f16: none,
            smallest: None,
            largest: None,
            largest_at: None,
            exponents: Box::new([0; 256]),
        }
    }
}

/// The largest number that rounds to a finite F16 is below this.
const F16_OVERFLOW: f32 = 65520.0;
/// Half of the smallest F16, `2^-24`: this and what is smaller rounds to zero.
const F16_UNDERFLOW: f32 = 2.980_232_2e-8;

/// Few entries far above all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// How many.
    pub count: u64,
    /// Powers of two between them and the largest of the others, at least.
    pub gap: u32,
}

impl FloatStatistics {
    /// Adds entries that follow each other row by row from entry `first` of a grid of `columns` on. Magnitudes below
    /// `smallest_normal` are subnormal.
    pub(super) fn add(
        &mut self,
        values: &[f32],
        (first, columns): (u64, u64),
        smallest_normal: f32,
    ) {
        for (at, &value) in (first..).zip(values) {
            let place = [at / columns, at % columns];
            self.n += 1;
            if value.is_nan() {
                self.nan.note(place);
                continue;
            }
            if value < 0.0 {
                self.negative.note(place);
            }
            let magnitude = value.abs();
            if magnitude == 0.0 {
                self.zero.note(place);
            } else if magnitude == f32::INFINITY {
                self.infinite.note(place);
            } else {
                self.add_number(magnitude, place, smallest_normal);
            }
        }
    }

    fn add_number(&mut self, magnitude: f32, place: [u64; 2], smallest_normal: f32) {
        if magnitude < smallest_normal {
            self.subnormal.note(place);
        }
        if magnitude >= F16_OVERFLOW {
            self.beyond_f16.note(place);
        }
        if magnitude <= F16_UNDERFLOW {
            self.below_f16.note(place);
        }
        let bits = magnitude.to_bits();
        let (exponent, fraction) = (bits >> 23, bits & 0x007f_ffff);
        let is_power = match exponent {
            0 => fraction.is_power_of_two(),
            _ => fraction == 0,
        };
        if !is_power {
            self.not_power_of_two.note(place);
        }
        self.exponents[exponent as usize] += 1;
        self.smallest = Some(
            self.smallest
                .map_or(magnitude, |least| least.min(magnitude)),
        );
        if self.largest.is_none_or(|most| magnitude > most) {
            self.largest = Some(magnitude);
            self.largest_at = Some(place);
        }
    }

    /// The magnitude of all entries, if it is the same for all and a number that is not zero.
    pub fn only(&self) -> Option<f32> {
        let is_all = self.n == self.n_numbers();
        self.largest
            .filter(|_| is_all && self.smallest == self.largest)
    }

    /// The largest entries, if at least `gap` powers of two lie between them and the others, and they are at most one of
    /// `share`.
    pub fn outliers(&self, gap: u32, share: u64) -> Option<Outliers> {
        let (mut count, mut empty) = (0_u64, 0_u32);
        let most = self.n / share.max(1);
        for &here in self.exponents.iter().rev() {
            if here == 0 {
                empty += u32::from(count > 0);
            } else if count > 0 && empty >= gap {
                return Some(Outliers { count, gap: empty });
            } else {
                count += here;
                empty = 0;
                if count > most {
                    return None;
                }
            }
        }
        None
    }

    /// How many are finite and not zero.
    pub fn n_numbers(&self) -> u64 {
        self.exponents.iter().sum()
    }

    /// The power of two below the median magnitude of those that are finite and not zero.
    pub fn median_exponent(&self) -> Option<i32> {
        let half = self.n_numbers().div_ceil(2);
        let mut seen = 0;
        (0..)
            .zip(self.exponents.iter())
            .find(|&(_, &count)| {
                seen += count;
                half > 0 && seen >= half
            })
            .map(|(exponent, _): (i32, _)| exponent - 127)
    }
}

/// The smallest magnitude of full precision.
pub fn smallest_normal(float: Float) -> f32 {
    match float {
        Float::F32 | Float::Bf16 => f32::MIN_POSITIVE,
        Float::F16 => 6.103_515_6e-5,
    }
}

/// The same of a small float: its smallest code with an exponent.
pub(super) fn smallest_normal_minifloat(format: Minifloat) -> f32 {
    let Some(layout) = format.layout() else {
        return 0.0;
    };
    let code = 1_u8 << layout.mantissa_bits;
    format.decode(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> FloatStatistics {
        let mut statistics = FloatStatistics::default();
        statistics.add(values, (6, 4), smallest_normal(Float::F16));
        statistics
    }

    #[test]
    fn each_kind_has_its_count_and_its_first_place() {
        let statistics = of(&[
            1.0,
            -0.0,
            f32::NAN,
            -3.0,
            f32::NEG_INFINITY,
            1e-5,
            70000.0,
            f32::NAN,
            2e-8,
        ]);
        let kind = |count, first| Occurrences {
            count,
            first: Some(first),
        };
        assert_eq!(statistics.n, 9);
        assert_eq!(statistics.zero, kind(1, [1, 3]));
        assert_eq!(statistics.nan, kind(2, [2, 0]));
        assert_eq!(statistics.negative, kind(2, [2, 1]));
        assert_eq!(statistics.infinite, kind(1, [2, 2]));
        assert_eq!(statistics.subnormal, kind(2, [2, 3]));
        assert_eq!(statistics.beyond_f16, kind(1, [3, 0]));
        assert_eq!(statistics.below_f16, kind(1, [3, 2]));
        assert_eq!(statistics.not_power_of_two, kind(4, [2, 1]));
        assert_eq!(statistics.n_numbers(), 5);
        assert_eq!(statistics.smallest, Some(2e-8));
        assert_eq!(statistics.largest, Some(70000.0));
        assert_eq!(statistics.largest_at, Some([3, 0]));
    }

    #[test]
    fn the_median_is_that_of_magnitudes() {
        assert_eq!(of(&[]).median_exponent(), None);
        assert_eq!(of(&[0.0, f32::NAN]).median_exponent(), None);
        assert_eq!(of(&[-1.5, 8.0, 0.25]).median_exponent(), Some(0));
        assert_eq!(of(&[8.0, 8.5, 0.25]).median_exponent(), Some(3));
    }

    #[test]
    fn outliers_stand_alone() {
        let mut values = vec![1.0; 63];
        assert_eq!(of(&values).only(), Some(1.0));
        values.push(3000.0);
        let found = Outliers { count: 1, gap: 10 };
        assert_eq!(of(&values).outliers(10, 64), Some(found));
        assert_eq!(of(&values).outliers(11, 64), None);
        assert_eq!(of(&values).outliers(10, 65), None);
        assert_eq!(of(&values).only(), None);
        assert_eq!(of(&[]).outliers(1, 1), None);
    }

    #[test]
    fn small_floats_are_subnormal_below_their_first_exponent() {
        let known = [
            (Minifloat::E4M3, 2_f32.powi(-6)),
            (Minifloat::E5M2, 2_f32.powi(-14)),
            (Minifloat::E2M1, 1.0),
            (Minifloat::E8M0, 0.0),
        ];
        for (format, expected) in known {
            let found = smallest_normal_minifloat(format);
            assert_eq!(found.to_bits(), expected.to_bits(), "{format:?}");
        }
    }
}
