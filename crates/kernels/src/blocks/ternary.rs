//! `TQ1_0`, `TQ2_0`, `Q1_0`, `Q2_0`: codes of one or two bits and one scale.

use super::layout::{BlockLayout, BlockOffset, BlockScale, CodeStore, CodeValue, Plane};
use super::scales::ScaleStore;

/// Code 3 decodes to twice the scale; ggml never writes it.
pub(super) static TQ2_0: BlockLayout = BlockLayout {
    elements: 256,
    bytes: 66,
    group: 256,
    code_bits: 2,
    value: CodeValue::Integer { zero: 1 },
    scale: BlockScale::Super,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[Plane {
        offset: 0,
        len: 32,
        width: 2,
        shift: 0,
        repeat: 2,
    }]),
    scales: ScaleStore::None,
    d: Some(64),
    m: None,
};

pub(super) static TQ1_0: BlockLayout = BlockLayout {
    elements: 256,
    bytes: 54,
    group: 256,
    code_bits: 2,
    value: CodeValue::Integer { zero: 1 },
    scale: BlockScale::Super,
    offset: BlockOffset::None,
    codes: CodeStore::Trits,
    scales: ScaleStore::None,
    d: Some(52),
    m: None,
};

pub(super) static Q1_0: BlockLayout = BlockLayout {
    elements: 128,
    bytes: 18,
    group: 128,
    code_bits: 1,
    value: CodeValue::Table(&[-1, 1]),
    scale: BlockScale::Super,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[Plane {
        offset: 2,
        len: 1,
        width: 1,
        shift: 0,
        repeat: 16,
    }]),
    scales: ScaleStore::None,
    d: Some(0),
    m: None,
};

pub(super) static Q2_0: BlockLayout = BlockLayout {
    elements: 64,
    bytes: 18,
    group: 64,
    code_bits: 2,
    value: CodeValue::Integer { zero: 1 },
    scale: BlockScale::Super,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[Plane {
        offset: 2,
        len: 1,
        width: 2,
        shift: 0,
        repeat: 16,
    }]),
    scales: ScaleStore::None,
    d: Some(0),
    m: None,
};

/// `TQ1_0`'s runs of bytes, as (first byte, bytes, digits per byte): digit `n` of byte `j` of a run is element
/// `n * bytes + j` of the run's elements.
///
/// A byte holds its digits as a fraction: `byte / 256` is just above `0.d0 d1 d2 d3 d4` in base 3, so that multiplying by
/// 3 moves the next digit in front of the point.
const RUNS: [(usize, usize, usize); 3] = [(0, 32, 5), (32, 16, 5), (48, 4, 4)];

pub(super) fn unpack_trits(bytes: &[u8], mut codes: &mut [u8]) {
    for (start, len, digits) in RUNS {
        let (run, rest) = codes.split_at_mut(len * digits);
        for (j, &byte) in bytes[start..start + len].iter().enumerate() {
            let mut fraction = byte;
            for digit in 0..digits {
                run[digit * len + j] = ((u16::from(fraction) * 3) >> 8) as u8;
                fraction = fraction.wrapping_mul(3);
            }
        }
        codes = rest;
    }
}

/// The bytes that ggml writes for the digits: the fraction rounded up, a missing fifth digit being 0.
pub(super) fn pack_trits(mut codes: &[u8], bytes: &mut [u8]) {
    for (start, len, digits) in RUNS {
        let (run, rest) = codes.split_at(len * digits);
        for (j, byte) in bytes[start..start + len].iter_mut().enumerate() {
            let digit = |n| run.get(n * len + j).copied().unwrap_or(0);
            let value = (0..5).fold(0_u8, |value, n| {
                let digit = if n < digits { digit(n) } else { 0 };
                value.wrapping_mul(3).wrapping_add(digit)
            });
            *byte = (u16::from(value) * 256).wrapping_add(242).wrapping_div(243) as u8;
        }
        codes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_243_combinations_of_digits_survive() {
        for value in 0..243_u32 {
            let digits = [81, 27, 9, 3, 1].map(|power| (value / power % 3) as u8);
            let mut codes = [1; 256];
            for (n, digit) in digits.into_iter().enumerate() {
                codes[n * 32 + 7] = digit;
                codes[160 + n * 16 + 3] = digit;
                if n < 4 {
                    codes[240 + n * 4 + 2] = digit;
                }
            }
            let (mut bytes, mut back) = ([0; 54], [9; 256]);
            pack_trits(&codes, &mut bytes);
            unpack_trits(&bytes, &mut back);
            assert_eq!(back, codes, "{value}");
        }
    }
}
