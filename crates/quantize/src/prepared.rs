//! What all rows of one matrix need to know of its inputs.

/// What [`crate::Quantizer::prepare`] made of a matrix's inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {}
