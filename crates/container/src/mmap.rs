//! Memory-mapped sources.
/// A mapped file.
pub struct MmapSource;
