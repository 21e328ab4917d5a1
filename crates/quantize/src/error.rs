//! What a quantizer can refuse.

/// Everything this crate can answer instead of a result. Rows and columns are relative to the whole weight.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A weight is NaN or infinite (refused).
    #[error("non-finite weight at row {row}, column {column}")]
    NonFinite {
        /// Row of the stack.
        row: u64,
        /// Input feature.
        column: u64,
    },
    /// The scale of a group is too large for the dtype it is stored in (refused).
    #[error(
        "the scale of row {row}, group {group} is {scale:e}, more than {dtype} can hold; choose a wider scale dtype"
    )]
    ScaleOverflow {
        /// Row of the stack (the first one of a block or matrix).
        row: u64,
        /// Index of the group (or block) along the input features.
        group: u64,
        /// The scale before it is stored; infinite if its calculation already overflowed.
        scale: f32,
        /// The dtype it is stored in.
        dtype: &'static str,
    },
    /// The quantizer has no rule for this scheme (unsupported).
    #[error("round-to-nearest cannot quantize to this scheme: {reason}")]
    UnsupportedScheme {
        /// What stands against it.
        reason: &'static str,
    },
    /// What is known of the inputs cannot be used (refused).
    #[error("the calibration statistics cannot be used: {reason}")]
    Inputs {
        /// Why.
        reason: String,
    },
    /// What was quantized cannot be dequantized again (a mistake of the caller: the layout is not that of the codes).
    #[error("the quantized rows cannot be read back: {reason}")]
    Unreadable {
        /// What the reader says.
        reason: String,
    },
    /// A scale that spans whole matrices was asked for without the extremes of that matrix (a mistake of the caller).
    #[error("matrix {matrix} has no statistics; observe every row before quantizing")]
    MissingStatistics {
        /// Index in the stack.
        matrix: u64,
    },
}
