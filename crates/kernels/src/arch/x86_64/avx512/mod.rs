//! AVX-512 with VBMI: Intel since Ice Lake (2019), AMD since Zen 4 (2022).
//!
//! What is not written here with 512 bits is the AVX2 backend's. `VCVTNEPS2BF16` is not used: it takes subnormals for
//! zero, so its results are not the portable ones.
//!
//! Written without such a processor: `tests/emulated/run.sh` runs the tests on an emulated one. Nothing is known about
//! speed but the number of instructions for 64 codes, loads and stores included, the loop not:
//!
//! | from | to BF16 | how |
//! |---|---|---|
//! | FP8, products by a scale | 15 | [`fp8::Scaled`]: two byte planes of 128 results each; 4 of them look for codes that are no numbers |
//! | FP8, other formulas and small groups | about 64 | [`fp8::values`], F32, rounded |
//! | 4 bits, groups of 32 and more | 10 | [`sixteen`]: fields by `vpmultishiftqb`, results by `vpermw` |
//! | 4 bits, groups of 16 | 12 | the same, two tables in a register |
//! | 1 to 7 bits to bytes | 5 | [`unpack`]: `vpermb`, `vpmultishiftqb` |
//! | wider integers | 56 | F32, rounded: 16 of 28 for 32 codes are the rounding, which also looks for NaN |
#![allow(
    unsafe_code,
    reason = "instruction sets are entered, and memory is accessed, by intrinsics"
)]

mod formula;
mod fp8;
mod lanes;
mod rows;
mod sixteen;
mod stream;
mod unpack;

use super::avx2;
use crate::rows::{CodedRows, FloatsMut, Stores};
use crate::{Backend, Packing};

/// The backend.
pub(crate) static BACKEND: Backend = Backend {
    name: "avx512",
    is_available,
    unpack,
    copy,
    decode_rows,
    ..avx2::BACKEND
};

fn is_available() -> bool {
    (avx2::BACKEND.is_available)()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vbmi")
}

/// As in [`avx2`]: the safe entries of the table.
macro_rules! entries {
    ($(fn $name:ident($($argument:ident: $type:ty),*) = $kernel:path;)*) => {$(
        fn $name($($argument: $type),*) {
            assert!(is_available(), "this processor has no AVX-512 with VBMI");
            // SAFETY: the function needs AVX512F, BW, VL, DQ and VBMI and nothing else; all were found in the line above.
            unsafe { $kernel($($argument),*) }
        }
    )*};
}

entries! {
    fn unpack(packing: Packing, packed: &[u8], out: &mut [u8]) = unpack::unpack;
    fn copy(from: &[u8], to: &mut [u8], stores: Stores) = stream::copy_bytes;
    fn decode_rows(rows: &CodedRows<'_>, out: FloatsMut<'_>, stores: Stores) = rows::decode_rows;
}
