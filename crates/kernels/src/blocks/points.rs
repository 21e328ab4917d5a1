//! The lattices of IQ2 and IQ3 and where a block keeps the indices of its points.
//!
//! A code is the index of a coordinate's magnitude among those of the lattice, bit 3 its sign: what a type can store of eight codes
//! together is a point (or two of four coordinates) and, where one of eight signs is not stored, an even number of minuses.

use std::sync::OnceLock;

use super::lattice_grids;
use super::layout::{BlockLayout, BlockOffset, BlockScale, CodeStore, CodeValue};
use super::scales::ScaleStore;
use crate::Codebook;

const UNIT: usize = Lattice::UNIT;

/// The sign of a code.
const MINUS: u8 = 8;

/// The points that the magnitudes of neighbors can be, and what holds for their signs.
#[derive(Debug)]
pub struct Lattice {
    /// What codes stand for.
    pub book: Codebook,
    /// Coordinates of a point: 4 or 8.
    pub dimensions: usize,
    /// Whether an even number of eight elements is negative.
    pub has_even_signs: bool,
    /// A point's digits, the first one lowest.
    points: &'static [u16],
    tables: OnceLock<Tables>,
}

/// What is looked up of a lattice.
#[derive(Debug)]
struct Tables {
    /// `[dimensions, n_points]`: the magnitude of each coordinate.
    magnitudes: Vec<f32>,
    /// `[n_points, dimensions]`: the same, point after point.
    of_points: Vec<f32>,
    /// The largest of them.
    largest: f32,
    /// The index of the point with these digits; `u16::MAX` where there is none.
    index_of: Vec<u16>,
}

impl PartialEq for Lattice {
    /// There is one for each book.
    fn eq(&self, other: &Self) -> bool {
        self.book == other.book
    }
}

impl Eq for Lattice {}

impl Lattice {
    /// Elements whose signs stand together.
    pub const UNIT: usize = 8;

    const fn new(
        book: Codebook,
        dimensions: usize,
        has_even_signs: bool,
        points: &'static [u16],
    ) -> Self {
        Self {
            book,
            dimensions,
            has_even_signs,
            points,
            tables: OnceLock::new(),
        }
    }

    /// How many points there are.
    pub const fn n_points(&self) -> usize {
        self.points.len()
    }

    /// The magnitudes of all points, `[dimensions, n_points]`.
    pub fn magnitudes(&self) -> &[f32] {
        &self.tables().magnitudes
    }

    /// The magnitudes of one point.
    ///
    /// # Panics
    /// If there is none of this index.
    #[inline(always)]
    pub fn point(&self, index: u16) -> &[f32] {
        let start = usize::from(index) * self.dimensions;
        &self.tables().of_points[start..start + self.dimensions]
    }

    /// The largest magnitude.
    pub fn largest(&self) -> f32 {
        self.tables().largest
    }

    /// Bits of a digit.
    const fn digit_bits(&self) -> usize {
        if self.dimensions == UNIT { 2 } else { 3 }
    }

    /// Digit `j` of a point.
    fn digit(&self, point: u16, j: usize) -> u8 {
        let bits = self.digit_bits();
        (point >> (bits * j)) as u8 & ((1 << bits) - 1)
    }

    fn tables(&self) -> &Tables {
        self.tables.get_or_init(|| {
            let mut magnitudes = Vec::with_capacity(self.dimensions * self.points.len());
            for j in 0..self.dimensions {
                let of = |point: &u16| self.book.values()[usize::from(self.digit(*point, j))];
                magnitudes.extend(self.points.iter().map(of));
            }
            let n = self.points.len();
            let of_point = |p: usize| (0..self.dimensions).map(move |j| j * n + p);
            let of_points = (0..n).flat_map(of_point).map(|at| magnitudes[at]).collect();
            let mut index_of = vec![u16::MAX; 1 << 16];
            for (index, &point) in (0..).zip(self.points) {
                index_of[usize::from(point)] = index;
            }
            Tables {
                of_points,
                largest: magnitudes.iter().copied().fold(0.0, f32::max),
                magnitudes,
                index_of,
            }
        })
    }

    /// The point that the digits of some codes are.
    fn index_of(&self, codes: &[u8]) -> Option<u16> {
        let bits = self.digit_bits();
        let is_digit = |code: &u8| code & !MINUS < 1 << bits;
        let digits = codes.iter().enumerate();
        let point = digits.fold(0, |point, (j, code)| {
            point | u16::from(code & 7) << (bits * j)
        });
        let found = self.tables().index_of[usize::from(point)];
        (codes.iter().all(is_digit) && found != u16::MAX).then_some(found)
    }

    /// Codes from the index of each point and the signs of each unit, its first element lowest.
    pub(super) fn write_codes(
        &self,
        points: impl Iterator<Item = u16>,
        signs: &[u8],
        codes: &mut [u8],
    ) {
        for (codes, index) in codes.chunks_exact_mut(self.dimensions).zip(points) {
            for (j, code) in codes.iter_mut().enumerate() {
                *code = self.digit(self.points[usize::from(index)], j);
            }
        }
        for (unit, signs) in codes.chunks_exact_mut(UNIT).zip(signs) {
            for (j, code) in unit.iter_mut().enumerate() {
                *code |= (signs >> j & 1) << 3;
            }
        }
    }

    /// The first element of eight whose codes are not in the lattice together.
    pub(crate) fn first_without_point(&self, codes: &[u8]) -> Option<usize> {
        let mut units = codes.chunks_exact(UNIT).enumerate();
        let is_none = |unit: &[u8]| {
            let is_odd = self.has_even_signs && signs(unit).count_ones() % 2 == 1;
            is_odd
                || unit
                    .chunks_exact(self.dimensions)
                    .any(|codes| self.index_of(codes).is_none())
        };
        units.find(|(_, unit)| is_none(unit)).map(|(i, _)| i * UNIT)
    }
}

/// The signs of eight codes, the first one lowest.
fn signs(codes: &[u8]) -> u8 {
    let each = codes.iter().enumerate();
    each.fold(0, |signs, (j, code)| signs | (code >> 3 & 1) << j)
}

static XXS2: Lattice = Lattice::new(Codebook::Iq2Xxs, 8, true, &lattice_grids::IQ2_XXS);
static XS2: Lattice = Lattice::new(Codebook::Iq2Xs, 8, true, &lattice_grids::IQ2_XS);
static S2: Lattice = Lattice::new(Codebook::Iq2S, 8, false, &lattice_grids::IQ2_S);
static XXS3: Lattice = Lattice::new(Codebook::Iq3Xxs, 4, true, &lattice_grids::IQ3_XXS);
static S3: Lattice = Lattice::new(Codebook::Iq3S, 4, false, &lattice_grids::IQ3_S);

impl Codebook {
    /// The lattice that codes of this book are coordinates of.
    pub fn lattice(self) -> Option<&'static Lattice> {
        match self {
            Codebook::Iq2Xxs => Some(&XXS2),
            Codebook::Iq2Xs => Some(&XS2),
            Codebook::Iq2S => Some(&S2),
            Codebook::Iq3Xxs => Some(&XXS3),
            Codebook::Iq3S => Some(&S3),
            Codebook::Nf4
            | Codebook::BnbFp4
            | Codebook::Iq4Nl
            | Codebook::DoubledE2M1
            | Codebook::W4A8 => None,
        }
    }
}

/// Where the points and signs of a block lie: units of eight elements, the first one at `at`.
#[derive(Debug)]
pub(super) struct PointStore {
    lattice: &'static Lattice,
    places: Places,
}

/// See the functions of [`super::lattice`], which have the same places.
#[derive(Clone, Copy, Debug)]
enum Places {
    /// `IQ2_XXS`: 4 indices and a word of 4 x 7 signs for each 32 elements.
    WordPairs,
    /// `IQ2_XS`: a 9-bit index and 7 signs in 16 bits.
    Words,
    /// Low bytes of indices, signs and, two bits (`IQ2_S`) or one (`IQ3_S`) each, the tops of indices.
    Split { tops: usize, signs: usize },
    /// `IQ3_XXS`: all indices, then words of 4 x 7 signs.
    WordsBehind,
}

impl PointStore {
    /// Codes of the elements of a block.
    pub(super) fn unpack(&self, bytes: &[u8], codes: &mut [u8]) {
        for (i, unit) in codes.chunks_exact_mut(UNIT).enumerate() {
            let (indices, signs) = self.read(bytes, i);
            let points = unit.chunks_exact_mut(self.lattice.dimensions).zip(indices);
            for (codes, index) in points {
                let point = self.lattice.points[usize::from(index)];
                for (j, code) in codes.iter_mut().enumerate() {
                    *code = self.lattice.digit(point, j);
                }
            }
            for (j, code) in unit.iter_mut().enumerate() {
                *code |= (signs >> j & 1) << 3;
            }
        }
    }

    /// The other way, into bytes that are zero. Codes that are no point become the first one.
    pub(super) fn pack(&self, codes: &[u8], bytes: &mut [u8]) {
        for (i, unit) in codes.chunks_exact(UNIT).enumerate() {
            let mut indices = [0; 2];
            let points = unit.chunks_exact(self.lattice.dimensions);
            for (index, codes) in indices.iter_mut().zip(points) {
                *index = self.lattice.index_of(codes).unwrap_or(0);
            }
            self.write(bytes, i, indices, signs(unit));
        }
    }

    /// Indices and signs of the `i`-th unit.
    fn read(&self, bytes: &[u8], i: usize) -> ([u16; 2], u8) {
        let byte = |at: usize| u16::from(bytes[at]);
        let seven = |at: usize| {
            let word = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            super::lattice::even_signs(word >> (7 * (i % 4)))
        };
        match self.places {
            Places::WordPairs => {
                let at = 2 + 8 * (i / 4);
                ([byte(at + i % 4), 0], seven(at + 4))
            }
            Places::Words => {
                let word = byte(2 + 2 * i) | byte(3 + 2 * i) << 8;
                (
                    [word & 511, 0],
                    super::lattice::even_signs(u32::from(word >> 9)),
                )
            }
            Places::Split { tops, signs } => {
                let two = byte(tops + i / 4) >> (2 * (i % 4)) & 3;
                let indices = if self.lattice.dimensions == UNIT {
                    [byte(2 + i) | two << 8, 0]
                } else {
                    let [low, high] = [byte(2 + 2 * i), byte(3 + 2 * i)];
                    [low | (two & 1) << 8, high | (two >> 1) << 8]
                };
                (indices, bytes[signs + i])
            }
            Places::WordsBehind => {
                let at = 2 + 2 * i;
                ([byte(at), byte(at + 1)], seven(66 + 4 * (i / 4)))
            }
        }
    }

    fn write(&self, bytes: &mut [u8], i: usize, [first, second]: [u16; 2], signs: u8) {
        let low = |index: u16| index.to_le_bytes()[0];
        let put_seven = |bytes: &mut [u8], at: usize| {
            let word = u32::from(signs & 127) << (7 * (i % 4));
            for (byte, new) in bytes[at..at + 4].iter_mut().zip(word.to_le_bytes()) {
                *byte |= new;
            }
        };
        match self.places {
            Places::WordPairs => {
                let at = 2 + 8 * (i / 4);
                bytes[at + i % 4] = low(first);
                put_seven(bytes, at + 4);
            }
            Places::Words => {
                let word = first & 511 | u16::from(signs & 127) << 9;
                bytes[2 + 2 * i..4 + 2 * i].copy_from_slice(&word.to_le_bytes());
            }
            Places::Split { tops, signs: at } => {
                let two = if self.lattice.dimensions == UNIT {
                    bytes[2 + i] = low(first);
                    first >> 8
                } else {
                    bytes[2 + 2 * i] = low(first);
                    bytes[3 + 2 * i] = low(second);
                    first >> 8 & 1 | (second >> 8 & 1) << 1
                };
                bytes[tops + i / 4] |= low(two & 3) << (2 * (i % 4));
                bytes[at + i] = signs;
            }
            Places::WordsBehind => {
                bytes[2 + 2 * i] = low(first);
                bytes[3 + 2 * i] = low(second);
                put_seven(bytes, 66 + 4 * (i / 4));
            }
        }
    }
}

/// A type of 256 elements with `d` in front.
const fn layout(
    bytes: usize,
    group: usize,
    store: &'static PointStore,
    scales: ScaleStore,
) -> BlockLayout {
    BlockLayout {
        elements: 256,
        bytes,
        group,
        code_bits: 4,
        value: CodeValue::Lattice(store.lattice),
        scale: BlockScale::Halves,
        offset: BlockOffset::None,
        codes: CodeStore::Points(store),
        scales,
        d: Some(0),
        m: None,
    }
}

const fn store(lattice: &'static Lattice, places: Places) -> PointStore {
    PointStore { lattice, places }
}

static XXS2_STORE: PointStore = store(&XXS2, Places::WordPairs);
static XS2_STORE: PointStore = store(&XS2, Places::Words);
static S2_STORE: PointStore = store(
    &S2,
    Places::Split {
        tops: 66,
        signs: 34,
    },
);
static XXS3_STORE: PointStore = store(&XXS3, Places::WordsBehind);
static S3_STORE: PointStore = store(
    &S3,
    Places::Split {
        tops: 66,
        signs: 74,
    },
);

pub(super) static IQ2_XXS: BlockLayout = layout(
    66,
    32,
    &XXS2_STORE,
    ScaleStore::TopNibbles { at: 9, step: 8 },
);
pub(super) static IQ2_XS: BlockLayout =
    layout(74, 16, &XS2_STORE, ScaleStore::Nibbles { at: 66, n: 16 });
pub(super) static IQ2_S: BlockLayout =
    layout(82, 16, &S2_STORE, ScaleStore::Nibbles { at: 74, n: 16 });
pub(super) static IQ3_XXS: BlockLayout = layout(
    98,
    32,
    &XXS3_STORE,
    ScaleStore::TopNibbles { at: 69, step: 4 },
);
pub(super) static IQ3_S: BlockLayout =
    layout(110, 32, &S3_STORE, ScaleStore::Nibbles { at: 106, n: 8 });

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockFormat;

    #[test]
    fn points_are_found_by_their_digits() {
        let mut n_points = 0;
        for &book in Codebook::LATTICES {
            let lattice = book.lattice().unwrap();
            assert_eq!(lattice.book, book);
            assert_eq!(
                lattice.magnitudes().len(),
                lattice.dimensions * lattice.n_points()
            );
            for (index, &point) in lattice.points.iter().enumerate() {
                let codes: Vec<u8> = (0..lattice.dimensions)
                    .map(|j| lattice.digit(point, j))
                    .collect();
                assert_eq!(lattice.index_of(&codes).map(usize::from), Some(index));
                for (j, code) in codes.iter().enumerate() {
                    let magnitude = lattice.magnitudes()[j * lattice.n_points() + index];
                    assert_eq!(
                        book.values()[usize::from(*code)].to_bits(),
                        magnitude.to_bits()
                    );
                }
                n_points += 1;
            }
        }
        assert_eq!(n_points, 256 + 512 + 1024 + 256 + 512);
    }

    /// The neutral form has the values of the whole block.
    #[test]
    fn codes_and_scales_are_the_values() {
        let mut n_values = 0;
        let mut state = 0x9e37_79b9_u32;
        for format in BlockFormat::ALL {
            let Some(layout) = format.layout() else {
                continue;
            };
            let CodeValue::Lattice(_) = layout.value else {
                continue;
            };
            for _ in 0..200 {
                let mut next = || {
                    state ^= state << 13;
                    state ^= state >> 17;
                    state ^= state << 5;
                    (state >> 11) as u8
                };
                let mut block: Vec<u8> = (0..layout.bytes).map(|_| next()).collect();
                // Any finite scale.
                block[1] &= 0xbb;
                let (mut whole, mut neutral) = ([0.0; 256], [0.0; 256]);
                format.dequantize(&block, &mut whole);
                layout.dequantize_block(&block, &mut neutral);
                assert_eq!(
                    whole.map(f32::to_bits),
                    neutral.map(f32::to_bits),
                    "{}",
                    format.name()
                );
                n_values += whole.len();
            }
        }
        assert_eq!(n_values, 5 * 200 * 256);
    }

    #[test]
    fn codes_that_are_no_point_are_found() {
        let mut unit = [0_u8; 16];
        assert_eq!(XS2.first_without_point(&unit), None);
        unit[9] = MINUS;
        assert_eq!(XS2.first_without_point(&unit), Some(8), "one minus");
        assert_eq!(S2.first_without_point(&unit), None, "its signs are free");
        unit[10] = MINUS;
        assert_eq!(XS2.first_without_point(&unit), None, "two");
        unit[3] = 1;
        assert_eq!(XS2.first_without_point(&unit), Some(0), "no such point");
        unit[3] = 3;
        assert_eq!(S2.first_without_point(&unit), Some(0), "no such digit");
    }
}
