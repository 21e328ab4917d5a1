//! One pass over a weight makes the numbers that all rules and reports look at.
//!
//! Counts, extremes and histograms in constant memory: the pass reads rows in tiles, and what it makes of a matrix of any size is
//! a few kilobytes. At [`Depth::Scales`] no code is read, except where a format stores scales among the codes (ggml's blocks).

mod codes;
mod floats;
mod grid;
mod padding;
mod small;
mod walk;
mod zeros;

use std::collections::BTreeMap;

pub use codes::CodeStatistics;
pub use floats::{FloatStatistics, Outliers, smallest_normal};
pub use zeros::ZeroStatistics;

pub(crate) use grid::Grid;
pub(crate) use small::small_scales;
pub(crate) use walk::weight;

#[cfg(doc)]
use crate::Depth;

/// How many entries are of a kind, and which is the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occurrences {
    /// How many.
    pub count: u64,
    /// Row and column of the first.
    pub first: Option<[u64; 2]>,
}

impl Occurrences {
    fn note(&mut self, at: [u64; 2]) {
        self.count += 1;
        self.first.get_or_insert(at);
    }
}

/// What the scales of a weight are, and what stands beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScaleStatistics {
    /// The stored scales, `[out_groups, in_groups]`, before any second level; matrices of a stack follow each other. Empty
    /// where none are stored.
    pub scales: FloatStatistics,
    /// What scales are scaled by: in a row, in the order of the grid, one matrix of a stack after the other.
    pub supers: FloatStatistics,
    /// Float zero points, biases.
    pub offsets: FloatStatistics,
    /// Integer zero points, in unsigned form.
    pub zeros: ZeroStatistics,
    /// Factors per input feature; at full depth low-rank factors as well.
    pub factors: FloatStatistics,
}

/// The numbers of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightStatistics {
    /// Of its scales.
    pub scales: ScaleStatistics,
    /// Of its codes, at full depth.
    pub codes: Option<CodeStatistics>,
}

/// The numbers of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Of all weights, by module. A weight that could not be read is missing.
    pub weights: BTreeMap<String, WeightStatistics>,
    /// Of scales that belong to no weight, by tensor: those of activations, and of keys and values in a cache.
    pub small: BTreeMap<String, FloatStatistics>,
}

impl Measured {
    /// The numbers of the weight of this module.
    pub fn get(&self, module: &str) -> Option<&WeightStatistics> {
        self.weights.get(module)
    }
}
