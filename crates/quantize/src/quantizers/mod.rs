//! One file per algorithm.

pub mod round_to_nearest;

pub use round_to_nearest::RoundToNearest;
