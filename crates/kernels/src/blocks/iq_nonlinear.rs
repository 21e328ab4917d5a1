//! `IQ4_NL` and `IQ4_XS`: 4-bit codes into a fixed table of integers.

use super::layout::{BlockLayout, BlockOffset, BlockScale, CodeStore, CodeValue, Plane};
use super::scales::ScaleStore;

/// `kvalues_iq4nl`: denser near zero than an even grid.
pub(crate) static VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

pub(super) static IQ4_NL: BlockLayout = BlockLayout {
    elements: 32,
    bytes: 18,
    group: 32,
    code_bits: 4,
    value: CodeValue::Table(&VALUES),
    scale: BlockScale::Super,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[Plane {
        offset: 2,
        len: 16,
        width: 4,
        shift: 0,
        repeat: 1,
    }]),
    scales: ScaleStore::None,
    d: Some(0),
    m: None,
};

pub(super) static IQ4_XS: BlockLayout = BlockLayout {
    elements: 256,
    bytes: 136,
    group: 32,
    code_bits: 4,
    value: CodeValue::Table(&VALUES),
    scale: BlockScale::Integers,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[Plane {
        offset: 8,
        len: 16,
        width: 4,
        shift: 0,
        repeat: 8,
    }]),
    scales: ScaleStore::SixBitsSplit { low: 4, high: 2 },
    d: Some(0),
    m: None,
};
