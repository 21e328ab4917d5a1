//! What a quantizer can refuse.

/// Everything this crate can answer instead of a result. Rows and columns are relative to the whole weight.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A weight is NaN or infinite.
    #[error("non-finite weight at row {row}, column {column}")]
    NonFinite {
        /// Row of the stack.
        row: u64,
        /// Input feature.
        column: u64,
    },
}
