//! What some zero points are like.

use std::collections::BTreeMap;

use super::Occurrences;

/// Of a grid of integer zero points, in the unsigned form of codes (`value = code - zero`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ZeroStatistics {
    /// How many there are.
    pub n: u64,
    /// How many of each, and the first: codes have at most eight bits, so there are few.
    pub values: BTreeMap<i32, Occurrences>,
}

impl ZeroStatistics {
    /// See `FloatStatistics::add`.
    pub(super) fn add(&mut self, zeros: &[i32], (first, columns): (u64, u64)) {
        self.n += zeros.len() as u64;
        for (at, &zero) in (first..).zip(zeros) {
            let place = [at / columns, at % columns];
            self.values.entry(zero).or_default().note(place);
        }
    }

    /// The only value, if all are the same.
    pub fn only(&self) -> Option<i32> {
        let mut values = self.values.keys();
        values.next().copied().filter(|_| values.next().is_none())
    }

    /// Those that no code of `bits` bits is.
    pub fn outside(&self, bits: u32) -> impl Iterator<Item = (i32, Occurrences)> {
        let codes = 0..1_i32 << bits.min(30);
        let all = self.values.iter().map(|(&zero, &places)| (zero, places));
        all.filter(move |(zero, _)| !codes.contains(zero))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_and_placed() {
        let mut zeros = ZeroStatistics::default();
        assert_eq!(zeros.only(), None);
        zeros.add(&[8, 8], (0, 2));
        assert_eq!(zeros.only(), Some(8));
        zeros.add(&[8, 16], (2, 2));
        assert_eq!(zeros.only(), None);
        let outside: Vec<_> = zeros.outside(4).collect();
        let place = Occurrences {
            count: 1,
            first: Some([1, 1]),
        };
        assert_eq!(outside, [(16, place)]);
        assert_eq!(zeros.n, 4);
    }
}
