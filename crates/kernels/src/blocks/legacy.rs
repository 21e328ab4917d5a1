//! `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`: 32 elements, one scale, perhaps a minimum.

use super::layout::{BlockLayout, BlockOffset, BlockScale, CodeStore, CodeValue, Plane};
use super::scales::ScaleStore;

/// 16 bytes of nibbles: elements 0..15 low, 16..31 high.
const fn nibbles(offset: usize) -> Plane {
    Plane {
        offset,
        len: 16,
        width: 4,
        shift: 0,
        repeat: 1,
    }
}

/// The fifth bits: bit `e` of a 32-bit word.
const fn fifth_bits(offset: usize) -> Plane {
    Plane {
        offset,
        len: 1,
        width: 1,
        shift: 4,
        repeat: 4,
    }
}

const Q4: BlockLayout = BlockLayout {
    elements: 32,
    bytes: 18,
    group: 32,
    code_bits: 4,
    value: CodeValue::Integer { zero: 8 },
    scale: BlockScale::Super,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[nibbles(2)]),
    scales: ScaleStore::None,
    d: Some(0),
    m: None,
};

pub(super) static Q4_0: BlockLayout = Q4;

pub(super) static Q4_1: BlockLayout = BlockLayout {
    bytes: 20,
    value: CodeValue::Integer { zero: 0 },
    offset: BlockOffset::Added,
    codes: CodeStore::Planes(&[nibbles(4)]),
    m: Some(2),
    ..Q4
};

pub(super) static Q5_0: BlockLayout = BlockLayout {
    bytes: 22,
    code_bits: 5,
    value: CodeValue::Integer { zero: 16 },
    codes: CodeStore::Planes(&[nibbles(6), fifth_bits(2)]),
    ..Q4
};

pub(super) static Q5_1: BlockLayout = BlockLayout {
    bytes: 24,
    code_bits: 5,
    value: CodeValue::Integer { zero: 0 },
    offset: BlockOffset::Added,
    codes: CodeStore::Planes(&[nibbles(8), fifth_bits(4)]),
    m: Some(2),
    ..Q4
};

pub(super) static Q8_0: BlockLayout = BlockLayout {
    bytes: 34,
    code_bits: 8,
    value: CodeValue::Integer { zero: 128 },
    codes: CodeStore::SignedBytes(2),
    ..Q4
};
