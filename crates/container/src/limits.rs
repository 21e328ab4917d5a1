//! Caps on what a file may ask for.

/// Caps that every reader is given; the defaults are those of the official parser where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest header in bytes (the official parser's 100,000,000).
    pub max_header_bytes: u64,
    /// Deepest JSON nesting, the header's own braces included (the official parser's 127).
    pub max_json_depth: usize,
    /// Longest index file in bytes.
    pub max_index_bytes: u64,
    /// Longest document read as a whole (`config.json`, `quantize_config.json` ...).
    pub max_document_bytes: u64,
    /// Most shards of one checkpoint.
    pub max_shards: usize,
    /// Longest *descriptor tensor* (a tensor that holds a shape or a JSON description) read while binding.
    pub max_descriptor_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_header_bytes: 100_000_000,
            max_json_depth: 127,
            max_index_bytes: 256 << 20,
            max_document_bytes: 64 << 20,
            max_shards: 100_000,
            max_descriptor_bytes: 64 << 10,
        }
    }
}
