//! How the scales and minima of a block's groups are stored.

use std::ops::RangeInclusive;

/// A way to store the integer scales (and minima) of a block. Offsets are bytes from the start of the block.
#[derive(Clone, Copy, Debug)]
pub(super) enum ScaleStore {
    /// No scales but the block's own.
    None,
    /// `n` bytes.
    Bytes { at: usize, n: usize },
    /// 16 bytes in two's complement (`Q6_K`).
    SignedBytes { at: usize },
    /// 16 bytes: the scale in the low nibble, the minimum in the high one (`Q2_K`).
    NibblePairs { at: usize },
    /// 8 scales and 8 minima of 6 bits in 12 bytes (`Q4_K`, `Q5_K`).
    ///
    /// ```text
    /// byte      0..3                  4..7                  8..11
    /// bits 0-5  scale j               minimum j             bits 0-3: low 4 bits of scale j + 4
    /// bits 6-7  top of scale j + 4    top of minimum j + 4  bits 4-7: low 4 bits of minimum j + 4
    /// ```
    SixBitPairs { at: usize },
    /// 16 scales of 6 bits, stored plus 32, in 12 bytes (`Q3_K)`: the low 4 bits of scales j and j + 8 in byte j, then the
    /// top 2 bits of scales j, j + 4, j + 8, j + 12 in byte 8 + j, lowest first.
    SixBits { at: usize },
    /// 8 scales of 6 bits, stored plus 32 (`IQ4_XS)`: the low 4 bits two to a byte, the top 2 bits in a 16-bit word.
    SixBitsSplit { low: usize, high: usize },
    /// `n` scales of 4 bits, two to a byte, the first one low (`IQ2_XS`, `IQ2_S`, `IQ3_S`).
    Nibbles { at: usize, n: usize },
    /// 8 scales of 4 bits: the top nibbles of bytes `at`, `at + step` ... (`IQ2_XXS`, `IQ3_XXS`).
    TopNibbles { at: usize, step: usize },
}

/// What a signed 6-bit scale is stored with.
const BIAS: i16 = 32;

impl ScaleStore {
    /// What can be stored.
    pub(super) fn range(self) -> RangeInclusive<i16> {
        match self {
            ScaleStore::None => 0..=0,
            ScaleStore::Bytes { .. } => 0..=255,
            ScaleStore::SignedBytes { .. } => -128..=127,
            ScaleStore::NibblePairs { .. }
            | ScaleStore::Nibbles { .. }
            | ScaleStore::TopNibbles { .. } => 0..=15,
            ScaleStore::SixBitPairs { .. } => 0..=63,
            ScaleStore::SixBits { .. } | ScaleStore::SixBitsSplit { .. } => -BIAS..=BIAS - 1,
        }
    }

    pub(super) fn unpack(self, bytes: &[u8], scales: &mut [i16; 16], mins: &mut [i16; 16]) {
        match self {
            ScaleStore::None => {}
            ScaleStore::Bytes { at, n } => {
                for (scale, &byte) in scales.iter_mut().zip(&bytes[at..at + n]) {
                    *scale = i16::from(byte);
                }
            }
            ScaleStore::SignedBytes { at } => {
                for (scale, &byte) in scales.iter_mut().zip(&bytes[at..]) {
                    *scale = i16::from(byte as i8);
                }
            }
            ScaleStore::NibblePairs { at } => {
                for ((scale, min), &byte) in scales.iter_mut().zip(mins).zip(&bytes[at..]) {
                    *scale = i16::from(byte & 15);
                    *min = i16::from(byte >> 4);
                }
            }
            ScaleStore::SixBitPairs { at } => unpack_pairs(&bytes[at..at + 12], scales, mins),
            ScaleStore::SixBits { at } => {
                let stored = &bytes[at..at + 12];
                for (j, scale) in scales.iter_mut().enumerate() {
                    let low = stored[j % 8] >> (4 * (j / 8)) & 15;
                    let high = stored[8 + j % 4] >> (2 * (j / 4)) & 3;
                    *scale = i16::from(low | high << 4) - BIAS;
                }
            }
            ScaleStore::SixBitsSplit { low, high } => {
                let tops = u16::from_le_bytes([bytes[high], bytes[high + 1]]);
                for (j, scale) in scales[..8].iter_mut().enumerate() {
                    let low = bytes[low + j / 2] >> (4 * (j % 2)) & 15;
                    let high = (tops >> (2 * j) & 3) as u8;
                    *scale = i16::from(low | high << 4) - BIAS;
                }
            }
            ScaleStore::Nibbles { at, n } => {
                for (j, scale) in scales[..n].iter_mut().enumerate() {
                    *scale = i16::from(bytes[at + j / 2] >> (4 * (j % 2)) & 15);
                }
            }
            ScaleStore::TopNibbles { at, step } => {
                for (scale, byte) in scales[..8].iter_mut().zip(bytes[at..].iter().step_by(step)) {
                    *scale = i16::from(byte >> 4);
                }
            }
        }
    }

    /// The bytes must be zero, but for what codes have put beside scales.
    pub(super) fn pack(self, scales: &[i16; 16], mins: &[i16; 16], bytes: &mut [u8]) {
        match self {
            ScaleStore::None => {}
            ScaleStore::Bytes { at, n } => {
                for (byte, &scale) in bytes[at..at + n].iter_mut().zip(scales) {
                    *byte = scale as u8;
                }
            }
            ScaleStore::SignedBytes { at } => {
                for (byte, &scale) in bytes[at..].iter_mut().zip(scales) {
                    *byte = scale as u8;
                }
            }
            ScaleStore::NibblePairs { at } => {
                for ((byte, &scale), &min) in bytes[at..].iter_mut().zip(scales).zip(mins) {
                    *byte = (scale & 15 | (min & 15) << 4) as u8;
                }
            }
            ScaleStore::SixBitPairs { at } => pack_pairs(scales, mins, &mut bytes[at..at + 12]),
            ScaleStore::SixBits { at } => {
                let stored = &mut bytes[at..at + 12];
                for (j, &scale) in scales.iter().enumerate() {
                    let code = (scale + BIAS) as u8;
                    stored[j % 8] |= (code & 15) << (4 * (j / 8));
                    stored[8 + j % 4] |= (code >> 4 & 3) << (2 * (j / 4));
                }
            }
            ScaleStore::SixBitsSplit { low, high } => {
                let mut tops = 0_u16;
                for (j, &scale) in scales[..8].iter().enumerate() {
                    let code = (scale + BIAS) as u8;
                    bytes[low + j / 2] |= (code & 15) << (4 * (j % 2));
                    tops |= u16::from(code >> 4 & 3) << (2 * j);
                }
                bytes[high..high + 2].copy_from_slice(&tops.to_le_bytes());
            }
            ScaleStore::Nibbles { at, n } => {
                for (j, &scale) in scales[..n].iter().enumerate() {
                    bytes[at + j / 2] |= (scale as u8 & 15) << (4 * (j % 2));
                }
            }
            ScaleStore::TopNibbles { at, step } => {
                let stored = bytes[at..].iter_mut().step_by(step);
                for (byte, &scale) in stored.zip(&scales[..8]) {
                    *byte |= (scale as u8 & 15) << 4;
                }
            }
        }
    }
}

fn unpack_pairs(stored: &[u8], scales: &mut [i16; 16], mins: &mut [i16; 16]) {
    for j in 0..4 {
        scales[j] = i16::from(stored[j] & 63);
        mins[j] = i16::from(stored[j + 4] & 63);
        scales[j + 4] = i16::from(stored[j + 8] & 15 | stored[j] >> 6 << 4);
        mins[j + 4] = i16::from(stored[j + 8] >> 4 | stored[j + 4] >> 6 << 4);
    }
}

fn pack_pairs(scales: &[i16; 16], mins: &[i16; 16], stored: &mut [u8]) {
    for j in 0..4 {
        let (scale, min) = (scales[j + 4] as u8, mins[j + 4] as u8);
        stored[j] = scales[j] as u8 & 63 | scale >> 4 << 6;
        stored[j + 4] = mins[j] as u8 & 63 | min >> 4 << 6;
        stored[j + 8] = scale & 15 | (min & 15) << 4;
    }
}
