//! x86-64. Slices are little-endian, and so are registers: bytes in memory order are lanes in order.

pub(crate) mod avx2;
pub(crate) mod avx512;
