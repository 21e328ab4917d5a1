//! Two 4-bit codes per byte, the even element in the high nibble: bitsandbytes.
//!
//! ```text
//!           byte 0        byte 1
//! bit      7..4  3..0    7..4  3..0
//!         +-----+-----+ +-----+-----+
//!         |  0  |  1  | |  2  |  3  |
//!         +-----+-----+ +-----+-----+
//! ```
//!
//! Spec: `specs/packings/nibbles_high_first.md`.

/// See [`crate::Packing::unpack`].
pub(super) fn unpack(packed: &[u8], out: &mut [u8]) {
    let (pairs, rest) = out.as_chunks_mut::<2>();
    let n_pairs = pairs.len();
    for (pair, &byte) in pairs.iter_mut().zip(packed) {
        *pair = [byte >> 4, byte & 15];
    }
    if let [last] = rest {
        *last = packed[n_pairs] >> 4;
    }
}

/// See [`crate::Packing::pack`]; `packed` has exactly the bytes that the codes need.
pub(super) fn pack(codes: &[u8], packed: &mut [u8]) {
    let (pairs, rest) = codes.as_chunks::<2>();
    for (&[even, odd], byte) in pairs.iter().zip(packed.iter_mut()) {
        *byte = even << 4 | odd & 15;
    }
    if let [last] = rest {
        packed[pairs.len()] = last << 4;
    }
}

#[cfg(test)]
mod tests {
    use crate::Packing;

    #[test]
    fn the_even_element_is_high_and_padding_is_zero() {
        let mut packed = [0xff; 3];
        Packing::NibblesHighFirst.pack(&[1, 2, 3], &mut packed);
        assert_eq!(packed, [0x12, 0x30, 0x00]);
    }
}
