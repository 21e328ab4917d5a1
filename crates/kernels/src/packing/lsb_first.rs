//! One contiguous bit stream, lowest bits first: code `j` is bits `j * bits` to `(j + 1) * bits - 1` of the run, counted
//! from the lowest bit of byte 0. Codes may straddle bytes and words; in little-endian words of any width the bytes are
//! the same.
//!
//! ```text
//! 4 bits    byte 0        byte 1
//! bit      7..4  3..0    15..12 11..8
//!         +-----+-----+ +------+------+
//!         |  1  |  0  | |  3   |  2   |
//!         +-----+-----+ +------+------+
//!
//! 3 bits    byte 0               byte 1                  byte 2
//! bit      7 6   5..3  2..0     15   14..12 11..9 8     23..21 20..18 17 16
//!         +-----+-----+-----+  +----+------+-----+---+ +------+------+-----+
//!         |2 low|  1  |  0  |  |5lo |  4   |  3  |2hi| |  7   |  6   |5 hi |
//!         +-----+-----+-----+  +----+------+-----+---+ +------+------+-----+
//! ```
//!
//! Eight codes always fill `bits` whole bytes, which is the unit of both loops below.
//! Spec: `specs/packings/lsb_first.md`.

use super::spread::{gather8, spread8, with_width};

/// See [`crate::Packing::unpack`].
pub(super) fn unpack(bits: u32, packed: &[u8], out: &mut [u8]) {
    if bits == 8 {
        return super::bytes::unpack(packed, out);
    }
    with_width!(bits, unpack_width(packed, out));
}

/// See [`crate::Packing::pack`]; `packed` has exactly the bytes that the codes need.
pub(super) fn pack(bits: u32, codes: &[u8], packed: &mut [u8]) {
    if bits == 8 {
        return super::bytes::pack(codes, packed);
    }
    with_width!(bits, pack_width(codes, packed));
}

fn unpack_width<const B: usize>(packed: &[u8], out: &mut [u8]) {
    let (units, _) = packed.as_chunks::<B>();
    let (groups, rest) = out.as_chunks_mut::<8>();
    let tail = &packed[groups.len() * B..];
    for (group, unit) in groups.iter_mut().zip(units) {
        *group = spread8::<B>(load(unit)).to_le_bytes();
    }
    if !rest.is_empty() {
        let tail = &tail[..(rest.len() * B).div_ceil(8)];
        let group = spread8::<B>(load(tail)).to_le_bytes();
        rest.copy_from_slice(&group[..rest.len()]);
    }
}

fn pack_width<const B: usize>(codes: &[u8], packed: &mut [u8]) {
    let (groups, rest) = codes.as_chunks::<8>();
    let (units, tail) = packed.split_at_mut(groups.len() * B);
    for (group, unit) in groups.iter().zip(units.as_chunks_mut::<B>().0) {
        let bytes = gather8::<B>(u64::from_le_bytes(*group)).to_le_bytes();
        unit.copy_from_slice(&bytes[..B]);
    }
    let bytes = gather8::<B>(load(rest)).to_le_bytes();
    tail.copy_from_slice(&bytes[..tail.len()]);
}

/// At most 8 bytes as a little-endian number.
#[inline(always)]
pub(super) fn load(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use crate::Packing;
    use crate::packing::examples::{ramp, words};

    /// gptq.md §3, run there: codes (3k + 1) mod 2^b, k = 0..31.
    #[test]
    fn gptq_examples() {
        let cases: [(u32, &[u32]); 4] = [
            (2, &[0xb1b1_b1b1, 0xb1b1_b1b1]),
            (3, &[0xe1cc_55e1, 0x55e1_cc55, 0xcc55_e1cc]),
            (4, &[0x630d_a741, 0xeb85_2fc9]),
            (8, &[0x0a07_0401, 0x1613_100d]),
        ];
        for (bits, expected) in cases {
            let codes = &ramp(bits)[..(expected.len() * 32) / bits as usize];
            assert_eq!(
                words(Packing::LsbFirst { bits }, codes),
                expected,
                "{bits} bits"
            );
        }
    }

    /// compressed-tensors.md §4: signed codes, stored plus 2^(b-1).
    #[test]
    fn compressed_tensors_examples() {
        let cases: [(u32, &[i8], &[u32]); 5] = [
            (4, &[-8, -7, -1, 0, 1, 2, 6, 7], &[0xfea9_8710]),
            (8, &[-128, -1, 0, 127], &[0xff80_7f00]),
            (
                2,
                &[-2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1],
                &[0xe4e4_e4e4],
            ),
            (
                3,
                &[-4, -3, -2, -1, 0, 1, 2, 3, 3, 2, 1, 0],
                &[0x77fa_c688, 0x0000_0009],
            ),
            (4, &[-4, -3, -2], &[0x0000_0654]),
        ];
        for (bits, signed, expected) in cases {
            let offset = 1i32 << (bits - 1);
            let codes: Vec<u8> = signed
                .iter()
                .map(|&q| (i32::from(q) + offset) as u8)
                .collect();
            assert_eq!(
                words(Packing::LsbFirst { bits }, &codes),
                expected,
                "{bits} bits"
            );
        }
    }
}
