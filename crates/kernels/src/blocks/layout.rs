//! The layout of a coded block as data, and the neutral form that it gives.

use std::ops::RangeInclusive;

use super::points::{Lattice, PointStore};
use super::scales::ScaleStore;
use super::{MAX_ELEMENTS, MAX_GROUPS};

/// What a code stands for before it is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeValue {
    /// `code - zero`.
    Integer {
        /// The code of zero.
        zero: u8,
    },
    /// The integer at this index.
    Table(&'static [i8]),
    /// A value of the lattice, bit 3 of the code being the sign; not all codes go together.
    Lattice(&'static Lattice),
}

impl CodeValue {
    /// The value of a code.
    #[inline(always)]
    pub fn of(self, code: u8) -> f32 {
        match self {
            CodeValue::Integer { zero } => (i32::from(code) - i32::from(zero)) as f32,
            CodeValue::Table(values) => f32::from(values[usize::from(code)]),
            CodeValue::Lattice(lattice) => lattice.book.values()[usize::from(code & 15)],
        }
    }
}

/// What a value is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockScale {
    /// The block's F16 scale `d`.
    Super,
    /// `d` times the group's integer scale.
    Integers,
    /// `d` times the group's integer scale and a half.
    Halves,
    /// `2^(scale - 128)`: half of an E8M0 power, because the code book holds doubled values. 255 counts like any other.
    HalfE8M0,
    /// Half of an unsigned E4M3 (1 sign bit ignored, 4 exponent bits, bias 7). 0 and 7F are 0.
    HalfE4M3,
}

impl BlockScale {
    /// The number that an entry of [`BlockFields::scales`] stands for, before `d`.
    pub fn decode(self, code: i16) -> f32 {
        match self {
            BlockScale::Super | BlockScale::Integers => f32::from(code),
            BlockScale::Halves => f32::from(code) + 0.5,
            BlockScale::HalfE8M0 => super::float4::half_e8m0(code as u8),
            BlockScale::HalfE4M3 => super::float4::half_e4m3(code as u8),
        }
    }
}

/// What is added to a scaled value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOffset {
    /// Nothing.
    None,
    /// The block's F16 minimum `m`.
    Added,
    /// Minus the block's F16 `m` times the group's integer minimum.
    Subtracted,
}

/// Bits of codes in `repeat` runs of `len` bytes: bit field `k` (of `width` bits, lowest first) of byte `j` of a run is
/// put at bit `shift` of the code of element `k * len + j` of that run's elements, which follow those of the run before.
///
/// `len` 1 is a plain run of bit fields, lowest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane {
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) width: u32,
    pub(super) shift: u32,
    pub(super) repeat: usize,
}

/// Where the codes lie.
#[derive(Clone, Copy, Debug)]
pub(super) enum CodeStore {
    /// Bit fields.
    Planes(&'static [Plane]),
    /// Bytes at this offset, in two's complement.
    SignedBytes(usize),
    /// `TQ1_0`'s digits.
    Trits,
    /// Indices of points and signs.
    Points(&'static PointStore),
}

/// The layout of a coded block type.
#[derive(Debug)]
pub struct BlockLayout {
    /// Elements in a block.
    pub elements: usize,
    /// Bytes in a block.
    pub bytes: usize,
    /// Elements that share a scale; all of them where [`BlockScale::Super`] is used.
    pub group: usize,
    /// Bits of a code.
    pub code_bits: u32,
    /// What a code stands for.
    pub value: CodeValue,
    /// What it is multiplied by.
    pub scale: BlockScale,
    /// What is added.
    pub offset: BlockOffset,
    pub(super) codes: CodeStore,
    pub(super) scales: ScaleStore,
    /// Byte offset of `d`.
    pub(crate) d: Option<usize>,
    /// Byte offset of `m`.
    pub(crate) m: Option<usize>,
}

/// The neutral form of one or more blocks, all arrays in the order of the elements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockFields {
    /// One code per element, in unsigned form.
    pub codes: Vec<u8>,
    /// One integer scale per group; the code of the scale for E8M0 and E4M3; empty for [`BlockScale::Super`].
    pub scales: Vec<i16>,
    /// One integer minimum per group; empty but for [`BlockOffset::Subtracted`].
    pub mins: Vec<i16>,
    /// One F16 scale per block, widened bit for bit (a signalling NaN stays one); empty where the scale is a small float.
    pub d: Vec<f32>,
    /// One F16 minimum (or scale of minima) per block; empty for [`BlockOffset::None`].
    pub m: Vec<f32>,
}

/// One block in neutral form; what the type does not use is zero.
pub(crate) struct Block {
    pub(crate) codes: [u8; MAX_ELEMENTS],
    pub(crate) scales: [i16; MAX_GROUPS],
    pub(crate) mins: [i16; MAX_GROUPS],
    pub(crate) d: f32,
    pub(crate) m: f32,
}

impl Block {
    pub(crate) const ZERO: Self = Self {
        codes: [0; MAX_ELEMENTS],
        scales: [0; MAX_GROUPS],
        mins: [0; MAX_GROUPS],
        d: 0.0,
        m: 0.0,
    };
}

impl BlockLayout {
    /// Groups in a block.
    pub const fn n_groups(&self) -> usize {
        self.elements / self.group
    }

    /// The integer scales and minima that can be stored.
    pub fn scale_range(&self) -> RangeInclusive<i16> {
        self.scales.range()
    }

    /// Whole blocks to their neutral form, which replaces what `fields` held.
    ///
    /// # Panics
    /// If `blocks` is not whole blocks.
    pub fn unpack(&self, blocks: &[u8], fields: &mut BlockFields) {
        assert!(blocks.len().is_multiple_of(self.bytes), "whole blocks");
        let BlockFields {
            codes,
            scales,
            mins,
            d,
            m,
        } = fields;
        codes.clear();
        scales.clear();
        mins.clear();
        d.clear();
        m.clear();
        let mut block = Block::ZERO;
        for bytes in blocks.chunks_exact(self.bytes) {
            self.unpack_block(bytes, &mut block);
            codes.extend_from_slice(&block.codes[..self.elements]);
            if self.scale != BlockScale::Super {
                scales.extend_from_slice(&block.scales[..self.n_groups()]);
            }
            if self.offset == BlockOffset::Subtracted {
                mins.extend_from_slice(&block.mins[..self.n_groups()]);
            }
            d.extend(self.d.map(|_| block.d));
            m.extend(self.m.map(|_| block.m));
        }
    }

    /// The inverse of [`BlockLayout::unpack`]: the same bytes, whatever they were, but for `TQ1_0`, where several bytes stand
    /// for the same five digits and the one that ggml writes is chosen, and codes that are no points of a lattice
    /// ([`BlockLayout::first_without_point`]). `d` and `m` are rounded to F16 where they are none.
    ///
    /// # Panics
    /// If an array of `fields` has not the length that [`BlockLayout::unpack`] gives it for the blocks of `blocks`.
    pub fn pack(&self, fields: &BlockFields, blocks: &mut [u8]) {
        assert!(blocks.len().is_multiple_of(self.bytes), "whole blocks");
        let n_groups = self.n_groups();
        let mut block = Block::ZERO;
        for (i, bytes) in blocks.chunks_exact_mut(self.bytes).enumerate() {
            let elements = i * self.elements..(i + 1) * self.elements;
            let groups = i * n_groups..(i + 1) * n_groups;
            block.codes[..self.elements].copy_from_slice(&fields.codes[elements]);
            if self.scale != BlockScale::Super {
                block.scales[..n_groups].copy_from_slice(&fields.scales[groups.clone()]);
            }
            if self.offset == BlockOffset::Subtracted {
                block.mins[..n_groups].copy_from_slice(&fields.mins[groups]);
            }
            block.d = if self.d.is_some() { fields.d[i] } else { 0.0 };
            block.m = if self.m.is_some() { fields.m[i] } else { 0.0 };
            self.pack_block(&block, bytes);
        }
    }

    /// The first element of eight whose codes are not in the type's lattice together; `None` where all can be stored.
    pub fn first_without_point(&self, codes: &[u8]) -> Option<usize> {
        match self.value {
            CodeValue::Lattice(lattice) => lattice.first_without_point(codes),
            CodeValue::Integer { .. } | CodeValue::Table(_) => None,
        }
    }

    pub(super) fn unpack_block(&self, bytes: &[u8], block: &mut Block) {
        let codes = &mut block.codes[..self.elements];
        match self.codes {
            CodeStore::Planes(planes) => {
                codes.fill(0);
                for plane in planes {
                    plane.add_to(bytes, codes);
                }
            }
            CodeStore::SignedBytes(at) => {
                for (code, byte) in codes.iter_mut().zip(&bytes[at..]) {
                    *code = byte ^ 0x80;
                }
            }
            CodeStore::Trits => super::ternary::unpack_trits(bytes, codes),
            CodeStore::Points(store) => store.unpack(bytes, codes),
        }
        self.scales
            .unpack(bytes, &mut block.scales, &mut block.mins);
        block.d = self.d.map_or(0.0, |at| widen_f16(bytes, at));
        block.m = self.m.map_or(0.0, |at| widen_f16(bytes, at));
    }

    pub(crate) fn pack_block(&self, block: &Block, bytes: &mut [u8]) {
        bytes.fill(0);
        let codes = &block.codes[..self.elements];
        match self.codes {
            CodeStore::Planes(planes) => {
                for plane in planes {
                    plane.take_from(codes, bytes);
                }
            }
            CodeStore::SignedBytes(at) => {
                for (byte, code) in bytes[at..].iter_mut().zip(codes) {
                    *byte = code ^ 0x80;
                }
            }
            CodeStore::Trits => super::ternary::pack_trits(codes, bytes),
            CodeStore::Points(store) => store.pack(codes, bytes),
        }
        self.scales.pack(&block.scales, &block.mins, bytes);
        for (at, value) in [(self.d, block.d), (self.m, block.m)] {
            if let Some(at) = at {
                bytes[at..at + 2].copy_from_slice(&narrow_f16(value).to_le_bytes());
            }
        }
    }

    pub(super) fn dequantize_block(&self, bytes: &[u8], out: &mut [f32]) {
        let mut block = Block::ZERO;
        self.unpack_block(bytes, &mut block);
        for (group, out) in out.chunks_exact_mut(self.group).enumerate() {
            let codes = &block.codes[group * self.group..];
            let scale = self.scale_of(&block, group);
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = self.value.of(code) * scale;
            }
            match self.offset {
                BlockOffset::None => {}
                BlockOffset::Added => {
                    for out in out {
                        *out += block.m;
                    }
                }
                BlockOffset::Subtracted => {
                    let min = block.m * f32::from(block.mins[group]);
                    for out in out {
                        *out -= min;
                    }
                }
            }
        }
    }

    /// The factor of a group, in F32.
    fn scale_of(&self, block: &Block, group: usize) -> f32 {
        match self.scale {
            BlockScale::Super => block.d,
            BlockScale::Integers | BlockScale::Halves => {
                block.d * self.scale.decode(block.scales[group])
            }
            BlockScale::HalfE8M0 | BlockScale::HalfE4M3 => self.scale.decode(block.scales[group]),
        }
    }
}

impl Plane {
    /// Elements whose bits one run holds.
    const fn run_elements(self) -> usize {
        self.len * (8 / self.width as usize)
    }

    fn add_to(self, bytes: &[u8], codes: &mut [u8]) {
        let mask = 0xff >> (8 - self.width);
        let runs = bytes[self.offset..].chunks_exact(self.len);
        for (run, codes) in runs.zip(
            codes
                .chunks_exact_mut(self.run_elements())
                .take(self.repeat),
        ) {
            for (field, codes) in (0..).zip(codes.chunks_exact_mut(self.len)) {
                for (code, byte) in codes.iter_mut().zip(run) {
                    *code |= (byte >> (field * self.width) & mask) << self.shift;
                }
            }
        }
    }

    fn take_from(self, codes: &[u8], bytes: &mut [u8]) {
        let mask = 0xff >> (8 - self.width);
        let runs = bytes[self.offset..].chunks_exact_mut(self.len);
        for (run, codes) in runs.zip(codes.chunks_exact(self.run_elements()).take(self.repeat)) {
            for (field, codes) in (0..).zip(codes.chunks_exact(self.len)) {
                for (code, byte) in codes.iter().zip(run.iter_mut()) {
                    *byte |= (code >> self.shift & mask) << (field * self.width);
                }
            }
        }
    }
}

/// The F16 at a byte offset as F32. Unlike [`crate::portable::convert::f16_to_f32`] a signalling NaN stays one, so that the
/// bytes can be had back.
pub(super) fn widen_f16(bytes: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let payload = u32::from(bits & 0x03ff);
    if bits & 0x7c00 == 0x7c00 && payload != 0 {
        let sign = u32::from(bits & 0x8000) << 16;
        return f32::from_bits(sign | 0x7f80_0000 | payload << 13);
    }
    crate::portable::convert::f16_to_f32(bits)
}

/// F32 to F16, to nearest even; the inverse of [`widen_f16`].
pub(super) fn narrow_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let payload = bits >> 13 & 0x03ff;
    if value.is_nan() && payload != 0 {
        return (bits >> 16 & 0x8000 | 0x7c00 | payload) as u16;
    }
    crate::portable::convert::f32_to_f16(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BlockFormat;
    use proptest::prelude::*;

    #[test]
    fn every_f16_survives_the_way_through_f32() {
        for bits in 0..=u16::MAX {
            assert_eq!(narrow_f16(widen_f16(&bits.to_le_bytes(), 0)), bits);
        }
    }

    #[test]
    fn layouts_agree_with_the_table_and_codes_cover_their_elements_once() {
        let mut n_layouts = 0;
        for &format in BlockFormat::ALL {
            let Some(layout) = format.layout() else {
                continue;
            };
            assert_eq!(layout.elements, format.elements(), "{}", format.name());
            assert_eq!(layout.bytes, format.bytes(), "{}", format.name());
            assert!(layout.n_groups() <= MAX_GROUPS);
            assert_eq!(layout.elements % layout.group, 0);
            if let CodeStore::Planes(planes) = layout.codes {
                let mut bits = 0_u32;
                for plane in planes {
                    assert_eq!(plane.run_elements() * plane.repeat, layout.elements);
                    let field = (0xff_u32 >> (8 - plane.width)) << plane.shift;
                    assert_eq!(bits & field, 0);
                    bits |= field;
                }
                assert_eq!(bits, (1 << layout.code_bits) - 1, "{}", format.name());
            }
            n_layouts += 1;
        }
        assert_eq!(n_layouts, 23);
    }

    proptest! {
        /// Random bytes, all layouts; TQ1_0's digits have many spellings, so that there its values are compared.
        #[test]
        fn unpack_and_pack_give_the_same_bytes(seed: [u8; 32], n_blocks in 1_usize..4) {
            for &format in BlockFormat::ALL {
                let Some(layout) = format.layout() else { continue };
                // Random bytes name points and signs, whatever they are.
                let bytes: Vec<u8> = (0..n_blocks * layout.bytes)
                    .map(|i| seed[i % 31].wrapping_mul(i as u8 | 1) ^ seed[i / 31 % 32])
                    .collect();
                let (mut fields, mut again) = (BlockFields::default(), BlockFields::default());
                layout.unpack(&bytes, &mut fields);
                prop_assert!(fields.codes.iter().all(|code| u32::from(*code) >> layout.code_bits == 0));
                let mut packed = vec![0xaa; bytes.len()];
                layout.pack(&fields, &mut packed);
                if format == BlockFormat::Tq1_0 {
                    layout.unpack(&packed, &mut again);
                    prop_assert_eq!(&again.codes, &fields.codes);
                } else {
                    prop_assert_eq!(&packed, &bytes, "{}", format.name());
                }
            }
        }
    }
}
