//! The extended registry: logical element types that ride in a carrier dtype.

use crate::Dtype;

/// How a logical dtype sits in stored elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The dtype in the header.
    pub dtype: Dtype,
    /// `codes` logical elements occupy `elements` carrier elements.
    pub codes: u32,
    /// See `codes`.
    pub elements: u32,
}

/// A logical element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogicalDtype {
    /// Unsigned 4-bit integer.
    U4,
}
