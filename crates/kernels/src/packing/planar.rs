//! GPTQModel's planes: every 32 codes take `bits` little-endian 32-bit words; the code's bits are cut in planes of 4, 2
//! and 1 bits, low plane first, and each plane is a lowest-bits-first run of its own.
//!
//! ```text
//! 5 bits, one block of 32 codes = 20 bytes
//!
//! byte    0                                  15 16            19
//!        +-------------------------------------+----------------+
//!        | bits 0..3 of codes 0, 1, ..., 31    | bit 4 of codes |
//!        | (4 bits each, word i: codes 8i..)   | 0, 1, ..., 31  |
//!        +-------------------------------------+----------------+
//!
//! bits   planes (width @ lowest bit)
//!  2     2@0                    6     4@0 2@4
//!  3     2@0 1@2                7     4@0 2@4 1@6
//!  4     4@0                    8     8@0
//!  5     4@0 1@4
//! ```
//!
//! A short last block is a full block whose missing codes are zero. Spec: `specs/packings/planar.md`.

use super::spread::{gather8, spread8};

/// `(width, lowest bit)` of each plane, in the order of the bytes.
const fn planes(bits: u32) -> &'static [(u32, u32)] {
    match bits {
        2 => &[(2, 0)],
        3 => &[(2, 0), (1, 2)],
        4 => &[(4, 0)],
        5 => &[(4, 0), (1, 4)],
        6 => &[(4, 0), (2, 4)],
        7 => &[(4, 0), (2, 4), (1, 6)],
        _ => &[(8, 0)],
    }
}

/// See [`crate::Packing::unpack`].
pub(super) fn unpack(bits: u32, packed: &[u8], out: &mut [u8]) {
    let (blocks, rest) = out.as_chunks_mut::<32>();
    let mut sources = packed.chunks_exact(4 * bits as usize);
    for (block, source) in blocks.iter_mut().zip(&mut sources) {
        unpack_block(bits, source, block);
    }
    if !rest.is_empty() {
        let mut block = [0; 32];
        unpack_block(
            bits,
            sources.next().expect("the length was checked"),
            &mut block,
        );
        rest.copy_from_slice(&block[..rest.len()]);
    }
}

/// See [`crate::Packing::pack`]; `packed` has exactly the bytes that the codes need.
pub(super) fn pack(bits: u32, codes: &[u8], packed: &mut [u8]) {
    let mut targets = packed.chunks_exact_mut(4 * bits as usize);
    for (codes, target) in codes.chunks(32).zip(&mut targets) {
        let mut block = [0; 32];
        block[..codes.len()].copy_from_slice(codes);
        pack_block(bits, &block, target);
    }
}

fn unpack_block(bits: u32, mut source: &[u8], block: &mut [u8; 32]) {
    *block = [0; 32];
    for &(width, lowest) in planes(bits) {
        let (plane, next) = source.split_at(4 * width as usize);
        match width {
            1 => add_plane::<1>(plane, lowest, block),
            2 => add_plane::<2>(plane, lowest, block),
            4 => add_plane::<4>(plane, lowest, block),
            _ => add_plane::<8>(plane, lowest, block),
        }
        source = next;
    }
}

/// ORs the `B` bits of each code that a plane holds into the block.
fn add_plane<const B: usize>(plane: &[u8], lowest: u32, block: &mut [u8; 32]) {
    for (eight, unit) in block
        .as_chunks_mut::<8>()
        .0
        .iter_mut()
        .zip(plane.as_chunks::<B>().0)
    {
        let bits = spread8::<B>(super::lsb_first::load(unit)) << lowest;
        *eight = (u64::from_le_bytes(*eight) | bits).to_le_bytes();
    }
}

fn pack_block(bits: u32, block: &[u8; 32], mut target: &mut [u8]) {
    for &(width, lowest) in planes(bits) {
        let (plane, next) = target.split_at_mut(4 * width as usize);
        match width {
            1 => take_plane::<1>(block, lowest, plane),
            2 => take_plane::<2>(block, lowest, plane),
            4 => take_plane::<4>(block, lowest, plane),
            _ => take_plane::<8>(block, lowest, plane),
        }
        target = next;
    }
}

fn take_plane<const B: usize>(block: &[u8; 32], lowest: u32, plane: &mut [u8]) {
    for (eight, unit) in block
        .as_chunks::<8>()
        .0
        .iter()
        .zip(plane.as_chunks_mut::<B>().0)
    {
        // The shift moves bits into the tops of the bytes below, which `gather8` drops.
        let bits = gather8::<B>(u64::from_le_bytes(*eight) >> lowest);
        unit.copy_from_slice(&bits.to_le_bytes()[..B]);
    }
}

#[cfg(test)]
mod tests {
    use crate::Packing;
    use crate::packing::examples::{ramp, words};

    /// gptq.md §3, run there: codes (3k + 1) mod 2^b, k = 0..31.
    #[test]
    fn gptqmodel_examples() {
        const LOW: [u32; 4] = [0x630d_a741, 0xeb85_2fc9, 0x630d_a741, 0xeb85_2fc9];
        let cases: [(u32, &[u32]); 4] = [
            (3, &[0xb1b1_b1b1, 0xb1b1_b1b1, 0x9696_9696]),
            (5, &[LOW[0], LOW[1], LOW[2], LOW[3], 0xf81f_07e0]),
            (
                6,
                &[LOW[0], LOW[1], LOW[2], LOW[3], 0xaa95_5400, 0x5540_03ff],
            ),
            (
                7,
                &[
                    LOW[0],
                    LOW[1],
                    LOW[2],
                    LOW[3],
                    0xaa95_5400,
                    0x5540_03ff,
                    0xffe0_0000,
                ],
            ),
        ];
        for (bits, expected) in cases {
            assert_eq!(
                words(Packing::Planar { bits }, &ramp(bits)),
                expected,
                "{bits} bits"
            );
        }
    }

    #[test]
    fn widths_of_one_plane_equal_lsb_first() {
        for bits in [2, 4, 8] {
            let codes = ramp(bits);
            let planar = words(Packing::Planar { bits }, &codes);
            assert_eq!(
                planar,
                words(Packing::LsbFirst { bits }, &codes),
                "{bits} bits"
            );
        }
    }
}
