//! Eight 4-bit codes per little-endian 32-bit word in the order 0, 2, 4, 6, 1, 3, 5, 7: AWQ "gemm".
//!
//! ```text
//! bit      31..28 27..24 23..20 19..16 15..12 11..8  7..4   3..0
//!         +------+------+------+------+------+------+------+------+
//!         |  7   |  5   |  3   |  1   |  6   |  4   |  2   |  0   |
//!         +------+------+------+------+------+------+------+------+
//! ```
//!
//! Code `l` of the eight sits at bit `4 * (l / 2) + 16 * (l % 2)`: even codes in the lower half-word, odd ones in the
//! upper. Spec: `specs/packings/awq_interleaved.md`.

/// See [`crate::Packing::unpack`].
pub(super) fn unpack(packed: &[u8], out: &mut [u8]) {
    let (words, _) = packed.as_chunks::<4>();
    let (groups, rest) = out.as_chunks_mut::<8>();
    let n_groups = groups.len();
    for (group, word) in groups.iter_mut().zip(words) {
        *group = unpack_word(*word);
    }
    if !rest.is_empty() {
        rest.copy_from_slice(&unpack_word(words[n_groups])[..rest.len()]);
    }
}

/// See [`crate::Packing::pack`]; `packed` has exactly the bytes that the codes need.
pub(super) fn pack(codes: &[u8], packed: &mut [u8]) {
    let (words, _) = packed.as_chunks_mut::<4>();
    for (codes, word) in codes.chunks(8).zip(words) {
        let mut group = [0; 8];
        group[..codes.len()].copy_from_slice(codes);
        *word = pack_group(group);
    }
}

/// One nibble in the low byte of each 16-bit lane.
const LANES: u64 = 0x000f_000f_000f_000f;

#[inline(always)]
fn unpack_word(word: [u8; 4]) -> [u8; 8] {
    let word = u64::from(u32::from_le_bytes(word));
    let even = spread_nibbles(word & 0xffff);
    let odd = spread_nibbles(word >> 16);
    (even | odd << 8).to_le_bytes()
}

#[inline(always)]
fn pack_group(group: [u8; 8]) -> [u8; 4] {
    let group = u64::from_le_bytes(group);
    let even = gather_nibbles(group & LANES);
    let odd = gather_nibbles(group >> 8 & LANES);
    ((even | odd << 16) as u32).to_le_bytes()
}

/// Four nibbles in the lowest 16 bits to the low nibbles of four 16-bit lanes.
#[inline(always)]
fn spread_nibbles(x: u64) -> u64 {
    let x = (x | x << 24) & 0x0000_00ff_0000_00ff;
    (x | x << 12) & LANES
}

/// The inverse of [`spread_nibbles`].
#[inline(always)]
fn gather_nibbles(x: u64) -> u64 {
    let x = (x | x >> 12) & 0x0000_00ff_0000_00ff;
    (x | x >> 24) & 0xffff
}

#[cfg(test)]
mod tests {
    use crate::Packing;
    use crate::packing::examples::words;

    /// awq.md §2, run there.
    #[test]
    fn autoawq_examples() {
        let cases: [([u8; 8], u32); 3] = [
            ([0, 1, 2, 3, 4, 5, 6, 7], 0x7531_6420),
            ([8, 1, 2, 3, 4, 5, 6, 7], 0x7531_6428),
            ([1, 4, 7, 10, 13, 0, 3, 6], 0x60a4_3d71),
        ];
        for (codes, expected) in cases {
            assert_eq!(words(Packing::AwqInterleaved, &codes), [expected]);
        }
    }
}
