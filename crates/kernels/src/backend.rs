//! A backend is a value: a table of functions for one instruction set.
//!
//! A SIMD backend is one file that fills in what it does faster and takes the rest from [`PORTABLE`]:
//!
//! ```text
//! pub static BACKEND: Backend = Backend { name: "avx2", is_available, unpack, ..PORTABLE };
//! ```
//!
//! and one line in [`BACKENDS`]. Tests and benches loop over [`Backend::available`].

use crate::encode::{CodeForm, Difference, Floats, GroupRules};
use crate::rows::{CodedRows, FloatsMut, Stores};
use crate::{
    Beam, BlockFormat, Candidate, EdgeOf, Feedback, FitSums, Float, Levels, Minifloat, NanRule,
    OverflowRule, Packing, Planes, PointStep, Product, Sweep, Tile, portable,
};

/// The operations that `schemes` and `quantize` call. Lengths are checked by the functions themselves, which panic with a
/// message if they do not fit. No slice needs alignment.
#[derive(Clone, Copy)]
pub struct Backend {
    /// `portable`, `avx2`, `avx512` ...
    pub name: &'static str,
    /// Whether this machine can run it.
    pub is_available: fn() -> bool,
    /// [`Packing::unpack`].
    pub unpack: fn(Packing, &[u8], &mut [u8]),
    /// [`Packing::pack`].
    pub pack: fn(Packing, &[u8], &mut [u8]),
    /// [`Tile::unpack`]: one tile.
    pub unpack_tile: fn(Tile, &[u8], &mut [u8]),
    /// [`Tile::pack`]: one tile.
    pub pack_tile: fn(Tile, &[u8], &mut [u8]),
    /// [`Planes::unpack`]: the codes of one plane in a range of words.
    pub unpack_plane: fn(Planes, plane: usize, words: &[u8], out: &mut [u8]),
    /// [`Planes::pack`]: the codes of one plane into a range of words.
    pub pack_plane: fn(Planes, plane: usize, codes: &[u8], words: &mut [u8]),
    /// `out[i] = f32(code - zero) * scale`, in F32, for one group: integer codes.
    /// [`portable::affine::dequantize_integer`].
    pub dequantize_integer: fn(codes: &[u8], zero: i32, scale: f32, out: &mut [f32]),
    /// `out[i] = table[code] * scale`, in F32, for one group: minifloats and code books.
    /// [`portable::affine::dequantize_table`].
    pub dequantize_table: fn(codes: &[u8], table: &[f32; 256], scale: f32, out: &mut [f32]),
    /// Rotates blocks of `group` values in place, in F32. [`portable::rotate::rotate`].
    pub rotate: fn(values: &mut [f32], group: usize),
    /// Rotates blocks of `group` values with sums in F64, each result rounded once.
    /// [`portable::rotate::rotate_rounded`].
    pub rotate_rounded: fn(Float, values: &[f32], group: usize, out: &mut [f32]),
    /// Rotates blocks of `group` signed codes exactly, then scales. [`portable::rotate::rotate_codes`].
    pub rotate_codes: fn(codes: &[i8], scale: f32, group: usize, out: &mut [f32]),
    /// Little-endian dense floats to F32 (exact). [`portable::convert::widen`].
    pub widen: fn(Float, &[u8], &mut [f32]),
    /// F32 to little-endian dense floats, rounding once to nearest even; NaN stays NaN. [`portable::convert::round`].
    pub round: fn(Float, &[f32], &mut [u8]),
    /// Codes of `values` (no scaling). [`portable::minifloat::encode`].
    pub encode_minifloat: fn(Minifloat, OverflowRule, NanRule, &[f32], &mut [u8]),
    /// Index of the first value that is NaN or infinite. [`portable::scan::first_non_finite`].
    pub first_non_finite: fn(&[f32]) -> Option<usize>,
    /// Smallest and largest value of each group of consecutive values. [`portable::encode::extremes`].
    pub extremes: fn(Floats<'_>, group: usize, out: &mut [(f32, f32)]),
    /// Largest magnitude of each group of consecutive values. [`portable::encode::magnitudes`].
    pub magnitudes: fn(Floats<'_>, group: usize, ahead: usize, out: &mut [f32]),
    /// Codes of groups of consecutive values, each by its own rule, as they are stored. [`portable::encode::encode`].
    pub encode: fn(Floats<'_>, group: usize, GroupRules<'_>, CodeForm, out: &mut [u8], Stores),
    /// Floats to whole blocks of ggml, in one go. [`portable::encode::encode_blocks`].
    pub encode_blocks: fn(BlockFormat, Floats<'_>, blocks: &mut [u8], Stores),
    /// What became of a weight. [`portable::encode::compare`].
    pub compare: fn(original: Floats<'_>, decoded: Floats<'_>) -> Difference,
    /// Copies bytes, past the caches or not: for what passes through unchanged, and the limit that benches compare with.
    /// [`portable::rows::copy`].
    pub copy: fn(from: &[u8], to: &mut [u8], Stores),
    /// Rows of stored codes to rows of floats, in one go. [`portable::rows::decode`].
    pub decode_rows: fn(&CodedRows<'_>, FloatsMut<'_>, Stores),
    /// As `decode_rows`, where each column names its entry of the grid. [`portable::indexed::decode`].
    pub decode_indexed: fn(&CodedRows<'_>, index: &[u32], FloatsMut<'_>, Stores),
    /// A product of matrices in F32, added. [`portable::product::add_product`].
    pub add_product: fn(Product<'_, f32>),
    /// A product of matrices in F64, added. [`portable::product::add_product_f64`].
    pub add_product_f64: fn(Product<'_, f64>),
    /// Columns to levels, errors passed on. [`portable::feedback::feed_back`].
    pub feed_back: fn(Feedback<'_>),
    /// Columns of a row to levels, errors passed on, with several hypotheses. [`portable::beam::search_beam`].
    pub search_beam: fn(Beam<'_>),
    /// Each code of a row to the best one while the others stay. [`portable::sweep::sweep`].
    pub sweep: fn(Sweep<'_>) -> usize,
    /// What candidates for scale and offset lose. [`portable::fit::losses`].
    #[expect(clippy::type_complexity, reason = "a signature is what it is")]
    pub losses: fn(Levels, values: &[f32], weights: &[f32], &[Candidate], out: &mut [f32]),
    /// The levels nearest to values. [`portable::fit::nearest`].
    pub nearest: fn(Levels, values: &[f32], Candidate, out: &mut [f32]),
    /// What better scales and offsets follow from. [`portable::fit::fit_sums`].
    pub fit_sums: fn(Levels, values: &[f32], weights: &[f32], Candidate) -> FitSums,
    /// The points of a lattice that are nearest to values at any scale. [`portable::points::edge`].
    pub point_edge: EdgeOf,
    /// Eight values to better points of a lattice. [`portable::points::improve`].
    pub improve_points: fn(PointStep<'_>) -> bool,
    /// Whole blocks of ggml to floats, in one go. [`BlockFormat::decode`].
    pub decode_blocks: fn(BlockFormat, blocks: &[u8], FloatsMut<'_>, Stores),
}

/// Plain Rust: the reference, available everywhere.
pub const PORTABLE: Backend = Backend {
    name: "portable",
    is_available: || true,
    unpack: Packing::unpack,
    pack: Packing::pack,
    unpack_tile: Tile::unpack,
    pack_tile: Tile::pack,
    unpack_plane: Planes::unpack,
    pack_plane: Planes::pack,
    dequantize_integer: portable::affine::dequantize_integer,
    dequantize_table: portable::affine::dequantize_table,
    rotate: portable::rotate::rotate,
    rotate_rounded: portable::rotate::rotate_rounded,
    rotate_codes: portable::rotate::rotate_codes,
    widen: portable::convert::widen,
    round: portable::convert::round,
    encode_minifloat: portable::minifloat::encode,
    first_non_finite: portable::scan::first_non_finite,
    extremes: portable::encode::extremes,
    magnitudes: portable::encode::magnitudes,
    encode: portable::encode::encode,
    encode_blocks: portable::encode::encode_blocks,
    compare: portable::encode::compare,
    copy: portable::rows::copy,
    decode_rows: portable::rows::decode,
    decode_indexed: portable::indexed::decode,
    decode_blocks: BlockFormat::decode,
    add_product: portable::product::add_product,
    add_product_f64: portable::product::add_product_f64,
    feed_back: portable::feedback::feed_back,
    search_beam: portable::beam::search_beam,
    sweep: portable::sweep::sweep,
    losses: portable::fit::losses,
    nearest: portable::fit::nearest,
    fit_sums: portable::fit::fit_sums,
    point_edge: portable::points::edge,
    improve_points: portable::points::improve,
};

/// Every backend, in the order of preference; the last one is portable and always available.
///
/// AVX-512 comes after AVX2 until somebody has measured it: its results were compared on an emulated processor only.
pub static BACKENDS: &[&Backend] = &[
    #[cfg(target_arch = "x86_64")]
    &crate::arch::x86_64::avx2::BACKEND,
    #[cfg(target_arch = "x86_64")]
    &crate::arch::x86_64::avx512::BACKEND,
    &PORTABLE,
];

impl Backend {
    /// The preferred backend of those that this machine can run.
    pub fn detect() -> &'static Backend {
        Backend::available().next().unwrap_or(&PORTABLE)
    }

    /// The backend of this name, if the machine can run it.
    ///
    /// ```
    /// use safequant_kernels::Backend;
    /// assert!(Backend::by_name("portable").is_some());
    /// assert!(Backend::by_name("abacus").is_none());
    /// ```
    pub fn by_name(name: &str) -> Option<&'static Backend> {
        Backend::available().find(|backend| backend.name == name)
    }

    /// Every backend that this machine can run, in the order of [`BACKENDS`].
    pub fn available() -> impl Iterator<Item = &'static Backend> {
        BACKENDS.iter().copied().filter(|b| (b.is_available)())
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_portable_is_last() {
        let names: std::collections::BTreeSet<&str> = BACKENDS.iter().map(|b| b.name).collect();
        assert_eq!(names.len(), BACKENDS.len());
        assert_eq!(BACKENDS.last().map(|b| b.name), Some("portable"));
        assert!((PORTABLE.is_available)());
    }
}
