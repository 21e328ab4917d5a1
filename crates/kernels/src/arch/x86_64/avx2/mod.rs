//! AVX2 with F16C: every x86-64 processor since 2013 (Intel) and 2015 (AMD).
//!
//! Two kinds of function stand here. Where rustc vectorizes the portable loop well, the *same* loop is compiled once more
//! with AVX2 allowed (`again!`): equal by construction. Where it does not (conversions, table lookups, whole formulas),
//! there is a hand-written one in a module of its own; the runner holds it to the portable result. FMA is used
//! only where the definition is a fused multiply-add (`fused`), and where the processor has it.
#![allow(
    unsafe_code,
    reason = "instruction sets are entered, and memory is accessed, by intrinsics"
)]

mod batch;
mod blocks;
mod convert;
mod encode;
mod formula;
mod fused;
mod gather;
mod indexed;
mod lanes;
mod minifloat;
mod plan;
mod rows;
mod sixteen;
mod stream;
mod tables;
mod tiles;
mod transposed;
mod unpack;
mod wide;

use crate::encode::{CodeForm, Difference, Floats, GroupRules};
use crate::rows::{CodedRows, FloatsMut, Stores};
use crate::{
    Backend, BlockFormat, Float, Minifloat, NanRule, OverflowRule, PORTABLE, Packing, Planes, Tile,
    portable,
};

/// The backend.
pub(crate) static BACKEND: Backend = Backend {
    name: "avx2",
    is_available,
    unpack,
    pack,
    unpack_tile,
    unpack_plane,
    pack_plane,
    dequantize_integer,
    dequantize_table,
    rotate,
    rotate_rounded,
    rotate_codes,
    widen,
    round,
    encode_minifloat,
    first_non_finite,
    extremes,
    magnitudes,
    encode: encode_groups,
    encode_blocks,
    compare,
    copy,
    decode_rows,
    decode_indexed,
    decode_blocks,
    add_product: fused::add_product,
    add_product_f64: fused::add_product_f64,
    feed_back: fused::feed_back,
    search_beam: fused::search_beam,
    sweep: fused::sweep,
    losses: fused::losses,
    nearest: fused::nearest,
    fit_sums: fused::fit_sums,
    point_edge: fused::point_edge,
    improve_points: fused::improve_points,
    ..PORTABLE
};

fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// Declares the safe entries of the backend's table: each checks that the processor has the instructions (a load and a
/// test, against calls of thousands of elements) and enters the function of the same name below `$kernels`.
macro_rules! entries {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? = $kernel:path;)*) => {$(
        #[allow(clippy::type_complexity, clippy::too_many_arguments, reason = "signatures are those of `Backend`")]
        fn $name($($argument: $type),*) $(-> $result)? {
            assert!(is_available(), "this processor has no AVX2 or no F16C");
            // SAFETY: the function needs AVX2 and F16C and nothing else; both were found in the line above.
            unsafe { $kernel($($argument),*) }
        }
    )*};
}

entries! {
    fn unpack(packing: Packing, packed: &[u8], out: &mut [u8]) = unpack::unpack;
    fn unpack_tile(tile: Tile, packed: &[u8], out: &mut [u8]) = tiles::unpack_tile;
    fn unpack_plane(planes: Planes, plane: usize, words: &[u8], out: &mut [u8]) = again::unpack_plane;
    fn pack_plane(planes: Planes, plane: usize, codes: &[u8], words: &mut [u8]) = again::pack_plane;
    fn pack(packing: Packing, codes: &[u8], packed: &mut [u8]) = encode::pack;
    fn dequantize_integer(codes: &[u8], zero: i32, scale: f32, out: &mut [f32]) = again::dequantize_integer;
    fn dequantize_table(codes: &[u8], table: &[f32; 256], scale: f32, out: &mut [f32]) = sixteen::dequantize_table;
    fn rotate(values: &mut [f32], group: usize) = again::rotate;
    fn rotate_rounded(float: Float, values: &[f32], group: usize, out: &mut [f32]) = again::rotate_rounded;
    fn rotate_codes(codes: &[i8], scale: f32, group: usize, out: &mut [f32]) = again::rotate_codes;
    fn widen(float: Float, bytes: &[u8], out: &mut [f32]) = convert::widen;
    fn round(float: Float, values: &[f32], bytes: &mut [u8]) = convert::round;
    fn encode_minifloat(format: Minifloat, overflow: OverflowRule, nan: NanRule, values: &[f32], out: &mut [u8]) = again::encode_minifloat;
    fn first_non_finite(values: &[f32]) -> Option<usize> = again::first_non_finite;
    fn extremes(source: Floats<'_>, group: usize, out: &mut [(f32, f32)]) = encode::extremes;
    fn magnitudes(source: Floats<'_>, group: usize, ahead: usize, out: &mut [f32]) = encode::magnitudes;
    fn encode_groups(source: Floats<'_>, group: usize, rules: GroupRules<'_>, form: CodeForm, out: &mut [u8], stores: Stores) = encode::encode;
    fn encode_blocks(format: BlockFormat, source: Floats<'_>, blocks: &mut [u8], stores: Stores) = encode::encode_blocks;
    fn compare(original: Floats<'_>, decoded: Floats<'_>) -> Difference = encode::compare;
    fn copy(from: &[u8], to: &mut [u8], stores: Stores) = stream::copy_bytes;
    fn decode_rows(rows: &CodedRows<'_>, out: FloatsMut<'_>, stores: Stores) = rows::decode_rows;
    fn decode_indexed(rows: &CodedRows<'_>, index: &[u32], out: FloatsMut<'_>, stores: Stores) = indexed::decode_indexed;
    fn decode_blocks(format: BlockFormat, blocks: &[u8], out: FloatsMut<'_>, stores: Stores) = blocks::decode_blocks;
}

/// The portable functions, compiled with AVX2 allowed.
mod again {
    use super::{Float, Minifloat, NanRule, OverflowRule, Packing, Planes, portable};

    macro_rules! again {
        ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? = $portable:path;)*) => {$(
            #[allow(clippy::too_many_arguments, reason = "signatures are those of `Backend`")]
            #[target_feature(enable = "avx2,f16c")]
            pub(super) fn $name($($argument: $type),*) $(-> $result)? {
                $portable($($argument),*)
            }
        )*};
    }

    again! {
        fn pack(packing: Packing, codes: &[u8], packed: &mut [u8]) = Packing::pack;
        fn unpack_plane(planes: Planes, plane: usize, words: &[u8], out: &mut [u8]) = Planes::unpack;
        fn pack_plane(planes: Planes, plane: usize, codes: &[u8], words: &mut [u8]) = Planes::pack;
        fn dequantize_integer(codes: &[u8], zero: i32, scale: f32, out: &mut [f32]) = portable::affine::dequantize_integer;
        fn rotate(values: &mut [f32], group: usize) = portable::rotate::rotate;
        fn rotate_rounded(float: Float, values: &[f32], group: usize, out: &mut [f32]) = portable::rotate::rotate_rounded;
        fn rotate_codes(codes: &[i8], scale: f32, group: usize, out: &mut [f32]) = portable::rotate::rotate_codes;
        fn encode_minifloat(format: Minifloat, overflow: OverflowRule, nan: NanRule, values: &[f32], out: &mut [u8]) = portable::minifloat::encode;
                        fn first_non_finite(values: &[f32]) -> Option<usize> = portable::scan::first_non_finite;
    }
}
