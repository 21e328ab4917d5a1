//! One code per byte.
//!
//! ```text
//! byte      0           1           2
//!      +-----------+-----------+-----------+
//!      |  code 0   |  code 1   |  code 2   |
//!      +-----------+-----------+-----------+
//! ```
//!
//! Spec: `specs/packings/bytes.md`.

/// See [`crate::Packing::unpack`].
pub(super) fn unpack(packed: &[u8], out: &mut [u8]) {
    out.copy_from_slice(&packed[..out.len()]);
}

/// See [`crate::Packing::pack`]; `packed` has exactly the bytes that the codes need.
pub(super) fn pack(codes: &[u8], packed: &mut [u8]) {
    packed.copy_from_slice(codes);
}
