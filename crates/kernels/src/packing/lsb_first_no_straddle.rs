//! `32 / bits` codes per little-endian 32-bit word, lowest bits first; what is left at the top of a word is zero.
//!
//! ```text
//! 5 bits, word 0 (6 codes)
//! bit      31 30   29..25   24..20   19..15   14..10   9..5    4..0
//!         +------+--------+--------+--------+--------+-------+-------+
//!         | zero | code 5 | code 4 | code 3 | code 2 | code 1| code 0|
//!         +------+--------+--------+--------+--------+-------+-------+
//! ```
//!
//! With 1, 2, 4 and 8 bits nothing is left over, and the bytes are those of `lsb_first`.
//! Spec: `specs/packings/lsb_first_no_straddle.md`.

use super::spread::with_width;

/// See [`crate::Packing::unpack`].
pub(super) fn unpack(bits: u32, packed: &[u8], out: &mut [u8]) {
    match bits {
        1 | 2 | 4 | 8 => super::lsb_first::unpack(bits, packed, out),
        _ => with_width!(bits, unpack_width(packed, out)),
    }
}

/// See [`crate::Packing::pack`]; `packed` has exactly the bytes that the codes need.
pub(super) fn pack(bits: u32, codes: &[u8], packed: &mut [u8]) {
    with_width!(bits, pack_width(codes, packed));
}

fn unpack_width<const B: usize>(packed: &[u8], out: &mut [u8]) {
    let (words, _) = packed.as_chunks::<4>();
    for (group, &word) in out.chunks_mut(32 / B).zip(words) {
        let word = u32::from_le_bytes(word);
        for (j, code) in group.iter_mut().enumerate() {
            *code = (word >> (j * B)) as u8 & ((1 << B) - 1);
        }
    }
}

fn pack_width<const B: usize>(codes: &[u8], packed: &mut [u8]) {
    let (words, _) = packed.as_chunks_mut::<4>();
    for (group, word) in codes.chunks(32 / B).zip(words) {
        let mut bits = 0;
        for (j, &code) in group.iter().enumerate() {
            bits |= (u32::from(code) & ((1 << B) - 1)) << (j * B);
        }
        *word = bits.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use crate::Packing;
    use crate::packing::examples::{ramp, words};

    #[test]
    fn a_word_holds_whole_codes_only() {
        let words = words(Packing::LsbFirstNoStraddle { bits: 3 }, &ramp(3)[..12]);
        // Codes 1 4 7 2 5 0 3 6 1 4 | 7 2, from the lowest bits up; bits 30 and 31 stay zero.
        assert_eq!(
            words,
            [0b00_100_001_110_011_000_101_010_111_100_001, 0b010_111]
        );
    }

    /// compressed-tensors.md §4: 64 codes take 7, 11, 13 and 16 words (dense: 6, 10, 12, 14).
    #[test]
    fn widths_are_those_of_the_library() {
        for (bits, old, dense) in [(3, 7, 6), (5, 11, 10), (6, 13, 12), (7, 16, 14)] {
            assert_eq!(
                Packing::LsbFirstNoStraddle { bits }.packed_len_bytes(64, 4),
                4 * old
            );
            assert_eq!(
                Packing::LsbFirst { bits }.packed_len_bytes(64, 4),
                4 * dense
            );
        }
    }
}
