//! The values that codes stand for before scale and offset, and the nearest of them.

use crate::{Codebook, Minifloat};

/// A set of levels. With a scale `s` and an offset `o` a code of level `l` stands for `l * s + o`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// Every integer of a range.
    Integers {
        /// The least, a whole number.
        low: f32,
        /// The largest, a whole number.
        high: f32,
    },
    /// The finite values of a small float.
    Float(FloatLevels),
    /// Sixteen values by ascending size; those that a set lacks repeat its last.
    Table([f32; 16]),
}

/// A small float that saturates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FloatLevels {
    /// Bits of the mantissa.
    mantissa_bits: u32,
    /// The bits of an F32 that is the least power of two of full precision.
    least: u32,
    /// The largest value.
    max: f32,
}

impl Levels {
    /// Those of integers of so many bits in unsigned form.
    ///
    /// # Panics
    /// If they have more than 8 bits.
    pub fn integers(bits: u32, zero: i32) -> Self {
        assert!(bits <= 8, "integers of more than 8 bits");
        let low = -(zero as f32);
        Levels::Integers {
            low,
            high: low + ((1_u32 << bits) - 1) as f32,
        }
    }

    /// Those of a small float; `None` for powers of two alone, which have no zero.
    pub const fn minifloat(format: Minifloat) -> Option<Self> {
        let Some(layout) = format.layout() else {
            return None;
        };
        Some(Levels::Float(FloatLevels {
            mantissa_bits: layout.mantissa_bits,
            least: (128 - layout.bias) << 23,
            max: format.max_finite(),
        }))
    }

    /// Those of a code book.
    pub fn codebook(book: Codebook) -> Self {
        let mut values = *book.values();
        values.sort_by(f32::total_cmp);
        Levels::Table(values)
    }

    /// The least and the largest.
    pub fn ends(&self) -> (f32, f32) {
        match *self {
            Levels::Integers { low, high } => (low, high),
            Levels::Float(float) => (-float.max, float.max),
            Levels::Table(values) => (values[0], values[15]),
        }
    }

    /// The level nearest to a value: of two that are equally near the even one (integers, floats) or the lesser (tables), beyond the
    /// ends the end.
    pub fn nearest(&self, value: f32) -> f32 {
        with_levels!(*self, |set| set.nearest(value))
    }
}

/// Levels of one kind: what loops are compiled for.
pub(crate) trait LevelSet: Copy {
    /// The level nearest to a value; of two that are equally near the even one (integers, floats) or the lesser (tables). Beyond
    /// the ends it is the end. NaN gives any level.
    fn nearest(self, value: f32) -> f32;

    /// Of the levels beside `level`, which is the nearest to a value, the one on the value's side of it; `level` again where there
    /// is none.
    fn second(self, value: f32, level: f32) -> f32;
}

/// Integers from `.0` to `.1`.
#[derive(Clone, Copy)]
pub(crate) struct IntegerSet(pub(crate) f32, pub(crate) f32);

/// Sixteen values and what lies between them.
#[derive(Clone, Copy)]
pub(crate) struct TableSet {
    values: [f32; 16],
    middles: [f32; 15],
}

/// Added and subtracted again it rounds what is below 2^22 to an integer, ties to even.
const TO_INTEGER: f32 = 12_582_912.0;

impl LevelSet for IntegerSet {
    #[inline(always)]
    fn nearest(self, value: f32) -> f32 {
        // Comparisons are one instruction each where `max` and `min` need three, for the sake of NaN; here NaN becomes the least.
        let raised = if value > self.0 { value } else { self.0 };
        let cut = if raised < self.1 { raised } else { self.1 };
        (cut + TO_INTEGER) - TO_INTEGER
    }

    #[inline(always)]
    fn second(self, value: f32, level: f32) -> f32 {
        let other = if value > level {
            level + 1.0
        } else {
            level - 1.0
        };
        other.max(self.0).min(self.1)
    }
}

impl LevelSet for FloatLevels {
    #[inline(always)]
    fn nearest(self, value: f32) -> f32 {
        let magnitude = value.abs();
        let magnitude = if magnitude < self.max {
            magnitude
        } else {
            self.max
        };
        let exponent = (magnitude.to_bits() & 0x7F80_0000).max(self.least);
        // The distance of neighbors is 2^(exponent - mantissa bits): a power of two far from the ends of F32.
        let step = f32::from_bits(exponent - (self.mantissa_bits << 23));
        let per_step = f32::from_bits((254 << 23) - (exponent - (self.mantissa_bits << 23)));
        let rounded = ((magnitude * per_step + TO_INTEGER) - TO_INTEGER) * step;
        // Adding zero makes a negative zero a positive one.
        rounded.copysign(value) + 0.0
    }

    #[inline(always)]
    fn second(self, value: f32, level: f32) -> f32 {
        // A little over half the distance of neighbors, on either side of a power of two.
        let exponent = (level.to_bits() & 0x7F80_0000).max(self.least);
        let step = f32::from_bits(exponent - (self.mantissa_bits << 23));
        let by = if value > level {
            0.51 * step
        } else {
            -0.51 * step
        };
        self.nearest(level + by)
    }
}

impl TableSet {
    #[inline(always)]
    pub(crate) fn new(values: [f32; 16]) -> Self {
        let mut middles = [0.0; 15];
        for (i, middle) in middles.iter_mut().enumerate() {
            *middle = 0.5 * (values[i] + values[i + 1]);
        }
        Self { values, middles }
    }
}

impl LevelSet for TableSet {
    #[inline(always)]
    fn nearest(self, value: f32) -> f32 {
        let mut found = self.values[0];
        for (middle, level) in self.middles.iter().zip(&self.values[1..]) {
            found = if value > *middle { *level } else { found };
        }
        found
    }

    #[inline(always)]
    fn second(self, value: f32, level: f32) -> f32 {
        let mut found = level;
        if value > level {
            for other in self.values.iter().rev() {
                found = if *other > level { *other } else { found };
            }
        } else {
            for other in &self.values {
                found = if *other < level { *other } else { found };
            }
        }
        found
    }
}

/// Compiles an expression for each kind of levels.
macro_rules! with_levels {
    ($levels:expr, |$set:ident| $body:expr) => {
        match $levels {
            $crate::levels::Levels::Integers { low, high } => {
                let $set = $crate::levels::IntegerSet(low, high);
                $body
            }
            $crate::levels::Levels::Float($set) => $body,
            $crate::levels::Levels::Table(values) => {
                let $set = $crate::levels::TableSet::new(values);
                $body
            }
        }
    };
}
pub(crate) use with_levels;

#[cfg(test)]
mod tests {
    use super::*;

    fn brute(levels: &[f32], value: f32) -> f32 {
        let distance = |l: f32| (f64::from(l) - f64::from(value)).abs();
        let least = levels
            .iter()
            .map(|l| distance(*l))
            .fold(f64::INFINITY, f64::min);
        *levels.iter().find(|l| distance(**l) <= least).unwrap()
    }

    #[test]
    fn the_nearest_level_is_as_near_as_any() {
        let distance = |l: f32, v: f32| (f64::from(l) - f64::from(v)).abs();
        let mut visited = 0;
        let mut check = |levels: Levels, all: &[f32]| {
            let (low, high) = levels.ends();
            assert_eq!(low, all.iter().copied().fold(f32::INFINITY, f32::min));
            assert_eq!(high, all.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            for i in -3000..3000 {
                let value = i as f32 / 1000.0 * high.max(-low) * 0.5;
                let (found, expected) = (levels.nearest(value), brute(all, value));
                assert!(all.contains(&found), "{levels:?}: {found} is no level");
                assert_eq!(
                    distance(found, value),
                    distance(expected, value),
                    "{levels:?} {value}"
                );
            }
            visited += 1;
        };
        for bits in 1..=8 {
            for zero in [0, 1 << (bits - 1)] {
                let all: Vec<f32> = (0..1 << bits).map(|u| (u - zero) as f32).collect();
                check(Levels::integers(bits, zero), &all);
            }
        }
        for &format in Minifloat::ALL {
            let all = (0..=u8::MAX).map(|code| format.decode(code));
            let all: Vec<f32> = all.filter(|v| v.is_finite()).collect();
            if let Some(levels) = Levels::minifloat(format) {
                check(levels, &all);
            }
        }
        for &book in Codebook::ALL {
            check(Levels::codebook(book), book.values());
        }
        assert_eq!(
            visited,
            16 + (Minifloat::ALL.len() - 1) + Codebook::ALL.len()
        );
    }
}
