//! `Q2_K` to `Q6_K`: 256 elements, integer scales (and minima) per group under F16 super-scales.

use super::layout::{BlockLayout, BlockOffset, BlockScale, CodeStore, CodeValue, Plane};
use super::scales::ScaleStore;

/// Two runs of 32 bytes: element `128 n + 32 k + j` is bits `2 k` of byte `32 n + j`.
const fn pairs(offset: usize) -> Plane {
    Plane {
        offset,
        len: 32,
        width: 2,
        shift: 0,
        repeat: 2,
    }
}

/// Four runs of 32 bytes: elements 0..31 low nibbles, 32..63 high nibbles.
const fn nibbles(offset: usize) -> Plane {
    Plane {
        offset,
        len: 32,
        width: 4,
        shift: 0,
        repeat: 4,
    }
}

/// 32 bytes: element `32 k + j` is bit `k` of byte `j`.
const fn top_bits(offset: usize, shift: u32) -> Plane {
    Plane {
        offset,
        len: 32,
        width: 1,
        shift,
        repeat: 1,
    }
}

pub(super) static Q2_K: BlockLayout = BlockLayout {
    elements: 256,
    bytes: 84,
    group: 16,
    code_bits: 2,
    value: CodeValue::Integer { zero: 0 },
    scale: BlockScale::Integers,
    offset: BlockOffset::Subtracted,
    codes: CodeStore::Planes(&[pairs(16)]),
    scales: ScaleStore::NibblePairs { at: 0 },
    d: Some(80),
    m: Some(82),
};

/// ggml subtracts 4 where the bit of `hmask` is clear; with the bit as the third of the code that is a zero of 4.
pub(super) static Q3_K: BlockLayout = BlockLayout {
    elements: 256,
    bytes: 110,
    group: 16,
    code_bits: 3,
    value: CodeValue::Integer { zero: 4 },
    scale: BlockScale::Integers,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[pairs(32), top_bits(0, 2)]),
    scales: ScaleStore::SixBits { at: 96 },
    d: Some(108),
    m: None,
};

pub(super) static Q4_K: BlockLayout = BlockLayout {
    elements: 256,
    bytes: 144,
    group: 32,
    code_bits: 4,
    value: CodeValue::Integer { zero: 0 },
    scale: BlockScale::Integers,
    offset: BlockOffset::Subtracted,
    codes: CodeStore::Planes(&[nibbles(16)]),
    scales: ScaleStore::SixBitPairs { at: 4 },
    d: Some(0),
    m: Some(2),
};

pub(super) static Q5_K: BlockLayout = BlockLayout {
    elements: 256,
    bytes: 176,
    group: 32,
    code_bits: 5,
    value: CodeValue::Integer { zero: 0 },
    scale: BlockScale::Integers,
    offset: BlockOffset::Subtracted,
    codes: CodeStore::Planes(&[nibbles(48), top_bits(16, 4)]),
    scales: ScaleStore::SixBitPairs { at: 4 },
    d: Some(0),
    m: Some(2),
};

pub(super) static Q6_K: BlockLayout = BlockLayout {
    elements: 256,
    bytes: 210,
    group: 16,
    code_bits: 6,
    value: CodeValue::Integer { zero: 32 },
    scale: BlockScale::Integers,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[
        // Two runs of 64 bytes: elements 0..63 low nibbles, 64..127 high nibbles.
        Plane {
            offset: 0,
            len: 64,
            width: 4,
            shift: 0,
            repeat: 2,
        },
        Plane {
            offset: 128,
            len: 32,
            width: 2,
            shift: 4,
            repeat: 2,
        },
    ]),
    scales: ScaleStore::SignedBytes { at: 192 },
    d: Some(208),
    m: None,
};
