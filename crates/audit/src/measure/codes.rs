//! What the codes of a weight are like.

use safequant_schemes::{Code, CodeTile, QuantizedTensor};

use super::Occurrences;

/// Of all codes of a weight, in unsigned form (integers) or as bit patterns.
#[derive(Clone, Debug, PartialEq)]
pub struct CodeStatistics {
    /// How many of each code.
    pub histogram: Box<[u64; 256]>,
    /// Codes that are no number, of small floats that have such.
    pub nan: Occurrences,
    /// Rows all of whose codes are the same.
    pub constant_rows: Occurrences,
}

impl Default for CodeStatistics {
    fn default() -> Self {
        Self {
            histogram: Box::new([0; 256]),
            nan: Occurrences::default(),
            constant_rows: Occurrences::default(),
        }
    }
}

impl CodeStatistics {
    pub(super) fn add(&mut self, tensor: &QuantizedTensor, tile: &CodeTile) {
        let is_nan = |code: usize| match tensor.scheme.code {
            Code::Minifloat(format) => format.table()[code].is_nan(),
            Code::Integer { .. } | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => {
                false
            }
        };
        if let Code::Dense(_) = tensor.scheme.code {
            return;
        }
        let nan: [bool; 256] = std::array::from_fn(is_nan);
        let n_columns = usize::try_from(tensor.in_features()).unwrap_or(usize::MAX);
        for (row, codes) in (tile.rows.start..).zip(tile.codes.chunks(n_columns.max(1))) {
            let mut counts = [0_u32; 256];
            for &code in codes {
                counts[usize::from(code)] += 1;
            }
            let is_constant = counts.iter().filter(|&&count| count > 0).count() == 1;
            if is_constant && codes.len() > 1 {
                self.constant_rows.note([row, 0]);
            }
            for (code, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
                self.histogram[code] += u64::from(count);
                if nan[code] {
                    let first = codes.iter().position(|&c| usize::from(c) == code);
                    self.nan
                        .first
                        .get_or_insert([row, first.unwrap_or(0) as u64]);
                    self.nan.count += u64::from(count);
                }
            }
        }
    }

    /// How many codes there are.
    pub fn n(&self) -> u64 {
        self.histogram.iter().sum()
    }

    /// How many different ones.
    pub fn n_used(&self) -> usize {
        self.histogram.iter().filter(|&&count| count > 0).count()
    }
}
