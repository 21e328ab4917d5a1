//! The algorithms.

pub(crate) mod round_to_nearest;
pub mod searched;

pub use round_to_nearest::RoundToNearest;
pub use searched::Searched;
